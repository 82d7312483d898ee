//! YuNet (2023): a small neural network, run by OpenCV's dnn module and decoded here.
//!
//! OpenCV's own wrapper refuses this model before 4.8, so its outputs are decoded by hand. Input: BGR, 0 to 255, NCHW,
//! neither mean nor scale, sides padded right and below to a multiple of 32. For stride s of 8, 16, 32, with
//! cell (r, c) of `(H/s) x (W/s)`: `cls_s` and `obj_s` (1 value), `bbox_s` (4), `kps_s` (10).
//! Owns: the network and its input buffer. Never: trusts the sizes of the outputs.

use std::path::PathBuf;

use opencv::core::{Mat, Vector};
use opencv::dnn::{self, Net};
use opencv::prelude::*;

use super::{Box2, DetectError, Detection, Score, opencv, scale, search_size};
use crate::frame::View;

/// Settings of the network.
#[derive(Debug, Clone, PartialEq)]
pub struct YuNetConfig {
    /// The ONNX file.
    pub model: PathBuf,
    /// Least score, 0 to 1.
    pub score_min: f32,
    /// Boxes that overlap more than this (IoU) are one face.
    pub nms_iou: f32,
    /// Smallest face, in pixels of the full frame.
    pub face_px_min: u32,
}

const STRIDES: [u32; 3] = [8, 16, 32];
const KINDS: [(&str, usize); 4] = [("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)];
/// Most faces kept before suppression: a scene with more is noise, and suppression is quadratic.
const CANDIDATES_MAX: usize = 1000;

/// A loaded network.
pub struct YuNet {
    net: Net,
    names: Vector<String>,
    blob: Vec<f32>,
    config: YuNetConfig,
}

impl std::fmt::Debug for YuNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("YuNet").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The outputs of one stride, each row by row.
#[derive(Debug, Clone, Copy)]
pub struct Level<'a> {
    /// 8, 16 or 32.
    pub stride: u32,
    /// Face or not, 1 value a cell.
    pub cls: &'a [f32],
    /// Something or nothing, 1 value a cell.
    pub obj: &'a [f32],
    /// Offset of the centre and logarithm of the size, 4 values a cell.
    pub bbox: &'a [f32],
    /// Offsets of the landmarks, 10 values a cell.
    pub kps: &'a [f32],
}

impl YuNet {
    /// Loads the ONNX file.
    ///
    /// # Errors
    /// [`DetectError::Model`] with what to do.
    pub fn load(config: &YuNetConfig) -> Result<YuNet, DetectError> {
        let path = config.model.display().to_string();
        let model = |why: String| DetectError::Model { what: "YuNet model", path: path.clone(), why };
        std::fs::File::open(&config.model)
            .map_err(|e| model(format!("{e}; 'make models' of the source tree downloads and checks it")))?;
        let mut net = dnn::read_net_from_onnx(&path)
            .map_err(|e| model(format!("OpenCV cannot read it as ONNX: {}", e.message)))?;
        net.set_preferable_backend(dnn::DNN_BACKEND_OPENCV).map_err(opencv("choose the dnn backend"))?;
        net.set_preferable_target(dnn::DNN_TARGET_CPU).map_err(opencv("choose the dnn target"))?;
        let names: Vec<String> =
            KINDS.iter().flat_map(|(kind, _)| STRIDES.map(|s| format!("{kind}_{s}"))).collect();
        Ok(YuNet {
            net,
            names: names.iter().map(String::as_str).collect(),
            blob: Vec::new(),
            config: config.clone(),
        })
    }

    /// The faces in the frame, in pixels of the frame.
    ///
    /// # Errors
    /// [`DetectError::OpenCv`] and [`DetectError::Output`].
    pub fn detect(&mut self, view: &View<'_>, detect_width: u32) -> Result<Vec<Detection>, DetectError> {
        let layout = view.layout();
        let (w, h) = search_size(layout.width, layout.height, detect_width);
        let (padded_w, padded_h) = (w.next_multiple_of(32), h.next_multiple_of(32));
        scale::bgr_planes(view, (w, h), (padded_w, padded_h), &mut self.blob)?;
        let shape = [1, 3, padded_h as i32, padded_w as i32];
        let mut outputs = Vector::<Mat>::new();
        {
            let input =
                Mat::new_nd_with_data(&shape, &self.blob).map_err(opencv("wrap the network's input"))?;
            self.net.set_input_def(&input).map_err(opencv("set the network's input"))?;
            self.net.forward(&mut outputs, &self.names).map_err(opencv("run YuNet"))?;
        }
        let levels = self.levels(&outputs, padded_w, padded_h)?;
        let mut levels_read = Vec::with_capacity(STRIDES.len());
        for (stride, [cls, obj, bbox, kps]) in STRIDES.into_iter().zip(&levels) {
            levels_read.push(Level { stride, cls, obj, bbox, kps });
        }
        let factor = layout.width as f32 / w as f32;
        let side_min = self.config.face_px_min as f32 / factor;
        let mut found = decode(&levels_read, padded_w, self.config.score_min);
        // What lies in the padding is not in the picture.
        found.retain(|d| {
            let (x, y) = (d.bbox.x + d.bbox.w / 2.0, d.bbox.y + d.bbox.h / 2.0);
            x <= w as f32 && y <= h as f32 && d.bbox.w.max(d.bbox.h) >= side_min
        });
        let mut faces = suppress(found, self.config.nms_iou);
        for face in &mut faces {
            face.bbox = face.bbox.scaled(factor);
            face.landmarks = face.landmarks.map(|points| points.map(|(x, y)| (x * factor, y * factor)));
        }
        Ok(faces)
    }

    /// Per stride the four outputs, their sizes checked.
    fn levels(
        &self,
        outputs: &Vector<Mat>,
        padded_w: u32,
        padded_h: u32,
    ) -> Result<Vec<[Vec<f32>; 4]>, DetectError> {
        let mut levels: Vec<[Vec<f32>; 4]> = vec![Default::default(); STRIDES.len()];
        for (k, (kind, values)) in KINDS.into_iter().enumerate() {
            for (n, stride) in STRIDES.into_iter().enumerate() {
                let cells = (padded_w / stride * (padded_h / stride)) as usize;
                let wrong =
                    |why: String| DetectError::Output { path: self.config.model.display().to_string(), why };
                let mat = outputs
                    .get(k * STRIDES.len() + n)
                    .map_err(|_| wrong(format!("it has no output {kind}_{stride}")))?;
                let data =
                    mat.data_typed::<f32>().map_err(|e| wrong(format!("{kind}_{stride}: {}", e.message)))?;
                if data.len() != cells * values {
                    let (found, expected) = (data.len(), cells * values);
                    return Err(wrong(format!("{kind}_{stride} has {found} values instead of {expected}")));
                }
                levels[n][k] = data.to_vec();
            }
        }
        Ok(levels)
    }
}

/// Boxes and landmarks of every cell that scores at least `score_min`, in pixels of the network's input, whose width is
/// `padded_w`. The best [`CANDIDATES_MAX`] of them, best first.
#[must_use]
pub fn decode(levels: &[Level<'_>], padded_w: u32, score_min: f32) -> Vec<Detection> {
    let mut found = Vec::new();
    for level in levels {
        let (s, columns) = (level.stride as f32, (padded_w / level.stride) as usize);
        let cells =
            level.cls.iter().zip(level.obj).zip(level.bbox.chunks_exact(4)).zip(level.kps.chunks_exact(10));
        for (i, (((cls, obj), b), k)) in cells.enumerate() {
            let score = (cls.clamp(0.0, 1.0) * obj.clamp(0.0, 1.0)).sqrt();
            if score.is_nan() || score < score_min {
                continue;
            }
            let (r, c) = ((i / columns) as f32, (i % columns) as f32);
            let (cx, cy) = ((c + b[0]) * s, (r + b[1]) * s);
            let (w, h) = (s * b[2].exp(), s * b[3].exp());
            if ![cx, cy, w, h].iter().all(|v| v.is_finite()) {
                continue;
            }
            let mut landmarks = [(0.0, 0.0); 5];
            for (point, k) in landmarks.iter_mut().zip(k.chunks_exact(2)) {
                *point = ((k[0] + c) * s, (k[1] + r) * s);
            }
            found.push(Detection {
                bbox: Box2 { x: cx - w / 2.0, y: cy - h / 2.0, w, h },
                score: Score::Probability(score),
                landmarks: Some(landmarks),
            });
        }
    }
    found.sort_by(|a, b| probability(b).total_cmp(&probability(a)));
    found.truncate(CANDIDATES_MAX);
    found
}

/// Of boxes that overlap by more than `iou` only the best stays. `found` is sorted, best first.
#[must_use]
pub fn suppress(found: Vec<Detection>, iou: f32) -> Vec<Detection> {
    let mut kept: Vec<Detection> = Vec::new();
    for candidate in found {
        if kept.iter().all(|k| k.bbox.iou(&candidate.bbox) <= iou) {
            kept.push(candidate);
        }
    }
    kept
}

fn probability(detection: &Detection) -> f32 {
    match detection.score {
        Score::Probability(p) => p,
        Score::LevelWeight(_) => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Stride, cls, obj, bbox, kps.
    type Tensor = (u32, Vec<f32>, Vec<f32>, Vec<f32>, Vec<f32>);

    /// A 64 x 32 input: 8 x 4, 4 x 2 and 2 x 1 cells, all silent.
    struct Tensors(Vec<Tensor>);

    impl Tensors {
        fn silent() -> Tensors {
            Tensors(
                STRIDES
                    .map(|s| {
                        let n = (64 / s * (32 / s)) as usize;
                        (s, vec![0.0; n], vec![0.0; n], vec![0.0; 4 * n], vec![0.0; 10 * n])
                    })
                    .to_vec(),
            )
        }
        fn set(&mut self, level: usize, cell: usize, cls: f32, obj: f32, bbox: [f32; 4], kps: [f32; 10]) {
            let l = &mut self.0[level];
            (l.1[cell], l.2[cell]) = (cls, obj);
            l.3[cell * 4..][..4].copy_from_slice(&bbox);
            l.4[cell * 10..][..10].copy_from_slice(&kps);
        }
        fn decode(&self, score_min: f32) -> Vec<Detection> {
            let levels: Vec<_> = self
                .0
                .iter()
                .map(|(stride, cls, obj, bbox, kps)| Level { stride: *stride, cls, obj, bbox, kps })
                .collect();
            decode(&levels, 64, score_min)
        }
    }

    #[test]
    fn a_cell_becomes_the_box_the_model_means() {
        let mut t = Tensors::silent();
        // Stride 16, row 1, column 2: index 1 * 4 + 2.
        let kps = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
        t.set(1, 6, 0.81, 1.0, [0.5, 0.25, 2f32.ln(), 0.0], kps);
        let found = t.decode(0.5);
        assert_eq!(found.len(), 1);
        let face = &found[0];
        assert!((probability(face) - 0.9).abs() < 1e-6);
        // Centre ((2 + 0.5) * 16, (1 + 0.25) * 16) = (40, 20); size (32, 16).
        let b = face.bbox;
        for (value, expected) in [(b.x, 24.0), (b.y, 12.0), (b.w, 32.0), (b.h, 16.0)] {
            assert!((value - expected).abs() < 1e-4, "{b:?}");
        }
        let points = face.landmarks.unwrap();
        assert!((points[0].0 - 33.6).abs() < 1e-4 && (points[0].1 - 19.2).abs() < 1e-4);
        assert!((points[4].0 - 46.4).abs() < 1e-4 && (points[4].1 - 32.0).abs() < 1e-4);
    }

    #[test]
    fn scores_are_clamped_and_nonsense_is_left_out() {
        let mut t = Tensors::silent();
        t.set(0, 0, 7.0, 5.0, [0.0; 4], [0.0; 10]);
        t.set(0, 1, -1.0, 1.0, [0.0; 4], [0.0; 10]);
        t.set(0, 2, f32::NAN, 1.0, [0.0; 4], [0.0; 10]);
        t.set(0, 3, 1.0, 1.0, [0.0, 0.0, 500.0, 0.0], [0.0; 10]);
        t.set(0, 4, 0.3, 0.3, [0.0; 4], [0.0; 10]);
        let found = t.decode(0.5);
        assert_eq!(found.len(), 1);
        assert_eq!(probability(&found[0]), 1.0);
    }

    #[test]
    fn of_overlapping_boxes_the_best_stays() {
        let mut t = Tensors::silent();
        let size = [0.5, 0.5, 3f32.ln(), 3f32.ln()];
        t.set(0, 9, 0.8, 0.8, size, [0.0; 10]);
        t.set(0, 10, 0.9, 0.9, size, [0.0; 10]);
        t.set(0, 15, 0.7, 0.7, size, [0.0; 10]);
        let found = t.decode(0.5);
        assert_eq!(found.len(), 3);
        let kept = suppress(found, 0.3);
        let scores: Vec<f32> = kept.iter().map(probability).collect();
        assert_eq!(scores.len(), 2);
        assert!((scores[0] - 0.9).abs() < 1e-6 && (scores[1] - 0.7).abs() < 1e-6);
    }
}

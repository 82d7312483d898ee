//! The detector: that of `faced`, on a frame that is already I420.
//!
//! Owns: the loaded model. Never: decides what is blurred.

use faced::detect::haar::HaarConfig;
use faced::detect::yunet::YuNetConfig;
use faced::detect::{Detector, DetectorConfig};
use faced::frame::{Format, Layout, Matrix, Plane, View};

use super::Finder;
use super::blur::Picture;
use super::config::{Config, Kind};
use super::hold::Area;

/// Step between the sizes that the cascade searches.
const SCALE_FACTOR: f64 = 1.2;
/// How much two boxes of one face may overlap.
const NMS_IOU: f32 = 0.3;

/// A detector of faces.
pub(super) struct Faces {
    detector: Detector,
    detect_width: u32,
}

impl Faces {
    /// Loads its model.
    pub(super) fn load(config: &Config) -> Result<Faces, String> {
        let raw = &config.raw;
        let detector = match raw.detector {
            Kind::Haar => DetectorConfig::Haar(HaarConfig {
                cascade: raw.cascade.clone(),
                scale_factor: SCALE_FACTOR,
                neighbors_min: raw.min_neighbors,
                face_px_min: raw.min_face_px,
            }),
            Kind::Yunet => DetectorConfig::YuNet(YuNetConfig {
                model: raw.model.clone(),
                score_min: raw.min_score,
                nms_iou: NMS_IOU,
                face_px_min: raw.min_face_px,
            }),
        };
        // One thread a stream, and not one more behind it.
        opencv::core::set_num_threads(1).map_err(|e| format!("OpenCV can't be bound to a thread: {e}"))?;
        let detector = Detector::new(&detector).map_err(|e| edge::log::chain(&e))?;
        Ok(Faces { detector, detect_width: raw.detect_width })
    }
}

impl Finder for Faces {
    fn find(&mut self, picture: &Picture<'_>) -> Result<Vec<Area>, String> {
        let plane = |n: usize| {
            let shift = u8::from(n > 0);
            Plane {
                offset: picture.offsets[n],
                stride: picture.strides[n],
                step: 1,
                shift_x: shift,
                shift_y: shift,
            }
        };
        let layout = Layout {
            format: Format::I420,
            width: picture.size.0,
            height: picture.size.1,
            matrix: Matrix::Bt601,
            planes: [plane(0), plane(1), plane(2)],
            bytes: picture.data.len(),
        };
        let view = View::new(&layout, picture.data).map_err(|e| e.to_string())?;
        let found = self.detector.detect(&view, self.detect_width).map_err(|e| edge::log::chain(&e))?;
        let area = |b: faced::detect::Box2| Area { x: b.x, y: b.y, w: b.w, h: b.h };
        Ok(found.into_iter().map(|face| area(face.bbox)).collect())
    }
}

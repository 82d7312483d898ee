//! What the outputs of detector networks mean.
//!
//! | layout | outputs | a candidate |
//! |---|---|---|
//! | `torchvision` | `boxes` N x 4, `labels` N, `scores` N, in this order | x1, y1, x2, y2; class; score (Detectron's exports too) |
//! | `yolov5` | 1 x N x (5 + C) | centre x, y, width, height; objectness; score of each class |
//! | `yolov8` | 1 x (4 + C) x N | centre x, y, width, height; score of each class |
//!
//! All boxes are in pixels of the network's input. Owns: decoding and suppression. Never: trusts a shape or a value.

use serde::{Deserialize, Serialize};

use crate::vision::net::Tensor;

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Boxes, labels and scores.
    Torchvision,
    /// One row a candidate, with objectness.
    Yolov5,
    /// One column a candidate, without objectness.
    Yolov8,
}

/// A box in pixels of the network's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// As the network numbers them.
    pub class: u32,
    /// 0 to 1.
    pub score: f32,
    /// x1, y1, x2, y2.
    pub corners: [f32; 4],
}

/// Most candidates that suppression looks at, the best: it is quadratic, and more are noise.
const CANDIDATES_MAX: usize = 1000;

impl Layout {
    /// Decodes the outputs. Candidates below the threshold, without area or with values that are no numbers are left
    /// out; the rest is in order of score, best first.
    ///
    /// # Errors
    /// What is wrong with the shapes, and what was expected.
    pub fn decode(self, outputs: &[Tensor], threshold: f32) -> Result<Vec<Candidate>, String> {
        let mut found = match (self, outputs) {
            (Layout::Torchvision, [boxes, labels, scores]) => torchvision(boxes, labels, scores)?,
            (Layout::Torchvision, _) => {
                return Err(format!(
                    "the layout torchvision has 3 outputs (boxes, labels, scores), the model {}",
                    outputs.len()
                ));
            }
            (Layout::Yolov5 | Layout::Yolov8, [output]) => self.yolo(output, threshold)?,
            (Layout::Yolov5 | Layout::Yolov8, _) => {
                let count = outputs.len();
                return Err(format!(
                    "a YOLO layout has 1 output, the model {count}; name the one with all boxes in detector.outputs"
                ));
            }
        };
        let good = |c: &Candidate| {
            let [x1, y1, x2, y2] = c.corners;
            // What is no number is neither above nor below anything.
            c.score >= threshold && x1 < x2 && y1 < y2 && c.corners.iter().all(|v| v.is_finite())
        };
        found.retain(good);
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        found.truncate(CANDIDATES_MAX);
        Ok(found)
    }

    fn yolo(self, output: &Tensor, threshold: f32) -> Result<Vec<Candidate>, String> {
        let first = if self == Layout::Yolov5 { 5 } else { 4 };
        let (count, size) = match (self, output.shape.as_slice()) {
            (Layout::Yolov5, [1, count, size]) if *size > first => (*count, *size),
            (Layout::Yolov8, [1, size, count]) if *size > first => (*count, *size),
            _ => {
                let expected =
                    if self == Layout::Yolov5 { "1 x N x (5 + classes)" } else { "1 x (4 + classes) x N" };
                return Err(format!("expected an output of {expected}, found {}", sides(&output.shape)));
            }
        };
        // A model exported for one layout mostly fits the other's number of sides.
        if size > count {
            let other = if self == Layout::Yolov5 { "yolov8" } else { "yolov5" };
            return Err(format!(
                "{count} boxes of {size} values in an output of {} are an output of the layout {other}",
                sides(&output.shape)
            ));
        }
        let value = |n: usize, k: usize| match self {
            Layout::Yolov5 => output.values[n * size + k],
            _ => output.values[k * count + n],
        };
        let mut found = Vec::new();
        for n in 0..count {
            let sure = if self == Layout::Yolov5 { value(n, 4) } else { 1.0 };
            // No class is surer than the box itself.
            if sure.is_nan() || sure < threshold {
                continue;
            }
            let best = (first..size).max_by(|a, b| value(n, *a).total_cmp(&value(n, *b))).unwrap_or(first);
            let (x, y, w, h) = (value(n, 0), value(n, 1), value(n, 2), value(n, 3));
            found.push(Candidate {
                class: (best - first) as u32,
                score: sure * value(n, best),
                corners: [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0],
            });
        }
        Ok(found)
    }
}

fn torchvision(boxes: &Tensor, labels: &Tensor, scores: &Tensor) -> Result<Vec<Candidate>, String> {
    // With or without a side of 1 for the one picture; OpenCV adds one to lists.
    let count = boxes.values.len() / 4;
    if boxes.shape.last() != Some(&4) || !boxes.values.len().is_multiple_of(4) {
        return Err(format!("expected boxes of N x 4, found {}", sides(&boxes.shape)));
    }
    for (name, tensor) in [("labels", labels), ("scores", scores)] {
        if tensor.values.len() != count {
            let found = sides(&tensor.shape);
            return Err(format!("expected {count} {name} for {count} boxes, found {found}"));
        }
    }
    let (corners, _) = boxes.values.as_chunks::<4>();
    let all = corners.iter().zip(&labels.values).zip(&scores.values);
    // A cast from float saturates.
    Ok(all.map(|((c, l), s)| Candidate { class: l.round() as u32, score: *s, corners: *c }).collect())
}

fn sides(shape: &[usize]) -> String {
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ")
}

/// Of boxes of one class that overlap by more than `iou` (intersection over union) only the best stays. The order is
/// kept; it is by score, best first.
#[must_use]
pub fn suppress(found: Vec<Candidate>, iou: f32) -> Vec<Candidate> {
    let mut kept: Vec<Candidate> = Vec::new();
    for candidate in found {
        let same = |k: &&Candidate| k.class == candidate.class;
        if kept.iter().filter(same).all(|k| overlap(&k.corners, &candidate.corners) <= iou) {
            kept.push(candidate);
        }
    }
    kept
}

fn overlap(a: &[f32; 4], b: &[f32; 4]) -> f32 {
    let (w, h) = (a[2].min(b[2]) - a[0].max(b[0]), a[3].min(b[3]) - a[1].max(b[1]));
    if w <= 0.0 || h <= 0.0 {
        return 0.0;
    }
    let area = |c: &[f32; 4]| (c[2] - c[0]) * (c[3] - c[1]);
    w * h / (area(a) + area(b) - w * h)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], values: &[f32]) -> Tensor {
        assert_eq!(shape.iter().product::<usize>(), values.len());
        Tensor { shape: shape.to_vec(), values: values.to_vec() }
    }

    const ROWS: [[f32; 7]; 7] = [
        [50.0, 40.0, 20.0, 10.0, 0.9, 0.1, 0.9],
        [30.0, 30.0, 10.0, 10.0, 0.6, 0.9, 0.0],
        [30.0, 30.0, 0.0, 10.0, 1.0, 0.9, 0.0],
        [30.0, f32::NAN, 10.0, 10.0, 1.0, 0.9, 0.0],
        [30.0, 30.0, 10.0, 10.0, f32::NAN, 0.9, 0.0],
        [30.0, 30.0, 10.0, 10.0, 0.5, 0.9, 0.0],
        [30.0, 30.0, f32::INFINITY, 10.0, 0.9, 0.9, 0.0],
    ];

    #[test]
    fn yolov5_multiplies_objectness() {
        let output = tensor(&[1, 7, 7], &ROWS.concat());
        let found = Layout::Yolov5.decode(&[output], 0.5).unwrap();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((found[0].class, found[0].corners), (1, [40.0, 35.0, 60.0, 45.0]));
        assert_eq!((found[1].class, found[1].corners), (0, [25.0, 25.0, 35.0, 35.0]));
        assert!((found[0].score - 0.81).abs() < 1e-6 && (found[1].score - 0.54).abs() < 1e-6);
    }

    #[test]
    fn yolov8_stands_on_its_side() {
        let columns: Vec<f32> = (0..7).filter(|k| *k != 4).flat_map(|k| ROWS.map(|row| row[k])).collect();
        let found = Layout::Yolov8.decode(&[tensor(&[1, 6, 7], &columns)], 0.5).unwrap();
        // Without objectness, the fifth and the sixth count too.
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found.iter().all(|c| c.score == 0.9));
        assert_eq!((found[0].class, found[0].corners), (1, [40.0, 35.0, 60.0, 45.0]));
    }

    #[test]
    fn torchvision_has_three_lists() {
        let boxes = tensor(&[3, 4], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 50.0, 60.0, 9.0, 9.0, 8.0, 10.0]);
        let (labels, scores) = (tensor(&[3], &[1.0, 2.0, 3.0]), tensor(&[3, 1], &[0.6, 0.7, 0.9]));
        let outputs = [boxes, labels, scores];
        let found = Layout::Torchvision.decode(&outputs, 0.5).unwrap();
        assert_eq!(found.iter().map(|c| c.class).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(found[1].corners, [1.0, 2.0, 3.0, 4.0]);
        assert!(Layout::Torchvision.decode(&outputs[..2], 0.5).unwrap_err().contains("3 outputs"));
        let swapped = [outputs[1].clone(), outputs[0].clone(), outputs[2].clone()];
        assert!(Layout::Torchvision.decode(&swapped, 0.5).unwrap_err().contains("found 3"));
    }

    #[test]
    fn wrong_shapes_are_named() {
        let wide = tensor(&[1, 7, 20], &[0.0; 140]);
        assert!(
            Layout::Yolov5.decode(std::slice::from_ref(&wide), 0.5).unwrap_err().contains("layout yolov8")
        );
        let tall = tensor(&[1, 20, 7], &[0.0; 140]);
        assert!(
            Layout::Yolov8.decode(std::slice::from_ref(&tall), 0.5).unwrap_err().contains("layout yolov5")
        );
        let flat = tensor(&[140], &[0.0; 140]);
        for layout in [Layout::Yolov5, Layout::Yolov8] {
            let error = layout.decode(std::slice::from_ref(&flat), 0.5).unwrap_err();
            assert!(error.contains("found 140"), "{error}");
            let error = layout.decode(&[wide.clone(), tall.clone()], 0.5).unwrap_err();
            assert!(error.contains("detector.outputs"), "{error}");
        }
    }

    #[test]
    fn only_the_best_of_a_heap_stays() {
        let at =
            |class: u32, score: f32, x: f32| Candidate { class, score, corners: [x, 0.0, x + 10.0, 10.0] };
        let heap = vec![at(0, 0.9, 0.0), at(1, 0.8, 1.0), at(0, 0.7, 3.0), at(0, 0.6, 9.0)];
        assert_eq!(suppress(heap.clone(), 0.45), [heap[0], heap[1], heap[3]]);
        assert_eq!(suppress(heap.clone(), 0.99), heap);
    }
}

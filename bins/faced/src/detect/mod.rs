//! Finding faces in a frame: the common types, and the choice between the detectors.
//!
//! A detector is given a view of the camera's own pixels, scales it to the detection width itself and answers in
//! pixels of the full frame. Owns: nothing but the detector's model. Never: decides what is published.

pub mod haar;
pub mod scale;
pub mod yunet;

use crate::frame::View;

/// A box in pixels of the full frame; it may reach beyond the frame's edges.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Box2 {
    /// Left edge.
    pub x: f32,
    /// Upper edge.
    pub y: f32,
    /// Width.
    pub w: f32,
    /// Height.
    pub h: f32,
}

impl Box2 {
    /// Intersection over union, 0 to 1; 0 for empty boxes.
    #[must_use]
    pub fn iou(&self, other: &Box2) -> f32 {
        let w = (self.x + self.w).min(other.x + other.w) - self.x.max(other.x);
        let h = (self.y + self.h).min(other.y + other.h) - self.y.max(other.y);
        if w <= 0.0 || h <= 0.0 {
            return 0.0;
        }
        let common = w * h;
        common / (self.w * self.h + other.w * other.h - common)
    }

    /// The same box in a picture `factor` times as large.
    #[must_use]
    pub fn scaled(&self, factor: f32) -> Box2 {
        Box2 { x: self.x * factor, y: self.y * factor, w: self.w * factor, h: self.h * factor }
    }

    /// The box with a margin of `part` of its larger side on every side.
    #[must_use]
    pub fn padded(&self, part: f32) -> Box2 {
        let m = self.w.max(self.h) * part;
        Box2 { x: self.x - m, y: self.y - m, w: self.w + 2.0 * m, h: self.h + 2.0 * m }
    }
}

/// How sure the detector is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Score {
    /// 0 to 1.
    Probability(f32),
    /// Haar's level weight: the last stage's sum, unbounded and no probability.
    LevelWeight(f64),
}

/// Right eye, left eye, nose, right and left corner of the mouth (as the face's owner has them), each `(x, y)`.
pub type Landmarks = [(f32, f32); 5];

/// A face.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// Where it is.
    pub bbox: Box2,
    /// How sure that is.
    pub score: Score,
    /// YuNet only.
    pub landmarks: Option<Landmarks>,
}

/// Why detection failed. All of these are about files or this program, not about what a camera sees.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// A model can't be loaded.
    #[error("cannot load the {what} {path}: {why}")]
    Model {
        /// What the file is.
        what: &'static str,
        /// Its path.
        path: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// OpenCV refused something.
    #[error("OpenCV failed to {action}")]
    OpenCv {
        /// As an infinitive.
        action: &'static str,
        /// What it says.
        source: opencv::Error,
    },
    /// The frame is shorter than its layout.
    #[error(transparent)]
    Frame(#[from] crate::frame::FrameError),
    /// The network's outputs are not those of the published model.
    #[error("the model {path} is no YuNet model of 2023: {why}")]
    Output {
        /// The model's path.
        path: String,
        /// Which output is missing or has the wrong size.
        why: String,
    },
}

/// Wraps an OpenCV error with what was attempted.
pub(crate) fn opencv(action: &'static str) -> impl FnOnce(opencv::Error) -> DetectError {
    move |source| DetectError::OpenCv { action, source }
}

/// Which detector, and its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum DetectorConfig {
    /// Cascade of Haar features.
    Haar(haar::HaarConfig),
    /// Neural network.
    YuNet(yunet::YuNetConfig),
}

/// A detector, ready to work. Belongs to one thread.
#[derive(Debug)]
pub enum Detector {
    /// Cascade of Haar features.
    Haar(haar::Haar),
    /// Neural network.
    YuNet(yunet::YuNet),
}

impl Detector {
    /// Loads the model.
    ///
    /// # Errors
    /// [`DetectError::Model`], which names the file and what to do.
    pub fn new(config: &DetectorConfig) -> Result<Detector, DetectError> {
        Ok(match config {
            DetectorConfig::Haar(config) => Detector::Haar(haar::Haar::load(config)?),
            DetectorConfig::YuNet(config) => Detector::YuNet(yunet::YuNet::load(config)?),
        })
    }

    /// The name that is published.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Detector::Haar(_) => "haar",
            Detector::YuNet(_) => "yunet",
        }
    }

    /// The faces in the frame, scaled to `detect_width` pixels (or less, when the frame is smaller) for the search.
    ///
    /// # Errors
    /// [`DetectError`]; the next frame may work again.
    pub fn detect(&mut self, view: &View<'_>, detect_width: u32) -> Result<Vec<Detection>, DetectError> {
        match self {
            Detector::Haar(haar) => haar.detect(view, detect_width),
            Detector::YuNet(yunet) => yunet.detect(view, detect_width),
        }
    }
}

/// The size a frame has for the search: `detect_width` wide, never enlarged.
#[must_use]
pub fn search_size(width: u32, height: u32, detect_width: u32) -> (u32, u32) {
    let w = detect_width.clamp(1, width.max(1));
    let h = (u64::from(height) * u64::from(w) + u64::from(width) / 2) / u64::from(width.max(1));
    (w, (h as u32).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn square(x: f32, y: f32, side: f32) -> Box2 {
        Box2 { x, y, w: side, h: side }
    }

    #[test]
    fn overlap_is_between_nothing_and_all() {
        let a = square(0.0, 0.0, 10.0);
        assert_eq!(a.iou(&a), 1.0);
        assert_eq!(a.iou(&square(10.0, 0.0, 10.0)), 0.0);
        assert!((a.iou(&square(5.0, 0.0, 10.0)) - 1.0 / 3.0).abs() < 1e-6);
        assert_eq!(square(0.0, 0.0, 0.0).iou(&square(0.0, 0.0, 0.0)), 0.0);
    }

    #[test]
    fn the_search_keeps_the_shape_and_never_enlarges() {
        assert_eq!(search_size(1280, 720, 320), (320, 180));
        assert_eq!(search_size(480, 270, 640), (480, 270));
        assert_eq!(search_size(1000, 1, 10), (10, 1));
        assert_eq!(square(10.0, 10.0, 20.0).padded(0.5), square(0.0, 0.0, 40.0));
    }
}

//! Finding items and containers on a picture: the choice between the detectors.
//!
//! Invariant: what is found is in order of `x1`, `y1`, `x2`, `y2`, class; its boxes are within the picture and not
//! empty. Never: decides which box is the same object on another picture.

mod background;
pub mod contours;
pub mod layout;
pub mod onnx;

use super::picture::Picture;
use super::{Error, opencv};
use crate::found::Found;

/// Which detector, and its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum DetectorConfig {
    /// What differs from the background; no model.
    Contours(contours::ContoursConfig),
    /// A neural network.
    Onnx(onnx::OnnxConfig),
}

/// A detector, ready to work. Belongs to one thread.
#[derive(Debug)]
pub enum Detector {
    /// What differs from the background.
    Contours(contours::Contours),
    /// A neural network.
    Onnx(Box<onnx::Onnx>),
}

impl Detector {
    /// Loads the model, if there is one, and runs it once on a blank picture, so that a wrong one is found here.
    ///
    /// # Errors
    /// [`Error::Model`], which names the file and what to do.
    pub fn open(config: &DetectorConfig) -> Result<Detector, Error> {
        Ok(match config {
            DetectorConfig::Contours(config) => Detector::Contours(contours::Contours::new(config)),
            DetectorConfig::Onnx(config) => Detector::Onnx(Box::new(onnx::Onnx::open(config)?)),
        })
    }

    /// Its kind, as in the configuration.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Detector::Contours(_) => "contours",
            Detector::Onnx(_) => "onnx",
        }
    }

    /// What is on the picture, in order of `x1`, `y1`, `x2`, `y2`, class.
    ///
    /// # Errors
    /// [`Error`]; the next picture may work again.
    pub fn detect(&mut self, picture: &Picture) -> Result<Vec<Found>, Error> {
        let mut found = match self {
            Detector::Contours(contours) => contours.detect(picture)?,
            Detector::Onnx(onnx) => onnx.detect(picture)?,
        };
        found.sort_by_key(|f| (f.x1, f.y1, f.x2, f.y2, f.class));
        Ok(found)
    }
}

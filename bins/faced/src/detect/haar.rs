//! The Haar cascade: OpenCV's classic face detector on luma.
//!
//! Owns: the loaded cascade. Its level weight is passed on as it is: it is no probability.

use std::path::PathBuf;

use opencv::core::{Rect, Size, Vector};
use opencv::objdetect::CascadeClassifier;
use opencv::prelude::*;

use super::{Box2, DetectError, Detection, Score, opencv, scale, search_size};
use crate::frame::View;

/// Settings of the cascade.
#[derive(Debug, Clone, PartialEq)]
pub struct HaarConfig {
    /// The XML file.
    pub cascade: PathBuf,
    /// Step between the sizes searched, above 1.
    pub scale_factor: f64,
    /// How many neighbouring hits make a face.
    pub neighbors_min: i32,
    /// Smallest face, in pixels of the full frame.
    pub face_px_min: u32,
}

/// A loaded cascade.
pub struct Haar {
    cascade: CascadeClassifier,
    config: HaarConfig,
}

impl std::fmt::Debug for Haar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Haar").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Haar {
    /// Loads the XML file.
    ///
    /// # Errors
    /// [`DetectError::Model`] with what to do.
    pub fn load(config: &HaarConfig) -> Result<Haar, DetectError> {
        let model = |why: String| DetectError::Model {
            what: "Haar cascade",
            path: config.cascade.display().to_string(),
            why,
        };
        std::fs::File::open(&config.cascade).map_err(|e| {
            model(format!(
                "{e}; the cascades are in Debian's package opencv-data (/usr/share/opencv4/haarcascades)"
            ))
        })?;
        let path = config.cascade.to_string_lossy();
        match CascadeClassifier::new(&*path) {
            Ok(cascade) if !cascade.empty().unwrap_or(true) => Ok(Haar { cascade, config: config.clone() }),
            Ok(_) => Err(model("OpenCV does not take it for a cascade".to_owned())),
            Err(error) => Err(model(format!("OpenCV does not take it for a cascade: {}", error.message))),
        }
    }

    /// The faces in the frame, in pixels of the frame.
    ///
    /// # Errors
    /// [`DetectError::OpenCv`].
    pub fn detect(&mut self, view: &View<'_>, detect_width: u32) -> Result<Vec<Detection>, DetectError> {
        let layout = view.layout();
        let (w, h) = search_size(layout.width, layout.height, detect_width);
        let luma = scale::luma(view, w, h)?;
        let factor = layout.width as f32 / w as f32;
        let side_min = ((self.config.face_px_min as f32 / factor).round() as i32).max(1);
        let (mut boxes, mut levels, mut weights) =
            (Vector::<Rect>::new(), Vector::<i32>::new(), Vector::<f64>::new());
        self.cascade
            .detect_multi_scale3(
                &luma,
                &mut boxes,
                &mut levels,
                &mut weights,
                self.config.scale_factor,
                self.config.neighbors_min,
                0,
                Size::new(side_min, side_min),
                Size::default(),
                true,
            )
            .map_err(opencv("run the Haar cascade"))?;
        let faces = boxes.iter().zip(weights.iter()).map(|(r, weight)| Detection {
            bbox: Box2 { x: r.x as f32, y: r.y as f32, w: r.width as f32, h: r.height as f32 }.scaled(factor),
            score: Score::LevelWeight(weight),
            landmarks: None,
        });
        Ok(faces.collect())
    }
}

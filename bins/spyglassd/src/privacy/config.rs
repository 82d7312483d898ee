//! `[privacy]` and `[stream.privacy]`: their keys, defaults and checks.

use std::path::PathBuf;

use edge::config::{Error, Loaded};
use serde::{Deserialize, Serialize};

/// What to do where the detector was left out of the build.
pub const NOT_BUILT: &str = "this spyglassd was built without OpenCV, which finds the faces; make build BINS=spyglassd FEATURES=privacy";

/// What is blurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Nothing.
    None,
    /// Faces.
    Faces,
}

/// Which detector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Cascade of Haar features.
    Haar,
    /// Neural network.
    Yunet,
}

/// The table as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Raw {
    /// What is blurred.
    pub blur: What,
    /// Which detector.
    pub detector: Kind,
    /// Of Haar: the XML file.
    pub cascade: PathBuf,
    /// Of Haar: how many neighbouring hits make a face.
    pub min_neighbors: i32,
    /// Of YuNet: the ONNX file.
    pub model: PathBuf,
    /// Of YuNet: least score.
    pub min_score: f32,
    /// Width of the picture that is searched, in pixels.
    pub detect_width: u32,
    /// Smallest face, in pixels of the frame.
    pub min_face_px: u32,
    /// How long a face is blurred after it was seen last.
    pub hold_ms: u64,
    /// How much is blurred around a face, as a part of its size.
    pub margin: f32,
    /// Most frames a second that are searched, and therefore encoded.
    pub fps_max: u32,
}

impl Default for Raw {
    fn default() -> Raw {
        Raw {
            blur: What::None,
            detector: Kind::Haar,
            cascade: "/usr/share/opencv4/haarcascades/haarcascade_frontalface_default.xml".into(),
            min_neighbors: 3,
            model: PathBuf::new(),
            min_score: 0.5,
            detect_width: 320,
            min_face_px: 24,
            hold_ms: 1000,
            margin: 0.3,
            fps_max: 15,
        }
    }
}

/// What the blurring of one stream runs on.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The table, checked.
    pub raw: Raw,
    /// How long a face is blurred after it was seen last, in nanoseconds.
    pub hold_ns: u64,
}

impl Raw {
    /// Checks the table, which is called `prefix` in the file; `None` = nothing is blurred.
    ///
    /// # Errors
    /// With line, column, key and expectation; also when this program was built without a detector.
    pub fn to_config<R>(&self, loaded: &Loaded<R>, prefix: &str) -> Result<Option<Config>, Error> {
        let wrong = |key: &str, message: &str| loaded.problem(&format!("{prefix}.{key}"), message);
        let within = |x: f32, low: f32, high: f32| x.is_finite() && (low..=high).contains(&x);
        loaded.within(&format!("{prefix}.detect-width"), u64::from(self.detect_width), 32, 4096)?;
        loaded.within(&format!("{prefix}.min-face-px"), u64::from(self.min_face_px), 1, 4096)?;
        loaded.within(&format!("{prefix}.hold-ms"), self.hold_ms, 0, 60_000)?;
        loaded.within(&format!("{prefix}.fps-max"), u64::from(self.fps_max), 1, 120)?;
        if !within(self.margin, 0.0, 4.0) {
            return Err(wrong("margin", "expected a part of the face's size from 0 to 4"));
        }
        if !(0..=100).contains(&self.min_neighbors) {
            return Err(wrong("min-neighbors", "expected an integer from 0 to 100"));
        }
        if !within(self.min_score, 0.01, 1.0) {
            return Err(wrong("min-score", "expected a number from 0.01 to 1"));
        }
        if self.blur == What::None {
            return Ok(None);
        }
        if self.detector == Kind::Yunet && self.model.as_os_str().is_empty() {
            let what = "expected the path of face_detection_yunet_2023mar.onnx ('make models' downloads and checks it)";
            return Err(wrong("model", what));
        }
        if cfg!(not(feature = "privacy")) {
            return Err(wrong("blur", NOT_BUILT));
        }
        Ok(Some(Config { raw: self.clone(), hold_ns: self.hold_ms * 1_000_000 }))
    }
}

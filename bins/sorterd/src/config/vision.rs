//! The tables `[detector]`, `[vectorizer]` and `[stitch]` of `sorterd.toml`.
//!
//! Owns: what is valid in them. Never: opens a model; `Detector::open` and `Vectorizer::open` do, for `--check` too.

use std::path::PathBuf;

use edge::config::{self, Loaded};
use serde::{Deserialize, Serialize};

use crate::found::Found;
use crate::vision::blob::Input;
use crate::vision::detect::contours::{ContoursConfig, Rules};
use crate::vision::detect::layout::Layout;
use crate::vision::detect::onnx::OnnxConfig as OnnxDetector;
use crate::vision::vectorize::histogram::HistogramConfig;
use crate::vision::vectorize::onnx::OnnxConfig as OnnxVectorizer;
use crate::vision::{DetectorConfig, StitchConfig, VectorizerConfig};

/// `kind` of `[detector]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DetectorKind {
    /// Without a model.
    Contours,
    /// A neural network.
    Onnx,
}

/// `kind` of `[vectorizer]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VectorizerKind {
    /// Without a model.
    Histogram,
    /// A neural network.
    Onnx,
}

/// `[detector]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct DetectorTable {
    /// Which detector.
    pub kind: DetectorKind,
    /// Least score, 0 to 1.
    pub threshold: f64,
    /// Most objects on one picture.
    pub found_max: usize,
    /// `contours`: width to which larger pictures are shrunk, in pixels.
    pub detect_width: u32,
    /// `contours`: least difference from the background, in units of CIE76.
    pub contrast_min: f64,
    /// `contours`: smallest item, as a share of the picture.
    pub item_area_min: f64,
    /// `contours`: largest item.
    pub item_area_max: f64,
    /// `contours`: smallest container, as a share of the picture.
    pub container_area_min: f64,
    /// `contours`: largest container.
    pub container_area_max: f64,
    /// `contours`: least share of its rectangle that a container fills.
    pub container_fill_min: f64,
    /// `contours`: whether items at the picture's edge count.
    pub edge_items: bool,
    /// `onnx`: the file.
    pub model: PathBuf,
    /// `onnx`: what its outputs mean.
    pub layout: Layout,
    /// `onnx`: names of the outputs; empty: those of the layout.
    pub outputs: Vec<String>,
    /// `onnx`: in pixels.
    pub input_width: u32,
    /// `onnx`: in pixels.
    pub input_height: u32,
    /// `onnx`: subtracted from each channel (0 to 255).
    pub mean: [f64; 3],
    /// `onnx`: then multiplied.
    pub scale: f64,
    /// `onnx`: whether the network takes red, green, blue.
    pub swap_rb: bool,
    /// `onnx`: whether the picture keeps its proportions; not given: in the YOLO layouts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub letterbox: Option<bool>,
    /// `onnx`: boxes of one class that overlap more than this are one object.
    pub nms: f64,
    /// `onnx`: the classes that are items.
    pub item_classes: Vec<u32>,
}

/// `[vectorizer]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct VectorizerTable {
    /// Which vectorizer.
    pub kind: VectorizerKind,
    /// `histogram`: how much colours count.
    pub color_weight: f64,
    /// `histogram`: how much the shape counts.
    pub shape_weight: f64,
    /// `onnx`: the file.
    pub model: PathBuf,
    /// `onnx`: the output with the features; empty: the only one.
    pub output: String,
    /// `onnx`: in pixels.
    pub input_width: u32,
    /// `onnx`: in pixels.
    pub input_height: u32,
    /// `onnx`: of red, green, blue (0 to 1).
    pub mean: [f64; 3],
    /// `onnx`: of red, green, blue (0 to 1).
    pub std: [f64; 3],
    /// `onnx`: pictures at once.
    pub batch: usize,
}

/// `[stitch]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct StitchTable {
    /// Most pixels of a panorama.
    pub pixels_max: u64,
    /// Most pictures of a panorama.
    pub pictures_max: usize,
    /// How sure two pictures must be to overlap.
    pub confidence_min: f64,
}

impl Default for DetectorTable {
    fn default() -> Self {
        Self {
            kind: DetectorKind::Contours,
            threshold: 0.5,
            found_max: 100,
            detect_width: 820,
            contrast_min: 12.0,
            item_area_min: 0.0004,
            item_area_max: 0.03,
            container_area_min: 0.02,
            container_area_max: 0.5,
            container_fill_min: 0.85,
            edge_items: true,
            model: PathBuf::new(),
            layout: Layout::Torchvision,
            outputs: Vec::new(),
            input_width: 640,
            input_height: 640,
            mean: [0.0; 3],
            scale: 0.003_921_568_627_450_98,
            swap_rb: true,
            letterbox: None,
            nms: 0.45,
            item_classes: vec![Found::ITEM],
        }
    }
}

impl Default for VectorizerTable {
    fn default() -> Self {
        Self {
            kind: VectorizerKind::Histogram,
            color_weight: 1.0,
            shape_weight: 1.0,
            model: PathBuf::new(),
            output: String::new(),
            input_width: 224,
            input_height: 224,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            batch: 16,
        }
    }
}

impl Default for StitchTable {
    fn default() -> Self {
        Self { pixels_max: 8_000_000, pictures_max: 32, confidence_min: 1.0 }
    }
}

/// The first rule that does not hold, as an error about its key.
fn hold<R>(loaded: &Loaded<R>, table: &str, rules: &[(&str, bool, &str)]) -> Result<(), config::Error> {
    match rules.iter().find(|(_, holds, _)| !holds) {
        Some((key, _, expected)) => {
            Err(loaded.problem(&format!("{table}.{key}"), &format!("expected {expected}")))
        }
        None => Ok(()),
    }
}

const SHARE: &str = "a number from 0 to 1";
const SIDE: &str = "an integer from 16 to 4096";

fn share(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

fn side(value: u32) -> bool {
    (16..=4096).contains(&value)
}

/// The three names of the layout `torchvision`, as its exports mostly have them.
fn usual_outputs(layout: Layout) -> Vec<String> {
    match layout {
        Layout::Torchvision => ["boxes", "labels", "scores"].map(str::to_owned).to_vec(),
        Layout::Yolov5 | Layout::Yolov8 => Vec::new(),
    }
}

impl DetectorTable {
    /// Checks `[detector]`.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn check<R>(&self, loaded: &Loaded<R>) -> Result<DetectorConfig, config::Error> {
        hold(
            loaded,
            "detector",
            &[
                ("threshold", share(self.threshold), SHARE),
                ("found-max", (1..=10_000).contains(&self.found_max), "an integer from 1 to 10000"),
            ],
        )?;
        match self.kind {
            DetectorKind::Contours => self.check_contours(loaded).map(DetectorConfig::Contours),
            DetectorKind::Onnx => self.check_onnx(loaded).map(DetectorConfig::Onnx),
        }
    }

    fn check_contours<R>(&self, loaded: &Loaded<R>) -> Result<ContoursConfig, config::Error> {
        let above = |min: f64, max: f64| share(max) && min < max;
        hold(
            loaded,
            "detector",
            &[
                ("detect-width", (64..=8192).contains(&self.detect_width), "an integer from 64 to 8192"),
                ("contrast-min", (1.0..=150.0).contains(&self.contrast_min), "a number from 1 to 150"),
                ("item-area-min", share(self.item_area_min), SHARE),
                (
                    "item-area-max",
                    above(self.item_area_min, self.item_area_max),
                    "a number from item-area-min to 1",
                ),
                ("container-area-min", share(self.container_area_min), SHARE),
                (
                    "container-area-max",
                    above(self.container_area_min, self.container_area_max),
                    "a number from container-area-min to 1",
                ),
                ("container-fill-min", share(self.container_fill_min), SHARE),
            ],
        )?;
        Ok(self.contours())
    }

    /// The settings of the detector without a model, unchecked.
    pub(crate) fn contours(&self) -> ContoursConfig {
        ContoursConfig {
            detect_width: self.detect_width,
            contrast_min: self.contrast_min as f32,
            threshold: self.threshold as f32,
            rules: Rules {
                item_area: (self.item_area_min, self.item_area_max),
                container_area: (self.container_area_min, self.container_area_max),
                container_fill_min: self.container_fill_min,
            },
            edge_items: self.edge_items,
            found_max: self.found_max,
        }
    }

    fn check_onnx<R>(&self, loaded: &Loaded<R>) -> Result<OnnxDetector, config::Error> {
        let yolo = self.layout != Layout::Torchvision;
        let (names, expected) = if yolo {
            (1, "the name of one output, or none")
        } else {
            (3, "three names: boxes, labels, scores")
        };
        hold(
            loaded,
            "detector",
            &[
                ("model", !self.model.as_os_str().is_empty(), "the path of an ONNX file"),
                ("outputs", self.outputs.is_empty() || self.outputs.len() == names, expected),
                ("input-width", side(self.input_width), SIDE),
                ("input-height", side(self.input_height), SIDE),
                ("mean", self.mean.iter().all(|m| (0.0..=255.0).contains(m)), "three numbers from 0 to 255"),
                (
                    "scale",
                    self.scale > 0.0 && self.scale <= 256.0,
                    "a number above 0, such as 0.00392157 (1/255)",
                ),
                ("nms", share(self.nms), SHARE),
                ("item-classes", !self.item_classes.is_empty(), "at least one class that is an item"),
            ],
        )?;
        let outputs = match self.outputs.is_empty() {
            true => usual_outputs(self.layout),
            false => self.outputs.clone(),
        };
        Ok(OnnxDetector {
            model: self.model.clone(),
            layout: self.layout,
            outputs,
            input: Input {
                width: self.input_width,
                height: self.input_height,
                mean: self.mean.map(|m| m as f32),
                scale: [self.scale as f32; 3],
                rgb: self.swap_rb,
                letterbox: self.letterbox.unwrap_or(yolo),
            },
            threshold: self.threshold as f32,
            nms: self.nms as f32,
            item_classes: self.item_classes.clone(),
            found_max: self.found_max,
        })
    }
}

impl VectorizerTable {
    /// Checks `[vectorizer]`.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn check<R>(&self, loaded: &Loaded<R>) -> Result<VectorizerConfig, config::Error> {
        if self.kind == VectorizerKind::Histogram {
            let weight = |w: f64| (0.0..=100.0).contains(&w);
            hold(
                loaded,
                "vectorizer",
                &[
                    ("color-weight", weight(self.color_weight), "a number from 0 to 100"),
                    ("shape-weight", weight(self.shape_weight), "a number from 0 to 100"),
                    (
                        "shape-weight",
                        self.color_weight + self.shape_weight > 0.0,
                        "one of the weights above 0",
                    ),
                ],
            )?;
            return Ok(VectorizerConfig::Histogram(HistogramConfig {
                color_weight: self.color_weight as f32,
                shape_weight: self.shape_weight as f32,
            }));
        }
        let std = |s: &f64| *s > 0.0 && *s <= 1.0;
        hold(
            loaded,
            "vectorizer",
            &[
                ("model", !self.model.as_os_str().is_empty(), "the path of an ONNX file"),
                ("input-width", side(self.input_width), SIDE),
                ("input-height", side(self.input_height), SIDE),
                ("mean", self.mean.iter().all(|m| share(*m)), "three numbers from 0 to 1"),
                ("std", self.std.iter().all(std), "three numbers above 0, at most 1"),
                ("batch", (1..=256).contains(&self.batch), "an integer from 1 to 256"),
            ],
        )?;
        Ok(VectorizerConfig::Onnx(OnnxVectorizer {
            model: self.model.clone(),
            output: (!self.output.is_empty()).then(|| self.output.clone()),
            input: Input {
                width: self.input_width,
                height: self.input_height,
                mean: self.mean.map(|m| (m * 255.0) as f32),
                scale: self.std.map(|s| (1.0 / (s * 255.0)) as f32),
                rgb: true,
                letterbox: false,
            },
            batch: self.batch,
        }))
    }
}

impl StitchTable {
    /// Checks `[stitch]`.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn check<R>(&self, loaded: &Loaded<R>) -> Result<StitchConfig, config::Error> {
        let (min, max) = (10_000, 64_000_000);
        loaded.within("stitch.pixels-max", self.pixels_max, min, max)?;
        hold(
            loaded,
            "stitch",
            &[
                ("pictures-max", (2..=256).contains(&self.pictures_max), "an integer from 2 to 256"),
                ("confidence-min", (0.0..=3.0).contains(&self.confidence_min), "a number from 0 to 3"),
            ],
        )?;
        Ok(StitchConfig {
            pixels_max: self.pixels_max,
            pictures_max: self.pictures_max,
            confidence_min: self.confidence_min,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Raw {
        detector: DetectorTable,
        vectorizer: VectorizerTable,
        stitch: StitchTable,
    }

    fn check(text: &str) -> Result<(DetectorConfig, VectorizerConfig, StitchConfig), String> {
        let loaded = config::parse::<Raw>(Path::new("t.toml"), text.to_owned()).map_err(|e| e.to_string())?;
        let detector = loaded.raw.detector.check(&loaded).map_err(|e| e.to_string())?;
        let vectorizer = loaded.raw.vectorizer.check(&loaded).map_err(|e| e.to_string())?;
        Ok((detector, vectorizer, loaded.raw.stitch.check(&loaded).map_err(|e| e.to_string())?))
    }

    #[test]
    fn what_is_valid() {
        let (detector, vectorizer, stitch) = check("").unwrap();
        assert!(matches!(detector, DetectorConfig::Contours(c) if c.rules.container_fill_min == 0.85));
        assert!(matches!(vectorizer, VectorizerConfig::Histogram(_)));
        assert_eq!(stitch.pixels_max, 8_000_000);
        let text = "[detector]\nkind = \"onnx\"\nmodel = \"d.onnx\"\nlayout = \"yolov8\"\n\
                    [vectorizer]\nkind = \"onnx\"\nmodel = \"v.onnx\"";
        let (detector, vectorizer, _) = check(text).unwrap();
        let DetectorConfig::Onnx(d) = detector else { panic!("{detector:?}") };
        assert!(d.input.letterbox && d.outputs.is_empty() && d.item_classes == [0]);
        let VectorizerConfig::Onnx(v) = vectorizer else { panic!("{vectorizer:?}") };
        assert!((v.input.scale[0] - 1.0 / (255.0 * 0.229)).abs() < 1e-6 && v.input.rgb);
        let (detector, ..) = check(&text.replace("yolov8", "torchvision")).unwrap();
        assert!(
            matches!(detector, DetectorConfig::Onnx(d) if d.outputs[1] == "labels" && !d.input.letterbox)
        );
    }

    #[test]
    fn what_is_not_names_its_place() {
        for (text, place) in [
            ("[detector]\nthreshold = 1.5", "t.toml:2:13: detector.threshold"),
            ("[detector]\nthreshold = nan", "t.toml:2:13: detector.threshold"),
            ("[detector]\nkind = \"haar\"", "t.toml:2:8"),
            ("[detector]\nfill = 1", "fill"),
            ("[detector]\nfound-max = 0", "t.toml:2:13: detector.found-max"),
            ("[detector]\ndetect-width = 1", "t.toml:2:16: detector.detect-width"),
            ("[detector]\nitem-area-max = 0.0001", "t.toml:2:17: detector.item-area-max"),
            ("[detector]\ncontainer-area-min = 0.6", "detector.container-area-max"),
            ("[detector]\nkind = \"onnx\"", "detector.model"),
            (
                "[detector]\nkind = \"onnx\"\nmodel = \"m\"\noutputs = [\"a\"]",
                "t.toml:4:11: detector.outputs",
            ),
            ("[detector]\nkind = \"onnx\"\nmodel = \"m\"\nscale = 0.0", "t.toml:4:9: detector.scale"),
            (
                "[detector]\nkind = \"onnx\"\nmodel = \"m\"\nitem-classes = []",
                "t.toml:4:16: detector.item-classes",
            ),
            ("[vectorizer]\ncolor-weight = -1.0", "t.toml:2:16: vectorizer.color-weight"),
            ("[vectorizer]\ncolor-weight = 0.0\nshape-weight = 0.0", "t.toml:3:16: vectorizer.shape-weight"),
            ("[vectorizer]\nkind = \"onnx\"\nmodel = \"m\"\nbatch = 0", "t.toml:4:9: vectorizer.batch"),
            (
                "[vectorizer]\nkind = \"onnx\"\nmodel = \"m\"\nstd = [1.0, 0.0, 1.0]",
                "t.toml:4:7: vectorizer.std",
            ),
            ("[stitch]\npixels-max = 5", "t.toml:2:14: stitch.pixels-max"),
            ("[stitch]\npictures-max = 1", "t.toml:2:16: stitch.pictures-max"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(place), "{text}: {error}");
        }
    }

    #[test]
    fn the_defaults_print_and_parse_again() {
        let text = format!(
            "[detector]\n{}[vectorizer]\n{}[stitch]\n{}",
            config::to_toml(&DetectorTable::default()),
            config::to_toml(&VectorizerTable::default()),
            config::to_toml(&StitchTable::default())
        );
        assert_eq!(check(&text).unwrap(), check("").unwrap());
    }
}

//! Real ONNX files with known answers, made by `tests/sorter_models.py`; skipped where its tools are not
//! (`etc/tools.sh onnx`).

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::scratch::Scratch;
use opencv::prelude::*;

use super::blob::Input;
use super::detect::layout::Layout;
use super::detect::onnx::OnnxConfig as DetectorOnnx;
use super::scene::{self, Rgb};
use super::vectorize::onnx::OnnxConfig as VectorizerOnnx;
use super::{Detector, DetectorConfig, Picture, Vectorizer, VectorizerConfig};
use crate::config::vision::{DetectorTable, VectorizerTable};
use crate::found::Found;

/// Side of the detectors' input and of its cells, and the boxes that a cell proposes.
const SIDE: u32 = 64;
const CELL: f32 = 8.0;
const BOX: (f32, f32) = (10.0, 6.0);

/// The models in a folder of the test's own, or nothing.
fn models(scratch: &Scratch) -> Option<PathBuf> {
    let python = e2e::env::tool("onnx/bin/python")?;
    let folder = scratch.join("models");
    e2e::env::run(Command::new(python).arg(e2e::env::root().join("tests/sorter_models.py")).arg(&folder));
    Some(folder)
}

macro_rules! models {
    ($scratch:ident) => {
        match models(&$scratch) {
            Some(folder) => folder,
            None => e2e::skip!("the onnx package is not in target/tools (etc/tools.sh onnx)"),
        }
    };
}

fn detector(model: &Path, layout: Layout) -> DetectorOnnx {
    let names: &[&str] = if layout == Layout::Torchvision { &["boxes", "labels", "scores"] } else { &[] };
    DetectorOnnx {
        model: model.to_owned(),
        layout,
        outputs: names.iter().map(|n| (*n).to_owned()).collect(),
        input: Input {
            width: SIDE,
            height: SIDE,
            mean: [0.0; 3],
            scale: [1.0 / 255.0; 3],
            rgb: true,
            letterbox: layout != Layout::Torchvision,
        },
        threshold: 0.5,
        nms: 0.45,
        item_classes: vec![0],
        found_max: 100,
    }
}

fn open(config: DetectorOnnx) -> Result<Detector, String> {
    Detector::open(&DetectorConfig::Onnx(config)).map_err(|e| edge::log::chain(&e))
}

/// A picture of cells of `w` x `h` pixels, some of them coloured.
fn cells((columns, rows): (u32, u32), (w, h): (u32, u32), coloured: &[(u32, u32, Rgb)]) -> Picture {
    let mut picture = Picture::blank(columns * w, rows * h, [0; 3]).unwrap();
    let width = picture.width();
    let pixels = picture.mat_mut().data_bytes_mut().unwrap();
    for (n, pixel) in pixels.chunks_exact_mut(3).enumerate() {
        let (x, y) = (n as u32 % width / w, n as u32 / width / h);
        if let Some((_, _, [r, g, b])) = coloured.iter().find(|(cx, cy, _)| (*cx, *cy) == (x, y)) {
            pixel.copy_from_slice(&[*b, *g, *r]);
        }
    }
    picture
}

/// What a cell of the picture should be found as.
fn expected((x, y): (u32, u32), (w, h): (u32, u32), class: u32, score: f32) -> Found {
    let (fx, fy) = (w as f32 / CELL, h as f32 / CELL);
    let (mx, my) = ((x as f32 + 0.5) * w as f32, (y as f32 + 0.5) * h as f32);
    let at = |middle: f32, half: f32| (middle + half).round() as i32;
    let (hw, hh) = (BOX.0 / 2.0 * fx, BOX.1 / 2.0 * fy);
    Found { class, score, x1: at(mx, -hw).max(0), y1: at(my, -hh), x2: at(mx, hw), y2: at(my, hh) }
}

const STRONG_RED: Rgb = [255, 0, 0];
const WEAK_RED: Rgb = [153, 0, 0];
const STRONG_BLUE: Rgb = [0, 0, 230];

fn scores(found: &[Found], expected: &[(usize, f32)]) {
    for (n, score) in expected {
        assert!((found[*n].score - score).abs() < 0.01, "{n}: {found:?}");
    }
}

#[test]
fn yolo_layouts_see_through_the_letterbox() {
    let scratch = Scratch::new("onnx");
    let folder = models!(scratch);
    // Twice as wide as high: the middle half of the input's rows.
    let cell = (80, 80);
    let picture =
        cells((8, 4), cell, &[(0, 1, STRONG_RED), (3, 0, WEAK_RED), (4, 2, STRONG_BLUE), (7, 3, STRONG_RED)]);
    let [first, weak, blue, last] = [((0, 1), 0), ((3, 0), 0), ((4, 2), 1), ((7, 3), 0)]
        .map(|(at, class)| expected(at, cell, class, 1.0));
    let last = Found { x2: 640, ..last };

    let mut yolov5 = open(detector(&folder.join("yolov5.onnx"), Layout::Yolov5)).unwrap();
    let found = yolov5.detect(&picture).unwrap();
    // The weak one's objectness times its class is 0.36.
    scene::assert_same(&found, &[first, blue, last], 0, "yolov5");
    scores(&found, &[(0, 1.0), (1, 230.0 * 230.0 / 65025.0), (2, 1.0)]);
    assert_eq!(yolov5.detect(&cells((8, 4), cell, &[])).unwrap(), []);

    let mut yolov8 = open(detector(&folder.join("yolov8.onnx"), Layout::Yolov8)).unwrap();
    let found = yolov8.detect(&picture).unwrap();
    scene::assert_same(&found, &[first, weak, blue, last], 0, "yolov8");
    scores(&found, &[(0, 1.0), (1, 0.6), (2, 230.0 / 255.0)]);
    // From left to right.
    assert!(found.is_sorted_by_key(|f| f.x1));
}

#[test]
fn torchvision_has_labels_and_stretches() {
    let scratch = Scratch::new("onnx");
    let folder = models!(scratch);
    let cell = (80, 60);
    let picture = cells((8, 8), cell, &[(1, 1, STRONG_RED), (5, 6, STRONG_BLUE), (6, 2, [100, 0, 0])]);
    let (red, blue) = ((1, 1), (5, 6));
    let mut config = detector(&folder.join("torchvision.onnx"), Layout::Torchvision);
    config.item_classes = vec![1];
    let found = open(config.clone()).unwrap().detect(&picture).unwrap();
    let both = [expected(red, cell, 0, 1.0), expected(blue, cell, 2, 0.9)];
    scene::assert_same(&found, &both, 1, "label 1 is an item");
    scores(&found, &[(0, 1.0), (1, 230.0 / 255.0)]);
    config.item_classes = vec![2];
    let found = open(config.clone()).unwrap().detect(&picture).unwrap();
    let both = [expected(red, cell, 1, 1.0), expected(blue, cell, 0, 0.9)];
    scene::assert_same(&found, &both, 1, "label 2 is an item");
    config.threshold = 0.3;
    assert_eq!(open(config.clone()).unwrap().detect(&picture).unwrap().len(), 3);
    config.found_max = 1;
    let found = open(config).unwrap().detect(&picture).unwrap();
    scene::assert_same(&found, &[expected(red, cell, 1, 1.0)], 1, "the surest");
}

#[test]
fn channels_and_suppression_are_as_configured() {
    let scratch = Scratch::new("onnx");
    let folder = models!(scratch);
    let cell = (80, 80);
    let picture = cells((8, 8), cell, &[(2, 2, STRONG_RED), (3, 2, [250, 0, 0]), (6, 6, STRONG_BLUE)]);
    let mut config = detector(&folder.join("yolov8.onnx"), Layout::Yolov8);
    let classes = |config: &DetectorOnnx| {
        let found = open(config.clone()).unwrap().detect(&picture).unwrap();
        found.iter().map(|f| f.class).collect::<Vec<_>>()
    };
    assert_eq!(classes(&config), [0, 0, 1]);
    config.input.rgb = false;
    assert_eq!(classes(&config), [1, 1, 0]);
    config.input.rgb = true;
    // Neighbours overlap by a ninth.
    config.nms = 0.1;
    assert_eq!(classes(&config), [0, 1]);
    // The mean is taken off first: 255 - 200 is not enough any more.
    config.input.mean = [200.0; 3];
    assert_eq!(classes(&config), Vec::<u32>::new());
}

#[test]
fn a_model_of_no_use_is_found_when_it_is_opened() {
    let scratch = Scratch::new("onnx");
    let folder = models!(scratch);
    let whole = std::fs::read(folder.join("features.onnx")).unwrap();
    let noise: Vec<u8> = (0..5000u32).map(|n| (n * n % 251) as u8).collect();
    let junk = scratch.dir("junk");
    for (name, bytes) in [
        ("empty", &[][..]),
        ("text", b"not a model\n"),
        ("noise", &noise),
        ("cut", &whole[..whole.len() / 2]),
    ] {
        std::fs::write(junk.join(name), bytes).unwrap();
    }
    let yolov5 = |name: &str| folder.join(name);
    for (path, layout, says) in [
        (junk.join("none"), Layout::Yolov5, "detector.model"),
        (junk.clone(), Layout::Yolov5, "detector.model"),
        (junk.join("empty"), Layout::Yolov5, "empty"),
        (junk.join("text"), Layout::Yolov5, "for an ONNX model"),
        (junk.join("noise"), Layout::Yolov5, "for an ONNX model"),
        (junk.join("cut"), Layout::Yolov5, "for an ONNX model"),
        (yolov5("yolov5.onnx"), Layout::Yolov8, "layout yolov5"),
        (yolov5("yolov8.onnx"), Layout::Yolov5, "layout yolov8"),
        (yolov5("yolov8.onnx"), Layout::Torchvision, "boxes"),
        (yolov5("torchvision.onnx"), Layout::Yolov5, "detector.outputs"),
        (yolov5("yolov5-two.onnx"), Layout::Yolov5, "detector.outputs"),
        (yolov5("unpooled.onnx"), Layout::Yolov8, "1 x (4 + classes) x N"),
    ] {
        let name = path.display().to_string();
        let error =
            open(detector(&path, layout)).err().unwrap_or_else(|| panic!("{name} is taken for {layout:?}"));
        assert!(error.contains(&name) && error.contains(says), "{error}");
    }
    let mut two = detector(&folder.join("yolov5-two.onnx"), Layout::Yolov5);
    two.outputs = vec!["output".to_owned()];
    open(two.clone()).unwrap();
    two.outputs = vec!["exit".to_owned()];
    let error = open(two.clone()).unwrap_err();
    assert!(error.contains("exit"), "{error}");
    // An input that the network's own shapes do not fit.
    (two.outputs, two.input.width) = (vec!["output".to_owned()], 96);
    let error = open(two).unwrap_err();
    assert!(error.contains("1x3x64x96"), "{error}");
}

fn vectorizer(model: &Path, side: u32, batch: usize) -> VectorizerOnnx {
    let VectorizerTable { mean, std, .. } = VectorizerTable::default();
    VectorizerOnnx {
        model: model.to_owned(),
        output: None,
        input: Input {
            width: side,
            height: side,
            mean: mean.map(|m| (m * 255.0) as f32),
            scale: std.map(|s| (1.0 / (s * 255.0)) as f32),
            rgb: true,
            letterbox: false,
        },
        batch,
    }
}

fn open_vectorizer(config: VectorizerOnnx) -> Result<Vectorizer, String> {
    Vectorizer::open(&VectorizerConfig::Onnx(config)).map_err(|e| edge::log::chain(&e))
}

/// To three digits: sums over many values depend on their order.
fn close(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() <= 2e-3 * e.abs().max(1.0), "{what}: {found:?} instead of {expected:?}");
    }
}

#[test]
fn features_are_pooled_means_in_any_batch() {
    let scratch = Scratch::new("onnx");
    let folder = models!(scratch);
    let colours: Vec<Rgb> = (0..7).map(|n| [30 * n, 255 - 20 * n, 100 + 13 * n]).collect();
    let pictures: Vec<Picture> = colours
        .iter()
        .enumerate()
        .map(|(n, [r, g, b])| Picture::blank(20 + 31 * n as u32, 300 - 40 * n as u32, [*b, *g, *r]).unwrap())
        .collect();
    for name in ["pooled.onnx", "pooled-flat.onnx"] {
        for batch in [1, 2, 3, 16] {
            let mut vectorizer = open_vectorizer(vectorizer(&folder.join(name), 224, batch)).unwrap();
            let vectors = vectorizer.vectors(&pictures).unwrap();
            assert_eq!(vectors.len(), 7);
            for (vector, [r, g, b]) in vectors.iter().zip(&colours) {
                let r = (f32::from(*r) / 255.0 - 0.485) / 0.229;
                let g = (f32::from(*g) / 255.0 - 0.456) / 0.224;
                let b = (f32::from(*b) / 255.0 - 0.406) / 0.225;
                close(vector, &[r, g, b, r + g + b, 0.5 * b - 2.0 * r], &format!("{name} by {batch}"));
            }
            assert!(vectorizer.vectors(&[]).unwrap().is_empty());
        }
    }
}

#[test]
fn a_residual_network_answers_as_the_onnx_package_does() {
    let scratch = Scratch::new("onnx");
    let folder = models!(scratch);
    let answers: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("answers.json")).unwrap()).unwrap();
    let answers: Vec<Vec<f32>> = serde_json::from_value(answers["features"].clone()).unwrap();
    let pictures: Vec<Picture> = (0..answers.len())
        .map(|seed| {
            let mut picture = Picture::blank(SIDE, SIDE, [0; 3]).unwrap();
            let pixels = picture.mat_mut().data_bytes_mut().unwrap();
            for (n, pixel) in pixels.chunks_exact_mut(3).enumerate() {
                let (x, y) = (n % SIDE as usize, n / SIDE as usize);
                let at = |c: usize| ((x * (3 + seed) + y * 5 + c * 70 + x * y / 7) % 256) as u8;
                pixel.copy_from_slice(&[at(2), at(1), at(0)]);
            }
            picture
        })
        .collect();
    for batch in [1, 2, 8] {
        let mut vectorizer = open_vectorizer(vectorizer(&folder.join("features.onnx"), SIDE, batch)).unwrap();
        let vectors = vectorizer.vectors(&pictures).unwrap();
        for (n, (vector, expected)) in vectors.iter().zip(&answers).enumerate() {
            close(vector, expected, &format!("picture {n} by {batch}"));
        }
    }
}

#[test]
fn a_vectorizer_of_no_use_is_found_when_it_is_opened() {
    let scratch = Scratch::new("onnx");
    let folder = models!(scratch);
    let single = folder.join("pooled-single.onnx");
    open_vectorizer(vectorizer(&single, 224, 1)).unwrap();
    let cases = [
        (vectorizer(&single, 224, 4), "vectorizer.batch = 1"),
        (vectorizer(&folder.join("unpooled.onnx"), 224, 2), "expected an output of 1 x D"),
        (vectorizer(&folder.join("torchvision.onnx"), SIDE, 1), "vectorizer.output"),
        (vectorizer(&folder.join("none.onnx"), 224, 1), "vectorizer.model"),
        (vectorizer(&folder.join("answers.json"), 224, 1), "for an ONNX model"),
    ];
    for (config, says) in cases {
        let name = config.model.display().to_string();
        let error = open_vectorizer(config).err().unwrap_or_else(|| panic!("{name} is taken"));
        assert!(error.contains(&name) && error.contains(says), "{error}");
    }
}

#[test]
fn the_tables_open_the_models() {
    let scratch = Scratch::new("onnx");
    let folder = models!(scratch);
    let text = |table: &str, model: &str, more: &str| {
        let model = folder.join(model);
        format!("[{table}]\nkind = \"onnx\"\nmodel = \"{}\"\n{more}", model.display())
    };
    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(default)]
    struct Raw {
        detector: DetectorTable,
        vectorizer: VectorizerTable,
    }
    let toml = [
        text("detector", "yolov8.onnx", "layout = \"yolov8\"\ninput-width = 64\ninput-height = 64\n"),
        text("vectorizer", "pooled.onnx", ""),
    ];
    let loaded = edge::config::parse::<Raw>(Path::new("t.toml"), toml.concat()).unwrap();
    let detector = loaded.raw.detector.check(&loaded).unwrap();
    let picture = cells((8, 8), (10, 10), &[(2, 2, STRONG_RED)]);
    assert_eq!(Detector::open(&detector).unwrap().detect(&picture).unwrap().len(), 1);
    let vectorizer = loaded.raw.vectorizer.check(&loaded).unwrap();
    assert_eq!(Vectorizer::open(&vectorizer).unwrap().vectors(&[picture]).unwrap()[0].len(), 5);
}

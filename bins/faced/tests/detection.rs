//! The real detectors on real pictures: both find the face of the astronaut photograph, YuNet finds the face in every
//! frame of the clip. A test whose data is not on this machine says so and is skipped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use faced::convert::{Rgb, decode_picture};
use faced::detect::haar::HaarConfig;
use faced::detect::yunet::YuNetConfig;
use faced::detect::{Box2, Detection, Detector, DetectorConfig, Score};
use faced::frame::{Format, Frame, Layout, Matrix, Stamp, View};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn first(candidates: &[PathBuf]) -> Option<PathBuf> {
    candidates.iter().find(|path| path.exists()).cloned()
}

fn data(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("EDGE_TEST_DATA").map(PathBuf::from);
    first(&[folder.unwrap_or_else(|| root().join("../shared/data")).join(name)])
}

fn astronaut() -> Option<PathBuf> {
    let named = std::env::var_os("EDGE_ASTRONAUT").map(PathBuf::from);
    named
        .filter(|path| path.exists())
        .or_else(|| first(&[root().join("target/data/astronaut.png")]))
        .or_else(|| data("astronaut.png"))
}

fn model() -> Option<PathBuf> {
    first(&[root().join("models/face_detection_yunet_2023mar.onnx")]).or_else(|| data("yunet_s_640_640.onnx"))
}

/// What is needed, or a line that says what is missing.
macro_rules! need {
    ($test:literal, $found:expr, $what:literal) => {
        match $found {
            Some(found) => found,
            None => return println!("skipped: {}: {}", $test, $what),
        }
    };
}

fn haar() -> Option<Detector> {
    let cascade = PathBuf::from("/usr/share/opencv4/haarcascades/haarcascade_frontalface_default.xml");
    let config = HaarConfig { cascade, scale_factor: 1.2, neighbors_min: 5, face_px_min: 48 };
    config.cascade.exists().then(|| Detector::new(&DetectorConfig::Haar(config)).unwrap())
}

fn yunet(model: PathBuf) -> Detector {
    let config = YuNetConfig { model, score_min: 0.7, nms_iou: 0.3, face_px_min: 20 };
    Detector::new(&DetectorConfig::YuNet(config)).unwrap()
}

/// The astronaut's face in the 512 x 512 photograph, from chin to forehead.
const FACE: Box2 = Box2 { x: 176.0, y: 66.0, w: 96.0, h: 112.0 };

fn is_the_face(found: &[Detection]) {
    let overlaps: Vec<f32> = found.iter().map(|d| d.bbox.iou(&FACE)).collect();
    assert_eq!(overlaps.iter().filter(|iou| **iou > 0.4).count(), 1, "{found:?}");
}

/// The photograph in every layout that a camera may deliver.
fn layouts(file: &Path) -> Vec<(Layout, Vec<u8>)> {
    let (layout, rgb) = decode_picture(&std::fs::read(file).unwrap()).unwrap();
    let (w, h) = (layout.width as usize, layout.height as usize);
    // Full-range BT.601, the inverse of what `convert` does.
    let ycc = |x: usize, y: usize| {
        let p = &rgb[(y * w + x) * 3..][..3];
        let [r, g, b] = [0, 1, 2].map(|n| f32::from(p[n]));
        let luma = 0.299 * r + 0.587 * g + 0.114 * b;
        [luma, 128.0 + 0.564 * (b - luma), 128.0 + 0.713 * (r - luma)].map(|v| v.clamp(0.0, 255.0) as u8)
    };
    let mut all = vec![(layout, rgb.clone())];
    for format in [Format::Yuyv, Format::Nv12, Format::I420, Format::Grey] {
        let to = Layout::packed(format, layout.width, layout.height, 0, Matrix::Full).unwrap();
        let mut bytes = vec![0; to.bytes];
        for y in 0..h {
            for x in 0..w {
                for (p, v) in to.planes.iter().zip(ycc(x, y)).take(if format == Format::Grey { 1 } else { 3 })
                {
                    bytes[p.offset + (y >> p.shift_y) * p.stride + (x >> p.shift_x) * p.step] = v;
                }
            }
        }
        all.push((to, bytes));
    }
    all
}

#[test]
fn haar_finds_the_astronaut_in_every_layout() {
    let file = need!("haar_finds_the_astronaut", astronaut(), "no astronaut.png (EDGE_ASTRONAUT names it)");
    let mut haar = need!("haar_finds_the_astronaut", haar(), "the package opencv-data is not installed");
    for (layout, bytes) in layouts(&file) {
        for width in [256, 320, 512] {
            let found = haar.detect(&View::new(&layout, &bytes).unwrap(), width).unwrap();
            is_the_face(&found);
            assert!(found.iter().all(|d| matches!(d.score, Score::LevelWeight(_)) && d.landmarks.is_none()));
        }
    }
}

#[test]
fn yunet_finds_the_astronaut_in_every_layout_with_landmarks_in_place() {
    let file = need!("yunet_finds_the_astronaut", astronaut(), "no astronaut.png (EDGE_ASTRONAUT names it)");
    let model = need!("yunet_finds_the_astronaut", model(), "no YuNet model ('make models' fetches it)");
    let mut yunet = yunet(model);
    for (layout, bytes) in layouts(&file) {
        for width in [160, 320, 500] {
            let found = yunet.detect(&View::new(&layout, &bytes).unwrap(), width).unwrap();
            is_the_face(&found);
            let best = &found[0];
            assert!(matches!(best.score, Score::Probability(p) if p > 0.8 && p <= 1.0), "{best:?}");
            let [right_eye, left_eye, nose, right_mouth, left_mouth] = best.landmarks.unwrap();
            assert!(right_eye.0 < left_eye.0 && right_mouth.0 < left_mouth.0, "{best:?}");
            assert!(right_eye.1 < nose.1 && nose.1 < right_mouth.1, "{best:?}");
            // The eyes of the photograph, to a few pixels.
            for (found, (x, y)) in [(right_eye, (201.0, 110.0)), (left_eye, (243.0, 109.0))] {
                assert!((found.0 - x as f32).abs() < 10.0 && (found.1 - y as f32).abs() < 10.0, "{best:?}");
            }
        }
    }
}

#[test]
fn nothing_is_found_where_nobody_is() {
    let layout = Layout::packed(Format::Rgb, 320, 240, 0, Matrix::Full).unwrap();
    let mut rng = fastrand::Rng::with_seed(3);
    let noise: Vec<u8> = (0..layout.bytes).map(|_| rng.u8(..)).collect();
    let view = View::new(&layout, &noise).unwrap();
    let mut haar =
        need!("nothing_is_found_where_nobody_is", haar(), "the package opencv-data is not installed");
    assert!(haar.detect(&view, 320).unwrap().is_empty());
    let model =
        need!("nothing_is_found_where_nobody_is", model(), "no YuNet model ('make models' fetches it)");
    assert!(yunet(model).detect(&view, 320).unwrap().is_empty());
}

/// Frames of a video file, through the daemon's own way in (GStreamer, I420).
fn frames(file: &Path) -> Vec<Frame> {
    use gst::prelude::*;
    gst::init().unwrap();
    let text =
        "filesrc name=f ! decodebin ! videoconvert ! video/x-raw,format=I420 ! appsink name=s sync=false";
    let pipeline = gst::parse::launch(text).unwrap().downcast::<gst::Pipeline>().unwrap();
    pipeline.by_name("f").unwrap().set_property("location", file.to_str().unwrap());
    let sink = pipeline.by_name("s").unwrap().downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut frames = Vec::new();
    while let Ok(sample) = sink.pull_sample() {
        let caps = sample.caps().unwrap().structure(0).unwrap();
        let (w, h) = (caps.get::<i32>("width").unwrap(), caps.get::<i32>("height").unwrap());
        let layout = Layout::gstreamer(Format::I420, w as u32, h as u32, Matrix::Bt601).unwrap();
        let data = sample.buffer().unwrap().map_readable().unwrap().to_vec();
        let stamp = Stamp { camera: 0, at_ms: frames.len() as u64 * 40, time_ms: 0, still_until_ms: None };
        frames.push(Frame { stamp, layout, data, origin: None });
    }
    pipeline.set_state(gst::State::Null).unwrap();
    frames
}

#[test]
fn yunet_finds_the_face_in_every_frame_of_the_clip() {
    const NAME: &str = "head-pose-face-detection-female.mp4";
    let clip =
        need!("yunet_finds_the_face_in_the_clip", data(NAME), "no clip (EDGE_TEST_DATA names its folder)");
    let model =
        need!("yunet_finds_the_face_in_the_clip", model(), "no YuNet model ('make models' fetches it)");
    let mut yunet = yunet(model);
    let frames = frames(&clip);
    assert!(frames.len() >= 20, "{} frames", frames.len());
    let mut last: Option<Box2> = None;
    for (n, frame) in frames.iter().enumerate() {
        let found = yunet.detect(&frame.view().unwrap(), 320).unwrap();
        assert_eq!(found.len(), 1, "frame {n}: {found:?}");
        // One person who moves her head: the boxes of neighbouring frames overlap.
        assert!(last.is_none_or(|l| l.iou(&found[0].bbox) > 0.3), "frame {n}");
        last = Some(found[0].bbox);
    }
}

#[test]
fn a_file_that_is_no_model_is_refused_with_its_name() {
    let file = std::env::temp_dir().join(format!("faced-model-{}", std::process::id()));
    std::fs::write(&file, b"this is no model").unwrap();
    let yunet = YuNetConfig { model: file.clone(), score_min: 0.7, nms_iou: 0.3, face_px_min: 1 };
    let haar = HaarConfig { cascade: file.clone(), scale_factor: 1.2, neighbors_min: 5, face_px_min: 1 };
    for config in [DetectorConfig::YuNet(yunet.clone()), DetectorConfig::Haar(haar)] {
        let error = Detector::new(&config).unwrap_err().to_string();
        assert!(error.contains(file.to_str().unwrap()) && error.contains("OpenCV"), "{error}");
    }
    std::fs::remove_file(&file).unwrap();
    let error = Detector::new(&DetectorConfig::YuNet(yunet)).unwrap_err().to_string();
    assert!(error.contains("No such file") && error.contains("make models"), "{error}");
}

#[test]
fn a_crop_of_the_face_is_a_picture_of_it() {
    let file = need!("a_crop_of_the_face", astronaut(), "no astronaut.png (EDGE_ASTRONAUT names it)");
    let model = need!("a_crop_of_the_face", model(), "no YuNet model ('make models' fetches it)");
    let mut yunet = yunet(model);
    let (layout, data) = decode_picture(&std::fs::read(file).unwrap()).unwrap();
    let view = View::new(&layout, &data).unwrap();
    let face = yunet.detect(&view, 320).unwrap().remove(0).bbox.padded(0.3);
    let area =
        faced::convert::Area::inside(face.x, face.y, face.w, face.h, layout.width, layout.height).unwrap();
    let crop: Rgb = faced::convert::crop_rgb(&view, area);
    let jpeg = faced::encode::encode(&crop, faced::encode::PictureFormat::Jpeg(92)).unwrap();
    // The detector finds the face again in the published picture.
    let (layout, data) = decode_picture(&jpeg).unwrap();
    assert_eq!((layout.width, layout.height), (area.w, area.h));
    assert_eq!(yunet.detect(&View::new(&layout, &data).unwrap(), 320).unwrap().len(), 1);
}

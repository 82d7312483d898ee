//! Faces through the real daemon: what leaves it by any output shows none, and the rest of the picture as it was.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::daemon::Daemon;
use e2e::env::{root, shared_data, wait_for};
use e2e::net::free_port;
use e2e::process::Process;
use e2e::scratch::Scratch;
use e2e::{env, need, picture, skip};
use faced::convert::{Area, Rgb, crop_rgb, decode_picture};
use faced::detect::haar::HaarConfig;
use faced::detect::yunet::YuNetConfig;
use faced::detect::{Box2, Detection, Detector, DetectorConfig};
use faced::frame::{Format, Layout, Matrix, View};

const CASCADE: &str = "/usr/share/opencv4/haarcascades/haarcascade_frontalface_default.xml";
const LONG: Duration = Duration::from_secs(30);

/// Puts one raw BGR picture again and again.
const APP: &str = "
import sys, time
sys.path.insert(0, sys.argv[1])
from edge_spyglass import SpyGlass
width, height = int(sys.argv[4]), int(sys.argv[5])
pixels = open(sys.argv[3], 'rb').read()
spyglass = SpyGlass('cam', socket_path=sys.argv[2])
spyglass.start_streaming(10, width, height)
while True:
    spyglass.put(pixels, width, height)
    time.sleep(0.1)
";

macro_rules! cascade {
    () => {
        if !Path::new(CASCADE).exists() {
            skip!("the package opencv-data is not installed");
        }
    };
}

macro_rules! photo {
    () => {{
        cascade!();
        need!("python3", "curl");
        match shared_data("astronaut.png").map_or_else(picture::astronaut, Ok) {
            Ok(photo) => photo,
            Err(why) => skip!("the photograph can't be had: {why}"),
        }
    }};
}

/// A detector that looks more closely than the daemon's does.
fn haar() -> Detector {
    let config = HaarConfig { cascade: CASCADE.into(), scale_factor: 1.1, neighbors_min: 3, face_px_min: 40 };
    Detector::new(&DetectorConfig::Haar(config)).unwrap()
}

fn faces(detector: &mut Detector, rgb: &Rgb) -> Vec<Detection> {
    let layout = Layout::packed(Format::Rgb, rgb.width, rgb.height, 0, Matrix::Bt601).unwrap();
    detector.detect(&View::new(&layout, &rgb.data).unwrap(), 640).unwrap()
}

fn decoded(file: &[u8]) -> Rgb {
    let (layout, data) = decode_picture(file).unwrap();
    let all = Area { x: 0, y: 0, w: layout.width, h: layout.height };
    crop_rgb(&View::new(&layout, &data).unwrap(), all)
}

fn luma(rgb: &Rgb, x: usize, y: usize) -> f64 {
    let at = (y * rgb.width as usize + x) * 3;
    let [r, g, b] = [0, 1, 2].map(|n| f64::from(rgb.data[at + n]));
    0.299 * r + 0.587 * g + 0.114 * b
}

/// Variance of the Laplacian of the luma inside a box.
fn detail(rgb: &Rgb, area: &Box2) -> f64 {
    let at = |x: i32, y: i32| luma(rgb, x as usize, y as usize);
    let mut values = Vec::new();
    for y in (area.y as i32).max(1)..((area.y + area.h) as i32).min(rgb.height as i32 - 1) {
        for x in (area.x as i32).max(1)..((area.x + area.w) as i32).min(rgb.width as i32 - 1) {
            values.push(at(x - 1, y) + at(x + 1, y) + at(x, y - 1) + at(x, y + 1) - 4.0 * at(x, y));
        }
    }
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64
}

/// The daemon, its RTSP port and its page's; with the stream `cam`, which has these keys.
fn daemon(scratch: &Scratch, stream: &str) -> (Daemon, u16, u16) {
    daemon_with(scratch, &format!("[[stream]]\nname = \"cam\"\n{stream}"))
}

/// The same with these tables.
fn daemon_with(scratch: &Scratch, tables: &str) -> (Daemon, u16, u16) {
    let (rtsp, web) = (free_port(), free_port());
    let toml = format!(
        "ctl-socket = \"{{dir}}/ctl.sock\"\ncache-dir = \"{{dir}}\"\n[frames]\nsocket = \"{{dir}}/f.sock\"\n\
         [web]\nlisten = \"127.0.0.1:{web}\"\njpeg-quality = 100\n[rtsp]\nlisten = \"127.0.0.1:{rtsp}\"\n\
         [encoder]\nretry-min-ms = 100\nretry-max-ms = 500\n{tables}"
    );
    let mut daemon = Daemon::new(scratch, "spyglassd", "spy", &toml);
    daemon.start_ready();
    (daemon, rtsp, web)
}

fn app(daemon: &Daemon, scratch: &Scratch, rgb: &Rgb) -> Process {
    let bgr: Vec<u8> = rgb.data.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]).collect();
    let raw = scratch.path().join("picture.bgr");
    std::fs::write(&raw, bgr).unwrap();
    let mut command = Command::new("python3");
    command
        .args(["-c", APP])
        .arg(root().join("bins/spyglassd/python"))
        .arg(daemon.dir.join("f.sock"))
        .arg(raw);
    command.args([rgb.width, rgb.height].map(|n| n.to_string())).env("PYTHONDONTWRITEBYTECODE", "1");
    Process::start("application", &mut command)
}

fn get(url: &str) -> Vec<u8> {
    Command::new("curl").args(["-s", "-m", "15", url]).output().unwrap().stdout
}

fn status(daemon: &Daemon) -> serde_json::Value {
    daemon.status()["streams"][0].clone()
}

#[test]
fn a_face_loses_its_detail_and_the_rest_of_the_picture_stays() {
    let photo = decoded(&std::fs::read(photo!()).unwrap());
    let mut detector = haar();
    let found = faces(&mut detector, &photo);
    assert_eq!(found.len(), 1, "{found:?}");
    let face = found[0].bbox;
    let scratch = Scratch::new("spyf");
    let (mut daemon, _, web) = daemon(&scratch, "[stream.privacy]\nblur = \"faces\"\n");
    let _app = app(&daemon, &scratch, &photo);
    wait_for("the application", LONG, || (status(&daemon)["frames"].as_u64()? > 0).then_some(()));
    let shown = decoded(&get(&format!("http://127.0.0.1:{web}/cam.jpg")));
    assert_eq!((shown.width, shown.height), (photo.width, photo.height));
    let (before, after) = (detail(&photo, &face), detail(&shown, &face));
    println!("variance of the Laplacian inside the face: {before:.1}, then {after:.1}");
    assert!(after < before / 20.0, "{before} {after}");
    assert!(faces(&mut detector, &shown).is_empty());
    // Elsewhere: what JPEG and the way through YUV (in eight bits, there and back) cost, and no more.
    let kept = face.padded(0.8);
    let (mut sum, mut count) = (0.0, 0.0);
    for y in 0..photo.height {
        for x in 0..photo.width {
            let (px, py) = (x as f32, y as f32);
            if (kept.x..kept.x + kept.w).contains(&px) && (kept.y..kept.y + kept.h).contains(&py) {
                continue;
            }
            let (x, y) = (x as usize, y as usize);
            sum += (luma(&photo, x, y) - luma(&shown, x, y)).abs();
            count += 1.0;
        }
    }
    println!("mean difference elsewhere: {:.2} grey levels over {count} pixels", sum / count);
    assert!(count > 100_000.0 && sum / count < 5.0);
    let below = Box2 { x: 0.0, y: kept.y + kept.h, w: 512.0, h: 512.0 };
    let (before, after) = (detail(&photo, &below), detail(&shown, &below));
    println!("variance of the Laplacian below the face: {before:.1}, then {after:.1}");
    assert!((after / before - 1.0).abs() < 0.2, "{before} {after}");
    let said = status(&daemon);
    assert_eq!(said["privacy"]["blurred-areas"], 1, "{said}");
    println!("search and blur: {} ms", said["privacy"]["search-ms"]);
    assert!(daemon.term().success());
    daemon.check_log();
}

/// Nobody has to know the names of the streams that applications will bring.
#[test]
fn a_stream_that_no_table_names_is_blurred_like_all_and_one_may_be_left_out() {
    let photo = decoded(&std::fs::read(photo!()).unwrap());
    let mut detector = haar();
    for (stream, shows) in [("", 0), ("[[stream]]\nname = \"cam\"\n[stream.privacy]\nblur = \"none\"\n", 1)] {
        let scratch = Scratch::new("spya");
        let (mut daemon, _, web) = daemon_with(&scratch, &format!("[privacy]\nblur = \"faces\"\n{stream}"));
        let _app = app(&daemon, &scratch, &photo);
        wait_for("the application", LONG, || (status(&daemon)["frames"].as_u64()? > 0).then_some(()));
        let shown = decoded(&get(&format!("http://127.0.0.1:{web}/cam.jpg")));
        assert_eq!(faces(&mut detector, &shown).len(), shows, "{stream}");
        assert_eq!(status(&daemon)["privacy"].is_null(), shows == 1);
        assert!(daemon.term().success());
        daemon.check_log();
    }
}

/// The pictures that ffmpeg makes of an address in so many seconds.
fn play(url: &str, seconds: &str, size: (u32, u32)) -> Vec<Rgb> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-rtsp_transport", "tcp", "-i", url, "-t", seconds, "-vsync", "0"])
        .args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let frame = size.0 as usize * size.1 as usize * 3;
    let pictures = output.stdout.chunks_exact(frame);
    pictures.map(|data| Rgb { width: size.0, height: size.1, data: data.to_vec() }).collect()
}

#[test]
fn no_frame_of_a_clip_shows_the_face_of_the_one_in_it() {
    need!("ffmpeg");
    let named = ["head-pose-face-detection-female.mp4", "yunet_s_640_640.onnx"].map(shared_data);
    let [Some(clip), Some(model)] = named else { skip!("the clip and the YuNet model are not here") };
    let yunet = YuNetConfig { model: model.clone(), score_min: 0.6, nms_iou: 0.3, face_px_min: 24 };
    let mut detector = Detector::new(&DetectorConfig::YuNet(yunet)).unwrap();
    let source = |more: &str| format!("source = \"file:{}\"\nloop = true\n{more}", clip.display());
    let blurred = format!(
        "[stream.privacy]\nblur = \"faces\"\ndetector = \"yunet\"\nmodel = \"{}\"\nfps-max = 30\n",
        model.display()
    );
    let mut seen = [0.0, 0.0];
    for (n, more) in ["", blurred.as_str()].into_iter().enumerate() {
        let scratch = Scratch::new("spyc");
        let (mut daemon, rtsp, _) = daemon(&scratch, &source(more));
        let probe = env::run(Command::new("ffprobe").args(["-v", "error", "-select_streams", "v"]).args([
            "-show_entries",
            "stream=width,height",
            "-of",
            "csv=p=0",
            &clip.to_string_lossy(),
        ]));
        let (w, h) = probe.trim().split_once(',').unwrap();
        let pictures =
            play(&format!("rtsp://127.0.0.1:{rtsp}/cam"), "8", (w.parse().unwrap(), h.parse().unwrap()));
        assert!(pictures.len() > 40, "{} pictures: {}", pictures.len(), daemon.lines.tail(20));
        let with = pictures.iter().filter(|p| !faces(&mut detector, p).is_empty()).count();
        println!(
            "{}: {with} of {} pictures with a face",
            if n == 0 { "as it is" } else { "blurred" },
            pictures.len()
        );
        println!("search and blur: {}", status(&daemon)["privacy"]);
        seen[n] = with as f64 / pictures.len() as f64;
        assert!(daemon.term().success());
        daemon.check_log();
    }
    assert!(seen[0] > 0.8 && seen[1] < 0.02, "{seen:?}");
}

#[test]
fn without_its_model_the_daemon_says_so_and_sends_nothing() {
    let photo = decoded(&std::fs::read(photo!()).unwrap());
    let scratch = Scratch::new("spyn");
    let cascade: PathBuf = scratch.path().join("cascade.xml");
    std::fs::copy(CASCADE, &cascade).unwrap();
    let table = format!("[stream.privacy]\nblur = \"faces\"\ncascade = \"{}\"\n", cascade.display());
    let (mut daemon, _, web) = daemon(&scratch, &table);
    let _app = app(&daemon, &scratch, &photo);
    wait_for("the application", LONG, || (status(&daemon)["frames"].as_u64()? > 0).then_some(()));
    // Gone while the daemon runs; nobody has watched so far.
    std::fs::remove_file(&cascade).unwrap();
    let picture = get(&format!("http://127.0.0.1:{web}/cam.jpg"));
    assert!(!picture.starts_with(&[0xff, 0xd8]), "a picture that was not searched");
    let said = status(&daemon);
    assert_eq!((&said["state"], &said["units"]), (&"ERROR".into(), &0.into()), "{said}");
    assert!(said["why"].as_str().unwrap().contains("opencv-data"), "{said}");
    let check = daemon.command(&["--check"]).output().unwrap();
    let words = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(check.status.code() == Some(78) && words.contains("cascade.xml"), "{words}");
    // It comes back with the file.
    std::fs::copy(CASCADE, &cascade).unwrap();
    wait_for("a picture", LONG, || {
        get(&format!("http://127.0.0.1:{web}/cam.jpg")).starts_with(&[0xff, 0xd8]).then_some(())
    });
    let check = env::run(&mut daemon.command(&["--check"]));
    assert!(check.contains("is good"), "{check}");
    assert!(daemon.term().success());
    daemon.check_log();
}

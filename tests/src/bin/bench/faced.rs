//! `faced` beside a bare OpenCV loop with the same detector over the same video; and what a still scene costs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::broker::Broker;
use e2e::daemon::Daemon;
use e2e::scratch::Scratch;
use e2e::table::Table;
use e2e::{config, env, picture};
use serde_json::Value;

use crate::Verdict;

const HAAR: &str = "/usr/share/opencv4/haarcascades/haarcascade_frontalface_default.xml";
const STILL: Duration = Duration::from_secs(20);

pub fn run(verdicts: &mut Vec<Verdict>) {
    println!(
        "\nfaced beside a bare OpenCV loop: the same video (640x480, 20 s), the same detector, every frame searched\n"
    );
    let photo = match picture::astronaut() {
        Ok(photo) => photo,
        Err(why) => return println!("skipped: faced: the photograph can't be fetched: {why}"),
    };
    let scratch = Scratch::new("bench");
    let video = scratch.join("walk.mp4");
    picture::video(&photo, &video, 20);
    let mut table = Table::new(&["", "frames", "faces", "CPU ms/frame", "ratio"]);
    let mut detectors = vec![("haar", PathBuf::from(HAAR))];
    let published = env::root().join("models/face_detection_yunet_2023mar.onnx");
    match env::shared_data("yunet_s_640_640.onnx").or(Some(published).filter(|p| p.exists())) {
        Some(model) => detectors.push(("yunet", model)),
        None => println!("skipped: yunet: no model here (make models)"),
    }
    for (kind, model) in detectors {
        let bare = bare(kind, &model, &video);
        let full = faced(&scratch, kind, &model, &video);
        let per = |frames: f64, cpu: f64| if frames > 0.0 { cpu / frames } else { f64::NAN };
        let (bare_ms, full_ms) = (per(bare.0, bare.2), per(full.0, full.2));
        let mut row = |name: String, figures: (f64, f64, f64), ms: f64| {
            let cells = [
                format!("{:.0}", figures.0),
                format!("{:.0}", figures.1),
                format!("{ms:.2}"),
                format!("{:.2}", ms / bare_ms),
            ];
            table.row(&[vec![name], cells.to_vec()].concat());
        };
        row(format!("bare OpenCV loop, {kind}"), bare, bare_ms);
        row(format!("faced, {kind} (tracks, crops, JPEG, MQTT)"), full, full_ms);
        let what = format!("faced {kind}: CPU a frame / bare loop");
        verdicts.push(Verdict { what, found: full_ms / bare_ms, target: 1.10, more: false, unit: "x" });
    }
    println!("{}", table.text());
    let share = still(&photo);
    println!(
        "a still scene, 640x480 at 15 frames a second, motion gate on: {share:.2} % of a core (with its GStreamer source)\n"
    );
    verdicts.push(Verdict {
        what: "faced: still scene".into(),
        found: share,
        target: 3.0,
        more: false,
        unit: "% of a core",
    });
}

/// Frames, faces, CPU ms of the bare loop.
fn bare(kind: &str, model: &Path, video: &Path) -> (f64, f64, f64) {
    let program = env::bin("examples/bare_loop");
    let said = env::run(Command::new(program).arg(kind).arg(model).arg("320").arg(video));
    let value: Value = serde_json::from_str(said.trim()).unwrap();
    let number = |name: &str| value[name].as_f64().unwrap();
    (number("frames"), number("faces"), number("cpu_ms"))
}

/// The same of faced, by its own report.
fn faced(scratch: &Scratch, kind: &str, model: &Path, video: &Path) -> (f64, f64, f64) {
    let broker = Broker::start(scratch, &format!("broker-{kind}"));
    let name = if kind == "haar" { "cascade" } else { "model" };
    let tables =
        format!("[gate]\nenabled = false\n[detector]\nkind = \"{kind}\"\n{name} = \"{}\"\n", model.display());
    let source = format!("file:{}", video.display());
    let top = "exit-when-done = true\nreport-file = \"{dir}/report.json\"\n";
    let toml = config::faced(broker.port, &[("walk", &source, "pace = \"fast\"\n")], top, &tables);
    let mut daemon = Daemon::new(scratch, "faced", &format!("faced-{kind}"), &toml);
    daemon.start_ready();
    let status = daemon.wait_exit(Duration::from_secs(120));
    assert!(status.success(), "faced ended with {status}:\n{}", daemon.lines.tail(10));
    let report = std::fs::read_to_string(daemon.dir.join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("no {name} in {report}"));
    (number("frames_looked"), number("detections"), number("cpu_ms"))
}

/// Percent of a core while nothing moves.
fn still(photo: &Path) -> f64 {
    let scratch = Scratch::new("bench");
    let broker = Broker::start(&scratch, "broker");
    let toml = config::faced(broker.port, &[("corridor", &still_source(photo), "")], "", "");
    let mut daemon = Daemon::new(&scratch, "faced", "faced", &toml);
    daemon.start_ready();
    // The first frames are searched, as they should be.
    std::thread::sleep(Duration::from_secs(8));
    let before = daemon.usage();
    std::thread::sleep(STILL);
    let after = daemon.usage();
    (after.cpu_ms - before.cpu_ms) as f64 / 10.0 / STILL.as_secs_f64()
}

/// A camera in front of which nothing moves: frames as raw as a V4L2 camera's, made at no cost.
pub fn still_source(photo: &Path) -> String {
    format!(
        "gst:filesrc location={} ! pngdec ! videoconvert ! videoscale ! video/x-raw,format=I420,width=640,height=480 \
         ! imagefreeze is-live=true ! video/x-raw,framerate=15/1",
        photo.display()
    )
}

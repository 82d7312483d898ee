//! `spyglassd` beside `gst-launch-1.0` with the same encoder settings: CPU for each 720p frame, delay, what `put()` costs the
//! application, memory.

use std::process::Command;
use std::time::Duration;

use e2e::env::{self, root};
use e2e::process::{Process, Usage};
use e2e::scratch::Scratch;
use e2e::spyglass::{Spyglass, have_numpy, python, report};
use e2e::table::Table;

use crate::Verdict;

const SIZE: (u32, u32) = (1280, 720);
const FPS: u32 = 30;
/// How long CPU is counted, after the start has settled.
const WATCH: Duration = Duration::from_secs(10);
const SETTLE: Duration = Duration::from_secs(4);

pub fn run(verdicts: &mut Vec<Verdict>) {
    if !have_numpy() || !env::have("gst-launch-1.0") || !env::have("ffmpeg") {
        println!("skipped: spyglass: python3 with numpy, gst-launch-1.0 or ffmpeg is not installed");
        return;
    }
    println!("\nRe-streaming {}x{} at {FPS} frames a second, x264 superfast zerolatency\n", SIZE.0, SIZE.1);
    let scratch = Scratch::new("bspy");
    let spy = Spyglass::start(&scratch, "", "");
    std::thread::sleep(Duration::from_secs(2));
    let idle = spy.daemon.usage();
    let app = spy.app("cam", SIZE, FPS, 40);
    spy.wait_state("cam", "WAITING");
    std::thread::sleep(SETTLE);
    let unwatched = cpu_per_frame(spy.daemon.process().pid());
    let quiet = spy.daemon.usage();
    let viewer = spy.viewer("gst", "tcp", &spy.url("cam"), 22);
    spy.wait_state("cam", "STREAMING");
    std::thread::sleep(SETTLE);
    let ours = cpu_per_frame(spy.daemon.process().pid());
    let watched = spy.daemon.usage();
    let seen = report(viewer, Duration::from_secs(60));
    let inside = spy.stream("cam")["delay-ms"].clone();
    let app = report(app, Duration::from_secs(90));
    let theirs = peer();
    let mut table = Table::new(&["what", "CPU ms/frame", "resident MB"]);
    let mb = |usage: &Usage| format!("{:.1}", usage.rss_kb as f64 / 1024.0);
    table.row(&["spyglassd, no application".into(), "-".into(), mb(&idle)]);
    table.row(&["spyglassd, nobody watches".into(), format!("{unwatched:.2}"), mb(&quiet)]);
    table.row(&["spyglassd, one RTSP viewer".into(), format!("{ours:.2}"), mb(&watched)]);
    table.row(&["gst-launch-1.0, fdsrc to fakesink".into(), format!("{:.2}", theirs.0), mb(&theirs.1)]);
    println!("{}", table.text());
    println!(
        "put(): p50 {:.2} ms, p99 {:.2} ms; {} of {} frames dropped\nframe to unit: p50 {} ms, p95 {} ms; application to \
         decoded picture: p50 {} ms, p95 {} ms\n",
        app["put_ms_p50"].as_f64().unwrap_or(0.0),
        app["put_ms_p99"].as_f64().unwrap_or(0.0),
        app["dropped"],
        app["frames"],
        inside["p50"],
        inside["p95"],
        seen["delay_ms_p50"],
        seen["delay_ms_p95"],
    );
    let what = |what: &str| format!("spyglassd 720p30: {what}");
    let put = app["put_ms_p99"].as_f64().unwrap_or(f64::MAX);
    verdicts.push(Verdict {
        what: what("CPU against gst-launch"),
        found: ours / theirs.0,
        target: 1.15,
        more: false,
        unit: "x",
    });
    verdicts.push(Verdict { what: what("put() p99"), found: put, target: 1.0, more: false, unit: "ms" });
}

/// CPU time of a process for each frame of the watched time, in ms.
fn cpu_per_frame(pid: u32) -> f64 {
    let before = Usage::of(pid).cpu_ms;
    std::thread::sleep(WATCH);
    (Usage::of(pid).cpu_ms - before) as f64 / (WATCH.as_secs_f64() * f64::from(FPS))
}

/// The same frames through a pipe into `gst-launch-1.0`.
fn peer() -> (f64, Usage) {
    let (width, height) = (SIZE.0, SIZE.1);
    let app = root().join("tests/spyglass_app.py");
    let script = format!(
        "{} '{}' - - {width} {height} {FPS} 30 | exec gst-launch-1.0 -q fdsrc fd=0 blocksize={} ! rawvideoparse \
         format=bgr width={width} height={height} framerate={FPS}/1 ! videoconvert ! x264enc tune=zerolatency \
         speed-preset=superfast bframes=0 key-int-max=60 bitrate=2765 ! h264parse config-interval=-1 ! fakesink sync=false",
        python().unwrap_or("python3"),
        app.display(),
        width * height * 3
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]);
    let shell = Process::start("gst-launch", &mut command);
    let launched = env::wait_for("gst-launch-1.0 to run", Duration::from_secs(10), || {
        let pid = shell.pid();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|c| c.parse::<u32>().ok()).find(|c| {
            let name = std::fs::read_to_string(format!("/proc/{c}/comm")).unwrap_or_default();
            name.starts_with("gst-launch")
        })
    });
    std::thread::sleep(SETTLE);
    let cpu = cpu_per_frame(launched);
    (cpu, Usage::of(launched))
}

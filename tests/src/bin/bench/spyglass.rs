//! `spyglassd` beside other ways to encode an application's frames: CPU for each 720p frame, delay, what `put()` costs the
//! application beside a bare copy, memory.

mod peers;

use std::time::Duration;

use e2e::env;
use e2e::process::{Process, Usage};
use e2e::scratch::Scratch;
use e2e::spyglass::{Spyglass, app, have_numpy, report, viewer};
use e2e::table::Table;
use serde_json::Value;

use crate::Verdict;
use peers::Peer;

const SIZE: (u32, u32) = (1280, 720);
const FPS: u32 = 30;
/// How long CPU is counted, after the start has settled.
const WATCH: Duration = Duration::from_secs(4);
const SETTLE: Duration = Duration::from_secs(2);
/// How long delays are watched.
const VIEW_S: u32 = 5;

/// What was seen of `spyglassd`.
struct Ours {
    idle: Usage,
    unwatched: (f64, Usage),
    watched: (f64, Usage),
    /// What the application and the viewer report, and the delay inside the daemon.
    app: Value,
    seen: Value,
    inside: Value,
}

pub fn run(verdicts: &mut Vec<Verdict>) {
    if !have_numpy() || !env::have("gst-launch-1.0") || !env::have("ffmpeg") {
        println!("skipped: spyglass: python3 with numpy, gst-launch-1.0 or ffmpeg is not installed");
        return;
    }
    println!("\nRe-streaming {}x{} at {FPS} frames a second, x264 superfast zerolatency\n", SIZE.0, SIZE.1);
    let ours = ours();
    let pipe = peers::pipe();
    let shared = peers::shared_memory();
    let writer = peers::video_writer();
    let theirs = peers::delay();
    let mut table =
        Table::new(&["what", "CPU ms/frame", "+ of the call", "call p50 ms", "call p99 ms", "resident MB"]);
    let number = |value: &Value| value.as_f64().map_or("-".to_owned(), |n| format!("{n:.2}"));
    let mut row = |what: &str, cpu: Option<f64>, call: &Value, usage: Option<&Usage>| {
        let cpu = cpu.map_or("-".to_owned(), |cpu| format!("{cpu:.2}"));
        let mb = usage.map_or("-".to_owned(), |usage| format!("{:.1}", usage.rss_kb as f64 / 1024.0));
        let call = ["put_cpu_ms", "put_ms_p50", "put_ms_p99"].map(|key| number(&call[key]));
        let [of_call, p50, p99] = call;
        table.row(&[what.to_owned(), cpu, of_call, p50, p99, mb]);
    };
    row("spyglassd, no application", None, &Value::Null, Some(&ours.idle));
    row("spyglassd, nobody watches", Some(ours.unwatched.0), &Value::Null, Some(&ours.unwatched.1));
    row("spyglassd, one RTSP viewer", Some(ours.watched.0), &ours.app, Some(&ours.watched.1));
    let mut peer = |what: &str, peer: &Result<Peer, String>| match peer {
        Ok(peer) => row(what, Some(peer.cpu), &peer.call, peer.usage.as_ref()),
        Err(why) => row(&format!("skipped: {what}: {why}"), None, &Value::Null, None),
    };
    peer("gst-launch-1.0, fdsrc to fakesink", &pipe);
    peer("gst-launch-1.0, shmsrc to fakesink", &shared);
    peer("cv2.VideoWriter, the reference's settings, to fakesink", &writer);
    println!("{}", table.text());
    println!(
        "A bare copy of the frame, beside put(): p50 {} ms, p99 {} ms; {} of {} frames dropped\nframe to unit: p50 {} ms, \
         p95 {} ms\napplication to decoded picture, over UDP: p50 {} ms, p95 {} ms; with gst-launch-1.0 at both ends p50 {} \
         ms, p95 {} ms\n",
        number(&ours.app["bare_ms_p50"]),
        number(&ours.app["bare_ms_p99"]),
        ours.app["dropped"],
        ours.app["frames"],
        ours.inside["p50"],
        ours.inside["p95"],
        number(&ours.seen["delay_ms_p50"]),
        number(&ours.seen["delay_ms_p95"]),
        number(&theirs["delay_ms_p50"]),
        number(&theirs["delay_ms_p95"]),
    );
    let mut verdict = |what: &str, found: f64, target: f64, unit: &'static str| {
        let what = format!("spyglassd 720p30: {what}");
        verdicts.push(Verdict { what, found, target, more: false, unit });
    };
    if let Ok(pipe) = pipe {
        verdict("CPU against gst-launch", ours.watched.0 / pipe.cpu, 1.15, "x");
    }
    verdict("put() p99", ours.app["put_ms_p99"].as_f64().unwrap_or(f64::MAX), 1.0, "ms");
}

fn ours() -> Ours {
    let scratch = Scratch::new("bspy");
    let spy = Spyglass::start(&scratch, "", "");
    std::thread::sleep(SETTLE);
    let idle = spy.daemon.usage();
    let mut app = app(&spy.socket().to_string_lossy(), "cam", SIZE, FPS, 18);
    let app = Process::start("application", app.arg("bare"));
    spy.wait_state("cam", "WAITING");
    std::thread::sleep(SETTLE);
    let pid = spy.daemon.process().pid();
    let unwatched = (cpu_per_frame(pid), spy.daemon.usage());
    let viewer = viewer("gst", "udp", &spy.url("cam"), 3 + VIEW_S);
    spy.wait_state("cam", "STREAMING");
    std::thread::sleep(SETTLE);
    let watched = (cpu_per_frame(pid), spy.daemon.usage());
    let seen = report(viewer, Duration::from_secs(60));
    let inside = spy.stream("cam")["delay-ms"].clone();
    Ours { idle, unwatched, watched, app: report(app, Duration::from_secs(60)), seen, inside }
}

/// CPU time of a process for each frame of the watched time, in ms.
fn cpu_per_frame(pid: u32) -> f64 {
    let before = Usage::of(pid).cpu_ms;
    std::thread::sleep(WATCH);
    (Usage::of(pid).cpu_ms - before) as f64 / (WATCH.as_secs_f64() * f64::from(FPS))
}

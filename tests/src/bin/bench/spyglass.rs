//! `spyglassd` beside other ways to encode an application's frames: CPU for each 720p frame, delay, what `put()` costs the
//! application beside a bare copy, memory.

mod peers;

use std::time::{Duration, Instant};

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
    /// Part of a CPU that programs took which have no part in this, while the application ran.
    others: f64,
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
        "A bare copy of the frame, in put()'s place: p50 {} ms, p99 {} ms; right after it: p50 {} ms, p99 {} ms\n{} of {} \
         frames dropped; programs that have no part in this took {:.0} % of a CPU meanwhile\nframe to unit: p50 {} ms, p95 \
         {} ms\napplication to decoded picture, over UDP: p50 {} ms, p95 {} ms; with gst-launch-1.0 at both ends p50 {} \
         ms, p95 {} ms\n",
        number(&ours.app["bare_before_ms_p50"]),
        number(&ours.app["bare_before_ms_p99"]),
        number(&ours.app["bare_after_ms_p50"]),
        number(&ours.app["bare_after_ms_p99"]),
        ours.app["dropped"],
        ours.app["frames"],
        ours.others * 100.0,
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
    let (begun, before) = (Instant::now(), others_ms(idle.cpu_ms));
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
    let app = report(app, Duration::from_secs(60));
    let others = others_ms(spy.daemon.usage().cpu_ms) - before;
    let others = (others / begun.elapsed().as_secs_f64() / 1e3).max(0.0);
    Ours { idle, unwatched, watched, app, seen, inside, others }
}

/// CPU time in ms, since the machine's start, of all that is neither this program, nor a child of it that has ended, nor
/// the daemon, which took `daemon_ms`. The host's other machines count, too (steal).
fn others_ms(daemon_ms: u64) -> f64 {
    let numbers = |text: String, from: usize, to: usize| -> f64 {
        let fields = text.rsplit(')').next().unwrap_or("").split_whitespace();
        fields.skip(from).take(to - from).filter_map(|f| f.parse::<f64>().ok()).sum()
    };
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let all = read("/proc/stat").lines().next().unwrap_or("").to_owned();
    // "cpu", user, nice, system, idle, iowait, irq, softirq, steal. Of a process, after its name: utime, stime, cutime,
    // cstime are the twelfth to the fifteenth.
    let busy = numbers(all.clone(), 1, 4) + numbers(all, 6, 9);
    let own = numbers(read("/proc/self/stat"), 11, 15);
    (busy - own) * 1e3 / rustix::param::clock_ticks_per_second() as f64 - daemon_ms as f64
}

/// CPU time of a process for each frame of the watched time, in ms.
fn cpu_per_frame(pid: u32) -> f64 {
    let before = Usage::of(pid).cpu_ms;
    std::thread::sleep(WATCH);
    (Usage::of(pid).cpu_ms - before) as f64 / (WATCH.as_secs_f64() * f64::from(FPS))
}

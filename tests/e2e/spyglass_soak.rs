//! spyglassd while viewers and applications come and go: memory stays, no thread and no descriptor is left.
//!
//! `SOAK_S` seconds (40); half an hour shows what a minute can't.

use std::process::Command;
use std::time::{Duration, Instant};

use e2e::env::wait_for;
use e2e::process::{Process, Usage};
use e2e::scratch::Scratch;
use e2e::spyglass::{Spyglass, have_numpy};
use e2e::{need, skip};

/// Most that a busy machine may take for a step of a round.
const LONG: Duration = Duration::from_secs(90);

/// Threads and descriptors of a process.
fn holds(pid: u32) -> (usize, usize) {
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    (count("task"), count("fd"))
}

/// One round: an application that is killed every other time, and viewers of each kind that stay for a while.
fn round(spy: &Spyglass, page: u16, n: u32) {
    let mut app = spy.app("cam", (320, 180), 15, 180);
    spy.wait_state("cam", "WAITING");
    let viewers: Vec<Process> = [("ffmpeg", "tcp"), ("ffmpeg", "udp"), ("gst", "tcp")]
        .map(|(player, transport)| spy.viewer(player, transport, &spy.url("cam"), 3))
        .into();
    let pages: Vec<Process> = ["mp4", "mjpg"].map(|kind| watch(page, kind)).into();
    spy.wait_state("cam", "STREAMING");
    wait_for("viewers of the page", LONG, || {
        (spy.stream("cam")["outputs"]["web"]["viewers"] == 2).then_some(())
    });
    for mut viewer in viewers {
        viewer.wait_exit(LONG);
    }
    // They would watch for ever.
    drop(pages);
    if n.is_multiple_of(2) {
        app.kill9();
    } else {
        app.term(LONG);
    }
    spy.wait_state("cam", "STOPPED");
}

/// A viewer of the page that keeps nothing of what it sees.
fn watch(page: u16, kind: &str) -> Process {
    let url = format!("http://127.0.0.1:{page}/cam.{kind}");
    Process::start("curl", Command::new("curl").args(["-s", "-f", "-o", "/dev/null", &url]))
}

/// The median of the n-th third (0 to 2) of what was seen.
fn third(seen: &[u64], n: usize) -> u64 {
    let mut part = seen[seen.len() * n / 3..seen.len() * (n + 1) / 3].to_vec();
    part.sort_unstable();
    part[part.len() / 2]
}

#[test]
fn viewers_and_applications_leave_nothing_behind() {
    need!("ffmpeg", "gst-launch-1.0", "curl");
    if !have_numpy() {
        skip!("python3 with numpy is not installed (make deps)");
    }
    let seconds = std::env::var("SOAK_S").ok().and_then(|s| s.parse().ok()).unwrap_or(40);
    let scratch = Scratch::new("spys");
    let (spy, page) = Spyglass::start_with_page(&scratch, "", "[encoder]\nidle-close-ms = 500\n");
    let pid = spy.daemon.process().pid();
    // What is made once and kept: GStreamer's plug-ins, its thread pools.
    for n in 0..2 {
        round(&spy, page, n);
    }
    let settled = || {
        let mut last = (holds(pid), Instant::now());
        wait_for("threads and descriptors to settle", LONG, || {
            let now = holds(pid);
            if now != last.0 {
                last = (now, Instant::now());
            }
            (last.1.elapsed() > Duration::from_secs(8)).then_some(last.0)
        })
    };
    let (threads, descriptors) = settled();
    let before = Usage::of(pid).rss_kb;
    let begun = Instant::now();
    let mut resident = Vec::new();
    while begun.elapsed() < Duration::from_secs(seconds) {
        round(&spy, page, resident.len() as u32);
        let (now, kb) = (holds(pid), Usage::of(pid).rss_kb);
        resident.push(kb);
        println!("round {}: {kb} kB, {} threads, {} descriptors", resident.len(), now.0, now.1);
    }
    let after = settled();
    let rss = Usage::of(pid).rss_kb;
    let rounds = resident.len();
    println!(
        "{rounds} rounds: {before} -> {rss} kB, {threads} -> {} threads, {descriptors} -> {} descriptors",
        after.0, after.1
    );
    assert!(
        after.0 <= threads + 1 && after.1 <= descriptors + 2,
        "{after:?} were {threads} and {descriptors}"
    );
    // What the plug-ins keep for ever is complete after some ten rounds (half a MB).
    assert!(rss < before + 4 * 1024, "{before} kB have become {rss} kB in {rounds} rounds");
    if rounds >= 36 {
        let (middle, last) = (third(&resident, 1), third(&resident, 2));
        println!("the middle third has {middle} kB, the last one {last} kB");
        assert!(last < middle + 1024, "it grows: {middle} kB in the middle third, {last} kB in the last one");
    }
    assert_eq!(spy.stream("cam")["viewers"], 0);
    spy.daemon.check_log();
}

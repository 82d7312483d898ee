//! spyglassd's choice of an encoder: what is forced is used or refused, and "auto" takes what is there and says so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::env::{run, wait_for};
use e2e::scratch::Scratch;
use e2e::shim;
use e2e::spyglass::{Spyglass, have_numpy, report};
use e2e::{need, skip};
use rustix::process::Signal;

/// The file that a GStreamer element comes from; none where it is not installed.
fn plugin(element: &str) -> Option<PathBuf> {
    let said = Command::new("gst-inspect-1.0").arg(element).output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let line = said.lines().find_map(|line| line.trim().strip_prefix("Filename"))?;
    Some(PathBuf::from(line.trim()))
}

/// A folder with every installed plug-in but the one that has `element`, as GStreamer's own place for them.
fn plugins_without(scratch: &Scratch, element: &str) -> PathBuf {
    let left_out = plugin(element).unwrap();
    let dir = scratch.dir("plugins");
    for entry in std::fs::read_dir(left_out.parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name() != left_out.file_name() {
            std::os::unix::fs::symlink(&path, dir.join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}

/// What a viewer of a daemon with this `kind` sees, and the encoder that `/status` and the log name.
fn watch(spy: &Spyglass) -> String {
    let _app = spy.app("cam", (320, 180), 15, 60);
    spy.wait_state("cam", "WAITING");
    let viewer = spy.viewer("ffmpeg", "tcp", &spy.url("cam"), 8);
    let encoder = wait_for("an encoder", Duration::from_secs(60), || {
        spy.stream("cam")["encoder"]["kind"].as_str().map(str::to_owned)
    });
    let seen = report(viewer, Duration::from_secs(60));
    assert_eq!(seen["size"], serde_json::json!([320, 180]), "{encoder}: {seen}");
    assert_eq!(seen["ordered"], true, "{encoder}: {seen}");
    assert!(seen["pictures"].as_u64().unwrap() >= 20, "{encoder}: {seen}");
    assert!(spy.daemon.lines.contain(&format!("stream cam: encoder {encoder}")), "{encoder}");
    spy.daemon.check_log();
    encoder
}

fn restart_with_plugins(spy: &mut Spyglass, scratch: &Scratch, plugins: &Path) {
    spy.daemon.term();
    spy.daemon.env("GST_PLUGIN_SYSTEM_PATH_1_0", plugins.to_string_lossy());
    spy.daemon.env("GST_REGISTRY", scratch.join("registry.bin").to_string_lossy());
    spy.daemon.start_ready();
}

#[test]
fn a_forced_encoder_is_used_and_a_missing_one_is_refused_with_what_to_do() {
    need!("ffmpeg", "gst-inspect-1.0");
    if !have_numpy() || plugin("openh264enc").is_none() {
        skip!("python3 with numpy or gstreamer1.0-plugins-bad is not installed (make deps)");
    }
    let scratch = Scratch::new("spye");
    let spy = Spyglass::start(&scratch, "", "[encoder]\nkind = \"openh264\"\n");
    assert_eq!(watch(&spy), "openh264enc");
    if plugin("nvv4l2h264enc").is_some() {
        return;
    }
    // One that is missing: --check finds it; a daemon that runs says it where people look, and keeps running.
    let scratch = Scratch::new("spyx");
    let spy = Spyglass::start(&scratch, "", "[encoder]\nkind = \"nvv4l2h264enc\"\n");
    let why = "nvv4l2h264enc is not installed (it comes with the Jetson's own system); encoder.kind = \"auto\" takes";
    let check = spy.daemon.command(&["--check"]).output().unwrap();
    assert_eq!(check.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&check.stderr).contains(why), "{check:?}");
    let _app = spy.app("cam", (320, 180), 15, 40);
    spy.wait_state("cam", "WAITING");
    let _viewer = spy.viewer("ffmpeg", "tcp", &spy.url("cam"), 10);
    spy.wait_state("cam", "ERROR");
    assert!(spy.stream("cam")["why"].as_str().unwrap().contains(why), "{}", spy.stream("cam"));
    assert!(spy.daemon.lines.contain(why));
    spy.daemon.check_log();
}

#[test]
fn auto_takes_what_works_here_and_says_what() {
    need!("ffmpeg", "gst-inspect-1.0");
    if !have_numpy() || plugin("x264enc").is_none() || plugin("openh264enc").is_none() {
        skip!("python3 with numpy, gstreamer1.0-plugins-ugly or -bad is not installed (make deps)");
    }
    if plugin("nvv4l2h264enc").is_some() || plugin("v4l2h264enc").is_some() {
        skip!("this machine has an encoder in hardware, which auto prefers");
    }
    let scratch = Scratch::new("spyu");
    let mut spy = Spyglass::start(&scratch, "", "[encoder]\nkind = \"auto\"\n");
    assert_eq!(watch(&spy), "x264enc");
    assert!(spy.daemon.lines.contain("encoder x264enc, taken by \"auto\""));
    // The same configuration where x264 is not installed.
    let plugins = plugins_without(&scratch, "x264enc");
    restart_with_plugins(&mut spy, &scratch, &plugins);
    assert_eq!(watch(&spy), "openh264enc");
    assert!(spy.daemon.lines.contain("encoder openh264enc, taken by \"auto\""));
    run(&mut spy.daemon.command(&["--check"]));
}

/// Loading the encoder's plug-in takes seconds: nothing of the loop waits for that, nor does its end or a reload.
#[test]
fn a_slow_start_of_an_encoder_holds_up_nobody() {
    const SLOW: Duration = Duration::from_secs(4);
    need!("gst-inspect-1.0");
    let (Some(library), Some(plugin)) = (shim::library(), plugin("openh264enc")) else {
        skip!("a C compiler or gstreamer1.0-plugins-bad is not installed (make deps)");
    };
    if !have_numpy() {
        skip!("python3 with numpy is not installed (make deps)");
    }
    let scratch = Scratch::new("spyl");
    let more = format!(
        "[encoder]\nkind = \"openh264\"\n[[stream]]\nname = \"cam\"\n[stream.record]\ndir = {:?}\n",
        scratch.dir("video")
    );
    let mut spy = Spyglass::start(&scratch, "", &more);
    spy.daemon.term();
    shim::preload(&mut spy.daemon, &library, scratch.path());
    spy.daemon.env("FAULT_DLOPEN", plugin.file_name().unwrap().to_string_lossy());
    spy.daemon.env("FAULT_DLOPEN_MS", SLOW.as_millis().to_string());
    spy.daemon.start_ready();
    let app = spy.app("cam", (320, 180), 15, 120);
    spy.wait_state("cam", "STARTING");
    let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
    while spy.stream("cam")["state"] == "STARTING" {
        let asked = Instant::now();
        spy.daemon.status();
        slowest = slowest.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("the slowest answer of the loop took {slowest:?}, the start {:?}", begun.elapsed());
    assert!(begun.elapsed() > SLOW / 2, "the start was not slow: {:?}", begun.elapsed());
    assert!(slowest < SLOW * 5 / 8, "{slowest:?}");
    spy.wait_state("cam", "STREAMING");
    app.signal(Signal::INT);
    let (seen, said) = (spy.stream("cam"), report(app, Duration::from_secs(60)));
    assert!(seen["drops"]["encoder-slow"].as_u64() > Some(15), "{seen}");
    // Its slots are back at once: a loop that waits for the start would cost it nearly all frames of that time.
    let [frames, dropped] = ["frames", "dropped"].map(|what| said[what].as_u64().unwrap());
    assert!(dropped * 10 < frames, "the application has lost next to none: {said}");
    // A reload, then an end, during a start.
    spy.daemon.term();
    spy.daemon.start_ready();
    let _app = spy.app("cam", (320, 180), 15, 60);
    spy.wait_state("cam", "STARTING");
    spy.daemon.process().signal(Signal::HUP);
    spy.daemon.wait_log("reloading", Duration::from_secs(60));
    wait_for("it to stream again", Duration::from_secs(60), || {
        spy.daemon.try_status().filter(|status| status["streams"][0]["state"] == "STREAMING").map(drop)
    });
    spy.daemon.term();
    spy.daemon.start_ready();
    spy.wait_state("cam", "STARTING");
    let begun = Instant::now();
    assert!(spy.daemon.term().success());
    assert!(begun.elapsed() < SLOW, "{:?}", begun.elapsed());
    spy.daemon.check_log();
}

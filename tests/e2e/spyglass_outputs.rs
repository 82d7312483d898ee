//! spyglassd's page, pictures and files, from an application's frames to what other programs make of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::env::{self, wait_for};
use e2e::scratch::Scratch;
use e2e::spyglass::{Spyglass, have_numpy};
use e2e::{need, skip};

/// Size and number of pictures of what ffprobe can read for so long.
fn probe(what: &str, seconds: u32) -> String {
    let mut command = Command::new("ffprobe");
    command.args([
        "-v",
        "error",
        "-select_streams",
        "v",
        "-count_frames",
        "-read_intervals",
        &format!("%+{seconds}"),
    ]);
    command.args(["-show_entries", "stream=codec_name,width,height,nb_read_frames", "-of", "csv=p=0", what]);
    env::run(&mut command).trim().to_owned()
}

fn curl(arguments: &[&str]) -> Vec<u8> {
    Command::new("curl").args(["-s", "-m", "15"]).args(arguments).output().unwrap().stdout
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    entries.map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "mp4")).collect()
}

#[test]
fn one_encode_feeds_page_pictures_players_and_files() {
    need!("ffprobe", "curl");
    if !have_numpy() {
        skip!("python3 with numpy is not installed (make deps)");
    }
    let scratch = Scratch::new("spyp");
    let videos = scratch.dir("videos");
    let more = format!("[[stream]]\nname = \"kept\"\n[stream.record]\ndir = \"{}\"\n", videos.display());
    let (mut spy, port) = Spyglass::start_with_page(&scratch, "", &more);
    let web = |path: &str| format!("http://127.0.0.1:{port}/{path}");
    let _kept = spy.app("kept", (320, 180), 15, 60);
    let _cam = spy.app("cam", (640, 360), 15, 60);
    // A file is written although nobody watches; the other stream waits for a viewer.
    spy.wait_state("kept", "STREAMING");
    spy.wait_state("cam", "WAITING");
    assert_eq!(curl(&[&web("cam.jpg")])[..2], [0xff, 0xd8], "a picture");
    assert_eq!(spy.stream("cam")["units"], 0, "a picture needs no H.264");
    let live = probe(&web("cam.mp4"), 3);
    let frames: u32 = live.rsplit(',').next().unwrap().parse().unwrap();
    assert!(live.starts_with("h264,640,360,") && frames > 20, "{live}");
    let streams: serde_json::Value = serde_json::from_slice(&curl(&[&web("streams.json")])).unwrap();
    assert!(streams.to_string().contains("\"cam\"") && streams.to_string().contains("\"kept\""), "{streams}");
    let status: serde_json::Value = serde_json::from_slice(&curl(&[&web("status.json")])).unwrap();
    assert_eq!(status["program"], "spyglassd");
    assert!(String::from_utf8_lossy(&curl(&[&web("")])).contains("<html"));
    wait_for("the page's viewer to be gone", Duration::from_secs(20), || {
        (spy.stream("cam")["viewers"] == 0).then_some(())
    });
    assert!(spy.daemon.term().success());
    let files = segments(&videos);
    assert_eq!(files.len(), 1, "{files:?}");
    let kept = probe(&files[0].to_string_lossy(), 60);
    let frames: u32 = kept.rsplit(',').next().unwrap().parse().unwrap();
    assert!(kept.starts_with("h264,320,180,") && frames > 30, "{kept}");
    spy.daemon.check_log();
}

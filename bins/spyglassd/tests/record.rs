//! Recordings on a real disk, read by ffprobe.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use spyglassd::record::{self, Config};
use support::{Scratch, encode, have, run};

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

fn frames(path: &Path) -> usize {
    let text = run(Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"])
        .arg(path));
    text.trim().parse().expect(&text)
}

#[test]
fn segments_begin_on_key_frames_and_the_oldest_go() {
    if !have("segments_begin_on_key_frames_and_the_oldest_go", &["ffmpeg", "ffprobe"]) {
        return;
    }
    let scratch = Scratch::new("record");
    let dir = scratch.join("out");
    // 12 s, a key frame each second; segments of 3 s.
    let units = encode(&scratch.0, (320, 180), 300, 25, 1_700_000_000_000);
    let bytes: usize = units.iter().map(|unit| unit.data.len()).sum();
    let config =
        Config { dir: dir.clone(), segment: Duration::from_secs(3), bytes_max: 1 << 40, free_bytes_min: 0 };
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("gate-2-20231114T221320.000Z.mp4"), "another stream's").unwrap();
    let sink = record::start(config.clone(), "gate").unwrap();
    sink.push(&units[3]);
    for unit in &units {
        sink.push(unit);
    }
    sink.stop();
    let found = files(&dir);
    let names: Vec<&str> = found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(
        names[1..],
        [
            "gate-20231114T221320.000Z.mp4",
            "gate-20231114T221323.000Z.mp4",
            "gate-20231114T221326.000Z.mp4",
            "gate-20231114T221329.000Z.mp4",
        ]
    );
    assert!(found[1..].iter().all(|path| frames(path) == 75));

    // What a crash left is kept, and the bound holds: the newest stay.
    std::fs::rename(&found[4], dir.join(format!("{}.part", names[4]))).unwrap();
    let bounded = Config { bytes_max: bytes as u64 / 2 + 20_000, ..config };
    let sink = record::start(bounded.clone(), "gate").unwrap();
    let later: Vec<_> =
        units.iter().map(|u| spyglassd::unit::Unit { wall_ms: u.wall_ms + 60_000, ..u.clone() }).collect();
    for unit in &later[..75] {
        sink.push(unit);
    }
    sink.stop();
    let left = files(&dir);
    let sum: u64 = left[1..].iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!(sum <= bounded.bytes_max && left.len() == 3, "{left:?}");
    assert!(
        left[1].ends_with("gate-20231114T221329.000Z.mp4")
            && left[2].ends_with("gate-20231114T221420.000Z.mp4")
    );
    assert!(left[0].ends_with("gate-2-20231114T221320.000Z.mp4"), "other streams' files are not ours");
}

#[test]
fn a_folder_that_can_t_be_written_is_an_error_that_is_told() {
    if !have("a_folder_that_can_t_be_written_is_an_error_that_is_told", &["ffmpeg"]) {
        return;
    }
    let scratch = Scratch::new("record-error");
    let units = encode(&scratch.0, (320, 180), 25, 25, 0);
    let dir = scratch.join("out");
    let config =
        Config { dir: dir.clone(), segment: Duration::from_secs(3), bytes_max: 1 << 40, free_bytes_min: 0 };
    let sink = record::start(config, "gate").unwrap();
    std::fs::remove_dir(&dir).unwrap();
    for unit in &units {
        sink.push(unit);
    }
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while sink.status()["state"] != "ERROR" {
        assert!(std::time::Instant::now() < until, "{}", sink.status());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(sink.status()["why"].as_str().unwrap().contains("can't record to"));
    sink.stop();
}

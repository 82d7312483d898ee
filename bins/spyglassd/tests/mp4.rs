//! The MP4 writer, read by ffprobe: whole, as a stream of single pictures, and broken off.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;
use std::process::Command;

use spyglassd::h264::Header;
use spyglassd::mp4::{self, Sample};
use spyglassd::unit::Unit;
use support::{Scratch, encode, have, run};

/// Fragments of `group` pictures.
fn file(units: &[Unit], group: usize) -> Vec<u8> {
    let mut out = Vec::new();
    mp4::init(&mut out, &Header::of(&units[0].data).unwrap());
    for (n, units) in units.chunks(group).enumerate() {
        let samples: Vec<Sample<'_>> =
            units.iter().map(|u| Sample { unit: &u.data, duration: 3600, key: u.key }).collect();
        mp4::fragment(&mut out, u32::try_from(n).unwrap() + 1, mp4::ticks(units[0].pts_ns), &samples);
    }
    out
}

fn probe(path: &Path) -> (usize, Vec<f64>) {
    let text = run(Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-count_frames",
            "-show_entries",
            "stream=codec_name,width,height,nb_read_frames",
        ])
        .args(["-show_entries", "packet=pts_time", "-of", "csv=p=0"])
        .arg(path));
    let line = text.lines().find_map(|line| line.strip_prefix("h264,320,180,")).expect(&text);
    (line.parse().unwrap(), text.lines().filter_map(|line| line.split(',').next()?.parse().ok()).collect())
}

#[test]
fn ffprobe_reads_every_picture_at_its_time() {
    if !have("ffprobe_reads_every_picture_at_its_time", &["ffmpeg", "ffprobe"]) {
        return;
    }
    let scratch = Scratch::new("mp4");
    let units = encode(&scratch.0, (320, 180), 100, 50, 0);
    let path = scratch.join("a.mp4");
    for group in [1, 7, 100] {
        std::fs::write(&path, file(&units, group)).unwrap();
        let (frames, times) = probe(&path);
        assert_eq!((frames, times.len()), (100, 100));
        for (n, time) in times.iter().enumerate() {
            assert!((time - 0.04 * n as f64).abs() < 0.0001, "{group}: {time} for {n}");
        }
    }
    // A file that breaks off is good up to its last whole fragment.
    let whole = file(&units, 1);
    std::fs::write(&path, &whole[..whole.len() * 2 / 3]).unwrap();
    assert!(probe(&path).0 > 50);
}

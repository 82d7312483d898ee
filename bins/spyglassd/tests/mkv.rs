//! The Matroska writer, read by programs that are not ours.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::process::Command;

use spyglassd::h264::Header;
use spyglassd::mkv;
use support::{Scratch, encode, have, run};

/// A stream of clusters, each `gop` frames long.
fn file(units: &[spyglassd::unit::Unit]) -> Vec<u8> {
    let mut out = Vec::new();
    mkv::header(&mut out, &Header::of(&units[0].data).unwrap(), [7; 16]);
    let mut start = 0;
    for unit in units {
        if unit.key {
            start = unit.wall_ms;
            mkv::tags(&mut out, [("place", "gate 4")]);
            mkv::cluster(&mut out, start);
        }
        mkv::simple_block(&mut out, i16::try_from(unit.wall_ms - start).unwrap(), unit.key, &unit.data);
    }
    mkv::end_of_fragment(&mut out);
    out
}

#[test]
fn mkvinfo_and_ffprobe_read_what_was_written() {
    if !have("mkvinfo_and_ffprobe_read_what_was_written", &["ffmpeg", "ffprobe", "mkvinfo"]) {
        return;
    }
    let scratch = Scratch::new("mkv");
    let units = encode(&scratch.0, (320, 180), 100, 50, 1_700_000_000_000);
    let path = scratch.join("a.mkv");
    std::fs::write(&path, file(&units)).unwrap();

    let info = run(Command::new("mkvinfo").args(["--ui-language", "en_US", "-v", "-v"]).arg(&path));
    let count = |text: &str| info.matches(text).count();
    assert_eq!((count("+ Segment: size unknown"), count("+ Cluster timestamp")), (1, 2), "{info}");
    for text in
        ["V_MPEG4/ISO/AVC", "Pixel width: 320", "Pixel height: 180", "Timestamp scale: 1000000", "gate 4"]
    {
        assert!(info.contains(text), "{text} is missing in\n{info}");
    }
    assert!(info.contains(mkv::END_OF_FRAGMENT) && count("Simple block: key") == 2, "{info}");
    for absent in ["EBML void", "Cues", "Seek head", "(unknown element"] {
        assert!(!info.contains(absent), "{absent} is in\n{info}");
    }

    let probe = run(Command::new("ffprobe")
        .args([
            "-v",
            "error",
            "-count_frames",
            "-show_entries",
            "stream=codec_name,width,height,nb_read_frames",
        ])
        .args(["-show_entries", "packet=pts_time,flags", "-of", "csv=p=0"])
        .arg(&path));
    assert!(probe.contains("h264,320,180,100"), "every frame decodes: {probe}");
    let times: Vec<f64> = probe.lines().filter_map(|line| line.split(',').next()?.parse().ok()).collect();
    assert_eq!(times.len(), 100, "{probe}");
    for (unit, time) in units.iter().zip(&times) {
        assert!((time * 1000.0 - unit.wall_ms as f64).abs() < 0.6, "{time} for {}", unit.wall_ms);
    }
}

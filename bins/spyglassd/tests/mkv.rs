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

/// Frames of any sizes, kinds and distances: what ffprobe finds are these frames. `EDGE_SEED=n` replays one.
#[test]
fn any_frames_are_found_again_by_ffprobe() {
    if !have("any_frames_are_found_again_by_ffprobe", &["ffmpeg", "ffprobe"]) {
        return;
    }
    let scratch = Scratch::new("mkv-any");
    let real = encode(&scratch.0, (320, 180), 2, 2, 0);
    let seeds = match std::env::var("EDGE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..12_u64,
    };
    for seed in seeds {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut out, mut at, mut start) = (Vec::new(), rng.u64(..=1 << 41), 0);
        mkv::header(&mut out, &Header::of(&real[0].data).unwrap(), rng.u128(..).to_be_bytes());
        let mut expected = Vec::new();
        for n in 0..rng.usize(1..300) {
            at += rng.u64(1..200);
            let key = n == 0 || rng.u8(..10) == 0 || at - start > 10_000;
            // Slices of noise without zeros, so that no start code is in them.
            let mut data = if key { real[0].data.to_vec() } else { Vec::new() };
            for _ in 0..rng.usize(1..4) {
                data.extend_from_slice(&[0, 0, 0, 1, if key { 0x65 } else { 0x41 }]);
                let length = if rng.u8(..20) == 0 { 70_000 } else { 300 };
                data.extend((0..rng.usize(1..length)).map(|_| rng.u8(1..)));
            }
            if key {
                start = at;
                if rng.bool() {
                    mkv::end_of_fragment(&mut out);
                }
                mkv::cluster(&mut out, start);
            }
            mkv::simple_block(&mut out, i16::try_from(at - start).unwrap(), key, &data);
            expected.push(format!(
                "{at},{},{}",
                spyglassd::h264::sample_len(&data),
                if key { "K" } else { "_" }
            ));
        }
        let path = scratch.join("any.mkv");
        std::fs::write(&path, &out).unwrap();
        let found = run(Command::new("ffprobe")
            .args(["-v", "error", "-show_entries", "packet=pts,size,flags", "-of", "csv=p=0"])
            .arg(&path));
        // ffprobe takes a slice of noise that looks like an intra slice for a key frame as well.
        let parts = |line: &str| {
            let mut fields = line.split(',');
            let (pts, size) = (fields.next().unwrap().to_owned(), fields.next().unwrap().to_owned());
            (pts, size, fields.next().unwrap().starts_with('K'))
        };
        let found: Vec<_> = found.lines().map(parts).collect();
        let expected: Vec<_> = expected.iter().map(|line| parts(line)).collect();
        assert_eq!(found.len(), expected.len(), "EDGE_SEED={seed}");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((&found.0, &found.1), (&expected.0, &expected.1), "EDGE_SEED={seed}");
            assert!(found.2 || !expected.2, "EDGE_SEED={seed}: {} is a key frame", expected.0);
        }
    }
}

//! The encoder with pictures made here: times, key frames, sizes, slots given back.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use gst_video::VideoFormat;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::*;
use crate::frames::geometry::{Format, Layout};
use crate::frames::ring::Ring;
use crate::pipeline::chain::Fit;
use crate::pipeline::picture::{video_format, wrap};

fn settings() -> Settings {
    Settings {
        kind: Kind::X264,
        preset: "superfast".to_owned(),
        threads: 1,
        bitrate_kbit: 500,
        gop_frames: 250,
        fit: Fit::Letterbox,
    }
}

fn shape(format: VideoFormat, size: (u32, u32)) -> Shape {
    Shape { format, size, fps: (0, 1) }
}

fn encoder(shape: Shape, queue: u32) -> (Encoder, Receiver<Output>) {
    let (tx, rx) = channel();
    let encoder = Encoder::new(&settings(), shape, None, queue, move |out| {
        let _ = tx.send(out);
    });
    (encoder.unwrap(), rx)
}

fn stamp(pts_ns: u64) -> Stamp {
    Stamp { pts_ns, wall_ms: 1_000_000 + pts_ns / 1_000_000, arrived: Instant::now() }
}

fn next(rx: &Receiver<Output>) -> Unit {
    match rx.recv_timeout(Duration::from_secs(20)).unwrap() {
        Output::Unit(unit, _) => unit,
        Output::Failed(why) => panic!("{why}"),
    }
}

/// A picture of noise, so that the encoder has work.
fn noise(bytes: usize, seed: u64) -> gst::Buffer {
    let mut rng = fastrand::Rng::with_seed(seed);
    gst::Buffer::from_slice((0..bytes).map(|_| rng.u8(..)).collect::<Vec<u8>>())
}

/// The types of the NAL units of an access unit.
fn nals(data: &[u8]) -> Vec<u8> {
    let starts = data.windows(4).enumerate().filter(|(_, w)| w[..3] == [0, 0, 1]);
    starts.map(|(_, w)| w[3] & 31).collect()
}

#[test]
fn a_scene_cut_is_no_key_frame() {
    crate::pipeline::init().unwrap();
    let shape = shape(VideoFormat::Gray8, (160, 120));
    let (mut encoder, rx) = encoder(shape, 32);
    let mut intra = 0;
    for n in 0..30u64 {
        assert!(encoder.push(noise(160 * 120, n), shape, stamp(n * 40_000_000)).unwrap());
        let unit = next(&rx);
        assert_eq!(unit.key, nals(&unit.data).contains(&5), "frame {n}");
        intra += usize::from(unit.key);
    }
    assert!((1..30).contains(&intra), "{intra}");
}

#[test]
fn times_pass_through_and_key_frames_come_when_asked() {
    init_gst();
    let shape = shape(VideoFormat::Bgr, (320, 180));
    let (mut encoder, rx) = encoder(shape, 100);
    // An irregular producer, far from zero.
    let times: Vec<u64> = (0..12u64).map(|n| 5_000_000_007 + n * 33_000_001 + (n % 3) * 7_777).collect();
    for (n, pts) in times.iter().enumerate() {
        if n == 7 {
            encoder.force_key();
        }
        assert!(encoder.push(noise(320 * 180 * 3, 1), shape, stamp(*pts)).unwrap());
        // The request is for the frame after it only once that reaches the encoder alone.
        let unit = next(&rx);
        assert_eq!((unit.pts_ns, unit.wall_ms), (*pts, 1_000_000 + pts / 1_000_000));
        assert_eq!(unit.key, n == 0 || n == 7, "frame {n}");
        if unit.key {
            let nals = nals(&unit.data);
            assert!(nals.contains(&7) && nals.contains(&8) && nals.contains(&5), "{nals:?}");
        }
    }
}

#[test]
fn a_slot_is_given_back_when_gstreamer_is_done() {
    init_gst();
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (ours, _theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    // Rows padded to an odd place, an odd size, an I420 picture: nothing where GStreamer would put it.
    let layout = Layout::new(Format::I420, (101, 75), 111, (4096, 4096)).unwrap();
    let ring = Ring::new(2, layout.bytes, Arc::new(ours)).unwrap();
    let shape = shape(video_format(layout.format), (101, 75));
    let (mut encoder, rx) = encoder(shape, 100);
    assert_eq!(encoder.size(), (102, 76));
    for n in 0..6u64 {
        let bytes = ring.claim((n % 2) as u32, layout.bytes).unwrap();
        assert!(encoder.push(wrap(bytes, &layout).unwrap(), shape, stamp(n * 40_000_000)).unwrap());
        next(&rx);
        let begun = Instant::now();
        while ring.in_use() > 0 {
            assert!(begun.elapsed() < Duration::from_secs(5), "a slot stays in use");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    drop(encoder);
    assert_eq!(ring.in_use(), 0);
}

#[test]
fn frames_of_another_size_fit_into_the_stream() {
    init_gst();
    let large = shape(VideoFormat::Gray8, (320, 240));
    let small = shape(VideoFormat::Gray8, (64, 100));
    let (mut encoder, rx) = encoder(large, 100);
    for (n, shape) in [large, small, large, small].into_iter().enumerate() {
        let bytes = (shape.size.0 * shape.size.1) as usize;
        assert!(encoder.push(noise(bytes, n as u64), shape, stamp(n as u64 * 40_000_000)).unwrap());
        let unit = next(&rx);
        assert!(n == 0 || !nals(&unit.data).contains(&7), "the stream keeps its size");
    }
}

#[test]
fn a_full_queue_lets_frames_go() {
    init_gst();
    let shape = shape(VideoFormat::Bgr, (1280, 720));
    let (mut encoder, rx) = encoder(shape, 2);
    let picture = noise(1280 * 720 * 3, 1);
    let taken =
        (0..30u64).filter(|n| encoder.push(picture.copy(), shape, stamp(n * 1_000_000)).unwrap()).count();
    assert!((2..30).contains(&taken), "{taken}");
    for _ in 0..taken {
        next(&rx);
    }
}

fn init_gst() {
    crate::pipeline::init().unwrap();
}

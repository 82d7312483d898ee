//! Fragmented MP4 (ISO/IEC 14496-12): what browsers take piece by piece through Media Source Extensions, and what a
//! recording is made of, since it can be played however early it breaks off.
//!
//! [`init`] once, then a [`fragment`] for one picture or a few. One H.264 track, decoding time is presentation time.
//! Pure: bytes are appended to the caller's buffer.

use crate::h264::{self, Header};

/// Ticks a second.
pub const TIMESCALE: u64 = 90_000;
const TRACK: u32 = 1;

/// One picture of a fragment.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// An access unit in Annex B.
    pub unit: &'a [u8],
    /// How long it is shown, in ticks.
    pub duration: u32,
    /// It can be decoded without those before it.
    pub key: bool,
}

/// Nanoseconds as ticks.
#[must_use]
pub fn ticks(ns: u64) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(TIMESCALE) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// A box around what `fill` writes.
fn boxed(out: &mut Vec<u8>, kind: &[u8; 4], fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(kind);
    fill(out);
    let size = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(start..start + 4) {
        field.copy_from_slice(&size.to_be_bytes());
    }
}

/// A box with version and flags.
fn full(out: &mut Vec<u8>, kind: &[u8; 4], version: u8, flags: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    boxed(out, kind, |out| {
        put32(out, &[u32::from(version) << 24 | flags]);
        fill(out);
    });
}

fn put32(out: &mut Vec<u8>, values: &[u32]) {
    for value in values {
        out.extend_from_slice(&value.to_be_bytes());
    }
}

fn put16(out: &mut Vec<u8>, values: &[u16]) {
    for value in values {
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// No rotation, no scaling (section 8.2.2).
const MATRIX: [u32; 9] = [0x1_0000, 0, 0, 0, 0x1_0000, 0, 0, 0, 0x4000_0000];

/// The initialisation segment: `ftyp` and `moov`.
pub fn init(out: &mut Vec<u8>, video: &Header) {
    boxed(out, b"ftyp", |out| {
        out.extend_from_slice(b"iso5");
        put32(out, &[512]);
        out.extend_from_slice(b"iso5iso6mp41avc1");
    });
    let timescale = u32::try_from(TIMESCALE).unwrap_or(u32::MAX);
    boxed(out, b"moov", |out| {
        full(out, b"mvhd", 0, 0, |out| {
            put32(out, &[0, 0, timescale, 0, 0x1_0000]);
            put16(out, &[0x100, 0]);
            put32(out, &[0, 0]);
            put32(out, &MATRIX);
            put32(out, &[0; 6]);
            put32(out, &[TRACK + 1]);
        });
        boxed(out, b"trak", |out| track(out, video, timescale));
        boxed(out, b"mvex", |out| full(out, b"trex", 0, 0, |out| put32(out, &[TRACK, 1, 0, 0, 0])));
    });
}

fn track(out: &mut Vec<u8>, video: &Header, timescale: u32) {
    let (width, height) = (video.sps.width, video.sps.height);
    // Enabled, and part of the presentation.
    full(out, b"tkhd", 0, 3, |out| {
        put32(out, &[0, 0, TRACK, 0, 0, 0, 0]);
        put16(out, &[0, 0, 0, 0]);
        put32(out, &MATRIX);
        put32(out, &[width << 16, height << 16]);
    });
    boxed(out, b"mdia", |out| {
        // The language is "und".
        full(out, b"mdhd", 0, 0, |out| put32(out, &[0, 0, timescale, 0, 0x55C4_0000]));
        full(out, b"hdlr", 0, 0, |out| {
            put32(out, &[0]);
            out.extend_from_slice(b"vide");
            put32(out, &[0; 3]);
            out.extend_from_slice(b"video\0");
        });
        boxed(out, b"minf", |out| {
            full(out, b"vmhd", 0, 1, |out| put32(out, &[0, 0]));
            boxed(out, b"dinf", |out| {
                full(out, b"dref", 0, 0, |out| {
                    put32(out, &[1]);
                    full(out, b"url ", 0, 1, |_| {});
                });
            });
            boxed(out, b"stbl", |out| samples(out, video));
        });
    });
}

fn samples(out: &mut Vec<u8>, video: &Header) {
    let side = |pixels: u32| u16::try_from(pixels).unwrap_or(u16::MAX);
    full(out, b"stsd", 0, 0, |out| {
        put32(out, &[1]);
        boxed(out, b"avc1", |out| {
            put16(out, &[0, 0, 0, 1]);
            put32(out, &[0; 4]);
            put16(out, &[side(video.sps.width), side(video.sps.height)]);
            // 72 dots an inch, one picture a sample, no name, no palette.
            put32(out, &[0x48_0000, 0x48_0000, 0]);
            put16(out, &[1]);
            out.extend_from_slice(&[0; 32]);
            put16(out, &[24, 0xFFFF]);
            boxed(out, b"avcC", |out| out.extend_from_slice(&video.avcc()));
        });
    });
    for kind in [b"stts", b"stsc", b"stco"] {
        full(out, kind, 0, 0, |out| put32(out, &[0]));
    }
    full(out, b"stsz", 0, 0, |out| put32(out, &[0, 0]));
}

/// Flags of a sample that others need, and of one that needs others (section 8.8.3.1).
const KEY: u32 = 0x0200_0000;
const NOT_KEY: u32 = 0x0101_0000;

/// A media segment: `moof` and `mdat`. `sequence` counts from 1; `start` is the first picture's time in ticks.
pub fn fragment(out: &mut Vec<u8>, sequence: u32, start: u64, samples: &[Sample<'_>]) {
    let begin = out.len();
    let mut offset_at = 0;
    boxed(out, b"moof", |out| {
        full(out, b"mfhd", 0, 0, |out| put32(out, &[sequence]));
        boxed(out, b"traf", |out| {
            // Offsets count from the moof.
            full(out, b"tfhd", 0, 0x2_0000, |out| put32(out, &[TRACK]));
            full(out, b"tfdt", 1, 0, |out| out.extend_from_slice(&start.to_be_bytes()));
            // Data offset; duration, size and flags of each sample.
            full(out, b"trun", 0, 0x701, |out| {
                put32(out, &[u32::try_from(samples.len()).unwrap_or(u32::MAX)]);
                offset_at = out.len();
                put32(out, &[0]);
                for sample in samples {
                    let size = u32::try_from(h264::sample_len(sample.unit)).unwrap_or(u32::MAX);
                    put32(out, &[sample.duration, size, if sample.key { KEY } else { NOT_KEY }]);
                }
            });
        });
    });
    // Behind the head of the mdat.
    let offset = u32::try_from(out.len() - begin + 8).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(offset_at..offset_at + 4) {
        field.copy_from_slice(&offset.to_be_bytes());
    }
    boxed(out, b"mdat", |out| {
        for sample in samples {
            h264::to_sample(sample.unit, out);
        }
    });
}

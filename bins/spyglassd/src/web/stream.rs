//! One stream on its way to viewers: each unit becomes an MP4 fragment once, whoever watches.
//!
//! Owns who watches, and counters. Pure but for that.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::Token;
use serde_json::{Value, json};

use super::view::Piece;
use crate::h264::Header;
use crate::mp4::{self, Sample};
use crate::unit::Unit;

/// The rate is counted over this.
const RATE: Duration = Duration::from_secs(2);
/// How long a picture is shown where the last interval is not known, in ticks, and at most.
const DURATION: u64 = 3_600;
const DURATION_MAX: u64 = 90_000;
/// From 1900, where NTP begins, to 1970, in seconds.
const NTP_S: u64 = 2_208_988_800;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Stream {
    /// Those who watch `/<name>.mp4`.
    pub viewers: BTreeSet<Token>,
    /// Those who watch `/<name>.mjpg`.
    pub jpeg_viewers: BTreeSet<Token>,
    /// Those who wait for `/<name>.jpg`, and until when.
    pub jpeg_waiting: Vec<(Token, Instant)>,
    /// Frames may come: an application is connected, or it has a source.
    pub open: bool,
    /// A viewer needs a key frame.
    pub joined: bool,
    /// The last picture, and when it was pushed.
    pub jpeg: Option<(Arc<[u8]>, Instant)>,
    /// Viewers who were too slow and lost frames, so far.
    pub skips: u64,
    header: Option<Header>,
    init: Arc<[u8]>,
    sequence: u32,
    last_ticks: Option<u64>,
    interval: u64,
    frames: u64,
    /// Frames and since when, for the rate.
    counted: Option<(Instant, u64)>,
    fps: f64,
    delay_ms: u64,
    last: Option<Instant>,
}

impl Stream {
    /// A unit, for those who watch.
    pub fn unit(&mut self, unit: &Unit, now: Instant, unix_ms: u64) -> Option<Piece> {
        self.count(unit, now, unix_ms);
        if unit.key
            && let Some(header) = Header::of(&unit.data)
            && self.header.as_ref() != Some(&header)
        {
            let mut init = Vec::new();
            mp4::init(&mut init, &header);
            self.init = init.into();
            self.header = Some(header);
        }
        self.header.as_ref()?;
        let start = mp4::ticks(unit.pts_ns);
        if let Some(last) = self.last_ticks {
            self.interval = start.saturating_sub(last).clamp(1, DURATION_MAX);
        }
        self.last_ticks = Some(start);
        // The real duration is known when the next frame comes, which is too late for this one.
        let expected = if self.interval == 0 { DURATION } else { self.interval };
        let duration = u32::try_from(expected).unwrap_or(u32::MAX);
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut bytes = Vec::with_capacity(unit.data.len() + 256);
        taken(&mut bytes, start, unit.wall_ms);
        let sample = Sample { unit: &unit.data, duration, key: unit.key };
        mp4::fragment(&mut bytes, self.sequence, start, &[sample]);
        Some(Piece { bytes: bytes.into(), key: unit.key, init: Arc::clone(&self.init) })
    }

    fn count(&mut self, unit: &Unit, now: Instant, unix_ms: u64) {
        self.frames += 1;
        self.last = Some(now);
        self.delay_ms = unix_ms.saturating_sub(unit.wall_ms);
        match self.counted {
            None => self.counted = Some((now, self.frames)),
            Some((since, frames)) if now >= since + RATE => {
                self.fps = (self.frames - frames) as f64 / (now - since).as_secs_f64();
                self.counted = Some((now, self.frames));
            }
            Some(_) => {}
        }
    }

    /// For `/streams.json`.
    pub fn to_json(&self, name: &str, now: Instant) -> Value {
        let live = self.last.is_some_and(|at| now < at + RATE);
        json!({
            "name": name,
            "live": live,
            "open": self.open,
            "fps": if live { (self.fps * 10.0).round() / 10.0 } else { 0.0 },
            "delay-ms": self.delay_ms,
            "skips": self.skips,
            "viewers": self.viewers.len() + self.jpeg_viewers.len(),
            "width": self.header.as_ref().map(|header| header.sps.width),
            "height": self.header.as_ref().map(|header| header.sps.height),
            "codec": self.header.as_ref().map(Header::codec),
        })
    }

    /// Forgets a connection.
    pub fn forget(&mut self, token: Token) {
        self.viewers.remove(&token);
        self.jpeg_viewers.remove(&token);
        self.jpeg_waiting.retain(|(waiting, _)| *waiting != token);
    }
}

/// A box that says when the frame at `ticks` was taken ("prft", ISO/IEC 14496-12 section 8.16.5): the page computes the
/// delay from it, players pass over it.
fn taken(out: &mut Vec<u8>, ticks: u64, wall_ms: u64) {
    let ntp = (wall_ms / 1000 + NTP_S) << 32 | (((wall_ms % 1000) << 32) / 1000);
    out.extend_from_slice(&32_u32.to_be_bytes());
    out.extend_from_slice(b"prft");
    out.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 1]);
    out.extend_from_slice(&ntp.to_be_bytes());
    out.extend_from_slice(&ticks.to_be_bytes());
}

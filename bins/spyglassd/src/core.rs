//! The decisions of one stream: its timeline, which frames are encoded, when key frames are due, its rate, its state.
//!
//! Owns: times and counts; no frame, no clock (`now` is passed in), no pipeline. Invariants: the times of frames that are
//! let through are strictly increasing and never further from the clock than [`DRIFT_MAX`]; nothing is let through while
//! nobody needs it; the first unit after a pause is asked to be a key frame; viewers force at most one key frame per
//! `key-interval`. One state, changed in [`Core::set`] alone.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A producer's clock may run this far from ours before its times are anchored anew.
const DRIFT_MAX: Duration = Duration::from_secs(10);
/// Frames that a rate is measured over.
const METER: usize = 61;
/// A rate is measured over this time at most.
const METER_SPAN: Duration = Duration::from_secs(4);
/// Delays that are remembered.
const DELAYS: usize = 256;

/// What the file says.
#[derive(Debug, Clone, PartialEq)]
pub struct CoreConfig {
    /// Frames at a session's beginning that are not encoded.
    pub warmup_frames: u32,
    /// Time between key frames, in nanoseconds.
    pub gop_ns: u64,
    /// Least time between key frames that viewers force, in nanoseconds.
    pub key_interval_ns: u64,
    /// Thousand bits a second; 0 = by `bits_per_pixel`.
    pub bitrate_kbit: u32,
    /// For rates that follow the picture's size and the frame rate.
    pub bits_per_pixel: f64,
    /// A producer that is silent for so long is waited for.
    pub stall: Duration,
}

/// What a stream does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No application is connected and no source is open.
    Stopped,
    /// It begins: the first frame, or the first unit, is not there yet.
    Starting,
    /// Units come out.
    Streaming,
    /// Frames come and nobody needs them, or none comes.
    Waiting,
    /// It failed, and is tried again.
    Error,
}

impl State {
    /// As it is shown.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            State::Stopped => "STOPPED",
            State::Starting => "STARTING",
            State::Streaming => "STREAMING",
            State::Waiting => "WAITING",
            State::Error => "ERROR",
        }
    }
}

/// Frames that were not encoded, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops {
    /// The application found no free slot (its own count).
    pub no_slot: u64,
    /// Nobody needed them.
    pub unwanted: u64,
    /// Warm-up.
    pub warmup: u64,
    /// The encoder was behind.
    pub slow: u64,
    /// The encoder had failed.
    pub failed: u64,
}

/// Counts since the stream's beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that came.
    pub frames: u64,
    /// Units that left.
    pub units: u64,
    /// Of them, key frames.
    pub keys: u64,
    /// Bytes of all units.
    pub bytes: u64,
    /// Producers that came.
    pub sessions: u64,
    /// Drops.
    pub drops: Drops,
}

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Let it go.
    Skip,
    /// Encode it.
    Encode {
        /// Its time on the stream's timeline.
        pts_ns: u64,
        /// Ask for a key frame before it.
        key: bool,
    },
}

/// One stream.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    state: State,
    why: String,
    since_ms: u64,
    epoch: Option<Instant>,
    /// What is added to a session's times, in nanoseconds.
    offset_ns: Option<i128>,
    last_ns: Option<u64>,
    last_frame: Option<Instant>,
    warmed: u32,
    paused: bool,
    key_wanted: bool,
    last_key_ns: u64,
    last_forced_ns: Option<u64>,
    no_slot_before: u64,
    fps_in: Meter,
    fps_out: Meter,
    delays_us: VecDeque<u64>,
    counts: Counts,
}

impl Core {
    /// A stream that nobody feeds yet. `wall_ms`: Unix time.
    #[must_use]
    pub fn new(config: CoreConfig, wall_ms: u64) -> Core {
        Core {
            config,
            state: State::Stopped,
            why: "no application has connected yet".to_owned(),
            since_ms: wall_ms,
            epoch: None,
            offset_ns: None,
            last_ns: None,
            last_frame: None,
            warmed: 0,
            paused: true,
            key_wanted: false,
            last_key_ns: 0,
            last_forced_ns: None,
            no_slot_before: 0,
            fps_in: Meter::default(),
            fps_out: Meter::default(),
            delays_us: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// The state, why, and since when (Unix time in milliseconds).
    #[must_use]
    pub fn state(&self) -> (State, &str, u64) {
        (self.state, &self.why, self.since_ms)
    }

    /// The counts.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Frames a second, in and out, measured up to `now`.
    #[must_use]
    pub fn fps(&self, now: Instant) -> (f64, f64) {
        (self.fps_in.rate(now), self.fps_out.rate(now))
    }

    /// The `part`-th (0 to 1) of the last delays from a frame's arrival to its unit, in microseconds.
    #[must_use]
    pub fn delay_us(&self, part: f64) -> Option<u64> {
        let mut sorted: Vec<u64> = self.delays_us.iter().copied().collect();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        sorted.get((last as f64 * part.clamp(0.0, 1.0)).round() as usize).copied()
    }

    /// The one place where the state changes.
    pub fn set(&mut self, state: State, why: &str, wall_ms: u64) {
        if self.state != state {
            self.since_ms = wall_ms;
        }
        if self.state != state || self.why != why {
            self.state = state;
            why.clone_into(&mut self.why);
        }
    }

    /// A producer begins, or a source is opened.
    pub fn begin(&mut self, wall_ms: u64) {
        self.offset_ns = None;
        self.last_frame = None;
        self.warmed = 0;
        self.no_slot_before = self.counts.drops.no_slot;
        self.fps_in = Meter::default();
        self.counts.sessions += 1;
        self.paused = true;
        self.set(State::Starting, "the first frame is waited for", wall_ms);
    }

    /// The producer's clock begins again: its next frame is now.
    pub fn rewound(&mut self) {
        self.offset_ns = None;
    }

    /// The producer is gone.
    pub fn end(&mut self, why: &str, wall_ms: u64) {
        self.offset_ns = None;
        self.last_frame = None;
        self.set(State::Stopped, why, wall_ms);
    }

    /// A viewer came: a key frame soon.
    pub fn want_key(&mut self) {
        self.key_wanted = true;
    }

    /// A frame arrived at `now`. `pts_ns`: its time on the producer's clock, `None` = now. `dropped`: the producer's
    /// own count of frames that it dropped in this session. `wanted`: somebody needs it.
    pub fn frame(
        &mut self,
        pts_ns: Option<u64>,
        dropped: u64,
        wanted: bool,
        now: Instant,
        wall_ms: u64,
    ) -> Verdict {
        self.counts.frames += 1;
        self.counts.drops.no_slot = self.no_slot_before.saturating_add(dropped);
        self.last_frame = Some(now);
        let pts_ns = self.place(pts_ns, now);
        self.fps_in.add(now);
        if self.warmed < self.config.warmup_frames {
            self.warmed += 1;
            self.counts.drops.warmup += 1;
            return Verdict::Skip;
        }
        if !wanted {
            self.counts.drops.unwanted += 1;
            self.paused = true;
            self.set(State::Waiting, "nobody watches", wall_ms);
            return Verdict::Skip;
        }
        if matches!(self.state, State::Waiting | State::Stopped) {
            self.set(State::Starting, "the first unit is being encoded", wall_ms);
        }
        let key = self.key_due(pts_ns);
        if key {
            self.last_forced_ns = Some(pts_ns);
            self.key_wanted = false;
        }
        self.paused = false;
        Verdict::Encode { pts_ns, key }
    }

    /// The frame that was let through was not taken.
    pub fn not_taken(&mut self, failed: bool) {
        let drops = &mut self.counts.drops;
        *(if failed { &mut drops.failed } else { &mut drops.slow }) += 1;
    }

    /// A unit came out, `took_us` after its frame arrived.
    pub fn unit(&mut self, pts_ns: u64, key: bool, bytes: usize, took_us: u64, now: Instant, wall_ms: u64) {
        self.counts.units += 1;
        self.counts.bytes += bytes as u64;
        if key {
            self.counts.keys += 1;
            self.last_key_ns = pts_ns;
        }
        if self.delays_us.len() >= DELAYS {
            self.delays_us.pop_front();
        }
        self.delays_us.push_back(took_us);
        self.fps_out.add(now);
        if self.state != State::Stopped {
            self.set(State::Streaming, "", wall_ms);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant, wall_ms: u64) {
        let silent = self.last_frame.is_some_and(|at| now.saturating_duration_since(at) >= self.config.stall);
        if silent && matches!(self.state, State::Streaming | State::Waiting | State::Starting) {
            self.set(State::Waiting, "no frame comes from the application", wall_ms);
        }
    }

    /// The rate to set, in thousand bits a second, for pictures of `size`. `told`: the frame rate that the encoder was
    /// told; it spends its bits by it, and the true one may be another.
    #[must_use]
    pub fn bitrate_kbit(&self, size: (u32, u32), told: f64) -> u32 {
        let fps = self.fps_in.steady().unwrap_or(told).clamp(1.0, 1000.0);
        let pixels = f64::from(size.0) * f64::from(size.1);
        let wanted = match self.config.bitrate_kbit {
            0 => self.config.bits_per_pixel * pixels * fps / 1000.0,
            fixed => f64::from(fixed),
        };
        (wanted * told / fps).clamp(16.0, 1_000_000.0).round() as u32
    }

    /// Most frames between key frames for a stream of `told` frames a second: the fence behind [`Core::frame`]'s own
    /// key frames, which come by time.
    #[must_use]
    pub fn gop_frames(&self, told: f64) -> u32 {
        (self.config.gop_ns as f64 / 1e9 * told * 2.0).clamp(2.0, 100_000.0).ceil() as u32
    }

    fn key_due(&self, pts_ns: u64) -> bool {
        if self.paused {
            return true;
        }
        let forced = self.last_forced_ns.unwrap_or(0);
        let since = pts_ns.saturating_sub(self.last_key_ns.max(forced));
        since >= self.config.gop_ns || (self.key_wanted && since >= self.config.key_interval_ns)
    }

    /// Puts a frame on the timeline.
    fn place(&mut self, pts_ns: Option<u64>, now: Instant) -> u64 {
        let epoch = *self.epoch.get_or_insert(now);
        let clock = i128::try_from(now.saturating_duration_since(epoch).as_nanos()).unwrap_or(i128::MAX);
        let placed = match pts_ns {
            None => clock,
            Some(pts) => {
                let pts = i128::from(pts);
                let offset = *self.offset_ns.get_or_insert(clock - pts);
                let placed = pts + offset;
                let drift = i128::try_from(DRIFT_MAX.as_nanos()).unwrap_or(i128::MAX);
                if (placed - clock).abs() > drift {
                    self.offset_ns = Some(clock - pts);
                    clock
                } else {
                    placed
                }
            }
        };
        let floor = self.last_ns.map_or(0, |last| last + 1);
        let placed = u64::try_from(placed).unwrap_or(0).max(floor);
        self.last_ns = Some(placed);
        placed
    }
}

/// A frame rate, from the times of the last frames.
#[derive(Debug, Default)]
struct Meter(VecDeque<Instant>);

impl Meter {
    fn add(&mut self, now: Instant) {
        if self.0.len() >= METER {
            self.0.pop_front();
        }
        self.0.push_back(now);
        while self.0.front().is_some_and(|at| now.saturating_duration_since(*at) > METER_SPAN)
            && self.0.len() > 2
        {
            self.0.pop_front();
        }
    }

    fn rate(&self, now: Instant) -> f64 {
        match (self.0.front(), self.0.back()) {
            (Some(first), Some(last))
                if now.saturating_duration_since(*last) < METER_SPAN && first < last =>
            {
                (self.0.len() - 1) as f64 / last.saturating_duration_since(*first).as_secs_f64()
            }
            _ => 0.0,
        }
    }

    /// The rate once it can be relied on.
    fn steady(&self) -> Option<f64> {
        let last = *self.0.back()?;
        (self.0.len() >= 15
            || self.0.front().is_some_and(|f| last.saturating_duration_since(*f) > METER_SPAN / 2))
        .then(|| self.rate(last))
        .filter(|rate| *rate > 0.0)
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

//! Units become fragments: when one begins, when it ends, and what time it has.
//!
//! A fragment is a cluster of the Matroska stream: it begins on a key frame, lasts about as long as configured, never
//! longer than the service takes. A [`Run`] is a stretch of fragments that one connection may carry: the same parameter
//! sets, and times that only grow. Another picture size, or a clock that was set, begins a new run.
//!
//! Pure: no I/O, no clock.

use std::sync::Arc;

use crate::h264::Header;
use crate::mkv;
use crate::unit::Unit;

/// A fragment's cluster may begin this much before the configured duration is full, so that a key frame that comes a
/// little early doesn't double it, in milliseconds.
const EARLY_MS: u64 = 250;
/// A key frame is asked for this long before a fragment would get too long, in milliseconds.
const ASK_MS: u64 = 2_500;
/// Where the clock and the stream's own time differ by more than this, the clock was set, in milliseconds.
const CLOCK_SET_MS: u64 = 2_000;
/// Bytes around a frame in its block, at most.
const BLOCK_BYTES_MAX: usize = 16;

/// Bounds of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long it is to be, in milliseconds: 1000 to 10 000.
    pub duration_ms: u64,
    /// How long it may get, in milliseconds: at most 10 000.
    pub duration_ms_max: u64,
    /// How large it may get, in bytes: at most 50 MB.
    pub bytes_max: usize,
}

/// What fragments on one connection have in common.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// Counts up.
    pub id: u64,
    /// The parameter sets.
    pub header: Header,
}

/// How a fragment ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has not.
    Open,
    /// A key frame followed.
    Next,
    /// Nothing followed at once: the service has to be told.
    Pause,
}

/// A fragment.
#[derive(Debug)]
pub struct Fragment {
    /// Counts up, without gaps at first.
    pub seq: u64,
    /// What it shares with its neighbours.
    pub run: Arc<Run>,
    /// When its first frame was taken, in milliseconds of Unix time.
    pub start_ms: u64,
    /// From its first frame to its last, in milliseconds.
    pub length_ms: u64,
    /// Its frames.
    pub frames: u32,
    /// Its SimpleBlocks.
    pub blocks: Vec<u8>,
    /// How it ended.
    pub end: End,
}

/// What became of a unit.
#[derive(Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was added to the open fragment.
    Added,
    /// It is not sent: a key frame must come first.
    NoKey,
    /// It begins a fragment (boxed: it is much larger than the others). Before it, the open one has ended.
    Begins(Box<Begin>),
}

/// How a fragment begins.
#[derive(Debug, PartialEq, Eq)]
pub struct Begin {
    /// As in [`Fragment`].
    pub run: Arc<Run>,
    /// As in [`Fragment`].
    pub start_ms: u64,
}

/// Decides where fragments begin and end. The open one is the caller's, last in its ring.
#[derive(Debug)]
pub struct Cutter {
    limits: Limits,
    run: Option<Arc<Run>>,
    runs: u64,
    /// Unix time at the stream's time 0, in milliseconds.
    epoch_ms: i64,
    /// The earliest time that the next frame of the run may have, in milliseconds of Unix time.
    next_ms: u64,
    open: bool,
    key_wanted: bool,
    /// A key frame was asked for on behalf of the open fragment.
    asked: bool,
}

impl Cutter {
    /// Runs are numbered from `first_run` on.
    #[must_use]
    pub fn new(limits: Limits, first_run: u64) -> Cutter {
        Cutter {
            limits,
            run: None,
            runs: first_run,
            epoch_ms: 0,
            next_ms: 0,
            open: false,
            key_wanted: true,
            asked: false,
        }
    }

    /// True once each time a key frame would help.
    pub fn take_key_wanted(&mut self) -> bool {
        std::mem::take(&mut self.key_wanted)
    }

    /// A key frame would help.
    pub fn want_key(&mut self) {
        self.key_wanted = true;
    }

    /// A unit. `open` is the fragment that [`Pushed::Begins`] made last, if it has not ended.
    pub fn push(&mut self, unit: &Unit, open: Option<&mut Fragment>) -> Pushed {
        let open = open.filter(|_| self.open);
        if unit.key
            && let Some(header) = Header::of(&unit.data)
        {
            let at_ms = self.time(unit, &header);
            if let Some(open) = open {
                let full = at_ms.saturating_sub(open.start_ms) + EARLY_MS >= self.limits.duration_ms;
                let same = self.run.as_ref().is_some_and(|run| Arc::ptr_eq(run, &open.run));
                if same && !full && self.fits(open, unit, at_ms) {
                    self.add(open, unit, at_ms);
                    return Pushed::Added;
                }
                open.end = End::Next;
            }
            return match &self.run {
                Some(run) => {
                    let run = Arc::clone(run);
                    (self.open, self.asked) = (true, false);
                    Pushed::Begins(Box::new(Begin { run, start_ms: at_ms }))
                }
                None => Pushed::NoKey,
            };
        }
        let Some(open) = open else { return Pushed::NoKey };
        let at_ms = self.later(unit);
        if !self.fits(open, unit, at_ms) {
            self.pause(open);
            return Pushed::NoKey;
        }
        self.add(open, unit, at_ms);
        Pushed::Added
    }

    /// Adds the unit to the fragment that it begins.
    pub fn begin(&mut self, open: &mut Fragment, unit: &Unit) {
        self.add(open, unit, open.start_ms);
    }

    /// Nothing follows for now: the open fragment ends, and a key frame is to come next.
    pub fn pause(&mut self, open: &mut Fragment) {
        if self.open {
            open.end = End::Pause;
            self.abandon();
        }
    }

    /// The open fragment is gone: the next frame that counts is a key frame.
    pub fn abandon(&mut self) {
        (self.open, self.key_wanted) = (false, true);
    }

    fn fits(&self, open: &Fragment, unit: &Unit, at_ms: u64) -> bool {
        let length = at_ms.saturating_sub(open.start_ms);
        let bytes = open.blocks.len() + unit.data.len() + BLOCK_BYTES_MAX;
        length <= self.limits.duration_ms_max && bytes <= self.limits.bytes_max
    }

    fn add(&mut self, open: &mut Fragment, unit: &Unit, at_ms: u64) {
        open.length_ms = at_ms.saturating_sub(open.start_ms);
        // A fragment lasts 10 s at most, so that this always fits.
        let offset = i16::try_from(open.length_ms).unwrap_or(i16::MAX);
        mkv::simple_block(&mut open.blocks, offset, unit.key, &unit.data);
        open.frames += 1;
        self.next_ms = at_ms + 1;
        if open.length_ms + ASK_MS >= self.limits.duration_ms_max && !self.asked {
            (self.key_wanted, self.asked) = (true, true);
        }
    }

    /// The time of a unit within the run.
    fn later(&self, unit: &Unit) -> u64 {
        let at = self.epoch_ms.saturating_add(pts_ms(unit));
        u64::try_from(at).unwrap_or(0).max(self.next_ms)
    }

    /// The time of a key frame; it begins a new run where that must be.
    fn time(&mut self, unit: &Unit, header: &Header) -> u64 {
        let wall = i64::try_from(unit.wall_ms).unwrap_or(i64::MAX);
        let off = wall.abs_diff(self.epoch_ms.saturating_add(pts_ms(unit)));
        let same = self.run.as_ref().is_some_and(|run| run.header == *header);
        if !same || off > CLOCK_SET_MS {
            self.epoch_ms = wall.saturating_sub(pts_ms(unit));
            self.next_ms = 0;
            self.run = Some(Arc::new(Run { id: self.runs, header: header.clone() }));
            self.runs += 1;
        }
        self.later(unit)
    }
}

fn pts_ms(unit: &Unit) -> i64 {
    i64::try_from(unit.pts_ns / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A unit whose parameter sets are those of `size` and whose slice has `bytes`.
    fn unit(ms: u64, wall_ms: u64, key: bool, bytes: usize, sps: &[u8]) -> Unit {
        let mut data = Vec::new();
        if key {
            for set in [sps, &[0x68, 0xCE, 0x0F, 0xC8]] {
                data.extend_from_slice(&[0, 0, 0, 1]);
                data.extend_from_slice(set);
            }
        }
        data.extend_from_slice(&[0, 0, 0, 1, if key { 0x65 } else { 0x41 }]);
        data.resize(data.len() + bytes, 0x55);
        Unit { pts_ns: ms * 1_000_000, wall_ms, key, data: data.into() }
    }

    const SMALL: &[u8] = &[0x67, 0x42, 0xC0, 0x1E, 0xDA, 0x02, 0x80, 0xF6, 0xC0, 0x44];
    const OTHER: &[u8] = &[0x67, 0x42, 0xC0, 0x1F, 0xDA, 0x02, 0x80, 0xF6, 0xC0, 0x44];

    struct Rig {
        cutter: Cutter,
        fragments: Vec<Fragment>,
        lost: usize,
    }

    impl Rig {
        fn new() -> Rig {
            let limits = Limits { duration_ms: 2000, duration_ms_max: 10_000, bytes_max: 100_000 };
            Rig { cutter: Cutter::new(limits, 0), fragments: Vec::new(), lost: 0 }
        }

        fn push(&mut self, unit: &Unit) {
            match self.cutter.push(unit, self.fragments.last_mut()) {
                Pushed::Added => {}
                Pushed::NoKey => self.lost += 1,
                Pushed::Begins(begin) => {
                    let (seq, end) = (self.fragments.len() as u64, End::Open);
                    let Begin { run, start_ms } = *begin;
                    let mut new =
                        Fragment { seq, run, start_ms, length_ms: 0, frames: 0, blocks: Vec::new(), end };
                    self.cutter.begin(&mut new, unit);
                    self.fragments.push(new);
                }
            }
        }

        fn seen(&self) -> Vec<(u64, u64, u32, End)> {
            self.fragments.iter().map(|f| (f.start_ms, f.length_ms, f.frames, f.end)).collect()
        }
    }

    #[test]
    fn fragments_are_cut_on_key_frames_at_the_duration() {
        let mut rig = Rig::new();
        rig.push(&unit(0, 500, false, 10, SMALL));
        assert!(rig.cutter.take_key_wanted() && !rig.cutter.take_key_wanted());
        // A key frame every 400 ms, then one a little early.
        for ms in (0..4000).step_by(200) {
            let ms = if ms == 2000 { 1990 } else { ms };
            rig.push(&unit(ms, 1000 + ms, ms % 400 == 0 || ms == 1990, 10, SMALL));
        }
        assert_eq!(rig.lost, 1);
        assert_eq!(rig.seen(), [(1000, 1800, 10, End::Next), (2990, 1810, 10, End::Open)]);
        assert_eq!(rig.fragments[0].run.id, rig.fragments[1].run.id);
    }

    #[test]
    fn without_key_frames_one_is_asked_for_and_then_the_fragment_ends() {
        let mut rig = Rig::new();
        rig.push(&unit(0, 0, true, 10, SMALL));
        assert!(rig.cutter.take_key_wanted());
        let mut asked = None;
        for ms in (500..12_000).step_by(500) {
            rig.push(&unit(ms, ms, false, 10, SMALL));
            if rig.cutter.take_key_wanted() && asked.is_none() {
                asked = Some(ms);
            }
        }
        assert_eq!(asked, Some(7500));
        assert_eq!((rig.seen(), rig.lost), (vec![(0, 10_000, 21, End::Pause)], 3));
        // The same by size.
        let mut rig = Rig::new();
        rig.push(&unit(0, 0, true, 60_000, SMALL));
        rig.push(&unit(40, 40, false, 60_000, SMALL));
        assert_eq!((rig.seen(), rig.lost), (vec![(0, 0, 1, End::Pause)], 1));
        assert!(rig.cutter.take_key_wanted());
    }

    #[test]
    fn another_size_and_a_set_clock_begin_new_runs() {
        let mut rig = Rig::new();
        rig.push(&unit(0, 10_000, true, 10, SMALL));
        rig.push(&unit(2000, 12_000, true, 10, OTHER));
        rig.push(&unit(4000, 14_900, true, 10, OTHER));
        rig.push(&unit(6000, 3_000, true, 10, OTHER));
        rig.push(&unit(6040, 3_040, false, 10, OTHER));
        rig.push(&unit(8000, 900_000, true, 10, OTHER));
        let runs: Vec<_> = rig.fragments.iter().map(|f| (f.run.id, f.start_ms)).collect();
        assert_eq!(runs, [(0, 10_000), (1, 12_000), (1, 14_000), (2, 3_000), (3, 900_000)]);
        assert_eq!(rig.fragments[3].length_ms, 40);
    }

    #[test]
    fn a_pause_ends_the_fragment_and_times_only_grow() {
        let mut rig = Rig::new();
        rig.push(&unit(0, 0, true, 10, SMALL));
        rig.push(&unit(0, 0, false, 10, SMALL));
        rig.cutter.take_key_wanted();
        rig.cutter.pause(rig.fragments.last_mut().unwrap());
        assert!(rig.cutter.take_key_wanted());
        rig.push(&unit(40, 40, false, 10, SMALL));
        rig.push(&unit(80, 80, true, 10, SMALL));
        assert_eq!((rig.seen(), rig.lost), (vec![(0, 1, 2, End::Pause), (80, 0, 1, End::Open)], 1));
    }
}

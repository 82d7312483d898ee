//! When to sync, and what changed until then. Pure: no clock, no files, no threads.
//!
//! A save is rarely one event: editors write, rename and set modes; a checkout touches a thousand files. A batch is due
//! when nothing was reported for the quiet time, and during a storm at the latest after the longest time.
//!
//! Invariants: one batch is out at a time; every change is in the batch out, in the next one, or both; a batch that came
//! to nothing gives its changes back.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// More changed paths than this are "everything": a full rescan costs less than the list.
const PATHS_MAX: usize = 4096;

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// These paths.
    Paths(BTreeSet<PathBuf>),
    /// Not known: anything may have.
    All,
}

impl Default for Changes {
    fn default() -> Changes {
        Changes::Paths(BTreeSet::new())
    }
}

impl Changes {
    /// One path.
    #[must_use]
    pub fn one(path: PathBuf) -> Changes {
        Changes::Paths(BTreeSet::from([path]))
    }

    /// Nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        matches!(self, Changes::Paths(paths) if paths.is_empty())
    }

    /// Adds what else changed.
    pub fn merge(&mut self, other: Changes) {
        match (&mut *self, other) {
            (Changes::Paths(mine), Changes::Paths(theirs)) => {
                mine.extend(theirs);
                if mine.len() > PATHS_MAX {
                    *self = Changes::All;
                }
            }
            _ => *self = Changes::All,
        }
    }

    /// The paths, if they are known.
    pub fn paths(&self) -> Option<impl Iterator<Item = &Path>> {
        match self {
            Changes::Paths(paths) => Some(paths.iter().map(PathBuf::as_path)),
            Changes::All => None,
        }
    }
}

/// What one sync is to carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What was saved since the last batch was taken; what a person wants to see named.
    pub saved: Changes,
    /// What a batch that failed had left.
    pub carried: Changes,
    /// When the first of `saved` was reported.
    pub since: Instant,
}

impl Batch {
    /// Both.
    #[must_use]
    pub fn all(&self) -> Changes {
        let mut all = self.carried.clone();
        all.merge(self.saved.clone());
        all
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Debounce {
    quiet: Duration,
    longest: Duration,
    saved: Changes,
    carried: Changes,
    /// First and last report since the last batch was taken.
    times: Option<(Instant, Instant)>,
    /// A batch that failed for want of a device is due again then; saves meanwhile wait for it, too.
    retry_at: Option<Instant>,
    out: bool,
}

impl Debounce {
    /// A batch is due `quiet` after the last report, `longest` after the first.
    #[must_use]
    pub fn new(quiet: Duration, longest: Duration) -> Debounce {
        Debounce {
            quiet,
            longest: longest.max(quiet),
            saved: Changes::default(),
            carried: Changes::default(),
            times: None,
            retry_at: None,
            out: false,
        }
    }

    /// Something changed.
    pub fn report(&mut self, changes: Changes, now: Instant) {
        if changes.is_empty() {
            return;
        }
        self.saved.merge(changes);
        let first = self.times.map_or(now, |(first, _)| first);
        self.times = Some((first, now));
    }

    /// When [`Debounce::take`] will give a batch; `None` while nothing is to do, or one is out.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if self.out {
            return None;
        }
        if self.retry_at.is_some() {
            return self.retry_at;
        }
        self.times.map(|(first, last)| (last + self.quiet).min(first + self.longest))
    }

    /// The next batch, if it is due. It is out until [`Debounce::done`] or [`Debounce::failed`].
    pub fn take(&mut self, now: Instant) -> Option<Batch> {
        if self.deadline().is_none_or(|due| due > now) {
            return None;
        }
        self.out = true;
        self.retry_at = None;
        let since = self.times.take().map_or(now, |(first, _)| first);
        Some(Batch {
            saved: std::mem::take(&mut self.saved),
            carried: std::mem::take(&mut self.carried),
            since,
        })
    }

    /// The batch out is on the device.
    pub fn done(&mut self) {
        self.out = false;
    }

    /// The batch out is not on the device: its changes go into the next one, which is due at `retry_at`, or without
    /// one when something is saved.
    pub fn failed(&mut self, changes: Changes, retry_at: Option<Instant>) {
        self.out = false;
        self.carried.merge(changes);
        self.retry_at = retry_at;
    }

    /// What was waiting for its time to try again need not wait.
    pub fn retry_now(&mut self, now: Instant) {
        if self.retry_at.is_some() {
            self.retry_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn saved(batch: &Batch) -> Vec<String> {
        batch.saved.paths().unwrap().map(|p| p.display().to_string()).collect()
    }

    #[test]
    fn a_save_is_one_batch_after_the_quiet_time() {
        let t0 = Instant::now();
        let mut core = Debounce::new(50 * MS, 500 * MS);
        assert_eq!(core.deadline(), None);
        core.report(Changes::one("a".into()), t0);
        core.report(Changes::one("b".into()), t0 + 30 * MS);
        assert_eq!(core.take(t0 + 79 * MS), None);
        let batch = core.take(t0 + 80 * MS).unwrap();
        assert_eq!((saved(&batch), batch.since), (vec!["a".into(), "b".into()], t0));
        // What is saved meanwhile waits for its end, and its time counts from its save.
        core.report(Changes::one("c".into()), t0 + 90 * MS);
        assert_eq!((core.deadline(), core.take(t0 + 900 * MS)), (None, None));
        core.done();
        let batch = core.take(t0 + 900 * MS).unwrap();
        assert_eq!((saved(&batch), batch.since), (vec!["c".into()], t0 + 90 * MS));
        core.done();
        assert_eq!(core.deadline(), None);
    }

    #[test]
    fn what_failed_a_check_waits_for_the_next_save_and_what_met_no_device_does_not() {
        let t0 = Instant::now();
        let mut core = Debounce::new(50 * MS, 500 * MS);
        core.report(Changes::one("a".into()), t0);
        let batch = core.take(t0 + 50 * MS).unwrap();
        core.failed(batch.all(), None);
        assert_eq!(core.deadline(), None);
        core.report(Changes::one("b".into()), t0 + 100 * MS);
        let batch = core.take(t0 + 150 * MS).unwrap();
        assert_eq!((batch.carried.clone(), saved(&batch)), (Changes::one("a".into()), vec!["b".into()]));
        core.failed(batch.all(), Some(t0 + 1150 * MS));
        core.report(Changes::All, t0 + 200 * MS);
        assert_eq!(core.take(t0 + 1149 * MS), None);
        core.retry_now(t0 + 300 * MS);
        let batch = core.take(t0 + 300 * MS).unwrap();
        assert_eq!(batch.saved, Changes::All);
        assert_eq!(batch.carried.paths().unwrap().count(), 2);
    }

    #[test]
    fn a_long_list_is_everything() {
        let mut changes = Changes::default();
        for n in 0..=PATHS_MAX {
            changes.merge(Changes::one(format!("{n}").into()));
        }
        assert_eq!(changes, Changes::All);
    }

    /// Saves at random times against a device that fails at random: nothing is lost, nothing is early, nothing is late.
    #[test]
    fn simulation() {
        let seed = std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        for seed in seed..seed + 300 {
            simulate(&mut fastrand::Rng::with_seed(seed), seed);
        }
    }

    struct Model {
        /// Saved, and in no batch that was taken since.
        waiting: BTreeSet<PathBuf>,
        /// Saved, and not yet on the device.
        undone: BTreeSet<PathBuf>,
        first: Option<Instant>,
        last: Instant,
        out: Option<Batch>,
        free_since: Instant,
        retry_at: Option<Instant>,
    }

    fn simulate(rng: &mut fastrand::Rng, seed: u64) {
        let t0 = Instant::now();
        let (quiet, longest) = (50 * MS, 500 * MS);
        let mut core = Debounce::new(quiet, longest);
        let mut model = Model {
            waiting: BTreeSet::new(),
            undone: BTreeSet::new(),
            first: None,
            last: t0,
            out: None,
            free_since: t0,
            retry_at: None,
        };
        let pace = rng.u64(5..200);
        for tick in 0..3000u64 {
            let now = t0 + Duration::from_millis(tick);
            // The last part is quiet and the device is well, so that all ends.
            let storm = tick < 2000;
            if storm && rng.u64(0..pace) == 0 {
                let path = PathBuf::from(format!("{}", rng.u8(0..20)));
                core.report(Changes::one(path.clone()), now);
                model.waiting.insert(path.clone());
                model.undone.insert(path);
                model.first.get_or_insert(now);
                model.last = now;
            }
            if model.out.is_some() && rng.u64(0..60) == 0 {
                end_batch(rng, &mut core, &mut model, now, storm);
            }
            take_batch(&mut core, &mut model, now, (quiet, longest), seed);
        }
        // What failed its check and was not saved again is still to be done, and nothing else is.
        if let Some(batch) = model.out.take() {
            for path in batch.all().paths().unwrap() {
                model.undone.remove(path);
            }
        }
        let carried: BTreeSet<_> = core.carried.paths().unwrap().map(Path::to_owned).collect();
        assert_eq!(model.undone, carried, "seed {seed}");
        assert!(model.waiting.is_empty(), "seed {seed}");
    }

    fn end_batch(rng: &mut fastrand::Rng, core: &mut Debounce, model: &mut Model, now: Instant, storm: bool) {
        let batch = model.out.take().unwrap();
        model.free_since = now;
        model.retry_at = None;
        match if storm { rng.u8(0..4) } else { 3 } {
            0 => core.failed(batch.all(), None),
            1 => {
                let at = now + rng.u32(1..300) * MS;
                model.retry_at = Some(at);
                core.failed(batch.all(), Some(at));
            }
            _ => {
                core.done();
                for path in batch.all().paths().unwrap() {
                    // Saved again meanwhile: still to be done.
                    if !model.waiting.contains(path) {
                        model.undone.remove(path);
                    }
                }
            }
        }
    }

    fn take_batch(
        core: &mut Debounce,
        model: &mut Model,
        now: Instant,
        (quiet, longest): (Duration, Duration),
        seed: u64,
    ) {
        let due = match (model.first, model.retry_at) {
            (_, Some(at)) => Some(at),
            (Some(first), None) => Some((model.last + quiet).min(first + longest)),
            (None, None) => None,
        };
        let Some(batch) = core.take(now) else {
            let late = model.out.is_none() && due.is_some_and(|due| due.max(model.free_since) <= now);
            assert!(!late, "seed {seed}: nothing although it was due");
            return;
        };
        assert!(model.out.is_none(), "seed {seed}: two are out");
        assert!(due.is_some_and(|due| due <= now), "seed {seed}: early");
        let taken: BTreeSet<_> = batch.saved.paths().unwrap().map(Path::to_owned).collect();
        assert_eq!(taken, std::mem::take(&mut model.waiting), "seed {seed}");
        model.first = None;
        model.retry_at = None;
        model.out = Some(batch);
    }
}

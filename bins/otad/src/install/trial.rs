//! From one generation to the next, and back: every change of [`State`] is here.
//!
//! Invariants: a state is durable before what it announces is done; the commit is one rename; what follows an ending
//! (marks, quarantine, history) is done from the state, as often as it takes.

use edge::release::{Sha256, Timestamp};

use super::record::{HISTORY_MAX, QUARANTINE_MAX};
use super::record::{Record, Subject, encode, seal, short};
use super::{Ending, Error, Failure, GenId, Outcome, Quarantined, State, Store};

impl Store {
    /// Announces that `to` is going to be tried. `current` has not changed yet.
    ///
    /// # Errors
    /// A trial is going on, `to` is no whole generation, or the disk fails: the state is the old one then.
    pub fn begin_trial(&mut self, to: &GenId) -> Result<(), Error> {
        let State::Settled { current: from } = self.record.state else {
            return Err(Error::refused("an update is being tried already"));
        };
        let Some(file) = self.known.get(to).filter(|_| from != Some(*to)) else {
            return Err(Error::refused(format!("there is no generation {to} that could be tried")));
        };
        self.check_allowed(&file.manifest)?;
        let trial = Some(Subject::from(&file.manifest));
        self.put(State::Trial { from, to: *to, tries: 0, failed: None }, trial, None)
    }

    /// Makes `current` name what is tried: all apps at once.
    ///
    /// # Errors
    /// No trial was begun, or the disk fails: then the old generation is put back and the trial is over, unless the disk
    /// refuses that too (the state tells).
    pub fn switch(&mut self, now: Timestamp) -> Result<(), Error> {
        let State::Trial { to, failed: None, .. } = self.record.state else {
            return Err(Error::refused("no trial was begun"));
        };
        self.disk.relink(Some(to)).inspect_err(|error| {
            let why = format!("the switch failed: {}", edge::log::chain(error));
            if let Err(error) = self.roll_back(&why, false, now) {
                log::error!("the switch can't be taken back: {}", edge::log::chain(&error));
            }
        })
    }

    /// What is tried is well: it is what the device runs. Raises the marks, and removes what is not kept any more.
    ///
    /// # Errors
    /// `current` does not name it, or the state could not be written: the trial goes on then. What fails after the commit
    /// is logged, and done again before the next ending and at the next start.
    pub fn commit(&mut self, now: Timestamp) -> Result<(), Error> {
        let State::Trial { to, failed: None, .. } = self.record.state else {
            return Err(Error::refused("nothing is being tried"));
        };
        if self.disk.current() != Some(to) {
            return Err(Error::refused(format!("current does not name {to}: it was not switched to")));
        }
        let mut kept = self.record.kept.clone();
        kept.push(to);
        let keep = self.limits.keep_generations.max(2);
        kept.drain(..kept.len().saturating_sub(keep));
        let ending = self.ending(to, Ending::Committed, "", false, now);
        self.put_kept(State::Settled { current: Some(to) }, None, ending, kept)?;
        self.after_ending();
        Ok(())
    }

    /// Goes back. During a trial: to what ran before. Settled: to the generation before, as the operator wants it; that is
    /// refused where a committed release set a floor above it. `quarantine`: the manifest is never tried again.
    ///
    /// # Errors
    /// There is nothing to go back to; or the disk fails, and it is finished at the next start (or by asking again). Where
    /// a trial's end can't be made durable, the link goes back all the same ([`Store::is_back`]): at the next start the
    /// link tells whether the trial is abandoned or goes on, and what failed does not run until then.
    pub fn roll_back(&mut self, why: &str, quarantine: bool, now: Timestamp) -> Result<(), Error> {
        match self.record.state.clone() {
            State::Trial { failed: Some(_), .. } => {}
            State::Trial { from, to, tries, failed: None } => {
                let failed = Some(Failure { why: short(why), quarantine, at: now });
                let trial = self.record.trial.clone();
                let decided = self.put(State::Trial { from, to, tries, failed }, trial, None);
                decided.inspect_err(|_| self.go_back_undecided(from))?;
            }
            State::Settled { current } => {
                let Some(to) = current else {
                    return Err(Error::refused("nothing was installed yet: there is nothing to roll back"));
                };
                let from = Some(self.check_previous()?);
                let failed = Some(Failure { why: short(why), quarantine, at: now });
                let trial = self.known.get(&to).map(|file| Subject::from(&file.manifest));
                let kept = self.record.kept.iter().copied().filter(|id| *id != to).collect();
                self.put_kept(State::Trial { from, to, tries: 0, failed }, trial, None, kept)?;
            }
        }
        self.finish_going_back()
    }

    /// The end of a trial can't be noted: the link goes back all the same. Unless a commit before got as far as the file
    /// and only its flush failed: what is well and reads as committed stays.
    fn go_back_undecided(&self, from: Option<GenId>) {
        let noted = self.disk.read(&self.disk.path("state")).ok().flatten();
        let on_trial = noted
            .and_then(|bytes| Record::decode(&bytes))
            .is_some_and(|record| matches!(record.state, State::Trial { .. }));
        if on_trial && let Err(error) = self.disk.relink(from) {
            log::error!("the link may not last: {}", edge::log::chain(&error));
        }
    }

    /// Whether a trial is still noted, and the link is at what ran before it.
    #[must_use]
    pub fn is_back(&self) -> bool {
        matches!(self.record.state, State::Trial { from, .. } if self.disk.current() == from)
    }

    /// The generation before, if nothing forbids it.
    fn check_previous(&self) -> Result<GenId, Error> {
        let Some((id, manifest)) = self.previous() else {
            return Err(Error::refused("there is no earlier generation to roll back to"));
        };
        for item in manifest.items() {
            let floor = self.high_water(&item.app, &item.env).min_epoch;
            if item.epoch < floor {
                let (app, epoch) = (&item.app, item.epoch);
                let why = format!(
                    "can't roll back to {id}: {app} has epoch {epoch} there, and a committed release forbids less than {floor}"
                );
                return Err(Error::refused(why));
            }
        }
        Ok(*id)
    }

    /// The decision is durable: does it.
    pub(super) fn finish_going_back(&mut self) -> Result<(), Error> {
        let State::Trial { from, to, failed: Some(failed), .. } = self.record.state.clone() else {
            return Ok(());
        };
        self.disk.relink(from)?;
        let ending = self.ending(to, Ending::RolledBack, &failed.why, failed.quarantine, failed.at);
        self.put(State::Settled { current: from }, None, ending)?;
        self.after_ending();
        Ok(())
    }

    /// The power went before anything had changed.
    pub(super) fn abandon(&mut self, now: Timestamp) -> Result<(), Error> {
        let State::Trial { from, to, .. } = self.record.state else {
            return Ok(());
        };
        let ending = self.ending(to, Ending::Abandoned, "it was interrupted before the switch", false, now);
        self.put(State::Settled { current: from }, None, ending)?;
        self.after_ending();
        Ok(())
    }

    /// Counts one more start that found a trial going on, durably; how many there were.
    ///
    /// # Errors
    /// The disk fails.
    pub fn count_try(&mut self) -> Result<u8, Error> {
        let State::Trial { from, to, tries, failed: None } = self.record.state else {
            return Ok(0);
        };
        let tries = tries.saturating_add(1);
        let trial = self.record.trial.clone();
        self.put(State::Trial { from, to, tries, failed: None }, trial, None)?;
        Ok(tries)
    }

    /// Forgets that a manifest is never to be tried again. The history goes on saying what happened.
    ///
    /// # Errors
    /// The disk fails: it is quarantined as before.
    pub fn forgive(&mut self, hash: &Sha256) -> Result<(), Error> {
        // Else the ending that is still to be completed would bring it back.
        self.complete_ending()?;
        let rest: Vec<Quarantined> =
            self.quarantine.iter().filter(|known| known.hash != *hash).cloned().collect();
        self.disk.write("quarantine", &encode(&rest))?;
        self.quarantine = rest;
        Ok(())
    }

    fn ending(
        &self,
        id: GenId,
        ending: Ending,
        why: &str,
        quarantined: bool,
        at: Timestamp,
    ) -> Option<Outcome> {
        let subject = self.record.trial.clone()?;
        // Above both: a state that was made again from the link knows of none.
        let newest = self.record.last.iter().chain(self.history.back()).map(|outcome| outcome.seq).max();
        let (seq, why) = (newest.unwrap_or(0).saturating_add(1), short(why));
        Some(Outcome { seq, at, generation: id, ending, why, quarantined, subject })
    }

    fn put(&mut self, state: State, trial: Option<Subject>, last: Option<Outcome>) -> Result<(), Error> {
        let kept = self.record.kept.clone();
        self.put_kept(state, trial, last, kept)
    }

    /// The one place where the state changes. `last` stays as it is where none is given.
    fn put_kept(
        &mut self,
        state: State,
        trial: Option<Subject>,
        last: Option<Outcome>,
        kept: Vec<GenId>,
    ) -> Result<(), Error> {
        // The ending before must not be overwritten while something still has to follow from it.
        self.complete_ending()?;
        let last = last.or_else(|| self.record.last.clone());
        let record = Record { v: 1, state, kept, trial, last };
        self.disk.write("state", &seal(&record))?;
        self.record = record;
        Ok(())
    }

    /// Writes the state as it is in memory.
    pub(super) fn write_state(&self) -> Result<(), Error> {
        self.disk.write("state", &seal(&self.record))
    }

    /// What follows an ending. The ending itself is durable, so that nothing here can take it back.
    fn after_ending(&mut self) {
        self.built = None;
        let done = self.complete_ending().and_then(|()| self.remove_unused_generations());
        if let Err(error) = done {
            log::warn!("will be done again later: {}", edge::log::chain(&error));
        }
    }

    /// Brings marks, quarantine and history up to the newest ending. Doing it twice is the same as doing it once.
    pub(super) fn complete_ending(&mut self) -> Result<(), Error> {
        let Some(last) = self.record.last.clone() else { return Ok(()) };
        if self.history.back().is_some_and(|known| known.seq >= last.seq) {
            return Ok(());
        }
        if last.ending == Ending::Committed {
            self.marks.raise_by(&last.subject.apps);
            self.disk.write("highwater", &encode(&self.marks))?;
        }
        let hash = last.subject.hash;
        if last.quarantined {
            if !self.is_quarantined(&hash) {
                self.quarantine.push(Quarantined { hash, at: last.at, why: last.why.clone() });
            }
            let excess = self.quarantine.len().saturating_sub(QUARANTINE_MAX);
            self.quarantine.drain(..excess);
            self.disk.write("quarantine", &encode(&self.quarantine))?;
        }
        let mut history = self.history.clone();
        history.push_back(last);
        while history.len() > HISTORY_MAX {
            history.pop_front();
        }
        self.disk.write("history", &encode(&history))?;
        self.history = history;
        Ok(())
    }
}

//! Opening the store after whatever happened, and what the device does first when it starts.
//!
//! Invariants: nothing is guessed forward (a state that can't be read is derived from the link); a lost mark is derived
//! from everything that was committed; a try is counted durably before anything else is done with a trial.

use std::path::Path;

use edge::release::Timestamp;
use serde::de::DeserializeOwned;

use super::disk::{Disk, remove_file, remove_tree};
use super::record::{decode, encode};
use super::{
    Ending, Error, GenFile, GenId, HighWater, History, Limits, Quarantined, Record, State, Store, TRIES_MAX,
};

/// What became of a trial that was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recovered {
    /// There was none.
    #[default]
    Nothing,
    /// It had not been switched to: it is over, and nothing had changed.
    Abandoned(GenId),
    /// It was switched to, and goes on.
    Trial {
        /// What is tried.
        to: GenId,
        /// Starts that found it, this one among them if it was counted.
        tries: u8,
    },
    /// It was over, and the generation before is back.
    RolledBack(GenId),
}

/// What was found when the store was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The trial.
    pub trial: Recovered,
    /// Damage that was mended, for the log.
    pub notes: Vec<String>,
}

/// What has to be done when the device starts, before its apps do. It needs nothing but the folder.
///
/// A trial that was not switched to is over. One that was switched to is counted, and after [`TRIES_MAX`] such starts it
/// is swapped back and quarantined.
///
/// # Errors
/// Another otad runs, or the disk fails: the apps then start with what `current` names, which is whole.
pub fn recover(dir: &Path) -> Result<Recovery, Error> {
    let (mut store, mut recovery) = Store::open(dir, Limits::default())?;
    if let Recovered::Trial { to, tries } = recovery.trial {
        recovery.trial = if tries >= TRIES_MAX {
            let why = format!("it did not get well within {tries} starts");
            store.roll_back(&why, true, now())?;
            Recovered::RolledBack(to)
        } else {
            let tries = store.count_try()?;
            // After the try itself: between the two, it is counted twice rather than not at all.
            store.disk.write("counted", boot_id().as_bytes())?;
            Recovered::Trial { to, tries }
        };
    }
    Ok(recovery)
}

/// A store as it is on disk, to be looked at: nothing is made, removed or finished, and nobody is locked out.
#[derive(Debug)]
pub struct Look(Store);

impl Look {
    /// Reads it.
    ///
    /// # Errors
    /// There is no such folder, or it can't be read.
    pub fn at(dir: &Path) -> Result<Look, Error> {
        let (store, _) = Store::read(Disk::look(dir)?, Limits::default(), &mut Vec::new())?;
        Ok(Look(store))
    }

    /// [`Store::history`].
    #[must_use]
    pub fn history(&self) -> &History {
        self.0.history()
    }

    /// [`Store::verify`] of what is installed, with its name; `None`: nothing is.
    ///
    /// # Errors
    /// As [`Store::verify`].
    pub fn verify(&self) -> Result<Option<(GenId, Vec<super::Damage>)>, Error> {
        let Some((id, _)) = self.0.current() else { return Ok(None) };
        Ok(Some((*id, self.0.verify(id)?)))
    }
}

/// What the kernel calls this boot; empty where it does not tell.
#[must_use]
pub fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

fn now() -> Timestamp {
    Timestamp(i64::try_from(edge::clock::unix_ms() / 1000).unwrap_or(i64::MAX))
}

impl Store {
    /// Opens the store, makes what is missing, removes left-over temporaries, and finishes what was decided. A trial that
    /// was switched to goes on; it is not counted here.
    ///
    /// # Errors
    /// [`Error::Locked`]: another otad runs. Else the disk fails.
    pub fn open(dir: &Path, limits: Limits) -> Result<(Store, Recovery), Error> {
        let disk = Disk::open(dir)?;
        clean(&disk)?;
        let mut notes = Vec::new();
        let (mut store, derived) = Store::read(disk, limits, &mut notes)?;
        let (marks, quarantine) =
            (load(&store.disk, "highwater", &mut notes)?, load(&store.disk, "quarantine", &mut notes)?);
        store.restore_marks(marks)?;
        store.restore_quarantine(quarantine)?;
        if derived && (store.disk.current().is_some() || !notes.is_empty()) {
            store.write_state()?;
        }
        store.complete_ending()?;
        let trial = store.reconcile(&mut notes)?;
        if let Err(error) = store.remove_unused_generations() {
            notes.push(format!("unused generations stay for now: {}", edge::log::chain(&error)));
        }
        Ok((store, Recovery { trial, notes }))
    }

    /// What can be read, and whether the state had to be derived; neither marks nor quarantine. Changes nothing.
    fn read(disk: Disk, limits: Limits, notes: &mut Vec<String>) -> Result<(Store, bool), Error> {
        let history: History = load(&disk, "history", notes)?.unwrap_or_default();
        let (record, derived) = match read_state(&disk, notes)? {
            Some(record) => (record, false),
            None => (derive_state(&disk, &history)?, true),
        };
        let clock = load(&disk, "clock", notes)?.unwrap_or_default();
        let mut store = Store {
            disk,
            limits,
            record,
            marks: HighWater::default(),
            quarantine: Vec::new(),
            history,
            clock,
            known: std::collections::BTreeMap::new(),
            built: None,
            incoming: 0,
            proven: super::takeover::Proven::default(),
            looked: super::takeover::Looked::default(),
        };
        store.load_generations(notes)?;
        Ok((store, derived))
    }

    /// Whether [`recover`] counted the trial's try of this boot.
    ///
    /// # Errors
    /// The disk fails.
    pub fn recovery_counted(&self, boot: &str) -> Result<bool, Error> {
        let counted = self.disk.read(&self.disk.path("counted"))?;
        Ok(!boot.is_empty() && counted.is_some_and(|counted| counted == boot.as_bytes()))
    }

    fn load_generations(&mut self, notes: &mut Vec<String>) -> Result<(), Error> {
        let mut ids = self.record.kept.clone();
        match self.record.state {
            State::Settled { current } => ids.extend(current),
            State::Trial { from, to, .. } => ids.extend(from.into_iter().chain([to])),
        }
        for id in ids {
            match read_generation(&self.disk, &id)? {
                Some(file) => drop(self.known.insert(id, file)),
                None => notes.push(format!("gens/{id} is damaged or gone: its apps will be installed anew")),
            }
        }
        // One that can't be read is nothing to go back to, nor to link from.
        let known = &self.known;
        self.record.kept.retain(|id| known.contains_key(id));
        Ok(())
    }

    /// Marks that can't be read come from everything that was committed: too high would only refuse, too low would let an
    /// old release in.
    fn restore_marks(&mut self, marks: Option<HighWater>) -> Result<(), Error> {
        if let Some(marks) = marks {
            self.marks = marks;
            return Ok(());
        }
        for outcome in self.history.iter().filter(|outcome| outcome.ending == Ending::Committed) {
            self.marks.raise_by(&outcome.subject.apps);
        }
        for (id, file) in &self.known {
            self.marks.raise_to(&file.marks);
            if self.record.kept.contains(id) {
                let items = file.manifest.items().iter();
                items.for_each(|item| self.marks.raise(&item.app, &item.env, item.epoch, item.min_epoch));
            }
        }
        if self.marks == HighWater::default() {
            Ok(())
        } else {
            self.disk.write("highwater", &encode(&self.marks))
        }
    }

    fn restore_quarantine(&mut self, quarantine: Option<Vec<Quarantined>>) -> Result<(), Error> {
        if let Some(quarantine) = quarantine {
            self.quarantine = quarantine;
            return Ok(());
        }
        let bad = self.history.iter().filter(|outcome| outcome.quarantined);
        let entry = |outcome: &super::Outcome| Quarantined {
            hash: outcome.subject.hash,
            at: outcome.at,
            why: outcome.why.clone(),
        };
        self.quarantine = bad.map(entry).collect();
        if self.quarantine.is_empty() {
            Ok(())
        } else {
            self.disk.write("quarantine", &encode(&self.quarantine))
        }
    }

    /// Makes state and link agree.
    fn reconcile(&mut self, notes: &mut Vec<String>) -> Result<Recovered, Error> {
        let link = self.disk.current();
        match self.record.state.clone() {
            State::Settled { current } if current == link => Ok(Recovered::Nothing),
            State::Settled { current } => {
                // Somebody else's doing. What runs counts, if it is one of ours.
                let shown = |id: Option<GenId>| id.map_or("nothing".to_owned(), |id| id.to_string());
                notes.push(format!("current names {}, and the state says {}", shown(link), shown(current)));
                if link.is_some_and(|id| self.record.kept.contains(&id)) {
                    self.record.state = State::Settled { current: link };
                    self.write_state()?;
                } else {
                    self.disk.relink(current)?;
                }
                Ok(Recovered::Nothing)
            }
            State::Trial { to, failed: Some(_), .. } => {
                self.finish_going_back()?;
                Ok(Recovered::RolledBack(to))
            }
            State::Trial { to, tries, .. } if link == Some(to) => Ok(Recovered::Trial { to, tries }),
            State::Trial { from, to, .. } => {
                if link != from {
                    notes.push("current names neither what ran nor what is tried".to_owned());
                    self.disk.relink(from)?;
                }
                self.abandon(now())?;
                Ok(Recovered::Abandoned(to))
            }
        }
    }
}

/// Removes temporaries of an earlier run.
fn clean(disk: &Disk) -> Result<(), Error> {
    for name in disk.names("")? {
        if name.starts_with('.') && (name.contains(".tmp-") || name == ".current.new") {
            remove_file(&disk.path(&name))?;
        }
    }
    for name in disk.names("blobs")?.iter().filter(|name| name.starts_with(".incoming-")) {
        remove_file(&disk.path("blobs").join(name))?;
    }
    for name in disk.names("gens")?.iter().filter(|name| *name == ".new" || name.starts_with(".old-")) {
        remove_tree(&disk.path("gens").join(name))?;
    }
    Ok(())
}

/// A small file; `None`: it is missing or damaged, the latter noted.
fn load<T: DeserializeOwned>(disk: &Disk, name: &str, notes: &mut Vec<String>) -> Result<Option<T>, Error> {
    let Some(bytes) = disk.read(&disk.path(name))? else { return Ok(None) };
    let value = decode(&bytes);
    if value.is_none() {
        notes.push(format!("{name} is damaged: it is made again from what else is known"));
    }
    Ok(value)
}

fn read_state(disk: &Disk, notes: &mut Vec<String>) -> Result<Option<Record>, Error> {
    let Some(bytes) = disk.read(&disk.path("state"))? else { return Ok(None) };
    let record = Record::decode(&bytes);
    if record.is_none() {
        notes.push("state is damaged: what current names counts as settled".to_owned());
    }
    Ok(record)
}

/// What the link says, and the generations before it that nothing is known against.
fn derive_state(disk: &Disk, history: &History) -> Result<Record, Error> {
    let Some(current) = disk.current() else { return Ok(Record::settled(None, Vec::new())) };
    let mut kept = Vec::new();
    for id in disk.names("gens")?.iter().filter_map(|name| name.parse::<GenId>().ok()) {
        let ending =
            history.iter().rev().find(|outcome| outcome.generation == id).map(|outcome| outcome.ending);
        let good = ending.is_none_or(|ending| ending == Ending::Committed);
        if (id == current || (id < current && good)) && read_generation(disk, &id)?.is_some() {
            kept.push(id);
        }
    }
    kept.sort_unstable();
    Ok(Record::settled(Some(current), kept))
}

fn read_generation(disk: &Disk, id: &GenId) -> Result<Option<GenFile>, Error> {
    let bytes = disk.read(&disk.generation(id).join(".manifest"))?;
    let file = bytes.and_then(|bytes| GenFile::decode(&bytes));
    Ok(file.filter(|file| GenId::new(id.number, &file.manifest.hash()) == *id))
}

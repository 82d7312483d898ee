//! The installation engine: content, generations, the one link that switches all apps at once, and the way back.
//!
//! It knows no network, no configuration file and no event loop; it blocks, and runs on a worker thread. Everything
//! below one folder belongs to it, held by a lock:
//!
//! ```text
//! lock                        flock(2), exclusive: one process at a time
//! blobs/<sha256>              content, complete and verified; a second name of it is in the generations that use it
//! blobs/<sha256>.part         content that is still coming; its bytes are hashed again when it is opened
//! blobs/.incoming-<n>         content whose SHA-256 is not known yet; removed at the next start
//! gens/<n>-<hash8>/           a generation: complete, durable, never changed; n counts from 1, hash8 begins the hash of
//!                             its manifest
//! gens/<n>-<hash8>/.manifest  sealed {"v":1,"items":[…],"marks":[…],"trees":{…}}
//! gens/<n>-<hash8>/<app>/     the app: the file `<app>` (kinds file and handler), or what its archive holds
//! gens/.new/                  a generation that is being built; removed at the next start or build
//! gens/.old-<n>-<hash8>/      one that is being removed
//! current                     symbolic link to gens/<n>-<hash8>: what runs. Swapped by rename(2) of
//! .current.new                the next one
//! state                       sealed record::Record: {"v":1,"state":…,"kept":[…],"trial":…,"last":…}
//! highwater                   sealed {"v":1,"value":[{"app","env","epoch","min-epoch"}…]}
//! quarantine                  sealed {"v":1,"value":[{"hash","at","why"}…]}, the newest last
//! history                     sealed {"v":1,"value":[record::Outcome…]}, the newest last
//! clock                       sealed {"v":1,"value":<seconds since 1970>}: the wall clock's own high-water mark
//! counted                     the boot whose start recover() has counted for the trial
//! .<name>.tmp-<pid>           one of these being written; removed at the next start
//! ```
//!
//! *Sealed*: one line of JSON, a line feed, `crc32c `, the CRC-32C of the line as 8 hexadecimal digits, a line feed.
//!
//! Order of an update, each step durable before the next begins: the blobs (written, `fsync`, verified, renamed, `fsync`
//! of the folder); what is taken over of what is here (compared with what was recorded); the generation (built as
//! `gens/.new`, flushed bottom up, renamed, `fsync` of `gens`); `state` = trial; `current` renamed, `fsync` of the folder;
//! then, when the apps are well, `state` = settled, which is the commit; after it `highwater`, `quarantine` and `history`,
//! which are completed from `state` if the power went in between.
//!
//! Invariants: `current` names a whole generation at any instant; an error of any `fsync` ends the update and leaves what
//! ran before; a left-over temporary never stands in the way; no mark rises before its release is committed.

mod blobs;
mod build;
mod disk;
mod error;
mod extract;
mod manifest;
mod record;
mod recover;
mod takeover;
mod trial;
mod verify;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod takeover_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use edge::release::{Sha256, Timestamp};

pub use blobs::{Blob, Incoming, Partial};
pub use error::Error;
pub use extract::{Caps, unpack};
pub use manifest::{APPS_MAX, GenFile, GenId, Item, Kind, Manifest, Tree};
pub use record::{
    Brief, Ending, Failure, HighWater, History, Mark, Outcome, Quarantined, Record, State, Subject, decode,
    encode, seal,
};
pub use recover::{Look, Recovered, Recovery, boot_id, recover};
pub use verify::Damage;

use disk::Disk;

/// Trials that may be interrupted before it is swapped back.
pub const TRIES_MAX: u8 = 3;
/// The clock's mark is written when the time went on by this, in seconds: a write an hour at most.
const CLOCK_STEP: i64 = 3600;

/// Bounds of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest content of one app, in bytes.
    pub blob_bytes_max: u64,
    /// Most bytes that an archive of one app may expand to.
    pub expanded_bytes_max: u64,
    /// Most files, folders and links of one archive.
    pub files_max: u64,
    /// Deepest path of an archive, in components.
    pub depth_max: usize,
    /// Bytes of the file system that stay free.
    pub free_bytes_min: u64,
    /// Committed generations that are kept, the current one among them; at least 2.
    pub keep_generations: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            blob_bytes_max: 16 << 30,
            expanded_bytes_max: 16 << 30,
            files_max: 100_000,
            depth_max: 32,
            free_bytes_min: 64 << 20,
            keep_generations: 2,
        }
    }
}

/// The store of one device, locked.
#[derive(Debug)]
pub struct Store {
    disk: Disk,
    limits: Limits,
    record: Record,
    marks: HighWater,
    quarantine: Vec<Quarantined>,
    history: History,
    /// Seconds since 1970.
    clock: i64,
    /// The manifests of what is kept, tried or built.
    known: BTreeMap<GenId, GenFile>,
    /// Complete, and not tried yet.
    built: Option<GenId>,
    /// What was opened as incoming, to name the next one.
    incoming: u64,
    proven: takeover::Proven,
    looked: takeover::Looked,
}

impl Store {
    /// Where the device stands.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.record.state
    }

    /// What is installed: the settled generation, or during a trial the one before it.
    #[must_use]
    pub fn current(&self) -> Option<(&GenId, &Manifest)> {
        self.look_up(self.settled_id()?)
    }

    /// What a rollback would bring back.
    #[must_use]
    pub fn previous(&self) -> Option<(&GenId, &Manifest)> {
        let settled = self.settled_id()?;
        self.look_up(*self.record.kept.iter().rev().find(|id| **id < settled)?)
    }

    /// What is being tried.
    #[must_use]
    pub fn trial(&self) -> Option<(&GenId, &Manifest)> {
        match &self.record.state {
            State::Trial { to, .. } => self.look_up(*to),
            State::Settled { .. } => None,
        }
    }

    /// The manifest of a generation that is kept, tried or built.
    #[must_use]
    pub fn manifest(&self, id: &GenId) -> Option<&Manifest> {
        self.known.get(id).map(|file| &file.manifest)
    }

    fn look_up(&self, id: GenId) -> Option<(&GenId, &Manifest)> {
        self.known.get_key_value(&id).map(|(id, file)| (id, &file.manifest))
    }

    fn settled_id(&self) -> Option<GenId> {
        match self.record.state {
            State::Settled { current } => current,
            State::Trial { from, .. } => from,
        }
    }

    /// The endings of updates, the newest last.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The mark of an app in an environment.
    #[must_use]
    pub fn high_water(&self, app: &str, env: &str) -> Mark {
        self.marks.get(app, env)
    }

    /// Whether a manifest is never to be tried again.
    #[must_use]
    pub fn is_quarantined(&self, hash: &Sha256) -> bool {
        self.quarantine.iter().any(|known| known.hash == *hash)
    }

    /// The manifests that are never tried again, the newest last.
    #[must_use]
    pub fn quarantined(&self) -> &[Quarantined] {
        &self.quarantine
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.disk.dir
    }

    /// The folder of an app in a generation.
    #[must_use]
    pub fn app_dir(&self, id: &GenId, app: &str) -> PathBuf {
        self.disk.generation(id).join(app)
    }

    /// The wall clock, never behind what it was once told: `system` or the mark, whichever is later. The mark is durable
    /// when it went on by an hour.
    ///
    /// # Errors
    /// The mark could not be written; ask again, or take the larger one of `system` and [`Store::clock_mark`].
    pub fn clock(&mut self, system: Timestamp) -> Result<Timestamp, Error> {
        if system.0 >= self.clock.saturating_add(CLOCK_STEP) {
            self.disk.write("clock", &encode(&system.0))?;
            self.clock = system.0;
        }
        Ok(Timestamp(system.0.max(self.clock)))
    }

    /// The latest time that is known to be past.
    #[must_use]
    pub fn clock_mark(&self) -> Timestamp {
        Timestamp(self.clock)
    }
}

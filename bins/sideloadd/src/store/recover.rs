//! What is in force, and what a crash left.
//!
//! Invariants: a journal is finished before anything else is done to the tree; what can't be read is moved to `aside/`
//! and said, never a reason not to start.

use std::io::Read as _;

use edge::sync::manifest::Manifest;

use super::apply::Apply;
use super::journal::{CommitInfo, Journal, decode_commit};
use super::{Error, OURS, Recovery, Store, ours};

impl Store {
    /// What [`Store::open`] does after the folders are there.
    pub(super) fn recover(&mut self) -> Result<Recovery, Error> {
        let mut recovery = Recovery::default();
        let mut numbers: Vec<u64> = Vec::new();
        numbers.extend(self.disk.names(&ours("commits"))?.iter().filter_map(|name| name.parse::<u64>().ok()));
        numbers.sort_unstable();
        for number in numbers {
            match self.read_commit(number) {
                Ok((info, manifest)) => {
                    self.commits.push(info);
                    self.head = manifest;
                }
                Err(Error::Refused { message, .. }) => {
                    recovery.notes.push(message);
                    let from = ours(&format!("commits/{number}"));
                    self.disk.rename(&from, &ours(&format!("aside/commit-{number}")))?;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some((commit, lost)) = self.finish_decided()? {
            recovery.finished = Some(commit);
            recovery.notes.extend(lost);
        }
        for name in self.disk.names(&ours("commits"))?.iter().filter(|name| name.ends_with(".new")) {
            self.disk.unlink(&ours(&format!("commits/{name}")))?;
        }
        for name in self.disk.names(&ours("stage"))?.iter().filter(|name| name.starts_with("put-")) {
            self.disk.unlink(&ours(&format!("stage/{name}")))?;
        }
        // A hash cache that was being saved.
        for name in self.disk.names(OURS)?.iter().filter(|name| name.starts_with("cache.tmp")) {
            self.disk.unlink(&ours(name))?;
        }
        self.clean_stage();
        Ok(recovery)
    }

    /// Finishes a commit that was decided and is not in place: which, and what content of it was lost.
    pub(super) fn finish_decided(&mut self) -> Result<Option<(u64, Vec<String>)>, Error> {
        let rel = ours("journal");
        if self.disk.stat(&rel)?.is_none() {
            return Ok(None);
        }
        let Some(journal) = Journal::decode(&self.read_ours(&rel)?) else {
            // It was renamed into place whole: this is the disk's doing, or somebody's.
            log::error!("{rel} is damaged; it is kept in aside/, and what it had to finish needs a new sync");
            self.disk.rename(&rel, &ours("aside/journal"))?;
            return Ok(None);
        };
        let mut apply = Apply::new(&self.disk, &journal, true);
        apply.run()?;
        let mut lost = std::mem::take(&mut apply.lost);
        self.drop_journal();
        match self.read_commit(journal.commit) {
            Ok((info, manifest)) => self.is_in_place(info, manifest),
            Err(error) => lost.push(edge::log::chain(&error).to_string()),
        }
        Ok(Some((journal.commit, lost)))
    }

    /// All of it is durable. If the journal does not go, it is done once more later, which changes nothing.
    pub(super) fn drop_journal(&self) {
        let gone = self.disk.unlink(&ours("journal")).and_then(|_| self.disk.fsync_dir(OURS));
        if let Err(error) = gone {
            log::warn!("the journal of a finished commit stays: {}", edge::log::chain(&error));
        }
    }

    /// It is the commit in force now.
    pub(super) fn is_in_place(&mut self, info: CommitInfo, manifest: Manifest) {
        self.unsettled.extend(manifest.entries().iter().map(|entry| entry.path.clone()));
        self.commits.retain(|known| known.commit != info.commit);
        self.commits.push(info);
        self.head = manifest;
        self.clean_stage();
        // The commit stands all the same.
        if let Err(error) = self.trim_history() {
            log::warn!("can't drop earlier commits: {}", edge::log::chain(&error));
        }
    }

    /// Removes what commits leave in `stage/`: replaced and deleted files, links and copies. What can't be removed is
    /// tried again after the next commit.
    pub(super) fn clean_stage(&self) {
        let names = self.disk.names(&ours("stage")).unwrap_or_default();
        for name in names {
            let passing = ["link-", "old-", "copy-"].iter().any(|prefix| name.starts_with(prefix));
            if !passing && name != "journal" {
                continue;
            }
            let rel = ours(&format!("stage/{name}"));
            let gone = self.disk.stat(&rel).and_then(|stat| match stat {
                Some(stat) if stat.is_dir => self.remove_bare(&rel, &name),
                _ => self.disk.unlink(&rel).map(drop),
            });
            if let Err(error) = gone {
                log::warn!("can't clean up: {}", edge::log::chain(&error));
            }
        }
    }

    /// Removes a folder that held nothing but folders when it was taken out of the tree; if it holds something now, the
    /// application had it open, and it is kept.
    fn remove_bare(&self, rel: &str, name: &str) -> Result<(), Error> {
        fn below(store: &Store, rel: &str) -> Result<(), Error> {
            for name in store.disk.names(rel)? {
                below(store, &format!("{rel}/{name}"))?;
            }
            store.disk.rmdir(rel).map(drop)
        }
        if below(self, rel).is_err() {
            let mut to = ours(&format!("aside/{}-{name}", self.head()));
            while self.disk.stat(&to)?.is_some() {
                to.push('x');
            }
            self.disk.rename(rel, &to)?;
        }
        Ok(())
    }

    pub(super) fn read_commit(&self, number: u64) -> Result<(CommitInfo, Manifest), Error> {
        let rel = ours(&format!("commits/{number}"));
        let bytes = self.read_ours(&rel)?;
        decode_commit(&bytes)
            .ok_or_else(|| Error::refused(500, format!("{rel} is damaged: commit {number} can't be read")))
    }

    fn read_ours(&self, rel: &str) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let read = self.disk.open(rel)?.read_to_end(&mut bytes);
        read.map_err(|source| Error::io("read", self.disk.root.path().join(rel), source))?;
        Ok(bytes)
    }
}

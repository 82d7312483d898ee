//! Earlier commits, and what is thrown away when.
//!
//! Invariants: an object that a kept commit names stays; the commit in force is always kept; what an interrupted sync
//! left stays for a day, for the next attempt to go on from, unless its space is needed.

use std::collections::HashSet;

use edge::sync::ContentId;

use super::{Error, Now, Store, object, ours};

/// Bytes that one round of housekeeping reads, but for one file: whoever syncs meanwhile waits that long.
const HOUSEKEEPING_BYTES: u64 = 32 << 20;

/// How long leftovers of interrupted syncs are kept, ns.
const LEFTOVER_NS: i64 = 24 * 3600 * 1_000_000_000;

impl Store {
    /// Drops commits beyond the configured number and bytes, oldest first, with the content that only they had.
    pub(super) fn trim_history(&mut self) -> Result<(), Error> {
        let keep = usize::try_from(self.cfg.keep_commits.max(1)).unwrap_or(usize::MAX);
        while self.commits.len() > keep {
            self.drop_oldest(&HashSet::new())?;
        }
        while self.commits.len() > 1 && self.history_bytes()? > self.cfg.history_bytes_max {
            self.drop_oldest(&HashSet::new())?;
        }
        Ok(())
    }

    /// Bytes that only earlier commits hold.
    fn history_bytes(&self) -> Result<u64, Error> {
        let live: HashSet<ContentId> = self.head.entries().iter().map(|e| e.id).collect();
        let mut seen = HashSet::new();
        let mut bytes = 0u64;
        for info in self.commits.iter().rev().skip(1) {
            for entry in self.read_commit(info.commit)?.1.entries() {
                if !live.contains(&entry.id) && seen.insert(entry.id) {
                    bytes = bytes.saturating_add(entry.size);
                }
            }
        }
        Ok(bytes)
    }

    /// Drops the oldest commit but the one in force, with the content that is in no other commit nor wanted. `false`:
    /// there is none.
    fn drop_oldest(&mut self, wanted: &HashSet<ContentId>) -> Result<bool, Error> {
        if self.commits.len() < 2 {
            return Ok(false);
        }
        let oldest = self.commits[0].commit;
        let manifest = self.read_commit(oldest).map(|(_, manifest)| manifest).unwrap_or_default();
        let mut kept = wanted.clone();
        for info in &self.commits[1..] {
            kept.extend(self.read_commit(info.commit)?.1.entries().iter().map(|e| e.id));
        }
        // The record first: content without a commit is found later, a commit without content is a broken promise.
        self.disk.unlink(&ours(&format!("commits/{oldest}")))?;
        self.commits.remove(0);
        for entry in manifest.entries() {
            if !kept.contains(&entry.id) {
                self.disk.unlink(&object(entry.id))?;
            }
        }
        Ok(true)
    }

    /// Sees to it that `bytes` can be written and the reserve stays free, at the cost of leftovers and history, but not
    /// of the content that is `wanted`.
    ///
    /// # Errors
    /// 507: they can't.
    pub(super) fn make_room(&mut self, bytes: u64, wanted: &HashSet<ContentId>) -> Result<(), Error> {
        let need = bytes.saturating_add(self.cfg.free_bytes_min);
        let fits = |store: &Store| store.free_bytes().map(|free| free >= need);
        if fits(self)? {
            return Ok(());
        }
        self.sweep(None, wanted)?;
        while !fits(self)? {
            if !self.drop_oldest(wanted)? {
                let free = edge::text::bytes(self.free_bytes()?);
                let (bytes, min) = (edge::text::bytes(bytes), edge::text::bytes(self.cfg.free_bytes_min));
                return Err(Error::refused(
                    507,
                    format!(
                        "the disk of the device is full: {bytes} are needed, {free} are free, {min} stay free"
                    ),
                ));
            }
            log::warn!("an earlier commit was dropped to make room on the disk");
        }
        Ok(())
    }

    /// Bytes that may still be written to the file system of the tree.
    ///
    /// # Errors
    /// What the system says.
    pub fn free_bytes(&self) -> Result<u64, Error> {
        edge::fs::free_bytes(self.disk.root.path()).map_err(|error| Error::Io {
            action: error.action,
            path: error.path,
            source: error.source,
        })
    }

    /// After a commit, when there is time: hashes what was committed once more, so that the next sync need not, throws
    /// leftovers away, and saves the hash cache. `false`: too early, come again in some seconds.
    pub fn housekeeping(&mut self, now: Now) -> bool {
        let mut read = 0u64;
        for path in std::mem::take(&mut self.unsettled) {
            let Ok(Some(stat)) = self.disk.stat(&path) else { continue };
            let fresh = now.unix_ns.saturating_sub(stat.ctime_ns) < edge::sync::cache::SETTLED_NS;
            if !stat.is_file || self.cache.get(&stat).is_some() {
                continue;
            }
            if fresh || read > HOUSEKEEPING_BYTES {
                self.unsettled.insert(path);
                continue;
            }
            read = read.saturating_add(stat.size);
            if let Err(error) = self.hash_of(&path, &stat, now) {
                log::debug!("housekeeping: {error}");
            }
        }
        if !self.unsettled.is_empty() {
            return false;
        }
        self.clean_stage();
        if self.session.is_none()
            && let Err(error) = self.sweep(Some(now.unix_ns), &HashSet::new())
        {
            log::warn!("can't throw away leftovers: {}", edge::log::chain(&error));
        }
        let path = self.disk.root.path().join(ours("cache"));
        if let Err(error) = self.cache.save(&path) {
            log::warn!("can't save the hash cache {}: {error}", path.display());
        }
        true
    }

    /// Removes content that no commit names, and parts, that are not `wanted`: those last changed more than a day before
    /// `now_ns`, or all.
    fn sweep(&mut self, now_ns: Option<i64>, wanted: &HashSet<ContentId>) -> Result<(), Error> {
        let mut named = wanted.clone();
        for info in &self.commits {
            named.extend(self.read_commit(info.commit)?.1.entries().iter().map(|e| e.id));
        }
        for (folder, suffix) in [("objects", ""), ("stage", ".part")] {
            for name in self.disk.names(&ours(folder))? {
                let Some(id) = name.strip_suffix(suffix).and_then(ContentId::from_hex) else { continue };
                let needed = if suffix.is_empty() { named.contains(&id) } else { wanted.contains(&id) };
                if needed {
                    continue;
                }
                let rel = ours(&format!("{folder}/{name}"));
                let is_old = |ctime_ns| now_ns.is_none_or(|now| now.saturating_sub(ctime_ns) > LEFTOVER_NS);
                if self.disk.stat(&rel)?.is_some_and(|stat| is_old(stat.ctime_ns)) {
                    self.disk.unlink(&rel)?;
                }
            }
        }
        Ok(())
    }
}

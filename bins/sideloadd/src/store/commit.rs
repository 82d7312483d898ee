//! Deciding a commit and putting it into place.
//!
//! Invariants: nothing visible changes before the journal is durable; every step of a journal may be done twice; what an
//! application left in the way is moved to `aside/`, never deleted; the journal goes only when all of it is durable.

use std::collections::{BTreeSet, HashSet};

use edge::sync::content;
use edge::sync::manifest::{Entry, Manifest};
use edge::sync::{ContentId, RelPath};

use super::journal::{CommitInfo, Journal, Op, Source, decode_commit, encode_commit};
use super::{Error, Live, Now, OURS, Recovery, Store, object, ours};

/// What a commit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Its number.
    pub commit: u64,
    /// Files that have new content, or a new mode.
    pub changed: u32,
    /// Files that are gone.
    pub deleted: u32,
    /// Bytes of the whole tree.
    pub bytes: u64,
    /// The commit that was brought back, if it was a rollback.
    pub restored: Option<u64>,
}

impl Store {
    /// Commits the sync under way.
    ///
    /// # Errors
    /// Something is still lacking (the sync goes on), or the disk failed: before the decision the old tree stays, after
    /// it the commit is finished at the next opportunity.
    pub fn commit(&mut self, now: Now) -> Result<Committed, Error> {
        let lacking = self.session.as_ref().map(|session| session.lacking());
        match lacking {
            None => return Err(Error::refused(409, "no sync is under way here: begin again")),
            Some(0) => {}
            Some(n) => return Err(Error::refused(409, format!("the content of {n} files has not come yet"))),
        }
        let Some(session) = self.session.take() else {
            return Err(Error::refused(409, "no sync is under way"));
        };
        self.commit_tree(session.manifest, &session.live, None, now)
    }

    /// Brings an earlier commit back, as a new one: `to`, or the one before the one in force.
    ///
    /// # Errors
    /// There is none, or its content is damaged; nothing changed then.
    pub fn rollback(&mut self, to: Option<u64>, now: Now) -> Result<Committed, Error> {
        self.session = None;
        self.finish_decided(now)?;
        let target = self.rollback_target(to)?;
        let manifest = self.read_commit(target)?.1;
        let live = self.compare(&manifest, now)?;
        for (entry, state) in manifest.entries().iter().zip(&live) {
            if *state == Live::Other && !self.has_object(entry.id, entry.size, now)? {
                let path = &entry.path;
                let why = format!(
                    "commit {target} can't be brought back: its content of {path} was changed or lost"
                );
                return Err(Error::refused(409, why));
            }
        }
        self.commit_tree(manifest, &live, Some(target), now)
    }

    /// Which commit a rollback brings back. What was rolled back to counts as being there: twice goes two back.
    fn rollback_target(&self, to: Option<u64>) -> Result<u64, Error> {
        let Some(head) = self.commits.last() else {
            return Err(Error::refused(409, "nothing was synced yet: there is nothing to roll back"));
        };
        let here = head.restored.unwrap_or(head.commit);
        let kept = || self.commits.iter().map(|info| info.commit);
        match to {
            Some(to) if kept().any(|n| n == to) => Ok(to),
            Some(to) => {
                let kept: Vec<String> = kept().map(|n| n.to_string()).collect();
                Err(Error::refused(404, format!("commit {to} is not kept; there are {}", kept.join(", "))))
            }
            None => kept().filter(|n| *n < here).max().ok_or_else(|| {
                Error::refused(409, format!("commit {here} is the oldest one kept: there is none before it"))
            }),
        }
    }

    fn commit_tree(
        &mut self,
        manifest: Manifest,
        live: &[Live],
        restored: Option<u64>,
        now: Now,
    ) -> Result<Committed, Error> {
        let commit = self.head() + 1;
        let (ops, flush) = self.plan(&manifest, live, now)?;
        let count = |test: fn(&Op) -> bool| {
            u32::try_from(ops.iter().filter(|op| test(op)).count()).unwrap_or(u32::MAX)
        };
        let deleted = count(|op| matches!(op, Op::Delete { .. }));
        let changed = count(|op| !matches!(op, Op::Delete { .. }));
        let info = CommitInfo {
            commit,
            time_ms: u64::try_from(now.unix_ns / 1_000_000).unwrap_or(0),
            files: u32::try_from(manifest.entries().len()).unwrap_or(u32::MAX),
            bytes: manifest.bytes(),
            changed,
            deleted,
            restored,
        };
        let journal = Journal { commit, ops };
        self.decide(&info, &manifest, &journal, &flush)?;
        self.apply(&journal, now)?;
        Ok(Committed { commit, changed, deleted, bytes: info.bytes, restored })
    }

    /// The steps, and the files that must be durable before the decision. Copies are made here.
    fn plan(
        &mut self,
        manifest: &Manifest,
        live: &[Live],
        now: Now,
    ) -> Result<(Vec<Op>, Vec<String>), Error> {
        // An object whose inode a live path keeps can't be linked to another one.
        let mut taken: HashSet<ContentId> = HashSet::new();
        for (entry, state) in manifest.entries().iter().zip(live) {
            if *state != Live::Other {
                taken.insert(entry.id);
            }
        }
        let (mut ops, mut flush) = (Vec::new(), Vec::new());
        for (at, (entry, state)) in manifest.entries().iter().zip(live).enumerate() {
            let path = entry.path.to_string();
            match state {
                Live::Same => self.adopt(entry)?,
                Live::Mode => {
                    self.adopt(entry)?;
                    ops.push(Op::Mode { path, mode: entry.mode });
                }
                Live::Other => {
                    let from = if taken.insert(entry.id) && self.is_free(entry.id, manifest, live)? {
                        flush.push(object(entry.id));
                        Source::Object(entry.id.to_hex())
                    } else {
                        let name = format!("copy-{at}");
                        flush.push(self.make_copy(entry, &name, now)?);
                        Source::Copy(name)
                    };
                    ops.push(Op::Place { path, from, mode: entry.mode, mtime_ns: entry.mtime_ns });
                }
            }
        }
        let gone = self.head.entries().iter().filter(|e| manifest.get(&e.path).is_none());
        ops.extend(gone.map(|e| Op::Delete { path: e.path.to_string() }));
        Ok((ops, flush))
    }

    /// A file that an old client put has no object yet: history needs one.
    fn adopt(&self, entry: &Entry) -> Result<(), Error> {
        let object = object(entry.id);
        if self.disk.stat(&object)?.is_none() {
            self.disk.link(&entry.path, &object)?;
        }
        Ok(())
    }

    /// Whether no path that stays is a name of the object's inode.
    fn is_free(&self, id: ContentId, manifest: &Manifest, live: &[Live]) -> Result<bool, Error> {
        let Some(stat) = self.disk.stat(&object(id))? else { return Ok(true) };
        let goes = |entry: &&Entry| {
            let at = manifest.entries().binary_search_by(|e| e.path.cmp(&entry.path));
            at.map_or(true, |at| live.get(at) == Some(&Live::Other))
        };
        let mut names = 1;
        for entry in self.head.entries().iter().filter(|e| e.id == id).filter(goes) {
            let there = self.disk.stat(&entry.path)?;
            names += u64::from(there.is_some_and(|s| (s.dev, s.ino) == (stat.dev, stat.ino)));
        }
        Ok(stat.nlink <= names)
    }

    fn make_copy(&mut self, entry: &Entry, name: &str, now: Now) -> Result<String, Error> {
        let rel = ours(&format!("stage/{name}"));
        let from = object(entry.id);
        // It may be the object of a path that is live: what was checked at the beginning may have changed.
        if !self.has_object(entry.id, entry.size, now)? {
            return self.copy_from_live(entry, rel);
        }
        let source = self.disk.open(&from)?;
        let copy = self.disk.create(&rel)?;
        self.disk.copy(&source, 0, &copy, 0, entry.size, &rel)?;
        Ok(rel)
    }

    /// There is no object (an old client put the file): the content is that of another path, and verified while copied.
    fn copy_from_live(&mut self, entry: &Entry, rel: String) -> Result<String, Error> {
        let lost = || {
            Error::refused(409, format!("the content of {} was changed meanwhile; sync again", entry.path))
        };
        let holder = self.head.entries().iter().find(|e| e.id == entry.id).map(|e| e.path.clone());
        let mut source = self.disk.open(&holder.ok_or_else(lost)?)?;
        let copy = self.disk.create(&rel)?;
        self.disk.copy(&source, 0, &copy, 0, entry.size, &rel)?;
        drop(copy);
        source = self.disk.open(&rel)?;
        let hashed = content::hash(&mut source).map_err(|_| lost())?;
        if hashed.id == entry.id { Ok(rel) } else { Err(lost()) }
    }

    /// Makes all durable that the commit needs, then writes the journal: from then on it is going to happen.
    fn decide(
        &self,
        info: &CommitInfo,
        manifest: &Manifest,
        journal: &Journal,
        flush: &[String],
    ) -> Result<(), Error> {
        let record = ours(&format!("commits/{}.new", info.commit));
        let draft = ours("stage/journal");
        for (rel, bytes) in [(&record, encode_commit(info, manifest)), (&draft, journal.encode())] {
            let file = self.disk.create(rel)?;
            self.disk.write_at(&file, &bytes, 0, rel)?;
        }
        let files: Vec<&str> = flush.iter().chain([&record, &draft]).map(String::as_str).collect();
        let folders = [ours("objects"), ours("stage"), ours("commits")];
        self.disk.flush(files.into_iter(), folders.iter().map(String::as_str))?;
        self.disk.rename(&draft, &ours("journal"))?;
        self.disk.fsync_dir(OURS)
    }

    /// Puts a decided commit into place. Safe to repeat from any point.
    pub(super) fn apply(&mut self, journal: &Journal, now: Now) -> Result<(), Error> {
        let placed: HashSet<&str> = journal.ops.iter().filter_map(target).collect();
        let mut folders: BTreeSet<String> = BTreeSet::new();
        let is_in_the_way = |path: &str| {
            let above = path.match_indices('/').any(|(at, _)| placed.contains(&path[..at]));
            above || placed.iter().any(|p| p.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
        };
        let (early, late): (Vec<&Op>, Vec<&Op>) = journal
            .ops
            .iter()
            .filter(|op| matches!(op, Op::Delete { .. }))
            .partition(|op| is_in_the_way(op.path()));
        for op in early {
            self.delete(op.path(), &mut folders)?;
        }
        for (at, op) in journal.ops.iter().enumerate() {
            match op {
                Op::Place { path, from, mode, mtime_ns } => {
                    folders.insert(parent(path).to_owned());
                    self.place(path, from, journal.commit, at)?;
                    self.disk.set_mode(path, *mode)?;
                    self.disk.set_mtime(path, *mtime_ns)?;
                    self.settle_later(path);
                }
                Op::Mode { path, mode } => {
                    // The application may have removed it since: then it comes back with the next sync.
                    match self.disk.set_mode(path, *mode) {
                        Err(error) if error.status() == 404 => {}
                        other => other?,
                    }
                    self.settle_later(path);
                }
                Op::Delete { .. } => {}
            }
        }
        for op in late {
            self.delete(op.path(), &mut folders)?;
        }
        self.finish(journal, &folders, now)
    }

    fn settle_later(&mut self, path: &str) {
        if let Ok(path) = RelPath::new(path) {
            self.unsettled.insert(path);
        }
    }

    fn place(&mut self, path: &str, from: &Source, commit: u64, at: usize) -> Result<(), Error> {
        self.clear_the_way(path, commit, at)?;
        self.disk.make_folders(parent(path))?;
        let link = ours(&format!("stage/link-{at}"));
        match from {
            Source::Copy(name) => {
                let copy = ours(&format!("stage/{name}"));
                // It is gone: it was put into place already.
                if self.disk.stat(&copy)?.is_some() { self.disk.rename(&copy, path) } else { Ok(()) }
            }
            Source::Object(id) => {
                let object = ours(&format!("objects/{id}"));
                let Some(wanted) = self.disk.stat(&object)? else {
                    return Err(Error::refused(
                        500,
                        format!("{object} is gone: was it removed by hand? Sync again"),
                    ));
                };
                self.disk.unlink(&link)?;
                // Renaming one name of a file onto another name of it would do nothing at all.
                if self.disk.stat(path)?.is_some_and(|stat| (stat.dev, stat.ino) == (wanted.dev, wanted.ino))
                {
                    return Ok(());
                }
                self.disk.link(&object, &link)?;
                self.disk.rename(&link, path)
            }
        }
    }

    /// Moves aside what the application made where a file or one of its folders goes.
    fn clear_the_way(&self, path: &str, commit: u64, at: usize) -> Result<(), Error> {
        for (n, (end, _)) in path.match_indices('/').enumerate() {
            let folder = &path[..end];
            if self.disk.stat(folder)?.is_some_and(|stat| !stat.is_dir) {
                self.move_aside(folder, &format!("{commit}-{at}-{n}"))?;
            }
        }
        if self.disk.stat(path)?.is_some_and(|stat| stat.is_dir) {
            // An empty folder is nobody's; another one is kept.
            if self.disk.rmdir(path).is_err() {
                self.move_aside(path, &format!("{commit}-{at}"))?;
            }
        }
        Ok(())
    }

    fn move_aside(&self, path: &str, name: &str) -> Result<(), Error> {
        let to = ours(&format!("aside/{name}"));
        log::warn!("{path} was in the way of a sync and is {to} now");
        self.disk.rename(path, &to)
    }

    fn delete(&mut self, path: &str, folders: &mut BTreeSet<String>) -> Result<(), Error> {
        folders.insert(parent(path).to_owned());
        let found = match self.disk.stat(path) {
            // The application put a link that leaves the root where the folder was: our file is not there.
            Err(Error::Path(edge::beneath::Error::Escapes { .. })) => return Ok(()),
            other => other?,
        };
        match found {
            // A folder that the application made where the file was is not ours to delete.
            Some(stat) if stat.is_dir => return Ok(()),
            Some(_) => drop(self.disk.unlink(path)?),
            None => {}
        }
        let mut folder = parent(path);
        while !folder.is_empty() {
            match self.disk.rmdir(folder) {
                Ok(_) => {}
                #[cfg(test)]
                Err(error @ Error::Stopped) => return Err(error),
                // Not empty: something still lives there.
                Err(_) => break,
            }
            folder = parent(folder);
            folders.insert(folder.to_owned());
        }
        Ok(())
    }

    fn finish(&mut self, journal: &Journal, folders: &BTreeSet<String>, now: Now) -> Result<(), Error> {
        let (new, record) =
            (ours(&format!("commits/{}.new", journal.commit)), ours(&format!("commits/{}", journal.commit)));
        if self.disk.stat(&new)?.is_some() {
            self.disk.rename(&new, &record)?;
        }
        let commits = ours("commits");
        let all: Vec<&str> = folders.iter().map(String::as_str).chain([commits.as_str()]).collect();
        self.disk.flush(std::iter::empty(), all.into_iter())?;
        self.disk.unlink(&ours("journal"))?;
        self.disk.fsync_dir(OURS)?;
        let (info, manifest) = self.read_commit(journal.commit)?;
        self.commits.retain(|known| known.commit != info.commit);
        self.commits.push(info);
        self.head = manifest;
        match self.trim_history(now) {
            #[cfg(test)]
            Err(error @ Error::Stopped) => Err(error),
            // The commit stands all the same.
            Err(error) => {
                log::warn!("can't drop earlier commits: {}", edge::log::chain(&error));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    pub(super) fn read_commit(&self, number: u64) -> Result<(CommitInfo, Manifest), Error> {
        let rel = ours(&format!("commits/{number}"));
        let bytes = self.read_ours(&rel)?;
        decode_commit(&bytes)
            .ok_or_else(|| Error::refused(500, format!("{rel} is damaged: commit {number} can't be read")))
    }

    pub(super) fn read_ours(&self, rel: &str) -> Result<Vec<u8>, Error> {
        use std::io::Read as _;
        let mut bytes = Vec::new();
        let path = self.disk.root.path().join(rel);
        let read = self.disk.open(rel)?.read_to_end(&mut bytes);
        read.map_err(|source| Error::Io { action: "read", path, source })?;
        Ok(bytes)
    }

    /// Finishes a commit that was decided and could not be put into place then.
    pub(super) fn finish_decided(&mut self, now: Now) -> Result<Option<u64>, Error> {
        let rel = ours("journal");
        if self.disk.stat(&rel)?.is_none() {
            return Ok(None);
        }
        match Journal::decode(&self.read_ours(&rel)?) {
            Some(journal) => {
                self.apply(&journal, now)?;
                Ok(Some(journal.commit))
            }
            None => {
                // It was renamed into place whole: this is the disk's doing, or somebody's.
                log::error!(
                    "{rel} is damaged; it is kept in aside/, and what it had to finish needs a new sync"
                );
                self.disk.rename(&rel, &ours("aside/journal"))?;
                Ok(None)
            }
        }
    }

    /// What [`Store::open`] does after the folders are there.
    pub(super) fn recover(&mut self, now: Now) -> Result<Recovery, Error> {
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
        recovery.finished = self.finish_decided(now)?;
        for name in self.disk.names(&ours("commits"))? {
            if name.ends_with(".new") {
                self.disk.unlink(&ours(&format!("commits/{name}")))?;
            }
        }
        for name in self.disk.names(&ours("stage"))? {
            if !name.ends_with(".part") {
                self.disk.unlink(&ours(&format!("stage/{name}")))?;
            }
        }
        Ok(recovery)
    }
}

impl Op {
    fn path(&self) -> &str {
        match self {
            Op::Place { path, .. } | Op::Mode { path, .. } | Op::Delete { path } => path,
        }
    }
}

fn target(op: &Op) -> Option<&str> {
    match op {
        Op::Place { path, .. } => Some(path),
        Op::Mode { .. } | Op::Delete { .. } => None,
    }
}

/// The folder of a path; empty for the root.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

//! Deciding a commit.
//!
//! Invariants: nothing visible changes before the journal is durable; what a commit relies on (content found on the
//! device, files that stay as they are) is looked at again just before; a commit that fails leaves the old tree.

use std::collections::{HashMap, HashSet};

use edge::beneath::Stat;
use edge::sync::ContentId;
use edge::sync::manifest::{Entry, Manifest};

use super::apply::Apply;
use super::bytecode;
use super::journal::{CommitInfo, Journal, Op, Source, encode_commit};
use super::stage::Session;
use super::{Error, Live, Now, OURS, Store, object, ours};

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

/// The steps of a commit, and the files that must be durable before it is decided.
#[derive(Debug, Default)]
struct Plan {
    ops: Vec<Op>,
    flush: Vec<String>,
}

impl Store {
    /// Commits the sync under way.
    ///
    /// # Errors
    /// Something is still lacking (the sync goes on), or was changed on the device meanwhile, or the disk failed: the
    /// old tree stays. Only if the disk refuses even to take half a commit back, it is finished later instead.
    pub fn commit(&mut self, now: Now) -> Result<Committed, Error> {
        let lacking = self.session.as_ref().map(Session::lacking);
        match lacking {
            None => return Err(Error::Gone),
            Some(0) => {}
            Some(n) => return Err(Error::refused(409, format!("the content of {n} files has not come yet"))),
        }
        let Some(session) = self.session.take() else {
            return Err(Error::Gone);
        };
        self.finish_decided()?;
        self.commit_tree(session, None, now)
    }

    /// Brings an earlier commit back, as a new one: `to`, or the one before the one in force.
    ///
    /// # Errors
    /// There is none, or its content is damaged; nothing changed then.
    pub fn rollback(&mut self, to: Option<u64>, now: Now) -> Result<Committed, Error> {
        self.session = None;
        self.finish_decided()?;
        let target = self.rollback_target(to)?;
        let manifest = self.read_commit(target)?.1;
        let live = self.compare(&manifest, now)?;
        let mut session = Session::new(0, manifest, live, &[]);
        let present = session.present();
        let mut copies = 0u64;
        for (entry, seen) in session.manifest.entries().iter().zip(&session.live) {
            if seen.state != Live::Other {
                continue;
            }
            if present.contains(&entry.id) || session.objects.contains_key(&entry.id) {
                copies = copies.saturating_add(entry.size);
                continue;
            }
            let Some(stat) = self.has_object(entry.id, entry.size, now)? else {
                let path = &entry.path;
                let why = format!(
                    "commit {target} can't be brought back: its content of {path} was changed or lost"
                );
                return Err(Error::refused(409, why));
            };
            session.objects.insert(entry.id, stat);
        }
        self.make_room(copies, &session.ids())?;
        self.commit_tree(session, Some(target), now)
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
        mut session: Session,
        restored: Option<u64>,
        now: Now,
    ) -> Result<Committed, Error> {
        self.recheck(&mut session, now)?;
        let plan = self.plan(&session).inspect_err(|_| self.clean_stage())?;
        let manifest = session.manifest;
        let count = |test: fn(&Op) -> bool| {
            u32::try_from(plan.ops.iter().filter(|op| test(op)).count()).unwrap_or(u32::MAX)
        };
        let info = CommitInfo {
            commit: self.head() + 1,
            time_ms: u64::try_from(now.unix_ns / 1_000_000).unwrap_or(0),
            files: u32::try_from(manifest.entries().len()).unwrap_or(u32::MAX),
            bytes: manifest.bytes(),
            changed: count(|op| matches!(op, Op::Place { .. } | Op::Mode { .. })),
            deleted: count(|op| matches!(op, Op::Delete { .. })),
            restored,
        };
        let CommitInfo { commit, changed, deleted, bytes, .. } = info;
        let journal = Journal { commit, ops: plan.ops };
        self.decide(&info, &manifest, &journal, &plan.flush).inspect_err(|_| self.withdraw(commit))?;
        let mut apply = Apply::new(&self.disk, &journal, false);
        if let Err(error) = apply.run() {
            match apply.take_back() {
                Ok(()) => self.withdraw(commit),
                Err(second) => log::error!(
                    "commit {commit} is half in place, and the disk refuses to take it back; it is finished as soon \
                     as that works: {}",
                    edge::log::chain(&second)
                ),
            }
            return Err(error);
        }
        self.drop_journal();
        self.is_in_place(info, manifest);
        Ok(Committed { commit, changed, deleted, bytes, restored })
    }

    /// Looks again at what was found when the sync began: uploads take their time, and old clients and the application
    /// may have written meanwhile.
    fn recheck(&mut self, session: &mut Session, now: Now) -> Result<(), Error> {
        self.disk.keep_folder(true);
        let done = self.recheck_files(session, now);
        self.disk.keep_folder(false);
        done?;
        let present = session.present();
        let mut looked = HashSet::new();
        for (entry, seen) in session.manifest.entries().iter().zip(&session.live) {
            if seen.state != Live::Other || !looked.insert(entry.id) {
                continue;
            }
            let stat = self.disk.stat(&object(entry.id))?;
            let before = session.objects.get(&entry.id);
            let same = |a: &Stat, b: &Stat| (a.ino, a.size, a.mtime_ns) == (b.ino, b.size, b.mtime_ns);
            if stat.is_some_and(|stat| before.is_some_and(|before| same(before, &stat))) {
                continue;
            }
            if self.has_object(entry.id, entry.size, now)?.is_none() && !present.contains(&entry.id) {
                let why =
                    format!("the content of {} was changed on the device meanwhile; sync again", entry.path);
                return Err(Error::refused(409, why));
            }
        }
        Ok(())
    }

    fn recheck_files(&mut self, session: &mut Session, now: Now) -> Result<(), Error> {
        for (entry, seen) in session.manifest.entries().iter().zip(&mut session.live) {
            if seen.state != Live::Other && self.disk.stat(&entry.path)? != seen.stat {
                *seen = self.compare_one(entry, now)?;
            }
        }
        Ok(())
    }

    /// Copies are made here; nothing in the tree changes.
    fn plan(&self, session: &Session) -> Result<Plan, Error> {
        let manifest = &session.manifest;
        let mut plan = Plan::default();
        let staying =
            || manifest.entries().iter().zip(&session.live).filter(|(_, seen)| seen.state != Live::Other);
        for (entry, seen) in staying() {
            self.adopt(entry)?;
            if seen.state == Live::Mode {
                plan.ops.push(Op::Mode { path: entry.path.to_string(), mode: entry.mode });
            }
        }
        // An object whose inode a live path keeps can't be linked to another one.
        let mut taken = session.present();
        let goes = self.goes(session);
        for (at, (entry, seen)) in manifest.entries().iter().zip(&session.live).enumerate() {
            if seen.state != Live::Other {
                continue;
            }
            let rel = object(entry.id);
            let stat = self.disk.stat(&rel)?;
            let from = if taken.insert(entry.id) && self.is_free(entry.id, stat, &goes)? {
                if let Some(stat) = stat.filter(|stat| stat.nlink == 1) {
                    self.dress(&rel, &stat, entry)?;
                }
                plan.flush.push(rel);
                Source::Object(entry.id.to_hex())
            } else {
                let name = format!("copy-{at}");
                plan.flush.push(self.make_copy(entry, &name)?);
                Source::Copy(name)
            };
            let path = entry.path.to_string();
            plan.ops.push(Op::Place { path, from, mode: entry.mode, mtime_ns: entry.mtime_ns });
        }
        let gone = self.head.entries().iter().filter(|e| manifest.get(&e.path).is_none());
        plan.ops.extend(gone.map(|e| Op::Delete { path: e.path.to_string() }));
        let placed = plan.ops.iter().filter(|op| matches!(op, Op::Place { .. })).map(Op::path);
        let stale: Vec<_> = placed.filter(|path| owns_bytecode(manifest, path)).map(str::to_owned).collect();
        plan.ops.extend(stale.into_iter().map(|path| Op::Recompile { path }));
        Ok(plan)
    }

    /// A file that an old client put has no object yet: history needs one.
    fn adopt(&self, entry: &Entry) -> Result<(), Error> {
        let object = object(entry.id);
        if self.disk.stat(&object)?.is_none() {
            self.disk.link(&entry.path, &object)?;
        }
        Ok(())
    }

    /// The committed paths that this commit replaces or deletes, by what they held.
    fn goes<'a>(&'a self, session: &Session) -> HashMap<ContentId, Vec<&'a Entry>> {
        let entries = session.manifest.entries();
        let mut goes: HashMap<ContentId, Vec<&Entry>> = HashMap::new();
        for entry in self.head.entries() {
            let at = entries.binary_search_by(|e| e.path.cmp(&entry.path));
            if at.map_or(true, |at| session.live.get(at).is_some_and(|seen| seen.state == Live::Other)) {
                goes.entry(entry.id).or_default().push(entry);
            }
        }
        goes
    }

    /// Whether no path that stays is a name of the object's inode.
    fn is_free(
        &self,
        id: ContentId,
        stat: Option<Stat>,
        goes: &HashMap<ContentId, Vec<&Entry>>,
    ) -> Result<bool, Error> {
        let Some(stat) = stat.filter(|stat| stat.nlink > 1) else { return Ok(true) };
        let mut names = 1;
        for entry in goes.get(&id).into_iter().flatten() {
            let there = self.disk.stat(&entry.path)?;
            names += u64::from(there.is_some_and(|s| (s.dev, s.ino) == (stat.dev, stat.ino)));
        }
        Ok(stat.nlink <= names)
    }

    /// Mode and time of content that has no name in the tree yet: then they are durable with it.
    fn dress(&self, rel: &str, stat: &Stat, entry: &Entry) -> Result<(), Error> {
        if stat.mode & 0o777 != entry.mode {
            self.disk.set_mode(rel, entry.mode)?;
        }
        if stat.mtime_ns != entry.mtime_ns {
            self.disk.set_mtime(rel, entry.mtime_ns)?;
        }
        Ok(())
    }

    fn make_copy(&self, entry: &Entry, name: &str) -> Result<String, Error> {
        let rel = ours(&format!("stage/{name}"));
        let from = object(entry.id);
        let source = self.disk.open(&from)?;
        let stat = || {
            Stat::of(&source)
                .map_err(|source| Error::io("look at", self.disk.root.path().join(&from), source))
        };
        let before = stat()?;
        let copy = self.disk.create(&rel)?;
        self.disk.copy(&source, 0, &copy, 0, entry.size, &rel)?;
        let after = stat()?;
        // The application writes into the file that this content is.
        if (after.size, after.mtime_ns) != (before.size, before.mtime_ns) {
            let why =
                format!("the content of {} was changed on the device meanwhile; sync again", entry.path);
            return Err(Error::refused(409, why));
        }
        self.disk.set_attributes(&copy, entry.mode, entry.mtime_ns, &rel)?;
        Ok(rel)
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

    /// A commit that failed leaves nothing but the content that came. What can't be removed now is at the next start.
    fn withdraw(&self, commit: u64) {
        for rel in [ours("journal"), ours(&format!("commits/{commit}.new"))] {
            if let Err(error) = self.disk.unlink(&rel) {
                log::warn!("{}", edge::log::chain(&error));
            }
        }
        self.clean_stage();
    }
}

/// Whether the byte code of `path` is Python's on the device: it is a Python source, and the developer sends none for it.
fn owns_bytecode(manifest: &Manifest, path: &str) -> bool {
    let Some((beside, cached)) = bytecode::places(path) else { return false };
    let entries = manifest.entries();
    let from = entries.partition_point(|entry| entry.path.as_str() < cached.as_str());
    let sent = entries.get(from).is_some_and(|entry| entry.path.starts_with(&cached));
    !sent && manifest.get(&beside).is_none()
}

/// The folder of a path; empty for the root.
pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

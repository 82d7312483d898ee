//! The sideloaded tree: transactional commits, history, and the plain file operations of old clients.
//!
//! Below `root/.sideloadd/`:
//!
//! ```text
//! lock        flock: one process at a time
//! objects/    content by its id; a live file is a second name (hard link) of its object
//! stage/      ID.part: content as far as it has come; copy-N, link-N, put-N: on their way into place; old-N: out of it
//! commits/N   what commit N holds ([`journal`]); N.new until it is in place
//! journal     a decided commit that is not in place yet
//! aside/      what an application left where a commit needs the place
//! cache       hashes of files ([`HashCache`])
//! ```
//!
//! A commit: all content is complete and verified in `objects/`, flushed to disk, then the journal is written durably,
//! which decides; then each file is linked and renamed into place, deletions last (with them Python's byte code of what was
//! replaced, [`bytecode`]), all flushed, the journal removed.
//! [`Store::open`] finishes what a journal says, so that the tree is the old one or the new one.
//!
//! Invariants: a file is trusted to hold a content only if it was hashed, or the cache trusts its times; two live paths
//! never share an inode; only paths of the previous commit are ever deleted. It blocks: it belongs on a thread of its
//! own. Memory: the manifests, and one record of 256 KiB.

mod apply;
mod bytecode;
mod commit;
mod disk;
mod error;
mod files;
mod history;
mod journal;
mod recover;
mod stage;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use edge::beneath::{Root, Stat};
use edge::sync::cache::HashCache;
use edge::sync::content::{self, Hashed};
use edge::sync::manifest::{Entry, Manifest};
use edge::sync::{ContentId, RelPath};
use rustix::fs::OFlags;

pub use commit::Committed;
pub use error::Error;
pub use files::{FileInfo, Put};
pub use journal::CommitInfo;

use disk::Disk;
use stage::Session;

/// Our folder below the root.
const OURS: &str = edge::sync::path::RESERVED;

/// The store's part of the configuration.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where the application's files are.
    pub root: PathBuf,
    /// Commits that are kept, the one in force included.
    pub keep_commits: u32,
    /// Bytes of content that only older commits hold, at most.
    pub history_bytes_max: u64,
    /// Bytes of the disk that stay free.
    pub free_bytes_min: u64,
    /// Files in a sync, at most.
    pub files_max: usize,
    /// Bytes of one file, at most.
    pub file_bytes_max: u64,
}

/// The time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Since 1970, ns.
    pub unix_ns: i64,
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The commit that a crash had interrupted and that is in place now.
    pub finished: Option<u64>,
    /// Sentences for the log.
    pub notes: Vec<String>,
}

/// The answer to a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Begun {
    /// Names the sync.
    pub session: u64,
    /// The tree is that already; nothing was opened.
    pub unchanged: bool,
    /// The commit in force, 0 for none.
    pub commit: u64,
    /// Entries whose content is wanted.
    pub lacks: Vec<u32>,
    /// Those of them whose chunk lists are wanted first.
    pub chunked: Vec<u32>,
    /// Files that the commit will delete.
    pub deletes: u32,
    /// Bytes of the wanted entries.
    pub bytes: u64,
}

/// The tree.
#[derive(Debug)]
pub struct Store {
    cfg: StoreConfig,
    disk: Disk,
    cache: HashCache,
    /// Commits in force and before, oldest first; the manifest of the newest is kept.
    commits: Vec<CommitInfo>,
    head: Manifest,
    session: Option<Session>,
    sessions: u64,
    /// Committed lately: to be hashed once more when they have settled.
    unsettled: BTreeSet<RelPath>,
    _lock: File,
}

fn ours(name: &str) -> String {
    format!("{OURS}/{name}")
}

fn object(id: ContentId) -> String {
    format!("{OURS}/objects/{id}")
}

impl Store {
    /// Opens the tree, makes what is missing, and finishes what a crash left.
    ///
    /// # Errors
    /// The root can't be made or used, or another process uses it.
    pub fn open(cfg: StoreConfig, _now: Now) -> Result<(Store, Recovery), Error> {
        let root = &cfg.root;
        let new = !root.is_dir();
        edge::fs::create_dir_durably(root).map_err(|error| Error::Io {
            action: "make the folder (root)",
            path: error.path,
            source: error.source,
        })?;
        if new {
            disk::open_to_read(root)?;
        }
        let disk = disk::open(Root::open(root)?)?;
        let lock = disk.root.open_file(&ours("lock"), OFlags::RDWR | OFlags::CREATE, 0o600)?;
        let locked = edge::fs::lock_alone(&lock).map_err(|source| Error::Io {
            action: "lock",
            path: root.join(ours("lock")),
            source,
        })?;
        if !locked {
            let why = format!("another process uses {} (is sideloadd running twice?)", root.display());
            return Err(Error::refused(500, why));
        }
        let cache = HashCache::load(&root.join(ours("cache")));
        let mut store = Store {
            cfg,
            disk,
            cache,
            commits: Vec::new(),
            head: Manifest::default(),
            session: None,
            sessions: 0,
            unsettled: BTreeSet::new(),
            _lock: lock,
        };
        let recovery = store.recover()?;
        Ok((store, recovery))
    }

    /// The commits that are kept, oldest first.
    #[must_use]
    pub fn history(&self) -> &[CommitInfo] {
        &self.commits
    }

    /// The number of the commit in force, 0 for none.
    #[must_use]
    pub fn head(&self) -> u64 {
        self.commits.last().map_or(0, |info| info.commit)
    }

    /// Begins a sync to this tree; one that was under way is given up, what it had staged stays.
    ///
    /// # Errors
    /// [`Error`]: refused (too large, too many deletions, something in the way, no space), or the disk failed.
    pub fn begin(&mut self, manifest: Manifest, force: bool, now: Now) -> Result<Begun, Error> {
        self.session = None;
        self.finish_decided()?;
        self.check_bounds(&manifest)?;
        let deletes = self.check_deletes(&manifest, force)?;
        let live = self.compare(&manifest, now)?;
        let commit = self.head();
        if live.iter().all(|seen| seen.state == Live::Same) && manifest.id() == self.head.id() {
            return Ok(Begun { unchanged: true, commit, ..Begun::default() });
        }
        self.sessions += 1;
        let mut session = Session::new(self.sessions, manifest, live, &[]);
        let (mut lacks, mut chunked, mut bytes, mut need) = (Vec::new(), Vec::new(), 0u64, 0u64);
        // Content that several paths want comes once; so does what another path has already.
        let mut known = session.present();
        for (at, (entry, seen)) in session.manifest.entries().iter().zip(&session.live).enumerate() {
            if seen.state != Live::Other {
                continue;
            }
            if !known.insert(entry.id) {
                need = need.saturating_add(entry.size);
            } else if let Some(stat) = self.has_object(entry.id, entry.size, now)? {
                session.objects.insert(entry.id, stat);
            } else {
                // At most files_max entries.
                lacks.push(at as u32);
                if entry.size >= content::BIG {
                    chunked.push(at as u32);
                }
                bytes = bytes.saturating_add(entry.size);
                let staged = self.disk.allocated(&stage::part(entry))?;
                need = need.saturating_add(entry.size.saturating_sub(staged));
            }
        }
        self.make_room(need, &session.ids())?;
        session.want(&lacks);
        let session_id = session.id;
        self.session = Some(session);
        Ok(Begun { session: session_id, unchanged: false, commit, lacks, chunked, deletes, bytes })
    }

    /// Gives up the sync under way; what it staged stays for the next one.
    pub fn abandon(&mut self) {
        self.session = None;
    }

    fn check_bounds(&self, manifest: &Manifest) -> Result<(), Error> {
        let most = self.cfg.files_max;
        if manifest.entries().len() > most {
            let have = manifest.entries().len();
            return Err(Error::refused(
                413,
                format!(
                    "{have} files are more than files-max = {most} on the device; ignore some, or raise it"
                ),
            ));
        }
        let most = self.cfg.file_bytes_max;
        match manifest.entries().iter().find(|e| e.size > most) {
            Some(entry) => Err(Error::refused(
                413,
                format!(
                    "{} has {}, more than file-max = {} on the device",
                    entry.path,
                    edge::text::bytes(entry.size),
                    edge::text::bytes(most)
                ),
            )),
            None => Ok(()),
        }
    }

    /// How many files would go. A file whose content lives on under another path does not count against the half.
    fn check_deletes(&self, manifest: &Manifest, force: bool) -> Result<u32, Error> {
        let kept: HashSet<ContentId> = manifest.entries().iter().map(|e| e.id).collect();
        let gone = self.head.entries().iter().filter(|e| manifest.get(&e.path).is_none());
        let (mut deletes, mut lost) = (0u32, 0u32);
        for entry in gone {
            deletes += 1;
            lost += u32::from(!kept.contains(&entry.id));
        }
        let of = u32::try_from(self.head.entries().len()).unwrap_or(u32::MAX);
        if !force && u64::from(lost) * 2 > u64::from(of) {
            return Err(Error::ManyDeletes { deletes, of });
        }
        Ok(deletes)
    }

    /// What is at each path of the manifest now.
    fn compare(&mut self, manifest: &Manifest, now: Now) -> Result<Vec<Seen>, Error> {
        self.disk.keep_folder(true);
        let done = self.compare_all(manifest, now);
        self.disk.keep_folder(false);
        done
    }

    fn compare_all(&mut self, manifest: &Manifest, now: Now) -> Result<Vec<Seen>, Error> {
        let mut seen = Vec::with_capacity(manifest.entries().len());
        let mut before = "";
        for entry in manifest.entries() {
            // Sorted: folders shared with the path before were looked at with it.
            for folder in entry.path.parents().filter(|folder| !is_above(folder, before)) {
                if let Some(stat) = self.disk.stat(folder)?
                    && !stat.is_dir
                    && self.head.get(folder).is_none()
                {
                    let why = format!(
                        "{folder} is no folder on the device (the application made it); remove it there"
                    );
                    return Err(Error::refused(409, why));
                }
            }
            before = &entry.path;
            seen.push(self.compare_one(entry, now)?);
        }
        Ok(seen)
    }

    fn compare_one(&mut self, entry: &Entry, now: Now) -> Result<Seen, Error> {
        const OTHER: Seen = Seen { state: Live::Other, stat: None };
        let Some(stat) = self.disk.stat(&entry.path)? else { return Ok(OTHER) };
        if stat.is_dir {
            let files = self.files_below(&entry.path)?;
            // A folder of the previous commit goes with its files; what the application made there does not.
            if let Some(other) = files.iter().find(|f| self.head.get(f).is_none()) {
                let path = &entry.path;
                let why =
                    format!("{path} is a folder on the device and holds {other}, which no sync put there");
                return Err(Error::refused(409, why));
            }
            return Ok(OTHER);
        }
        // Of a big file it is enough that it was another one lately: were it this one after all, its chunks are found in
        // it, and reading it twice is what takes the time. That it is this one is never taken from a hint.
        let was_other = |hashed: Arc<Hashed>| hashed.id != entry.id;
        if stat.size >= content::BIG && self.cache.hint(&stat).is_some_and(was_other) {
            return Ok(OTHER);
        }
        if !stat.is_file || stat.size != entry.size || self.hash_of(&entry.path, &stat, now)?.id != entry.id {
            return Ok(OTHER);
        }
        let state = if stat.mode & 0o777 == entry.mode { Live::Same } else { Live::Mode };
        Ok(Seen { state, stat: Some(stat) })
    }

    /// The content of a file of the tree, from the cache or by reading it.
    fn hash_of(&mut self, rel: &str, stat: &Stat, now: Now) -> Result<Arc<Hashed>, Error> {
        if let Some(hashed) = self.cache.get(stat) {
            return Ok(hashed);
        }
        let mut file = self.disk.open(rel)?;
        let path = self.disk.root.path().join(rel);
        let fail = |source| Error::io("read", path.clone(), source);
        let before = Stat::of(&file).map_err(fail)?;
        let hashed = if before.size < content::BIG {
            let mut bytes = Vec::with_capacity(before.size as usize + 1);
            (&mut file).take(content::BIG).read_to_end(&mut bytes).map_err(fail)?;
            Hashed { id: content::of_bytes(&bytes), size: bytes.len() as u64, chunks: None }
        } else {
            content::hash(&mut file).map_err(fail)?
        };
        let hashed = Arc::new(hashed);
        // One that changed meanwhile is what it was at no time: it is not remembered.
        if Stat::of(&file).map_err(fail)? == before && before.size == hashed.size {
            self.cache.put(&before, Arc::clone(&hashed), now.unix_ns);
        }
        Ok(hashed)
    }

    /// The state of the object, if it is there and whole; a damaged one is removed.
    fn has_object(&mut self, id: ContentId, size: u64, now: Now) -> Result<Option<Stat>, Error> {
        let rel = object(id);
        let Some(stat) = self.disk.stat(&rel)? else { return Ok(None) };
        if stat.is_file && stat.size == size && self.hash_of(&rel, &stat, now)?.id == id {
            return Ok(Some(stat));
        }
        log::warn!("the stored copy of {id} was changed (by the application?); it is fetched anew");
        self.disk.unlink(&rel)?;
        Ok(None)
    }
}

/// Whether `folder` is one of the folders above `path`.
fn is_above(folder: &str, path: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// What is at a path, compared with what should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Live {
    /// The content and the mode.
    Same,
    /// The content, with another mode.
    Mode,
    /// Something else, or nothing.
    Other,
}

/// A path as it was looked at.
#[derive(Clone, Copy, Debug)]
struct Seen {
    state: Live,
    /// For what is to stay.
    stat: Option<Stat>,
}

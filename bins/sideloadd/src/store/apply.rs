//! Putting a decided commit into place, and taking it back when the disk refuses half way.
//!
//! Owns nothing on disk but names in `stage/` (`link-N`, `old-N`) and `aside/`. Invariants: every step may be done twice,
//! so that it can begin anew after a crash; what a step replaces or removes keeps a name in `stage/` until all is
//! durable, so that a failure is undone exactly; what the application left in the way is moved to `aside/`, never deleted.

use std::collections::{BTreeSet, HashSet};

use edge::beneath::{self, Stat};

use super::bytecode;
use super::commit::parent;
use super::disk::Disk;
use super::journal::{Journal, Op, Source};
use super::{Error, OURS, ours};

/// How a step is taken back.
#[derive(Debug)]
enum Undo {
    /// The two changed places.
    Swap(String, String),
    /// It was moved.
    Moved { from: String, to: String },
    /// It is new.
    New(String),
    /// The folder is new.
    Folder(String),
    /// It had this mode and time.
    Attributes { path: String, mode: u32, mtime_ns: i64 },
}

/// One run over a journal.
#[derive(Debug)]
pub struct Apply<'a> {
    disk: &'a Disk,
    journal: &'a Journal,
    /// After a crash: what is done already is found done, and content that is gone is no reason to stop.
    again: bool,
    undo: Vec<Undo>,
    /// Folders that are known to be there.
    ready: HashSet<String>,
    /// Folders whose names changed, and files whose attributes did: to be made durable.
    folders: BTreeSet<String>,
    touched: Vec<String>,
    /// Content that was lost, as sentences.
    pub lost: Vec<String>,
}

impl<'a> Apply<'a> {
    pub fn new(disk: &'a Disk, journal: &'a Journal, again: bool) -> Apply<'a> {
        Apply {
            disk,
            journal,
            again,
            undo: Vec::new(),
            ready: HashSet::new(),
            folders: BTreeSet::new(),
            touched: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// All of it, until it is durable. The journal is still there afterwards.
    ///
    /// # Errors
    /// The disk failed. [`Apply::take_back`] then.
    pub fn run(&mut self) -> Result<(), Error> {
        self.disk.keep_folder(true);
        let done = self.steps();
        self.disk.keep_folder(false);
        done?;
        self.disk.flush(
            self.touched.iter().map(String::as_str).collect::<Vec<_>>().into_iter(),
            self.folders.iter().map(String::as_str).collect::<Vec<_>>().into_iter(),
        )?;
        self.recompile_again();
        self.remove_empty_folders();
        Ok(())
    }

    fn steps(&mut self) -> Result<(), Error> {
        let journal = self.journal;
        let places: BTreeSet<&str> = journal.ops.iter().filter_map(target).collect();
        let deletes = || journal.ops.iter().enumerate().filter(|(_, op)| matches!(op, Op::Delete { .. }));
        let (early, late): (Vec<_>, Vec<_>) =
            deletes().partition(|(_, op)| is_in_the_way(op.path(), &places));
        for (at, op) in early {
            self.delete(at, op.path())?;
        }
        for (at, op) in journal.ops.iter().enumerate() {
            match op {
                Op::Place { path, from, mode, mtime_ns } => self.place(at, path, from, *mode, *mtime_ns)?,
                Op::Mode { path, mode } => {
                    // The application may have removed it since: then it comes back with the next sync.
                    if let Some(stat) = self.disk.stat(path)?.filter(|stat| stat.is_file) {
                        self.set(path, &stat, *mode, stat.mtime_ns)?;
                    }
                }
                Op::Delete { .. } | Op::Recompile { .. } => {}
            }
        }
        for (at, op) in late {
            self.delete(at, op.path())?;
        }
        let changed = self.recompile()?;
        self.folders.extend(changed);
        self.name_record()
    }

    /// Byte code of what is replaced goes. If the commit is taken back after all, Python makes it again.
    fn recompile(&self) -> Result<BTreeSet<String>, Error> {
        let ops = self.journal.ops.iter().filter(|op| matches!(op, Op::Recompile { .. }));
        bytecode::remove(self.disk, ops.map(Op::path))
    }

    /// The application that is still running may have read an old source just before it was replaced, and have written
    /// its byte code since.
    fn recompile_again(&self) {
        let again =
            self.recompile().and_then(|folders| folders.iter().try_for_each(|f| self.disk.fsync_dir(f)));
        // What was there when the commit began is gone, durably.
        if let Err(error) = again {
            log::warn!("can't look for old byte code again: {}", edge::log::chain(&error));
        }
    }

    fn place(&mut self, at: usize, path: &str, from: &Source, mode: u32, mtime_ns: i64) -> Result<(), Error> {
        let source = match from {
            Source::Object(id) => ours(&format!("objects/{id}")),
            Source::Copy(name) => ours(&format!("stage/{name}")),
        };
        let Some(wanted) = self.disk.stat(&source)? else {
            let why =
                format!("the content of {path} is gone from {source}: was it removed by hand? Sync again");
            if self.again {
                self.lost.push(why);
                return Ok(());
            }
            return Err(Error::refused(500, why));
        };
        self.make_way(at, path)?;
        self.set(&source, &wanted, mode, mtime_ns)?;
        let there = self.disk.stat(path)?;
        if there.is_some_and(|stat| (stat.dev, stat.ino) == (wanted.dev, wanted.ino)) {
            return Ok(());
        }
        self.folders.insert(parent(path).to_owned());
        if there.is_none() {
            self.disk.link(&source, path)?;
            self.undo.push(Undo::New(path.to_owned()));
            return Ok(());
        }
        let link = ours(&format!("stage/link-{at}"));
        self.disk.unlink(&link)?;
        self.disk.link(&source, &link)?;
        if self.disk.exchange(&link, path)? {
            self.undo.push(Undo::Swap(link, path.to_owned()));
            return Ok(());
        }
        self.put_away(at, path)?;
        self.disk.rename(&link, path)?;
        self.undo.push(Undo::New(path.to_owned()));
        Ok(())
    }

    /// Sees to it that the folders of `path` are there, and no folder at `path` itself.
    fn make_way(&mut self, at: usize, path: &str) -> Result<(), Error> {
        if !self.ready.contains(parent(path)) {
            for (n, (end, _)) in path.match_indices('/').enumerate() {
                let Some(folder) = path.get(..end) else { continue };
                if self.ready.contains(folder) {
                    continue;
                }
                match self.disk.stat(folder)? {
                    Some(stat) if stat.is_dir => {}
                    found => {
                        if found.is_some() {
                            self.move_aside(folder, &format!("{at}-{n}"))?;
                        }
                        self.disk.make_folders(folder)?;
                        self.undo.push(Undo::Folder(folder.to_owned()));
                        self.folders.extend([parent(folder).to_owned(), folder.to_owned()]);
                    }
                }
                self.ready.insert(folder.to_owned());
            }
            self.ready.insert(parent(path).to_owned());
        }
        if self.disk.stat(path)?.is_some_and(|stat| stat.is_dir) {
            // Folders without a file are nobody's; others are kept.
            if self.is_bare(path, 0)? {
                self.put_away(at, path)?;
            } else {
                self.move_aside(path, &at.to_string())?;
            }
            // The folder that is open may be the one that moved.
            self.disk.keep_folder(true);
        }
        Ok(())
    }

    fn is_bare(&self, folder: &str, depth: usize) -> Result<bool, Error> {
        if depth > super::files::DEPTH_MAX {
            return Ok(false);
        }
        for name in self.disk.names(folder)? {
            let below = format!("{folder}/{name}");
            let is_folder = self.disk.stat(&below)?.is_some_and(|stat| stat.is_dir);
            if !is_folder || !self.is_bare(&below, depth + 1)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn set(&mut self, path: &str, stat: &Stat, mode: u32, mtime_ns: i64) -> Result<(), Error> {
        if stat.mode & 0o777 == mode && stat.mtime_ns == mtime_ns {
            return Ok(());
        }
        self.touched.push(path.to_owned());
        let (path, mode_before, mtime_before) = (path.to_owned(), stat.mode, stat.mtime_ns);
        self.undo.push(Undo::Attributes { path: path.clone(), mode: mode_before, mtime_ns: mtime_before });
        if stat.mode & 0o777 != mode {
            self.disk.set_mode(&path, mode)?;
        }
        if stat.mtime_ns != mtime_ns {
            self.disk.set_mtime(&path, mtime_ns)?;
        }
        Ok(())
    }

    fn delete(&mut self, at: usize, path: &str) -> Result<(), Error> {
        let found = match self.disk.stat(path) {
            // The application put a link that leaves the root where the folder was: our file is not there.
            Err(Error::Path(beneath::Error::Escapes { .. })) => return Ok(()),
            other => other?,
        };
        match found {
            // A folder that the application made where the file was is not ours to delete.
            Some(stat) if stat.is_dir => Ok(()),
            Some(_) => self.put_away(at, path),
            None => Ok(()),
        }
    }

    /// Takes it out of the tree; it goes for good when all is durable.
    fn put_away(&mut self, at: usize, path: &str) -> Result<(), Error> {
        let to = ours(&format!("stage/old-{at}"));
        self.disk.rename(path, &to)?;
        self.folders.insert(parent(path).to_owned());
        self.undo.push(Undo::Moved { from: path.to_owned(), to });
        Ok(())
    }

    fn move_aside(&mut self, path: &str, name: &str) -> Result<(), Error> {
        let mut to = ours(&format!("aside/{}-{name}", self.journal.commit));
        while self.disk.stat(&to)?.is_some() {
            to.push('x');
        }
        log::warn!("{path} was in the way of a sync and is {to} now");
        self.disk.rename(path, &to)?;
        self.folders.extend([parent(path).to_owned(), ours("aside")]);
        self.undo.push(Undo::Moved { from: path.to_owned(), to });
        Ok(())
    }

    /// The commit's record gets its name.
    fn name_record(&mut self) -> Result<(), Error> {
        let to = ours(&format!("commits/{}", self.journal.commit));
        let from = format!("{to}.new");
        if self.disk.stat(&from)?.is_some() {
            self.disk.rename(&from, &to)?;
            self.undo.push(Undo::Moved { from, to });
        }
        self.folders.insert(ours("commits"));
        Ok(())
    }

    /// Folders that the deletions left empty, the deepest first.
    fn remove_empty_folders(&self) {
        let gone = self.journal.ops.iter().filter(|op| matches!(op, Op::Delete { .. })).map(Op::path);
        let folders: BTreeSet<&str> =
            gone.flat_map(|path| path.match_indices('/').filter_map(|(end, _)| path.get(..end))).collect();
        for folder in folders.into_iter().rev() {
            // Not empty: something still lives there. Whatever else: it is an empty folder too many.
            let _ = self.disk.rmdir(folder);
        }
    }

    /// Undoes what was done, the last step first. The journal goes with it.
    ///
    /// # Errors
    /// The disk failed again: the journal is still there, and the commit goes on with the next opportunity.
    pub fn take_back(mut self) -> Result<(), Error> {
        for step in std::mem::take(&mut self.undo).into_iter().rev() {
            match step {
                Undo::Swap(a, b) => drop(self.disk.exchange(&a, &b)?),
                Undo::Moved { from, to } => self.disk.rename(&to, &from)?,
                Undo::New(path) => drop(self.disk.unlink(&path)?),
                // The application may have put something there.
                Undo::Folder(folder) => drop(self.disk.rmdir(&folder)),
                Undo::Attributes { path, mode, mtime_ns } => {
                    self.disk.set_mode(&path, mode)?;
                    self.disk.set_mtime(&path, mtime_ns)?;
                }
            }
        }
        let folders: Vec<&str> = self.folders.iter().map(String::as_str).collect();
        self.disk.flush(std::iter::empty(), folders.into_iter())?;
        self.disk.unlink(&ours("journal"))?;
        self.disk.fsync_dir(OURS)
    }
}

/// Whether a file that goes is in the way of one that comes: one of the two is a folder on the way to the other.
fn is_in_the_way(path: &str, places: &BTreeSet<&str>) -> bool {
    let above = path.match_indices('/').any(|(end, _)| path.get(..end).is_some_and(|f| places.contains(f)));
    let below = format!("{path}/");
    above || places.range(below.as_str()..).next().is_some_and(|first| first.starts_with(&below))
}

fn target(op: &Op) -> Option<&str> {
    match op {
        Op::Place { path, .. } => Some(path),
        Op::Mode { .. } | Op::Delete { .. } | Op::Recompile { .. } => None,
    }
}

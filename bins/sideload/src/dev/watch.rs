//! What changes in the source folder, by inotify: a watch on each folder that no rule ignores.
//!
//! Invariants: after a watch is placed its folder is listed again and what is in it counts as changed, so nothing falls
//! between a listing and a watch; after any change of folders or of ignore files all watches are placed anew (placing
//! one twice is free of effect), so no watch stands for a path it does not have. Never: polls, reads a file.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::{AsRawFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask, Watches};

use super::debounce::Changes;
use crate::scan::{self, IGNORE_FILE};

/// Bytes of events read at a time.
const BUFFER: usize = 64 * 1024;
/// Folders made while watches are placed ask for another round; a storm that outlasts these is caught by its events.
const ROUNDS_MAX: usize = 64;

/// Why watching ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// inotify itself.
    #[error("can't watch {}", path.display())]
    System {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's limit of inotify instances for this user, or that of open files for this process.
    #[error("can't watch {}: this user has no inotify instances left", path.display())]
    Instances {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel's limit for this user.
    #[error("can't watch {}: this user has no watches left", path.display())]
    Limit {
        /// The folder.
        path: PathBuf,
    },
    /// There is nothing left to watch.
    #[error("the source folder {} was deleted or moved", path.display())]
    Gone {
        /// The folder.
        path: PathBuf,
    },
}

impl Error {
    /// What a person can do about it.
    #[must_use]
    pub fn fix(&self) -> Option<String> {
        match self {
            Error::Limit { .. } => Some(
                "raise it: sysctl fs.inotify.max_user_watches=524288; or name folders that the application does not \
                 need in .sideloadignore"
                    .into(),
            ),
            Error::Instances { .. } => Some(
                "end other programs that watch files (editors, other `sideload dev`), or raise it: sysctl \
                 fs.inotify.max_user_instances=1024"
                    .into(),
            ),
            Error::Gone { .. } => Some("bring it back and start again".into()),
            Error::System { .. } => None,
        }
    }
}

/// A watched folder.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// What counted in it when it was last listed: tells whether something that went away had counted.
    names: HashSet<OsString>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Watch {
    top: PathBuf,
    inotify: Inotify,
    watches: Watches,
    folders: HashMap<WatchDescriptor, Folder>,
    buffer: Vec<u8>,
    full: bool,
}

/// What a round of reading found.
#[derive(Debug, Default)]
struct Seen {
    /// Names by folder.
    touched: BTreeMap<PathBuf, BTreeSet<OsString>>,
    /// Folders came, went or moved, or the rules changed.
    folders: bool,
    /// Events were lost, or the rules changed.
    all: bool,
    gone: bool,
}

impl Watch {
    /// Watches `top` (absolute, without links).
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(top: &Path) -> Result<Watch, Error> {
        let inotify = Inotify::init().map_err(|source| {
            let path = top.to_owned();
            // The number of the instances, or of this process's open files, is used up.
            match source.raw_os_error() {
                Some(errno) if errno == rustix::io::Errno::MFILE.raw_os_error() => {
                    Error::Instances { path, source }
                }
                _ => Error::System { path, source },
            }
        })?;
        let watches = inotify.watches();
        let mut watch = Watch {
            top: top.to_owned(),
            inotify,
            watches,
            folders: HashMap::new(),
            buffer: vec![0; BUFFER],
            full: false,
        };
        watch.place()?;
        if watch.full {
            return Err(Error::Limit { path: top.to_owned() });
        }
        Ok(watch)
    }

    /// For [`mio::unix::SourceFd`].
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.inotify.as_raw_fd()
    }

    /// Reads all events there are: what changed.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::System`].
    pub fn read(&mut self) -> Result<Changes, Error> {
        let mut seen = Seen::default();
        loop {
            match self.inotify.read_events(&mut self.buffer) {
                Ok(events) => {
                    for event in events {
                        note(&self.folders, &self.top, &event, &mut seen);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::System { path: self.top.clone(), source }),
            }
        }
        self.conclude(seen)
    }

    fn conclude(&mut self, seen: Seen) -> Result<Changes, Error> {
        if seen.gone || (seen.folders && !self.top.is_dir()) {
            return Err(Error::Gone { path: self.top.clone() });
        }
        let mut changes = Changes::default();
        for (folder, names) in &seen.touched {
            changes.merge(self.counting(folder, names));
        }
        if seen.folders || seen.all {
            changes.merge(self.place()?);
        }
        if seen.all {
            changes = Changes::All;
        }
        Ok(changes)
    }

    /// Those of `names` that count now, or did when they were there.
    fn counting(&mut self, path: &Path, names: &BTreeSet<OsString>) -> Changes {
        let now: HashSet<OsString> = scan::listing(&self.top, path)
            .iter()
            .filter_map(|p| p.file_name().map(OsStr::to_owned))
            .collect();
        let folder = self.folders.values_mut().find(|folder| folder.path == path);
        let before =
            folder.map(|folder| std::mem::replace(&mut folder.names, now.clone())).unwrap_or_default();
        Changes::Paths(
            names
                .iter()
                .filter(|name| now.contains(*name) || before.contains(*name))
                .map(|name| path.join(name))
                .collect(),
        )
    }

    /// Places all watches: what is in folders that had none counts as changed.
    fn place(&mut self) -> Result<Changes, Error> {
        let mut fresh: HashSet<PathBuf> = HashSet::new();
        for _ in 0..ROUNDS_MAX {
            let mut files = Changes::default();
            let mut contents: HashMap<PathBuf, HashSet<OsString>> = HashMap::new();
            for entry in scan::walker(&self.top).build().filter_map(Result::ok) {
                let is_folder = entry.file_type().is_some_and(|kind| kind.is_dir());
                let path = entry.into_path();
                if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
                    if path != self.top {
                        contents.entry(parent.to_owned()).or_default().insert(name.to_owned());
                    }
                    if !is_folder && fresh.contains(parent) {
                        files.merge(Changes::one(path.clone()));
                    }
                }
                if is_folder {
                    contents.entry(path).or_default();
                }
            }
            let placed = self.place_on(contents)?;
            if placed.is_empty() {
                return Ok(files);
            }
            fresh.extend(placed);
        }
        Ok(Changes::All)
    }

    /// Watches exactly these folders; those that had no watch.
    fn place_on(&mut self, contents: HashMap<PathBuf, HashSet<OsString>>) -> Result<Vec<PathBuf>, Error> {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR
            | WatchMask::DONT_FOLLOW
            | WatchMask::EXCL_UNLINK;
        let mut placed = Vec::new();
        let mut folders = HashMap::with_capacity(contents.len());
        for (path, names) in contents {
            match self.watches.add(&path, mask) {
                Ok(watch) => {
                    if self.folders.get(&watch).is_none_or(|old| old.path != path) {
                        placed.push(path.clone());
                    }
                    folders.insert(watch, Folder { path, names });
                }
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) => {
                    if !std::mem::replace(&mut self.full, true) {
                        log::warn!("no inotify watches left: changes in {} are not seen", path.display());
                    }
                }
                // It went away, or may not be read: the sync will say so.
                Err(error) if path != self.top => log::debug!("no watch on {}: {error}", path.display()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Gone { path }),
                Err(source) => return Err(Error::System { path, source }),
            }
        }
        for (watch, _) in std::mem::replace(&mut self.folders, folders) {
            if !self.folders.contains_key(&watch) {
                // The kernel has dropped it already when the folder was deleted.
                let _ = self.watches.remove(watch);
            }
        }
        Ok(placed)
    }
}

/// Sorts one event.
fn note(
    folders: &HashMap<WatchDescriptor, Folder>,
    top: &Path,
    event: &inotify::Event<&OsStr>,
    seen: &mut Seen,
) {
    let mask = event.mask;
    if mask.contains(EventMask::Q_OVERFLOW) {
        seen.all = true;
        return;
    }
    // A watch that was removed may have events left.
    let Some(folder) = folders.get(&event.wd) else { return };
    let Some(name) = event.name else {
        let ended = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::UNMOUNT;
        if mask.intersects(ended) {
            seen.gone |= folder.path == top;
            seen.folders = true;
        }
        return;
    };
    if mask.contains(EventMask::ISDIR) {
        if mask
            .intersects(EventMask::CREATE | EventMask::DELETE | EventMask::MOVED_FROM | EventMask::MOVED_TO)
        {
            seen.folders = true;
            // What was in it went with it.
            if mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
                seen.touched.entry(folder.path.clone()).or_default().insert(name.to_owned());
            }
        }
        return;
    }
    // A new file is reported once more when its writer closes it; links and second names are not.
    if mask.contains(EventMask::CREATE)
        && folder.path.join(name).symlink_metadata().is_ok_and(|meta| meta.is_file() && meta.nlink() == 1)
    {
        return;
    }
    if name == OsStr::new(".gitignore") || name == OsStr::new(IGNORE_FILE) {
        seen.all = true;
    }
    seen.touched.entry(folder.path.clone()).or_default().insert(name.to_owned());
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        time::{Duration, Instant},
    };

    use super::*;
    use crate::scratch::Scratch;

    /// All changes until nothing came for a while, relative to the folder.
    fn changed(watch: &mut Watch) -> Vec<String> {
        let mut all = Changes::default();
        let mut quiet_since = Instant::now();
        while quiet_since.elapsed() < Duration::from_millis(60) {
            let changes = watch.read().unwrap();
            if !changes.is_empty() {
                quiet_since = Instant::now();
            }
            all.merge(changes);
            std::thread::sleep(Duration::from_millis(2));
        }
        let top = watch.top.clone();
        match all.paths() {
            None => vec!["*".into()],
            Some(paths) => paths.map(|p| p.strip_prefix(&top).unwrap().display().to_string()).collect(),
        }
    }

    fn tree(name: &str) -> (Scratch, Watch) {
        let scratch = Scratch::new(name);
        fs::create_dir_all(scratch.path().join("src/deep")).unwrap();
        fs::create_dir_all(scratch.path().join("out")).unwrap();
        scratch.write(".gitignore", "*.log\nout/\n");
        scratch.write("app.py", "1");
        scratch.write("src/deep/a.py", "1");
        let watch = Watch::new(scratch.path()).unwrap();
        (scratch, watch)
    }

    #[test]
    fn saves_in_all_the_ways_of_editors() {
        let (scratch, mut watch) = tree("watch-saves");
        let top = scratch.path().to_owned();
        scratch.write("app.py", "2");
        assert_eq!(changed(&mut watch), ["app.py"]);
        // Written beside, then renamed over it.
        scratch.write("src/deep/a.py.new", "2");
        fs::rename(top.join("src/deep/a.py.new"), top.join("src/deep/a.py")).unwrap();
        // The first name counts if it was seen while it was there.
        assert_eq!(changed(&mut watch)[0], "src/deep/a.py");
        // The old one becomes the backup.
        fs::rename(top.join("app.py"), top.join("app.py~")).unwrap();
        scratch.write("app.py", "3");
        assert_eq!(changed(&mut watch), ["app.py", "app.py~"]);
        scratch.write("x.log", "ignored");
        scratch.write("out/x", "ignored");
        assert_eq!(changed(&mut watch), [""; 0]);
        std::os::unix::fs::symlink("app.py", top.join("link.py")).unwrap();
        fs::hard_link(top.join("app.py"), top.join("second.py")).unwrap();
        assert!(changed(&mut watch).contains(&"link.py".to_owned()));
        fs::remove_file(top.join("second.py")).unwrap();
        fs::remove_file(top.join("x.log")).unwrap();
        assert_eq!(changed(&mut watch).last().unwrap(), "second.py");
    }

    #[test]
    fn folders_come_go_and_move() {
        let (scratch, mut watch) = tree("watch-folders");
        let top = scratch.path().to_owned();
        let outside = Scratch::new("watch-outside");
        fs::create_dir_all(outside.path().join("pkg/x/y")).unwrap();
        outside.write("pkg/x/y/b.py", "1");
        fs::rename(outside.path().join("pkg"), top.join("pkg")).unwrap();
        assert_eq!(changed(&mut watch), ["pkg/x/y/b.py"]);
        scratch.write("pkg/x/y/b.py", "2");
        assert_eq!(changed(&mut watch), ["pkg/x/y/b.py"]);
        fs::rename(top.join("pkg"), top.join("src/pkg2")).unwrap();
        assert_eq!(changed(&mut watch), ["pkg", "src/pkg2/x/y/b.py"]);
        scratch.write("src/pkg2/x/y/b.py", "3");
        assert_eq!(changed(&mut watch), ["src/pkg2/x/y/b.py"]);
        fs::remove_dir_all(top.join("src")).unwrap();
        assert!(changed(&mut watch).contains(&"src".to_owned()));
        assert_eq!(watch.folders.len(), 1);
        // Made at once, level by level, files included: none is missed.
        for n in 0..30 {
            fs::create_dir_all(top.join(format!("n{n}/a/b/c"))).unwrap();
            scratch.write(&format!("n{n}/a/b/c/f"), "1");
        }
        assert_eq!(changed(&mut watch).iter().filter(|p| p.ends_with("/f")).count(), 30);
        // A rule is new: its folder is watched no more.
        let before = watch.folders.len();
        scratch.write(".sideloadignore", "n1/\n");
        assert_eq!(changed(&mut watch), ["*"]);
        assert_eq!(watch.folders.len(), before - 4);
    }

    #[test]
    fn a_storm_misses_nothing() {
        let (scratch, mut watch) = tree("watch-storm");
        let top = scratch.path().to_owned();
        let writer = std::thread::spawn(move || {
            for n in 0..2000 {
                let folder = top.join(format!("d{}", n % 50));
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join(format!("f{n}")), "x").unwrap();
            }
        });
        let mut all = changed(&mut watch);
        writer.join().unwrap();
        all.extend(changed(&mut watch));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 2000);
    }

    #[test]
    fn an_overflow_is_everything_and_the_end_of_the_folder_is_an_error() {
        let (scratch, mut watch) = tree("watch-end");
        fs::create_dir(scratch.path().join("unseen")).unwrap();
        watch.inotify.read_events(&mut watch.buffer).unwrap().for_each(drop);
        let changes = watch.conclude(Seen { all: true, ..Seen::default() }).unwrap();
        assert_eq!(changes, Changes::All);
        scratch.write("unseen/x", "1");
        assert_eq!(changed(&mut watch), ["unseen/x"]);
        fs::remove_dir_all(scratch.path()).unwrap();
        let error = watch.read().unwrap_err();
        assert!(matches!(error, Error::Gone { .. }), "{error}");
    }
}

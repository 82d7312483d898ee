//! Objects as files under a folder.
//!
//! A file is written under a temporary name in the folder it will live in, synced, renamed without replacing
//! (`RENAME_NOREPLACE`, or `link` where a filesystem doesn't know it), and the folder synced. So a reader sees a whole
//! file or none, and so does the next start after a power cut. The sidecar is there before its object.
//!
//! Invariants: every path is opened below the root's descriptor with `RESOLVE_BENEATH`-like care: segment by segment,
//! never through a symbolic link; an existing file is never changed. Temporary files begin with `.s3put-`, a name that
//! no key's segment has (those are left to us), and are removed at the next start.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{Object, Outcome, sidecar_key};

const TEMPORARY: &str = ".s3put-";

/// A folder of objects.
#[derive(Debug)]
pub struct Dir {
    root: PathBuf,
    mode: u32,
    count: AtomicU64,
}

/// What stands in the way, by what it means for the object.
enum Trouble {
    /// The disk or its permissions: nothing can be stored.
    Target(String),
    /// This key can't be stored here.
    Object(String),
}

fn target(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Trouble {
    Trouble::Target(format!("{what}: {error}"))
}

impl Dir {
    /// Objects under `root`, which must exist, with files of this mode. Left-over temporary files are removed as their
    /// folders are used.
    #[must_use]
    pub fn new(root: PathBuf, mode: u32) -> Self {
        Self { root, mode, count: AtomicU64::new(0) }
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Removes temporary files that a process before us left, looking at most at 100 000 entries.
    pub fn clean(&self) {
        let mut folders = vec![self.root.clone()];
        let mut left = 100_000u32;
        while let Some(folder) = folders.pop() {
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            for entry in entries.flatten() {
                left = left.saturating_sub(1);
                if left == 0 {
                    return;
                }
                let Ok(kind) = entry.file_type() else { continue };
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() && entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                    // One that stays is no harm: it is never read.
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
    }

    /// Stores the object and its sidecar.
    pub fn put(&self, object: &Object<'_>) -> Outcome {
        match self.try_put(object) {
            Ok(outcome) => outcome,
            Err(Trouble::Target(why)) => Outcome::Hold(format!("dir:{}: {why}", self.root.display())),
            Err(Trouble::Object(why)) => Outcome::Dead(why),
        }
    }

    fn try_put(&self, object: &Object<'_>) -> Result<Outcome, Trouble> {
        let (folders, name) = object.key.rsplit_once('/').unwrap_or(("", object.key));
        let sidecar_key = sidecar_key(name);
        // Keys are checked before they come here; this is the last line of defence.
        if let Some(bad) =
            object.key.split('/').find(|s| matches!(*s, "." | "..") || s.starts_with(TEMPORARY))
        {
            return Err(Trouble::Object(format!(
                "the key {:?} has the segment {bad:?}, which no object can have",
                object.key
            )));
        }
        if let Some(long) = object.key.split('/').chain([sidecar_key.as_str()]).find(|s| s.len() > 255) {
            return Err(Trouble::Object(format!(
                "the key's segment {long:?} (with .json for the sidecar) is longer than the 255 bytes a file's name can have"
            )));
        }
        let folder = self.open_folder(folders)?;
        let differs =
            |key: &str| Outcome::Dead(format!("{key} exists in {} with other content", self.root.display()));
        if let Some(same) = same_content(&folder, name, object.body)? {
            if !same {
                return Ok(differs(object.key));
            }
            // It may have come there without its sidecar, or by another hand: then the sidecar is made now.
            if let Some(sidecar) = object.sidecar {
                self.store(&folder, &sidecar_key, sidecar)?;
            }
            sync(&folder)?;
            return Ok(Outcome::Stored { already: true });
        }
        if let Some(sidecar) = object.sidecar {
            self.store(&folder, &sidecar_key, sidecar)?;
        }
        let made = self.store(&folder, name, object.body)?;
        if !made && same_content(&folder, name, object.body)? != Some(true) {
            return Ok(differs(object.key));
        }
        sync(&folder)?;
        Ok(Outcome::Stored { already: !made })
    }

    /// Opens the folder of a key below the root, making what is missing.
    fn open_folder(&self, path: &str) -> Result<OwnedFd, Trouble> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let root = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let mut folder = rustix::fs::open(&self.root, root, Mode::empty())
            .map_err(|e| target("can't open the folder", e))?;
        for segment in path.split('/').filter(|s| !s.is_empty()) {
            let next = match rustix::fs::openat(&folder, segment, flags, Mode::empty()) {
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&folder, segment, Mode::from_raw_mode(0o755)) {
                        Ok(()) => sync(&folder)?,
                        Err(Errno::EXIST) => {}
                        Err(error) => {
                            return Err(target(format_args!("can't make the folder {segment:?}"), error));
                        }
                    }
                    rustix::fs::openat(&folder, segment, flags, Mode::empty())
                }
                other => other,
            };
            folder = match next {
                Ok(next) => next,
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return Err(Trouble::Object(format!(
                        "{path:?}: {segment:?} is there already and is no folder"
                    )));
                }
                Err(error) => {
                    return Err(target(format_args!("can't open the folder {segment:?} of {path:?}"), error));
                }
            };
        }
        Ok(folder)
    }

    /// Writes `bytes` as `name` unless something of that name is there; says whether it was made.
    fn store(&self, folder: &OwnedFd, name: &str, bytes: &[u8]) -> Result<bool, Trouble> {
        let n = self.count.fetch_add(1, Ordering::Relaxed);
        let temporary = format!("{TEMPORARY}{}-{n}", std::process::id());
        let result = self.write_temporary(folder, &temporary, bytes).and_then(|()| {
            match rustix::fs::renameat_with(folder, &temporary, folder, name, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(true),
                Err(Errno::EXIST) => return Ok(false),
                // Filesystems without it (some network and FUSE ones): a hard link doesn't replace either.
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(target(format_args!("can't rename a file to {name:?}"), error)),
            }
            match rustix::fs::linkat(folder, &temporary, folder, name, AtFlags::empty()) {
                Ok(()) => Ok(true),
                Err(Errno::EXIST) => Ok(false),
                Err(error) => Err(target(format_args!("can't link a file to {name:?}"), error)),
            }
        });
        // Gone already after a rename.
        let _ = rustix::fs::unlinkat(folder, &temporary, AtFlags::empty());
        result
    }

    fn write_temporary(&self, folder: &OwnedFd, name: &str, bytes: &[u8]) -> Result<(), Trouble> {
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(self.mode);
        let file =
            rustix::fs::openat(folder, name, flags, mode).map_err(|e| target("can't create a file", e))?;
        let mut file = File::from(file);
        file.write_all(bytes).map_err(|e| target(format_args!("can't write {} bytes", bytes.len()), e))?;
        file.sync_all().map_err(|e| target("can't sync a file", e))
    }
}

fn sync(folder: &OwnedFd) -> Result<(), Trouble> {
    rustix::fs::fsync(folder).map_err(|e| target("can't sync the folder", e))
}

/// Whether the file `name` has this content; `None` if there is none. What is no file has other content.
fn same_content(folder: &OwnedFd, name: &str, bytes: &[u8]) -> Result<Option<bool>, Trouble> {
    // NONBLOCK: opening a FIFO that somebody put there must not hang.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fail = |error: io::Error| target(format_args!("can't read the file {name:?} that is there"), error);
    let mut file = match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP | Errno::NXIO) => return Ok(Some(false)),
        Err(error) => return Err(fail(error.into())),
    };
    let meta = file.metadata().map_err(fail)?;
    if !meta.is_file() || meta.len() != bytes.len() as u64 {
        return Ok(Some(false));
    }
    let mut buffer = vec![0; 64 * 1024];
    let mut rest = bytes;
    loop {
        match file.read(&mut buffer).map_err(fail)? {
            0 => {
                // What is there may not be on disk yet, if the process that wrote it was killed.
                file.sync_all().map_err(fail)?;
                return Ok(Some(rest.is_empty()));
            }
            n if rest.get(..n) == Some(&buffer[..n]) => rest = &rest[n..],
            _ => return Ok(Some(false)),
        }
    }
}

#[cfg(test)]
#[path = "dir_tests.rs"]
mod tests;

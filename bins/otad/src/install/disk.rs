//! What the store does to its folder as a whole: durable small files, the link, removing, free space.
//!
//! Owns the folder's path, its lock, and a descriptor by which the whole file system is flushed.

use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use edge::release::Sha256;

use super::record::FILE_BYTES_MAX;
use super::{Error, GenId};

/// From that many files and folders on, one `syncfs(2)` is cheaper than an `fsync(2)` each.
const SYNCFS_FROM: usize = 12;
/// Free space is looked at again after that many written bytes.
const SPACE_STEP: u64 = 16 << 20;

/// The folder, locked.
#[derive(Debug)]
pub struct Disk {
    pub dir: PathBuf,
    /// The lock; also names the file system for `syncfs`, and so was opened before anything was written.
    lock: File,
    /// `syncfs` reports write errors.
    syncfs_tells: bool,
}

/// Takes from the disk while enough of it stays free.
#[derive(Clone, Debug)]
pub struct Room {
    dir: PathBuf,
    keep: u64,
    since: u64,
}

impl Room {
    pub fn new(dir: &Path, keep: u64) -> Room {
        Room { dir: dir.to_owned(), keep, since: 0 }
    }

    /// Whether `need` bytes fit.
    pub fn check(&self, need: u64) -> Result<(), Error> {
        let free = edge::fs::free_bytes(&self.dir)?;
        let keep = self.keep;
        if free >= keep.saturating_add(need) { Ok(()) } else { Err(Error::Space { need, keep, free }) }
    }

    /// `bytes` are about to be written.
    pub fn spend(&mut self, bytes: usize) -> Result<(), Error> {
        self.since += bytes as u64;
        if self.since < SPACE_STEP {
            return Ok(());
        }
        self.since = 0;
        self.check(0)
    }
}

impl Disk {
    /// Makes what is missing, and locks it.
    pub fn open(dir: &Path) -> Result<Disk, Error> {
        // The link and the generations are for the apps of all users, whatever the umask says.
        for folder in [dir.to_owned(), dir.join("blobs"), dir.join("gens")] {
            let made = !folder.is_dir();
            edge::fs::create_dir_durably(&folder)?;
            if made {
                let mode = std::fs::Permissions::from_mode(0o755);
                std::fs::set_permissions(&folder, mode).map_err(Error::io("set the mode of", &folder))?;
            }
        }
        let path = dir.join("lock");
        let lock = File::options().create(true).append(true).open(&path).map_err(Error::io("open", &path))?;
        if !edge::fs::lock_alone(&lock).map_err(Error::io("lock", &path))? {
            return Err(Error::Locked(dir.to_owned()));
        }
        Ok(Disk { dir: dir.to_owned(), lock, syncfs_tells: edge::fs::syncfs_tells_errors() })
    }

    /// One that is only read: not locked, and nothing is made.
    pub fn look(dir: &Path) -> Result<Disk, Error> {
        let lock = File::open(dir).map_err(Error::io("open", dir))?;
        Ok(Disk { dir: dir.to_owned(), lock, syncfs_tells: false })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn blob(&self, sha256: &Sha256) -> PathBuf {
        self.dir.join("blobs").join(sha256.to_string())
    }

    pub fn generation(&self, id: &GenId) -> PathBuf {
        self.dir.join("gens").join(id.to_string())
    }

    /// Makes a small file hold this, durably.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        Ok(edge::fs::write_durably(&self.path(name), bytes, 0o644)?)
    }

    /// The content of a small file; `None`: there is none.
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(Error::io("read", path))?;
        Ok(Some(bytes))
    }

    /// What `current` names: `Ok(None)`: there is no such link, or it names no generation.
    pub fn current(&self) -> Option<GenId> {
        let target = std::fs::read_link(self.path("current")).ok()?;
        target.to_str()?.strip_prefix("gens/")?.parse().ok()
    }

    /// Makes `current` name this generation (or nothing), durably.
    pub fn relink(&self, to: Option<GenId>) -> Result<(), Error> {
        let (link, next) = (self.path("current"), self.path(".current.new"));
        match to {
            Some(id) => {
                remove_file(&next)?;
                symlink(format!("gens/{id}"), &next).map_err(Error::io("make the link", &next))?;
                std::fs::rename(&next, &link).map_err(Error::io("swap the link", &link))?;
            }
            None => remove_file(&link)?,
        }
        Ok(edge::fs::fsync_dir(&self.dir)?)
    }

    /// Removes a generation, so that half of one never has its name.
    pub fn remove_generation(&self, id: &GenId) -> Result<(), Error> {
        let (path, old) = (self.generation(id), self.dir.join(format!("gens/.old-{id}")));
        remove_tree(&old)?;
        match std::fs::rename(&path, &old) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("rename for removal", &path)(error)),
            Ok(()) => remove_tree(&old),
        }
    }

    /// The names in a folder of ours.
    pub fn names(&self, folder: &str) -> Result<Vec<String>, Error> {
        let path = self.path(folder);
        let list = std::fs::read_dir(&path).map_err(Error::io("list", &path))?;
        let mut names = Vec::new();
        for entry in list {
            let name = entry.map_err(Error::io("list", &path))?.file_name();
            names.extend(name.into_string());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Makes a folder and all in it durable, bottom up: one by one if it is little, else with all that the file system
    /// holds.
    pub fn flush_tree(&self, top: &Path) -> Result<(), Error> {
        let mut left = SYNCFS_FROM;
        if self.syncfs_tells && !fewer_than(top, &mut left)? {
            return rustix::fs::syncfs(&self.lock).map_err(Error::io("syncfs the file system of", &self.dir));
        }
        fsync_tree(top)
    }
}

/// Whether the folder holds less than `left` entries.
fn fewer_than(folder: &Path, left: &mut usize) -> Result<bool, Error> {
    for (path, meta) in entries(folder)? {
        *left = left.saturating_sub(1);
        if *left == 0 || (meta.is_dir() && !fewer_than(&path, left)?) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn fsync_tree(folder: &Path) -> Result<(), Error> {
    for (path, meta) in entries(folder)? {
        if meta.is_dir() {
            fsync_tree(&path)?;
        } else if meta.is_file() {
            let file = File::open(&path).map_err(Error::io("open", &path))?;
            file.sync_all().map_err(Error::io("fsync", &path))?;
        }
    }
    Ok(edge::fs::fsync_dir(folder)?)
}

/// What is in a folder, links as such, sorted.
pub fn entries(folder: &Path) -> Result<Vec<(PathBuf, Metadata)>, Error> {
    let list = std::fs::read_dir(folder).map_err(Error::io("list", folder))?;
    let mut found = Vec::new();
    for entry in list {
        let entry = entry.map_err(Error::io("list", folder))?;
        let path = entry.path();
        let meta = entry.metadata().map_err(Error::io("look at", &path))?;
        found.push((path, meta));
    }
    found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Removes a file or link. It need not be there.
pub fn remove_file(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes a folder and what is in it, following no link. It need not be there.
pub fn remove_tree(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove the folder", path)(error))
        }
        _ => Ok(()),
    }
}

/// A new folder with this mode, whatever the umask.
pub fn make_folder(path: &Path, mode: u32) -> Result<(), Error> {
    std::fs::create_dir(path).map_err(Error::io("make the folder", path))?;
    set_mode(path, mode)
}

/// Of a file or folder that is ours and no link.
pub fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(Error::io("set the mode of", path))
}

//! The files made or fetched once and kept on disk: bundles, and content of a store that is elsewhere.
//!
//! Owns: the folder, which of its files are whole, and in which order they go. Invariants: files and room taken by those
//! being made are within the bounds; a file has its name only when it is whole and on disk, so that a crash leaves none
//! that is half; what is removed while it is being sent is sent to its end.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use edge::fs::{self, context};

/// What files that are being made begin with.
pub const TEMPORARY: &str = ".new-";

/// A whole file.
#[derive(Debug, Clone)]
pub struct Whole {
    pub file: Arc<File>,
    pub size: u64,
}

#[derive(Debug)]
struct Kept {
    whole: Whole,
    used: u64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    kept: HashMap<String, Kept>,
    order: BTreeMap<u64, String>,
    tick: u64,
    bytes: u64,
    /// Promised to files that are being made, and how many those are.
    reserved: (u64, usize),
    bytes_max: u64,
    files_max: usize,
    /// Held until the end.
    _lock: File,
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// It would not fit into all of it.
    Ever,
    /// Others are being made.
    Now,
}

/// Why the folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] fs::Error),
    #[error("another depotd has its cache in {0}: set another bundle.dir")]
    InUse(PathBuf),
}

impl Cache {
    /// Opens the folder (makes it where it is not there) and takes up what whole files it has.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(dir: &Path, bytes_max: u64, files_max: usize) -> Result<Self, Error> {
        fs::create_dir_durably(dir)?;
        let path = dir.join(".lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o640).open(&path);
        let lock = lock.map_err(context("open", &path))?;
        if !fs::lock_alone(&lock).map_err(context("lock", &path))? {
            return Err(Error::InUse(dir.to_owned()));
        }
        let mut cache = Self {
            dir: dir.to_owned(),
            kept: HashMap::new(),
            order: BTreeMap::new(),
            tick: 0,
            bytes: 0,
            reserved: (0, 0),
            bytes_max,
            files_max,
            _lock: lock,
        };
        let mut found: Vec<(SystemTime, String, u64)> = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(context("read the folder", dir))? {
            let entry = entry.map_err(context("read the folder", dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(TEMPORARY) {
                let path = entry.path();
                std::fs::remove_file(&path).map_err(context("remove", &path))?;
            } else if is_ours(&name)
                && let Ok(metadata) = entry.metadata()
            {
                found.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), name, metadata.len()));
            }
        }
        found.sort();
        for (_, name, size) in found {
            let path = cache.path(&name);
            match File::open(&path) {
                Ok(file) => cache.insert(&name, Whole { file: Arc::new(file), size }),
                Err(error) => log::warn!("{}: {error}", path.display()),
            }
        }
        Ok(cache)
    }

    /// Where a file of that name is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Its folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes and files.
    #[must_use]
    pub fn size(&self) -> (u64, usize) {
        (self.bytes, self.kept.len())
    }

    /// A whole file.
    pub fn get(&mut self, name: &str) -> Option<Whole> {
        let kept = self.kept.get_mut(name)?;
        if let Some(name) = self.order.remove(&kept.used) {
            self.tick += 1;
            kept.used = self.tick;
            self.order.insert(self.tick, name);
        }
        Some(kept.whole.clone())
    }

    /// Sets room aside for a file of at most `bytes`, for which others go.
    ///
    /// # Errors
    /// [`NoRoom`].
    pub fn reserve(&mut self, bytes: u64) -> Result<(), NoRoom> {
        if bytes > self.bytes_max {
            return Err(NoRoom::Ever);
        }
        if self.reserved.0.saturating_add(bytes) > self.bytes_max || self.reserved.1 >= self.files_max {
            return Err(NoRoom::Now);
        }
        self.reserved = (self.reserved.0 + bytes, self.reserved.1 + 1);
        self.shrink();
        Ok(())
    }

    /// Gives back what [`Cache::reserve`] set aside: the file is there, or will never be.
    pub fn release(&mut self, bytes: u64) {
        self.reserved = (self.reserved.0.saturating_sub(bytes), self.reserved.1.saturating_sub(1));
    }

    /// Takes up a file that is whole and has its name.
    pub fn insert(&mut self, name: &str, whole: Whole) {
        self.remove(name, false);
        self.tick += 1;
        self.bytes += whole.size;
        self.order.insert(self.tick, name.to_owned());
        self.kept.insert(name.to_owned(), Kept { whole, used: self.tick });
        self.shrink();
    }

    fn remove(&mut self, name: &str, from_disk: bool) {
        let Some(kept) = self.kept.remove(name) else { return };
        self.order.remove(&kept.used);
        self.bytes -= kept.whole.size;
        if from_disk && let Err(error) = std::fs::remove_file(self.path(name)) {
            log::warn!("cannot remove {}: {error}", self.path(name).display());
        }
    }

    fn shrink(&mut self) {
        while self.bytes + self.reserved.0 > self.bytes_max
            || self.kept.len() + self.reserved.1 > self.files_max
        {
            let Some(oldest) = self.order.first_key_value().map(|(_, name)| name.clone()) else { return };
            self.remove(&oldest, true);
        }
    }
}

/// 64 hexadecimal digits and what it is.
fn is_ours(name: &str) -> bool {
    name.split_once('.').is_some_and(|(id, kind)| {
        id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()) && matches!(kind, "tar.gz" | "blob")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(cache: &mut Cache, n: u32, size: u64) -> String {
        let name = format!("{n:064x}.tar.gz");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(cache.path(&name));
        let file = file.unwrap();
        file.set_len(size).unwrap();
        cache.insert(&name, Whole { file: Arc::new(file), size });
        name
    }

    #[test]
    fn bounds_hold_and_the_used_stay_over_a_restart() {
        let dir = std::env::temp_dir().join(format!("depotd-cache-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let mut cache = Cache::open(&dir, 1000, 4).unwrap();
        assert!(matches!(Cache::open(&dir, 1000, 4), Err(Error::InUse(_))));
        let first = put(&mut cache, 0, 300);
        for n in 1..10 {
            put(&mut cache, n, 300);
            assert!(cache.get(&first).is_some(), "{n}");
            assert!(cache.size().0 <= 1000 && cache.size().1 <= 4);
        }
        assert_eq!(cache.reserve(1001), Err(NoRoom::Ever));
        cache.reserve(800).unwrap();
        assert_eq!(cache.size(), (0, 0));
        assert_eq!(cache.reserve(800), Err(NoRoom::Now));
        cache.release(800);
        for n in 10..20 {
            put(&mut cache, n, 10);
        }
        assert_eq!(cache.size().1, 4);
        std::fs::write(dir.join(format!("{TEMPORARY}x")), "half").unwrap();
        std::fs::write(dir.join("of-another"), "x").unwrap();
        drop(cache);
        let mut cache = Cache::open(&dir, 1000, 4).unwrap();
        assert_eq!(cache.size(), (40, 4));
        assert!(cache.get(&format!("{:064x}.tar.gz", 19)).is_some());
        assert!(!dir.join(format!("{TEMPORARY}x")).exists() && dir.join("of-another").exists());
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

//! The source folder: which files count, and what is in them.
//!
//! Owns the hash cache, so that an unchanged file is not read again. A scan is a [`Manifest`] and, entry by entry, where
//! the content is. Memory does not depend on the size of files.
//! Never: writes into the source folder, follows a link to a folder, or takes a file that it could not read to its end
//! unchanged.

pub(crate) mod read;
#[cfg(test)]
mod tests;
mod walk;

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use edge::{
    beneath::Stat,
    sync::{
        cache::HashCache,
        content::{self, Hashed},
        manifest::{self, Entry, Manifest},
        path,
    },
};

pub use walk::{IGNORE_FILE, listing, walker};

/// What a scan tells while it runs.
pub trait Watcher {
    /// So many bytes of so many that must be read are read and hashed. Not called when nothing must be.
    fn hashing(&mut self, done: u64, total: u64) {
        let _ = (done, total);
    }
}

/// Nobody watches.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Watcher for Silent {}

/// Why a folder can't be scanned.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder itself.
    #[error("can't use the source folder {}", path.display())]
    Top {
        /// As given.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder or an ignore file within it.
    #[error("can't walk {}", top.display())]
    Walk {
        /// The source folder.
        top: PathBuf,
        /// Which part, and why.
        source: ignore::Error,
    },
    /// A file.
    #[error("can't read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A name that the device would refuse.
    #[error("the name of {} can't be sent: {why}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A file that is being written again and again.
    #[error("{} changes while it is read", path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// The files contradict each other.
    #[error("the files of {}", top.display())]
    Manifest {
        /// The source folder.
        top: PathBuf,
        /// How.
        source: manifest::Error,
    },
}

impl Error {
    /// What a person can do about it.
    #[must_use]
    pub fn fix(&self) -> Option<String> {
        match self {
            Error::Top { .. } => {
                Some("set the folder of the application: --src-top, or src-top in sideload.toml".into())
            }
            Error::Name { .. } => {
                Some(format!("rename it, or name it in {IGNORE_FILE} (a line like those of .gitignore)"))
            }
            Error::Changing { .. } => Some(format!(
                "something writes it all the time: if the application does not need it, name it in {IGNORE_FILE}"
            )),
            Error::Read { .. } | Error::Walk { .. } => Some(format!(
                "make it readable, or name it in {IGNORE_FILE} if the application does not need it"
            )),
            Error::Manifest { .. } => None,
        }
    }

    /// The exit code of the program.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Name { .. } | Error::Manifest { .. } => 65,
            Error::Top { .. } | Error::Walk { .. } | Error::Read { .. } | Error::Changing { .. } => 74,
        }
    }
}

/// Something in the folder that is not sent although no rule ignores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Relative to the source folder.
    pub path: PathBuf,
    /// Why: "a link to a folder", "a link to nothing", "no regular file".
    pub why: &'static str,
}

/// Where an entry's content is.
#[derive(Debug, Clone)]
pub(crate) struct Local {
    /// Where to open it.
    pub(crate) path: PathBuf,
    /// Its state when it was hashed.
    pub(crate) stat: Stat,
    /// What it held.
    pub(crate) hashed: Arc<Hashed>,
}

/// The folder at one moment.
#[derive(Debug)]
pub struct Scan {
    /// What should be on the device.
    pub manifest: Manifest,
    /// What was left out, for a person to know.
    pub skipped: Vec<Skipped>,
    /// Files that had to be read, the others being known by the cache.
    pub hashed_files: usize,
    /// Their bytes.
    pub hashed_bytes: u64,
    /// In the order of the manifest's entries.
    pub(crate) locals: Vec<Local>,
}

/// A source folder and what is known of its files.
#[derive(Debug)]
pub struct Source {
    top: PathBuf,
    cache: HashCache,
    cache_path: Option<PathBuf>,
}

impl Source {
    /// Opens a folder, with the hash cache of this user for it (`$XDG_CACHE_HOME/sideload/`, else
    /// `~/.cache/sideload/`; none if neither can be found).
    ///
    /// # Errors
    /// [`Error::Top`] when it is no folder or can't be read.
    pub fn open(top: &Path) -> Result<Source, Error> {
        let failed = |source| Error::Top { path: top.to_owned(), source };
        let real = top.canonicalize().map_err(failed)?;
        // Says early what the walk would say later.
        fs::read_dir(&real).map_err(failed)?;
        let cache_path = cache_dir().map(|dir| {
            let name = content::of_bytes(real.as_os_str().as_encoded_bytes()).to_hex();
            dir.join(format!("{}.hashes", &name[..16]))
        });
        let cache = cache_path.as_deref().map(HashCache::load).unwrap_or_default();
        Ok(Source { top: real, cache, cache_path })
    }

    /// With another cache file, or none.
    #[must_use]
    pub fn with_cache(mut self, path: Option<PathBuf>) -> Source {
        self.cache = path.as_deref().map(HashCache::load).unwrap_or_default();
        self.cache_path = path;
        self
    }

    /// The folder, absolute and without links.
    #[must_use]
    pub fn top(&self) -> &Path {
        &self.top
    }

    /// Finds and, where needed, reads all files.
    ///
    /// # Errors
    /// [`Error`] names the file.
    pub fn scan(&mut self, watcher: &mut dyn Watcher) -> Result<Scan, Error> {
        let found = walk::files(&self.top)?;
        let hashed = read::all(&found.files, &mut self.cache, watcher)?;
        let mut scan = Scan {
            manifest: Manifest::default(),
            skipped: found.skipped,
            hashed_files: hashed.read_files,
            hashed_bytes: hashed.read_bytes,
            locals: Vec::with_capacity(found.files.len()),
        };
        let mut entries = Vec::with_capacity(found.files.len());
        for (file, known) in found.files.into_iter().zip(hashed.known) {
            // What was there a moment ago and is not now is not part of this scan.
            let Some((stat, hashed)) = known else { continue };
            entries.push(Entry {
                path: file.rel,
                size: hashed.size,
                mode: stat.mode & 0o777,
                mtime_ns: stat.mtime_ns,
                id: hashed.id,
            });
            scan.locals.push(Local { path: file.path, stat, hashed });
        }
        // The walk sorted them as the manifest does.
        scan.manifest =
            Manifest::new(entries).map_err(|source| Error::Manifest { top: self.top.clone(), source })?;
        Ok(scan)
    }

    /// Keeps what is known for the next run. Failing costs time then, nothing else, and is logged.
    pub fn save(&mut self) {
        let Some(path) = &self.cache_path else { return };
        if let Some(dir) = path.parent()
            && !dir.is_dir()
            && let Err(error) = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
        {
            log::warn!("can't make {}: {error}", dir.display());
            return;
        }
        self.cache.forget_unused();
        if let Err(error) = self.cache.save(path) {
            log::warn!("can't write the hash cache {}: {error}", path.display());
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.save();
    }
}

/// The XDG base directory rules: an absolute `XDG_CACHE_HOME`, else `~/.cache`.
fn cache_dir() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("sideload"))
}

fn refusal(path: &Path, why: &path::Refusal) -> Error {
    Error::Name { path: path.to_owned(), why: why.why.to_owned() }
}

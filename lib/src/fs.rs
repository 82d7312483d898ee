//! Durable file operations: after they return, the change survives a power cut.
//!
//! Owns: nothing; every function opens, does one thing and closes.
//! Never: leaves a half-written file under the final name.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// How long a lock is tried.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// What failed, on which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct Error {
    /// What was attempted, as an infinitive.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// Wraps an [`io::Error`] with what was attempted on which path.
pub fn context<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error { action, path: path.to_owned(), source }
}

/// Makes `path` hold exactly `bytes`, durably: a temporary file beside it, `fsync`, `rename`, `fsync` of the folder.
/// After a crash there is the old content or the new one. `mode` holds the permission bits of the new file.
///
/// # Errors
/// [`Error`] with the step that failed; the temporary file is removed.
pub fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let folder = parent(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.tmp-{}", std::process::id()));
    let write = || -> Result<(), Error> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)
            .map_err(context("create", &temporary))?;
        file.write_all(bytes).map_err(context("write", &temporary))?;
        file.sync_all().map_err(context("fsync", &temporary))?;
        std::fs::rename(&temporary, path).map_err(context("rename a temporary file to", path))
    };
    write().inspect_err(|_| {
        // The first error is the one to report; a left-over temporary file is harmless.
        let _ = std::fs::remove_file(&temporary);
    })?;
    fsync_dir(folder)
}

/// Makes the names in `folder` durable (`fsync` of the directory).
///
/// # Errors
/// [`Error`] when the folder cannot be opened or synced.
pub fn fsync_dir(folder: &Path) -> Result<(), Error> {
    File::open(folder)
        .map_err(context("open the folder", folder))?
        .sync_all()
        .map_err(context("fsync the folder", folder))
}

/// Creates `folder` and its missing parents, each made durable in its own parent.
///
/// # Errors
/// [`Error`] for the first folder that could not be made.
pub fn create_dir_durably(folder: &Path) -> Result<(), Error> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = parent(folder);
    create_dir_durably(above)?;
    match std::fs::create_dir(folder) {
        Ok(()) => fsync_dir(above),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(context("create the folder", folder)(error)),
    }
}

/// Locks a file for whoever has it open here and nobody else, until it is closed (flock(2)); `false`: another process has
/// it. That is believed after a second only: a program that this process or an ended one starts has a copy of all
/// that was open from its fork to its exec. Blocks
/// so long.
///
/// # Errors
/// The file system has no locks.
pub fn lock_alone(file: &File) -> io::Result<bool> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if Instant::now() >= until => return Ok(false),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Bytes that an unprivileged process may still write on the filesystem of `path`.
///
/// # Errors
/// What `statvfs(3)` returns.
pub fn free_bytes(path: &Path) -> Result<u64, Error> {
    let stat = rustix::fs::statvfs(path)
        .map_err(|e| context("ask for the free space of", path)(io::Error::from(e)))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether `syncfs(2)` reports errors of writing on this kernel: from Linux 5.8 on.
#[must_use]
pub fn syncfs_tells_errors() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_str().unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (5, 8)
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => Path::new("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("edge-fs-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn a_lock_is_had_by_one_and_soon_after_the_other_is_gone() {
        let folder = scratch("lock");
        create_dir_durably(&folder).unwrap();
        let open = || File::options().create(true).append(true).open(folder.join("lock")).unwrap();
        let (one, two) = (open(), open());
        assert!(lock_alone(&one).unwrap());
        let begin = Instant::now();
        assert!(!lock_alone(&two).unwrap());
        assert!(begin.elapsed() >= LOCK_WAIT);
        // The other one's copy is closed while this one tries.
        let copy = one.try_clone().unwrap();
        drop(one);
        let closes = std::thread::spawn(move || {
            std::thread::sleep(LOCK_WAIT / 10);
            drop(copy);
        });
        assert!(lock_alone(&two).unwrap());
        closes.join().unwrap();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_write_replaces_the_whole_file_and_leaves_no_temporary() {
        let folder = scratch("write");
        create_dir_durably(&folder.join("a/b")).unwrap();
        let path = folder.join("a/b/file");
        write_durably(&path, b"a long first content", 0o640).unwrap();
        write_durably(&path, b"second", 0o640).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(folder.join("a/b")).unwrap().count(), 1);
        assert!(free_bytes(&folder).unwrap() > 0);
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn an_error_says_what_was_attempted_on_what() {
        let path = scratch("none").join("file");
        let error = write_durably(&path, b"x", 0o600).unwrap_err().to_string();
        assert!(error.starts_with("cannot create ") && error.contains("file"), "{error}");
    }
}

//! The few file operations a spool needs, behind a trait so that tests can crash them at every step.
//!
//! Owns the folder and its lock. Never syncs on its own account: who calls decides when.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::Error;

/// Folder of damaged bytes.
pub(crate) const QUARANTINE: &str = "quarantine";
/// Folder of records that can't be delivered.
pub(crate) const DEAD_LETTER: &str = "dead-letter";

/// A folder. Names are relative to it.
pub(crate) trait Disk: Send + Sync {
    /// Files (name, length) in the folder (`""`) or a sub-folder.
    fn list(&self, sub: &str) -> io::Result<Vec<(String, u64)>>;
    /// Opens for reading and writing.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes a file of this size (blocks allocated where the file system can, contents zero), or empties an old one.
    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn unlink(&self, name: &str) -> io::Result<()>;
    /// Makes entries of the folder (`""`) or a sub-folder durable.
    fn sync_dir(&self, sub: &str) -> io::Result<()>;
    /// For messages.
    fn path(&self, name: &str) -> PathBuf;
}

/// A file. Shared with the thread that syncs.
pub(crate) trait DiskFile: Send + Sync {
    /// Writes all the parts, one after the other.
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()>;
    /// Reads up to `into.len()` bytes; 0 at the end.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;
    /// `fdatasync`.
    fn sync(&self) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    fn truncate(&self, bytes: u64) -> io::Result<()>;
    /// Grows to this size with blocks allocated, where the file system can; else does nothing.
    fn preallocate(&self, bytes: u64) -> io::Result<()>;
}

/// Whether an error says "no space" (which a spool survives) rather than "broken".
pub(crate) fn is_full(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG))
}

/// The real one.
pub(crate) struct RealDisk {
    dir: PathBuf,
    // Held open for the lock.
    _lock: File,
}

impl RealDisk {
    /// Makes the folders and takes the lock.
    pub(crate) fn open(dir: &Path) -> Result<RealDisk, Error> {
        let io_error = |what, path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { what, path, source }
        };
        for folder in [dir.to_owned(), dir.join(QUARANTINE), dir.join(DEAD_LETTER)] {
            match fs::create_dir(&folder) {
                Ok(()) => {
                    let parent =
                        folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                    File::open(parent)
                        .and_then(|f| f.sync_all())
                        .map_err(io_error("sync the folder", parent))?;
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(io_error("make the folder", &folder)(e)),
            }
        }
        let path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open the lock file", &path))?;
        match crate::fs::lock_alone(&lock).map_err(io_error("lock", &path))? {
            true => Ok(RealDisk { dir: dir.to_owned(), _lock: lock }),
            false => Err(Error::InUse { dir: dir.to_owned() }),
        }
    }
}

impl Disk for RealDisk {
    fn list(&self, sub: &str) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.dir.join(sub))? {
            let entry = entry?;
            let meta = entry.metadata()?;
            // A name that is not UTF-8 is none of ours.
            if let (true, Ok(name)) = (meta.is_file(), entry.file_name().into_string()) {
                files.push((name, meta.len()));
            }
        }
        Ok(files)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(RealFile(OpenOptions::new().read(true).write(true).open(self.dir.join(name))?)))
    }

    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let path = self.dir.join(name);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        let file = RealFile(file);
        if let Err(e) = file.preallocate(bytes) {
            // Leave nothing behind that holds space; the first error is the one to report.
            let _ = fs::remove_file(&path);
            return Err(e);
        }
        Ok(Arc::new(file))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn sync_dir(&self, sub: &str) -> io::Result<()> {
        File::open(self.dir.join(sub))?.sync_all()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

struct RealFile(File);

impl DiskFile for RealFile {
    fn write_at(&self, parts: &[&[u8]], mut offset: u64) -> io::Result<()> {
        // At most header, prefix, payload and padding: IoSlice on the stack, no copy of the payload.
        let mut slices = [IoSlice::new(&[]); 4];
        let count = parts.len().min(slices.len());
        for (slice, part) in slices.iter_mut().zip(parts) {
            *slice = IoSlice::new(part);
        }
        debug_assert!(parts.len() <= 4);
        let mut rest = &mut slices[..count];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match rustix::io::pwritev(&self.0, rest, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    offset += n as u64;
                    IoSlice::advance_slices(&mut rest, n);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.0.read_at(&mut into[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        loop {
            match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, bytes) {
                Err(Errno::INTR) => {}
                // No fallocate on this file system: the file grows as it is written.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

//! Every change to the tree goes through here: one place to see what is done to the disk, and where tests pull the plug.
//!
//! Owns the root's descriptor. Paths are relative to the root; [`edge::beneath`] keeps them there.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt as _;

use edge::beneath::{Root, Stat};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};

use super::Error;

/// From that many files on, one `syncfs(2)` is cheaper than an `fsync(2)` each.
const SYNCFS_FROM: usize = 12;

/// The tree, as something that is changed.
#[derive(Debug)]
pub struct Disk {
    pub root: Root,
    /// `syncfs` reports write errors (Linux 5.8 and later).
    syncfs_tells: bool,
}

#[cfg(test)]
thread_local! {
    /// Changes until the plug is pulled.
    pub static FUSE: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

impl Disk {
    pub fn new(root: Root) -> Disk {
        Disk { root, syncfs_tells: kernel_is_at_least(5, 8) }
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests stop a run here")]
    fn step(&self) -> Result<(), Error> {
        Ok(())
    }

    #[cfg(test)]
    fn step(&self) -> Result<(), Error> {
        FUSE.with(|fuse| match fuse.get() {
            None => Ok(()),
            Some(0) => Err(Error::Stopped),
            Some(n) => {
                fuse.set(Some(n - 1));
                Ok(())
            }
        })
    }

    fn io(&self, action: &'static str, rel: &str) -> impl FnOnce(io::Error) -> Error {
        let path = self.root.path().join(rel);
        move |source| Error::Io { action, path, source }
    }

    /// A new, empty file; what was there before is gone.
    pub fn create(&self, rel: &str) -> Result<File, Error> {
        self.step()?;
        self.root.unlink(rel)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        Ok(self.root.open_file(rel, flags, 0o600)?)
    }

    /// An existing file, to go on writing.
    pub fn open_again(&self, rel: &str) -> Result<File, Error> {
        Ok(self.root.open_file(rel, OFlags::RDWR | OFlags::NOFOLLOW, 0)?)
    }

    /// An existing regular file, to read.
    pub fn open(&self, rel: &str) -> Result<File, Error> {
        // NONBLOCK: a FIFO that an application left there would block the opening.
        Ok(self.root.open_file(rel, OFlags::RDONLY | OFlags::NONBLOCK, 0)?)
    }

    pub fn write_at(&self, file: &File, bytes: &[u8], offset: u64, rel: &str) -> Result<(), Error> {
        self.step()?;
        file.write_all_at(bytes, offset).map_err(self.io("write", rel))
    }

    pub fn set_len(&self, file: &File, len: u64, rel: &str) -> Result<(), Error> {
        self.step()?;
        file.set_len(len).map_err(self.io("resize", rel))
    }

    pub fn fsync(&self, file: &File, rel: &str) -> Result<(), Error> {
        self.step()?;
        file.sync_all().map_err(self.io("fsync", rel))
    }

    /// Makes the folder's names durable. A folder that is gone needs none.
    pub fn fsync_dir(&self, rel: &str) -> Result<(), Error> {
        self.step()?;
        match self.root.open_dir(rel) {
            Ok(dir) => rustix::fs::fsync(dir.fd()).map_err(|e| self.io("fsync the folder", rel)(e.into())),
            // It is gone, or a file took its place: its parent tells.
            Err(error)
                if matches!(error.kind(), Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)) =>
            {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes these files and folders durable: one by one if they are few, else with all that the file system holds.
    pub fn flush<'a>(
        &self,
        files: impl ExactSizeIterator<Item = &'a str>,
        folders: impl ExactSizeIterator<Item = &'a str>,
    ) -> Result<(), Error> {
        if self.syncfs_tells && files.len() + folders.len() >= SYNCFS_FROM {
            self.step()?;
            return rustix::fs::syncfs(self.root.fd()).map_err(|e| self.io("syncfs", "")(e.into()));
        }
        for rel in files {
            self.fsync(&self.open(rel)?, rel)?;
        }
        folders.into_iter().try_for_each(|rel| self.fsync_dir(rel))
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        self.step()?;
        Ok(self.root.rename(from, to)?)
    }

    pub fn link(&self, from: &str, to: &str) -> Result<(), Error> {
        self.step()?;
        Ok(self.root.link(from, to)?)
    }

    pub fn unlink(&self, rel: &str) -> Result<bool, Error> {
        self.step()?;
        Ok(self.root.unlink(rel)?)
    }

    pub fn rmdir(&self, rel: &str) -> Result<bool, Error> {
        self.step()?;
        Ok(self.root.rmdir(rel)?)
    }

    pub fn make_folders(&self, rel: &str) -> Result<(), Error> {
        if rel.is_empty() {
            return Ok(());
        }
        self.step()?;
        Ok(self.root.make_folders(rel)?)
    }

    pub fn set_mode(&self, rel: &str, mode: u32) -> Result<(), Error> {
        self.step()?;
        let file = self.open(rel)?;
        let mode = Mode::from_raw_mode(mode & 0o777);
        rustix::fs::fchmod(file.as_fd(), mode).map_err(|e| self.io("change the mode of", rel)(e.into()))
    }

    pub fn set_mtime(&self, rel: &str, mtime_ns: i64) -> Result<(), Error> {
        self.step()?;
        let (dir, name) = self.root.parent(rel, false)?;
        let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        let mtime = Timespec {
            tv_sec: mtime_ns.div_euclid(1_000_000_000),
            tv_nsec: mtime_ns.rem_euclid(1_000_000_000),
        };
        let times = Timestamps { last_access: omit, last_modification: mtime };
        rustix::fs::utimensat(&dir, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| self.io("set the time of", rel)(e.into()))
    }

    /// Copies `len` bytes within the kernel; on some file systems they are shared, not copied.
    pub fn copy(
        &self,
        from: &File,
        from_at: u64,
        to: &File,
        to_at: u64,
        len: u64,
        rel: &str,
    ) -> Result<(), Error> {
        self.step()?;
        let (mut from_at, mut to_at, mut left) = (from_at, to_at, len);
        while left > 0 {
            let ask = usize::try_from(left.min(64 << 20)).unwrap_or(1 << 20);
            match rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), ask) {
                Ok(0) => {
                    return Err(Error::refused(
                        409,
                        format!("{rel} changed while it was copied; sync again"),
                    ));
                }
                Ok(n) => left -= (n as u64).min(left),
                Err(rustix::io::Errno::INTR) => {}
                // Not on this file system or kernel: by hand.
                Err(rustix::io::Errno::XDEV | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
                    return self.copy_by_hand(from, from_at, to, to_at, left, rel);
                }
                Err(error) => return Err(self.io("copy into", rel)(error.into())),
            }
        }
        Ok(())
    }

    fn copy_by_hand(
        &self,
        from: &File,
        mut from_at: u64,
        to: &File,
        mut to_at: u64,
        mut left: u64,
        rel: &str,
    ) -> Result<(), Error> {
        let mut buffer = vec![0; 256 << 10];
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            from.read_exact_at(&mut buffer[..want], from_at).map_err(self.io("read for a copy into", rel))?;
            to.write_all_at(&buffer[..want], to_at).map_err(self.io("copy into", rel))?;
            (from_at, to_at, left) = (from_at + want as u64, to_at + want as u64, left - want as u64);
        }
        Ok(())
    }

    pub fn stat(&self, rel: &str) -> Result<Option<Stat>, Error> {
        Ok(self.root.stat(rel)?)
    }

    /// The names in a folder that is ours, in no order. A missing folder is empty.
    pub fn names(&self, rel: &str) -> Result<Vec<String>, Error> {
        let dir = match self.root.open_dir(rel) {
            Ok(dir) => dir,
            Err(error) if error.kind() == Some(io::ErrorKind::NotFound) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut names = Vec::new();
        let entries = rustix::fs::Dir::read_from(dir.fd()).map_err(|e| self.io("list", rel)(e.into()))?;
        for entry in entries {
            let entry = entry.map_err(|e| self.io("list", rel)(e.into()))?;
            if let Ok(name) = entry.file_name().to_str()
                && name != "."
                && name != ".."
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_str().unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

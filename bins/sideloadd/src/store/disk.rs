//! Every change to the tree goes through here: one place to see what is done to the disk, and where tests pull the plug.
//!
//! Owns the root's descriptor, and those of our own busy folders. Paths are relative to the root; [`edge::beneath`] keeps
//! them there. `objects/` and `stage/` are reached by descriptors opened once: quick, and whatever becomes of the names.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use edge::beneath::{self, Root, Stat};
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::{Error, OURS};

/// From that many files on, one `syncfs(2)` is cheaper than an `fsync(2)` each.
const SYNCFS_FROM: usize = 12;
/// Permissions of the folders that a sync makes.
const FOLDER_MODE: u32 = 0o755;

/// The tree, as something that is changed.
#[derive(Debug)]
pub struct Disk {
    pub root: Root,
    objects: OwnedFd,
    stage: OwnedFd,
    /// `syncfs` reports write errors (Linux 5.8 and later).
    syncfs_tells: bool,
    /// Whether the folder used last is kept open: only within one run over sorted paths.
    keeps: Cell<bool>,
    last: RefCell<Option<(String, Arc<OwnedFd>)>>,
}

/// A change, as tests tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It may need space on the disk.
    Grows,
    /// It needs none.
    Other,
}

/// An open folder.
enum Dir<'a> {
    Held(BorrowedFd<'a>),
    Shared(Arc<OwnedFd>),
}

impl AsFd for Dir<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Dir::Held(fd) => *fd,
            Dir::Shared(fd) => fd.as_fd(),
        }
    }
}

/// Gives the root that was just made the permissions of the folders in it.
pub fn open_to_read(root: &Path) -> Result<(), Error> {
    let set = rustix::fs::chmod(root, Mode::from_raw_mode(FOLDER_MODE));
    set.map_err(|source| Error::Io {
        action: "set the mode of",
        path: root.to_owned(),
        source: source.into(),
    })
}

/// Makes our folders, and opens the tree.
pub fn open(root: Root) -> Result<Disk, Error> {
    for folder in ["objects", "stage", "commits", "aside"] {
        root.make_folders(&format!("{OURS}/{folder}"))?;
    }
    let open = |name: &str| root.parent(&format!("{OURS}/{name}/x"), false).map(|(dir, _)| dir);
    Ok(Disk {
        objects: open("objects")?,
        stage: open("stage")?,
        root,
        syncfs_tells: edge::fs::syncfs_tells_errors(),
        keeps: Cell::new(false),
        last: RefCell::new(None),
    })
}

impl Disk {
    #[cfg(not(test))]
    #[expect(clippy::unnecessary_wraps, reason = "tests stop a run here")]
    fn step(_: Step) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn step(step: Step) -> io::Result<()> {
        super::tests::plug::step(step)
    }

    fn io<E: Into<io::Error>>(&self, action: &'static str, rel: &str) -> impl FnOnce(E) -> Error {
        let path = self.root.path().join(rel);
        move |source| Error::Io { action, path, source: source.into() }
    }

    fn pass(&self, step: Step, action: &'static str, rel: &str) -> Result<(), Error> {
        Self::step(step).map_err(self.io(action, rel))
    }

    /// While `true`, the folder of the path used last stays open for the next one.
    pub fn keep_folder(&self, keep: bool) {
        self.keeps.set(keep);
        *self.last.borrow_mut() = None;
    }

    fn forget_folder(&self) {
        *self.last.borrow_mut() = None;
    }

    /// The folder of `rel`, which must exist, and the name in it.
    fn folder<'a, 'r>(&'a self, rel: &'r str) -> Result<(Dir<'a>, &'r str), Error> {
        let (folder, name) = rel.rsplit_once('/').unwrap_or(("", rel));
        match folder.strip_prefix(OURS) {
            Some("/objects") => return Ok((Dir::Held(self.objects.as_fd()), name)),
            Some("/stage") => return Ok((Dir::Held(self.stage.as_fd()), name)),
            _ => {}
        }
        if let Some((known, dir)) = &*self.last.borrow()
            && known == folder
        {
            return Ok((Dir::Shared(Arc::clone(dir)), name));
        }
        let dir = Arc::new(self.root.parent(rel, false)?.0);
        if self.keeps.get() {
            *self.last.borrow_mut() = Some((folder.to_owned(), Arc::clone(&dir)));
        }
        Ok((Dir::Shared(dir), name))
    }

    /// A new, empty file; what was there before is gone.
    pub fn create(&self, rel: &str) -> Result<File, Error> {
        self.pass(Step::Grows, "create", rel)?;
        let (dir, name) = self.folder(rel)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o600));
        let file = match open() {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&dir, name, AtFlags::empty()).map_err(self.io("replace", rel))?;
                open()
            }
            other => other,
        };
        file.map(File::from).map_err(self.io("create", rel))
    }

    /// An existing file of ours, to go on writing.
    pub fn open_again(&self, rel: &str) -> Result<File, Error> {
        let (dir, name) = self.folder(rel)?;
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&dir, name, flags, Mode::empty()).map(File::from).map_err(self.io("open", rel))
    }

    /// An existing regular file, to read.
    pub fn open(&self, rel: &str) -> Result<File, Error> {
        // NONBLOCK: a FIFO that an application left there would block the opening.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        if rel.starts_with(OURS) {
            let (dir, name) = self.folder(rel)?;
            let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&dir, name, flags, Mode::empty());
            return file.map(File::from).map_err(self.io("open", rel));
        }
        Ok(self.root.open_file(rel, flags, 0)?)
    }

    pub fn write_at(&self, file: &File, bytes: &[u8], offset: u64, rel: &str) -> Result<(), Error> {
        self.pass(Step::Grows, "write", rel)?;
        file.write_all_at(bytes, offset).map_err(self.io("write", rel))
    }

    pub fn set_len(&self, file: &File, len: u64, rel: &str) -> Result<(), Error> {
        self.pass(Step::Grows, "resize", rel)?;
        file.set_len(len).map_err(self.io("resize", rel))
    }

    /// Asks the kernel to begin writing out what was written there, so that the `fsync` to come has less to wait for.
    pub fn write_out_early(file: &File, offset: u64, len: u64) {
        // An advice: what it returns changes nothing.
        let len = std::num::NonZeroU64::new(len);
        let _ = rustix::fs::fadvise(file, offset, len, rustix::fs::Advice::DontNeed);
    }

    pub fn fsync(&self, file: &File, rel: &str) -> Result<(), Error> {
        self.pass(Step::Other, "fsync", rel)?;
        file.sync_all().map_err(self.io("fsync", rel))
    }

    /// Makes the folder's names durable. A folder that is gone needs none.
    pub fn fsync_dir(&self, rel: &str) -> Result<(), Error> {
        self.pass(Step::Other, "fsync the folder", rel)?;
        match self.root.open_dir(rel) {
            Ok(dir) => rustix::fs::fsync(dir.fd()).map_err(self.io("fsync the folder", rel)),
            Err(error) if is_absent(&error) => Ok(()),
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
            self.pass(Step::Other, "syncfs", "")?;
            return rustix::fs::syncfs(self.root.fd()).map_err(self.io("syncfs", ""));
        }
        for rel in files {
            match self.open(rel) {
                Ok(file) => self.fsync(&file, rel)?,
                // The application removed it meanwhile.
                Err(error) if error.status() == 404 && !rel.starts_with(OURS) => {}
                Err(error) => return Err(error),
            }
        }
        folders.into_iter().try_for_each(|rel| self.fsync_dir(rel))
    }

    pub fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        self.pass(Step::Other, "rename something to", to)?;
        let ((from_dir, from_name), (to_dir, to_name)) = (self.folder(from)?, self.folder(to)?);
        rustix::fs::renameat(&from_dir, from_name, &to_dir, to_name)
            .map_err(self.io("rename something to", to))
    }

    /// The two change places. `false`: this file system can't do that.
    pub fn exchange(&self, a: &str, b: &str) -> Result<bool, Error> {
        self.pass(Step::Other, "exchange", b)?;
        let ((a_dir, a_name), (b_dir, b_name)) = (self.folder(a)?, self.folder(b)?);
        match rustix::fs::renameat_with(&a_dir, a_name, &b_dir, b_name, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(true),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(self.io("exchange", b)(error)),
        }
    }

    pub fn link(&self, from: &str, to: &str) -> Result<(), Error> {
        self.pass(Step::Grows, "link something to", to)?;
        let ((from_dir, from_name), (to_dir, to_name)) = (self.folder(from)?, self.folder(to)?);
        rustix::fs::linkat(&from_dir, from_name, &to_dir, to_name, AtFlags::empty())
            .map_err(self.io("link something to", to))
    }

    pub fn unlink(&self, rel: &str) -> Result<bool, Error> {
        self.pass(Step::Other, "remove", rel)?;
        self.remove(rel, AtFlags::empty(), "remove")
    }

    /// `false`: there is no such folder.
    pub fn rmdir(&self, rel: &str) -> Result<bool, Error> {
        self.pass(Step::Other, "remove the folder", rel)?;
        self.forget_folder();
        self.remove(rel, AtFlags::REMOVEDIR, "remove the folder")
    }

    fn remove(&self, rel: &str, flags: AtFlags, action: &'static str) -> Result<bool, Error> {
        let (dir, name) = match self.folder(rel) {
            Err(Error::Path(error)) if is_absent(&error) => return Ok(false),
            other => other?,
        };
        match rustix::fs::unlinkat(&dir, name, flags) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(self.io(action, rel)(error)),
        }
    }

    /// Makes the folders that are missing, with the same permissions whatever our umask is.
    pub fn make_folders(&self, rel: &str) -> Result<(), Error> {
        if rel.is_empty() {
            return Ok(());
        }
        self.pass(Step::Grows, "make the folder", rel)?;
        self.forget_folder();
        let ends = rel.match_indices('/').map(|(at, _)| at).chain([rel.len()]);
        for folder in ends.filter_map(|end| rel.get(..end)) {
            if self.root.stat(folder)?.is_none() {
                self.root.make_folders(folder)?;
                let made = self.root.open_dir(folder)?;
                rustix::fs::fchmod(made.fd(), Mode::from_raw_mode(FOLDER_MODE))
                    .map_err(self.io("set the mode of", folder))?;
            }
        }
        Ok(())
    }

    /// Mode and time of an open file of ours.
    pub fn set_attributes(&self, file: &File, mode: u32, mtime_ns: i64, rel: &str) -> Result<(), Error> {
        self.pass(Step::Other, "set the mode and time of", rel)?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o777))
            .and_then(|()| rustix::fs::futimens(file, &times(mtime_ns)))
            .map_err(self.io("set the mode and time of", rel))
    }

    pub fn set_mode(&self, rel: &str, mode: u32) -> Result<(), Error> {
        self.pass(Step::Other, "change the mode of", rel)?;
        let file = self.open(rel)?;
        let mode = Mode::from_raw_mode(mode & 0o777);
        rustix::fs::fchmod(file.as_fd(), mode).map_err(self.io("change the mode of", rel))
    }

    pub fn set_mtime(&self, rel: &str, mtime_ns: i64) -> Result<(), Error> {
        self.pass(Step::Other, "set the time of", rel)?;
        let (dir, name) = self.folder(rel)?;
        rustix::fs::utimensat(&dir, name, &times(mtime_ns), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(self.io("set the time of", rel))
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
        self.pass(Step::Grows, "copy into", rel)?;
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
                Err(Errno::INTR) => {}
                // Not on this file system or kernel: by hand.
                Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
                    return self.copy_by_hand(from, from_at, to, to_at, left, rel);
                }
                Err(error) => return Err(self.io("copy into", rel)(error)),
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

    /// What is there, a link as such. `None`: nothing, or a folder on the way is none.
    pub fn stat(&self, rel: &str) -> Result<Option<Stat>, Error> {
        let (dir, name) = match self.folder(rel) {
            Err(Error::Path(error)) if is_absent(&error) => return Ok(None),
            other => other?,
        };
        match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat.into())),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(self.io("look at", rel)(error)),
        }
    }

    /// Bytes of the disk that a file of ours takes; 0 if it is not there.
    pub fn allocated(&self, rel: &str) -> Result<u64, Error> {
        let (dir, name) = self.folder(rel)?;
        match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)),
            Err(_) => Ok(0),
        }
    }

    /// The names in a folder that is ours, in no order. A missing folder is empty.
    pub fn names(&self, rel: &str) -> Result<Vec<String>, Error> {
        let dir = match self.root.open_dir(rel) {
            Ok(dir) => dir,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut names = Vec::new();
        let entries = rustix::fs::Dir::read_from(dir.fd()).map_err(self.io("list", rel))?;
        for entry in entries {
            let entry = entry.map_err(self.io("list", rel))?;
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

fn is_absent(error: &beneath::Error) -> bool {
    matches!(error.kind(), Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
}

fn times(mtime_ns: i64) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let mtime =
        Timespec { tv_sec: mtime_ns.div_euclid(1_000_000_000), tv_nsec: mtime_ns.rem_euclid(1_000_000_000) };
    Timestamps { last_access: omit, last_modification: mtime }
}

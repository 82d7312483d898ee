//! Files beneath a root folder: whatever a path or a link on the way says, nothing outside the root is touched.
//!
//! `openat2(2)` with `RESOLVE_BENEATH` resolves a path where the kernel has it (5.6 and later): links that stay inside
//! the root are followed, those that leave it are refused. Where it has not, or a seccomp filter hides it, the path is
//! walked one component at a time with `O_NOFOLLOW`, and every link is refused.
//!
//! Owns a descriptor of the root, so that the root itself may be renamed meanwhile. Never changes the working directory,
//! never trusts a path twice: an operation on a name happens in a folder that was opened this way.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Mode of the folders that are made on the way.
const FOLDER_MODE: u32 = 0o755;

/// Why an operation beneath a root failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path or a link on its way leaves the root (or, on an old kernel, there is a link at all).
    #[error("{path:?} leaves {}: a link on the way points out of it", root.display())]
    Escapes {
        /// The path that was asked for.
        path: String,
        /// The root.
        root: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted, as an infinitive.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// The system's error, if it was one.
    #[must_use]
    pub fn kind(&self) -> Option<io::ErrorKind> {
        match self {
            Error::Escapes { .. } => None,
            Error::Io { source, .. } => Some(source.kind()),
        }
    }

    /// The error number, if the system gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Escapes { .. } => None,
            Error::Io { source, .. } => source.raw_os_error(),
        }
    }
}

/// What the system knows of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Permission bits and set-id bits, without the type.
    pub mode: u32,
    /// Last change of the content, ns since 1970.
    pub mtime_ns: i64,
    /// Last change of content or attributes, ns since 1970.
    pub ctime_ns: i64,
    /// A regular file.
    pub is_file: bool,
    /// A folder.
    pub is_dir: bool,
    /// Names of this inode.
    pub nlink: u64,
}

impl Stat {
    /// Of an open file.
    ///
    /// # Errors
    /// What `fstat(2)` returns.
    pub fn of(file: impl AsFd) -> io::Result<Stat> {
        Ok(Stat::from(rustix::fs::fstat(file)?))
    }
}

impl From<rustix::fs::Stat> for Stat {
    fn from(stat: rustix::fs::Stat) -> Stat {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let ns =
            |s: i64, ns: u64| s.saturating_mul(1_000_000_000).saturating_add(i64::try_from(ns).unwrap_or(0));
        Stat {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & 0o7777,
            mtime_ns: ns(stat.st_mtime, stat.st_mtime_nsec),
            ctime_ns: ns(stat.st_ctime, stat.st_ctime_nsec),
            is_file: kind == FileType::RegularFile,
            is_dir: kind == FileType::Directory,
            #[allow(clippy::useless_conversion, reason = "u32 on aarch64, u64 on x86_64")]
            nlink: stat.st_nlink.into(),
        }
    }
}

/// A folder that nothing leaves.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    path: PathBuf,
    /// There is no `openat2`.
    walk: AtomicBool,
}

impl Root {
    /// Opens the root. Links in `path` itself are followed: whoever configures it may use them.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<Root, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(|source| Error::Io {
            action: "open the folder",
            path: path.to_owned(),
            source: source.into(),
        })?;
        Ok(Root { dir, path: path.to_owned(), walk: AtomicBool::new(false) })
    }

    /// The same root, where no link is followed from now on, not even one that stays inside.
    #[must_use]
    pub fn without_links(self) -> Root {
        self.walk.store(true, Ordering::Relaxed);
        self
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root's descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// A root further in.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open_dir(&self, rel: &str) -> Result<Root, Error> {
        let dir = self.resolve(rel, OFlags::RDONLY | OFlags::DIRECTORY, 0, "open the folder")?;
        Ok(Root { dir, path: self.path.join(rel), walk: AtomicBool::new(self.walk.load(Ordering::Relaxed)) })
    }

    /// Opens a file. `mode` counts with `OFlags::CREATE`. The parent folder must exist.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open_file(&self, rel: &str, flags: OFlags, mode: u32) -> Result<File, Error> {
        self.resolve(rel, flags, mode, "open").map(File::from)
    }

    /// Opens the folder that holds `rel`, and gives the last component. `create` makes missing folders.
    ///
    /// # Errors
    /// [`Error`].
    pub fn parent(&self, rel: &str, create: bool) -> Result<(OwnedFd, OsString), Error> {
        let (folder, name) = rel.rsplit_once('/').unwrap_or(("", rel));
        if name.is_empty() || name == "." || name == ".." {
            return Err(self.escapes(rel));
        }
        let open = || self.resolve(folder, OFlags::RDONLY | OFlags::DIRECTORY, 0, "open the folder");
        let dir = match open() {
            Err(error) if create && error.kind() == Some(io::ErrorKind::NotFound) => {
                self.make_folders(folder)?;
                open()?
            }
            other => other?,
        };
        Ok((dir, name.into()))
    }

    /// Makes the folder and those above it, as far as they are missing.
    ///
    /// # Errors
    /// [`Error`].
    pub fn make_folders(&self, folder: &str) -> Result<(), Error> {
        let ends = folder.match_indices('/').map(|(at, _)| at).chain([folder.len()]);
        for end in ends {
            let path = folder.get(..end).unwrap_or_default();
            let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
            if name.is_empty() || name == "." || name == ".." {
                return Err(self.escapes(folder));
            }
            let dir = self.resolve(above, OFlags::RDONLY | OFlags::DIRECTORY, 0, "open the folder")?;
            match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(FOLDER_MODE)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(source) => return Err(self.io("make the folder", path, source)),
            }
        }
        Ok(())
    }

    /// What is at `rel`; a link there is not followed. `None`: nothing, or a folder on the way is none.
    ///
    /// # Errors
    /// [`Error`].
    pub fn stat(&self, rel: &str) -> Result<Option<Stat>, Error> {
        let found = self.parent(rel, false).and_then(|(dir, name)| {
            rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|source| self.io("look at", rel, source))
        });
        match found {
            Ok(stat) => Ok(Some(stat.into())),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes the file (or link). `false`: it was not there.
    ///
    /// # Errors
    /// [`Error`].
    pub fn unlink(&self, rel: &str) -> Result<bool, Error> {
        self.remove(rel, AtFlags::empty(), "remove")
    }

    /// Removes the empty folder. `false`: it was not there.
    ///
    /// # Errors
    /// [`Error`]; also when it is not empty.
    pub fn rmdir(&self, rel: &str) -> Result<bool, Error> {
        self.remove(rel, AtFlags::REMOVEDIR, "remove the folder")
    }

    fn remove(&self, rel: &str, flags: AtFlags, action: &'static str) -> Result<bool, Error> {
        let removed = self.parent(rel, false).and_then(|(dir, name)| {
            rustix::fs::unlinkat(&dir, &name, flags).map_err(|source| self.io(action, rel, source))
        });
        match removed {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Renames, replacing what is at `to`. Both parents must exist.
    ///
    /// # Errors
    /// [`Error`].
    pub fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        let (from_dir, from_name) = self.parent(from, false)?;
        let (to_dir, to_name) = self.parent(to, false)?;
        rustix::fs::renameat(&from_dir, &from_name, &to_dir, &to_name)
            .map_err(|source| self.io("rename something to", to, source))
    }

    /// Gives the file at `from` a second name. Both parents must exist, and nothing may be at `to`.
    ///
    /// # Errors
    /// [`Error`].
    pub fn link(&self, from: &str, to: &str) -> Result<(), Error> {
        let (from_dir, from_name) = self.parent(from, false)?;
        let (to_dir, to_name) = self.parent(to, false)?;
        rustix::fs::linkat(&from_dir, &from_name, &to_dir, &to_name, AtFlags::empty())
            .map_err(|source| self.io("link something to", to, source))
    }

    /// Makes the names in the folder of `rel` durable.
    ///
    /// # Errors
    /// [`Error`].
    pub fn sync_parent(&self, rel: &str) -> Result<(), Error> {
        let (dir, _) = self.parent(rel, false)?;
        rustix::fs::fsync(&dir).map_err(|source| self.io("fsync the folder of", rel, source))
    }

    fn resolve(&self, rel: &str, flags: OFlags, mode: u32, action: &'static str) -> Result<OwnedFd, Error> {
        let flags = flags | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(if flags.contains(OFlags::CREATE) { mode } else { 0 });
        let path = if rel.is_empty() { "." } else { rel };
        if !self.walk.load(Ordering::Relaxed) {
            let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            // EAGAIN: something on the way was renamed meanwhile.
            for _ in 0..16 {
                match rustix::fs::openat2(&self.dir, path, flags, mode, how) {
                    Ok(fd) => return Ok(fd),
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(Errno::XDEV | Errno::LOOP) => return Err(self.escapes(rel)),
                    Err(Errno::NOSYS | Errno::PERM) => {
                        self.walk.store(true, Ordering::Relaxed);
                        return self.resolve_by_walk(rel, flags, mode, action);
                    }
                    Err(source) => return Err(self.io(action, rel, source)),
                }
            }
            return Err(self.io(action, rel, Errno::AGAIN));
        }
        self.resolve_by_walk(rel, flags, mode, action)
    }

    fn resolve_by_walk(
        &self,
        rel: &str,
        flags: OFlags,
        mode: Mode,
        action: &'static str,
    ) -> Result<OwnedFd, Error> {
        let folder = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |dir: BorrowedFd<'_>, name: &str, flags: OFlags, mode: Mode| {
            rustix::fs::openat(dir, name, flags, mode).map_err(|source| match source {
                // A link: ELOOP, or ENOTDIR where a folder was asked for.
                Errno::LOOP => self.escapes(rel),
                Errno::NOTDIR if is_link(dir, name) => self.escapes(rel),
                source => self.io(action, rel, source),
            })
        };
        if rel.is_empty() {
            return open(self.dir.as_fd(), ".", flags, mode);
        }
        let (folders, last) = rel.rsplit_once('/').unwrap_or(("", rel));
        let mut dir: Option<OwnedFd> = None;
        for name in folders.split('/').filter(|_| !folders.is_empty()) {
            if matches!(name, "" | "." | "..") {
                return Err(self.escapes(rel));
            }
            dir =
                Some(open(dir.as_ref().map_or(self.dir.as_fd(), AsFd::as_fd), name, folder, Mode::empty())?);
        }
        if matches!(last, "" | "." | "..") {
            return Err(self.escapes(rel));
        }
        open(dir.as_ref().map_or(self.dir.as_fd(), AsFd::as_fd), last, flags | OFlags::NOFOLLOW, mode)
    }

    fn escapes(&self, rel: &str) -> Error {
        Error::Escapes { path: rel.to_owned(), root: self.path.clone() }
    }

    fn io(&self, action: &'static str, rel: &str, source: Errno) -> Error {
        Error::Io { action, path: self.path.join(rel), source: source.into() }
    }
}

fn is_absent(error: &Error) -> bool {
    matches!(error.kind(), Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
}

fn is_link(dir: BorrowedFd<'_>, name: &str) -> bool {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::symlink;

    /// A root with links of every kind, and a secret beside it.
    fn scene(name: &str) -> PathBuf {
        let top = std::env::temp_dir().join(format!("edge-beneath-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&top);
        std::fs::create_dir_all(top.join("inner/sub")).unwrap();
        std::fs::write(top.join("secret"), "secret").unwrap();
        std::fs::write(top.join("inner/sub/file"), "inside").unwrap();
        for (target, link) in [
            ("../secret", "up"),
            ("/etc/passwd", "absolute"),
            ("..", "folder"),
            ("sub/../../secret", "winding"),
            ("loop", "loop"),
            ("/proc/self/root", "magic"),
        ] {
            symlink(target, top.join("inner").join(link)).unwrap();
        }
        symlink("sub/file", top.join("inner/inside")).unwrap();
        top
    }

    fn both(name: &str, test: impl Fn(&Root, &Path, bool)) {
        for walk in [false, true] {
            let top = scene(&format!("{name}{walk}"));
            let root = Root::open(&top.join("inner")).unwrap();
            root.walk.store(walk, Ordering::Relaxed);
            test(&root, &top, walk);
            std::fs::remove_dir_all(top).unwrap();
        }
    }

    #[test]
    fn nothing_outside_is_read_written_removed_or_seen() {
        both("attack", |root, top, _| {
            let write = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC;
            for path in [
                "up",
                "absolute",
                "folder/secret",
                "winding",
                "../secret",
                "sub/../../secret",
                "folder/inner/../secret",
                "loop",
                "magic/etc/passwd",
                "/etc/passwd",
            ] {
                for flags in [OFlags::RDONLY, write] {
                    let error = root.open_file(path, flags, 0o600).unwrap_err();
                    assert!(matches!(error, Error::Escapes { .. }), "{path}: {error}");
                }
            }
            for path in ["folder/secret", "../secret", "folder/new/deep"] {
                assert!(matches!(root.parent(path, true), Err(Error::Escapes { .. })), "{path}");
                assert!(root.unlink(path).is_err(), "{path}");
                assert!(root.stat(path).is_err(), "{path}");
                assert!(root.rename("sub/file", path).is_err(), "{path}");
                assert!(root.link("sub/file", path).is_err(), "{path}");
            }
            assert_eq!(std::fs::read_to_string(top.join("secret")).unwrap(), "secret");
            assert!(!top.join("new").exists());
        });
    }

    #[test]
    fn ordinary_work_works() {
        both("work", |root, top, walk| {
            let (_, name) = root.parent("new/deep/er/file", true).unwrap();
            assert_eq!(name, "file");
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            root.open_file("new/deep/er/file", flags, 0o640).unwrap().write_all(b"x").unwrap();
            let stat = root.stat("new/deep/er/file").unwrap().unwrap();
            assert!(stat.is_file && stat.size == 1 && stat.mode == 0o640, "{stat:?}");
            root.link("new/deep/er/file", "second").unwrap();
            assert_eq!(root.stat("second").unwrap().unwrap().nlink, 2);
            root.rename("second", "sub/third").unwrap();
            root.sync_parent("sub/third").unwrap();
            assert!(root.unlink("sub/third").unwrap() && !root.unlink("sub/third").unwrap());
            assert_eq!(root.stat("sub/file/below").unwrap(), None);
            assert_eq!(root.stat("no/such").unwrap(), None);
            assert!(root.rmdir("new/deep").is_err() && !root.rmdir("nothing").unwrap());
            let mut text = String::new();
            match root.open_file("inside", OFlags::RDONLY, 0) {
                Ok(mut file) => drop(file.read_to_string(&mut text).unwrap()),
                // The walk follows no link, not even this one.
                Err(error) => assert!(walk && matches!(error, Error::Escapes { .. })),
            }
            assert!(walk || text == "inside");
            assert!(root.open_dir("sub").unwrap().stat("file").unwrap().is_some());
            // The link itself is what is removed, not what it points to.
            assert!(root.unlink("up").unwrap());
            assert!(top.join("secret").exists());
        });
    }
}

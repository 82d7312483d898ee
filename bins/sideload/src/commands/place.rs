//! New files that appear whole or not at all, whatever ends the program in between.
//!
//! The content goes into a file without a name (`O_TMPFILE`), which gets its name when it is complete and synced. File
//! systems that can't do that get a named temporary file beside it, as do hosts without /proc, where a nameless file can't
//! be given a name.
//! Invariant: permissions are those asked for from the first moment on; without `replace`, what is there stays.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// A file on its way.
pub struct Incoming {
    folder: OwnedFd,
    file: File,
    /// The temporary name, where the file system needs one.
    named: Option<String>,
}

impl Incoming {
    /// Begins a file in `folder`; `mode` holds its permission bits (the umask applies).
    pub fn begin(folder: OwnedFd, mode: u32) -> io::Result<Incoming> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let bits = Mode::from_raw_mode(mode);
        if Path::new("/proc/self/fd").is_dir()
            && let Ok(fd) = rustix::fs::openat(&folder, ".", flags | OFlags::TMPFILE, bits)
        {
            return Ok(Incoming { folder, file: fd.into(), named: None });
        }
        let name = temporary();
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(&folder, name.as_str(), flags, bits)?;
        Ok(Incoming { folder, file: fd.into(), named: Some(name) })
    }

    /// Where to write.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Makes the content durable and gives it its name.
    ///
    /// Without `replace` a name that exists is [`io::ErrorKind::AlreadyExists`].
    pub fn finish(mut self, name: &OsStr, replace: bool) -> io::Result<()> {
        self.file.sync_all()?;
        let temporary = match self.named.take() {
            Some(named) => named,
            None => {
                let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                if !replace {
                    rustix::fs::linkat(CWD, &path, &self.folder, name, AtFlags::SYMLINK_FOLLOW)?;
                    return Ok(rustix::fs::fsync(&self.folder)?);
                }
                let named = temporary();
                rustix::fs::linkat(CWD, &path, &self.folder, named.as_str(), AtFlags::SYMLINK_FOLLOW)?;
                named
            }
        };
        self.named = Some(temporary.clone());
        if replace {
            rustix::fs::renameat(&self.folder, temporary.as_str(), &self.folder, name)?;
            self.named = None;
        } else {
            // The temporary name goes with `self`.
            rustix::fs::linkat(&self.folder, temporary.as_str(), &self.folder, name, AtFlags::empty())?;
        }
        Ok(rustix::fs::fsync(&self.folder)?)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(name) = self.named.take() {
            // It was never complete; if it can't be removed it is a hidden left-over, not a wrong file.
            let _ = rustix::fs::unlinkat(self.folder.as_fd(), name, AtFlags::empty());
        }
    }
}

fn temporary() -> String {
    format!(".sideload-{}-{}", std::process::id(), edge::clock::unix_ns())
}

/// Makes `path` hold `bytes`. See [`Incoming::finish`] for `replace`.
pub fn write(path: &Path, bytes: &[u8], mode: u32, replace: bool) -> io::Result<()> {
    use std::io::Write as _;
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let fd = rustix::fs::open(folder, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut incoming = Incoming::begin(fd, mode)?;
    incoming.file().write_all(bytes)?;
    incoming.finish(path.file_name().unwrap_or_default(), replace)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_file_is_whole_private_and_not_overwritten() {
        let scratch = Scratch::new("place");
        let path = scratch.path().join("key");
        write(&path, b"one", 0o600, false).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = write(&path, b"two", 0o600, false).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"one");
        write(&path, b"two", 0o600, true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_not_finished_was_never_there() {
        use std::io::Write as _;
        let scratch = Scratch::new("place-half");
        for named in [false, true] {
            let fd = rustix::fs::open(scratch.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
            let mut incoming = Incoming::begin(fd, 0o600).unwrap();
            if named {
                let file = std::fs::File::create(scratch.path().join(".t")).unwrap();
                incoming =
                    Incoming { file, named: Some(".t".into()), folder: incoming.folder.try_clone().unwrap() };
            }
            incoming.file().write_all(b"half").unwrap();
            drop(incoming);
            assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn file_systems_without_nameless_files_do_too() {
        let scratch = Scratch::new("place-named");
        for replace in [false, true] {
            let folder = rustix::fs::open(scratch.path(), OFlags::DIRECTORY, Mode::empty()).unwrap();
            let file = std::fs::File::create(scratch.path().join(".t")).unwrap();
            Incoming { folder, file, named: Some(".t".into()) }.finish(OsStr::new("x"), replace).unwrap();
            assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
        }
    }
}

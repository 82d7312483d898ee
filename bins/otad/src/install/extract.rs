//! Unpacks an archive into an empty folder, and nowhere else.
//!
//! The archive is a tar (ustar, GNU with long names, PAX with `path` and `linkpath`), plain or compressed by gzip. It is
//! read once, in pieces. What is refused, by name: paths that are absolute, hold `..`, control characters or other than
//! UTF-8, or lead through a link; links whose target leaves the folder; devices, FIFOs, sparse files and types unknown
//! here; setuid and setgid; a name twice; more bytes, entries or depth than allowed.
//!
//! A link's target may climb by leading `..` only as far as the folder's top, and then goes down: with parents that are
//! never links, and nothing ever replaced, what it resolves to is inside whatever other links are on the way.
//!
//! Folders are 0755. Files keep their own bits for the owner, and for others reading and executing as far as the archive
//! says; nobody else may write. Owners are not restored. Memory is bounded: one buffer, and a number a folder.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, Read, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use edge::beneath::{Root, Stat};
use flate2::bufread::MultiGzDecoder;
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tar::EntryType;

use super::Error;
use super::manifest::Tree;

/// How gzip begins.
pub const GZIP: [u8; 2] = [0x1f, 0x8b];
/// Longest path, in bytes.
const PATH_BYTES_MAX: usize = 1024;
/// Longest name, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Longest set of PAX records, in bytes.
const PAX_BYTES_MAX: u64 = 64 << 10;
/// Headers that may stand before one entry (long name, long link, PAX), and its own.
const HEADERS_PER_ENTRY: u64 = 4;
/// Written at a time.
const BUFFER: usize = 128 << 10;
/// Mode of folders.
const FOLDER_MODE: u32 = 0o755;

/// How much an archive may hold.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Bytes of its files together.
    pub bytes_max: u64,
    /// Files, folders and links.
    pub files_max: u64,
    /// Components of a path.
    pub depth_max: usize,
}

/// Unpacks `input` into the folder `root`, which is empty. `spend` is told before bytes are written, and may refuse.
///
/// # Errors
/// [`Error::Archive`] names the entry and why it is refused. What was unpacked before it is still there then.
pub fn unpack(
    mut input: impl BufRead,
    root: Root,
    caps: Caps,
    spend: &mut dyn FnMut(usize) -> Result<(), Error>,
) -> Result<Tree, Error> {
    let begins = input.fill_buf().map_err(|error| damaged("the archive", &error))?;
    let gzip = begins.starts_with(&GZIP);
    let headers = caps.files_max.saturating_mul(HEADERS_PER_ENTRY).saturating_mul(1024);
    let stream_max = caps.bytes_max.saturating_add(headers).saturating_add(1 << 20);
    let mut reader: Box<dyn Read + '_> =
        if gzip { Box::new(MultiGzDecoder::new(input)) } else { Box::new(input) };
    let mut counted = Counted { reader: &mut reader, left: stream_max };
    let mut unpacker = Unpacker {
        root: root.without_links(),
        caps,
        left: caps.bytes_max,
        tree: Tree::default(),
        folders: HashSet::new(),
        parent: None,
        buffer: vec![0; BUFFER],
        spend,
    };
    unpacker.run(&mut counted)?;
    // The rest is padding; with gzip its check sum comes after it.
    io::copy(&mut counted, &mut io::sink()).map_err(|error| damaged("the end of the archive", &error))?;
    Ok(unpacker.tree)
}

/// Ends with an error where a stream gets longer than allowed.
struct Counted<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::other("it expands to more than allowed"))?;
        Ok(n)
    }
}

fn refuse(entry: &str, why: impl Into<String>) -> Error {
    Error::Archive { entry: entry.to_owned(), why: why.into() }
}

/// An error of reading: of the disk, or of the archive.
fn damaged(entry: &str, error: &io::Error) -> Error {
    match error.raw_os_error() {
        Some(errno) => Error::Io {
            action: "read the archive at",
            path: entry.into(),
            source: io::Error::from_raw_os_error(errno),
        },
        None => refuse(entry, format!("it can't be read: {error}")),
    }
}

/// The path as it is beneath the root; empty for the root itself.
fn clean(bytes: &[u8], depth_max: usize) -> Result<String, &'static str> {
    let text = std::str::from_utf8(bytes).map_err(|_| "its name is not UTF-8")?;
    if text.is_empty() {
        return Err("it has no name");
    }
    if text.starts_with('/') {
        return Err("its path is absolute");
    }
    if text.bytes().any(|b| b < b' ' || b == 0x7f) {
        return Err("its name holds control characters");
    }
    let names: Vec<&str> = text.split('/').filter(|name| !matches!(*name, "" | ".")).collect();
    if names.contains(&"..") {
        return Err("its path holds ..");
    }
    if names.len() > depth_max {
        return Err("it lies too deep");
    }
    if text.len() > PATH_BYTES_MAX || names.iter().any(|name| name.len() > NAME_BYTES_MAX) {
        return Err("its path is too long");
    }
    Ok(names.join("/"))
}

/// Whether a link at `path` may have this target.
fn check_target(path: &str, target: &str) -> Result<(), &'static str> {
    if target.is_empty() || target.len() > PATH_BYTES_MAX {
        return Err("its target has no usable length");
    }
    if target.starts_with('/') {
        return Err("its target is absolute");
    }
    if target.bytes().any(|b| b < b' ' || b == 0x7f) {
        return Err("its target holds control characters");
    }
    let mut names = target.split('/').filter(|name| !matches!(*name, "" | ".")).peekable();
    let mut up = 0;
    while names.next_if_eq(&"..").is_some() {
        up += 1;
    }
    if up > path.matches('/').count() {
        return Err("its target leaves the folder");
    }
    if names.any(|name| name == "..") {
        return Err("its target holds .. behind a name");
    }
    Ok(())
}

/// What headers before an entry said of it.
#[derive(Default)]
struct Ahead {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

struct Unpacker<'a> {
    root: Root,
    caps: Caps,
    /// Bytes that may still come.
    left: u64,
    tree: Tree,
    /// The inodes of folders that had an entry of their own.
    folders: HashSet<u64>,
    /// The folder used last.
    parent: Option<(String, OwnedFd)>,
    buffer: Vec<u8>,
    spend: &'a mut dyn FnMut(usize) -> Result<(), Error>,
}

impl Unpacker<'_> {
    fn run(&mut self, reader: &mut dyn Read) -> Result<(), Error> {
        let mut archive = tar::Archive::new(reader);
        // Raw: the crate would keep a long name in memory whatever its length.
        let entries = archive.entries().map_err(|error| damaged("the archive", &error))?.raw(true);
        let mut ahead = Ahead::default();
        let (mut headers, headers_max) = (0, self.caps.files_max.saturating_mul(HEADERS_PER_ENTRY));
        let mut last = "the archive".to_owned();
        for entry in entries {
            let mut entry = entry.map_err(|error| damaged(&format!("after {last}"), &error))?;
            headers += 1;
            if headers > headers_max {
                return Err(refuse(&last, "the archive has more headers than allowed"));
            }
            if self.read_ahead(&mut entry, &mut ahead)? {
                continue;
            }
            last = self.entry(&mut entry, std::mem::take(&mut ahead))?;
        }
        Ok(())
    }

    /// `true`: it was a header about the next entry, not an entry.
    fn read_ahead<R: Read>(&self, entry: &mut tar::Entry<'_, R>, ahead: &mut Ahead) -> Result<bool, Error> {
        let kind = entry.header().entry_type();
        match kind {
            EntryType::GNULongName => ahead.path = Some(long_name(entry)?),
            EntryType::GNULongLink => ahead.target = Some(long_name(entry)?),
            EntryType::XHeader | EntryType::XGlobalHeader => {
                let bytes = whole(entry, PAX_BYTES_MAX, "PAX records")?;
                for record in tar::PaxExtensions::new(&bytes) {
                    let record = record.map_err(|error| damaged("PAX records", &error))?;
                    match (record.key_bytes(), kind) {
                        (b"path", EntryType::XHeader) => ahead.path = Some(record.value_bytes().to_vec()),
                        (b"linkpath", EntryType::XHeader) => {
                            ahead.target = Some(record.value_bytes().to_vec())
                        }
                        (b"path" | b"linkpath" | b"size", _) => {
                            let key = String::from_utf8_lossy(record.key_bytes()).into_owned();
                            return Err(refuse(
                                "PAX records",
                                format!("the record {key} is not handled here"),
                            ));
                        }
                        (key, _) if key.starts_with(b"GNU.sparse") => {
                            return Err(refuse(
                                "PAX records",
                                "sparse files are not handled: pack without --sparse",
                            ));
                        }
                        _ => {}
                    }
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Does one entry; its path, for messages.
    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, ahead: Ahead) -> Result<String, Error> {
        let header = entry.header();
        let raw = ahead.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let shown = String::from_utf8_lossy(&raw).chars().take(200).collect::<String>();
        let path = clean(&raw, self.caps.depth_max).map_err(|why| refuse(&shown, why))?;
        let mode = header.mode().map_err(|error| damaged(&shown, &error))?;
        if mode & 0o6000 != 0 {
            return Err(refuse(&shown, "it is setuid or setgid"));
        }
        if self.tree.entries >= self.caps.files_max {
            let max = self.caps.files_max;
            return Err(refuse(
                &shown,
                format!("the archive has more than the {max} entries allowed (files-max)"),
            ));
        }
        let kind = match header.entry_type() {
            // As old archives say it.
            EntryType::Regular if raw.ends_with(b"/") => EntryType::Directory,
            kind => kind,
        };
        let target = || {
            let bytes = ahead.target.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
            text.ok_or_else(|| refuse(&shown, "its target is missing or not UTF-8"))
        };
        match kind {
            EntryType::Directory if path.is_empty() => {}
            _ if path.is_empty() => return Err(refuse(&shown, "it has no name")),
            EntryType::Directory => self.folder(&path, true)?,
            EntryType::Regular | EntryType::Continuous => self.file(&path, mode, entry)?,
            EntryType::Symlink => self.symlink(&path, &target()?)?,
            EntryType::Link => self.hard_link(&path, &target()?)?,
            other => return Err(refuse(&shown, format!("it is {}", name_of(other)))),
        }
        Ok(path)
    }

    /// The folder that `path` lies in, made if it is missing, and the last name.
    fn parent<'p>(&mut self, path: &'p str) -> Result<(&OwnedFd, &'p str), Error> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        if self.parent.as_ref().is_none_or(|(known, _)| known != folder) {
            self.parent = None;
            let opened = match self.root.parent(path, false) {
                Err(error) if error.kind() == Some(io::ErrorKind::NotFound) => {
                    let ends = folder.match_indices('/').map(|(at, _)| at).chain([folder.len()]);
                    for end in ends {
                        self.folder(folder.get(..end).unwrap_or_default(), false)?;
                    }
                    self.root.parent(path, false)
                }
                opened => opened,
            };
            let dir = opened.map_err(|error| self.explain(path, error))?.0;
            self.parent = Some((folder.to_owned(), dir));
        }
        match &self.parent {
            Some((_, dir)) => Ok((dir, name)),
            None => Err(refuse(path, "its folder can't be opened")),
        }
    }

    fn explain(&self, path: &str, error: edge::beneath::Error) -> Error {
        match error.kind() {
            None => refuse(path, "its path leads through a link"),
            Some(io::ErrorKind::NotADirectory) => refuse(path, "its path leads through a file"),
            Some(_) => Error::Path(error),
        }
    }

    fn failed(&self, action: &'static str, path: &str) -> impl FnOnce(Errno) -> Error + use<> {
        let twice = refuse(path, "the archive has this name twice");
        let path = self.root.path().join(path);
        move |errno| match errno {
            Errno::EXIST => twice,
            errno => Error::io(action, &path)(errno),
        }
    }

    /// A folder with an entry of its own, or one that another entry needs.
    fn folder(&mut self, path: &str, own: bool) -> Result<(), Error> {
        if self.tree.entries >= self.caps.files_max {
            return Err(refuse(path, "the archive has more entries than allowed (files-max)"));
        }
        let failed = self.failed("make the folder", path);
        let look = self.failed("open the folder", path);
        let chmod = self.failed("set the mode of", path);
        let (dir, name) = self.parent(path)?;
        let made = match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(failed(errno)),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(failed(Errno::EXIST)),
            opened => opened.map_err(look)?,
        };
        if made {
            // Whatever the umask.
            rustix::fs::fchmod(&opened, Mode::from_raw_mode(FOLDER_MODE)).map_err(chmod)?;
            self.tree.folder(path, FOLDER_MODE);
        }
        if own {
            let failed = self.failed("look at", path);
            let ino = Stat::of(&opened).map_err(Error::io("look at", self.root.path()))?.ino;
            if !self.folders.insert(ino) {
                return Err(failed(Errno::EXIST));
            }
        }
        Ok(())
    }

    fn file<R: Read>(&mut self, path: &str, mode: u32, entry: &mut tar::Entry<'_, R>) -> Result<(), Error> {
        let size = entry.size();
        self.take(path, size)?;
        let mode = (mode & 0o755) | 0o600;
        let mtime = entry.header().mtime().unwrap_or(0);
        let failed = self.failed("create", path);
        let (dir, name) = self.parent(path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
        let mut file = File::from(file);
        let at = self.root.path().join(path);
        let (mut crc, mut left) = (0, size);
        while left > 0 {
            let n = entry.read(&mut self.buffer).map_err(|error| damaged(path, &error))?;
            if n == 0 {
                return Err(refuse(path, "the archive ends within it"));
            }
            let piece = self.buffer.get(..n).unwrap_or_default();
            (self.spend)(n)?;
            file.write_all(piece).map_err(Error::io("write", &at))?;
            crc = crc32c::crc32c_append(crc, piece);
            left = left.saturating_sub(n as u64);
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(Error::io("set the mode of", &at))?;
        rustix::fs::futimens(&file, &times(mtime)).map_err(Error::io("set the time of", &at))?;
        self.tree.file(path, mode, size, crc);
        Ok(())
    }

    fn take(&mut self, path: &str, size: u64) -> Result<(), Error> {
        self.left = self.left.checked_sub(size).ok_or_else(|| {
            let max = self.caps.bytes_max;
            refuse(
                path,
                format!("the archive expands to more than the {max} bytes allowed (expanded-bytes-max)"),
            )
        })?;
        Ok(())
    }

    fn symlink(&mut self, path: &str, target: &str) -> Result<(), Error> {
        check_target(path, target).map_err(|why| refuse(path, why))?;
        let failed = self.failed("make the link", path);
        let (dir, name) = self.parent(path)?;
        rustix::fs::symlinkat(target, dir, name).map_err(failed)?;
        self.tree.link(path, target);
        Ok(())
    }

    /// A second name for a file that came before. Its bytes count once more, since they are read once more.
    fn hard_link(&mut self, path: &str, target: &str) -> Result<(), Error> {
        let from = clean(target.as_bytes(), self.caps.depth_max)
            .map_err(|why| refuse(path, format!("it is a hard link, and of its target {why}")))?;
        let opened = self.root.open_file(&from, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK, 0);
        let mut file = match opened {
            Err(error)
                if matches!(
                    error.kind(),
                    None | Some(io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
                ) =>
            {
                return Err(refuse(
                    path,
                    "it is a hard link to nothing that came before it, or through a link",
                ));
            }
            opened => opened?,
        };
        let stat = Stat::of(&file).map_err(Error::io("look at", self.root.path()))?;
        if !stat.is_file {
            return Err(refuse(path, "it is a hard link to something that is no file"));
        }
        self.take(path, stat.size)?;
        let (from_dir, from_name) = self.root.parent(&from, false)?;
        let failed = self.failed("link", path);
        let (dir, name) = self.parent(path)?;
        rustix::fs::linkat(from_dir.as_fd(), &from_name, dir, name, AtFlags::empty()).map_err(failed)?;
        let crc = crc_of(&mut file, &mut self.buffer).map_err(Error::io("read", self.root.path()))?;
        self.tree.file(path, stat.mode, stat.size, crc);
        Ok(())
    }
}

/// The CRC-32C of the rest of a file.
fn crc_of(file: &mut File, buffer: &mut [u8]) -> io::Result<u32> {
    let mut crc = 0;
    loop {
        match file.read(buffer)? {
            0 => return Ok(crc),
            n => crc = crc32c::crc32c_append(crc, buffer.get(..n).unwrap_or_default()),
        }
    }
}

/// The content of a header about the next entry.
fn whole<R: Read>(entry: &mut tar::Entry<'_, R>, max: u64, what: &str) -> Result<Vec<u8>, Error> {
    if entry.size() > max {
        return Err(refuse(what, format!("it has {} bytes, more than {max}", entry.size())));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|error| damaged(what, &error))?;
    Ok(bytes)
}

fn long_name<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Vec<u8>, Error> {
    let mut bytes = whole(entry, 4 * PATH_BYTES_MAX as u64, "a long name")?;
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    Ok(bytes)
}

fn name_of(kind: EntryType) -> String {
    match kind {
        EntryType::Char | EntryType::Block => "a device".to_owned(),
        EntryType::Fifo => "a FIFO".to_owned(),
        EntryType::GNUSparse => "a sparse file, which is not handled: pack without --sparse".to_owned(),
        other => format!("of the type {:?}, which is not handled", other.as_byte() as char),
    }
}

fn times(mtime: u64) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    // Within what 32-bit file systems hold.
    let seconds = i64::from(i32::try_from(mtime).unwrap_or(i32::MAX));
    Timestamps { last_access: omit, last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 } }
}

#[cfg(test)]
#[path = "extract_tests.rs"]
mod extract_tests;

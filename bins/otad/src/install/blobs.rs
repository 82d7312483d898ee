//! Content: what is here, what is still coming, and what is not known by name yet.
//!
//! Invariant: a file `blobs/<sha256>` was written, flushed and verified before it got that name.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use edge::release::{Digests, Sha256, Sums};

use super::disk::{Room, remove_file};
use super::takeover::Proven;
use super::{Error, Store};

/// Bytes that are hashed at a time when a partial file is opened again.
const PIECE: usize = 128 << 10;

/// Content that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// What it is.
    pub sha256: Sha256,
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes.
    pub size: u64,
}

impl Store {
    /// Content, if it is here and complete.
    #[must_use]
    pub fn blob(&self, sha256: &Sha256) -> Option<Blob> {
        let path = self.disk.blob(sha256);
        let meta = std::fs::symlink_metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
        Some(Blob { sha256: *sha256, path, size: meta.len() })
    }

    /// Goes on with content whose SHA-256 and size are known. What an earlier try left is hashed again, which takes as
    /// long as reading it.
    ///
    /// # Errors
    /// It is larger than allowed, there is no space for what is missing, or the disk fails.
    pub fn partial(&mut self, sha256: &Sha256, size: u64) -> Result<Partial, Error> {
        self.check_size(size)?;
        let room = Room::new(&self.disk.dir, self.limits.free_bytes_min);
        let blob = self.disk.blob(sha256);
        let path = blob.with_extension("part");
        let options = || File::options().read(true).write(true).create(true).truncate(false).to_owned();
        let file = options().open(&path).map_err(Error::io("open", &path))?;
        let (folder, digests, proven) = (self.disk.path("blobs"), Digests::default(), self.proven.clone());
        let writer = Writer { file, path, folder, digests, room, proven };
        let mut partial = Partial { writer, sha256: *sha256, size };
        partial.rehash()?;
        partial.writer.room.check(size.saturating_sub(partial.have()))?;
        Ok(partial)
    }

    /// Bytes of content that an earlier try left.
    #[must_use]
    pub fn partial_bytes(&self, sha256: &Sha256) -> u64 {
        std::fs::symlink_metadata(self.disk.blob(sha256).with_extension("part")).map_or(0, |meta| meta.len())
    }

    /// Begins content of at most `bytes_max` bytes that is known only when it has come.
    ///
    /// # Errors
    /// The disk fails, or has no space left.
    pub fn incoming(&mut self, bytes_max: u64) -> Result<Incoming, Error> {
        let room = Room::new(&self.disk.dir, self.limits.free_bytes_min);
        room.check(0)?;
        self.incoming += 1;
        let folder = self.disk.path("blobs");
        let path = folder.join(format!(".incoming-{}", self.incoming));
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        let (digests, proven) = (Digests::default(), self.proven.clone());
        let writer = Writer { file, path, folder, digests, room, proven };
        Ok(Incoming { writer, bytes_max: bytes_max.min(self.limits.blob_bytes_max), done: false })
    }

    fn check_size(&self, size: u64) -> Result<(), Error> {
        let max = self.limits.blob_bytes_max;
        if size <= max {
            return Ok(());
        }
        Err(Error::refused(format!(
            "content of {size} bytes is more than the {max} allowed (blob-bytes-max)"
        )))
    }
}

/// A file that is hashed while it is written.
#[derive(Debug)]
struct Writer {
    file: File,
    path: PathBuf,
    folder: PathBuf,
    digests: Digests,
    room: Room,
    /// Of the store.
    proven: Proven,
}

impl Writer {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.room.spend(bytes.len())?;
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))?;
        self.digests.update(bytes);
        Ok(())
    }

    /// Nothing of what was written counts any more.
    fn empty(&mut self) -> Result<(), Error> {
        self.digests = Digests::default();
        self.file.set_len(0).map_err(Error::io("empty", &self.path))?;
        let rewound = std::io::Seek::rewind(&mut self.file);
        rewound.map_err(Error::io("rewind", &self.path))
    }

    fn fsync(&mut self) -> Result<(), Error> {
        let synced = self.file.sync_all().map_err(Error::io("fsync", &self.path));
        if synced.is_err() {
            // A second fsync may succeed although the bytes are lost: they are not trusted again.
            let _ = self.empty();
        }
        synced
    }

    /// Gives it its name: what was written has this sum.
    fn place(&self, blob: &Path, sha256: Sha256) -> Result<(), Error> {
        std::fs::rename(&self.path, blob).map_err(Error::io("rename something to", blob))?;
        edge::fs::fsync_dir(&self.folder)?;
        self.proven.insert(sha256);
        Ok(())
    }
}

/// Content that is coming, in a file that outlives a power cut.
#[derive(Debug)]
pub struct Partial {
    writer: Writer,
    sha256: Sha256,
    size: u64,
}

impl Partial {
    /// Bytes that are here: where to go on.
    #[must_use]
    pub fn have(&self) -> u64 {
        self.writer.digests.size()
    }

    /// Bytes in all.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// More of it.
    ///
    /// # Errors
    /// It gets longer than announced, or the disk fails or is full; what was written stays for the next try.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let got = self.have().saturating_add(bytes.len() as u64);
        if got > self.size {
            let (expected, got) = (self.size.to_string(), format!("{got} or more"));
            return Err(Error::Content { what: "its length in bytes", expected, got });
        }
        self.writer.write(bytes)
    }

    /// All has come: flushes, verifies, and gives it its name.
    ///
    /// # Errors
    /// [`Error::Content`]: it is not what was announced, and what was there is dropped unless it is only too short.
    pub fn finish(mut self) -> Result<Blob, Error> {
        let got = self.have();
        if got < self.size {
            let (expected, got) = (self.size.to_string(), got.to_string());
            return Err(Error::Content { what: "its length in bytes", expected, got });
        }
        self.writer.fsync()?;
        let sums = self.writer.digests.clone().finish();
        if sums.sha256 != self.sha256 {
            self.writer.empty()?;
            let (expected, got) = (self.sha256.to_string(), sums.sha256.to_string());
            return Err(Error::Content { what: "its SHA-256", expected, got });
        }
        let path = self.writer.path.with_extension("");
        self.writer.place(&path, sums.sha256)?;
        Ok(Blob { sha256: self.sha256, path, size: self.size })
    }

    /// What is there is of no use (the server has something else now): begins anew.
    ///
    /// # Errors
    /// The disk fails.
    pub fn abandon(&mut self) -> Result<(), Error> {
        self.writer.empty()
    }

    fn rehash(&mut self) -> Result<(), Error> {
        let path = self.writer.path.clone();
        let there = self.writer.file.metadata().map_err(Error::io("look at", &path))?.len();
        if there > self.size {
            return self.writer.empty();
        }
        let mut buffer = vec![0; PIECE];
        loop {
            match self.writer.file.read(&mut buffer).map_err(Error::io("read", &path))? {
                0 => return Ok(()),
                n => self.writer.digests.update(buffer.get(..n).unwrap_or_default()),
            }
        }
    }
}

/// Content that is known when it has come. Dropped before, it leaves nothing.
#[derive(Debug)]
pub struct Incoming {
    writer: Writer,
    bytes_max: u64,
    done: bool,
}

impl Incoming {
    /// More of it.
    ///
    /// # Errors
    /// It gets longer than allowed, or the disk fails or is full.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let got = self.writer.digests.size().saturating_add(bytes.len() as u64);
        if got > self.bytes_max {
            let (expected, got) = (format!("at most {}", self.bytes_max), format!("{got} or more"));
            return Err(Error::Content { what: "its length in bytes", expected, got });
        }
        self.writer.write(bytes)
    }

    /// All has come: flushes it, names it by its SHA-256, and tells its sums.
    ///
    /// # Errors
    /// The disk fails.
    pub fn finish(mut self) -> Result<(Blob, Sums), Error> {
        self.writer.fsync()?;
        let sums = self.writer.digests.clone().finish();
        let path = self.writer.folder.join(sums.sha256.to_string());
        // The same content may be there already, and then has names in generations: that one stays.
        if !path.exists() {
            self.writer.place(&path, sums.sha256)?;
            self.done = true;
        }
        Ok((Blob { sha256: sums.sha256, path, size: sums.size }, sums))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.done {
            // A left-over is removed at the next start.
            let _ = remove_file(&self.writer.path);
        }
    }
}

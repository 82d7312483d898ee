//! Makes a file of the cache: a bundle (tar.gz) out of the store's content, or a copy of content that is elsewhere.
//!
//! Invariants: equal plans give equal bytes (no time, no user, no file system's order in them); content is held against
//! the sums of the catalog while it is read, and what does not fit never becomes a file; a file is synced before it gets
//! its name. Blocks; runs on the threads of [`workers`](crate::workers).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use edge::fs::context;
use edge::release::{Digests, Md5, Sha256, Sums};
use flate2::{Compression, GzBuilder};

use crate::cache::TEMPORARY;
use crate::catalog::Release;
use crate::core::Plan;
use crate::growing::{Failed, Growing};
use crate::store::{self, BlobStore};

/// The time of every entry: 2000-01-01, since tar grumbles at the year 1970.
const MTIME_S: u64 = 946_684_800;
/// Bytes that are written and told of at once.
const PIECE: usize = 128 << 10;

/// What there is to make.
#[derive(Debug)]
pub enum Recipe {
    /// A bundle.
    Bundle(Plan),
    /// A copy.
    Content { sha256: Sha256, size: u64 },
}

/// What it is made with.
pub struct Kitchen<'a> {
    pub store: &'a mut dyn BlobStore,
    pub dir: &'a Path,
    pub level: u32,
    pub free_min: u64,
    /// No more bytes than this.
    pub bytes_max: u64,
    /// Called when there is more to send.
    pub wake: &'a dyn Fn(),
}

/// Why it could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot make {name}: {free} are free in the folder, of which {keep} are to stay (bundle.free-min)"
    )]
    Full { name: String, free: String, keep: String },
    #[error(transparent)]
    File(#[from] edge::fs::Error),
    #[error("cannot write {name}")]
    Write { name: String, source: io::Error },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(
        "the store's content of {0} is not what the catalog says: publish it again ('depotd verify' tells more)"
    )]
    Content(String),
}

impl Error {
    /// What those who wait for the file are told.
    #[must_use]
    pub fn to_failed(&self) -> Failed {
        let full = |error: &io::Error| matches!(error.raw_os_error(), Some(28 | 122));
        match self {
            Self::Full { .. } => Failed::Full,
            Self::Write { source, .. } if source.kind() == io::ErrorKind::FileTooLarge => Failed::Large,
            Self::Write { source, .. } if full(source) => Failed::Full,
            Self::File(edge::fs::Error { source, .. }) if full(source) => Failed::Full,
            Self::Content(_) | Self::Store(store::Error::Missing { .. } | store::Error::Elsewhere { .. }) => {
                Failed::Content
            }
            _ => Failed::Broken,
        }
    }
}

impl Recipe {
    /// At most so many bytes come of it. `None`: the size of some content is not known (rows of the original's table).
    #[must_use]
    pub fn bytes_max(&self) -> Option<u64> {
        match self {
            Self::Content { size, .. } => Some(*size),
            Self::Bundle(plan) => {
                // An entry has at most three blocks of header (a long name) and one of padding, the archive two at its end.
                // A byte that can't be compressed takes up to nine bits, since not every level falls back to storing it.
                let entry = |size: u64| size + 4 * 512;
                let sizes = plan.files.iter().map(|r| r.sums.map(|sums| entry(sums.size)));
                let tar = sizes.sum::<Option<u64>>()? + entry(plan.details.len() as u64) + 1024;
                Some(tar + tar / 7 + 4096)
            }
        }
    }
}

/// Makes the file and gives it its name. `growing` tells of it meanwhile; its end is told as soon as all bytes are there.
///
/// # Errors
/// [`Error`]: then there is no file.
pub fn make(recipe: &Recipe, name: &str, growing: &Growing, with: &mut Kitchen<'_>) -> Result<u64, Error> {
    let temporary = with.dir.join(format!("{TEMPORARY}{name}"));
    let done = write(recipe, name, growing, &temporary, with).and_then(|size| {
        growing.finish(Ok(size));
        (with.wake)();
        let file = growing.file().ok_or_else(|| Error::Content(name.to_owned()))?;
        file.sync_all().map_err(context("fsync", &temporary))?;
        let path = with.dir.join(name);
        std::fs::rename(&temporary, &path).map_err(context("rename a temporary file to", &path))?;
        edge::fs::fsync_dir(with.dir)?;
        Ok(size)
    });
    if let Err(error) = &done {
        growing.finish(Err(error.to_failed()));
        // The first error is the one to report; the next start removes what stays.
        let _ = std::fs::remove_file(&temporary);
    }
    done
}

fn write(
    recipe: &Recipe,
    name: &str,
    growing: &Growing,
    temporary: &Path,
    with: &mut Kitchen<'_>,
) -> Result<u64, Error> {
    let free = edge::fs::free_bytes(with.dir)?;
    if free < with.free_min.saturating_add(recipe.bytes_max().unwrap_or(0)) {
        let text = edge::text::bytes;
        return Err(Error::Full { name: name.to_owned(), free: text(free), keep: text(with.free_min) });
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o640);
    let file = Arc::new(options.open(temporary).map_err(context("create", temporary))?);
    growing.begin(Arc::clone(&file));
    let out = Out {
        file,
        growing,
        wake: with.wake,
        pending: Vec::with_capacity(PIECE),
        size: 0,
        size_max: with.bytes_max,
    };
    match recipe {
        Recipe::Bundle(plan) => bundle(plan, name, out, with),
        Recipe::Content { sha256, size } => content(sha256, *size, name, out, with),
    }
}

fn bundle(plan: &Plan, name: &str, out: Out<'_>, with: &mut Kitchen<'_>) -> Result<u64, Error> {
    let wrong = |source| Error::Write { name: name.to_owned(), source };
    let gzip = GzBuilder::new().mtime(0).write(out, Compression::new(with.level));
    let mut tar = tar::Builder::new(gzip);
    for release in &plan.files {
        let blob = with.store.open(release, None)?;
        let mut checked = Checked { reader: blob.reader, sums: Digests::default() };
        let mut header = header(blob.size);
        let read = tar.append_data(&mut header, release.file_name(), (&mut checked).take(blob.size));
        read.map_err(wrong)?;
        // One more byte would be one too many.
        let _ = checked.read(&mut [0]).map_err(wrong)?;
        if !fits(release, &checked.sums.finish(), blob.size) {
            return Err(Error::Content(release.title()));
        }
    }
    let mut header = header(plan.details.len() as u64);
    tar.append_data(&mut header, "package_details.json", plan.details.as_slice()).map_err(wrong)?;
    let out = tar.into_inner().and_then(flate2::write::GzEncoder::finish).map_err(wrong)?;
    out.end().map_err(wrong)
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MTIME_S);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

/// Whether what was read is what the catalog says, as far as it says anything.
fn fits(release: &Release, found: &Sums, size: u64) -> bool {
    let md5 = |md5: &Md5| *md5 == found.md5;
    found.size == size
        && release.sums.is_none_or(|sums| sums == *found)
        && release.md5.as_ref().is_none_or(md5)
}

fn content(
    sha256: &Sha256,
    size: u64,
    name: &str,
    mut out: Out<'_>,
    with: &mut Kitchen<'_>,
) -> Result<u64, Error> {
    let mut blob = with.store.get(sha256, None)?;
    let wrong = |source| Error::Write { name: name.to_owned(), source };
    let mut sums = Digests::default();
    let mut buffer = vec![0; PIECE];
    loop {
        let n = blob.reader.read(&mut buffer).map_err(wrong)?;
        sums.update(&buffer[..n]);
        if n == 0 || sums.size() > size {
            break;
        }
        // The last bytes are told of when all of it is proven, so that nobody gets a whole file that is wrong.
        out.write_all(&buffer[..n]).map_err(wrong)?;
    }
    let found = sums.finish();
    if found.sha256 != *sha256 || found.size != size {
        return Err(Error::Content(sha256.to_string()));
    }
    out.end().map_err(wrong)
}

/// Sums of what is read through it.
struct Checked<R> {
    reader: R,
    sums: Digests,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.sums.update(&buffer[..n]);
        Ok(n)
    }
}

/// The file: written in large pieces, and told of.
struct Out<'a> {
    file: Arc<File>,
    growing: &'a Growing,
    wake: &'a dyn Fn(),
    pending: Vec<u8>,
    size: u64,
    size_max: u64,
}

impl Out<'_> {
    fn piece(&mut self) -> io::Result<()> {
        (&*self.file).write_all(&self.pending)?;
        self.growing.wrote(self.pending.len() as u64);
        self.pending.clear();
        (self.wake)();
        Ok(())
    }

    /// Writes what is left. The length of it all.
    fn end(mut self) -> io::Result<u64> {
        self.piece()?;
        Ok(self.size)
    }
}

impl Write for Out<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.size + bytes.len() as u64 > self.size_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        // Full before, not after, more is added: the last piece stays until the end.
        if self.pending.len() + bytes.len() > PIECE && !self.pending.is_empty() {
            self.piece()?;
        }
        self.pending.extend_from_slice(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;

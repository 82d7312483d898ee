//! The body of `POST /sync/<id>/data`: records of the wanted content, made while they are sent.
//!
//! Invariants: at most [`AHEAD`] bytes and a record are made ahead; at most one small file (below 1 MiB) or one chunk is
//! in memory. A small file is hashed again before its first byte leaves; of a big one the state must be the same before
//! and after, and the device checks each chunk by its sum.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    path::PathBuf,
};

use edge::{
    beneath::Stat,
    sync::{
        chunk::Chunk,
        content,
        wire::{self, PIECE_MAX, Worth},
    },
};

use crate::scan::{self, Local, Scan};

use super::{
    Error, Progress,
    protocol::{Job, Plan},
};

/// Records are made until so many bytes are there.
const AHEAD: usize = 64 * 1024;

/// A big file under way.
struct Big {
    file: File,
    worth: Worth,
    /// Index into the job's ranges, and chunks of that range that are done.
    range: usize,
    chunk: usize,
    /// The chunk that is next by its index, and where it begins in the file.
    at: (usize, u64),
}

/// See the module's text.
pub(super) struct Content<'a> {
    scan: &'a Scan,
    plan: &'a Plan,
    progress: &'a mut dyn Progress,
    /// The job under way.
    job: usize,
    big: Option<Big>,
    /// Content, reused.
    raw: Vec<u8>,
    /// Records; the first `read` bytes are gone.
    out: Vec<u8>,
    read: usize,
    /// Bytes of records that were made.
    pub(super) bytes: u64,
    /// Why reading ended early.
    pub(super) failed: Option<Error>,
}

impl<'a> Content<'a> {
    pub(super) fn new(scan: &'a Scan, plan: &'a Plan, progress: &'a mut dyn Progress) -> Content<'a> {
        let mut out = Vec::with_capacity(AHEAD + PIECE_MAX);
        wire::begin(&mut out);
        Content {
            scan,
            plan,
            progress,
            job: 0,
            big: None,
            raw: Vec::new(),
            bytes: out.len() as u64,
            out,
            read: 0,
            failed: None,
        }
    }

    /// The file that was sent last.
    pub(super) fn last_path(&self) -> PathBuf {
        let job = self.plan.jobs.get(self.job).or(self.plan.jobs.last());
        job.map(|job| self.scan.locals[job.entry].path.clone()).unwrap_or_default()
    }

    /// Makes records until there are enough.
    fn fill(&mut self) -> Result<(), Error> {
        self.out.clear();
        self.read = 0;
        while self.out.len() < AHEAD {
            let (plan, scan) = (self.plan, self.scan);
            let Some(job) = plan.jobs.get(self.job) else { break };
            let local = &scan.locals[job.entry];
            let before = self.out.len();
            let sent = match local.hashed.chunks {
                None => self.small(job, local)?,
                Some(_) => self.big(job, local)?,
            };
            self.bytes += (self.out.len() - before) as u64;
            self.progress.sent(sent);
        }
        Ok(())
    }

    /// A whole small file; its bytes.
    fn small(&mut self, job: &Job, local: &Local) -> Result<u64, Error> {
        let failed = |source| Error::Scan(scan::Error::Read { path: local.path.clone(), source });
        let file = open(local)?;
        self.raw.clear();
        let limit = local.hashed.size + 1;
        (&file).take(limit).read_to_end(&mut self.raw).map_err(failed)?;
        if self.raw.len() as u64 != local.hashed.size || content::of_bytes(&self.raw) != local.hashed.id {
            return Err(changed(local));
        }
        let (entry, mut worth, mut offset) = (job.entry as u32, Worth::default(), 0);
        if self.raw.is_empty() {
            wire::encode(entry, 0, &[], &mut worth, &mut self.out);
        }
        for piece in self.raw.chunks(PIECE_MAX) {
            wire::encode(entry, offset, piece, &mut worth, &mut self.out);
            offset += piece.len() as u64;
        }
        self.job += 1;
        Ok(offset)
    }

    /// The next chunk of a big file; its bytes.
    fn big(&mut self, job: &Job, local: &Local) -> Result<u64, Error> {
        let chunks = local.hashed.chunks.as_deref().unwrap_or_default();
        let mut big = match self.big.take() {
            Some(big) => big,
            None => {
                let file = open(local)?;
                same(local, &file)?;
                Big { file, worth: Worth::default(), range: 0, chunk: 0, at: (0, 0) }
            }
        };
        let Some(&(first, count)) = job.ranges.get(big.range) else {
            same(local, &big.file)?;
            self.job += 1;
            return Ok(0);
        };
        if big.chunk == count {
            (big.range, big.chunk) = (big.range + 1, 0);
            self.big = Some(big);
            return Ok(0);
        }
        let at = first + big.chunk;
        let length = |chunks: &[Chunk]| chunks.iter().map(|chunk| u64::from(chunk.len)).sum::<u64>();
        let offset = match big.at {
            (near, offset) if near <= at => offset + length(&chunks[near..at]),
            _ => length(&chunks[..at]),
        };
        let len = chunks[at].len;
        big.at = (at + 1, offset + u64::from(len));
        self.raw.resize(len as usize, 0);
        big.file.read_exact_at(&mut self.raw, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => changed(local),
            _ => Error::Scan(scan::Error::Read { path: local.path.clone(), source: error }),
        })?;
        wire::encode(job.entry as u32, offset, &self.raw, &mut big.worth, &mut self.out);
        big.chunk += 1;
        self.big = Some(big);
        Ok(u64::from(len))
    }
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.read == self.out.len()
            && let Err(error) = self.fill()
        {
            let text = error.to_string();
            self.failed = Some(error);
            return Err(io::Error::other(text));
        }
        let rest = &self.out[self.read..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.read += count;
        Ok(count)
    }
}

fn open(local: &Local) -> Result<File, Error> {
    scan::read::open(&local.path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => changed(local),
        _ => Error::Scan(scan::Error::Read { path: local.path.clone(), source }),
    })
}

/// Whether the file is as it was when it was hashed.
fn same(local: &Local, file: &File) -> Result<(), Error> {
    let now = Stat::of(file)
        .map_err(|source| Error::Scan(scan::Error::Read { path: local.path.clone(), source }))?;
    let state = |s: &Stat| (s.dev, s.ino, s.size, s.mtime_ns, s.ctime_ns);
    if state(&now) == state(&local.stat) { Ok(()) } else { Err(changed(local)) }
}

fn changed(local: &Local) -> Error {
    Error::Changed { path: local.path.clone() }
}

//! One file: fragmented MP4, written under a temporary name and renamed when it is complete.
//!
//! Pictures are gathered for up to a second, so that each one's duration is known when it is written; what a crash leaves
//! can be played up to there.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::h264::Header;
use crate::mp4::{self, Sample};
use crate::unit::Unit;

/// A fragment spans this at most, in nanoseconds.
const SPAN_NS: u64 = 1_000_000_000;
/// How long the last picture is shown where nothing follows, in ticks.
const LAST: u32 = 3_600;
/// A file whose name ends so is not complete.
pub const PART: &str = ".part";

/// An open file.
#[derive(Debug)]
pub struct Segment {
    file: File,
    path: PathBuf,
    header: Header,
    begin_ns: u64,
    gathered: Vec<Unit>,
    sequence: u32,
    bytes: u64,
}

impl Segment {
    /// Creates `path` (with [`PART`] at its end until it is complete) for a stream that begins with this key frame.
    ///
    /// # Errors
    /// What the system says.
    pub fn create(path: &Path, header: Header, first: &Unit) -> io::Result<Segment> {
        let mut name = path.as_os_str().to_owned();
        name.push(PART);
        let mut file = File::options().write(true).create(true).truncate(true).open(&name)?;
        let mut bytes = Vec::new();
        mp4::init(&mut bytes, &header);
        file.write_all(&bytes)?;
        let (path, gathered, sequence) = (path.to_owned(), vec![first.clone()], 0);
        Ok(Segment {
            file,
            path,
            header,
            begin_ns: first.pts_ns,
            gathered,
            sequence,
            bytes: bytes.len() as u64,
        })
    }

    /// Its parameter sets.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Since its first picture, in nanoseconds.
    #[must_use]
    pub fn age_ns(&self, unit: &Unit) -> u64 {
        unit.pts_ns.saturating_sub(self.begin_ns)
    }

    /// Bytes written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds the next picture.
    ///
    /// # Errors
    /// What the system says.
    pub fn push(&mut self, unit: &Unit) -> io::Result<()> {
        let span = self.gathered.first().map_or(0, |first| unit.pts_ns.saturating_sub(first.pts_ns));
        if unit.key || span >= SPAN_NS {
            self.write(Some(unit.pts_ns))?;
        }
        self.gathered.push(unit.clone());
        Ok(())
    }

    /// Writes what is gathered; the next picture comes at `next_ns`.
    fn write(&mut self, next_ns: Option<u64>) -> io::Result<()> {
        let Some(first) = self.gathered.first() else { return Ok(()) };
        let at = |ns: u64| mp4::ticks(ns.saturating_sub(self.begin_ns));
        let start = at(first.pts_ns);
        let ends = self.gathered.iter().skip(1).map(|unit| Some(unit.pts_ns)).chain([next_ns]);
        let duration = |from: u64, to: Option<u64>| {
            to.map_or(LAST, |to| u32::try_from(at(to).saturating_sub(at(from))).unwrap_or(u32::MAX))
        };
        let samples: Vec<Sample<'_>> = (self.gathered.iter().zip(ends))
            .map(|(unit, end)| Sample {
                unit: &unit.data,
                duration: duration(unit.pts_ns, end),
                key: unit.key,
            })
            .collect();
        self.sequence += 1;
        let mut bytes = Vec::new();
        mp4::fragment(&mut bytes, self.sequence, start, &samples);
        self.file.write_all(&bytes)?;
        self.bytes += bytes.len() as u64;
        self.gathered.clear();
        Ok(())
    }

    /// Writes the rest; the file has its name from then on. `next_ns`: when the next file begins.
    ///
    /// # Errors
    /// What the system says; the file keeps its temporary name then.
    pub fn finish(mut self, next_ns: Option<u64>) -> io::Result<()> {
        self.write(next_ns)?;
        self.file.sync_data()?;
        let mut part = self.path.as_os_str().to_owned();
        part.push(PART);
        std::fs::rename(part, &self.path)?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        edge::fs::fsync_dir(folder).map_err(io::Error::other)
    }
}

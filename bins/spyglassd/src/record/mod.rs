//! Recordings: segments of some minutes, each a file that begins on a key frame, within a bound of bytes.
//!
//! Files are named `<stream>-<UTC time of the first picture>.mp4`. Owns those of its stream in the folder: the oldest are
//! deleted beyond the bound. A thread does the writing, since a disk may be slow. What a crash left under a temporary name
//! gets its name at the next start: it can be played.

pub mod config;
mod segment;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::clock::rfc3339_ms;
use serde_json::json;

pub use config::{Config, Raw};
use segment::{PART, Segment};

use crate::h264::Header;
use crate::sink::{Shared, Sink, Wake};
use crate::unit::Unit;

/// Bytes of units that wait for the disk, at most.
const INBOX_BYTES_MAX: usize = 16 << 20;
/// After an error the disk is left alone this long.
const PAUSE: Duration = Duration::from_secs(5);
/// Without a unit for this long, the file is completed.
const QUIET: Duration = Duration::from_secs(10);

/// Starts a recording. `stream` is the stream's name; it becomes part of file names.
///
/// # Errors
/// The folder can't be made, or the system gives no thread.
pub fn start(config: Config, stream: &str) -> io::Result<Sink> {
    edge::fs::create_dir_durably(&config.dir).map_err(io::Error::other)?;
    let shared = Shared::new(INBOX_BYTES_MAX);
    shared.want_key();
    let mut recorder = Recorder::new(config, stream, Arc::clone(&shared));
    recorder.recover();
    Sink::start("record", stream, shared, Wake::Park, move || recorder.run())
}

struct Recorder {
    config: Config,
    stream: String,
    shared: Arc<Shared>,
    segment: Option<Segment>,
    /// What went wrong, and until when nothing is tried.
    trouble: Option<(String, Instant)>,
    since_ms: u64,
    unit_at: Option<Instant>,
    segments: u64,
    deleted: u64,
    unrecorded: u64,
}

impl Recorder {
    fn new(config: Config, stream: &str, shared: Arc<Shared>) -> Recorder {
        Recorder {
            config,
            stream: stream.to_owned(),
            shared,
            segment: None,
            trouble: None,
            since_ms: edge::clock::unix_ms(),
            unit_at: None,
            segments: 0,
            deleted: 0,
            unrecorded: 0,
        }
    }

    fn run(mut self) {
        loop {
            let stopping = self.shared.is_stopping();
            for unit in self.shared.inbox.take() {
                self.unit_at = Some(Instant::now());
                let result = self.take(&unit);
                self.judge(result);
            }
            let quiet = self.unit_at.is_some_and(|at| at.elapsed() >= QUIET);
            if stopping || quiet {
                let result = self.finish(None);
                self.judge(result);
                self.unit_at = None;
            }
            self.publish(stopping);
            if stopping {
                return;
            }
            match self.segment {
                Some(_) => std::thread::park_timeout(QUIET),
                None => std::thread::park(),
            }
        }
    }

    /// One error is told once, until it is over.
    fn judge(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.segment = None;
            let why = format!("can't record to {}: {error}", self.config.dir.display());
            if self.trouble.as_ref().is_none_or(|(said, _)| *said != why) {
                log::error!("record {}: {why}", self.stream);
                self.since_ms = edge::clock::unix_ms();
            }
            self.trouble = Some((why, Instant::now() + PAUSE));
        }
    }

    fn take(&mut self, unit: &Unit) -> io::Result<()> {
        if !unit.key {
            return match &mut self.segment {
                Some(segment) => segment.push(unit),
                None => {
                    self.unrecorded += 1;
                    self.shared.want_key();
                    Ok(())
                }
            };
        }
        let Some(header) = Header::of(&unit.data) else { return Ok(()) };
        let full = |segment: &Segment| {
            segment.age_ns(unit) >= u64::try_from(self.config.segment.as_nanos()).unwrap_or(u64::MAX)
                || *segment.header() != header
        };
        match &mut self.segment {
            Some(segment) if !full(segment) => return segment.push(unit),
            _ => self.finish(Some(unit.pts_ns))?,
        }
        if self.trouble.as_ref().is_some_and(|(_, until)| Instant::now() < *until) {
            self.unrecorded += 1;
            return Ok(());
        }
        self.trim()?;
        let digits: String = rfc3339_ms(unit.wall_ms).chars().filter(|c| !matches!(c, '-' | ':')).collect();
        let path = self.config.dir.join(format!("{}-{digits}.mp4", self.stream));
        self.segment = Some(Segment::create(&path, header, unit)?);
        self.since_ms = if self.trouble.take().is_some() { edge::clock::unix_ms() } else { self.since_ms };
        Ok(())
    }

    fn finish(&mut self, next_ns: Option<u64>) -> io::Result<()> {
        if let Some(segment) = self.segment.take() {
            segment.finish(next_ns)?;
            self.segments += 1;
            self.trim()?;
        }
        Ok(())
    }

    /// Our complete files, oldest first, with their sizes.
    fn files(&self, suffix: &str) -> io::Result<Vec<(PathBuf, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.config.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let time = name.to_str().and_then(|name| name.strip_suffix(suffix)?.strip_prefix(&self.stream));
            let time = time.and_then(|rest| rest.strip_prefix('-'));
            // Another stream's name may begin like ours: what is left must be a time and nothing else.
            let is_time =
                |t: &str| t.len() == 20 && t.bytes().all(|b| b.is_ascii_digit() || b"TZ.".contains(&b));
            if time.is_some_and(is_time) {
                files.push((entry.path(), entry.metadata()?.len()));
            }
        }
        files.sort();
        Ok(files)
    }

    /// Deletes the oldest files beyond the bounds.
    fn trim(&mut self) -> io::Result<()> {
        let files = self.files(".mp4")?;
        let mut sum: u64 = files.iter().map(|(_, bytes)| bytes).sum();
        for (path, bytes) in files {
            let free = edge::fs::free_bytes(&self.config.dir).map_err(io::Error::other)?;
            if sum <= self.config.bytes_max && free >= self.config.free_bytes_min {
                break;
            }
            std::fs::remove_file(&path)?;
            sum -= bytes;
            self.deleted += 1;
        }
        Ok(())
    }

    /// What a crash left gets its name.
    fn recover(&mut self) {
        let left = self.files(&format!(".mp4{PART}"));
        for (path, _) in left.unwrap_or_default() {
            let whole = path.with_extension("");
            match std::fs::rename(&path, &whole) {
                Ok(()) => {
                    log::info!("record {}: {} was not completed; it is kept", self.stream, whole.display())
                }
                Err(error) => log::warn!("record {}: can't rename {}: {error}", self.stream, path.display()),
            }
        }
    }

    fn publish(&self, stopped: bool) {
        let state = match (&self.trouble, &self.segment) {
            _ if stopped => "STOPPED",
            (Some(_), _) => "ERROR",
            (None, Some(_)) => "STREAMING",
            (None, None) => "WAITING",
        };
        let status = json!({
            "state": state,
            "why": self.trouble.as_ref().map(|(why, _)| why),
            "since": rfc3339_ms(self.since_ms),
            "segments": self.segments,
            "segments-deleted": self.deleted,
            "segment-bytes": self.segment.as_ref().map(Segment::bytes),
            "frames-dropped": self.unrecorded + self.shared.inbox.dropped(),
        });
        self.shared.publish(status);
    }
}

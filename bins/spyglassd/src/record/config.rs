//! `[stream.record]`: its keys, defaults and checks.

use std::path::PathBuf;
use std::time::Duration;

use edge::config::{Error, Loaded, Size};
use serde::{Deserialize, Serialize};

/// The table as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Raw {
    /// The folder.
    pub dir: PathBuf,
    /// A segment's length.
    pub segment_minutes: u64,
    /// Of all segments of the stream.
    pub bytes_max: Size,
    /// What is always left free on the disk.
    pub free_bytes_min: Size,
}

impl Default for Raw {
    fn default() -> Raw {
        Raw {
            dir: PathBuf::new(),
            segment_minutes: 5,
            bytes_max: Size::mib(1024),
            free_bytes_min: Size::mib(256),
        }
    }
}

/// What a recording runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The folder; may be shared by streams.
    pub dir: PathBuf,
    /// A segment ends at the first key frame after this.
    pub segment: Duration,
    /// The oldest segments of the stream are deleted beyond this, in bytes.
    pub bytes_max: u64,
    /// And while less than this is free, in bytes.
    pub free_bytes_min: u64,
}

impl Raw {
    /// Checks the table, which is called `prefix` in the file.
    ///
    /// # Errors
    /// With line, column, key and expectation.
    pub fn to_config<R>(&self, loaded: &Loaded<R>, prefix: &str) -> Result<Config, Error> {
        let wrong = |key: &str, message: &str| loaded.problem(&format!("{prefix}.{key}"), message);
        if !self.dir.is_absolute() {
            return Err(wrong("dir", "expected an absolute path of a folder"));
        }
        loaded.within(&format!("{prefix}.segment-minutes"), self.segment_minutes, 1, 1440)?;
        if self.bytes_max.0 < 1 << 20 {
            return Err(wrong("bytes-max", "expected at least \"1 MiB\""));
        }
        Ok(Config {
            dir: self.dir.clone(),
            segment: Duration::from_secs(self.segment_minutes * 60),
            bytes_max: self.bytes_max.0,
            free_bytes_min: self.free_bytes_min.0,
        })
    }
}

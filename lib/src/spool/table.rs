//! How a spool is written in a TOML file; the same keys in every daemon that has one.
//!
//! Owns: the table [`Table`] and where its errors point. The bounds themselves are checked by [`SpoolConfig::check`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::config::{Full, FullByQos, SpoolConfig};
use crate::config::{Error, Loaded, Size};

/// The table `[spool]`. All keys have defaults; their meaning is that of the field of the same name in [`SpoolConfig`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "each key is documented at the field of the same name in SpoolConfig")]
pub struct Table {
    pub max_bytes: Size,
    pub segment_bytes: Size,
    pub max_record_bytes: Size,
    pub commit_count: u32,
    pub commit_bytes: Size,
    pub commit_ms: u32,
    pub cursor_ms: u32,
    pub full_qos0: FullKey,
    pub full_qos1: FullKey,
    pub full_qos2: FullKey,
    pub spool_qos0: bool,
    pub memory_bytes: Size,
    pub tail_bytes: Size,
    pub window: usize,
    pub held_max: usize,
    pub dead_letter_bytes: Size,
    pub dead_letter_count: usize,
    pub quarantine_bytes: Size,
}

/// [`Full`] as written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the variants are those of Full")]
pub enum FullKey {
    Block,
    DropOldest,
    DropNewest,
}

impl From<Full> for FullKey {
    fn from(full: Full) -> FullKey {
        match full {
            Full::Block => FullKey::Block,
            Full::DropOldest => FullKey::DropOldest,
            Full::DropNewest => FullKey::DropNewest,
        }
    }
}

impl From<FullKey> for Full {
    fn from(key: FullKey) -> Full {
        match key {
            FullKey::Block => Full::Block,
            FullKey::DropOldest => Full::DropOldest,
            FullKey::DropNewest => Full::DropNewest,
        }
    }
}

impl Default for Table {
    fn default() -> Table {
        let c = SpoolConfig::new("");
        Table {
            max_bytes: Size(c.max_bytes),
            segment_bytes: Size(c.segment_bytes),
            max_record_bytes: Size(c.max_record_bytes),
            commit_count: c.commit_count,
            commit_bytes: Size(c.commit_bytes),
            commit_ms: c.commit_ms,
            cursor_ms: c.cursor_ms,
            full_qos0: c.full.qos0.into(),
            full_qos1: c.full.qos1.into(),
            full_qos2: c.full.qos2.into(),
            spool_qos0: c.spool_qos0,
            memory_bytes: Size(c.memory_bytes as u64),
            tail_bytes: Size(c.tail_bytes as u64),
            window: c.window,
            held_max: c.held_max,
            dead_letter_bytes: Size(c.dead_letter_bytes),
            dead_letter_count: c.dead_letter_count,
            quarantine_bytes: Size(c.quarantine_bytes),
        }
    }
}

impl Table {
    /// The spool in `dir` with the bounds of this table, which stands as `table` in `loaded`.
    ///
    /// # Errors
    /// The first key out of its range, with its place.
    pub fn to_config<R>(&self, loaded: &Loaded<R>, table: &str, dir: PathBuf) -> Result<SpoolConfig, Error> {
        let config = SpoolConfig {
            dir,
            max_bytes: self.max_bytes.0,
            segment_bytes: self.segment_bytes.0,
            max_record_bytes: self.max_record_bytes.0,
            commit_count: self.commit_count,
            commit_bytes: self.commit_bytes.0,
            commit_ms: self.commit_ms,
            cursor_ms: self.cursor_ms,
            full: FullByQos {
                qos0: self.full_qos0.into(),
                qos1: self.full_qos1.into(),
                qos2: self.full_qos2.into(),
            },
            spool_qos0: self.spool_qos0,
            memory_bytes: self.memory_bytes.as_usize(),
            tail_bytes: self.tail_bytes.as_usize(),
            window: self.window,
            held_max: self.held_max,
            dead_letter_bytes: self.dead_letter_bytes.0,
            dead_letter_count: self.dead_letter_count,
            quarantine_bytes: self.quarantine_bytes.0,
        };
        match config.check() {
            Ok(()) => Ok(config),
            Err(problem) => Err(loaded.problem(&format!("{table}.{}", problem.key), &problem.text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_spool_and_errors_point_at_the_key() {
        let read = |text: &str| crate::config::parse::<Table>(Path::new("x.toml"), text.to_owned()).unwrap();
        let loaded = read("");
        let config = loaded.raw.to_config(&loaded, "spool", "/s".into()).unwrap();
        assert_eq!(format!("{config:?}"), format!("{:?}", SpoolConfig::new("/s")));
        let loaded = read("full-qos1 = \"drop-oldest\"\nsegment-bytes = 5000\n");
        let error = loaded.raw.to_config(&loaded, "", "/s".into());
        assert!(error.unwrap_err().to_string().contains("segment-bytes: expected 64 KiB to 1 GiB"));
    }
}

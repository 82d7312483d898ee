//! Bounds and policies of a spool, with their defaults, and their check.
//!
//! Each daemon gives every field a TOML key of the same name in kebab-case and turns a [`Problem`] into a
//! configuration error that points at the key.

use std::path::PathBuf;

use crate::mqtt::Qos;

/// What happens to a message that arrives while the spool is at its bound (bytes, or a full disk).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Full {
    /// Nothing is dropped: the caller stops reading its peer and comes back when space appears.
    #[default]
    Block,
    /// The oldest records that may be dropped make room, a whole segment at a time. A record that was handed out
    /// and not yet acknowledged, and a record of a QoS whose own policy is not `drop-oldest`, is never dropped;
    /// where nothing can be dropped the message is blocked.
    DropOldest,
    /// The arriving message is dropped.
    DropNewest,
}

/// [`Full`] for each quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FullByQos {
    /// For QoS 0 (default `drop-oldest`).
    pub qos0: Full,
    /// For QoS 1 (default `block`).
    pub qos1: Full,
    /// For QoS 2 (default `block`).
    pub qos2: Full,
}

impl Default for FullByQos {
    fn default() -> FullByQos {
        FullByQos { qos0: Full::DropOldest, qos1: Full::Block, qos2: Full::Block }
    }
}

impl FullByQos {
    /// The policy for one quality of service.
    #[must_use]
    pub fn of(&self, qos: Qos) -> Full {
        match qos {
            Qos::AtMostOnce => self.qos0,
            Qos::AtLeastOnce => self.qos1,
            Qos::ExactlyOnce => self.qos2,
        }
    }
}

/// What [`Spool::open`](super::Spool::open) needs to know. [`SpoolConfig::new`] fills in the defaults.
#[derive(Debug, Clone)]
pub struct SpoolConfig {
    /// The folder. Made if absent (its parent must exist). One process at a time.
    pub dir: PathBuf,
    /// Size of a segment file in bytes; 64 KiB to 1 GiB, a multiple of 4 KiB. Default 8 MiB.
    /// Space is given back a segment at a time.
    pub segment_bytes: u64,
    /// Bound for all segments together, in bytes; at least four segments. Default 1 GiB.
    /// Journal (two files, 1 MiB each at rest), dead letters and quarantine come on top, with bounds of their own.
    pub max_bytes: u64,
    /// Bound for one record (topic, properties, payload) in bytes; at most a quarter of `max_bytes`. Default 16 MiB.
    pub max_record_bytes: u64,
    /// A group is committed when this many records wait. Default 256.
    pub commit_count: u32,
    /// A group is committed when this many bytes wait. Default 1 MiB.
    pub commit_bytes: u64,
    /// A group is committed when its oldest record waited this long, in ms. 0 (default) means: as soon as the sync
    /// before it is done, which is both the fastest and the quickest to acknowledge; while one sync runs the next
    /// group gathers. A few ms save flash wear, and cap what a peer with few messages in flight can send.
    pub commit_ms: u32,
    /// The cursor goes to disk at the latest this long after it moved, in ms. Default 1000. Records acknowledged
    /// since are sent again after a crash (never at QoS 2).
    pub cursor_ms: u32,
    /// What happens at the bound.
    pub full: FullByQos,
    /// Whether QoS 0 goes through the disk as well (default: memory only, no acknowledgement needed, lost with the
    /// process).
    pub spool_qos0: bool,
    /// Bound in bytes for QoS 0 messages kept in memory. Default 1 MiB.
    pub memory_bytes: usize,
    /// Bound in bytes for just-appended records kept so that they need no re-read. Default 1 MiB.
    pub tail_bytes: usize,
    /// How far reading may go ahead of the oldest unacknowledged record, in records. Default 4096, at most 65535.
    pub window: usize,
    /// Bound for inbound QoS 2 packet ids held at once, over all sources. Default 65535. Beyond it a
    /// connection is ended.
    pub held_max: usize,
    /// Bound for `dead-letter/` in bytes. Default 64 MiB. The oldest files make room.
    pub dead_letter_bytes: u64,
    /// Bound for `dead-letter/` in files. Default 1000. The oldest files make room.
    pub dead_letter_count: usize,
    /// Bound for `quarantine/` in bytes. Default 64 MiB. Beyond it damage is counted but not copied.
    pub quarantine_bytes: u64,
}

/// A value out of its range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The TOML key (kebab-case) of the field.
    pub key: &'static str,
    /// What was expected and what was found.
    pub text: String,
}

impl SpoolConfig {
    /// The defaults, in this folder.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> SpoolConfig {
        const MIB: u64 = 1 << 20;
        SpoolConfig {
            dir: dir.into(),
            segment_bytes: 8 * MIB,
            max_bytes: 1024 * MIB,
            max_record_bytes: 16 * MIB,
            commit_count: 256,
            commit_bytes: MIB,
            commit_ms: 0,
            cursor_ms: 1000,
            full: FullByQos::default(),
            spool_qos0: false,
            memory_bytes: 1 << 20,
            tail_bytes: 1 << 20,
            window: 4096,
            held_max: 65535,
            dead_letter_bytes: 64 * MIB,
            dead_letter_count: 1000,
            quarantine_bytes: 64 * MIB,
        }
    }

    /// Says which field is out of range, first one first.
    ///
    /// # Errors
    /// A [`Problem`] with the key and what was expected.
    pub fn check(&self) -> Result<(), Problem> {
        let bad = |key, text: String| Err(Problem { key, text });
        if !(1 << 16..=1 << 30).contains(&self.segment_bytes) || !self.segment_bytes.is_multiple_of(4096) {
            return bad(
                "segment-bytes",
                format!("expected 64 KiB to 1 GiB in steps of 4 KiB, found {} bytes", self.segment_bytes),
            );
        }
        if self.max_bytes < 4 * self.segment_bytes {
            return bad(
                "max-bytes",
                format!(
                    "expected at least four segments ({} bytes), found {}",
                    4 * self.segment_bytes,
                    self.max_bytes
                ),
            );
        }
        if self.max_record_bytes == 0 || self.max_record_bytes > (self.max_bytes / 4).min(1 << 30) {
            return bad(
                "max-record-bytes",
                format!(
                    "expected 1 to {} bytes (a quarter of max-bytes, at most 1 GiB), found {}",
                    (self.max_bytes / 4).min(1 << 30),
                    self.max_record_bytes
                ),
            );
        }
        if self.commit_count == 0 {
            return bad("commit-count", "expected at least 1, found 0".into());
        }
        if self.commit_bytes == 0 {
            return bad("commit-bytes", "expected at least 1, found 0".into());
        }
        if self.commit_ms > 10_000 {
            return bad("commit-ms", format!("expected 0 to 10000 ms, found {}", self.commit_ms));
        }
        if !(1..=3_600_000).contains(&self.cursor_ms) {
            return bad("cursor-ms", format!("expected 1 to 3600000 ms, found {}", self.cursor_ms));
        }
        if !(1..=65_535).contains(&self.window) {
            return bad("window", format!("expected 1 to 65535 records, found {}", self.window));
        }
        if !(1..=1 << 20).contains(&self.held_max) {
            return bad("held-max", format!("expected 1 to 1048576 packet ids, found {}", self.held_max));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_each_bound_is_named() {
        let good = SpoolConfig::new("/x");
        assert_eq!(good.check(), Ok(()));
        let key = |change: fn(&mut SpoolConfig)| {
            let mut c = SpoolConfig::new("/x");
            change(&mut c);
            c.check().unwrap_err().key
        };
        assert_eq!(key(|c| c.segment_bytes = 5000), "segment-bytes");
        assert_eq!(key(|c| c.max_bytes = c.segment_bytes * 3), "max-bytes");
        assert_eq!(key(|c| c.max_record_bytes = c.max_bytes), "max-record-bytes");
        assert_eq!(key(|c| c.commit_count = 0), "commit-count");
        assert_eq!(key(|c| c.commit_bytes = 0), "commit-bytes");
        assert_eq!(key(|c| c.commit_ms = 10_001), "commit-ms");
        assert_eq!(key(|c| c.cursor_ms = 0), "cursor-ms");
        assert_eq!(key(|c| c.window = 65_536), "window");
        assert_eq!(key(|c| c.held_max = 0), "held-max");
    }
}

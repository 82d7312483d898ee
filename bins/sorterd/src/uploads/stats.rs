//! What the uploads say of themselves, for `/status` and `/metrics`.

use std::time::Instant;

use edge::objects::Store;

use super::Uploads;

/// Counters since the start, and gauges.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Where they go.
    pub target: String,
    /// Pictures on disk that are not yet objects.
    pub queued: u64,
    /// Uploads under way.
    pub uploading: usize,
    /// Pictures that became objects, and their bytes.
    pub stored: u64,
    pub stored_bytes: u64,
    /// Uploads that failed in passing.
    pub retries: u64,
    /// Uploads that S3 refused.
    pub refusals: u64,
    /// Pictures put into `dead-letter/`.
    pub dead: u64,
    /// Pictures that were not queued: the spool was full, or no object can have their key.
    pub refused: u64,
    /// Why everything is held, and for how many seconds.
    pub held: Option<(u64, String)>,
    /// The latest failure that passes, and for how many seconds there were such.
    pub trouble: Option<(u64, String)>,
    /// S3's clock minus ours, in seconds, as far as it had to be corrected.
    pub skew_s: i64,
    /// Of the spool's segments.
    pub disk_bytes: u64,
    /// Whether the disk is full, not only the configured bound.
    pub disk_full: bool,
    /// Damaged places found in the spool.
    pub damaged: u64,
}

impl Uploads {
    /// Everything there is to say at this moment.
    #[must_use]
    pub fn stats(&self, now: Instant) -> Stats {
        let ago =
            |(since, why): (Instant, &str)| (now.saturating_duration_since(since).as_secs(), why.to_owned());
        let (counts, spool) = (self.core.counts(), self.spool.0.stats());
        Stats {
            target: self.store.name(),
            queued: spool.queued,
            uploading: self.uploading,
            stored: counts.stored,
            stored_bytes: self.stored_bytes,
            retries: counts.retries,
            refusals: counts.refusals,
            dead: counts.dead,
            refused: self.refused,
            held: self.core.held().map(ago),
            trouble: self.core.trouble().map(ago),
            skew_s: match &*self.store {
                Store::S3(s3) => s3.skew_s(),
                Store::Dir(_) => 0,
            },
            disk_bytes: spool.disk_bytes,
            disk_full: spool.disk_full,
            damaged: spool.damaged,
        }
    }
}

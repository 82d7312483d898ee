//! What the daemon says of itself: the line of `systemctl status`, `/status` and `/metrics`.

use std::time::Instant;

use edge::ctl::Metrics;
use edge::inlet::{self, Inlet};
use edge::objects::{Core, Counts};
use edge::spool::Stats;
use serde_json::{Value, json};

/// What is shown, gathered at one moment.
#[derive(Debug)]
pub struct View {
    pub target: String,
    pub started: Instant,
    pub now: Instant,
    pub counts: Counts,
    pub stored_bytes: u64,
    pub running: usize,
    pub busy: usize,
    /// Why everything is held, and for how many seconds.
    pub held: Option<(u64, String)>,
    /// The latest transient failure, and for how many seconds there were such.
    pub trouble: Option<(u64, String)>,
    pub skew_s: i64,
    pub spool: Stats,
    pub input: Value,
    pub input_counts: inlet::Counters,
    /// What is wrong with the source, if anything.
    pub input_down: Option<String>,
}

impl View {
    /// Gathers what `core` and `input` know; the caller fills in the rest.
    pub fn new<J: Clone>(
        core: &Core<J>,
        input: &Inlet,
        spool: Stats,
        target: String,
        started: Instant,
        now: Instant,
    ) -> Self {
        let ago =
            |(since, why): (Instant, &str)| (now.saturating_duration_since(since).as_secs(), why.to_owned());
        Self {
            target,
            started,
            now,
            counts: core.counts(),
            stored_bytes: 0,
            running: core.running(),
            busy: core.busy(),
            held: core.held().map(ago),
            trouble: core.trouble().map(ago),
            skew_s: 0,
            spool,
            input: input.status(),
            input_counts: input.counters.clone(),
            input_down: (!input.is_up()).then(|| input.describe()),
        }
    }

    /// One line.
    pub fn line(&self) -> String {
        let Counts { stored, dead, .. } = self.counts;
        let mut line = format!("{stored} stored, {} waiting", self.spool.queued + self.spool.memory as u64);
        if dead > 0 {
            line += &format!(", {dead} in dead-letter/");
        }
        match (&self.held, &self.trouble) {
            (Some((s, why)), _) => line = format!("HOLDING EVERYTHING for {s} s: {why}; {line}"),
            (None, Some((s, why))) => line = format!("retrying for {s} s: {why}; {line}"),
            (None, None) => {}
        }
        if let Some(why) = &self.input_down {
            line += &format!("; source {why}");
        }
        line
    }

    /// `/status`.
    pub fn json(&self) -> Value {
        let (state, for_s, why) = match (&self.held, &self.trouble) {
            (Some((s, why)), _) => ("held", *s, why.as_str()),
            (None, Some((s, why))) => ("retrying", *s, why.as_str()),
            (None, None) => ("good", 0, ""),
        };
        let c = &self.counts;
        let s = &self.spool;
        json!({
            "name": "s3put",
            "version": env!("CARGO_PKG_VERSION"),
            "uptime-s": self.now.saturating_duration_since(self.started).as_secs(),
            "source": self.input,
            "target": {
                "to": self.target, "state": state, "for-s": for_s, "why": why,
                "uploading": self.running, "busy": self.busy, "clock-skew-s": self.skew_s,
            },
            "stored": c.stored, "stored-bytes": self.stored_bytes, "already-there": c.already,
            "retries": c.retries, "refusals": c.refusals, "dead-letters": c.dead, "holds": c.holds,
            "spool": {
                "queued": s.queued, "in-flight": s.in_flight, "memory": s.memory, "disk-bytes": s.disk_bytes,
                "disk-full": s.disk_full, "appended": s.appended, "commits": s.commits, "commit-us": s.commit_us,
                "dropped": s.dropped, "too-large": s.too_large, "blocked": s.blocked, "damaged": s.damaged,
                "damaged-records": s.damaged_records, "dead-letters-removed": s.dead_letters_removed,
            },
        })
    }

    /// `/metrics`.
    pub fn metrics(&self) -> Metrics {
        let mut m = Metrics::new();
        let c = &self.counts;
        let s = &self.spool;
        // Numbers of messages and bytes stay far below 2^53.
        let number = |n: u64| n as f64;
        m.counter(
            "s3put_received_total",
            "Messages received from the source",
            &[],
            self.input_counts.received,
        );
        m.counter(
            "s3put_duplicates_total",
            "QoS 2 duplicates that were not stored twice",
            &[],
            self.input_counts.duplicates,
        );
        m.counter(
            "s3put_sessions_lost_total",
            "Connections where the broker had no session",
            &[],
            self.input_counts.sessions_lost,
        );
        m.counter("s3put_stored_total", "Objects stored", &[], c.stored);
        m.counter("s3put_stored_bytes_total", "Payload bytes stored", &[], self.stored_bytes);
        m.counter("s3put_already_there_total", "Objects whose content was there already", &[], c.already);
        m.counter("s3put_retries_total", "Uploads that failed in passing", &[], c.retries);
        m.counter("s3put_refusals_total", "Uploads that the target refused", &[], c.refusals);
        m.counter("s3put_dead_letters_total", "Messages put into dead-letter/", &[], c.dead);
        m.counter("s3put_holds_total", "Times that everything was held", &[], c.holds);
        m.gauge("s3put_held", "1 while everything is held", &[], number(u64::from(self.held.is_some())));
        m.gauge(
            "s3put_source_up",
            "1 while messages can arrive",
            &[],
            number(u64::from(self.input_down.is_none())),
        );
        m.gauge("s3put_uploading", "Uploads under way", &[], number(self.running as u64));
        m.gauge("s3put_clock_skew_seconds", "The target's clock minus ours", &[], self.skew_s as f64);
        m.gauge("s3put_spool_queued", "Messages on disk, not yet stored", &[], number(s.queued));
        m.gauge("s3put_spool_bytes", "Bytes of segment files", &[], number(s.disk_bytes));
        m.gauge("s3put_spool_disk_full", "1 while the disk is full", &[], number(u64::from(s.disk_full)));
        for (qos, dropped) in s.dropped.iter().enumerate() {
            let labels = [("qos", ["0", "1", "2"][qos])];
            m.counter("s3put_dropped_total", "Messages dropped at the spool's bound", &labels, *dropped);
        }
        m.counter("s3put_too_large_total", "Messages refused because of their size", &[], s.too_large);
        m.counter("s3put_commits_total", "Group commits", &[], s.commits);
        m.counter("s3put_damaged_total", "Damaged places found in the spool", &[], s.damaged);
        m
    }
}

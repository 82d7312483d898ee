//! What the daemon says of itself: `/status`, `/metrics` and the line of `systemctl status`.
//!
//! Invariant: what devices report is counted under at most so many names, however many they make up.

use std::collections::HashMap;
use std::time::Instant;

use edge::ctl::Metrics;
use serde_json::{Value, json};

use crate::service::Hub;

/// What became of a poll (a request for `/package`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poll {
    Bundle,
    Metadata,
    NotModified,
    Nothing,
    Refused,
    Failed,
}

/// In the order of [`Poll`].
const POLLS: [&str; 6] = ["bundle", "metadata", "not-modified", "nothing", "refused", "failed"];

/// Counters.
#[derive(Debug, Default)]
pub struct Stats {
    polls: [u64; 6],
    pub blobs: u64,
    pub answer_hits: u64,
    pub answer_misses: u64,
    pub bundle_hits: u64,
    pub bundle_joins: u64,
    pub bundles_made: u64,
    pub bundles_failed: u64,
    pub catalog_errors: u64,
    newest_poll: Option<Instant>,
    generations: HashMap<String, (u64, Instant)>,
    /// How many names of generations are told apart.
    pub generations_max: usize,
    other_generations: u64,
}

impl Stats {
    /// All at 0.
    #[must_use]
    pub fn new(generations_max: usize) -> Self {
        Self { generations_max, ..Self::default() }
    }

    /// A poll came.
    pub fn polled(&mut self, generation: Option<String>, now: Instant) {
        self.newest_poll = Some(now);
        let Some(name) = generation.filter(|_| self.generations_max > 0) else { return };
        if let Some(known) = self.generations.get_mut(&name) {
            *known = (known.0 + 1, now);
            return;
        }
        if self.generations.len() >= self.generations_max
            && let Some(oldest) = self.generations.iter().min_by_key(|(_, (_, at))| *at)
        {
            let oldest = oldest.0.clone();
            self.other_generations += self.generations.remove(&oldest).map_or(0, |(count, _)| count);
        }
        self.generations.insert(name, (1, now));
    }

    /// And so it ended.
    pub fn answered(&mut self, poll: Poll) {
        if let Some(count) = self.polls.get_mut(poll as usize) {
            *count += 1;
        }
    }

    /// Polls there were.
    #[must_use]
    pub fn polls(&self) -> u64 {
        self.polls.iter().sum()
    }
}

/// What the loop knows beside the hub.
#[derive(Debug, Clone, Copy)]
pub struct Around {
    pub connections: usize,
    pub bytes_sent: u64,
    pub started: Instant,
}

/// Everything.
#[must_use]
pub fn json(hub: &Hub, around: Around, now: Instant) -> Value {
    let stats = &hub.stats;
    let (answer_bytes, answers) = hub.answers.size();
    let (cache_bytes, files) = hub.cache.size();
    let age = |at: Instant| now.saturating_duration_since(at).as_secs();
    let mut generations: Vec<_> = stats.generations.iter().collect();
    generations.sort();
    let generations: Vec<Value> = generations
        .into_iter()
        .map(|(name, (count, at))| json!({ "name": name, "polls": count, "newest_age_s": age(*at) }))
        .collect();
    let polls: serde_json::Map<String, Value> =
        POLLS.iter().zip(stats.polls).map(|(name, n)| ((*name).to_owned(), json!(n))).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": age(around.started),
        "connections": around.connections,
        "bytes_sent": around.bytes_sent,
        "polls": polls,
        "newest_poll_age_s": stats.newest_poll.map(age),
        "blobs": stats.blobs,
        "answers": {
            "count": answers, "bytes": answer_bytes,
            "hits": stats.answer_hits, "misses": stats.answer_misses,
        },
        "bundles": {
            "files": files, "bytes": cache_bytes, "making": hub.making(),
            "hits": stats.bundle_hits, "joins": stats.bundle_joins,
            "made": stats.bundles_made, "failed": stats.bundles_failed,
        },
        "catalog": { "version": hub.catalog_version(), "errors": stats.catalog_errors },
        "generations": generations,
    })
}

/// One line.
#[must_use]
pub fn line(hub: &Hub, connections: usize) -> String {
    let stats = &hub.stats;
    let mut line = format!("{} polls, {connections} connections", stats.polls());
    let making = hub.making();
    if making > 0 {
        line += &format!(", {making} bundles being made");
    }
    if stats.catalog_errors > 0 {
        line += &format!(", {} errors of the catalog", stats.catalog_errors);
    }
    line
}

/// For Prometheus.
#[must_use]
pub fn metrics(hub: &Hub, around: Around, now: Instant) -> Metrics {
    let mut m = Metrics::default();
    let stats = &hub.stats;
    for (outcome, count) in POLLS.iter().zip(stats.polls) {
        m.counter("depotd_polls_total", "Requests for /package by outcome", &[("outcome", outcome)], count);
    }
    m.counter("depotd_blobs_total", "Requests for /blob answered with content", &[], stats.blobs);
    m.counter("depotd_sent_bytes_total", "Bytes sent to clients", &[], around.bytes_sent);
    let answers = "Questions answered from memory, and those looked up in the catalog";
    m.counter("depotd_answers_total", answers, &[("from", "memory")], stats.answer_hits);
    m.counter("depotd_answers_total", answers, &[("from", "catalog")], stats.answer_misses);
    let bundles = "Bundles sent from the disk, while they were made by another's request, and made";
    m.counter("depotd_bundles_total", bundles, &[("from", "disk")], stats.bundle_hits);
    m.counter("depotd_bundles_total", bundles, &[("from", "join")], stats.bundle_joins);
    m.counter("depotd_bundles_total", bundles, &[("from", "made")], stats.bundles_made);
    m.counter("depotd_bundle_failures_total", "Bundles that could not be made", &[], stats.bundles_failed);
    m.counter("depotd_catalog_errors_total", "Failed questions to the catalog", &[], stats.catalog_errors);
    m.gauge("depotd_connections", "Clients connected", &[], around.connections as f64);
    m.gauge("depotd_answers_bytes", "Memory of the kept answers", &[], hub.answers.size().0 as f64);
    m.gauge("depotd_cache_bytes", "Files of the cache on disk", &[], hub.cache.size().0 as f64);
    if let Some(at) = stats.newest_poll {
        let age = now.saturating_duration_since(at).as_secs_f64();
        m.gauge("depotd_newest_poll_age_seconds", "Since the newest poll", &[], age);
    }
    for (name, (count, _)) in &stats.generations {
        let help = "Polls by the generation that devices report (x-gen)";
        m.counter("depotd_generation_polls_total", help, &[("generation", name)], *count);
    }
    if stats.other_generations > 0 {
        let help = "Polls of generations that are not told apart any more";
        m.counter("depotd_other_generation_polls_total", help, &[], stats.other_generations);
    }
    m
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn made_up_generations_are_bounded() {
        let mut stats = Stats::new(8);
        let t0 = Instant::now();
        for n in 0..1000 {
            let now = t0 + Duration::from_millis(n);
            stats.polled(Some("real".into()), now);
            stats.polled(Some(format!("made-up-{n}")), now);
        }
        assert_eq!(stats.generations.len(), 8);
        assert_eq!(stats.generations["real"].0, 1000);
        assert_eq!(stats.other_generations, 1000 - 7);
    }
}

//! What the daemon says of itself: `/status`, `/metrics` and the line of `systemctl status`.

use std::sync::atomic::Ordering;
use std::time::Instant;

use edge::ctl::Metrics;
use serde_json::{Value, json};

use crate::service::Hub;

/// What the loop knows beside the hub.
#[derive(Debug, Clone)]
pub struct Around {
    pub connections: usize,
    pub started: Instant,
    pub mode: &'static str,
}

/// Everything.
#[must_use]
pub fn json(hub: &Hub, around: &Around, now: Instant) -> Value {
    let counts = hub.core.counts;
    let load = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    let panel = &hub.panel.counts;
    let uploads = hub.uploads.as_ref().map(|uploads| {
        let s = uploads.stats(now);
        json!({
            "target": s.target, "queued": s.queued, "uploading": s.uploading, "stored": s.stored,
            "stored_bytes": s.stored_bytes, "retries": s.retries, "refusals": s.refusals, "dead": s.dead,
            "refused": s.refused, "held_s": s.held.as_ref().map(|h| h.0), "held_why": s.held.as_ref().map(|h| &h.1),
            "trouble": s.trouble.as_ref().map(|t| &t.1), "disk_bytes": s.disk_bytes, "disk_full": s.disk_full,
        })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_s": now.saturating_duration_since(around.started).as_secs(),
        "mode": around.mode,
        "connections": around.connections,
        "messages": hub.counts.messages,
        "queue": hub.core.len(),
        "pictures": counts.pictures,
        "after_pictures": counts.after,
        "pictures_fetched": hub.counts.fetched,
        "boxes": counts.boxes,
        "commands": counts.commands,
        "refused": counts.refused,
        "failed": counts.failed,
        "panoramas": hub.counts.panoramas,
        "panoramas_failed": hub.counts.panoramas_failed,
        "pictures_bytes": hub.shelf.bytes(),
        "database_error": hub.database,
        "panel": { "sent": load(&panel.sent), "dropped": load(&panel.dropped), "refused": load(&panel.refused) },
        "uploads": uploads,
    })
}

/// One line.
#[must_use]
pub fn line(hub: &Hub, connections: usize, now: Instant) -> String {
    let counts = hub.core.counts;
    let mut line =
        format!("{} pictures, {} commands, {connections} connections", counts.pictures, counts.commands);
    if counts.failed + counts.refused > 0 {
        line += &format!(", {} failed, {} refused", counts.failed, counts.refused);
    }
    if hub.database.is_some() {
        line += ", THE DATABASE DOES NOT ANSWER";
    }
    if let Some(uploads) = &hub.uploads {
        let stats = uploads.stats(now);
        line += &format!(", {} to upload", stats.queued);
        if let Some((seconds, why)) = stats.held {
            line += &format!(", HELD for {seconds} s: {why}");
        }
    }
    line
}

/// For Prometheus.
#[must_use]
pub fn metrics(hub: &Hub, around: &Around, now: Instant) -> Metrics {
    let mut m = Metrics::default();
    let counts = hub.core.counts;
    m.counter("sorterd_messages_total", "Messages of arms", &[], hub.counts.messages);
    let pictures = "Pictures kept, by kind";
    m.counter("sorterd_pictures_total", pictures, &[("kind", "before")], counts.pictures);
    m.counter("sorterd_pictures_total", pictures, &[("kind", "after")], counts.after);
    let fetched = "Pictures that another machine was sent, fetched from S3";
    m.counter("sorterd_pictures_fetched_total", fetched, &[], hub.counts.fetched);
    m.counter("sorterd_boxes_total", "Items and containers found on pictures", &[], counts.boxes);
    m.counter("sorterd_commands_total", "Sessions for which commands were made", &[], counts.commands);
    m.counter(
        "sorterd_refused_total",
        "Messages that were wrong, or came when the queue was full",
        &[],
        counts.refused,
    );
    m.counter("sorterd_failed_total", "Messages whose work failed", &[], counts.failed);
    let panoramas = "Panoramas, by outcome";
    m.counter("sorterd_panoramas_total", panoramas, &[("outcome", "made")], hub.counts.panoramas);
    m.counter("sorterd_panoramas_total", panoramas, &[("outcome", "failed")], hub.counts.panoramas_failed);
    m.gauge("sorterd_queue", "Messages being worked on or waiting for it", &[], hub.core.len() as f64);
    m.gauge("sorterd_connections", "Clients connected", &[], around.connections as f64);
    m.gauge("sorterd_pictures_bytes", "Pictures on disk", &[], hub.shelf.bytes() as f64);
    let database = if hub.database.is_none() { 1.0 } else { 0.0 };
    m.gauge("sorterd_database_up", "Whether the database answers", &[], database);
    let panel = &hub.panel.counts;
    let lines = "Lines for the control panel, by outcome";
    for (outcome, n) in [("sent", &panel.sent), ("dropped", &panel.dropped), ("refused", &panel.refused)] {
        m.counter("sorterd_panel_lines_total", lines, &[("outcome", outcome)], n.load(Ordering::Relaxed));
    }
    if let Some(uploads) = &hub.uploads {
        let s = uploads.stats(now);
        m.gauge("sorterd_uploads_queued", "Pictures on disk that are not yet objects", &[], s.queued as f64);
        m.counter("sorterd_uploads_stored_total", "Pictures that became objects", &[], s.stored);
        m.counter("sorterd_uploads_stored_bytes_total", "Their bytes", &[], s.stored_bytes);
        m.counter("sorterd_uploads_retries_total", "Uploads that failed in passing", &[], s.retries);
        m.counter("sorterd_uploads_dead_total", "Pictures put into dead-letter/", &[], s.dead);
        m.gauge(
            "sorterd_uploads_held",
            "Whether S3 refuses everything",
            &[],
            if s.held.is_some() { 1.0 } else { 0.0 },
        );
    }
    m
}

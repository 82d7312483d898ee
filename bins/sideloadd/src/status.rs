//! What the daemon says of itself: `GET /status`, the line of `systemctl status`, `/metrics`.

use std::path::PathBuf;
use std::time::Instant;

use edge::ctl::Metrics;
use serde_json::{Value, json};

use crate::core::State;
use crate::service::Hub;
use crate::store::{Begun, CommitInfo, Committed};

/// What does not change between reloads.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Who this device is.
    pub device: String,
    /// When the daemon started.
    pub started: Instant,
    /// Where the files are.
    pub root: PathBuf,
    /// End of the server's certificate, Unix seconds.
    pub server_not_after: Option<i64>,
    /// Ends of the pinned ones.
    pub client_not_after: Vec<i64>,
}

/// Everything.
pub fn json(hub: &Hub, now: Instant) -> Value {
    let facts = &hub.facts;
    let history: Vec<Value> = hub.history.iter().map(commit_json).collect();
    let commit = hub.history.last().map(|info| {
        json!({ "number": info.commit, "time_ms": info.time_ms, "files": info.files, "bytes": info.bytes })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "now_ms": edge::clock::unix_ms(),
        "uptime_s": now.saturating_duration_since(facts.started).as_secs(),
        "device": facts.device,
        "root": facts.root,
        "app": hub.supervisor.json(),
        "commit": commit,
        "history": history,
        "disk": { "free_bytes": edge::fs::free_bytes(&facts.root).ok() },
        "certificates": {
            "server_not_after": facts.server_not_after,
            "client_not_after": facts.client_not_after,
        },
        "entrypoints": hub.supervisor.entrypoints(),
    })
}

/// A commit in a history.
pub fn commit_json(info: &CommitInfo) -> Value {
    json!({
        "commit": info.commit,
        "time_ms": info.time_ms,
        "files": info.files,
        "bytes": info.bytes,
        "changed": info.changed,
        "deleted": info.deleted,
        "by": if info.restored.is_some() { "rollback" } else { "sync" },
        "restored": info.restored,
    })
}

/// One line.
pub fn line(hub: &Hub, connections: usize, expiring: &[String]) -> String {
    let core = hub.supervisor.core();
    let mut line = format!("application {}", core.state().name());
    if let Some(pid) = core.pid() {
        line += &format!(" (pid {pid})");
    } else if let Some(exit) = core.last_exit() {
        line += &format!(" ({exit})");
    }
    line += &match hub.commit() {
        0 => ", nothing synced".to_owned(),
        commit => format!(", commit {commit}"),
    };
    if connections > 0 {
        line += &format!(", {connections} connections");
    }
    match expiring.first() {
        Some(first) => format!("{first}; {line}"),
        None => line,
    }
}

/// For Prometheus.
pub fn metrics(hub: &Hub, connections: usize) -> Metrics {
    let mut m = Metrics::default();
    let core = hub.supervisor.core();
    let running = u8::from(core.state() == State::Running);
    m.gauge("sideloadd_app_running", "1 while the application runs", &[], running.into());
    m.counter("sideloadd_app_restarts_total", "Restarts by policy", &[], core.restarts());
    m.gauge("sideloadd_commit", "Number of the commit in force", &[], hub.commit() as f64);
    m.gauge("sideloadd_connections", "Clients connected", &[], connections as f64);
    let ends = hub.facts.server_not_after.into_iter().chain(hub.facts.client_not_after.iter().copied());
    if let Some(first) = ends.min() {
        m.gauge(
            "sideloadd_certificate_end_seconds",
            "Unix time of the first end of a certificate",
            &[],
            first as f64,
        );
    }
    m
}

/// The answer to a manifest.
pub fn begun_json(begun: &Begun) -> Value {
    json!({
        "sync": begun.session,
        "commit": begun.commit,
        "state": if begun.unchanged { "unchanged" } else { "open" },
        "lacks": begun.lacks,
        "chunked": begun.chunked,
        "deletes": begun.deletes,
        "bytes": begun.bytes,
    })
}

/// A commit or roll-back that was just made.
pub fn committed_json(committed: &Committed, rollback: bool) -> Value {
    let Committed { commit, changed, deleted, bytes, restored } = committed;
    let mut value = json!({ "commit": commit, "changed": changed, "deleted": deleted, "bytes": bytes });
    if rollback {
        value["restored"] = json!(restored);
    }
    value
}

//! `status`: the device in a few lines.

use std::fmt::Write as _;

use edge::text::bytes;
use serde_json::{Value, json};

use super::{ask, number, text};
use crate::config::Settings;
use crate::output::{Failure, Reply, count, duration, moment, table, visible};

/// `status`
pub fn run(settings: &Settings) -> Result<Reply, Failure> {
    let answer = ask(settings, "GET", "/status")?;
    let addr = settings.addr.clone().unwrap_or_default();
    let now = edge::clock::unix_ms();
    Ok(Reply::new(describe(&answer, &format!("{addr}:{}", settings.port), now), answer))
}

fn describe(status: &Value, address: &str, now_ms: u64) -> String {
    let null = Value::Null;
    let part = |key: &str| status.get(key).unwrap_or(&null);
    let device = match status.get("device") {
        Some(Value::String(id)) if !id.is_empty() => format!("{id} at {address}"),
        Some(Value::Object(device)) => match device.get("id").and_then(Value::as_str) {
            Some(id) => format!("{id} at {address}"),
            None => address.to_owned(),
        },
        _ => address.to_owned(),
    };
    let version = format!(
        "sideloadd {}, up {}",
        text(status, "version"),
        duration((number(status, "uptime_s") * 1000).max(1000))
    );
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<13} {}", visible(value));
    };
    line("device", &device);
    line("daemon", &version);
    // Lengths of time by the device's own clock, which may be another one than ours.
    let device_now = match number(status, "now_ms") {
        0 => now_ms,
        device => device,
    };
    line("application", &app(part("app"), device_now));
    line("files", &commit(part("commit"), device_now));
    line("disk", &format!("{} free", bytes(number(part("disk"), "free_bytes"))));
    line("certificates", &certificates(part("certificates"), now_ms / 1000));
    let history: Vec<&Value> = part("history").as_array().map(|all| all.iter().collect()).unwrap_or_default();
    if !history.is_empty() {
        let _ = write!(out, "\ncommits that `sideload rollback --to N` can bring back:\n");
        let rows: Vec<Vec<String>> =
            history.iter().map(|commit| row(commit, number(part("commit"), "number"))).collect();
        out.push_str(&table(&rows, &[0, 2, 3]));
    }
    out
}

fn app(app: &Value, now_ms: u64) -> String {
    let mut line = match text(app, "state") {
        "" => "unknown".to_owned(),
        state => state.to_owned(),
    };
    if let Some(entry) = app.get("entrypoint").and_then(Value::as_str) {
        let _ = write!(line, " {entry}");
    }
    if let Some(pid) = app.get("pid").and_then(Value::as_u64) {
        let _ = write!(line, " (pid {pid})");
    }
    let since = number(app, "since_ms");
    if since > 0 {
        let _ = write!(line, " for {}", duration(now_ms.saturating_sub(since)));
    }
    if number(app, "restarts") > 0 {
        let _ = write!(line, ", restarted {}", count(number(app, "restarts"), "time"));
    }
    if let Some(exit) = app.get("last_exit").and_then(Value::as_str).filter(|exit| !exit.is_empty()) {
        let _ = write!(line, ", last exit: {exit}");
    }
    line
}

fn commit(commit: &Value, now_ms: u64) -> String {
    if number(commit, "number") == 0 {
        return "nothing was synced yet".to_owned();
    }
    format!(
        "commit {}, {}, {}, {} ago",
        number(commit, "number"),
        count(number(commit, "files"), "file"),
        bytes(number(commit, "bytes")),
        duration(now_ms.saturating_sub(number(commit, "time_ms"))),
    )
}

fn row(commit: &Value, in_force: u64) -> Vec<String> {
    let mut marks = Vec::new();
    if text(commit, "by") == "rollback" {
        marks.push("by rollback");
    }
    if number(commit, "commit") == in_force {
        marks.push("in force");
    }
    vec![
        format!("  {}", number(commit, "commit")),
        moment(number(commit, "time_ms")),
        count(number(commit, "files"), "file"),
        bytes(number(commit, "bytes")),
        format!("{} changed, {} deleted", number(commit, "changed"), number(commit, "deleted")),
        marks.join(", "),
    ]
}

fn certificates(certificates: &Value, now_s: u64) -> String {
    let left = |value: &Value| match value.as_u64() {
        Some(end) if end > now_s => format!("{} left", duration((end - now_s) * 1000)),
        Some(_) => "expired".to_owned(),
        None => "unknown".to_owned(),
    };
    let null = json!(null);
    let server = left(certificates.get("server_not_after").unwrap_or(&null));
    let clients = certificates.get("client_not_after").and_then(Value::as_array);
    let clients: Vec<String> = clients.into_iter().flatten().map(left).collect();
    match clients.as_slice() {
        [] => format!("server: {server}"),
        clients => format!("server: {server}; client: {}", clients.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_a_few_lines() {
        let now_ms = 1_795_531_617_000;
        let status = json!({
            "version": "0.1.0", "now_ms": now_ms, "uptime_s": 3700, "device": "cam-7",
            "app": { "state": "running", "pid": 12, "entrypoint": "/a/main.py", "since_ms": now_ms - 61_000,
                     "restarts": 2, "last_exit": "code 1" },
            "commit": { "number": 4, "time_ms": now_ms - 120_000, "files": 3, "bytes": 4300 },
            "history": [{ "commit": 4, "time_ms": now_ms, "files": 3, "bytes": 4300, "changed": 1, "deleted": 0, "by": "sync" }],
            "disk": { "free_bytes": 5_u64 << 30 },
            "certificates": { "server_not_after": now_ms / 1000 + 86_400 * 20, "client_not_after": [1] },
        });
        let text = describe(&status, "10.0.0.5:8123", now_ms);
        for line in [
            "device        cam-7 at 10.0.0.5:8123\n",
            "daemon        sideloadd 0.1.0, up 1 h 1 min\n",
            "application   running /a/main.py (pid 12) for 1 min 1 s, restarted 2 times, last exit: code 1\n",
            "files         commit 4, 3 files, 4.20 KB, 2 min ago\n",
            "disk          5.00 GB free\n",
            "certificates  server: 20 days left; client: expired\n",
            "  4  2026-11-24 14:46:57Z  3 files  4.20 KB  1 changed, 0 deleted  in force\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn a_poor_answer_is_no_disaster() {
        for status in [json!({}), json!([]), json!(null), json!({ "app": 3, "history": {}, "device": null })]
        {
            assert!(describe(&status, "x:1", 0).contains("nothing was synced yet"));
        }
    }
}

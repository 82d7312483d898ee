//! `sync`: the device's files become those of src-top.

use serde_json::{Value, json};

use super::app::started;
use super::connect;
use crate::config::Settings;
use crate::output::{Failure, Reply, count, visible};
use crate::progress::Bar;
use crate::scan::Source;
use crate::sync::{Report, SyncOptions};

/// `sync`
pub fn run(settings: &Settings, force: bool, restart: bool, as_json: bool) -> Result<Reply, Failure> {
    let mut source = Source::open(settings.source()?)?;
    let mut client = connect(settings)?;
    let mut bar = Bar::new(as_json);
    let began = std::time::Instant::now();
    let mut options = SyncOptions { force, restart, gate: None, progress: &mut bar };
    let report = crate::sync::sync(&mut client, &mut source, &mut options)?;
    drop(bar);
    let mut app = report.app.clone();
    if restart && report.unchanged {
        // Nothing was committed, so nothing was restarted either; it was asked for all the same.
        let request = crate::client::Request::new("POST", "/application?restart=1");
        app = Some(client.request(request)?.json()?);
    }
    let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(Reply::new(describe(&report, app.as_ref(), ms), to_json(&report, app.as_ref(), ms)))
}

fn describe(report: &Report, app: Option<&Value>, ms: u64) -> String {
    let mut text = String::new();
    for skipped in &report.skipped {
        text.push_str(&format!("left out: {} ({})\n", visible(&skipped.path.to_string_lossy()), skipped.why));
    }
    let files = count(report.files as u64, "file");
    if report.unchanged {
        text.push_str(&format!("nothing changed: {files}, commit {}, {ms} ms\n", report.commit));
    } else {
        text.push_str(&format!(
            "commit {}: {} of {files} changed, {} deleted; {} sent, {}\n",
            report.commit,
            report.changed,
            report.deleted,
            edge::text::bytes(report.wire_sent),
            crate::output::duration(ms),
        ));
    }
    if let Some(app) = app {
        text.push_str(&format!("re{}\n", started(app)));
    }
    text
}

fn to_json(report: &Report, app: Option<&Value>, ms: u64) -> Value {
    let skipped: Vec<Value> = report
        .skipped
        .iter()
        .map(|skipped| json!({ "path": skipped.path.to_string_lossy(), "why": skipped.why }))
        .collect();
    json!({
        "commit": report.commit,
        "unchanged": report.unchanged,
        "files": report.files,
        "bytes": report.bytes,
        "changed": report.changed,
        "deleted": report.deleted,
        "sent_files": report.sent_files,
        "content_bytes": report.content_bytes,
        "payload_bytes": report.payload_bytes,
        "wire_sent": report.wire_sent,
        "wire_received": report.wire_received,
        "ms": ms,
        "app": app,
        "log": report.log,
        "skipped": skipped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_was_done() {
        let mut report =
            Report { files: 3, commit: 5, changed: 2, deleted: 1, wire_sent: 4300, ..Report::default() };
        let line = "commit 5: 2 of 3 files changed, 1 deleted; 4.20 KB sent, 45 ms\n";
        assert_eq!(describe(&report, None, 45), line);
        let app = json!({ "pid": 9, "entrypoint": "/a/main.py" });
        assert_eq!(describe(&report, Some(&app), 45), format!("{line}restarted /a/main.py (pid 9)\n"));
        report.unchanged = true;
        assert_eq!(describe(&report, None, 8), "nothing changed: 3 files, commit 5, 8 ms\n");
        assert_eq!(to_json(&report, None, 8)["wire_sent"], 4300);
    }
}

//! What a sink says of itself, in the line for `systemctl status` and as metrics.
//!
//! Owns: names. What is told comes from the sink's part of `/status`; a sink of either kind has some of it.
//! Never: changes anything.

use edge::ctl::Metrics;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const STATES: [&str; 5] = ["STOPPED", "STARTING", "STREAMING", "WAITING", "ERROR"];

/// Of what `/status` has, what counts up: its key there, and the metric.
const COUNTERS: [(&str, &str, &str); 7] = [
    (
        "fragments-persisted",
        "spyglassd_sink_fragments_persisted_total",
        "Fragments that the service has stored.",
    ),
    (
        "fragments-refused",
        "spyglassd_sink_fragments_refused_total",
        "Fragments that the service has refused.",
    ),
    ("fragments-resent", "spyglassd_sink_fragments_resent_total", "Fragments that were sent again."),
    ("fragments-dropped", "spyglassd_sink_fragments_dropped_total", "Fragments for which there was no room."),
    ("bytes-sent", "spyglassd_sink_bytes_sent_total", "Bytes sent."),
    ("segments", "spyglassd_sink_segments_total", "Files that are whole."),
    ("frames-dropped", "spyglassd_sink_frames_dropped_total", "Units that the sink did not take."),
];
/// And what goes up and down.
const GAUGES: [(&str, &str, &str); 2] = [
    ("bytes-kept", "spyglassd_sink_bytes_kept", "Bytes that a power cut would lose."),
    ("bytes-kept-on-disk", "spyglassd_sink_bytes_kept_on_disk", "Bytes that wait on the disk."),
];
const TIMES: [(&str, &str, &str); 2] = [
    (
        "last-persisted",
        "spyglassd_sink_last_persisted_seconds",
        "When the service last said that a fragment is stored (Unix time).",
    ),
    (
        "credentials-expire",
        "spyglassd_sink_credentials_expire_seconds",
        "When the credentials in use end (Unix time).",
    ),
];

/// For the line: the state, why if it failed, when a fragment was stored last, when the credentials end.
pub fn line(kind: &str, status: &Value) -> String {
    let text = |key: &str| status[key].as_str();
    let mut line = format!("{kind} {}", text("state").unwrap_or("?"));
    if let Some(why) = text("why") {
        line += &format!(" ({why})");
    }
    if let Some(at) = text("last-persisted") {
        line += &format!(" persisted {at}");
    }
    if let Some(at) = text("credentials-expire") {
        line += &format!(" credentials until {at}");
    }
    line
}

/// The same and the counts, as metrics.
pub fn metrics(m: &mut Metrics, stream: &str, kind: &str, status: &Value) {
    for state in STATES {
        let labels = [("stream", stream), ("sink", kind), ("state", state)];
        let is = f64::from(u8::from(status["state"] == state));
        m.gauge("spyglassd_sink_state", "1 for the state that the sink is in.", &labels, is);
    }
    let labels = [("stream", stream), ("sink", kind)];
    for (key, name, help) in COUNTERS {
        if let Some(count) = status[key].as_u64() {
            m.counter(name, help, &labels, count);
        }
    }
    for (key, name, help) in GAUGES {
        if let Some(value) = status[key].as_f64() {
            m.gauge(name, help, &labels, value);
        }
    }
    for (key, name, help) in TIMES {
        let at = status[key].as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
        if let Some(at) = at {
            m.gauge(name, help, &labels, at.unix_timestamp() as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_line_has_the_state_and_what_a_person_may_have_to_act_on() {
        let good = json!({ "state": "STREAMING", "why": null, "last-persisted": "2026-01-02T03:04:05.006Z",
                           "credentials-expire": "2026-01-02T04:00:00.000Z", "bytes-kept": 7 });
        assert_eq!(
            line("kvs", &good),
            "kvs STREAMING persisted 2026-01-02T03:04:05.006Z credentials until 2026-01-02T04:00:00.000Z"
        );
        let bad = json!({ "state": "ERROR", "why": "no space left", "segments": 3 });
        assert_eq!(line("record", &bad), "record ERROR (no space left)");
    }

    #[test]
    fn metrics_have_one_state_and_times_in_seconds() {
        let mut m = Metrics::new();
        let status = json!({ "state": "ERROR", "why": "x", "last-persisted": "1970-01-02T00:00:00.500Z",
                             "credentials-expire": null, "bytes-kept": 7, "fragments-persisted": 3 });
        metrics(&mut m, "cam", "kvs", &status);
        let text = m.render();
        let labels = "stream=\"cam\",sink=\"kvs\"";
        for line in [
            format!("spyglassd_sink_state{{{labels},state=\"ERROR\"}} 1\n"),
            format!("spyglassd_sink_state{{{labels},state=\"STREAMING\"}} 0\n"),
            format!("spyglassd_sink_last_persisted_seconds{{{labels}}} 86400\n"),
            format!("spyglassd_sink_bytes_kept{{{labels}}} 7\n"),
            format!("spyglassd_sink_fragments_persisted_total{{{labels}}} 3\n"),
        ] {
            assert!(text.contains(&line), "{line}{text}");
        }
        assert!(!text.contains("expire") && !text.contains("segments"), "{text}");
    }
}

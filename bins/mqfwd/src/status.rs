//! What the daemon says of itself: `/status`, `/metrics` and the line for systemd.
//!
//! Owns: the names of the figures. Never: changes anything.

use edge::ctl::{Metrics, Reply};
use serde_json::{Value, json};

use crate::lane::Lane;

/// Answers the control socket's pages.
pub fn page(path: &str, lanes: &[Lane]) -> Option<Reply> {
    match path {
        "/status" => Some(Reply::Json(status(lanes))),
        "/metrics" => Some(Reply::Metrics(metrics(lanes))),
        _ => None,
    }
}

fn status(lanes: &[Lane]) -> Value {
    let lanes: serde_json::Map<String, Value> =
        lanes.iter().map(|lane| (lane.direction.word().to_owned(), lane_status(lane))).collect();
    json!({ "name": "mqfwd", "version": env!("CARGO_PKG_VERSION"), "lanes": lanes })
}

fn lane_status(lane: &Lane) -> Value {
    let outlet = &lane.outlet.counters;
    let spool = lane.spool.stats();
    json!({
        "source": lane.inlet.status(),
        "gate": { "unrouted": lane.gate.unrouted, "loops": lane.gate.loops },
        "next-hop": { "state": lane.link.describe(), "up": lane.link.is_up(), "connects": lane.link.connects,
            "hold": lane.outlet.held().map(|hold| json!({ "why": hold.why, "alarm": hold.alarm })),
            "suspect": lane.outlet.suspect().map(|(seq, count)| json!({ "seq": seq, "disconnects": count })),
            "in-flight": lane.outlet.in_flight(), "sent": outlet.sent, "resent": outlet.resent,
            "acked": outlet.acked, "expired": outlet.expired, "dead-letters": outlet.dead,
            "sessions-lost": outlet.sessions_lost, "ack-timeouts": outlet.ack_timeouts },
        "spool": { "stored": spool.appended, "stored-bytes": spool.appended_bytes, "commits": spool.commits,
            "commit-us": spool.commit_us, "queued": spool.queued, "memory": spool.memory,
            "disk-bytes": spool.disk_bytes, "disk-full": spool.disk_full, "blocked": spool.blocked,
            "dropped": spool.dropped, "too-large": spool.too_large, "damaged": spool.damaged,
            "damaged-records": spool.damaged_records, "held-ids": spool.held, "open-handshakes": spool.outbound },
    })
}

fn metrics(lanes: &[Lane]) -> Metrics {
    let mut page = Metrics::new();
    for lane in lanes {
        let labels = [("lane", lane.direction.word())];
        let (inlet, outlet, spool) = (&lane.inlet.counters, &lane.outlet.counters, lane.spool.stats());
        let up = |up: bool| f64::from(u8::from(up));
        page.gauge("mqfwd_source_up", "Whether messages can arrive.", &labels, up(lane.inlet.is_up()));
        page.gauge("mqfwd_next_hop_up", "Whether the next hop is connected.", &labels, up(lane.link.is_up()));
        page.gauge(
            "mqfwd_hold",
            "Whether the next hop lets nothing but probes through.",
            &labels,
            up(lane.outlet.held().is_some()),
        );
        page.gauge(
            "mqfwd_paused",
            "Whether the source is not read because the spool is full.",
            &labels,
            up(lane.inlet.is_blocked()),
        );
        page.gauge(
            "mqfwd_in_flight",
            "Messages sent and not acknowledged.",
            &labels,
            lane.outlet.in_flight() as f64,
        );
        page.gauge(
            "mqfwd_queued",
            "Messages on disk that the next hop has not acknowledged.",
            &labels,
            spool.queued as f64,
        );
        page.gauge("mqfwd_spool_bytes", "Bytes of segment files.", &labels, spool.disk_bytes as f64);
        page.gauge("mqfwd_disk_full", "Whether the filesystem is full.", &labels, up(spool.disk_full));
        for (name, help, value) in [
            ("mqfwd_received_total", "PUBLISH packets received.", inlet.received),
            ("mqfwd_duplicates_total", "QoS 2 packets whose message was stored already.", inlet.duplicates),
            ("mqfwd_unrouted_total", "Messages that no route takes.", lane.gate.unrouted),
            ("mqfwd_loops_total", "Messages that came round in a circle.", lane.gate.loops),
            ("mqfwd_stored_total", "Messages written to the spool.", spool.appended),
            ("mqfwd_commits_total", "Groups made durable.", spool.commits),
            ("mqfwd_sent_total", "PUBLISH packets sent.", outlet.sent),
            ("mqfwd_resent_total", "PUBLISH packets sent again with DUP.", outlet.resent),
            ("mqfwd_acked_total", "Messages acknowledged by the next hop.", outlet.acked),
            ("mqfwd_expired_total", "Messages whose expiry passed in the queue.", outlet.expired),
            ("mqfwd_dead_letters_total", "Messages put into dead-letter/.", outlet.dead),
            ("mqfwd_connects_total", "Connections made to the next hop.", lane.link.connects),
            (
                "mqfwd_ack_timeouts_total",
                "Connections given up for want of an acknowledgement.",
                outlet.ack_timeouts,
            ),
            ("mqfwd_too_large_total", "Messages larger than the spool takes.", spool.too_large),
            ("mqfwd_damaged_total", "Damaged places found in the spool.", spool.damaged),
        ] {
            page.counter(name, help, &labels, value);
        }
        for (qos, count) in ["0", "1", "2"].into_iter().zip(spool.dropped) {
            let labels = [("lane", lane.direction.word()), ("qos", qos)];
            page.counter("mqfwd_dropped_total", "Messages dropped at the bound.", &labels, count);
        }
    }
    page
}

/// One line for `systemctl status`.
pub fn line(lanes: &[Lane]) -> String {
    let parts: Vec<String> = lanes.iter().map(lane_line).collect();
    parts.join(" | ")
}

fn lane_line(lane: &Lane) -> String {
    let spool = lane.spool.stats();
    let mut text = format!(
        "{}: {} forwarded, {} waiting, {} in flight",
        lane.direction.word(),
        lane.outlet.counters.acked,
        spool.queued,
        lane.outlet.in_flight()
    );
    if let Some(hold) = lane.outlet.held() {
        text.push_str(&format!("; {}: {}", if hold.alarm { "ALARM" } else { "waiting" }, hold.why));
    }
    let (source, source_up) = (lane.inlet.describe(), lane.inlet.is_up());
    if !source_up {
        text.push_str(&format!("; source {source}"));
    }
    if !lane.link.is_up() {
        text.push_str(&format!("; next hop {}", lane.link.describe()));
    }
    if spool.disk_full {
        text.push_str("; the disk is full");
    } else if lane.inlet.is_blocked() {
        text.push_str("; the spool is full, the source waits");
    }
    if spool.dropped.iter().sum::<u64>() > 0 {
        text.push_str(&format!("; {} dropped", spool.dropped.iter().sum::<u64>()));
    }
    if lane.outlet.counters.dead > 0 {
        text.push_str(&format!("; {} dead letters", lane.outlet.counters.dead));
    }
    text
}

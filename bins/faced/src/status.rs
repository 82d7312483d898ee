//! What the program says about itself: STATUS, `/status`, `/metrics`, the report at its end.
//!
//! Owns: names and shapes. Never: changes anything.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use edge::ctl::Metrics;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::link::Link;
use crate::session::Session;

/// CPU time of this process, all threads, in ms.
#[must_use]
pub fn cpu_ms() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    u64::try_from(time.tv_sec.saturating_mul(1000).saturating_add(time.tv_nsec / 1_000_000)).unwrap_or(0)
}

/// Resident memory now and at its highest, in KiB; 0 where the system does not say.
#[must_use]
pub fn memory_kib() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    (field("VmRSS:").unwrap_or(0), field("VmHWM:").unwrap_or(0))
}

/// One line for `systemctl status`: cameras first, those that are lost with their reason.
#[must_use]
pub fn line(session: &Session, link: &Link) -> String {
    let cameras: Vec<String> = session.shells.iter().map(crate::cameras::Shell::line).collect();
    let (connected, why, _) = link.state();
    let (waiting, flight, _) = link.queue().depth();
    let counts = link.queue().counts();
    let mut text = format!("{}; {} faces published", cameras.join(", "), counts.published);
    if waiting + flight > 0 {
        text += &format!(", {} queued", waiting + flight);
    }
    if counts.dropped > 0 {
        text += &format!(", {} dropped", counts.dropped);
    }
    if !connected {
        text += &format!("; NO BROKER ({why})");
    }
    text
}

/// `/status`.
#[must_use]
pub fn json(session: &Session, link: &Link, begun: Instant, now: Instant) -> Value {
    let cameras: Vec<Value> = (0..session.shells.len()).map(|n| camera(session, n)).collect();
    let (connected, why, connections) = link.state();
    let (waiting, flight, bytes) = link.queue().depth();
    let counts = link.queue().counts();
    let sum = |key: &str| cameras.iter().filter_map(|c| c[key].as_u64()).sum::<u64>();
    let (rss, rss_max) = memory_kib();
    let looked = sum("looked");
    let detect_us: u64 = session.shells.iter().map(|s| s.counters.detect_us.load(Relaxed)).sum();
    json!({
        "program": "faced",
        "version": env!("CARGO_PKG_VERSION"),
        "device": session.config.device.id,
        "uptime_s": now.saturating_duration_since(begun).as_secs(),
        "frames": sum("frames"),
        "frames_dropped": sum("dropped"),
        "frames_gated": sum("gated"),
        "frames_looked": looked,
        "detections": sum("detections"),
        "tracks": sum("tracks"),
        "published": counts.published,
        "events": counts.events,
        "late": counts.late,
        "dropped": counts.dropped,
        "refused": counts.refused,
        "queue": { "waiting": waiting, "in_flight": flight, "bytes": bytes },
        "broker": { "connected": connected, "why": why, "connections": connections },
        "detect_ms_avg": if looked == 0 { Value::Null } else { json!(detect_us as f64 / looked as f64 / 1000.0) },
        "latency_ms": {
            "p50": link.latencies().percentile(0.5),
            "p95": link.latencies().percentile(0.95),
        },
        "cpu_ms": cpu_ms(),
        "rss_kib": rss,
        "rss_max_kib": rss_max,
        "cameras": cameras,
    })
}

fn camera(session: &Session, n: usize) -> Value {
    let shell = &session.shells[n];
    let c = &shell.counters;
    let (picked, tracks, alive, ignored) = session.core.counts(n);
    let info = shell.info.as_ref();
    json!({
        "name": shell.config.name,
        "source": shell.config.source.to_string(),
        "state": shell.phase.word(),
        "why": shell.why,
        "losses": shell.losses,
        "width": info.map(|i| i.width),
        "height": info.map(|i| i.height),
        "format": info.map(|i| i.format.name()),
        "fps_nominal": info.and_then(|i| i.fps),
        "fps": (shell.fps * 10.0).round() / 10.0,
        "what": info.map(|i| i.what.clone()),
        "frames": c.frames.load(Relaxed),
        "dropped": c.dropped.load(Relaxed),
        "gated": c.gated.load(Relaxed),
        "bad": c.bad.load(Relaxed),
        "looked": c.looked.load(Relaxed),
        "detections": c.detections.load(Relaxed),
        "tracks": tracks,
        "tracks_alive": alive,
        "faces_ignored": ignored,
        "picked": picked,
    })
}

/// `/metrics`.
#[must_use]
pub fn metrics(session: &Session, link: &Link, begun: Instant, now: Instant) -> Metrics {
    let mut m = Metrics::new();
    for (n, shell) in session.shells.iter().enumerate() {
        let labels = [("camera", shell.config.name.as_str())];
        let c = &shell.counters;
        let (picked, tracks, alive, _) = session.core.counts(n);
        for (name, help, value) in [
            ("faced_frames_total", "Frames read.", c.frames.load(Relaxed)),
            ("faced_frames_dropped_total", "Frames that gave way to later ones.", c.dropped.load(Relaxed)),
            ("faced_frames_gated_total", "Frames left out because nothing moved.", c.gated.load(Relaxed)),
            ("faced_frames_bad_total", "Frames that could not be read.", c.bad.load(Relaxed)),
            ("faced_frames_looked_total", "Frames searched for faces.", c.looked.load(Relaxed)),
            ("faced_detections_total", "Faces found in frames.", c.detections.load(Relaxed)),
            ("faced_tracks_total", "Faces followed.", tracks),
            ("faced_picked_total", "Faces chosen to be published.", picked),
            ("faced_camera_losses_total", "How often the camera was lost.", shell.losses),
        ] {
            m.counter(name, help, &labels, value);
        }
        let seconds = Duration::from_micros(c.detect_us.load(Relaxed)).as_secs_f64();
        m.gauge("faced_detect_seconds_total", "Time spent searching.", &labels, seconds);
        m.gauge("faced_camera_fps", "Frames a second, measured.", &labels, shell.fps);
        m.gauge("faced_tracks_alive", "Faces followed now.", &labels, alive as f64);
        let up = shell.phase == crate::cameras::Phase::Streaming;
        m.gauge("faced_camera_up", "Whether frames come.", &labels, f64::from(u8::from(up)));
    }
    let counts = link.queue().counts();
    let (waiting, flight, bytes) = link.queue().depth();
    for (name, help, value) in [
        ("faced_published_total", "Faces the broker took.", counts.published),
        ("faced_events_total", "Events the broker took.", counts.events),
        ("faced_late_total", "Faces that had waited for the broker.", counts.late),
        ("faced_dropped_total", "Faces given up: queue full, too old.", counts.dropped),
        ("faced_refused_total", "Faces the broker refused.", counts.refused),
        ("faced_broker_connections_total", "Connections made to the broker.", link.state().2),
        ("faced_cpu_milliseconds_total", "CPU time of this process.", cpu_ms()),
    ] {
        m.counter(name, help, &[], value);
    }
    m.gauge("faced_queue_messages", "Messages that wait.", &[], waiting as f64);
    m.gauge("faced_in_flight_messages", "Messages not yet acknowledged.", &[], flight as f64);
    m.gauge("faced_queue_bytes", "Bytes of both.", &[], bytes as f64);
    m.gauge("faced_broker_up", "Whether the broker is there.", &[], f64::from(u8::from(link.state().0)));
    m.gauge("faced_resident_bytes", "Resident memory.", &[], memory_kib().0 as f64 * 1024.0);
    m.gauge(
        "faced_uptime_seconds",
        "Since the start.",
        &[],
        now.saturating_duration_since(begun).as_secs_f64(),
    );
    for (part, label) in [(0.5, "0.5"), (0.95, "0.95")] {
        if let Some(ms) = link.latencies().percentile(part) {
            let help = "From capture to the broker's acknowledgement.";
            m.gauge("faced_latency_seconds", help, &[("quantile", label)], ms as f64 / 1000.0);
        }
    }
    m
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_knows_what_it_costs() {
        let before = cpu_ms();
        let begun = Instant::now();
        while cpu_ms() <= before {
            assert!(begun.elapsed() < Duration::from_secs(10), "it stays at {before} ms");
            std::hint::spin_loop();
        }
        let (rss, highest) = memory_kib();
        assert!(rss > 500 && highest >= rss);
    }
}

//! What the program says about itself: STATUS, `/status`, `/metrics`.
//!
//! - [`sinks`]: what of that is a sink's
//!
//! Owns: names and shapes. Never: changes anything.

mod sinks;

use std::time::Instant;

use edge::clock::rfc3339_ms;
use edge::ctl::{Metrics, Reply};
use serde_json::{Value, json};

use crate::core::Drops;
use crate::outputs::Outputs;
use crate::stream::Stream;

/// What there is to tell about.
#[derive(Debug)]
pub struct View<'a> {
    /// All streams.
    pub streams: &'a [Stream],
    /// All outputs.
    pub outputs: &'a Outputs,
    /// Letters that the loop was too slow for.
    pub lost: u64,
    /// Connections refused at the frames socket.
    pub refused: u64,
    /// When the program started.
    pub begun: Instant,
    /// Now.
    pub now: Instant,
}

impl View<'_> {
    /// Answers the control socket's pages.
    #[must_use]
    pub fn page(&self, path: &str) -> Option<Reply> {
        match path {
            "/status" => Some(Reply::Json(self.json())),
            "/metrics" => Some(Reply::Metrics(self.metrics())),
            _ => None,
        }
    }

    /// One line for `systemctl status`.
    #[must_use]
    pub fn line(&self) -> String {
        if self.streams.is_empty() {
            return "no stream yet; applications connect at the frames socket".to_owned();
        }
        let lines: Vec<String> = self.streams.iter().map(|s| self.stream_line(s)).collect();
        lines.join("; ")
    }

    fn stream_line(&self, stream: &Stream) -> String {
        let (state, why, _) = stream.core.state();
        let (fps_in, fps_out) = stream.core.fps(self.now);
        let why = if why.is_empty() { String::new() } else { format!(" ({why})") };
        let mut line = format!("{}: {}{why}", stream.config.name, state.word());
        if fps_in > 0.0 {
            line += &format!(", {fps_in:.0} fps in, {fps_out:.0} out");
        }
        if let Some(us) = stream.core.delay_us(0.5) {
            line += &format!(", delay {} ms", us.div_ceil(1000));
        }
        let viewers = self.outputs.viewers(&stream.config.name);
        if viewers > 0 {
            line += &format!(", {viewers} viewers");
        }
        line += &dropped(&stream.core.counts().drops);
        for (kind, status) in self.outputs.sinks(&stream.config.name) {
            line += &format!(", {}", sinks::line(kind, &status));
        }
        line
    }

    /// `/status`.
    #[must_use]
    pub fn json(&self) -> Value {
        let streams: Vec<Value> = self.streams.iter().map(|s| self.stream(s)).collect();
        json!({
            "program": "spyglassd",
            "version": env!("CARGO_PKG_VERSION"),
            "uptime-s": self.now.saturating_duration_since(self.begun).as_secs(),
            "refused": self.refused,
            "lost": self.lost,
            "streams": streams,
        })
    }

    fn stream(&self, stream: &Stream) -> Value {
        let (state, why, since_ms) = stream.core.state();
        let (fps_in, fps_out) = stream.core.fps(self.now);
        let (c, round) = (stream.core.counts(), |x: f64| (x * 10.0).round() / 10.0);
        let d = &c.drops;
        let ms = |part| stream.core.delay_us(part).map(|us| round(us as f64 / 100.0) / 10.0);
        let encoding = stream.encoding().map(|(kind, (width, height), kbit)| {
            json!({ "kind": kind.element(), "width": width, "height": height, "bitrate-kbit": kbit })
        });
        let privacy = stream.config.privacy.as_ref().map(|_| match stream.blurred() {
            Some((areas, us)) => {
                json!({ "blurred-areas": areas, "search-ms": round(us as f64 / 100.0) / 10.0 })
            }
            None => json!({}),
        });
        json!({
            "name": stream.config.name,
            "source": stream.config.source.as_ref().map(|s| s.spec.to_string()),
            "state": state.word(),
            "why": why,
            "since": rfc3339_ms(since_ms),
            "fps-in": round(fps_in),
            "fps-out": round(fps_out),
            "frames": c.frames,
            "units": c.units,
            "key-frames": c.keys,
            "bytes": c.bytes,
            "sessions": c.sessions,
            "drops": serde_json::Map::from_iter(causes(d).map(|(cause, n)| (cause.to_owned(), n.into()))),
            "delay-ms": { "p50": ms(0.5), "p95": ms(0.95), "max": ms(1.0) },
            "encoder": encoding,
            "privacy": privacy,
            "viewers": self.outputs.viewers(&stream.config.name),
            "outputs": self.outputs.status(&stream.config.name),
        })
    }

    fn metrics(&self) -> Metrics {
        let mut m = Metrics::new();
        for stream in self.streams {
            let name = stream.config.name.as_str();
            let labels = [("stream", name)];
            let c = stream.core.counts();
            for (metric, help, value) in [
                ("spyglassd_frames_total", "Frames that came.", c.frames),
                ("spyglassd_units_total", "Encoded units that left.", c.units),
                ("spyglassd_key_frames_total", "Of them, key frames.", c.keys),
                ("spyglassd_bytes_total", "Bytes of all units.", c.bytes),
                ("spyglassd_sessions_total", "Producers that came.", c.sessions),
            ] {
                m.counter(metric, help, &labels, value);
            }
            for (cause, value) in causes(&c.drops) {
                let labels = [("stream", name), ("cause", cause)];
                m.counter("spyglassd_frames_dropped_total", "Frames not encoded.", &labels, value);
            }
            let (fps_in, fps_out) = stream.core.fps(self.now);
            m.gauge("spyglassd_fps_in", "Frames a second, measured.", &labels, fps_in);
            m.gauge("spyglassd_fps_out", "Units a second, measured.", &labels, fps_out);
            let up = stream.core.state().0 == crate::core::State::Streaming;
            m.gauge("spyglassd_streaming", "Whether units come out.", &labels, f64::from(u8::from(up)));
            m.gauge("spyglassd_viewers", "Viewers.", &labels, self.outputs.viewers(name) as f64);
            for (part, label) in [(0.5, "0.5"), (0.95, "0.95")] {
                if let Some(us) = stream.core.delay_us(part) {
                    let labels = [("stream", name), ("quantile", label)];
                    m.gauge("spyglassd_delay_seconds", "From frame to unit.", &labels, us as f64 / 1e6);
                }
            }
            for (kind, status) in self.outputs.sinks(name) {
                sinks::metrics(&mut m, name, kind, &status);
            }
        }
        m.counter("spyglassd_refused_total", "Connections refused at the frames socket.", &[], self.refused);
        m.counter("spyglassd_lost_total", "Units that the loop was too slow for.", &[], self.lost);
        m.gauge(
            "spyglassd_uptime_seconds",
            "Since the start.",
            &[],
            self.now.saturating_duration_since(self.begun).as_secs_f64(),
        );
        m
    }
}

/// Frames that were not encoded, by cause.
fn causes(d: &Drops) -> [(&'static str, u64); 5] {
    [
        ("no-slot", d.no_slot),
        ("unwanted", d.unwanted),
        ("warmup", d.warmup),
        ("encoder-slow", d.slow),
        ("encoder-failed", d.failed),
    ]
}

/// The causes that there are, for the line.
fn dropped(d: &Drops) -> String {
    let all = causes(d).into_iter().filter(|(_, n)| *n > 0);
    let all: Vec<String> = all.map(|(cause, n)| format!("{n} {cause}")).collect();
    if all.is_empty() { String::new() } else { format!(", dropped {}", all.join(" ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_told_by_cause_where_there_are_any() {
        assert_eq!(dropped(&Drops::default()), "");
        let drops = Drops { no_slot: 2, slow: 7, ..Drops::default() };
        assert_eq!(dropped(&drops), ", dropped 2 no-slot 7 encoder-slow");
    }
}

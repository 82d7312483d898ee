//! What a session says of itself in `/status`.

use edge::clock::rfc3339_ms;
use serde_json::{Value, json};

use super::core::{Session, State};

/// The session's part of `/status`. `expires_s`: when the credentials in use end, in Unix seconds.
#[must_use]
pub fn of(session: &Session, stream: &str, expires_s: Option<i64>, dropped: u64) -> Value {
    let state = match session.state() {
        State::Idle => "WAITING",
        State::Asking | State::Opening(_) if session.why().is_some() => "ERROR",
        State::Asking | State::Opening(_) => "STARTING",
        State::Open if !session.is_streaming() => "STARTING",
        State::Open | State::Finishing(_) => "STREAMING",
        State::Backoff(_) => "ERROR",
        State::Stopped => "STOPPED",
    };
    let counts = session.counts();
    let (memory, disk) = session.ring().bytes();
    let at = |unix_s: i64| rfc3339_ms(u64::try_from(unix_s).unwrap_or(0).saturating_mul(1000));
    json!({
        "state": state,
        "why": session.why().filter(|_| state == "ERROR"),
        "since": rfc3339_ms(session.since_ms()),
        "stream-name": stream,
        "last-persisted": session.persisted_ms().map(rfc3339_ms),
        "credentials-expire": expires_s.map(at),
        "fragments-persisted": counts.persisted,
        "fragments-refused": counts.refused,
        "fragments-resent": counts.resent,
        "fragments-dropped": session.ring().dropped(),
        "fragments-kept": session.ring().len(),
        "bytes-kept": memory,
        "bytes-kept-on-disk": disk,
        "bytes-sent": counts.bytes,
        "connections": counts.connections,
        "frames-dropped": counts.frames_without_key + dropped,
    })
}

//! The keys about connections in a daemon's `[limits]`: what is valid in them, and the caps that they mean.

use std::time::Duration;

use super::Caps;
use crate::config::{Error, Loaded};
use crate::http::{Limits, Reject, Response};

const DAY_MS: u64 = 86_400_000;

/// `limits.connections-max`, `.connections-per-peer`, `.handshake-ms`, `.head-ms`, `.body-ms`, `.idle-ms`, `.write-ms`.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at once, from 2 on.
    pub connections_max: usize,
    /// Of them from one address, from 1 on.
    pub connections_per_peer: usize,
    /// Longest TLS handshake, 100 ms to 1 minute.
    pub handshake_ms: u64,
    /// Longest request head, 100 ms to 1 day.
    pub head_ms: u64,
    /// Longest silence within a body, 100 ms to 1 day; `None` for a daemon that takes no bodies and has no such key.
    pub body_ms: Option<u64>,
    /// Longest silence between requests, 100 ms to 1 day.
    pub idle_ms: u64,
    /// Longest time in which a client takes nothing of its answer, 100 ms to 1 day.
    pub write_ms: u64,
}

impl Bounds {
    /// Whether they are valid; `most` is the largest number of connections.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn check<R>(&self, loaded: &Loaded<R>, most: u64) -> Result<(), Error> {
        let within = |key, value, min, max| loaded.within(key, value, min, max);
        within("limits.connections-max", self.connections_max as u64, 2, most)?;
        within("limits.connections-per-peer", self.connections_per_peer as u64, 1, most)?;
        within("limits.handshake-ms", self.handshake_ms, 100, 60_000)?;
        within("limits.head-ms", self.head_ms, 100, DAY_MS)?;
        within("limits.body-ms", self.body_ms.unwrap_or(DAY_MS), 100, DAY_MS)?;
        within("limits.idle-ms", self.idle_ms, 100, DAY_MS)?;
        within("limits.write-ms", self.write_ms, 100, DAY_MS)
    }

    /// The caps with these numbers and times; `http` has the bounds of bytes, `window` and `refusal` are those of [`Caps`].
    #[must_use]
    pub fn caps(&self, http: Limits, window: usize, refusal: fn(Reject) -> Response) -> Caps {
        let ms = Duration::from_millis;
        Caps {
            connections_max: self.connections_max,
            per_peer_max: self.connections_per_peer,
            handshake: ms(self.handshake_ms),
            http: Limits {
                head_timeout: ms(self.head_ms),
                body_timeout: ms(self.body_ms.unwrap_or(self.head_ms)),
                idle_timeout: ms(self.idle_ms),
                write_timeout: ms(self.write_ms),
                ..http
            },
            window,
            refusal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_outside_names_its_key() {
        let good = Bounds {
            connections_max: 2,
            connections_per_peer: 1,
            handshake_ms: 100,
            head_ms: 200,
            body_ms: None,
            idle_ms: DAY_MS,
            write_ms: 100,
        };
        let text = "[limits]\nbody-ms = 5\n".to_owned();
        let loaded = crate::config::parse::<toml::Table>(std::path::Path::new("x.toml"), text).unwrap();
        good.check(&loaded, 1000).unwrap();
        assert_eq!(
            good.caps(Limits::default(), 1, |r| Response::text(r.status, r.why))
                .http
                .body_timeout
                .as_millis(),
            200
        );
        for (bad, key) in [
            (Bounds { connections_max: 1, ..good }, "limits.connections-max"),
            (Bounds { connections_max: 1001, ..good }, "limits.connections-max"),
            (Bounds { connections_per_peer: 0, ..good }, "limits.connections-per-peer"),
            (Bounds { handshake_ms: 60_001, ..good }, "limits.handshake-ms"),
            (Bounds { head_ms: 99, ..good }, "limits.head-ms"),
            (Bounds { body_ms: Some(5), ..good }, "x.toml:2:11: limits.body-ms"),
            (Bounds { idle_ms: DAY_MS + 1, ..good }, "limits.idle-ms"),
            (Bounds { write_ms: 0, ..good }, "limits.write-ms"),
        ] {
            let error = bad.check(&loaded, 1000).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}

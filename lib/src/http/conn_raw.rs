//! A server connection after an upgrade to another protocol, such as WebSocket: bytes pass through.

use std::time::Instant;

use super::{Conn, Phase, Response};

impl Conn {
    /// Agrees to speak another protocol (RFC 9110 section 7.8): `response` is the 101 with its `Upgrade` header. From here
    /// on what arrives comes as [`ConnEvent::Data`], [`Conn::send_raw`] sends, [`Conn::finish_raw`] ends it in order, and
    /// where the peer closes its side, it ends as soon as the application waits for the peer. Without a complete request waiting for its answer, nothing happens.
    pub fn upgrade(&mut self, response: &Response, now: Instant) {
        if self.phase == Phase::Answer {
            response.write(&mut self.output, false, true);
            self.phase = Phase::Raw { until: None };
            self.deadline = now + self.limits.write_timeout;
        }
    }

    /// Sends bytes of the other protocol.
    pub fn send_raw(&mut self, bytes: &[u8], now: Instant) {
        if matches!(self.phase, Phase::Raw { .. }) {
            if self.unsent() == 0 {
                self.deadline = now + self.limits.write_timeout;
            }
            self.output.extend_from_slice(bytes);
        }
    }

    /// How long the other protocol waits for its peer; `None`: for as long as it takes, since the application is at work.
    /// A peer that closed its side is not waited for: what is to be sent is sent, then the connection is closed.
    pub fn wait_raw(&mut self, until: Option<Instant>, now: Instant) {
        if !matches!(self.phase, Phase::Raw { .. }) {
            return;
        }
        self.phase = Phase::Raw { until };
        if self.ended && until.is_some() && self.input.is_empty() {
            self.finish_raw(now);
        }
    }

    /// Ends the other protocol: what is to be sent is sent, then the connection is closed.
    pub fn finish_raw(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Raw { .. }) {
            self.input = Vec::new();
            self.phase = Phase::Flush { linger: true };
            self.flushed(now);
        }
    }
}

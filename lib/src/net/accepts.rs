//! Accepting that goes on by itself after the system refused.
//!
//! A listener is polled for edges: of clients that could not be let in (no descriptor or no memory was left) nothing is
//! heard again. Invariant: whoever waits in the backlog is tried again within a second, and the log says so once a minute.
//! Never: touches the listener; the caller's closure does.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use crate::log::Throttle;

/// How long nothing is accepted after the system refused.
const PAUSE: Duration = Duration::from_secs(1);
/// The refusal is logged this often.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// When to accept again.
#[derive(Debug)]
pub struct Accepts {
    what: String,
    at: Option<Instant>,
    log: Throttle,
}

impl Accepts {
    /// `what` listens, for the log: "control socket /run/x".
    pub fn new(what: impl Into<String>) -> Accepts {
        Accepts { what: what.into(), at: None, log: Throttle::new(LOG_EVERY) }
    }

    /// The next client; `None`: nobody waits, or the system refuses and [`Accepts::deadline`] says when to go on.
    /// `accept` must not block.
    pub fn next<T>(&mut self, now: Instant, mut accept: impl FnMut() -> io::Result<T>) -> Option<T> {
        loop {
            let error = match accept() {
                Ok(client) => return Some(client),
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::WouldBlock => return None,
                // A client that was gone before its turn is no trouble.
                ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                _ => {
                    self.at = Some(now + PAUSE);
                    if let Some(held) = self.log.event(now) {
                        let what = &self.what;
                        log::error!(
                            "{what}: can't let a client in: {error}; tried again each second ({held} more since the last line)"
                        );
                    }
                    return None;
                }
            }
        }
    }

    /// There may be more clients, but others have their turn first.
    pub fn again(&mut self, now: Instant) {
        self.at = Some(now);
    }

    /// When accepting goes on without an event.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.at
    }

    /// Whether accepting is to go on now; says so once.
    pub fn is_due(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }

    /// Nobody listens any more.
    pub fn stop(&mut self) {
        self.at = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_pauses_and_what_is_no_refusal_does_not() {
        let now = Instant::now();
        let mut accepts = Accepts::new("x");
        let mut script = vec![Err(ErrorKind::WouldBlock), Ok(7), Err(ErrorKind::ConnectionAborted)];
        let mut next = |accepts: &mut Accepts| {
            accepts.next(now, || script.pop().expect("asked too often").map_err(io::Error::from))
        };
        assert_eq!(next(&mut accepts), Some(7), "one was gone already");
        assert_eq!(next(&mut accepts), None);
        assert_eq!(accepts.deadline(), None, "nobody waits");

        let full = || Err::<(), _>(io::Error::from_raw_os_error(24));
        assert_eq!(accepts.next(now, full), None);
        assert_eq!(accepts.deadline(), Some(now + PAUSE));
        assert!(!accepts.is_due(now), "not yet");
        assert!(accepts.is_due(now + PAUSE));
        assert_eq!(accepts.deadline(), None, "once");

        accepts.again(now);
        assert_eq!(accepts.deadline(), Some(now));
        accepts.stop();
        assert!(!accepts.is_due(now));
    }
}

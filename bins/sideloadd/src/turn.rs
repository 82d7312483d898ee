//! Whose sync is under way: one at a time, and it belongs to its connection.
//!
//! Invariant: a sync that is heard of, or that the disk thread is at work for, is never pushed aside; one that was silent
//! for [`SILENT`] gives way. No I/O, no clock.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use mio::Token;

use crate::routes::Refusal;

/// A sync whose connection said nothing for so long gives way to another.
pub const SILENT: Duration = Duration::from_secs(10);

#[derive(Debug)]
struct Owner {
    token: Token,
    peer: IpAddr,
    /// Known once its manifest was judged.
    id: Option<u64>,
    heard: Instant,
    /// The disk thread is at work for it.
    busy: bool,
}

/// The sync under way, if any.
#[derive(Debug, Default)]
pub struct Turn(Option<Owner>);

impl Turn {
    /// Whether a connection may begin something that ends the sync under way: nobody else's is alive.
    ///
    /// # Errors
    /// 409.
    pub fn check_free(&self, token: Token, now: Instant) -> Result<(), Refusal> {
        let Some(owner) = self.0.as_ref().filter(|owner| owner.token != token) else { return Ok(()) };
        let silent = now.saturating_duration_since(owner.heard);
        if owner.busy || silent < SILENT {
            let why = format!("another sync is in progress, from {}; try again", owner.peer);
            return Err(Refusal::busy(409, why));
        }
        log::warn!("the sync from {} was silent for {} s: it gives way", owner.peer, silent.as_secs());
        Ok(())
    }

    /// A connection begins a sync.
    ///
    /// # Errors
    /// 409: see [`Turn::check_free`].
    pub fn take(&mut self, token: Token, peer: IpAddr, now: Instant) -> Result<(), Refusal> {
        self.check_free(token, now)?;
        self.0 = Some(Owner { token, peer, id: None, heard: now, busy: false });
        Ok(())
    }

    /// The manifest was accepted under this name.
    pub fn begun(&mut self, token: Token, id: u64) {
        if let Some(owner) = self.of(token) {
            owner.id = Some(id);
        }
    }

    /// Whether the sync of that name is this connection's.
    ///
    /// # Errors
    /// 404: there is none of that name (any more); 409: it is another connection's.
    pub fn check(&mut self, token: Token, id: u64, now: Instant) -> Result<(), Refusal> {
        match &mut self.0 {
            Some(owner) if owner.token == token && owner.id == Some(id) => {
                owner.heard = now;
                Ok(())
            }
            Some(owner) if owner.id == Some(id) => {
                Err(Refusal::busy(409, format!("sync {id} belongs to another connection; begin a new one")))
            }
            _ => {
                let why = format!("sync {id} was silent for too long and gave way to another; sync again");
                Err(Refusal::busy(404, why))
            }
        }
    }

    /// Something came from the connection.
    pub fn heard(&mut self, token: Token, now: Instant) {
        if let Some(owner) = self.of(token) {
            owner.heard = now;
        }
    }

    /// The disk thread is at work for the connection, or has finished.
    pub fn set_busy(&mut self, token: Token, busy: bool) {
        if let Some(owner) = self.of(token) {
            owner.busy = busy;
        }
    }

    /// The connection's sync is over. `true`: it had one.
    pub fn end(&mut self, token: Token) -> bool {
        let had = self.of(token).is_some();
        if had {
            self.0 = None;
        }
        had
    }

    /// The connection's sync is over if its manifest was not accepted.
    pub fn end_unless_begun(&mut self, token: Token) {
        if self.of(token).is_some_and(|owner| owner.id.is_none()) {
            self.0 = None;
        }
    }

    /// No sync is under way any more.
    pub fn clear(&mut self) {
        self.0 = None;
    }

    fn of(&mut self, token: Token) -> Option<&mut Owner> {
        self.0.as_mut().filter(|owner| owner.token == token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_silent_sync_gives_way() {
        let (a, b, peer, t0) = (Token(70_000), Token(70_001), IpAddr::from([10, 0, 0, 7]), Instant::now());
        let mut turn = Turn::default();
        turn.take(a, peer, t0).unwrap();
        turn.begun(a, 5);
        turn.check(a, 5, t0).unwrap();
        assert_eq!(turn.check(b, 5, t0).unwrap_err().status, 409);
        assert_eq!(turn.check(a, 4, t0).unwrap_err().status, 404);
        let refused = turn.take(b, peer, t0 + SILENT / 2).unwrap_err();
        assert!(refused.status == 409 && refused.message.contains("10.0.0.7"), "{refused:?}");
        turn.heard(a, t0 + SILENT / 2);
        assert!(turn.check_free(b, t0 + SILENT).is_err());
        turn.set_busy(a, true);
        assert!(turn.check_free(b, t0 + 10 * SILENT).is_err(), "the disk is slow, not the client");
        turn.set_busy(a, false);
        turn.take(b, peer, t0 + 10 * SILENT).unwrap();
        assert_eq!(turn.check(a, 5, t0).unwrap_err().status, 404, "it was pushed aside");
        assert!(!turn.end(a) && turn.end(b));
    }

    #[test]
    fn its_own_connection_may_begin_anew_and_a_refused_manifest_leaves_none() {
        let (a, b, peer, t0) = (Token(70_000), Token(70_001), IpAddr::from([10, 0, 0, 7]), Instant::now());
        let mut turn = Turn::default();
        turn.take(a, peer, t0).unwrap();
        turn.begun(a, 1);
        turn.take(a, peer, t0).unwrap();
        turn.end_unless_begun(a);
        turn.take(b, peer, t0).unwrap();
        turn.begun(b, 2);
        turn.end_unless_begun(b);
        assert!(turn.check(b, 2, t0).is_ok());
    }
}

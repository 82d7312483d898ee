//! QoS 2: what the journal must say before a packet may go out.
//!
//! Owns nothing but the rules; the argument is in the module documentation of `spool`.

use std::sync::Arc;

use super::state::Entry;
use super::types::{OutState, Seq, Ticket};
use super::{Error, Spool, record};
use crate::mqtt::Message;

impl Spool {
    /// Journals that the record goes out under this packet id. Send PUBLISH when the ticket is durable.
    ///
    /// # Errors
    /// Not in flight; a failed disk (final).
    pub fn out_published(&mut self, seq: Seq, pid: u16) -> Result<Ticket, Error> {
        if !self.reader.is_in_flight(seq) {
            return Err(Error::NotInFlight { seq });
        }
        self.journal(Entry::Published { pid, seq })?;
        Ok(self.written())
    }

    /// Journals PUBREC. Send PUBREL when the ticket is durable. `None`: no such handshake (answer PUBREL all the
    /// same: the peer waits for it).
    ///
    /// # Errors
    /// A failed disk (final).
    pub fn out_received(&mut self, pid: u16) -> Result<Option<Ticket>, Error> {
        let Some((seq, state)) = self.journal.state.out.get(&pid).copied() else { return Ok(None) };
        if state == OutState::Published {
            self.journal(Entry::Received { pid, seq })?;
        }
        Ok(Some(self.written()))
    }

    /// PUBCOMP: the handshake is over and its record acknowledged. The packet id is free at once: it goes out again
    /// only after `out_published`, which is behind this in the journal. `None`: no such handshake.
    ///
    /// # Errors
    /// A failed disk (final).
    pub fn out_done(&mut self, pid: u16) -> Result<Option<Seq>, Error> {
        let Some((seq, _)) = self.journal.state.out.get(&pid).copied() else { return Ok(None) };
        self.journal(Entry::Done { pid, seq })?;
        self.ack(seq);
        Ok(Some(seq))
    }

    /// The open handshakes: packet id, record, state, by packet id. Reserve all these packet ids before anything new
    /// is published on a resumed session.
    pub fn outbound(&self) -> impl Iterator<Item = (u16, Seq, OutState)> + '_ {
        self.journal.state.out.iter().map(|(pid, (seq, state))| (*pid, *seq, *state))
    }

    /// The next hop lost its session (session-present = 0): all open handshakes are void. Implies
    /// [`Spool::rewind`], after which their records come as new ones. One whose PUBREC had come is sent again too: a
    /// receiver may deliver only at PUBREL, so it may not have been delivered.
    ///
    /// # Errors
    /// A failed disk (final).
    pub fn out_session_lost(&mut self) -> Result<(), Error> {
        if !self.journal.state.out.is_empty() {
            self.journal(Entry::OutClear)?;
        }
        self.rewind();
        Ok(())
    }

    /// Whether this packet id is held: its message is stored, its PUBREL has not been seen.
    #[must_use]
    pub fn is_held(&self, source: &str, pid: u16) -> bool {
        self.journal.state.held_pid(source, pid).is_some()
    }

    /// Like [`Spool::is_held`], and whether the message held is this one (same topic and payload). A peer that breaks
    /// the rules, or lost its state unnoticed, can use a held packet id for a new message.
    #[must_use]
    pub fn is_held_same(&self, source: &str, pid: u16, message: &Message) -> Option<bool> {
        let held = self.journal.state.held_pid(source, pid)?;
        Some(held.digest == record::digest(message))
    }

    /// The packet ids held for a source, for `set_inbound_held` before a connection.
    pub fn held(&self, source: &str) -> impl Iterator<Item = u16> + '_ {
        self.journal.state.held.get(source).into_iter().flat_map(|pids| pids.keys().copied())
    }

    /// Journals PUBREL. Send PUBCOMP when the ticket is durable: from then on the source may use the packet id for
    /// another message. `None`: was not held.
    ///
    /// # Errors
    /// A failed disk (final).
    pub fn release(&mut self, source: &str, pid: u16) -> Result<Option<Ticket>, Error> {
        if !self.is_held(source, pid) {
            return Ok(None);
        }
        self.journal(Entry::Released { source: Arc::from(source), pid })?;
        Ok(Some(self.written()))
    }

    /// The source lost its session (or the broker lost ours): nothing is held for it any more.
    ///
    /// # Errors
    /// A failed disk (final).
    pub fn in_session_lost(&mut self, source: &str) -> Result<(), Error> {
        if !self.journal.state.held.contains_key(source) {
            return Ok(());
        }
        self.journal(Entry::HeldClear { source: Arc::from(source) })
    }
}

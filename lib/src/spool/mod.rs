//! The durable queue.

mod config;
mod error;
mod table;
mod types;

use std::sync::Arc;
use std::time::Instant;

use mio::Waker;

use crate::mqtt::Message;

pub use config::{Full, FullByQos, Problem, SpoolConfig};
pub use error::Error;
pub use table::{FullKey, Table};
pub use types::{Append, Delivery, MEMORY, OutState, Record, Recovery, Seq, Stats, Ticket};

/// A durable queue in a folder. See the module documentation.
///
/// One round of a daemon's loop: `poll` (what the disk finished), appends and journal entries, `next`/`ack`, and
/// `flush` last; then sleep no longer than `deadline`.
pub struct Spool {}

impl Spool {
    /// Opens or makes the spool in `config.dir`, and starts the thread `spool-sync`.
    ///
    /// `waker` is woken whenever [`Spool::poll`] has something to say (several spools may share one). `entropy` is
    /// any unpredictable number; it keeps stale bytes of a re-used file from being taken for records.
    ///
    /// # Errors
    /// Bad bounds, a folder in use by another process, a file of a later format, or a failing disk.
    pub fn open(
        _config: SpoolConfig,
        _waker: Option<Arc<Waker>>,
        _entropy: u64,
    ) -> Result<(Spool, Recovery), Error> {
        Ok((Spool {}, Recovery::default()))
    }

    // ---- writing -------------------------------------------------------------------------------------------------

    /// Stores a message (QoS 0 in memory unless `spool-qos0`). For QoS 2 with an `in_pid` the packet id is held for
    /// `source` from now on, with the same ticket.
    ///
    /// # Errors
    /// A failed disk (final); a full one is not an error but [`Append::Blocked`] or a drop.
    pub fn append(
        &mut self,
        message: Message,
        _source: &str,
        _in_pid: Option<u16>,
        _received_ms: u64,
    ) -> Result<Append, Error> {
        Ok(Append::Blocked(message))
    }

    /// Whether a message of this many bytes (topic, properties, payload) can be stored now without dropping.
    #[must_use]
    pub fn has_room(&self, _bytes: usize) -> bool {
        false
    }

    // ---- committing ----------------------------------------------------------------------------------------------

    /// Starts a commit if one is due. Call once at the end of each round of the loop: what one round wrote shares
    /// one sync.
    ///
    /// # Errors
    /// A failed disk (final).
    pub fn flush(&mut self, _now: Instant) -> Result<(), Error> {
        Ok(())
    }

    /// When `flush` wants to be called next, if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Takes in what the thread finished. Returns whether anything became durable or any space free.
    ///
    /// # Errors
    /// The sync failed: final. Acknowledge nothing more, end the process with EX_IOERR.
    pub fn poll(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    /// Everything written up to this ticket is on disk.
    #[must_use]
    pub fn durable(&self) -> Ticket {
        Ticket(0)
    }

    /// The ticket of everything written so far, durable or not.
    #[must_use]
    pub fn written(&self) -> Ticket {
        Ticket(0)
    }

    /// Commits everything, cursor and acknowledgements above it included, waits for it and ends the thread.
    ///
    /// # Errors
    /// A failed disk.
    pub fn close(self) -> Result<(), Error> {
        Ok(())
    }

    // ---- reading -------------------------------------------------------------------------------------------------

    /// The next record to be sent, in order; only what is durable. `None`: nothing now, or `window` records are
    /// handed out beyond the oldest unacknowledged one. A QoS 0 record needs no `ack`.
    ///
    /// # Errors
    /// The disk can't be read. Damage is not an error: it is quarantined, counted, and what follows is returned.
    // Not an iterator: it fails, and it goes on after `None`.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Delivery>, Error> {
        Ok(None)
    }

    /// Whether `next` has something, so that the caller can take a packet id first.
    #[must_use]
    pub fn has_next(&self) -> bool {
        false
    }

    /// The next hop has it (PUBACK; object stored). Any order. Returns `false` when it was not in flight.
    pub fn ack(&mut self, _seq: Seq) -> bool {
        false
    }

    /// Hands out everything unacknowledged once more, in order, marked `again` (after a reconnect).
    pub fn rewind(&mut self) {}

    /// Reads a record in flight once more, without changing the order of `next`.
    ///
    /// # Errors
    /// Not in flight, or the disk can't be read.
    pub fn fetch(&mut self, seq: Seq) -> Result<Arc<Record>, Error> {
        Err(Error::NotInFlight { seq })
    }

    /// Puts a record in flight into `dead-letter/`, durably, and acknowledges it. Blocks for the sync: it is rare.
    ///
    /// # Errors
    /// Not in flight; or the file can't be written, then the record stays in flight and the spool stays usable.
    pub fn dead_letter(&mut self, seq: Seq, _reason: &str, _now_ms: u64) -> Result<(), Error> {
        Err(Error::NotInFlight { seq })
    }

    // ---- QoS 2, outbound (to the next hop) -----------------------------------------------------------------------

    /// Journals that the record goes out under this packet id. Send PUBLISH when the ticket is durable.
    ///
    /// # Errors
    /// Not in flight; a failed disk.
    pub fn out_published(&mut self, seq: Seq, _pid: u16) -> Result<Ticket, Error> {
        Err(Error::NotInFlight { seq })
    }

    /// Journals PUBREC. Send PUBREL when the ticket is durable. `None`: no such handshake (answer PUBREL all the same).
    ///
    /// # Errors
    /// A failed disk.
    pub fn out_received(&mut self, _pid: u16) -> Result<Option<Ticket>, Error> {
        Ok(None)
    }

    /// PUBCOMP: the handshake is over and its record acknowledged. The packet id is free at once. `None`: no such one.
    ///
    /// # Errors
    /// A failed disk.
    pub fn out_done(&mut self, _pid: u16) -> Result<Option<Seq>, Error> {
        Ok(None)
    }

    /// The open handshakes: packet id, record, state. Reserve all these packet ids before anything new is published.
    pub fn outbound(&self) -> impl Iterator<Item = (u16, Seq, OutState)> + '_ {
        std::iter::empty()
    }

    /// The next hop lost its session (session-present = 0): all open handshakes are void, their records go out as
    /// new ones after the `rewind` this implies.
    ///
    /// # Errors
    /// A failed disk.
    pub fn out_session_lost(&mut self) -> Result<(), Error> {
        Ok(())
    }

    // ---- QoS 2, inbound (from a source) --------------------------------------------------------------------------

    /// Whether this packet id is held: its message is stored, its PUBREL has not been seen.
    #[must_use]
    pub fn is_held(&self, _source: &str, _pid: u16) -> bool {
        false
    }

    /// The packet ids held for a source, for `set_inbound_held` before a connection.
    pub fn held(&self, _source: &str) -> impl Iterator<Item = u16> + '_ {
        std::iter::empty()
    }

    /// Journals PUBREL. Send PUBCOMP when the ticket is durable. `None`: was not held.
    ///
    /// # Errors
    /// A failed disk.
    pub fn release(&mut self, _source: &str, _pid: u16) -> Result<Option<Ticket>, Error> {
        Ok(None)
    }

    /// The source lost its session: nothing is held for it any more.
    ///
    /// # Errors
    /// A failed disk.
    pub fn in_session_lost(&mut self, _source: &str) -> Result<(), Error> {
        Ok(())
    }

    // ---- figures -------------------------------------------------------------------------------------------------

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}

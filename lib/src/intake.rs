//! Ordering of acknowledgements towards the sources.
//!
//! Owns which packet is answered when: a PUBLISH is answered (PUBACK, PUBREC) after the commit that made its record
//! durable, in the order of receipt within each connection; a PUBREL after its release is in the journal. Sans-I/O:
//! the daemon feeds events in and takes [`Ack`]s out.
//!
//! It never answers for a connection that is gone (the peer sends again), and never answers early.

use crate::mqtt::Message;
use crate::spool::{self, Spool};

/// Which packet to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AckKind {
    /// Answer to PUBLISH at QoS 1.
    Puback,
    /// Answer to PUBLISH at QoS 2.
    Pubrec,
    /// Answer to PUBREL.
    Pubcomp,
}

/// An answer that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The connection it belongs to.
    pub conn: u64,
    /// Packet.
    pub kind: AckKind,
    /// Packet id.
    pub pid: u16,
    /// MQTT 5 reason code: 0x00; 0x97 (quota exceeded) for a message dropped at the bound; 0x95 (packet too large);
    /// 0x92 (packet identifier not found) for a PUBCOMP of an unknown one. A 3.1.1 connection sends none.
    pub reason: u8,
}

/// What became of a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Written. Its answer comes out of [`Intake::next_ack`] after the commit.
    Stored,
    /// QoS 2 packet id that is held: already stored. Answered all the same.
    Duplicate,
    /// At the bound. The message is kept here; stop reading this connection until [`Intake::next_unblocked`] names it.
    Blocked,
    /// Dropped at the bound by policy. Answered, with a reason.
    Dropped,
    /// Larger than the spool takes. Answered, with a reason.
    TooLarge,
}

/// Where a packet came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Number of the connection; never used again for another one.
    pub conn: u64,
    /// Whose session it is: packet ids are held per source, over connections.
    pub source: &'a str,
}

/// The answers owed, and the messages that wait for room.
#[derive(Debug, Default)]
pub struct Intake {}

impl Intake {
    /// Nothing owed.
    #[must_use]
    pub fn new() -> Intake {
        Intake::default()
    }

    /// A PUBLISH arrived (`pid` is `None` at QoS 0; `message.qos` rules).
    ///
    /// # Errors
    /// The spool failed (final).
    pub fn publish(
        &mut self,
        _spool: &mut Spool,
        _from: Origin<'_>,
        _pid: Option<u16>,
        _message: Message,
        _now_ms: u64,
    ) -> Result<Admission, spool::Error> {
        Ok(Admission::Blocked)
    }

    /// A PUBREL arrived.
    ///
    /// # Errors
    /// The spool failed (final).
    pub fn pubrel(&mut self, _spool: &mut Spool, _from: Origin<'_>, _pid: u16) -> Result<(), spool::Error> {
        Ok(())
    }

    /// The connection is gone: its answers and waiting messages go with it.
    pub fn closed(&mut self, _conn: u64) {}

    /// The next answer whose record is on disk, in order of receipt.
    pub fn next_ack(&mut self, _spool: &Spool) -> Option<Ack> {
        None
    }

    /// Offers the waiting messages again (after [`Spool::poll`] said something), and names a connection all of whose
    /// messages found room: resume reading it. Call until `None`.
    ///
    /// # Errors
    /// The spool failed (final).
    pub fn next_unblocked(&mut self, _spool: &mut Spool) -> Result<Option<u64>, spool::Error> {
        Ok(None)
    }

    /// Whether this connection waits for room.
    #[must_use]
    pub fn is_blocked(&self, _conn: u64) -> bool {
        false
    }
}

//! The nouns of the spool's interface.

use std::fmt;
use std::sync::Arc;

use crate::mqtt::Message;

/// Number of a record: 1, 2, 3, ... over the whole life of a spool folder, never used twice for different durable
/// records. Numbers of records kept in memory only (QoS 0) have their top bit set and start anew with each process.
pub type Seq = u64;

/// Top bit of the numbers of records that are in memory only.
pub const MEMORY: Seq = 1 << 63;

/// A point in the order of everything written to a spool. What an operation wrote is on disk when
/// [`Spool::durable`](super::Spool::durable) `>=` the ticket the operation returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ticket(pub(crate) u64);

/// One message as it was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub seq: Seq,
    /// When it was received: ms since 1970, UTC.
    pub received_ms: u64,
    /// Who sent it: the name of a broker connection or `client:<client id>`.
    pub source: Arc<str>,
    /// Its packet id at the source (QoS 1 and 2).
    pub in_pid: Option<u16>,
    /// The message itself.
    pub message: Message,
}

impl Record {
    /// Whether the record is on disk (all but QoS 0 without `spool-qos0`). Only such a `seq` means anything to a
    /// receiver that wants to tell duplicates.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.seq & MEMORY == 0
    }
}

/// What [`Spool::append`](super::Spool::append) did.
#[derive(Debug)]
pub enum Append {
    /// Written; durable at `ticket`, and handed out by [`Spool::next`](super::Spool::next) from then on.
    Stored {
        /// Its number.
        seq: Seq,
        /// When it may be acknowledged.
        ticket: Ticket,
    },
    /// At the bound and the policy is `block` (or nothing may be dropped): here it is again, keep it, stop reading,
    /// and offer it anew when [`Spool::has_room`](super::Spool::has_room).
    Blocked(Message),
    /// At the bound and the policy is `drop-newest`: it is gone, and counted.
    Dropped,
    /// `held-max` QoS 2 packet ids are held: refuse it by ending the connection.
    HeldFull(Message),
    /// Larger than `max-record-bytes`: here it is again. Counted.
    TooLarge(Message),
}

/// How far an outgoing QoS 2 message came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutState {
    /// PUBLISH may have gone out: send it again with DUP and the same packet id.
    Published,
    /// PUBREC came: send PUBREL with the same packet id, never PUBLISH.
    Received,
}

/// One record to be sent.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The record.
    pub record: Arc<Record>,
    /// Whether this process handed it out before (set DUP at QoS 1), or a process before this one journaled it
    /// as published.
    pub again: bool,
    /// For QoS 2: the packet id it is journaled under, and its state. `None`: not yet published (or QoS 0, 1).
    pub outbound: Option<(u16, OutState)>,
}

/// What opening found on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Segments found.
    pub segments: usize,
    /// First record to be sent.
    pub cursor: Seq,
    /// Number the next record gets.
    pub next_seq: Seq,
    /// Bytes of a torn tail cut off. Nothing in them was acknowledged.
    pub torn_bytes: u64,
    /// Damaged places found so far (more can appear while reading), copied to `quarantine/`.
    pub damaged: u64,
    /// The journal was damaged: what is still in the segments may be sent again, and no QoS 2 handshake is known any
    /// more. Begin a new session with the next hop (clean start) before sending at QoS 2: it may hold packet ids that
    /// would be used again, and would take new messages for duplicates.
    pub journal_lost: bool,
    /// Inbound QoS 2 packet ids held.
    pub held: usize,
    /// Outbound QoS 2 handshakes open.
    pub outbound: usize,
}

impl fmt::Display for Recovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} segments, {} records to send from {}, {} inbound and {} outbound QoS 2 handshakes open",
            self.segments,
            self.next_seq.saturating_sub(self.cursor),
            self.cursor,
            self.held,
            self.outbound
        )?;
        if self.torn_bytes > 0 {
            write!(f, "; cut a torn tail of {} bytes (nothing acknowledged in it)", self.torn_bytes)?;
        }
        if self.damaged > 0 {
            write!(f, "; {} damaged places copied to quarantine/", self.damaged)?;
        }
        if self.journal_lost {
            f.write_str("; the journal was unreadable: what is left is sent again, duplicates are possible")?;
        }
        Ok(())
    }
}

/// Counters since the spool was opened, and gauges, for `/status` and `/metrics`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records written to disk.
    pub appended: u64,
    /// Their bytes on disk, frames included.
    pub appended_bytes: u64,
    /// Commits done (groups; each is one or two `fdatasync`).
    pub commits: u64,
    /// Duration of the last commit, in us.
    pub commit_us: u64,
    /// Records acknowledged.
    pub acked: u64,
    /// Records dropped at the bound, oldest or newest, by QoS.
    pub dropped: [u64; 3],
    /// Messages refused because too many QoS 2 packet ids were held.
    pub held_full: u64,
    /// Messages refused because of their size.
    pub too_large: u64,
    /// Times a message was blocked at the bound.
    pub blocked: u64,
    /// Whether the disk itself is full (not only the configured bound).
    pub disk_full: bool,
    /// Damaged places found.
    pub damaged: u64,
    /// Records lost in them, as far as their numbers tell.
    pub damaged_records: u64,
    /// Records put into `dead-letter/`.
    pub dead_letters: u64,
    /// Files removed from `dead-letter/` to make room.
    pub dead_letters_removed: u64,
    /// Records waiting on disk: not acknowledged by the next hop (dropped ones may count until the cursor passes).
    pub queued: u64,
    /// Records handed out and not acknowledged.
    pub in_flight: usize,
    /// QoS 0 messages waiting in memory.
    pub memory: usize,
    /// Bytes of segment files on disk.
    pub disk_bytes: u64,
    /// Inbound QoS 2 packet ids held.
    pub held: usize,
    /// Outbound QoS 2 handshakes open.
    pub outbound: usize,
}

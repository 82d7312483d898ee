//! Ordering of acknowledgements towards the sources.
//!
//! Owns which packet is answered when: a PUBLISH is answered (PUBACK, PUBREC) after the commit that made its record
//! durable, in the order of receipt within each connection; a PUBREL after its release is in the journal. Sans-I/O:
//! the daemon feeds events in and takes [`Ack`]s out.
//!
//! Invariants:
//! - Nothing is answered early. An answer waits for everything written before it, also where it answers a duplicate:
//!   the first copy may not be durable yet.
//! - Nothing is answered for a connection that is gone. The peer sends again, and finds its packet id held.
//! - A message that finds no room waits here, and everything later of its connection behind it, so the order of a
//!   connection is the order of its records. What waits is what was read already; the daemon stops reading.
//!
//! It never decides what to drop (the spool's policy does) and never sends.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::mqtt::{Message, Qos};
use crate::spool::{self, Append, Spool, Ticket};

/// MQTT 5 reason codes used in answers (2.4).
mod reason {
    pub(super) const SUCCESS: u8 = 0x00;
    pub(super) const NO_MATCHING_SUBSCRIBERS: u8 = 0x10;
    pub(super) const PACKET_ID_NOT_FOUND: u8 = 0x92;
    pub(super) const PACKET_TOO_LARGE: u8 = 0x95;
    pub(super) const QUOTA_EXCEEDED: u8 = 0x97;
}

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

/// What answers a PUBLISH.
fn answer_to(qos: Qos) -> Option<AckKind> {
    match qos {
        Qos::AtMostOnce => None,
        Qos::AtLeastOnce => Some(AckKind::Puback),
        Qos::ExactlyOnce => Some(AckKind::Pubrec),
    }
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
    /// MQTT 5 reason code: 0x00; 0x97 (quota exceeded) for a message dropped at the bound; 0x95 (packet too large)
    /// for one larger than the spool takes; 0x92 (packet identifier not found) in a PUBCOMP of an unknown one. A 3.1.1
    /// connection sends the packet without it.
    pub reason: u8,
}

/// What became of a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Written. Its answer comes out of [`Intake::next_ack`] after the commit.
    Stored,
    /// QoS 2 packet id that is held: stored before. Answered after the commit all the same.
    Duplicate,
    /// At the bound. The message is kept here; stop reading this connection until [`Intake::next_unblocked`] names it.
    Blocked,
    /// Dropped at the bound by policy. Answered, with a reason.
    Dropped,
    /// Larger than the spool takes. Answered, with a reason.
    TooLarge,
    /// Too many QoS 2 packet ids are held already. Not answered: close the connection (0x93, Receive Maximum
    /// exceeded). Not reading it would keep its PUBRELs out, which are what would help.
    HeldFull,
}

/// Where a packet came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Number of the connection; never used again for another one.
    pub conn: u64,
    /// Whose session it is: packet ids are held per source, over connections.
    pub source: &'a str,
}

/// A message that found no room.
#[derive(Debug)]
struct Waiting {
    source: Arc<str>,
    pid: Option<u16>,
    message: Message,
    received_ms: u64,
}

/// The answers owed, and the messages that wait for room.
#[derive(Debug, Default)]
pub struct Intake {
    /// Tickets never decrease, so one queue keeps the order of every connection.
    owed: VecDeque<(Ticket, Ack)>,
    waiting: BTreeMap<u64, VecDeque<Waiting>>,
    reused_pids: u64,
}

impl Intake {
    /// Nothing owed.
    #[must_use]
    pub fn new() -> Intake {
        Intake::default()
    }

    /// A PUBLISH arrived (`pid` is `None` at QoS 0; `message.qos` rules). `now_ms` is the time of receipt, unix ms.
    ///
    /// # Errors
    /// The spool failed (final), or [`spool::Error::Message`]: the message can't be represented; close the connection.
    pub fn publish(
        &mut self,
        spool: &mut Spool,
        from: Origin<'_>,
        pid: Option<u16>,
        message: Message,
        now_ms: u64,
    ) -> Result<Admission, spool::Error> {
        if self.is_blocked(from.conn) {
            self.wait(from, pid, message, now_ms);
            return Ok(Admission::Blocked);
        }
        match self.offer(spool, from, pid, message, now_ms)? {
            (Admission::Blocked, Some(message)) => {
                self.wait(from, pid, message, now_ms);
                Ok(Admission::Blocked)
            }
            (admission, _) => Ok(admission),
        }
    }

    fn wait(&mut self, from: Origin<'_>, pid: Option<u16>, message: Message, received_ms: u64) {
        let waiting = Waiting { source: Arc::from(from.source), pid, message, received_ms };
        self.waiting.entry(from.conn).or_default().push_back(waiting);
    }

    /// Stores a message and owes its answer, or gives it back.
    fn offer(
        &mut self,
        spool: &mut Spool,
        from: Origin<'_>,
        pid: Option<u16>,
        message: Message,
        now_ms: u64,
    ) -> Result<(Admission, Option<Message>), spool::Error> {
        let kind = answer_to(message.qos);
        if kind == Some(AckKind::Pubrec)
            && let Some(pid) = pid
        {
            match spool.is_held_same(from.source, pid, &message) {
                None => {}
                Some(true) => {
                    self.owe(spool.written(), from.conn, kind, Some(pid), reason::SUCCESS);
                    return Ok((Admission::Duplicate, None));
                }
                // Not what is held under this packet id: a new message of a peer that forgot the old handshake.
                // Taking it for a duplicate would lose it.
                Some(false) => {
                    self.reused_pids += 1;
                    spool.release(from.source, pid)?;
                }
            }
        }
        let (admission, ticket, reason, back) = match spool.append(message, from.source, pid, now_ms)? {
            Append::Stored { ticket, .. } => (Admission::Stored, ticket, reason::SUCCESS, None),
            Append::Blocked(message) => return Ok((Admission::Blocked, Some(message))),
            Append::HeldFull(message) => return Ok((Admission::HeldFull, Some(message))),
            Append::Dropped => (Admission::Dropped, spool.written(), reason::QUOTA_EXCEEDED, None),
            Append::TooLarge(_) => (Admission::TooLarge, spool.written(), reason::PACKET_TOO_LARGE, None),
        };
        self.owe(ticket, from.conn, kind, pid, reason);
        Ok((admission, back))
    }

    fn owe(&mut self, ticket: Ticket, conn: u64, kind: Option<AckKind>, pid: Option<u16>, reason: u8) {
        if let (Some(kind), Some(pid)) = (kind, pid) {
            self.owed.push_back((ticket, Ack { conn, kind, pid, reason }));
        }
    }

    /// A PUBLISH arrived that nobody wants: answers it in its turn ("no matching subscribers", which is a success), and
    /// stores nothing. At QoS 2 nothing is held either: a repetition is turned away again, and its PUBREL is answered
    /// like that of any unknown id.
    pub fn discard(&mut self, spool: &Spool, from: Origin<'_>, pid: Option<u16>, qos: Qos) {
        self.owe(spool.written(), from.conn, answer_to(qos), pid, reason::NO_MATCHING_SUBSCRIBERS);
    }

    /// A PUBREL arrived: the packet id is free for the source once the PUBCOMP is out.
    ///
    /// # Errors
    /// The spool failed (final).
    pub fn pubrel(&mut self, spool: &mut Spool, from: Origin<'_>, pid: u16) -> Result<(), spool::Error> {
        let reason = match spool.release(from.source, pid)? {
            Some(_) => reason::SUCCESS,
            // Released before: maybe by an entry that is not durable yet, so this answer waits as well.
            None => reason::PACKET_ID_NOT_FOUND,
        };
        self.owe(spool.written(), from.conn, Some(AckKind::Pubcomp), Some(pid), reason);
        Ok(())
    }

    /// The connection is gone: its answers and waiting messages go with it.
    pub fn closed(&mut self, conn: u64) {
        self.waiting.remove(&conn);
        self.owed.retain(|(_, ack)| ack.conn != conn);
    }

    /// The next answer whose record is on disk, in order of receipt.
    pub fn next_ack(&mut self, spool: &Spool) -> Option<Ack> {
        let (ticket, _) = self.owed.front()?;
        if *ticket > spool.durable() {
            return None;
        }
        self.owed.pop_front().map(|(_, ack)| ack)
    }

    /// Offers the waiting messages again (call it until `None` after [`Spool::poll`] said something, and after
    /// [`Spool::flush`] where the disk was full), and names a connection all of whose messages found room: resume
    /// reading it.
    ///
    /// # Errors
    /// The spool failed (final).
    pub fn next_unblocked(&mut self, spool: &mut Spool) -> Result<Option<u64>, spool::Error> {
        // One connection at a time, the oldest first: a later one must not take the room an earlier one waits for.
        let Some(conn) = self.waiting.keys().next().copied() else { return Ok(None) };
        while let Some(w) = self.waiting.get_mut(&conn).and_then(VecDeque::pop_front) {
            let from = Origin { conn, source: &w.source };
            if let (_, Some(message)) = self.offer(spool, from, w.pid, w.message, w.received_ms)? {
                let again = Waiting { message, ..w };
                self.waiting.entry(conn).or_default().push_front(again);
                return Ok(None);
            }
        }
        self.waiting.remove(&conn);
        Ok(Some(conn))
    }

    /// Whether this connection waits for room.
    #[must_use]
    pub fn is_blocked(&self, conn: u64) -> bool {
        self.waiting.contains_key(&conn)
    }

    /// Answers owed and messages waiting, for `/status`.
    #[must_use]
    pub fn pending(&self) -> (usize, usize) {
        (self.owed.len(), self.waiting.values().map(VecDeque::len).sum())
    }

    /// Times a peer used a held packet id for another message.
    #[must_use]
    pub fn reused_pids(&self) -> u64 {
        self.reused_pids
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::SpoolConfig;

    struct Dir(std::path::PathBuf);

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn spool(name: &str, change: fn(&mut SpoolConfig)) -> (Dir, Spool) {
        let dir = std::env::temp_dir().join(format!("edge-intake-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let mut config = SpoolConfig::new(&dir);
        (config.segment_bytes, config.max_bytes, config.max_record_bytes) = (1 << 16, 1 << 18, 1 << 15);
        change(&mut config);
        (Dir(dir), Spool::open(config, None, 1).unwrap().0)
    }

    fn message(qos: Qos, len: usize) -> Message {
        Message { topic: "t".into(), payload: vec![7; len], qos, ..Message::default() }
    }

    fn acks(intake: &mut Intake, spool: &Spool) -> Vec<(u64, AckKind, u16, u8)> {
        std::iter::from_fn(|| intake.next_ack(spool)).map(|a| (a.conn, a.kind, a.pid, a.reason)).collect()
    }

    const A: Origin<'static> = Origin { conn: 1, source: "a" };
    const B: Origin<'static> = Origin { conn: 2, source: "b" };

    #[test]
    fn answers_come_after_the_commit_in_order_of_receipt() {
        let (_dir, mut spool) = spool("order", |_| {});
        let mut intake = Intake::new();
        let (one, two) = (Qos::AtLeastOnce, Qos::ExactlyOnce);
        for (from, pid, qos) in [(A, 5, one), (B, 9, two), (A, 3, two), (A, 4, one)] {
            let admission = intake.publish(&mut spool, from, Some(pid), message(qos, 10), 0).unwrap();
            assert_eq!(admission, Admission::Stored);
        }
        intake.publish(&mut spool, A, None, message(Qos::AtMostOnce, 10), 0).unwrap();
        assert_eq!(acks(&mut intake, &spool), [], "before the commit");
        spool.settle().unwrap();
        let expected = [
            (1, AckKind::Puback, 5, 0),
            (2, AckKind::Pubrec, 9, 0),
            (1, AckKind::Pubrec, 3, 0),
            (1, AckKind::Puback, 4, 0),
        ];
        assert_eq!(acks(&mut intake, &spool), expected);
    }

    #[test]
    fn a_held_packet_id_is_a_duplicate_and_a_reused_one_a_new_message() {
        let (_dir, mut spool) = spool("held", |_| {});
        let mut intake = Intake::new();
        let two = || message(Qos::ExactlyOnce, 10);
        let first = intake.publish(&mut spool, A, Some(1), two(), 0).unwrap();
        intake.closed(1);
        let again = Origin { conn: 7, ..A };
        let second = intake.publish(&mut spool, again, Some(1), two(), 0).unwrap();
        assert_eq!((first, second), (Admission::Stored, Admission::Duplicate));
        assert_eq!(acks(&mut intake, &spool), [], "the first copy is not durable yet");
        spool.settle().unwrap();
        assert_eq!(
            acks(&mut intake, &spool),
            [(7, AckKind::Pubrec, 1, 0)],
            "none for the connection that is gone"
        );
        assert_eq!(
            intake.publish(&mut spool, B, Some(1), two(), 0).unwrap(),
            Admission::Stored,
            "another source"
        );
        let other = message(Qos::ExactlyOnce, 11);
        assert_eq!(intake.publish(&mut spool, again, Some(1), other, 0).unwrap(), Admission::Stored);
        assert_eq!(intake.reused_pids(), 1);
        assert_eq!(spool.stats().appended, 3);
    }

    #[test]
    fn pubcomp_waits_for_the_release_also_when_it_is_asked_twice() {
        let (_dir, mut spool) = spool("release", |_| {});
        let mut intake = Intake::new();
        intake.publish(&mut spool, A, Some(1), message(Qos::ExactlyOnce, 10), 0).unwrap();
        spool.settle().unwrap();
        assert_eq!(acks(&mut intake, &spool).len(), 1);
        intake.pubrel(&mut spool, A, 1).unwrap();
        intake.pubrel(&mut spool, A, 1).unwrap();
        assert!(!spool.is_held("a", 1));
        assert_eq!(acks(&mut intake, &spool), []);
        spool.settle().unwrap();
        assert_eq!(acks(&mut intake, &spool), [(1, AckKind::Pubcomp, 1, 0), (1, AckKind::Pubcomp, 1, 0x92)]);
    }

    #[test]
    fn what_finds_no_room_waits_in_order_and_is_stored_when_there_is_some() {
        let (_dir, mut spool) = spool("blocked", |_| {});
        let mut intake = Intake::new();
        let (mut pid, mut stored) = (0u16, 0);
        while !intake.is_blocked(1) {
            pid += 1;
            let m = message(Qos::AtLeastOnce, 8000);
            match intake.publish(&mut spool, A, Some(pid), m, 0).unwrap() {
                Admission::Stored => stored += 1,
                other => assert_eq!(other, Admission::Blocked),
            }
            spool.settle().unwrap();
            assert!(pid < 100, "never blocked");
        }
        // Behind the one that waits, though it would fit.
        let small = intake.publish(&mut spool, A, Some(500), message(Qos::AtLeastOnce, 1), 0).unwrap();
        assert_eq!(small, Admission::Blocked);
        assert_eq!(intake.pending(), (stored, 2));
        assert_eq!(acks(&mut intake, &spool).len(), stored);
        assert_eq!(intake.next_unblocked(&mut spool).unwrap(), None);
        while let Some(d) = spool.next().unwrap() {
            spool.ack(d.record.seq);
        }
        let now = std::time::Instant::now();
        for _ in 0..200 {
            spool.flush(now).unwrap();
            spool.settle().unwrap();
            spool.poll().unwrap();
            if let Some(conn) = intake.next_unblocked(&mut spool).unwrap() {
                assert_eq!(conn, 1);
                spool.settle().unwrap();
                let expected = [(1, AckKind::Puback, pid, 0), (1, AckKind::Puback, 500, 0)];
                assert_eq!(acks(&mut intake, &spool), expected);
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("room never came back");
    }

    #[test]
    fn refusals_are_answered_with_their_reason() {
        let (_dir, mut spool) = spool("refuse", |c| {
            c.full.qos1 = spool::Full::DropNewest;
            c.held_max = 1;
        });
        let mut intake = Intake::new();
        let large = message(Qos::AtLeastOnce, 1 << 16);
        assert_eq!(intake.publish(&mut spool, A, Some(1), large, 0).unwrap(), Admission::TooLarge);
        let two = |fill| Message { payload: vec![fill], ..message(Qos::ExactlyOnce, 0) };
        assert_eq!(intake.publish(&mut spool, A, Some(2), two(1), 0).unwrap(), Admission::Stored);
        assert_eq!(intake.publish(&mut spool, A, Some(3), two(2), 0).unwrap(), Admission::HeldFull);
        let mut last = Admission::Stored;
        for pid in 10..200 {
            last = intake.publish(&mut spool, A, Some(pid), message(Qos::AtLeastOnce, 8000), 0).unwrap();
            spool.settle().unwrap();
        }
        assert_eq!(last, Admission::Dropped);
        let acks = acks(&mut intake, &spool);
        assert_eq!(acks[0], (1, AckKind::Puback, 1, 0x95));
        assert_eq!(acks[1], (1, AckKind::Pubrec, 2, 0));
        assert_eq!(acks.last(), Some(&(1, AckKind::Puback, 199, 0x97)));
        assert!(
            !acks.iter().any(|a| a.2 == 3),
            "what is neither stored nor refused for good is not answered"
        );
    }
}

//! What goes to the next hop, and when: the window, resends, packet ids, poison, holds.
//!
//! Owns: the messages in flight on the connection to the next hop. A record is acknowledged in the queue only when the
//! next hop said so (or it lies in `dead-letter/`); a QoS 2 record is published only after its packet id is journaled,
//! and released only after its PUBREC is.
//! Never: does I/O of its own, reads the clock, or draws random numbers; the queue and the peer are traits, which the
//! simulation of the tests implements as models.

#[path = "core_fate.rs"]
mod fate;
#[path = "core_send.rs"]
mod send;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use edge::mqtt::{DisconnectKind, Message, PeerLimits, PublishError, Qos};
use edge::spool::{Delivery, Record, Seq};

use crate::route::Routes;

/// The user property that lists the forwarders a message passed, one entry each: it stops loops.
pub const HOP: &str = "hop";

/// The durable queue, as the outlet sees it. See [`edge::spool::Spool`] for what each call promises.
pub trait Queue {
    /// What makes the queue unusable.
    type Error: std::error::Error;
    /// A point in the order of what was written.
    type Ticket: Copy + Ord;
    fn durable(&self) -> Self::Ticket;
    fn written(&self) -> Self::Ticket;
    fn next(&mut self) -> Result<Option<Delivery>, Self::Error>;
    fn ack(&mut self, seq: Seq) -> bool;
    fn rewind(&mut self);
    /// `None`: its bytes went bad on disk; it is counted and gone.
    fn fetch(&mut self, seq: Seq) -> Result<Option<std::sync::Arc<Record>>, Self::Error>;
    /// `Ok(false)`: the dead letter could not be written, the record stays in flight.
    fn dead_letter(&mut self, seq: Seq, reason: &str, now_ms: u64) -> Result<bool, Self::Error>;
    fn out_published(&mut self, seq: Seq, pid: u16) -> Result<Self::Ticket, Self::Error>;
    fn out_received(&mut self, pid: u16) -> Result<Option<Self::Ticket>, Self::Error>;
    fn out_done(&mut self, pid: u16) -> Result<Option<Seq>, Self::Error>;
    fn outbound_pids(&self) -> Vec<u16>;
    fn out_session_lost(&mut self) -> Result<(), Self::Error>;
}

/// The connection to the next hop. See [`edge::mqtt::Client`].
pub trait Peer {
    fn acquire_pid(&mut self) -> Option<u16>;
    fn reserve_pid(&mut self, pid: u16) -> bool;
    fn release_pid(&mut self, pid: u16);
    fn publish(&mut self, pid: Option<u16>, dup: bool, message: &Message) -> Result<(), PublishError>;
    fn pubrel(&mut self, pid: u16) -> Result<(), PublishError>;
}

/// Bounds and times, from the table `[forward]`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Most unacknowledged messages; the server's Receive Maximum lowers it.
    pub window: usize,
    /// The oldest message may be unacknowledged this long before the connection is made anew.
    pub ack_timeout: Duration,
    /// So many connections in a row that end on the same first message make it poison.
    pub poison_disconnects: u32,
    /// First and longest pause after the next hop asked to wait or did not let us publish.
    pub hold: (Duration, Duration),
    /// `origin` of what we forward: with `seq` it names a message for ever.
    pub origin: String,
    /// Our name in the list of hops that a message carries.
    pub hop: String,
}

/// The time of a turn of the loop, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    pub mono: Instant,
    /// ms since 1970, UTC.
    pub unix_ms: u64,
}

/// What happened since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// PUBLISH packets sent, resends included.
    pub sent: u64,
    /// Of these, with DUP.
    pub resent: u64,
    /// Messages that the next hop acknowledged.
    pub acked: u64,
    /// Messages whose expiry passed in the queue.
    pub expired: u64,
    /// Messages put into `dead-letter/`.
    pub dead: u64,
    /// Times the next hop had forgotten our session.
    pub sessions_lost: u64,
    /// Connections given up because the oldest message was not acknowledged in time.
    pub ack_timeouts: u64,
}

/// Why nothing (more than a probe) is sent, though there is a connection.
#[derive(Debug, Clone)]
pub struct Hold {
    /// For people: what the next hop said.
    pub why: String,
    /// The next probe.
    pub until: Instant,
    /// Somebody must do something (unlike "wait").
    pub alarm: bool,
    delay: Duration,
}

#[derive(Debug)]
struct Flight {
    seq: Seq,
    qos: Qos,
}

/// A message with all that is decided about it but not yet in the output buffer.
#[derive(Debug)]
struct Ready {
    record: std::sync::Arc<Record>,
    pid: Option<u16>,
    qos: Qos,
    dup: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Go,
    Stop,
}

/// The messages in flight to one next hop.
#[derive(Debug)]
pub struct Outlet<T> {
    settings: Settings,
    routes: Routes,
    limits: Option<PeerLimits>,
    flights: HashMap<u16, Flight>,
    /// In order of sending; entries whose flight is over are skipped.
    sent: VecDeque<(Instant, u16, Seq)>,
    /// Packet ids of QoS 1 messages sent on an earlier connection of the same session.
    kept: HashMap<Seq, u16>,
    /// Waits for the journal (QoS 2), or behind one that does, so that the order holds.
    waiting: VecDeque<(T, Ready)>,
    /// PUBRELs that wait for the journal.
    releases: VecDeque<(T, u16)>,
    stash: Option<Ready>,
    /// Refused for now. A journaled one keeps its packet id, so that the journal stays true.
    retry: VecDeque<(Seq, Option<u16>)>,
    /// Ids under which the next hop may hold a QoS 2 message that was given up: not to be used in this session.
    spent: Vec<u16>,
    hold: Option<Hold>,
    suspect: Option<(Seq, u32)>,
    progressed: bool,
    connected_before: bool,
    /// What happened since the start.
    pub counters: Counters,
}

impl<T: Copy + Ord> Outlet<T> {
    /// Nothing in flight. The packet ids of handshakes in the queue's journal are reserved at `peer`.
    pub fn new<Q: Queue<Ticket = T>>(
        settings: Settings,
        routes: Routes,
        queue: &Q,
        peer: &mut impl Peer,
    ) -> Self {
        for pid in queue.outbound_pids() {
            peer.reserve_pid(pid);
        }
        Outlet {
            settings,
            routes,
            limits: None,
            flights: HashMap::new(),
            sent: VecDeque::new(),
            kept: HashMap::new(),
            waiting: VecDeque::new(),
            releases: VecDeque::new(),
            stash: None,
            retry: VecDeque::new(),
            spent: Vec::new(),
            hold: None,
            suspect: None,
            progressed: false,
            connected_before: false,
            counters: Counters::default(),
        }
    }

    /// Messages sent and not acknowledged.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Whether no acknowledgement can be waited for.
    pub fn is_idle(&self) -> bool {
        self.limits.is_none() || self.flights.is_empty()
    }

    /// Why only probes are sent, if so.
    pub fn held(&self) -> Option<&Hold> {
        self.hold.as_ref()
    }

    /// The message that several connections in a row ended on, with their number.
    pub fn suspect(&self) -> Option<(Seq, u32)> {
        self.suspect
    }

    /// When [`Outlet::timer`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        self.limits?;
        let oldest = self.sent.front().map(|(at, _, _)| *at + self.settings.ack_timeout);
        let probe = self.hold.as_ref().map(|hold| hold.until);
        match (oldest, probe) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Time has passed. `Some`: the oldest message waits too long; drop the connection and make a new one.
    pub fn timer(&mut self, now: Instant) -> Option<String> {
        self.forget_finished();
        let (at, _, seq) = *self.sent.front()?;
        let waited = now.saturating_duration_since(at);
        if self.limits.is_none() || waited < self.settings.ack_timeout {
            return None;
        }
        self.counters.ack_timeouts += 1;
        Some(format!("message {seq} is not acknowledged after {} s", waited.as_secs()))
    }

    fn forget_finished(&mut self) {
        while let Some((_, pid, seq)) = self.sent.front()
            && self.flights.get(pid).is_none_or(|flight| flight.seq != *seq)
        {
            self.sent.pop_front();
        }
    }

    /// CONNACK. What was in flight is sent again: with its packet id and DUP if the next hop still has the session, as
    /// new otherwise.
    pub fn connected<Q: Queue<Ticket = T>>(
        &mut self,
        session_present: bool,
        limits: PeerLimits,
        queue: &mut Q,
        peer: &mut impl Peer,
    ) -> Result<(), Q::Error> {
        let flights = std::mem::take(&mut self.flights);
        self.sent.clear();
        // Ids of what was taken in hand but never published belong to no exchange; journaled ones stay reserved.
        let waiting = self.waiting.drain(..).map(|(_, ready)| ready);
        for ready in self.stash.take().into_iter().chain(waiting) {
            match (ready.pid, ready.qos) {
                (Some(pid), Qos::AtLeastOnce) => drop(self.kept.insert(ready.record.seq, pid)),
                // The queue hands out QoS 0 only once.
                _ if ready.record.message.qos == Qos::AtMostOnce => self.stash = Some(ready),
                _ => {}
            }
        }
        self.releases.clear();
        self.retry.clear();
        for (pid, flight) in flights {
            if flight.qos == Qos::AtLeastOnce {
                self.kept.insert(flight.seq, pid);
            }
        }
        if !session_present {
            // The first connection finds no session and loses none.
            self.counters.sessions_lost += u64::from(self.connected_before);
            for (_, pid) in self.kept.drain() {
                peer.release_pid(pid);
            }
            for pid in queue.outbound_pids().into_iter().chain(self.spent.drain(..)) {
                peer.release_pid(pid);
            }
            queue.out_session_lost()?;
        }
        queue.rewind();
        self.limits = Some(limits);
        self.connected_before = true;
        self.progressed = false;
        Ok(())
    }

    /// The connection ended. A message on which several connections in a row ended goes into `dead-letter/`.
    pub fn disconnected<Q: Queue<Ticket = T>>(
        &mut self,
        kind: DisconnectKind,
        queue: &mut Q,
        peer: &mut impl Peer,
        now: Now,
    ) -> Result<(), Q::Error> {
        if self.limits.take().is_none() {
            return Ok(());
        }
        // Only an end that the other side made can be the fault of a message.
        let theirs =
            matches!(kind, DisconnectKind::Closed | DisconnectKind::Server(_) | DisconnectKind::Protocol);
        self.forget_finished();
        let head = self
            .sent
            .iter()
            .filter(|(_, pid, _)| self.flights.contains_key(pid))
            .map(|(_, _, seq)| *seq)
            .min();
        let Some(head) = head.filter(|_| theirs && !self.progressed) else { return Ok(()) };
        let alone = self.flights.len() == 1;
        let count = match self.suspect {
            Some((seq, count)) if seq == head => count + 1,
            _ => 1,
        };
        self.suspect = Some((head, count));
        let too_large = kind == DisconnectKind::Server(0x95) && alone;
        if too_large || (alone && count >= self.settings.poison_disconnects) {
            let reason = if too_large {
                "the next hop closed the connection: packet too large (0x95)".to_owned()
            } else {
                format!("the next hop closed {count} connections in a row on this message")
            };
            self.suspect = None;
            let pid = self.flights.iter().find(|(_, flight)| flight.seq == head).map(|(pid, _)| *pid);
            if self.bury(head, &reason, queue, now)?
                && let Some(pid) = pid
                && let Some(flight) = self.flights.remove(&pid)
            {
                self.retire(pid, flight.qos, peer);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "core_sim.rs"]
mod sim;
#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

//! The receiving end of a daemon: a subscription at a broker, or our own ingest port, in front of a spool.
//!
//! Owns: the connection(s) to the source, and the [`Intake`]. Invariants: nothing at QoS 1 or 2 is acknowledged before
//! its record is on disk; while a connection's message waits for room in the spool, nothing more is read from it.
//! Never: decides what is wanted (the daemon does, message by message) or where it goes.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::{Registry, Token};

use crate::intake::{Ack, AckKind, Admission, Intake, Origin};
use crate::log::Throttle;
use crate::mqtt::endpoint::Source;
use crate::mqtt::ingest::{self, ConnId, Ingest, IngestEvent};
use crate::mqtt::{Client, ClientEvent, DisconnectKind, Filter, Link, Message, reason_text};
use crate::net::Resolver;
use crate::spool::{self, Spool, Ticket};

/// What the daemon wants done with a message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Store it, then acknowledge it.
    Store,
    /// Acknowledge it in its turn, and forget it.
    Discard,
}

/// What happened since the start.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counters {
    /// PUBLISH packets received, duplicates included.
    pub received: u64,
    /// QoS 2 packets whose message was stored already.
    pub duplicates: u64,
    /// Messages that the daemon did not want.
    pub discarded: u64,
    /// Times the broker had forgotten our session (the first connection ever does not count).
    pub sessions_lost: u64,
}

#[derive(Debug)]
enum Side {
    Broker(Box<Broker>),
    Port(Box<Port>),
}

#[derive(Debug)]
struct Broker {
    client: Client,
    link: Link,
    filters: Vec<Filter>,
    /// Grows with each connection; tells the intake which acknowledgements are void.
    conn: u64,
    /// Subscribe when this is durable: what an old session held must be forgotten before new ids arrive.
    subscribe_at: Option<Ticket>,
    subscribed: bool,
    paused: bool,
}

#[derive(Debug)]
struct Port {
    ingest: Ingest,
    /// Clients wait here until what they held before is durably known or forgotten.
    accepts: VecDeque<(Ticket, ConnId, bool)>,
    blocked: HashSet<ConnId>,
}

/// The receiving end.
#[derive(Debug)]
pub struct Inlet {
    side: Side,
    intake: Intake,
    dropped: Throttle,
    refused: Throttle,
    /// What happened since the start.
    pub counters: Counters,
}

/// The name of the broker's session in the spool's journal: one daemon subscribes at one broker.
const BROKER: &str = "broker";

impl Inlet {
    /// Opens the port, or makes the client, which subscribes to `filters`. Nothing arrives before [`Inlet::start`].
    ///
    /// # Errors
    /// The port's address is in use or can't be listened on.
    pub fn new(source: Source, filters: Vec<Filter>, resolver: &Resolver) -> Result<Inlet, ingest::Error> {
        let side = match source {
            Source::Broker(config) => Side::Broker(Box::new(Broker {
                link: Link::new(&config),
                client: Client::new(*config, resolver.clone(), fastrand::Rng::new()),
                filters,
                conn: 0,
                subscribe_at: None,
                subscribed: false,
                paused: false,
            })),
            Source::Listen(config) => Side::Port(Box::new(Port {
                ingest: Ingest::bind(*config)?,
                accepts: VecDeque::new(),
                blocked: HashSet::new(),
            })),
        };
        let minute = Duration::from_secs(60);
        Ok(Inlet {
            side,
            intake: Intake::new(),
            dropped: Throttle::new(minute),
            refused: Throttle::new(minute),
            counters: Counters::default(),
        })
    }

    /// Begins to connect or to accept.
    ///
    /// # Errors
    /// The poll does not take the listener.
    pub fn start(&mut self, registry: &Registry, listener: Token, now: Instant) -> std::io::Result<()> {
        match &mut self.side {
            Side::Broker(broker) => {
                broker.client.start(now);
                Ok(())
            }
            Side::Port(port) => port.ingest.register(registry, listener),
        }
    }

    /// Reads nothing more; what was received is still acknowledged when it is durable.
    pub fn pause(&mut self) {
        match &mut self.side {
            Side::Broker(broker) => broker.client.pause_reading(true),
            Side::Port(port) => port.ingest.pause_reading(true),
        }
    }

    /// Says goodbye.
    pub fn stop(&mut self, registry: &Registry, now: Instant) {
        match &mut self.side {
            Side::Broker(broker) => broker.client.stop(now),
            Side::Port(port) => port.ingest.shutdown(registry, now),
        }
        self.flush(registry, now);
    }

    /// Whether an event is for [`Inlet::ready`].
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        match &self.side {
            Side::Broker(broker) => broker.client.owns(token),
            Side::Port(port) => port.ingest.owns(token),
        }
    }

    /// A socket is ready.
    pub fn ready(&mut self, registry: &Registry, event: &Event, now: Instant) {
        match &mut self.side {
            Side::Broker(broker) => broker.client.ready(registry, event, now),
            Side::Port(port) => port.ingest.ready(registry, event, now),
        }
    }

    /// The waker fired: perhaps a name was resolved.
    pub fn resolved(&mut self, registry: &Registry, now: Instant) {
        if let Side::Broker(broker) = &mut self.side {
            broker.client.resolved(registry, now);
        }
    }

    /// When [`Inlet::timer`] wants to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match &self.side {
            Side::Broker(broker) => broker.client.deadline(),
            Side::Port(port) => port.ingest.deadline(),
        }
    }

    /// The deadline has passed.
    pub fn timer(&mut self, registry: &Registry, now: Instant) {
        match &mut self.side {
            Side::Broker(broker) => broker.client.timer(registry, now),
            Side::Port(port) => port.ingest.timer(registry, now),
        }
    }

    /// Writes what is queued. To be called once at the end of each turn of the loop.
    pub fn flush(&mut self, registry: &Registry, now: Instant) {
        match &mut self.side {
            Side::Broker(broker) => broker.client.flush(registry, now),
            Side::Port(port) => port.ingest.flush(registry, now),
        }
    }

    /// The state of the source in words.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.side {
            Side::Broker(broker) => broker.link.describe(),
            Side::Port(port) => {
                format!("listening on {}, {} clients", port.ingest.config().listen, port.ingest.clients())
            }
        }
    }

    /// Whether messages can arrive.
    #[must_use]
    pub fn is_up(&self) -> bool {
        match &self.side {
            Side::Broker(broker) => broker.link.is_up(),
            Side::Port(_) => true,
        }
    }

    /// The table `source` of a daemon's `/status`.
    #[must_use]
    pub fn status(&self) -> serde_json::Value {
        let Counters { received, duplicates, discarded, sessions_lost } = &self.counters;
        serde_json::json!({
            "state": self.describe(), "up": self.is_up(), "paused": self.is_blocked(),
            "received": received, "duplicates": duplicates, "discarded": discarded, "sessions-lost": sessions_lost,
        })
    }

    /// Whether a connection is not read because the spool is at its bound.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        match &self.side {
            Side::Broker(broker) => broker.paused,
            Side::Port(port) => !port.blocked.is_empty(),
        }
    }

    /// Takes in what arrived; `judge` says what to do with each message. `now_ms` is unix time in ms.
    ///
    /// # Errors
    /// The spool failed (final): nothing more may be acknowledged.
    pub fn receive(
        &mut self,
        spool: &mut Spool,
        now: Instant,
        now_ms: u64,
        judge: &mut dyn FnMut(&Message) -> Verdict,
    ) -> Result<(), spool::Error> {
        loop {
            match &mut self.side {
                Side::Broker(broker) => {
                    broker.subscribe_if_due(spool);
                    let Some(event) = broker.client.next_event() else { return Ok(()) };
                    self.broker_event(event, spool, now, now_ms, judge)?;
                }
                Side::Port(port) => {
                    port.accept_if_due(spool, now);
                    let Some(event) = port.ingest.next_event() else { return Ok(()) };
                    self.port_event(event, spool, now, now_ms, judge)?;
                }
            }
        }
    }

    fn broker_event(
        &mut self,
        event: ClientEvent,
        spool: &mut Spool,
        now: Instant,
        now_ms: u64,
        judge: &mut dyn FnMut(&Message) -> Verdict,
    ) -> Result<(), spool::Error> {
        let Side::Broker(broker) = &mut self.side else { return Ok(()) };
        let from = Origin { conn: broker.conn, source: BROKER };
        match event {
            ClientEvent::Connected { session_present, .. } => {
                broker.conn += 1;
                broker.link.up(now);
                if !session_present {
                    self.counters.sessions_lost += u64::from(broker.subscribed);
                    spool.in_session_lost(BROKER)?;
                }
                // What is subscribed may have changed since the process before us.
                if !session_present || !broker.subscribed {
                    broker.subscribe_at = Some(spool.written());
                }
            }
            ClientEvent::Disconnected { reason, retry_in, error } => {
                broker.disconnected(reason, error, retry_in, now);
                self.intake.closed(from.conn);
            }
            ClientEvent::Publish { pid, message, .. } => {
                self.admit(from, pid, message, spool, now, now_ms, judge)?;
            }
            ClientEvent::Pubrel { pid } => self.intake.pubrel(spool, from, pid)?,
            ClientEvent::Suback { reasons, .. } => broker.subacked(&reasons),
            // Nothing is published from here.
            ClientEvent::Puback { .. }
            | ClientEvent::Pubrec { .. }
            | ClientEvent::Pubcomp { .. }
            | ClientEvent::Writable => {}
        }
        Ok(())
    }

    fn port_event(
        &mut self,
        event: IngestEvent,
        spool: &mut Spool,
        now: Instant,
        now_ms: u64,
        judge: &mut dyn FnMut(&Message) -> Verdict,
    ) -> Result<(), spool::Error> {
        let Side::Port(port) = &mut self.side else { return Ok(()) };
        match event {
            IngestEvent::Connect { conn, source, clean_start, peer, .. } => {
                log::debug!("{source} connects from {peer}");
                if clean_start {
                    spool.in_session_lost(&source)?;
                }
                let known = spool.held(&source).next().is_some();
                port.accepts.push_back((spool.written(), conn, known));
            }
            IngestEvent::Publish { conn, source, pid, message, .. } => {
                let from = Origin { conn: conn.0, source: &source };
                self.admit(from, pid, message, spool, now, now_ms, judge)?;
            }
            IngestEvent::Pubrel { conn, source, pid } => {
                self.intake.pubrel(spool, Origin { conn: conn.0, source: &source }, pid)?;
            }
            IngestEvent::SessionCleared { source } => spool.in_session_lost(&source)?,
            IngestEvent::Closed { conn, source, reason } => {
                log::debug!("{source} is gone: {reason}");
                port.accepts.retain(|(_, waiting, _)| *waiting != conn);
                port.blocked.remove(&conn);
                self.intake.closed(conn.0);
            }
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one message with where it came from, on its way to the spool"
    )]
    fn admit(
        &mut self,
        from: Origin<'_>,
        pid: Option<u16>,
        message: Message,
        spool: &mut Spool,
        now: Instant,
        now_ms: u64,
        judge: &mut dyn FnMut(&Message) -> Verdict,
    ) -> Result<(), spool::Error> {
        self.counters.received += 1;
        if judge(&message) == Verdict::Discard {
            self.counters.discarded += 1;
            self.intake.discard(spool, from, pid, message.qos);
            return Ok(());
        }
        let topic = message.topic.clone();
        match self.intake.publish(spool, from, pid, message, now_ms)? {
            Admission::Stored => {}
            Admission::Duplicate => self.counters.duplicates += 1,
            Admission::Blocked => self.block(from.conn),
            Admission::Dropped => {
                if let Some(more) = self.dropped.event(now) {
                    log::warn!(
                        "the spool is full: a message on {topic:?} is dropped as configured ({more} more)"
                    );
                }
            }
            Admission::TooLarge => {
                if let Some(more) = self.refused.event(now) {
                    log::error!(
                        "a message on {topic:?} is larger than max-record-bytes in [spool]: refused ({more} more)"
                    );
                }
            }
            Admission::HeldFull => {
                if let Some(more) = self.refused.event(now) {
                    log::error!("more QoS 2 handshakes are open than held-max in [spool]: cut ({more} more)");
                }
                self.cut(from.conn, now);
            }
        }
        Ok(())
    }

    fn block(&mut self, conn: u64) {
        match &mut self.side {
            Side::Broker(broker) => broker.pause(true),
            Side::Port(port) => {
                if port.blocked.insert(ConnId(conn)) {
                    port.ingest.pause_client(ConnId(conn), true);
                }
            }
        }
    }

    fn unblock(&mut self, conn: u64) {
        match &mut self.side {
            Side::Broker(broker) => broker.pause(false),
            Side::Port(port) => {
                if port.blocked.remove(&ConnId(conn)) {
                    port.ingest.pause_client(ConnId(conn), false);
                }
            }
        }
    }

    /// Ends a connection that can only be helped by a new one.
    fn cut(&mut self, conn: u64, now: Instant) {
        let why = "too many QoS 2 handshakes are open";
        match &mut self.side {
            Side::Broker(broker) => broker.client.reconnect(0x93, why, now),
            Side::Port(port) => port.ingest.close_client(ConnId(conn), 0x93, why),
        }
    }

    /// Sends the acknowledgements that are due, and reads on where room was found.
    ///
    /// # Errors
    /// The spool failed (final).
    pub fn acknowledge(&mut self, spool: &mut Spool) -> Result<(), spool::Error> {
        while let Some(conn) = self.intake.next_unblocked(spool)? {
            self.unblock(conn);
        }
        while let Some(Ack { conn, kind, pid, reason }) = self.intake.next_ack(spool) {
            match (&mut self.side, kind) {
                (Side::Broker(broker), AckKind::Puback) => broker.client.puback(pid, reason),
                (Side::Broker(broker), AckKind::Pubrec) => broker.client.pubrec(pid, reason),
                (Side::Broker(broker), AckKind::Pubcomp) => broker.client.pubcomp(pid),
                (Side::Port(port), AckKind::Puback) => port.ingest.puback(ConnId(conn), pid, reason),
                (Side::Port(port), AckKind::Pubrec) => port.ingest.pubrec(ConnId(conn), pid, reason),
                (Side::Port(port), AckKind::Pubcomp) => port.ingest.pubcomp(ConnId(conn), pid),
            }
        }
        Ok(())
    }
}

impl Broker {
    fn pause(&mut self, paused: bool) {
        if self.paused != paused {
            self.paused = paused;
            self.client.pause_reading(paused);
        }
    }

    fn disconnected(&mut self, reason: String, error: DisconnectKind, retry_in: Duration, now: Instant) {
        self.link.down(reason, error, retry_in, now);
        self.subscribe_at = None;
        self.pause(false);
        // A repeated QoS 2 message is told apart by the intake, which compares it with what is held.
        self.client.set_inbound_held(HashSet::new());
    }

    fn subscribe_if_due(&mut self, spool: &Spool) {
        if self.subscribe_at.is_none_or(|ticket| ticket > spool.durable()) {
            return;
        }
        self.subscribe_at = None;
        // Without a connection the next one subscribes.
        if let Err(error) = self.client.subscribe(&self.filters) {
            log::debug!("{}: cannot subscribe: {error}", self.link.name());
        }
    }

    fn subacked(&mut self, reasons: &[u8]) {
        self.subscribed = true;
        for (filter, reason) in self.filters.iter().zip(reasons).filter(|(_, reason)| **reason >= 0x80) {
            let why = format!("the subscription to {:?} is refused: {}", filter.topic, reason_text(*reason));
            log::error!("{}: {why} (0x{reason:02x}); nothing arrives from there", self.link.name());
            self.link.complaint = Some(why);
            self.subscribed = false;
        }
    }
}

impl Port {
    fn accept_if_due(&mut self, spool: &Spool, now: Instant) {
        while self.accepts.front().is_some_and(|(ticket, ..)| *ticket <= spool.durable())
            && let Some((_, conn, known)) = self.accepts.pop_front()
        {
            self.ingest.accept(conn, known, now);
        }
    }
}

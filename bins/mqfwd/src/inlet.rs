//! Where messages come from: a subscription at a broker, or our own ingest port. Hands each message to the spool by
//! way of the intake, and gives back the acknowledgements when they are due.
//!
//! Owns: the connection(s) to the source. Invariants: a message is acknowledged only when the intake says so; while a
//! connection's message waits for room, nothing more is read from it.
//! Never: decides where a message goes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use edge::intake::{Ack, AckKind, Admission, Intake, Origin};
use edge::log::Throttle;
use edge::mqtt::endpoint::Source;
use edge::mqtt::ingest::{ConnId, Ingest, IngestEvent};
use edge::mqtt::{Client, ClientEvent, Filter, Message, Qos, reason_text};
use edge::net::Resolver;
use edge::spool::{self, Spool, Ticket};
use mio::event::Event;
use mio::{Registry, Token};

use crate::core::{HOP, Now};
use crate::lane::Link;
use crate::route::Routes;

/// What happened since the start.
#[derive(Debug, Default, Clone)]
pub struct Counters {
    /// PUBLISH packets received, duplicates included.
    pub received: u64,
    /// QoS 2 packets whose message was stored already.
    pub duplicates: u64,
    /// Messages that no route takes.
    pub unrouted: u64,
    /// Messages that came round in a circle, or passed too many forwarders.
    pub loops: u64,
    /// Times the broker had forgotten our session.
    pub sessions_lost: u64,
}

enum Side {
    Broker(Broker),
    Port(Port),
}

struct Broker {
    client: Client,
    link: Link,
    /// Grows with each connection; tells the intake which acknowledgements are void.
    conn: u64,
    /// Subscribe when this is durable: what an old session held must be forgotten before new ids arrive.
    subscribe_at: Option<Ticket>,
    subscribed: bool,
    paused: bool,
}

struct Port {
    ingest: Ingest,
    /// Clients with a clean start wait here until their old ids are durably forgotten.
    waiting: VecDeque<(Ticket, ConnId)>,
    blocked: usize,
}

/// One source with its intake.
pub struct Inlet {
    side: Side,
    intake: Intake,
    routes: Routes,
    hops_max: usize,
    hop: String,
    refused: Throttle,
    dropped: Throttle,
    unrouted: Throttle,
    /// What happened since the start.
    pub counters: Counters,
}

/// The name of the broker's session in the spool's journal.
const BROKER: &str = "broker";
const MINUTE: Duration = Duration::from_secs(60);

impl Inlet {
    /// Opens the port, or makes the client (which begins to connect with [`Inlet::start`]).
    ///
    /// # Errors
    /// The port's address is in use or can't be listened on.
    pub fn new(
        source: Source,
        routes: Routes,
        hop: String,
        hops_max: usize,
        resolver: &Resolver,
    ) -> Result<Inlet, edge::mqtt::ingest::Error> {
        let side = match source {
            Source::Broker(config) => Side::Broker(Broker {
                link: Link::new(&config),
                client: Client::new(*config, resolver.clone(), fastrand::Rng::new()),
                conn: 0,
                subscribe_at: None,
                subscribed: false,
                paused: false,
            }),
            Source::Listen(config) => {
                Side::Port(Port { ingest: Ingest::bind(*config)?, waiting: VecDeque::new(), blocked: 0 })
            }
        };
        Ok(Inlet {
            side,
            intake: Intake::new(),
            routes,
            hops_max,
            hop,
            refused: Throttle::new(MINUTE),
            dropped: Throttle::new(MINUTE),
            unrouted: Throttle::new(MINUTE),
            counters: Counters::default(),
        })
    }

    /// Begins to connect or to accept.
    ///
    /// # Errors
    /// The poll does not take the listener.
    pub fn start(
        &mut self,
        registry: &Registry,
        listener: Token,
        spool: &Spool,
        now: Instant,
    ) -> std::io::Result<()> {
        match &mut self.side {
            Side::Broker(broker) => {
                broker.client.set_inbound_held(spool.held(BROKER).collect());
                broker.client.start(now);
                Ok(())
            }
            Side::Port(port) => port.ingest.register(registry, listener),
        }
    }

    /// Receives no more; acknowledges what was received until the connection is flushed.
    pub fn stop(&mut self, registry: &Registry, now: Instant) {
        match &mut self.side {
            Side::Broker(broker) => broker.client.stop(now),
            Side::Port(port) => port.ingest.shutdown(registry, now),
        }
    }

    /// Stops or resumes reading, beside what a full spool asks for.
    pub fn pause(&mut self) {
        match &mut self.side {
            Side::Broker(broker) => broker.client.pause_reading(true),
            Side::Port(port) => port.ingest.pause_reading(true),
        }
    }

    /// Whether the token belongs here.
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

    /// A name was resolved.
    pub fn resolved(&mut self, registry: &Registry, now: Instant) {
        if let Side::Broker(broker) = &mut self.side {
            broker.client.resolved(registry, now);
        }
    }

    /// Lets timers fire that are due.
    pub fn timer(&mut self, registry: &Registry, now: Instant) {
        match &mut self.side {
            Side::Broker(broker) => broker.client.timer(registry, now),
            Side::Port(port) => port.ingest.timer(registry, now),
        }
    }

    /// When [`Inlet::timer`] wants to be called.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.side {
            Side::Broker(broker) => broker.client.deadline(),
            Side::Port(port) => port.ingest.deadline(),
        }
    }

    /// Writes what is queued.
    pub fn flush(&mut self, registry: &Registry, now: Instant) {
        match &mut self.side {
            Side::Broker(broker) => broker.client.flush(registry, now),
            Side::Port(port) => port.ingest.flush(registry, now),
        }
    }

    /// The state of the source in words, and whether it is well.
    pub fn describe(&self) -> (String, bool) {
        match &self.side {
            Side::Broker(broker) => (broker.link.describe(), broker.link.is_up()),
            Side::Port(port) => (
                format!("listening on {}, {} clients", port.ingest.config().listen, port.ingest.clients()),
                true,
            ),
        }
    }

    /// Whether reading is paused because the spool is at its bound.
    pub fn is_blocked(&self) -> bool {
        match &self.side {
            Side::Broker(broker) => broker.paused,
            Side::Port(port) => port.blocked > 0,
        }
    }

    /// Takes in what arrived.
    ///
    /// # Errors
    /// The spool failed (final).
    pub fn receive(&mut self, spool: &mut Spool, now: Now) -> Result<(), spool::Error> {
        loop {
            match &mut self.side {
                Side::Broker(broker) => {
                    broker.subscribe_if_due(&self.routes, spool);
                    if broker.paused {
                        return Ok(());
                    }
                    let Some(event) = broker.client.next_event() else { return Ok(()) };
                    self.broker_event(event, spool, now)?;
                }
                Side::Port(port) => {
                    while port.waiting.front().is_some_and(|(ticket, _)| *ticket <= spool.durable())
                        && let Some((_, conn)) = port.waiting.pop_front()
                    {
                        port.ingest.accept(conn, Default::default(), now.mono);
                    }
                    let Some(event) = port.ingest.next_event() else { return Ok(()) };
                    self.port_event(event, spool, now)?;
                }
            }
        }
    }

    fn broker_event(&mut self, event: ClientEvent, spool: &mut Spool, now: Now) -> Result<(), spool::Error> {
        let Side::Broker(broker) = &mut self.side else { return Ok(()) };
        let conn = broker.conn;
        match event {
            ClientEvent::Connected { session_present, .. } => {
                broker.conn += 1;
                broker.link.up(now.mono);
                if !session_present {
                    self.counters.sessions_lost += u64::from(broker.subscribed);
                    spool.in_session_lost(BROKER)?;
                }
                // The routes may have changed since the process before us subscribed.
                if !session_present || !broker.subscribed {
                    broker.subscribe_at = Some(spool.written());
                }
            }
            ClientEvent::Disconnected { reason, retry_in, error } => {
                broker.link.down(reason, error, retry_in, now.mono);
                broker.subscribe_at = None;
                self.intake.closed(conn);
                let Side::Broker(broker) = &mut self.side else { return Ok(()) };
                broker.client.set_inbound_held(spool.held(BROKER).collect());
                broker.set_paused(false);
            }
            ClientEvent::Publish { pid, message, .. } => {
                self.admit(Origin { conn, source: BROKER }, pid, message, spool, now)?;
            }
            ClientEvent::Pubrel { pid } => self.intake.pubrel(spool, Origin { conn, source: BROKER }, pid)?,
            ClientEvent::Suback { reasons, .. } => {
                for (route, reason) in self.routes.iter().zip(reasons).filter(|(_, reason)| *reason >= 0x80) {
                    let why =
                        format!("{:?} is refused: {} (0x{reason:02x})", route.from, reason_text(reason));
                    log::error!("the subscription to {why}");
                    broker.link.complaint = Some(format!("subscription to {why}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn port_event(&mut self, event: IngestEvent, spool: &mut Spool, now: Now) -> Result<(), spool::Error> {
        let Side::Port(port) = &mut self.side else { return Ok(()) };
        match event {
            IngestEvent::Connect { conn, source, clean_start, peer, .. } => {
                log::debug!("{source} connects from {peer}");
                if clean_start && spool.held(&source).next().is_some() {
                    spool.in_session_lost(&source)?;
                    port.waiting.push_back((spool.written(), conn));
                } else {
                    port.ingest.accept(conn, spool.held(&source).collect(), now.mono);
                }
            }
            IngestEvent::Publish { conn, source, pid, message, .. } => {
                self.admit(Origin { conn: conn.0, source: &source }, pid, message, spool, now)?;
            }
            IngestEvent::Pubrel { conn, source, pid } => {
                self.intake.pubrel(spool, Origin { conn: conn.0, source: &source }, pid)?;
            }
            IngestEvent::SessionCleared { source } => spool.in_session_lost(&source)?,
            IngestEvent::Closed { conn, source, reason } => {
                log::debug!("{source} is gone: {reason}");
                let was_blocked = self.intake.is_blocked(conn.0);
                self.intake.closed(conn.0);
                if was_blocked {
                    self.resume();
                }
            }
        }
        Ok(())
    }

    fn admit(
        &mut self,
        from: Origin<'_>,
        pid: Option<u16>,
        message: Message,
        spool: &mut Spool,
        now: Now,
    ) -> Result<(), spool::Error> {
        self.counters.received += 1;
        let hops = message.properties.user.iter().filter(|(key, _)| key == HOP);
        let (count, ours) = hops.fold((0, false), |(n, ours), (_, hop)| (n + 1, ours || *hop == self.hop));
        if ours || count >= self.hops_max {
            self.counters.loops += 1;
            if let Some(more) = self.refused.event(now.mono) {
                let why = if ours {
                    "it passed here before".into()
                } else {
                    format!("it passed {count} forwarders")
                };
                log::warn!("a message on {:?} is thrown away: {why} ({more} more like it)", message.topic);
            }
            return self.discard(from, pid, message.qos, spool);
        }
        if !self.routes.takes(&message.topic) {
            self.counters.unrouted += 1;
            if let Some(more) = self.unrouted.event(now.mono) {
                log::info!("no [[route]] takes {:?}: thrown away ({more} more like it)", message.topic);
            }
            return self.discard(from, pid, message.qos, spool);
        }
        let topic = message.topic.clone();
        match self.intake.publish(spool, from, pid, message, now.unix_ms)? {
            Admission::Stored => {}
            Admission::Duplicate => self.counters.duplicates += 1,
            Admission::Blocked => self.block(),
            Admission::Dropped => {
                if let Some(more) = self.dropped.event(now.mono) {
                    log::warn!(
                        "the spool is full: a message on {topic:?} is dropped as configured ({more} more)"
                    );
                }
            }
            Admission::TooLarge => {
                if let Some(more) = self.refused.event(now.mono) {
                    log::error!(
                        "a message on {topic:?} is larger than max-record-bytes in [spool] and is refused ({more} more)"
                    );
                }
            }
        }
        Ok(())
    }

    /// Acknowledges, in its turn, what nobody wants.
    fn discard(
        &mut self,
        from: Origin<'_>,
        pid: Option<u16>,
        qos: Qos,
        spool: &mut Spool,
    ) -> Result<(), spool::Error> {
        match pid {
            Some(_pid) => {
                let _ = (&from, qos, &spool);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn block(&mut self) {
        match &mut self.side {
            Side::Broker(broker) => broker.set_paused(true),
            Side::Port(port) => {
                port.blocked += 1;
                port.ingest.pause_reading(true);
            }
        }
    }

    fn resume(&mut self) {
        match &mut self.side {
            Side::Broker(broker) => broker.set_paused(false),
            Side::Port(port) => {
                port.blocked = port.blocked.saturating_sub(1);
                if port.blocked == 0 {
                    port.ingest.pause_reading(false);
                }
            }
        }
    }

    /// Sends the acknowledgements that are due, and resumes what found room.
    ///
    /// # Errors
    /// The spool failed (final).
    pub fn acknowledge(&mut self, spool: &mut Spool) -> Result<(), spool::Error> {
        while self.intake.next_unblocked(spool)?.is_some() {
            self.resume();
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
    fn set_paused(&mut self, paused: bool) {
        if self.paused != paused {
            self.paused = paused;
            self.client.pause_reading(paused);
        }
    }

    fn subscribe_if_due(&mut self, routes: &Routes, spool: &Spool) {
        if self.subscribe_at.is_none_or(|ticket| ticket > spool.durable()) {
            return;
        }
        let filter = |topic: &str, qos| Filter {
            topic: topic.to_owned(),
            qos,
            no_local: true,
            retain_as_published: true,
        };
        let filters: Vec<Filter> = routes.iter().map(|route| filter(&route.from, route.qos)).collect();
        match self.client.subscribe(&filters) {
            Ok(_) => {
                self.subscribe_at = None;
                self.subscribed = true;
            }
            Err(error) => log::debug!("cannot subscribe yet: {error}"),
        }
    }
}

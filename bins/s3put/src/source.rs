//! Where messages come from: a broker we subscribe at, or publishers at our own port. Both end in the spool.
//!
//! Owns: the connection(s), the subscription, and the order of acknowledgements ([`Intake`]). Invariants: nothing at
//! QoS 1 or 2 is acknowledged before its record is on disk; when the spool has no room, the sockets are not read.

use std::collections::{BTreeSet, HashSet};
use std::time::Instant;

use edge::intake::{Ack, AckKind, Admission, Intake, Origin};
use edge::mqtt::endpoint::Source;
use edge::mqtt::ingest::{ConnId, Ingest, IngestEvent};
use edge::mqtt::{Client, ClientEvent, Filter, reason_text};
use edge::net::Resolver;
use edge::spool::{self, Spool, Ticket};
use mio::event::Event;
use mio::{Registry, Token};
use serde_json::{Value, json};

/// Where messages come from.
#[derive(Debug)]
pub struct Input {
    end: End,
    intake: Intake,
    received: u64,
    duplicates: u64,
    sessions_lost: u64,
}

#[derive(Debug)]
enum End {
    Broker(Box<Broker>),
    Port(Box<Port>),
}

#[derive(Debug)]
struct Broker {
    client: Client,
    filters: Vec<Filter>,
    /// Whose packet ids these are: stable over restarts.
    name: String,
    /// Number of the current connection.
    conn: u64,
    subscribed: bool,
    refused: Vec<String>,
    why_down: String,
    paused: bool,
}

#[derive(Debug)]
struct Port {
    ingest: Ingest,
    name: String,
    /// Clients whose CONNECT waits for the disk.
    accepts: Vec<(ConnId, String, Ticket)>,
    blocked: BTreeSet<u64>,
}

impl Input {
    /// Opens the port, or prepares the connection.
    ///
    /// # Errors
    /// The port's address can't be had.
    pub fn open(
        source: Source,
        filters: Vec<Filter>,
        resolver: Resolver,
        registry: &Registry,
        listener: Token,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let end = match source {
            Source::Broker(config) => {
                let name = format!("{}@{}:{}", config.client_id, config.host, config.port);
                let client = Client::new(*config, resolver, fastrand::Rng::new());
                End::Broker(Box::new(Broker {
                    client,
                    filters,
                    name,
                    conn: 1,
                    subscribed: false,
                    refused: Vec::new(),
                    why_down: "not connected yet".into(),
                    paused: false,
                }))
            }
            Source::Listen(config) => {
                let name = config.listen.clone();
                let mut ingest = Ingest::bind(*config)?;
                ingest.register(registry, listener)?;
                End::Port(Box::new(Port { ingest, name, accepts: Vec::new(), blocked: BTreeSet::new() }))
            }
        };
        Ok(Self { end, intake: Intake::new(), received: 0, duplicates: 0, sessions_lost: 0 })
    }

    /// Begins to connect.
    pub fn start(&mut self, spool: &Spool, now: Instant) {
        if let End::Broker(broker) = &mut self.end {
            broker.client.set_inbound_held(spool.held(&broker.name).collect());
            broker.client.start(now);
        }
    }

    /// Says goodbye: nothing more is received.
    pub fn stop(&mut self, registry: &Registry, now: Instant) {
        match &mut self.end {
            End::Broker(broker) => broker.client.stop(now),
            End::Port(port) => port.ingest.shutdown(registry, now),
        }
        self.flush(registry, now);
    }

    /// Whether an event is for [`Input::ready`].
    pub fn owns(&self, token: Token) -> bool {
        match &self.end {
            End::Broker(broker) => broker.client.owns(token),
            End::Port(port) => port.ingest.owns(token),
        }
    }

    /// A socket is ready.
    pub fn ready(&mut self, registry: &Registry, event: &Event, now: Instant) {
        match &mut self.end {
            End::Broker(broker) => broker.client.ready(registry, event, now),
            End::Port(port) => port.ingest.ready(registry, event, now),
        }
    }

    /// The waker fired: perhaps a name was resolved.
    pub fn resolved(&mut self, registry: &Registry, now: Instant) {
        if let End::Broker(broker) = &mut self.end {
            broker.client.resolved(registry, now);
        }
    }

    /// When [`Input::timer`] is to be called.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.end {
            End::Broker(broker) => broker.client.deadline(),
            End::Port(port) => port.ingest.deadline(),
        }
    }

    /// The deadline has passed.
    pub fn timer(&mut self, registry: &Registry, now: Instant) {
        match &mut self.end {
            End::Broker(broker) => broker.client.timer(registry, now),
            End::Port(port) => port.ingest.timer(registry, now),
        }
    }

    /// Writes what was queued.
    pub fn flush(&mut self, registry: &Registry, now: Instant) {
        match &mut self.end {
            End::Broker(broker) => broker.client.flush(registry, now),
            End::Port(port) => port.ingest.flush(registry, now),
        }
    }

    /// Takes in what arrived and answers what is on disk.
    ///
    /// # Errors
    /// The spool failed (final): nothing more may be acknowledged.
    pub fn turn(&mut self, spool: &mut Spool, now: Instant, now_ms: u64) -> Result<(), spool::Error> {
        loop {
            let more = match &mut self.end {
                End::Broker(broker) => match broker.client.next_event() {
                    None => false,
                    Some(event) => {
                        self.client_event(event, spool, now_ms)?;
                        true
                    }
                },
                End::Port(port) => match port.ingest.next_event() {
                    None => false,
                    Some(event) => {
                        self.ingest_event(event, spool, now_ms)?;
                        true
                    }
                },
            };
            if !more {
                break;
            }
        }
        while let Some(conn) = self.intake.next_unblocked(spool)? {
            self.unblock(conn);
        }
        while let Some(ack) = self.intake.next_ack(spool) {
            self.answer(ack);
        }
        self.accept(spool, now);
        Ok(())
    }

    fn client_event(
        &mut self,
        event: ClientEvent,
        spool: &mut Spool,
        now_ms: u64,
    ) -> Result<(), spool::Error> {
        let End::Broker(broker) = &mut self.end else { return Ok(()) };
        match event {
            ClientEvent::Connected { session_present, .. } => {
                broker.why_down.clear();
                let name = &broker.name;
                log::info!(
                    "source {name}: connected{}",
                    if session_present { ", the session goes on" } else { "" }
                );
                if !session_present {
                    self.sessions_lost += 1;
                    spool.in_session_lost(name)?;
                }
                if !session_present || !broker.subscribed {
                    broker.subscribe();
                }
            }
            ClientEvent::Disconnected { reason, retry_in, .. } => {
                log::warn!(
                    "source {}: {reason}; next attempt in {:.1} s",
                    broker.name,
                    retry_in.as_secs_f64()
                );
                broker.why_down = reason;
                self.intake.closed(broker.conn);
                broker.conn += 1;
                broker.pause(false);
                broker.client.set_inbound_held(spool.held(&broker.name).collect());
            }
            ClientEvent::Publish { pid, message, .. } => {
                let from = Origin { conn: broker.conn, source: &broker.name };
                let admission = self.intake.publish(spool, from, pid, message, now_ms)?;
                if admission == Admission::Blocked {
                    broker.pause(true);
                }
                self.count(admission);
            }
            ClientEvent::Pubrel { pid } => {
                let from = Origin { conn: broker.conn, source: &broker.name };
                self.intake.pubrel(spool, from, pid)?;
            }
            ClientEvent::Suback { reasons, .. } => broker.subacked(&reasons),
            // Nothing is published from here.
            ClientEvent::Puback { .. }
            | ClientEvent::Pubrec { .. }
            | ClientEvent::Pubcomp { .. }
            | ClientEvent::Writable => {}
        }
        Ok(())
    }

    fn ingest_event(
        &mut self,
        event: IngestEvent,
        spool: &mut Spool,
        now_ms: u64,
    ) -> Result<(), spool::Error> {
        let End::Port(port) = &mut self.end else { return Ok(()) };
        match event {
            IngestEvent::Connect { conn, source, clean_start, peer, .. } => {
                log::info!("source {source}: connects from {peer}");
                if clean_start {
                    spool.in_session_lost(&source)?;
                }
                // What is held, or forgotten, has to be on disk before CONNACK tells the client to rely on it.
                port.accepts.push((conn, source, spool.written()));
            }
            IngestEvent::Publish { conn, source, pid, message, .. } => {
                let from = Origin { conn: conn.0, source: &source };
                let admission = self.intake.publish(spool, from, pid, message, now_ms)?;
                if admission == Admission::Blocked && pid.is_some() {
                    port.blocked.insert(conn.0);
                    port.ingest.pause_reading(true);
                }
                self.count(admission);
            }
            IngestEvent::Pubrel { conn, source, pid } => {
                self.intake.pubrel(spool, Origin { conn: conn.0, source: &source }, pid)?;
            }
            IngestEvent::SessionCleared { source } => spool.in_session_lost(&source)?,
            IngestEvent::Closed { conn, source, reason } => {
                log::info!("source {source}: gone: {reason}");
                self.intake.closed(conn.0);
                port.accepts.retain(|(waiting, ..)| *waiting != conn);
                self.unblock(conn.0);
            }
        }
        Ok(())
    }

    fn count(&mut self, admission: Admission) {
        match admission {
            Admission::Stored | Admission::Blocked => self.received += 1,
            Admission::Duplicate => self.duplicates += 1,
            // The spool counts these.
            Admission::Dropped | Admission::TooLarge | Admission::HeldFull => {}
        }
    }

    fn accept(&mut self, spool: &Spool, now: Instant) {
        let End::Port(port) = &mut self.end else { return };
        let durable = spool.durable();
        let (ready, waiting) =
            std::mem::take(&mut port.accepts).into_iter().partition(|(.., at)| *at <= durable);
        port.accepts = waiting;
        for (conn, source, _) in ready {
            let held: HashSet<u16> = spool.held(&source).collect();
            port.ingest.accept(conn, held, now);
        }
    }

    fn unblock(&mut self, conn: u64) {
        match &mut self.end {
            End::Broker(broker) if broker.conn == conn => broker.pause(false),
            End::Broker(_) => {}
            End::Port(port) => {
                port.blocked.remove(&conn);
                if port.blocked.is_empty() {
                    port.ingest.pause_reading(false);
                }
            }
        }
    }

    fn answer(&mut self, ack: Ack) {
        let Ack { conn, kind, pid, reason } = ack;
        match (&mut self.end, kind) {
            (End::Broker(broker), _) if broker.conn != conn => {}
            (End::Broker(broker), AckKind::Puback) => broker.client.puback(pid, reason),
            (End::Broker(broker), AckKind::Pubrec) => broker.client.pubrec(pid, reason),
            (End::Broker(broker), AckKind::Pubcomp) => broker.client.pubcomp(pid),
            (End::Port(port), AckKind::Puback) => port.ingest.puback(ConnId(conn), pid, reason),
            (End::Port(port), AckKind::Pubrec) => port.ingest.pubrec(ConnId(conn), pid, reason),
            (End::Port(port), AckKind::Pubcomp) => port.ingest.pubcomp(ConnId(conn), pid),
        }
    }

    /// Whether messages can arrive, and why not.
    pub fn state(&self) -> (bool, String) {
        match &self.end {
            End::Broker(broker) => match (broker.client.is_connected(), broker.refused.first()) {
                (true, None) => (true, String::new()),
                (true, Some(refused)) => (true, refused.clone()),
                (false, _) => (false, broker.why_down.clone()),
            },
            End::Port(_) => (true, String::new()),
        }
    }

    /// For people: `broker x` or `port x`.
    pub fn name(&self) -> &str {
        match &self.end {
            End::Broker(broker) => &broker.name,
            End::Port(port) => &port.name,
        }
    }

    /// Messages received, duplicates of QoS 2, sessions that the broker had lost.
    pub fn counts(&self) -> [u64; 3] {
        [self.received, self.duplicates, self.sessions_lost]
    }

    /// For `/status`.
    pub fn status(&self) -> Value {
        let (up, why) = self.state();
        let (mode, clients, paused) = match &self.end {
            End::Broker(broker) => ("subscribe", usize::from(up), broker.paused),
            End::Port(port) => ("listen", port.ingest.clients(), !port.blocked.is_empty()),
        };
        json!({
            "mode": mode,
            "name": self.name(),
            "up": up,
            "why": why,
            "clients": clients,
            "paused": paused,
            "received": self.received,
            "duplicates": self.duplicates,
            "sessions-lost": self.sessions_lost,
        })
    }
}

impl Broker {
    fn subscribe(&mut self) {
        match self.client.subscribe(&self.filters) {
            Ok(_) => {}
            // The connection is gone again; the next one subscribes.
            Err(error) => log::warn!("source {}: can't subscribe: {error}", self.name),
        }
    }

    fn subacked(&mut self, reasons: &[u8]) {
        self.subscribed = true;
        self.refused.clear();
        for (filter, reason) in self.filters.iter().zip(reasons) {
            if *reason >= 0x80 {
                self.subscribed = false;
                let text =
                    format!("the subscription to {:?} was refused: {}", filter.topic, reason_text(*reason));
                log::error!("source {}: {text}; nothing will arrive from there", self.name);
                self.refused.push(text);
            }
        }
    }

    fn pause(&mut self, pause: bool) {
        if pause != self.paused {
            self.paused = pause;
            self.client.pause_reading(pause);
        }
    }
}

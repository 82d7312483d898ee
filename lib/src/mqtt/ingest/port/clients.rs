//! The connections of an ingest port, from the first byte to the last: admission, reading and writing, CONNECT, and
//! the end with its will and its session.

use std::time::{Duration, Instant};

use mio::{Interest, Registry, net::TcpStream};

use super::{
    ACCEPT_BUDGET, CLIENT_ID_BYTES_MAX, Client, Ingest, LINGER, Lingering, READ_BUDGET, STRANGERS_MAX,
    Session, Timer,
};
use crate::{
    mqtt::{
        Version,
        control::Connect,
        ingest::{
            ConnId, IngestEvent,
            peer::{Limits, Peer, PeerEvent},
        },
    },
    net::{self, InBuf, ReadOutcome, Stream, Tokens},
};

impl Ingest {
    pub(super) fn ack(&mut self, conn: ConnId, packet: u8, pid: u16, reason: u8) {
        let token = conn.0 as usize;
        if let Some(client) = self.clients.get_mut(&token) {
            let was_stuck = !client.peer.may_deliver(self.paused);
            client.peer.ack(packet, pid, reason);
            if was_stuck {
                self.resume(token);
            } else {
                self.list(token);
            }
        }
    }

    pub(super) fn accept_new(&mut self, registry: &Registry, now: Instant) {
        for _ in 0..ACCEPT_BUDGET {
            let Some(listener) = &self.listener else { return };
            let Some((socket, address)) = self.accepts.next(now, || listener.accept()) else { return };
            if self.clients.len() >= self.cfg.max_clients + STRANGERS_MAX {
                log::warn!("ingest: {address} turned away: {} connections are open", self.clients.len());
            } else if let Err(error) = self.admit(registry, socket, address, now) {
                log::info!("ingest: {address}: {error}");
            }
        }
        self.accepts.again(now);
    }

    pub(super) fn admit(
        &mut self,
        registry: &Registry,
        mut socket: TcpStream,
        address: std::net::SocketAddr,
        now: Instant,
    ) -> Result<(), net::Error> {
        net::tune(&socket)?;
        let token = Tokens::next();
        registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
        let stream = match &self.cfg.tls {
            None => Stream::plain(socket),
            Some(tls) => Stream::tls_server(socket, tls)?,
        };
        let limits = Limits {
            packet_bytes: self.cfg.max_packet_bytes,
            unacked: self.cfg.max_unacked,
            out_bytes: self.cfg.out_buffer_bytes,
        };
        let client = Client {
            stream,
            peer: Peer::new(limits),
            input: InBuf::default(),
            starved: true,
            queued: false,
            ended: None,
            address: address.to_string(),
            client_id: String::new(),
            assigned: false,
            clean_start: true,
            known: false,
            last_received: now,
            connect_until: Some(now + self.cfg.connect_timeout),
        };
        self.clients.insert(token.0, client);
        self.arm(token.0);
        self.service(token.0, now);
        Ok(())
    }

    /// Reads and writes as far as socket and bounds allow.
    pub(super) fn service(&mut self, token: usize, now: Instant) {
        let paused = self.paused;
        let Some(client) = self.clients.get_mut(&token) else { return self.linger(token) };
        if client.ended.is_some() {
            return self.activate(token);
        }
        let was_stuck = client.peer.is_up() && !client.peer.may_deliver(paused);
        let room = client.starved || client.input.len() < READ_BUDGET;
        if room && client.peer.may_deliver(paused) {
            let before = client.input.len();
            let outcome = client.stream.read(&mut client.input, READ_BUDGET);
            if client.input.len() > before {
                client.last_received = now;
                client.starved = false;
            }
            client.ended = match outcome {
                Ok(ReadOutcome::Drained | ReadOutcome::More) => None,
                Ok(ReadOutcome::Eof) => Some("it closed the connection without DISCONNECT".into()),
                Err(error) => Some(format!("the connection broke: {error}")),
            };
        }
        if let Err(error) = client.stream.flush(&mut client.peer.out) {
            client.ended.get_or_insert(format!("the connection broke: {error}"));
        }
        let may_deliver = client.peer.may_deliver(paused);
        if was_stuck && may_deliver {
            // The client reads its acknowledgements again.
            return self.resume(token);
        }
        if client.ended.is_some() || (!client.starved && may_deliver) {
            self.activate(token);
        }
    }

    pub(super) fn service_todo(&mut self, now: Instant) {
        for token in std::mem::take(&mut self.todo) {
            self.service(token, now);
        }
    }

    /// Has it read and written at the end of the turn.
    pub(super) fn list(&mut self, token: usize) {
        if self.todo.last() != Some(&token) && !self.todo.contains(&token) {
            self.todo.push(token);
        }
    }

    pub(super) fn activate(&mut self, token: usize) {
        if let Some(client) = self.clients.get_mut(&token)
            && !client.queued
        {
            client.queued = true;
            self.active.push_back(token);
        }
    }

    pub(super) fn wake(&mut self, token: usize) {
        self.list(token);
        self.activate(token);
    }

    /// Reading may go on after a pause; the time of the pause is not the client's silence.
    pub(super) fn resume(&mut self, token: usize) {
        if let (Some(client), Some(now)) = (self.clients.get_mut(&token), self.now) {
            client.last_received = now;
        }
        self.arm(token);
        self.wake(token);
    }

    /// Understands up to one event of this client.
    pub(super) fn step(&mut self, token: usize) {
        let Some(client) = self.clients.get_mut(&token) else {
            self.active.retain(|t| *t != token);
            return;
        };
        match client.peer.step(&mut client.input, self.paused) {
            Ok(Some(event)) => self.event(token, event),
            Err(reason) => self.close(token, reason),
            Ok(None) => {
                client.starved = client.peer.may_deliver(self.paused);
                client.queued = false;
                let more = client.starved && client.stream.is_readable();
                let unsent = !client.peer.out.is_empty() && client.stream.is_writable();
                let ended = client.ended.take();
                self.active.retain(|t| *t != token);
                match ended {
                    Some(reason) => self.close(token, reason),
                    None if more || unsent => self.list(token),
                    None => {}
                }
            }
        }
    }

    pub(super) fn event(&mut self, token: usize, event: PeerEvent) {
        let conn = ConnId(token as u64);
        match event {
            PeerEvent::Connect(connect) => self.connect(token, *connect),
            PeerEvent::Disconnect => self.close(token, "it said goodbye".into()),
            PeerEvent::Publish { pid, dup, message } => {
                let source = self.source_of(token);
                self.events.push_back(IngestEvent::Publish { conn, source, pid, dup, message });
            }
            PeerEvent::Pubrel { pid } => {
                let source = self.source_of(token);
                self.events.push_back(IngestEvent::Pubrel { conn, source, pid });
            }
        }
    }

    pub(super) fn source_of(&self, token: usize) -> String {
        self.clients.get(&token).map(|client| source(&client.client_id)).unwrap_or_default()
    }

    pub(super) fn connect(&mut self, token: usize, connect: Connect) {
        if let Some((code, why)) = self.refusal(&connect) {
            let Some(client) = self.clients.get_mut(&token) else { return };
            log::warn!("ingest: client {:?} at {} refused: {why}", connect.client_id, client.address);
            client.peer.refuse(code);
            return self.close(token, why.into());
        }
        let assigned = connect.client_id.is_empty();
        let client_id =
            if assigned { format!("auto-{:016x}", fastrand::u64(..)) } else { connect.client_id.clone() };
        let old = self.sessions.get(&client_id).and_then(|session| session.connected);
        if let Some(old) = old.filter(|old| *old != token)
            && let Some(client) = self.clients.get_mut(&old)
        {
            client.peer.end(0x8e);
            self.close(old, "another connection took over with the same client id".into());
        }
        let Some(client) = self.clients.get_mut(&token) else { return };
        (client.client_id, client.assigned, client.clean_start) = (client_id, assigned, connect.clean_start);
        self.events.push_back(IngestEvent::Connect {
            conn: ConnId(token as u64),
            source: source(&client.client_id),
            clean_start: connect.clean_start,
            peer: client.address.clone(),
            version: connect.version,
        });
        self.timers.cancel(&Timer::Session(client.client_id.clone()));
        let session = Session { connected: Some(token), expires: None };
        client.known = self.sessions.insert(client.client_id.clone(), session).is_some();
        self.bound_sessions();
    }

    /// Why this CONNECT is not taken.
    pub(super) fn refusal(&self, connect: &Connect) -> Option<(u8, &'static str)> {
        let id = &connect.client_id;
        let replaces = self.sessions.get(id).is_some_and(|session| session.connected.is_some());
        if connect.auth_method {
            Some((0x8c, "it asks for an authentication method that is unknown here"))
        } else if self.cfg.users.as_ref().is_some_and(|users| {
            !users.check(connect.username.as_deref(), connect.password.as_deref().map(Vec::as_slice))
        }) {
            Some((0x86, "bad user name or password"))
        } else if id.len() > CLIENT_ID_BYTES_MAX || id.chars().any(char::is_control) {
            Some((0x85, "its client id is longer than 256 bytes or contains control characters"))
        } else if id.is_empty() && !connect.clean_start && connect.version == Version::V311 {
            Some((0x85, "it asks for a session without a client id"))
        } else if !replaces && self.clients() >= self.cfg.max_clients {
            Some((0x89, "the number of clients is at its bound (max_clients)"))
        } else {
            None
        }
    }

    /// Ends a connection: its will, its session, its socket.
    pub(super) fn close(&mut self, token: usize, reason: String) {
        let Some(mut client) = self.clients.remove(&token) else { return };
        self.timers.cancel(&Timer::Conn(token));
        self.active.retain(|t| *t != token);
        let conn = ConnId(token as u64);
        if client.client_id.is_empty() {
            log::info!("ingest: {} closed before a session began: {reason}", client.address);
        } else {
            let source = source(&client.client_id);
            if let Some(message) = client.peer.take_will() {
                let source = source.clone();
                self.events.push_back(IngestEvent::Publish { conn, source, pid: None, dup: false, message });
            }
            self.events.push_back(IngestEvent::Closed { conn, source, reason });
            self.end_session(token, &client);
        }
        let lingering =
            Lingering { stream: client.stream, out: std::mem::take(&mut client.peer.out), shut: false };
        if self.lingering.len() < STRANGERS_MAX.max(self.cfg.max_clients)
            && let Some(now) = self.now
        {
            self.lingering.insert(token, lingering);
            self.timers.set(Timer::Conn(token), now + LINGER);
            self.linger(token);
        }
    }

    pub(super) fn end_session(&mut self, token: usize, client: &Client) {
        let Some(session) = self.sessions.get_mut(&client.client_id) else { return };
        if session.connected != Some(token) {
            return;
        }
        session.connected = None;
        match client.peer.session_expiry_s() {
            0 => {
                self.sessions.remove(&client.client_id);
                self.events.push_back(IngestEvent::SessionCleared { source: source(&client.client_id) });
            }
            u32::MAX => {}
            seconds => {
                session.expires = self.now.map(|now| now + Duration::from_secs(seconds.into()));
                self.timers.set_or_cancel(Timer::Session(client.client_id.clone()), session.expires);
            }
        }
    }

    /// Keeps the table of sessions bounded. What is forgotten here is only that the id was seen: the held ids are
    /// the daemon's.
    pub(super) fn bound_sessions(&mut self) {
        let bound = self.cfg.max_clients.saturating_mul(4).saturating_add(STRANGERS_MAX);
        while self.sessions.len() >= bound {
            let Some(id) =
                self.sessions.iter().find(|(_, s)| s.connected.is_none()).map(|(id, _)| id.clone())
            else {
                return;
            };
            self.timers.cancel(&Timer::Session(id.clone()));
            self.sessions.remove(&id);
        }
    }

    /// Writes the last bytes, shuts the own side, and waits for the other's.
    pub(super) fn linger(&mut self, token: usize) {
        let Some(lingering) = self.lingering.get_mut(&token) else { return };
        let flushed = lingering.stream.flush(&mut lingering.out);
        if matches!(flushed, Ok(true)) && !lingering.shut {
            lingering.shut = true;
            lingering.stream.close();
        }
        let mut unread = InBuf::default();
        let done = match lingering.stream.read(&mut unread, READ_BUDGET) {
            Ok(ReadOutcome::Drained) => flushed.is_err(),
            // It goes on sending: it has had its chance.
            Ok(ReadOutcome::More | ReadOutcome::Eof) | Err(_) => true,
        };
        if done {
            self.lingering.remove(&token);
            self.timers.cancel(&Timer::Conn(token));
        }
    }

    /// Sets the timer of a connection if none earlier is set.
    pub(super) fn arm(&mut self, token: usize) {
        let due = self.clients.get(&token).and_then(|client| due(client, self.paused));
        self.timers.set_or_cancel(Timer::Conn(token), due);
    }

    pub(super) fn check_silence(&mut self, token: usize, now: Instant) {
        let Some(client) = self.clients.get_mut(&token) else { return };
        match due(client, self.paused) {
            Some(at) if at <= now => {
                let reason = if client.connect_until.is_some() {
                    client.peer.end(0x80);
                    "no CONNECT in time"
                } else {
                    client.peer.end(0x8d);
                    "nothing heard for one and a half times its keep-alive"
                };
                self.close(token, reason.into());
            }
            at => self.timers.set_or_cancel(Timer::Conn(token), at),
        }
    }
}

/// When this client has been silent for too long; not while it is not read.
fn due(client: &Client, paused: bool) -> Option<Instant> {
    if let Some(until) = client.connect_until {
        // The daemon's time to answer CONNECT is not the client's.
        return if client.client_id.is_empty() { Some(until) } else { None };
    }
    if !client.peer.may_deliver(paused) {
        return None;
    }
    client.peer.silence_max().map(|silence| client.last_received + silence)
}

pub(super) fn source(client_id: &str) -> String {
    format!("client:{client_id}")
}

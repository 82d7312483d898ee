//! The ingest port's sockets: accepting, reading under a budget, timers, sessions by client id. What a packet means is
//! decided in `peer`.
//!
//! Packets are understood only when `next_event` asks for them, one client after the other, so no queue of events
//! grows, and a pause holds at once.

mod clients;

use std::{
    collections::{HashMap, VecDeque},
    io,
    time::{Duration, Instant},
};

use mio::{Interest, Registry, Token, event::Event, net::TcpListener};

use super::{ConnId, Error, IngestConfig, IngestEvent, peer::Peer};
use crate::{
    mqtt::wire::kind,
    net::{self, Accepts, InBuf, OutBuf, Stream},
    timer::Timers,
};

/// One read takes at most this much from a socket, in bytes.
const READ_BUDGET: usize = 64 << 10;
/// Connections that have not said CONNECT yet, beyond `max_clients`.
const STRANGERS_MAX: usize = 16;
/// How long a refused or ended client has to read why.
const LINGER: Duration = Duration::from_secs(1);
/// A longer client id is refused, in bytes: it is kept with every record.
const CLIENT_ID_BYTES_MAX: usize = 256;
/// Events of one client before the next has its turn.
const TURN: u32 = 64;
/// New connections taken in one go.
const ACCEPT_BUDGET: usize = 64;

#[derive(Debug)]
struct Client {
    stream: Stream,
    peer: Peer,
    input: InBuf,
    /// `input` holds no complete packet.
    starved: bool,
    /// It is in `active`.
    queued: bool,
    /// The connection is over; said after what was read before.
    ended: Option<String>,
    address: String,
    /// Empty before CONNECT.
    client_id: String,
    assigned: bool,
    clean_start: bool,
    /// Its session was there before this connection.
    known: bool,
    last_received: Instant,
    /// A time at which `accept` must have brought it beyond CONNECT.
    connect_until: Option<Instant>,
}

/// The last bytes of an ended connection.
#[derive(Debug)]
struct Lingering {
    stream: Stream,
    out: OutBuf,
    shut: bool,
}

/// What is known of a client id.
#[derive(Debug)]
struct Session {
    /// Its connection.
    connected: Option<usize>,
    /// When it is forgotten after the connection ended; `None` = not by time.
    expires: Option<Instant>,
}

/// Keys of the timers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// CONNECT or keep-alive of a connection, or the end of its lingering.
    Conn(usize),
    /// Expiry of the session of a client id.
    Session(String),
}

/// The port and all its clients.
#[derive(Debug)]
pub struct Ingest {
    cfg: IngestConfig,
    listener: Option<TcpListener>,
    listener_token: Option<Token>,
    clients: HashMap<usize, Client>,
    lingering: HashMap<usize, Lingering>,
    sessions: HashMap<String, Session>,
    events: VecDeque<IngestEvent>,
    /// Clients with something to understand, in turn.
    active: VecDeque<usize>,
    turn: u32,
    /// Clients to read from or write to without waiting for an event.
    todo: Vec<usize>,
    timers: Timers<Timer>,
    accepts: Accepts,
    paused: bool,
    now: Option<Instant>,
}

impl Ingest {
    /// Listens. Connections are accepted once [`Ingest::register`] was called.
    ///
    /// # Errors
    /// [`Error::InUse`] and [`Error::Listen`] name the address and what to do.
    pub fn bind(cfg: IngestConfig) -> Result<Ingest, Error> {
        let listener = net::listen(&cfg.listen).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => Error::InUse { listen: cfg.listen.clone() },
            _ => Error::Listen { listen: cfg.listen.clone(), reason: error.to_string() },
        })?;
        let accepts = Accepts::new(format!("ingest on {}", cfg.listen));
        Ok(Ingest {
            cfg,
            listener: Some(listener),
            listener_token: None,
            clients: HashMap::new(),
            lingering: HashMap::new(),
            sessions: HashMap::new(),
            events: VecDeque::new(),
            active: VecDeque::new(),
            turn: 0,
            todo: Vec::new(),
            timers: Timers::new(),
            accepts,
            paused: false,
            now: None,
        })
    }

    /// Registers the listener in the daemon's poll.
    ///
    /// # Errors
    /// What epoll says.
    pub fn register(&mut self, registry: &Registry, listener: Token) -> io::Result<()> {
        self.listener_token = Some(listener);
        match &mut self.listener {
            Some(socket) => registry.register(socket, listener, Interest::READABLE),
            None => Ok(()),
        }
    }

    /// The address in use (with the port that the system chose for port 0).
    ///
    /// # Errors
    /// What the system says; `NotConnected` after `shutdown`.
    pub fn local_addr(&self) -> io::Result<std::net::SocketAddr> {
        self.listener.as_ref().ok_or(io::ErrorKind::NotConnected)?.local_addr()
    }

    /// The configuration it runs with.
    #[must_use]
    pub fn config(&self) -> &IngestConfig {
        &self.cfg
    }

    /// Whether `token` is the listener or one of its clients.
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        self.listener_token == Some(token)
            || self.clients.contains_key(&token.0)
            || self.lingering.contains_key(&token.0)
    }

    /// To be called for each event of an owned token.
    pub fn ready(&mut self, registry: &Registry, event: &Event, now: Instant) {
        self.now = Some(now);
        let token = event.token();
        if self.listener_token == Some(token) {
            self.accept_new(registry, now);
        } else if let Some(client) = self.clients.get_mut(&token.0) {
            client.stream.ready(event);
            self.service(token.0, now);
        } else if let Some(lingering) = self.lingering.get_mut(&token.0) {
            lingering.stream.ready(event);
            self.linger(token.0);
        }
    }

    /// To be called when `deadline` has passed.
    pub fn timer(&mut self, registry: &Registry, now: Instant) {
        self.now = Some(now);
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::Session(id) => {
                    if self.sessions.get(&id).is_some_and(|s| s.connected.is_none()) {
                        self.sessions.remove(&id);
                        self.events.push_back(IngestEvent::SessionCleared { source: clients::source(&id) });
                    }
                }
                Timer::Conn(token) => {
                    self.lingering.remove(&token);
                    self.check_silence(token, now);
                }
            }
        }
        if self.accepts.is_due(now) {
            self.accept_new(registry, now);
        }
        self.service_todo(now);
    }

    /// When `timer` wants to be called; in the past while work is left.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if !self.events.is_empty() || !self.active.is_empty() || !self.todo.is_empty() {
            return self.now;
        }
        self.timers.deadline().into_iter().chain(self.accepts.deadline()).min()
    }

    /// The next event, in order per client.
    pub fn next_event(&mut self) -> Option<IngestEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let token = *self.active.front()?;
            self.turn += 1;
            if self.turn >= TURN {
                self.turn = 0;
                self.active.rotate_left(1);
            }
            self.step(token);
        }
    }

    /// Writes what was queued. To be called once at the end of each turn of the loop.
    pub fn flush(&mut self, _registry: &Registry, now: Instant) {
        self.now = Some(now);
        self.service_todo(now);
    }

    /// Answers [`IngestEvent::Connect`]. `held`: some QoS 2 id of the source is durable and not released. CONNACK says
    /// session-present when the client did not ask for a clean start and there is such an id, or the session is
    /// known from before in this process. A QoS 2 message of an earlier connection comes as `Publish` again: only the
    /// daemon can tell a duplicate from a new message under an id that the client forgot.
    pub fn accept(&mut self, conn: ConnId, held: bool, now: Instant) {
        let token = conn.0 as usize;
        let Some(client) = self.clients.get_mut(&token) else { return };
        let present = !client.clean_start && (client.known || held);
        let assigned = client.assigned.then_some(client.client_id.as_str());
        client.peer.accept(present, assigned);
        client.connect_until = None;
        client.last_received = now;
        self.arm(token);
        self.wake(token);
    }

    /// Acknowledges QoS 1. Unknown connections are ignored here and below: the client sends again.
    /// With 3.1.1 a reason >= 0x80 can't be told: the client takes it for accepted.
    pub fn puback(&mut self, conn: ConnId, pid: u16, reason: u8) {
        self.ack(conn, kind::PUBACK, pid, reason);
    }

    /// Acknowledges the receipt of QoS 2; the id counts as held from now on (reason < 0x80).
    pub fn pubrec(&mut self, conn: ConnId, pid: u16, reason: u8) {
        self.ack(conn, kind::PUBREC, pid, reason);
    }

    /// Completes QoS 2 after the PUBREL was made durable.
    pub fn pubcomp(&mut self, conn: ConnId, pid: u16) {
        self.ack(conn, kind::PUBCOMP, pid, 0);
    }

    /// Back-pressure: while `true` no client is read (new ones are still accepted up to CONNECT), and `next_event`
    /// delivers nothing of what was read.
    pub fn pause_reading(&mut self, pause: bool) {
        if self.paused && !pause {
            let tokens: Vec<usize> = self.clients.keys().copied().collect();
            self.paused = false;
            tokens.into_iter().for_each(|token| self.resume(token));
        }
        self.paused = pause;
    }

    /// The same for one connection.
    pub fn pause_client(&mut self, conn: ConnId, pause: bool) {
        let token = conn.0 as usize;
        if let Some(client) = self.clients.get_mut(&token) {
            client.peer.pause(pause);
            if !pause {
                self.resume(token);
            }
        }
    }

    /// Ends one connection with this MQTT 5 reason; its will is published, and `Closed` follows.
    pub fn close_client(&mut self, conn: ConnId, code: u8, why: &str) {
        let token = conn.0 as usize;
        if let Some(client) = self.clients.get_mut(&token) {
            client.peer.end(code);
            self.close(token, why.to_owned());
        }
    }

    /// Connected clients.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.values().filter(|c| c.peer.is_up()).count()
    }

    /// Stops listening and sends DISCONNECT "server shutting down" (0x8B) to all. Wills are not published then.
    /// Call `flush` after it; connections that have to wait for their socket are closed after a second at most.
    pub fn shutdown(&mut self, registry: &Registry, now: Instant) {
        self.now = Some(now);
        if let Some(mut listener) = self.listener.take() {
            // Dropping it closes it in any case.
            let _ = registry.deregister(&mut listener);
        }
        self.listener_token = None;
        let tokens: Vec<usize> = self.clients.keys().copied().collect();
        for token in tokens {
            if let Some(client) = self.clients.get_mut(&token) {
                client.peer.end(0x8b);
                client.peer.take_will();
                self.close(token, "this program is shutting down".into());
            }
        }
    }
}

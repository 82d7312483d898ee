//! The client shell: one connection to one broker, kept up for ever. It owns the socket, its timers and the
//! buffers; the daemon owns the `Poll`, the messages in flight and the decision to acknowledge.
//!
//! One turn of a daemon's loop:
//!
//! ```ignore
//! poll.poll(&mut events, timeout_until(client.deadline()))?;
//! for event in &events {
//!     if event.token() == WAKER { client.resolved(poll.registry(), now) }
//!     else if client.owns(event.token()) { client.ready(poll.registry(), event, now) }
//! }
//! if client.deadline().is_some_and(|at| at <= now) { client.timer(poll.registry(), now) }
//! while let Some(event) = client.next_event() { … client.puback(pid, 0) … client.publish(Some(pid), false, &m) … }
//! client.flush(poll.registry(), now);     // one write for all that was queued in this turn
//! ```
//!
//! `deadline()` is in the past while there is work left (unread input beyond the budget, output not flushed), so
//! a loop that calls `timer` on time never hangs.
//!
//! Beside the agreed interface: `owns`, `flush`, `release_pid` and `Filter`; `acquire_pid` and the acknowledgement
//! events say when an id becomes free again; `connection` numbers the connections. Packets are understood only when `next_event` asks for them, so that a
//! pause takes effect at once and no queue of events exists.

mod link;

use std::{
    collections::{HashSet, VecDeque},
    net::SocketAddr,
    sync::mpsc,
    time::{Duration, Instant},
};

use mio::{Registry, Token, event::Event};

use super::{
    ClientConfig, ClientEvent, DisconnectKind, Filter, Message, PublishError,
    session::{Fault, Session},
    wire::kind,
};
use crate::{
    net::{self, Connector, InBuf, Resolved, Stream},
    retry::Backoff,
};

/// How far the way to the server is.
#[derive(Debug)]
enum Link {
    /// Not wanted.
    Stopped,
    /// Between two attempts.
    Waiting {
        /// When the next begins.
        until: Instant,
    },
    /// The host's addresses were asked for.
    Resolving {
        /// When that takes too long.
        until: Instant,
    },
    /// TCP.
    Connecting(Connector),
    /// TLS and MQTT.
    Open(Box<Open>),
}

#[derive(Debug)]
struct Open {
    stream: Stream,
    token: Token,
    address: SocketAddr,
    /// CONNACK must have come by then.
    connack_until: Option<Instant>,
}

/// One read takes at most this much from the socket, in bytes.
const READ_BUDGET: usize = 256 << 10;
/// How long `stop` waits for the output to go and for the server to close.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// One connection to one broker. See the module's text for the loop.
#[derive(Debug)]
pub struct Client {
    session: Session,
    link: Link,
    resolver: net::Resolver,
    answers: (mpsc::Sender<Resolved>, mpsc::Receiver<Resolved>),
    /// A question is on its way to the resolver.
    asked: bool,
    backoff: Backoff,
    rng: fastrand::Rng,
    input: InBuf,
    /// `input` holds no complete packet.
    starved: bool,
    /// The connection ended; said after what was read before is delivered.
    ended: Option<Fault>,
    events: VecDeque<ClientEvent>,
    connection: u64,
    /// `stop` was called: when to stop waiting.
    stopping: Option<Instant>,
    /// The time of the last call that brought one.
    now: Option<Instant>,
}

impl Client {
    /// A stopped client. `rng` is for the jitter of the backoff and nothing else.
    #[must_use]
    pub fn new(cfg: ClientConfig, resolver: net::Resolver, rng: fastrand::Rng) -> Client {
        let (min, max, stable) = cfg.backoff;
        Client {
            session: Session::new(cfg),
            link: Link::Stopped,
            resolver,
            answers: mpsc::channel(),
            asked: false,
            backoff: Backoff::new(min, max, stable),
            rng,
            input: InBuf::default(),
            starved: false,
            ended: None,
            events: VecDeque::new(),
            connection: 0,
            stopping: None,
            now: None,
        }
    }

    /// The configuration it runs with.
    #[must_use]
    pub fn config(&self) -> &ClientConfig {
        self.session.config()
    }

    /// Begins to connect (at the next `timer`). Without effect when it runs already.
    pub fn start(&mut self, now: Instant) {
        self.now = Some(now);
        if matches!(self.link, Link::Stopped) {
            self.link = Link::Waiting { until: now };
        }
    }

    /// Ends: what is in the output buffer is written for at most 2 s, then DISCONNECT, then the
    /// `Disconnected { error: Stopped }` event.
    pub fn stop(&mut self, now: Instant) {
        self.now = Some(now);
        if matches!(self.link, Link::Stopped) || self.stopping.is_some() {
            return;
        }
        self.stopping = Some(now + STOP_TIMEOUT);
        if self.session.is_up() && self.ended.is_none() {
            self.session.disconnect(0);
        } else {
            self.ended.get_or_insert_with(link::stopped);
        }
    }

    /// Clean Start of the connections to come: the server forgets the session it had for us.
    pub fn set_clean_start(&mut self, clean: bool) {
        self.session.set_clean_start(clean);
    }

    /// Gives the connection up and makes a new one after the backoff: for a daemon that waits too long for an
    /// acknowledgement, or that can't take more. `code` goes into DISCONNECT (MQTT 5); with 0 the server does
    /// not publish the will. Without a connection it does nothing.
    pub fn reconnect(&mut self, code: u8, why: &str, now: Instant) {
        self.now = Some(now);
        if self.session.is_up() && self.ended.is_none() && self.stopping.is_none() {
            self.session.disconnect(code);
            let fault = Fault { kind: DisconnectKind::Requested, reason: why.to_owned() };
            self.ended = Some(self.name_peer(fault));
        }
    }

    /// Whether `token` belongs to the current socket of this client.
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        match &self.link {
            Link::Connecting(connector) => connector.token() == Some(token),
            Link::Open(open) => open.token == token,
            _ => false,
        }
    }

    /// To be called for each event of an owned token.
    pub fn ready(&mut self, registry: &Registry, event: &Event, now: Instant) {
        self.now = Some(now);
        if !self.owns(event.token()) {
            return;
        }
        match &mut self.link {
            Link::Connecting(_) => self.advance(registry, now),
            Link::Open(open) => {
                open.stream.ready(event);
                self.read(now);
                if event.is_writable() {
                    self.write(now);
                }
            }
            _ => {}
        }
    }

    /// To be called when `deadline` has passed.
    pub fn timer(&mut self, registry: &Registry, now: Instant) {
        self.now = Some(now);
        match &self.link {
            Link::Waiting { until } if now >= *until => self.resolve(registry, now),
            Link::Resolving { until } if now >= *until => {
                let cfg = self.config();
                let reason = format!(
                    "looking up the name {:?} took longer than {} s: check the network and its name server",
                    cfg.host,
                    cfg.connect_timeout.as_secs_f32()
                );
                self.end(DisconnectKind::Resolve, reason);
            }
            Link::Connecting(_) => self.advance(registry, now),
            Link::Open(_) => self.open_timer(now),
            _ => {}
        }
    }

    /// To be called when the resolver's waker fired (for each client that shares it).
    pub fn resolved(&mut self, registry: &Registry, now: Instant) {
        self.now = Some(now);
        while let Ok(answer) = self.answers.1.try_recv() {
            self.asked = false;
            if !matches!(self.link, Link::Resolving { .. }) || self.ended.is_some() {
                continue;
            }
            match answer.addresses {
                Ok(addresses) => self.connect(registry, addresses, now),
                Err(reason) => {
                    let reason = format!(
                        "can't find the host {:?}: {reason}; check the name and the network's name server",
                        self.config().host
                    );
                    self.end(DisconnectKind::Resolve, reason);
                }
            }
        }
    }

    /// Writes what was queued. To be called once at the end of each turn of the loop.
    pub fn flush(&mut self, _registry: &Registry, now: Instant) {
        self.now = Some(now);
        self.write(now);
    }

    /// When `timer` wants to be called; in the past while work is left.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        if !self.events.is_empty() || self.ended.is_some() {
            return self.now;
        }
        match &self.link {
            Link::Stopped => None,
            Link::Waiting { until } | Link::Resolving { until } => Some(*until),
            Link::Connecting(connector) => connector.deadline(),
            Link::Open(open) => {
                let unread = open.stream.is_readable() && self.may_read();
                let unsaid = !self.input.is_empty() && !self.starved && self.session.may_deliver();
                let unsent = !self.session.out.is_empty()
                    && open.stream.is_writable()
                    && !open.stream.is_handshaking();
                if unread || unsaid || unsent {
                    return self.now;
                }
                [open.connack_until, self.session.deadline(), self.stopping].into_iter().flatten().min()
            }
        }
    }

    /// The next event, in order.
    pub fn next_event(&mut self) -> Option<ClientEvent> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        match self.session.step(&mut self.input) {
            Ok(Some(event)) => {
                if let (ClientEvent::Connected { .. }, Link::Open(open)) = (&event, &mut self.link) {
                    open.connack_until = None;
                    self.connection += 1;
                    if let Some(now) = self.now {
                        self.backoff.connected(now);
                    }
                }
                return Some(event);
            }
            Ok(None) => self.starved = self.session.may_deliver(),
            Err(fault) => {
                if fault.kind == DisconnectKind::Protocol {
                    self.session.disconnect(0x82);
                }
                // What the server said last tells more than how the connection broke after it.
                self.ended = Some(self.name_peer(fault));
            }
        }
        let fault = self.ended.take()?;
        Some(self.close(fault))
    }

    /// Whether CONNACK was received and the connection stands.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.session.is_up()
    }

    /// Number of the current or last connection, counted up at each `Connected`; 0 before the first. What the daemon
    /// owes belongs to one connection: acknowledgements that wait for the disk must be dropped with it, because
    /// in a new session the same id may belong to another message.
    #[must_use]
    pub fn connection(&self) -> u64 {
        self.connection
    }

    /// Acknowledges a QoS 1 message. `reason` is sent with MQTT 5 only; >= 0x80 refuses (3.1.1 has no refusal: the
    /// server takes it for accepted). Without a connection this and the next two do nothing: the server sends again.
    pub fn puback(&mut self, pid: u16, reason: u8) {
        self.session.ack(kind::PUBACK, pid, reason);
    }

    /// Acknowledges the receipt of a QoS 2 message. With a reason below 0x80 the id counts as held from now on
    /// and a duplicate of it on this connection is answered here.
    pub fn pubrec(&mut self, pid: u16, reason: u8) {
        self.session.ack(kind::PUBREC, pid, reason);
    }

    /// Completes a QoS 2 message after its PUBREL was made durable.
    pub fn pubcomp(&mut self, pid: u16) {
        self.session.ack(kind::PUBCOMP, pid, 0);
    }

    /// Takes a free packet id for an outgoing message; `None` when all 65535 are taken. It is taken until the
    /// event that ends its exchange was returned by `next_event` (PUBACK, PUBCOMP, PUBREC >= 0x80), or
    /// `release_pid`; a lost connection or session does not free it.
    pub fn acquire_pid(&mut self) -> Option<u16> {
        self.session.pids().acquire()
    }

    /// Takes this id (recovered from the journal). `false` when it is taken already, or 0.
    pub fn reserve_pid(&mut self, pid: u16) -> bool {
        self.session.pids().reserve(pid)
    }

    /// Frees an id whose exchange will not be finished (never sent, dead letter, new session).
    pub fn release_pid(&mut self, pid: u16) {
        self.session.pids().release(pid);
    }

    /// Queues a PUBLISH. `pid` is `Some` exactly for QoS 1 and 2, from `acquire_pid` or `reserve_pid`; `dup` only
    /// for a resend after a reconnect.
    ///
    /// # Errors
    /// See [`PublishError`]; nothing was queued then and the id stays taken.
    pub fn publish(&mut self, pid: Option<u16>, dup: bool, message: &Message) -> Result<(), PublishError> {
        self.session.publish(pid, dup, message)
    }

    /// Queues a PUBREL, also for an id of an earlier connection or process.
    ///
    /// # Errors
    /// [`PublishError::NotConnected`]; a PUBREL is never refused for a full buffer.
    pub fn pubrel(&mut self, pid: u16) -> Result<(), PublishError> {
        self.session.pubrel(pid)
    }

    /// Queues a SUBSCRIBE and returns the id that its [`ClientEvent::Suback`] will carry.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn subscribe(&mut self, filters: &[Filter]) -> Result<u16, PublishError> {
        self.session.subscribe(filters)
    }

    /// The QoS 2 ids of this server that are durably stored and not yet released. To be given before `start` and at
    /// every `Disconnected`. A redelivery (DUP) of such an id is answered with PUBREC at once and not surfaced; without
    /// DUP it is surfaced, for a server that lost its memory may use the id for another message.
    /// An id whose record is not yet on disk must not be in the set: its duplicate comes as `Publish`, to be answered
    /// after the commit. The set is emptied when the server has no session (`session_present: false`), for ids
    /// start anew then.
    pub fn set_inbound_held(&mut self, held: HashSet<u16>) {
        self.session.set_held(held);
    }

    /// Back-pressure: while `true` nothing is read from the socket (no Receive Maximum is ever announced) and
    /// `next_event` delivers nothing of what was read, acknowledgements included; only the end of the connection
    /// is still told. PINGREQ is still sent, but no answer is expected then.
    pub fn pause_reading(&mut self, pause: bool) {
        self.session.pause(pause, self.now);
    }

    /// Room in the output buffer in bytes; 0 without a connection.
    #[must_use]
    pub fn writable_bytes(&self) -> usize {
        self.session.writable_bytes()
    }

    /// Whether a `publish` of usual size would be taken now (connected, room in the buffer, window open).
    #[must_use]
    pub fn can_send(&self) -> bool {
        self.session.is_up() && self.session.window_open() && self.session.writable_bytes() > 0
    }
}

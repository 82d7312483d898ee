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
//! events say when an id becomes free again.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use mio::{Registry, Token, event::Event};

use super::{Message, Qos, Version};
use crate::{config::Secret, net, tls};

/// Everything one client needs to know. Start from [`ClientConfig::new`] and set what differs.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Host name or address literal (without brackets).
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Protocol version; there is no fallback from one to the other.
    pub version: Version,
    /// TLS, or plain TCP.
    pub tls: Option<tls::ClientTls>,
    /// Client identifier: stable across restarts, and used by nobody else at this broker.
    pub client_id: String,
    /// User name.
    pub username: Option<String>,
    /// Password. With 3.1.1 it needs a user name.
    pub password: Option<Secret>,
    /// Keep-alive in seconds asked of the server; 0 turns it off. The server's Server Keep Alive wins.
    pub keep_alive_s: u16,
    /// Session Expiry Interval in seconds (MQTT 5); `u32::MAX` = never. With 3.1.1 the broker decides.
    pub session_expiry_s: u32,
    /// Clean Start on every connect. `false` (the default) resumes the session.
    pub clean_start: bool,
    /// Last will, published by the broker when this client vanishes. May be retained.
    pub will: Option<Message>,
    /// Longest time for the name look-up, and for each address to answer.
    pub connect_timeout: Duration,
    /// Longest time from the TCP connection to CONNACK (TLS handshake included).
    pub connack_timeout: Duration,
    /// Longest time from PINGREQ to any packet of the server.
    pub ping_timeout: Duration,
    /// Shortest and longest delay before a new attempt, and how long a connection must last to start over
    /// with the shortest.
    pub backoff: (Duration, Duration, Duration),
    /// Largest packet taken from the server, in bytes; announced to it with MQTT 5.
    pub max_packet_bytes: u32,
    /// Bound of the output buffer in bytes. `publish` answers [`PublishError::BufferFull`] beyond it; one
    /// message larger than it is taken when the buffer is empty.
    pub out_buffer_bytes: usize,
}

impl ClientConfig {
    /// Defaults: MQTT 5, no TLS, keep-alive 30 s, session kept, timeouts 10/10/10 s, backoff 1 to 120 s (reset
    /// after 60 s), packets to 16 MiB, output buffer 1 MiB.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16, client_id: impl Into<String>) -> ClientConfig {
        ClientConfig {
            host: host.into(),
            port,
            version: Version::V5,
            tls: None,
            client_id: client_id.into(),
            username: None,
            password: None,
            keep_alive_s: 30,
            session_expiry_s: u32::MAX,
            clean_start: false,
            will: None,
            connect_timeout: Duration::from_secs(10),
            connack_timeout: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(10),
            backoff: (Duration::from_secs(1), Duration::from_secs(120), Duration::from_secs(60)),
            max_packet_bytes: 16 << 20,
            out_buffer_bytes: 1 << 20,
        }
    }
}

/// One entry of a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Topic filter; `$share/<group>/<filter>` passes through.
    pub topic: String,
    /// Highest QoS wanted.
    pub qos: Qos,
    /// No Local (MQTT 5; ignored with 3.1.1, and left out for shared subscriptions where it is forbidden, 3.8.3.1).
    pub no_local: bool,
    /// Retain As Published (MQTT 5): keep the publisher's retain flag.
    pub retain_as_published: bool,
}

/// What the server allows, from its CONNACK. 3.1.1 knows no limits: then these are the protocol's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// How many QoS 1 and 2 publishes may be unacknowledged. 65535 if the server says nothing.
    pub receive_maximum: u16,
    /// Largest packet the server takes, in bytes.
    pub max_packet_bytes: Option<u32>,
    /// Highest QoS the server takes.
    pub max_qos: Qos,
    /// Whether it takes retained messages.
    pub retain: bool,
}

/// Why a connection, or the attempt, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisconnectKind {
    /// The host name could not be resolved.
    Resolve,
    /// No address accepted the TCP connection.
    Connect,
    /// The TLS handshake failed (certificate, name, version …).
    Tls,
    /// The server answered CONNECT with this reason (MQTT 5 code; 3.1.1 return codes are mapped to it).
    Refused(u8),
    /// The server sent DISCONNECT with this reason.
    Server(u8),
    /// CONNACK, PINGRESP or the TCP acknowledgement did not come in time.
    Timeout,
    /// The server sent something that is not MQTT.
    Protocol,
    /// Closed or reset by the other side without a word.
    Closed,
    /// [`Client::stop`] was called: nothing follows.
    Stopped,
}

/// What happened. Taken one by one with [`Client::next_event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// CONNACK was good. Without `session_present` the server has forgotten everything: subscribe again, drop the
    /// set of held inbound ids of this server, resend what is in flight as new (DUP clear). With it, resend with DUP
    /// set, PUBREL for what has PUBREC. The held set given to `set_inbound_held` is dropped by itself then.
    Connected {
        /// The server still had the session.
        session_present: bool,
        /// The server's limits.
        limits: PeerLimits,
    },
    /// The connection or the attempt ended; a new attempt begins after `retry_in`.
    Disconnected {
        /// For people: what was tried, on what, why it failed.
        reason: String,
        /// For programs.
        error: DisconnectKind,
        /// Delay before the next attempt; zero after `stop`.
        retry_in: Duration,
    },
    /// A message. `pid` is `Some` for QoS 1 and 2: answer with `puback`/`pubrec` once it is durable, in the order
    /// of receipt. A QoS 2 message whose id came before on this connection and has no PUBREC yet comes again
    /// (with `dup`); the daemon tells it apart by the id.
    Publish {
        /// Packet id.
        pid: Option<u16>,
        /// DUP flag.
        dup: bool,
        /// The message.
        message: Message,
    },
    /// The server released a QoS 2 id: make that durable, then `pubcomp`.
    Pubrel {
        /// Packet id.
        pid: u16,
    },
    /// QoS 1 done (`reason` < 0x80) or refused. The id is free from here on.
    Puback {
        /// Packet id.
        pid: u16,
        /// Reason code.
        reason: u8,
    },
    /// QoS 2 received (`reason` < 0x80: make it durable, then `pubrel`) or refused (the id is free then).
    Pubrec {
        /// Packet id.
        pid: u16,
        /// Reason code.
        reason: u8,
    },
    /// QoS 2 done; 0x92 (id not found) is done as well, the server had it completed before. The id is free.
    Pubcomp {
        /// Packet id.
        pid: u16,
        /// Reason code.
        reason: u8,
    },
    /// Answer to `subscribe`, one reason per filter in order; >= 0x80 is a refusal.
    Suback {
        /// What `subscribe` returned.
        pid: u16,
        /// Granted QoS or refusal per filter.
        reasons: Vec<u8>,
    },
    /// The output buffer has room again after a [`PublishError::BufferFull`].
    Writable,
}

/// Why nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// There is no connection.
    #[error("not connected")]
    NotConnected,
    /// The output buffer is full: go on after [`ClientEvent::Writable`].
    #[error("the output buffer is full")]
    BufferFull,
    /// The server's Receive Maximum is reached: go on after an acknowledgement.
    #[error("the server takes no more than {0} unacknowledged messages")]
    WindowFull(u16),
    /// Larger than the server's Maximum Packet Size (or the protocol's); it would close the connection.
    #[error("the packet has {bytes} bytes and the server takes at most {limit}")]
    TooLarge {
        /// Size of the whole packet.
        bytes: u64,
        /// What the server takes.
        limit: u64,
    },
    /// The server's Maximum QoS is lower.
    #[error("the server takes messages up to QoS {0} only")]
    QosNotSupported(u8),
    /// The server takes no retained messages.
    #[error("the server takes no retained messages")]
    RetainNotSupported,
    /// The message can't be expressed: topic empty, with wildcard or NUL, or a string above 65535 bytes.
    #[error("{0}")]
    Invalid(&'static str),
    /// A packet id is needed for QoS 1 and 2, and none is free or given (or one is given for QoS 0).
    #[error("no packet id")]
    NoPacketId,
}

/// One connection to one broker. See the module's text for the loop.
#[derive(Debug)]
pub struct Client {
    cfg: ClientConfig,
}

impl Client {
    /// A stopped client. `rng` is for the jitter of the backoff and nothing else.
    #[must_use]
    pub fn new(cfg: ClientConfig, resolver: net::Resolver, rng: fastrand::Rng) -> Client {
        let _ = (resolver, rng);
        Client { cfg }
    }

    /// The configuration it runs with.
    #[must_use]
    pub fn config(&self) -> &ClientConfig {
        &self.cfg
    }

    /// Begins to connect (at the next `timer`). Without effect when it runs already.
    pub fn start(&mut self, _now: Instant) {}

    /// Ends: what is in the output buffer is written for at most 2 s, then DISCONNECT, then the
    /// `Disconnected { error: Stopped }` event.
    pub fn stop(&mut self, _now: Instant) {}

    /// Whether `token` belongs to the current socket of this client.
    #[must_use]
    pub fn owns(&self, _token: Token) -> bool {
        false
    }

    /// To be called for each event of an owned token.
    pub fn ready(&mut self, _registry: &Registry, _event: &Event, _now: Instant) {}

    /// To be called when `deadline` has passed.
    pub fn timer(&mut self, _registry: &Registry, _now: Instant) {}

    /// To be called when the resolver's waker fired (for each client that shares it).
    pub fn resolved(&mut self, _registry: &Registry, _now: Instant) {}

    /// Writes what was queued. To be called once at the end of each turn of the loop.
    pub fn flush(&mut self, _registry: &Registry, _now: Instant) {}

    /// When `timer` wants to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The next event, in order.
    pub fn next_event(&mut self) -> Option<ClientEvent> {
        None
    }

    /// Whether CONNACK was received and the connection stands.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        false
    }

    /// Acknowledges a QoS 1 message. `reason` is sent with MQTT 5 only; >= 0x80 refuses. Without a connection
    /// this and the next three do nothing: the server sends again.
    pub fn puback(&mut self, _pid: u16, _reason: u8) {}

    /// Acknowledges the receipt of a QoS 2 message. With a reason below 0x80 the id counts as held from now on
    /// and a duplicate of it on this connection is answered here.
    pub fn pubrec(&mut self, _pid: u16, _reason: u8) {}

    /// Completes a QoS 2 message after its PUBREL was made durable.
    pub fn pubcomp(&mut self, _pid: u16) {}

    /// Takes a free packet id for an outgoing message; `None` when all 65535 are taken. It is taken until the
    /// event that ends its exchange was returned by `next_event` (PUBACK, PUBCOMP, PUBREC >= 0x80), or
    /// `release_pid`; a lost connection or session does not free it.
    pub fn acquire_pid(&mut self) -> Option<u16> {
        None
    }

    /// Takes this id (recovered from the journal). `false` when it is taken already, or 0.
    pub fn reserve_pid(&mut self, _pid: u16) -> bool {
        false
    }

    /// Frees an id whose exchange will not be finished (never sent, dead letter, new session).
    pub fn release_pid(&mut self, _pid: u16) {}

    /// Queues a PUBLISH. `pid` is `Some` exactly for QoS 1 and 2, and taken before with `acquire_pid` or
    /// `reserve_pid`; `dup` only for a resend after a reconnect.
    ///
    /// # Errors
    /// See [`PublishError`]; nothing was queued then and the id stays taken.
    pub fn publish(&mut self, _pid: Option<u16>, _dup: bool, _message: &Message) -> Result<(), PublishError> {
        Err(PublishError::NotConnected)
    }

    /// Queues a PUBREL, also for an id of an earlier connection or process.
    ///
    /// # Errors
    /// [`PublishError::NotConnected`]; a PUBREL is never refused for a full buffer.
    pub fn pubrel(&mut self, _pid: u16) -> Result<(), PublishError> {
        Err(PublishError::NotConnected)
    }

    /// Queues a SUBSCRIBE and returns the id that its [`ClientEvent::Suback`] will carry.
    ///
    /// # Errors
    /// See [`PublishError`].
    pub fn subscribe(&mut self, _filters: &[Filter]) -> Result<u16, PublishError> {
        Err(PublishError::NotConnected)
    }

    /// The QoS 2 ids of this server that are durably stored and not yet released. To be given before `start` and at
    /// every `Disconnected`. A duplicate PUBLISH of such an id is answered with PUBREC at once and not surfaced.
    /// An id whose record is not yet on disk must not be in the set: its duplicate comes as `Publish`, to be answered
    /// after the commit. The set is emptied when the server has no session (`session_present: false`), for ids
    /// start anew then.
    pub fn set_inbound_held(&mut self, _held: HashSet<u16>) {}

    /// Back-pressure: while `true` nothing is read from the socket (no Receive Maximum is ever announced).
    /// What was read already is still delivered. PINGREQ is still sent, but no answer is expected then.
    pub fn pause_reading(&mut self, _pause: bool) {}

    /// Room in the output buffer in bytes; 0 without a connection.
    #[must_use]
    pub fn writable_bytes(&self) -> usize {
        0
    }

    /// Whether a `publish` of usual size would be taken now (connected, room in the buffer, window open).
    #[must_use]
    pub fn can_send(&self) -> bool {
        false
    }
}

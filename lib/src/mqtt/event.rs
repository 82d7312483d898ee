//! What a client is told and what it tells: its configuration, its events, its errors. Plain data.

use std::time::Duration;

use super::{Message, Qos, Version};
use crate::{config::Secret, tls};

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

    /// What of it can't be said in MQTT, for `--check`: a client id, will, user name or password that is too long
    /// or contradicts the rest.
    ///
    /// # Errors
    /// In words.
    pub fn check(&self) -> Result<(), &'static str> {
        super::control::encode_connect(self).map(drop)
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
    /// [`Client::reconnect`](super::Client::reconnect) was called.
    Requested,
    /// [`Client::stop`] was called: nothing follows.
    Stopped,
}

/// What happened. Taken one by one with [`Client::next_event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent {
    /// CONNACK was good. Without `session_present` the server has forgotten everything: drop the set of held inbound
    /// ids of this server durably, and only then subscribe again (the server's ids start anew, and an old held id
    /// must not survive a crash); resend what is in flight as new (DUP clear). With it, resend with DUP
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

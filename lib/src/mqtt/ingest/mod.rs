//! The ingest port: accepts MQTT publishers (5 and 3.1.1 on the same port) and hands their messages to the daemon,
//! which acknowledges once they are durable. It is no broker: SUBSCRIBE is refused with a reason and the
//! connection stays; nothing is ever delivered to a client.
//!
//! A connection begins with [`IngestEvent::Connect`]: the daemon looks up (or durably clears) what it holds for that
//! source and answers [`Ingest::accept`]; only then CONNACK is sent and more is read from the client. This
//! takes the place of a callback, since clearing may have to wait for the disk.
//!
//! A will is published (as [`IngestEvent::Publish`] with `pid: None`) when the client goes without DISCONNECT, or
//! with reason 0x04. The Will Delay Interval is treated as 0, which the specification allows when the session
//! ends, and which is the safe side for a status topic.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use mio::{Registry, Token, event::Event};

use super::{Message, Version};
use crate::tls;

/// One client connection; never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(pub u64);

/// Configuration of the port. Start from [`IngestConfig::new`].
#[derive(Debug, Clone)]
pub struct IngestConfig {
    /// `address:port`, for example `127.0.0.1:1883` or `[::]:8883`.
    pub listen: String,
    /// Clients at once; one more is refused with "server busy".
    pub max_clients: usize,
    /// Largest packet, in bytes; announced to MQTT 5 clients.
    pub max_packet_bytes: u32,
    /// QoS 1 and 2 messages of one client without acknowledgement; at the bound its socket is not read.
    pub max_unacked: usize,
    /// Output buffer of one client in bytes; a client that does not read its acknowledgements is cut at the bound.
    pub out_buffer_bytes: usize,
    /// Longest time from the TCP connection to a complete CONNECT (TLS included).
    pub connect_timeout: Duration,
    /// Who may connect; `None` = everybody.
    pub users: Option<Users>,
    /// TLS, or plain TCP.
    pub tls: Option<tls::ServerTls>,
}

impl IngestConfig {
    /// Defaults: 64 clients, packets to 16 MiB, 1000 unacknowledged, 256 KiB output, 10 s to CONNECT, open to all.
    #[must_use]
    pub fn new(listen: impl Into<String>) -> IngestConfig {
        IngestConfig {
            listen: listen.into(),
            max_clients: 64,
            max_packet_bytes: 16 << 20,
            max_unacked: 1000,
            out_buffer_bytes: 256 << 10,
            connect_timeout: Duration::from_secs(10),
            users: None,
            tls: None,
        }
    }
}

/// User names and passwords of the port.
#[derive(Debug, Clone, Default)]
pub struct Users {}

impl Users {
    /// Reads a file of `name:password` lines, the password in clear or as `mosquitto_passwd` writes it (`$7$…`).
    ///
    /// # Errors
    /// Names the file and the line.
    pub fn load(_path: &std::path::Path) -> Result<Users, Error> {
        Ok(Users {})
    }
}

/// What can go wrong with the port itself (not with one client).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another program has the address.
    #[error(
        "address {listen} is in use by another program (usually an MQTT broker): stop that program, choose another \
         `listen`, or use `mode = \"subscribe\"` to read from the broker"
    )]
    InUse {
        /// The address.
        listen: String,
    },
    /// Any other failure to listen.
    #[error("can't listen on {listen}: {reason}")]
    Listen {
        /// The address.
        listen: String,
        /// Why.
        reason: String,
    },
    /// The user file is bad.
    #[error("user file {path}: {reason}")]
    Users {
        /// The file.
        path: String,
        /// Why, with the line.
        reason: String,
    },
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IngestEvent {
    /// A client with valid credentials sent CONNECT. Answer with [`Ingest::accept`] (later is fine).
    Connect {
        /// The connection.
        conn: ConnId,
        /// `client:<client id>`.
        source: String,
        /// Clean Start: the held set of this source must be durably forgotten before `accept`.
        clean_start: bool,
        /// Address of the client.
        peer: String,
        /// Protocol version.
        version: Version,
    },
    /// A message. `pid` is `Some` for QoS 1 and 2 (answer `puback`/`pubrec` in the order of receipt once durable);
    /// a will has `pid: None` whatever its QoS and wants no answer.
    Publish {
        /// The connection (closed already for a will).
        conn: ConnId,
        /// `client:<client id>`.
        source: String,
        /// Packet id.
        pid: Option<u16>,
        /// DUP flag.
        dup: bool,
        /// The message.
        message: Message,
    },
    /// The client released a QoS 2 id: make that durable, then `pubcomp`.
    Pubrel {
        /// The connection.
        conn: ConnId,
        /// `client:<client id>`.
        source: String,
        /// Packet id.
        pid: u16,
    },
    /// The session of this source ended (Session Expiry over, or zero and the connection closed): forget its ids.
    SessionCleared {
        /// `client:<client id>`.
        source: String,
    },
    /// The connection is gone; acknowledgements for it are dropped from here on.
    Closed {
        /// The connection.
        conn: ConnId,
        /// `client:<client id>`.
        source: String,
        /// For people.
        reason: String,
    },
}

/// The port and all its clients.
#[derive(Debug)]
pub struct Ingest {
    cfg: IngestConfig,
}

impl Ingest {
    /// Listens. Connections are accepted once [`Ingest::register`] was called.
    ///
    /// # Errors
    /// [`Error::InUse`] and [`Error::Listen`] name the address and what to do.
    pub fn bind(cfg: IngestConfig) -> Result<Ingest, Error> {
        Ok(Ingest { cfg })
    }

    /// Registers the listener in the daemon's poll.
    ///
    /// # Errors
    /// What epoll says.
    pub fn register(&mut self, _registry: &Registry, _listener: Token) -> std::io::Result<()> {
        Ok(())
    }

    /// The address in use (with the port that the system chose for port 0).
    ///
    /// # Errors
    /// What the system says.
    pub fn local_addr(&self) -> std::io::Result<std::net::SocketAddr> {
        Err(std::io::ErrorKind::NotFound.into())
    }

    /// The configuration it runs with.
    #[must_use]
    pub fn config(&self) -> &IngestConfig {
        &self.cfg
    }

    /// Whether `token` is the listener or one of its clients.
    #[must_use]
    pub fn owns(&self, _token: Token) -> bool {
        false
    }

    /// To be called for each event of an owned token.
    pub fn ready(&mut self, _registry: &Registry, _event: &Event, _now: Instant) {}

    /// To be called when `deadline` has passed.
    pub fn timer(&mut self, _registry: &Registry, _now: Instant) {}

    /// When `timer` wants to be called; in the past while work is left.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        None
    }

    /// The next event, in order per client.
    pub fn next_event(&mut self) -> Option<IngestEvent> {
        None
    }

    /// Writes what was queued. To be called once at the end of each turn of the loop.
    pub fn flush(&mut self, _registry: &Registry, _now: Instant) {}

    /// Answers [`IngestEvent::Connect`]. `held` are the QoS 2 ids of the source that are durable and not released;
    /// their duplicates are answered here. CONNACK says session-present when the client did not ask for a
    /// clean start and `held` is not empty or the session is known from before in this process.
    pub fn accept(&mut self, _conn: ConnId, _held: HashSet<u16>, _now: Instant) {}

    /// Acknowledges QoS 1. Unknown connections are ignored here and below: the client sends again.
    pub fn puback(&mut self, _conn: ConnId, _pid: u16, _reason: u8) {}

    /// Acknowledges the receipt of QoS 2; the id counts as held from now on (reason < 0x80).
    pub fn pubrec(&mut self, _conn: ConnId, _pid: u16, _reason: u8) {}

    /// Completes QoS 2 after the PUBREL was made durable.
    pub fn pubcomp(&mut self, _conn: ConnId, _pid: u16) {}

    /// Back-pressure: while `true` no client is read (new ones are still accepted up to CONNECT).
    pub fn pause_reading(&mut self, _pause: bool) {}

    /// Connected clients.
    #[must_use]
    pub fn clients(&self) -> usize {
        0
    }

    /// Stops listening and sends DISCONNECT "server shutting down" (0x8B) to all. Wills are not published then.
    /// Call `flush` after it.
    pub fn shutdown(&mut self, _registry: &Registry, _now: Instant) {}
}

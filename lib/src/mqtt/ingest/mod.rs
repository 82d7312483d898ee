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
//! With `shutdown` wills are not published: the clients find their way back.
//!
//! Sessions: an id is known for as long as its Session Expiry says, and as long as this process lives; beyond that the
//! held set of the daemon is what answers session-present. No Receive Maximum is announced: a client with
//! `max_unacked` unanswered messages is not read until the daemon answers.

pub(crate) mod peer;
mod port;
mod users;

use std::time::Duration;

use super::{Message, Version};
use crate::tls;

pub use port::Ingest;
pub use users::Users;

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
    /// Output buffer of one client in bytes; a client that does not read its acknowledgements is not read either.
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

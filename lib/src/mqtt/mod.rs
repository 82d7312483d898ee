//! MQTT 5 and 3.1.1 for the daemons: a reconnecting [`Client`] and an [`ingest`] port, both driven by the
//! daemon's own `mio::Poll`.
//!
//! What it owns: packets (`wire` and the packet layer of `mqtt-protocol-core`), the protocol state of one
//! connection (`session`, `ingest::peer`; both without I/O and clock) and the sockets (`client`, `ingest`).
//!
//! Invariants:
//! - Nothing is acknowledged unless the daemon says so. The one exception is a QoS 2 redelivery of a packet id
//!   that the daemon itself declared durable (see [`Client::set_inbound_held`]).
//! - What is in flight is the daemon's to remember. No packet is kept here after it was written out, and none is
//!   sent twice by itself.
//! - Whatever the peer sends ends in an event or in a closed connection with a reason, never in a panic, and
//!   nothing is buffered beyond the bounds of the configuration.
//!
//! Of `mqtt-protocol-core` only the packet layer is used, for all packets that are not sent per message. Its
//! `Connection` is not, for three reasons seen in its source: it answers a duplicate QoS 2 PUBLISH with PUBREC at
//! once, also when the first copy is not on disk yet; with a durable session it keeps a copy of every PUBLISH
//! until the acknowledgement; and its send counter underflows when a PUBCOMP arrives for a PUBLISH of an earlier
//! connection.
//!
//! Section numbers in comments ("3.3.1") are those of the MQTT 5 specification.

mod client;
mod control;
pub mod endpoint;
mod event;
#[doc(hidden)]
pub mod fuzz;
pub mod ingest;
mod link;
mod pids;
mod reason;
mod session;
pub mod topic;
mod wire;

pub use client::Client;
pub use event::{ClientConfig, ClientEvent, DisconnectKind, Filter, PeerLimits, PublishError};
pub use link::Link;
pub use reason::reason_text;

/// Quality of service (4.3). Ordered: `AtMostOnce < AtLeastOnce < ExactlyOnce`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Qos {
    /// QoS 0: no acknowledgement.
    #[default]
    AtMostOnce = 0,
    /// QoS 1: PUBACK.
    AtLeastOnce = 1,
    /// QoS 2: PUBREC, PUBREL, PUBCOMP.
    ExactlyOnce = 2,
}

impl Qos {
    /// `0`, `1` or `2`; anything else is `None`.
    #[must_use]
    pub fn from_u8(value: u8) -> Option<Qos> {
        match value {
            0 => Some(Qos::AtMostOnce),
            1 => Some(Qos::AtLeastOnce),
            2 => Some(Qos::ExactlyOnce),
            _ => None,
        }
    }
}

/// Protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// MQTT 3.1.1 (protocol level 4). Carries no [`Properties`], no reason codes and no peer limits.
    V311,
    /// MQTT 5.0 (protocol level 5).
    V5,
}

/// The message properties of MQTT 5 (3.3.2.3) that travel end to end. Dropped when sent over 3.1.1.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// MIME type of the payload.
    pub content_type: Option<String>,
    /// Message Expiry Interval in seconds, counted from the moment of receipt.
    pub expiry_s: Option<u32>,
    /// Payload Format Indicator: `true` says the payload is UTF-8 text.
    pub payload_utf8: Option<bool>,
    /// Response Topic.
    pub response_topic: Option<String>,
    /// Correlation Data.
    pub correlation: Option<Vec<u8>>,
    /// User properties in their order; names may repeat.
    pub user: Vec<(String, String)>,
}

/// One application message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Topic name: 1 to 65535 bytes, without wildcards and without U+0000.
    pub topic: String,
    /// Payload, any bytes.
    pub payload: Vec<u8>,
    /// Quality of service.
    pub qos: Qos,
    /// Retain flag.
    pub retain: bool,
    /// Properties (MQTT 5).
    pub properties: Properties,
}

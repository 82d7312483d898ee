//! What a session goes by, is told, and tells.

use std::time::{Duration, Instant};

use crate::kvs::fragment::Limits;

/// What a session goes by.
#[derive(Clone, Debug)]
pub struct Policy {
    /// How units become fragments.
    pub fragment: Limits,
    /// Tags of each fragment.
    pub tags: Vec<(String, String)>,
    /// Cluster times count from the connection's start instead of 1970.
    pub relative: bool,
    /// A connection is replaced after this.
    pub rotate: Duration,
    /// Credentials are replaced this long before they end.
    pub renew: Duration,
    /// Without a frame for this long, the fragment ends.
    pub pause: Duration,
    /// Without a frame for this long, the connection ends.
    pub linger: Duration,
    /// Without a sign of the service for this long, it is given up.
    pub stall: Duration,
    /// The waits after failures.
    pub backoff: (Duration, Duration),
}

/// Now, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For intervals.
    pub at: Instant,
    /// Unix time, in milliseconds.
    pub unix_ms: u64,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Get credentials and the endpoint's address; answer with [`super::Session::prepared`]. `fresh`: the last credentials were
    /// refused.
    Ask {
        /// Not those known so far.
        fresh: bool,
    },
    /// Connect with what was prepared last; answer with [`super::Session::opened`] or [`super::Session::closed`].
    Open,
    /// Close the connection, or stop connecting. No answer.
    Close,
    /// For the log.
    Warn(String),
}

/// Credentials and an endpoint are at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// When the credentials end.
    pub expires: Option<Instant>,
}

/// The state machine. [`super::Session::enter`] is its only transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is nothing to send.
    Idle,
    /// Credentials and endpoint are being asked for.
    Asking,
    /// A connection is being made, until then at most.
    Opening(Instant),
    /// A connection carries fragments.
    Open,
    /// All is sent; what is not acknowledged yet may be until then.
    Finishing(Instant),
    /// Nothing is tried until then.
    Backoff(Instant),
    /// Over.
    Stopped,
}

/// Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Fragments that the service has stored.
    pub persisted: u64,
    /// Fragments that it refused for good.
    pub refused: u64,
    /// Frames that had no key frame before them.
    pub frames_without_key: u64,
    /// Connections made.
    pub connections: u64,
    /// Fragments that were sent again.
    pub resent: u64,
    /// Bytes of Matroska that were handed to the connection.
    pub bytes: u64,
}

/// What the person at the device can do about an error id.
pub(super) fn meaning(id: u32) -> &'static str {
    match id {
        4003 => " (the connection is too old: lower rotate-s)",
        4004 => " (its time is before that of the one before)",
        4007 => " (its time is refused: is the clock of this device right?)",
        4008 => " (the stream is not active: is it being created or deleted?)",
        4500..=4506 => " (the stream's KMS key can't be used: see its policy)",
        _ => "",
    }
}

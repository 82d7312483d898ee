//! What a session says of itself.

use super::{Counts, Session, State};
use crate::kvs::ring::Ring;

impl Session {
    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the service takes what is sent.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.conn.as_ref().is_some_and(|conn| conn.answered)
    }

    /// Since when, in milliseconds of Unix time.
    #[must_use]
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// Why there is trouble, if there is.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// When a fragment was last stored, in milliseconds of Unix time.
    #[must_use]
    pub fn persisted_ms(&self) -> Option<u64> {
        self.persisted_ms
    }

    /// Counters.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What is kept.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }
}

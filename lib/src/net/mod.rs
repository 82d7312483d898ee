//! Non-blocking sockets for the daemons' own `mio::Poll`: tokens, name resolution on one worker thread, connecting
//! over all addresses of a name in turn, and a buffered TCP or TLS stream.
//!
//! It never blocks outside the worker thread, and never decides when to try again: that is the caller's.

mod resolve;

use std::sync::atomic::{AtomicUsize, Ordering};

use mio::Token;

pub use resolve::{Resolved, Resolver};

/// Where connection tokens come from.
#[derive(Debug)]
pub struct Tokens;

/// Below are the fixed tokens of the daemons.
static NEXT: AtomicUsize = AtomicUsize::new(1 << 16);

impl Tokens {
    /// A token that was never used before in this process; at least 1 << 16.
    #[must_use]
    pub fn next() -> Token {
        Token(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

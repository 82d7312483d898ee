//! Non-blocking sockets for the daemons' own `mio::Poll`: tokens, name resolution on one worker thread, connecting
//! over all addresses of a name in turn, and a buffered TCP or TLS stream.
//!
//! It never blocks outside the worker thread, and never decides when to try again: that is the caller's.

mod accepts;
mod buffer;
mod connect;
mod resolve;
mod stream;

use std::{
    io, net,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use mio::Token;

pub use accepts::Accepts;
pub use buffer::{InBuf, OutBuf};
pub use connect::{Connector, Progress};
pub use resolve::{Resolved, Resolver};
pub use stream::{ReadOutcome, Stream};

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

/// Why a stream broke. The text is for people; who was on the other side is for the caller to add.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system's word.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// TLS failed: a bad certificate, no common version, garbage instead of a handshake.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Unacknowledged data older than this breaks a connection (TCP_USER_TIMEOUT): a peer that lost its power is
/// noticed although it never says so.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Sets what every connection of the daemons wants: no delay for small packets, a bound for unacknowledged data, and
/// probes on an idle connection (after 60 s of silence, so that they cost nothing beside a protocol's keep-alive).
///
/// # Errors
/// What the system says.
pub fn tune(socket: &mio::net::TcpStream) -> io::Result<()> {
    let socket = socket2::SockRef::from(socket);
    let probes = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Listens on `address:port`; `[::]:port` takes IPv4 as well.
///
/// # Errors
/// What the system says; `AddrInUse` when another program listens there.
pub fn listen(address: &str) -> io::Result<mio::net::TcpListener> {
    let listener = net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(mio::net::TcpListener::from_std(listener))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_unique_and_above_the_fixed_ones() {
        let (a, b) = (Tokens::next(), Tokens::next());
        assert!(a.0 >= 1 << 16 && b.0 > a.0);
    }

    #[test]
    fn a_taken_address_says_so() {
        let first = listen("127.0.0.1:0").unwrap();
        let again = listen(&first.local_addr().unwrap().to_string());
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}

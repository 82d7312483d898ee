//! Ports and waiting for somebody to listen on them.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

/// Below the range the kernel takes for outgoing connections, so that none of those sits on a port
/// between the moment it is found free and the moment a server binds it.
const FIRST: u16 = 17_000;
const COUNT: u16 = 15_000;
static NEXT: AtomicU16 = AtomicU16::new(0);

/// Ports of the range, different at each call within this process.
fn ports() -> impl Iterator<Item = u16> {
    let offset = (std::process::id() as u16).wrapping_mul(97);
    (0..COUNT).map(move |_| {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        FIRST + offset.wrapping_add(step) % COUNT
    })
}

/// A TCP port nobody listens on, different at each call within this process.
///
/// Asked by connecting, not by binding: what another thread starts in that moment holds a copy of every
/// socket of ours until it becomes another program, and so would keep the port from whom it is meant for.
pub fn free_port() -> u16 {
    let refused = |port: &u16| {
        TcpStream::connect_timeout(&local(*port), Duration::from_secs(1))
            .is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
    };
    ports().find(refused).unwrap_or_else(|| panic!("no free port between {FIRST} and {}", FIRST + COUNT))
}

/// A listener of this process, on a port as [`free_port`] gives them.
pub fn listen() -> TcpListener {
    ports()
        .find_map(|port| TcpListener::bind(local(port)).ok())
        .unwrap_or_else(|| panic!("no free port between {FIRST} and {}", FIRST + COUNT))
}

/// `127.0.0.1:port`.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Waits until something accepts connections on the port.
pub fn wait_listening(port: u16, what: &str, timeout: Duration) {
    crate::env::wait_for(&format!("{what} on port {port}"), timeout, || {
        TcpStream::connect_timeout(&local(port), Duration::from_millis(200)).ok()
    });
}

//! Sockets that systemd opened for us (`sd_listen_fds(3)`): `LISTEN_PID`, `LISTEN_FDS`, descriptors from 3 on.
//!
//! Invariant: the descriptors are taken once, are close-on-exec afterwards, and are ours only if `LISTEN_PID` is our
//! process. Never: opens one.

use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};

/// More than that is a mistake.
const SOCKETS_MAX: u32 = 32;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// The TCP sockets that were handed to this process, non-blocking; none when it was started otherwise, or the second
/// time.
///
/// # Errors
/// A descriptor that is no listening TCP socket.
pub fn listeners() -> io::Result<Vec<TcpListener>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let ours = number("LISTEN_PID") == Some(std::process::id());
    let count = number("LISTEN_FDS").unwrap_or(0);
    if !ours || count == 0 || TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    if count > SOCKETS_MAX {
        return Err(io::Error::other(format!("LISTEN_FDS={count}: at most {SOCKETS_MAX} sockets are taken")));
    }
    let mut found = Vec::new();
    for fd in crate::sys::inherited_fds(count)? {
        let socket = socket2::Socket::from(fd);
        let address = socket.local_addr()?;
        let is_tcp = socket.r#type()? == socket2::Type::STREAM && (address.is_ipv4() || address.is_ipv6());
        if !is_tcp || !socket.is_listener()? {
            return Err(io::Error::other(
                "a socket from systemd is no listening TCP socket: look at ListenStream=",
            ));
        }
        socket.set_nonblocking(true)?;
        found.push(socket.into());
    }
    Ok(found)
}

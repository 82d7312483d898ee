//! One TLS connection over a TCP socket: bytes out, plaintext in, each wait bounded.
//!
//! The socket is non-blocking and every wait is a `poll` for both directions, so an answer that comes while a body is
//! still being sent is seen, and a peer that stops reading does not hang us.
//! Invariants: at most [`RAW`] bytes of plaintext more than the caller left unread; `eof` is final.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustls::{ClientConnection, pki_types::ServerName};

use super::{
    Counter,
    answer::{self, Interim},
};

/// Bytes read from the socket at a time.
const RAW: usize = 32 * 1024;

/// Why a step failed, before it is put in words.
#[derive(Debug)]
pub(super) enum Fault {
    /// Nothing happened for as long as was allowed.
    Silent(Duration),
    /// The peer has closed.
    Closed(Option<io::Error>),
    /// The TLS library refuses, or the peer's one did.
    Tls(rustls::Error),
}

/// See the module's text.
pub(super) struct Transport {
    socket: TcpStream,
    tls: ClientConnection,
    raw: Box<[u8]>,
    /// Plaintext that was received; the first `read` bytes of it are consumed.
    plain: Vec<u8>,
    read: usize,
    eof: bool,
    /// Bytes on TCP, both directions.
    pub(super) wire: Counter,
    /// Whom it is connected to.
    pub(super) peer: SocketAddr,
}

/// Tries all addresses of `host` within `timeout` altogether.
pub(super) fn dial(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, (String, io::Error, bool)> {
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let found = (host, port).to_socket_addrs().map_err(|error| (host.to_owned(), error, true))?;
    let found: Vec<SocketAddr> = found.collect();
    let deadline = Instant::now() + timeout;
    let mut last = (host.to_owned(), io::Error::new(io::ErrorKind::NotFound, "no address"), true);
    for (at, address) in found.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        // Each of the remaining addresses gets an equal share of what is left.
        let share = left / u32::try_from(found.len() - at).unwrap_or(1);
        match TcpStream::connect_timeout(address, share.max(Duration::from_millis(1))) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = (address.to_string(), error, false),
        }
    }
    Err(last)
}

impl Transport {
    /// The TLS handshake, until `deadline`.
    pub(super) fn handshake(
        socket: TcpStream,
        config: Arc<rustls::ClientConfig>,
        name: ServerName<'static>,
        timeout: Duration,
    ) -> Result<Transport, Fault> {
        let io = |error| Fault::Closed(Some(error));
        socket.set_nodelay(true).map_err(io)?;
        socket.set_nonblocking(true).map_err(io)?;
        let peer = socket.peer_addr().map_err(io)?;
        let tls = ClientConnection::new(config, name).map_err(Fault::Tls)?;
        let raw = vec![0; RAW].into_boxed_slice();
        let wire = Counter::default();
        let mut it = Transport { socket, tls, raw, plain: Vec::new(), read: 0, eof: false, wire, peer };
        let deadline = Instant::now() + timeout;
        while it.tls.is_handshaking() || it.tls.wants_write() {
            if it.eof {
                return Err(Fault::Closed(None));
            }
            let progress = it.write_or_listen()? | it.pump()?;
            if !progress && (it.tls.is_handshaking() || it.tls.wants_write()) {
                let left = deadline.saturating_duration_since(Instant::now());
                it.wait(left).map_err(|fault| match fault {
                    Fault::Silent(_) => Fault::Silent(timeout),
                    other => other,
                })?;
            }
        }
        Ok(it)
    }

    /// Plaintext received and not consumed.
    pub(super) fn plain(&self) -> &[u8] {
        &self.plain[self.read..]
    }

    /// Drops the first `count` bytes of [`Transport::plain`].
    pub(super) fn consume(&mut self, count: usize) {
        self.read += count;
        if self.read >= self.plain.len() {
            self.plain.clear();
            self.read = 0;
        }
    }

    /// Whether a request may be sent on it: nothing was received since the last answer, and it is open.
    pub(super) fn is_fresh(&mut self) -> Result<bool, Fault> {
        self.pump()?;
        Ok(!self.eof && self.plain().is_empty())
    }

    /// Waits for more plaintext. `false` is the end of the stream.
    pub(super) fn fill(&mut self, silence_max: Duration) -> Result<bool, Fault> {
        let before = self.plain.len();
        loop {
            self.write_or_listen()?;
            self.pump()?;
            if self.plain.len() > before {
                return Ok(true);
            }
            if self.eof {
                return Ok(false);
            }
            self.wait(silence_max)?;
        }
    }

    /// Sends all of `bytes`, or stops as soon as the peer has something to say: `false`. An answer to the last byte may
    /// be there already when it returns.
    pub(super) fn send(&mut self, mut bytes: &[u8], silence_max: Duration) -> Result<bool, Fault> {
        loop {
            let taken = self.tls.writer().write(bytes).map_err(|error| Fault::Closed(Some(error)))?;
            bytes = &bytes[taken..];
            while self.tls.wants_write() {
                let wrote = self.write_or_listen()?;
                self.pump()?;
                if self.is_answered() {
                    return Ok(bytes.is_empty() && !self.tls.wants_write());
                }
                if self.eof {
                    return Err(Fault::Closed(None));
                }
                if !wrote && self.tls.wants_write() {
                    self.wait(silence_max)?;
                }
            }
            if bytes.is_empty() {
                return Ok(true);
            }
        }
    }

    /// Whether an answer has begun; interim ones (1xx) are dropped.
    fn is_answered(&mut self) -> bool {
        loop {
            match answer::interim(self.plain()) {
                Interim::No => return !self.plain().is_empty(),
                Interim::Partial => return false,
                Interim::Whole(length) => self.consume(length),
            }
        }
    }

    /// [`Transport::write_out`]; when the peer has closed, what it said before, which the system still has, counts
    /// more than that it closed.
    fn write_or_listen(&mut self) -> Result<bool, Fault> {
        let fault = match self.write_out() {
            Ok(progress) => return Ok(progress),
            Err(fault) => fault,
        };
        while self.plain().is_empty() && !self.eof {
            match self.pump() {
                Ok(true) => {}
                Err(Fault::Tls(error)) => return Err(Fault::Tls(error)),
                Ok(false) | Err(_) => break,
            }
        }
        if self.plain().is_empty() { Err(fault) } else { Ok(true) }
    }

    /// Writes what TLS has ready; whether there was any progress. Does not wait.
    fn write_out(&mut self) -> Result<bool, Fault> {
        let mut progress = false;
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut self.socket) {
                Ok(0) => return Err(Fault::Closed(None)),
                Ok(count) => {
                    self.wire.sent += count as u64;
                    progress = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Closed(Some(error))),
            }
        }
        Ok(progress)
    }

    /// Reads once what is there; whether there was anything. Does not wait.
    fn pump(&mut self) -> Result<bool, Fault> {
        if self.eof {
            return Ok(false);
        }
        let count = loop {
            match self.socket.read(&mut self.raw) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.eof = true;
                    return Err(Fault::Closed(Some(error)));
                }
            }
        };
        if count == 0 {
            self.eof = true;
            return Ok(true);
        }
        self.wire.received += count as u64;
        let mut rest = &self.raw[..count];
        while !rest.is_empty() {
            self.tls.read_tls(&mut rest).map_err(|error| Fault::Closed(Some(error)))?;
            let state = match self.tls.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    self.eof = true;
                    // The alert that tells the peer why; if it can't be sent, the peer sees us close.
                    let _ = self.tls.write_tls(&mut self.socket);
                    return Err(Fault::Tls(error));
                }
            };
            let ready = state.plaintext_bytes_to_read();
            let old = self.plain.len();
            self.plain.resize(old + ready, 0);
            self.tls
                .reader()
                .read_exact(&mut self.plain[old..])
                .map_err(|error| Fault::Closed(Some(error)))?;
            if state.peer_has_closed() {
                self.eof = true;
                break;
            }
        }
        Ok(true)
    }

    /// Waits until the socket can be read, or written when there is something to write.
    fn wait(&self, silence_max: Duration) -> Result<(), Fault> {
        let mut flags = PollFlags::IN;
        if self.tls.wants_write() {
            flags |= PollFlags::OUT;
        }
        let deadline = Instant::now() + silence_max;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), flags)];
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Err(Fault::Silent(silence_max)),
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Fault::Closed(Some(error.into()))),
            }
        }
    }

    /// The socket once more, to end it from another thread.
    pub(super) fn socket(&self) -> io::Result<TcpStream> {
        self.socket.try_clone()
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        // A courtesy to the peer; nobody waits for it.
        self.tls.send_close_notify();
        let _ = self.tls.write_tls(&mut self.socket);
    }
}

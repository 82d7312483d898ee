//! A connected TCP socket, plain or with TLS, in a `mio::Poll`.
//!
//! Registered once for both directions (edge-triggered), so it keeps in mind what the last edge said until the system
//! answers "would block". Reading is bounded by a budget per call; writing takes from the caller's buffer.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
};

use mio::{event::Event, net::TcpStream};
use rustls::pki_types::ServerName;

use super::{Error, InBuf, OutBuf};
use crate::tls::{ClientTls, ServerTls};

/// What `read` came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Nothing more until the next event.
    Drained,
    /// The budget is used up and there may be more: call again without waiting for an event.
    More,
    /// The other side has finished sending.
    Eof,
}

/// See the module's text. Dropping it closes the socket.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    tls: Option<Box<rustls::Connection>>,
    readable: bool,
    writable: bool,
    /// The peer has closed its side: a short read is not the end of the data then.
    read_closed: bool,
}

/// One read system call asks for this much.
const CHUNK: usize = 32 << 10;

impl Stream {
    /// A plain connection, just established.
    #[must_use]
    pub fn plain(socket: TcpStream) -> Stream {
        Stream { socket, tls: None, readable: true, writable: true, read_closed: false }
    }

    /// The client's side of TLS; `host` is checked against the certificate unless the settings name another.
    ///
    /// # Errors
    /// [`Error::Tls`] when `host` can't be a server name.
    pub fn tls_client(socket: TcpStream, tls: &ClientTls, host: &str) -> Result<Stream, Error> {
        let name = tls.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(|_| {
            rustls::Error::General(format!("{host:?} is no valid host name for TLS: set the server name"))
        })?;
        let connection = rustls::ClientConnection::new(tls.config.clone(), name)?;
        Ok(Stream { tls: Some(Box::new(connection.into())), ..Stream::plain(socket) })
    }

    /// The server's side of TLS.
    ///
    /// # Errors
    /// [`Error::Tls`] for a broken configuration.
    pub fn tls_server(socket: TcpStream, tls: &ServerTls) -> Result<Stream, Error> {
        let connection = rustls::ServerConnection::new(tls.config.clone())?;
        Ok(Stream { tls: Some(Box::new(connection.into())), ..Stream::plain(socket) })
    }

    /// Notes what an event says; reading and writing follow.
    pub fn ready(&mut self, event: &Event) {
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.read_closed |= event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || event.is_write_closed();
    }

    /// Whether a `read` may find something.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        self.readable || self.tls.as_ref().is_some_and(|tls| tls.wants_write() && self.writable)
    }

    /// Whether a `flush` can make progress.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// TLS has not agreed on keys yet.
    #[must_use]
    pub fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// The other side's address.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.socket.peer_addr()
    }

    /// Reads to the end of `into`, about `budget` bytes at most.
    ///
    /// # Errors
    /// A reset, or broken TLS; the alert for the peer is sent as far as the socket takes it.
    pub fn read(&mut self, into: &mut InBuf, budget: usize) -> Result<ReadOutcome, Error> {
        let end = into.len() + budget;
        while self.readable {
            if into.len() >= end {
                return Ok(ReadOutcome::More);
            }
            let got = match self.tls {
                None => self.read_plain(into),
                Some(_) => self.read_tls(into),
            };
            match got {
                Ok(0) => return Ok(ReadOutcome::Eof),
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // A handshake answers from here.
        self.write_records()?;
        Ok(ReadOutcome::Drained)
    }

    fn read_plain(&mut self, into: &mut InBuf) -> Result<usize, Error> {
        let buffer = into.vec();
        let start = buffer.len();
        buffer.resize(start + CHUNK, 0);
        let got = self.socket.read(&mut buffer[start..]);
        buffer.truncate(start + got.as_ref().map_or(0, |n| *n));
        let got = got?;
        // On a stream socket a short read means that the rest comes with a new edge (epoll(7)).
        if got < CHUNK && got > 0 && !self.read_closed {
            self.readable = false;
        }
        Ok(got)
    }

    /// One `read` from the socket into TLS, and the clear text out of it.
    fn read_tls(&mut self, into: &mut InBuf) -> Result<usize, Error> {
        let Some(tls) = self.tls.as_mut() else { return Ok(0) };
        let got = tls.read_tls(&mut self.socket)?;
        let state = match tls.process_new_packets() {
            Ok(state) => state,
            Err(error) => {
                // The alert tells the other side why; whether it arrives changes nothing here.
                let _ = self.write_records();
                return Err(error.into());
            }
        };
        let buffer = into.vec();
        let start = buffer.len();
        buffer.resize(start + state.plaintext_bytes_to_read(), 0);
        let mut filled = start;
        while filled < buffer.len() {
            match tls.reader().read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    buffer.truncate(filled);
                    return Err(error.into());
                }
            }
        }
        buffer.truncate(filled);
        if state.peer_has_closed() && filled == start { Ok(0) } else { Ok(got) }
    }

    /// Writes as much of `out` as the socket takes. `true`: all is gone.
    ///
    /// # Errors
    /// A reset or broken TLS.
    pub fn flush(&mut self, out: &mut OutBuf) -> Result<bool, Error> {
        if self.tls.is_some() { self.flush_tls(out) } else { self.flush_plain(out) }
    }

    fn flush_plain(&mut self, out: &mut OutBuf) -> Result<bool, Error> {
        while self.writable && !out.is_empty() {
            match self.socket.write(out.bytes()) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(n) => out.consume(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(out.is_empty())
    }

    fn flush_tls(&mut self, out: &mut OutBuf) -> Result<bool, Error> {
        loop {
            if let Some(tls) = self.tls.as_mut()
                && !out.is_empty()
            {
                // Takes up to rustls' own bound (64 KiB) and then 0 until records were written.
                let taken = tls.writer().write(out.bytes())?;
                out.consume(taken);
            }
            let before = out.len();
            let flushed = self.write_records()?;
            if !flushed || out.is_empty() {
                return Ok(flushed && out.is_empty());
            }
            if self.is_handshaking() && before == out.len() {
                return Ok(false);
            }
        }
    }

    /// Writes from the start of `bytes` what the socket takes, for a protocol with a buffer of its own; how many are
    /// done with. What TLS has taken may wait in it still: see [`Stream::settle`].
    ///
    /// # Errors
    /// A reset or broken TLS.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, Error> {
        let mut taken = 0;
        if self.tls.is_some() {
            while self.write_records()? && taken < bytes.len() {
                let Some(tls) = self.tls.as_mut() else { break };
                match tls.writer().write(&bytes[taken..])? {
                    0 => break,
                    n => taken += n,
                }
            }
            return Ok(taken);
        }
        while self.writable && taken < bytes.len() {
            match self.socket.write(&bytes[taken..]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(n) => taken += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(taken)
    }

    /// Sends at most `n` bytes of `file` from `offset` on, without a copy of them here; how many went. `None`: TLS needs to
    /// see them, so [`Stream::write`] them.
    ///
    /// # Errors
    /// A reset; or the file ends before `offset`.
    pub fn send_file(&mut self, file: &std::fs::File, offset: u64, n: usize) -> Result<Option<usize>, Error> {
        if self.tls.is_some() {
            return Ok(None);
        }
        let mut sent = 0;
        while self.writable && sent < n {
            let mut from = offset + sent as u64;
            match rustix::fs::sendfile(&self.socket, file, Some(&mut from), n - sent) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(some) => sent += some,
                Err(rustix::io::Errno::AGAIN) => self.writable = false,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(Some(sent))
    }

    /// Sends what TLS still holds. `true`: nothing waits.
    ///
    /// # Errors
    /// A reset.
    pub fn settle(&mut self) -> Result<bool, Error> {
        self.write_records()
    }

    /// Throws away what has arrived, after [`Stream::close`] or broken TLS: closing a socket with unread bytes would
    /// take the last words (an alert) from the peer. `true`: the peer is done as well.
    pub fn discard(&mut self) -> bool {
        let mut waste = [0; 4096];
        let _ = self.write_records();
        while self.readable {
            match self.socket.read(&mut waste) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return true,
            }
        }
        false
    }

    /// SHA-256 (hex) of the certificate that the peer has shown; `None` without TLS, before the end of the handshake,
    /// or when it showed none.
    #[must_use]
    pub fn peer_sha256(&self) -> Option<String> {
        let chain = self.tls.as_ref()?.peer_certificates()?;
        chain.first().map(|certificate| crate::text::sha256_hex(certificate))
    }

    /// `true`: TLS has nothing left to write (always so without TLS).
    fn write_records(&mut self) -> Result<bool, Error> {
        let Some(tls) = self.tls.as_mut() else { return Ok(true) };
        while tls.wants_write() {
            if !self.writable {
                return Ok(false);
            }
            match tls.write_tls(&mut self.socket) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Ends the own side: TLS close-notify, then FIN, as far as the socket takes it. Drop the stream after it.
    pub fn close(&mut self) {
        if let Some(tls) = self.tls.as_mut() {
            tls.send_close_notify();
        }
        // Both are a courtesy to the peer: the socket is dropped next whatever comes of them.
        let _ = self.write_records();
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }
}

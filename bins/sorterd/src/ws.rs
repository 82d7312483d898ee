//! WebSocket (RFC 6455), sans-I/O: `tungstenite` over bytes in memory. The connection moves the bytes.
//!
//! Invariants: a message never takes more memory than its bound allows, whatever its frames say; after an error nothing
//! more is read. Never: touches a socket.

use std::io::{self, Read, Write};

use edge::http::{Request, Response, host};
use tungstenite::error::CapacityError;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

/// A message of the peer.
#[derive(Debug, PartialEq)]
pub enum Incoming {
    Text(String),
    Binary(Vec<u8>),
}

/// The connection is over; what [`Socket::take_output`] still gives is to be sent before it is closed.
#[derive(Debug, PartialEq, Eq)]
pub struct Over {
    /// For the log; `None`: the peer said goodbye.
    pub why: Option<String>,
}

/// Bytes that came and bytes to send.
#[derive(Debug, Default)]
struct Pipe {
    input: Vec<u8>,
    read: usize,
    output: Vec<u8>,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = &self.input[self.read..];
        if rest.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        self.read += n;
        if self.read == self.input.len() {
            self.input.clear();
            self.read = 0;
        }
        Ok(n)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One server connection after its handshake.
#[derive(Debug)]
pub struct Socket {
    inner: WebSocket<Pipe>,
    over: bool,
}

impl Socket {
    /// Messages may have at most `message_bytes_max` bytes.
    #[must_use]
    pub fn new(message_bytes_max: usize) -> Self {
        let config = WebSocketConfig::default()
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max))
            // Few arms with large messages: what is free costs nothing, and what is not is given back.
            .read_buffer_size(16 << 10)
            .write_buffer_size(0);
        Self { inner: WebSocket::from_raw_socket(Pipe::default(), Role::Server, Some(config)), over: false }
    }

    /// Bytes came from the peer.
    pub fn received(&mut self, bytes: &[u8]) {
        self.inner.get_mut().input.extend_from_slice(bytes);
    }

    /// Bytes that came and were not looked at yet.
    #[must_use]
    pub fn waiting(&self) -> usize {
        let pipe = self.inner.get_ref();
        pipe.input.len() - pipe.read
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The next message, if it is here.
    ///
    /// # Errors
    /// The connection is over.
    pub fn next_message(&mut self) -> Result<Option<Incoming>, Over> {
        if self.over {
            return Err(Over { why: None });
        }
        loop {
            match self.inner.read() {
                Ok(Message::Text(text)) => return Ok(Some(Incoming::Text(text.as_str().to_owned()))),
                Ok(Message::Binary(bytes)) => return Ok(Some(Incoming::Binary(bytes.into()))),
                // Pings are answered and closes echoed by `read` itself.
                Ok(_) => {}
                Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(self.end(&error)),
            }
        }
    }

    fn end(&mut self, error: &Error) -> Over {
        let code = match error {
            Error::ConnectionClosed | Error::AlreadyClosed => None,
            Error::Capacity(CapacityError::MessageTooLong { .. }) => Some(CloseCode::Size),
            Error::Utf8(_) => Some(CloseCode::Invalid),
            _ => Some(CloseCode::Protocol),
        };
        let Some(code) = code else {
            self.over = true;
            return Over { why: None };
        };
        self.close(code, &error.to_string());
        Over { why: Some(error.to_string()) }
    }

    /// Sends a text. After the end nothing happens.
    pub fn send(&mut self, text: String) {
        if !self.over {
            // The pipe takes all bytes; what can fail is a connection that is over.
            self.over |= self.inner.send(Message::text(text)).is_err();
        }
    }

    /// Says goodbye: `why` is for people, at most 123 bytes of it are sent (RFC 6455 section 5.5).
    pub fn close(&mut self, code: CloseCode, why: &str) {
        let mut end = why.len().min(123);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        let frame = CloseFrame { code, reason: why[..end].into() };
        let _ = self.inner.close(Some(frame));
        let _ = self.inner.flush();
        self.over = true;
    }

    /// Says that the server goes away (1001).
    pub fn going_away(&mut self) {
        self.close(CloseCode::Away, "sorterd stops");
    }

    /// Bytes to send to the peer.
    pub fn take_output(&mut self) -> Vec<u8> {
        // Answers to pings wait within until something is written.
        let _ = self.inner.flush();
        std::mem::take(&mut self.inner.get_mut().output)
    }
}

/// Whether the request wants to be a WebSocket.
#[must_use]
pub fn is_upgrade(request: &Request) -> bool {
    request.header("upgrade").is_some_and(|value| has_token(value, "websocket"))
}

fn has_token(value: &str, token: &str) -> bool {
    value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// Answers the handshake (RFC 6455 section 4.2).
///
/// A browser says whose page asks, in `Origin`; arms don't. A page of somebody else's could otherwise command the arm
/// through the browser of whoever looks at it, so it has to be a page of this very server, asked by one of its own names:
/// addresses, `localhost`, and `hosts`.
///
/// # Errors
/// The refusal to send instead.
pub fn accept(request: &Request, hosts: &[String]) -> Result<Response, Response> {
    let refuse = |status, why: &str| Err(Response::text(status, why));
    if request.method != "GET" || request.minor == 0 {
        return refuse(400, "a WebSocket begins with GET and HTTP/1.1");
    }
    if !request.header("connection").is_some_and(|value| has_token(value, "upgrade")) {
        return refuse(400, "a WebSocket begins with Connection: Upgrade");
    }
    if request.header("sec-websocket-version").map(str::trim) != Some("13") {
        return Err(Response::text(426, "this is WebSocket version 13").with("Sec-WebSocket-Version", "13"));
    }
    let key = request.header("sec-websocket-key").map(str::trim).unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/');
    if key.len() != 24 || !key.ends_with("==") || !key[..22].bytes().all(plain) {
        return refuse(400, "Sec-WebSocket-Key has to be 16 bytes in base64");
    }
    if let Some(origin) = request.header("origin") {
        let asked = request.header("host").unwrap_or_default();
        let from = origin.split_once("://").map(|(_, rest)| rest);
        if asked.is_empty() || from.is_none_or(|from| !from.eq_ignore_ascii_case(asked)) {
            return refuse(403, "a page of another site may not command the arm");
        }
        if !host::is_own(request, hosts) {
            return Err(host::refusal("hosts"));
        }
    }
    Ok(Response::text(101, "")
        .with("Upgrade", "websocket")
        .with("Connection", "Upgrade")
        .with("Sec-WebSocket-Accept", derive_accept_key(key.as_bytes())))
}

#[cfg(test)]
#[path = "ws_tests.rs"]
mod tests;

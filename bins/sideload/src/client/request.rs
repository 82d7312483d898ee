//! The request side: heads, and bodies of known length or in chunks.
//!
//! Invariants: at most [`PIECE`] bytes of a body are held; sending stops as soon as the device answers.

use std::{
    io::{self, Read},
    time::Duration,
};

use super::transport::{Fault, Transport};

/// Bytes of a body that are read and sent at a time.
const PIECE: usize = 64 * 1024;
/// Room before a piece for the line of its chunk.
const CHUNK_LINE: usize = 8;
/// How long the device may be silent, unless a request says otherwise.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// What a request carries.
pub enum Body<'a> {
    /// Nothing.
    None,
    /// Bytes in memory.
    Bytes(&'a [u8]),
    /// A stream: of `len` bytes, or in chunks when that is not known.
    Reader {
        /// Where it comes from; read in pieces of at most 64 KiB.
        reader: &'a mut dyn Read,
        /// Its length in bytes.
        len: Option<u64>,
    },
}

/// One request.
pub struct Request<'a> {
    /// `GET`, `POST` ...
    pub method: &'static str,
    /// Path and query, percent-encoded.
    pub path: &'a str,
    /// Further headers.
    pub headers: &'a [(&'a str, &'a str)],
    /// What it carries.
    pub body: Body<'a>,
    /// How long the device may be silent before the request is given up: 60 s unless set.
    pub silence_max: Duration,
    /// Whether it may be sent again when a kept-alive connection turns out to be closed after it was sent: `GET`,
    /// `HEAD`, `PUT` and `DELETE` unless set. A streamed body can't.
    pub repeatable: bool,
    /// It has a meaning on the present connection only: never sent on a new one.
    pub continues: bool,
}

impl<'a> Request<'a> {
    /// A request without a body.
    #[must_use]
    pub fn new(method: &'static str, path: &'a str) -> Request<'a> {
        Request {
            method,
            path,
            headers: &[],
            body: Body::None,
            silence_max: SILENCE_MAX,
            repeatable: matches!(method, "GET" | "HEAD" | "PUT" | "DELETE"),
            continues: false,
        }
    }

    /// With these headers.
    #[must_use]
    pub fn headers(self, headers: &'a [(&'a str, &'a str)]) -> Request<'a> {
        Request { headers, ..self }
    }

    /// With this body.
    #[must_use]
    pub fn body(self, body: Body<'a>) -> Request<'a> {
        Request { body, ..self }
    }

    /// With another patience.
    #[must_use]
    pub fn silence_max(self, silence_max: Duration) -> Request<'a> {
        Request { silence_max, ..self }
    }

    /// May be sent twice.
    #[must_use]
    pub fn repeatable(self) -> Request<'a> {
        Request { repeatable: true, ..self }
    }

    /// Belongs to the present connection.
    #[must_use]
    pub fn continues(self) -> Request<'a> {
        Request { continues: true, ..self }
    }

    pub(super) fn is_repeatable(&self) -> bool {
        self.repeatable && !self.continues && !matches!(self.body, Body::Reader { .. })
    }
}

/// How far sending came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// All of it.
    All,
    /// The device said something before the end of the body.
    Interrupted,
}

/// Which end failed.
pub(super) enum Failed {
    Reader(io::Error),
    Peer(Fault),
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Failed {
        Failed::Peer(fault)
    }
}

/// Sends head and body.
pub(super) fn send(transport: &mut Transport, request: &mut Request<'_>, host: &str) -> Result<Sent, Failed> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(
        format!("{} {} HTTP/1.1\r\nHost: {host}\r\n", request.method, request.path).as_bytes(),
    );
    for (name, value) in request.headers {
        out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    let framing = match &request.body {
        Body::None if matches!(request.method, "GET" | "HEAD" | "DELETE") => String::new(),
        Body::None => "Content-Length: 0\r\n".into(),
        Body::Bytes(bytes) => format!("Content-Length: {}\r\n", bytes.len()),
        Body::Reader { len: Some(len), .. } => format!("Content-Length: {len}\r\n"),
        Body::Reader { len: None, .. } => "Transfer-Encoding: chunked\r\n".into(),
    };
    out.extend_from_slice(framing.as_bytes());
    out.extend_from_slice(b"\r\n");
    let body_follows = match &request.body {
        Body::None => false,
        Body::Bytes(bytes) if bytes.len() <= PIECE => {
            // One segment for head and body.
            out.extend_from_slice(bytes);
            false
        }
        Body::Bytes(_) | Body::Reader { .. } => true,
    };
    let whole = transport.send(&out, request.silence_max)?;
    match (whole, body_follows) {
        (false, true) => Ok(Sent::Interrupted),
        (_, false) => Ok(Sent::All),
        (true, true) => body(transport, request),
    }
}

fn body(transport: &mut Transport, request: &mut Request<'_>) -> Result<Sent, Failed> {
    let silence_max = request.silence_max;
    match &mut request.body {
        Body::None => Ok(Sent::All),
        Body::Bytes(bytes) => match transport.send(bytes, silence_max)? {
            true => Ok(Sent::All),
            false => Ok(Sent::Interrupted),
        },
        Body::Reader { reader, len: Some(len) } => counted(transport, *reader, *len, silence_max),
        Body::Reader { reader, len: None } => chunked(transport, *reader, silence_max),
    }
}

fn counted(
    transport: &mut Transport,
    reader: &mut dyn Read,
    len: u64,
    silence_max: Duration,
) -> Result<Sent, Failed> {
    let mut buffer = vec![0; PIECE.min(usize::try_from(len).unwrap_or(PIECE))];
    let mut left = len;
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = read(reader, &mut buffer[..want])?;
        if count == 0 {
            let short = format!("it is {left} bytes shorter than it was when the transfer began");
            return Err(Failed::Reader(io::Error::new(io::ErrorKind::UnexpectedEof, short)));
        }
        left -= count as u64;
        if !transport.send(&buffer[..count], silence_max)? {
            return Ok(Sent::Interrupted);
        }
    }
    Ok(Sent::All)
}

fn chunked(transport: &mut Transport, reader: &mut dyn Read, silence_max: Duration) -> Result<Sent, Failed> {
    let mut buffer = vec![0; CHUNK_LINE + PIECE + 2];
    loop {
        // A full piece where there is one: fewer, larger TLS records.
        let mut filled = 0;
        while filled < PIECE {
            match read(reader, &mut buffer[CHUNK_LINE + filled..CHUNK_LINE + PIECE])? {
                0 => break,
                count => filled += count,
            }
        }
        if filled == 0 {
            return match transport.send(b"0\r\n\r\n", silence_max)? {
                true => Ok(Sent::All),
                false => Ok(Sent::Interrupted),
            };
        }
        let line = format!("{filled:06x}\r\n");
        buffer[..CHUNK_LINE].copy_from_slice(line.as_bytes());
        buffer[CHUNK_LINE + filled..CHUNK_LINE + filled + 2].copy_from_slice(b"\r\n");
        if !transport.send(&buffer[..CHUNK_LINE + filled + 2], silence_max)? {
            return Ok(Sent::Interrupted);
        }
    }
}

fn read(reader: &mut dyn Read, buffer: &mut [u8]) -> Result<usize, Failed> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(Failed::Reader),
        }
    }
}

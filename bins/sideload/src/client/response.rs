//! Answers as the commands use them: a status, then JSON, bytes, a stream, or lines.
//!
//! Invariants: an answer that is not read to its end costs the connection, nothing else; JSON is bounded.

use std::{
    io::{self, Read},
    time::Duration,
};

use serde_json::Value;

use super::{
    Client, Error,
    answer::{Framing, Head, Piece},
    transport::Fault,
};

/// Longest JSON answer, in bytes: the ranges of a sync of 100 000 files fit.
const JSON_BYTES_MAX: usize = 64 << 20;
/// Longest line of a log, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// An answer whose head has arrived. Reading it (`io::Read`) gives the body.
pub struct Answer<'c> {
    client: &'c mut Client,
    /// HTTP status.
    pub status: u16,
    headers: Vec<(String, String)>,
    silence_max: Duration,
}

impl<'c> Answer<'c> {
    pub(super) fn new(client: &'c mut Client, head: Head, silence_max: Duration) -> Answer<'c> {
        Answer { client, status: head.status, headers: head.headers, silence_max }
    }

    /// The first header of that name (case ignored).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The body's length in bytes, if the device said so.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// This answer if its status is 2xx.
    ///
    /// # Errors
    /// [`Error::Refused`] with what the device says; what [`Answer::bytes`] says.
    pub fn check(self) -> Result<Answer<'c>, Error> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        let status = self.status;
        let body = self.bytes(JSON_BYTES_MAX)?;
        let details: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let message = match details.get("message").and_then(Value::as_str) {
            Some(message) => message.to_owned(),
            None => format!("the device answers {status} {}", edge::http::reason(status)),
        };
        Err(Error::Refused { status, message, details })
    }

    /// The JSON of a 2xx answer.
    ///
    /// # Errors
    /// As [`Answer::check`]; [`Error::Protocol`] when it is no JSON.
    pub fn json(self) -> Result<Value, Error> {
        let answer = self.check()?;
        let address = answer.client.address();
        let body = answer.bytes(JSON_BYTES_MAX)?;
        serde_json::from_slice(&body)
            .map_err(|error| Error::Protocol { address, what: format!("no JSON ({error})") })
    }

    /// The whole body, whatever the status.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Silent`], and [`Error::Protocol`] for more than `bytes_max`.
    pub fn bytes(mut self, bytes_max: usize) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.read_piece(&mut buffer)? {
                0 => return Ok(all),
                count if all.len() + count > bytes_max => {
                    return Err(self.client.nonsense(format!("more than {bytes_max} bytes")));
                }
                count => all.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// The next bytes of the body; 0 is its end.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Silent`], [`Error::Protocol`].
    pub fn read_piece(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        self.client.read_body(buffer, self.silence_max)
    }
}

impl Read for Answer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_piece(buffer).map_err(io::Error::other)
    }
}

impl Client {
    fn read_body(&mut self, buffer: &mut [u8], silence_max: Duration) -> Result<usize, Error> {
        const DURING: &str = "in the middle of its answer";
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let Some(transport) = &mut self.transport else {
                return match self.body {
                    Framing::Done => Ok(0),
                    _ => Err(self.broken(Fault::Closed(None), DURING)),
                };
            };
            let plain = transport.plain();
            let plain = &plain[..plain.len().min(buffer.len())];
            let step = match self.body.next(plain) {
                // The line of a chunk may be longer than the caller's buffer.
                Ok(Piece::More) if plain.len() < transport.plain().len() => self.body.next(transport.plain()),
                other => other,
            };
            match step {
                Ok(Piece::End) => {
                    if self.last {
                        self.close();
                    }
                    return Ok(0);
                }
                Ok(Piece::Skip(count)) => transport.consume(count),
                Ok(Piece::Data(count)) => {
                    buffer[..count].copy_from_slice(&transport.plain()[..count]);
                    transport.consume(count);
                    return Ok(count);
                }
                Ok(Piece::More) => match transport.fill(silence_max) {
                    Ok(true) => {}
                    Ok(false) if self.body == Framing::UntilClose => {
                        self.close();
                        return Ok(0);
                    }
                    Ok(false) => return Err(self.lost(Fault::Closed(None), DURING)),
                    Err(fault) => return Err(self.lost(fault, DURING)),
                },
                Err(what) => {
                    self.close();
                    return Err(self.nonsense(what));
                }
            }
        }
    }

    /// The connection is of no more use.
    pub(super) fn lost(&mut self, fault: Fault, during: &'static str) -> Error {
        self.close();
        self.broken(fault, during)
    }
}

/// The lines of a body that may never end. Empty ones, which only keep the connection alive, are left out.
pub struct Lines {
    client: Client,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were looked at and hold no line end.
    searched: usize,
    silence_max: Duration,
}

impl Lines {
    pub(super) fn new(client: Client, silence_max: Duration) -> Lines {
        Lines { client, buffer: Vec::new(), searched: 0, silence_max }
    }

    /// The next line without its end, lossily decoded; `None` at the end of the body.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Silent`], [`Error::Protocol`] for a line of more than 1 MiB.
    pub fn next_line(&mut self) -> Result<Option<String>, Error> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=self.searched + at).collect();
                self.searched = 0;
                line.truncate(line.trim_ascii_end().len());
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            self.searched = self.buffer.len();
            if self.searched > LINE_BYTES_MAX {
                return Err(self.client.nonsense("a line of more than 1 MiB".into()));
            }
            let mut piece = [0; 16 * 1024];
            match self.client.read_body(&mut piece, self.silence_max)? {
                0 if self.buffer.is_empty() => return Ok(None),
                0 => {
                    // The last line has no end.
                    self.searched = 0;
                    let line = std::mem::take(&mut self.buffer);
                    return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
                }
                count => self.buffer.extend_from_slice(&piece[..count]),
            }
        }
    }

    /// See [`Client::stopper`].
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn stopper(&self) -> io::Result<Option<super::Stopper>> {
        self.client.stopper()
    }

    /// Bytes on TCP since the client was made.
    #[must_use]
    pub fn wire(&self) -> super::Counter {
        self.client.wire()
    }
}

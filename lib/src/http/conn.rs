//! One server connection, sans-I/O: the shell moves bytes and time in and out, the application answers requests.
//!
//! The shell's loop for a ready socket:
//! 1. while [`Io::read`]: read some bytes (at most a few KiB) and hand them to [`Conn::received`], or [`Conn::eof`];
//! 2. take every [`Conn::next`] and answer each [`ConnEvent::End`] with [`Conn::respond`];
//! 3. while [`Io::write`]: write [`Conn::output`], tell [`Conn::wrote`];
//! 4. with nothing left to write, send from [`Conn::file`] and tell [`Conn::sent_file`];
//! 5. [`Io::shutdown`]: shut down the writing side; [`Io::close`]: drop the socket;
//! 6. arm a timer for [`Conn::deadline`]; call [`Conn::expire`] when it has passed, then go to 2.
//!
//! Invariants: answers leave in the order of the requests, since the next request is not looked at before the current
//! one is answered and its answer fits under `out_bytes`; after a refusal or an answer that leaves a body unread, the
//! connection lingers (RFC 9112 section 9.6) so that the peer can read the answer before the reset.

#[path = "conn_raw.rs"]
mod raw;

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Decoder, Event, LAST_CHUNK, Limits, Reject, Request, Response, Step, chunk};

/// How long and how much a closing connection is still read.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 256 * 1024;
/// Sent bytes are dropped from the output buffer from here on.
const COMPACT: usize = 16 * 1024;

/// What the application gets to see.
#[derive(Debug, PartialEq, Eq)]
pub enum ConnEvent {
    /// A request begins. It may be answered already (its body is then not read).
    Head(Request),
    /// A piece of its body.
    Data(Vec<u8>),
    /// It is complete and waits for its answer.
    End,
    /// A request was refused, and answered so, by the codec.
    Refused(Reject),
}

/// What the shell is to do with the socket now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// Bytes can be taken.
    pub read: bool,
    /// There are bytes to send.
    pub write: bool,
    /// All is sent: shut down the writing side (again is harmless).
    pub shutdown: bool,
    /// Done: drop the socket.
    pub close: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waiting for a request or within its head.
    Request,
    /// The head is out, the body is being read.
    Body,
    /// The request is complete, its answer is due.
    Answer,
    /// A chunked answer has begun.
    Chunks,
    /// An answer of known length has begun; so many bytes of it are still to come from the application.
    Sized { left: u64 },
    /// The last answer is being sent. `linger`: input may follow that nobody will read.
    Flush { linger: bool },
    /// Another protocol speaks (RFC 9110 section 7.8): bytes pass through. Until then at most, while nothing is to be sent.
    Raw { until: Option<Instant> },
    /// All is sent; input is thrown away until the peer closes.
    Linger { left: usize },
    /// Nothing more.
    Closed,
}

/// One server connection.
#[derive(Debug)]
pub struct Conn {
    limits: Limits,
    decoder: Decoder,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    phase: Phase,
    /// Where the rest of an answer of known length comes from, and from which byte on; else from the application.
    file: Option<(Arc<File>, u64)>,
    head_only: bool,
    keep_alive: bool,
    minor: u8,
    ended: bool,
    deadline: Instant,
    refusal: fn(Reject) -> Response,
}

impl Conn {
    /// A connection accepted now.
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            decoder: Decoder::new(limits),
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            phase: Phase::Request,
            file: None,
            head_only: false,
            keep_alive: true,
            minor: 1,
            ended: false,
            deadline: now + limits.head_timeout,
            refusal: |reject| Response::text(reject.status, reject.why),
        }
    }

    /// Writes the codec's own refusals with `form` instead of as plain text.
    #[must_use]
    pub fn with_refusals(mut self, form: fn(Reject) -> Response) -> Self {
        self.refusal = form;
        self
    }

    /// What to do with the socket.
    pub fn io(&self) -> Io {
        let write = self.sent < self.output.len();
        match self.phase {
            Phase::Closed => Io { close: true, ..Io::default() },
            Phase::Linger { .. } => Io { read: true, shutdown: true, ..Io::default() },
            Phase::Flush { .. } => Io { write, ..Io::default() },
            // While an answer is due, one head's worth of pipelined bytes is kept and the rest stays in the kernel.
            _ => {
                Io { read: !self.ended && self.input.len() < self.limits.head_bytes, write, ..Io::default() }
            }
        }
    }

    /// Bytes arrived.
    pub fn received(&mut self, bytes: &[u8], now: Instant) {
        if bytes.is_empty() {
            return;
        }
        match &mut self.phase {
            Phase::Linger { left } => match left.checked_sub(bytes.len()) {
                Some(rest) => *left = rest,
                None => self.phase = Phase::Closed,
            },
            Phase::Flush { .. } | Phase::Closed => {}
            Phase::Request => {
                if self.input.is_empty() && self.decoder.is_idle() {
                    self.deadline = now + self.limits.head_timeout;
                }
                self.input.extend_from_slice(bytes);
            }
            Phase::Body => {
                self.deadline = now + self.limits.body_timeout;
                self.input.extend_from_slice(bytes);
            }
            _ => self.input.extend_from_slice(bytes),
        }
    }

    /// The peer will send nothing more. What it sent is still understood, and an answer that is due is still sent.
    pub fn eof(&mut self) {
        self.ended = true;
        let over = match self.phase {
            Phase::Body | Phase::Raw { until: Some(_) } => self.input.is_empty(),
            _ => matches!(self.phase, Phase::Linger { .. }),
        };
        if over {
            self.phase = Phase::Closed;
        }
    }

    /// What came in, one event at a time until `None`.
    pub fn next(&mut self, now: Instant) -> Option<ConnEvent> {
        if matches!(self.phase, Phase::Raw { .. }) && !self.input.is_empty() {
            return Some(ConnEvent::Data(std::mem::take(&mut self.input)));
        }
        if !matches!(self.phase, Phase::Request | Phase::Body) {
            return None;
        }
        if self.phase == Phase::Request && self.output.len() - self.sent >= self.limits.out_bytes {
            return None;
        }
        let (consumed, event) = match self.decoder.step(&self.input) {
            Err(reject) => return Some(self.refuse(reject, now)),
            // All that was read is one piece of the body: hand on the buffer itself.
            Ok(Step { consumed, event: Some(Event::Data(data)) }) if data.len() == self.input.len() => {
                (consumed, Some(Owned::All))
            }
            Ok(step) => (step.consumed, step.event.map(Owned::of)),
        };
        if matches!(event, Some(Owned::All)) {
            return Some(ConnEvent::Data(std::mem::take(&mut self.input)));
        }
        self.input.drain(..consumed);
        match event {
            None => {
                match self.phase {
                    // Half a head, or nothing, and the end: what is still to be sent is sent.
                    Phase::Request if self.ended => {
                        self.phase = Phase::Flush { linger: false };
                        self.flushed(now);
                    }
                    // The end came in one piece with the head, before the body was whole.
                    Phase::Body if self.ended => self.phase = Phase::Closed,
                    _ => {}
                }
                None
            }
            Some(Owned::Head(request)) => {
                self.head_only = request.method == "HEAD";
                self.keep_alive = request.keep_alive;
                self.minor = request.minor;
                self.phase = Phase::Body;
                self.deadline = now + self.limits.body_timeout;
                if request.expect_continue && self.decoder.in_body() {
                    self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                Some(ConnEvent::Head(request))
            }
            Some(Owned::Data(data)) => Some(ConnEvent::Data(data)),
            Some(Owned::All) => None,
            Some(Owned::End) => {
                self.phase = Phase::Answer;
                Some(ConnEvent::End)
            }
        }
    }

    fn refuse(&mut self, reject: Reject, now: Instant) -> ConnEvent {
        (self.refusal)(reject).write(&mut self.output, false, false);
        self.input = Vec::new();
        self.phase = Phase::Flush { linger: true };
        self.deadline = now + self.limits.write_timeout;
        ConnEvent::Refused(reject)
    }

    /// Answers the current request. Before its end was seen, the connection closes after the answer. Without a
    /// current request, nothing happens.
    pub fn respond(&mut self, response: &Response, now: Instant) {
        let unread = self.phase == Phase::Body && self.decoder.in_body();
        if !matches!(self.phase, Phase::Body | Phase::Answer) {
            return;
        }
        let keep = self.keep_alive && !unread && !self.ended;
        response.write(&mut self.output, self.head_only, keep);
        self.answered(keep, unread, now);
    }

    /// Begins a chunked answer; `false` if the request speaks HTTP/1.0, which has no chunks: nothing was sent then.
    pub fn begin_chunks(&mut self, response: &Response, now: Instant) -> bool {
        if self.minor == 0 || self.phase != Phase::Answer {
            return false;
        }
        let keep = self.keep_alive && !self.ended;
        response.write_chunked_head(&mut self.output, keep);
        if self.head_only {
            self.answered(keep, false, now);
        } else {
            self.phase = Phase::Chunks;
            self.deadline = now + self.limits.write_timeout;
        }
        true
    }

    /// A piece of the chunked answer. Send no more while [`Conn::unsent`] is over your bound.
    pub fn send_chunk(&mut self, data: &[u8], now: Instant) {
        if self.phase == Phase::Chunks {
            chunk(&mut self.output, data);
            self.deadline = now + self.limits.write_timeout;
        }
    }

    /// Ends the chunked answer.
    pub fn end_chunks(&mut self, now: Instant) {
        if self.phase == Phase::Chunks {
            self.output.extend_from_slice(LAST_CHUNK);
            self.answered(self.keep_alive && !self.ended, false, now);
        }
    }

    /// Begins an answer of `length` bytes that follow by [`Conn::send_bytes`]; `response.body` is not sent. Without a
    /// complete request waiting for its answer, nothing happens.
    pub fn begin_sized(&mut self, response: &Response, length: u64, now: Instant) {
        if self.phase != Phase::Answer {
            return;
        }
        let keep = self.keep_alive && !self.ended;
        response.write_sized_head(&mut self.output, length, keep);
        if self.head_only || length == 0 {
            self.answered(keep, false, now);
        } else {
            self.phase = Phase::Sized { left: length };
            self.deadline = now + self.limits.write_timeout;
        }
    }

    /// A piece of the answer of known length; what goes beyond that length is left out. Send no more while
    /// [`Conn::unsent`] is over your bound.
    pub fn send_bytes(&mut self, data: &[u8], now: Instant) {
        let Phase::Sized { left } = self.phase else { return };
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
        self.output.extend_from_slice(&data[..n]);
        self.phase = Phase::Sized { left: left - n as u64 };
        self.deadline = now + self.limits.write_timeout;
        if left == n as u64 {
            self.answered(self.keep_alive && !self.ended, false, now);
        }
    }

    /// Answers with `length` bytes of `file` from `offset` on, which the shell sends; `response.body` is not sent. Without
    /// a complete request waiting for its answer, nothing happens.
    pub fn respond_file(
        &mut self,
        response: &Response,
        file: Arc<File>,
        offset: u64,
        length: u64,
        now: Instant,
    ) {
        self.begin_sized(response, length, now);
        if self.is_sending() {
            self.file = Some((file, offset));
        }
    }

    /// What is to be sent next from a file: from which byte on, and how many. `None` while other bytes go before it.
    pub fn file(&self) -> Option<(&Arc<File>, u64, u64)> {
        let Phase::Sized { left } = self.phase else { return None };
        let (file, offset) = self.file.as_ref().filter(|_| self.sent == self.output.len())?;
        Some((file, *offset, left))
    }

    /// That many bytes of [`Conn::file`] went to the peer.
    pub fn sent_file(&mut self, n: u64, now: Instant) {
        let (Phase::Sized { left }, Some((_, offset))) = (self.phase, &mut self.file) else { return };
        *offset += n;
        let left = left.saturating_sub(n);
        self.phase = Phase::Sized { left };
        if n > 0 {
            self.deadline = now + self.limits.write_timeout;
        }
        if left == 0 {
            self.file = None;
            self.answered(self.keep_alive && !self.ended, false, now);
            self.flushed(now);
        }
    }

    /// Those bytes were read from [`Conn::file`], by a shell that can't hand the file to the socket.
    pub fn feed_file(&mut self, bytes: &[u8], now: Instant) {
        if let Some((_, offset)) = &mut self.file {
            *offset += bytes.len() as u64;
            self.send_bytes(bytes, now);
            if !self.is_sending() {
                self.file = None;
            }
        }
    }

    /// Ends the connection at once: an answer that has begun can't be completed.
    pub fn abort(&mut self) {
        self.phase = Phase::Closed;
        self.file = None;
    }

    /// Whether it waits for the next request, no byte of it seen, and all answers are sent; or for the peer of another
    /// protocol.
    pub fn is_idle(&self) -> bool {
        let waits = match self.phase {
            Phase::Request => self.decoder.is_idle(),
            Phase::Raw { until } => until.is_some(),
            _ => false,
        };
        waits && self.input.is_empty() && self.sent == self.output.len()
    }

    /// Whether an answer of known length waits for [`Conn::send_bytes`].
    pub fn is_sending(&self) -> bool {
        matches!(self.phase, Phase::Sized { .. })
    }

    /// Whether the peer has said that it sends nothing more.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    fn answered(&mut self, keep: bool, unread: bool, now: Instant) {
        self.deadline = now + self.limits.write_timeout;
        if keep {
            if self.phase == Phase::Body {
                // Answered between head and end: the decoder still owes its `End`, which carries no input.
                let _ = self.decoder.step(&[]);
            }
            self.phase = Phase::Request;
        } else {
            let linger = unread || !self.input.is_empty();
            self.input = Vec::new();
            self.phase = Phase::Flush { linger };
        }
    }

    /// Bytes to send.
    pub fn output(&self) -> &[u8] {
        // `sent` never passes the length: `wrote` clamps it.
        self.output.get(self.sent..).unwrap_or(&[])
    }

    /// Bytes not yet sent.
    pub fn unsent(&self) -> usize {
        self.output().len()
    }

    /// That many bytes of [`Conn::output`] were sent.
    pub fn wrote(&mut self, n: usize, now: Instant) {
        self.sent = (self.sent + n).min(self.output.len());
        if n > 0 && !matches!(self.phase, Phase::Body | Phase::Answer) {
            self.deadline = now + self.limits.write_timeout;
        }
        // A long answer whose peer always leaves a rest unread would grow by what was sent long ago.
        if self.sent >= COMPACT && self.sent * 2 > self.output.len() {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
        self.flushed(now);
    }

    fn flushed(&mut self, now: Instant) {
        if self.sent < self.output.len() {
            return;
        }
        self.output.clear();
        self.output.shrink_to(self.limits.out_bytes);
        self.sent = 0;
        match self.phase {
            Phase::Request => {
                let partial = !self.input.is_empty() || !self.decoder.is_idle();
                self.deadline =
                    now + if partial { self.limits.head_timeout } else { self.limits.idle_timeout };
            }
            Phase::Flush { linger: true } if !self.ended => {
                self.phase = Phase::Linger { left: LINGER_BYTES_MAX };
                self.deadline = now + LINGER;
            }
            Phase::Flush { .. } => self.phase = Phase::Closed,
            _ => {}
        }
    }

    /// When [`Conn::expire`] is to be called. `None` while the application owes the answer.
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Answer => None,
            Phase::Raw { until } if self.unsent() == 0 => until,
            Phase::Chunks | Phase::Sized { .. } => {
                (self.sent < self.output.len() || self.file.is_some()).then_some(self.deadline)
            }
            _ => Some(self.deadline),
        }
    }

    /// Time has passed: a deadline that is over ends the connection, with a 408 where a request had begun.
    pub fn expire(&mut self, now: Instant) -> Option<ConnEvent> {
        if self.deadline().is_none_or(|at| now < at) || self.phase == Phase::Closed {
            return None;
        }
        let begun = self.phase == Phase::Body || !self.input.is_empty() || !self.decoder.is_idle();
        if matches!(self.phase, Phase::Request | Phase::Body) && self.unsent() == 0 && begun {
            return Some(self.refuse(Reject { status: 408, why: "the request did not arrive in time" }, now));
        }
        self.phase = Phase::Closed;
        None
    }
}

/// An event without the borrow of the input.
enum Owned {
    Head(Request),
    Data(Vec<u8>),
    /// The whole input is data.
    All,
    End,
}

impl Owned {
    fn of(event: Event<'_>) -> Self {
        match event {
            Event::Head(request) => Self::Head(request),
            Event::Data(data) => Self::Data(data.to_vec()),
            Event::End => Self::End,
        }
    }
}

#[cfg(test)]
#[path = "conn_tests.rs"]
mod tests;

//! HTTP/1.1 server codec: bytes in, requests out; responses in, bytes out. But for [`conns`] it does no I/O, and it
//! reads no clock.
//!
//! * [`Decoder`] turns a byte stream into [`Event`]s (head, body pieces, end) under [`Limits`]; `httparse` reads the
//!   head, the body framing (RFC 9112 section 6) is read here.
//! * [`Response`] is a whole answer of known length; [`chunk`] and [`LAST_CHUNK`] frame one of unknown length.
//! * [`Conn`] is one server connection over both: keep-alive, one request at a time however many are pipelined,
//!   deadlines, refusals, and a close that lets the peer read the answer.
//! * [`host`] says whether a request is addressed to this server or to a stranger's name.
//! * [`conns`] holds a server's sockets over all of these; it alone does I/O, when the daemon's poll says so.
//!
//! Invariants: memory per connection is bounded by [`Limits`]; framing that two readers could understand differently
//! (both lengths given, several lengths, an unknown coding) is refused, never guessed. It never panics on input.

mod conn;
pub mod conns;
pub mod date;
mod decode;
pub mod host;
mod response;
pub mod uri;

pub use conn::{Conn, ConnEvent, Io};
pub use decode::{Body, Decoder, Event, Reject, Request, Step};
pub use response::{LAST_CHUNK, Response, chunk, reason};

use std::time::Duration;

/// The bounds one connection lives under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest request line plus headers, in bytes; more is 431 (414 while the request line itself is not over).
    pub head_bytes: usize,
    /// Longest request target, in bytes; more is 414.
    pub target_bytes: usize,
    /// Most header fields, at most [`Limits::HEADERS_MAX`]; more is 431.
    pub headers: usize,
    /// Longest request body, in bytes, however it is framed; more is 413.
    pub body_bytes: u64,
    /// How long a request's head may take from its first byte; then 408.
    pub head_timeout: Duration,
    /// How long the connection may be silent within a body; then 408.
    pub body_timeout: Duration,
    /// How long a kept-alive connection may wait for its next request; then it is closed without a word.
    pub idle_timeout: Duration,
    /// How long the peer may leave bytes of an answer unread; then the connection is dropped.
    pub write_timeout: Duration,
    /// Most bytes of unsent answer before no further request is read.
    pub out_bytes: usize,
}

impl Limits {
    /// The largest value `headers` can have (the parser's table is on the stack).
    pub const HEADERS_MAX: usize = 128;
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 8 * 1024,
            target_bytes: 4 * 1024,
            headers: 64,
            body_bytes: 64 * 1024,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            out_bytes: 64 * 1024,
        }
    }
}

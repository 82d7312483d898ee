//! Sends files: whole ones with ranges, and those that are still being made.
//!
//! Invariant: an answer whose file fails after its head is out ends with the connection, so that nobody takes what came
//! for the whole.

use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Instant;

use edge::http::{Conn, Response};

use crate::cache::Whole;
use crate::etag;
use crate::growing::{Failed, Growing};
use crate::range::{self, Span};
use crate::reply;
use crate::service::{Exchange, Peer, Wanted};

/// Bytes of a growing file that are read at once, and those that wait for the peer at most.
const PIECE: usize = 64 << 10;
const AHEAD: usize = 256 << 10;

/// The headers of an answer.
#[derive(Debug)]
pub struct Form {
    pub content_type: &'static str,
    pub disposition: Option<&'static str>,
    pub cache: String,
    pub vary: bool,
    /// Without quotes; empty for none.
    pub tag: String,
    pub date: String,
}

impl Form {
    /// The head of the answer.
    #[must_use]
    pub fn head(&self, status: u16) -> Response {
        let mut response = reply::empty(status).with("Date", self.date.as_str());
        if status != 304 {
            response = response.with("Content-Type", self.content_type);
            if let Some(disposition) = self.disposition {
                response = response.with("Content-Disposition", disposition);
            }
        }
        if !self.tag.is_empty() {
            response = response.with("ETag", format!("\"{}\"", self.tag));
        }
        if self.vary {
            response = response.with("Vary", "If-None-Match");
        }
        response.with("Cache-Control", self.cache.as_str())
    }
}

/// 304.
pub fn not_modified(client: &mut Peer, form: &Form, now: Instant) {
    client.http.respond(&form.head(304), now);
    client.state = Exchange::None;
}

/// What those hear who waited for a file that can't be made.
#[must_use]
pub fn failed(why: &Failed) -> Response {
    match why {
        Failed::Full => reply::later("The server's disk is full", 60),
        Failed::Large => reply::error(507, "The package is larger than the server's cache"),
        Failed::Content => reply::later("A file of the package is not there at the moment", 60),
        Failed::Broken => reply::later("The package can't be made at the moment", 10),
    }
}

fn span(wanted: &Wanted, form: &Form, size: u64) -> Span {
    let same = wanted.if_range.as_deref().is_none_or(|value| etag::if_range(value, &form.tag));
    match &wanted.range {
        // A range means something for GET alone (RFC 9110 section 14.2).
        Some(range) if same && !wanted.head => range::parse(range, size),
        _ => Span::Whole,
    }
}

fn outside(form: &Form, size: u64) -> Response {
    reply::error(416, "There is no such range of it")
        .with("Content-Range", format!("bytes */{size}"))
        .with("ETag", format!("\"{}\"", form.tag))
        .with("Date", form.date.as_str())
}

fn part(form: &Form, start: u64, len: u64, size: u64) -> Response {
    let last = start + len - 1;
    form.head(206)
        .with("Content-Range", format!("bytes {start}-{last}/{size}"))
        .with("Accept-Ranges", "bytes")
}

/// Answers with a file, or the range of it that was asked for.
pub fn whole(client: &mut Peer, wanted: &Wanted, form: &Form, whole: &Whole, now: Instant) {
    respond(&mut client.http, wanted, form, whole, now);
    client.state = Exchange::None;
}

fn respond(http: &mut Conn, wanted: &Wanted, form: &Form, whole: &Whole, now: Instant) {
    let Whole { file, size } = whole;
    match span(wanted, form, *size) {
        Span::Whole => {
            let head = form.head(200).with("Accept-Ranges", "bytes");
            http.respond_file(&head, Arc::clone(file), 0, *size, now);
        }
        Span::Part { start, len } => {
            http.respond_file(&part(form, start, len, *size), Arc::clone(file), start, len, now);
        }
        Span::Unsatisfiable => http.respond(&outside(form, *size), now),
    }
}

/// A file that is being made and sent.
#[derive(Debug)]
pub struct Sending {
    pub wanted: Wanted,
    growing: Arc<Growing>,
    form: Form,
    /// Once the head is out: the next byte, and the end where it is known.
    at: Option<(u64, Option<u64>)>,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fed {
    /// For more of the file, or for the peer.
    Waits,
    Sent,
    Failed,
}

impl Sending {
    #[must_use]
    pub fn new(growing: Arc<Growing>, wanted: Wanted, form: Form) -> Self {
        Self { wanted, growing, form, at: None }
    }

    /// Sends what there is and can be sent.
    pub fn feed(&mut self, http: &mut Conn, peer: IpAddr, now: Instant) -> Fed {
        let end = self.growing.end();
        match (&mut self.at, end, self.growing.file()) {
            (None, Some(Ok(size)), Some(file)) => {
                let whole = Whole { file: Arc::clone(file), size: *size };
                respond(http, &self.wanted, &self.form, &whole, now);
                Fed::Sent
            }
            (None, Some(Err(why)), _) => {
                http.respond(&failed(why).with("Date", self.form.date.as_str()), now);
                Fed::Failed
            }
            (None, ..) if self.growing.written() == 0 => Fed::Waits,
            (None, ..) => match self.begin(http, now) {
                Some(true) => self.feed(http, peer, now),
                Some(false) => Fed::Sent,
                // HTTP/1.0 has no chunks: when all of it is there its length is known.
                None => Fed::Waits,
            },
            (Some(_), Some(Err(_)), _) | (Some(_), _, None) => {
                log::warn!("client {peer} got a part of a file that could not be made to its end");
                http.abort();
                Fed::Failed
            }
            (Some(_), end, Some(file)) => {
                let (file, end) = (Arc::clone(file), matches!(end, Some(Ok(_))));
                self.go_on(http, &file, end, peer, now)
            }
        }
    }

    /// The head of a file that is not whole yet. `false`: that is the answer.
    fn begin(&mut self, http: &mut Conn, now: Instant) -> Option<bool> {
        let Some(size) = self.growing.size else {
            let begun = http.begin_chunks(&self.form.head(200), now);
            self.at = begun.then_some((0, None));
            return begun.then_some(true);
        };
        let (start, len) = match span(&self.wanted, &self.form, size) {
            Span::Whole => {
                http.begin_sized(&self.form.head(200).with("Accept-Ranges", "bytes"), size, now);
                (0, size)
            }
            Span::Part { start, len } => {
                http.begin_sized(&part(&self.form, start, len, size), len, now);
                (start, len)
            }
            Span::Unsatisfiable => {
                http.respond(&outside(&self.form, size), now);
                return Some(false);
            }
        };
        self.at = Some((start, Some(start + len)));
        Some(true)
    }

    fn go_on(&mut self, http: &mut Conn, file: &std::fs::File, all: bool, peer: IpAddr, now: Instant) -> Fed {
        let Some((at, until)) = &mut self.at else { return Fed::Waits };
        let written = self.growing.written();
        let there = until.map_or(written, |until| until.min(written));
        let mut buffer = [0; PIECE];
        while *at < there && http.unsent() < AHEAD {
            let n = usize::try_from(there - *at).unwrap_or(PIECE).min(PIECE);
            let read = match file.read_at(&mut buffer[..n], *at) {
                Ok(n) if n > 0 => n,
                other => {
                    log::warn!("a file that is sent to {peer} can't be read: {other:?}");
                    http.abort();
                    return Fed::Failed;
                }
            };
            *at += read as u64;
            match until {
                Some(_) => http.send_bytes(&buffer[..read], now),
                None => http.send_chunk(&buffer[..read], now),
            }
        }
        match until {
            Some(until) if at == until => Fed::Sent,
            None if all && *at == written => {
                http.end_chunks(now);
                Fed::Sent
            }
            _ => Fed::Waits,
        }
    }
}

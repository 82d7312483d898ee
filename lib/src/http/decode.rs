//! The request decoder: heads by `httparse`, bodies by length or chunks.
//!
//! Owns the framing state of one connection, not its bytes: the caller keeps the buffer and drops what was consumed.
//! Invariants: a head is parsed once, when its end has arrived (a slow sender costs no repeated parsing); after an
//! error the decoder refuses everything, since where the next request would begin is unknown.

use super::Limits;

/// Longest line that opens a chunk (size and extensions), in bytes.
const CHUNK_LINE_BYTES_MAX: usize = 256;

/// How a request's body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    None,
    /// `Content-Length`, in bytes.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// A request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// As sent, case matters (RFC 9110 section 9.1).
    pub method: String,
    /// As sent: usually `/path?query`.
    pub target: String,
    /// Minor version: 0 or 1.
    pub minor: u8,
    /// In the order sent; names as sent.
    pub headers: Vec<(String, Vec<u8>)>,
    /// How the body is framed.
    pub body: Body,
    /// Whether the client lets the connection live on after the answer.
    pub keep_alive: bool,
    /// `Expect: 100-continue` was asked for.
    pub expect_continue: bool,
}

impl Request {
    /// The first header of that name (case ignored), if its value is visible ASCII or UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(value).ok()
    }

    /// The target's path: without query; an absolute-form target loses its scheme and authority.
    pub fn path(&self) -> &str {
        let target = match self.target.split_once("://") {
            Some((scheme, rest)) if !scheme.contains(['/', '?']) => {
                rest.find('/').map_or("/", |at| &rest[at..])
            }
            _ => &self.target,
        };
        target.split(['?', '#']).next().unwrap_or(target)
    }

    /// The target's query without its `?`; empty if there is none.
    pub fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, q)| q)
    }
}

/// A request that is refused: the status to answer with before the connection closes, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status} {}: {why}", super::reason(*status))]
pub struct Reject {
    /// 400, 408, 413, 414, 417, 431, 501 or 505.
    pub status: u16,
    /// For the person at the other end.
    pub why: &'static str,
}

/// What came out of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A request begins. `End` follows, after `Data` if it has a body.
    Head(Request),
    /// A piece of the body, never empty.
    Data(&'a [u8]),
    /// The request is complete.
    End,
}

/// One step of the decoder.
#[derive(Debug, PartialEq, Eq)]
pub struct Step<'a> {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// `None`: more input is needed.
    pub event: Option<Event<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before or within a head; `searched` bytes of it hold no end.
    Head { searched: usize, blank: usize },
    /// Within a body of known length.
    Length { left: u64 },
    /// Before a chunk's size line.
    ChunkLine,
    /// Within a chunk.
    Chunk { left: u64 },
    /// Before the line end that closes a chunk.
    ChunkEnd,
    /// Within the trailers after the last chunk; `read` bytes of them are gone.
    Trailers { read: usize },
    /// The request is complete, `End` not yet told.
    Done,
    /// Refused.
    Failed(Reject),
}

/// Decodes one connection's requests, one after the other.
#[derive(Clone, Debug)]
pub struct Decoder {
    limits: Limits,
    state: State,
    body_read: u64,
}

const HEAD: State = State::Head { searched: 0, blank: 0 };

impl Decoder {
    /// A decoder before the first byte.
    pub fn new(limits: Limits) -> Self {
        Self { limits, state: HEAD, body_read: 0 }
    }

    /// Whether it is between two requests, no byte of the next one seen.
    pub fn is_idle(&self) -> bool {
        self.state == HEAD
    }

    /// Whether a head is complete and its body is not.
    pub fn in_body(&self) -> bool {
        !matches!(self.state, State::Head { .. } | State::Done | State::Failed(_))
    }

    /// Reads on. `input` is what was not consumed so far, with whatever arrived since.
    ///
    /// # Errors
    /// The request is refused; every further call says the same.
    pub fn step<'a>(&mut self, input: &'a [u8]) -> Result<Step<'a>, Reject> {
        let result = self.advance(input);
        if let Err(reject) = result {
            self.state = State::Failed(reject);
        }
        result
    }

    fn advance<'a>(&mut self, input: &'a [u8]) -> Result<Step<'a>, Reject> {
        let mut consumed = 0;
        loop {
            let rest = &input[consumed..];
            let (n, event, again) = match self.state {
                State::Head { searched, blank } => self.head(rest, searched, blank)?,
                State::Length { left } => {
                    let (n, event) = self.data(rest, left);
                    let left = left - n as u64;
                    self.state = if left == 0 { State::Done } else { State::Length { left } };
                    (n, event, left == 0)
                }
                State::ChunkLine => self.chunk_line(rest)?,
                State::Chunk { left } => {
                    let (n, event) = self.data(rest, left);
                    let left = left - n as u64;
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk { left } };
                    (n, event, left == 0)
                }
                State::ChunkEnd => match line(rest, 0) {
                    Line::Complete { len: 0, with_end } => {
                        self.state = State::ChunkLine;
                        (with_end, None, true)
                    }
                    Line::Partial if rest.len() < 2 => (0, None, false),
                    _ => return Err(bad("a chunk is longer than its size says")),
                },
                State::Trailers { read } => self.trailer(rest, read)?,
                State::Done => {
                    self.state = HEAD;
                    (0, Some(Event::End), false)
                }
                State::Failed(reject) => return Err(reject),
            };
            consumed += n;
            if event.is_some() || !again {
                return Ok(Step { consumed, event });
            }
        }
    }

    fn data<'a>(&mut self, rest: &'a [u8], left: u64) -> (usize, Option<Event<'a>>) {
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
        (n, (n > 0).then(|| Event::Data(&rest[..n])))
    }

    fn head<'a>(&mut self, rest: &'a [u8], searched: usize, blank: usize) -> Result<Advance<'a>, Reject> {
        // RFC 9112 section 2.2: empty lines before a request line are skipped. They count towards the head.
        if searched == 0 {
            let skip = rest.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
            if skip > 0 {
                if blank + skip > 64 {
                    return Err(bad("only empty lines where a request should be"));
                }
                self.state = State::Head { searched: 0, blank: blank + skip };
                return Ok((skip, None, true));
            }
        }
        let Some(first) = rest.first() else { return Ok((0, None, false)) };
        if !first.is_ascii_alphabetic() {
            return Err(bad(
                "this is not HTTP (a request begins with a method; is this TLS on a plain port?)",
            ));
        }
        let window = &rest[..rest.len().min(self.limits.head_bytes)];
        let Some(end) = head_end(window, searched) else {
            self.check_request_line(window)?;
            if rest.len() >= self.limits.head_bytes {
                return Err(Reject { status: 431, why: "the header fields are too large" });
            }
            // The end may straddle: look again from three bytes back.
            self.state = State::Head { searched: window.len().saturating_sub(3).max(1), blank };
            return Ok((0, None, false));
        };
        self.check_request_line(&window[..end])?;
        let request = parse_head(&window[..end], &self.limits)?;
        self.body_read = 0;
        self.state = match request.body {
            Body::None | Body::Length(0) => State::Done,
            Body::Length(left) => State::Length { left },
            Body::Chunked => State::ChunkLine,
        };
        Ok((end, Some(Event::Head(request)), false))
    }

    fn check_request_line(&self, window: &[u8]) -> Result<(), Reject> {
        let length = window.iter().position(|b| *b == b'\n').unwrap_or(window.len());
        // Room for a method and the version around the target.
        if length > self.limits.target_bytes + 32
            || (length == window.len() && length == self.limits.head_bytes)
        {
            return Err(Reject { status: 414, why: "the request target is too long" });
        }
        Ok(())
    }

    fn chunk_line<'a>(&mut self, rest: &'a [u8]) -> Result<Advance<'a>, Reject> {
        let (len, with_end) = match line(rest, CHUNK_LINE_BYTES_MAX) {
            Line::Complete { len, with_end } => (len, with_end),
            Line::Partial => return Ok((0, None, false)),
            Line::TooLong => return Err(bad("the line that opens a chunk is too long")),
        };
        let size = chunk_size(&rest[..len]).ok_or(bad("a chunk's size is not a hexadecimal number"))?;
        if size == 0 {
            self.state = State::Trailers { read: 0 };
            return Ok((with_end, None, true));
        }
        self.body_read = self.body_read.saturating_add(size);
        if self.body_read > self.limits.body_bytes {
            return Err(TOO_LARGE);
        }
        self.state = State::Chunk { left: size };
        Ok((with_end, None, true))
    }

    fn trailer<'a>(&mut self, rest: &'a [u8], read: usize) -> Result<Advance<'a>, Reject> {
        let room = self.limits.head_bytes.saturating_sub(read);
        match line(rest, room) {
            Line::Complete { len: 0, with_end } => {
                self.state = State::Done;
                Ok((with_end, None, true))
            }
            Line::Complete { with_end, .. } => {
                self.state = State::Trailers { read: read + with_end };
                Ok((with_end, None, true))
            }
            Line::Partial => Ok((0, None, false)),
            Line::TooLong => Err(Reject { status: 431, why: "the trailer fields are too large" }),
        }
    }
}

/// Bytes consumed, the event if there is one, whether to go on without more input.
type Advance<'a> = (usize, Option<Event<'a>>, bool);

const TOO_LARGE: Reject = Reject { status: 413, why: "the body is larger than this server takes" };

const fn bad(why: &'static str) -> Reject {
    Reject { status: 400, why }
}

enum Line {
    Complete { len: usize, with_end: usize },
    Partial,
    TooLong,
}

/// The line at the start of `rest`, ended by CRLF (a lone LF is refused by the callers' grammar where it matters).
fn line(rest: &[u8], max: usize) -> Line {
    let window = &rest[..rest.len().min(max + 2)];
    match window.iter().position(|b| *b == b'\n') {
        Some(at) if at > 0 && window[at - 1] == b'\r' => Line::Complete { len: at - 1, with_end: at + 1 },
        Some(_) => Line::TooLong,
        None if window.len() >= max + 2 => Line::TooLong,
        None => Line::Partial,
    }
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.iter().position(|b| matches!(b, b';' | b' ' | b'\t')).unwrap_or(line.len());
    let text = std::str::from_utf8(&line[..digits]).ok()?;
    // from_str_radix would take a sign; 15 digits can't overflow.
    if text.is_empty() || text.len() > 15 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(text, 16).ok()
}

/// Where the head ends (after its empty line), looking from `from`.
fn head_end(window: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    while let Some(found) = window.get(at..)?.iter().position(|b| *b == b'\n') {
        let next = at + found + 1;
        match window.get(next..)? {
            [b'\n', ..] => return Some(next + 1),
            [b'\r', b'\n', ..] => return Some(next + 2),
            _ => at = next,
        }
    }
    None
}

fn parse_head(head: &[u8], limits: &Limits) -> Result<Request, Reject> {
    let mut table = [httparse::EMPTY_HEADER; Limits::HEADERS_MAX];
    let room = limits.headers.min(Limits::HEADERS_MAX);
    let mut parsed = httparse::Request::new(&mut table[..room]);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(n)) if n == head.len() => {}
        Ok(_) => return Err(bad("the request's head is malformed")),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Reject { status: 431, why: "too many header fields" });
        }
        Err(httparse::Error::Version) => {
            return Err(Reject { status: 505, why: "only HTTP/1.0 and HTTP/1.1 are spoken here" });
        }
        Err(_) => return Err(bad("the request's head is malformed")),
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(bad("the request line is incomplete"));
    };
    if target.len() > limits.target_bytes {
        return Err(Reject { status: 414, why: "the request target is too long" });
    }
    let headers: Vec<(String, Vec<u8>)> =
        parsed.headers.iter().map(|h| (h.name.to_owned(), h.value.to_vec())).collect();
    let hosts = values(&headers, "host").count();
    if hosts > 1 || (minor == 1 && hosts == 0) {
        return Err(bad("exactly one Host header is needed"));
    }
    let body = framing(&headers, minor, limits)?;
    let expect_continue = match values(&headers, "expect").next() {
        None => false,
        Some(v) if v.eq_ignore_ascii_case(b"100-continue") => minor == 1,
        Some(_) => return Err(Reject { status: 417, why: "the only expectation known is 100-continue" }),
    };
    Ok(Request {
        method: method.to_owned(),
        target: target.to_owned(),
        minor,
        keep_alive: keeps_alive(&headers, minor),
        headers,
        body,
        expect_continue,
    })
}

fn values<'a>(headers: &'a [(String, Vec<u8>)], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_slice())
}

/// RFC 9112 section 6.3, in its strict reading.
fn framing(headers: &[(String, Vec<u8>)], minor: u8, limits: &Limits) -> Result<Body, Reject> {
    let mut codings = values(headers, "transfer-encoding");
    let mut lengths = values(headers, "content-length");
    if let Some(coding) = codings.next() {
        if lengths.next().is_some() || codings.next().is_some() || minor == 0 {
            return Err(bad("the body's framing is ambiguous"));
        }
        if !coding.eq_ignore_ascii_case(b"chunked") {
            return Err(Reject { status: 501, why: "the only transfer coding known is chunked" });
        }
        return Ok(Body::Chunked);
    }
    let Some(length) = lengths.next() else { return Ok(Body::None) };
    if lengths.next().is_some() {
        return Err(bad("several Content-Length headers"));
    }
    let text =
        std::str::from_utf8(length).ok().filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()));
    let text = text.ok_or(bad("Content-Length is not a number"))?;
    // Digits only, so the one way to fail is to overflow.
    let length = text.parse::<u64>().unwrap_or(u64::MAX);
    if length > limits.body_bytes {
        return Err(TOO_LARGE);
    }
    Ok(Body::Length(length))
}

fn keeps_alive(headers: &[(String, Vec<u8>)], minor: u8) -> bool {
    let mut keep = minor == 1;
    for value in values(headers, "connection") {
        for option in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                return false;
            }
            keep |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    keep
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;

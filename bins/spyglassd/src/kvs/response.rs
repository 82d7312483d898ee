//! The service's answer on the connection that we still send on: a head, then a body that may last for hours.
//!
//! Owns the bytes of a head, a chunk's line or a trailer that have not ended yet, each bounded. Never panics on input;
//! after an error it refuses everything.

/// Longest head, in bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Longest line before a chunk, and all trailers together, in bytes.
const LINE_BYTES_MAX: usize = 1024;
const HEADERS_MAX: usize = 64;

/// What came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The head of the final answer (those of 1xx are passed over).
    Head {
        /// Such as 200.
        status: u16,
        /// `x-amzn-errortype`, without what follows a colon; may be empty.
        error_type: String,
    },
    /// Bytes of the body.
    Body(Vec<u8>),
    /// The body is over.
    End,
}

/// Why it can't be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No HTTP/1 answer.
    #[error("the answer is no HTTP/1.1")]
    Head,
    /// A bound.
    #[error("the head of the answer is too long")]
    TooLong,
    /// Damaged chunks, or a coding other than chunked.
    #[error("the body of the answer is framed in a way that can't be understood")]
    Framing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Length(u64),
    UntilClose,
    ChunkLine,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Done,
    Failed(Error),
}

/// Reads one answer from pieces of any size.
#[derive(Debug)]
pub struct Reader {
    state: State,
    held: Vec<u8>,
}

impl Default for Reader {
    fn default() -> Reader {
        Reader { state: State::Head, held: Vec::new() }
    }
}

impl Reader {
    /// Takes a piece; what it completes goes to `out`.
    ///
    /// # Errors
    /// [`Error`]; what came before it is in `out`.
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut Vec<Part>) -> Result<(), Error> {
        loop {
            let before = (self.state, bytes.len());
            match self.step(&mut bytes, out) {
                Ok(()) if (self.state, bytes.len()) == before => return Ok(()),
                Ok(()) => {}
                Err(error) => {
                    self.state = State::Failed(error);
                    return Err(error);
                }
            }
        }
    }

    /// Whether an end of the connection is the end of the body, and not before it.
    #[must_use]
    pub fn may_end(&self) -> bool {
        matches!(self.state, State::UntilClose | State::Done)
    }

    fn step(&mut self, bytes: &mut &[u8], out: &mut Vec<Part>) -> Result<(), Error> {
        match self.state {
            State::Failed(error) => return Err(error),
            State::Head => {
                if let Some(head) = self.until(bytes, b"\r\n\r\n", HEAD_BYTES_MAX)? {
                    self.head(&head, out)?;
                }
            }
            State::Length(left) => {
                let left = left - body(bytes, left, out);
                self.state = if left == 0 { State::Done } else { State::Length(left) };
                if left == 0 {
                    out.push(Part::End);
                }
            }
            State::UntilClose => {
                body(bytes, u64::MAX, out);
            }
            State::ChunkLine => {
                if let Some(line) = self.until(bytes, b"\r\n", LINE_BYTES_MAX)? {
                    let size = chunk_size(&line).ok_or(Error::Framing)?;
                    self.state = if size == 0 { State::Trailers } else { State::Chunk(size) };
                }
            }
            State::Chunk(left) => {
                let left = left - body(bytes, left, out);
                self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
            }
            State::ChunkEnd => {
                if let Some(line) = self.until(bytes, b"\r\n", 2)? {
                    self.state = if line.len() == 2 { State::ChunkLine } else { return Err(Error::Framing) };
                }
            }
            State::Trailers => {
                if let Some(line) = self.until(bytes, b"\r\n", LINE_BYTES_MAX)?
                    && line.len() == 2
                {
                    self.state = State::Done;
                    out.push(Part::End);
                }
            }
            // What follows one answer is nobody's.
            State::Done => *bytes = &[],
        }
        Ok(())
    }

    /// Moves bytes to those held until these end with `mark`; all of them then.
    fn until(&mut self, bytes: &mut &[u8], mark: &[u8], max: usize) -> Result<Option<Vec<u8>>, Error> {
        while let [first, rest @ ..] = *bytes {
            self.held.push(*first);
            *bytes = rest;
            if self.held.ends_with(mark) {
                return Ok(Some(std::mem::take(&mut self.held)));
            }
            if self.held.len() >= max {
                return Err(if mark.len() == 4 { Error::TooLong } else { Error::Framing });
            }
        }
        Ok(None)
    }

    fn head(&mut self, head: &[u8], out: &mut Vec<Part>) -> Result<(), Error> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        response.parse(head).map_err(|_| Error::Head)?;
        let status = response.code.ok_or(Error::Head)?;
        if (100..200).contains(&status) {
            return Ok(());
        }
        let text = |name: &str| {
            let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            found.map(|header| String::from_utf8_lossy(header.value).trim().to_owned())
        };
        self.state = match (text("transfer-encoding"), text("content-length")) {
            (Some(coding), _) if coding.eq_ignore_ascii_case("chunked") => State::ChunkLine,
            (Some(_), _) => return Err(Error::Framing),
            (None, Some(length)) => State::Length(length.parse().map_err(|_| Error::Framing)?),
            (None, None) => State::UntilClose,
        };
        let named = text("x-amzn-errortype").unwrap_or_default();
        let error_type =
            named.split(':').next().unwrap_or_default().chars().filter(char::is_ascii_alphanumeric);
        out.push(Part::Head { status, error_type: error_type.take(64).collect() });
        Ok(())
    }
}

/// Hands on up to `left` bytes; how many.
fn body(bytes: &mut &[u8], left: u64, out: &mut Vec<Part>) -> u64 {
    let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    if n > 0 {
        out.push(Part::Body(bytes[..n].to_vec()));
        *bytes = &bytes[n..];
    }
    n as u64
}

/// The size on a chunk's line (RFC 9112 section 7.1); extensions are passed over.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line).ok()?;
    let digits = line.split(';').next()?.trim();
    if digits.is_empty() || digits.len() > 15 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> (u16, Vec<u8>, bool, Result<(), Error>) {
        let (mut reader, mut out, mut result) = (Reader::default(), Vec::new(), Ok(()));
        for piece in pieces {
            result = reader.feed(piece, &mut out);
        }
        let (mut status, mut bytes, mut end) = (0, Vec::new(), false);
        for part in out {
            match part {
                Part::Head { status: is, .. } => status = is,
                Part::Body(more) => bytes.extend(more),
                Part::End => end = true,
            }
        }
        (status, bytes, end, result)
    }

    #[test]
    fn every_framing_however_it_is_cut() {
        let chunked = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n2\r\nde\r\n0\r\nX: y\r\n\r\n";
        let sized = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\nx-amzn-ErrorType: NotAuthorizedException:http\r\n\r\nabcdeEXTRA";
        for (text, status) in [(&chunked[..], 200), (&sized[..], 403)] {
            for cut in 0..text.len() {
                let (a, b) = text.split_at(cut);
                assert_eq!(read(&[a, b]), (status, b"abcde".to_vec(), true, Ok(())), "{cut}");
            }
        }
        assert_eq!(read(&[b"HTTP/1.1 200 OK\r\n\r\nabc", b"de"]), (200, b"abcde".to_vec(), false, Ok(())));
        let mut out = Vec::new();
        Reader::default().feed(sized, &mut out).unwrap();
        assert_eq!(out[0], Part::Head { status: 403, error_type: "NotAuthorizedException".into() });
    }

    #[test]
    fn what_can_t_be_understood_is_refused() {
        for (text, error) in [
            (&b"220 smtp\r\n\r\n"[..], Error::Head),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", Error::Framing),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", Error::Framing),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", Error::Framing),
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", Error::Framing),
        ] {
            assert_eq!(read(&[text]).3, Err(error), "{}", String::from_utf8_lossy(text));
        }
        assert_eq!(read(&[&[b'a'; HEAD_BYTES_MAX + 1]]).3, Err(Error::TooLong));
    }
}

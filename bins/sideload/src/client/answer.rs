//! The response side: heads by `httparse`, bodies by length, chunks, or until the close (RFC 9112 section 6).
//!
//! Pure: bytes in, pieces out. Invariants: a head is at most [`HEAD_BYTES_MAX`]; framing that could be read in two ways
//! is refused.

/// Longest status line plus headers, in bytes.
pub(super) const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Most header fields.
const HEADERS_MAX: usize = 64;
/// Longest line of a chunk's size, or of a trailer, in bytes.
const LINE_BYTES_MAX: usize = 4096;

/// Status line and headers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) framing: Framing,
    /// The connection lives on after the body.
    pub(super) keep_alive: bool,
}

/// Where the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// It has ended.
    Done,
    /// So many bytes are left.
    Length(u64),
    /// A chunk's size comes next.
    ChunkLine,
    /// So many bytes of a chunk are left.
    Chunk(u64),
    /// The line end after a chunk comes next.
    ChunkEnd,
    /// Trailers.
    Trailers,
    /// With the connection.
    UntilClose,
}

/// What the next bytes of a body are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// So many bytes are framing: drop them, ask again.
    Skip(usize),
    /// So many bytes are content.
    Data(usize),
    /// More bytes are needed.
    More,
    /// The body is complete.
    End,
}

/// Whether bytes that came while a body was being sent are an interim answer (1xx).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Interim {
    /// They are not.
    No,
    /// They may be.
    Partial,
    /// So many bytes are one.
    Whole(usize),
}

/// See [`Interim`].
pub(super) fn interim(bytes: &[u8]) -> Interim {
    const START: &[u8] = b"HTTP/1.1 1";
    if bytes.is_empty() || !bytes.starts_with(&START[..START.len().min(bytes.len())]) {
        return Interim::No;
    }
    match head(bytes, false) {
        Ok(Some((_, length))) => Interim::Whole(length),
        Ok(None) => Interim::Partial,
        Err(_) => Interim::No,
    }
}

/// The head in `bytes` and its length, `None` while it is not complete.
pub(super) fn head(bytes: &[u8], head_request: bool) -> Result<Option<(Head, usize)>, String> {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() > HEAD_BYTES_MAX => {
            return Err("its headers do not end".into());
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("no HTTP response ({error})")),
    };
    let status = response.code.unwrap_or(0);
    let text = |value: &[u8]| String::from_utf8_lossy(value).trim().to_owned();
    let headers: Vec<(String, String)> =
        response.headers.iter().map(|h| (h.name.to_ascii_lowercase(), text(h.value))).collect();
    let all = |name: &str| -> Vec<&str> {
        headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    };
    let connection = |token: &str| {
        all("connection").iter().flat_map(|v| v.split(',')).any(|t| t.trim().eq_ignore_ascii_case(token))
    };
    let framing = if head_request || status < 200 || status == 204 || status == 304 {
        Framing::Done
    } else {
        framing(&all("transfer-encoding"), &all("content-length"))?
    };
    let old = response.version == Some(0);
    let keep_alive =
        framing != Framing::UntilClose && !connection("close") && (!old || connection("keep-alive"));
    Ok(Some((Head { status, headers, framing, keep_alive }, length)))
}

fn framing(codings: &[&str], lengths: &[&str]) -> Result<Framing, String> {
    if !codings.is_empty() {
        return match (codings, lengths) {
            ([coding], []) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::ChunkLine),
            (_, []) => Err(format!("transfer coding {codings:?}")),
            _ => Err("both Transfer-Encoding and Content-Length".into()),
        };
    }
    let Some((first, others)) = lengths.split_first() else {
        return Ok(Framing::UntilClose);
    };
    if others.iter().any(|other| other != first) {
        return Err("several lengths".into());
    }
    let digits = !first.is_empty() && first.bytes().all(|b| b.is_ascii_digit());
    match first.parse() {
        Ok(0) if digits => Ok(Framing::Done),
        Ok(length) if digits => Ok(Framing::Length(length)),
        _ => Err(format!("Content-Length {first:?}")),
    }
}

impl Framing {
    /// What comes first in `bytes`; the state moves on past it.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Result<Piece, String> {
        let up_to = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        match *self {
            Framing::Done => Ok(Piece::End),
            Framing::UntilClose if bytes.is_empty() => Ok(Piece::More),
            Framing::UntilClose => Ok(Piece::Data(bytes.len())),
            Framing::Length(_) | Framing::Chunk(_) if bytes.is_empty() => Ok(Piece::More),
            Framing::Length(left) => {
                let count = up_to(left);
                let left = left - count as u64;
                *self = if left == 0 { Framing::Done } else { Framing::Length(left) };
                Ok(Piece::Data(count))
            }
            Framing::Chunk(left) => {
                let count = up_to(left);
                let left = left - count as u64;
                *self = if left == 0 { Framing::ChunkEnd } else { Framing::Chunk(left) };
                Ok(Piece::Data(count))
            }
            Framing::ChunkLine | Framing::ChunkEnd | Framing::Trailers => self.line(bytes),
        }
    }

    fn line(&mut self, bytes: &[u8]) -> Result<Piece, String> {
        let Some(end) = bytes.iter().take(LINE_BYTES_MAX).position(|b| *b == b'\n') else {
            if bytes.len() >= LINE_BYTES_MAX {
                return Err("a line between chunks does not end".into());
            }
            return Ok(Piece::More);
        };
        let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
        *self = match *self {
            Framing::ChunkEnd if line.is_empty() => Framing::ChunkLine,
            Framing::ChunkEnd => return Err("a chunk is longer than it says".into()),
            Framing::Trailers if line.is_empty() => Framing::Done,
            Framing::Trailers => Framing::Trailers,
            _ => match chunk_size(line) {
                Some(0) => Framing::Trailers,
                Some(size) => Framing::Chunk(size),
                None => return Err("a chunk without a size".into()),
            },
        };
        Ok(Piece::Skip(end + 1))
    }
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|b| *b == b';').next()?.trim_ascii();
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(Head, Vec<u8>, bool), String> {
        let (mut head, length) = head(text.as_bytes(), false)?.ok_or("partial")?;
        let (mut rest, mut body) = (&text.as_bytes()[length..], Vec::new());
        let ended = loop {
            match head.framing.next(rest)? {
                Piece::Skip(count) => rest = &rest[count..],
                Piece::Data(count) => {
                    body.extend_from_slice(&rest[..count]);
                    rest = &rest[count..];
                }
                Piece::More => break false,
                Piece::End => break true,
            }
        };
        Ok((head, body, ended))
    }

    #[test]
    fn bodies_end_where_they_say() {
        let (head, body, ended) = read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhellomore").unwrap();
        assert_eq!((body.as_slice(), ended, head.keep_alive), (&b"hello"[..], true, true));
        let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n";
        let (_, body, ended) = read(text).unwrap();
        assert_eq!((body.as_slice(), ended), (&b"abcde"[..], true));
        for cut in 0..text.len() {
            assert!(!read(&text[..cut]).is_ok_and(|(_, _, ended)| ended), "{cut}");
        }
        let (head, body, ended) = read("HTTP/1.1 200 OK\r\n\r\nall of it").unwrap();
        assert_eq!((body.as_slice(), ended, head.keep_alive), (&b"all of it"[..], false, false));
        let (head, body, ended) = read("HTTP/1.1 204 No\r\nConnection: x, Close\r\n\r\nmore").unwrap();
        assert_eq!((body.as_slice(), ended, head.keep_alive), (&b""[..], true, false));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for fields in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 1\r\nContent-Length: 2\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: \r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
        ] {
            assert!(read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\nabc")).is_err(), "{fields}");
        }
        for body in ["x\r\n", "-1\r\n", "\r\n", "1\r\nab\r\n", "11111111111111111\r\n"] {
            assert!(
                read(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}")).is_err(),
                "{body}"
            );
        }
        assert!(read("SSH-2.0-OpenSSH_9.2\r\n").is_err());
    }
}

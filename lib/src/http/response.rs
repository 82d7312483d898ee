//! Responses: a status, headers, and a body of known length; or the pieces of a chunked one.
//!
//! Invariants: a header that could split the response (CR, LF or NUL in it) is left out rather than sent; the framing
//! headers are written here and nowhere else.

use std::fmt::Write as _;

/// The chunk that ends a chunked body.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// A whole answer, or the head of a chunked one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code, 200 to 599.
    pub status: u16,
    /// Sent as they are; `Content-Length`, `Transfer-Encoding` and `Connection` are not to be among them.
    pub headers: Vec<(&'static str, String)>,
    /// The body. Its length is announced to a HEAD request too, the bytes are not sent.
    pub body: Vec<u8>,
}

impl Response {
    /// An answer with a body of that type.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: vec![("Content-Type", content_type.to_owned())], body: body.into() }
    }

    /// A line of plain text: `status reason: why`.
    pub fn text(status: u16, why: &str) -> Self {
        Self::new(status, "text/plain; charset=utf-8", format!("{status} {}: {why}\n", reason(status)))
    }

    /// A JSON body.
    #[must_use]
    pub fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::new(status, "application/json", value.to_string())
    }

    /// The same with one more header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Appends the answer's bytes to `out`. `head_only` for HEAD; `keep_alive` false announces the close.
    pub fn write(&self, out: &mut Vec<u8>, head_only: bool, keep_alive: bool) {
        // RFC 9110 section 8.6: none of these has a body, and 1xx and 204 may not announce one.
        let bodyless = self.status < 200 || self.status == 204;
        // The length of a 304 is that of the 200 in its place, which is not known where there is no body.
        let unknown = self.status == 304 && self.body.is_empty();
        let length = (!bodyless && !unknown).then(|| format!("Content-Length: {}\r\n", self.body.len()));
        self.head(out, length.as_deref().unwrap_or(""), keep_alive);
        if !head_only && !bodyless && self.status != 304 {
            out.extend_from_slice(&self.body);
        }
    }

    /// Appends the head of a chunked answer (HTTP/1.1 only); `body` is not sent.
    pub fn write_chunked_head(&self, out: &mut Vec<u8>, keep_alive: bool) {
        self.head(out, "Transfer-Encoding: chunked\r\n", keep_alive);
    }

    /// Appends the head of an answer whose `length` bytes follow; `body` is not sent.
    pub fn write_sized_head(&self, out: &mut Vec<u8>, length: u64, keep_alive: bool) {
        self.head(out, &format!("Content-Length: {length}\r\n"), keep_alive);
    }

    fn head(&self, out: &mut Vec<u8>, framing: &str, keep_alive: bool) {
        let mut head = String::with_capacity(256);
        // Writing to a String can't fail.
        let _ = write!(head, "HTTP/1.1 {} {}\r\n{framing}", self.status, reason(self.status));
        for (name, value) in &self.headers {
            let splits = |text: &str| text.contains(['\r', '\n', '\0']);
            if !splits(name) && !splits(value) {
                let _ = write!(head, "{name}: {value}\r\n");
            }
        }
        head.push_str(if keep_alive { "\r\n" } else { "Connection: close\r\n\r\n" });
        out.extend_from_slice(head.as_bytes());
    }
}

/// Appends one chunk; an empty one is left out, because it would end the body.
pub fn chunk(out: &mut Vec<u8>, data: &[u8]) {
    if !data.is_empty() {
        out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

/// The reason phrase of a status.
pub fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        408 => "Request Timeout",
        409 => "Conflict",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "Status",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(response: &Response, head_only: bool, keep: bool) -> String {
        let mut out = Vec::new();
        response.write(&mut out, head_only, keep);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_whole_answer_has_its_length_and_says_when_it_closes() {
        let r = Response::new(200, "text/plain", "hello");
        assert_eq!(
            bytes(&r, false, true),
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Type: text/plain\r\n\r\nhello"
        );
        assert!(bytes(&r, true, false).ends_with("Connection: close\r\n\r\n"));
        assert!(bytes(&r, true, true).contains("Content-Length: 5"));
    }

    #[test]
    fn no_body_where_none_is_allowed() {
        let none = bytes(&Response::new(204, "text/plain", "x"), false, true);
        assert!(!none.contains("Content-Length") && none.ends_with("\r\n\r\n"), "{none}");
        let same = bytes(&Response::new(304, "text/plain", "abc"), false, true);
        assert!(same.contains("Content-Length: 3") && same.ends_with("\r\n\r\n"), "{same}");
    }

    #[test]
    fn a_header_cannot_split_the_answer() {
        let r = Response::new(200, "text/plain", "").with("X", "a\r\nEvil: 1").with("Y", "b");
        let text = bytes(&r, false, true);
        assert!(!text.contains("Evil") && text.contains("Y: b"), "{text}");
    }

    #[test]
    fn chunks_frame_and_never_end_early() {
        let mut out = Vec::new();
        chunk(&mut out, b"");
        chunk(&mut out, &[b'a'; 26]);
        out.extend_from_slice(LAST_CHUNK);
        assert_eq!(out, [b"1a\r\n", [b'a'; 26].as_slice(), b"\r\n0\r\n\r\n"].concat());
    }
}

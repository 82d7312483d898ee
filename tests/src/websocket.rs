//! A WebSocket client that says what it likes (RFC 6455, written anew for the tests): whole messages, single frames, bytes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// Kind of a frame (opcode): text.
pub const TEXT: u8 = 1;
/// Kind of a frame: bytes.
pub const BINARY: u8 = 2;
/// Kind of a frame: the end, with a code.
pub const CLOSE: u8 = 8;
/// Kind of a frame: are you there?
pub const PING: u8 = 9;
/// Kind of a frame: I am.
pub const PONG: u8 = 10;

/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection after its handshake.
pub struct WebSocket {
    /// For bytes of one's own.
    pub stream: TcpStream,
    held: Vec<u8>,
}

/// The head of an upgrade request, with more lines (each ended by CRLF), of an arm that knows the server by any name.
pub fn upgrade(more: &str) -> String {
    upgrade_at("arm.test", more)
}

fn upgrade_at(host: &str, more: &str) -> String {
    format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
    )
}

impl WebSocket {
    /// Connects; panics unless the upgrade is taken.
    pub fn connect(port: u16) -> WebSocket {
        WebSocket::try_connect(port, "").unwrap_or_else(|head| panic!("no upgrade: {head}"))
    }

    /// Connects with more header lines; otherwise the whole answer.
    pub fn try_connect(port: u16, more: &str) -> Result<WebSocket, String> {
        WebSocket::try_request(port, &upgrade(more))
    }

    /// Connects as the page of a browser that was opened at `http://{host}/`.
    pub fn try_page(port: u16, host: &str) -> Result<WebSocket, String> {
        WebSocket::try_request(port, &upgrade_at(host, &format!("Origin: http://{host}\r\n")))
    }

    fn try_request(port: u16, request: &str) -> Result<WebSocket, String> {
        let mut stream = TcpStream::connect(crate::net::local(port)).unwrap();
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut held = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            if let Some(end) = held.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&held[..end]).into_owned();
                if head.starts_with("HTTP/1.1 101") {
                    // The digest that section 1.3 of the RFC gives for this key.
                    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
                    held.drain(..end + 4);
                    return Ok(WebSocket { stream, held });
                }
                // Refused, but kept alive for another request: there is none.
                let _ = stream.shutdown(std::net::Shutdown::Write);
            }
            match stream.read(&mut buffer) {
                Ok(0) => return Err(String::from_utf8_lossy(&held).into_owned()),
                Ok(n) => held.extend_from_slice(&buffer[..n]),
                Err(_) if !held.is_empty() => return Err(String::from_utf8_lossy(&held).into_owned()),
                Err(e) => panic!("no answer to the upgrade: {e}"),
            }
        }
    }

    /// One masked frame; `false` when the peer is gone.
    pub fn frame(&mut self, fin: bool, kind: u8, payload: &[u8]) -> bool {
        self.stream.write_all(&frame(fin, kind, payload)).is_ok()
    }

    /// One whole message.
    pub fn send(&mut self, kind: u8, payload: &[u8]) -> bool {
        self.frame(true, kind, payload)
    }

    /// The next frame: its kind and payload; None when the peer hung up. Panics when nothing comes in time.
    pub fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((used, kind, payload)) = parse(&self.held) {
                self.held.drain(..used);
                return Some((kind, payload));
            }
            let mut buffer = [0; 65_536];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                Ok(n) => self.held.extend_from_slice(&buffer[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    panic!("no frame within {ANSWER:?}")
                }
                Err(_) => return None,
            }
        }
    }

    /// The next answer, as JSON; panics when it is none.
    pub fn answer(&mut self) -> Value {
        loop {
            match self.receive() {
                Some((PING | PONG, _)) => {}
                Some((TEXT, text)) => return serde_json::from_slice(&text).unwrap(),
                other => panic!("no answer but {other:?}"),
            }
        }
    }

    /// The code of the close that comes next; 0 when the peer hangs up without one.
    pub fn close_code(&mut self) -> u16 {
        loop {
            match self.receive() {
                Some((CLOSE, payload)) if payload.len() >= 2 => {
                    return u16::from_be_bytes([payload[0], payload[1]]);
                }
                Some((CLOSE, _)) | None => return 0,
                Some(_) => {}
            }
        }
    }

    /// A text message and its answer.
    pub fn ask(&mut self, text: &Value) -> Value {
        assert!(self.send(TEXT, text.to_string().as_bytes()));
        self.answer()
    }

    /// A picture and its answer.
    pub fn picture(&mut self, headers: &Value, picture: &[u8]) -> Value {
        assert!(self.send(BINARY, &message(headers, picture)));
        self.answer()
    }
}

/// Headers, separator, picture.
pub fn message(headers: &Value, picture: &[u8]) -> Vec<u8> {
    [headers.to_string().as_bytes(), b"___SPLIT___", picture].concat()
}

/// A client's frame.
pub fn frame(fin: bool, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let mut out = vec![u8::from(fin) << 7 | kind];
    match payload.len() {
        n @ 0..126 => out.push(0x80 | n as u8),
        n @ 126..65_536 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(n as u16).to_be_bytes());
        }
        n => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(n as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

/// A server's frame at the start: its length, kind and payload.
fn parse(held: &[u8]) -> Option<(usize, u8, Vec<u8>)> {
    let (first, second) = (*held.first()?, *held.get(1)?);
    assert!(second & 0x80 == 0, "a server does not mask");
    let (at, length) = match second {
        126 => (4, usize::from(u16::from_be_bytes(held.get(2..4)?.try_into().unwrap()))),
        127 => (10, u64::from_be_bytes(held.get(2..10)?.try_into().unwrap()) as usize),
        n => (2, usize::from(n)),
    };
    let payload = held.get(at..at + length)?.to_vec();
    assert!(first & 0x80 != 0, "answers are not fragmented");
    Some((at + length, first & 0x0f, payload))
}

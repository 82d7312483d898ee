//! For tests: an HTTP server that answers as a script says, over kept-alive connections.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// What to answer.
pub enum Answer {
    /// Status, headers (with line ends), body.
    Http(u16, &'static str, String),
    /// These bytes, then the end.
    Raw(Vec<u8>),
    /// A reset in the place of an answer.
    Reset,
    /// Nothing, for two seconds.
    Stall,
}

pub fn ok() -> Answer {
    Answer::Http(200, "", String::new())
}

pub fn error(status: u16, code: &str) -> Answer {
    Answer::Http(status, "", format!("<Error><Code>{code}</Code><Message>because</Message></Error>"))
}

pub struct Server {
    pub address: SocketAddr,
    pub requests: Arc<Mutex<Vec<Request>>>,
    pub connections: Arc<AtomicUsize>,
}

impl Server {
    /// `script` gets the request and how many came before it.
    pub fn start(script: impl Fn(usize, &Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (script, seen, count) = (Arc::new(script), Arc::clone(&requests), Arc::clone(&connections));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let (script, seen) = (Arc::clone(&script), Arc::clone(&seen));
                std::thread::spawn(move || serve(stream.unwrap(), &*script, &seen));
            }
        });
        Self { address, requests, connections }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, script: &dyn Fn(usize, &Request) -> Answer, seen: &Mutex<Vec<Request>>) {
    let mut buffer = Vec::new();
    while let Some(request) = read(&mut stream, &mut buffer) {
        let n = {
            let mut seen = seen.lock().unwrap();
            seen.push(request.clone());
            seen.len() - 1
        };
        match script(n, &request) {
            Answer::Http(status, headers, body) => {
                let length = if headers.to_lowercase().contains("content-length") {
                    String::new()
                } else {
                    format!("Content-Length: {}\r\n", body.len())
                };
                let sent = if request.method == "HEAD" { "" } else { &body };
                let text = format!("HTTP/1.1 {status} X\r\n{headers}{length}\r\n{sent}");
                if stream.write_all(text.as_bytes()).is_err() {
                    return;
                }
            }
            Answer::Raw(bytes) => {
                let _ = stream.write_all(&bytes);
                return;
            }
            Answer::Reset => {
                let socket = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
                socket.unwrap();
                return;
            }
            Answer::Stall => std::thread::sleep(Duration::from_secs(2)),
        }
    }
}

fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Request> {
    let mut piece = [0; 8192];
    let mut more = |buffer: &mut Vec<u8>| match stream.read(&mut piece) {
        Ok(0) | Err(_) => None,
        Ok(n) => {
            buffer.extend_from_slice(&piece[..n]);
            Some(())
        }
    };
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        more(buffer)?;
    };
    let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|l| l.split_once(':'))
        .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(n, _)| n == "content-length").map_or(0, |(_, v)| v.parse().unwrap());
    while buffer.len() < end + length {
        more(buffer)?;
    }
    let body = buffer[end..end + length].to_vec();
    buffer.drain(..end + length);
    Some(Request { method, target, headers, body })
}

//! A package server of a test's own, which misbehaves on request; and a publisher's key and statements, made by the
//! `minisign` crate and from the documented form, without our own library.
//!
//! One thread a connection. What is to go wrong is queued per path ([`Server::fault`]) and happens once, in order; after
//! that the server behaves. It notes every request: when, for what, and how many bytes of body it sent.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::scratch::Scratch;

/// Longest that a stalled answer hangs.
const STALL: Duration = Duration::from_secs(30);

/// A publisher.
pub struct Key {
    /// The public half, as minisign writes it.
    pub public: PathBuf,
    pair: minisign::KeyPair,
}

impl Key {
    /// A new one; the file is `<name>.pub`.
    pub fn new(scratch: &Scratch, name: &str) -> Key {
        let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        let public = scratch.write(&format!("{name}.pub"), pair.pk.to_box().unwrap().to_string());
        Key { public, pair }
    }

    /// Signs as `minisign -S` does.
    pub fn sign(&self, text: &str) -> String {
        minisign::sign(Some(&self.pair.pk), &self.pair.sk, text.as_bytes(), None, None).unwrap().into_string()
    }
}

/// A release: what is said of it, and its file.
#[derive(Clone)]
pub struct Release {
    /// The statement, before it is signed.
    pub statement: Value,
    /// The file.
    pub content: Vec<u8>,
}

impl Release {
    /// A release for everybody in `prod`, of version `<epoch>.0.0`.
    pub fn new(app: &str, epoch: u64, content: impl Into<Vec<u8>>) -> Release {
        let content = content.into();
        let statement = json!({
            "v": 1, "app": app, "version": format!("{epoch}.0.0"), "env": "prod", "epoch": epoch,
            "md5": md5(&content), "sha256": sha256(&content), "size": content.len(),
            "attrs": ["gamer"], "min-epoch": 0, "from-epoch": 0, "rollout": 100, "salt": "salt",
        });
        Release { statement, content }
    }

    /// The same with another field in its statement.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Release {
        self.statement[key] = value.into();
        self
    }

    /// SHA-256 of its file.
    pub fn sha256(&self) -> String {
        sha256(&self.content)
    }

    /// Its entry in the details, signed.
    pub fn entry(&self, key: &Key) -> Value {
        let statement = self.statement.to_string();
        let signature = key.sign(&statement);
        let mut entry = self.unsigned();
        entry["statement"] = statement.into();
        entry["signature"] = signature.into();
        entry
    }

    /// Its entry in the details, as a server without keys has it.
    pub fn unsigned(&self) -> Value {
        let (md5, sha256) = (md5(&self.content), self.sha256());
        json!({ "latestVersion": self.statement["version"], "url": "s3://bucket/x", "status_code": 200, "md5": md5,
                "sha256": sha256, "size": self.content.len(), "download": format!("/blob/{sha256}") })
    }
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// MD5 in hexadecimal.
pub fn md5(bytes: &[u8]) -> String {
    format!("{:x}", md5::compute(bytes))
}

/// What goes wrong with one answer.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Another answer: status, headers, body.
    Answer(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// The connection is cut after so many bytes of the body.
    Cut(usize),
    /// After so many bytes of the body nothing comes any more; the connection stays.
    Stall(usize),
    /// Not even a status comes.
    Silence,
    /// `Content-Length` says this; then the connection is closed.
    Length(usize),
    /// No `Content-Length`: the end of the connection is the end of the body.
    NoLength,
}

/// What a client asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// When it had come.
    pub at: Instant,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// What it was answered; 0: nothing.
    pub status: u16,
    /// Bytes of the body that were sent.
    pub sent: usize,
}

impl Request {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Default)]
struct Shared {
    /// The body of `/package`.
    package: Vec<u8>,
    package_type: &'static str,
    package_headers: Vec<(&'static str, String)>,
    /// By path: ETag and content.
    blobs: Vec<(String, String, Vec<u8>)>,
    faults: Vec<(String, Fault)>,
    requests: Vec<Request>,
    stop: bool,
}

/// The server.
pub struct Server {
    /// `http://127.0.0.1:port`.
    pub address: String,
    shared: Arc<Mutex<Shared>>,
}

impl Server {
    /// One that knows no app.
    pub fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Mutex::new(Shared::default()));
        let server = Server { address, shared };
        server.package(b"{}".to_vec(), "application/json");
        let shared = Arc::clone(&server.shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.lock().unwrap().stop {
                    return;
                }
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || while serve(&stream, &shared).is_some() {});
            }
        });
        server
    }

    /// Offers this, signed, with its file.
    pub fn publish(&self, release: &Release, key: &Key) {
        self.offer(&[(release.statement["app"].as_str().unwrap(), release.entry(key))]);
        self.blob(&format!("/blob/{}", release.sha256()), &release.content);
    }

    /// Offers these apps.
    pub fn offer(&self, apps: &[(&str, Value)]) {
        let map: serde_json::Map<String, Value> =
            apps.iter().map(|(app, entry)| ((*app).to_owned(), entry.clone())).collect();
        self.package(Value::Object(map).to_string().into_bytes(), "application/json");
    }

    /// `/package` answers this.
    pub fn package(&self, body: Vec<u8>, kind: &'static str) {
        let mut shared = self.shared.lock().unwrap();
        (shared.package, shared.package_type) = (body, kind);
    }

    /// `/package` answers with these headers as well.
    pub fn package_headers(&self, headers: &[(&'static str, &str)]) {
        self.shared.lock().unwrap().package_headers =
            headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    }

    /// A path has this content; its ETag is strong, and another one when the content is.
    pub fn blob(&self, path: &str, content: &[u8]) {
        let mut shared = self.shared.lock().unwrap();
        shared.blobs.retain(|(known, ..)| known != path);
        shared.blobs.push((path.to_owned(), format!("\"{}\"", md5(content)), content.to_vec()));
    }

    /// The next answer to a path that begins so goes wrong. Queued behind those before.
    pub fn fault(&self, path: &str, fault: Fault) {
        self.shared.lock().unwrap().faults.push((path.to_owned(), fault));
    }

    /// What was asked so far for paths that begin so.
    pub fn requests(&self, path: &str) -> Vec<Request> {
        let shared = self.shared.lock().unwrap();
        shared.requests.iter().filter(|request| request.path.starts_with(path)).cloned().collect()
    }

    /// Forgets what was asked, and faults that did not happen.
    pub fn clear(&self) {
        let mut shared = self.shared.lock().unwrap();
        shared.requests.clear();
        shared.faults.clear();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A panic of a test while it had the lock must not hide what it says.
        if let Ok(mut shared) = self.shared.lock() {
            shared.stop = true;
        }
        // Wakes the listener.
        let _ = TcpStream::connect(self.address.trim_start_matches("http://"));
    }
}

/// What is sent.
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// One request of a connection; None ends it.
fn serve(stream: &TcpStream, shared: &Mutex<Shared>) -> Option<()> {
    let (path, headers) = read_request(stream)?;
    let (reply, fault, index) = {
        let mut shared = shared.lock().unwrap();
        let found = shared.faults.iter().position(|(prefix, _)| path.starts_with(prefix.as_str()));
        let fault = found.map(|at| shared.faults.remove(at).1);
        let request = Request { at: Instant::now(), path, headers, status: 0, sent: 0 };
        let reply = reply(&shared, &request);
        shared.requests.push(request);
        (reply, fault, shared.requests.len() - 1)
    };
    let note = |status: u16, sent: usize| {
        if let Some(request) = shared.lock().unwrap().requests.get_mut(index) {
            (request.status, request.sent) = (status, sent);
        }
    };
    let (mut reply, mut length, mut end) = (reply, None, None);
    match fault {
        Some(Fault::Answer(status, headers, body)) => reply = Reply { status, headers, body },
        Some(Fault::Silence) => {
            wait_gone(stream);
            return None;
        }
        Some(Fault::Cut(at)) => end = Some((at, false)),
        Some(Fault::Stall(at)) => end = Some((at, true)),
        Some(Fault::Length(said)) => (length, end) = (Some(Some(said)), Some((reply.body.len(), false))),
        Some(Fault::NoLength) => (length, end) = (Some(None), Some((reply.body.len(), false))),
        None => {}
    }
    let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
    if let Some(length) = length.unwrap_or(Some(reply.body.len())) {
        head += &format!("Content-Length: {length}\r\n");
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut out = stream;
    let body = &reply.body[..end.map_or(reply.body.len(), |(at, _)| at.min(reply.body.len()))];
    note(reply.status, body.len());
    out.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| out.write_all(body)).ok()?;
    match end {
        None => return Some(()),
        Some((_, true)) => wait_gone(stream),
        Some((_, false)) => {}
    }
    // A client that has not read all sees what was sent before it sees the end.
    let _ = stream.shutdown(Shutdown::Write);
    None
}

fn reply(shared: &Shared, request: &Request) -> Reply {
    if request.path.starts_with("/package") {
        let mut headers = vec![("Content-Type", shared.package_type.to_owned())];
        headers.extend(shared.package_headers.iter().cloned());
        return Reply { status: 200, headers, body: shared.package.clone() };
    }
    let Some((_, etag, content)) = shared.blobs.iter().find(|(path, ..)| *path == request.path) else {
        return Reply { status: 404, headers: vec![], body: b"nothing".to_vec() };
    };
    let mut headers = vec![("ETag", etag.clone()), ("Accept-Ranges", "bytes".to_owned())];
    let from =
        request.header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let same = request.header("if-range").is_none_or(|wanted| wanted == etag);
    match from {
        Some(from) if same && from < content.len() => {
            headers.push(("Content-Range", format!("bytes {from}-{}/{}", content.len() - 1, content.len())));
            Reply { status: 206, headers, body: content[from..].to_vec() }
        }
        Some(_) if same => Reply { status: 416, headers, body: vec![] },
        _ => Reply { status: 200, headers, body: content.clone() },
    }
}

/// Path and headers.
fn read_request(stream: &TcpStream) -> Option<(String, Vec<(String, String)>)> {
    // Requests have no body, and the client sends the next one when it has the answer: nothing is read too far.
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Some((path, headers)) };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// Until the client has closed its side, or has been waiting for too long.
fn wait_gone(mut stream: &TcpStream) {
    let _ = stream.set_read_timeout(Some(STALL));
    let _ = std::io::Read::read(&mut stream, &mut [0; 1]);
}

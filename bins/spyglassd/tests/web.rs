//! The page over real sockets, in a real browser.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/chromium.rs"]
mod chromium;
mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use chromium::Browser;
use mio::{Events, Poll};
use serde_json::{Value, json};
use spyglassd::unit::Unit;
use spyglassd::web::{Config, Raw, Users, Web};
use support::{Scratch, encode, have, run};

/// A loop as the daemon's: a frame every 40 ms to everybody, key frames when asked for or every two seconds.
struct Rig {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    viewers: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    wanted: Arc<Mutex<Vec<bool>>>,
}

impl Rig {
    fn start(units: Vec<Unit>, users: Option<Users>, viewer_bytes_max: usize) -> Rig {
        let raw =
            Raw { listen: "127.0.0.1:0".into(), hosts: vec!["cams.example.org".into()], ..Raw::default() };
        let loaded = edge::config::parse::<Raw>("web.toml".as_ref(), String::new()).unwrap();
        let config = Config { viewer_bytes_max, ..raw.to_config(&loaded, "web").unwrap() };
        let (stop, viewers, connections) = <(Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let wanted: Arc<Mutex<Vec<bool>>> = Arc::default();
        let (send, receive) = mpsc::channel();
        let shared = (Arc::clone(&stop), Arc::clone(&viewers), Arc::clone(&connections), Arc::clone(&wanted));
        let thread = std::thread::spawn(move || serve(&config, users, &units, &send, &shared));
        let address = receive.recv().unwrap();
        Rig { address, stop, thread: Some(thread), viewers, connections, wanted }
    }

    fn get(&self, path: &str, more: &str) -> (u16, String, Vec<u8>) {
        self.get_at("localhost", path, more)
    }

    /// With that `Host`.
    fn get_at(&self, host: &str, path: &str, more: &str) -> (u16, String, Vec<u8>) {
        let mut socket = TcpStream::connect(self.address).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}\r\n").unwrap();
        let mut all = Vec::new();
        socket.read_to_end(&mut all).unwrap();
        let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(all[..end].to_vec()).unwrap();
        (head[9..12].parse().unwrap(), head, all[end + 4..].to_vec())
    }

    fn watch(&self, path: &str) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
        socket
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

type Shared = (Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<Mutex<Vec<bool>>>);

fn serve(
    config: &Config,
    users: Option<Users>,
    units: &[Unit],
    told: &mpsc::Sender<SocketAddr>,
    shared: &Shared,
) {
    let (stop, viewers, connections, wanted) = shared;
    let mut poll = Poll::new().unwrap();
    let mut web = Web::bind(config, poll.registry(), users).unwrap();
    web.set_streams(&["gate".to_owned(), "yard".to_owned()], Instant::now());
    told.send(web.address().unwrap()).unwrap();
    let keys: Vec<usize> = (0..units.len()).filter(|n| units[*n].key).collect();
    let start = Instant::now();
    let (mut n, mut at) = (0_u64, 0);
    let mut events = Events::with_capacity(64);
    let picture: Arc<[u8]> = vec![0xFF; 5000].into();
    while !stop.load(Ordering::Relaxed) {
        let due = start + Duration::from_millis(40) * u32::try_from(n).unwrap();
        let timeout = edge::timer::poll_timeout(Instant::now(), [Some(due), web.deadline(Instant::now())]);
        poll.poll(&mut events, timeout).unwrap();
        let now = Instant::now();
        let mut status = || json!({ "all": "well" });
        for event in &events {
            if web.owns(event.token()) {
                web.ready(poll.registry(), event, now, &mut status);
            }
        }
        if web.deadline(now).is_some_and(|at| at <= now) {
            web.timer(poll.registry(), now, &mut status);
        }
        if now >= due {
            // A key frame when somebody came: the nearest one ahead in the loop of prepared frames.
            if web.take_joined("gate") {
                at = keys.iter().copied().find(|key| *key >= at).unwrap_or(0);
            }
            let wall_ms = edge::clock::unix_ms();
            let unit = Unit { pts_ns: n * 40_000_000, wall_ms, ..units[at].clone() };
            web.push("gate", &unit, now);
            if web.wants_jpeg("gate") && n.is_multiple_of(5) {
                web.push_jpeg("gate", &picture, now);
            }
            (n, at) = (n + 1, (at + 1) % units.len());
        }
        web.flush(now);
        viewers.store(web.viewers("gate"), Ordering::Relaxed);
        connections.store(web.connections(), Ordering::Relaxed);
        *wanted.lock().unwrap() = vec![web.wants("gate"), web.wants_jpeg("gate")];
    }
}

/// Reads chunks until `mark` came so often; what they hold.
fn read_until(mut socket: TcpStream, mark: &[u8], times: usize) -> Vec<u8> {
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let (mut all, mut buffer) = (Vec::new(), vec![0; 65_536]);
    while count(&all, mark) < times {
        let got = socket.read(&mut buffer).expect("something comes within 30 s");
        assert_ne!(got, 0, "the stream ended after {} of {times}", count(&all, mark));
        all.extend_from_slice(&buffer[..got]);
    }
    let head = all.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    assert!(String::from_utf8_lossy(&all[..head]).contains("chunked"));
    let (mut at, mut body) = (head, Vec::new());
    while let Some(end) = all[at..].windows(2).position(|w| w == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&all[at..at + end]).unwrap(), 16).unwrap();
        let Some(chunk) = all.get(at + end + 2..at + end + 2 + size) else { break };
        body.extend_from_slice(chunk);
        at = (at + end + 2 + size + 2).min(all.len());
    }
    body
}

fn count(body: &[u8], mark: &[u8]) -> usize {
    body.windows(mark.len()).filter(|w| *w == mark).count()
}

fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A stranger's page whose name was given this machine's address sees nothing; nor does it show a picture as its own.
fn strangers_see_nothing(rig: &Rig) {
    for host in ["evil.example:18555", "evil.cams.example.org", "localhost.evil.example"] {
        for path in ["/", "/streams.json", "/status.json", "/gate", "/gate.jpg", "/gate.mp4", "/none"] {
            let (status, head, body) = rig.get_at(host, path, "");
            let body = String::from_utf8_lossy(&body).into_owned();
            assert!(
                status == 403 && body.contains("add the name to [web] hosts in"),
                "{host}{path}: {head} {body}"
            );
        }
    }
    for host in ["127.0.0.1:8555", "[::1]:8555", "10.0.0.7", "LOCALHOST", "cams.example.org:443"] {
        assert_eq!(rig.get_at(host, "/streams.json", "").0, 200, "{host}");
    }
    for path in ["/", "/streams.json", "/status.json", "/gate.jpg"] {
        let (_, head, _) = rig.get(path, "");
        for line in ["Cross-Origin-Resource-Policy: same-origin", "Cache-Control: no-store"] {
            assert_eq!(head.matches(line).count(), 1, "{path}: {head}");
        }
    }
    let mut live = rig.watch("/gate.mjpg");
    let mut head = [0; 400];
    let got = live.read(&mut head).unwrap();
    assert!(String::from_utf8_lossy(&head[..got]).contains("Resource-Policy: same-origin"), "{head:?}");
    drop(live);
}

#[test]
fn pages_streams_and_who_may_see_them() {
    if !have("pages_streams_and_who_may_see_them", &["ffmpeg", "ffprobe"]) {
        return;
    }
    let scratch = Scratch::new("web");
    let units = encode(&scratch.0, (320, 180), 100, 50, 0);
    let rig = Rig::start(units.clone(), None, 4 << 20);
    let (status, head, body) = rig.get("/", "");
    assert!(
        status == 200 && head.contains("default-src 'none'") && body.starts_with(b"<!doctype html>"),
        "{head}"
    );
    assert_eq!(
        (rig.get("/gate", "").0, rig.get("/app.js", "").0, rig.get("/app.css", "").0),
        (200, 200, 200)
    );
    for path in ["/none", "/none.mp4", "/gate.avi", "/gate/", "//", "/%67ate.mp4"] {
        assert_eq!(rig.get(path, "").0, 404, "{path}");
    }
    let json = |path: &str| -> Value { serde_json::from_slice(&rig.get(path, "").2).unwrap() };
    assert_eq!(json("/status.json"), json!({ "all": "well" }));
    assert_eq!(json("/streams.json")["streams"][1]["name"], "yard");
    assert_eq!(*rig.wanted.lock().unwrap(), [false, false], "nobody watches, nothing is wanted");

    // A late viewer gets an initialisation segment and a key frame first.
    let body = read_until(rig.watch("/gate.mp4"), b"moof", 60);
    assert_eq!(&body[4..8], b"ftyp");
    let path = scratch.join("live.mp4");
    std::fs::write(&path, &body).unwrap();
    let frames = run(Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"])
        .arg(&path));
    let frames: usize = frames.trim().parse().expect(&frames);
    // What came after the last mark may be cut off.
    assert!(frames >= 59, "{frames} frames of 60");
    until("the viewer is gone", || rig.viewers.load(Ordering::Relaxed) == 0);

    let body = read_until(rig.watch("/gate.mjpg"), b"--picture\r\n", 6);
    assert!(count(&body, &[0xFF; 5000]) >= 5, "whole pictures");
    let (status, head, body) = rig.get("/gate.jpg", "");
    assert!(status == 200 && head.contains("image/jpeg") && body.len() == 5000, "{head}");
    let asked = Instant::now();
    assert_eq!(rig.get("/yard.jpg", "").0, 503);
    assert!(asked.elapsed() >= Duration::from_secs(4));

    strangers_see_nothing(&rig);

    let users: Users = Arc::new(|user, password| user == "eve" && password == "a:b");
    let rig = Rig::start(units, Some(users), 4 << 20);
    let (status, head, _) = rig.get("/", "");
    assert!(status == 401 && head.contains("WWW-Authenticate: Basic"), "{head}");
    for (value, status) in
        [("Basic ZXZlOmE6Yg==", 200), ("Basic ZXZlOmE=", 401), ("Bearer ZXZlOmE6Yg==", 401), ("x", 401)]
    {
        assert_eq!(rig.get("/gate", &format!("Authorization: {value}\r\n")).0, status, "{value}");
    }
}

#[test]
fn names_are_asked_for_on_loopback_only() {
    let checked = |listen: &str, hosts: &[&str]| {
        let hosts = hosts.iter().map(|host| (*host).to_owned()).collect();
        let raw = Raw { listen: listen.into(), hosts, ..Raw::default() };
        raw.to_config(&edge::config::parse::<Raw>("web.toml".as_ref(), String::new()).unwrap(), "web")
    };
    let hosts = |listen: &str, hosts: &[&str]| checked(listen, hosts).unwrap().hosts;
    for listen in ["127.0.0.1:8555", "[::1]:8555", "localhost:8555", "127.0.0.2:1"] {
        assert_eq!(hosts(listen, &["device"]), Some(vec!["device".to_owned()]), "{listen}");
    }
    for listen in ["0.0.0.0:8555", "[::]:8555", "10.0.0.7:8555", ""] {
        assert_eq!(hosts(listen, &["device"]), None, "{listen}");
    }
    let error = checked("127.0.0.1:8555", &["device:8555"]).unwrap_err().to_string();
    assert!(error.contains("web.hosts") && error.contains("\"device:8555\""), "{error}");
}

#[test]
fn a_slow_viewer_costs_the_others_nothing() {
    if !have("a_slow_viewer_costs_the_others_nothing", &["ffmpeg"]) {
        return;
    }
    let scratch = Scratch::new("web-slow");
    let units = encode(&scratch.0, (640, 360), 100, 50, 0);
    let rig = Rig::start(units, None, 256 << 10);
    // These read nothing: what waits for them is bounded, and in the end they go.
    let slow: Vec<TcpStream> = (0..5).map(|_| rig.watch("/gate.mp4")).collect();
    until("they watch", || rig.viewers.load(Ordering::Relaxed) == 5);
    // Who reads gets every frame, whatever the others leave unread.
    read_until(rig.watch("/gate.mp4"), b"moof", 100);
    drop(slow);
    until("all are gone", || {
        rig.viewers.load(Ordering::Relaxed) == 0 && rig.connections.load(Ordering::Relaxed) == 0
    });
    until("nothing is wanted any more", || *rig.wanted.lock().unwrap() == [false, false]);
}

#[test]
fn a_browser_plays_it() {
    if !have("a_browser_plays_it", &["ffmpeg", "chromium", "mkfifo"]) {
        return;
    }
    let scratch = Scratch::new("web-browser");
    let units = encode(&scratch.0, (640, 360), 250, 50, 0);
    let rig = Rig::start(units, None, 4 << 20);
    let mut browser = Browser::open(&scratch.0, &format!("http://{}/gate", rig.address));
    assert!(browser.watch(), "the picture changes");
    assert_eq!(browser.value("document.getElementById('video').videoWidth"), 640);
    until("it is counted", || rig.viewers.load(Ordering::Relaxed) == 1);
    let text = browser.value("document.body.innerText").as_str().unwrap().to_owned();
    assert!(text.contains("Live.") && text.contains("640×360"), "{text}");
    let delay = browser.value("document.getElementById('delay').textContent").as_str().unwrap().to_owned();
    let delay: f64 = delay.trim_end_matches(" s").parse().expect(&delay);
    println!("delay in the browser: {delay} s");
    assert!((-0.2..30.0).contains(&delay), "{delay}");
    // The list names both streams.
    browser.value(&format!("location.href = 'http://{}/'", rig.address));
    browser.wait("document.body && document.body.innerText.includes('yard')");
    until("the player is gone", || rig.viewers.load(Ordering::Relaxed) == 0);
}

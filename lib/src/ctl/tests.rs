//! Tests of the control socket, with curl and raw clients against a loop on a thread.

use std::os::unix::net::UnixStream as Peer;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::*;

/// A folder of its own that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("edge-ctl-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A daemon's loop around a control socket, on a thread.
struct Daemon {
    folder: Folder,
    stop: Arc<AtomicBool>,
    clients: Arc<Mutex<usize>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

fn pages(path: &str) -> Option<Reply> {
    match path {
        "/status" => Some(Reply::Json(serde_json::json!({"name": "test", "big": "x".repeat(100_000)}))),
        "/metrics" => {
            let mut m = Metrics::new();
            m.counter("t_total", "t", &[], 1);
            Some(Reply::Metrics(m))
        }
        _ => None,
    }
}

impl Daemon {
    fn start() -> Self {
        let folder = Folder::new();
        let path = folder.0.join("ctl.sock");
        let mut poll = mio::Poll::new().unwrap();
        let mut ctl = Ctl::bind(&path, poll.registry()).unwrap();
        let (stop, clients) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(0)));
        let (stopped, seen) = (Arc::clone(&stop), Arc::clone(&clients));
        let thread = std::thread::spawn(move || {
            let mut events = mio::Events::with_capacity(16);
            while !stopped.load(Ordering::Relaxed) {
                poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
                let now = Instant::now();
                for event in &events {
                    assert!(Ctl::owns(event.token()));
                    ctl.ready(poll.registry(), event.token(), now, &mut pages);
                }
                // Time runs sixty times as fast here, so that the timeouts can be seen.
                if ctl.deadline().is_some_and(|d| d <= now + Duration::from_secs(4)) {
                    ctl.timer(poll.registry(), now + Duration::from_secs(4), &mut pages);
                }
                *seen.lock().unwrap() = ctl.clients.len();
            }
        });
        Self { folder, stop, clients, thread: Some(thread) }
    }

    fn path(&self) -> PathBuf {
        self.folder.0.join("ctl.sock")
    }

    fn talk(&self, request: &str) -> String {
        let mut peer = Peer::connect(self.path()).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        peer.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        peer.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

#[test]
fn curl_reads_both_pages() {
    let daemon = Daemon::start();
    let curl = |args: &[&str]| {
        let out = Command::new("curl")
            .args(["-sS", "-m", "10", "--unix-socket"])
            .arg(daemon.path())
            .args(args)
            .output();
        out.map(|o| String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned())
    };
    let Ok(text) = curl(&["http://edge/status", "http://edge/status"]) else {
        eprintln!("SKIPPED curl_reads_both_pages: there is no curl here");
        return;
    };
    assert_eq!(text.matches("\"name\": \"test\"").count(), 2, "{}", &text[..200.min(text.len())]);
    assert!(text.len() > 200_000);
    let text = curl(&["-i", "http://edge/metrics"]).unwrap();
    assert!(text.contains("# TYPE t_total counter\nt_total 1\n"), "{text}");
    let text = curl(&["-I", "http://edge/metrics"]).unwrap();
    assert!(text.contains("200 OK") && !text.contains("t_total"), "{text}");
}

#[test]
fn every_wrong_request_has_its_status() {
    let daemon = Daemon::start();
    let status = |request: &str| daemon.talk(request).split(' ').nth(1).map(str::to_owned).unwrap();
    assert_eq!(status("GET /x HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n"), "404");
    assert_eq!(status("POST /status HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n"), "405");
    assert_eq!(status("BREW /status HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n"), "501");
    assert_eq!(status("POST /status HTTP/1.1\r\nHost: e\r\nContent-Length: 5\r\n\r\nhello"), "413");
    assert_eq!(status("nonsense\r\n\r\n"), "400");
    assert_eq!(status(&format!("GET /{} HTTP/1.1\r\nHost: e\r\n\r\n", "x".repeat(8000))), "414");
    assert_eq!(status("GET /status HTTP/1.1\r\n"), "408", "half a head, then silence");
    assert!(
        daemon
            .talk("POST /status HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n")
            .contains("Allow: GET, HEAD")
    );
}

#[test]
fn many_clients_are_served_though_few_at_once() {
    let daemon = Daemon::start();
    let mut peers: Vec<Peer> =
        (0..3 * CONNECTIONS_MAX).map(|_| Peer::connect(daemon.path()).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(100));
    assert!(*daemon.clients.lock().unwrap() <= CONNECTIONS_MAX);
    for peer in &mut peers {
        peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        peer.write_all(b"GET /metrics HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        peer.read_to_string(&mut text).unwrap();
        assert!(text.contains("t_total 1"), "{text}");
    }
}

#[test]
fn pipelined_requests_are_all_answered() {
    let daemon = Daemon::start();
    let mut stream = "GET /metrics HTTP/1.1\r\nHost: e\r\n\r\n".repeat(99);
    stream.push_str("GET /metrics HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n");
    assert_eq!(daemon.talk(&stream).matches("t_total 1").count(), 100);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let folder = Folder::new();
    let path = folder.0.join("ctl.sock");
    let poll = mio::Poll::new().unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "std leaves the file");
    let ctl = Ctl::bind(&path, poll.registry()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let other = mio::Poll::new().unwrap();
    let error = Ctl::bind(&path, other.registry()).unwrap_err();
    assert!(matches!(error, Error::InUse(_)), "{error}");
    drop(ctl);
    assert!(!path.exists(), "it removes what it made");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Ctl::bind(&path, other.registry()), Err(Error::NotASocket(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let nowhere = folder.0.join("no/such/folder.sock");
    assert!(matches!(Ctl::bind(&nowhere, other.registry()), Err(Error::Io { .. })));
    assert!(Ctl::bind(Path::new(""), other.registry()).unwrap().deadline().is_none());
}

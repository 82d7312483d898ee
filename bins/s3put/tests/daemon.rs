//! The real binary between an MQTT publisher and a scripted S3 server: what it acknowledges, it stores, whatever the
//! server does meanwhile.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[allow(dead_code)]
#[path = "../../../lib/src/objects/script.rs"]
mod script;

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use script::{Answer, Request, Server, error, ok};

/// Part of every secret here.
const SECRET: &str = "Zq9";
const LONG: Duration = Duration::from_secs(30);

/// The daemon, listening for publishers, with a folder of its own.
struct Daemon {
    folder: PathBuf,
    port: u16,
    child: Child,
}

impl Daemon {
    fn start(target: &str, more: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("s3put-daemon-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let port = e2e::net::free_port();
        let here = folder.display();
        let text = format!(
            "state-dir = \"{here}/state\"\nctl-socket = \"{here}/ctl.sock\"\ndevice-file = \"{here}/none\"\n\
             [source]\nmode = \"listen\"\n[source.listen]\naddress = \"127.0.0.1:{port}\"\n\
             [upload]\nworkers = 4\nattempts = 3\nretry-min-ms = 5\nretry-max-ms = 50\nhold-min-ms = 20\nhold-max-ms = 100\n\
             {more}\n[target]\n{target}\n"
        );
        std::fs::write(folder.join("s3put.toml"), text).unwrap();
        let child = spawn(&folder);
        let daemon = Self { folder, port, child };
        daemon.wait("it listens", |d| TcpStream::connect(("127.0.0.1", d.port)).is_ok().then_some(()));
        daemon
    }

    fn to_s3(server: &Server, more: &str) -> Self {
        Self::start(&format!("to = \"s3://bkt\"\nendpoint = \"{}\"", server.url()), more)
    }

    fn restart(&mut self) {
        self.child = spawn(&self.folder);
        self.wait("it listens again", |d| TcpStream::connect(("127.0.0.1", d.port)).is_ok().then_some(()));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn wait<T>(&self, what: &str, mut is: impl FnMut(&Self) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            if let Some(found) = is(self) {
                return found;
            }
            assert!(begin.elapsed() < LONG, "{what}: not within {LONG:?}; the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn page(&self, path: &str) -> String {
        let mut stream = std::os::unix::net::UnixStream::connect(self.folder.join("ctl.sock")).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.page("/status")).unwrap()
    }

    fn dead_letters(&self) -> usize {
        let mut folders = vec![self.folder.join("state")];
        let mut found = 0;
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    folders.push(entry.path());
                } else if entry.path().parent().is_some_and(|p| p.ends_with("dead-letter")) {
                    found += 1;
                }
            }
        }
        found
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// Ends it by TERM; it has to end well.
    fn term(&mut self) {
        self.signal("-TERM");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }
}

fn spawn(folder: &std::path::Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_s3put"))
        .arg("--config")
        .arg(folder.join("s3put.toml"))
        // All that can be logged is logged, so that a secret in it is seen (in a dump of sixteen bytes a line, too).
        .arg("-vv")
        .env_clear()
        .env("AWS_ACCESS_KEY_ID", "AKTEST")
        .env("AWS_SECRET_ACCESS_KEY", SECRET.repeat(10))
        .env("AWS_SESSION_TOKEN", SECRET.repeat(20))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        assert!(std::thread::panicking() || !self.log().contains(SECRET), "a secret in the log");
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Publishes `payloads` at QoS 1 with MQTT 3.1.1 and waits for every PUBACK.
fn publish(port: u16, topic: &str, payloads: &[Vec<u8>]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(b"\x10\x10\x00\x04MQTT\x04\x02\x00\x00\x00\x04test").unwrap();
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
    let mut writer = stream.try_clone().unwrap();
    let packets: Vec<Vec<u8>> =
        payloads.iter().enumerate().map(|(n, p)| packet(n as u16 + 1, topic, p)).collect();
    let sender = std::thread::spawn(move || packets.iter().for_each(|p| writer.write_all(p).unwrap()));
    for n in 0..payloads.len() {
        let mut puback = [0; 4];
        stream.read_exact(&mut puback).unwrap();
        let pid = n as u16 + 1;
        assert_eq!(puback, [0x40, 2, (pid >> 8) as u8, pid as u8], "in the order of receipt");
    }
    sender.join().unwrap();
    stream.write_all(b"\xe0\x00").unwrap();
}

fn packet(pid: u16, topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend_from_slice(topic.as_bytes());
    body.extend_from_slice(&pid.to_be_bytes());
    body.extend_from_slice(payload);
    let mut packet = vec![0x32];
    let mut left = body.len();
    loop {
        let digit = (left % 128) as u8;
        left /= 128;
        packet.push(if left > 0 { digit | 0x80 } else { digit });
        if left == 0 {
            break;
        }
    }
    packet.extend_from_slice(&body);
    packet
}

fn payloads(n: usize) -> Vec<Vec<u8>> {
    (0..n).map(|i| format!("payload {i}").into_bytes()).collect()
}

/// What a scripted server stored: the bodies it answered 200 to, by key.
#[derive(Clone, Default)]
struct Stored(Arc<Mutex<HashSet<Vec<u8>>>>);

impl Stored {
    fn take(&self, request: &Request) -> Answer {
        self.0.lock().unwrap().insert(request.body.clone());
        ok()
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }
}

#[test]
fn a_storm_of_503_resets_stalls_and_garbage_loses_nothing() {
    let stored = Stored::default();
    let store = stored.clone();
    let server = Server::start(move |n, request| match n % 7 {
        0 => error(503, "SlowDown"),
        1 => Answer::Reset,
        2 => Answer::Raw(b"what?\r\n\r\n".to_vec()),
        3 if n < 40 => Answer::Stall,
        4 => error(500, "InternalError"),
        _ => store.take(request),
    });
    let mut daemon = Daemon::to_s3(&server, "idle-timeout-ms = 400");
    publish(daemon.port, "t/x", &payloads(200));
    daemon.wait("all are stored", |_| (stored.len() == 200).then_some(()));
    daemon.wait("all are acknowledged", |d| (d.status()["stored"] == 200).then_some(()));
    let status = daemon.status();
    assert!(status["retries"].as_u64().unwrap() > 100, "{status}");
    assert_eq!(
        (&status["dead-letters"], &status["holds"], &status["spool"]["queued"]),
        (&0.into(), &0.into(), &0.into())
    );
    daemon.term();
    assert_eq!(daemon.dead_letters(), 0);
}

#[test]
fn a_refusal_of_us_holds_everything_until_it_ends() {
    let (stored, open) = (Stored::default(), Arc::new(AtomicBool::new(false)));
    let (store, opened) = (stored.clone(), Arc::clone(&open));
    let server = Server::start(move |n, request| match opened.load(Ordering::SeqCst) {
        true => store.take(request),
        false if n % 2 == 0 => error(403, "AccessDenied"),
        false => error(404, "NoSuchBucket"),
    });
    let mut daemon = Daemon::to_s3(&server, "");
    publish(daemon.port, "t/x", &payloads(50));
    daemon.wait("it holds", |d| (d.status()["target"]["state"] == "held").then_some(()));
    assert!(daemon.page("/metrics").contains("\ns3put_held 1\n"));
    assert!(daemon.log().contains("holding everything: s3://bkt:"), "{}", daemon.log());
    // Held, it tries one upload at a time, at most every `hold-min-ms`.
    let (begun, before) = (Instant::now(), server.requests().len());
    daemon.wait("it tries again", |_| (server.requests().len() > before).then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    let probes = server.requests().len() - before;
    let most = begun.elapsed().as_millis() / 20 + 1;
    assert!(probes as u128 <= most, "{probes} probes in {:?}", begun.elapsed());
    // A restart in between changes nothing.
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    daemon.restart();
    open.store(true, Ordering::SeqCst);
    daemon.wait("all are stored", |_| (stored.len() == 50).then_some(()));
    daemon.wait("it no longer holds", |d| (d.status()["target"]["state"] == "good").then_some(()));
    daemon.term();
    assert_eq!(daemon.dead_letters(), 0);
}

#[test]
fn an_object_that_is_refused_becomes_a_dead_letter_and_the_rest_goes_on() {
    let stored = Stored::default();
    let store = stored.clone();
    let server = Server::start(move |_, request| match request.body.as_slice() {
        b"payload 7" => error(400, "InvalidRequest"),
        _ => store.take(request),
    });
    let mut daemon = Daemon::to_s3(&server, "");
    publish(daemon.port, "t/x", &payloads(20));
    daemon.wait("nineteen are stored", |_| (stored.len() == 19).then_some(()));
    daemon.wait("one is a dead letter", |d| (d.status()["dead-letters"] == 1).then_some(()));
    let refused = server.requests().iter().filter(|r| r.body == b"payload 7").count();
    assert_eq!(refused, 3, "attempts = 3");
    daemon.wait("the spool is empty", |d| (d.status()["spool"]["queued"] == 0).then_some(()));
    daemon.term();
    assert!(daemon.dead_letters() >= 1);
    assert!(daemon.log().contains("InvalidRequest"), "{}", daemon.log());
}

#[test]
fn a_reload_changes_the_target_and_a_bad_file_changes_nothing() {
    let mut daemon = Daemon::start("to = \"dir:/nonexistent-folder/x\"\ncreate = false", "");
    publish(daemon.port, "t/x", &payloads(5));
    daemon.wait("it holds", |d| (d.status()["target"]["state"] == "held").then_some(()));
    let path = daemon.folder.join("s3put.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replace("[target]", "[target]\nbucket = 1")).unwrap();
    daemon.signal("-HUP");
    daemon.wait("it says so", |d| d.log().contains("the old configuration stays in force").then_some(()));
    let out = daemon.folder.join("out");
    std::fs::write(
        &path,
        good.replace("/nonexistent-folder/x", &out.display().to_string()).replace("create = false", ""),
    )
    .unwrap();
    daemon.signal("-HUP");
    let folder = out.join("t/x/undated");
    let count = || std::fs::read_dir(&folder).map_or(0, Iterator::count);
    daemon.wait("all are files with sidecars", |_| (count() == 10).then_some(()));
    publish(daemon.port, "t/x", &payloads(6));
    daemon.wait("five of six were there", |d| (d.status()["already-there"] == 5).then_some(()));
    assert_eq!(count(), 12);
    daemon.term();
}

//! Uploads against a scripted server and a real S3 server: what is safe on disk becomes an object, whatever happens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code)]
#[path = "../../../lib/src/objects/script.rs"]
mod script;

use std::collections::HashMap;
use std::io::{BufRead as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use e2e::aws::{KEY_ID, S3, SECRET};
use e2e::proxy::Proxy;
use e2e::scratch::Scratch;
use e2e::skip;
use edge::aws::credentials::Vars;
use edge::spool::Ticket;
use mio::{Events, Poll, Token, Waker};
use script::{Server, error, ok};
use sorterd::config::store::{Env, Mode, UploadConfig, UploadTable};
use sorterd::uploads::{Error, Uploads};

const LONG: Duration = Duration::from_secs(60);

/// The configuration as a file would give it, with delays fit for a test.
fn config(state: &Path, endpoint: &str, more: &str) -> UploadConfig {
    let text = format!(
        "mode = \"aws-dev\"\nto = \"s3://bkt/pre/fix\"\nendpoint = \"{endpoint}\"\nretry-min-ms = 5\nretry-max-ms = 50\n\
         hold-min-ms = 20\nhold-max-ms = 100\nidle-timeout-ms = 1000\n{more}"
    );
    let loaded = edge::config::parse::<UploadTable>(Path::new("x.toml"), text).unwrap();
    let keys = [("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    let aws = Vars::new(keys.iter().map(|(k, v)| (*k, (*v).to_owned())));
    let (mode, config) = loaded.raw.check(&loaded, state, &Env { aws, ..Env::default() }).unwrap();
    assert_eq!(mode, Mode::AwsDev);
    config.unwrap()
}

/// The loop that a daemon has.
struct Loop {
    poll: Poll,
    uploads: Uploads,
    uploaded: Vec<String>,
}

impl Loop {
    fn new(config: &UploadConfig) -> Self {
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        Self { uploads: Uploads::open(config, &waker).unwrap(), poll, uploaded: Vec::new() }
    }

    fn turn(&mut self) {
        self.uploads.turn(Instant::now()).unwrap();
        self.uploaded.extend(self.uploads.uploaded());
        let now = Instant::now();
        let longest = Duration::from_millis(100);
        let wait =
            self.uploads.deadline().map_or(longest, |at| at.saturating_duration_since(now).min(longest));
        self.poll.poll(&mut Events::with_capacity(8), Some(wait)).unwrap();
    }

    fn until(&mut self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        let begin = Instant::now();
        while !is(self) {
            self.turn();
            let stats = self.uploads.stats(Instant::now());
            assert!(begin.elapsed() < LONG, "{what}: not within {LONG:?}; {stats:?}");
        }
    }

    fn append(&mut self, key: &str, bytes: &[u8]) -> Ticket {
        self.uploads.append(key, "image/jpeg", bytes).unwrap()
    }

    fn until_safe(&mut self, ticket: Ticket) {
        self.until("it is safe on disk", |l| l.uploads.durable() >= ticket);
    }

    fn until_stored(&mut self, n: u64) {
        self.until("all are stored", |l| l.uploads.stats(Instant::now()).stored >= n);
        assert_eq!(self.uploads.stats(Instant::now()).queued, 0);
    }
}

fn object(root: &Path, key: &str) -> PathBuf {
    root.join("bkt/pre/fix").join(key)
}

#[test]
fn pictures_become_objects_of_a_real_server_and_a_repeated_one_replaces() {
    let scratch = Scratch::new("sorter-up");
    let Some(s3) = S3::s3s(&scratch, "bkt") else { skip!("s3s-fs is not built (etc/tools.sh s3s)") };
    let mut l = Loop::new(&config(scratch.path(), &s3.endpoint(), ""));
    for n in 0..50 {
        l.append(&format!("arm/s1/{n}.jpg"), format!("picture {n}").as_bytes());
    }
    let last = l.append("arm/s1/original_stitch.jpg", &vec![7; 3 << 20]);
    l.until_safe(last);
    l.until_stored(51);
    for n in 0..50 {
        let bytes = std::fs::read(object(&s3.root, &format!("arm/s1/{n}.jpg"))).unwrap();
        assert_eq!(bytes, format!("picture {n}").as_bytes());
    }
    assert_eq!(std::fs::read(object(&s3.root, "arm/s1/original_stitch.jpg")).unwrap().len(), 3 << 20);
    assert_eq!(l.uploaded.len(), 51);
    assert!(l.uploaded.iter().any(|key| key == "arm/s1/49.jpg"));
    l.append("arm/s1/7.jpg", b"another");
    l.until_stored(52);
    assert_eq!(std::fs::read(object(&s3.root, "arm/s1/7.jpg")).unwrap(), b"another");
    if e2e::env::have("aws") {
        assert_eq!(s3.head("bkt", "pre/fix/arm/s1/7.jpg")["ContentType"], "image/jpeg");
    }
    let stats = l.uploads.stats(Instant::now());
    assert_eq!((stats.dead, stats.refused, stats.uploading), (0, 0, 0));
    assert!(stats.target.starts_with("s3://bkt "), "{}", stats.target);
    l.uploads.close().unwrap();
}

#[test]
fn s3_is_away_and_comes_back() {
    let scratch = Scratch::new("sorter-up");
    let Some(s3) = S3::s3s(&scratch, "bkt") else { skip!("s3s-fs is not built (etc/tools.sh s3s)") };
    let proxy = Proxy::start(s3.port);
    proxy.refuse(true);
    let endpoint = format!("http://127.0.0.1:{}", proxy.port);
    let mut l = Loop::new(&config(scratch.path(), &endpoint, ""));
    for n in 0..30 {
        let begin = Instant::now();
        let ticket = l.append(&format!("arm/s1/{n}.jpg"), b"x");
        l.until_safe(ticket);
        assert!(begin.elapsed() < Duration::from_secs(5), "safe without S3");
    }
    l.until("it says so", |l| l.uploads.stats(Instant::now()).trouble.is_some());
    let stats = l.uploads.stats(Instant::now());
    assert_eq!((stats.stored, stats.queued, stats.dead), (0, 30, 0));
    // A stop in between: the rest is for the next process.
    l.uploads.stop();
    l.until("what is under way ends", |l| l.uploads.uploading() == 0);
    l.uploads.close().unwrap();
    let mut l = Loop::new(&config(scratch.path(), &endpoint, ""));
    proxy.refuse(false);
    l.until_stored(30);
    assert_eq!(std::fs::read_dir(object(&s3.root, "arm/s1")).unwrap().count(), 30);
    assert!(l.uploads.stats(Instant::now()).trouble.is_none());
}

#[test]
fn a_refusal_of_us_holds_and_one_of_a_picture_is_a_dead_letter() {
    let scratch = Scratch::new("sorter-up");
    let open = Arc::new(AtomicBool::new(false));
    let opened = Arc::clone(&open);
    let server = Server::start(move |_, request| match request.body.as_slice() {
        _ if !opened.load(Ordering::SeqCst) => error(404, "NoSuchBucket"),
        b"bad" => error(400, "InvalidRequest"),
        _ => ok(),
    });
    let mut l = Loop::new(&config(scratch.path(), &server.url(), "attempts = 3\n"));
    l.append("arm/s/1.jpg", b"good");
    l.append("arm/s/2.jpg", b"bad");
    l.until("it holds", |l| l.uploads.stats(Instant::now()).held.is_some());
    let (_, why) = l.uploads.stats(Instant::now()).held.unwrap();
    assert!(why.contains("make the bucket, or correct upload.to"), "{why}");
    open.store(true, Ordering::SeqCst);
    l.until("the bad one is buried", |l| l.uploads.stats(Instant::now()).dead == 1);
    l.until_stored(1);
    assert!(l.uploads.stats(Instant::now()).held.is_none());
    assert_eq!(server.requests().iter().filter(|r| r.body == b"bad").count() - held(&server), 3);
    let dead = e2e::scratch::files(&scratch.join("uploads/dead-letter"));
    assert!(dead.len() == 1 && std::fs::read(&dead[0]).unwrap().ends_with(b"bad"));
    let request = server.requests().into_iter().find(|r| r.body == b"good").unwrap();
    assert_eq!(request.target, "/bkt/pre/fix/arm/s/1.jpg");
    assert_eq!((request.header("content-type"), request.header("if-none-match")), (Some("image/jpeg"), None));
    assert!(request.header("user-agent").unwrap().starts_with("sorterd/"));
}

/// How many requests with the bad picture were made while everything was refused.
fn held(server: &Server) -> usize {
    let requests = server.requests();
    let first = requests.iter().position(|r| r.body == b"good");
    let last_good = requests.iter().rposition(|r| r.body == b"good");
    // Before the good one got through, every answer was the refusal.
    let until = last_good.or(first).unwrap_or(0);
    requests[..until].iter().filter(|r| r.body == b"bad").count()
}

#[test]
fn pictures_of_one_key_are_stored_in_the_order_of_their_appending() {
    let scratch = Scratch::new("sorter-up");
    type Log = HashMap<String, (usize, Vec<u8>)>;
    let log: Arc<Mutex<Log>> = Arc::default();
    let seen = Arc::clone(&log);
    let server = Server::start(move |n, request| {
        let begin = |log: &mut Log| {
            let entry = log.entry(request.target.clone()).or_default();
            entry.0 += 1;
            assert_eq!(entry.0, 1, "two at once under {}", request.target);
        };
        begin(&mut seen.lock().unwrap());
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..8)));
        let mut log = seen.lock().unwrap();
        let entry = log.get_mut(&request.target).unwrap();
        entry.0 -= 1;
        if n % 5 == 4 {
            return error(503, "SlowDown");
        }
        entry.1.extend(&request.body);
        ok()
    });
    let mut l = Loop::new(&config(scratch.path(), &server.url(), "workers = 8\n"));
    for version in 0..20u8 {
        for key in ["a", "b", "c"] {
            l.append(&format!("arm/s/{key}.jpg"), &[version]);
        }
    }
    l.until_stored(60);
    let log = log.lock().unwrap();
    assert_eq!(log.len(), 3);
    for (target, (_, versions)) in log.iter() {
        assert_eq!(*versions, (0..20).collect::<Vec<u8>>(), "{target}");
    }
}

#[test]
fn a_full_spool_refuses_clearly_and_goes_on_when_there_is_room() {
    let scratch = Scratch::new("sorter-up");
    let open = Arc::new(AtomicBool::new(false));
    let opened = Arc::clone(&open);
    let server =
        Server::start(move |_, _| if opened.load(Ordering::SeqCst) { ok() } else { error(503, "SlowDown") });
    let bounds = "[spool]\nsegment-bytes = \"64KiB\"\nmax-bytes = \"256KiB\"\nmax-record-bytes = \"64KiB\"\n";
    let mut l = Loop::new(&config(scratch.path(), &server.url(), bounds));
    let mut queued = 0;
    let why = loop {
        match l.uploads.append(&format!("arm/s/{queued}.jpg"), "image/jpeg", &[1; 10_000]) {
            Ok(ticket) => l.until_safe(ticket),
            Err(why) => break why,
        }
        queued += 1;
        assert!(queued < 100);
    };
    assert!(
        matches!(&why, Error::Full { key, bytes: 10_000, .. } if *key == format!("arm/s/{queued}.jpg")),
        "{why}"
    );
    assert!(why.to_string().contains("upload.spool.max-bytes") && !why.is_final(), "{why}");
    let why = l.uploads.append("arm/s/big.jpg", "image/jpeg", &[1; 70_000]).unwrap_err();
    assert!(why.to_string().contains("max-record-bytes"), "{why}");
    for bad in ["", "../x", "a//b", "a/./b", "a\n", &"x".repeat(1020)] {
        assert!(matches!(l.uploads.append(bad, "image/jpeg", b"x"), Err(Error::Key(_))), "{bad:?}");
    }
    assert_eq!(l.uploads.stats(Instant::now()).refused, 8);
    open.store(true, Ordering::SeqCst);
    l.until_stored(queued);
    // The segments' space is given back with the next commit of the cursor.
    let begin = Instant::now();
    while l.uploads.append("arm/s/again.jpg", "image/jpeg", &[1; 10_000]).is_err() {
        assert!(begin.elapsed() < LONG);
        l.turn();
    }
    l.until_stored(queued + 1);
}

/// The child of the next test: appends for ever, and says what is safe.
#[test]
fn child_that_is_killed() {
    let (Some(state), Some(endpoint)) =
        (std::env::var_os("SORTER_UP_STATE"), std::env::var_os("SORTER_UP_S3"))
    else {
        return;
    };
    let first: u64 = std::env::var("SORTER_UP_FIRST").unwrap().parse().unwrap();
    let mut l = Loop::new(&config(Path::new(&state), endpoint.to_str().unwrap(), ""));
    let mut waiting = std::collections::VecDeque::new();
    for n in first.. {
        let ticket = l.append(&format!("arm/s/{n}.jpg"), format!("picture {n}").as_bytes());
        waiting.push_back((n, ticket));
        l.uploads.turn(Instant::now()).unwrap();
        while let Some((n, ticket)) = waiting.front().copied()
            && l.uploads.durable() >= ticket
        {
            waiting.pop_front();
            let mut out = std::io::stdout().lock();
            writeln!(out, "safe {n}").unwrap();
            out.flush().unwrap();
        }
        if waiting.len() > 50 {
            l.turn();
        }
    }
}

#[test]
fn kill_9_loses_nothing_that_was_safe() {
    let scratch = Scratch::new("sorter-up");
    let Some(s3) = S3::s3s(&scratch, "bkt") else { skip!("s3s-fs is not built (etc/tools.sh s3s)") };
    let state = scratch.dir("state");
    let mut safe = Vec::new();
    for round in 0..12u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_is_killed", "--nocapture"])
            .env("SORTER_UP_STATE", &state)
            .env("SORTER_UP_S3", s3.endpoint())
            .env("SORTER_UP_FIRST", (round * 1_000_000).to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = std::io::BufReader::new(child.stdout.take().unwrap());
        let (first, begun) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            let lines = out.lines().map_while(Result::ok);
            let safe = lines.filter_map(|line| line.strip_prefix("safe ")?.parse::<u64>().ok());
            let tell = |n: &u64| {
                // Who waits for the first one has it by then.
                let _ = first.send(*n);
            };
            safe.inspect(tell).collect::<Vec<u64>>()
        });
        begun.recv_timeout(LONG).unwrap();
        std::thread::sleep(Duration::from_millis(fastrand::u64(5..300)));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut numbers = reader.join().unwrap();
        // The last line may be a part of a longer number.
        numbers.pop();
        safe.extend(numbers);
    }
    assert!(safe.len() > 20, "only {} were safe", safe.len());
    let mut l = Loop::new(&config(&state, &s3.endpoint(), ""));
    l.until("the rest is stored", |l| l.uploads.stats(Instant::now()).queued == 0);
    for n in &safe {
        let bytes = std::fs::read(object(&s3.root, &format!("arm/s/{n}.jpg")));
        assert_eq!(bytes.unwrap_or_else(|e| panic!("{n} is lost: {e}")), format!("picture {n}").as_bytes());
    }
    println!("{} pictures were safe over 12 kills, all are there", safe.len());
}

//! `s3put` into a folder and into real S3 servers while it is killed and its connections are cut: each
//! acknowledged message becomes exactly one object with exactly its bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use e2e::aws::S3;
use e2e::broker::Broker;
use e2e::config::{End, S3put};
use e2e::daemon::Daemon;
use e2e::env::{self, seed};
use e2e::proxy::{self, Proxy};
use e2e::publisher::{self, Plan, Publisher};
use e2e::scratch::{self, Scratch};
use e2e::{need, net, skip};

use crate::rig;

const KILLS: u32 = 50;
const LONG: Duration = Duration::from_secs(60);

/// Number -> how many objects below the folder hold that message. Panics on bytes nobody sent.
fn objects(dir: &Path) -> BTreeMap<u64, usize> {
    let mut found = BTreeMap::new();
    for file in scratch::files(dir) {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        // s3s-fs keeps its own files (dots) beside the objects; sidecars and half-made files are no objects.
        if name.starts_with('.') || name.ends_with(".json") {
            continue;
        }
        // It may be renamed away while we look.
        let Ok(bytes) = std::fs::read(&file) else { continue };
        let n =
            publisher::number(&bytes).unwrap_or_else(|| panic!("{} holds bytes nobody sent", file.display()));
        *found.entry(n).or_default() += 1;
    }
    found
}

/// The objects once there are `n`, or once there have been no more of them for a minute.
fn wait_objects(dir: &Path, n: usize) -> BTreeMap<u64, usize> {
    let (mut most, mut since) = ((0, 0), Instant::now());
    loop {
        // Counting names is cheap; reading them all is done at the end.
        let (count, is_late) = (scratch::files(dir).len(), since.elapsed() > LONG);
        let found = if count >= n || is_late { objects(dir) } else { BTreeMap::new() };
        if found.len() >= n || is_late {
            return found;
        }
        if (found.len(), count) > most {
            (most, since) = ((found.len(), count), Instant::now());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn check(acked: &[u64], found: &BTreeMap<u64, usize>) {
    let lost: Vec<_> = acked.iter().filter(|n| !found.contains_key(n)).collect();
    assert!(
        lost.is_empty(),
        "{} acknowledged messages are not stored, first {:?}",
        lost.len(),
        &lost[..lost.len().min(10)]
    );
    let twice: Vec<_> = found.iter().filter(|(_, times)| **times > 1).collect();
    assert!(
        twice.is_empty(),
        "{} messages became several objects: {:?}",
        twice.len(),
        &twice[..twice.len().min(10)]
    );
}

/// Where the source is: a broker with a proxy before it, or the daemon's own port behind one.
struct Source {
    broker: Option<Broker>,
    proxy: Proxy,
    end: End,
    publish_port: u16,
}

impl Source {
    fn new(scratch: &Scratch, listen: bool) -> Source {
        if listen {
            let port = net::free_port();
            let proxy = Proxy::start(port);
            let publish_port = proxy.port;
            Source { broker: None, proxy, end: End::Listen(port), publish_port }
        } else {
            let broker = rig::telling_broker(scratch, "broker");
            let proxy = Proxy::start(broker.port);
            let (end, publish_port) = (End::Broker(proxy.port), broker.port);
            Source { broker: Some(broker), proxy, end, publish_port }
        }
    }

    /// Waits until what is published is for the daemon.
    fn wait_subscribed(&self) {
        if let Some(broker) = &self.broker {
            rig::wait_subscribed(broker, "rig-s3put");
        }
    }
}

/// Kills s3put fifty times and cuts its broker's connection (and the S3 one) in between.
fn storm(daemon: &mut Daemon, source: &Source, s3: Option<&Proxy>, qos: u8, rate: u64) -> Publisher {
    let mut rng = fastrand::Rng::with_seed(seed());
    daemon.start_ready();
    source.wait_subscribed();
    let plan = Plan { rate, ..Plan::new(source.publish_port, "camera", qos, 400_000) };
    let mut publisher = Publisher::start(plan);
    let (mut kills, mut cuts) = (0, 0);
    while kills < KILLS {
        std::thread::sleep(Duration::from_millis(rng.u64(5..160)));
        match (rng.u8(0..4), s3) {
            (0, Some(s3)) => s3.cut(),
            (0 | 1, _) => source.proxy.cut(),
            _ => {
                daemon.kill9();
                daemon.start_ready();
                kills += 1;
                continue;
            }
        }
        cuts += 1;
    }
    publisher.finish();
    publisher.wait_done(LONG);
    println!("{kills} kills, {cuts} cuts, {} acknowledged", publisher.acked());
    publisher
}

fn storm_into_dir(name: &str, listen: bool, qos: u8) {
    let scratch = Scratch::new(name);
    let source = Source::new(&scratch, listen);
    let out = scratch.dir("out");
    let mut s3put = Daemon::new(&scratch, "s3put", "s3put", &S3put::to_dir(source.end, &out).toml());
    let publisher = storm(&mut s3put, &source, None, qos, 500);
    let acked = publisher.acked_numbers();
    check(&acked, &wait_objects(&out, acked.len()));
    s3put.check_log();
    assert!(s3put.term().success(), "it drains and ends well");
    // Ended well, it leaves nothing half-made.
    let left: Vec<_> =
        scratch::files(&out).into_iter().filter(|f| f.to_string_lossy().contains(".tmp")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn storm_broker_qos1_into_folder() {
    need!("mosquitto");
    storm_into_dir("sb1", false, 1);
}

#[test]
fn storm_broker_qos2_into_folder() {
    need!("mosquitto");
    storm_into_dir("sb2", false, 2);
}

#[test]
fn storm_ingest_qos1_into_folder() {
    storm_into_dir("si1", true, 1);
}

#[test]
fn storm_ingest_qos2_into_folder() {
    storm_into_dir("si2", true, 2);
}

#[test]
fn storm_broker_qos1_into_s3() {
    need!("mosquitto", "aws");
    let scratch = Scratch::new("ss3");
    let Some(s3) = S3::s3s(&scratch, "faces") else { skip!("s3s-fs is not built (etc/tools.sh s3s)") };
    let source = Source::new(&scratch, false);
    let s3_proxy = Proxy::start(s3.port);
    let endpoint = format!("http://127.0.0.1:{}", s3_proxy.port);
    let mut s3put = s3_daemon(&scratch, source.end, &endpoint);
    let publisher = storm(&mut s3put, &source, Some(&s3_proxy), 1, 150);
    let acked = publisher.acked_numbers();
    wait_keys(&s3, acked.len());
    let copy = scratch.dir("copy");
    s3.fetch_all("faces", &copy);
    check(&acked, &objects(&copy));
    s3put.check_log();
}

/// Fails when there have been no more of them for a minute.
fn wait_keys(s3: &S3, n: usize) {
    let is_object = |key: &&String| !key.ends_with(".json");
    let (mut most, mut since) = (0, Instant::now());
    while most < n {
        std::thread::sleep(Duration::from_millis(300));
        let now = s3.keys("faces").iter().filter(is_object).count();
        if now > most {
            (most, since) = (now, Instant::now());
        }
        assert!(since.elapsed() < LONG, "{most} objects in S3 of {n}, and no more for {LONG:?}");
    }
}

fn s3_daemon(scratch: &Scratch, source: End, endpoint: &str) -> Daemon {
    let mut s3put = Daemon::new(scratch, "s3put", "s3put", &S3put::to_s3(source, "faces", endpoint).toml());
    s3put.env("AWS_ACCESS_KEY_ID", e2e::aws::KEY_ID).env("AWS_SECRET_ACCESS_KEY", e2e::aws::SECRET);
    s3put.env("AWS_EC2_METADATA_DISABLED", "true");
    s3put
}

/// S3 is away, silent or talks nonsense for a while; meanwhile all is acknowledged, afterwards all is stored.
#[test]
fn s3_away_then_silent_then_back() {
    need!("aws");
    let scratch = Scratch::new("s3away");
    let Some(s3) = S3::s3s(&scratch, "faces") else { skip!("s3s-fs is not built (etc/tools.sh s3s)") };
    let s3_proxy = Proxy::start(s3.port);
    s3_proxy.refuse(true);
    let source = Source::new(&scratch, true);
    let mut s3put = s3_daemon(&scratch, source.end, &format!("http://127.0.0.1:{}", s3_proxy.port));
    s3put.start_ready();
    let mut publisher = Publisher::start(Plan::new(source.publish_port, "camera", 1, 300));
    publisher.wait_done(LONG);
    assert!(s3.keys("faces").is_empty());
    s3put.kill9();
    s3_proxy.refuse(false);
    s3_proxy.stall(true);
    s3put.start_ready();
    std::thread::sleep(Duration::from_secs(1));
    s3_proxy.cut();
    s3_proxy.stall(false);
    wait_keys(&s3, 300);
    let copy = scratch.dir("copy");
    s3.fetch_all("faces", &copy);
    check(&publisher.acked_numbers(), &objects(&copy));
    s3put.check_log();
}

/// moto says NoSuchBucket: everything is held, said aloud, and stored once the bucket is there.
#[test]
fn missing_bucket_holds_everything() {
    need!("aws");
    let scratch = Scratch::new("nobucket");
    let Some(s3) = S3::moto(&scratch) else { skip!("moto is not installed (etc/tools.sh moto)") };
    let source = Source::new(&scratch, true);
    let mut s3put = s3_daemon(&scratch, source.end, &s3.endpoint());
    s3put.start_ready();
    let mut publisher = Publisher::start(Plan::new(source.publish_port, "camera", 1, 20));
    publisher.wait_done(LONG);
    s3put.wait_log("NoSuchBucket", LONG);
    env::run(&mut s3.aws(&["s3api", "create-bucket", "--bucket", "faces"]));
    wait_keys(&s3, 20);
    let copy = scratch.dir("copy");
    s3.fetch_all("faces", &copy);
    check(&publisher.acked_numbers(), &objects(&copy));
    let letters = scratch::files(&s3put.dir.join("state"))
        .into_iter()
        .filter(|f| f.to_string_lossy().contains("dead-letter"));
    assert_eq!(letters.count(), 0, "nothing is given up because of a missing bucket");
}

/// A server that is no S3 at all: errors and retries, no panic, and nothing is lost.
#[test]
fn nonsense_from_s3() {
    let scratch = Scratch::new("nos3");
    let mut rng = fastrand::Rng::with_seed(seed());
    let (count, counted) = std::sync::mpsc::channel();
    let port = proxy::nonsense(move |n| {
        let _ = count.send(n);
        match n % 5 {
            0 => b"220 ready when you are\r\n".to_vec(),
            1 => b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
            2 => b"HTTP/1.1 500 \xff\xfe\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".to_vec(),
            3 => Vec::new(),
            _ => (0..2000).map(|_| rng.u8(..)).collect(),
        }
    });
    let source = Source::new(&scratch, true);
    let mut s3put = s3_daemon(&scratch, source.end, &format!("http://127.0.0.1:{port}"));
    s3put.start_ready();
    let mut publisher = Publisher::start(Plan::new(source.publish_port, "camera", 1, 10));
    publisher.wait_done(LONG);
    env::wait_for("ten attempts", LONG, || counted.try_iter().any(|n| n >= 10).then_some(()));
    assert!(s3put.running(), "{}", s3put.lines.tail(10));
    s3put.check_log();
    // The same state with a target that works: all ten are there.
    s3put.kill9();
    let out = scratch.dir("out");
    let text = S3put::to_dir(source.end, &out).toml();
    std::fs::write(&s3put.config, text.replace("{dir}", &s3put.dir.to_string_lossy())).unwrap();
    s3put.start_ready();
    check(&publisher.acked_numbers(), &wait_objects(&out, 10));
}

//! Peers that talk nonsense: an error in the log and a new attempt, never a panic, nothing lost.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use e2e::broker::Broker;
use e2e::config::{End, Mqfwd, S3put};
use e2e::daemon::Daemon;
use e2e::env::{self, seed};
use e2e::proxy;
use e2e::publisher::{Plan, Publisher};
use e2e::scratch::Scratch;
use e2e::subscriber::{Account, Subscriber};
use e2e::{mqtt, need, net};

const LONG: Duration = Duration::from_secs(60);

/// What a broker that is none answers the n-th connection with.
fn answer(rng: &mut fastrand::Rng, n: u64) -> Vec<u8> {
    let connack = [0x20, 3, 0, 0, 0];
    match n % 8 {
        0 => b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        1 => vec![0x20, 0xff, 0xff, 0xff, 0xff, 0x7f],
        // A good CONNACK, then what no broker may send.
        2 => [&connack[..], &[0x10, 0], &[0xf0, 0]].concat(),
        3 => [&connack[..], &[0x30, 5, 0, 9, b'x', b'y', b'z']].concat(),
        4 => [&connack[..], &[0x40, 2, 0xab, 0xcd], &[0x62, 2, 0x12, 0x34], &[0x70, 2, 9, 9]].concat(),
        // A PUBLISH at QoS 1 with packet id 0, and with bytes that are no UTF-8 as its topic.
        5 => [&connack[..], &[0x32, 8, 0, 2, 0xff, 0xfe, 0, 0, 0, 0]].concat(),
        6 => Vec::new(),
        _ => [&connack[..], &(0..500).map(|_| rng.u8(..)).collect::<Vec<_>>()].concat(),
    }
}

#[test]
fn brokers_that_talk_nonsense() {
    let seed = seed();
    for name in ["mqfwd", "s3put"] {
        let scratch = Scratch::new("nobroker");
        let (count, counted) = std::sync::mpsc::channel();
        let mut rng = fastrand::Rng::with_seed(seed);
        let port = proxy::nonsense(move |n| {
            let _ = count.send(n);
            answer(&mut rng, n)
        });
        let toml = match name {
            "mqfwd" => Mqfwd::new(End::Broker(port), port, 1).toml(),
            _ => S3put::to_dir(End::Broker(port), &scratch.dir("out")).toml(),
        };
        let mut daemon = Daemon::new(&scratch, name, name, &toml);
        daemon.start_ready();
        env::wait_for(&format!("{name}: forty connections"), LONG, || {
            counted.try_iter().any(|n| n >= 40).then_some(())
        });
        assert!(daemon.running(), "{}", daemon.lines.tail(10));
        daemon.check_log();
        assert!(daemon.status().is_object());
        assert!(daemon.term().success());
    }
}

/// Publishers that talk nonsense to the ingest port do not disturb one that does not.
#[test]
fn publishers_that_talk_nonsense() {
    need!("mosquitto", "mosquitto_sub");
    let mut rng = fastrand::Rng::with_seed(seed());
    let scratch = Scratch::new("badpub");
    let cloud = Broker::start(&scratch, "cloud");
    let subscriber = Subscriber::start(cloud.port, "up/#", "far-end");
    let port = net::free_port();
    let mut mqfwd =
        Daemon::new(&scratch, "mqfwd", "mqfwd", &Mqfwd::new(End::Listen(port), cloud.port, 1).toml());
    mqfwd.start_ready();
    let mut publisher = Publisher::start(Plan { rate: 1000, ..Plan::new(port, "camera", 1, 2000) });
    for i in 0..100 {
        let Ok(mut stream) = TcpStream::connect(net::local(port)) else {
            panic!("the port is closed:\n{}", mqfwd.lines.tail(10))
        };
        let good = mqtt::connect(mqtt::Version::V5, &format!("bad{i}"), true, None);
        let bytes = match i % 4 {
            0 => (0..rng.usize(1..3000)).map(|_| rng.u8(..)).collect(),
            1 => good[..rng.usize(1..good.len())].to_vec(),
            2 => {
                let mut bent = mqtt::publish(mqtt::Version::V5, "t/x", &[b'x'; 200], 1, 1, false, &[]);
                let at = rng.usize(0..bent.len());
                bent[at] = rng.u8(..);
                // What became a good message of another kind is not to be counted as ours.
                [good, vec![0xc0, 0], bent[..at.max(2)].to_vec()].concat()
            }
            _ => [good, vec![0x82, 8, 0, 1, 0, 0, 2, b'a', b'#', 0]].concat(),
        };
        let _ = stream.write_all(&bytes);
        let _ = stream.set_read_timeout(Some(Duration::from_millis(5)));
        let _ = stream.read(&mut [0; 64]);
    }
    publisher.wait_done(LONG);
    let got = subscriber.wait_distinct(2000, LONG);
    Account::of(&publisher.acked_numbers(), &got).check(false);
    mqfwd.check_log();
}

/// SUBSCRIBE at the ingest port is refused with a reason: this is no broker.
#[test]
fn subscribing_at_the_ingest_port_is_refused() {
    need!("mosquitto_sub");
    let scratch = Scratch::new("nosub");
    let port = net::free_port();
    let mut mqfwd =
        Daemon::new(&scratch, "mqfwd", "mqfwd", &Mqfwd::new(End::Listen(port), net::free_port(), 1).toml());
    mqfwd.start_ready();
    for version in ["5", "311"] {
        let mut sub = std::process::Command::new("mosquitto_sub");
        let output = sub
            .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-V", version, "-t", "t/#", "-E", "-W", "5"])
            .output();
        let output = output.unwrap();
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() || said.to_lowercase().contains("denied"),
            "MQTT {version}: {:?} {said}",
            output.status
        );
    }
    mqfwd.check_log();
}

/// A port that is taken: the message says which, and what to do.
#[test]
fn a_port_in_use_is_explained() {
    let scratch = Scratch::new("inuse");
    let taken = net::listen();
    let port = taken.local_addr().unwrap().port();
    let mut mqfwd =
        Daemon::new(&scratch, "mqfwd", "mqfwd", &Mqfwd::new(End::Listen(port), net::free_port(), 1).toml());
    mqfwd.start();
    let status = mqfwd.wait_exit(Duration::from_secs(60));
    let said = mqfwd.lines.tail(5);
    assert!(!status.success() && status.code() != Some(101), "{status}");
    assert!(said.contains(&format!("127.0.0.1:{port}")) && said.contains("in use"), "{said}");
}

/// The process has all the files it may have: whoever comes waits, and is let in once there is room, although nobody
/// comes after.
#[test]
fn who_comes_while_there_is_no_descriptor_is_let_in_later() {
    let scratch = Scratch::new("nofile");
    let port = net::free_port();
    let mut mqfwd =
        Daemon::new(&scratch, "mqfwd", "mqfwd", &Mqfwd::new(End::Listen(port), net::free_port(), 1).toml());
    mqfwd.start_ready();
    // The spool makes its next segment in advance; a disk that fails there ends the daemon.
    let out = mqfwd.dir.join("state/out");
    let fds = format!("/proc/{}/fd", mqfwd.process().pid());
    let mut quiet = 0;
    env::wait_for("the spool to be at rest", LONG, || {
        std::thread::sleep(Duration::from_millis(40));
        let open = std::fs::read_dir(&fds).unwrap().flatten().filter_map(|fd| fd.path().read_link().ok());
        let busy = open.filter(|path| *path == out || path.ends_with("spare")).count() > 0;
        quiet = if busy || !out.join("spare").exists() { 0 } else { quiet + 1 };
        (quiet > 25).then_some(())
    });
    mqfwd.allow_files(Some(0));
    // A connection to the cloud that was under way, and is no more, leaves room for one.
    let _crowd: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(net::local(port)).unwrap()).collect();
    let refused = |what: &str| {
        env::wait_for(&format!("a refusal: {what}"), LONG, || {
            let said = mqfwd.lines.all();
            said.iter()
                .any(|line| line.contains(what) && line.contains("can't let a client in"))
                .then_some(())
        });
    };
    refused("ingest on ");
    let mut asks = UnixStream::connect(mqfwd.ctl()).unwrap();
    asks.write_all(b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut camera = TcpStream::connect(net::local(port)).unwrap();
    // CONNECT of MQTT 3.1.1: clean session, keep-alive 60 s, client id "cam".
    camera.write_all(b"\x10\x0f\x00\x04MQTT\x04\x02\x00\x3c\x00\x03cam").unwrap();
    refused("control socket ");
    // Tried again and refused again, without a line for each.
    std::thread::sleep(Duration::from_millis(2500));
    let told = mqfwd.lines.all().iter().filter(|line| line.contains("can't let a client in")).count();
    assert!(told < 5, "{told} lines");
    mqfwd.allow_files(None);
    asks.set_read_timeout(Some(LONG)).unwrap();
    camera.set_read_timeout(Some(LONG)).unwrap();
    let mut answer = String::new();
    asks.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut connack = [0; 4];
    camera.read_exact(&mut connack).unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0], "CONNACK, accepted");
    mqfwd.check_log();
}

//! `edge::mqtt::ingest` against real publishers: mosquitto_pub, mosquitto as a bridge, paho, and the own client.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is meant to panic")]

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use common::{
    Broker, Driver, Folder, PATIENCE, have, message,
    port::{Port, closed, messages},
};
use edge::{
    config::Secret,
    mqtt::{
        ClientConfig, ClientEvent, DisconnectKind, Message, Properties, Version,
        ingest::{Error, Ingest, IngestConfig, IngestEvent, Users},
    },
    tls::{ClientTls, ClientTlsConfig, ServerTls, ServerTlsConfig, Trust},
};

fn mosquitto_pub(port: u16, args: &[&str]) -> Child {
    Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &port.to_string()])
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for an end in time; exit code and what it said.
fn finish(mut child: Child) -> (Option<i32>, String) {
    let until = Instant::now() + PATIENCE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
        }
        thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn mosquitto_pub_in_both_versions_at_every_qos() {
    if !have("mosquitto_pub_in_both_versions", "mosquitto_pub") {
        return;
    }
    let port = Port::plain();
    let mut expected = Vec::new();
    for version in ["5", "311"] {
        for qos in ["0", "1", "2"] {
            let topic = format!("t/{version}/{qos}");
            let mut args = vec!["-V", version, "-q", qos, "-t", &topic, "-m", "hello", "-r"];
            if version == "5" {
                args.extend([
                    "-D",
                    "publish",
                    "content-type",
                    "text/plain",
                    "-D",
                    "publish",
                    "user-property",
                    "a",
                    "b",
                ]);
            }
            let (code, said) = finish(mosquitto_pub(port.port, &args));
            assert_eq!(code, Some(0), "{args:?}: {said}");
            let mut m = Message { retain: true, ..message(&topic, "hello", qos.parse().unwrap()) };
            if version == "5" {
                m.properties = Properties {
                    content_type: Some("text/plain".into()),
                    user: vec![("a".into(), "b".into())],
                    ..Properties::default()
                };
            }
            expected.push(m);
        }
    }
    port.wait("the goodbyes", |seen| closed(seen) == 6);
    assert_eq!(port.messages(), expected);
    // Many lines through one connection, with the window of the client.
    let mut child = mosquitto_pub(port.port, &["-V", "5", "-q", "2", "-t", "l", "-l", "-i", "lines"]);
    let lines: String = (0..500).map(|i| format!("{i}\n")).collect();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert_eq!(finish(child).0, Some(0));
    let got: Vec<_> = port.messages().into_iter().filter(|m| m.topic == "l").collect();
    assert_eq!(got.len(), 500);
    assert!(got.iter().enumerate().all(|(i, m)| m.payload == i.to_string().as_bytes()), "order and once");
}

#[test]
fn the_will_of_a_killed_publisher_is_published() {
    if !have("the_will_of_a_killed", "mosquitto_pub") {
        return;
    }
    let port = Port::plain();
    for version in ["5", "311"] {
        let topic = format!("will/{version}");
        let args = [
            "-V",
            version,
            "-t",
            "x",
            "-l",
            "--will-topic",
            &topic,
            "--will-payload",
            "gone",
            "--will-qos",
            "1",
            "--will-retain",
        ];
        let mut child = mosquitto_pub(port.port, &args);
        let mut input = child.stdin.take().unwrap();
        input.write_all(b"alive\n").unwrap();
        port.wait("the message", |seen| {
            messages(seen).iter().filter(|m| m.topic == "x").count() > usize::from(version == "311")
        });
        child.kill().unwrap();
        child.wait().unwrap();
        let seen = port.wait("the will", |seen| messages(seen).iter().any(|m| m.topic == topic));
        let will = messages(&seen).into_iter().find(|m| m.topic == topic).unwrap();
        assert_eq!(will, Message { retain: true, ..message(&topic, "gone", 1) });
        assert!(
            seen.iter().any(
                |e| matches!(e, IngestEvent::Publish { pid: None, message, .. } if message.topic == topic)
            )
        );
    }
}

#[test]
fn mosquitto_bridges_into_the_port() {
    if !have("mosquitto_bridges", "mosquitto") {
        return;
    }
    let port = Port::start(|cfg| cfg.max_unacked = 5, Duration::from_millis(5));
    let extra = format!(
        "connection up\naddress 127.0.0.1:{}\ntopic # out 2\nbridge_protocol_version mqttv50\n\
         notifications false\ntry_private false",
        port.port
    );
    let broker = Broker::start("bridge", &extra);
    let mut d = Driver::new(broker.config("source", Version::V5));
    d.connected();
    port.wait("the bridge", |seen| seen.iter().any(|e| matches!(e, IngestEvent::Connect { .. })));
    for i in 0..100u8 {
        d.send(&message("b", [i], 1));
    }
    let seen = port.wait("all messages", |seen| messages(seen).len() >= 100);
    let got: Vec<u8> = messages(&seen).iter().map(|m| m.payload[0]).collect();
    assert_eq!(got, (0..100).collect::<Vec<_>>());
}

#[test]
fn paho_publishes_and_its_subscription_is_refused() {
    let script = r#"
import sys, paho.mqtt.client as p
from paho.mqtt.properties import Properties
port, v = int(sys.argv[1]), int(sys.argv[2])
args = dict(client_id="paho", protocol=v)
if hasattr(p, "CallbackAPIVersion"): args["callback_api_version"] = p.CallbackAPIVersion.VERSION1
c = p.Client(**args)
subs = []
c.on_subscribe = lambda *a: subs.append(a)
c.connect("127.0.0.1", port, keepalive=5); c.loop_start()
infos = [c.publish("p/%d" % q, b"x" * 70000, qos=q) for q in (0, 1, 2)]
[i.wait_for_publish(10) for i in infos]
c.subscribe("p/#")
import time
end = time.time() + 10
while not subs and time.time() < end: time.sleep(0.01)
codes = [getattr(r, "value", r) for r in subs[0][3]]
print("codes", codes)
c.publish("p/after", b"y", qos=1).wait_for_publish(10)
c.disconnect(); c.loop_stop()
"#;
    let has_paho = |python: &&str| {
        let status =
            Command::new(python).args(["-c", "import paho.mqtt.client"]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    let Some(python) = ["python3", "/usr/bin/python3"].into_iter().find(has_paho) else {
        println!("skipped: paho_publishes: python3 with paho-mqtt is not installed");
        return;
    };
    let port = Port::plain();
    for (version, codes) in [("5", "codes [131]"), ("4", "codes [128]")] {
        let output =
            Command::new(python).args(["-c", script, &port.port.to_string(), version]).output().unwrap();
        let (said, wrong) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(said.contains(codes), "{said} {wrong}");
    }
    let topics: Vec<_> = port.messages().into_iter().map(|m| m.topic).collect();
    assert_eq!(topics, ["p/0", "p/1", "p/2", "p/after", "p/0", "p/1", "p/2", "p/after"]);
}

#[test]
fn sessions_are_resumed_and_a_repeated_qos2_is_the_daemons_to_judge() {
    let port = Port::plain();
    for version in [Version::V5, Version::V311] {
        let cfg = port.config(&format!("sess-{version:?}"), version);
        let mut d = Driver::new(cfg.clone());
        assert!(!d.connected(), "a new session");
        let id = d.client.acquire_pid().unwrap();
        let sent = message("s", format!("{version:?}"), 2);
        d.client.publish(Some(id), false, &sent).unwrap();
        d.wait("Pubrec", |e| matches!(e, ClientEvent::Pubrec { .. }).then_some(()));
        drop(d);
        let mut d = Driver::new(cfg);
        assert!(d.connected(), "the session is present");
        // As if the PUBREC had been lost.
        d.client.reserve_pid(id);
        d.client.publish(Some(id), true, &sent).unwrap();
        d.wait("Pubrec", |e| matches!(e, ClientEvent::Pubrec { .. }).then_some(()));
        d.client.pubrel(id).unwrap();
        d.wait("Pubcomp", |e| matches!(e, ClientEvent::Pubcomp { reason: 0, .. }).then_some(()));
        // It comes again, marked: only the daemon knows whether it is the message that is held under this id.
        let seen = port.wait("both", |_| true);
        let of_this = |m: &Message| m.payload == format!("{version:?}").as_bytes();
        let dups = seen.iter().filter_map(|e| match e {
            IngestEvent::Publish { dup, message, .. } if of_this(message) => Some(*dup),
            _ => None,
        });
        assert_eq!(dups.collect::<Vec<_>>(), [false, true], "{version:?}");
    }
}

#[test]
fn a_second_connection_takes_over_and_the_first_is_told() {
    let port = Port::plain();
    let mut cfg = port.config("same", Version::V5);
    cfg.will = Some(message("w", "first is gone", 0));
    let mut first = Driver::new(cfg.clone());
    first.connected();
    cfg.will = None;
    let mut second = Driver::new(cfg);
    assert!(second.connected());
    let (kind, _) = first.disconnected();
    assert_eq!(kind, DisconnectKind::Server(0x8e));
    first.client.stop(Instant::now());
    first.disconnected();
    let seen = port.wait("the takeover", |seen| closed(seen) >= 1);
    let order: Vec<&str> = seen
        .iter()
        .map(|e| match e {
            IngestEvent::Connect { .. } => "connect",
            IngestEvent::Publish { .. } => "will",
            IngestEvent::Closed { .. } => "closed",
            _ => "other",
        })
        .collect();
    assert_eq!(order[..4], ["connect", "will", "closed", "connect"], "{seen:?}");
}

#[test]
fn strangers_are_refused_by_name_and_password() {
    if !have("strangers_are_refused", "mosquitto_passwd") {
        return;
    }
    let folder = Folder::new("users");
    let path = folder.0.join("users");
    let made =
        Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&path).args(["eva", "geheim"]).status();
    assert!(made.unwrap().success());
    let users = Users::load(&path).unwrap();
    let port = Port::start(|cfg| cfg.users = Some(users), Duration::ZERO);
    for version in [Version::V5, Version::V311] {
        let mut cfg = port.config("who", version);
        assert_eq!(Driver::new(cfg.clone()).disconnected().0, DisconnectKind::Refused(0x86));
        cfg.username = Some("eva".into());
        cfg.password = Some(Secret::new("wrong".into()));
        assert_eq!(Driver::new(cfg.clone()).disconnected().0, DisconnectKind::Refused(0x86));
        cfg.password = Some(Secret::new("geheim".into()));
        let mut d = Driver::new(cfg);
        d.connected();
        d.send(&message("ok", "x", 1));
    }
    assert_eq!(port.messages().len(), 2);
}

#[test]
fn bounds_of_clients_packets_and_unanswered_messages() {
    let port = Port::start(
        |cfg| {
            cfg.max_clients = 2;
            cfg.max_packet_bytes = 1000;
            cfg.max_unacked = 4;
        },
        Duration::from_millis(100),
    );
    let mut a = Driver::new(port.config("a", Version::V5));
    let limits = a.wait("Connected", |e| match e {
        ClientEvent::Connected { limits, .. } => Some(*limits),
        _ => None,
    });
    assert_eq!((limits.max_packet_bytes, limits.receive_maximum), (Some(1000), u16::MAX));
    let mut b = Driver::new(port.config("b", Version::V311));
    b.connected();
    let (kind, reason) = Driver::new(port.config("c", Version::V5)).disconnected();
    assert_eq!(kind, DisconnectKind::Refused(0x89), "{reason}");
    // 3.1.1 is told no limit: the connection ends.
    b.client.publish(None, false, &message("big", vec![0; 2000], 0)).unwrap();
    assert_eq!(b.disconnected().0, DisconnectKind::Closed);
    b.client.stop(Instant::now());
    // Never more than the bound unanswered, and all arrive.
    for i in 0..20u8 {
        let id = a.client.acquire_pid();
        a.client.publish(id, false, &message("n", [i], 1)).unwrap();
    }
    let begin = Instant::now();
    for _ in 0..20 {
        a.wait("Puback", |e| matches!(e, ClientEvent::Puback { .. }).then_some(()));
    }
    assert!(begin.elapsed() >= Duration::from_millis(400), "five rounds of 4 at 100 ms");
    let order: Vec<u8> = port.messages().iter().filter(|m| m.topic == "n").map(|m| m.payload[0]).collect();
    assert_eq!(order, (0..20).collect::<Vec<_>>());
}

#[test]
fn silence_ends_a_connection_after_one_and_a_half_keep_alives() {
    let port = Port::start(|cfg| cfg.connect_timeout = Duration::from_millis(300), Duration::ZERO);
    let connect = |keep_alive: u8| {
        let mut socket = TcpStream::connect(("127.0.0.1", port.port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let id = [b'k', b'0' + keep_alive];
        let mut packet = b"\x10\x0f\0\x04MQTT\x05\x02\0".to_vec();
        packet.extend_from_slice(&[keep_alive, 0, 0, 2, id[0], id[1]]);
        socket.write_all(&packet).unwrap();
        let mut connack = [0; 100];
        assert_eq!((socket.read(&mut connack).unwrap() > 4, connack[0]), (true, 0x20));
        socket
    };
    let begin = Instant::now();
    let mut silent = connect(1);
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, [0xe0, 1, 0x8d], "DISCONNECT: keep alive timeout");
    assert!(begin.elapsed() >= Duration::from_millis(1490) && begin.elapsed() < Duration::from_millis(2500));
    // With pings it stays.
    let mut alive = connect(1);
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(600));
        alive.write_all(&[0xc0, 0]).unwrap();
        let mut pong = [0; 2];
        alive.read_exact(&mut pong).unwrap();
        assert_eq!(pong, [0xd0, 0]);
    }
    // Who never says CONNECT is cut off.
    let begin = Instant::now();
    let mut mute = TcpStream::connect(("127.0.0.1", port.port)).unwrap();
    mute.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(mute.read(&mut [0; 10]).unwrap(), 0);
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_paused_port_takes_nothing_and_loses_nothing() {
    let port = Port::plain();
    let mut cfg = port.config("p", Version::V5);
    cfg.keep_alive_s = 1;
    cfg.ping_timeout = Duration::from_secs(30);
    let mut d = Driver::new(cfg);
    d.connected();
    port.pause.store(true, Ordering::Relaxed);
    thread::sleep(Duration::from_millis(50));
    for i in 0..10u8 {
        let id = d.client.acquire_pid();
        d.client.publish(id, false, &message("p", [i], 1)).unwrap();
    }
    let seen = d.idle(Duration::from_secs(2));
    assert_eq!(seen, [], "nothing is answered, and nobody is cut off for his silence");
    assert_eq!(port.messages().len(), 0);
    port.pause.store(false, Ordering::Relaxed);
    for _ in 0..10 {
        d.wait("Puback", |e| matches!(e, ClientEvent::Puback { .. }).then_some(()));
    }
    assert_eq!(port.messages().len(), 10);
}

#[test]
fn tls_with_a_client_certificate() {
    let folder = Folder::new("ingest-tls");
    let make = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec![name.into()]).unwrap().self_signed(&key).unwrap();
        (
            folder.write(&format!("{name}.pem"), &cert.pem()),
            folder.write(&format!("{name}.key"), &key.serialize_pem()),
        )
    };
    let ((cert, key), (ca, ca_key)) = (make("port"), make("camera"));
    let tls = ServerTls::load(&ServerTlsConfig {
        cert: cert.clone(),
        key,
        client_ca: Some(ca.clone()),
        client_pins: Vec::new(),
    })
    .unwrap();
    let port = Port::start(|cfg| cfg.tls = Some(tls), Duration::ZERO);
    let client = |with: bool| {
        let own = |path: &std::path::PathBuf| with.then(|| path.clone());
        let tls = ClientTlsConfig {
            trust: Trust::PinnedFile(cert.clone()),
            cert: own(&ca),
            key: own(&ca_key),
            server_name: None,
        };
        ClientConfig { tls: Some(ClientTls::load(&tls).unwrap()), ..port.config("tls", Version::V5) }
    };
    let mut d = Driver::new(client(true));
    d.connected();
    d.send(&message("t", vec![5; 500_000], 1));
    assert_eq!(port.messages()[0].payload.len(), 500_000);
    let (kind, reason) = Driver::new(client(false)).disconnected();
    assert_eq!(kind, DisconnectKind::Tls, "{reason}");
}

#[test]
fn an_address_in_use_says_what_to_do() {
    let first = Port::plain();
    let error = Ingest::bind(IngestConfig::new(format!("127.0.0.1:{}", first.port))).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }));
    let text = error.to_string();
    for part in
        [&first.port.to_string(), "stop that program", "choose another `listen`", "mode = \"subscribe\""]
    {
        assert!(text.contains(part), "{text}");
    }
    let text = Ingest::bind(IngestConfig::new("nonsense")).unwrap_err().to_string();
    assert!(text.contains("nonsense"), "{text}");
    let text = Ingest::bind(IngestConfig::new("192.0.2.1:1")).unwrap_err().to_string();
    assert!(text.contains("192.0.2.1:1"), "{text}");
}

#[test]
fn shutdown_tells_the_clients() {
    let mut port = Port::plain();
    let mut d = Driver::new(port.config("s", Version::V5));
    d.connected();
    port.stop.store(true, Ordering::Relaxed);
    port.thread.take().unwrap().join().unwrap();
    assert_eq!(d.disconnected().0, DisconnectKind::Server(0x8b));
    port.thread = Some(thread::spawn(|| {}));
}

/// Random bytes over many connections: the port stays, and serves the next honest client.
#[test]
fn garbage_over_sockets_does_not_disturb_others() {
    let seed =
        std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("EDGE_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let port = Port::start(|cfg| cfg.max_clients = 4, Duration::ZERO);
    let mut honest = Driver::new(port.config("honest", Version::V5));
    honest.connected();
    for round in 0..150 {
        let mut socket = TcpStream::connect(("127.0.0.1", port.port)).unwrap();
        let mut bytes = b"\x10\x0d\0\x04MQTT\x05\x02\0\0\0\0\0".to_vec();
        bytes.extend((0..rng.usize(..200)).map(|_| rng.u8(..)));
        let at = rng.usize(..bytes.len());
        bytes[at] ^= 1 << rng.u8(..8);
        // The port may have closed already; that is one of its answers.
        let _ = socket.write_all(&bytes);
        if round % 30 == 0 {
            honest.send(&message("h", [round], 1));
        }
    }
    honest.send(&message("h", "last", 2));
    assert!(port.messages().iter().filter(|m| m.topic == "h").count() >= 6);
}

//! `edge::mqtt::Client` against servers that misbehave: silence, garbage, refusals, and words before the end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is meant to panic")]

mod common;

use std::{
    io::{Read, Write},
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use common::Driver;
use edge::mqtt::{ClientConfig, DisconnectKind};

/// A server that does what `script` says to each connection.
fn scripted(script: impl Fn(std::net::TcpStream) + Send + 'static) -> ClientConfig {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || listener.incoming().flatten().for_each(&script));
    let mut cfg = ClientConfig::new("127.0.0.1", port, "scripted");
    cfg.backoff = (Duration::from_millis(20), Duration::from_millis(50), Duration::from_secs(60));
    cfg.connack_timeout = Duration::from_millis(300);
    cfg.ping_timeout = Duration::from_millis(300);
    cfg
}

#[test]
fn silence_ends_in_a_reason_and_a_new_attempt() {
    let mut silent = Driver::new(scripted(|stream| {
        thread::sleep(Duration::from_millis(600));
        drop(stream);
    }));
    let (kind, reason) = silent.disconnected();
    assert_eq!(kind, DisconnectKind::Timeout);
    assert!(reason.contains("an answer to CONNECT within 0.3 s"), "{reason}");
    assert_eq!(silent.disconnected().0, DisconnectKind::Timeout, "it tries again");
}

#[test]
fn a_server_that_only_swallows_is_noticed_by_the_ping() {
    let mut cfg = scripted(|mut stream| {
        let mut buf = [0; 1000];
        let _ = stream.read(&mut buf);
        let _ = stream.write_all(&[0x20, 3, 0, 0, 0]);
        // Swallows everything from here on.
        while stream.read(&mut buf).is_ok_and(|n| n > 0) {}
    });
    cfg.keep_alive_s = 1;
    let mut dead = Driver::new(cfg);
    assert!(!dead.connected());
    let begin = Instant::now();
    let (kind, reason) = dead.disconnected();
    assert_eq!(kind, DisconnectKind::Timeout);
    assert!(reason.contains("ping") && begin.elapsed() > Duration::from_millis(1250), "{reason}");
}

#[test]
fn garbage_ends_in_a_reason_and_a_new_attempt() {
    for garbage in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        &[0x20, 0xff, 0xff, 0xff, 0xff],
        &[0x30, 0xff, 0xff, 0xff, 0x7f],
    ] {
        let mut d = Driver::new(scripted(move |mut stream| {
            let _ = stream.write_all(garbage);
            thread::sleep(Duration::from_millis(50));
        }));
        let (kind, reason) = d.disconnected();
        assert_eq!(kind, DisconnectKind::Protocol, "{reason}");
        assert!(reason.contains("not MQTT"), "{reason}");
        d.disconnected();
    }
}

#[test]
fn a_server_of_another_version_is_told_apart() {
    let mut old = Driver::new(scripted(|mut stream| {
        let _ = stream.read(&mut [0; 1000]);
        let _ = stream.write_all(&[0x20, 2, 0, 1]);
    }));
    let (kind, reason) = old.disconnected();
    assert_eq!(kind, DisconnectKind::Refused(0x84));
    assert!(reason.contains("MQTT version"), "{reason}");
}

#[test]
fn what_the_server_says_before_it_closes_is_the_reason() {
    let mut d = Driver::new(scripted(|mut stream| {
        let _ = stream.read(&mut [0; 1000]);
        let _ = stream.write_all(&[0x20, 3, 0, 0, 0]);
        let _ = stream.write_all(&[0xe0, 7, 0x8e, 5, 0x1f, 0, 2, b'h', b'i']);
    }));
    let (kind, reason) = d.disconnected();
    assert_eq!(kind, DisconnectKind::Server(0x8e));
    for part in ["session taken over (0x8E)", "\"hi\"", "same client id"] {
        assert!(reason.contains(part), "{reason}");
    }
    let mut d = Driver::new(scripted(|mut stream| {
        let _ = stream.read(&mut [0; 1000]);
        let _ = stream.write_all(&[0x20, 11, 0, 0x9c, 8, 0x1c, 0, 5, b'b', b':', b'1', b'8', b'8']);
    }));
    let (kind, reason) = d.disconnected();
    assert_eq!(kind, DisconnectKind::Refused(0x9c));
    assert!(reason.contains("use another server (0x9C)") && reason.contains("b:188"), "{reason}");
}

#[test]
fn an_unknown_host_is_told() {
    let mut cfg = ClientConfig::new("no-such-host.invalid", 1883, "x");
    cfg.connect_timeout = Duration::from_secs(15);
    let (kind, reason) = Driver::new(cfg).disconnected();
    assert_eq!(kind, DisconnectKind::Resolve);
    assert!(reason.contains("no-such-host.invalid"), "{reason}");
}

//! `edge::mqtt::Client` against a real mosquitto, in both protocol versions.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed test is meant to panic")]

mod common;

use std::{
    collections::HashSet,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use common::{Broker, Driver, Folder, have, message};
use edge::{
    config::Secret,
    mqtt::{ClientConfig, ClientEvent, DisconnectKind, Message, Properties, PublishError, Qos, Version},
    tls::{ClientTls, ClientTlsConfig, Trust},
};

const BOTH: [Version; 2] = [Version::V311, Version::V5];

fn ack(driver: &mut Driver, pid: Option<u16>, qos: Qos) {
    match (qos, pid) {
        (Qos::AtLeastOnce, Some(pid)) => driver.client.puback(pid, 0),
        (Qos::ExactlyOnce, Some(want)) => {
            driver.client.pubrec(want, 0);
            driver.wait("Pubrel", |e| matches!(e, ClientEvent::Pubrel { pid } if *pid == want).then_some(()));
            driver.client.pubcomp(want);
        }
        _ => {}
    }
}

#[test]
fn messages_of_every_qos_go_round_in_both_versions() {
    if !have("messages_of_every_qos", "mosquitto") {
        return;
    }
    let broker = Broker::start("round", "");
    for version in BOTH {
        let mut d = Driver::new(broker.config(&format!("round-{version:?}"), version));
        assert!(!d.connected());
        assert_eq!(d.subscribe(&format!("t/{version:?}/#")), [2]);
        for qos in 0..3 {
            for size in [0, 100, 70_000, 300_000] {
                let mut sent = message(&format!("t/{version:?}/ä"), vec![qos; size], qos);
                if version == Version::V5 {
                    sent.properties = Properties {
                        content_type: Some("image/png".into()),
                        expiry_s: Some(1000),
                        payload_utf8: Some(false),
                        response_topic: Some("r".into()),
                        correlation: Some(vec![0, 1]),
                        user: vec![("a".into(), "1".into()), ("a".into(), "2".into())],
                    };
                }
                let id = if qos == 0 { None } else { d.client.acquire_pid() };
                d.client.publish(id, false, &sent).unwrap();
                // The broker delivers a QoS 2 message after PUBREL only.
                if qos == 2 {
                    let id = id.unwrap();
                    d.wait("Pubrec", |e| matches!(e, ClientEvent::Pubrec { reason: 0, .. }).then_some(()));
                    d.client.pubrel(id).unwrap();
                }
                let (pid, dup, mut got) = d.publish();
                ack(&mut d, pid, got.qos);
                got.properties.expiry_s = got.properties.expiry_s.map(|_| 1000);
                assert_eq!((dup, &got), (false, &sent), "{version:?} QoS {qos} {size} bytes");
            }
        }
        // All ids came back.
        d.idle(Duration::from_millis(100));
        assert_eq!((1..=65_535).filter(|_| d.client.acquire_pid().is_some()).count(), 65_535);
        assert_eq!(d.client.acquire_pid(), None);
    }
}

#[test]
fn the_limits_of_the_server_are_told_and_kept() {
    if !have("the_limits_of_the_server", "mosquitto") {
        return;
    }
    let broker =
        Broker::start("limits", "max_packet_size 2000\nmax_inflight_messages 7\nretain_available false");
    let mut d = Driver::new(broker.config("limits", Version::V5));
    let limits = d.wait("Connected", |e| match e {
        ClientEvent::Connected { limits, .. } => Some(*limits),
        _ => None,
    });
    assert_eq!((limits.receive_maximum, limits.max_packet_bytes, limits.retain), (7, Some(2000), false));
    let big = d.client.publish(None, false, &message("t", vec![0; 2000], 0));
    assert_eq!(big, Err(PublishError::TooLarge { bytes: 2007, limit: 2000 }));
    let retained = Message { retain: true, ..message("t", "x", 0) };
    assert_eq!(d.client.publish(None, false, &retained), Err(PublishError::RetainNotSupported));
    for _ in 0..7 {
        let id = d.client.acquire_pid();
        d.client.publish(id, false, &message("t", "x", 1)).unwrap();
    }
    let id = d.client.acquire_pid();
    assert_eq!(d.client.publish(id, false, &message("t", "x", 1)), Err(PublishError::WindowFull(7)));
    assert!(!d.client.can_send());
    d.wait("Puback", |e| matches!(e, ClientEvent::Puback { .. }).then_some(()));
    assert_eq!(d.client.publish(id, false, &message("t", "x", 1)), Ok(()));
    let all: Vec<_> = d.idle(Duration::from_millis(200));
    assert!(!all.iter().any(|e| matches!(e, ClientEvent::Disconnected { .. })), "{all:?}");
}

#[test]
fn a_kept_session_delivers_what_came_meanwhile_and_repeats_what_was_not_acknowledged() {
    if !have("a_kept_session", "mosquitto") {
        return;
    }
    let broker = Broker::start("session", "");
    for version in BOTH {
        let cfg = broker.config(&format!("s-{version:?}"), version);
        let topic = format!("s/{version:?}");
        let mut d = Driver::new(cfg.clone());
        assert!(!d.connected());
        d.subscribe(&topic);
        drop(d);
        let mut other = Driver::new(broker.config("other", version));
        other.connected();
        other.send(&message(&topic, "one", 1));
        let mut d = Driver::new(cfg.clone());
        assert!(d.connected(), "{version:?}: the session is present");
        let (pid, dup, got) = d.publish();
        assert_eq!((dup, got.payload.as_slice()), (false, &b"one"[..]));
        drop(d);
        let mut d = Driver::new(cfg.clone());
        assert!(d.connected());
        let (again, dup, got) = d.publish();
        assert_eq!((again, dup, got.payload.as_slice()), (pid, true, &b"one"[..]));
        ack(&mut d, again, got.qos);
        d.idle(Duration::from_millis(100));
        drop(d);
        let mut d = Driver::new(cfg);
        assert!(d.connected());
        let rest = d.idle(Duration::from_millis(300));
        assert!(!rest.iter().any(|e| matches!(e, ClientEvent::Publish { .. })), "{rest:?}");
    }
}

#[test]
fn inbound_qos2_is_asked_for_until_durable_and_answered_alone_after() {
    if !have("inbound_qos2", "mosquitto") {
        return;
    }
    let broker = Broker::start("in2", "");
    for version in BOTH {
        let cfg = broker.config(&format!("in2-{version:?}"), version);
        let topic = format!("in2/{version:?}");
        let mut d = Driver::new(cfg.clone());
        d.connected();
        d.subscribe(&topic);
        let mut other = Driver::new(broker.config("other", version));
        other.connected();
        other.send(&message(&topic, "once", 2));
        let first = d.publish();
        // Not durable yet, crash: it must come again.
        drop(d);
        let mut d = Driver::new(cfg.clone());
        d.connected();
        let again = d.publish();
        assert_eq!((again.0, again.1, &again.2.payload), (first.0, true, &first.2.payload));
        let id = again.0.unwrap();
        // Durable now, but the PUBREC is lost with the process: the next answers by itself.
        drop(d);
        let mut d = Driver::new(cfg);
        d.client.set_inbound_held(HashSet::from([id]));
        let mut surfaced = 0;
        d.wait("Pubrel", |e| {
            surfaced += usize::from(matches!(e, ClientEvent::Publish { .. }));
            matches!(e, ClientEvent::Pubrel { pid } if *pid == id).then_some(())
        });
        d.client.pubcomp(id);
        assert_eq!(surfaced, 0, "{version:?}: a held id is not surfaced");
        // The id may come back with another message then.
        other.send(&message(&topic, "twice", 2));
        let (pid, _, got) = d.publish();
        assert_eq!(got.payload, b"twice");
        ack(&mut d, pid, got.qos);
    }
}

#[test]
fn a_new_session_forgets_the_held_ids() {
    if !have("a_new_session", "mosquitto") {
        return;
    }
    let broker = Broker::start("forget", "");
    let mut d = Driver::new(broker.config("forget", Version::V5));
    d.client.set_inbound_held((1..100).collect());
    assert!(!d.connected());
    d.subscribe("forget");
    let mut other = Driver::new(broker.config("other", Version::V5));
    other.connected();
    other.send(&message("forget", "new", 2));
    assert_eq!(d.publish().2.payload, b"new", "an id of the new session is no duplicate");
}

#[test]
fn outbound_qos2_is_finished_by_the_next_process() {
    if !have("outbound_qos2", "mosquitto") {
        return;
    }
    let broker = Broker::start("out2", "");
    for version in BOTH {
        let cfg = broker.config(&format!("out2-{version:?}"), version);
        let mut d = Driver::new(cfg.clone());
        d.connected();
        let id = d.client.acquire_pid().unwrap();
        d.client.publish(Some(id), false, &message("x", "y", 2)).unwrap();
        d.wait("Pubrec", |e| matches!(e, ClientEvent::Pubrec { .. }).then_some(()));
        drop(d);
        let mut d = Driver::new(cfg);
        assert!(d.client.reserve_pid(id) && !d.client.reserve_pid(id));
        assert!(d.connected());
        d.client.pubrel(id).unwrap();
        d.wait("Pubcomp", |e| {
            matches!(e, ClientEvent::Pubcomp { pid, reason: 0 } if *pid == id).then_some(())
        });
        // Once more: the server does not know the id any longer, which is as good.
        d.client.pubrel(id).unwrap();
        let reason = d.wait("Pubcomp", |e| match e {
            ClientEvent::Pubcomp { reason, .. } => Some(*reason),
            _ => None,
        });
        assert!(matches!(reason, 0 | 0x92), "{reason}");
    }
}

#[test]
fn the_will_is_published_when_the_process_dies_and_not_after_stop() {
    if !have("the_will", "mosquitto") {
        return;
    }
    let broker = Broker::start("will", "");
    for version in BOTH {
        let mut watcher = Driver::new(broker.config("watcher", version));
        watcher.connected();
        watcher.subscribe("status/+");
        let with_will = |id: &str| {
            let mut cfg = broker.config(id, version);
            cfg.will = Some(Message { retain: true, ..message(&format!("status/{id}"), "offline", 1) });
            let mut d = Driver::new(cfg);
            d.connected();
            d
        };
        let mut clean = with_will("clean");
        clean.client.stop(Instant::now());
        assert_eq!(clean.disconnected().0, DisconnectKind::Stopped);
        assert_eq!(clean.client.deadline(), None, "a stopped client has nothing to do");
        drop(with_will("dead"));
        let (pid, _, got) = watcher.publish();
        ack(&mut watcher, pid, got.qos);
        assert_eq!((got.topic.as_str(), got.payload.as_slice()), ("status/dead", &b"offline"[..]));
        let more = watcher.idle(Duration::from_millis(300));
        assert!(!more.iter().any(|e| matches!(e, ClientEvent::Publish { .. })), "{more:?}");
        // Retained: somebody who comes later sees it.
        let mut late = Driver::new(broker.config("late", version));
        late.connected();
        late.subscribe("status/dead");
        assert!(late.publish().2.retain);
        late.send(&Message { retain: true, ..message("status/dead", "", 0) });
    }
}

#[test]
fn refusals_are_told_to_people() {
    if !have("refusals", "mosquitto") || !have("refusals", "mosquitto_passwd") {
        return;
    }
    let folder = Folder::new("passwd");
    let users = folder.0.join("users");
    let made =
        Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&users).args(["eva", "geheim"]).status();
    assert!(made.unwrap().success());
    let acl = folder.write("acl", "user eva\ntopic readwrite good/#\n");
    let extra =
        format!("allow_anonymous false\npassword_file {}\nacl_file {}", users.display(), acl.display());
    let broker = Broker::start("refuse", &extra);
    for version in BOTH {
        let mut cfg = broker.config("who", version);
        cfg.username = Some("eva".into());
        cfg.password = Some(Secret::new("falsch".into()));
        let mut d = Driver::new(cfg.clone());
        let (kind, reason) = d.disconnected();
        assert!(matches!(kind, DisconnectKind::Refused(0x86 | 0x87)), "{kind:?}");
        assert!(reason.contains("refused") && reason.contains(&broker.port.to_string()), "{reason}");
        assert!(!reason.contains("falsch"), "{reason}");
        cfg.password = Some(Secret::new("geheim".into()));
        let mut d = Driver::new(cfg);
        d.connected();
        assert_eq!(d.subscribe("good/a"), [2]);
        if version == Version::V5 {
            let id = d.client.acquire_pid();
            d.client.publish(id, false, &message("bad/a", "x", 1)).unwrap();
            let reason = d.wait("Puback", |e| match e {
                ClientEvent::Puback { reason, .. } => Some(*reason),
                _ => None,
            });
            assert_eq!(reason, 0x87);
            assert_eq!(edge::mqtt::reason_text(reason), "not authorized");
        }
    }
}

#[test]
fn a_killed_broker_is_found_again_and_the_resend_carries_dup() {
    if !have("a_killed_broker", "mosquitto") {
        return;
    }
    let mut broker = Broker::start("killed", "autosave_interval 1\nautosave_on_changes true");
    for version in BOTH {
        let mut d = Driver::new(broker.config(&format!("k-{version:?}"), version));
        d.connected();
        broker.kill();
        let (kind, _) = d.disconnected();
        assert_eq!(kind, DisconnectKind::Closed);
        assert_eq!(d.client.publish(None, false, &message("a", "b", 0)), Err(PublishError::NotConnected));
        let (kind, reason) = d.disconnected();
        assert_eq!(kind, DisconnectKind::Connect);
        assert!(reason.contains("refused") && reason.contains("is the broker running"), "{reason}");
        broker.run();
        d.connected();
        let id = d.client.acquire_pid().unwrap();
        d.client.publish(Some(id), true, &message("a", "b", 1)).unwrap();
        d.wait("Puback", |e| matches!(e, ClientEvent::Puback { pid, .. } if *pid == id).then_some(()));
    }
}

#[test]
fn tls_with_a_pinned_self_signed_certificate() {
    if !have("tls_with_a_pinned", "mosquitto") {
        return;
    }
    let folder = Folder::new("tls");
    let make = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["elsewhere".into()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap();
        (
            folder.write(&format!("{name}.pem"), &cert.pem()),
            folder.write(&format!("{name}.key"), &key.serialize_pem()),
        )
    };
    let (cert, key) = make("broker");
    let (stranger, _) = make("stranger");
    let broker = Broker::start("tls", &format!("certfile {}\nkeyfile {}", cert.display(), key.display()));
    let with = |trust: Trust, version: Version| -> ClientConfig {
        let cfg = ClientTlsConfig { trust, cert: None, key: None, server_name: None };
        ClientConfig {
            tls: Some(ClientTls::load(&cfg).unwrap()),
            ..broker.config(&format!("tls-{version:?}"), version)
        }
    };
    for version in BOTH {
        let mut d = Driver::new(with(Trust::PinnedFile(cert.clone()), version));
        d.connected();
        d.idle(Duration::from_millis(100));
        assert!(
            d.client.deadline().unwrap() > Instant::now() + Duration::from_secs(20),
            "only the ping is due"
        );
        d.subscribe("big");
        let id = d.client.acquire_pid();
        d.client.publish(id, false, &message("big", vec![3; 900_000], 1)).unwrap();
        assert_eq!(d.publish().2.payload.len(), 900_000);
    }
    let mut d = Driver::new(with(Trust::PinnedFile(stranger.clone()), Version::V5));
    let (kind, reason) = d.disconnected();
    assert_eq!(kind, DisconnectKind::Tls);
    assert!(reason.contains("UnknownIssuer") && reason.contains("stranger.pem"), "{reason}");
    let mut d = Driver::new(broker.config("plain", Version::V5));
    let (_, reason) = d.disconnected();
    assert!(reason.contains("TLS"), "{reason}");
    fs::metadata(cert).unwrap();
}

#[test]
fn a_name_with_two_families_finds_the_one_that_answers() {
    if !have("a_name_with_two_families", "mosquitto") {
        return;
    }
    // mosquitto listens on 127.0.0.1 only; localhost is ::1 as well on most systems.
    let broker = Broker::start("families", "");
    let mut cfg = broker.config("families", Version::V5);
    cfg.host = "localhost".into();
    assert!(!Driver::new(cfg).connected());
}

#[test]
fn a_paused_client_takes_nothing_and_keeps_the_connection() {
    if !have("a_paused_client", "mosquitto") {
        return;
    }
    let broker = Broker::start("pause", "");
    let mut cfg = broker.config("pause", Version::V5);
    cfg.keep_alive_s = 1;
    let mut d = Driver::new(cfg);
    d.connected();
    d.subscribe("p");
    d.client.pause_reading(true);
    let mut other = Driver::new(broker.config("other", Version::V5));
    other.connected();
    for i in 0..5 {
        other.send(&message("p", [i], 1));
    }
    // Longer than keep-alive and ping timeout together would allow without the pings.
    let seen = d.idle(Duration::from_millis(2500));
    assert_eq!(seen, [], "nothing while paused");
    d.client.pause_reading(false);
    for i in 0..5 {
        let (pid, _, got) = d.publish();
        assert_eq!(got.payload, [i]);
        ack(&mut d, pid, got.qos);
    }
}

#[test]
fn a_full_output_buffer_says_so_and_says_when_it_is_over() {
    if !have("a_full_output_buffer", "mosquitto") {
        return;
    }
    let broker = Broker::start("full", "");
    let mut cfg = broker.config("full", Version::V5);
    cfg.out_buffer_bytes = 10_000;
    let mut d = Driver::new(cfg);
    d.connected();
    // Larger than the buffer, but it is empty.
    d.client.publish(None, false, &message("f", vec![0; 50_000], 0)).unwrap();
    assert_eq!(d.client.publish(None, false, &message("f", "x", 0)), Err(PublishError::BufferFull));
    assert_eq!(d.client.writable_bytes(), 0);
    d.wait("Writable", |e| matches!(e, ClientEvent::Writable).then_some(()));
    d.client.publish(None, false, &message("f", "x", 0)).unwrap();
}

#[test]
fn an_idle_client_sleeps() {
    if !have("an_idle_client_sleeps", "mosquitto") {
        return;
    }
    let broker = Broker::start("idle", "");
    let mut d = Driver::new(broker.config("idle", Version::V5));
    d.connected();
    d.subscribe("i");
    d.idle(Duration::from_millis(100));
    assert!(d.client.deadline().unwrap() > Instant::now() + Duration::from_secs(20), "only the ping is due");
    let before = Instant::now();
    assert_eq!(d.turn(Duration::from_millis(300)), None);
    assert!(before.elapsed() >= Duration::from_millis(290), "woken for nothing");
}

#[test]
fn a_daemon_can_ask_for_a_new_connection_without_the_will_being_published() {
    if !have("a_daemon_can_ask", "mosquitto") {
        return;
    }
    let broker = Broker::start("again", "");
    let mut watcher = Driver::new(broker.config("watcher", Version::V5));
    watcher.connected();
    watcher.subscribe("w");
    let mut cfg = broker.config("again", Version::V5);
    cfg.will = Some(message("w", "gone", 0));
    let mut d = Driver::new(cfg);
    d.connected();
    d.client.reconnect(0, "no acknowledgement for 30 s", Instant::now());
    let (kind, reason) = d.disconnected();
    assert_eq!(kind, DisconnectKind::Requested);
    assert!(reason.contains("no acknowledgement for 30 s"), "{reason}");
    assert!(d.connected());
    assert_eq!(d.client.connection(), 2);
    let seen = watcher.idle(Duration::from_millis(200));
    assert!(!seen.iter().any(|e| matches!(e, ClientEvent::Publish { .. })), "{seen:?}");
}

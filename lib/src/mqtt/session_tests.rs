//! The session alone, and a seeded simulation of it against a model of a server that crashes, repeats and forgets.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn session(version: Version) -> Session {
    let mut cfg = ClientConfig::new("h", 1, "c");
    cfg.version = version;
    cfg.keep_alive_s = 10;
    cfg.ping_timeout = 5 * SECOND;
    Session::new(cfg)
}

fn feed(session: &mut Session, bytes: &[u8]) -> Result<Vec<ClientEvent>, Fault> {
    let mut input = InBuf::default();
    input.vec().extend_from_slice(bytes);
    let mut events = Vec::new();
    while let Some(event) = session.step(&mut input)? {
        events.push(event);
    }
    Ok(events)
}

fn up(version: Version, connack: &[u8], now: Instant) -> Session {
    let mut s = session(version);
    s.open(now).unwrap();
    s.out.clear();
    assert!(matches!(feed(&mut s, connack).unwrap()[..], [ClientEvent::Connected { .. }]));
    s
}

fn message(qos: Qos) -> Message {
    Message { topic: "t".into(), qos, ..Message::default() }
}

#[test]
fn pings_when_nothing_is_sent_or_nothing_is_heard() {
    let t0 = Instant::now();
    // Server Keep Alive 20 s wins.
    let mut s = up(Version::V5, &[0x20, 6, 0, 0, 3, 0x13, 0, 20], t0);
    assert_eq!(s.deadline(), Some(t0 + 20 * SECOND));
    s.note_sent(t0 + 15 * SECOND);
    assert_eq!(s.deadline(), Some(t0 + 20 * SECOND), "nothing heard");
    s.note_received(t0 + 16 * SECOND);
    assert_eq!(s.deadline(), Some(t0 + 35 * SECOND));
    s.tick(t0 + 35 * SECOND).unwrap();
    assert_eq!(s.out.bytes(), [0xc0, 0]);
    assert_eq!(s.deadline(), Some(t0 + 40 * SECOND));
    s.tick(t0 + 39 * SECOND).unwrap();
    assert_eq!(s.out.len(), 2, "one ping at a time");
    // Not read: no answer can be seen, so none is missed.
    s.pause(true, Some(t0 + 39 * SECOND));
    s.tick(t0 + 50 * SECOND).unwrap();
    s.pause(false, Some(t0 + 60 * SECOND));
    assert_eq!(s.deadline(), Some(t0 + 65 * SECOND));
    assert_eq!(s.tick(t0 + 65 * SECOND).unwrap_err().kind, DisconnectKind::Timeout);
}

#[test]
fn ids_are_unique_survive_the_connection_and_come_back_with_the_answer() {
    let t0 = Instant::now();
    let mut s = up(Version::V311, &[0x20, 2, 0, 0], t0);
    assert!(s.pids().reserve(2) && !s.pids().reserve(2) && !s.pids().reserve(0));
    assert_eq!((s.pids().acquire(), s.pids().acquire()), (Some(1), Some(3)));
    s.publish(Some(1), false, &message(Qos::AtLeastOnce)).unwrap();
    assert!(s.publish(Some(1), false, &message(Qos::AtLeastOnce)).is_err(), "in flight already");
    assert!(s.publish(None, false, &message(Qos::AtLeastOnce)).is_err());
    assert!(s.publish(Some(3), false, &message(Qos::AtMostOnce)).is_err());
    s.lost();
    assert!(s.pids().is_taken(1) && s.pids().is_taken(2));
    s.open(t0).unwrap();
    feed(&mut s, &[0x20, 2, 1, 0]).unwrap();
    s.publish(Some(1), true, &message(Qos::AtLeastOnce)).unwrap();
    assert_eq!(
        feed(&mut s, &[0x40, 2, 0, 1, 0x40, 2, 0, 1]).unwrap(),
        [ClientEvent::Puback { pid: 1, reason: 0 }]
    );
    assert!(!s.pids().is_taken(1));
    s.pids().release(2);
    assert!(!s.pids().is_taken(2));
}

#[test]
fn the_window_counts_what_was_sent_on_this_connection() {
    let t0 = Instant::now();
    let mut s = up(Version::V5, &[0x20, 6, 0, 0, 3, 0x21, 0, 2], t0);
    s.publish(Some(1), false, &message(Qos::ExactlyOnce)).unwrap();
    s.publish(Some(2), false, &message(Qos::AtLeastOnce)).unwrap();
    let third = |s: &mut Session| s.publish(Some(3), false, &message(Qos::AtLeastOnce));
    assert_eq!(third(&mut s), Err(PublishError::WindowFull(2)));
    feed(&mut s, &[0x50, 2, 0, 1]).unwrap();
    assert_eq!(third(&mut s), Err(PublishError::WindowFull(2)), "PUBREC does not open the window");
    s.pubrel(1).unwrap();
    // A restored PUBREL does not use it, and its PUBCOMP does not open it.
    s.pubrel(9).unwrap();
    assert_eq!(
        feed(&mut s, &[0x70, 3, 0, 9, 0x92]).unwrap(),
        [ClientEvent::Pubcomp { pid: 9, reason: 0x92 }]
    );
    assert_eq!(third(&mut s), Err(PublishError::WindowFull(2)));
    feed(&mut s, &[0x70, 2, 0, 1]).unwrap();
    third(&mut s).unwrap();
    feed(&mut s, &[0x40, 3, 0, 2, 0x97]).unwrap();
    s.publish(Some(4), false, &message(Qos::ExactlyOnce)).unwrap();
    // Refused: free at once.
    assert_eq!(feed(&mut s, &[0x50, 3, 0, 4, 0x97]).unwrap(), [ClientEvent::Pubrec { pid: 4, reason: 0x97 }]);
    assert!(!s.pids().is_taken(4) && s.window_open());
}

#[test]
fn an_answer_to_an_earlier_connection_is_dropped() {
    let t0 = Instant::now();
    let mut s = up(Version::V5, &[0x20, 3, 1, 0, 0], t0);
    let two = [0x34, 6, 0, 1, b't', 0, 5, 0];
    assert_eq!(feed(&mut s, &two).unwrap().len(), 1);
    s.lost();
    s.open(t0).unwrap();
    s.out.clear();
    feed(&mut s, &[0x20, 3, 0, 0, 0]).unwrap();
    // The commit of the first connection's message comes late.
    s.ack(kind::PUBREC, 5, 0);
    assert!(s.out.is_empty());
    assert_eq!(
        feed(&mut s, &two).unwrap().len(),
        1,
        "another message under the same id is not taken for held"
    );
    s.ack(kind::PUBREC, 5, 0);
    assert_eq!(s.out.bytes(), [0x50, 2, 0, 5]);
}

#[test]
fn a_held_id_without_dup_is_a_message_to_look_at() {
    let mut s = session(Version::V5);
    s.set_held(HashSet::from([5, 6]));
    s.open(Instant::now()).unwrap();
    s.out.clear();
    feed(&mut s, &[0x20, 3, 1, 0, 0]).unwrap();
    let publish = |flags: u8, pid: u8| [0x30 | flags, 6, 0, 1, b't', 0, pid, 0];
    assert_eq!(feed(&mut s, &publish(0b1100, 6)).unwrap(), []);
    assert_eq!(s.out.bytes(), [0x50, 2, 0, 6], "redelivery of what is durable");
    s.out.clear();
    assert_eq!(feed(&mut s, &publish(0b0100, 5)).unwrap().len(), 1, "the id is used anew");
    assert_eq!(feed(&mut s, &publish(0b1100, 5)).unwrap().len(), 1, "and that is not durable yet");
    assert!(s.out.is_empty());
}

#[test]
fn an_unknown_id_of_the_server_is_released_there() {
    let mut s = up(Version::V5, &[0x20, 3, 1, 0, 0], Instant::now());
    assert_eq!(feed(&mut s, &[0x50, 2, 0, 77]).unwrap(), []);
    assert_eq!(s.out.bytes(), [0x62, 3, 0, 77, 0x92]);
    // One that the daemon has reserved is its business.
    s.pids().reserve(78);
    assert_eq!(feed(&mut s, &[0x50, 2, 0, 78]).unwrap(), [ClientEvent::Pubrec { pid: 78, reason: 0 }]);
}

#[test]
fn shared_subscriptions_go_without_no_local() {
    let mut s = up(Version::V5, &[0x20, 3, 1, 0, 0], Instant::now());
    let filter = |topic: &str| Filter {
        topic: topic.into(),
        qos: Qos::AtLeastOnce,
        no_local: true,
        retain_as_published: true,
    };
    s.subscribe(&[filter("a/#"), filter("$share/g/a")]).unwrap();
    let sent = s.out.bytes();
    assert_eq!((sent[10], sent[sent.len() - 1]), (0b1101, 0b1001), "{sent:?}");
    assert!(s.subscribe(&[filter("$share//x")]).is_err() && s.subscribe(&[]).is_err());
    assert_eq!(
        feed(&mut s, &[0x90, 5, 0, 1, 0, 1, 0x9e]).unwrap(),
        [ClientEvent::Suback { pid: 1, reasons: vec![1, 0x9e] }]
    );
}

/// A daemon over the session, as small as can be: it stores what it receives and commits at times.
#[derive(Default)]
struct Daemon {
    /// Payloads in the order of storing.
    stored: Vec<u32>,
    /// Records of this many messages are on disk.
    durable: usize,
    /// Ids of messages that are stored and not released, with the index of their record.
    held: BTreeMap<u16, usize>,
    /// What waits for the commit: packet, id, index.
    owed: Vec<(u8, u16, usize)>,
}

/// A server that sends QoS 1 and 2 messages as the protocol demands of it.
#[derive(Default)]
struct Server {
    next: u32,
    /// Unanswered publishes in order: id, payload, QoS, sent on this connection.
    sent: Vec<(u16, u32, u8)>,
    /// PUBREL is due or unanswered.
    released: Vec<u16>,
    confirmed: BTreeSet<u32>,
    exactly_once: BTreeSet<u32>,
}

impl Server {
    fn publish(&self, pid: u16, payload: u32, qos: u8, dup: bool) -> Vec<u8> {
        let message = Message {
            topic: "t".into(),
            payload: payload.to_be_bytes().to_vec(),
            qos: Qos::from_u8(qos).unwrap(),
            ..Message::default()
        };
        let mut out = Vec::new();
        wire::Outgoing::new(Version::V5, Some(pid), dup, &message).unwrap().encode(&mut out);
        out
    }

    fn hear(&mut self, bytes: &mut OutBuf, daemon: &Daemon, link: &mut InBuf) {
        while let Some(frame) = wire::frame(bytes.bytes(), u32::MAX).unwrap() {
            let total = frame.total;
            if matches!(frame.kind(), kind::PUBACK | kind::PUBREC | kind::PUBCOMP) {
                let (pid, _) = wire::decode_ack(Version::V5, frame).unwrap();
                match frame.kind() {
                    kind::PUBCOMP => self.released.retain(|id| *id != pid),
                    packet => {
                        let Some(at) = self.sent.iter().position(|(id, ..)| *id == pid) else {
                            // The second answer to a message that was repeated on this connection.
                            assert!(packet == kind::PUBREC && self.released.contains(&pid), "{pid}");
                            bytes.consume(total);
                            continue;
                        };
                        let (_, payload, qos) = self.sent.remove(at);
                        assert_eq!(packet, if qos == 1 { kind::PUBACK } else { kind::PUBREC });
                        let index = daemon.stored.iter().position(|p| *p == payload);
                        assert!(
                            index.is_some_and(|i| i < daemon.durable),
                            "{payload} answered before it was durable"
                        );
                        self.confirmed.insert(payload);
                        if qos == 2 {
                            self.released.push(pid);
                            wire::encode_ack(link.vec(), Version::V5, kind::PUBREL, pid, 0);
                        }
                    }
                }
            }
            bytes.consume(total);
        }
    }
}

fn daemon_turn(s: &mut Session, d: &mut Daemon, link: &mut InBuf) {
    while let Some(event) = s.step(link).unwrap() {
        match event {
            ClientEvent::Publish { pid: Some(pid), message, .. } => {
                let payload = u32::from_be_bytes(message.payload[..].try_into().unwrap());
                let index = match d.held.get(&pid) {
                    Some(index) if message.qos == Qos::ExactlyOnce => *index,
                    _ => {
                        d.stored.push(payload);
                        d.stored.len() - 1
                    }
                };
                if message.qos == Qos::ExactlyOnce {
                    d.held.insert(pid, index);
                    d.owed.push((kind::PUBREC, pid, index));
                } else {
                    d.owed.push((kind::PUBACK, pid, index));
                }
            }
            ClientEvent::Pubrel { pid } => {
                d.held.remove(&pid);
                s.ack(kind::PUBCOMP, pid, 0);
            }
            ClientEvent::Connected { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A run is repeated with EDGE_SEED.
#[test]
fn simulation_nothing_is_answered_before_it_is_durable_and_qos2_is_stored_once() {
    let base = std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok());
    let seeds = base.map_or_else(|| (0..300).map(|_| fastrand::u64(..)).collect(), |seed: u64| vec![seed]);
    for seed in seeds {
        println!("EDGE_SEED={seed}");
        simulate(seed);
    }
}

/// The connection breaks, or the process dies and loses what was not durable; then both come back.
fn crash(s: &mut Session, d: &mut Daemon, server: &Server, link: &mut InBuf, process: bool) {
    link.clear();
    s.lost();
    d.owed.clear();
    if process {
        *s = session(Version::V5);
        d.stored.truncate(d.durable);
        d.held.retain(|_, index| *index < d.durable);
    }
    s.set_held(d.held.iter().filter(|(_, i)| **i < d.durable).map(|(pid, _)| *pid).collect());
    s.open(Instant::now()).unwrap();
    s.out.clear();
    link.vec().extend_from_slice(&[0x20, 3, 1, 0, 0]);
    for (pid, payload, qos) in server.sent.clone() {
        link.vec().extend_from_slice(&server.publish(pid, payload, qos, true));
    }
    for pid in server.released.clone() {
        wire::encode_ack(link.vec(), Version::V5, kind::PUBREL, pid, 0);
    }
}

fn simulate(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let t0 = Instant::now();
    let (mut s, mut d, mut server) = (session(Version::V5), Daemon::default(), Server::default());
    let (mut link, mut ids) = (InBuf::default(), Pids::default());
    s.open(t0).unwrap();
    s.out.clear();
    link.vec().extend_from_slice(&[0x20, 3, 0, 0, 0]);
    for step in 0..600 {
        match rng.u8(..20) {
            0..=7 if server.sent.len() < 20 && step < 500 => {
                let pid = ids.acquire().unwrap();
                let qos = rng.u8(1..=2);
                let bytes = server.publish(pid, server.next, qos, false);
                server.sent.push((pid, server.next, qos));
                if qos == 2 {
                    server.exactly_once.insert(server.next);
                }
                server.next += 1;
                link.vec().extend_from_slice(&bytes);
            }
            8 => {
                // Some servers repeat on the same connection.
                if let Some(&(pid, payload, 2)) = server.sent.get(rng.usize(..20)) {
                    link.vec().extend_from_slice(&server.publish(pid, payload, 2, true));
                }
            }
            9..=12 => {
                d.durable = d.stored.len();
                for (packet, pid, _) in std::mem::take(&mut d.owed) {
                    s.ack(packet, pid, 0);
                }
            }
            13 => crash(&mut s, &mut d, &server, &mut link, rng.bool()),
            14..=16 => server.hear(&mut s.out, &d, &mut link),
            _ => daemon_turn(&mut s, &mut d, &mut link),
        }
        for pid in 1..=2000 {
            let busy = server.sent.iter().any(|(id, ..)| *id == pid) || server.released.contains(&pid);
            if !busy {
                ids.release(pid);
            }
        }
    }
    for _ in 0..4 {
        daemon_turn(&mut s, &mut d, &mut link);
        d.durable = d.stored.len();
        for (packet, pid, _) in std::mem::take(&mut d.owed) {
            s.ack(packet, pid, 0);
        }
        server.hear(&mut s.out, &d, &mut link);
    }
    assert!(server.sent.is_empty() && server.released.is_empty(), "left over: {:?}", server.sent);
    assert_eq!(server.confirmed.len() as u32, server.next);
    for payload in server.exactly_once {
        assert_eq!(d.stored.iter().filter(|p| **p == payload).count(), 1, "{payload}");
    }
}

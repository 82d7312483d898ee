//! The server's side of the protocol on bytes alone, and on bytes that are wrong.

use super::*;

const LIMITS: Limits = Limits { packet_bytes: 4096, unacked: 3, out_bytes: 1 << 16 };

fn connect_v5(flags: u8, tail: &[u8]) -> Vec<u8> {
    let mut body = b"\0\x04MQTT\x05".to_vec();
    body.push(flags);
    body.extend_from_slice(&[0, 10, 0, 0, 1, b'c']);
    body.extend_from_slice(tail);
    let mut packet = Vec::new();
    wire::put_packet(&mut packet, 0x10, &body);
    packet
}

fn connect_v311() -> Vec<u8> {
    let mut packet = Vec::new();
    wire::put_packet(&mut packet, 0x10, b"\0\x04MQTT\x04\x00\0\x0a\0\x01c");
    packet
}

fn feed(peer: &mut Peer, bytes: &[u8]) -> (Vec<PeerEvent>, Option<String>) {
    let mut input = InBuf::default();
    input.vec().extend_from_slice(bytes);
    let mut events = Vec::new();
    loop {
        match peer.step(&mut input, false) {
            Ok(Some(event)) => events.push(event),
            Ok(None) => return (events, None),
            Err(reason) => return (events, Some(reason)),
        }
    }
}

fn up(connect: &[u8], held: &[u16]) -> Peer {
    let mut peer = Peer::new(LIMITS);
    let (events, error) = feed(&mut peer, connect);
    assert!(matches!(events[..], [PeerEvent::Connect(_)]) && error.is_none(), "{events:?} {error:?}");
    peer.accept(true, None);
    assert_eq!(peer.out.bytes()[..3], [0x20, if peer.version == Version::V5 { 14 } else { 2 }, 1]);
    held.iter().for_each(|pid| peer.ack(kind::PUBREC, *pid, 0));
    peer.out.clear();
    peer
}

fn publish(qos: u8, pid: u16, version: Version) -> Vec<u8> {
    encode(qos, pid, false, version)
}

fn again(pid: u16, version: Version) -> Vec<u8> {
    encode(2, pid, true, version)
}

fn encode(qos: u8, pid: u16, dup: bool, version: Version) -> Vec<u8> {
    let mut out = Vec::new();
    let message = Message { topic: "t".into(), qos: Qos::from_u8(qos).unwrap(), ..Message::default() };
    wire::Outgoing::new(version, (qos > 0).then_some(pid), dup, &message).unwrap().encode(&mut out);
    out
}

#[test]
fn the_will_is_kept_until_a_clean_goodbye() {
    // Will flag, QoS 1, retain; will properties, topic w, payload x.
    let connect = connect_v5(0b0010_1100, &[0, 0, 1, b'w', 0, 1, b'x']);
    for (goodbye, published) in
        [(&[0xe0, 0][..], false), (&[0xe0, 1, 4], true), (&[0xe0, 1, 0], false), (&[0xff, 0], true)]
    {
        let mut peer = up(&connect, &[]);
        feed(&mut peer, goodbye);
        let will = peer.take_will();
        assert_eq!(will.is_some(), published, "{goodbye:?}");
        if let Some(will) = will {
            assert_eq!((will.topic.as_str(), will.qos, will.retain), ("w", Qos::AtLeastOnce, true));
        }
    }
}

#[test]
fn a_held_id_is_answered_and_an_open_one_is_surfaced_again() {
    for (connect, version) in [(connect_v5(0, &[]), Version::V5), (connect_v311(), Version::V311)] {
        let mut peer = up(&connect, &[9]);
        assert_eq!(feed(&mut peer, &again(9, version)).0, []);
        assert_eq!(peer.out.bytes(), [0x50, 2, 0, 9], "PUBREC for what is durable");
        peer.out.clear();
        assert_eq!(feed(&mut peer, &publish(2, 7, version)).0.len(), 1);
        assert_eq!(
            feed(&mut peer, &again(7, version)).0.len(),
            1,
            "not durable yet: the daemon is asked again"
        );
        assert!(peer.out.is_empty(), "no PUBREC before the daemon says so");
        peer.ack(kind::PUBREC, 7, 0);
        assert_eq!(feed(&mut peer, &again(7, version)).0, []);
        assert_eq!(peer.out.bytes(), [0x50, 2, 0, 7, 0x50, 2, 0, 7]);
        assert_eq!(feed(&mut peer, &[0x62, 2, 0, 7]).0, [PeerEvent::Pubrel { pid: 7 }]);
        assert_eq!(feed(&mut peer, &publish(2, 7, version)).0.len(), 1, "a new message after PUBREL");
        peer.ack(kind::PUBREC, 7, 0);
        // A client that lost its memory uses a held id for another message: it does not say DUP.
        assert_eq!(feed(&mut peer, &publish(2, 7, version)).0.len(), 1);
        assert_eq!(feed(&mut peer, &again(7, version)).0.len(), 1, "what was surfaced is not durable");
    }
}

#[test]
fn the_bound_of_unanswered_messages_stops_delivery_and_a_duplicate_does_not_count_twice() {
    let mut peer = up(&connect_v5(0, &[]), &[]);
    let mut bytes = publish(1, 1, Version::V5);
    for pid in [1, 2, 3, 4, 5] {
        bytes.extend_from_slice(&publish(1, pid, Version::V5));
    }
    let mut input = InBuf::default();
    input.vec().extend_from_slice(&bytes);
    let mut count = |peer: &mut Peer| std::iter::from_fn(|| peer.step(&mut input, false).unwrap()).count();
    assert_eq!(count(&mut peer), 4);
    assert_eq!(count(&mut peer), 0);
    peer.ack(kind::PUBACK, 1, 0);
    assert_eq!(count(&mut peer), 1);
    peer.ack(kind::PUBACK, 2, 0);
    peer.ack(kind::PUBACK, 3, 0);
    assert_eq!(count(&mut peer), 1);
}

#[test]
fn subscribe_is_refused_and_the_connection_stays() {
    let mut peer = up(&connect_v5(0, &[]), &[]);
    assert_eq!(feed(&mut peer, &[0x82, 7, 0, 5, 0, 0, 1, b'a', 0]), (vec![], None));
    let out = peer.out.bytes().to_vec();
    assert_eq!((out[0], &out[2..4], out[out.len() - 1]), (0x90, &[0, 5][..], 0x83));
    assert!(String::from_utf8_lossy(&out).contains("no broker"));
    peer.out.clear();
    assert_eq!(feed(&mut peer, &[0xa2, 6, 0, 6, 0, 0, 1, b'a']), (vec![], None));
    assert_eq!(peer.out.bytes(), [0xb0, 4, 0, 6, 0, 0x11]);
    let mut old = up(&connect_v311(), &[]);
    assert_eq!(feed(&mut old, &[0x82, 6, 0, 5, 0, 1, b'a', 0]), (vec![], None));
    assert_eq!(old.out.bytes(), [0x90, 3, 0, 5, 0x80]);
    assert!(old.is_up());
}

#[test]
fn offences_are_answered_with_the_right_reason() {
    let five: &[(&[u8], u8)] = &[
        (&[0x30, 0xff, 0xff, 0x7f], 0x95),
        (&[0x30, 3, 0, 0, 0], 0x90),
        (&[0x30, 4, 0, 1, b'+', 0], 0x90),
        (&[0x30, 7, 0, 1, b'a', 3, 0x23, 0, 1], 0x94),
        (&[0x36, 5, 0, 1, b'a', 0, 1], 0x81),
        (&[0x32, 6, 0, 1, b'a', 0, 0, 0], 0x82),
        (&[0xf0, 0], 0x82),
        (&[0x10, 0], 0x82),
        (&[0x60, 2, 0, 1], 0x81),
    ];
    for (bytes, reason) in five {
        let mut peer = up(&connect_v5(0, &[]), &[]);
        assert!(feed(&mut peer, bytes).1.is_some(), "{bytes:?}");
        assert_eq!(peer.out.bytes(), [0xe0, 1, *reason], "{bytes:?}");
    }
    for (bytes, answer) in [
        (&b"GET / HTTP/1.1\r\n"[..], &[][..]),
        (b"\x10\x0e\0\x06MQIsdp\x03\0\0\0\0\0", &[0x20, 2, 0, 1]),
        (b"\x10\x0c\0\x04MQTT\x06\0\0\0\0\0", &[0x20, 3, 0, 0x84, 0]),
        (b"\x10\x0c\0\x04MQTT\x04\x18\0\0\0\0", &[]),
        (b"\x10\x0c\0\x04MQTT\x04\x01\0\0\0\0", &[]),
    ] {
        let mut peer = Peer::new(LIMITS);
        assert!(feed(&mut peer, bytes).1.is_some(), "{bytes:?}");
        assert_eq!(peer.out.bytes(), answer, "{bytes:?}");
    }
}

#[test]
fn refusals_in_both_versions() {
    for (reason, old) in [(0x86, 4), (0x87, 5), (0x89, 3), (0x85, 2)] {
        let mut peer = Peer::new(LIMITS);
        feed(&mut peer, &connect_v311());
        peer.refuse(reason);
        assert_eq!(peer.out.bytes(), [0x20, 2, 0, old]);
        let mut peer = Peer::new(LIMITS);
        feed(&mut peer, &connect_v5(0, &[]));
        peer.refuse(reason);
        assert_eq!(peer.out.bytes(), [0x20, 3, 0, reason, 0]);
        assert!(!peer.may_deliver(false));
    }
}

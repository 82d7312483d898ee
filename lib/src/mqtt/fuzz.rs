//! Entry for fuzzers and for the seeded tests: bytes of a hostile peer into both sides of the protocol. Not part of
//! the API.
//!
//! The first byte chooses side and version; the next the length of the pieces in which the rest arrives. What the
//! code under test must keep: no panic, bounded output, and no acknowledgement that nobody gave.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use super::{
    ClientConfig, ClientEvent, Version,
    ingest::peer::{Limits, Peer, PeerEvent},
    session::Session,
    wire::kind,
};
use crate::net::InBuf;

/// Feeds `data` to a client's session or to an ingest peer.
pub fn run(data: &[u8]) {
    let [mode, piece, rest @ ..] = data else { return };
    let piece = usize::from(*piece).max(1);
    if mode & 1 == 0 {
        client(mode & 2 == 0, mode & 4 == 0, piece, rest)
    } else {
        peer(mode & 2 == 0, piece, rest)
    }
}

fn client(v5: bool, connected: bool, piece: usize, data: &[u8]) {
    let mut cfg = ClientConfig::new("peer", 1, "fuzz");
    cfg.version = if v5 { Version::V5 } else { Version::V311 };
    cfg.max_packet_bytes = 1 << 16;
    cfg.out_buffer_bytes = 1 << 12;
    let mut session = Session::new(cfg);
    let mut now = Instant::now();
    session.set_held(HashSet::from([1, 2, 3]));
    session.pids().reserve(4);
    if session.open(now).is_err() {
        return;
    }
    session.out.clear();
    let mut input = InBuf::default();
    if connected {
        input.vec().extend_from_slice(if v5 { &[0x20, 3, 1, 0, 0] } else { &[0x20, 2, 1, 0] });
    }
    for chunk in data.chunks(piece) {
        input.vec().extend_from_slice(chunk);
        session.note_received(now);
        loop {
            match session.step(&mut input) {
                Ok(Some(ClientEvent::Publish { pid: Some(pid), .. })) if pid % 2 == 0 => {
                    session.ack(kind::PUBREC, pid, 0)
                }
                Ok(Some(ClientEvent::Pubrel { pid })) => session.ack(kind::PUBCOMP, pid, 0),
                // The daemon's turn may fail without a connection; that is its answer.
                Ok(Some(ClientEvent::Pubrec { pid, reason: 0 })) => drop(session.pubrel(pid)),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(session.out.len() < (1 << 12) + (64 << 10) + 16, "output without bound");
        assert!(input.len() <= (1 << 16) + piece || !session.may_deliver(), "input without bound");
        now += Duration::from_secs(1);
        if session.tick(now).is_err() {
            return;
        }
        let sent = session.out.len() / 2;
        session.out.consume(sent);
    }
    session.lost();
}

fn peer(connected: bool, piece: usize, data: &[u8]) {
    let mut peer = Peer::new(Limits { packet_bytes: 1 << 16, unacked: 8, out_bytes: 1 << 12 });
    let mut input = InBuf::default();
    if connected {
        input.vec().extend_from_slice(b"\x10\x0d\0\x04MQTT\x05\x02\0\0\0\0\0");
    }
    for chunk in data.chunks(piece) {
        input.vec().extend_from_slice(chunk);
        loop {
            match peer.step(&mut input, false) {
                Ok(Some(PeerEvent::Connect(connect))) if connect.clean_start => {
                    peer.accept(false, Some("id"));
                    [1, 2, 3].into_iter().for_each(|pid| peer.ack(super::wire::kind::PUBREC, pid, 0));
                }
                Ok(Some(PeerEvent::Connect(_))) => peer.refuse(0x86),
                Ok(Some(PeerEvent::Publish { pid: Some(pid), .. })) => peer.ack(kind::PUBREC, pid, 0),
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
        assert!(peer.out.len() < (1 << 12) + 4096, "output without bound");
        assert!(input.len() <= (1 << 16) + piece || !peer.may_deliver(false), "input without bound");
        let sent = peer.out.len() / 2;
        peer.out.consume(sent);
    }
    peer.take_will();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets of every kind, to be mutated.
    const SEEDS: &[&[u8]] = &[
        b"\x10\x0d\0\x04MQTT\x05\x02\0\0\0\0\0",
        b"\x10\x20\0\x04MQTT\x05\xee\0\x0a\x05\x11\0\0\0\x09\0\x01c\0\0\x01w\0\x01p\0\x01u\0\x01s",
        b"\x10\x16\0\x04MQTT\x04\xc6\0\x0a\0\x01c\0\x01w\0\x01p\0\x01u\0\x01s",
        b"\x20\x12\x01\0\x0f\x21\0\x07\x27\0\0\x10\0\x13\0\x05\x24\x01\x25\0",
        b"\x20\x0b\0\x9c\x08\x1c\0\x05b:188",
        b"\x34\x13\0\x01t\0\x02\x0c\x03\0\x01x\x26\0\x01a\0\x01bxy",
        b"\x32\x06\0\x01t\0\x05\0",
        b"\x30\x04\0\x01tx",
        b"\x40\x02\0\x04",
        b"\x50\x08\0\x04\x97\x04\x1f\0\x01x",
        b"\x62\x02\0\x02",
        b"\x70\x03\0\x04\x92",
        b"\x82\x07\0\x05\0\0\x01a\0",
        b"\x82\x06\0\x05\0\x01a\0",
        b"\x90\x04\0\x05\0\x02",
        b"\xa2\x06\0\x06\0\0\x01a",
        b"\xc0\0",
        b"\xd0\0",
        b"\xe0\x07\x8e\x05\x1f\0\x02hi",
        b"\xe0\0",
        b"\xf0\x02\x18\0",
    ];

    /// A run is repeated with EDGE_SEED.
    fn seed() -> u64 {
        std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..))
    }

    #[test]
    fn mutated_and_random_bytes_never_panic() {
        let seed = seed();
        println!("EDGE_SEED={seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let until = Instant::now() + Duration::from_secs(4);
        let mut runs = 0;
        while runs < 100_000 && Instant::now() < until {
            let mut data = vec![rng.u8(..), rng.u8(..)];
            for _ in 0..rng.usize(..12) {
                if rng.u8(..8) == 0 {
                    data.extend(std::iter::repeat_with(|| rng.u8(..)).take(20).collect::<Vec<_>>());
                } else {
                    data.extend_from_slice(SEEDS[rng.usize(..SEEDS.len())]);
                }
            }
            for _ in 0..rng.usize(..4) {
                let at = rng.usize(..data.len());
                data[at] = if rng.bool() { rng.u8(..) } else { data[at] ^ (1 << rng.u8(..8)) };
            }
            run(&data);
            runs += 1;
        }
        assert!(runs > 1000, "too slow to mean anything: {runs} runs");
    }

    #[test]
    fn every_prefix_and_every_flipped_byte_of_every_packet() {
        for mode in 0..8 {
            for packet in SEEDS {
                for cut in 0..=packet.len() {
                    run(&[&[mode, 3][..], &packet[..cut]].concat());
                }
                for at in 0..packet.len() {
                    for value in 0..=255 {
                        let mut data = [&[mode, 255][..], packet].concat();
                        data[at + 2] = value;
                        run(&data);
                    }
                }
            }
        }
    }
}

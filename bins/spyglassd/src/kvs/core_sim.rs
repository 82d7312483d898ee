//! A session against a service that loses connections, refuses, stalls and forgets, in virtual time. `EDGE_SEED=n` replays
//! one run.
//!
//! The model service reads the Matroska stream with a small reader of its own, so that what it stores is what was
//! really sent: the frames of each fragment, in order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::super::ring::Bounds;
#[path = "core_sim_reader.rs"]
mod reader;

use super::send::FILL;
use super::*;
use crate::h264;
use crate::kvs::fragment::Limits;
use reader::Reader;

const S: Duration = Duration::from_secs(1);

fn policy(relative: bool) -> Policy {
    Policy {
        fragment: Limits { duration_ms: 2000, duration_ms_max: 10_000, bytes_max: 1 << 20 },
        tags: vec![("place".into(), "gate".into())],
        relative,
        rotate: 120 * S,
        renew: 180 * S,
        pause: 3 * S,
        linger: 20 * S,
        stall: 15 * S,
        backoff: (S, 60 * S),
    }
}

/// A frame whose slice names its number, so that it can be told from any other.
fn unit(n: u64, pts_ms: u64, wall_ms: u64, key: bool, level: u8) -> Unit {
    let mut data = Vec::new();
    if key {
        for set in
            [&[0x67, 0x42, 0xC0, level, 0xDA, 0x02, 0x80, 0xF6, 0xC0, 0x44][..], &[0x68, 0xCE, 0x0F, 0xC8]]
        {
            data.extend_from_slice(&[0, 0, 0, 1]);
            data.extend_from_slice(set);
        }
    }
    data.extend_from_slice(&[0, 0, 0, 1, if key { 0x65 } else { 0x41 }]);
    data.extend_from_slice(format!("frame {n} ").as_bytes());
    data.resize(data.len() + 400, b'x');
    Unit { pts_ns: pts_ms * 1_000_000, wall_ms, key, data: data.into() }
}

/// One connection, as the service sees it.
struct Server {
    reader: Reader,
    start_ms: u64,
    /// Fragments acknowledged so far.
    told: usize,
    /// Bytes until it breaks.
    breaks_after: Option<usize>,
    stalls: bool,
    got: usize,
    /// Acknowledgements under way.
    acks: VecDeque<(Instant, Ack)>,
    answer_at: Option<Instant>,
}

struct Sim {
    session: Session,
    rng: fastrand::Rng,
    now: Now,
    server: Option<Server>,
    out: Vec<u8>,
    asked: Option<Instant>,
    opening: Option<Instant>,
    faults: f64,
    relative: bool,
    /// Fragments the service has stored, in the order of storing.
    stored: Vec<Vec<u64>>,
    /// Fragments that it will refuse as invalid: those with these first frames.
    poisoned: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    opened: Vec<Instant>,
    /// When temporary credentials end.
    expires: Option<Instant>,
    life: Option<Duration>,
    log: Vec<String>,
}

impl Sim {
    fn new(seed: u64, faults: f64, relative: bool, memory: usize) -> Sim {
        let now = Now { at: Instant::now(), unix_ms: 1_700_000_000_000 };
        let ring = Ring::new(Bounds { memory, disk: 0 }, None, Vec::new());
        Sim {
            session: Session::new(policy(relative), ring, seed, now),
            rng: fastrand::Rng::with_seed(seed ^ 0xABCD),
            now,
            server: None,
            out: Vec::new(),
            asked: None,
            opening: None,
            faults,
            relative,
            stored: Vec::new(),
            poisoned: BTreeSet::new(),
            refused: BTreeSet::new(),
            opened: Vec::new(),
            expires: None,
            life: None,
            log: Vec::new(),
        }
    }

    fn chance(&mut self, p: f64) -> bool {
        self.rng.f64() < p * self.faults
    }

    fn pass(&mut self, time: Duration) {
        self.now.at += time;
        self.now.unix_ms += time.as_millis() as u64;
    }

    /// Everything that happens at this instant.
    fn turn(&mut self) {
        let now = self.now;
        if self.session.deadline().is_some_and(|at| at <= now.at) {
            self.session.timer(now);
        }
        if self.asked.is_some_and(|at| at <= now.at) {
            self.asked = None;
            if self.chance(0.1) {
                self.session.prepared(Err("no endpoint".into()), now);
            } else {
                if let Some(life) = self.life
                    && self.expires.is_none_or(|end| end < now.at + 200 * S)
                {
                    self.expires = Some(now.at + life);
                }
                self.session.prepared(Ok(Prepared { expires: self.expires }), now);
            }
        }
        if self.opening.is_some_and(|at| at <= now.at) {
            self.opening = None;
            if self.chance(0.1) {
                self.session.closed("refused", now);
            } else if let Some(start_ms) = self.session.opened(now) {
                assert!(self.server.is_none(), "one connection at a time");
                self.opened.push(now.at);
                let breaks_after = self.chance(0.3).then(|| self.rng.usize(..200_000));
                self.out.clear();
                self.server = Some(Server {
                    reader: Reader::default(),
                    start_ms,
                    told: 0,
                    breaks_after,
                    stalls: self.chance(0.1),
                    got: 0,
                    acks: VecDeque::new(),
                    answer_at: Some(now.at + S / 10),
                });
            }
        }
        self.serve();
        let before = self.out.len();
        self.session.fill(&mut self.out, now);
        assert!(self.out.len() - before < 2 * FILL);
        self.act();
    }

    fn act(&mut self) {
        while let Some(action) = self.session.action() {
            match action {
                Action::Ask { .. } => self.asked = Some(self.now.at + S / 5),
                Action::Open => {
                    assert!(self.server.is_none() && self.opening.is_none());
                    self.opening = Some(self.now.at + S / 20);
                }
                Action::Close => {
                    (self.server, self.opening) = (None, None);
                    self.out.clear();
                }
                Action::Warn(text) => self.log.push(text),
            }
        }
    }

    fn serve(&mut self) {
        let now = self.now;
        let Some(server) = &mut self.server else { return };
        if let Some(at) = server.answer_at
            && at <= now.at
            && !server.stalls
        {
            server.answer_at = None;
            self.session.answered(Ok(()), false, now);
        }
        if !server.stalls {
            let n = self.rng.usize(..=self.out.len().min(50_000));
            let n = if self.rng.bool() { self.out.len() } else { n };
            let mut piece: Vec<u8> = self.out.drain(..n).collect();
            if let Some(left) = server.breaks_after {
                piece.truncate(left.saturating_sub(server.got));
            }
            server.got += piece.len();
            server.reader.feed(&piece);
        }
        while let Some(fragment) =
            server.reader.fragments.get(server.told).filter(|_| server.told < server.reader.whole)
        {
            server.told += 1;
            let first = fragment.frames[0];
            let invalid = self.poisoned.contains(&first);
            assert!(!self.refused.contains(&first), "fragment {first} is sent again after 4006");
            let passing = self.rng.f64() < 0.02 * self.faults;
            let at = now.at + Duration::from_millis(self.rng.u64(10..800));
            let error = |id: u32| Kind::Error { id, code: "X".into() };
            let kind = match () {
                () if invalid => error(4006),
                () if passing => error(5000),
                () => Kind::Persisted,
            };
            let last = server.acks.back().map_or(at, |(last, _)| at.max(*last));
            let timecode_ms = Some(fragment.timecode_ms);
            server.acks.push_back((last, Ack { kind, timecode_ms, number: String::new() }));
        }
        // One at a turn.
        if let Some((_, ack)) = server.acks.pop_front_if(|(at, _)| *at <= now.at) {
            let fragment = server
                .reader
                .fragments
                .iter()
                .find(|f| Some(f.timecode_ms) == ack.timecode_ms)
                .unwrap()
                .clone();
            if ack.kind == Kind::Persisted {
                self.stored.push(fragment.frames.clone());
            }
            // An acknowledgement may be lost with the connection.
            if self.rng.f64() < 0.02 * self.faults {
                self.end("reset");
                return;
            }
            if matches!(ack.kind, Kind::Error { id: 4006, .. }) {
                self.refused.insert(fragment.frames[0]);
            }
            self.session.ack(&ack, now);
            self.act();
            if self.server.is_none() {
                return;
            }
        }
        let Some(server) = &self.server else { return };
        if server.breaks_after.is_some_and(|n| server.got >= n) {
            self.end("broken");
        }
    }

    /// The service is gone: what was read of this connection is checked.
    fn end(&mut self, why: &str) {
        if let Some(server) = self.server.take() {
            let times: Vec<u64> = server.reader.fragments.iter().map(|f| f.timecode_ms).collect();
            assert!(times.windows(2).all(|w| w[0] < w[1]), "times grow on a connection: {times:?}");
            let expected = if self.relative { 0 } else { server.start_ms };
            assert!(
                times.first().is_none_or(|first| *first == expected),
                "{times:?} from {}",
                server.start_ms
            );
        }
        self.out.clear();
        self.session.closed(why, self.now);
        self.act();
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("EDGE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..60).collect(),
    }
}

/// Runs for `minutes` with a frame every 100 ms and then until all is stored. The fragments as they should be.
fn run(sim: &mut Sim, minutes: u64, poison: f64) -> BTreeMap<u64, Vec<u64>> {
    let mut expected: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let (mut first, mut key_due) = (0, true);
    let (mut level, mut absent_until) = (30, 0);
    let start = sim.now.unix_ms;
    for n in 0..minutes * 600 {
        sim.pass(S / 10);
        if n >= absent_until {
            if sim.rng.f64() < 0.0005 * sim.faults {
                absent_until = n + sim.rng.u64(10..600);
            }
            let wanted = sim.session.take_key_wanted();
            let key = key_due || wanted || n % 20 == 0;
            if key && sim.rng.f64() < 0.002 * sim.faults {
                level = 30 + (level + 1) % 3;
            }
            key_due = false;
            let unit = unit(n, sim.now.unix_ms - start, sim.now.unix_ms, key, level);
            let before = sim.session.ring.next_seq();
            sim.session.push(&unit, sim.now);
            if sim.session.ring.next_seq() != before {
                first = n;
                if sim.rng.f64() < poison {
                    sim.poisoned.insert(n);
                }
            }
            expected.entry(first).or_default().push(n);
        } else if n == absent_until - 1 {
            key_due = true;
        }
        sim.turn();
    }
    sim.faults = 0.0;
    for _ in 0..6000 {
        sim.pass(S / 10);
        sim.turn();
    }
    expected
}

#[test]
fn every_fragment_is_stored_once_at_least_and_in_order() {
    let (mut resent, mut refused, mut connections) = (0, 0, 0);
    for seed in seeds() {
        let mut sim = Sim::new(seed, 1.0, seed % 2 == 1, 1 << 30);
        sim.life = (seed % 3 == 0).then_some(400 * S);
        let expected = run(&mut sim, 12, 0.01);
        let why = || format!("EDGE_SEED={seed}, log {:?}", sim.log);
        assert!(
            sim.session.ring.is_empty(),
            "{} left, {:?}, {}",
            sim.session.ring.len(),
            sim.session.state,
            why()
        );
        assert_eq!(sim.session.state(), State::Idle, "{}", why());
        let stored: BTreeSet<&Vec<u64>> = sim.stored.iter().collect();
        for (first, frames) in &expected {
            if sim.refused.contains(first) {
                continue;
            }
            assert!(stored.contains(frames), "fragment {first} was lost; {}", why());
        }
        // First arrivals are in order.
        let mut seen = BTreeSet::new();
        let firsts: Vec<u64> = sim.stored.iter().map(|f| f[0]).filter(|f| seen.insert(*f)).collect();
        assert!(firsts.is_sorted(), "{firsts:?} {}", why());
        assert_eq!(sim.session.ring.dropped(), 0);
        assert_eq!(sim.session.counts().frames_without_key, 0, "{}", why());
        resent += sim.session.counts().resent;
        refused += sim.session.counts().refused;
        connections += sim.session.counts().connections;
    }
    if seeds().len() > 1 {
        assert!(resent > 100 && refused > 20 && connections > 500, "{resent} {refused} {connections}");
    }
}

#[test]
fn without_faults_nothing_is_sent_twice_and_connections_change_over_in_time() {
    let mut sim = Sim::new(1, 0.0, false, 1 << 30);
    let expected = run(&mut sim, 10, 0.0);
    assert_eq!(sim.stored, expected.into_values().collect::<Vec<_>>());
    assert_eq!(
        (sim.session.counts().resent, sim.session.counts().connections as usize),
        (0, sim.opened.len())
    );
    let gaps: Vec<u64> = sim.opened.windows(2).map(|w| (w[1] - w[0]).as_secs()).collect();
    // Rotated after 120 s, on the next boundary of a fragment of 2 s, and acknowledged within a second.
    assert_eq!(gaps.len(), 4, "{gaps:?}");
    assert!(gaps.iter().all(|gap| (120..=124).contains(gap)), "{gaps:?}");
}

#[test]
fn credentials_are_replaced_before_they_end() {
    let mut sim = Sim::new(2, 0.0, false, 1 << 30);
    sim.session.policy.rotate = 2400 * S;
    sim.life = Some(300 * S);
    for n in 0..9000 {
        sim.pass(S / 10);
        let unit = unit(n, n * 100, sim.now.unix_ms, n % 20 == 0, 30);
        sim.session.push(&unit, sim.now);
        sim.turn();
        if let Some(end) = sim.session.conn.as_ref().and_then(|conn| conn.expires) {
            assert!(end >= sim.now.at + 120 * S, "on a connection whose credentials end within 2 min");
        }
    }
    assert!(sim.opened.len() > 5 && sim.session.counts().resent == 0);
}

#[test]
fn a_service_that_is_away_costs_the_oldest_fragments_and_waits_grow() {
    let mut sim = Sim::new(3, 0.0, false, 200_000);
    sim.faults = 10.0;
    let mut asks = Vec::new();
    for n in 0..6000 {
        sim.pass(S / 10);
        sim.session.push(&unit(n, n * 100, sim.now.unix_ms, n % 20 == 0, 30), sim.now);
        if sim.session.deadline().is_some_and(|at| at <= sim.now.at) {
            sim.session.timer(sim.now);
        }
        while let Some(action) = sim.session.action() {
            if matches!(action, Action::Ask { .. }) {
                asks.push(sim.now.at);
                sim.session.prepared(Err("no route".into()), sim.now);
            }
        }
        assert!(sim.session.ring.bytes().0 <= 210_000, "{:?}", sim.session.ring);
    }
    let waits: Vec<f32> = asks.windows(2).map(|w| (w[1] - w[0]).as_secs_f32()).collect();
    assert!(waits.iter().all(|w| (1.0..=60.2).contains(w)) && waits.len() < 60, "{waits:?}");
    assert!(sim.session.ring.dropped() > 200 && sim.session.why() == Some("no route"));
    // It comes back: what is kept arrives, beginning with the oldest.
    sim.faults = 0.0;
    let kept = sim.session.ring.len();
    for _ in 0..1500 {
        sim.pass(S / 10);
        sim.turn();
    }
    assert_eq!((sim.stored.len(), sim.session.ring.len()), (kept, 0));
    assert!(sim.stored.windows(2).all(|w| w[0].last().unwrap() + 1 == w[1][0]));
}

#[test]
fn stopping_sends_the_rest_and_waits_for_its_acknowledgement() {
    let mut sim = Sim::new(4, 0.0, false, 1 << 30);
    for n in 0..95 {
        sim.pass(S / 10);
        sim.session.push(&unit(n, n * 100, sim.now.unix_ms, n % 20 == 0, 30), sim.now);
        sim.turn();
    }
    sim.session.stop(sim.now);
    for _ in 0..30 {
        sim.pass(S / 10);
        sim.turn();
    }
    assert_eq!(sim.session.state(), State::Stopped);
    assert_eq!(sim.stored.iter().flatten().count(), 95);
    assert!(h264::is_idr(&unit(0, 0, 0, true, 30).data));
}

#[test]
fn a_fragment_refused_for_its_size_is_given_up_after_three_times() {
    let mut sim = Sim::new(5, 0.0, false, 1 << 30);
    let mut refusals = 0;
    for n in 0..1200 {
        sim.pass(S / 10);
        sim.session.push(&unit(n, n * 100, sim.now.unix_ms, n % 20 == 0, 30), sim.now);
        let whole =
            sim.server.as_ref().is_some_and(|s| s.reader.whole > 0 && s.reader.fragments[0].frames[0] == 0);
        if whole {
            refusals += 1;
            let timecode_ms = Some(sim.server.as_ref().unwrap().reader.fragments[0].timecode_ms);
            let kind = Kind::Error { id: 4002, code: "MAX_FRAGMENT_DURATION_REACHED".into() };
            sim.session.ack(&Ack { kind, timecode_ms, number: String::new() }, sim.now);
            sim.act();
        }
        sim.turn();
    }
    assert_eq!((refusals, sim.session.counts().refused), (3, 1));
    assert!(sim.log[0].contains("4002") && sim.stored[0][0] == 20, "{:?}", sim.log);
}

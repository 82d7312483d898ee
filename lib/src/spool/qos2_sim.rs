//! QoS 2 end to end, simulated: a source broker, this spool with the intake, a target broker; crashes at random and at
//! every disk operation, and connections that break at any moment.
//!
//! Both brokers keep their sessions. The target must deliver 1, 2, 3, ... exactly once each; both ways in which the
//! standard lets a receiver work are modelled (deliver at PUBLISH, or at PUBREL), packet ids are re-used as early as
//! the standard allows, and a packet id that is held is a duplicate for the target whatever it carries.
//!
//! `EDGE_SEED=n` runs one seed only.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::sim::{Crash, SimDisk};
use super::sim_tests::{config, id_of, open, payload, seeds};
use super::*;
use crate::intake::{AckKind, Admission, Intake, Origin};
use crate::mqtt::{Message, Qos};

const WINDOW: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packet {
    Publish { pid: u16, id: u64, dup: bool },
    Pubrel { pid: u16 },
    Pubrec { pid: u16 },
    Pubcomp { pid: u16 },
}

/// Sends 1, 2, 3, ... with a durable session.
struct Source {
    next: u64,
    total: u64,
    /// Packet id -> message, and whether its PUBREC came.
    open: BTreeMap<u16, (u64, bool)>,
}

impl Source {
    fn send(&mut self) -> Option<Packet> {
        if self.next > self.total || self.open.len() >= WINDOW {
            return None;
        }
        let pid = (1..).find(|p| !self.open.contains_key(p))?;
        self.open.insert(pid, (self.next, false));
        self.next += 1;
        Some(Packet::Publish { pid, id: self.next - 1, dup: false })
    }
    fn resume(&self) -> Vec<Packet> {
        let mut open: Vec<_> = self.open.iter().collect();
        open.sort_by_key(|(_, (id, _))| *id);
        let packet = |(pid, (id, received)): (&u16, &(u64, bool))| match received {
            true => Packet::Pubrel { pid: *pid },
            false => Packet::Publish { pid: *pid, id: *id, dup: true },
        };
        open.into_iter().map(packet).collect()
    }
    fn receive(&mut self, packet: Packet) -> Option<Packet> {
        match packet {
            Packet::Pubrec { pid } => {
                let (_, received) = self.open.get_mut(&pid).expect("a PUBREC for nothing");
                *received = true;
                Some(Packet::Pubrel { pid })
            }
            Packet::Pubcomp { pid } => {
                let (_, received) = self.open.remove(&pid).expect("a PUBCOMP for nothing");
                assert!(received, "PUBCOMP before PUBREC");
                None
            }
            _ => unreachable!(),
        }
    }
}

/// Delivers with a durable session.
struct Target {
    at_pubrel: bool,
    held: HashMap<u16, u64>,
    delivered: Vec<u64>,
}

impl Target {
    fn receive(&mut self, packet: Packet) -> Packet {
        match packet {
            Packet::Publish { pid, id, .. } => {
                if let std::collections::hash_map::Entry::Vacant(free) = self.held.entry(pid) {
                    free.insert(id);
                    if !self.at_pubrel {
                        self.delivered.push(id);
                    }
                }
                Packet::Pubrec { pid }
            }
            Packet::Pubrel { pid } => {
                if let Some(id) = self.held.remove(&pid)
                    && self.at_pubrel
                {
                    self.delivered.push(id);
                }
                Packet::Pubcomp { pid }
            }
            _ => unreachable!(),
        }
    }
}

enum Action {
    Publish { pid: u16, id: u64, dup: bool },
    Pubrel { pid: u16 },
}

/// What a forwarder does, as mqfwd does it.
struct Forwarder {
    spool: Spool,
    intake: Intake,
    conn: u64,
    waiting: VecDeque<(Ticket, Action)>,
}

impl Forwarder {
    fn receive_in(&mut self, packet: Packet) -> Result<(), Error> {
        let from = Origin { conn: self.conn, source: "local" };
        match packet {
            Packet::Publish { pid, id, .. } => {
                let message = Message {
                    topic: "t".into(),
                    payload: payload(id, 40 + (id as usize * 37) % 500),
                    qos: Qos::ExactlyOnce,
                    ..Message::default()
                };
                let admission = self.intake.publish(&mut self.spool, from, Some(pid), message, id)?;
                assert!(matches!(admission, Admission::Stored | Admission::Duplicate | Admission::Blocked));
                Ok(())
            }
            Packet::Pubrel { pid } => self.intake.pubrel(&mut self.spool, from, pid),
            _ => unreachable!(),
        }
    }

    fn answers(&mut self) -> Vec<Packet> {
        std::iter::from_fn(|| self.intake.next_ack(&self.spool))
            .map(|ack| match ack.kind {
                AckKind::Pubrec => Packet::Pubrec { pid: ack.pid },
                AckKind::Pubcomp => Packet::Pubcomp { pid: ack.pid },
                AckKind::Puback => unreachable!(),
            })
            .collect()
    }

    fn receive_back(&mut self, packet: Packet) -> Result<(), Error> {
        match packet {
            Packet::Pubrec { pid } => {
                let ticket = self.spool.out_received(pid)?.unwrap_or(Ticket(0));
                self.waiting.push_back((ticket, Action::Pubrel { pid }));
                Ok(())
            }
            Packet::Pubcomp { pid } => self.spool.out_done(pid).map(|_| ()),
            _ => unreachable!(),
        }
    }

    fn publish(&mut self) -> Result<(), Error> {
        if self.spool.stats().in_flight >= WINDOW && !self.spool.has_next() {
            return Ok(());
        }
        let Some(d) = self.spool.next()? else { return Ok(()) };
        let id = id_of(&d.record.message);
        let seq = d.record.seq;
        let (ticket, action) = match d.outbound {
            Some((pid, OutState::Received)) => (self.spool.written(), Action::Pubrel { pid }),
            Some((pid, OutState::Published)) => {
                (self.spool.written(), Action::Publish { pid, id, dup: true })
            }
            None => {
                let taken: Vec<u16> = self.spool.outbound().map(|(pid, ..)| pid).collect();
                let pid = (1..).find(|p| !taken.contains(p)).unwrap();
                (self.spool.out_published(seq, pid)?, Action::Publish { pid, id, dup: false })
            }
        };
        self.waiting.push_back((ticket, action));
        Ok(())
    }

    fn sends(&mut self) -> Vec<Packet> {
        let mut out = Vec::new();
        while self.waiting.front().is_some_and(|(t, _)| *t <= self.spool.durable()) {
            match self.waiting.pop_front() {
                Some((_, Action::Publish { pid, id, dup })) => out.push(Packet::Publish { pid, id, dup }),
                Some((_, Action::Pubrel { pid })) => out.push(Packet::Pubrel { pid }),
                None => {}
            }
        }
        out
    }
}

struct World {
    rng: fastrand::Rng,
    disk: SimDisk,
    now: Instant,
    source: Source,
    target: Target,
    forwarder: Option<Forwarder>,
    conns: u64,
    /// Source -> us, us -> source, us -> target, target -> us.
    wire: [VecDeque<Packet>; 4],
    crashes: u32,
}

impl World {
    fn new(seed: u64, total: u64) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        World {
            disk: SimDisk::default(),
            now: Instant::now(),
            source: Source { next: 1, total, open: BTreeMap::new() },
            target: Target { at_pubrel: rng.bool(), held: HashMap::new(), delivered: Vec::new() },
            forwarder: None,
            conns: 0,
            wire: Default::default(),
            crashes: 0,
            rng,
        }
    }

    fn crash(&mut self, kind: Crash) {
        self.crashes += 1;
        self.forwarder = None;
        self.wire = Default::default();
        self.disk.restart(kind, &mut self.rng);
    }

    fn start(&mut self) -> Result<(), Error> {
        let (mut spool, report) = open(&self.disk, config(), self.rng.u64(..))?;
        assert!(!report.journal_lost && report.damaged == 0, "a crash is no damage: {report}");
        spool.want_spare();
        self.conns += 1;
        let intake = Intake::new();
        self.forwarder = Some(Forwarder { spool, intake, conn: self.conns, waiting: VecDeque::new() });
        self.wire[0].extend(self.source.resume());
        Ok(())
    }

    fn step(&mut self) {
        let result = match self.forwarder.take() {
            None => self.start(),
            Some(mut f) => {
                let result = self.act(&mut f);
                self.forwarder = Some(f);
                result
            }
        };
        if let Err(e) = result {
            assert!(self.disk.is_dead(), "{e}");
            let kind = if self.rng.bool() { Crash::Power } else { Crash::Process };
            self.crash(kind);
        }
    }

    fn act(&mut self, f: &mut Forwarder) -> Result<(), Error> {
        match self.rng.u8(..24) {
            0..=3 => self.wire[0].extend(self.source.send()),
            4..=6 => {
                if !f.intake.is_blocked(f.conn)
                    && let Some(p) = self.wire[0].pop_front()
                {
                    f.receive_in(p)?;
                }
            }
            7..=8 => {
                if let Some(p) = self.wire[1].pop_front() {
                    self.wire[0].extend(self.source.receive(p));
                }
            }
            9..=10 => {
                if let Some(p) = self.wire[2].pop_front() {
                    self.wire[3].push_back(self.target.receive(p));
                }
            }
            11..=12 => {
                if let Some(p) = self.wire[3].pop_front() {
                    f.receive_back(p)?;
                }
            }
            13..=14 => f.publish()?,
            15..=17 => {
                self.now += Duration::from_millis(self.rng.u64(..300));
                f.spool.flush(self.now)?;
            }
            18..=20 => drop(f.spool.engine.step()),
            21..=22 => {
                f.spool.poll()?;
                while f.intake.next_unblocked(&mut f.spool)?.is_some() {}
                self.wire[1].extend(f.answers());
                self.wire[2].extend(f.sends());
            }
            _ => self.break_something(f)?,
        }
        Ok(())
    }

    fn break_something(&mut self, f: &mut Forwarder) -> Result<(), Error> {
        match self.rng.u8(..40) {
            0 => {
                f.intake.closed(f.conn);
                self.conns += 1;
                f.conn = self.conns;
                self.wire[0] = self.source.resume().into();
                self.wire[1].clear();
            }
            1 => {
                f.waiting.clear();
                f.spool.rewind();
                self.wire[2].clear();
                self.wire[3].clear();
            }
            _ => {}
        }
        Ok(())
    }

    fn check(&self) {
        let expected: Vec<u64> = (1..=self.target.delivered.len() as u64).collect();
        if self.target.at_pubrel {
            let mut sorted = self.target.delivered.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), self.target.delivered.len(), "delivered twice");
        } else {
            assert_eq!(self.target.delivered, expected, "not exactly once and in order");
        }
    }

    fn drain(&mut self) {
        for _ in 0..400_000 {
            self.step();
            let Some(f) = &self.forwarder else { continue };
            let s = f.spool.stats();
            if self.source.next > self.source.total
                && self.source.open.is_empty()
                && s.queued == 0
                && s.held == 0
                && s.outbound == 0
            {
                let mut delivered = self.target.delivered.clone();
                delivered.sort_unstable();
                assert_eq!(delivered, (1..=self.source.total).collect::<Vec<_>>(), "not exactly once");
                return self.check();
            }
        }
        panic!("it never ends: delivered {}", self.target.delivered.len());
    }

    fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            if self.rng.u16(..150) == 0 {
                let after = self.rng.u64(1..40);
                self.disk.crash_after(after);
            }
            if self.rng.u16(..500) == 0 {
                let kind = if self.rng.bool() { Crash::Power } else { Crash::Process };
                self.crash(kind);
            }
            self.step();
            self.check();
        }
    }
}

fn with_replay(what: &str, seed: u64, run: impl FnOnce() + std::panic::UnwindSafe) {
    if let Err(e) = std::panic::catch_unwind(run) {
        eprintln!("replay with EDGE_SEED={seed}{what}");
        std::panic::resume_unwind(e);
    }
}

#[test]
fn qos2_is_exactly_once_over_random_crashes() {
    for seed in seeds(120) {
        with_replay("", seed, || {
            let mut w = World::new(seed, 150);
            w.run(6000);
            w.crash(Crash::Power);
            w.drain();
        });
    }
}

#[test]
fn qos2_is_exactly_once_over_a_crash_at_every_operation() {
    for seed in seeds(2) {
        let mut whole = World::new(seed, 6);
        whole.drain();
        for at in 1..=whole.disk.ops() {
            for kind in [Crash::Power, Crash::Process] {
                with_replay(&format!(", crash ({kind:?}) at operation {at}"), seed, || {
                    let mut w = World::new(seed, 6);
                    w.disk.crash_after(at);
                    while !w.disk.is_dead() && w.target.delivered.len() < 6 {
                        w.step();
                    }
                    w.crash(kind);
                    w.drain();
                });
            }
        }
    }
}

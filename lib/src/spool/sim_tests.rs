//! Seeded simulation: random work on a simulated disk with crashes at random and at every operation.
//!
//! The source sends 1, 2, 3, ... and sends again, after a crash, what was not acknowledged. Whatever happens, the
//! numbers delivered for the first time must be 1, 2, 3, ... without a gap, every byte right, and a sequence number
//! must never stand for two different messages.
//!
//! `EDGE_SEED=n` runs one seed only and says which.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::sim::{Crash, SimDisk};
use super::*;
use crate::mqtt::{Message, Qos};

pub(super) fn config() -> SpoolConfig {
    SpoolConfig {
        segment_bytes: 4096,
        max_bytes: 8 * 4096,
        max_record_bytes: 6000,
        tail_bytes: 3000,
        window: 12,
        ..SpoolConfig::new("sim")
    }
}

pub(super) fn open(disk: &SimDisk, config: SpoolConfig, entropy: u64) -> Result<(Spool, Recovery), Error> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Spool::open_on(Arc::clone(&disk), Engine::inline(disk), config, entropy)
}

pub(super) fn payload(id: u64, len: usize) -> Vec<u8> {
    let mut v = id.to_le_bytes().to_vec();
    let mut rng = fastrand::Rng::with_seed(id);
    v.extend(std::iter::repeat_with(|| rng.u8(..)).take(len));
    v
}

pub(super) fn id_of(m: &Message) -> u64 {
    let id = u64::from_le_bytes(*m.payload.first_chunk().unwrap());
    assert!(m.payload == payload(id, m.payload.len() - 8), "message {id} is corrupt");
    id
}

pub(super) fn seeds(count: u64) -> std::ops::Range<u64> {
    match std::env::var("EDGE_SEED").ok().and_then(|s| s.parse::<u64>().ok()) {
        Some(seed) => seed..seed + 1,
        None => 0..count,
    }
}

struct World {
    rng: fastrand::Rng,
    disk: SimDisk,
    spool: Option<Spool>,
    now: Instant,
    total: u64,
    /// Next to be sent by the source.
    send: VecDeque<u64>,
    /// Sent, not acknowledged.
    sent: VecDeque<(Ticket, u64)>,
    first: u64,
    by_seq: HashMap<Seq, u64>,
    in_flight: BTreeMap<Seq, u64>,
    down_acked: std::collections::HashSet<u64>,
    crashes: u32,
}

impl World {
    fn new(seed: u64, total: u64) -> World {
        World {
            rng: fastrand::Rng::with_seed(seed),
            disk: SimDisk::default(),
            spool: None,
            now: Instant::now(),
            total,
            send: (1..=total).collect(),
            sent: VecDeque::new(),
            first: 0,
            by_seq: HashMap::new(),
            in_flight: BTreeMap::new(),
            down_acked: Default::default(),
            crashes: 0,
        }
    }

    /// Anything failing must be the crash we asked for.
    fn check<T>(&self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(v) => Some(v),
            Err(e) if self.disk.is_dead() => {
                assert!(e.is_final() || matches!(e, Error::DeadLetter { .. }));
                None
            }
            Err(e) => panic!("{e}"),
        }
    }

    fn crash(&mut self, kind: Crash) {
        self.crashes += 1;
        self.spool = None;
        self.disk.restart(kind, &mut self.rng);
        self.in_flight.clear();
        for (_, id) in self.sent.drain(..).rev() {
            self.send.push_front(id);
        }
    }

    fn crash_any(&mut self) {
        let kind = if self.rng.bool() { Crash::Power } else { Crash::Process };
        self.crash(kind);
    }

    fn step(&mut self) {
        let Some(mut spool) = self.spool.take() else {
            let opened = open(&self.disk, config(), self.rng.u64(..));
            match self.check(opened) {
                Some((spool, report)) => {
                    assert!(!report.journal_lost, "a crash is no damage: {report}");
                    assert_eq!(report.damaged, 0, "a crash is no damage: {report}");
                    self.spool = Some(spool);
                }
                None => self.crash_any(),
            }
            return;
        };
        let alive = self.act(&mut spool);
        self.spool = Some(spool);
        if alive.is_none() {
            self.crash_any();
        }
    }

    fn act(&mut self, spool: &mut Spool) -> Option<()> {
        match self.rng.u8(..20) {
            0..=4 => {
                if let Some(id) = self.send.pop_front() {
                    let long = if self.rng.u8(..40) == 0 { 5500 } else { 700 };
                    let bytes = payload(id, self.rng.usize(..long));
                    let m = Message {
                        topic: "t".into(),
                        payload: bytes,
                        qos: Qos::AtLeastOnce,
                        ..Message::default()
                    };
                    self.send.push_front(id);
                    if let Append::Stored { ticket, .. } = self.check(spool.append(m, "src", Some(1), id))? {
                        self.send.pop_front();
                        self.sent.push_back((ticket, id));
                    }
                }
            }
            5..=7 => {
                self.now += Duration::from_millis(self.rng.u64(..400));
                self.check(spool.flush(self.now))?;
            }
            8..=10 => drop(spool.engine.step()),
            11..=12 => {
                self.check(spool.poll())?;
                while self.sent.front().is_some_and(|(t, _)| *t <= spool.durable()) {
                    self.sent.pop_front();
                }
            }
            13..=15 => self.deliver(spool)?,
            16..=17 => self.acknowledge(spool)?,
            18 => {
                if self.rng.u8(..8) == 0 {
                    spool.rewind();
                }
            }
            _ => assert_eq!(spool.stats().damaged, 0),
        }
        Some(())
    }

    fn deliver(&mut self, spool: &mut Spool) -> Option<()> {
        let before = self.in_flight.keys().copied().collect::<Vec<_>>();
        if let Some(d) = self.check(spool.next())? {
            let id = id_of(&d.record.message);
            assert_eq!(d.record.received_ms, id);
            assert_eq!(
                *self.by_seq.entry(d.record.seq).or_insert(id),
                id,
                "a number stands for two messages"
            );
            assert_eq!(d.again, before.contains(&d.record.seq));
            if id > self.first {
                assert_eq!(id, self.first + 1, "delivered out of order or lost");
                self.first = id;
            }
            self.in_flight.insert(d.record.seq, id);
        }
        Some(())
    }

    fn acknowledge(&mut self, spool: &mut Spool) -> Option<()> {
        let seqs: Vec<Seq> = self.in_flight.keys().copied().collect();
        let seq = *seqs.get(self.rng.usize(..seqs.len().max(1)))?;
        if self.rng.u8(..30) == 0 {
            // A crash in the middle may leave it on either side.
            self.down_acked.insert(self.in_flight[&seq]);
            self.check(spool.dead_letter(seq, "test", 1))?;
        } else {
            assert!(spool.ack(seq));
        }
        let id = self.in_flight.remove(&seq)?;
        self.down_acked.insert(id);
        Some(())
    }

    fn acknowledge_maybe(&mut self, spool: &mut Spool) {
        if !self.in_flight.is_empty() {
            self.acknowledge(spool);
        }
    }

    /// No more crashes: everything must come out.
    fn drain(&mut self) {
        for _ in 0..200_000 {
            self.step();
            if let Some(mut spool) = self.spool.take() {
                self.acknowledge_maybe(&mut spool);
                let done = self.send.is_empty() && self.sent.is_empty() && spool.stats().queued == 0;
                self.spool = Some(spool);
                if done {
                    assert_eq!(self.first, self.total);
                    assert_eq!(self.down_acked.len() as u64, self.total);
                    return;
                }
            }
        }
        panic!("it never ends: {:?} to send, {:?} sent", self.send.len(), self.sent.len());
    }
}

// `acknowledge` answers None when nothing is in flight; that is no crash.
impl World {
    fn run(&mut self, steps: u32, crashes: bool) {
        for _ in 0..steps {
            if crashes && self.rng.u16(..150) == 0 {
                let after = self.rng.u64(1..40);
                self.disk.crash_after(after);
            }
            if crashes && self.rng.u16(..400) == 0 && self.spool.is_some() {
                self.crash_any();
            }
            self.step();
        }
    }
}

#[test]
fn random_work_with_crashes_loses_nothing() {
    let mut crashes = 0;
    for seed in seeds(150) {
        let run = std::panic::catch_unwind(|| {
            let mut w = World::new(seed, 300);
            w.run(6000, true);
            w.disk.restart(Crash::Process, &mut fastrand::Rng::with_seed(1));
            w.crash(Crash::Process);
            w.drain();
            w.crashes
        });
        match run {
            Ok(n) => crashes += n,
            Err(e) => {
                eprintln!("replay with EDGE_SEED={seed}");
                std::panic::resume_unwind(e);
            }
        }
    }
    assert!(std::env::var("EDGE_SEED").is_ok() || crashes > 1000, "only {crashes} crashes");
}

#[test]
fn a_crash_at_every_operation_loses_nothing() {
    for seed in seeds(2) {
        let mut whole = World::new(seed, 30);
        whole.run(400, false);
        let ops = whole.disk.ops();
        for at in 1..=ops {
            for kind in [Crash::Power, Crash::Process] {
                let run = std::panic::catch_unwind(|| {
                    let mut w = World::new(seed, 30);
                    w.disk.crash_after(at);
                    while !w.disk.is_dead() && w.first < 30 {
                        w.step();
                    }
                    w.crash(kind);
                    w.drain();
                });
                if let Err(e) = run {
                    eprintln!("replay with EDGE_SEED={seed}: crash ({kind:?}) at operation {at}");
                    std::panic::resume_unwind(e);
                }
            }
        }
    }
}

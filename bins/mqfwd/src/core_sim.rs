//! A seeded simulation of the outlet against a model queue and a model broker, with cuts of the connection and crashes
//! of the process at any step.
//!
//! Replay a failure with `EDGE_SEED=<seed>`.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use edge::spool::{OutState, Record};

use super::*;

#[derive(Debug, thiserror::Error)]
#[error("the model does not fail")]
pub struct Never;

/// The spool as a model: what is written becomes durable later, a crash loses what is not.
#[derive(Debug, Default, Clone)]
pub struct ModelQueue {
    pub records: Vec<Arc<Record>>,
    pub acked: BTreeSet<Seq>,
    handed_out: BTreeSet<Seq>,
    journal: BTreeMap<u16, (Seq, OutState)>,
    done: BTreeSet<Seq>,
    log: Vec<(u64, Entry)>,
    written: u64,
    durable: u64,
    pub dead: Vec<(Seq, String)>,
}

#[derive(Debug, Clone)]
enum Entry {
    Published(u16, Seq),
    Received(u16),
    Done(u16, Seq),
    SessionLost,
}

impl ModelQueue {
    pub fn add(&mut self, topic: &str, qos: Qos) {
        let seq = self.records.len() as Seq + 1;
        let message =
            Message { topic: topic.into(), payload: seq.to_be_bytes().into(), qos, ..Message::default() };
        self.records.push(Arc::new(Record {
            seq,
            received_ms: 0,
            source: "s".into(),
            in_pid: None,
            message,
        }));
    }

    fn write(&mut self, entry: Entry) -> u64 {
        self.written += 1;
        self.log.push((self.written, entry));
        self.written
    }

    fn apply(&mut self, entry: &Entry) {
        match *entry {
            Entry::Published(pid, seq) => {
                self.journal.retain(|_, (other, _)| *other != seq);
                self.journal.insert(pid, (seq, OutState::Published));
            }
            Entry::Received(pid) => {
                if let Some((_, state)) = self.journal.get_mut(&pid) {
                    *state = OutState::Received;
                }
            }
            Entry::Done(pid, seq) => {
                self.journal.remove(&pid);
                self.done.insert(seq);
            }
            Entry::SessionLost => self.journal.clear(),
        }
    }

    /// What is left after a crash: a prefix of the journal that holds at least what was durable. Acknowledgements at
    /// QoS 1 may be forgotten.
    fn crash(&mut self, rng: &mut fastrand::Rng) {
        let keep = rng.u64(self.durable..=self.written);
        let log = std::mem::take(&mut self.log);
        (self.journal, self.done) = Default::default();
        for (ticket, entry) in log.into_iter().filter(|(ticket, _)| *ticket <= keep) {
            self.apply(&entry);
            self.log.push((ticket, entry));
        }
        (self.written, self.durable) = (keep, keep);
        self.acked.retain(|_| rng.bool());
        let done = self.done.clone();
        self.acked.retain(|seq| {
            self.records[*seq as usize - 1].message.qos < Qos::ExactlyOnce || done.contains(seq)
        });
        self.acked.extend(done);
        self.acked.extend(self.dead.iter().map(|(seq, _)| *seq));
        self.handed_out.clear();
    }
}

impl Queue for ModelQueue {
    type Error = Never;
    type Ticket = u64;
    fn durable(&self) -> u64 {
        self.durable
    }
    fn written(&self) -> u64 {
        self.written
    }
    fn next(&mut self) -> Result<Option<Delivery>, Never> {
        let record =
            self.records.iter().find(|r| !self.acked.contains(&r.seq) && !self.handed_out.contains(&r.seq));
        let Some(record) = record.cloned() else { return Ok(None) };
        self.handed_out.insert(record.seq);
        let outbound =
            self.journal.iter().find(|(_, (seq, _))| *seq == record.seq).map(|(pid, (_, s))| (*pid, *s));
        Ok(Some(Delivery { record, again: false, outbound }))
    }
    fn ack(&mut self, seq: Seq) -> bool {
        self.acked.insert(seq)
    }
    fn rewind(&mut self) {
        self.handed_out.clear();
    }
    fn fetch(&mut self, seq: Seq) -> Result<Option<Arc<Record>>, Never> {
        Ok(Some(Arc::clone(&self.records[seq as usize - 1])))
    }
    fn dead_letter(&mut self, seq: Seq, reason: &str, _now_ms: u64) -> Result<bool, Never> {
        self.dead.push((seq, reason.to_owned()));
        self.acked.insert(seq);
        Ok(true)
    }
    fn out_published(&mut self, seq: Seq, pid: u16) -> Result<u64, Never> {
        let open = self.journal.get(&pid);
        assert!(
            open.is_none_or(|(other, _)| *other == seq),
            "id {pid} is taken again while {open:?} is open"
        );
        self.apply(&Entry::Published(pid, seq));
        Ok(self.write(Entry::Published(pid, seq)))
    }
    fn out_received(&mut self, pid: u16) -> Result<Option<u64>, Never> {
        if !self.journal.contains_key(&pid) {
            return Ok(None);
        }
        self.apply(&Entry::Received(pid));
        Ok(Some(self.write(Entry::Received(pid))))
    }
    fn out_done(&mut self, pid: u16) -> Result<Option<Seq>, Never> {
        let Some((seq, _)) = self.journal.get(&pid).copied() else { return Ok(None) };
        self.apply(&Entry::Done(pid, seq));
        self.write(Entry::Done(pid, seq));
        self.acked.insert(seq);
        Ok(Some(seq))
    }
    fn outbound_pids(&self) -> Vec<u16> {
        self.journal.keys().copied().collect()
    }
    fn out_session_lost(&mut self) -> Result<(), Never> {
        self.apply(&Entry::SessionLost);
        self.write(Entry::SessionLost);
        Ok(())
    }
}

#[derive(Debug, Clone)]
pub enum Packet {
    Publish { pid: Option<u16>, dup: bool, message: Message },
    Pubrel(u16),
    Puback(u16, u8),
    Pubrec(u16, u8),
    Pubcomp(u16),
}

/// The client of the outlet: packet ids, and the wire to the broker.
#[derive(Debug, Default)]
pub struct Wire {
    pub taken: HashSet<u16>,
    pub last: u16,
    pub out: VecDeque<Packet>,
    pub room: usize,
    pub sent: Vec<(Option<u16>, bool, Message)>,
}

impl Peer for Wire {
    fn acquire_pid(&mut self) -> Option<u16> {
        loop {
            self.last = self.last % 40 + 1;
            if self.taken.insert(self.last) {
                return Some(self.last);
            }
            if self.taken.len() >= 40 {
                return None;
            }
        }
    }
    fn reserve_pid(&mut self, pid: u16) -> bool {
        self.taken.insert(pid)
    }
    fn release_pid(&mut self, pid: u16) {
        self.taken.remove(&pid);
    }
    fn publish(&mut self, pid: Option<u16>, dup: bool, message: &Message) -> Result<(), PublishError> {
        if self.out.len() >= self.room {
            return Err(PublishError::BufferFull);
        }
        assert!(pid.is_none_or(|pid| self.taken.contains(&pid)), "published under an id that is not taken");
        self.sent.push((pid, dup, message.clone()));
        self.out.push_back(Packet::Publish { pid, dup, message: message.clone() });
        Ok(())
    }
    fn pubrel(&mut self, pid: u16) -> Result<(), PublishError> {
        self.out.push_back(Packet::Pubrel(pid));
        Ok(())
    }
}

/// The next hop: delivers QoS 2 on PUBLISH, and remembers the id until PUBREL.
#[derive(Debug, Default)]
struct ModelBroker {
    held: HashSet<u16>,
    back: VecDeque<Packet>,
    got: Vec<(Seq, Qos)>,
}

impl ModelBroker {
    fn receive(&mut self, packet: Packet, refuse: Option<u8>) {
        match packet {
            Packet::Publish { pid, dup, message } => {
                let seq = Seq::from_be_bytes(message.payload.as_slice().try_into().unwrap());
                match (message.qos, pid) {
                    (Qos::AtMostOnce, _) => self.got.push((seq, message.qos)),
                    (Qos::AtLeastOnce, Some(pid)) => {
                        if refuse.is_none() {
                            self.got.push((seq, message.qos));
                        }
                        self.back.push_back(Packet::Puback(pid, refuse.unwrap_or(0)));
                    }
                    (Qos::ExactlyOnce, Some(pid)) if refuse.is_some() && !self.held.contains(&pid) => {
                        self.back.push_back(Packet::Pubrec(pid, refuse.unwrap_or(0)));
                    }
                    (Qos::ExactlyOnce, Some(pid)) => {
                        let known = !self.held.insert(pid);
                        assert!(!known || dup, "a new message under an id that the broker still holds");
                        if !known {
                            self.got.push((seq, message.qos));
                        }
                        self.back.push_back(Packet::Pubrec(pid, 0));
                    }
                    other => panic!("{other:?}"),
                }
            }
            Packet::Pubrel(pid) => {
                self.held.remove(&pid);
                self.back.push_back(Packet::Pubcomp(pid));
            }
            other => panic!("{other:?}"),
        }
    }
}

pub const LIMITS: PeerLimits =
    PeerLimits { receive_maximum: 65535, max_packet_bytes: None, max_qos: Qos::ExactlyOnce, retain: true };

pub fn settings() -> Settings {
    Settings {
        window: 16,
        ack_timeout: Duration::from_secs(30),
        poison_disconnects: 5,
        hold: (Duration::from_secs(1), Duration::from_secs(8)),
        origin: "dev/1".into(),
        hop: "dev/h".into(),
    }
}

pub fn routes() -> Routes {
    Routes::new(vec![crate::route::Route::new("#", "up/{topic}", Qos::ExactlyOnce, "dev").unwrap()])
}

pub fn at(start: Instant, s: u64) -> Now {
    Now { mono: start + Duration::from_secs(s), unix_ms: s * 1000 }
}

struct Sim {
    rng: fastrand::Rng,
    queue: ModelQueue,
    wire: Wire,
    broker: ModelBroker,
    outlet: Outlet<u64>,
    up: bool,
    keep_session: bool,
    forgotten: u32,
    now: Now,
}

impl Sim {
    fn new(seed: u64, keep_session: bool) -> Sim {
        let queue = ModelQueue::default();
        let mut wire = Wire { room: 12, ..Wire::default() };
        let outlet = Outlet::new(settings(), routes(), &queue, &mut wire);
        let now = at(Instant::now(), 1000);
        let rng = fastrand::Rng::with_seed(seed);
        Sim {
            rng,
            queue,
            wire,
            broker: ModelBroker::default(),
            outlet,
            up: false,
            keep_session,
            forgotten: 0,
            now,
        }
    }

    /// One random thing happens. `calm`: nothing breaks any more.
    fn step(&mut self, calm: bool) {
        self.now.mono += Duration::from_millis(5);
        self.now.unix_ms += 5;
        match self.rng.u32(0..if calm { 70 } else { 100 }) {
            0..20 => self.pump(),
            20..40 => self.queue.durable = self.rng.u64(self.queue.durable..=self.queue.written),
            40..55 => {
                if let Some(packet) = self.wire.out.pop_front().filter(|_| self.up) {
                    let refuse = (!calm && self.rng.u32(0..12) == 0).then_some(0x97);
                    self.broker.receive(packet, refuse);
                }
            }
            55..70 => self.answer(),
            70..90 if self.queue.records.len() < 120 => {
                let topic = ["a", "b"][self.rng.usize(0..2)];
                let qos = [Qos::AtLeastOnce, Qos::ExactlyOnce][self.rng.usize(0..2)];
                self.queue.add(topic, qos);
            }
            90..94 => self.cut(),
            94..96 => self.crash(),
            _ => {}
        }
        if !self.up && (calm || self.rng.bool()) {
            self.connect();
        }
    }

    fn pump(&mut self) {
        self.outlet.pump(&mut self.queue, &mut self.wire, self.now).unwrap();
    }

    fn answer(&mut self) {
        let Some(packet) = self.broker.back.pop_front().filter(|_| self.up) else { return };
        let (queue, wire, now) = (&mut self.queue, &mut self.wire, self.now);
        match packet {
            Packet::Puback(pid, reason) => {
                wire.release_pid(pid);
                self.outlet.puback(pid, reason, queue, wire, now).unwrap();
            }
            Packet::Pubrec(pid, reason) if reason >= 0x80 => {
                wire.release_pid(pid);
                self.outlet.pubrec(pid, reason, queue, wire, now).unwrap();
            }
            Packet::Pubrec(pid, reason) => self.outlet.pubrec(pid, reason, queue, wire, now).unwrap(),
            Packet::Pubcomp(pid) => {
                wire.release_pid(pid);
                self.outlet.pubcomp(pid, queue).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }

    fn connect(&mut self) {
        let present = self.keep_session || self.rng.bool();
        if !present {
            self.forgotten += 1;
            self.broker.held.clear();
        }
        self.outlet.connected(present, LIMITS, &mut self.queue, &mut self.wire).unwrap();
        self.up = true;
    }

    fn cut(&mut self) {
        if self.up {
            self.up = false;
            self.wire.out.clear();
            self.broker.back.clear();
            self.outlet
                .disconnected(DisconnectKind::Timeout, &mut self.queue, &mut self.wire, self.now)
                .unwrap();
        }
    }

    fn crash(&mut self) {
        self.cut();
        self.queue.crash(&mut self.rng);
        self.wire = Wire { room: 12, last: self.rng.u16(0..40), ..Wire::default() };
        self.outlet = Outlet::new(settings(), routes(), &self.queue, &mut self.wire);
    }

    fn run(&mut self) {
        for _ in 0..4000 {
            self.step(false);
        }
        for n in 0.. {
            self.step(true);
            self.queue.durable = self.queue.written;
            if self.queue.acked.len() == self.queue.records.len() && self.outlet.in_flight() == 0 {
                break;
            }
            assert!(n < 40_000, "stuck: {} of {}", self.queue.acked.len(), self.queue.records.len());
        }
    }
}

fn seeds() -> Vec<u64> {
    match std::env::var("EDGE_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (0..300).collect(),
    }
}

#[test]
fn nothing_is_lost_and_qos_2_arrives_once_whatever_breaks() {
    for seed in seeds() {
        let mut sim = Sim::new(seed, true);
        sim.run();
        let mut count: BTreeMap<Seq, usize> = BTreeMap::new();
        for (seq, _) in &sim.broker.got {
            *count.entry(*seq).or_default() += 1;
        }
        for record in &sim.queue.records {
            let n = count.get(&record.seq).copied().unwrap_or_default();
            let qos = record.message.qos;
            assert!(n >= 1, "seed {seed}: record {} at {qos:?} is lost", record.seq);
            assert!(n == 1 || qos < Qos::ExactlyOnce, "seed {seed}: record {} arrived {n} times", record.seq);
        }
        assert!(sim.queue.dead.is_empty(), "seed {seed}: {:?}", sim.queue.dead);
    }
}

#[test]
fn nothing_is_lost_when_the_next_hop_forgets_sessions() {
    for seed in seeds() {
        let mut sim = Sim::new(seed, false);
        sim.run();
        let got: BTreeSet<Seq> = sim.broker.got.iter().map(|(seq, _)| *seq).collect();
        assert_eq!(got.len(), sim.queue.records.len(), "seed {seed}");
        assert!(sim.forgotten > 0);
    }
}

#[test]
fn the_order_of_first_sends_is_that_of_arrival() {
    for seed in seeds().into_iter().take(50) {
        let mut sim = Sim::new(seed, true);
        for n in 0..100 {
            sim.queue.add("a", if n % 3 == 0 { Qos::ExactlyOnce } else { Qos::AtLeastOnce });
        }
        while sim.queue.acked.len() < 100 {
            sim.step(true);
            sim.queue.durable = sim.rng.u64(sim.queue.durable..=sim.queue.written);
        }
        let got: Vec<Seq> = sim.broker.got.iter().map(|(seq, _)| *seq).collect();
        assert!(got.is_sorted() && got.len() == 100, "seed {seed}: {got:?}");
    }
}

//! A publisher that keeps account: which messages it sent, in which order, and which of them the other
//! side acknowledged. It reconnects for ever and sends again, with DUP, what was not acknowledged.
//!
//! Message n goes to topic n modulo the number of topics; its payload is a pure function of n, so that a
//! receiver can tell a damaged message from a good one.

use std::collections::{BTreeMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::mqtt::{self, Incoming, Version};

/// What to publish.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Port on 127.0.0.1.
    pub port: u16,
    /// Stable: the session is kept across reconnects.
    pub client_id: String,
    /// Protocol.
    pub version: Version,
    /// 0, 1 or 2.
    pub qos: u8,
    /// Messages in flight at most.
    pub window: usize,
    /// How many messages; it ends when all are acknowledged.
    pub count: u64,
    /// Bytes of each payload, at least 40.
    pub payload_len: usize,
    /// Topics, used in turn.
    pub topics: Vec<String>,
    /// Messages a second at most; 0 = as fast as it goes.
    pub rate: u64,
}

impl Plan {
    /// MQTT 5, 1 KB, three topics below `t/`, 50 in flight; at QoS 2 no more than mosquitto takes by default.
    pub fn new(port: u16, client_id: &str, qos: u8, count: u64) -> Plan {
        let topics = ["t/a", "t/b", "t/c"].map(String::from).to_vec();
        let client_id = client_id.to_owned();
        let window = if qos == 2 { 20 } else { 50 };
        Plan { port, client_id, version: Version::V5, qos, window, count, payload_len: 1024, topics, rate: 0 }
    }

    /// The topic of message n.
    pub fn topic(&self, n: u64) -> &str {
        &self.topics[(n % self.topics.len() as u64) as usize]
    }
}

/// The payload of message n: its number, then text that depends on it.
pub fn payload(n: u64, len: usize) -> Vec<u8> {
    let mut out = format!("n={n:010};").into_bytes();
    let mut rng = fastrand::Rng::with_seed(n);
    while out.len() < len {
        out.push(rng.alphanumeric() as u8);
    }
    out
}

/// The number in a payload made by [`payload`]; None if it is not exactly what was made.
pub fn number(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes.get(2..12)?).ok()?;
    let n = text.parse().ok()?;
    (payload(n, bytes.len()) == bytes).then_some(n)
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    finish: AtomicBool,
    /// No new message from this number on.
    limit: AtomicU64,
    sent: AtomicU64,
    acked: Mutex<Vec<bool>>,
    acked_count: AtomicU64,
    refused: Mutex<Vec<(u64, u8)>>,
    reconnects: AtomicU64,
    sessions_lost: AtomicU64,
}

/// A running publisher. It stops when dropped.
pub struct Publisher {
    shared: Arc<Shared>,
    plan: Plan,
    thread: Option<JoinHandle<()>>,
}

impl Publisher {
    /// Starts publishing on a thread of its own.
    pub fn start(plan: Plan) -> Publisher {
        let all = plan.count;
        Publisher::start_limited(plan, all)
    }

    /// The same, but sends no message from number `limit` on until [`Publisher::limit`] allows more.
    pub fn start_limited(plan: Plan, limit: u64) -> Publisher {
        let shared = Arc::new(Shared::default());
        *shared.acked.lock().unwrap() = vec![false; plan.count as usize];
        shared.limit.store(limit, Ordering::Relaxed);
        let mut worker = Worker {
            plan: plan.clone(),
            shared: shared.clone(),
            next: 0,
            next_pid: 0,
            flight: BTreeMap::new(),
            again: VecDeque::new(),
            started: Instant::now(),
        };
        Publisher { shared, plan, thread: Some(std::thread::spawn(move || worker.run())) }
    }

    /// Messages acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.shared.acked_count.load(Ordering::Relaxed)
    }

    /// Messages handed to the connection at least once so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// The numbers of all acknowledged messages.
    pub fn acked_numbers(&self) -> Vec<u64> {
        let acked = self.shared.acked.lock().unwrap();
        acked.iter().enumerate().filter(|(_, acked)| **acked).map(|(n, _)| n as u64).collect()
    }

    /// Messages refused with a reason of 0x80 or more.
    pub fn refused(&self) -> Vec<(u64, u8)> {
        self.shared.refused.lock().unwrap().clone()
    }

    /// Times the connection was made again.
    pub fn reconnects(&self) -> u64 {
        self.shared.reconnects.load(Ordering::Relaxed)
    }

    /// Times the other side no longer knew the session.
    pub fn sessions_lost(&self) -> u64 {
        self.shared.sessions_lost.load(Ordering::Relaxed)
    }

    /// Sends no message with this number or a higher one, until told otherwise.
    pub fn limit(&self, n: u64) {
        self.shared.limit.store(n.min(self.plan.count), Ordering::Relaxed);
    }

    /// Takes on no new message; those sent so far are still brought to their end.
    pub fn finish(&self) {
        self.shared.finish.store(true, Ordering::Relaxed);
    }

    /// Waits until every message is acknowledged (QoS 0: sent).
    pub fn wait_done(&mut self, timeout: Duration) {
        let what = format!("{}: all messages acknowledged", self.plan.client_id);
        let start = Instant::now();
        while self.thread.as_ref().is_some_and(|t| !t.is_finished()) {
            let acked = self.acked();
            assert!(
                start.elapsed() < timeout,
                "waited {timeout:?} in vain for {what}: {acked} of {}",
                self.sent()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        self.thread.take().unwrap().join().expect("the publisher's thread ended well");
    }

    /// Stops, whatever is still unacknowledged.
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where a message in flight is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// PUBLISH sent, PUBACK or PUBREC awaited.
    Published,
    /// PUBREL sent, PUBCOMP awaited.
    Released,
}

struct Worker {
    plan: Plan,
    shared: Arc<Shared>,
    next: u64,
    next_pid: u16,
    /// Packet id -> message and where it is. Order of sending is in the message number.
    flight: BTreeMap<u16, (u64, Step)>,
    /// Messages to send again as new ones: their session was lost.
    again: VecDeque<u64>,
    started: Instant,
}

impl Worker {
    fn run(&mut self) {
        while !self.over() {
            if let Err(error) = self.connection() {
                if std::env::var_os("EDGE_TRACE").is_some() {
                    println!("publisher {}: {error}", self.plan.client_id);
                }
                std::thread::sleep(Duration::from_millis(20));
                self.shared.reconnects.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn over(&self) -> bool {
        let all = self.next == self.plan.count || self.shared.finish.load(Ordering::Relaxed);
        let done = all && self.flight.is_empty() && self.again.is_empty();
        done || self.shared.stop.load(Ordering::Relaxed)
    }

    fn more(&self) -> bool {
        let finish = self.shared.finish.load(Ordering::Relaxed);
        !finish && self.next < self.shared.limit.load(Ordering::Relaxed)
    }

    fn connection(&mut self) -> std::io::Result<()> {
        let address = crate::net::local(self.plan.port);
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(&mqtt::connect(self.plan.version, &self.plan.client_id, false, None))?;
        let mut input = Vec::new();
        let present = loop {
            if let Some(packet) = mqtt::take(&mut input) {
                match packet {
                    Incoming::Connack(present, 0) => break present,
                    other => return Err(std::io::Error::other(format!("instead of CONNACK: {other:?}"))),
                }
            }
            fill(&mut stream, &mut input)?;
        };
        let mut output = VecDeque::new();
        self.resume(present, &mut output);
        stream.set_nonblocking(true)?;
        self.exchange(stream, input, output)
    }

    /// What was in flight goes first and in its first order: DUP PUBLISH, or PUBREL.
    fn resume(&mut self, present: bool, output: &mut VecDeque<u8>) {
        let mut flight: Vec<(u16, (u64, Step))> = self.flight.iter().map(|(k, v)| (*k, *v)).collect();
        flight.sort_by_key(|(_, (n, _))| *n);
        if !present && !flight.is_empty() {
            self.shared.sessions_lost.fetch_add(1, Ordering::Relaxed);
        }
        for (pid, (n, step)) in flight {
            match step {
                // The packet id means nothing to a server that lost the session, yet the server may
                // have the message: a duplicate is possible, and allowed then.
                Step::Published if !present => {
                    self.flight.remove(&pid);
                    self.again.push_back(n);
                }
                Step::Published => output.extend(self.packet(n, pid, true)),
                Step::Released if !present => {
                    self.flight.remove(&pid);
                }
                Step::Released => output.extend(mqtt::pubrel(pid)),
            }
        }
    }

    fn packet(&self, n: u64, pid: u16, dup: bool) -> Vec<u8> {
        let plan = &self.plan;
        let number = n.to_string();
        let user = [("n", number.as_str()), ("id", number.as_str()), ("content-type", "text/plain")];
        mqtt::publish(plan.version, plan.topic(n), &payload(n, plan.payload_len), plan.qos, pid, dup, &user)
    }

    fn exchange(
        &mut self,
        mut stream: TcpStream,
        mut input: Vec<u8>,
        mut output: VecDeque<u8>,
    ) -> std::io::Result<()> {
        let mut last_write = Instant::now();
        while !self.over() || !output.is_empty() {
            if self.shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.refill(&mut output);
            if output.is_empty() && last_write.elapsed() > Duration::from_secs(20) {
                output.extend(mqtt::pingreq());
            }
            let interest = if output.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            let mut fds = [PollFd::new(&stream, interest)];
            let timeout = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
            poll(&mut fds, Some(&timeout)).map_err(std::io::Error::from)?;
            let ready = fds[0].revents();
            if ready.contains(PollFlags::OUT) && !output.is_empty() {
                let (front, _) = output.as_slices();
                match stream.write(front) {
                    Ok(n) => drop(output.drain(..n)),
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
                last_write = Instant::now();
            }
            if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                match fill(&mut stream, &mut input) {
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    other => other?,
                }
                while let Some(packet) = mqtt::take(&mut input) {
                    self.hear(packet, &mut output)?;
                }
            }
        }
        stream.set_nonblocking(false)?;
        stream.write_all(&mqtt::disconnect())
    }

    /// Puts new messages into the window.
    fn refill(&mut self, output: &mut VecDeque<u8>) {
        while output.len() < 256 * 1024 && self.flight.len() < self.plan.window {
            let n = match self.again.pop_front() {
                Some(n) => n,
                None if self.more() && self.due() => {
                    self.next += 1;
                    self.shared.sent.store(self.next, Ordering::Relaxed);
                    self.next - 1
                }
                None => return,
            };
            if self.plan.qos == 0 {
                output.extend(self.packet(n, 0, false));
                continue;
            }
            let pid = self.free_pid();
            output.extend(self.packet(n, pid, false));
            self.flight.insert(pid, (n, Step::Published));
        }
    }

    fn due(&self) -> bool {
        let rate = self.plan.rate;
        rate == 0 || self.next < 1 + self.started.elapsed().as_millis() as u64 * rate / 1000
    }

    fn free_pid(&mut self) -> u16 {
        loop {
            self.next_pid = self.next_pid.checked_add(1).unwrap_or(1);
            if !self.flight.contains_key(&self.next_pid) {
                return self.next_pid;
            }
        }
    }

    fn hear(&mut self, packet: Incoming, output: &mut VecDeque<u8>) -> std::io::Result<()> {
        match packet {
            Incoming::Puback(pid, reason) => {
                let (n, _) =
                    self.flight.remove(&pid).unwrap_or_else(|| panic!("PUBACK {pid} for nothing sent"));
                self.settle(n, reason);
            }
            Incoming::Pubrec(pid, reason) if reason >= 0x80 => {
                // 0x91 (packet identifier in use) after a takeover is the server's to explain: a refusal.
                if let Some((n, _)) = self.flight.remove(&pid) {
                    self.settle(n, reason);
                }
            }
            Incoming::Pubrec(pid, reason) => {
                let (n, step) =
                    *self.flight.get(&pid).unwrap_or_else(|| panic!("PUBREC {pid} for nothing sent"));
                if step == Step::Published {
                    self.settle(n, reason);
                    self.flight.insert(pid, (n, Step::Released));
                }
                output.extend(mqtt::pubrel(pid));
            }
            Incoming::Pubcomp(pid, _) => {
                self.flight.remove(&pid);
            }
            Incoming::Disconnect(reason) => {
                return Err(std::io::Error::other(format!("the server sent DISCONNECT 0x{reason:02x}")));
            }
            Incoming::Pingresp => {}
            other => panic!("a publisher was sent {other:?}"),
        }
        Ok(())
    }

    fn settle(&mut self, n: u64, reason: u8) {
        if reason >= 0x80 {
            self.shared.refused.lock().unwrap().push((n, reason));
            return;
        }
        let mut acked = self.shared.acked.lock().unwrap();
        if !std::mem::replace(&mut acked[n as usize], true) {
            self.shared.acked_count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn fill(stream: &mut TcpStream, input: &mut Vec<u8>) -> std::io::Result<()> {
    let mut buffer = [0; 64 * 1024];
    let n = stream.read(&mut buffer)?;
    if n == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    input.extend_from_slice(&buffer[..n]);
    Ok(())
}

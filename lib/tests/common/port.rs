//! A small daemon around an ingest port, for tests.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use edge::mqtt::{
    ClientConfig, Message, Qos, Version,
    ingest::{ConnId, Ingest, IngestConfig, IngestEvent},
};
use mio::{Events, Poll, Token};

use super::PATIENCE;

/// A daemon around a port, on a thread: it keeps messages and answers after `delay`, as a commit would.
pub struct Port {
    pub port: u16,
    pub seen: Arc<Mutex<Vec<IngestEvent>>>,
    pub stop: Arc<AtomicBool>,
    pub pause: Arc<AtomicBool>,
    pub thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Daemon {
    held: HashMap<String, HashSet<u16>>,
    owed: Vec<(Instant, ConnId, u16, Qos)>,
}

impl Port {
    pub fn start(change: impl FnOnce(&mut IngestConfig), delay: Duration) -> Port {
        let mut cfg = IngestConfig::new("127.0.0.1:0");
        change(&mut cfg);
        let mut ingest = Ingest::bind(cfg).unwrap();
        let port = ingest.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (stop, pause) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (log, end, hold) = (seen.clone(), stop.clone(), pause.clone());
        let thread = thread::spawn(move || {
            let mut poll = Poll::new().unwrap();
            ingest.register(poll.registry(), Token(5)).unwrap();
            let mut events = Events::with_capacity(64);
            let mut daemon = Daemon::default();
            let (mut wakeups, begun) = (0u64, Instant::now());
            while !end.load(Ordering::Relaxed) {
                let now = Instant::now();
                let wait = ingest
                    .deadline()
                    .map_or(Duration::from_millis(5), |at| at.saturating_duration_since(now));
                poll.poll(&mut events, Some(wait.min(Duration::from_millis(5)))).unwrap();
                wakeups += 1;
                let now = Instant::now();
                for event in &events {
                    assert!(ingest.owns(event.token()) || event.token().0 > 1 << 16);
                    ingest.ready(poll.registry(), event, now);
                }
                if ingest.deadline().is_some_and(|at| at <= now) {
                    ingest.timer(poll.registry(), now);
                }
                ingest.pause_reading(hold.load(Ordering::Relaxed));
                while let Some(event) = ingest.next_event() {
                    handle(&mut ingest, &mut daemon, &event, now, delay);
                    log.lock().unwrap().push(event);
                }
                let due = daemon.owed.iter().take_while(|(at, ..)| *at <= now).count();
                for (_, conn, pid, qos) in daemon.owed.drain(..due) {
                    match qos {
                        Qos::ExactlyOnce => ingest.pubrec(conn, pid, 0),
                        _ => ingest.puback(conn, pid, 0),
                    }
                }
                ingest.flush(poll.registry(), now);
            }
            ingest.shutdown(poll.registry(), Instant::now());
            ingest.flush(poll.registry(), Instant::now());
            let allowed = 20_000 + 400 * begun.elapsed().as_secs();
            assert!(wakeups < allowed, "it spins: {wakeups} turns");
        });
        Port { port, seen, stop, pause, thread: Some(thread) }
    }

    pub fn plain() -> Port {
        Port::start(|_| {}, Duration::from_millis(2))
    }

    /// Waits until what was seen satisfies `enough`, and returns it.
    pub fn wait(&self, what: &str, enough: impl Fn(&[IngestEvent]) -> bool) -> Vec<IngestEvent> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let seen = self.seen.lock().unwrap().clone();
            if enough(&seen) {
                return seen;
            }
            thread::sleep(Duration::from_millis(10));
        }
        panic!("{what} did not come: {:?}", self.seen.lock().unwrap());
    }

    pub fn messages(&self) -> Vec<Message> {
        messages(&self.seen.lock().unwrap())
    }

    pub fn config(&self, id: &str, version: Version) -> ClientConfig {
        let mut cfg = ClientConfig::new("127.0.0.1", self.port, id);
        cfg.version = version;
        cfg.backoff = (Duration::from_millis(50), Duration::from_millis(200), Duration::from_secs(60));
        cfg
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "the port's thread panicked");
    }
}

fn handle(ingest: &mut Ingest, daemon: &mut Daemon, event: &IngestEvent, now: Instant, delay: Duration) {
    match event {
        IngestEvent::Connect { conn, source, clean_start, .. } => {
            if *clean_start {
                daemon.held.remove(source);
            }
            ingest.accept(*conn, daemon.held.get(source).is_some_and(|held| !held.is_empty()), now);
        }
        IngestEvent::Publish { conn, source, pid: Some(pid), message, .. } => {
            if message.qos == Qos::ExactlyOnce {
                daemon.held.entry(source.clone()).or_default().insert(*pid);
            }
            daemon.owed.push((now + delay, *conn, *pid, message.qos));
        }
        IngestEvent::Pubrel { conn, source, pid } => {
            daemon.held.entry(source.clone()).or_default().remove(pid);
            ingest.pubcomp(*conn, *pid);
        }
        IngestEvent::SessionCleared { source } => drop(daemon.held.remove(source)),
        IngestEvent::Publish { .. } | IngestEvent::Closed { .. } => {}
    }
}

pub fn messages(seen: &[IngestEvent]) -> Vec<Message> {
    seen.iter()
        .filter_map(|event| match event {
            IngestEvent::Publish { message, .. } => Some(message.clone()),
            _ => None,
        })
        .collect()
}

pub fn closed(seen: &[IngestEvent]) -> usize {
    seen.iter().filter(|event| matches!(event, IngestEvent::Closed { .. })).count()
}

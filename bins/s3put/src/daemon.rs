//! The running daemon: everything it has open, and one turn of its loop.
//!
//! A reload (SIGHUP) is a stop and a start within the process: uploads under way are finished, the spool is closed, and
//! all is opened again with the new file. Nothing is lost by that, since everything accepted is in the spool.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::cli::Failure;
use edge::clock::unix_ms;
use edge::ctl::{Ctl, Reply};
use edge::inlet::{Inlet, Verdict};
use edge::log::Throttle;
use edge::net::Resolver;
use edge::notify::Notifier;
use edge::objects::dir::Dir;
use edge::objects::{Action, Core, Outcome, Pool, Store};
use edge::signal::{Signal, Signals};
use edge::spool::{Record, Spool};
use edge::timer::{Timers, wait};
use mio::{Events, Interest, Poll, Token, Waker};

use crate::config::{Config, TargetConfig};
use crate::object::upload;
use crate::status::View;

const SIGNALS: Token = Token(0);
const WAKER: Token = Token(1);
const LISTENER: Token = Token(2);

const STATUS_EVERY: Duration = Duration::from_secs(2);
const ALARM_EVERY: Duration = Duration::from_secs(60);
const BURY_AGAIN: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The line of `systemctl status` is due.
    Status,
    /// Tell systemd that we live.
    Watchdog,
    /// Say again that everything is held.
    Alarm,
    /// Try again to write what could not be written to dead-letter/.
    Bury,
    /// The drain has lasted long enough.
    Drain,
}

/// What the loop ended with.
enum End {
    Stop,
    Reload(Box<Config>),
}

/// Runs until a signal says otherwise.
///
/// # Errors
/// What ended it, with its exit code.
pub fn run(config: Config, path: &Path) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(Failure::os)?;
    let mut notifier = Notifier::from_env();
    let mut config = config;
    loop {
        let mut daemon = Daemon::open(config, &mut signals)?;
        notifier.ready();
        match daemon.run(&mut signals, &mut notifier, path)? {
            End::Stop => return Ok(()),
            End::Reload(new) => config = *new,
        }
    }
}

struct Daemon {
    poll: Poll,
    ctl: Ctl,
    spool: Option<Spool>,
    input: Inlet,
    core: Core<Arc<Record>>,
    pool: Pool,
    store: Arc<Store>,
    timers: Timers<Timer>,
    /// Dead letters that could not be written.
    unburied: Vec<(Arc<Record>, String)>,
    drain: Duration,
    started: Instant,
    stored_bytes: u64,
    alarmed: bool,
    status_due: bool,
    was_up: bool,
    /// Messages with the worker threads.
    uploading: usize,
    trouble_log: Throttle,
    dead_log: Throttle,
    stopping: Option<End>,
    drained: bool,
}

impl Daemon {
    fn open(config: Config, signals: &mut Signals) -> Result<Self, Failure> {
        for warning in config.warnings() {
            log::warn!("{warning}");
        }
        let poll = Poll::new().map_err(Failure::os)?;
        let registry = poll.registry();
        registry.register(signals, SIGNALS, Interest::READABLE).map_err(Failure::os)?;
        let waker = Arc::new(Waker::new(registry, WAKER).map_err(Failure::os)?);
        let raw = &config.raw;
        edge::fs::create_dir_durably(&raw.state_dir).map_err(Failure::io)?;
        prepare(&config.target)?;
        let (spool, recovery) =
            Spool::open(config.spool, Some(Arc::clone(&waker)), fastrand::u64(..)).map_err(Failure::io)?;
        log::info!("spool: {recovery}");
        let ctl = Ctl::bind(&raw.ctl_socket, registry).map_err(Failure::os)?;
        let resolver = Resolver::new(Arc::clone(&waker)).map_err(Failure::os)?;
        let mut input = Inlet::new(config.source, config.filters, &resolver)
            .map_err(|error| Failure::new(edge::cli::EX_UNAVAILABLE, error))?;
        let store = Arc::new(config.target.open());
        log::info!("stores into {}", store.name());
        let (target, objects) = (Arc::clone(&store), config.objects);
        let put = move |record: &Record| upload(record, &target, &objects, unix_ms());
        let pool = Pool::start("s3put-up", config.policy.workers, put, &waker).map_err(Failure::os)?;
        let started = Instant::now();
        input.start(registry, LISTENER, started).map_err(Failure::os)?;
        Ok(Self {
            poll,
            ctl,
            spool: Some(spool),
            input,
            core: Core::new(config.policy, fastrand::Rng::new()),
            pool,
            store,
            timers: Timers::new(),
            unburied: Vec::new(),
            drain: config.drain,
            started,
            stored_bytes: 0,
            alarmed: false,
            status_due: false,
            was_up: false,
            uploading: 0,
            trouble_log: Throttle::new(ALARM_EVERY),
            dead_log: Throttle::new(ALARM_EVERY),
            stopping: None,
            drained: false,
        })
    }

    fn run(&mut self, signals: &mut Signals, notifier: &mut Notifier, path: &Path) -> Result<End, Failure> {
        let mut events = Events::with_capacity(256);
        self.timers.set(Timer::Status, self.started);
        self.timers.set_or_cancel(Timer::Watchdog, notifier.alive(self.started));
        loop {
            let spool_deadline = self.spool.as_ref().and_then(Spool::deadline);
            let deadlines = [
                self.timers.deadline(),
                spool_deadline,
                self.core.deadline(),
                self.input.deadline(),
                self.ctl.deadline(),
            ];
            wait(&mut self.poll, &mut events, deadlines).map_err(Failure::os)?;
            let now = Instant::now();
            for event in &events {
                match event.token() {
                    SIGNALS => {
                        while let Some(signal) = signals.next_signal() {
                            self.signal(signal, notifier, path, now);
                        }
                    }
                    WAKER => self.input.resolved(self.poll.registry(), now),
                    token if Ctl::owns(token) => self.serve(Some(token), now),
                    _ if self.input.owns(event.token()) => self.input.ready(self.poll.registry(), event, now),
                    // A socket that was closed in this turn.
                    _ => {}
                }
            }
            self.deadlines(notifier, now);
            self.turn(now)?;
            if self.drained
                && let Some(end) = self.stopping.take()
            {
                return self.close(end, signals);
            }
        }
    }

    /// One turn: the disk, the source, the uploads, then all that was queued goes out.
    fn turn(&mut self, now: Instant) -> Result<(), Failure> {
        let Some(spool) = &mut self.spool else { return Ok(()) };
        spool.poll().map_err(Failure::io)?;
        // Everything that arrives here is wanted: it was subscribed to, or sent to our own port.
        self.input.receive(spool, now, unix_ms(), &mut |_| Verdict::Store).map_err(Failure::io)?;
        let mut actions = Vec::new();
        while let Some(done) = self.pool.next_done() {
            self.uploading = self.uploading.saturating_sub(1);
            if matches!(done.outcome, Outcome::Stored { .. }) {
                self.stored_bytes += done.bytes as u64;
            }
            actions.extend(self.core.finished(done.place, done.outcome, now));
        }
        if self.stopping.is_none() {
            actions.extend(self.core.due(now));
            while self.unburied.is_empty()
                && self.core.has_room()
                && let Some(delivery) = spool.next().map_err(Failure::io)?
            {
                if let Ok(action) = self.core.begin(delivery.record) {
                    actions.push(action);
                }
            }
        }
        let busy = !actions.is_empty();
        for action in actions {
            self.act(action, now);
        }
        self.observe(busy, now);
        if self.stopping.is_some() && self.uploading == 0 {
            self.drained = true;
        }
        if let Some(spool) = &mut self.spool {
            self.input.acknowledge(spool).map_err(Failure::io)?;
            spool.flush(now).map_err(Failure::io)?;
        }
        self.input.flush(self.poll.registry(), now);
        Ok(())
    }

    fn act(&mut self, action: Action<Arc<Record>>, now: Instant) {
        let Some(spool) = &mut self.spool else { return };
        match action {
            Action::Run { place, job } => {
                // While stopping, what was released by the last outcome waits for the next start.
                if self.stopping.is_none() {
                    self.uploading += 1;
                    self.pool.run(place, job);
                }
            }
            Action::Ack(record) => {
                spool.ack(record.seq);
            }
            Action::DeadLetter(record, why) => {
                if let Some(held) = self.dead_log.event(now) {
                    let topic = &record.message.topic;
                    log::error!(
                        "dead letter: message {} on {topic:?}: {why} (and {held} more since the last line)",
                        record.seq
                    );
                }
                self.bury(record, why, now);
            }
        }
    }

    fn bury(&mut self, record: Arc<Record>, why: String, now: Instant) {
        let Some(spool) = &mut self.spool else { return };
        if !record.is_durable() {
            // QoS 0, in memory only: there is nothing to keep, and its sender expects nothing.
            return;
        }
        if let Err(error) = spool.dead_letter(record.seq, &why, unix_ms()) {
            log::error!(
                "dead letter: message {} can't be written and is kept; nothing new is uploaded until it can: {}",
                record.seq,
                edge::log::chain(&error)
            );
            self.unburied.push((record, why));
            self.timers.set(Timer::Bury, now + BURY_AGAIN);
        }
    }

    /// Says aloud what changed: holds at once and then once a minute, troubles once a minute.
    fn observe(&mut self, busy: bool, now: Instant) {
        match self.core.held() {
            Some((since, why)) if !self.alarmed => {
                self.alarmed = true;
                self.timers.set(Timer::Alarm, since + ALARM_EVERY);
                log::error!(
                    "holding everything: {why}; nothing is dropped, one upload is tried again and again"
                );
            }
            None if self.alarmed => {
                self.alarmed = false;
                self.timers.cancel(&Timer::Alarm);
                log::info!("the target accepts again: no longer holding");
            }
            _ => {}
        }
        if let Some((_, why)) = self.core.trouble()
            && busy
            && let Some(held) = self.trouble_log.event(now)
        {
            log::warn!("upload: {why}; will be tried again (and {held} more since the last line)");
        }
        let up = self.input.is_up();
        if (busy || up != self.was_up) && !self.status_due {
            self.status_due = true;
            self.timers.set(Timer::Status, now + STATUS_EVERY);
        }
        self.was_up = up;
    }

    fn deadlines(&mut self, notifier: &mut Notifier, now: Instant) {
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::Status => {
                    self.status_due = false;
                    if let Some(view) = self.view(now) {
                        notifier.status(&view.line());
                    }
                }
                Timer::Watchdog => self.timers.set_or_cancel(Timer::Watchdog, notifier.alive(now)),
                Timer::Alarm => {
                    if let Some((since, why)) = self.core.held() {
                        let minutes = now.saturating_duration_since(since).as_secs() / 60;
                        log::error!("holding everything for {minutes} min: {why}");
                        self.timers.set(Timer::Alarm, now + ALARM_EVERY);
                        self.timers.set(Timer::Status, now);
                    }
                }
                Timer::Bury => {
                    for (record, why) in std::mem::take(&mut self.unburied) {
                        self.bury(record, why, now);
                    }
                }
                Timer::Drain => self.drained = true,
            }
        }
        if self.input.deadline().is_some_and(|at| at <= now) {
            self.input.timer(self.poll.registry(), now);
        }
        if self.ctl.deadline().is_some_and(|at| at <= now) {
            self.serve(None, now);
        }
    }

    fn signal(&mut self, signal: Signal, notifier: &mut Notifier, path: &Path, now: Instant) {
        let end = match signal {
            Signal::Term | Signal::Int => {
                log::info!("stopping: {} uploads under way", self.uploading);
                notifier.stopping();
                End::Stop
            }
            Signal::Child => return,
            Signal::Hup => {
                let loaded = Config::load(path, &edge::aws::credentials::Vars::from_env());
                let Some(new) = notifier.reload(path, loaded) else { return };
                End::Reload(Box::new(new))
            }
        };
        if matches!(self.stopping, Some(End::Stop)) {
            return;
        }
        self.stopping = Some(end);
        self.input.stop(self.poll.registry(), now);
        self.timers.set(Timer::Drain, now + self.drain);
    }

    fn serve(&mut self, token: Option<Token>, now: Instant) {
        let Some(view) = self.view(now) else { return };
        let mut pages = |path: &str| match path {
            "/status" => Some(Reply::Json(view.json())),
            "/metrics" => Some(Reply::Metrics(view.metrics())),
            _ => None,
        };
        self.ctl.serve(self.poll.registry(), token, now, &mut pages);
    }

    fn view(&self, now: Instant) -> Option<View> {
        let stats = self.spool.as_ref()?.stats();
        let mut view = View::new(&self.core, &self.input, stats, self.store.name(), self.started, now);
        view.stored_bytes = self.stored_bytes;
        if let Store::S3(s3) = &*self.store {
            view.skew_s = s3.skew_s();
        }
        Some(view)
    }

    /// What is under way was waited for; the rest is in the spool.
    fn close(&mut self, end: End, signals: &mut Signals) -> Result<End, Failure> {
        let counts = self.core.counts();
        let left = self.uploading;
        if left > 0 {
            log::warn!("{left} uploads did not end within drain-ms; they will be done again");
        }
        if let Some(spool) = self.spool.take() {
            spool.close().map_err(Failure::io)?;
        }
        self.poll.registry().deregister(signals).map_err(Failure::os)?;
        log::info!("stopped: {} stored, {} in dead-letter/", counts.stored, counts.dead);
        Ok(end)
    }
}

/// Makes the target's folder if it may, and clears away what a killed process left in it.
fn prepare(target: &TargetConfig) -> Result<(), Failure> {
    let TargetConfig::Dir { root, mode, create } = target else { return Ok(()) };
    if *create && !root.exists() {
        edge::fs::create_dir_durably(root).map_err(Failure::io)?;
    }
    Dir::new(root.clone(), *mode).clean();
    Ok(())
}

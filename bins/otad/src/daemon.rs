//! The running daemon: its loop, its clock, its control socket. What blocks is on the install thread.
//!
//! A stop does not wait for an update: what is under way ends at its next step, and the next start goes on from what the
//! disk says.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use edge::cli::Failure;
use edge::ctl::{Ctl, Pages, Reply};
use edge::notify::Notifier;
use edge::signal::{Signal, Signals};
use edge::timer::{Timers, wait};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use serde_json::{Value, json};

use crate::config::Config;
use crate::core::{Core, Done, Input, Job, Now, State, Trouble};
use crate::install::{Limits, Recovered, Store, TRIES_MAX};
use crate::ledger::Ledger;
use crate::status::{Counters, Facts, View, word};
use crate::thread::{Said, Task, Thread};
use crate::worker::{Worker, today};

const SIGNALS: Token = Token(0);
const WAKER: Token = Token(1);
const CLOCK: Token = Token(2);

const STATUS_EVERY: Duration = Duration::from_secs(1);
/// A stop waits that long for a job to end by itself. One that waits for the server is left then: the disk is at any
/// instant as a crash may find it.
const STOP_WAIT: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The line of `systemctl status` is due.
    Status,
    /// Tell systemd that we live.
    Watchdog,
    /// A stop has waited long enough.
    Stop,
}

/// Bounds of the store, from the configuration.
#[must_use]
pub fn limits(config: &Config) -> Limits {
    let raw = &config.raw.limits;
    Limits {
        blob_bytes_max: raw.file_max.0,
        expanded_bytes_max: raw.expanded_max.0,
        files_max: raw.entries_max,
        free_bytes_min: raw.free_min.0,
        keep_generations: raw.keep_generations as usize,
        ..Limits::default()
    }
}

/// Runs until a signal says otherwise.
///
/// # Errors
/// What ended it, with its exit code.
pub fn run(config: Config, path: &Path) -> Result<(), Failure> {
    let mut signals = Signals::new().map_err(Failure::os)?;
    let mut notifier = Notifier::from_env();
    let mut daemon = Daemon::open(config, path, &mut signals)?;
    notifier.ready();
    daemon.run(&mut signals, &mut notifier)
}

struct Daemon {
    poll: Poll,
    ctl: Ctl,
    /// Readable when the core's deadline has come; it counts the time the device sleeps, too.
    clock: OwnedFd,
    armed: Option<Duration>,
    timers: Timers<Timer>,
    body: Body,
    stopping: bool,
}

/// All but what polls.
struct Body {
    path: PathBuf,
    config: Arc<Config>,
    core: Core,
    thread: Thread,
    rng: fastrand::Rng,
    view: View,
    counters: Counters,
    started: Duration,
    answered: Option<Duration>,
    verified: Option<Value>,
    verify: u64,
    retried: Option<Value>,
    retry: u64,
    /// A job is with the thread.
    busy: bool,
}

impl Daemon {
    fn open(config: Config, path: &Path, signals: &mut Signals) -> Result<Daemon, Failure> {
        for warning in config.warnings() {
            log::warn!("{warning}");
        }
        let poll = Poll::new().map_err(Failure::os)?;
        let registry = poll.registry();
        registry.register(signals, SIGNALS, Interest::READABLE).map_err(Failure::os)?;
        let clock = rustix::time::timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )
        .map_err(|error| Failure::os(std::io::Error::from(error)))?;
        registry
            .register(&mut SourceFd(&clock.as_raw_fd()), CLOCK, Interest::READABLE)
            .map_err(Failure::os)?;
        let config = Arc::new(config);
        let (worker, first, stop) = open_worker(&config)?;
        let ctl = Ctl::bind(&config.raw.ctl_socket, registry).map_err(Failure::os)?;
        let waker = Waker::new(registry, WAKER).map_err(Failure::os)?;
        let view = View::of(&worker, today(&config));
        let mut rng = fastrand::Rng::new();
        let now = edge::clock::boot();
        let core = Core::new(config.policy, now, &mut rng);
        let thread = Thread::start(worker, Arc::clone(&config), stop, waker).map_err(Failure::os)?;
        let mut body = Body {
            path: path.to_owned(),
            config,
            core,
            thread,
            rng,
            view,
            counters: Counters::default(),
            started: now,
            answered: None,
            verified: None,
            verify: 0,
            retried: None,
            retry: 0,
            busy: false,
        };
        match first {
            Some(input) => body.give(input),
            None => {
                log::info!("first poll in {}", crate::status::span(body.core.next_poll().saturating_sub(now)))
            }
        }
        Ok(Daemon { poll, ctl, clock, armed: None, timers: Timers::new(), body, stopping: false })
    }

    fn run(&mut self, signals: &mut Signals, notifier: &mut Notifier) -> Result<(), Failure> {
        let mut events = Events::with_capacity(64);
        let now = Instant::now();
        self.timers.set_or_cancel(Timer::Watchdog, notifier.alive(now));
        self.timers.set(Timer::Status, now);
        loop {
            self.arm()?;
            let deadlines = [self.timers.deadline(), self.ctl.deadline()];
            wait(&mut self.poll, &mut events, deadlines).map_err(Failure::os)?;
            let now = Instant::now();
            for event in &events {
                match event.token() {
                    SIGNALS => self.signal(signals, notifier, now),
                    CLOCK => {
                        self.armed = None;
                        // The count of expirations; it is read to be readable again.
                        let _ = rustix::io::read(&self.clock, &mut [0; 8]);
                    }
                    WAKER => {}
                    token => self.ctl.ready(self.poll.registry(), token, now, &mut self.body),
                }
            }
            self.settle(now);
            if let Some(why) = self.body.view.fatal.take() {
                self.body.thread.close();
                return Err(Failure::io(format!(
                    "the disk refuses to go back; it is finished at the next start: {why}"
                )));
            }
            if self.stopping && !self.body.busy {
                break;
            }
            if self.deadlines(notifier, now) {
                log::info!("stopped in the middle of a job: the next start goes on from what is on disk");
                return Ok(());
            }
        }
        self.body.thread.close();
        log::info!("stopped");
        Ok(())
    }

    fn signal(&mut self, signals: &mut Signals, notifier: &mut Notifier, now: Instant) {
        while let Some(signal) = signals.next_signal() {
            match signal {
                Signal::Hup => self.body.reload(notifier),
                Signal::Term | Signal::Int if !self.stopping => {
                    log::info!("stopping");
                    notifier.stopping();
                    self.stopping = true;
                    self.timers.set(Timer::Stop, now + STOP_WAIT);
                    self.body.thread.stop();
                }
                _ => {}
            }
        }
    }

    /// Takes in what the thread has done.
    fn settle(&mut self, now: Instant) {
        while let Some(said) = self.body.thread.next() {
            self.body.said(said, self.stopping);
            self.show(now);
        }
        if !self.stopping && self.body.core.deadline().is_some_and(|at| at <= edge::clock::boot()) {
            self.body.give(Input::Timer);
            self.show(now);
        }
    }

    fn show(&mut self, now: Instant) {
        if !self.timers.is_set(&Timer::Status) {
            self.timers.set(Timer::Status, now + STATUS_EVERY);
        }
    }

    /// Whether a stop has waited long enough.
    fn deadlines(&mut self, notifier: &mut Notifier, now: Instant) -> bool {
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::Status => notifier.status(&self.body.facts().line()),
                Timer::Watchdog => self.timers.set_or_cancel(Timer::Watchdog, notifier.alive(now)),
                Timer::Stop => return true,
            }
        }
        if self.ctl.deadline().is_some_and(|at| at <= now) {
            self.ctl.timer(self.poll.registry(), now, &mut self.body);
        }
        false
    }

    fn arm(&mut self) -> Result<(), Failure> {
        let deadline = self.body.core.deadline();
        if deadline == self.armed {
            return Ok(());
        }
        // Zero would disarm it.
        let at = deadline.map_or(Duration::ZERO, |at| at.max(Duration::from_nanos(1)));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: at.as_secs() as _, tv_nsec: at.subsec_nanos().into() };
        let time = Itimerspec { it_interval: zero, it_value: value };
        rustix::time::timerfd_settime(&self.clock, TimerfdTimerFlags::ABSTIME, &time)
            .map_err(|error| Failure::os(std::io::Error::from(error)))?;
        self.armed = deadline;
        Ok(())
    }
}

impl Body {
    fn now(&self) -> Now {
        let unix_s = edge::clock::unix_s();
        let clock_s = unix_s + self.config.clock_offset_s(unix_s);
        let budget = self.config.raw.budget_per_day.0;
        let used = budget > 0 && self.view.day == clock_s.div_euclid(86_400) && self.view.spent >= budget;
        let left = Duration::from_secs((86_400 - clock_s.rem_euclid(86_400)) as u64);
        Now {
            boot: edge::clock::boot(),
            window: self.config.windows.next(clock_s),
            budget: used.then_some(left),
        }
    }

    fn facts(&self) -> Facts<'_> {
        Facts {
            config: &self.config,
            core: &self.core,
            view: &self.view,
            counters: &self.counters,
            now: self.now(),
            started: self.started,
            answered: self.answered,
            verified: self.verified.as_ref(),
            retried: self.retried.as_ref(),
        }
    }

    fn give(&mut self, input: Input) {
        let was_idle = self.core.is_idle();
        let before = word(self.core.state());
        let job = self.core.handle(input, self.now(), &mut self.rng);
        let state = word(self.core.state());
        if before != state {
            log::debug!("{before} -> {state}");
        }
        if self.core.is_idle() && !was_idle {
            self.counters.rounds += 1;
        }
        if let Some(job) = job {
            self.counters.polls += u64::from(matches!(job, Job::Poll { .. }));
            self.busy = true;
            self.thread.send(Task::Job(job));
        }
    }

    fn said(&mut self, said: Said, stopping: bool) {
        self.view = said.view;
        if said.verified.is_some() {
            self.verified = said.verified;
        }
        if said.retried.is_some() {
            self.retried = said.retried;
        }
        let Some(done) = said.done else { return };
        self.busy = false;
        if stopping {
            // What a stop did to a job says nothing of the update.
            return;
        }
        match &done {
            Done::Polled(Ok(_)) => self.answered = Some(edge::clock::boot()),
            Done::Polled(Err(_)) => self.counters.polls_failed += 1,
            Done::Committed(Ok(())) => self.counters.commits += 1,
            Done::RolledBack(Ok(())) => self.counters.rollbacks += 1,
            _ => {}
        }
        if let Some(trouble) = trouble_of(&done) {
            log::warn!("{}", trouble.why());
        }
        self.give(Input::Done(done));
        if let State::Waiting(_) = self.core.state() {
            let why = self.facts().why();
            log::info!("an update waits: {}", why["text"].as_str().unwrap_or_default());
        }
    }

    fn reload(&mut self, notifier: &mut Notifier) {
        let loaded = Config::load(&self.path);
        let Some(new) = notifier.reload(&self.path, loaded) else { return };
        for key in self.config.needs_a_restart(&new) {
            log::warn!("{key} has changed: that takes a restart of otad");
        }
        let mut new = new;
        new.raw.state_dir.clone_from(&self.config.raw.state_dir);
        new.raw.ctl_socket.clone_from(&self.config.raw.ctl_socket);
        for warning in new.warnings() {
            log::warn!("{warning}");
        }
        self.config = Arc::new(new);
        self.core.set_policy(self.config.policy, edge::clock::boot(), &mut self.rng);
        self.thread.send(Task::Config(Arc::clone(&self.config)));
        notifier.ready();
    }

    fn roll_back(&mut self, query: &str) -> Reply {
        let to = query.split('&').find_map(|pair| pair.strip_prefix("to="));
        if !self.core.may_roll_back() {
            let state = word(self.core.state());
            return Reply::Refused(409, format!("at work ({state}): try again in a moment"));
        }
        let target = match (&self.view.trial, &self.view.current) {
            (Some(_), Some((id, _))) => Some(*id),
            (Some(_), None) => None,
            (None, _) => match self.view.previous {
                Some(id) => Some(id),
                None => return Reply::Refused(409, "there is no earlier generation to roll back to".into()),
            },
        };
        let name = target.map(|id| id.to_string());
        if let Some(to) = to.filter(|to| name.as_deref() != Some(*to)) {
            let can = name.as_deref().unwrap_or("nothing");
            return Reply::Refused(
                409,
                format!("can't roll back to {to}: what would be brought back is {can}"),
            );
        }
        let round = self.counters.rounds;
        self.give(Input::RollBack { why: "asked for with 'otad rollback'".into() });
        Reply::Json(json!({ "round": round, "to": name }))
    }

    fn retry(&mut self, query: &str) -> Reply {
        let of = query.split('&').find_map(|pair| pair.strip_prefix("of="));
        let which = of.and_then(crate::retry::named);
        if of.is_some() && which.is_none() {
            return Reply::Refused(400, "'of' has to name a generation, such as 3-0f1e2d3c".into());
        }
        self.retry += 1;
        self.thread.send(Task::Retry(self.retry, which));
        Reply::Json(json!({ "number": self.retry }))
    }
}

impl Pages for Body {
    fn get(&mut self, path: &str) -> Option<Reply> {
        match path {
            "/status" => Some(Reply::Json(self.facts().json())),
            "/why" => Some(Reply::Json(self.facts().why())),
            "/history" => Some(Reply::Json(self.facts().history())),
            "/metrics" => Some(Reply::Metrics(self.facts().metrics())),
            _ => None,
        }
    }

    fn post(&mut self, path: &str, query: &str) -> Option<Reply> {
        match path {
            "/check-now" => {
                let force = query.split('&').any(|pair| pair == "force=1");
                let round = self.counters.rounds;
                self.give(Input::CheckNow { force });
                Some(Reply::Json(json!({ "round": round })))
            }
            "/rollback" => Some(self.roll_back(query)),
            "/verify" => {
                self.verify += 1;
                self.thread.send(Task::Verify(self.verify));
                Some(Reply::Json(json!({ "number": self.verify })))
            }
            "/retry" => Some(self.retry(query)),
            _ => None,
        }
    }
}

fn trouble_of(done: &Done) -> Option<&Trouble> {
    match done {
        Done::Polled(Err(trouble))
        | Done::Fetched(Err(trouble))
        | Done::Built(Err(trouble))
        | Done::Hooked(Err(trouble))
        | Done::Switched(Err(trouble)) => Some(trouble),
        _ => None,
    }
}

/// Opens the folder, and says with what to begin.
fn open_worker(config: &Arc<Config>) -> Result<(Worker, Option<Input>, Arc<AtomicBool>), Failure> {
    let dir = &config.raw.state_dir;
    let (mut store, recovery) = Store::open(dir, limits(config)).map_err(Failure::io)?;
    for note in &recovery.notes {
        log::warn!("{note}");
    }
    let mut ledger = Ledger::open(dir).map_err(Failure::io)?;
    let boot = crate::install::boot_id();
    // The first start after a reboot is the one that edge-otad-recover has counted, where there is one.
    let again = ledger.page.boot == boot;
    let counted = !again && store.recovery_counted(&boot).map_err(Failure::io)?;
    if !again {
        boot.clone_into(&mut ledger.page.boot);
        ledger.save().map_err(Failure::io)?;
    }
    let first = match recovery.trial {
        Recovered::Trial { to, tries } => {
            let tries = if counted { tries } else { store.count_try().map_err(Failure::io)? };
            log::warn!("{to} is on trial, start {tries}: going on");
            if tries > TRIES_MAX {
                Some(Input::RollBack { why: format!("it did not get well within {TRIES_MAX} starts") })
            } else {
                Some(Input::Resume)
            }
        }
        Recovered::Abandoned(id) => {
            log::warn!("the update to {id} had been interrupted before anything changed");
            None
        }
        Recovered::RolledBack(id) => {
            log::warn!("the rollback from {id} had been interrupted; it is finished");
            None
        }
        Recovered::Nothing => None,
    };
    let first = first.or_else(|| (!ledger.page.owed.is_empty()).then_some(Input::Owed));
    let stop = Arc::new(AtomicBool::new(false));
    Ok((Worker::new(Arc::clone(config), store, ledger, Arc::clone(&stop)), first, stop))
}

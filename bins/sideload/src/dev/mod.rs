//! `sideload dev`: save, sync, restart, logs.
//!
//! One thread waits for everything in one poll: the source folder's events, signals, and what two helpers tell through
//! channels: `dev-push`, which syncs one batch at a time, and `dev-logs`, which follows the application's log.
//! Invariants: nothing polls; one sync is under way at a time; lines go to stdout one write each.

pub mod check;
pub mod debounce;
pub mod follow;
pub mod push;
pub mod report;
pub mod rules;
pub mod watch;

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use edge::{
    cli::EX_SOFTWARE,
    retry::Backoff,
    signal::{Signal, Signals},
};
use mio::{Events, Interest, Poll, Token, Waker, unix::SourceFd};
use serde_json::Value;

use self::{
    check::Check,
    debounce::{Changes, Debounce},
    follow::Told,
    push::{Job, Outcome, Pause, Pusher, Trouble, Work},
    report::Reporter,
    rules::Rules,
    watch::Watch,
};
use crate::{
    client::Target,
    config::{Action, Settings},
    output::{EX_IOERR, Failure},
    scan::Source,
};

const WATCH: Token = Token(0);
const SIGNALS: Token = Token(1);
const WAKER: Token = Token(2);

/// Log lines between the two threads, at most.
const LINES_MAX: usize = 1024;
/// A sync under way may end when the user wants to leave; not longer than this.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// A channel to the loop, which wakes it.
pub(crate) struct Tell<T> {
    sender: SyncSender<T>,
    waker: Arc<Waker>,
}

impl<T> Tell<T> {
    /// `false`: nobody listens any more.
    pub(crate) fn send(&self, told: T) -> bool {
        self.sender.send(told).is_ok() && self.waker.wake().is_ok()
    }
}

/// Watches, syncs, restarts and follows until it is told to stop.
///
/// # Errors
/// What it can't start without (address, folder, keys, watches), and the folder's end.
pub fn run(settings: &Settings, as_json: bool) -> Result<(), Failure> {
    Loop::open(settings, as_json)?.run()
}

struct Loop {
    poll: Poll,
    waker: Arc<Waker>,
    signals: Signals,
    watch: Watch,
    debounce: Debounce,
    rules: Rules,
    reporter: Reporter,
    backoff: Backoff,
    rng: fastrand::Rng,
    target: Target,
    top: PathBuf,
    jobs: Sender<Work>,
    outcomes: Receiver<Outcome>,
    lines: Option<Receiver<Told>>,
    /// A job is out.
    busy: bool,
    /// The next job must see that the application runs.
    run_due: bool,
    /// Nothing was synced yet: the first success restarts the application.
    first: bool,
    /// Why the last attempt came to nothing, if time alone may help.
    away: Option<Pause>,
    /// The run of the daemon that the log speaks of, once it is known to have begun anew.
    daemon: Option<u64>,
    /// The run of the daemon in which the application was last seen to.
    seen_to: Option<u64>,
    as_json: bool,
}

fn system(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::new(edge::cli::EX_OSERR, format!("{what}: {error}"))
}

fn failed(error: &watch::Error) -> Failure {
    Failure::of(EX_IOERR, error, error.fix())
}

fn glob(error: rules::Error) -> Failure {
    Failure::of(edge::cli::EX_CONFIG, &error, None)
}

impl Loop {
    fn open(settings: &Settings, as_json: bool) -> Result<Loop, Failure> {
        let (target, dev) = (settings.target()?, &settings.dev);
        let source = Source::open(settings.source()?)?;
        let top = source.top().to_owned();
        let rules = Rules::new(&top, &dev.rules).map_err(glob)?;
        let check = Check::new(&top, &dev.check, &dev.check_files, dev.check_timeout).map_err(glob)?;
        let client = push::client(&target)?;
        let mut signals = Signals::new().map_err(system("signalfd"))?;
        let poll = Poll::new().map_err(system("epoll"))?;
        let watch = Watch::new(&top).map_err(|error| failed(&error))?;
        let registry = poll.registry();
        let waker = Arc::new(Waker::new(registry, WAKER).map_err(system("eventfd"))?);
        registry
            .register(&mut SourceFd(&watch.fd()), WATCH, Interest::READABLE)
            .and_then(|()| registry.register(&mut signals, SIGNALS, Interest::READABLE))
            .map_err(system("epoll_ctl"))?;
        let (jobs, todo) = channel();
        let (sender, outcomes) = sync_channel(1);
        let tell = Tell { sender, waker: waker.clone() };
        let pusher = Pusher { client, source, check, top: top.clone(), owed: false, early: None };
        spawn("dev-push", move || push::run(pusher, &todo, &tell))?;
        let backoff =
            Backoff::new(Duration::from_millis(500), Duration::from_secs(10), Duration::from_secs(5));
        Ok(Loop {
            poll,
            waker,
            signals,
            watch,
            debounce: Debounce::new(dev.debounce, dev.debounce_max),
            rules,
            reporter: Reporter::default(),
            backoff,
            rng: fastrand::Rng::new(),
            target,
            top,
            jobs,
            outcomes,
            lines: None,
            busy: false,
            run_due: true,
            first: true,
            away: None,
            daemon: None,
            seen_to: None,
            as_json,
        })
    }

    fn run(&mut self) -> Result<(), Failure> {
        let device = format!("{}:{}", self.target.addr, self.target.port);
        self.say(&format!("{} -> {device}; Ctrl-C ends", self.top.display()));
        self.debounce.report(Changes::All, Instant::now());
        let mut events = Events::with_capacity(16);
        loop {
            let now = Instant::now();
            if let Some(text) = self.reporter.give_up(Some(now)) {
                self.say(&text);
            }
            self.dispatch(now)?;
            let deadline = [self.debounce.deadline(), self.reporter.deadline()].into_iter().flatten().min();
            // A timer may ring a little early; one more turn costs less than a busy loop.
            let timeout = deadline.map(|at| at.saturating_duration_since(now) + Duration::from_micros(200));
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(system("epoll_wait")(error)),
            }
            for event in &events {
                match event.token() {
                    WATCH => self.changed()?,
                    SIGNALS => {
                        while let Some(signal) = self.signals.next_signal() {
                            if signal != Signal::Hup {
                                return self.leave();
                            }
                        }
                    }
                    _ => self.told()?,
                }
            }
        }
    }

    /// The folder's events.
    fn changed(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let changes = match self.watch.read().map_err(|error| failed(&error))? {
            Changes::Paths(paths) => {
                Changes::Paths(paths.into_iter().filter(|path| self.rules.counts(path)).collect())
            }
            Changes::All => Changes::All,
        };
        // One file is what a person saves: its check need not wait for the debounce. A storm's would be in vain.
        let single = changes.paths().is_some_and(|paths| paths.count() == 1);
        if single && !self.busy && self.debounce.deadline().is_none() {
            // An ended thread is noticed with the batch.
            let _ = self.jobs.send(Work::Check(changes.clone()));
        }
        self.debounce.report(changes, now);
        Ok(())
    }

    /// Gives the next batch away when it is due.
    fn dispatch(&mut self, now: Instant) -> Result<(), Failure> {
        let Some(batch) = self.debounce.take(now) else { return Ok(()) };
        if let Some(text) = self.reporter.give_up(None) {
            self.say(&text);
        }
        let changes = batch.all();
        let action =
            if self.first || changes.is_empty() { Action::Restart } else { self.rules.action(&changes) };
        self.busy = true;
        self.jobs
            .send(Work::Push(Job { batch, action, run: self.run_due }))
            .map_err(|_| Failure::new(EX_SOFTWARE, "the syncing thread has ended"))
    }

    /// What the helpers have to say.
    fn told(&mut self) -> Result<(), Failure> {
        // Lines first: those that came before an answer are then known to have.
        self.read_lines();
        while let Ok(outcome) = self.outcomes.try_recv() {
            self.busy = false;
            self.concluded(outcome)?;
        }
        Ok(())
    }

    fn read_lines(&mut self) {
        let mut budget = LINES_MAX;
        while let Some(told) = self.lines.as_ref().and_then(|lines| lines.try_recv().ok()) {
            match told {
                Told::Entry(entry) => self.line(&entry),
                Told::Lost(cause) => self.went_away(Pause::Away, &cause),
                Told::Connected => {
                    self.came_back();
                    self.debounce.retry_now(Instant::now());
                }
            }
            budget -= 1;
            if budget == 0 {
                // The rest after the other sources had their turn. It fails only without a poll.
                let _ = self.waker.wake();
                return;
            }
        }
    }

    fn line(&mut self, entry: &Value) {
        let text = |name| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        if matches!(text("stream"), "stdout" | "stderr")
            && let Some(said) = self.reporter.line(text("seq"), Instant::now())
        {
            self.say(&said);
        }
        if entry.get("restarted").is_some() {
            self.daemon = report::position(text("next")).map(|(run, _)| run);
            self.see_to_it();
        }
        if self.as_json {
            print_line(&entry.to_string());
        } else {
            print_line(&crate::commands::logs::line(entry));
        }
    }

    /// A daemon that began anew runs nothing: the device may have been switched off.
    fn see_to_it(&mut self) {
        if !self.busy && self.daemon.is_some() && self.daemon != self.seen_to {
            self.run_due = true;
            self.debounce.report(Changes::All, Instant::now());
        }
    }

    fn concluded(&mut self, Outcome { mut batch, result }: Outcome) -> Result<(), Failure> {
        let now = Instant::now();
        match result {
            Ok((report, effect)) => {
                self.debounce.done();
                self.backoff.connected(now);
                self.came_back();
                for skipped in report.skipped.iter().filter(|_| self.first) {
                    self.say(&format!("not sent: {} ({})", skipped.path.display(), skipped.why));
                }
                if report.deleted == 0 {
                    without_passing(&mut batch);
                }
                let began = match &effect {
                    push::Effect::Restarted(log) => log.as_deref().and_then(report::position),
                    _ => None,
                };
                if let Some((run, _)) = began {
                    self.seen_to = Some(run);
                } else if self.run_due {
                    self.seen_to = self.daemon;
                }
                (self.first, self.run_due) = (false, false);
                self.see_to_it();
                if let Some(text) = self.reporter.done(&self.top, &batch, &report, &effect, now) {
                    self.say(&text);
                }
                if self.lines.is_none() {
                    let from = match effect {
                        push::Effect::Restarted(log) => log,
                        _ => None,
                    };
                    self.follow(from)?;
                }
                Ok(())
            }
            Err(trouble) => self.trouble(batch, trouble, now),
        }
    }

    fn trouble(&mut self, batch: debounce::Batch, trouble: Trouble, now: Instant) -> Result<(), Failure> {
        let Trouble { failure, again, check, committed } = trouble;
        // Keys that are wrong do not become right by waiting, but a device may get other ones while we run.
        if self.first && again.is_none() && !check && !committed && failure.code == crate::output::EX_NOPERM {
            return Err(failure);
        }
        let subject = report::subject(&self.top, &batch);
        let retry_at = again.map(|_| now + self.backoff.next_delay(now, &mut self.rng));
        if committed && again.is_none() {
            self.debounce.done();
            self.first = false;
        } else {
            self.debounce.failed(batch.all(), retry_at);
        }
        if let Some(pause) = again {
            self.run_due = true;
            self.went_away(pause, &failure.cause);
        } else if check {
            self.say(&format!("{subject} -> the check failed; the old process runs on"));
            let cause = failure.cause.trim_start_matches("nothing was changed on the device: ");
            eprintln!("{}", cause.trim_end());
        } else {
            let what = if committed { "synced, but" } else { "not synced:" };
            self.say(&format!("{subject} -> {what} {}", failure.cause));
            if let Some(fix) = &failure.fix {
                self.say(&format!("  fix: {fix}"));
            }
        }
        if committed && self.lines.is_none() {
            self.follow(None)?;
        }
        Ok(())
    }

    fn follow(&mut self, from: Option<String>) -> Result<(), Failure> {
        let (sender, lines) = sync_channel(LINES_MAX);
        let tell = Tell { sender, waker: self.waker.clone() };
        let target = self.target.clone();
        self.lines = Some(lines);
        spawn("dev-logs", move || follow::run(&target, from, &tell))
    }

    /// Said once, until it is over or something else.
    fn went_away(&mut self, pause: Pause, cause: &str) {
        if self.away.replace(pause) != Some(pause) {
            self.say(&match pause {
                Pause::Away => format!("the device is away ({cause}); trying again until it is back"),
                Pause::Busy => format!("not now: {cause}; trying again"),
            });
        }
    }

    fn came_back(&mut self) {
        if self.away.take() == Some(Pause::Away) {
            self.say("the device is back");
        }
    }

    /// Ctrl-C.
    fn leave(&mut self) -> Result<(), Failure> {
        if self.busy && self.away.is_none() {
            self.say("ending after the sync under way");
            if let Ok(outcome) = self.outcomes.recv_timeout(LEAVE_MAX) {
                self.concluded(outcome)?;
            }
        }
        if let Some(text) = self.reporter.give_up(None) {
            self.say(&text);
        }
        self.say("the application keeps running on the device; `sideload kill-app` stops it");
        Ok(())
    }

    /// A line of ours: to stdout between those of the application; with --json to stderr.
    fn say(&self, text: &str) {
        let text = crate::output::visible(text);
        if self.as_json {
            eprintln!("{text}");
        } else {
            print_line(&text);
        }
    }
}

/// One write, so that whoever reads along has it at once. Nobody is left to tell when stdout is gone.
fn print_line(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.flush());
}

/// Leaves out what existed only during the save, such as the file that an editor renames over the real one.
fn without_passing(batch: &mut debounce::Batch) {
    if let Changes::Paths(paths) = &mut batch.saved
        && paths.iter().any(|path| path.symlink_metadata().is_ok())
    {
        paths.retain(|path| path.symlink_metadata().is_ok());
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    thread::Builder::new().name(name.into()).spawn(work).map(drop).map_err(system("can't start a thread"))
}

//! The running daemon: everything it has open, and its loop.
//!
//! A reload (SIGHUP) is a stop and a start within the process: messages under way are answered, then all is opened again
//! with the new file. A stop takes no new connection, dismisses arms that wait for nothing, and lets the others have their
//! answers for a time.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::cli::{EX_CONFIG, Failure};
use edge::ctl::{Ctl, Reply};
use edge::http::conns::{self, Conns};
use edge::notify::Notifier;
use edge::signal::{Signal, Signals};
use edge::timer::{Timers, wait};
use mio::event::Event;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::config::{Config, Environment};
use crate::core::Core;
use crate::panel::Panel;
use crate::service::{Hub, Settings};
use crate::shelf::Shelf;
use crate::status::{self, Around};
use crate::uploads::Uploads;
use crate::workers::{self, Workers};

const SIGNALS: Token = Token(0);
const WAKER: Token = Token(1);

const STATUS_EVERY: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The line of `systemctl status` is due.
    Status,
    /// Tell systemd that we live.
    Watchdog,
    /// The stop has lasted long enough.
    Stop,
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
    conns: Conns<Hub>,
    hub: Hub,
    timers: Timers<Timer>,
    around: Around,
    drain: Duration,
    /// What the status line was made of.
    shown: (u64, usize, usize),
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
        let shelf = Shelf::open(&raw.state_dir).map_err(Failure::io)?;
        let timeout = Duration::from_millis(raw.panel.timeout_ms);
        let panel = Panel::start(&config.panel, raw.panel.queue_max, timeout).map_err(Failure::os)?;
        let panel = Arc::new(panel);
        let uploads = config.upload.as_ref().map(|upload| Uploads::open(upload, &waker));
        let uploads = uploads.transpose().map_err(Failure::io)?;
        let workers = Workers::start(&config, &shelf, &panel, &waker).map_err(failure)?;
        let ctl = Ctl::bind(&raw.ctl_socket, registry).map_err(Failure::os)?;
        let listener = conns::listen(&raw.listen).map_err(Failure::os)?;
        if let Ok(address) = listener.local_addr() {
            log::info!(
                "listening on {address}, mode {}; page: http://{address}/sessions",
                config.mode.name()
            );
        }
        let conns = Conns::new(vec![listener], None, config.caps, registry).map_err(Failure::os)?;
        let settings = Settings {
            message_bytes_max: raw.limits.message_bytes_max.as_usize(),
            idle: Duration::from_millis(raw.limits.idle_ms),
            pictures_bytes_max: raw.pictures.bytes_max.0,
            hosts: config.hosts.clone(),
        };
        let started = Instant::now();
        let core = Core::new(raw.limits.queue_max, uploads.is_some());
        Ok(Self {
            poll,
            ctl,
            conns,
            hub: Hub::new(settings, core, shelf, workers, panel, uploads, started),
            timers: Timers::new(),
            around: Around { connections: 0, started, mode: config.mode.name() },
            drain: Duration::from_millis(raw.drain_ms),
            shown: (0, 0, usize::MAX),
            stopping: None,
            drained: false,
        })
    }

    fn run(&mut self, signals: &mut Signals, notifier: &mut Notifier, path: &Path) -> Result<End, Failure> {
        let mut events = Events::with_capacity(256);
        self.timers.set_or_cancel(Timer::Watchdog, notifier.alive(self.around.started));
        loop {
            let now = Instant::now();
            self.observe(now);
            if self.drained
                && let Some(end) = self.stopping.take()
            {
                return self.close(end, signals);
            }
            let uploads = self.hub.uploads.as_ref().and_then(Uploads::deadline);
            let deadlines = [self.timers.deadline(), self.conns.deadline(now), self.ctl.deadline(), uploads];
            wait(&mut self.poll, &mut events, deadlines).map_err(Failure::os)?;
            let now = Instant::now();
            for event in &events {
                self.event(event, signals, notifier, path, now);
            }
            self.deadlines(notifier, now);
            self.turn(now)?;
        }
    }

    fn event(
        &mut self,
        event: &Event,
        signals: &mut Signals,
        notifier: &mut Notifier,
        path: &Path,
        now: Instant,
    ) {
        match event.token() {
            SIGNALS => {
                while let Some(signal) = signals.next_signal() {
                    self.signal(signal, notifier, path, now);
                }
            }
            // Its news is taken in by each turn.
            WAKER => {}
            token if Ctl::owns(token) => self.serve(Some(token), now),
            _ => self.conns.ready(event, self.poll.registry(), &mut self.hub, now),
        }
    }

    /// One turn: what the threads have done, the uploads, then the answers go out.
    fn turn(&mut self, now: Instant) -> Result<(), Failure> {
        while let Some(done) = self.hub.next_done() {
            let Some((token, looked)) = done else { continue };
            if let Some(client) = self.conns.client(token) {
                self.hub.looked(client, looked, now);
            }
            self.conns.pump(token, &mut self.hub, now);
        }
        self.hub.turn(now).map_err(Failure::io)?;
        while let Some((token, answer)) = self.hub.next_reply() {
            if let Some(client) = self.conns.client(token) {
                self.hub.reply(client, answer);
            }
            self.conns.pump(token, &mut self.hub, now);
        }
        Ok(())
    }

    /// Notes what follows from where everything is now.
    fn observe(&mut self, now: Instant) {
        self.around.connections = self.conns.count();
        if self.stopping.is_some() {
            for token in self.conns.tokens() {
                if let Some(client) = self.conns.client(token) {
                    self.hub.dismiss(client, now);
                }
                self.conns.pump(token, &mut self.hub, now);
            }
            self.conns.close_idle(&mut self.hub);
            let uploading = self.hub.uploads.as_ref().map_or(0, Uploads::uploading);
            self.drained |= self.conns.count() == 0 && self.hub.core.is_empty() && uploading == 0;
        }
        if self.looks() != self.shown && !self.timers.is_set(&Timer::Status) {
            let first = self.shown.2 == usize::MAX;
            self.timers.set(Timer::Status, now + if first { Duration::ZERO } else { STATUS_EVERY });
        }
    }

    fn looks(&self) -> (u64, usize, usize) {
        (self.hub.counts.messages, self.conns.count(), self.hub.core.len())
    }

    fn deadlines(&mut self, notifier: &mut Notifier, now: Instant) {
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::Status => {
                    self.shown = self.looks();
                    notifier.status(&status::line(&self.hub, self.conns.count(), now));
                }
                Timer::Watchdog => self.timers.set_or_cancel(Timer::Watchdog, notifier.alive(now)),
                Timer::Stop => {
                    log::warn!("{} messages were not answered in drain-ms", self.hub.core.len());
                    self.drained = true;
                }
            }
        }
        if self.conns.deadline(now).is_some_and(|at| at <= now) {
            self.conns.timer(self.poll.registry(), &mut self.hub, now);
        }
        if self.ctl.deadline().is_some_and(|at| at <= now) {
            self.serve(None, now);
        }
    }

    fn signal(&mut self, signal: Signal, notifier: &mut Notifier, path: &Path, now: Instant) {
        let end = match signal {
            Signal::Term | Signal::Int => {
                log::info!("stopping: {} messages under way", self.hub.core.len());
                notifier.stopping();
                End::Stop
            }
            Signal::Child => return,
            Signal::Hup => {
                let loaded = Config::load(path, &Environment::from_process());
                let Some(new) = notifier.reload(path, loaded) else { return };
                End::Reload(Box::new(new))
            }
        };
        if matches!(self.stopping, Some(End::Stop)) {
            return;
        }
        self.stopping = Some(end);
        self.conns.close_listeners();
        if let Some(uploads) = &mut self.hub.uploads {
            uploads.stop();
        }
        self.timers.set(Timer::Stop, now + self.drain);
    }

    fn serve(&mut self, token: Option<Token>, now: Instant) {
        let Self { ctl, hub, poll, around, .. } = self;
        let mut pages = |path: &str| match path {
            "/status" => Some(Reply::Json(status::json(hub, around, now))),
            "/metrics" => Some(Reply::Metrics(status::metrics(hub, around, now))),
            _ => None,
        };
        ctl.serve(poll.registry(), token, now, &mut pages);
    }

    /// Everything that was answered is on disk.
    fn close(&mut self, end: End, signals: &mut Signals) -> Result<End, Failure> {
        if let Some(uploads) = self.hub.uploads.take() {
            uploads.close().map_err(Failure::io)?;
        }
        self.poll.registry().deregister(signals).map_err(Failure::os)?;
        let counts = self.hub.core.counts;
        log::info!("stopped: {} pictures, {} commands", counts.pictures, counts.commands);
        Ok(end)
    }
}

/// A wrong model is a matter of the configuration.
fn failure(error: workers::Error) -> Failure {
    match error {
        workers::Error::Detector(_) | workers::Error::Vectorizer(_) => Failure::new(EX_CONFIG, error),
        workers::Error::Database(_) => Failure::io(error),
        workers::Error::Thread(_) => Failure::os(error),
    }
}

//! The running daemon: everything it has open, and its loop.
//!
//! A reload (SIGHUP) takes in TLS files, limits and times, and leaves connections, threads and the cache alone. A stop
//! takes no new connection, ends those that wait, and lets answers under way come to their end for a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::aws::credentials::Vars;
use edge::cli::Failure;
use edge::ctl::{Ctl, Reply};
use edge::http::conns::{self, Conns};
use edge::notify::Notifier;
use edge::signal::{Signal, Signals};
use edge::timer::{Timers, wait};
use mio::event::Event;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::cache::Cache;
use crate::config::Config;
use crate::service::{Hub, Settings};
use crate::status::{self, Around};
use crate::workers::{Setup, Workers};

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
    path: PathBuf,
    config: Config,
    ctl: Ctl,
    conns: Conns<Hub>,
    hub: Hub,
    timers: Timers<Timer>,
    started: Instant,
    /// What the status line was made of.
    shown: (u64, usize, usize),
    stopping: bool,
    ended: bool,
}

impl Daemon {
    fn open(config: Config, path: &Path, signals: &mut Signals) -> Result<Self, Failure> {
        let poll = Poll::new().map_err(Failure::os)?;
        let registry = poll.registry();
        registry.register(signals, SIGNALS, Interest::READABLE).map_err(Failure::os)?;
        let waker = Arc::new(Waker::new(registry, WAKER).map_err(Failure::os)?);
        let raw = &config.raw;
        let bundle = &raw.bundle;
        let cache = Cache::open(&bundle.dir, bundle.bytes_max.0, bundle.files_max).map_err(Failure::io)?;
        let (files, bytes) = (cache.size().1, edge::text::bytes(cache.size().0));
        log::info!("cache {}: {files} files, {bytes}", bundle.dir.display());
        let workers = Workers::start(setup(&config)?, &waker).map_err(Failure::os)?;
        let ctl = Ctl::bind(&raw.ctl_socket, registry).map_err(Failure::os)?;
        let listener = conns::listen(&raw.listen).map_err(Failure::os)?;
        if let Ok(address) = listener.local_addr() {
            log::info!("listening on {address}{}", if config.tls.is_some() { ", with TLS" } else { "" });
        }
        let conns = Conns::new(vec![listener], config.tls.clone(), config.caps, registry);
        let conns = conns.map_err(Failure::os)?;
        let hub = Hub::new(settings(&config), cache, workers, raw.limits.generations);
        Ok(Self {
            poll,
            path: path.to_owned(),
            ctl,
            conns,
            hub,
            timers: Timers::new(),
            started: Instant::now(),
            shown: (0, 0, usize::MAX),
            stopping: false,
            ended: false,
            config,
        })
    }

    fn run(&mut self, signals: &mut Signals, notifier: &mut Notifier) -> Result<(), Failure> {
        let mut events = Events::with_capacity(512);
        self.timers.set_or_cancel(Timer::Watchdog, notifier.alive(self.started));
        loop {
            let now = Instant::now();
            self.observe(now);
            if self.ended {
                return Ok(());
            }
            let deadlines = [self.timers.deadline(), self.conns.deadline(now), self.ctl.deadline()];
            wait(&mut self.poll, &mut events, deadlines).map_err(Failure::os)?;
            let now = Instant::now();
            for event in &events {
                self.event(event, signals, notifier, now);
            }
            self.deadlines(notifier, now);
        }
    }

    fn event(&mut self, event: &Event, signals: &mut Signals, notifier: &mut Notifier, now: Instant) {
        match event.token() {
            SIGNALS => {
                while let Some(signal) = signals.next_signal() {
                    match signal {
                        Signal::Hup => self.reload(notifier),
                        Signal::Term | Signal::Int => self.stop(notifier, now),
                        Signal::Child => {}
                    }
                }
            }
            WAKER => self.settle(now),
            token if Ctl::owns(token) => self.serve(Some(token), now),
            _ => self.conns.ready(event, self.poll.registry(), &mut self.hub, now),
        }
    }

    /// Hands on what the workers have for the connections.
    fn settle(&mut self, now: Instant) {
        for token in self.hub.progress() {
            self.conns.pump(token, &mut self.hub, now);
        }
        while let Some((tokens, outcome)) = self.hub.next_done(now) {
            for token in tokens {
                if let Some(client) = self.conns.client(token) {
                    self.hub.resume(client, &outcome, now);
                }
                self.conns.pump(token, &mut self.hub, now);
            }
        }
    }

    /// Notes what follows from where everything is now.
    fn observe(&mut self, now: Instant) {
        if self.stopping {
            self.conns.close_idle(&mut self.hub);
            self.ended |= self.conns.count() == 0;
        }
        if self.looks() != self.shown && !self.timers.is_set(&Timer::Status) {
            let first = self.shown.2 == usize::MAX;
            self.timers.set(Timer::Status, now + if first { Duration::ZERO } else { STATUS_EVERY });
        }
    }

    fn looks(&self) -> (u64, usize, usize) {
        (self.hub.stats.polls(), self.conns.count(), self.hub.making())
    }

    fn deadlines(&mut self, notifier: &mut Notifier, now: Instant) {
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::Status => {
                    self.shown = self.looks();
                    notifier.status(&status::line(&self.hub, self.conns.count()));
                }
                Timer::Watchdog => self.timers.set_or_cancel(Timer::Watchdog, notifier.alive(now)),
                Timer::Stop => {
                    log::warn!("{} answers were not taken in drain-ms", self.conns.count());
                    self.ended = true;
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

    fn stop(&mut self, notifier: &mut Notifier, now: Instant) {
        if self.stopping {
            return;
        }
        log::info!("stopping");
        notifier.stopping();
        self.stopping = true;
        self.conns.close_listeners();
        self.timers.set(Timer::Stop, now + Duration::from_millis(self.config.raw.drain_ms));
    }

    fn reload(&mut self, notifier: &mut Notifier) {
        let loaded = Config::load(&self.path, &Vars::from_env());
        let Some(new) = notifier.reload(&self.path, loaded) else { return };
        for key in self.config.needs_a_restart(&new) {
            log::warn!("{key} has changed: that takes a restart of depotd");
        }
        self.config = self.config.with_reloaded(new);
        self.conns.configure(self.config.tls.clone(), self.config.caps);
        self.hub.configure(settings(&self.config), self.config.raw.limits.generations);
        notifier.ready();
    }

    fn serve(&mut self, token: Option<Token>, now: Instant) {
        let Self { ctl, hub, conns, poll, started, .. } = self;
        let around = Around { connections: conns.count(), bytes_sent: conns.bytes_sent(), started: *started };
        let mut pages = |path: &str| match path {
            "/status" => Some(Reply::Json(status::json(hub, around, now))),
            "/metrics" => Some(Reply::Metrics(status::metrics(hub, around, now))),
            _ => None,
        };
        ctl.serve(poll.registry(), token, now, &mut pages);
    }
}

fn settings(config: &Config) -> Settings {
    let raw = &config.raw;
    Settings {
        max_age_s: raw.max_age_s,
        check: Duration::from_millis(raw.answers.check_ms),
        ttl: Duration::from_millis(raw.answers.ttl_ms),
        answer_bytes_max: raw.answers.bytes_max.as_usize(),
        level: raw.bundle.level,
        cache_bytes_max: raw.bundle.bytes_max.0,
        open_files: raw.limits.open_files,
    }
}

fn setup(config: &Config) -> Result<Setup, Failure> {
    let raw = &config.raw;
    let store = || config.store.open().map_err(Failure::io);
    let mut catalogs = Vec::new();
    for _ in 0..raw.answers.threads {
        catalogs.push((config.catalog.open().map_err(Failure::io)?, store()?));
    }
    let stores = (0..raw.bundle.threads).map(|_| store()).collect::<Result<_, _>>()?;
    Ok(Setup {
        catalogs,
        look_max: raw.answers.queue_max,
        stores,
        make_max: raw.bundle.queue_max,
        local: config.store.folder().is_some(),
        dir: raw.bundle.dir.clone(),
        level: raw.bundle.level,
        free_min: raw.bundle.free_min.0,
    })
}

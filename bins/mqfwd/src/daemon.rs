//! The loop: signals, timers, the control socket, and the lanes between two reloads.
//!
//! Owns: the poll and the phases of a stop. A reload opens everything anew with the new configuration, which costs
//! nothing since all that matters is on disk. Never: moves a message (the lanes do).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::cli::Failure;
use edge::ctl::Ctl;
use edge::net::Resolver;
use edge::notify::Notifier;
use edge::signal::{Signal, Signals};
use edge::timer::{Timers, wait};
use mio::{Events, Interest, Poll, Token, Waker};

use crate::config::Config;
use crate::core::Now;
use crate::lane::{self, Lane};
use crate::status;

const SIGNALS: Token = Token(0);
const WAKER: Token = Token(1);
/// The ingest port of lane n listens on `PORTS + n`.
const PORTS: usize = 2;

/// How soon after a change `systemctl status` shows it.
const STATUS_DELAY: Duration = Duration::from_secs(1);
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Watchdog,
    Status,
    Stop,
}

/// `Running -> Draining -> Stopping -> Done`, on TERM, INT or a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Nothing more is received; the last acknowledgements are waited for.
    Draining,
    /// The connections say goodbye.
    Stopping,
    Done,
}

/// All that runs between two reloads.
pub struct Daemon<'a> {
    signals: &'a mut Signals,
    notifier: &'a mut Notifier,
    poll: Poll,
    ctl: Ctl,
    lanes: Vec<Lane>,
    timers: Timers<Timer>,
    drain: Duration,
    phase: Phase,
    reload: Option<Config>,
}

impl<'a> Daemon<'a> {
    /// Opens everything, and tells systemd that it is ready.
    ///
    /// # Errors
    /// What can't be opened, with its exit code.
    pub fn open(
        config: Config,
        signals: &'a mut Signals,
        notifier: &'a mut Notifier,
    ) -> Result<Self, Failure> {
        let poll = Poll::new().map_err(Failure::os)?;
        let registry = poll.registry();
        registry.register(signals, SIGNALS, Interest::READABLE).map_err(Failure::os)?;
        let waker = Arc::new(Waker::new(registry, WAKER).map_err(Failure::os)?);
        let resolver = Resolver::new(Arc::clone(&waker)).map_err(Failure::os)?;
        edge::fs::create_dir_durably(&config.raw.state_dir).map_err(Failure::io)?;
        let hop = format!("{}/{}", config.device.id, lane::identity(&config.raw.state_dir.join("hop"))?);
        let mut lanes = Vec::new();
        for (n, lane) in config.lanes.into_iter().enumerate() {
            lanes.push(Lane::open(lane, &config.device.id, &hop, Token(PORTS + n), &resolver, &waker)?);
        }
        let ctl = Ctl::bind(&config.raw.ctl_socket, registry).map_err(Failure::os)?;
        let now = Instant::now();
        for lane in &mut lanes {
            lane.start(registry, now)?;
        }
        let mut timers = Timers::new();
        timers.set_or_cancel(Timer::Watchdog, notifier.alive(now));
        timers.set(Timer::Status, now + STATUS_DELAY);
        notifier.status(&status::line(&lanes));
        notifier.ready();
        Ok(Daemon {
            signals,
            notifier,
            poll,
            ctl,
            lanes,
            timers,
            drain: config.drain,
            phase: Phase::Running,
            reload: None,
        })
    }

    /// Runs until it is told to stop (`None`) or to go on with another configuration.
    pub fn serve(mut self, path: &Path) -> Result<Option<Config>, Failure> {
        let mut events = Events::with_capacity(256);
        while self.phase != Phase::Done {
            let deadlines = self.lanes.iter().map(Lane::deadline);
            let deadlines = deadlines.chain([self.timers.deadline(), self.ctl.deadline()]);
            wait(&mut self.poll, &mut events, deadlines).map_err(Failure::os)?;
            let now = clock();
            for event in &events {
                self.dispatch(event, path, now.mono)?;
            }
            if !events.is_empty() && !self.timers.is_set(&Timer::Status) {
                self.timers.set(Timer::Status, now.mono + STATUS_DELAY);
            }
            if self.ctl.deadline().is_some_and(|at| at <= now.mono) {
                self.ctl
                    .timer(self.poll.registry(), now.mono, &mut |page: &str| status::page(page, &self.lanes));
            }
            while let Some(timer) = self.timers.pop(now.mono) {
                self.timer(timer, now.mono);
            }
            for lane in &mut self.lanes {
                lane.turn(self.poll.registry(), now)?;
            }
            self.advance(now.mono);
        }
        let _ = self.poll.registry().deregister(self.signals);
        for lane in self.lanes {
            lane.close()?;
        }
        Ok(self.reload)
    }

    fn dispatch(&mut self, event: &mio::event::Event, path: &Path, now: Instant) -> Result<(), Failure> {
        let registry = self.poll.registry();
        match event.token() {
            SIGNALS => {
                while let Some(signal) = self.signals.next_signal() {
                    self.signal(signal, path, now)?;
                }
            }
            WAKER => self.lanes.iter_mut().for_each(|lane| lane.woken(registry, now)),
            token if Ctl::owns(token) => {
                self.ctl.ready(registry, token, now, &mut |page: &str| status::page(page, &self.lanes));
            }
            // A token that nobody owns any more belongs to a connection that just ended.
            _ => drop(self.lanes.iter_mut().any(|lane| lane.ready(registry, event, now))),
        }
        Ok(())
    }

    fn signal(&mut self, signal: Signal, path: &Path, now: Instant) -> Result<(), Failure> {
        match signal {
            Signal::Hup if self.phase == Phase::Running => {
                self.reload = self.notifier.reload(path, Config::load(path));
                if self.reload.is_some() {
                    self.begin_drain(now);
                }
            }
            Signal::Hup | Signal::Child => {}
            Signal::Term | Signal::Int if self.phase == Phase::Running => {
                log::info!("stopping");
                self.notifier.stopping();
                self.begin_drain(now);
            }
            Signal::Term | Signal::Int => {
                // A stop ends a reload, and a second stop does not wait any longer.
                self.reload = None;
                self.notifier.stopping();
                self.timers.set(Timer::Stop, now);
            }
        }
        Ok(())
    }

    fn begin_drain(&mut self, now: Instant) {
        self.phase = Phase::Draining;
        self.lanes.iter_mut().for_each(Lane::drain);
        self.timers.set(Timer::Stop, now + self.drain);
    }

    fn timer(&mut self, timer: Timer, now: Instant) {
        match timer {
            Timer::Watchdog => self.timers.set_or_cancel(Timer::Watchdog, self.notifier.alive(now)),
            Timer::Status => self.notifier.status(&status::line(&self.lanes)),
            Timer::Stop => match self.phase {
                Phase::Draining => self.say_goodbye(now),
                _ => self.phase = Phase::Done,
            },
        }
    }

    fn say_goodbye(&mut self, now: Instant) {
        self.phase = Phase::Stopping;
        self.timers.set(Timer::Stop, now + GOODBYE);
        for lane in &mut self.lanes {
            lane.stop(self.poll.registry(), now);
        }
    }

    /// Goes to the next phase of the stop when this one is done.
    fn advance(&mut self, now: Instant) {
        match self.phase {
            Phase::Draining if self.lanes.iter().all(Lane::is_drained) => self.say_goodbye(now),
            Phase::Stopping if self.lanes.iter().all(Lane::is_stopped) => self.phase = Phase::Done,
            _ => {}
        }
    }
}

fn clock() -> Now {
    Now { mono: Instant::now(), unix_ms: edge::clock::unix_ms() }
}

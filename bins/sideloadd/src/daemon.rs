//! The running daemon: everything it has open, and its loop.
//!
//! A reload (SIGHUP) takes in new keys, pins, entry points, rules and connection limits and leaves the listener, the
//! application and whoever is still pinned alone. In production (`enable-sideloading = false`) there is no listener, no
//! store and no disk thread: only the application.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::cli::Failure;
use edge::ctl::{Ctl, Reply};
use edge::notify::Notifier;
use edge::signal::{Signal, Signals};
use edge::timer::{Timers, wait};
use mio::event::Event;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::config::Config;
use crate::core::{Input, State, Ticket};
use crate::jobs::{self, Bounds, Disk, Job};
use crate::logs::{Position, Ring};
use crate::processes;
use crate::service::{Exchange, Hub};
use crate::status;
use crate::store::{CommitInfo, Store};
use crate::supervisor::Supervisor;
use edge::http::conns::Conns;

const SIGNALS: Token = Token(0);
const WAKER: Token = Token(1);
/// For whom the daemon itself asks.
const OURSELVES: Token = Token(2);

const STATUS_EVERY: Duration = Duration::from_secs(1);
const CERTIFICATES_EVERY: Duration = Duration::from_secs(86_400);
/// A silent log stream gets an empty line so often, by which both ends notice that the other is gone.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// After the application's own time to stop, how long a stop may take.
const STOP_GRACE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The line of `systemctl status` is due.
    Status,
    /// Tell systemd that we live.
    Watchdog,
    /// Look at the certificates' ends.
    Certificates,
    /// Followers of a silent log get an empty line.
    Keepalive,
    /// Nobody needed us for long enough.
    Idle,
    /// The stop has lasted long enough.
    Stop,
}

/// Runs until a signal says otherwise, or until nobody needs it.
///
/// # Errors
/// What ended it, with its exit code.
pub fn run(config: Config, path: &Path) -> Result<(), Failure> {
    let mut signals = Signals::with_child().map_err(Failure::os)?;
    processes::adopt_orphans().map_err(Failure::os)?;
    for warning in processes::warnings() {
        log::warn!("{warning}");
    }
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
    /// `None` in production, and while stopping.
    conns: Option<Conns<Hub>>,
    hub: Hub,
    timers: Timers<Timer>,
    /// The listening sockets are systemd's.
    activated: bool,
    /// Up to where the followers' connections were looked at.
    fed: Position,
    /// What the status line was made of.
    shown: Option<(State, Option<u32>, u64, usize)>,
    expiring: Vec<String>,
    stopping: bool,
    ended: bool,
}

impl Daemon {
    fn open(config: Config, path: &Path, signals: &mut Signals) -> Result<Daemon, Failure> {
        let poll = Poll::new().map_err(Failure::os)?;
        let registry = poll.registry();
        registry.register(signals, SIGNALS, Interest::READABLE).map_err(Failure::os)?;
        let ctl = Ctl::bind(&config.raw.ctl_socket, registry).map_err(Failure::os)?;
        let inherited = edge::activation::listeners().map_err(Failure::os)?;
        let activated = !inherited.is_empty();
        let (mut conns, mut disk, mut history) = (None, None, Vec::new());
        match &config.secured {
            Some(secured) => {
                let listeners = if activated { inherited } else { vec![bind(&config.raw.listen)?] };
                for address in listeners.iter().filter_map(|listener| listener.local_addr().ok()) {
                    log::info!("listening on {address}{}", if activated { ", from systemd" } else { "" });
                }
                let tls = secured.tls.clone();
                conns = Some(Conns::new(listeners, Some(tls), config.caps, registry).map_err(Failure::os)?);
                let waker = Arc::new(Waker::new(registry, WAKER).map_err(Failure::os)?);
                let (thread, commits) = open_store(&config, waker)?;
                (disk, history) = (Some(thread), commits);
            }
            None => {
                log::info!("enable-sideloading = false: not listening, nothing sideloaded is run");
                if activated {
                    log::warn!(
                        "systemd listens for us all the same: systemctl disable --now sideloadd.socket"
                    );
                }
            }
        }
        let ring = Ring::new(config.raw.logs.bytes_max.as_usize(), edge::clock::unix_ms());
        let fed = ring.end();
        let registry = registry.try_clone().map_err(Failure::os)?;
        let supervisor =
            Supervisor::new(config.launcher(), config.policy, ring, config.raw.logs.journal, registry);
        let mut hub = Hub::new(disk, supervisor, history, facts(&config));
        hub.collect_max = config.manifest.bytes_max;
        Ok(Daemon {
            poll,
            path: path.to_owned(),
            config,
            ctl,
            conns,
            hub,
            timers: Timers::new(),
            activated,
            fed,
            shown: None,
            expiring: Vec::new(),
            stopping: false,
            ended: false,
        })
    }

    fn run(&mut self, signals: &mut Signals, notifier: &mut Notifier) -> Result<(), Failure> {
        let mut events = Events::with_capacity(256);
        let now = Instant::now();
        self.timers.set_or_cancel(Timer::Watchdog, notifier.alive(now));
        self.timers.set(Timer::Certificates, now);
        if self.config.raw.run_app_immediately {
            self.hub.supervisor.handle(Input::Run(Ticket(OURSELVES.0 as u64)), now);
        }
        loop {
            let now = Instant::now();
            self.settle(now);
            self.observe(now);
            if self.ended {
                break;
            }
            let deadlines = [
                self.timers.deadline(),
                self.conns.as_ref().and_then(|conns| conns.deadline(now)),
                self.hub.supervisor.deadline(now),
                self.ctl.deadline(),
            ];
            wait(&mut self.poll, &mut events, deadlines).map_err(Failure::os)?;
            let now = Instant::now();
            for event in &events {
                self.event(event, signals, notifier, now);
            }
            self.deadlines(notifier, now);
        }
        self.close();
        Ok(())
    }

    fn event(&mut self, event: &Event, signals: &mut Signals, notifier: &mut Notifier, now: Instant) {
        match event.token() {
            SIGNALS => {
                while let Some(signal) = signals.next_signal() {
                    match signal {
                        Signal::Child => self.hub.supervisor.child(now),
                        Signal::Hup => self.reload(notifier, now),
                        Signal::Term | Signal::Int => self.stop(notifier, now),
                    }
                }
            }
            // What the disk thread has done is looked at in every turn.
            WAKER => {}
            token if Ctl::owns(token) => self.serve(Some(token), now),
            token if self.hub.supervisor.owns(token) => self.hub.supervisor.ready(token),
            token => {
                if let Some(conns) = self.conns.as_mut().filter(|conns| conns.owns(token)) {
                    conns.ready(event, self.poll.registry(), &mut self.hub, now);
                }
            }
        }
    }

    /// Hands on what the disk thread, the application and its log have for the connections.
    fn settle(&mut self, now: Instant) {
        loop {
            let mut moved = false;
            while let Some(done) = self.hub.next_done() {
                moved = true;
                let to = done.to;
                if to == OURSELVES {
                    self.hub.rolled_back(done, now);
                    continue;
                }
                let client = self.conns.as_mut().and_then(|conns| conns.client(to));
                self.hub.done(done, client, now);
                self.pump(to, now);
            }
            while let Some((Ticket(ticket), reply)) = self.hub.supervisor.next_answer() {
                moved = true;
                let token = Token(usize::try_from(ticket).unwrap_or(usize::MAX));
                if let Some(client) = self.conns.as_mut().and_then(|conns| conns.client(token)) {
                    self.hub.app_answered(client, &reply, now);
                    self.pump(token, now);
                }
            }
            if self.hub.supervisor.take_rollback() {
                if self.hub.disk.is_some() {
                    self.hub.send(OURSELVES, Job::Rollback { to: None, restart: false });
                } else {
                    let why = "there are no commits in production".to_owned();
                    self.hub.supervisor.handle(Input::RolledBack(Err(why)), now);
                    moved = true;
                }
            }
            let end = self.hub.supervisor.ring().end();
            if end != self.fed {
                self.fed = end;
                for token in self.hub.followers.clone() {
                    self.pump(token, now);
                }
            }
            if !moved {
                return;
            }
        }
    }

    fn pump(&mut self, token: Token, now: Instant) {
        if let Some(conns) = &mut self.conns {
            conns.pump(token, &mut self.hub, now);
        }
    }

    /// Notes what follows from where everything is now.
    fn observe(&mut self, now: Instant) {
        let connections = self.conns.as_ref().map_or(0, Conns::count);
        let core = self.hub.supervisor.core();
        if self.stopping && core.is_closed() {
            self.ended = true;
        }
        let shown = Some((core.state(), core.pid(), self.hub.commit(), connections));
        if shown != self.shown && !self.timers.is_set(&Timer::Status) {
            self.timers
                .set(Timer::Status, now + if self.shown.is_none() { Duration::ZERO } else { STATUS_EVERY });
        }
        let idle_exit_s = self.config.raw.idle_exit_s;
        let idle = self.activated && idle_exit_s > 0 && connections == 0 && core.state() == State::Stopped;
        if !idle {
            self.timers.cancel(&Timer::Idle);
        } else if !self.timers.is_set(&Timer::Idle) {
            self.timers.set(Timer::Idle, now + Duration::from_secs(idle_exit_s));
        }
        if self.hub.followers.is_empty() {
            self.timers.cancel(&Timer::Keepalive);
        } else if !self.timers.is_set(&Timer::Keepalive) {
            self.timers.set(Timer::Keepalive, now + KEEPALIVE);
        }
    }

    fn deadlines(&mut self, notifier: &mut Notifier, now: Instant) {
        while let Some(timer) = self.timers.pop(now) {
            match timer {
                Timer::Status => {
                    let connections = self.conns.as_ref().map_or(0, Conns::count);
                    let core = self.hub.supervisor.core();
                    self.shown = Some((core.state(), core.pid(), self.hub.commit(), connections));
                    notifier.status(&status::line(&self.hub, connections, &self.expiring));
                }
                Timer::Watchdog => self.timers.set_or_cancel(Timer::Watchdog, notifier.alive(now)),
                Timer::Certificates => self.look_at_certificates(now),
                Timer::Keepalive => self.keep_alive(now),
                Timer::Idle => {
                    log::info!(
                        "nobody has needed us for {} s: ending; systemd listens",
                        self.config.raw.idle_exit_s
                    );
                    self.ended = true;
                }
                Timer::Stop => {
                    let left = self.hub.supervisor.processes().left();
                    log::error!("the application can't be stopped; left behind: {left}");
                    self.ended = true;
                }
            }
        }
        if self.hub.supervisor.deadline(now).is_some_and(|at| at <= now) {
            self.hub.supervisor.timer(now);
        }
        if let Some(conns) = &mut self.conns
            && conns.deadline(now).is_some_and(|at| at <= now)
        {
            conns.timer(self.poll.registry(), &mut self.hub, now);
        }
        if self.ctl.deadline().is_some_and(|at| at <= now) {
            self.serve(None, now);
        }
    }

    fn look_at_certificates(&mut self, now: Instant) {
        self.expiring = self.config.warnings();
        for warning in &self.expiring {
            log::warn!("{warning}");
        }
        self.shown = None;
        if self.config.secured.is_some() {
            self.timers.set(Timer::Certificates, now + CERTIFICATES_EVERY);
        }
    }

    fn keep_alive(&mut self, now: Instant) {
        for token in self.hub.followers.clone() {
            if let Some(client) = self.conns.as_mut().and_then(|conns| conns.client(token))
                && matches!(client.state, Exchange::Log(..))
                && client.http.unsent() == 0
            {
                client.http.send_chunk(b"\n", now);
                self.pump(token, now);
            }
        }
    }

    fn stop(&mut self, notifier: &mut Notifier, now: Instant) {
        if self.stopping {
            return;
        }
        log::info!("stopping");
        notifier.stopping();
        self.stopping = true;
        self.timers.set(Timer::Stop, now + self.config.policy.stop_timeout + STOP_GRACE);
        self.hub.supervisor.handle(Input::Shutdown, now);
    }

    fn reload(&mut self, notifier: &mut Notifier, now: Instant) {
        let loaded = Config::load(&self.path);
        let Some(new) = notifier.reload(&self.path, loaded) else { return };
        for key in self.config.needs_a_restart(&new) {
            log::warn!("{key} has changed: that takes a restart of sideloadd");
        }
        let (old, config) = (&self.config.raw, new);
        let mut launcher = config.launcher();
        launcher.root = old.enable_sideloading.then(|| old.root.clone());
        self.hub.supervisor.reload(launcher, config.policy, config.raw.logs.journal);
        if let (Some(conns), Some(secured)) = (&mut self.conns, &config.secured) {
            let pinned = |sum: &str| secured.is_pinned(sum);
            conns.reload(Some(secured.tls.clone()), config.caps, &pinned, &mut self.hub);
        }
        self.config = self.config.with_reloaded(config);
        let started = self.hub.facts.started;
        self.hub.facts = status::Facts { started, ..facts(&self.config) };
        self.timers.set(Timer::Certificates, now);
        notifier.ready();
    }

    fn serve(&mut self, token: Option<Token>, now: Instant) {
        let connections = self.conns.as_ref().map_or(0, Conns::count);
        let hub = &self.hub;
        let mut pages = |path: &str| match path {
            "/status" => Some(Reply::Json(status::json(hub, now))),
            "/metrics" => Some(Reply::Metrics(status::metrics(hub, connections))),
            _ => None,
        };
        self.ctl.serve(self.poll.registry(), token, now, &mut pages);
    }

    /// What was accepted is finished; the tree is whole.
    fn close(&mut self) {
        self.conns = None;
        if let Some(disk) = &mut self.hub.disk {
            disk.close();
        }
        log::info!("stopped");
    }
}

fn bind(address: &str) -> Result<std::net::TcpListener, Failure> {
    let listener = std::net::TcpListener::bind(address).and_then(|l| l.set_nonblocking(true).map(|()| l));
    listener.map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::AddrInUse {
            " (another program listens there: is sideloadd running twice, or sideloadd.socket active?)"
        } else {
            ""
        };
        Failure::os(format!("cannot listen on {address}: {error}{hint}"))
    })
}

fn open_store(config: &Config, waker: Arc<Waker>) -> Result<(Disk, Vec<CommitInfo>), Failure> {
    let (store, recovery) = Store::open(config.store.clone(), jobs::now()).map_err(Failure::io)?;
    if let Some(commit) = recovery.finished {
        log::warn!("commit {commit} had been interrupted; it is in place now");
    }
    for note in &recovery.notes {
        log::warn!("{note}");
    }
    let history = store.history().to_vec();
    let disk = Disk::start(store, Bounds { manifest: config.manifest }, waker).map_err(Failure::os)?;
    Ok((disk, history))
}

fn facts(config: &Config) -> status::Facts {
    let secured = config.secured.as_ref();
    status::Facts {
        device: config.device.clone(),
        started: Instant::now(),
        root: config.raw.root.clone(),
        server_not_after: secured.and_then(|s| s.server.first()).map(|facts| facts.not_after),
        client_not_after: secured
            .map(|s| s.clients.iter().map(|facts| facts.not_after).collect())
            .unwrap_or_default(),
    }
}

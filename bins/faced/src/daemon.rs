//! The program: `--check`, start-up, the loop, reload, drain, stop.
//!
//! Owns: the poll and everything that outlives a configuration: signals, timers, control socket, the link to the
//! broker. One thread runs it; detectors and sources have theirs (see `session`).
//! Never: blocks on a camera, a detector or the broker.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::cli::{self, Failure, Program};
use edge::ctl::{Ctl, Reply};
use edge::net::Resolver;
use edge::notify::Notifier;
use edge::signal::{Signal, Signals};
use edge::timer::{Timers, wait};
use mio::event::Event;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::cameras::Phase;
use crate::config::Config;
use crate::detect::Detector;
use crate::link::Link;
use crate::session::Session;
use crate::source::spec::SourceSpec;
use crate::source::{gst, images};
use crate::status;

const SIGNALS: Token = Token(0);
const WAKER: Token = Token(1);
/// Results taken before the other sources of the loop get their turn.
const BUDGET: usize = 32;
const TICK: Duration = Duration::from_secs(1);
/// How long a reload waits for the old cameras, and a stop for the broker's goodbye.
const GRACE: Duration = Duration::from_secs(3);

/// The program.
#[derive(Debug)]
pub struct Faced;

impl cli::Daemon for Faced {
    type Config = Config;
    const PROGRAM: Program = Program {
        name: "faced",
        about: "finds faces in camera pictures and publishes one good crop of each over MQTT",
        version: env!("CARGO_PKG_VERSION"),
        more_help: "Environment: GST_REGISTRY (where GStreamer keeps what it knows of its plug-ins; default in cache-dir).",
    };

    fn load(path: &Path) -> Result<Config, Failure> {
        Ok(Config::load(path)?)
    }

    fn print(config: &Config) -> String {
        edge::config::to_toml(&config.raw)
    }

    fn check(config: &Config) -> Result<Vec<String>, Failure> {
        keep_gst_registry(config);
        check(config)
    }

    fn run(config: Config, path: &Path) -> Result<(), Failure> {
        keep_gst_registry(&config);
        Running::new(config, path)?.run()
    }
}

fn keep_gst_registry(config: &Config) {
    if config.needs_gstreamer() {
        cli::keep_gst_registry(&config.raw.cache_dir);
    }
}

/// Finds what can be found without running: models, files, folders, pipelines. A camera may be unplugged: that is a
/// warning.
fn check(config: &Config) -> Result<Vec<String>, Failure> {
    Detector::new(&config.detector).map_err(Failure::config)?;
    let mut warnings = Vec::new();
    for camera in &config.cameras {
        let warn = |what: String| format!("camera {}: {what}", camera.name);
        let fail = |what: String| Failure::config(format!("camera {}: {what}", camera.name));
        match &camera.source {
            SourceSpec::V4l(path) => match std::fs::metadata(path) {
                Ok(meta) => {
                    use std::os::unix::fs::FileTypeExt as _;
                    if !meta.file_type().is_char_device() {
                        return Err(fail(format!("{} is no device node", path.display())));
                    }
                }
                Err(error) => {
                    warnings.push(warn(format!("{}: {error}; it is waited for", path.display())));
                }
            },
            SourceSpec::File(path) => {
                std::fs::File::open(path)
                    .map_err(|e| fail(format!("cannot read {}: {e}", path.display())))?;
            }
            SourceSpec::Images(folder) => {
                images::list(folder).map_err(fail)?;
            }
            SourceSpec::Rtsp(_) | SourceSpec::Gst(_) => {}
        }
        if camera.source.needs_gstreamer() {
            gst::build(camera).map_err(fail)?;
        }
    }
    Ok(warnings)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Tick,
    Retry(usize),
    Watchdog,
    Deadline,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    Running,
    /// The cameras stop; then a new session begins.
    Reloading,
    /// The cameras stop, or have ended by themselves; then the queue drains.
    Draining,
    /// The connection is being closed.
    Closing,
    Over,
}

struct Running {
    poll: Poll,
    waker: Arc<Waker>,
    signals: Signals,
    timers: Timers<Timer>,
    ctl: Ctl,
    ctl_path: PathBuf,
    notifier: Notifier,
    resolver: Resolver,
    rng: fastrand::Rng,
    link: Link,
    session: Session,
    next: Option<Box<Config>>,
    life: Life,
    path: PathBuf,
    begun: Instant,
    told: Option<Instant>,
}

impl Running {
    fn new(config: Config, path: &Path) -> Result<Running, Failure> {
        let now = Instant::now();
        let mut signals = Signals::new().map_err(Failure::os)?;
        let poll = Poll::new().map_err(Failure::os)?;
        let registry = poll.registry();
        registry.register(&mut signals, SIGNALS, Interest::READABLE).map_err(Failure::os)?;
        let waker = Arc::new(Waker::new(registry, WAKER).map_err(Failure::os)?);
        let ctl_path = config.raw.ctl_socket.clone();
        let ctl = Ctl::bind(&ctl_path, registry).map_err(Failure::os)?;
        let resolver = Resolver::new(Arc::clone(&waker)).map_err(Failure::os)?;
        let mut rng = fastrand::Rng::new();
        let session = Session::new(&config, &waker, now).map_err(Failure::config)?;
        let link = Link::new(&config, &resolver, &mut rng, now);
        let notifier = Notifier::from_env();
        Ok(Running {
            timers: Timers::new(),
            next: None,
            life: Life::Running,
            path: path.to_owned(),
            begun: now,
            told: None,
            poll,
            waker,
            signals,
            ctl,
            ctl_path,
            notifier,
            resolver,
            rng,
            link,
            session,
        })
    }

    fn run(mut self) -> Result<(), Failure> {
        let mut now = Instant::now();
        self.session.start(now);
        self.timers.set_or_cancel(Timer::Watchdog, self.notifier.alive(now));
        self.notifier.ready();
        let mut events = Events::with_capacity(64);
        let mut more = false;
        while self.life != Life::Over {
            let at_once = more.then_some(now);
            let deadlines = [self.timers.deadline(), self.link.deadline(), self.ctl.deadline(), at_once];
            wait(&mut self.poll, &mut events, deadlines).map_err(Failure::os)?;
            now = Instant::now();
            for event in &events {
                self.event(event, now);
            }
            more = self.turn(now);
        }
        self.report();
        let failed = self.session.shells.iter().any(|s| s.phase == Phase::Stopped && !s.why.is_empty());
        let once = self.session.config.raw.exit_when_done;
        self.session.close();
        match failed && once {
            true => {
                Err(Failure::new(cli::EX_UNAVAILABLE, "a camera could not be read to its end (see above)"))
            }
            false => Ok(()),
        }
    }

    fn event(&mut self, event: &Event, now: Instant) {
        let registry = self.poll.registry();
        match event.token() {
            SIGNALS => {
                while let Some(signal) = self.signals.next_signal() {
                    self.signal(signal, now);
                }
            }
            WAKER => self.link.resolved(registry, now),
            token if Ctl::owns(token) => {
                let (session, link, begun) = (&self.session, &self.link, self.begun);
                self.ctl.ready(registry, token, now, &mut |path: &str| page(path, session, link, begun, now));
            }
            token if self.link.owns(token) => self.link.ready(registry, event, now),
            token => {
                for shell in &mut self.session.shells {
                    if shell.ready(registry, token, now) {
                        break;
                    }
                }
            }
        }
    }

    fn signal(&mut self, signal: Signal, now: Instant) {
        match (signal, self.life) {
            (Signal::Hup, Life::Running) => self.reload(now),
            (Signal::Hup | Signal::Child, _) => {}
            (Signal::Term | Signal::Int, Life::Running | Life::Reloading) => {
                log::info!("stopping: cameras first, then what is queued");
                self.drain(Some(now + self.session.config.drain));
            }
            (Signal::Term | Signal::Int, _) => {
                // Asked twice: do not wait any longer.
                self.timers.set(Timer::Deadline, now);
            }
        }
    }

    fn reload(&mut self, now: Instant) {
        let checked = Config::load(&self.path).map_err(Failure::from).and_then(|new| {
            Detector::new(&new.detector).map_err(Failure::config)?;
            Ok(new)
        });
        let Some(new) = self.notifier.reload(&self.path, checked) else { return };
        self.next = Some(Box::new(new));
        self.life = Life::Reloading;
        self.session.stop(self.poll.registry());
        self.timers.set(Timer::Deadline, now + GRACE);
    }

    fn drain(&mut self, until: Option<Instant>) {
        self.notifier.stopping();
        self.life = Life::Draining;
        self.session.stop(self.poll.registry());
        self.timers.set_or_cancel(Timer::Deadline, until);
    }

    /// Everything that is not an event of the poll. `true` when there is more to do at once.
    fn turn(&mut self, now: Instant) -> bool {
        let mut late = false;
        while let Some(timer) = self.timers.pop(now) {
            late |= timer == Timer::Deadline;
            self.timer(timer, now);
        }
        let (registry, link) = (self.poll.registry(), &mut self.link);
        let mut publish = |face, payload| link.push(face, payload, now);
        let more = self.session.turn(registry, now, &mut self.rng, BUDGET, &mut publish);
        self.link.turn(registry, now);
        if self.ctl.deadline().is_some_and(|at| at <= now) {
            let (session, link, begun) = (&self.session, &self.link, self.begun);
            self.ctl.timer(registry, now, &mut |path: &str| page(path, session, link, begun, now));
        }
        self.pace();
        self.live(late, now);
        self.schedule(now);
        more
    }

    fn timer(&mut self, timer: Timer, now: Instant) {
        match timer {
            Timer::Tick => self.session.tick(self.poll.registry(), now),
            Timer::Retry(camera) if self.life == Life::Running => self.session.retry(camera, now),
            Timer::Watchdog => self.timers.set_or_cancel(Timer::Watchdog, self.notifier.alive(now)),
            Timer::Retry(_) | Timer::Deadline => {}
        }
    }

    /// Files and folders wait while the queue is filling up; cameras can't.
    fn pace(&mut self) {
        let queue = self.link.queue();
        if queue.is_filled(0.5) {
            self.session.hold(true);
        } else if !queue.is_filled(0.25) {
            self.session.hold(false);
        }
    }

    /// The next step of the program's life, if it is time for it.
    fn live(&mut self, late: bool, now: Instant) {
        match self.life {
            Life::Running => {
                let done = self.session.shells.iter().all(crate::cameras::Shell::is_done);
                if done && self.session.config.raw.exit_when_done {
                    log::info!("all cameras have ended; what is queued is published");
                    self.drain(None);
                }
            }
            Life::Reloading if late || self.session.is_drained() => self.renew(now),
            Life::Draining => {
                let empty = self.session.is_drained() && self.link.queue().is_empty();
                if late && !empty {
                    let (waiting, flight, _) = self.link.queue().depth();
                    log::warn!("{} messages are given up: the broker did not take them", waiting + flight);
                }
                if empty || late {
                    self.life = Life::Closing;
                    self.link.stop(now);
                    self.timers.set(Timer::Deadline, now + GRACE);
                }
            }
            Life::Closing if late || self.link.is_stopped() => self.life = Life::Over,
            _ => {}
        }
    }

    /// Begins a session with the new configuration.
    fn renew(&mut self, now: Instant) {
        self.timers.cancel(&Timer::Deadline);
        self.life = Life::Running;
        let Some(config) = self.next.take() else { return };
        match Session::new(&config, &self.waker, now) {
            Ok(session) => {
                std::mem::replace(&mut self.session, session).close();
                self.link.reconfigure(&config, &self.resolver, &mut self.rng, now);
                if config.raw.ctl_socket != self.ctl_path {
                    match Ctl::bind(&config.raw.ctl_socket, self.poll.registry()) {
                        Ok(ctl) => (self.ctl, self.ctl_path) = (ctl, config.raw.ctl_socket.clone()),
                        Err(error) => {
                            log::error!("the old control socket stays: {}", edge::log::chain(&error))
                        }
                    }
                }
                log::info!("the configuration was read again");
            }
            Err(error) => log::error!("the old configuration stays: {}", edge::log::chain(&error)),
        }
        self.session.start(now);
        self.notifier.ready();
    }

    /// Sets the timers that follow from the state, and tells systemd about it.
    fn schedule(&mut self, now: Instant) {
        for (n, shell) in self.session.shells.iter().enumerate() {
            match shell.phase {
                Phase::Waiting(until) => self.timers.set(Timer::Retry(n), until.max(now)),
                _ => self.timers.cancel(&Timer::Retry(n)),
            }
        }
        let changed = self.told.is_none_or(|then| now.saturating_duration_since(then) >= TICK);
        if changed {
            self.told = Some(now);
            self.notifier.status(&status::line(&self.session, &self.link));
        }
        let wanted = self.session.is_active() || !changed;
        match wanted {
            true if self.told == Some(now) => self.timers.set(Timer::Tick, now + TICK),
            true => {}
            false => self.timers.cancel(&Timer::Tick),
        }
    }

    /// What was done, in the log and in `report-file`.
    fn report(&self) {
        let now = Instant::now();
        let report = status::json(&self.session, &self.link, self.begun, now);
        log::info!(
            "{} frames read, {} searched, {} faces in them, {} published, {} dropped; {} ms of CPU, {} KiB resident",
            report["frames"],
            report["frames_looked"],
            report["detections"],
            report["published"],
            report["dropped"],
            report["cpu_ms"],
            report["rss_max_kib"]
        );
        let path = &self.session.config.raw.report_file;
        if !path.as_os_str().is_empty()
            && let Err(error) = std::fs::write(path, format!("{report:#}\n"))
        {
            log::warn!("cannot write report-file {}: {error}", path.display());
        }
    }
}

fn page(path: &str, session: &Session, link: &Link, begun: Instant, now: Instant) -> Option<Reply> {
    match path {
        "/status" => Some(Reply::Json(status::json(session, link, begun, now))),
        "/metrics" => Some(Reply::Metrics(status::metrics(session, link, begun, now))),
        _ => None,
    }
}

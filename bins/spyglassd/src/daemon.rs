//! The loop: frames socket, pipelines' letters, outputs, control socket, signals, timers.
//!
//! Owns: the poll and everything between two reloads. A reload opens everything anew; applications connect again by
//! themselves. Never: encodes, blocks on a client.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use edge::cli::Failure;
use edge::clock::unix_ms;
use edge::ctl::Ctl;
use edge::notify::Notifier;
use edge::signal::{Signal, Signals};
use edge::timer::{Timers, wait};
use mio::event::Event;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::config::Config;
use crate::core::State;
use crate::frames::port::{self, Port};
use crate::frames::wire::Hello;
use crate::mail::{self, Mail};
use crate::outputs::Outputs;
use crate::status::View;
use crate::stream::{Producer, Step, Stream, Wanted};

const SIGNALS: Token = Token(0);
const WAKER: Token = Token(1);
const FRAMES: Token = Token(2);

/// Letters taken before the other sources of the loop get their turn.
const BUDGET: usize = 64;
/// How long pipelines may take to end before a reload goes on without them.
const SETTLE: Duration = Duration::from_secs(2);
/// Rates, stalls and `systemctl status` are looked at this often while anything is connected.
const TICK: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Tick,
    Watchdog,
    Stream(u64),
}

/// How it goes on.
enum Life {
    Running,
    Over,
    Again(Box<Config>),
}

/// All that runs between two reloads.
pub struct Daemon<'a> {
    signals: &'a mut Signals,
    notifier: &'a mut Notifier,
    config: Config,
    poll: Poll,
    ctl: Ctl,
    port: Port,
    port_events: Vec<port::Event>,
    streams: Vec<Stream>,
    outputs: Outputs,
    mail: mail::Sender,
    letters: Receiver<Mail>,
    timers: Timers<Timer>,
    next_id: u64,
    life: Life,
    begun: Instant,
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
        // Before anything else of GStreamer is called: a frame may come although there is neither RTSP nor a source.
        crate::pipeline::init().map_err(Failure::os)?;
        let poll = Poll::new().map_err(Failure::os)?;
        let registry = poll.registry();
        registry.register(signals, SIGNALS, Interest::READABLE).map_err(Failure::os)?;
        let waker = Arc::new(Waker::new(registry, WAKER).map_err(Failure::os)?);
        let (mail, letters) = mail::channel(config.raw.limits.units_waiting, waker);
        let ctl = Ctl::bind(&config.raw.ctl_socket, registry).map_err(Failure::os)?;
        let outputs = Outputs::open(&config, registry, &mail)?;
        let port = Port::bind(config.port.clone(), registry, FRAMES).map_err(Failure::os)?;
        let now = Instant::now();
        let mut daemon = Daemon {
            signals,
            notifier,
            poll,
            ctl,
            port,
            port_events: Vec::new(),
            streams: Vec::new(),
            outputs,
            mail,
            letters,
            timers: Timers::new(),
            next_id: 0,
            life: Life::Running,
            begun: now,
            config,
        };
        for stream in daemon.config.streams.clone() {
            let mut made = daemon.make(stream);
            if made.config.source.is_some() {
                made.core.set(State::Waiting, "nobody watches; the source is closed", unix_ms());
            }
            daemon.streams.push(made);
        }
        daemon.name_streams(now);
        for stream in daemon.streams.iter().filter(|s| s.config.source.is_some()) {
            daemon.outputs.announce(&stream.config.name, true);
            daemon.outputs.show(&stream.config.name);
        }
        daemon.timers.set_or_cancel(Timer::Watchdog, daemon.notifier.alive(now));
        daemon.timers.set(Timer::Tick, now + TICK);
        daemon.notifier.ready();
        Ok(daemon)
    }

    /// Runs until it is told to stop (`None`) or to go on with another configuration.
    ///
    /// # Errors
    /// The poll failed.
    pub fn serve(mut self, path: &Path) -> Result<Option<Config>, Failure> {
        let mut events = Events::with_capacity(256);
        let mut more = false;
        while matches!(self.life, Life::Running) {
            let deadlines = [
                self.timers.deadline(),
                self.ctl.deadline(),
                self.port.deadline(),
                self.outputs.deadline(Instant::now()),
                more.then(Instant::now),
            ];
            wait(&mut self.poll, &mut events, deadlines).map_err(Failure::os)?;
            let now = Instant::now();
            for event in &events {
                self.dispatch(event, path, now);
            }
            more = self.turn(now);
        }
        let _ = self.poll.registry().deregister(self.signals);
        self.streams.clear();
        self.outputs.close();
        // A camera that is let go of late would be busy for the next configuration.
        crate::pipeline::settle(SETTLE);
        Ok(match self.life {
            Life::Again(config) => Some(*config),
            _ => None,
        })
    }

    fn dispatch(&mut self, event: &Event, path: &Path, now: Instant) {
        match event.token() {
            SIGNALS => {
                while let Some(signal) = self.signals.next_signal() {
                    self.signal(signal, path);
                }
            }
            // Letters and the outputs' wishes are looked at in each turn.
            WAKER => {}
            token if Ctl::owns(token) => {
                let view = view(&self.streams, &self.outputs, &self.mail, &self.port, self.begun, now);
                self.ctl.ready(self.poll.registry(), token, now, &mut |page: &str| view.page(page));
            }
            token if self.port.owns(token) => {
                self.port.ready(self.poll.registry(), token, now, &mut self.port_events);
                self.heard(now);
            }
            token if self.outputs.owns(token) => {
                let status = self.status(now);
                self.outputs.ready(self.poll.registry(), event, now, &status);
            }
            // A token that nobody owns any more belongs to a connection that just ended.
            _ => {}
        }
    }

    fn signal(&mut self, signal: Signal, path: &Path) {
        match signal {
            Signal::Hup => {
                if let Some(config) = self.notifier.reload(path, Config::load(path)) {
                    self.life = Life::Again(Box::new(config));
                }
            }
            Signal::Term | Signal::Int => {
                log::info!("stopping");
                self.notifier.stopping();
                self.life = Life::Over;
            }
            Signal::Child => {}
        }
    }

    /// Everything that is not an event of the poll. `true` when there is more to do at once.
    fn turn(&mut self, now: Instant) -> bool {
        if self.port.has_more() {
            self.port.resume(self.poll.registry(), &mut self.port_events);
            self.heard(now);
        }
        let mut taken = 0;
        while taken < BUDGET
            && let Ok(mail) = self.letters.try_recv()
        {
            taken += 1;
            self.deliver(mail, now);
        }
        if self.outputs.deadline(now).is_some_and(|at| at <= now) {
            let status = self.status(now);
            self.outputs.timer(self.poll.registry(), now, &status);
        }
        self.outputs.flush(now);
        self.wishes(now);
        if self.ctl.deadline().is_some_and(|at| at <= now) {
            let view = view(&self.streams, &self.outputs, &self.mail, &self.port, self.begun, now);
            self.ctl.timer(self.poll.registry(), now, &mut |page: &str| view.page(page));
        }
        if self.port.deadline().is_some_and(|at| at <= now) {
            self.port.timer(self.poll.registry(), now, &mut self.port_events);
            self.heard(now);
        }
        while let Some(timer) = self.timers.pop(now) {
            self.timer(timer, now);
        }
        taken == BUDGET || self.port.has_more()
    }

    fn timer(&mut self, timer: Timer, now: Instant) {
        match timer {
            Timer::Tick => {
                for at in 0..self.streams.len() {
                    self.tick_stream(at, now);
                }
                let view = view(&self.streams, &self.outputs, &self.mail, &self.port, self.begun, now);
                let line = view.line();
                self.notifier.status(&line);
                // Nothing changes by itself while nothing is connected and nobody watches.
                if self
                    .streams
                    .iter()
                    .any(|s| s.producer.is_some() || s.wanted.units || s.wanted.jpeg.is_some())
                {
                    self.timers.set(Timer::Tick, now + TICK);
                }
            }
            Timer::Watchdog => self.timers.set_or_cancel(Timer::Watchdog, self.notifier.alive(now)),
            Timer::Stream(id) => {
                if let Some(at) = self.streams.iter().position(|s| s.id == id) {
                    self.tick_stream(at, now);
                }
            }
        }
    }

    fn tick_stream(&mut self, at: usize, now: Instant) {
        let stream = &mut self.streams[at];
        let next = stream.tick(now);
        self.timers.set_or_cancel(Timer::Stream(stream.id), next);
    }

    /// Who needs what may have changed.
    fn wishes(&mut self, now: Instant) {
        for at in 0..self.streams.len() {
            let stream = &mut self.streams[at];
            let wanted = self.outputs.wanted(&stream.config.name);
            if self.outputs.take_joined(&stream.config.name) {
                stream.core.want_key();
            }
            if wanted != stream.wanted {
                stream.wanted = wanted;
                self.tick_stream(at, now);
                self.timers.set(Timer::Tick, now);
            }
        }
    }

    fn deliver(&mut self, mail: Mail, now: Instant) {
        let Some(stream) = self.streams.iter_mut().find(|s| s.id == mail.stream) else { return };
        match stream.letter(mail.run, mail.letter, now) {
            Step::Unit(unit) => self.outputs.push(&stream.config.name, &unit, now),
            Step::Jpeg(jpeg) => self.outputs.push_jpeg(&stream.config.name, &jpeg, now),
            Step::None => {}
        }
    }

    /// What the frames socket said.
    fn heard(&mut self, now: Instant) {
        for event in std::mem::take(&mut self.port_events) {
            match event {
                port::Event::Hello(token, hello) => self.hello(token, &hello, now),
                port::Event::Frame(token, frame, layout, bytes) => {
                    let Some(stream) = self.fed_by(token) else { continue };
                    stream.frame(&frame, &layout, bytes, now);
                    if stream.producer.as_mut().is_some_and(Producer::begins) {
                        let name = stream.config.name.clone();
                        self.outputs.show(&name);
                    }
                }
                port::Event::Gone(token, why) => self.leave(token, &why, now),
            }
        }
    }

    fn fed_by(&mut self, token: Token) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|s| s.producer.is_some_and(|p| p.token == token))
    }

    /// The application of this connection feeds its stream no longer, if it did.
    fn leave(&mut self, token: Token, why: &str, now: Instant) {
        let Some(stream) = self.fed_by(token) else { return };
        stream.end(why);
        let name = stream.config.name.clone();
        self.outputs.announce(&name, false);
        self.timers.set(Timer::Tick, now);
    }

    fn hello(&mut self, token: Token, hello: &Hello, now: Instant) {
        let at = match self.place(token, &hello.name, now) {
            Ok(at) => at,
            Err(why) => {
                self.port.refuse(self.poll.registry(), token, &why);
                return self.leave(token, &why, now);
            }
        };
        if let Err(why) = self.port.grant(self.poll.registry(), token) {
            log::warn!("stream {}: an application can't be served: {why}", hello.name);
            return self.leave(token, &why, now);
        }
        let fps = (hello.fps.0 as i32, i32::try_from(hello.fps.1).unwrap_or(1).max(1));
        // Saying HELLO again for larger slots is the same session.
        match &mut self.streams[at].producer {
            Some(producer) => producer.fps = fps,
            None => self.streams[at].begin(Producer { token, fps, has_begun: false }),
        }
        self.outputs.announce(&hello.name, true);
        self.timers.set(Timer::Tick, now);
    }

    /// The stream that this client may feed.
    fn place(&mut self, token: Token, name: &str, now: Instant) -> Result<usize, String> {
        if self.fed_by(token).is_some_and(|s| s.config.name != name) {
            return Err("one connection feeds one stream".to_owned());
        }
        if let Some(at) = self.streams.iter().position(|s| s.config.name == name) {
            let stream = &self.streams[at];
            if stream.config.source.is_some() {
                return Err(format!("the stream {name} has a source of its own"));
            }
            return match stream.producer {
                Some(other) if other.token != token => {
                    Err(format!("another application feeds the stream {name}"))
                }
                _ => Ok(at),
            };
        }
        let Some(config) = self.config.stream(name) else {
            return Err(format!("no [[stream]] is named {name}, and frames.any-name is false"));
        };
        if self.streams.len() >= self.config.raw.limits.streams_max {
            let named = |s: &Stream| self.config.streams.iter().any(|c| c.name == s.config.name);
            let closed = |s: &Stream| !s.is_open() && !named(s);
            // One that somebody watches goes last, but goes: whoever stays with a page must not keep applications out.
            let idle = self.streams.iter().position(|s| closed(s) && s.wanted == Wanted::default());
            let idle = idle.or_else(|| self.streams.iter().position(closed));
            let Some(idle) = idle else { return Err("there are streams-max streams already".to_owned()) };
            let gone = self.streams.remove(idle);
            self.timers.cancel(&Timer::Stream(gone.id));
        }
        let stream = self.make(config);
        self.streams.push(stream);
        self.name_streams(now);
        Ok(self.streams.len() - 1)
    }

    fn name_streams(&mut self, now: Instant) {
        let names: Vec<String> = self.streams.iter().map(|s| s.config.name.clone()).collect();
        self.outputs.set_streams(&names, now);
    }

    fn status(&self, now: Instant) -> serde_json::Value {
        view(&self.streams, &self.outputs, &self.mail, &self.port, self.begun, now).json()
    }

    fn make(&mut self, config: crate::config::StreamConfig) -> Stream {
        self.next_id += 1;
        Stream::new(self.next_id, config, self.mail.clone())
    }
}

fn view<'a>(
    streams: &'a [Stream],
    outputs: &'a Outputs,
    mail: &mail::Sender,
    port: &Port,
    begun: Instant,
    now: Instant,
) -> View<'a> {
    View { streams, outputs, lost: mail.lost(), refused: port.refused(), begun, now }
}

//! The shell of a session: a thread with a poll of its own, and a second one for what blocks.
//!
//! A thread a stream, since a session writes to disk where that is configured, and since its connection, its retries and
//! its memory then stand apart from the frames of everybody else. PutMedia answers on the connection while we still
//! send, which a blocking client can't do; so the socket is one of `edge::net`.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use super::ask::{Asker, Target};
use super::config::Config;
use super::core::{Action, Now, Prepared, Session, State};
use super::credentials::Source;
use super::disk::Disk;
use super::link::{Event, Link};
use super::ring::{Ring, Store};
use super::status;
use crate::sink::{Shared, Sink, Wake};

const WAKE: Token = Token(0);
/// How long what is left may take at the end.
const STOP: Duration = Duration::from_millis(2_500);
/// Bytes of units that wait for the thread, at most; it takes them at once unless its disk is slow.
const INBOX_BYTES_MAX: usize = 8 << 20;
/// Bytes on their way to the socket, below which more are asked for.
const LOW: usize = 64 << 10;

/// Starts a stream on its way to the service. `stream` is the stream's name here.
///
/// # Errors
/// The system gives no thread or poll, or the folder for fragments can't be used.
pub fn start(config: Config, stream: &str) -> io::Result<Sink> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
    let shared = Shared::new(INBOX_BYTES_MAX);
    let shell = Shell::new(config, stream, poll, Arc::clone(&waker), Arc::clone(&shared))?;
    Sink::start("kvs", stream, shared, Wake::Poll(waker), move || shell.run())
}

struct Shell {
    name: String,
    stream: String,
    config: Config,
    poll: Poll,
    shared: Arc<Shared>,
    session: Session,
    link: Option<Link>,
    target: Option<Arc<Target>>,
    questions: mpsc::Sender<bool>,
    answers: mpsc::Receiver<Result<Target, String>>,
    said: Option<String>,
    stop_at: Option<Instant>,
}

impl Shell {
    fn new(
        config: Config,
        name: &str,
        poll: Poll,
        waker: Arc<Waker>,
        shared: Arc<Shared>,
    ) -> io::Result<Shell> {
        let stream = config.stream_name.clone().unwrap_or_else(|| name.to_owned());
        let mut store: Option<Box<dyn Store + Send>> = None;
        let mut left = Vec::new();
        if let Some(folder) = &config.disk_dir {
            let (disk, found) = Disk::open(folder).map_err(io::Error::other)?;
            if !found.is_empty() {
                log::info!("kvs {name}: {} fragments of the last run are still to be sent", found.len());
            }
            store = Some(Box::new(disk));
            left = found;
        }
        let ring = Ring::new(config.bounds, store, left);
        let session = Session::new(config.policy.clone(), ring, fastrand::u64(..), now());
        let (questions, inbox) = mpsc::channel::<bool>();
        let (outbox, answers) = mpsc::channel();
        let source = Source::new(config.source.clone());
        let (region, endpoint) = (config.region.clone(), config.endpoint.clone());
        let mut asker = Asker::new(region, stream.clone(), endpoint, source, config.agent_tls.clone());
        let thread: String = format!("ask-{name}").chars().take(15).collect();
        // It ends when the shell is gone: with the next answer that nobody takes.
        std::thread::Builder::new().name(thread).spawn(move || {
            for fresh in inbox {
                if outbox.send(asker.ask(fresh)).is_err() || waker.wake().is_err() {
                    return;
                }
            }
        })?;
        let name = name.to_owned();
        let (link, target, said, stop_at) = (None, None, None, None);
        Ok(Shell {
            name,
            stream,
            config,
            poll,
            shared,
            session,
            link,
            target,
            questions,
            answers,
            said,
            stop_at,
        })
    }

    fn run(mut self) {
        let mut events = Events::with_capacity(16);
        let mut again = true;
        while !self.is_over() {
            let deadlines = [
                self.session.deadline(),
                self.link.as_ref().and_then(Link::deadline),
                self.stop_at,
                again.then(Instant::now),
            ];
            let timeout = edge::timer::poll_timeout(Instant::now(), deadlines);
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                log::error!("kvs {}: can't wait for events: {error}", self.name);
                break;
            }
            for event in &events {
                if let Some(link) = &mut self.link {
                    link.ready(event);
                }
            }
            self.take();
            let now = now();
            if self.session.deadline().is_some_and(|at| at <= now.at) {
                self.session.timer(now);
            }
            again = self.turn();
            self.publish();
        }
        self.session.save();
        if let Some(link) = self.link.take() {
            link.close();
        }
        self.publish();
    }

    fn is_over(&mut self) -> bool {
        self.session.state() == State::Stopped || self.stop_at.is_some_and(|at| Instant::now() >= at)
    }

    /// Units, answers and the wish to stop.
    fn take(&mut self) {
        for unit in self.shared.inbox.take() {
            self.session.push(&unit, now());
        }
        while let Ok(answer) = self.answers.try_recv() {
            let now = now();
            let answer = answer.map(|target| {
                let left_s =
                    target.credentials.expires_s.map(|end| end - edge::clock::unix_s() - target.skew_s);
                self.target = Some(Arc::new(target));
                let left = left_s.map(|s| Duration::from_secs(u64::try_from(s).unwrap_or(0)));
                Prepared { expires: left.map(|left| now.at + left) }
            });
            self.session.prepared(answer, now);
        }
        if self.shared.is_stopping() && self.stop_at.is_none() {
            self.stop_at = Some(Instant::now() + STOP);
            self.session.stop(now());
        }
        if self.session.take_key_wanted() {
            self.shared.want_key();
        }
    }

    /// What happened on the connection, and what follows from it. `true`: there is more to do at once.
    fn turn(&mut self) -> bool {
        self.act();
        let mut more = false;
        let mut events = Vec::new();
        if let Some(link) = &mut self.link {
            more = link.turn(self.poll.registry(), Instant::now(), &mut events);
        }
        for event in events {
            self.happened(event);
        }
        self.act();
        // What the session has for the socket, until the socket takes no more.
        for _ in 0..64 {
            let Some(link) = self.link.as_mut().filter(|link| link.unsent() < LOW) else { break };
            let mut bytes = Vec::new();
            self.session.fill(&mut bytes, now());
            if bytes.is_empty() {
                break;
            }
            link.send(&bytes);
            let mut events = Vec::new();
            more |= link.turn(self.poll.registry(), Instant::now(), &mut events);
            for event in events {
                self.happened(event);
            }
            self.act();
        }
        self.act();
        more
    }

    fn happened(&mut self, event: Event) {
        let now = now();
        match event {
            Event::Opened => {
                if let Some(start_ms) = self.session.opened(now)
                    && let Some(link) = &mut self.link
                {
                    link.head(&self.config.region, &self.stream, start_ms, self.config.policy.relative);
                }
            }
            Event::Accepted => {
                log::info!("kvs {}: streaming to {:?}", self.name, self.stream);
                self.said = None;
                self.session.answered(Ok(()), false, now);
            }
            Event::Refused(fault) => self.session.answered(Err(fault.why), fault.credentials, now),
            Event::Ack(ack) => self.session.ack(&ack, now),
            Event::Closed(why) => self.session.closed(&why, now),
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.session.action() {
            match action {
                Action::Ask { fresh } => {
                    if self.questions.send(fresh).is_err() {
                        self.session.prepared(Err("the asking thread has ended".to_owned()), now());
                    }
                }
                Action::Open => match &self.target {
                    Some(target) => self.link = Some(Link::new(Arc::clone(target), self.config.tls.clone())),
                    None => self.session.closed("there is no address", now()),
                },
                Action::Close => {
                    if let Some(link) = self.link.take() {
                        link.close();
                    }
                }
                Action::Warn(text) => log::warn!("kvs {}: {text}", self.name),
            }
        }
        // Each reason once, however often it is met.
        if let Some(why) = self.session.why().filter(|_| matches!(self.session.state(), State::Backoff(_)))
            && self.said.as_deref() != Some(why)
        {
            log::warn!("kvs {}: {why}; tried again", self.name);
            self.said = Some(why.to_owned());
        }
    }

    fn publish(&self) {
        let target = self.link.as_ref().map(Link::target).or(self.target.as_deref());
        let expires_s = target.and_then(|target| target.credentials.expires_s);
        let dropped = self.shared.inbox.dropped();
        self.shared.publish(status::of(&self.session, &self.stream, expires_s, dropped));
    }
}

fn now() -> Now {
    Now { at: Instant::now(), unix_ms: edge::clock::unix_ms() }
}

//! The application as the daemon drives it: what [`Core`] decides is done here, what happens is told to it, and what
//! the application writes goes to the log ring and the journal.
//!
//! Owns: the core, the launcher, the running application's pipes, the ring, answers on their way to the clients.
//! Invariant: what the first process wrote is in the ring before its end is noted. Never: blocks.

use std::time::Instant;

use edge::net::Tokens;
use mio::unix::pipe::Receiver;
use mio::{Interest, Registry, Token};
use serde_json::{Value, json};

use crate::app::{App, Launcher};
use crate::core::{Core, Input, Output, Policy, Reply, State, Ticket};
use crate::logs::{self, Position, Ring, Stream};
use crate::processes::{self, Processes};
use crate::routes::{Named, Refusal};

/// Bytes read from a pipe before others get their turn.
const BUDGET: usize = 256 << 10;

#[derive(Debug)]
struct Pipe {
    token: Token,
    stream: Stream,
    receiver: Option<Receiver>,
}

/// See the module's text.
#[derive(Debug)]
pub struct Supervisor {
    core: Core,
    launcher: Launcher,
    ring: Ring,
    registry: Registry,
    pipes: Vec<Pipe>,
    processes: Processes,
    rng: fastrand::Rng,
    /// Output goes to our stderr as well.
    journal: bool,
    answers: Vec<(Ticket, Reply)>,
    rollback: bool,
    entry: String,
    since_ms: u64,
    started_at: Position,
    /// A pipe has more than one turn allows.
    more: bool,
}

impl Supervisor {
    /// Nothing runs.
    pub fn new(
        launcher: Launcher,
        policy: Policy,
        ring: Ring,
        journal: bool,
        registry: Registry,
    ) -> Supervisor {
        let started_at = ring.end();
        Supervisor {
            core: Core::new(policy),
            launcher,
            ring,
            registry,
            pipes: Vec::new(),
            processes: Processes::default(),
            rng: fastrand::Rng::new(),
            journal,
            answers: Vec::new(),
            rollback: false,
            entry: String::new(),
            since_ms: edge::clock::unix_ms(),
            started_at,
            more: false,
        }
    }

    /// Another place to look and other rules, from the next start on.
    pub fn reload(&mut self, launcher: Launcher, policy: Policy, journal: bool) {
        self.launcher = launcher;
        self.core.set_policy(policy);
        self.journal = journal;
    }

    /// The log.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The application's processes, to look at.
    pub fn processes(&self) -> &Processes {
        &self.processes
    }

    /// The state machine, to look at.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// When [`Supervisor::timer`] is to be called.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.more { Some(now) } else { self.core.deadline() }
    }

    /// Who waits no more.
    pub fn next_answer(&mut self) -> Option<(Ticket, Reply)> {
        if self.answers.is_empty() { None } else { Some(self.answers.remove(0)) }
    }

    /// Whether the commit before the one in force is to be restored; asked once.
    pub fn take_rollback(&mut self) -> bool {
        std::mem::take(&mut self.rollback)
    }

    /// Tells the core, and does what it says.
    pub fn handle(&mut self, input: Input, now: Instant) {
        let before = self.core.state();
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            for output in self.core.handle(input, now, &mut self.rng) {
                match output {
                    Output::Start => inputs.push(self.start()),
                    Output::Terminate => self.processes.terminate(),
                    Output::KillAll => {
                        self.processes.kill();
                        self.look_for_the_end(&mut inputs);
                    }
                    Output::GiveUp => {
                        self.drain();
                        self.close_pipes();
                        inputs.push(Input::Left(self.processes.left()));
                    }
                    Output::Rollback => self.rollback = true,
                    Output::Answer(ticket, reply) => self.answers.push((ticket, reply)),
                    Output::Note(text) => {
                        self.ring.note(&text, edge::clock::unix_ms());
                        log::info!("{text}");
                    }
                }
            }
        }
        if self.core.state() != before {
            self.since_ms = edge::clock::unix_ms();
        }
    }

    fn start(&mut self) -> Input {
        let entry = match self.launcher.find() {
            Ok(entry) => entry,
            Err(error) => return Input::StartFailed(404, error.to_string()),
        };
        let name = entry.path.display().to_string();
        self.started_at = self.ring.end();
        match App::start(&entry) {
            Ok(app) => {
                let text = format!("started {name} (pid {})", app.pid);
                log::info!("{text}");
                self.ring.note(&text, edge::clock::unix_ms());
                self.entry = name;
                self.processes = Processes::of(app.pid);
                self.watch(app.stdout, Stream::Stdout);
                self.watch(app.stderr, Stream::Stderr);
                Input::Started(app.pid)
            }
            Err(error) => {
                let argv = entry.argv.first().map(|program| program.to_string_lossy().into_owned());
                let program = argv.unwrap_or_default();
                Input::StartFailed(500, format!("can't start {name} with {program}: {error}"))
            }
        }
    }

    fn watch(&mut self, mut receiver: Receiver, stream: Stream) {
        let token = Tokens::next();
        if let Err(error) = self.registry.register(&mut receiver, token, Interest::READABLE) {
            log::error!("can't read what the application writes: {error}");
            return;
        }
        self.pipes.push(Pipe { token, stream, receiver: Some(receiver) });
    }

    /// A signal for the running application.
    ///
    /// # Errors
    /// 409: it does not run.
    pub fn signal(&mut self, named: Named) -> Result<(), Refusal> {
        let (State::Running, Some(pid)) = (self.core.state(), self.core.pid()) else {
            return Err(Refusal::new(409, "the application is not running: there is nothing to signal"));
        };
        App::signal_group(pid, named.signal)
            .map_err(|error| Refusal::new(409, format!("can't signal it: {error}")))?;
        let text = format!("sent SIG{} to the application", named.name);
        self.ring.note(&text, edge::clock::unix_ms());
        Ok(())
    }

    /// A child has ended (SIGCHLD).
    pub fn child(&mut self, now: Instant) {
        for (pid, exit) in processes::reap() {
            if Some(pid) == self.core.pid() {
                self.drain();
                self.handle(Input::Exited(exit), now);
            }
        }
        let mut inputs = Vec::new();
        self.look_for_the_end(&mut inputs);
        for input in inputs {
            self.handle(input, now);
        }
    }

    /// If no process is left, that is told.
    fn look_for_the_end(&mut self, inputs: &mut Vec<Input>) {
        if self.core.state() == State::Stopping && self.core.pid().is_none() && !processes::any_descendants()
        {
            self.drain();
            self.close_pipes();
            inputs.push(Input::Gone);
        }
    }

    /// The deadline has passed, or a pipe had more.
    pub fn timer(&mut self, now: Instant) {
        if std::mem::take(&mut self.more) {
            for n in 0..self.pipes.len() {
                self.more |= self.read(n, BUDGET);
            }
        }
        if self.core.deadline().is_some_and(|at| at <= now) {
            self.handle(Input::Timer, now);
        }
    }

    /// Whether a token is one of the pipes'.
    pub fn owns(&self, token: Token) -> bool {
        self.pipes.iter().any(|pipe| pipe.token == token)
    }

    /// A pipe is readable.
    pub fn ready(&mut self, token: Token) {
        if let Some(n) = self.pipes.iter().position(|pipe| pipe.token == token) {
            self.more |= self.read(n, BUDGET);
        }
    }

    /// What is in the pipes now; a process that writes for ever can't hold us here.
    fn drain(&mut self) {
        for n in 0..self.pipes.len() {
            self.read(n, 4 * BUDGET);
        }
    }

    fn close_pipes(&mut self) {
        let (ring, journal, now_ms) = (&mut self.ring, self.journal, edge::clock::unix_ms());
        for pipe in self.pipes.drain(..) {
            ring.close(pipe.stream, now_ms, &mut |line| to_journal(journal, pipe.stream, line));
        }
        self.more = false;
    }

    /// `true`: there may be more.
    fn read(&mut self, n: usize, budget: usize) -> bool {
        let Some(pipe) = self.pipes.get_mut(n) else { return false };
        let Some(receiver) = &mut pipe.receiver else { return false };
        let (journal, stream) = (self.journal, pipe.stream);
        let each = &mut |line: &str| to_journal(journal, stream, line);
        match logs::pump(receiver, stream, &mut self.ring, budget, edge::clock::unix_ms(), each) {
            Ok(pumped) => {
                if pumped.ended {
                    pipe.receiver = None;
                }
                !pumped.dry
            }
            Err(error) => {
                log::warn!("can't read the application's {}: {error}", stream.name());
                pipe.receiver = None;
                false
            }
        }
    }

    /// An answer as JSON.
    pub fn reply_json(&self, reply: &Reply) -> Value {
        match reply {
            Reply::Running(pid) => json!({
                "state": "running", "pid": pid, "entrypoint": self.entry, "log": self.started_at.to_string(),
            }),
            Reply::Stopped(exit) => json!({ "state": "stopped", "exit": exit.map(|exit| exit.to_string()) }),
            Reply::Refused(status, why) => {
                json!({ "state": self.core.state().name(), "status": status, "message": why })
            }
        }
    }

    /// The application, for the status.
    pub fn json(&self) -> Value {
        let running = self.core.pid().is_some();
        json!({
            "state": self.core.state().name(),
            "pid": self.core.pid(),
            "since_ms": self.since_ms,
            "entrypoint": running.then_some(&self.entry),
            "restarts": self.core.restarts(),
            "last_exit": self.core.last_exit().map(|exit| exit.to_string()),
        })
    }

    /// The entry points there are, the one that would be run first.
    pub fn entrypoints(&self) -> Vec<String> {
        let there = self.launcher.candidates().into_iter().filter(|path| path.exists());
        there.map(|path| path.display().to_string()).collect()
    }
}

fn to_journal(journal: bool, stream: Stream, line: &str) {
    if journal {
        match stream {
            Stream::Stderr => log::warn!(target: "app", "app: {line}"),
            _ => log::info!(target: "app", "app: {line}"),
        }
    }
}

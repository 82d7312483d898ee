//! What happens to the application when: run, kill, restart, crash, roll back. No I/O, no clock, no randomness.
//!
//! ```text
//!             Run, Restart                     Exited, Kill, Restart
//!  Stopped ───────────────► Starting ──Started──► Running ───────────────► Stopping ──Gone──► Stopped, Starting,
//!     ▲                        ▲  │ StartFailed      TERM; KILL after 5 s                     Backoff, RollingBack
//!     └────────Kill── Backoff ─┘  └──► Stopped                    Left (10 s after KILL)──► the same, but never Starting
//! ```
//!
//! Invariants: a start is asked for only when no process of the one before is left, or what is left was given up
//! (10 s after the first KILL) and named; every ticket is answered exactly once; a commit is rolled back at most
//! once.

mod types;

use std::time::{Duration, Instant};

use edge::retry::Backoff;

pub use types::{Exit, Input, Output, Policy, Reply, Restart, State, Ticket};

/// How long an application must run for its earlier failures to be forgotten.
const STABLE: Duration = Duration::from_secs(60);
/// How often KILL is repeated for processes that appear meanwhile.
const KILL_AGAIN: Duration = Duration::from_millis(100);
/// What KILL has not ended for so long (a driver holds it, it is another user's) is not waited for.
const GIVE_UP: Duration = Duration::from_secs(10);

/// What follows when all processes are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Stop,
    Start,
    /// It ended by itself: the policy says.
    Decide,
}

/// The state machine.
#[derive(Debug)]
pub struct Core {
    policy: Policy,
    state: State,
    then: Then,
    pid: Option<u32>,
    exit: Option<Exit>,
    deadline: Option<Instant>,
    /// Since when the processes are killed, while they are.
    killing: Option<Instant>,
    started: Option<Instant>,
    /// The commit in force is this old, or its first start is.
    fresh: Option<Instant>,
    starting: Vec<Ticket>,
    stopping: Vec<Ticket>,
    backoff: Backoff,
    restarts: u64,
    closing: bool,
}

impl Core {
    /// Nothing runs.
    #[must_use]
    pub fn new(policy: Policy) -> Core {
        Core {
            policy,
            state: State::Stopped,
            then: Then::Stop,
            pid: None,
            exit: None,
            deadline: None,
            killing: None,
            started: None,
            fresh: None,
            starting: Vec::new(),
            stopping: Vec::new(),
            backoff: Backoff::new(policy.backoff.0, policy.backoff.1, STABLE),
            restarts: 0,
            closing: false,
        }
    }

    /// Other rules, from now on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
        self.backoff = Backoff::new(policy.backoff.0, policy.backoff.1, STABLE);
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Its first process, while that lives.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// How it ended last.
    #[must_use]
    pub fn last_exit(&self) -> Option<Exit> {
        self.exit
    }

    /// How often it was started again by policy.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// When [`Input::Timer`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether a shutdown is complete.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closing && self.state == State::Stopped
    }

    /// The one transition function.
    pub fn handle(&mut self, input: Input, now: Instant, rng: &mut fastrand::Rng) -> Vec<Output> {
        let mut out = Vec::new();
        match input {
            Input::Run(ticket) => self.run(ticket, &mut out),
            Input::Restart(ticket) => self.restart(ticket, now, &mut out),
            Input::Kill(ticket) => self.kill(ticket, now, &mut out),
            Input::Committed => self.fresh = Some(now),
            Input::Started(pid) => self.on_started(pid, now, &mut out),
            Input::StartFailed(status, why) => self.on_start_failed(status, &why, now, rng, &mut out),
            Input::Exited(exit) => self.on_exited(exit, now, &mut out),
            Input::Gone => self.on_gone(now, rng, &mut out),
            Input::Left(what) => self.on_left(&what, now, rng, &mut out),
            Input::RolledBack(result) => self.on_rolled_back(result, now, rng, &mut out),
            Input::Timer => self.on_timer(now, &mut out),
            Input::Shutdown => self.shutdown(now, &mut out),
        }
        out
    }

    fn start(&mut self, out: &mut Vec<Output>) {
        self.state = State::Starting;
        self.deadline = None;
        out.push(Output::Start);
    }

    fn stop(&mut self, then: Then, now: Instant, out: &mut Vec<Output>) {
        self.state = State::Stopping;
        self.then = then;
        self.deadline = Some(now + self.policy.stop_timeout);
        self.killing = None;
        out.push(Output::Terminate);
    }

    fn kill_all(&mut self, now: Instant, out: &mut Vec<Output>) {
        let since = *self.killing.get_or_insert(now);
        if now.saturating_duration_since(since) < GIVE_UP {
            self.deadline = Some(now + KILL_AGAIN);
            out.push(Output::KillAll);
        } else {
            self.deadline = None;
            out.push(Output::GiveUp);
        }
    }

    fn run(&mut self, ticket: Ticket, out: &mut Vec<Output>) {
        match self.state {
            _ if self.closing => out.push(refused(ticket, 503, "sideloadd is stopping")),
            State::Stopped | State::Backoff => {
                self.starting.push(ticket);
                self.start(out);
            }
            State::Running => {
                let pid = self.pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
                out.push(refused(
                    ticket,
                    409,
                    &format!("the application is running already{pid}; restart or kill it"),
                ));
            }
            State::Starting | State::RollingBack => self.starting.push(ticket),
            State::Stopping => {
                self.starting.push(ticket);
                self.then = Then::Start;
            }
        }
    }

    fn restart(&mut self, ticket: Ticket, now: Instant, out: &mut Vec<Output>) {
        if self.state == State::Running && !self.closing {
            self.starting.push(ticket);
            self.stop(Then::Start, now, out);
        } else {
            self.run(ticket, out);
        }
    }

    fn kill(&mut self, ticket: Ticket, now: Instant, out: &mut Vec<Output>) {
        match self.state {
            State::Stopped => {
                out.push(refused(ticket, 409, "the application is not running: there is nothing to kill"));
            }
            State::Backoff => {
                self.state = State::Stopped;
                self.deadline = None;
                out.push(Output::Answer(ticket, Reply::Stopped(self.exit)));
            }
            State::Running => {
                self.stopping.push(ticket);
                self.stop(Then::Stop, now, out);
            }
            // What was about to start is stopped as soon as it has.
            State::Starting | State::Stopping | State::RollingBack => {
                self.stopping.push(ticket);
                self.then = Then::Stop;
                self.refuse_starts(409, "the application was killed meanwhile", out);
            }
        }
    }

    fn refuse_starts(&mut self, status: u16, why: &str, out: &mut Vec<Output>) {
        out.extend(self.starting.drain(..).map(|ticket| refused(ticket, status, why)));
    }

    fn on_started(&mut self, pid: u32, now: Instant, out: &mut Vec<Output>) {
        self.state = State::Running;
        self.pid = Some(pid);
        // Since the first start after a commit its crash window runs.
        let first = self.fresh.is_some_and(|at| self.started.is_none_or(|before| before <= at));
        if first {
            self.fresh = Some(now);
        }
        self.started = Some(now);
        self.backoff.connected(now);
        if self.closing || !self.stopping.is_empty() {
            // It was killed before it had started. Whoever asked for a start after that gets the next one.
            let then = if self.starting.is_empty() { Then::Stop } else { Then::Start };
            self.stop(then, now, out);
            return;
        }
        out.extend(self.starting.drain(..).map(|ticket| Output::Answer(ticket, Reply::Running(pid))));
    }

    fn on_start_failed(
        &mut self,
        status: u16,
        why: &str,
        now: Instant,
        rng: &mut fastrand::Rng,
        out: &mut Vec<Output>,
    ) {
        out.push(Output::Note(format!("the application can't be started: {why}")));
        let asked = !self.starting.is_empty() || !self.stopping.is_empty();
        self.state = State::Stopped;
        self.refuse_starts(status, why, out);
        self.answer_stops(out);
        // What the system could not do now it may do later; a missing entry point stays missing until a sync.
        if !asked && status >= 500 {
            self.decide(now, rng, out);
        }
    }

    fn on_exited(&mut self, exit: Exit, now: Instant, out: &mut Vec<Output>) {
        self.exit = Some(exit);
        self.pid = None;
        if self.state == State::Running {
            out.push(Output::Note(format!("the application ended with {exit}")));
            self.state = State::Stopping;
            self.then = Then::Decide;
            self.killing = None;
            // What its first process leaves behind goes with it.
            self.kill_all(now, out);
        }
    }

    fn on_gone(&mut self, now: Instant, rng: &mut fastrand::Rng, out: &mut Vec<Output>) {
        if self.state != State::Stopping || self.pid.is_some() {
            return;
        }
        self.deadline = None;
        match self.then {
            Then::Start => {
                // Whoever asked for the end, before somebody else asked for this start, has it now.
                self.answer_stops(out);
                self.start(out);
            }
            Then::Stop => self.stopped(out),
            Then::Decide => self.ended_by_itself(now, rng, out),
        }
    }

    /// Whoever waits for the end hears that it does not come, and who asked for a start gets none: that would be a second
    /// application. What nobody asked for goes on by the policy: nobody would.
    fn on_left(&mut self, what: &str, now: Instant, rng: &mut fastrand::Rng, out: &mut Vec<Output>) {
        if self.state != State::Stopping {
            return;
        }
        self.deadline = None;
        self.pid = None;
        let seconds = GIVE_UP.as_secs();
        let why = format!(
            "KILL has not ended all of the application within {seconds} s; left behind: {what}. A driver or file system \
             may hold it, or it belongs to another user; run-app starts the application all the same"
        );
        out.push(Output::Note(why.clone()));
        if self.then == Then::Decide {
            self.ended_by_itself(now, rng, out);
            return;
        }
        self.state = State::Stopped;
        self.refuse_starts(500, &why, out);
        out.extend(self.stopping.drain(..).map(|ticket| refused(ticket, 500, &why)));
    }

    fn ended_by_itself(&mut self, now: Instant, rng: &mut fastrand::Rng, out: &mut Vec<Output>) {
        if !self.crashed_fresh(now) {
            self.decide(now, rng, out);
            return;
        }
        self.fresh = None;
        self.state = State::RollingBack;
        out.push(Output::Note("it crashed right after a sync: going back to the commit before".into()));
        out.push(Output::Rollback);
    }

    fn stopped(&mut self, out: &mut Vec<Output>) {
        self.state = State::Stopped;
        if let (Some(exit), false) = (self.exit, self.stopping.is_empty()) {
            out.push(Output::Note(format!("the application was stopped: {exit}")));
        }
        self.answer_stops(out);
        self.refuse_starts(409, "the application was killed meanwhile", out);
    }

    fn answer_stops(&mut self, out: &mut Vec<Output>) {
        let exit = self.exit;
        out.extend(self.stopping.drain(..).map(|ticket| Output::Answer(ticket, Reply::Stopped(exit))));
    }

    fn crashed_fresh(&self, now: Instant) -> bool {
        let crashed = self.exit.is_some_and(|exit| !exit.is_success());
        let fresh = self.fresh.is_some_and(|at| now.saturating_duration_since(at) < self.policy.crash_window);
        self.policy.rollback_on_crash && crashed && fresh
    }

    fn decide(&mut self, now: Instant, rng: &mut fastrand::Rng, out: &mut Vec<Output>) {
        let again = match self.policy.restart {
            Restart::Never => false,
            Restart::OnFailure => self.exit.is_some_and(|exit| !exit.is_success()),
            Restart::Always => true,
        };
        if !again || self.closing {
            self.stopped(out);
            return;
        }
        let delay = self.backoff.next_delay(now, rng).max(self.policy.backoff.0);
        out.push(Output::Note(format!("it is started again in {:.1} s", delay.as_secs_f32())));
        self.restarts += 1;
        self.state = State::Backoff;
        self.deadline = Some(now + delay);
    }

    fn on_rolled_back(
        &mut self,
        result: Result<u64, String>,
        now: Instant,
        rng: &mut fastrand::Rng,
        out: &mut Vec<Output>,
    ) {
        if self.state != State::RollingBack {
            return;
        }
        let done = match result {
            Ok(commit) => {
                out.push(Output::Note(format!("commit {commit} was brought back")));
                true
            }
            Err(why) => {
                out.push(Output::Note(format!("it can't be rolled back: {why}")));
                false
            }
        };
        if !self.starting.is_empty() {
            self.answer_stops(out);
            self.start(out);
        } else if self.closing || !self.stopping.is_empty() {
            self.stopped(out);
        } else if done {
            self.start(out);
        } else {
            self.decide(now, rng, out);
        }
    }

    fn on_timer(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.deadline.is_none_or(|at| now < at) {
            return;
        }
        match self.state {
            State::Backoff => self.start(out),
            State::Stopping => self.kill_all(now, out),
            _ => self.deadline = None,
        }
    }

    fn shutdown(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.closing = true;
        self.refuse_starts(503, "sideloadd is stopping", out);
        match self.state {
            State::Running => self.stop(Then::Stop, now, out),
            State::Stopping => self.then = Then::Stop,
            State::Backoff => {
                self.state = State::Stopped;
                self.deadline = None;
            }
            State::Stopped | State::Starting | State::RollingBack => {}
        }
    }
}

fn refused(ticket: Ticket, status: u16, why: &str) -> Output {
    Output::Answer(ticket, Reply::Refused(status, why.to_owned()))
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

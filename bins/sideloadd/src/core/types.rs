//! What the state machine of [`crate::core`] is told, and what it says: rules, inputs, outputs, states.
//!
//! Never: decides anything.

use std::fmt;
use std::time::Duration;

/// When an application that ended by itself is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Not at all.
    Never,
    /// After an exit code other than 0, or a signal.
    OnFailure,
    /// Whatever it ended with.
    Always,
}

/// The rules.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// When to start again.
    pub restart: Restart,
    /// First and longest wait before that.
    pub backoff: (Duration, Duration),
    /// Between TERM and KILL.
    pub stop_timeout: Duration,
    /// A crash so soon after a commit is the commit's.
    pub crash_window: Duration,
    /// Then go back to the one before.
    pub rollback_on_crash: bool,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// Code 0.
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Exit::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "code {code}"),
            Exit::Signal(signal) => write!(f, "signal {signal}{}", signal_name(*signal)),
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (HUP)",
        2 => " (INT)",
        4 => " (ILL)",
        6 => " (ABRT)",
        7 => " (BUS)",
        8 => " (FPE)",
        9 => " (KILL)",
        11 => " (SEGV)",
        13 => " (PIPE)",
        15 => " (TERM)",
        _ => "",
    }
}

/// Somebody who waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Run it.
    Run(Ticket),
    /// Run it anew, whether it runs or not.
    Restart(Ticket),
    /// Stop it.
    Kill(Ticket),
    /// A sync was committed.
    Committed,
    /// The start that was asked for worked.
    Started(u32),
    /// It did not: HTTP status and why.
    StartFailed(u16, String),
    /// Its first process ended.
    Exited(Exit),
    /// No process of it is left.
    Gone,
    /// The processes that were given up; as a text.
    Left(String),
    /// The roll-back that was asked for: its commit, or why not.
    RolledBack(Result<u64, String>),
    /// The deadline has passed.
    Timer,
    /// The daemon stops: so does the application, for good.
    Shutdown,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It runs with this process id.
    Running(u32),
    /// It has stopped; how, if it ran.
    Stopped(Option<Exit>),
    /// It can't be: HTTP status and why.
    Refused(u16, String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Find the entry point and start it; `Started` or `StartFailed` is the answer.
    Start,
    /// TERM to its group.
    Terminate,
    /// KILL to all its processes.
    KillAll,
    /// KILL has not ended them all: no more is done about those. `Left` is the answer.
    GiveUp,
    /// Restore the commit before the one in force; `RolledBack` is the answer.
    Rollback,
    /// Tell whoever waits.
    Answer(Ticket, Reply),
    /// A sentence for the log.
    Note(String),
}

/// The application, as this machine sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not running, and nothing is going to happen.
    Stopped,
    /// A start was asked for.
    Starting,
    /// Its first process lives.
    Running,
    /// Its processes are being ended.
    Stopping,
    /// It is started again when the time has come.
    Backoff,
    /// A roll-back was asked for.
    RollingBack,
}

impl State {
    /// As it is called in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Stopped => "stopped",
            State::Starting => "starting",
            State::Running => "running",
            State::Stopping => "stopping",
            State::Backoff => "backoff",
            State::RollingBack => "rolling-back",
        }
    }
}

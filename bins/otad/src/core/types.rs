//! What the core takes and gives.

use std::time::Duration;

/// The numbers that rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Between two polls.
    pub interval: Duration,
    /// First and last ceiling of the wait after a failure.
    pub retry: (Duration, Duration),
    /// Units must be well within.
    pub active_within: Duration,
    /// And stay so for.
    pub stable: Duration,
}

/// What the moment is like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Since boot.
    pub boot: Duration,
    /// Until the next window opens (zero: one is open), and how long that one is.
    pub window: (Duration, Duration),
    /// Until the day's budget is renewed, if it is used up.
    pub budget: Option<Duration>,
}

/// What holds an update back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    Window,
    Budget,
}

/// Where the update is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The next poll is set.
    Idle,
    /// As idle; an update is known and a gate is closed.
    Waiting(Gate),
    /// The server is asked.
    Polling,
    /// Content is on its way.
    Fetching,
    /// The new generation is made.
    Building,
    /// The apps' pre-install hooks run.
    Hooks,
    /// The trial is announced, the link is swapped.
    Switching,
    /// Post-install hooks, handlers and units.
    Restarting,
    /// It runs; is it well?
    Watching(Watch),
    /// It is kept.
    Committing,
    /// The link goes back.
    RollingBack,
    /// The units of what is back restart.
    Returning,
}

/// What health has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// The end of the time to get well.
    pub deadline: Duration,
    /// Since when all is well, and the marks of the units' runs.
    pub well: Option<(Duration, String)>,
    /// What was not, the last time.
    pub why: String,
}

/// What the worker is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Ask the server; with `content`, what comes may be kept (a bundle). `forced`: whatever the day's budget says.
    Poll {
        content: bool,
        forced: bool,
    },
    /// Get what the update lacks.
    Fetch {
        forced: bool,
    },
    Build,
    PreHooks,
    Switch,
    /// `resumed`: it may have been done before a crash.
    Restart {
        resumed: bool,
    },
    /// Look at the units, and ask the commands, too.
    Probe {
        commands: bool,
    },
    Commit,
    RollBack {
        why: String,
        quarantine: bool,
    },
    /// Restart what is back.
    Return,
}

/// Why a step did not work out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It may be gone soon.
    Passing(String),
    /// The server said when to come again.
    Busy(Duration, String),
    /// What the server has is no good, or this device can't take it: soon is no use.
    Refused(String),
    /// The disk has no room for it.
    Space(String),
    /// The budget was used up on the way.
    Budget(String),
}

impl Trouble {
    /// For people.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Passing(why)
            | Self::Busy(_, why)
            | Self::Refused(why)
            | Self::Space(why)
            | Self::Budget(why) => why,
        }
    }
}

/// What a job came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// Whether there is an update.
    Polled(Result<bool, Trouble>),
    Fetched(Result<(), Trouble>),
    Built(Result<(), Trouble>),
    Hooked(Result<(), Trouble>),
    /// An error: the old generation is in force.
    Switched(Result<(), Trouble>),
    /// Whether there is anything to watch.
    Restarted(Result<bool, String>),
    /// All is well, with marks of the units' runs; or what is not.
    Probed(Result<String, String>),
    Committed(Result<(), String>),
    RolledBack(Result<(), String>),
    Returned,
}

/// What happens to the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The time it asked for has come.
    Timer,
    /// Somebody wants to know now; `force`: whatever the gates say.
    CheckNow { force: bool },
    /// Somebody wants the generation before.
    RollBack { why: String },
    /// At the start: a trial goes on.
    Resume,
    /// At the start: the units may not run what is in force.
    Owed,
    /// A job is done.
    Done(Done),
}

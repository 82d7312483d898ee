//! One batch at a time onto the device, in a thread of its own over one warm connection: sync with the check before its
//! commit, then what the rules ask for.
//!
//! Invariant: what a lost answer leaves open (was the commit done, the application restarted?) is made good by the next
//! batch. Never: prints.

use std::{path::PathBuf, sync::mpsc::Receiver};

use serde_json::Value;

use super::{
    Tell,
    check::{self, Check},
    debounce::{Batch, Changes},
};
use crate::{
    client::{self, Client, Request, Target},
    config::Action,
    output::Failure,
    scan::{Silent, Source},
    sync::{self, SyncOptions},
};

/// For the thread.
#[derive(Debug)]
pub enum Work {
    /// Something was saved: its check may begin while the debounce waits for more.
    Check(Changes),
    /// Onto the device with it.
    Push(Job),
}

/// What to do.
#[derive(Debug)]
pub struct Job {
    /// Why.
    pub batch: Batch,
    /// What follows the commit.
    pub action: Action,
    /// See that the application runs even when nothing changed: at the start, and when the device was away.
    pub run: bool,
}

/// What became of the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// It was started anew; the position of the log before its first line.
    Restarted(Option<String>),
    /// It got this signal.
    Signalled(String),
    /// It was left alone.
    None,
    /// Nothing was to be done.
    Unchanged,
}

/// What came of a job.
#[derive(Debug)]
pub struct Outcome {
    /// As it was asked for.
    pub batch: Batch,
    /// What was done, or why not.
    pub result: Result<(sync::Report, Effect), Trouble>,
}

/// What time alone may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// The device can't be reached.
    Away,
    /// It is there, and takes nothing now: another sync is under way, or its disk is full.
    Busy,
}

/// Why a job came to nothing.
#[derive(Debug)]
pub struct Trouble {
    /// For people.
    pub failure: Failure,
    /// Worth another attempt without a save, and why.
    pub again: Option<Pause>,
    /// The check said no: the old process runs on.
    pub check: bool,
    /// The files are on the device; only what should follow failed.
    pub committed: bool,
}

/// The thread's state.
pub(super) struct Pusher {
    pub(super) client: Client,
    pub(super) source: Source,
    pub(super) check: Check,
    pub(super) top: PathBuf,
    /// A commit or a restart may not have been done.
    pub(super) owed: bool,
    /// A check that began before its batch was due.
    pub(super) early: Option<check::Running>,
}

/// Does jobs until there are no more.
pub(super) fn run(mut pusher: Pusher, jobs: &Receiver<Work>, tell: &Tell<Outcome>) {
    while let Ok(work) = jobs.recv() {
        let job = match work {
            Work::Check(changes) => {
                pusher.early = pusher.check.start(&pusher.top, &changes);
                continue;
            }
            Work::Push(job) => job,
        };
        let result = pusher.push(&job);
        if !tell.send(Outcome { batch: job.batch, result }) {
            return;
        }
    }
}

/// Makes a client that connects when it is needed.
pub(super) fn client(target: &Target) -> Result<Client, client::Error> {
    Client::prepare(target)
}

impl Pusher {
    fn push(&mut self, job: &Job) -> Result<(sync::Report, Effect), Trouble> {
        let changes = job.batch.all();
        let restart = job.action == Action::Restart;
        let report = self.sync(&changes, restart)?;
        if report.unchanged && !job.run && !self.owed {
            return Ok((report, Effect::Unchanged));
        }
        let must = report.unchanged && (self.owed || restart);
        let effect = match &job.action {
            Action::Restart if !report.unchanged && report.app.is_some() => {
                Effect::Restarted(report.log.clone())
            }
            Action::Restart => self.start(must || !report.unchanged)?,
            Action::Signal(name) => self.signal(name)?,
            Action::Sync => Effect::None,
        };
        self.owed = false;
        Ok((report, effect))
    }

    fn sync(&mut self, changes: &Changes, restart: bool) -> Result<sync::Report, Trouble> {
        // Nothing is taken from a check of what was saved once more since.
        let early = self.early.take().filter(|early| early.covers(changes));
        let mut running = early.or_else(|| self.check.start(&self.top, changes));
        let mut said_no = false;
        let mut gate = || match running.take().map(check::Running::wait) {
            Some(Err(failed)) => {
                said_no = true;
                Err(failed.into())
            }
            _ => Ok(()),
        };
        let result = sync::sync(
            &mut self.client,
            &mut self.source,
            &mut SyncOptions { force: false, restart, gate: Some(&mut gate), progress: &mut Silent },
        );
        result.map_err(|error| {
            let again = match &error {
                sync::Error::Client(error) | sync::Error::Commit(error) => passing(error),
                sync::Error::Busy { .. } => Some(Pause::Busy),
                _ => None,
            };
            // An answer that was lost says nothing; a refusal after the commit says that only the restart failed.
            self.owed |= matches!(error, sync::Error::Commit(_));
            Trouble { failure: error.into(), again, check: said_no, committed: false }
        })
    }

    /// Starts the application, also if it runs.
    fn start(&mut self, restart: bool) -> Result<Effect, Trouble> {
        let path = if restart { "/application?restart=1" } else { "/application" };
        match self.ask(path) {
            Ok(answer) => Ok(Effect::Restarted(answer.get("log").and_then(Value::as_str).map(str::to_owned))),
            Err(client::Error::Refused { status: 409, .. }) => Ok(Effect::None),
            Err(error) => Err(self.left(error)),
        }
    }

    /// A process that does not run is started instead.
    fn signal(&mut self, name: &str) -> Result<Effect, Trouble> {
        match self.ask(&format!("/application/signal?name={name}")) {
            Ok(_) => Ok(Effect::Signalled(name.to_owned())),
            Err(client::Error::Refused { status: 409, .. }) => self.start(false),
            Err(error) => Err(self.left(error)),
        }
    }

    fn ask(&mut self, path: &str) -> Result<Value, client::Error> {
        self.client.request(Request::new("POST", path))?.json()
    }

    fn left(&mut self, error: client::Error) -> Trouble {
        let again = passing(&error);
        self.owed |= again.is_some();
        Trouble { failure: error.into(), again, check: false, committed: true }
    }
}

/// Whether time alone may help.
pub(super) fn passing(error: &client::Error) -> Option<Pause> {
    match error {
        client::Error::Refused { status, .. } => (*status >= 500).then_some(Pause::Busy),
        client::Error::Connect { .. } | client::Error::Resolve { .. } => Some(Pause::Away),
        other => other.is_lost_connection().then_some(Pause::Away),
    }
}

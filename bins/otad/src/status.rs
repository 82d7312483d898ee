//! What the daemon says of itself: `GET /status`, `/why`, `/history`, `/metrics`, the line of `systemctl status`.

use std::time::Duration;

use edge::ctl::Metrics;
use serde_json::{Value, json};

use crate::choose::{Report, Why};
use crate::config::Config;
use crate::core::{Core, Gate, Now, State, Trouble};
use crate::install::{Ending, GenId, Manifest, Outcome};
use crate::worker::Worker;

/// What the install thread knows, as of its last job.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub current: Option<(GenId, Manifest)>,
    pub previous: Option<GenId>,
    pub trial: Option<(GenId, Manifest)>,
    pub history: Vec<Outcome>,
    pub quarantined: usize,
    /// The newest of them.
    pub quarantine: Vec<Value>,
    pub reports: Vec<Report>,
    /// Bytes received on the day.
    pub spent: u64,
    pub day: i64,
    pub fatal: Option<String>,
}

impl View {
    #[must_use]
    pub fn of(worker: &Worker, day: i64) -> View {
        let store = &worker.store;
        let own = |(id, manifest): (&GenId, &Manifest)| (*id, manifest.clone());
        View {
            current: store.current().map(own),
            previous: store.previous().map(|(id, _)| *id),
            trial: store.trial().map(own),
            history: store.history().iter().cloned().collect(),
            quarantined: store.quarantined().len(),
            quarantine: crate::retry::listed(store),
            reports: worker.reports.clone(),
            spent: worker.ledger.spent(day),
            day,
            fatal: worker.fatal.clone(),
        }
    }
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    pub polls: u64,
    pub polls_failed: u64,
    /// Times that everything was done.
    pub rounds: u64,
    pub commits: u64,
    pub rollbacks: u64,
}

/// Everything there is to say.
pub struct Facts<'a> {
    pub config: &'a Config,
    pub core: &'a Core,
    pub view: &'a View,
    pub counters: &'a Counters,
    pub now: Now,
    /// Since boot, of the start and of the last answer of the server.
    pub started: Duration,
    pub answered: Option<Duration>,
    pub verified: Option<&'a Value>,
    pub retried: Option<&'a Value>,
}

/// One word for the state.
#[must_use]
pub fn word(state: &State) -> &'static str {
    match state {
        State::Idle => "idle",
        State::Waiting(Gate::Window) => "waiting-for-window",
        State::Waiting(Gate::Budget) => "waiting-for-budget",
        State::Polling => "polling",
        State::Fetching => "fetching",
        State::Building => "building",
        State::Hooks => "pre-install-hooks",
        State::Switching => "switching",
        State::Restarting => "restarting",
        State::Watching(_) => "watching-health",
        State::Committing => "committing",
        State::RollingBack => "rolling-back",
        State::Returning => "restarting-after-rollback",
    }
}

fn trouble_json(trouble: &Trouble) -> Value {
    let kind = match trouble {
        Trouble::Passing(_) => "passing",
        Trouble::Busy(..) => "retry-after",
        Trouble::Refused(_) => "refused",
        Trouble::Space(_) => "no-space",
        Trouble::Budget(_) => "budget",
    };
    json!({ "kind": kind, "text": trouble.why() })
}

fn generation_json(generation: &(GenId, Manifest)) -> Value {
    let (id, manifest) = generation;
    let apps: Vec<Value> = manifest
        .items()
        .iter()
        .map(|item| {
            json!({ "app": item.app, "version": item.version, "env": item.env, "epoch": item.epoch,
                    "sha256": item.sha256, "size": item.size, "signed": item.statement.is_some() })
        })
        .collect();
    json!({ "id": id.to_string(), "apps": apps })
}

/// A generation's name and its apps, for people.
#[must_use]
pub fn generation_text(id: &Value, apps: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let apps = apps.as_array().map(Vec::as_slice).unwrap_or_default();
    let apps: Vec<String> =
        apps.iter().map(|app| format!("{} {}", text(&app["app"]), text(&app["version"]))).collect();
    format!("{} ({})", text(id), apps.join(", "))
}

/// An ending, for the history.
#[must_use]
pub fn outcome_json(outcome: &Outcome) -> Value {
    let ending = match outcome.ending {
        Ending::Committed => "committed",
        Ending::RolledBack => "rolled-back",
        Ending::Abandoned => "abandoned",
    };
    let apps: Vec<Value> = outcome
        .subject
        .apps
        .iter()
        .map(|app| json!({ "app": app.app, "version": app.version, "env": app.env, "epoch": app.epoch }))
        .collect();
    json!({ "seq": outcome.seq, "at": outcome.at, "generation": outcome.generation.to_string(), "ending": ending,
            "why": outcome.why, "quarantined": outcome.quarantined, "apps": apps })
}

impl Facts<'_> {
    fn in_s(&self, at: Duration) -> u64 {
        at.saturating_sub(self.now.boot).as_secs()
    }

    /// `/status`.
    #[must_use]
    pub fn json(&self) -> Value {
        let Facts { config, core, view, counters, .. } = self;
        let health = match core.state() {
            State::Watching(watch) => json!({
                "well_for_s": watch.well.as_ref().map(|(since, _)| self.now.boot.saturating_sub(*since).as_secs()),
                "deadline_in_s": self.in_s(watch.deadline),
                "why": watch.why,
            }),
            _ => Value::Null,
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "device": config.device,
            "server": config.raw.server,
            "mode": config.raw.mode,
            "uptime_s": self.now.boot.saturating_sub(self.started).as_secs(),
            "state": word(core.state()),
            "idle": core.is_idle(),
            "rounds": counters.rounds,
            "next_poll_in_s": core.is_idle().then(|| self.in_s(core.next_poll())),
            "last_answer_s_ago": self.answered.map(|at| self.now.boot.saturating_sub(at).as_secs()),
            "trouble": core.trouble().map(trouble_json),
            "failures": core.failures(),
            "current": view.current.as_ref().map(generation_json),
            "trial": view.trial.as_ref().map(generation_json),
            "previous": view.previous.map(|id| id.to_string()),
            "health": health,
            "last": view.history.last().map(outcome_json),
            "quarantined": view.quarantined,
            "quarantine": view.quarantine,
            "window_opens_in_s": (!self.now.window.0.is_zero()).then_some(self.now.window.0.as_secs()),
            "budget": { "bytes_per_day": config.raw.budget_per_day.0, "spent": view.spent },
            "disk": { "free_bytes": edge::fs::free_bytes(&config.raw.state_dir).ok() },
            "verify": self.verified,
            "retry": self.retried,
        })
    }

    /// `/why`: what keeps each app, and all of them, from being newer.
    #[must_use]
    pub fn why(&self) -> Value {
        let Facts { config, core, view, now, .. } = self;
        let general = match (core.state(), core.trouble()) {
            (State::Waiting(Gate::Window), _) => {
                let text = format!("the window is closed: it opens in {}", span(now.window.0));
                Some(("window-closed", text))
            }
            (State::Waiting(Gate::Budget), _) => {
                let (spent, of) =
                    (edge::text::bytes(view.spent), edge::text::bytes(config.raw.budget_per_day.0));
                let left = now.budget.map(|left| format!("; it is renewed in {}", span(left)));
                let text = format!(
                    "the day's budget is used up: {spent} of {of} (budget-per-day){}",
                    left.unwrap_or_default()
                );
                Some(("budget", text))
            }
            (State::Watching(_), _) => Some(("on-trial", "an update is running on trial".into())),
            (State::Idle | State::Polling, Some(trouble)) => {
                let code = match trouble {
                    Trouble::Passing(_) => "server-unreachable",
                    Trouble::Busy(..) => "retry-after",
                    Trouble::Space(_) => "no-space",
                    Trouble::Refused(_) => "refused",
                    Trouble::Budget(_) => "budget",
                };
                Some((code, trouble.why().to_owned()))
            }
            (State::Idle, None) if self.answered.is_none() => {
                let left = span(core.next_poll().saturating_sub(now.boot));
                Some((
                    "not-asked-yet",
                    format!("the server has not been asked yet: the first poll is in {left}"),
                ))
            }
            (State::Idle, _) => None,
            (state, _) => Some(("busy", format!("at work: {}", word(state)))),
        };
        let installed = view.trial.as_ref().or(view.current.as_ref()).map(|(_, manifest)| manifest);
        let mut apps: Vec<Value> = view.reports.iter().map(|report| report.json(installed)).collect();
        for name in config.apps.keys() {
            if !view.reports.iter().any(|report| report.app.eq_ignore_ascii_case(name))
                && self.answered.is_some()
            {
                apps.push(json!({ "app": name, "installed": null, "offered": null, "taken": false,
                    "why": "not-offered", "text": "the server has no release of it for what this device says of itself" }));
            }
        }
        json!({
            "device": config.device,
            "query": config.ask.query(false, None),
            "why": general.as_ref().map(|(code, _)| code),
            "text": general.as_ref().map(|(_, text)| text),
            "apps": apps,
        })
    }

    /// `/history`.
    #[must_use]
    pub fn history(&self) -> Value {
        json!(self.view.history.iter().map(outcome_json).collect::<Vec<_>>())
    }

    /// For `systemctl status`.
    #[must_use]
    pub fn line(&self) -> String {
        let Facts { core, view, .. } = self;
        let mut line = word(core.state()).replace('-', " ");
        line += &match (&view.trial, &view.current) {
            (Some((id, manifest)), _) => format!(", trying {id} ({manifest})"),
            (None, Some((id, manifest))) => format!(", {id} ({manifest})"),
            (None, None) => ", nothing installed".to_owned(),
        };
        if let Some(trouble) = core.trouble() {
            line += &format!("; {}", trouble.why());
        }
        line.chars().take(400).collect()
    }

    /// For Prometheus.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let Facts { core, view, counters, .. } = self;
        let mut m = Metrics::default();
        m.counter("otad_polls_total", "Polls", &[], counters.polls);
        m.counter("otad_polls_failed_total", "Polls without a usable answer", &[], counters.polls_failed);
        m.counter("otad_commits_total", "Updates that were kept", &[], counters.commits);
        m.counter("otad_rollbacks_total", "Updates that were taken back", &[], counters.rollbacks);
        m.gauge("otad_failures", "Failures in a row", &[], core.failures().into());
        m.gauge("otad_bytes_today", "Bytes received today", &[], view.spent as f64);
        m.gauge("otad_quarantined", "Manifests that are not tried again", &[], view.quarantined as f64);
        let number = view.current.as_ref().map_or(0, |(id, _)| id.number);
        m.gauge("otad_generation", "Number of the generation in force", &[], number as f64);
        m.gauge("otad_trial", "1 during a trial", &[], u8::from(view.trial.is_some()).into());
        if let Some(at) = self.answered {
            let age = self.now.boot.saturating_sub(at).as_secs_f64();
            m.gauge("otad_last_answer_age_seconds", "Since the server's last answer", &[], age);
        }
        for report in &view.reports {
            let current = matches!(report.why, Some(Why::UpToDate));
            m.gauge(
                "otad_app_up_to_date",
                "1 while the newest offered release is installed",
                &[("app", &report.app)],
                u8::from(current).into(),
            );
        }
        m
    }
}

/// A time as people say it.
#[must_use]
pub fn span(time: Duration) -> String {
    match time.as_secs() {
        s @ 0..=99 => format!("{s} s"),
        s @ 100..=5999 => format!("{} min", s / 60),
        s @ 6000..=172_799 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        s => format!("{} days", s / 86_400),
    }
}

//! When the device asks, and how an update goes: from the answer of the server to the commit or the way back.
//!
//! ```text
//! Idle/Waiting -> Polling -> Fetching -> Building -> Hooks -> Switching -> Restarting -> Watching -> Committing -> Idle
//!       ^            |           |          |         |                        |            |
//!       +-- nothing new, trouble, a gate is closed ---+                        +-----+------+
//!       +------------------------- Returning (units restart) <- RollingBack <--------+
//! ```
//!
//! Owns: the state, the time of the next poll, the back-off, what health has shown so far. Invariants: one job is under
//! way at most; nothing is switched while the window is closed, unless a person forced it; what was switched is committed
//! or rolled back. It does no I/O and reads neither clock nor randomness; time is since boot, sleep included.

mod types;

use std::time::Duration;

pub use types::{Done, Gate, Input, Job, Now, Policy, State, Trouble, Watch};

/// A server may put us off by this at most: longer is a mistake of its clock.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);
/// Between two looks at the units.
const PROBE_MAX: Duration = Duration::from_secs(2);
const PROBE_MIN: Duration = Duration::from_millis(100);
/// Doublings of the ceiling after which it stays where it is.
const DOUBLINGS_MAX: u32 = 20;

/// Decides.
#[derive(Debug)]
pub struct Core {
    policy: Policy,
    state: State,
    next_poll: Duration,
    /// For the next look at the units.
    next_probe: Option<Duration>,
    failures: u32,
    forced: bool,
    /// Somebody asked while a job was under way; whether by force.
    again: Option<bool>,
    /// What went wrong last, for the status; cleared by a round that went well.
    trouble: Option<Trouble>,
}

impl Core {
    /// The first poll is at a random moment of an interval that is already under way.
    #[must_use]
    pub fn new(policy: Policy, now: Duration, rng: &mut fastrand::Rng) -> Core {
        Core {
            policy,
            state: State::Idle,
            next_poll: now + first_wait(policy.interval, rng),
            next_probe: None,
            failures: 0,
            forced: false,
            again: None,
            trouble: None,
        }
    }

    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    #[must_use]
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// When the next poll is.
    #[must_use]
    pub fn next_poll(&self) -> Duration {
        self.next_poll
    }

    /// Whether no job is under way and none follows by itself.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle | State::Waiting(_))
    }

    /// Whether [`Input::RollBack`] is heard now: no job is under way.
    #[must_use]
    pub fn may_roll_back(&self) -> bool {
        self.is_idle() || self.next_probe.is_some()
    }

    /// New numbers; they count from the next decision on.
    pub fn set_policy(&mut self, policy: Policy, now: Duration, rng: &mut fastrand::Rng) {
        if policy.interval != self.policy.interval {
            self.next_poll = self.next_poll.min(now + first_wait(policy.interval, rng));
        }
        self.policy = policy;
    }

    /// When [`Input::Timer`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::Idle | State::Waiting(_) => Some(self.next_poll),
            State::Watching(_) => self.next_probe,
            _ => None,
        }
    }

    /// The one transition function.
    pub fn handle(&mut self, input: Input, now: Now, rng: &mut fastrand::Rng) -> Option<Job> {
        match input {
            Input::Timer => self.timer(now),
            Input::CheckNow { force } => self.check_now(force, now),
            Input::RollBack { why } => self.may_roll_back().then(|| self.go_back(why)),
            Input::Resume => {
                self.state = State::Restarting;
                Some(Job::Restart { resumed: true })
            }
            Input::Owed => {
                self.state = State::Returning;
                Some(Job::Return)
            }
            Input::Done(done) => self.done(done, now, rng),
        }
    }

    fn timer(&mut self, now: Now) -> Option<Job> {
        if self.deadline().is_none_or(|at| at > now.boot) {
            return None;
        }
        match &self.state {
            State::Idle | State::Waiting(_) => Some(self.poll(now)),
            State::Watching(watch) => {
                self.next_probe = None;
                let commands = match &watch.well {
                    None => true,
                    Some((since, _)) => now.boot >= *since + self.policy.stable,
                };
                Some(Job::Probe { commands })
            }
            _ => None,
        }
    }

    fn check_now(&mut self, force: bool, now: Now) -> Option<Job> {
        if self.is_idle() {
            self.forced = force;
            return Some(self.poll(now));
        }
        // During a trial the answer to "is there something new?" has to wait for its end.
        self.again = Some(force || self.again == Some(true));
        self.forced |= force && self.state == State::Polling;
        None
    }

    fn poll(&mut self, now: Now) -> Job {
        self.state = State::Polling;
        Job::Poll { content: self.gate(now).is_none(), forced: self.forced }
    }

    fn gate(&self, now: Now) -> Option<Gate> {
        match (self.forced, now.window.0.is_zero(), now.budget) {
            (true, ..) => None,
            (_, false, _) => Some(Gate::Window),
            (_, _, Some(_)) => Some(Gate::Budget),
            _ => None,
        }
    }

    fn done(&mut self, done: Done, now: Now, rng: &mut fastrand::Rng) -> Option<Job> {
        let stable = self.policy.stable;
        match done {
            Done::Polled(Ok(false)) => self.rest(now, rng),
            Done::Polled(Ok(true)) => {
                self.enter(State::Fetching, Job::Fetch { forced: self.forced }, now, rng)
            }
            Done::Fetched(Ok(())) => self.next(State::Building, Job::Build),
            Done::Built(Ok(())) => self.enter(State::Hooks, Job::PreHooks, now, rng),
            Done::Hooked(Ok(())) => self.enter(State::Switching, Job::Switch, now, rng),
            Done::Switched(Ok(())) => self.next(State::Restarting, Job::Restart { resumed: false }),
            Done::Polled(Err(trouble))
            | Done::Fetched(Err(trouble))
            | Done::Built(Err(trouble))
            | Done::Hooked(Err(trouble))
            | Done::Switched(Err(trouble)) => self.give_up(trouble, now, rng),
            Done::Restarted(Ok(false)) => self.next(State::Committing, Job::Commit),
            Done::Restarted(Ok(true)) => {
                let deadline = now.boot + self.policy.active_within;
                self.state = State::Watching(Watch { deadline, well: None, why: String::new() });
                self.next_probe = Some(now.boot);
                None
            }
            Done::Restarted(Err(why)) => Some(self.go_back(why)),
            Done::Probed(result) => self.probed(result, now, stable),
            Done::Committed(Ok(())) => self.rest(now, rng),
            // The disk refused the commit: the trial goes on as if it had not been well.
            Done::Committed(Err(why)) => {
                self.state = State::RollingBack;
                Some(Job::RollBack { why: format!("it could not be committed: {why}"), quarantine: false })
            }
            Done::RolledBack(Ok(())) => self.next(State::Returning, Job::Return),
            Done::RolledBack(Err(why)) => self.give_up(Trouble::Refused(why), now, rng),
            Done::Returned => {
                // `why` of the trial stays in the history; the next poll is a regular one.
                self.state = State::Idle;
                self.schedule(now, rng);
                self.after(now)
            }
        }
    }

    fn probed(&mut self, result: Result<String, String>, now: Now, stable: Duration) -> Option<Job> {
        let State::Watching(watch) = &mut self.state else { return None };
        let result = match (result, &watch.well) {
            (Ok(marks), Some((_, before))) if marks != *before => {
                Err("a unit did not stay up: it was started again".to_owned())
            }
            (result, _) => result,
        };
        match result {
            Ok(marks) => {
                let (since, _) = watch.well.get_or_insert((now.boot, marks));
                if now.boot >= *since + stable {
                    return self.next(State::Committing, Job::Commit);
                }
                let pace = pace(stable);
                self.next_probe = Some((now.boot + pace).min(*since + stable));
            }
            Err(why) if now.boot >= watch.deadline => return Some(self.go_back(why)),
            Err(why) => {
                watch.well = None;
                watch.why = why;
                self.next_probe = Some((now.boot + pace(stable)).min(watch.deadline));
            }
        }
        None
    }

    fn next(&mut self, state: State, job: Job) -> Option<Job> {
        self.state = state;
        Some(job)
    }

    /// As [`Core::next`], if the gates are open.
    fn enter(&mut self, state: State, job: Job, now: Now, rng: &mut fastrand::Rng) -> Option<Job> {
        match self.gate(now) {
            None => self.next(state, job),
            Some(gate) => self.wait(gate, now, rng),
        }
    }

    fn wait(&mut self, gate: Gate, now: Now, rng: &mut fastrand::Rng) -> Option<Job> {
        self.state = State::Waiting(gate);
        self.forced = false;
        self.schedule(now, rng);
        let opens = match gate {
            // Not all at the moment it opens, and early enough to get through.
            Gate::Window => now.window.0 + (now.window.1 / 2).min(self.policy.interval).mul_f64(rng.f64()),
            Gate::Budget => {
                now.budget.unwrap_or(self.policy.interval) + self.policy.interval.mul_f64(rng.f64())
            }
        };
        let opens = now.boot + opens;
        // The polls before it opens stay regular; the one at the opening comes in addition.
        self.next_poll = self.next_poll.min(opens);
        self.after(now)
    }

    /// A round that ended well.
    fn rest(&mut self, now: Now, rng: &mut fastrand::Rng) -> Option<Job> {
        self.state = State::Idle;
        self.failures = 0;
        self.trouble = None;
        self.schedule(now, rng);
        self.after(now)
    }

    fn after(&mut self, now: Now) -> Option<Job> {
        let again = self.again.take();
        self.forced = again == Some(true);
        again.map(|_| self.poll(now))
    }

    fn schedule(&mut self, now: Now, rng: &mut fastrand::Rng) {
        self.next_poll = now.boot + self.policy.interval.mul_f64(jitter(rng));
    }

    fn give_up(&mut self, trouble: Trouble, now: Now, rng: &mut fastrand::Rng) -> Option<Job> {
        self.state = State::Idle;
        let (min, max) = self.policy.retry;
        let doubled = min.saturating_mul(1 << self.failures.min(DOUBLINGS_MAX)).min(max);
        // The floor keeps an unlucky series of zeros from hammering.
        let backoff = min / 2 + doubled.saturating_sub(min / 2).mul_f64(rng.f64());
        match &trouble {
            Trouble::Passing(_) => {
                self.failures = self.failures.saturating_add(1);
                self.next_poll = now.boot + backoff;
            }
            Trouble::Busy(after, _) => {
                self.failures = self.failures.saturating_add(1);
                // Never earlier than it said, and not all devices in the same second.
                self.next_poll = now.boot + (*after).min(RETRY_AFTER_MAX) + backoff;
            }
            Trouble::Refused(_) | Trouble::Space(_) => {
                self.failures = self.failures.saturating_add(1);
                self.schedule(now, rng);
            }
            Trouble::Budget(_) => {
                self.trouble = Some(trouble);
                return self.wait(Gate::Budget, now, rng);
            }
        }
        self.trouble = Some(trouble);
        self.after(now)
    }

    fn go_back(&mut self, why: String) -> Job {
        self.state = State::RollingBack;
        self.next_probe = None;
        Job::RollBack { why, quarantine: true }
    }
}

/// Give or take a tenth.
fn jitter(rng: &mut fastrand::Rng) -> f64 {
    0.9 + 0.2 * rng.f64()
}

/// A uniform moment within an interval that is under way. That interval gives or takes a tenth as well, and longer ones
/// are met more often: with this, a fleet that starts in one second asks evenly from then on. A plain interval here
/// would make a crest of half the load again when the second polls of some meet the first ones of others.
fn first_wait(interval: Duration, rng: &mut fastrand::Rng) -> Duration {
    let length = loop {
        let length = jitter(rng);
        if rng.f64() * 1.1 <= length {
            break length;
        }
    };
    interval.mul_f64(length * rng.f64())
}

fn pace(stable: Duration) -> Duration {
    (stable / 5).clamp(PROBE_MIN, PROBE_MAX)
}

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

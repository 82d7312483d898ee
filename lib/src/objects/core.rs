//! Decisions: which message is uploaded when, what an outcome means for it, and when everything has to wait.
//!
//! A message takes one of `workers` places and keeps it until it is stored or in the dead-letter folder, so memory is
//! bounded by that many messages. Inputs are messages, outcomes and the time; outputs are [`Action`]s. No I/O here.
//!
//! The target's states:
//! - `Open`: every message is uploaded; one that meets a transient failure waits in its place (full jitter) and the
//!   others go on.
//! - `Held`: the target refused us (no credentials, 403, no bucket, no space): nothing is uploaded but one probe, the
//!   message that waited longest, again and again with growing delays. Nothing is dropped. When the probe gets any other
//!   answer than a refusal of that kind or a transient failure, the target is open again.

use std::time::{Duration, Instant};

use crate::retry::Backoff;

/// What became of one upload attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored durably.
    Stored {
        /// The same content was there already: a duplicate, or our own upload whose answer was lost.
        already: bool,
    },
    /// Something passing: try again.
    Retry(String),
    /// The target refuses us, not this object: hold everything.
    Hold(String),
    /// The target refuses this object; after some attempts it goes to the dead letters.
    Refused(String),
    /// It can never be stored: to the dead letters at once.
    Dead(String),
}

/// Bounds of the policy.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Messages uploaded at once.
    pub workers: usize,
    /// How often an object may be refused before it is a dead letter.
    pub refusals_max: u32,
    /// First and last ceiling of the delay after a transient failure.
    pub retry: (Duration, Duration),
    /// First and last ceiling of the delay between probes of a held target.
    pub hold: (Duration, Duration),
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action<J> {
    /// Upload the message in this place.
    Run {
        /// To be named in [`Core::finished`].
        place: usize,
        /// The message.
        job: J,
    },
    /// It is stored: acknowledge it to the spool.
    Ack(J),
    /// Put it into the dead-letter folder.
    DeadLetter(J, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Waiting(Instant),
    /// Until the target is open again.
    Parked,
}

#[derive(Debug)]
struct Place<J> {
    job: J,
    phase: Phase,
    backoff: Backoff,
    refusals: u32,
    /// Order of arrival.
    age: u64,
}

/// What the target is like.
#[derive(Clone, Debug)]
enum Target {
    Open,
    Held { since: Instant, why: String, next: Instant, probing: Option<usize> },
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Stored, those included that were there already.
    pub stored: u64,
    /// Were there already.
    pub already: u64,
    /// Transient failures.
    pub retries: u64,
    /// Refusals of an object.
    pub refusals: u64,
    /// Dead letters.
    pub dead: u64,
    /// Times that the target refused us.
    pub holds: u64,
}

/// The decisions.
#[derive(Debug)]
pub struct Core<J> {
    policy: Policy,
    places: Vec<Option<Place<J>>>,
    target: Target,
    hold_backoff: Backoff,
    arrivals: u64,
    counts: Counts,
    /// The last transient failure, until something is stored.
    trouble: Option<(Instant, String)>,
    rng: fastrand::Rng,
}

impl<J: Clone> Core<J> {
    /// Decides by `policy`; `rng` spreads the delays.
    #[must_use]
    pub fn new(policy: Policy, rng: fastrand::Rng) -> Self {
        let places = (0..policy.workers.max(1)).map(|_| None).collect();
        let hold_backoff = Backoff::new(policy.hold.0, policy.hold.1, Duration::ZERO);
        let counts = Counts::default();
        Self { policy, places, target: Target::Open, hold_backoff, arrivals: 0, counts, trouble: None, rng }
    }

    /// Whether another message can be given to [`Core::begin`].
    #[must_use]
    pub fn has_room(&self) -> bool {
        matches!(self.target, Target::Open) && self.places.iter().any(Option::is_none)
    }

    /// How many messages have places.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.places.iter().flatten().count()
    }

    /// How many uploads run right now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.places.iter().flatten().filter(|p| p.phase == Phase::Running).count()
    }

    /// Why everything is held, and since when.
    #[must_use]
    pub fn held(&self) -> Option<(Instant, &str)> {
        match &self.target {
            Target::Open => None,
            Target::Held { since, why, .. } => Some((*since, why)),
        }
    }

    /// The latest transient failure since the last success.
    #[must_use]
    pub fn trouble(&self) -> Option<(Instant, &str)> {
        self.trouble.as_ref().map(|(since, why)| (*since, why.as_str()))
    }

    /// Counters since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A message to upload.
    ///
    /// # Errors
    /// Gives it back when there is no room.
    pub fn begin(&mut self, job: J) -> Result<Action<J>, J> {
        let free = self.places.iter().position(Option::is_none).filter(|_| self.has_room());
        let Some(place) = free else { return Err(job) };
        let backoff = Backoff::new(self.policy.retry.0, self.policy.retry.1, Duration::ZERO);
        self.arrivals += 1;
        let age = self.arrivals;
        self.places[place] =
            Some(Place { job: job.clone(), phase: Phase::Running, backoff, refusals: 0, age });
        Ok(Action::Run { place, job })
    }

    /// An upload ended.
    pub fn finished(&mut self, place: usize, outcome: Outcome, now: Instant) -> Vec<Action<J>> {
        let mut actions = Vec::new();
        let Some(Some(entry)) = self.places.get_mut(place) else { return actions };
        if entry.phase != Phase::Running {
            return actions;
        }
        let was_probe = matches!(&self.target, Target::Held { probing: Some(p), .. } if *p == place);
        match &outcome {
            Outcome::Hold(why) => {
                entry.phase = Phase::Parked;
                self.hold(why, was_probe, now);
                return actions;
            }
            Outcome::Retry(why) => {
                self.counts.retries += 1;
                match &mut self.trouble {
                    Some((_, last)) => last.clone_from(why),
                    none => *none = Some((now, why.clone())),
                }
                entry.phase = Phase::Waiting(now + entry.backoff.next_delay(now, &mut self.rng));
                if was_probe {
                    // It says nothing about what holds us: the next probe comes at its own time.
                    entry.phase = Phase::Parked;
                    self.plan_probe(now);
                }
                return actions;
            }
            Outcome::Stored { already } => {
                self.counts.stored += 1;
                self.counts.already += u64::from(*already);
                self.trouble = None;
                if let Some(entry) = self.places[place].take() {
                    actions.push(Action::Ack(entry.job));
                }
            }
            Outcome::Refused(why) => {
                self.counts.refusals += 1;
                entry.refusals += 1;
                if entry.refusals >= self.policy.refusals_max {
                    let why = format!("refused {} times: {why}", entry.refusals);
                    self.bury(place, why, &mut actions);
                } else {
                    entry.phase = Phase::Waiting(now + entry.backoff.next_delay(now, &mut self.rng));
                }
            }
            Outcome::Dead(why) => self.bury(place, why.clone(), &mut actions),
        }
        if was_probe {
            self.open(&mut actions);
        }
        actions
    }

    /// Uploads whose delay is over.
    pub fn due(&mut self, now: Instant) -> Vec<Action<J>> {
        let mut actions = Vec::new();
        if let Target::Held { next, probing, .. } = &mut self.target {
            let oldest = self.places.iter_mut().enumerate().filter_map(|(n, p)| Some((n, p.as_mut()?)));
            let oldest = oldest.filter(|(_, p)| p.phase != Phase::Running).min_by_key(|(_, p)| p.age);
            if probing.is_none()
                && *next <= now
                && let Some((place, entry)) = oldest
            {
                entry.phase = Phase::Running;
                *probing = Some(place);
                actions.push(Action::Run { place, job: entry.job.clone() });
            }
            return actions;
        }
        for (place, entry) in self.places.iter_mut().enumerate() {
            if let Some(entry) = entry
                && matches!(entry.phase, Phase::Waiting(at) if at <= now)
            {
                entry.phase = Phase::Running;
                actions.push(Action::Run { place, job: entry.job.clone() });
            }
        }
        actions
    }

    /// When [`Core::due`] has something.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match &self.target {
            Target::Held { probing: Some(_), .. } => None,
            Target::Held { next, .. } => Some(*next),
            Target::Open => {
                let waiting = self.places.iter().flatten().filter_map(|p| match p.phase {
                    Phase::Waiting(at) => Some(at),
                    Phase::Running | Phase::Parked => None,
                });
                waiting.min()
            }
        }
    }

    fn hold(&mut self, why: &str, was_probe: bool, now: Instant) {
        match &mut self.target {
            Target::Open => {
                self.counts.holds += 1;
                let next = now + self.hold_backoff.next_delay(now, &mut self.rng);
                self.target = Target::Held { since: now, why: why.to_owned(), next, probing: None };
            }
            Target::Held { why: last, .. } => {
                why.clone_into(last);
                if was_probe {
                    self.plan_probe(now);
                }
            }
        }
    }

    fn plan_probe(&mut self, now: Instant) {
        let delay = self.hold_backoff.next_delay(now, &mut self.rng);
        if let Target::Held { next, probing, .. } = &mut self.target {
            *next = now + delay;
            *probing = None;
        }
    }

    fn open(&mut self, actions: &mut Vec<Action<J>>) {
        self.target = Target::Open;
        self.hold_backoff = Backoff::new(self.policy.hold.0, self.policy.hold.1, Duration::ZERO);
        for (place, entry) in self.places.iter_mut().enumerate() {
            if let Some(entry) = entry
                && entry.phase == Phase::Parked
            {
                entry.phase = Phase::Running;
                actions.push(Action::Run { place, job: entry.job.clone() });
            }
        }
    }

    fn bury(&mut self, place: usize, why: String, actions: &mut Vec<Action<J>>) {
        self.counts.dead += 1;
        if let Some(entry) = self.places[place].take() {
            actions.push(Action::DeadLetter(entry.job, why));
        }
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

//! One stream's session with the service: what is sent, what is sent again, when to connect and when to change over.
//!
//! Sans-I/O: units, answers and time go in, bytes and [`Action`]s come out. Invariants:
//! * a fragment leaves the ring when the service says PERSISTED, or when it refused it for what it is, or (counted) when
//!   there is no room; never otherwise;
//! * a connection carries fragments of one run, in order, each whole; a new one begins with the oldest that is kept;
//! * there is one connection at a time (the service throttles a second): at a change-over the old one is finished first,
//!   while the credentials and the address for the next are at hand already.

mod report;
mod send;
mod time;
mod types;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::retry::Backoff;

use super::ack::{Ack, Kind};
use super::fragment::{Begin, Cutter, End, Fragment, Pushed};
use super::ring::Ring;
use crate::unit::Unit;
pub use types::{Action, Counts, Now, Policy, Prepared, State};

use send::Conn;
use types::meaning;

/// How long the service may take to connect.
const OPEN: Duration = Duration::from_secs(20);
/// A renewal that brought nothing is tried again after this.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// A fragment that was refused this often for what it is is not sent again.
const REFUSALS_MAX: u32 = 3;
/// Ends of credentials that are nearer than this are the same end, read twice.
const SAME: Duration = Duration::from_secs(5);
/// INVALID_MKV_DATA.
const INVALID: u32 = 4006;

/// The error ids that speak of the fragment itself, beside [`INVALID`]: its size, its duration, its tracks, its tags.
const ABOUT_THE_FRAGMENT: [u32; 6] = [4001, 4002, 4005, 4009, 4010, 4011];

/// See the module's text.
#[derive(Debug)]
pub struct Session {
    policy: Policy,
    cutter: Cutter,
    ring: Ring,
    state: State,
    since_ms: u64,
    conn: Option<Conn>,
    /// At hand for the connection being made.
    prepared: Prepared,
    /// At hand for the next connection, while there is one.
    next: Option<Prepared>,
    asking: bool,
    ask_at: Option<Instant>,
    /// The last credentials were refused.
    fresh: bool,
    actions: VecDeque<Action>,
    backoff: Backoff,
    rng: fastrand::Rng,
    unit_at: Option<Instant>,
    stopping: bool,
    why: Option<String>,
    persisted_ms: Option<u64>,
    /// Fragments below were sent at least once.
    sent_below: u64,
    counts: Counts,
}

impl Session {
    /// A session over a ring that may hold what a former run left.
    #[must_use]
    pub fn new(policy: Policy, ring: Ring, seed: u64, now: Now) -> Session {
        let (min, max) = policy.backoff;
        // The wait's floor is half of the first ceiling, so that the configured minimum is one.
        let backoff = Backoff::new(min * 2, max, Duration::from_secs(5));
        let first_run = ring.last_run().map_or(0, |run| run + 1);
        let cutter = Cutter::new(policy.fragment, first_run);
        let (rng, prepared) = (fastrand::Rng::with_seed(seed), Prepared { expires: None });
        let mut session = Session {
            policy,
            cutter,
            ring,
            state: State::Idle,
            since_ms: now.unix_ms,
            conn: None,
            prepared,
            next: None,
            asking: false,
            ask_at: None,
            fresh: false,
            actions: VecDeque::new(),
            backoff,
            rng,
            unit_at: None,
            stopping: false,
            why: None,
            persisted_ms: None,
            sent_below: 0,
            counts: Counts::default(),
        };
        session.begin(now);
        session
    }

    fn enter(&mut self, state: State, now: Now) {
        if std::mem::discriminant(&state) != std::mem::discriminant(&self.state) {
            self.since_ms = now.unix_ms;
        }
        self.state = state;
    }

    /// What to do next, until `None`.
    pub fn action(&mut self) -> Option<Action> {
        if let Some(why) = self.ring.take_trouble() {
            self.actions.push_back(Action::Warn(format!("the fragments on disk: {why}")));
        }
        self.actions.pop_front()
    }

    /// A frame.
    pub fn push(&mut self, unit: &Unit, now: Now) {
        self.unit_at = Some(now.at);
        let open = self.ring.open();
        let before = open.as_ref().map_or(0, |open| open.blocks.len());
        match self.cutter.push(unit, open) {
            Pushed::Added => {
                let after = self.ring.open().map_or(before, |open| open.blocks.len());
                self.ring.grown(after - before);
            }
            Pushed::NoKey => self.counts.frames_without_key += 1,
            Pushed::Begins(begin) => {
                let Begin { run, start_ms } = *begin;
                let (seq, end) = (self.ring.next_seq(), End::Open);
                let mut fragment =
                    Fragment { seq, run, start_ms, length_ms: 0, frames: 0, blocks: Vec::new(), end };
                self.cutter.begin(&mut fragment, unit);
                self.ring.push(fragment);
            }
        }
        self.trim();
        self.begin(now);
    }

    fn trim(&mut self) {
        self.ring.trim(self.conn.as_ref().and_then(|conn| conn.sending).map(|(seq, _)| seq));
    }

    /// Whether a key frame would help now; true once.
    pub fn take_key_wanted(&mut self) -> bool {
        !self.stopping && self.cutter.take_key_wanted()
    }

    /// Begins to connect if there is a reason.
    fn begin(&mut self, now: Now) {
        if self.state == State::Idle && !self.ring.is_empty() && !self.stopping {
            self.ask();
            self.enter(State::Asking, now);
        }
    }

    fn ask(&mut self) {
        if !self.asking {
            self.asking = true;
            self.actions.push_back(Action::Ask { fresh: std::mem::take(&mut self.fresh) });
        }
    }

    /// The answer to [`Action::Ask`].
    pub fn prepared(&mut self, answer: Result<Prepared, String>, now: Now) {
        self.asking = false;
        match (self.state, answer) {
            (State::Asking, Ok(prepared)) => {
                self.prepared = prepared;
                self.open(now);
            }
            (State::Asking, Err(why)) => self.fail(why, now),
            (State::Open, Ok(prepared)) => {
                let conn = self.conn.as_ref();
                let worse = |ours: Instant| prepared.expires.is_some_and(|theirs| theirs <= ours + SAME);
                let ending = conn.and_then(|c| c.expires).filter(|end| *end <= now.at + self.policy.renew);
                if ending.is_some_and(worse) {
                    self.ask_at = Some(now.at + ASK_AGAIN);
                } else {
                    self.next = Some(prepared);
                    self.cutter.want_key();
                }
            }
            (State::Finishing(_), Ok(prepared)) => self.next = Some(prepared),
            (State::Open | State::Finishing(_), Err(why)) => {
                self.ask_at = Some(now.at + ASK_AGAIN);
                self.actions
                    .push_back(Action::Warn(format!("the next connection can't be prepared yet: {why}")));
            }
            _ => {}
        }
    }

    fn open(&mut self, now: Now) {
        self.actions.push_back(Action::Open);
        self.enter(State::Opening(now.at + OPEN), now);
    }

    /// The connection stands, TLS included. When the first fragment on it begins, in milliseconds of Unix time: the head
    /// of the request says so. `None`: nothing is to be sent any more; an [`Action::Close`] follows.
    pub fn opened(&mut self, now: Now) -> Option<u64> {
        if !matches!(self.state, State::Opening(_)) {
            return None;
        }
        let Some(first) = self.ring.from(0).map(|entry| &entry.fragment) else {
            self.actions.push_back(Action::Close);
            self.enter(State::Idle, now);
            return None;
        };
        let start_ms = first.start_ms;
        self.counts.connections += 1;
        self.conn = Some(Conn {
            run: Arc::clone(&first.run),
            base_ms: if self.policy.relative { start_ms } else { 0 },
            head: Some(std::array::from_fn(|_| self.rng.u8(..))),
            sending: None,
            next_seq: first.seq,
            next_at: now.at,
            sent: VecDeque::new(),
            opened: now.at,
            expires: self.prepared.expires,
            answered: false,
            heard: now.at,
            filled: now.at,
        });
        self.enter(State::Open, now);
        Some(start_ms)
    }

    /// The head of the service's answer: `Ok` for 200, else why it refuses. `credentials`: because of them.
    pub fn answered(&mut self, answer: Result<(), String>, credentials: bool, now: Now) {
        match answer {
            Ok(()) => {
                if let Some(conn) = &mut self.conn {
                    (conn.answered, conn.heard) = (true, now.at);
                    self.why = None;
                    self.since_ms = now.unix_ms;
                }
            }
            Err(why) => {
                self.fresh |= credentials;
                self.fail(why, now);
            }
        }
    }

    /// An acknowledgement.
    pub fn ack(&mut self, ack: &Ack, now: Now) {
        let Some(conn) = &mut self.conn else { return };
        conn.heard = now.at;
        let at = conn.sent.iter().position(|sent| Some(sent.timecode_ms) == ack.timecode_ms);
        match &ack.kind {
            Kind::Persisted => {
                let Some(at) = at.filter(|at| conn.sent.get(*at).is_some_and(|sent| sent.done.is_some()))
                else {
                    return;
                };
                if let Some(sent) = conn.sent.remove(at) {
                    self.ring.remove(sent.seq);
                    self.counts.persisted += 1;
                    self.persisted_ms = Some(now.unix_ms);
                    self.backoff.connected(conn.opened);
                }
                if matches!(self.state, State::Finishing(_)) && conn.sent.is_empty() {
                    self.actions.push_back(Action::Close);
                    self.over(now);
                }
            }
            Kind::Error { id, code } => {
                let seq = at.and_then(|at| conn.sent.get(at)).map(|sent| sent.seq);
                if let Some(seq) = seq {
                    self.refused(seq, *id, code);
                }
                self.fail(format!("the service answers {id} {code} to a fragment{}", meaning(*id)), now);
            }
            Kind::Buffering | Kind::Received | Kind::Idle | Kind::Unknown(_) => {}
        }
    }

    /// The service refused this fragment.
    fn refused(&mut self, seq: u64, id: u32, code: &str) {
        let Some(entry) = self.ring.get_mut(seq) else { return };
        let for_what_it_is = id == INVALID || ABOUT_THE_FRAGMENT.contains(&id);
        entry.refusals += u32::from(for_what_it_is);
        if for_what_it_is && (id == INVALID || entry.refusals >= REFUSALS_MAX) {
            let (start_ms, open) = (entry.fragment.start_ms, entry.fragment.end == End::Open);
            if open {
                self.cutter.abandon();
            }
            self.ring.remove(seq);
            self.counts.refused += 1;
            let when = edge::clock::rfc3339_ms(start_ms);
            self.actions.push_back(Action::Warn(format!(
                "the fragment of {when} is refused as {id} {code}: it is dropped and not sent again"
            )));
        }
    }

    /// The connection is gone, or was not made.
    pub fn closed(&mut self, why: &str, now: Now) {
        match self.state {
            State::Opening(_) | State::Open => self.fail(why.to_owned(), now),
            State::Finishing(_) => self.over(now),
            _ => {}
        }
    }

    /// A connection has ended as it should.
    fn over(&mut self, now: Now) {
        self.conn = None;
        self.trim();
        if self.stopping {
            self.enter(State::Stopped, now);
        } else if let Some(next) = self.next.take() {
            self.prepared = next;
            if self.ring.is_empty() { self.enter(State::Idle, now) } else { self.open(now) }
        } else {
            self.enter(State::Idle, now);
            self.begin(now);
        }
    }

    fn fail(&mut self, why: String, now: Now) {
        if matches!(self.state, State::Opening(_) | State::Open | State::Finishing(_)) {
            self.actions.push_back(Action::Close);
        }
        self.conn = None;
        self.next = None;
        self.why = Some(why);
        if self.stopping {
            self.enter(State::Stopped, now);
            return;
        }
        let wait = self.backoff.next_delay(now.at, &mut self.rng);
        self.enter(State::Backoff(now.at + wait), now);
        self.trim();
    }

    /// No frame will come any more: what there is is sent, then the connection is finished.
    pub fn stop(&mut self, now: Now) {
        self.stopping = true;
        if let Some(open) = self.ring.open() {
            self.cutter.pause(open);
        }
        if !matches!(self.state, State::Open | State::Finishing(_)) {
            if matches!(self.state, State::Opening(_)) {
                self.actions.push_back(Action::Close);
            }
            self.enter(State::Stopped, now);
        }
    }

    /// Moves what is left to the disk, if there is one.
    pub fn save(&mut self) {
        self.ring.save();
    }
}

#[cfg(test)]
#[path = "core_sim.rs"]
mod sim;

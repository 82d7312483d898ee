//! One stream's session with the service: what is sent, what is sent again, when to connect and when to change over.
//!
//! Sans-I/O: units, answers and time go in, bytes and [`Action`]s come out. Invariants:
//! * a fragment leaves the ring when the service says PERSISTED, or when it refused it for what it is, or (counted) when
//!   there is no room; never otherwise;
//! * a connection carries fragments of one run, in order, each whole; a new one begins with the oldest that is kept;
//! * there is one connection at a time (the service throttles a second): at a change-over the old one is finished first,
//!   while the credentials and the address for the next are at hand already.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::http::{LAST_CHUNK, chunk};
use edge::retry::Backoff;

use super::ack::{Ack, Kind};
use super::fragment::{Begin, Cutter, End, Fragment, Limits, Pushed, Run};
use super::ring::Ring;
use crate::mkv;
use crate::unit::Unit;

/// Bytes that wait for the socket, at most about.
const FILL: usize = 128 << 10;
/// How long the service may take to acknowledge the rest of a connection that is finished.
const FINISH: Duration = Duration::from_secs(10);
/// How long the service may take to connect.
const OPEN: Duration = Duration::from_secs(20);
/// A renewal that brought nothing is tried again after this.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// A fragment that was refused this often for what it is is not sent again.
const REFUSALS_MAX: u32 = 3;
/// Ends of credentials that are nearer than this are the same end, read twice.
const SAME: Duration = Duration::from_secs(5);
/// The service takes five fragments a second, which matters when a backlog is sent.
const FRAGMENT_EVERY: Duration = Duration::from_millis(210);
/// INVALID_MKV_DATA.
const INVALID: u32 = 4006;

/// The error ids that speak of the fragment itself, beside [`INVALID`]: its size, its duration, its tracks, its tags.
const ABOUT_THE_FRAGMENT: [u32; 6] = [4001, 4002, 4005, 4009, 4010, 4011];

/// What a session goes by.
#[derive(Clone, Debug)]
pub struct Policy {
    /// How units become fragments.
    pub fragment: Limits,
    /// Tags of each fragment.
    pub tags: Vec<(String, String)>,
    /// Cluster times count from the connection's start instead of 1970.
    pub relative: bool,
    /// A connection is replaced after this.
    pub rotate: Duration,
    /// Credentials are replaced this long before they end.
    pub renew: Duration,
    /// Without a frame for this long, the fragment ends.
    pub pause: Duration,
    /// Without a frame for this long, the connection ends.
    pub linger: Duration,
    /// Without a sign of the service for this long, it is given up.
    pub stall: Duration,
    /// The waits after failures.
    pub backoff: (Duration, Duration),
}

/// Now, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For intervals.
    pub at: Instant,
    /// Unix time, in milliseconds.
    pub unix_ms: u64,
}

/// What the shell is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Get credentials and the endpoint's address; answer with [`Session::prepared`]. `fresh`: the last credentials were
    /// refused.
    Ask {
        /// Not those known so far.
        fresh: bool,
    },
    /// Connect with what was prepared last; answer with [`Session::opened`] or [`Session::closed`].
    Open,
    /// Close the connection, or stop connecting. No answer.
    Close,
    /// For the log.
    Warn(String),
}

/// Credentials and an endpoint are at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// When the credentials end.
    pub expires: Option<Instant>,
}

/// The state machine. [`Session::enter`] is its only transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is nothing to send.
    Idle,
    /// Credentials and endpoint are being asked for.
    Asking,
    /// A connection is being made, until then at most.
    Opening(Instant),
    /// A connection carries fragments.
    Open,
    /// All is sent; what is not acknowledged yet may be until then.
    Finishing(Instant),
    /// Nothing is tried until then.
    Backoff(Instant),
    /// Over.
    Stopped,
}

/// Counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Fragments that the service has stored.
    pub persisted: u64,
    /// Fragments that it refused for good.
    pub refused: u64,
    /// Frames that had no key frame before them.
    pub frames_without_key: u64,
    /// Connections made.
    pub connections: u64,
    /// Fragments that were sent again.
    pub resent: u64,
    /// Bytes of Matroska that were handed to the connection.
    pub bytes: u64,
}

#[derive(Debug)]
struct Sent {
    seq: u64,
    timecode_ms: u64,
    /// When its last byte was handed over.
    done: Option<Instant>,
}

#[derive(Debug)]
struct Conn {
    run: Arc<Run>,
    /// What cluster times are counted from, in milliseconds of Unix time.
    base_ms: u64,
    /// The head of the Matroska stream is due, with this name.
    head: Option<[u8; 16]>,
    /// The fragment being sent, and how much of its blocks is.
    sending: Option<(u64, usize)>,
    /// The first fragment not looked at yet.
    next_seq: u64,
    /// When the next fragment may begin.
    next_at: Instant,
    /// What waits for PERSISTED.
    sent: VecDeque<Sent>,
    opened: Instant,
    expires: Option<Instant>,
    /// The answer's head has come.
    answered: bool,
    /// The last sign of the service.
    heard: Instant,
    /// When bytes were last handed over.
    filled: Instant,
}

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

    /// Appends what is to be sent next, framed in chunks, as long as `out` is short. To be called whenever `out` has become
    /// shorter, and after every other input.
    pub fn fill(&mut self, out: &mut Vec<u8>, now: Now) {
        if self.state != State::Open || out.len() >= FILL {
            return;
        }
        let mut bytes = Vec::new();
        let mut finish = false;
        while out.len() + bytes.len() < FILL {
            match self.piece(&mut bytes, now) {
                Piece::More => {}
                Piece::Nothing => break,
                Piece::Finish => {
                    finish = true;
                    break;
                }
            }
        }
        if let Some(conn) = &mut self.conn
            && !bytes.is_empty()
        {
            conn.filled = now.at;
        }
        self.counts.bytes += bytes.len() as u64;
        chunk(out, &bytes);
        if finish {
            out.extend_from_slice(LAST_CHUNK);
            self.enter(State::Finishing(now.at + FINISH), now);
            if self.conn.as_ref().is_none_or(|conn| conn.sent.is_empty()) {
                self.actions.push_back(Action::Close);
                self.over(now);
            }
        }
    }

    fn piece(&mut self, out: &mut Vec<u8>, now: Now) -> Piece {
        let Some(conn) = &mut self.conn else { return Piece::Nothing };
        let Some((seq, done)) = conn.sending else { return self.next_fragment(out, now) };
        if let Some(uid) = conn.head.take() {
            mkv::header(out, &conn.run.header, uid);
        }
        let Some(fragment) = self.ring.get(seq).map(|entry| &entry.fragment) else {
            // Neither trimmed nor acknowledged while half sent; if it were, only a new connection is safe.
            self.fail("a fragment was lost while it was being sent".to_owned(), now);
            return Piece::Nothing;
        };
        if done == 0 {
            let tags = self.policy.tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            mkv::tags(out, tags);
            mkv::cluster(out, fragment.start_ms.saturating_sub(conn.base_ms));
        }
        let rest = fragment.blocks.get(done..).unwrap_or_default();
        let piece = &rest[..rest.len().min(FILL / 2)];
        out.extend_from_slice(piece);
        conn.sending = Some((seq, done + piece.len()));
        if piece.len() < rest.len() {
            return Piece::More;
        }
        match fragment.end {
            End::Open if piece.is_empty() => return Piece::Nothing,
            End::Open => return Piece::More,
            End::Pause => mkv::end_of_fragment(out),
            End::Next => {}
        }
        (conn.sending, conn.next_seq) = (None, seq + 1);
        if let Some(sent) = conn.sent.back_mut() {
            sent.done = Some(now.at);
        }
        Piece::More
    }

    /// Chooses the fragment that is sent next.
    fn next_fragment(&mut self, out: &mut Vec<u8>, now: Now) -> Piece {
        let Some(conn) = &mut self.conn else { return Piece::Nothing };
        if self.next.is_some() {
            return Piece::Finish;
        }
        let Some(fragment) = self.ring.from(conn.next_seq).map(|entry| &entry.fragment) else {
            let quiet = self.unit_at.is_none_or(|at| now.at >= at + self.policy.linger);
            let over = self.stopping || quiet && conn.sent.is_empty();
            return if over { Piece::Finish } else { Piece::Nothing };
        };
        if fragment.run.id != conn.run.id {
            return Piece::Finish;
        }
        if now.at < conn.next_at {
            return Piece::Nothing;
        }
        conn.next_at = now.at + FRAGMENT_EVERY;
        let (seq, start_ms) = (fragment.seq, fragment.start_ms);
        if !self.ring.load(seq) {
            return Piece::More;
        }
        let timecode_ms = start_ms.saturating_sub(conn.base_ms);
        conn.sent.push_back(Sent { seq, timecode_ms, done: None });
        conn.sending = Some((seq, 0));
        self.counts.resent += u64::from(seq < self.sent_below);
        self.sent_below = self.sent_below.max(seq + 1);
        self.piece(out, now)
    }

    /// Time has passed.
    pub fn timer(&mut self, now: Now) {
        if self.unit_at.is_some_and(|at| now.at >= at + self.policy.pause)
            && let Some(open) = self.ring.open()
        {
            self.cutter.pause(open);
        }
        match self.state {
            State::Backoff(until) if now.at >= until => {
                self.enter(State::Idle, now);
                self.begin(now);
            }
            State::Opening(until) if now.at >= until => {
                self.fail(format!("no connection within {} s", OPEN.as_secs()), now);
            }
            State::Finishing(until) if now.at >= until => {
                self.actions.push_back(Action::Close);
                self.over(now);
            }
            State::Open => self.watch(now),
            _ => {}
        }
    }

    /// Looks after the connection: its age, its credentials, its silence.
    fn watch(&mut self, now: Now) {
        if self.stalled_at().is_some_and(|at| now.at >= at) {
            let s = self.policy.stall.as_secs_f32();
            self.fail(format!("the service has taken or acknowledged nothing for {s} s"), now);
        } else if self.renew_at().is_some_and(|at| now.at >= at) {
            self.ask_at = None;
            self.ask();
        }
    }

    /// When the connection counts as dead.
    fn stalled_at(&self) -> Option<Instant> {
        let conn = self.conn.as_ref()?;
        let owes = conn.sent.iter().find_map(|sent| sent.done).map(|done| done.max(conn.heard));
        let blocked = self.pending().then_some(conn.filled);
        let silent = (!conn.answered).then_some(conn.opened);
        [owes, blocked, silent].into_iter().flatten().min().map(|at| at + self.policy.stall)
    }

    /// Whether there are bytes that the connection could be given.
    fn pending(&self) -> bool {
        let Some(conn) = &self.conn else { return false };
        match conn.sending {
            Some((seq, done)) => self.ring.get(seq).is_some_and(|e| e.fragment.blocks.len() > done),
            None => self.ring.from(conn.next_seq).is_some(),
        }
    }

    /// When the next connection is to be prepared.
    fn renew_at(&self) -> Option<Instant> {
        let conn = self.conn.as_ref().filter(|_| self.next.is_none() && !self.asking && !self.stopping)?;
        let ends = conn.expires.map(|end| end.checked_sub(self.policy.renew).unwrap_or(conn.opened));
        let due = ends.into_iter().chain([conn.opened + self.policy.rotate]).min()?;
        Some(self.ask_at.map_or(due, |again| again.max(due)))
    }

    /// When [`Session::timer`] is to be called next.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let open = self.ring.is_open();
        let pause = self.unit_at.filter(|_| open).map(|at| at + self.policy.pause);
        let state = match self.state {
            State::Backoff(at) | State::Opening(at) | State::Finishing(at) => Some(at),
            State::Open => {
                // The end of the connection after the last frame is looked at when the shell fills.
                let quiet = self.conn.as_ref().is_some_and(|c| c.sending.is_none() && c.sent.is_empty());
                let linger = self.unit_at.filter(|_| quiet).map(|at| at + self.policy.linger);
                let paced = self.conn.as_ref().filter(|conn| conn.sending.is_none() && self.pending());
                let paced = paced.map(|conn| conn.next_at);
                [self.stalled_at(), self.renew_at(), linger, paced].into_iter().flatten().min()
            }
            State::Idle | State::Asking | State::Stopped => None,
        };
        [pause, state].into_iter().flatten().min()
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

    /// Where it stands.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the service takes what is sent.
    #[must_use]
    pub fn is_streaming(&self) -> bool {
        self.conn.as_ref().is_some_and(|conn| conn.answered)
    }

    /// Since when, in milliseconds of Unix time.
    #[must_use]
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }

    /// Why there is trouble, if there is.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// When a fragment was last stored, in milliseconds of Unix time.
    #[must_use]
    pub fn persisted_ms(&self) -> Option<u64> {
        self.persisted_ms
    }

    /// Counters.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What is kept.
    #[must_use]
    pub fn ring(&self) -> &Ring {
        &self.ring
    }
}

enum Piece {
    More,
    Nothing,
    Finish,
}

/// What the person at the device can do about an error id.
fn meaning(id: u32) -> &'static str {
    match id {
        4003 => " (the connection is too old: lower rotate-s)",
        4004 => " (its time is before that of the one before)",
        4007 => " (its time is refused: is the clock of this device right?)",
        4008 => " (the stream is not active: is it being created or deleted?)",
        4500..=4506 => " (the stream's KMS key can't be used: see its policy)",
        _ => "",
    }
}

#[cfg(test)]
#[path = "core_sim.rs"]
mod sim;

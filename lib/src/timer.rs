//! The deadline heap: which of a daemon's named timers fires next.
//!
//! Owns: one deadline per key. Invariant: `by_time` and `by_key` hold the same pairs.
//! Never: acts on its own; the earliest deadline is the timeout of the daemon's poll ([`wait`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

/// Deadlines by key. `K` is an enum that names each timer of the daemon.
#[derive(Debug, Clone)]
pub struct Timers<K> {
    by_time: BTreeSet<(Instant, K)>,
    by_key: BTreeMap<K, Instant>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Timers { by_time: BTreeSet::new(), by_key: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Timers<K> {
    /// No timer set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key` to fire at `at`, instead of whenever it was to fire before.
    pub fn set(&mut self, key: K, at: Instant) {
        self.cancel(&key);
        self.by_time.insert((at, key.clone()));
        self.by_key.insert(key, at);
    }

    /// Sets `key` to `at`, or cancels it where `at` is `None`.
    pub fn set_or_cancel(&mut self, key: K, at: Option<Instant>) {
        match at {
            Some(at) => self.set(key, at),
            None => self.cancel(&key),
        }
    }

    /// Forgets `key`; nothing happens if it is not set.
    pub fn cancel(&mut self, key: &K) {
        if let Some(at) = self.by_key.remove(key) {
            self.by_time.remove(&(at, key.clone()));
        }
    }

    /// Whether `key` is to fire.
    pub fn is_set(&self, key: &K) -> bool {
        self.by_key.contains_key(key)
    }

    /// When the earliest timer fires.
    pub fn deadline(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Removes and returns the earliest timer that is due at `now`.
    pub fn pop(&mut self, now: Instant) -> Option<K> {
        if self.deadline()? > now {
            return None;
        }
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }
}

/// Sleeps until a source of `poll` is ready or the earliest of `deadlines` has come; for ever where there is none. A
/// deadline that has passed does not let it sleep. It may wake up for nothing.
///
/// # Errors
/// What `epoll_wait(2)` says; an interruption is a wake-up.
pub fn wait(
    poll: &mut Poll,
    events: &mut Events,
    deadlines: impl IntoIterator<Item = Option<Instant>>,
) -> io::Result<()> {
    match poll.poll(events, poll_timeout(Instant::now(), deadlines)) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// How long a poll may sleep for the earliest of `deadlines`: `None` is for ever.
///
/// Rounded up to the next millisecond, because `epoll_wait` counts in milliseconds and a timeout rounded down would
/// spin until the deadline is reached.
pub fn poll_timeout(now: Instant, deadlines: impl IntoIterator<Item = Option<Instant>>) -> Option<Duration> {
    let earliest = deadlines.into_iter().flatten().min()?;
    let wait = earliest.saturating_duration_since(now);
    Some(Duration::from_millis(wait.as_nanos().div_ceil(1_000_000).try_into().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fires_in_order_of_time_and_only_when_due() {
        let t0 = Instant::now();
        let at = |ms| t0 + Duration::from_millis(ms);
        let mut timers = Timers::new();
        timers.set("b", at(20));
        timers.set("a", at(10));
        timers.set("b", at(5));
        assert_eq!(timers.deadline(), Some(at(5)));
        assert_eq!(timers.pop(at(4)), None);
        assert_eq!(timers.pop(at(50)), Some("b"));
        assert_eq!(timers.pop(at(50)), Some("a"));
        assert_eq!(timers.pop(at(50)), None);
        timers.set("c", at(1));
        timers.cancel(&"c");
        assert_eq!(timers.deadline(), None);
    }

    #[test]
    fn the_timeout_is_rounded_up() {
        let now = Instant::now();
        assert_eq!(poll_timeout(now, [None, None]), None);
        let soon = now + Duration::from_micros(1);
        assert_eq!(poll_timeout(now, [None, Some(soon)]), Some(Duration::from_millis(1)));
        assert_eq!(poll_timeout(soon, [Some(now)]), Some(Duration::ZERO));
    }
}

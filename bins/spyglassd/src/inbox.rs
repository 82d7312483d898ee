//! Units on their way to a thread of an output: pushed without blocking, bounded in bytes.
//!
//! Invariant: what was dropped is dropped up to the next key frame, so that nothing is handed on that can't be decoded.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::unit::Unit;

#[derive(Debug, Default)]
struct State {
    units: VecDeque<Unit>,
    bytes: usize,
    dropped: u64,
    /// Something was dropped: nothing is taken before a key frame.
    broken: bool,
}

/// See the module's text.
#[derive(Debug)]
pub struct Inbox {
    state: Mutex<State>,
    bytes_max: usize,
}

impl Inbox {
    /// At most so many bytes wait.
    #[must_use]
    pub fn new(bytes_max: usize) -> Inbox {
        Inbox { state: Mutex::default(), bytes_max }
    }

    /// Takes a unit, or drops and counts it.
    pub fn push(&self, unit: &Unit) {
        let mut state = self.lock();
        state.broken &= !unit.key;
        if state.broken || state.bytes + unit.data.len() > self.bytes_max {
            state.dropped += 1;
            state.broken = true;
            return;
        }
        state.bytes += unit.data.len();
        state.units.push_back(unit.clone());
    }

    /// All that waits.
    #[must_use]
    pub fn take(&self) -> VecDeque<Unit> {
        let mut state = self.lock();
        state.bytes = 0;
        std::mem::take(&mut state.units)
    }

    /// Units dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A thread that panicked with the lock left a whole state: no step in here can fail half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_dropped_up_to_a_key_frame() {
        let inbox = Inbox::new(10);
        let push = |n: u64, bytes: usize, key: bool| {
            inbox.push(&Unit { pts_ns: n, wall_ms: 0, key, data: vec![0; bytes].into() });
        };
        push(0, 6, true);
        push(1, 6, false);
        push(2, 1, false);
        push(3, 1, true);
        push(4, 9, true);
        let seen: Vec<u64> = inbox.take().iter().map(|u| u.pts_ns).collect();
        assert_eq!((seen, inbox.dropped()), (vec![0, 3], 3));
        push(5, 1, false);
        push(6, 9, true);
        assert_eq!((inbox.take().len(), inbox.dropped()), (1, 4));
    }
}

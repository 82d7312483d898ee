//! What happens because time passes: pauses, waits, silence, age.

use std::time::Instant;

use super::{Action, Now, OPEN, Session, State};

impl Session {
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
}

//! The answers kept in memory, by the canonical form of their question.
//!
//! Invariants: never more than its bound of bytes (as counted); what was not asked for the longest goes first; nothing
//! that was looked up before the catalog changed is given out after the change was seen.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::core::Resolved;
use crate::query::Question;

/// Details that are ready to be sent.
#[derive(Debug)]
pub struct Body {
    pub bytes: Vec<u8>,
    /// Its tag, without quotes.
    pub tag: String,
}

#[derive(Debug)]
struct Kept {
    resolved: Arc<Resolved>,
    /// By what the device has.
    bodies: BTreeMap<Vec<bool>, Arc<Body>>,
    since: Instant,
    bytes: usize,
    used: u64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Answers {
    kept: HashMap<Arc<Question>, Kept>,
    order: BTreeMap<u64, Arc<Question>>,
    tick: u64,
    bytes: usize,
    bytes_max: usize,
    /// Set: answers are trusted for so long and no longer.
    ttl: Option<Duration>,
}

/// The most bodies of one question; devices with other states get theirs made anew.
const BODIES_MAX: usize = 64;

impl Answers {
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self { kept: HashMap::new(), order: BTreeMap::new(), tick: 0, bytes: 0, bytes_max, ttl: None }
    }

    /// Another bound of bytes, another time to trust them.
    pub fn configure(&mut self, bytes_max: usize, ttl: Option<Duration>) {
        self.bytes_max = bytes_max;
        self.ttl = ttl;
        self.shrink();
    }

    /// Bytes, as counted, and answers.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.bytes, self.kept.len())
    }

    /// Forgets everything: the catalog has changed.
    pub fn clear(&mut self) {
        self.kept.clear();
        self.order.clear();
        self.bytes = 0;
    }

    /// What the question came to.
    pub fn get(&mut self, question: &Question, now: Instant) -> Option<Arc<Resolved>> {
        let kept = self.kept.get_mut(question)?;
        if self.ttl.is_some_and(|ttl| now.saturating_duration_since(kept.since) >= ttl) {
            let used = kept.used;
            self.remove(used);
            return None;
        }
        // Within the newest few nothing need be put in order, which is where the busy ones are.
        if kept.used + 16 < self.tick
            && let Some(question) = self.order.remove(&kept.used)
        {
            self.tick += 1;
            kept.used = self.tick;
            self.order.insert(self.tick, question);
        }
        Some(Arc::clone(&kept.resolved))
    }

    /// Keeps what a question came to.
    pub fn insert(&mut self, question: Arc<Question>, resolved: Arc<Resolved>, now: Instant) {
        if let Some(used) = self.kept.get(&question).map(|kept| kept.used) {
            self.remove(used);
        }
        let bytes = question.bytes() + resolved.bytes() + 256;
        self.tick += 1;
        let kept = Kept { resolved, bodies: BTreeMap::new(), since: now, bytes, used: self.tick };
        self.bytes += bytes;
        self.order.insert(self.tick, Arc::clone(&question));
        self.kept.insert(question, kept);
        self.shrink();
    }

    /// The details for devices in that state.
    pub fn body(&self, question: &Question, held: &[bool]) -> Option<Arc<Body>> {
        self.kept.get(question)?.bodies.get(held).cloned()
    }

    /// Keeps the details for devices in that state.
    pub fn insert_body(&mut self, question: &Question, held: Vec<bool>, body: Arc<Body>) {
        let Some(kept) = self.kept.get_mut(question) else { return };
        if kept.bodies.len() < BODIES_MAX && !kept.bodies.contains_key(&held) {
            let bytes = body.bytes.len() + held.len() + 128;
            kept.bytes += bytes;
            self.bytes += bytes;
            kept.bodies.insert(held, body);
            self.shrink();
        }
    }

    fn remove(&mut self, used: u64) {
        if let Some(kept) = self.order.remove(&used).and_then(|question| self.kept.remove(&question)) {
            self.bytes -= kept.bytes;
        }
    }

    fn shrink(&mut self) {
        while self.bytes > self.bytes_max {
            let Some(oldest) = self.order.first_key_value().map(|(used, _)| *used) else { return };
            self.remove(oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(n: usize) -> Arc<Question> {
        let asked = crate::query::parse(&format!("cpuArch=a{n}")).unwrap();
        Arc::new(asked.question)
    }

    #[test]
    fn the_bound_holds_and_the_asked_for_stay() {
        let now = Instant::now();
        let mut answers = Answers::new(64 << 10);
        for n in 0..1000 {
            answers.insert(question(n), Arc::new(Resolved::default()), now);
            assert!(answers.get(&question(0), now).is_some(), "{n}");
            let body = Body { bytes: vec![0; n], tag: String::new() };
            answers.insert_body(&question(n), vec![true], Arc::new(body));
            assert!(answers.size().0 <= 64 << 10);
        }
        assert!(answers.get(&question(1), now).is_none());
        answers.configure(0, None);
        assert_eq!(answers.size(), (0, 0));
    }

    #[test]
    fn time_and_changes_end_them() {
        let now = Instant::now();
        let mut answers = Answers::new(64 << 10);
        answers.configure(64 << 10, Some(Duration::from_secs(10)));
        answers.insert(question(0), Arc::new(Resolved::default()), now);
        assert!(answers.get(&question(0), now + Duration::from_secs(9)).is_some());
        assert!(answers.get(&question(0), now + Duration::from_secs(10)).is_none());
        assert_eq!(answers.size(), (0, 0));
        answers.insert(question(0), Arc::new(Resolved::default()), now);
        answers.clear();
        assert!(answers.get(&question(0), now).is_none());
    }
}

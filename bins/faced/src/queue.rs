//! What is to be published and not yet acknowledged: bounded in bytes, age and number in flight.
//!
//! Owns: the messages until the broker took them. Invariants: messages leave in the order they came; a message that was
//! sent is sent again unchanged (DUP) as long as the broker keeps the session; over the bound the oldest waiting face
//! goes, its event with it. A message whose first sending a lost connection delayed is `late`.
//! Never: sends (the caller does), looks at a clock.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::mqtt::Message;

use crate::face::Face;

/// What a queued item becomes when it is sent.
#[derive(Debug, Clone)]
pub enum Body {
    /// The crop.
    Crop(Vec<u8>),
    /// The JSON event.
    Event,
}

/// A message to be.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its metadata.
    pub face: Arc<Face>,
    /// What it carries.
    pub body: Body,
    /// When it was queued.
    pub queued: Instant,
    /// The broker was away before it could be sent.
    pub late: bool,
}

impl Item {
    fn bytes(&self) -> u64 {
        const METADATA: u64 = 1024;
        match &self.body {
            Body::Crop(payload) => payload.len() as u64 + METADATA,
            Body::Event => METADATA,
        }
    }
}

#[derive(Debug)]
struct Flight {
    item: Item,
    message: Message,
    order: u64,
    /// QoS 2: PUBREC came, PUBREL is on its way.
    received: bool,
}

/// What to send again after a reconnect.
#[derive(Debug, PartialEq, Eq)]
pub enum Resend {
    /// PUBLISH with DUP.
    Publish(u16, Message),
    /// PUBREL.
    Release(u16),
}

/// Counters of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Faces the broker took.
    pub published: u64,
    /// Events the broker took.
    pub events: u64,
    /// Faces among them that were late.
    pub late: u64,
    /// Faces given up: bound, age.
    pub dropped: u64,
    /// Faces the broker refused for good.
    pub refused: u64,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    bytes_max: u64,
    age_max: Duration,
    waiting: VecDeque<Item>,
    flight: BTreeMap<u16, Flight>,
    bytes: u64,
    order: u64,
    connected: bool,
    counts: Counts,
}

impl Queue {
    /// An empty queue; the broker is away.
    #[must_use]
    pub fn new(bytes_max: u64, age_max: Duration) -> Queue {
        Queue {
            bytes_max,
            age_max,
            waiting: VecDeque::new(),
            flight: BTreeMap::new(),
            bytes: 0,
            order: 0,
            connected: false,
            counts: Counts::default(),
        }
    }

    /// New bounds, after a reload.
    pub fn set_bounds(&mut self, bytes_max: u64, age_max: Duration) {
        (self.bytes_max, self.age_max) = (bytes_max, age_max);
        self.trim();
    }

    /// Nothing waits and nothing is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.flight.is_empty()
    }

    /// Messages waiting, messages in flight, bytes of both.
    #[must_use]
    pub fn depth(&self) -> (usize, usize, u64) {
        (self.waiting.len(), self.flight.len(), self.bytes)
    }

    /// Whether more than `part` of the bytes allowed are taken.
    #[must_use]
    pub fn is_filled(&self, part: f64) -> bool {
        self.bytes as f64 > self.bytes_max as f64 * part
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Adds a face, and its event if one is wanted.
    pub fn push(&mut self, face: Arc<Face>, payload: Vec<u8>, event: bool, now: Instant) {
        let late = !self.connected;
        let item = |body| Item { face: Arc::clone(&face), body, queued: now, late };
        let mut items = vec![item(Body::Crop(payload))];
        if event {
            items.push(item(Body::Event));
        }
        for item in items {
            self.bytes += item.bytes();
            self.waiting.push_back(item);
        }
        self.trim();
    }

    /// Gives up the oldest waiting faces until the rest fits.
    fn trim(&mut self) {
        while self.bytes > self.bytes_max && !self.waiting.is_empty() {
            self.drop_oldest();
        }
    }

    /// Gives up what waited too long.
    pub fn expire(&mut self, now: Instant) {
        while self.waiting.front().is_some_and(|i| now.saturating_duration_since(i.queued) > self.age_max) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let Some(oldest) = self.waiting.pop_front() else { return };
        self.bytes -= oldest.bytes();
        self.counts.dropped += u64::from(matches!(oldest.body, Body::Crop(_)));
        // The event of a picture that nobody will get is of no use.
        while self.waiting.front().is_some_and(|i| Arc::ptr_eq(&i.face, &oldest.face)) {
            if let Some(event) = self.waiting.pop_front() {
                self.bytes -= event.bytes();
            }
        }
    }

    /// The next item to send, if fewer than `window` are in flight.
    #[must_use]
    pub fn next(&self, window: usize) -> Option<&Item> {
        if !self.connected || self.flight.len() >= window {
            return None;
        }
        self.waiting.front()
    }

    /// The item that [`Queue::next`] showed was sent as `message` under `pid`. Without one (QoS 0) it is done.
    pub fn sent(&mut self, pid: Option<u16>, message: Message) {
        let Some(item) = self.waiting.pop_front() else { return };
        match pid {
            Some(pid) => {
                self.order += 1;
                self.flight.insert(pid, Flight { item, message, order: self.order, received: false });
            }
            None => self.done(&item),
        }
    }

    /// The item that [`Queue::next`] showed can never be sent.
    pub fn refuse_next(&mut self) {
        if let Some(item) = self.waiting.pop_front() {
            self.bytes -= item.bytes();
            self.counts.refused += u64::from(matches!(item.body, Body::Crop(_)));
        }
    }

    fn done(&mut self, item: &Item) {
        self.bytes -= item.bytes();
        match item.body {
            Body::Crop(_) => {
                self.counts.published += 1;
                self.counts.late += u64::from(item.late);
            }
            Body::Event => self.counts.events += 1,
        }
    }

    /// The broker took the message for good. Its item, if `pid` is one of ours.
    pub fn acknowledged(&mut self, pid: u16) -> Option<Item> {
        let flight = self.flight.remove(&pid)?;
        self.done(&flight.item);
        Some(flight.item)
    }

    /// QoS 2: PUBREC came. `true` when `pid` is one of ours and PUBREL is to be sent.
    pub fn received(&mut self, pid: u16) -> bool {
        self.flight.get_mut(&pid).map(|f| f.received = true).is_some()
    }

    /// The broker refused the message for good. Its item, if `pid` is one of ours.
    pub fn refused(&mut self, pid: u16) -> Option<Item> {
        let flight = self.flight.remove(&pid)?;
        self.bytes -= flight.item.bytes();
        self.counts.refused += u64::from(matches!(flight.item.body, Body::Crop(_)));
        Some(flight.item)
    }

    /// The broker refused the message for now: it goes back to the front.
    pub fn postponed(&mut self, pid: u16) {
        if let Some(flight) = self.flight.remove(&pid) {
            self.waiting.push_front(Item { late: true, ..flight.item });
        }
    }

    /// The connection stands. With the session kept: what to send again, in order. Without it everything in flight
    /// waits again, and the packet ids returned are free.
    pub fn connected(&mut self, session_present: bool) -> (Vec<Resend>, Vec<u16>) {
        self.connected = true;
        let mut flight: Vec<u16> = self.flight.keys().copied().collect();
        flight.sort_by_key(|pid| self.flight.get(pid).map(|f| f.order));
        if session_present {
            let again = |pid| {
                self.flight.get(&pid).map(|f| match f.received {
                    true => Resend::Release(pid),
                    false => Resend::Publish(pid, f.message.clone()),
                })
            };
            return (flight.into_iter().filter_map(again).collect(), Vec::new());
        }
        for pid in flight.iter().rev() {
            self.postponed(*pid);
        }
        (Vec::new(), flight)
    }

    /// The connection is gone: whatever was not sent yet is late.
    pub fn disconnected(&mut self) {
        if self.connected {
            self.waiting.iter_mut().for_each(|item| item.late = true);
        }
        self.connected = false;
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;

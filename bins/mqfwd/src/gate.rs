//! Which of the messages that arrive go on: those that a route takes, and that are not going round in a circle.
//!
//! Owns: the counts of what is turned away. Never: changes a message.

use std::time::{Duration, Instant};

use edge::inlet::Verdict;
use edge::log::Throttle;
use edge::mqtt::Message;

use crate::core::HOP;
use crate::route::Routes;

/// The judge of one lane.
#[derive(Debug)]
pub struct Gate {
    routes: Routes,
    hop: String,
    hops_max: usize,
    said_unrouted: Throttle,
    said_loop: Throttle,
    /// Messages that no route takes.
    pub unrouted: u64,
    /// Messages that passed here before, or passed too many forwarders.
    pub loops: u64,
}

impl Gate {
    /// `hop` is our name among forwarders; a message that passed `hops_max` of them ends here.
    pub fn new(routes: Routes, hop: String, hops_max: usize) -> Gate {
        let every = Duration::from_secs(60);
        let (said_unrouted, said_loop) = (Throttle::new(every), Throttle::new(every));
        Gate { routes, hop, hops_max, said_unrouted, said_loop, unrouted: 0, loops: 0 }
    }

    /// What to do with a message.
    pub fn judge(&mut self, message: &Message, now: Instant) -> Verdict {
        let hops = message.properties.user.iter().filter(|(key, _)| key == HOP);
        let (count, ours) = hops.fold((0, false), |(n, ours), (_, hop)| (n + 1, ours || *hop == self.hop));
        if ours || count >= self.hops_max {
            self.loops += 1;
            if let Some(more) = self.said_loop.event(now) {
                let why = if ours {
                    "it passed here before".into()
                } else {
                    format!("it passed {count} forwarders")
                };
                log::warn!("a message on {:?} is thrown away: {why} ({more} more like it)", message.topic);
            }
            return Verdict::Discard;
        }
        if !self.routes.takes(&message.topic) {
            self.unrouted += 1;
            if let Some(more) = self.said_unrouted.event(now) {
                log::info!("no [[route]] takes {:?}: thrown away ({more} more like it)", message.topic);
            }
            return Verdict::Discard;
        }
        Verdict::Store
    }
}

#[cfg(test)]
mod tests {
    use edge::mqtt::Qos;

    use super::*;
    use crate::route::Route;

    #[test]
    fn what_passed_here_or_passed_too_many_or_has_no_route_ends_here() {
        let routes = Routes::new(vec![Route::new("a/#", "{topic}", Qos::AtLeastOnce, "d").unwrap()]);
        let mut gate = Gate::new(routes, "d/me".into(), 3);
        let now = Instant::now();
        let mut judge = |topic: &str, hops: &[&str]| {
            let mut message = Message { topic: topic.into(), ..Message::default() };
            message.properties.user = hops.iter().map(|hop| (HOP.to_owned(), (*hop).to_owned())).collect();
            gate.judge(&message, now)
        };
        assert_eq!(judge("a/b", &[]), Verdict::Store);
        assert_eq!(judge("a/b", &["x", "y"]), Verdict::Store);
        assert_eq!(judge("a/b", &["x", "d/me"]), Verdict::Discard);
        assert_eq!(judge("a/b", &["x", "y", "z"]), Verdict::Discard);
        assert_eq!(judge("b", &[]), Verdict::Discard);
        assert_eq!((gate.loops, gate.unrouted), (2, 1));
    }
}

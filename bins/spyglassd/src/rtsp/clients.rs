//! Who is connected to the RTSP server, what they play, and who has to go.
//!
//! Owns: the list. Invariants: at most `most` connections are in it, so that whoever connects and says nothing costs the
//! process a bounded number of threads and descriptors; who connects when it is full takes the place of the one that has
//! been there longest without a DESCRIBE, else without playing; nobody stays who does not play in time.
//! Never: closes anything, knows a socket.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// From its beginning, or the end of what it played, until a connection must play.
const PLAYS_WITHIN: Duration = Duration::from_secs(15);
/// Its first DESCRIBE may wait so much longer for a medium: the server itself gives it up then.
const MEDIUM_WITHIN: Duration = Duration::from_secs(20);

/// The connections; `H` is what one is closed by.
#[derive(Debug)]
pub struct Clients<H> {
    /// By a number that is never used again: those that came first stand first.
    list: BTreeMap<u64, Client<H>>,
    most: usize,
    next: u64,
}

#[derive(Debug)]
struct Client<H> {
    handle: H,
    /// It goes if it does not play by then.
    until: Instant,
    has_asked: bool,
    plays: Option<String>,
}

impl<H: Clone> Clients<H> {
    /// For at most so many.
    pub fn new(most: usize) -> Clients<H> {
        Clients { list: BTreeMap::new(), most, next: 0 }
    }

    /// Somebody connects. Its number, and who is to be closed for that: perhaps itself, where all others play.
    pub fn join(&mut self, handle: H, now: Instant) -> (u64, Option<H>) {
        let id = self.next;
        self.next += 1;
        let client = Client { handle, until: now + PLAYS_WITHIN, has_asked: false, plays: None };
        self.list.insert(id, client);
        if self.list.len() <= self.most {
            return (id, None);
        }
        let idle = self.list.iter().filter(|(_, client)| client.plays.is_none());
        let victim = idle.min_by_key(|(n, client)| (**n == id, client.has_asked, **n)).map(|(n, _)| *n);
        (id, victim.and_then(|n| self.list.remove(&n)).map(|client| client.handle))
    }

    /// It sends a DESCRIBE.
    pub fn asks(&mut self, id: u64) {
        if let Some(client) = self.list.get_mut(&id).filter(|client| !client.has_asked) {
            client.has_asked = true;
            client.until += MEDIUM_WITHIN;
        }
    }

    /// It plays this stream.
    pub fn plays(&mut self, id: u64, name: &str) {
        if let Some(client) = self.list.get_mut(&id) {
            client.plays = Some(name.to_owned());
        }
    }

    /// It plays no longer.
    pub fn stops(&mut self, id: u64, now: Instant) {
        if let Some(client) = self.list.get_mut(&id) {
            client.plays = None;
            client.until = now + PLAYS_WITHIN;
        }
    }

    /// It is gone.
    pub fn gone(&mut self, id: u64) {
        self.list.remove(&id);
    }

    /// Those that are to be closed now.
    pub fn late(&self, now: Instant) -> Vec<H> {
        let late = |client: &&Client<H>| client.plays.is_none() && client.until <= now;
        self.list.values().filter(late).map(|client| client.handle.clone()).collect()
    }

    /// Those that play this stream.
    pub fn of(&self, name: &str) -> Vec<H> {
        let its = |client: &&Client<H>| client.plays.as_deref() == Some(name);
        self.list.values().filter(its).map(|client| client.handle.clone()).collect()
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_list_lets_go_of_who_has_waited_longest_and_never_of_who_plays() {
        let (now, mut clients) = (Instant::now(), Clients::new(3));
        let ids: Vec<u64> = ["a", "b", "c"].map(|name| clients.join(name, now).0).into();
        clients.plays(ids[0], "cam");
        clients.asks(ids[1]);
        assert_eq!(clients.join("d", now).1, Some("c"), "b has asked for a stream");
        clients.asks(3);
        let (e, victim) = clients.join("e", now);
        assert_eq!(victim, Some("b"), "b came before d, and e has just come");
        clients.gone(ids[0]);
        assert_eq!(clients.join("f", now).1, None);
        for id in 0..=5 {
            clients.plays(id, "cam");
        }
        assert_eq!(clients.join("g", now).1, Some("g"), "all others play");
        clients.stops(e, now);
        assert_eq!(clients.join("h", now).1, Some("e"));
        assert_eq!(clients.of("cam"), ["d", "f"]);
    }

    #[test]
    fn who_does_not_play_in_time_goes() {
        let (t0, mut clients) = (Instant::now(), Clients::new(9));
        let at = |s| t0 + Duration::from_secs(s);
        let (_silent, asks, plays) =
            (clients.join("silent", t0).0, clients.join("asks", t0).0, clients.join("plays", t0).0);
        clients.plays(plays, "cam");
        clients.asks(asks);
        // Once: who asks again and again gains nothing by it.
        clients.asks(asks);
        assert!(clients.late(at(14)).is_empty());
        assert_eq!(clients.late(at(15)), ["silent"]);
        assert_eq!(clients.late(at(35)), ["silent", "asks"]);
        clients.stops(plays, at(40));
        assert!(!clients.late(at(54)).contains(&"plays"));
        assert!(clients.late(at(55)).contains(&"plays"));
        for id in 0..3 {
            clients.gone(id);
        }
        assert!(clients.is_empty() && clients.late(at(99)).is_empty());
    }
}

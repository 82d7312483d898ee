//! Host name to addresses, on the thread `edge-resolve`, which the first [`Resolver`] starts and which ends with
//! the last. Every question asks the system anew: nothing is cached here.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::{Arc, mpsc},
    thread,
};

use mio::Waker;

/// The answer to one question.
#[derive(Debug)]
pub struct Resolved {
    /// What the caller gave to [`Resolver::resolve`].
    pub id: u64,
    /// At least one address, IPv6 and IPv4 alternating in the system's order; or the reason in words.
    pub addresses: Result<Vec<SocketAddr>, String>,
}

struct Question {
    id: u64,
    host: String,
    port: u16,
    reply: mpsc::Sender<Resolved>,
}

/// A handle of the worker thread; clones share it.
#[derive(Debug, Clone)]
pub struct Resolver {
    questions: mpsc::Sender<Question>,
}

impl Resolver {
    /// Starts the thread. It fires `waker` after each answer.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn new(waker: Arc<Waker>) -> io::Result<Resolver> {
        let (questions, inbox) = mpsc::channel::<Question>();
        thread::Builder::new().name("edge-resolve".into()).stack_size(256 << 10).spawn(move || {
            for question in inbox {
                let addresses = look_up(&question.host, question.port);
                // A caller that is gone needs no answer.
                if question.reply.send(Resolved { id: question.id, addresses }).is_ok()
                    && let Err(error) = waker.wake()
                {
                    log::warn!("name resolution: can't wake the main loop: {error}");
                }
            }
        })?;
        Ok(Resolver { questions })
    }

    /// Asks for the addresses of `host`; the answer goes to `reply`, then the waker fires. Ask one question at a time
    /// per caller: they are answered one after the other.
    pub fn resolve(&self, id: u64, host: &str, port: u16, reply: &mpsc::Sender<Resolved>) {
        let question = Question { id, host: host.to_owned(), port, reply: reply.clone() };
        if let Err(mpsc::SendError(question)) = self.questions.send(question) {
            // The thread can't end while a handle exists; should it, the caller's timeout reports the attempt.
            log::error!("name resolution: the worker thread is gone, can't resolve {}", question.host);
        }
    }
}

/// Blocks for as long as the system's resolver does.
fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let found = (host, port).to_socket_addrs().map_err(|error| error.to_string())?;
    let addresses = interleave(found.collect());
    if addresses.is_empty() { Err("the name has no address".into()) } else { Ok(addresses) }
}

/// Alternates the families, beginning with the system's first choice, so that one broken family costs one timeout
/// and not one per address.
fn interleave(found: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = found.into_iter().partition(|a| a.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut out = Vec::new();
    loop {
        match (first.next(), second.next()) {
            (None, None) => return out,
            (a, b) => out.extend(a.into_iter().chain(b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_alternate_from_the_systems_first() {
        let got = interleave(vec![addr("[::1]:1"), addr("[::2]:1"), addr("1.1.1.1:1")]);
        assert_eq!(got, vec![addr("[::1]:1"), addr("1.1.1.1:1"), addr("[::2]:1")]);
        assert_eq!(interleave(vec![addr("1.1.1.1:1")]), vec![addr("1.1.1.1:1")]);
    }

    #[test]
    fn answers_come_through_the_channel_and_the_waker() {
        let mut poll = mio::Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), mio::Token(1)).unwrap());
        let resolver = Resolver::new(waker).unwrap();
        let (tx, rx) = mpsc::channel();
        resolver.resolve(7, "localhost", 99, &tx);
        let mut events = mio::Events::with_capacity(4);
        poll.poll(&mut events, Some(Duration::from_secs(10))).unwrap();
        assert!(events.iter().any(|e| e.token() == mio::Token(1)));
        let answer = rx.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(answer.id, 7);
        assert!(answer.addresses.unwrap().iter().all(|a| a.port() == 99 && a.ip().is_loopback()));
        resolver.resolve(8, "no-such-host.invalid", 1, &tx);
        assert!(rx.recv_timeout(Duration::from_secs(30)).unwrap().addresses.is_err());
    }
}

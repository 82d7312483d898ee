//! A server's connections: accept, TLS or none, HTTP; deadlines, caps and fairness. What requests mean is the
//! [`Service`]'s; the poll is the daemon's.
//!
//! Owns: the listening sockets, every connection, and one read buffer that all share.
//! Invariants: with TLS, no byte of HTTP is looked at before the handshake is over (and with it the client's certificate
//! accepted, where one is asked for); a connection is not read while
//! its window is full, so that what one client costs is bounded whatever it sends; at the cap a newcomer takes the place
//! of whoever does nothing (a handshake under way, an idle connection) at the address with the most connections, so that
//! a full house of silent peers keeps nobody out. Never: blocks, reads a request.

mod bounds;
mod slot;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::TcpListener;
use mio::{Interest, Registry, Token};

use super::{Conn, ConnEvent, Limits, Reject, Response};
use crate::log::Throttle;
use crate::net::{self, Accepts, InBuf, Stream, Tokens};
use crate::timer::Timers;
use crate::tls::{self, ServerTls};
pub use bounds::Bounds;
use slot::{Slot, Stage, Turn};

/// Connections accepted before others get their turn.
const ACCEPTS: usize = 64;
/// How long a connection that we ended may take to hear of it.
const CLOSING: Duration = Duration::from_secs(1);
/// A peer's failed handshakes are logged this often.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Peers that are remembered for that.
const LOGGED_MAX: usize = 256;
/// The first listener's token; few follow.
pub const FIRST_LISTENER: Token = Token(16);
const LISTENERS_MAX: usize = 32;

/// Listens on `address:port`, for [`Conns::new`]; `[::]:port` takes IPv4 as well.
///
/// # Errors
/// What the system says, with the address and what to do.
pub fn listen(address: &str) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address).and_then(|l| l.set_nonblocking(true).map(|()| l));
    listener.map_err(|error| {
        let why = format!("cannot listen on {address}: {error}; set another listen");
        io::Error::new(error.kind(), why)
    })
}

/// The bounds.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Connections at once.
    pub connections_max: usize,
    /// Of them from one address.
    pub per_peer_max: usize,
    /// Longest handshake.
    pub handshake: Duration,
    /// Bytes and times of HTTP.
    pub http: Limits,
    /// Bytes of a body that wait for the disk; no more is read then.
    pub window: usize,
    /// The form of what the codec itself refuses.
    pub refusal: fn(Reject) -> Response,
}

/// Pieces of a body that wait for the disk; no more is read then, however small they are.
pub const PIECES_MAX: usize = 64;

/// What requests mean.
pub trait Service {
    /// What it keeps with a connection.
    type State: Default;
    /// Something arrived.
    fn event(&mut self, client: &mut Client<Self::State>, event: ConnEvent, now: Instant);
    /// There may be room for more of a long answer.
    fn feed(&mut self, client: &mut Client<Self::State>, now: Instant);
    /// The connection is gone.
    fn gone(&mut self, client: &Client<Self::State>);
}

/// A connection, as the service sees it.
#[derive(Debug)]
pub struct Client<T> {
    /// Its name.
    pub token: Token,
    /// Who it is.
    pub peer: IpAddr,
    /// Requests and answers.
    pub http: Conn,
    /// Bytes that wait for the disk.
    pub waiting: usize,
    /// Pieces that wait for the disk.
    pub pieces: usize,
    /// The service's.
    pub state: T,
}

/// All connections.
#[derive(Debug)]
pub struct Conns<S: Service> {
    listeners: Vec<TcpListener>,
    tls: Option<ServerTls>,
    caps: Caps,
    slots: BTreeMap<Token, Slot<S::State>>,
    /// Connections by address.
    peers: HashMap<IpAddr, usize>,
    /// Their deadlines. One that has moved away is looked at when the old one fires, so that a busy connection costs no
    /// timer for each request.
    timers: Timers<Token>,
    /// Bytes that went to clients.
    sent: u64,
    /// Those with more to do.
    again: BTreeSet<Token>,
    accepts: Accepts,
    scratch: InBuf,
    logged: HashMap<IpAddr, Throttle>,
    full: Throttle,
}

impl<S: Service> Conns<S> {
    /// Serves `listeners`, in clear text without `tls`.
    ///
    /// # Errors
    /// The poll takes no more.
    pub fn new(
        listeners: Vec<std::net::TcpListener>,
        tls: Option<ServerTls>,
        caps: Caps,
        registry: &Registry,
    ) -> io::Result<Self> {
        let address =
            |l: &std::net::TcpListener| l.local_addr().map_or_else(|_| "?".into(), |a| a.to_string());
        let what = listeners.iter().map(address).collect::<Vec<_>>().join(", ");
        let mut listeners: Vec<_> =
            listeners.into_iter().take(LISTENERS_MAX).map(TcpListener::from_std).collect();
        for (n, listener) in listeners.iter_mut().enumerate() {
            registry.register(listener, Token(FIRST_LISTENER.0 + n), Interest::READABLE)?;
        }
        Ok(Conns {
            listeners,
            tls,
            caps,
            slots: BTreeMap::new(),
            peers: HashMap::new(),
            timers: Timers::new(),
            sent: 0,
            again: BTreeSet::new(),
            accepts: Accepts::new(what),
            scratch: InBuf::default(),
            logged: HashMap::new(),
            full: Throttle::new(LOG_EVERY),
        })
    }

    /// New keys, pins and bounds; who is not pinned any more is thrown out.
    pub fn reload(
        &mut self,
        tls: Option<ServerTls>,
        caps: Caps,
        pinned: &dyn Fn(&str) -> bool,
        service: &mut S,
    ) {
        self.tls = tls;
        self.caps = caps;
        let out = |slot: &Slot<_>| slot.certificate.as_deref().is_none_or(|sum| !pinned(sum));
        let gone: Vec<Token> = self.slots.iter().filter(|(_, slot)| out(slot)).map(|(t, _)| *t).collect();
        for token in gone {
            self.forget(token, service);
        }
    }

    /// New keys and bounds for connections to come; those there are stay.
    pub fn configure(&mut self, tls: Option<ServerTls>, caps: Caps) {
        self.tls = tls;
        self.caps = caps;
    }

    /// Listens no more; connections stay.
    pub fn close_listeners(&mut self) {
        self.listeners.clear();
        self.accepts.stop();
    }

    /// Whether an event with this token is for [`Conns::ready`].
    pub fn owns(&self, token: Token) -> bool {
        self.listener(token).is_some() || self.slots.contains_key(&token)
    }

    fn listener(&self, token: Token) -> Option<usize> {
        token.0.checked_sub(FIRST_LISTENER.0).filter(|n| *n < self.listeners.len())
    }

    /// Bytes of answers that were given to the system so far.
    pub fn bytes_sent(&self) -> u64 {
        self.sent
    }

    /// Ends the connections that wait for a request.
    pub fn close_idle(&mut self, service: &mut S) {
        let idle = |slot: &Slot<S::State>| slot.stage != Stage::Open || slot.client.http.is_idle();
        let idle: Vec<Token> = self.slots.iter().filter(|(_, slot)| idle(slot)).map(|(t, _)| *t).collect();
        for token in idle {
            self.forget(token, service);
        }
    }

    /// Connections there are.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// When [`Conns::timer`] is to be called.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if !self.again.is_empty() {
            return Some(now);
        }
        self.timers.deadline().into_iter().chain(self.accepts.deadline()).min()
    }

    /// Sets the connection's timer where it would fire too late.
    fn arm(&mut self, token: Token) {
        let Some(slot) = self.slots.get_mut(&token) else { return };
        if let Some(at) = slot.deadline(&self.caps)
            && slot.armed.is_none_or(|armed| at < armed)
        {
            slot.armed = Some(at);
            self.timers.set(token, at);
        }
    }

    /// The connection, if it is still there. Call [`Conns::pump`] after an answer.
    pub fn client(&mut self, token: Token) -> Option<&mut Client<S::State>> {
        self.slots.get_mut(&token).map(|slot| &mut slot.client)
    }

    /// The names of all connections.
    pub fn tokens(&self) -> Vec<Token> {
        self.slots.keys().copied().collect()
    }

    /// A listener or a connection is ready.
    pub fn ready(&mut self, event: &Event, registry: &Registry, service: &mut S, now: Instant) {
        if self.listener(event.token()).is_some() {
            self.accept(registry, service, now);
        } else if let Some(slot) = self.slots.get_mut(&event.token()) {
            slot.stream.ready(event);
            self.pump(event.token(), service, now);
        }
    }

    /// Time has passed, or there was more to do than one turn allows.
    pub fn timer(&mut self, registry: &Registry, service: &mut S, now: Instant) {
        for token in std::mem::take(&mut self.again) {
            self.pump(token, service, now);
        }
        let late: Vec<Token> = std::iter::from_fn(|| self.timers.pop(now)).collect();
        for token in late {
            let Some(slot) = self.slots.get_mut(&token) else { continue };
            slot.armed = None;
            if slot.deadline(&self.caps).is_some_and(|at| at <= now) {
                self.expire(token, service, now);
            }
            self.arm(token);
        }
        if self.accepts.is_due(now) {
            self.accept(registry, service, now);
        }
    }

    fn expire(&mut self, token: Token, service: &mut S, now: Instant) {
        let Some(slot) = self.slots.get_mut(&token) else { return };
        match slot.stage {
            Stage::Handshake(_) => {
                let peer = slot.client.peer;
                self.say(peer, "no TLS handshake in time", now);
                self.forget(token, service);
            }
            Stage::Closing(_) => self.forget(token, service),
            Stage::Open => {
                let _ = slot.client.http.expire(now);
                self.pump(token, service, now);
                // Its time is over, and it does not even take what TLS has to say.
                let stuck = |slot: &Slot<_>| slot.stage == Stage::Open && slot.client.http.io().close;
                if self.slots.get(&token).is_some_and(stuck) {
                    self.forget(token, service);
                }
            }
        }
    }

    /// Moves a connection on: what arrived is understood, what can be sent is sent.
    pub fn pump(&mut self, token: Token, service: &mut S, now: Instant) {
        let Some(slot) = self.slots.get_mut(&token) else { return };
        let turn = slot.pump(&mut self.scratch, self.caps.window, service, now);
        self.sent += std::mem::take(&mut slot.sent);
        match turn {
            Ok(Turn::Waits) => {}
            Ok(Turn::More) => {
                self.again.insert(token);
            }
            Ok(Turn::Over) => self.forget(token, service),
            Err(error) => {
                self.scratch.clear();
                let peer = slot.client.peer;
                match error {
                    net::Error::Tls(error) if matches!(slot.stage, Stage::Handshake(_)) => {
                        // The alert is on its way; the peer is to read it before the socket is gone.
                        slot.stage = Stage::Closing(now + CLOSING);
                        slot.stream.close();
                        self.say(peer, &tls::explain(&error, "client"), now);
                        self.pump(token, service, now);
                    }
                    error => {
                        log::debug!("client {peer}: {error}");
                        self.forget(token, service);
                    }
                }
            }
        }
        self.arm(token);
    }

    /// Why somebody got no connection, once a minute each.
    fn say(&mut self, peer: IpAddr, why: &str, now: Instant) {
        if self.logged.len() >= LOGGED_MAX && !self.logged.contains_key(&peer) {
            self.logged.clear();
        }
        let throttle = self.logged.entry(peer).or_insert_with(|| Throttle::new(LOG_EVERY));
        match throttle.event(now) {
            Some(0) => log::warn!("client {peer} is refused: {why}"),
            Some(held) => {
                log::warn!("client {peer} is refused: {why} (and {held} times more since the last line)")
            }
            None => {}
        }
    }

    fn forget(&mut self, token: Token, service: &mut S) {
        if let Some(slot) = self.slots.remove(&token) {
            self.again.remove(&token);
            self.timers.cancel(&token);
            if let Some(count) = self.peers.get_mut(&slot.client.peer) {
                *count -= 1;
                if *count == 0 {
                    self.peers.remove(&slot.client.peer);
                }
            }
            service.gone(&slot.client);
            // Dropping the socket takes it out of the poll; a place is free.
        }
    }

    fn accept(&mut self, registry: &Registry, service: &mut S, now: Instant) {
        for n in 0..self.listeners.len() {
            for turn in 0.. {
                if turn == ACCEPTS {
                    self.accepts.again(now);
                    break;
                }
                let Some((socket, address)) = self.accepts.next(now, || self.listeners[n].accept()) else {
                    break;
                };
                self.welcome(socket, address.ip().to_canonical(), registry, service, now);
            }
        }
    }

    fn welcome(
        &mut self,
        mut socket: mio::net::TcpStream,
        peer: IpAddr,
        registry: &Registry,
        service: &mut S,
        now: Instant,
    ) {
        if !self.make_place(peer, service) {
            if let Some(held) = self.full.event(now) {
                log::warn!(
                    "client {peer} is turned away: all connections are at work ({held} more since the last line)"
                );
            }
            return;
        }
        let token = Tokens::next();
        let tuned = net::tune(&socket)
            .and_then(|()| registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE));
        if let Err(error) = tuned {
            log::debug!("client {peer}: {error}");
            return;
        }
        let (stream, stage) = match &self.tls {
            None => (Stream::plain(socket), Stage::Open),
            Some(tls) => match Stream::tls_server(socket, tls) {
                Ok(stream) => (stream, Stage::Handshake(now + self.caps.handshake)),
                Err(error) => {
                    log::error!("client {peer}: {error}");
                    return;
                }
            },
        };
        let http = Conn::new(self.caps.http, now).with_refusals(self.caps.refusal);
        let client = Client { token, peer, http, waiting: 0, pieces: 0, state: S::State::default() };
        let slot =
            Slot { stream, stage, client, certificate: None, shut: false, used: now, armed: None, sent: 0 };
        self.slots.insert(token, slot);
        *self.peers.entry(peer).or_default() += 1;
        self.pump(token, service, now);
    }

    /// Room for one more from `peer`, if need be by ending a connection that does nothing.
    fn make_place(&mut self, peer: IpAddr, service: &mut S) -> bool {
        let from = if self.peers.get(&peer).is_some_and(|n| *n >= self.caps.per_peer_max) {
            vec![peer]
        } else if self.slots.len() >= self.caps.connections_max {
            let mut peers: Vec<_> = self.peers.iter().map(|(peer, n)| (*peer, *n)).collect();
            peers.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
            peers.into_iter().map(|(peer, _)| peer).collect()
        } else {
            return true;
        };
        let victim = from.into_iter().find_map(|peer| {
            let theirs = self.slots.values().filter(|slot| slot.client.peer == peer);
            theirs
                .filter_map(|slot| slot.worth().map(|worth| (worth, slot.client.token)))
                .min()
                .map(|(_, t)| t)
        });
        if let Some(token) = victim {
            self.forget(token, service);
        }
        victim.is_some()
    }
}

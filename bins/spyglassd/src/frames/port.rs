//! The socket where applications connect, and its connections.
//!
//! Owns: the listening socket, one connection and one ring an application. Invariants: a client speaks HELLO before
//! anything else, and within the time allowed; whoever breaks the protocol is told why and hung up on; at most
//! `producers-max` are served; a client that does not read costs itself its slots and nobody else anything.
//! Never: decides what a stream is (the daemon answers an [`Event::Hello`]), blocks.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::net::{Accepts, Tokens};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::geometry::Layout;
use super::ring::{Ring, SlotBytes};
use super::wire::{BYTES_MAX, Frame, Hello, Message};

/// Messages read from a connection before others get their turn.
const BUDGET: usize = 64;

/// The bounds; `etc/spyglassd.toml` explains them.
#[derive(Debug, Clone)]
pub struct PortConfig {
    /// Where.
    pub socket: PathBuf,
    /// Its mode.
    pub mode: u32,
    /// Connections at once.
    pub producers_max: usize,
    /// Until HELLO.
    pub hello_timeout: Duration,
    /// Slots of a ring where the client does not say.
    pub slots: u32,
    /// Bytes of a slot.
    pub slot_bytes_max: usize,
    /// Largest picture.
    pub size_max: (u32, u32),
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A client wants a stream; answer with [`Port::grant`] or [`Port::refuse`].
    Hello(Token, Hello),
    /// A frame of a client that was granted one.
    Frame(Token, Frame, Layout, SlotBytes),
    /// A client that was granted a stream is gone, and why.
    Gone(Token, String),
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// A process listens there already.
    #[error("frames socket {0}: another process listens on it (is this daemon running twice?)")]
    InUse(PathBuf),
    /// The system refused.
    #[error("frames socket {path}: can't {what}")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// The socket and its clients.
#[derive(Debug)]
pub struct Port {
    config: PortConfig,
    listener: OwnedFd,
    token: Token,
    clients: BTreeMap<Token, Client>,
    /// Those with more to read than their turn allowed.
    again: Vec<Token>,
    refused: u64,
    accepts: Accepts,
}

#[derive(Debug)]
struct Client {
    socket: Arc<OwnedFd>,
    since: Instant,
    /// What it said last, once it was granted.
    granted: Option<(Hello, Arc<Ring>)>,
    asking: Option<Hello>,
}

impl Port {
    /// Listens. A socket file that nobody listens on is replaced.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn bind(config: PortConfig, registry: &Registry, token: Token) -> Result<Port, PortError> {
        let path = config.socket.clone();
        let fail = |what| {
            let path = path.clone();
            move |source: std::io::Error| PortError::Io { path, what, source }
        };
        let address =
            SocketAddrUnix::new(&path).map_err(|e| fail("use this path as an address")(e.into()))?;
        let socket = || {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .map_err(|e| fail("create it")(e.into()))
        };
        match net::connect(&socket()?, &address) {
            Err(Errno::CONNREFUSED) => std::fs::remove_file(&path).map_err(fail("remove the stale one"))?,
            Err(Errno::NOENT) => {}
            Ok(()) | Err(Errno::AGAIN) => return Err(PortError::InUse(path)),
            Err(error) => return Err(fail("find out who listens on it")(error.into())),
        }
        let listener = socket()?;
        let hint = "bind it (does the folder exist, and may this user write to it?)";
        net::bind(&listener, &address).map_err(|e| fail(hint)(e.into()))?;
        set_mode(&path, config.mode).map_err(fail("set its mode"))?;
        net::listen(&listener, 16).map_err(|e| fail("listen on it")(e.into()))?;
        registry
            .register(&mut SourceFd(&listener.as_raw_fd()), token, Interest::READABLE)
            .map_err(fail("poll it"))?;
        Ok(Port {
            config,
            listener,
            token,
            clients: BTreeMap::new(),
            again: Vec::new(),
            refused: 0,
            accepts: Accepts::new("frames socket"),
        })
    }

    /// Whether an event with this token is for [`Port::ready`].
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        token == self.token || self.clients.contains_key(&token)
    }

    /// When [`Port::timer`] is to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let silent = self.clients.values().filter(|c| c.granted.is_none());
        silent.map(|c| c.since + self.config.hello_timeout).chain(self.accepts.deadline()).min()
    }

    /// Whether [`Port::resume`] has work.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.again.is_empty()
    }

    /// Connections refused so far: full, silent, or not this protocol.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Slots of this client that are not done with.
    #[must_use]
    pub fn in_use(&self, token: Token) -> u32 {
        let granted = self.clients.get(&token).and_then(|c| c.granted.as_ref());
        granted.map_or(0, |(_, ring)| ring.in_use())
    }

    /// The listener or a client is ready.
    pub fn ready(&mut self, registry: &Registry, token: Token, now: Instant, events: &mut Vec<Event>) {
        if token == self.token {
            return self.accept(registry, now);
        }
        if let Some((_, ring)) = self.clients.get(&token).and_then(|c| c.granted.as_ref()) {
            ring.flush();
        }
        self.read(registry, token, events);
    }

    /// Clients whose turn was over before they were.
    pub fn resume(&mut self, registry: &Registry, events: &mut Vec<Event>) {
        for token in std::mem::take(&mut self.again) {
            self.read(registry, token, events);
        }
    }

    /// Hangs up on whoever says nothing, and lets in who waits.
    pub fn timer(&mut self, registry: &Registry, now: Instant, events: &mut Vec<Event>) {
        let late = |c: &Client| c.granted.is_none() && c.since + self.config.hello_timeout <= now;
        let late: Vec<Token> = self.clients.iter().filter(|(_, c)| late(c)).map(|(t, _)| *t).collect();
        for token in late {
            self.hang_up(registry, token, "no HELLO came", events);
        }
        if self.accepts.is_due(now) {
            self.accept(registry, now);
        }
    }

    /// Gives a client that said HELLO its ring. Its slots hold at least the picture it spoke of.
    ///
    /// # Errors
    /// In words, after it was hung up on: it is gone, or there is no memory.
    pub fn grant(&mut self, registry: &Registry, token: Token) -> Result<(), String> {
        let Some(client) = self.clients.get_mut(&token) else { return Err("it is gone".to_owned()) };
        let Some(hello) = client.asking.take() else { return Err("it asked for nothing".to_owned()) };
        let made = layout(&self.config, &hello, (hello.width, hello.height), hello.stride).and_then(|l| {
            let slots = if hello.slots == 0 { self.config.slots } else { hello.slots };
            let ring = Ring::new(slots, l.bytes.next_multiple_of(4096), Arc::clone(&client.socket));
            ring.map_err(|e| format!("no memory for {slots} slots: {e}"))
        });
        let made = made.and_then(|ring| {
            if let Some((_, old)) = client.granted.take() {
                old.retire();
            }
            ring.announce().map_err(|e| format!("the ring can't be handed over: {e}")).map(|()| ring)
        });
        match made {
            Ok(ring) => {
                client.granted = Some((hello, ring));
                Ok(())
            }
            Err(why) => {
                self.hang_up(registry, token, &why, &mut Vec::new());
                Err(why)
            }
        }
    }

    /// Tells a client why not, and hangs up.
    pub fn refuse(&mut self, registry: &Registry, token: Token, why: &str) {
        self.hang_up(registry, token, why, &mut Vec::new());
    }

    fn accept(&mut self, registry: &Registry, now: Instant) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        while let Some(socket) = self.accepts.next(now, || Ok(net::accept_with(&self.listener, flags)?)) {
            if self.clients.len() >= self.config.producers_max {
                self.refused += 1;
                let max = self.config.producers_max;
                say(&socket, &format!("{max} applications are connected already (frames.producers-max)"));
                continue;
            }
            let token = Tokens::next();
            let interest = Interest::READABLE | Interest::WRITABLE;
            if let Err(error) = registry.register(&mut SourceFd(&socket.as_raw_fd()), token, interest) {
                log::warn!("frames socket: can't poll a client: {error}");
                continue;
            }
            let client = Client { socket: Arc::new(socket), since: now, granted: None, asking: None };
            self.clients.insert(token, client);
        }
    }

    fn read(&mut self, registry: &Registry, token: Token, events: &mut Vec<Event>) {
        for _ in 0..BUDGET {
            let Some(client) = self.clients.get_mut(&token) else { return };
            // One byte more than any message, so that a longer packet is seen to be longer.
            let mut packet = [0u8; BYTES_MAX + 1];
            let heard = match net::recv(&client.socket, &mut packet[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(Errno::CONNRESET) => Err("it hung up".to_owned()),
                Ok((len, _)) => client.hear(&self.config, token, &packet[..len]),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => continue,
                Err(error) => Err(format!("reading from it: {error}")),
            };
            match heard {
                Ok(event) => {
                    let hello = matches!(event, Event::Hello(..));
                    events.push(event);
                    if hello {
                        // Nothing it says further makes sense before it was answered.
                        self.again.push(token);
                        return;
                    }
                }
                Err(why) => return self.hang_up(registry, token, &why, events),
            }
        }
        self.again.push(token);
    }

    fn hang_up(&mut self, registry: &Registry, token: Token, why: &str, events: &mut Vec<Event>) {
        let Some(client) = self.clients.remove(&token) else { return };
        say(&client.socket, why);
        let _ = registry.deregister(&mut SourceFd(&client.socket.as_raw_fd()));
        match client.granted {
            Some((_, ring)) => {
                ring.retire();
                events.push(Event::Gone(token, why.to_owned()));
            }
            None => {
                self.refused += 1;
                log::info!("frames socket: a client was refused: {why}");
            }
        }
        // Frames in the works keep the memory alive, not the connection.
        let _ = net::shutdown(&client.socket, net::Shutdown::Both);
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.config.socket);
    }
}

impl Client {
    fn hear(&mut self, config: &PortConfig, token: Token, packet: &[u8]) -> Result<Event, String> {
        match Message::decode(packet).map_err(|e| e.to_string())? {
            Message::Hello(hello) => {
                layout(config, &hello, (hello.width, hello.height), hello.stride)?;
                self.asking = Some(hello.clone());
                Ok(Event::Hello(token, hello))
            }
            Message::Frame(frame) => {
                let Some((hello, ring)) = &self.granted else {
                    return Err("a FRAME before HELLO was answered".to_owned());
                };
                let layout = layout(config, hello, (frame.width, frame.height), frame.stride)?;
                let bytes = ring.claim(frame.slot, layout.bytes).map_err(|e| e.to_string())?;
                Ok(Event::Frame(token, frame, layout, bytes))
            }
            other => Err(format!("a message that only the daemon sends: {other:?}")),
        }
    }
}

fn layout(config: &PortConfig, hello: &Hello, size: (u32, u32), stride: u32) -> Result<Layout, String> {
    let layout = Layout::new(hello.format, size, stride, config.size_max).map_err(|e| e.to_string())?;
    let most = config.slot_bytes_max;
    if layout.bytes > most {
        return Err(format!("a picture of {} bytes: at most {most} (frames.slot-bytes-max)", layout.bytes));
    }
    Ok(layout)
}

fn say(socket: &OwnedFd, why: &str) {
    let packet = Message::Error { text: why.to_owned() }.encode();
    // A client that is gone, or that does not read, need not know.
    let _ = net::send(socket, &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

fn set_mode(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

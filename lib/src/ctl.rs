//! The control socket of a daemon: `GET /status` (JSON) and `GET /metrics` (Prometheus text) over HTTP on a Unix socket,
//! and `POST` for what its own command line may ask of it ([`Pages::post`]).
//!
//! Owns the listener, its few connections and their tokens. In a daemon's loop:
//! ```ignore
//! let mut ctl = Ctl::bind(&config.ctl_socket, poll.registry())?;      // "" gives one that does nothing
//! // per event:
//! token if Ctl::owns(token) => ctl.ready(poll.registry(), token, now, &mut |path: &str| match path {
//!     "/status" => Some(Reply::Json(status())),
//!     "/metrics" => Some(Reply::Metrics(metrics())),
//!     _ => None,
//! }),
//! // with the timers: ctl.deadline() is part of the poll's timeout; when it has passed:
//! ctl.timer(poll.registry(), now, &mut pages);
//! ```
//!
//! Invariants: at most [`CONNECTIONS_MAX`] connections, each bounded by `http::Limits`; a stuck client costs its slot for
//! the write timeout and nothing else; trouble with a client is never trouble for the daemon. Whoever may open the
//! socket (mode 0660: the daemon's user and group) may read it, and ask for whatever [`Pages::post`] does.

mod metrics;

use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};

use crate::http::{Conn, ConnEvent, Limits, Request, Response};
use crate::net::Accepts;

pub use metrics::Metrics;

/// Most clients at once; further ones wait in the kernel's backlog.
pub const CONNECTIONS_MAX: usize = 8;

/// The first of the tokens that belong to the control socket: the listener has this one, connections those above.
/// The upper half of all tokens, so that they meet no other numbering.
pub const FIRST_TOKEN: Token = Token(1 << (usize::BITS - 1));

/// Requests served before other sources of the loop get their turn.
const BUDGET: usize = 16;

const LIMITS: Limits = Limits {
    head_bytes: 4096,
    target_bytes: 1024,
    headers: 32,
    body_bytes: 0,
    head_timeout: Duration::from_secs(5),
    body_timeout: Duration::from_secs(5),
    idle_timeout: Duration::from_secs(60),
    write_timeout: Duration::from_secs(5),
    out_bytes: 256 * 1024,
};

/// What the daemon answers.
#[derive(Debug)]
pub enum Reply {
    /// `/status`.
    Json(serde_json::Value),
    /// `/metrics`.
    Metrics(Metrics),
    /// It can't be done: a status of 400 and above, and why.
    Refused(u16, String),
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A process listens there already.
    #[error(
        "control socket {0}: another process listens on it (is this daemon running twice? else set another ctl-socket)"
    )]
    InUse(PathBuf),
    /// Something else is in the way.
    #[error(
        "control socket {0}: there is a file of that name that is no socket; remove it or set another ctl-socket"
    )]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("control socket {path}: can't {what}")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// What there is to see and to do. A closure over the path has pages only.
pub trait Pages {
    /// `GET` and `HEAD`: the path without its query; `None` for one that doesn't exist.
    fn get(&mut self, path: &str) -> Option<Reply>;

    /// `POST`, without a body: path and query; `None` for one that doesn't exist.
    fn post(&mut self, _path: &str, _query: &str) -> Option<Reply> {
        None
    }
}

impl<F: FnMut(&str) -> Option<Reply>> Pages for F {
    fn get(&mut self, path: &str) -> Option<Reply> {
        self(path)
    }
}

/// The control socket.
#[derive(Debug)]
pub struct Ctl {
    listener: Option<Listener>,
    clients: Vec<Client>,
    next: usize,
    accepts: Accepts,
}

#[derive(Debug)]
struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of our socket file, so that only ours is removed in the end.
    inode: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Client {
    token: Token,
    stream: UnixStream,
    conn: Conn,
    /// The request being read.
    request: Option<Request>,
    shut: bool,
}

impl Ctl {
    /// Listens on `path`; the empty path gives a control socket that doesn't exist. A socket file that nobody listens
    /// on (its daemon was killed) is replaced.
    ///
    /// # Errors
    /// [`Error`]: the path is in use, or the system refused.
    pub fn bind(path: &Path, registry: &Registry) -> Result<Self, Error> {
        let accepts = Accepts::new(format!("control socket {}", path.display()));
        let mut ctl = Self { listener: None, clients: Vec::new(), next: FIRST_TOKEN.0 + 1, accepts };
        if path.as_os_str().is_empty() {
            return Ok(ctl);
        }
        let fail = |what| move |source| Error::Io { path: path.to_owned(), what, source };
        remove_stale(path)?;
        let address = socket2::SockAddr::unix(path).map_err(fail("use this path as a socket's address"))?;
        let kind = socket2::Type::STREAM.nonblocking().cloexec();
        let socket = socket2::Socket::new(socket2::Domain::UNIX, kind, None).map_err(fail("create it"))?;
        socket
            .bind(&address)
            .map_err(fail("bind it (does the folder exist, and may this user write to it?)"))?;
        // Nobody can connect between bind and listen, so the mode is right before the first client.
        let mode = std::fs::Permissions::from_mode(0o660);
        std::fs::set_permissions(path, mode).map_err(fail("set its mode to 0660"))?;
        socket.listen(16).map_err(fail("listen on it"))?;
        let mut socket = UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into());
        registry.register(&mut socket, FIRST_TOKEN, Interest::READABLE).map_err(fail("poll it"))?;
        let inode = std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()));
        ctl.listener = Some(Listener { socket, path: path.to_owned(), inode });
        Ok(ctl)
    }

    /// Whether an event with this token is for [`Ctl::ready`].
    pub fn owns(token: Token) -> bool {
        token.0 >= FIRST_TOKEN.0
    }

    /// When [`Ctl::timer`] is to be called; `None` while there is no client and none waits.
    pub fn deadline(&self) -> Option<Instant> {
        self.clients.iter().filter_map(|c| c.conn.deadline()).chain(self.accepts.deadline()).min()
    }

    /// What [`Ctl::ready`] does for a token, what [`Ctl::timer`] does without one.
    pub fn serve(&mut self, registry: &Registry, token: Option<Token>, now: Instant, pages: &mut dyn Pages) {
        match token {
            Some(token) => self.ready(registry, token, now, pages),
            None => self.timer(registry, now, pages),
        }
    }

    /// The listener or a client is ready.
    pub fn ready(&mut self, registry: &Registry, token: Token, now: Instant, pages: &mut dyn Pages) {
        let was_full = self.clients.len() >= CONNECTIONS_MAX;
        if let Some(at) = self.clients.iter().position(|c| c.token == token) {
            self.turn(registry, at, now, pages);
        }
        // The listener's event is reported once: who waited while all places were taken is accepted when one is free.
        if token == FIRST_TOKEN || was_full {
            self.accept(registry, now, pages);
        }
    }

    /// Time has passed: clients that are too slow are told so and go, and whoever waits is let in.
    pub fn timer(&mut self, registry: &Registry, now: Instant, pages: &mut dyn Pages) {
        for at in (0..self.clients.len()).rev() {
            if self.clients[at].conn.deadline().is_some_and(|deadline| deadline <= now) {
                let _ = self.clients[at].conn.expire(now);
                self.turn(registry, at, now, pages);
            }
        }
        self.accepts.is_due(now);
        self.accept(registry, now, pages);
    }

    fn accept(&mut self, registry: &Registry, now: Instant, pages: &mut dyn Pages) {
        while self.clients.len() < CONNECTIONS_MAX {
            let Some(listener) = &self.listener else { return };
            let Some((mut stream, _)) = self.accepts.next(now, || listener.socket.accept()) else { return };
            let token = Token(self.next);
            // Wrapping into the fixed tokens would take 2^31 clients at the least: stay on the last one.
            self.next = self.next.saturating_add(1);
            let interest = Interest::READABLE | Interest::WRITABLE;
            if let Err(error) = registry.register(&mut stream, token, interest) {
                log::warn!("control socket: can't poll a client: {error}");
                continue;
            }
            let conn = Conn::new(LIMITS, now);
            self.clients.push(Client { token, stream, conn, request: None, shut: false });
            self.turn(registry, self.clients.len() - 1, now, pages);
        }
    }

    /// Serves one client and forgets it when it is done.
    fn turn(&mut self, registry: &Registry, at: usize, now: Instant, pages: &mut dyn Pages) {
        let client = &mut self.clients[at];
        match client.serve(now, pages) {
            Turn::Waits => {}
            Turn::More => {
                // Registering again makes the poll report what is still there.
                let interest = Interest::READABLE | Interest::WRITABLE;
                if registry.reregister(&mut client.stream, client.token, interest).is_ok() {
                    return;
                }
                self.forget(registry, at);
            }
            Turn::Over => self.forget(registry, at),
        }
    }

    fn forget(&mut self, registry: &Registry, at: usize) {
        let mut client = self.clients.remove(at);
        let _ = registry.deregister(&mut client.stream);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let now = std::fs::symlink_metadata(&self.path).ok().map(|m| (m.dev(), m.ino()));
        if now.is_some() && now == self.inode {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

enum Turn {
    /// Nothing to do until the next event or deadline.
    Waits,
    /// The budget is used up.
    More,
    /// Drop the connection.
    Over,
}

impl Client {
    fn serve(&mut self, now: Instant, pages: &mut dyn Pages) -> Turn {
        let mut buffer = [0; 2048];
        for _ in 0..BUDGET {
            let mut moved = false;
            while let Some(event) = self.conn.next(now) {
                moved = true;
                self.take(event, now, pages);
            }
            let io = self.conn.io();
            if io.close {
                return Turn::Over;
            }
            if io.write {
                match self.stream.write(self.conn.output()) {
                    Ok(n) => {
                        self.conn.wrote(n, now);
                        moved = true;
                    }
                    Err(error) if retry(&error) => moved |= error.kind() == io::ErrorKind::Interrupted,
                    Err(_) => return Turn::Over,
                }
            }
            if io.shutdown && !self.shut {
                let _ = self.stream.shutdown(std::net::Shutdown::Write);
                self.shut = true;
            }
            if io.read {
                match self.stream.read(&mut buffer) {
                    Ok(0) => {
                        self.conn.eof();
                        moved = true;
                    }
                    Ok(n) => {
                        self.conn.received(&buffer[..n], now);
                        moved = true;
                    }
                    Err(error) if retry(&error) => moved |= error.kind() == io::ErrorKind::Interrupted,
                    Err(_) => return Turn::Over,
                }
            }
            if !moved {
                return Turn::Waits;
            }
        }
        Turn::More
    }

    fn take(&mut self, event: ConnEvent, now: Instant, pages: &mut dyn Pages) {
        match event {
            ConnEvent::Head(request) => self.request = Some(request),
            ConnEvent::End => {
                if let Some(request) = self.request.take() {
                    self.conn.respond(&answer(&request, pages), now);
                }
            }
            ConnEvent::Data(_) | ConnEvent::Refused(_) => {}
        }
    }
}

fn retry(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn answer(request: &Request, pages: &mut dyn Pages) -> Response {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"];
    let (method, path) = (request.method.as_str(), request.path());
    if !known.contains(&method) {
        return Response::text(501, "this method is not known here");
    }
    let reply = match method {
        "POST" => pages.post(path, request.query()),
        _ => pages.get(path),
    };
    let Some(reply) = reply else {
        return match method {
            "POST" if pages.get(path).is_some() => {
                Response::text(405, "only GET and HEAD").with("Allow", "GET, HEAD")
            }
            _ => Response::text(404, "there are /status and /metrics"),
        };
    };
    if !matches!(method, "GET" | "HEAD" | "POST") {
        return Response::text(405, "only GET and HEAD").with("Allow", "GET, HEAD");
    }
    let response = match reply {
        Reply::Refused(status, why) => Response::json(status, &serde_json::json!({ "message": why })),
        Reply::Json(value) => Response::new(200, "application/json", format!("{value:#}\n")),
        Reply::Metrics(metrics) => {
            Response::new(200, "text/plain; version=0.0.4; charset=utf-8", metrics.render())
        }
    };
    response.with("Cache-Control", "no-store")
}

/// Removes the socket file at `path` if nobody listens on it.
fn remove_stale(path: &Path) -> Result<(), Error> {
    let fail = |what| move |source| Error::Io { path: path.to_owned(), what, source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail("look at what is there")(error)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(Error::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(Error::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail("remove the stale one")(error)),
            _ => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(fail("find out whether somebody listens on it")(error)),
    }
}

#[cfg(test)]
#[path = "ctl/tests.rs"]
mod tests;

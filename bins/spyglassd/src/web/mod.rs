//! The page: lists the streams, plays each one live in a browser, and gives it as MJPEG or a single JPEG to whatever can't.
//!
//! In the daemon's loop: [`Web::push`] for each unit, [`Web::push_jpeg`] for each picture, [`Web::flush`] once a turn, then
//! [`Web::wants`], [`Web::wants_jpeg`] and [`Web::take_joined`] say what is needed. Nothing here blocks; what waits for one
//! viewer is bounded, and a slow viewer costs the others nothing.

pub mod config;
mod pages;
mod stream;
mod view;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::http::conns::{Caps, Conns};
use edge::http::{Limits, Response};
use mio::{Registry, Token};

pub use config::{Config, Raw};
pub use pages::Users;

use crate::unit::Unit;
use pages::{BOUNDARY, Pages};
use view::View;

/// What the daemon says of itself, when it is asked.
pub type Status<'a> = &'a mut dyn FnMut() -> serde_json::Value;

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address can't be had.
    #[error("can't listen on {address} for the page (is it in use? else set another web.listen)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}

/// See the module's text.
#[derive(Debug)]
pub struct Web {
    conns: Conns<Pages>,
    pages: Pages,
    viewer_bytes_max: usize,
    address: Option<SocketAddr>,
}

impl Web {
    /// Listens where the configuration says; without an address it does nothing. With `users`, everybody must be one.
    ///
    /// # Errors
    /// [`Error`].
    pub fn bind(config: &Config, registry: &Registry, users: Option<Users>) -> Result<Web, Error> {
        let mut listeners = Vec::new();
        if let Some(address) = config.listen {
            let listen = || {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            listeners.push(listen().map_err(|source| Error::Listen { address, source })?);
        }
        let address = listeners.first().and_then(|listener| listener.local_addr().ok());
        let caps = Caps {
            connections_max: config.connections_max,
            per_peer_max: config.connections_max,
            handshake: Duration::from_secs(5),
            http: Limits { body_bytes: 0, write_timeout: Duration::from_secs(15), ..Limits::default() },
            window: 64 << 10,
            refusal: |reject| Response::text(reject.status, reject.why),
        };
        let conns = Conns::new(listeners, None, caps, registry);
        let conns =
            conns.map_err(|source| Error::Listen { address: config.listen.unwrap_or(ANY), source })?;
        let pages = Pages::new(users, config.hosts.clone());
        Ok(Web { conns, pages, viewer_bytes_max: config.viewer_bytes_max, address })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The streams there are; those that were there keep their viewers, and those of others are sent away.
    pub fn set_streams(&mut self, names: &[String], now: Instant) {
        let all = std::mem::take(&mut self.pages.streams);
        let (kept, gone) = all.into_iter().partition(|(name, _)| names.contains(name));
        self.pages.streams = kept;
        for name in names {
            self.pages.streams.entry(name.clone()).or_default();
        }
        let gone: BTreeMap<String, stream::Stream> = gone;
        for stream in gone.into_values() {
            for token in stream.viewers.into_iter().chain(stream.jpeg_viewers) {
                let Some(client) = self.conns.client(token) else { continue };
                client.state = View::default();
                client.http.abort();
                self.conns.pump(token, &mut self.pages, now);
            }
            for (token, _) in stream.jpeg_waiting {
                self.respond(token, Response::text(503, "the stream has gone"), now);
            }
        }
    }

    /// Frames of this stream may come from now on, or can't.
    pub fn set_open(&mut self, name: &str, open: bool) {
        if let Some(stream) = self.pages.streams.get_mut(name) {
            stream.open = open;
        }
    }

    /// Whether an event with this token is for [`Web::ready`].
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        self.conns.owns(token)
    }

    /// A listener or a connection is ready.
    pub fn ready(
        &mut self,
        registry: &Registry,
        event: &mio::event::Event,
        now: Instant,
        status: Status<'_>,
    ) {
        self.conns.ready(event, registry, &mut self.pages, now);
        self.tell_status(now, status);
    }

    /// When [`Web::timer`] is to be called.
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let waiting =
            self.pages.streams.values().flat_map(|stream| stream.jpeg_waiting.iter().map(|(_, at)| *at));
        self.conns.deadline(now).into_iter().chain(waiting).min()
    }

    /// Time has passed.
    pub fn timer(&mut self, registry: &Registry, now: Instant, status: Status<'_>) {
        self.conns.timer(registry, &mut self.pages, now);
        let mut late = Vec::new();
        for stream in self.pages.streams.values_mut() {
            late.extend(
                stream.jpeg_waiting.extract_if(.., |(_, until)| *until <= now).map(|(token, _)| token),
            );
        }
        for token in late {
            let why = "no picture came within 5 s: does the application send frames?";
            self.respond(token, Response::text(503, why), now);
        }
        self.tell_status(now, status);
    }

    fn respond(&mut self, token: Token, response: Response, now: Instant) {
        if let Some(client) = self.conns.client(token) {
            client.state.stream = None;
            client.http.respond(&pages::own(response), now);
            self.conns.pump(token, &mut self.pages, now);
        }
    }

    fn tell_status(&mut self, now: Instant, status: Status<'_>) {
        let waiting = std::mem::take(&mut self.pages.status_waiting);
        if waiting.is_empty() {
            return;
        }
        let response = Response::json(200, &status());
        for token in waiting {
            self.respond(token, response.clone(), now);
        }
    }

    /// A unit of a stream. What is to be sent is sent by [`Web::flush`].
    pub fn push(&mut self, name: &str, unit: &Unit, now: Instant) {
        let Some(stream) = self.pages.streams.get_mut(name) else { return };
        let Some(piece) = stream.unit(unit, now, (self.pages.now_unix_ms)()) else { return };
        for token in &stream.viewers {
            let Some(client) = self.conns.client(*token) else { continue };
            if !client.state.video(&piece, self.viewer_bytes_max) {
                stream.skips += 1;
                stream.joined = true;
            }
            self.pages.dirty.insert(*token);
        }
    }

    /// A picture of a stream.
    pub fn push_jpeg(&mut self, name: &str, jpeg: &Arc<[u8]>, now: Instant) {
        let Some(stream) = self.pages.streams.get_mut(name) else { return };
        stream.jpeg = Some((Arc::clone(jpeg), now));
        let head = format!("Content-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n", jpeg.len());
        // The boundary follows at once: a browser shows a picture when it has seen its end.
        let end = format!("\r\n--{BOUNDARY}\r\n");
        let part: Arc<[u8]> = [head.as_bytes(), jpeg, end.as_bytes()].concat().into();
        for token in &stream.jpeg_viewers {
            let Some(client) = self.conns.client(*token) else { continue };
            if client.state.picture(&part) {
                self.pages.dirty.insert(*token);
            } else {
                stream.skips += 1;
            }
        }
        let waiting = std::mem::take(&mut stream.jpeg_waiting);
        for (token, _) in waiting {
            self.respond(token, Response::new(200, "image/jpeg", jpeg.to_vec()), now);
        }
    }

    /// Sends what was pushed, as far as the sockets take it.
    pub fn flush(&mut self, now: Instant) {
        for token in std::mem::take(&mut self.pages.dirty) {
            self.conns.pump(token, &mut self.pages, now);
        }
    }

    /// Whether somebody watches the video.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.pages.streams.get(name).is_some_and(|stream| !stream.viewers.is_empty())
    }

    /// Whether somebody waits for a picture.
    #[must_use]
    pub fn wants_jpeg(&self, name: &str) -> bool {
        let stream = self.pages.streams.get(name);
        stream.is_some_and(|stream| !stream.jpeg_viewers.is_empty() || !stream.jpeg_waiting.is_empty())
    }

    /// True once after a viewer came, or was skipped: a key frame would help.
    pub fn take_joined(&mut self, name: &str) -> bool {
        self.pages.streams.get_mut(name).is_some_and(|stream| std::mem::take(&mut stream.joined))
    }

    /// Those who watch, in either form.
    #[must_use]
    pub fn viewers(&self, name: &str) -> usize {
        self.pages.streams.get(name).map_or(0, |stream| stream.viewers.len() + stream.jpeg_viewers.len())
    }

    /// Connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.conns.count()
    }
}

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

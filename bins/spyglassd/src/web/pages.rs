//! What a request means: the pages in the binary, the list of streams, a stream in one of its forms.
//!
//! Owns the streams. Invariant: nothing is answered to who may not see it, nor to a page of a stranger that gave its own
//! name this machine's address; a path that is not exactly known is 404.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edge::http::conns::{Client, Service};
use edge::http::{ConnEvent, Request, Response, host};
use mio::Token;
use serde_json::{Value, json};

use super::stream::Stream;
use super::view::View;

/// Whether a user may see the streams: name and password.
pub type Users = Arc<dyn Fn(&str, &str) -> bool + Send + Sync>;

/// A picture that is not older is sent at once.
const JPEG_FRESH: Duration = Duration::from_millis(200);
/// How long `/<name>.jpg` waits for a picture.
const JPEG_WAIT: Duration = Duration::from_secs(5);
/// Separates the pictures of `/<name>.mjpg`.
pub const BOUNDARY: &str = "picture";

const HTML: &str = "text/html; charset=utf-8";
const INDEX: &str = concat!(include_str!("head.html"), include_str!("index.html"));
const PLAYER: &str = concat!(include_str!("head.html"), include_str!("player.html"));
const SCRIPT: &str = include_str!("app.js");
const STYLE: &str = include_str!("app.css");
const ICON: &str = include_str!("icon.svg");

/// The service behind the connections.
pub struct Pages {
    pub(super) streams: BTreeMap<String, Stream>,
    users: Option<Users>,
    /// Names under which this server may be asked; `None`: any.
    hosts: Option<Vec<String>>,
    /// Connections that wait for the daemon's status.
    pub(super) status_waiting: Vec<Token>,
    /// Connections with something to send.
    pub(super) dirty: BTreeSet<Token>,
    pub(super) now_unix_ms: fn() -> u64,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").field("streams", &self.streams).finish_non_exhaustive()
    }
}

impl Pages {
    pub(super) fn new(users: Option<Users>, hosts: Option<Vec<String>>) -> Pages {
        Pages {
            streams: BTreeMap::new(),
            users,
            hosts,
            status_waiting: Vec::new(),
            dirty: BTreeSet::new(),
            now_unix_ms: edge::clock::unix_ms,
        }
    }

    fn may(&self, request: &Request) -> bool {
        let Some(users) = &self.users else { return true };
        let basic = || {
            let (scheme, value) = request.header("authorization")?.split_once(' ')?;
            let text = String::from_utf8(STANDARD.decode(value.trim()).ok()?).ok()?;
            let (user, password) = text.split_once(':')?;
            scheme.eq_ignore_ascii_case("basic").then(|| users(user, password))
        };
        basic().unwrap_or(false)
    }

    fn answer(&mut self, client: &mut Client<View>, request: &Request, now: Instant) {
        let plain = |status, why| Some(Response::text(status, why));
        let page =
            |kind, text: &str| Some(Response::new(200, kind, text).with("Content-Security-Policy", CSP));
        let foreign = self.hosts.as_ref().is_some_and(|names| !host::is_own(request, names));
        let response = match request.path() {
            _ if foreign => Some(host::refusal("[web] hosts")),
            _ if !self.may(request) => plain(401, "a user and a password are needed").map(|response| {
                response.with("WWW-Authenticate", "Basic realm=\"spyglassd\", charset=\"UTF-8\"")
            }),
            _ if !matches!(request.method.as_str(), "GET" | "HEAD") => {
                plain(405, "only GET and HEAD").map(|response| response.with("Allow", "GET, HEAD"))
            }
            "/" => page(HTML, INDEX),
            "/app.js" => page("text/javascript; charset=utf-8", SCRIPT),
            "/app.css" => page("text/css; charset=utf-8", STYLE),
            "/icon.svg" => page("image/svg+xml", ICON),
            "/streams.json" => Some(Response::json(200, &self.list(now))),
            "/status.json" => {
                self.status_waiting.push(client.token);
                None
            }
            path => match path[1.min(path.len())..].rsplit_once('.') {
                Some((name, "mp4")) if self.streams.contains_key(name) => {
                    self.video(client, request, name, now)
                }
                Some((name, "mjpg")) if self.streams.contains_key(name) => {
                    self.pictures(client, request, name, now)
                }
                Some((name, "jpg")) if self.streams.contains_key(name) => self.picture(client, name, now),
                _ if path.strip_prefix('/').is_some_and(|name| self.streams.contains_key(name)) => {
                    page(HTML, PLAYER)
                }
                _ => plain(404, "there is no such stream; / lists them"),
            },
        };
        if let Some(response) = response {
            client.http.respond(&own(response), now);
        }
    }

    fn list(&self, now: Instant) -> Value {
        let streams: Vec<Value> =
            self.streams.iter().map(|(name, stream)| stream.to_json(name, now)).collect();
        json!({ "now-ms": (self.now_unix_ms)(), "streams": streams })
    }

    /// A live answer begins; `None` when it did.
    fn begin(client: &mut Client<View>, request: &Request, kind: &str, now: Instant) -> Option<Response> {
        let head = Response::new(200, kind, "");
        if request.method == "HEAD" {
            return Some(head);
        }
        (!client.http.begin_chunks(&own(head), now))
            .then(|| Response::text(505, "a live stream needs HTTP/1.1"))
    }

    fn video(
        &mut self,
        client: &mut Client<View>,
        request: &Request,
        name: &str,
        now: Instant,
    ) -> Option<Response> {
        let other = Self::begin(client, request, "video/mp4", now);
        if other.is_none()
            && let Some(stream) = self.streams.get_mut(name)
        {
            client.state.watch(name);
            stream.viewers.insert(client.token);
            stream.joined = true;
        }
        other
    }

    fn pictures(
        &mut self,
        client: &mut Client<View>,
        request: &Request,
        name: &str,
        now: Instant,
    ) -> Option<Response> {
        let kind = format!("multipart/x-mixed-replace; boundary={BOUNDARY}");
        let other = Self::begin(client, request, &kind, now);
        if other.is_none()
            && let Some(stream) = self.streams.get_mut(name)
        {
            client.state.watch(name);
            stream.jpeg_viewers.insert(client.token);
            client.http.send_chunk(format!("--{BOUNDARY}\r\n").as_bytes(), now);
        }
        other
    }

    fn picture(&mut self, client: &mut Client<View>, name: &str, now: Instant) -> Option<Response> {
        let stream = self.streams.get_mut(name)?;
        match &stream.jpeg {
            Some((jpeg, at)) if now < *at + JPEG_FRESH => {
                Some(Response::new(200, "image/jpeg", jpeg.to_vec()))
            }
            _ => {
                client.state.stream = Some(name.to_owned());
                stream.jpeg_waiting.push((client.token, now + JPEG_WAIT));
                None
            }
        }
    }
}

/// Nothing of it is kept, guessed at, or shown within pages of other sites.
pub(super) fn own(response: Response) -> Response {
    response
        .with("Cache-Control", "no-store")
        .with("X-Content-Type-Options", "nosniff")
        .with("Cross-Origin-Resource-Policy", "same-origin")
}

/// Nothing comes from elsewhere.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                   media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

impl Service for Pages {
    type State = View;

    fn event(&mut self, client: &mut Client<View>, event: ConnEvent, now: Instant) {
        match event {
            ConnEvent::Head(request) => client.state.request = Some(request),
            ConnEvent::End => {
                if let Some(request) = client.state.request.take() {
                    self.answer(client, &request, now);
                }
            }
            ConnEvent::Data(_) | ConnEvent::Refused(_) => {}
        }
    }

    fn feed(&mut self, client: &mut Client<View>, now: Instant) {
        if client.state.stream.is_some() && client.http.has_ended() {
            // A live answer has no end of its own: who says goodbye has seen enough.
            client.http.abort();
            self.gone(client);
            client.state = View::default();
        }
        client.state.feed(&mut client.http, now);
    }

    fn gone(&mut self, client: &Client<View>) {
        if let Some(stream) = client.state.stream.as_ref().and_then(|name| self.streams.get_mut(name)) {
            stream.forget(client.token);
        }
        self.dirty.remove(&client.token);
    }
}

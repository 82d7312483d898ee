//! What requests mean: `/package`, `/blob/<sha256>`, `/`.
//!
//! Owns: the answers in memory, the cache on disk, and who waits for what. Nothing here blocks: what does is a job of the
//! [`workers`](crate::workers), and the connection waits. Invariants: one question is looked up once, one bundle made once,
//! however many wait for it; a request is always answered or its connection ended.

mod done;
mod replies;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::http::conns::{Client, Service};
use edge::http::{ConnEvent, Request, Response, date};
use edge::log::Throttle;
use edge::release::Sha256;
use mio::Token;

use crate::answers::Answers;
use crate::cache::Cache;
use crate::etag::Etags;
use crate::growing::Growing;
use crate::query::{self, Payload, Question};
use crate::reply;
use crate::send::{self, Sending};
use crate::status::{Poll, Stats};
use crate::workers::{Look, Workers};
pub use done::Outcome;

/// A connection.
pub type Peer = Client<Exchange>;

/// What a connection is in the middle of.
#[derive(Debug, Default)]
pub enum Exchange {
    /// Nothing.
    #[default]
    None,
    /// A request that has not ended.
    Head(Box<Request>),
    /// Something is being looked up.
    Waits(Box<Wanted>),
    /// A file that is being made.
    Sends(Box<Sending>),
}

/// What a request wants.
#[derive(Debug)]
pub struct Wanted {
    pub what: What,
    /// `HEAD`.
    pub head: bool,
    pub tags: Etags,
    pub range: Option<String>,
    pub if_range: Option<String>,
}

/// See [`Wanted`].
#[derive(Debug)]
pub enum What {
    Poll(Arc<Question>, Payload),
    Content(Sha256),
}

/// What comes from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub max_age_s: u64,
    /// The catalog is asked for its version at most so often.
    pub check: Duration,
    /// How long answers are trusted where it has none.
    pub ttl: Duration,
    pub answer_bytes_max: usize,
    pub level: u32,
    pub cache_bytes_max: u64,
    pub open_files: usize,
}

/// A file that is being made, and who is sent it.
#[derive(Debug)]
struct Making {
    growing: Arc<Growing>,
    reserved: u64,
    /// Bytes that they have been told of.
    told: u64,
    tokens: Vec<Token>,
}

/// Content that may be served.
#[derive(Debug, Clone)]
struct Open {
    size: u64,
    /// `None`: it is elsewhere.
    file: Option<Arc<File>>,
    since: Instant,
    used: u64,
}

/// All of it.
#[derive(Debug)]
pub struct Hub {
    pub stats: Stats,
    pub answers: Answers,
    pub cache: Cache,
    settings: Settings,
    workers: Workers,
    /// Counts the changes of the catalog that were seen.
    epoch: u64,
    /// As the catalog told; the outer `None`: not yet.
    version: Option<Option<u64>>,
    checked: Option<Instant>,
    for_version: Vec<Token>,
    asked: HashMap<Arc<Question>, Vec<Token>>,
    looked: HashMap<Sha256, Vec<Token>>,
    making: BTreeMap<String, Making>,
    open: HashMap<Sha256, Open>,
    tick: u64,
    date: (u64, String),
    catalog_log: Throttle,
    make_log: Throttle,
}

/// A bundle whose size can't be known beforehand may take so much.
const UNKNOWN_BYTES: u64 = 1 << 30;
const LOG_EVERY: Duration = Duration::from_secs(60);
const BUSY: &str = "The server is busy";
const BROKEN: &str = "The catalog can't be read at the moment";

impl Hub {
    #[must_use]
    pub fn new(settings: Settings, cache: Cache, workers: Workers, generations_max: usize) -> Self {
        Self {
            stats: Stats::new(generations_max),
            answers: Answers::new(settings.answer_bytes_max),
            cache,
            settings,
            workers,
            epoch: 0,
            version: None,
            checked: None,
            for_version: Vec::new(),
            asked: HashMap::new(),
            looked: HashMap::new(),
            making: BTreeMap::new(),
            open: HashMap::new(),
            tick: 0,
            date: (0, String::new()),
            catalog_log: Throttle::new(LOG_EVERY),
            make_log: Throttle::new(LOG_EVERY),
        }
    }

    /// Other settings.
    pub fn configure(&mut self, settings: Settings, generations_max: usize) {
        self.settings = settings;
        self.stats.generations_max = generations_max;
        self.answers.configure(settings.answer_bytes_max, self.ttl());
    }

    /// Files being made or waiting for it.
    #[must_use]
    pub fn making(&self) -> usize {
        self.making.len()
    }

    /// As the catalog told last.
    #[must_use]
    pub fn catalog_version(&self) -> Option<u64> {
        self.version.flatten()
    }

    fn ttl(&self) -> Option<Duration> {
        (self.version == Some(None)).then_some(self.settings.ttl)
    }

    fn request(&mut self, client: &mut Peer, request: &Request, now: Instant) {
        log::debug!("client {}: {} {}", client.peer, request.method, request.target);
        let path = request.path();
        let content = path.strip_prefix("/blob/");
        if !matches!(path, "/" | "/package") && content.is_none() {
            let known = "There are /package, /blob/<sha256> and /";
            return self.respond(client, reply::error(404, known), now);
        }
        let head = match request.method.as_str() {
            "GET" => false,
            "HEAD" => true,
            _ => {
                let refused = reply::error(405, "Only GET and HEAD").with("Allow", "GET, HEAD");
                return self.respond(client, refused, now);
            }
        };
        if path == "/" {
            let well = Response::json(200, &serde_json::json!({ "status": "ok" }));
            return self.respond(client, well.with("Cache-Control", "no-store"), now);
        }
        let what = match content {
            Some(name) => match name.parse() {
                Ok(sha256) => What::Content(sha256),
                Err(_) => return self.respond(client, reply::error(404, "No such content"), now),
            },
            None => match query::parse(request.query()) {
                Ok(asked) => {
                    self.stats.polled(asked.generation, now);
                    What::Poll(Arc::new(asked.question), asked.payload)
                }
                Err(refusal) => {
                    self.stats.polled(None, now);
                    self.stats.answered(Poll::Refused);
                    return self.respond(client, reply::error(400, &refusal.to_string()), now);
                }
            },
        };
        let tags = request.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("if-none-match"));
        let tags = Etags::parse(tags.map(|(_, value)| value.as_slice()));
        let text = |name| request.header(name).map(str::to_owned);
        let wanted = Wanted { what, head, tags, range: text("range"), if_range: text("if-range") };
        if self.is_fresh(now) { self.look(client, wanted, now) } else { self.check(client, wanted, now) }
    }

    fn respond(&mut self, client: &mut Peer, response: Response, now: Instant) {
        let response = response.with("Date", self.date());
        client.http.respond(&response, now);
        client.state = Exchange::None;
    }

    /// The time, made once a second.
    fn date(&mut self) -> String {
        let second = edge::clock::unix_ms() / 1000;
        if self.date.0 != second {
            self.date = (second, date::format(i64::try_from(second).unwrap_or(i64::MAX)));
        }
        self.date.1.clone()
    }

    fn is_fresh(&self, now: Instant) -> bool {
        let lately = |at: Instant| now.saturating_duration_since(at) < self.settings.check;
        match self.version {
            None => false,
            // It can't tell: what is kept has an end instead.
            Some(None) => true,
            Some(Some(_)) => self.checked.is_some_and(lately),
        }
    }

    /// The catalog's version is asked for first.
    fn check(&mut self, client: &mut Peer, wanted: Wanted, now: Instant) {
        if self.for_version.is_empty() && !self.workers.look(Look::Version) {
            return self.fail(client, &wanted, reply::later(BUSY, 1), now);
        }
        self.for_version.push(client.token);
        client.state = Exchange::Waits(Box::new(wanted));
    }

    fn look(&mut self, client: &mut Peer, wanted: Wanted, now: Instant) {
        match &wanted.what {
            What::Poll(question, payload) => {
                let (question, payload) = (Arc::clone(question), *payload);
                if let Some(resolved) = self.answers.get(&question, now) {
                    self.stats.answer_hits += 1;
                    return self.reply(client, wanted, &question, payload, &resolved, now);
                }
                self.stats.answer_misses += 1;
                if !self.asked.contains_key(&question)
                    && !self.workers.look(Look::Question(Arc::clone(&question), self.epoch))
                {
                    return self.fail(client, &wanted, reply::later(BUSY, 1), now);
                }
                self.asked.entry(question).or_default().push(client.token);
            }
            What::Content(sha256) => {
                let sha256 = *sha256;
                if let Some(open) = self.opened(&sha256, now) {
                    return self.content(client, wanted, &sha256, open.size, open.file, now);
                }
                if !self.looked.contains_key(&sha256) && !self.workers.look(Look::Content(sha256, self.epoch))
                {
                    return self.fail(client, &wanted, reply::later(BUSY, 1), now);
                }
                self.looked.entry(sha256).or_default().push(client.token);
            }
        }
        client.state = Exchange::Waits(Box::new(wanted));
    }

    fn opened(&mut self, sha256: &Sha256, now: Instant) -> Option<Open> {
        let ttl = self.ttl();
        let open = self.open.get_mut(sha256)?;
        if ttl.is_some_and(|ttl| now.saturating_duration_since(open.since) >= ttl) {
            self.open.remove(sha256);
            return None;
        }
        self.tick += 1;
        open.used = self.tick;
        Some(open.clone())
    }

    /// Something went wrong on our side.
    fn fail(&mut self, client: &mut Peer, wanted: &Wanted, response: Response, now: Instant) {
        if matches!(wanted.what, What::Poll(..)) {
            self.stats.answered(Poll::Failed);
        }
        self.respond(client, response, now);
    }
}

impl Service for Hub {
    type State = Exchange;

    fn event(&mut self, client: &mut Peer, event: ConnEvent, now: Instant) {
        match event {
            ConnEvent::Head(request) => client.state = Exchange::Head(Box::new(request)),
            ConnEvent::End => {
                if let Exchange::Head(request) = std::mem::take(&mut client.state) {
                    self.request(client, &request, now);
                }
            }
            ConnEvent::Data(_) => {}
            ConnEvent::Refused(reject) => log::debug!("client {}: {reject}", client.peer),
        }
    }

    fn feed(&mut self, client: &mut Peer, now: Instant) {
        let Exchange::Sends(sending) = &mut client.state else { return };
        let poll = matches!(sending.wanted.what, What::Poll(..));
        match sending.feed(&mut client.http, client.peer, now) {
            send::Fed::Waits => return,
            send::Fed::Sent if poll => self.stats.answered(Poll::Bundle),
            send::Fed::Failed if poll => self.stats.answered(Poll::Failed),
            send::Fed::Sent | send::Fed::Failed => {}
        }
        client.state = Exchange::None;
    }

    fn gone(&mut self, _client: &Peer) {}
}

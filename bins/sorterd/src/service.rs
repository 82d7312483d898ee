//! What connections mean: messages of arms over WebSocket, and pages over HTTP on the same port.
//!
//! Owns: the decisions, the threads, the uploads, and who waits for what. Nothing here blocks. Invariants: one message of a
//! connection is worked on at a time, and while it is, at most one more is read; a request is always answered or its
//! connection ended.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::http::conns::{Client, Service};
use edge::http::{ConnEvent, Request, Response, host};
use edge::log::{Throttle, chain};
use edge::spool::Ticket;
use mio::Token;

use crate::core::{Action, Core, Id, Kept, Outcome, Stitch};
use crate::message;
use crate::pages::{self, Page};
use crate::panel::Panel;
use crate::shelf::Shelf;
use crate::tidy::Tidy;
use crate::uploads::Uploads;
use crate::workers::{Done, Looked, Workers};
use crate::ws::{self, Incoming, Socket};

/// A connection.
pub type Peer = Client<Exchange>;

/// Bytes of answers that may wait for a peer before it is listened to again.
const UNSENT_MAX: usize = 64 << 10;
const LOG_EVERY: Duration = Duration::from_secs(10);
/// Panoramas that may wait.
const STITCHES_MAX: usize = 256;

/// What a connection is in the middle of.
#[derive(Debug, Default)]
pub enum Exchange {
    /// Between requests.
    #[default]
    Idle,
    /// A request that has not ended.
    Head(Box<Request>),
    /// Something is being looked up for a page.
    Looks,
    /// An arm.
    Arm(Box<Talk>),
}

/// A conversation with an arm.
#[derive(Debug)]
pub struct Talk {
    socket: Socket,
    /// Its message is being worked on.
    busy: bool,
    /// The one after it.
    held: Option<Incoming>,
}

/// What comes from the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    pub message_bytes_max: usize,
    pub idle: Duration,
    /// Of the pictures on disk.
    pub pictures_bytes_max: u64,
    /// Names under which a browser may ask, besides addresses and `localhost`.
    pub hosts: Vec<String>,
}

/// Counters of connections.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub messages: u64,
    pub panoramas: u64,
    pub panoramas_failed: u64,
    /// Pictures that another machine was sent.
    pub fetched: u64,
}

/// All of it.
pub struct Hub {
    pub core: Core,
    pub panel: Arc<Panel>,
    pub uploads: Option<Uploads>,
    pub counts: Counts,
    /// Why the database does not answer, if it does not.
    pub database: Option<String>,
    pub shelf: Shelf,
    settings: Settings,
    workers: Workers,
    /// Pictures that are not yet safe with the uploads.
    tickets: VecDeque<(Ticket, Id)>,
    /// Answers that are due.
    replies: Vec<(Token, Option<String>)>,
    tidy: Tidy,
    /// Panoramas that wait; one at a time is made.
    stitches: VecDeque<Stitch>,
    stitching: bool,
    /// Of pictures, and of all else.
    refused_log: [Throttle; 2],
    /// The disk of the uploads failed.
    failed: Option<crate::uploads::Error>,
    started: Instant,
}

impl Hub {
    #[must_use]
    pub fn new(
        settings: Settings,
        core: Core,
        shelf: Shelf,
        workers: Workers,
        panel: Arc<Panel>,
        uploads: Option<Uploads>,
        started: Instant,
    ) -> Self {
        workers.tidy(true);
        Self {
            core,
            panel,
            uploads,
            counts: Counts::default(),
            database: None,
            shelf,
            tidy: Tidy::started(settings.pictures_bytes_max),
            settings,
            workers,
            tickets: VecDeque::new(),
            replies: Vec::new(),
            stitches: VecDeque::new(),
            stitching: false,
            refused_log: [Throttle::new(LOG_EVERY), Throttle::new(LOG_EVERY)],
            failed: None,
            started,
        }
    }

    /// Answers that are due: who, and what; `None`: nothing is answered, but the next message is.
    pub fn next_reply(&mut self) -> Option<(Token, Option<String>)> {
        self.replies.pop()
    }

    /// Gives an arm its answer.
    pub fn reply(&self, client: &mut Peer, answer: Option<String>) {
        if let Exchange::Arm(talk) = &mut client.state {
            talk.busy = false;
            if let Some(answer) = answer {
                talk.socket.send(answer);
            }
        }
    }

    /// One turn of the uploads; what became safe or was uploaded is told.
    ///
    /// # Errors
    /// The disk failed.
    pub fn turn(&mut self, now: Instant) -> Result<(), crate::uploads::Error> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        let Some(uploads) = &mut self.uploads else { return Ok(()) };
        uploads.turn(now)?;
        let durable = uploads.durable();
        for key in uploads.uploaded() {
            self.panel.tell_uploaded(&key);
        }
        while let Some((ticket, id)) = self.tickets.front().copied()
            && ticket <= durable
        {
            self.tickets.pop_front();
            let actions = self.core.outcome(id, Outcome::Appended(Ok(())));
            self.act(actions);
        }
        match self.failed.take() {
            Some(failed) => Err(failed),
            None => Ok(()),
        }
    }

    /// Takes in what the threads have done; a page's answer is returned, for its connection.
    pub fn next_done(&mut self) -> Option<Option<(Token, Looked)>> {
        match self.workers.next_done()? {
            Done::Look(token, looked) => return Some(Some((token, looked))),
            Done::Task(id, outcome) => {
                match outcome {
                    Outcome::Seen(Ok(_)) | Outcome::Kept(Ok(_)) => self.came(1),
                    Outcome::Fetched(Ok(count)) => self.fetched(count),
                    _ => {}
                }
                let actions = self.core.outcome(id, outcome);
                self.act(actions);
            }
            Done::Stitched(made) => {
                match made {
                    Ok((kept, used)) => self.stitched(&kept, used),
                    Err((session, kind, why)) => {
                        self.counts.panoramas_failed += 1;
                        log::warn!("no panorama of {}/{}: {why}", session.arm, session.session);
                        self.panel.warn(&session, kind, &format!("Image stitching failed: {why}"));
                    }
                }
                self.stitching = false;
                self.next_stitch();
            }
            Done::Fetched(count) => self.fetched(count),
            Done::Tidied(Ok(tidied)) => {
                self.tidied(true);
                for session in &tidied.gone {
                    log::info!(
                        "the pictures of {}/{} are gone: pictures.bytes-max",
                        session.arm,
                        session.session
                    );
                }
                self.workers.forget(tidied.gone);
            }
            Done::Tidied(Err(why)) => {
                self.tidied(false);
                log::error!("old pictures can't be taken away: {why}");
            }
            Done::Database(why) => {
                match &why {
                    Some(why) => log::error!("{why}; pictures are answered false until the database answers"),
                    None => log::info!("the database answers again"),
                }
                self.database = why;
            }
        }
        Some(None)
    }

    /// So many pictures came to the shelf.
    fn came(&mut self, count: u32) {
        if self.tidy.came(count, self.shelf.bytes()) {
            self.workers.tidy(false);
        }
    }

    fn tidied(&mut self, well: bool) {
        if self.tidy.done(well, self.shelf.bytes()) {
            self.workers.tidy(false);
        }
    }

    fn fetched(&mut self, count: usize) {
        self.counts.fetched += count as u64;
        self.came(u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn stitched(&mut self, kept: &Kept, used: usize) {
        self.counts.panoramas += 1;
        self.came(1);
        log::info!("{}/{}: {} is made of {used} pictures", kept.session.arm, kept.session.session, kept.name);
        if let Err(why) = self.append(kept) {
            log::error!(
                "{}/{}: {} is not uploaded: {why}",
                kept.session.arm,
                kept.session.session,
                kept.name
            );
        }
    }

    /// Hands a picture to the uploads; `None` without uploads.
    fn append(&mut self, kept: &Kept) -> Result<Option<Ticket>, String> {
        let Some(uploads) = &mut self.uploads else { return Ok(None) };
        let key = format!("{}/{}/{}", kept.session.arm, kept.session.session, kept.name);
        match uploads.append(&key, "image/jpeg", &kept.bytes) {
            Ok(ticket) => Ok(Some(ticket)),
            Err(error) => {
                let why = chain(&error);
                if error.is_final() {
                    self.failed = Some(error);
                }
                Err(why)
            }
        }
    }

    fn act(&mut self, actions: Vec<Action>) {
        let mut actions: VecDeque<Action> = actions.into();
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Work(id, work) => self.workers.work(id, work),
                Action::Ask(id, ask) => self.workers.ask(id, ask),
                Action::Fetch(id, session, wanted) => self.workers.fetch(id, session, wanted),
                Action::Append(id, kept) => match self.append(&kept) {
                    Ok(Some(ticket)) => self.tickets.push_back((ticket, id)),
                    Ok(None) => actions.extend(self.core.outcome(id, Outcome::Appended(Ok(())))),
                    Err(why) => actions.extend(self.core.outcome(id, Outcome::Appended(Err(why)))),
                },
                Action::Stitch(stitch) => self.stitch(stitch),
                Action::Reply(token, answer) => self.replies.push((token, Some(answer))),
                Action::Done(token) => self.replies.push((token, None)),
                Action::Tell(session, kind, step) => {
                    log::debug!("{}/{} {kind}: {}", session.arm, session.session, step.text());
                    self.panel.tell(&session, &kind, step);
                }
                Action::Warn(session, kind, why) => {
                    log::warn!("{}/{} {kind}: {why}", session.arm, session.session);
                    self.panel.warn(&session, &kind, &why);
                }
            }
        }
    }

    /// A panorama is to be made, unless a newer one of the same is wanted before its turn.
    fn stitch(&mut self, stitch: Stitch) {
        self.stitches.retain(|waiting| !waiting.is_of_the_same(&stitch));
        if self.stitches.len() >= STITCHES_MAX {
            self.counts.panoramas_failed += 1;
            log::warn!("a panorama is left out: {STITCHES_MAX} wait to be made");
            return;
        }
        self.stitches.push_back(stitch);
        self.next_stitch();
    }

    fn next_stitch(&mut self) {
        if !self.stitching
            && let Some(stitch) = self.stitches.pop_front()
        {
            self.stitching = true;
            self.workers.stitch(stitch);
        }
    }

    /// A message of an arm.
    fn message(&mut self, client: &Peer, incoming: Incoming, now: Instant) {
        self.counts.messages += 1;
        let (request, binary) = match incoming {
            Incoming::Binary(bytes) => (message::binary(&bytes), true),
            Incoming::Text(text) => (message::text(&text), false),
        };
        let actions = match request {
            Ok(request) => self.core.request(client.token, request),
            Err(error) => {
                let picture = binary && error.is_of_picture();
                if let Some(held) = self.refused_log[usize::from(!picture)].event(now) {
                    log::warn!("arm {}: {error} (and {held} more since the last line)", client.peer);
                }
                vec![self.core.refuse(client.token, picture, &error.to_string())]
            }
        };
        self.act(actions);
    }

    /// What an arm sent is understood, as far as it may be.
    fn listen(&mut self, client: &mut Peer, now: Instant) {
        // The state is taken out for as long as the client is looked at as a whole.
        let Exchange::Arm(mut talk) = std::mem::take(&mut client.state) else { return };
        while client.http.unsent() < UNSENT_MAX {
            if !talk.busy
                && let Some(incoming) = talk.held.take()
            {
                talk.busy = true;
                self.message(client, incoming, now);
                continue;
            }
            if talk.held.is_some() {
                break;
            }
            match talk.socket.next_message() {
                Ok(Some(incoming)) => talk.held = Some(incoming),
                Ok(None) => break,
                Err(over) => {
                    if let Some(why) = over.why {
                        log::warn!("arm {}: the connection is ended: {why}", client.peer);
                    }
                    break;
                }
            }
        }
        let output = talk.socket.take_output();
        if !output.is_empty() {
            client.http.send_raw(&output, now);
        }
        client.waiting = talk.socket.waiting();
        if talk.socket.is_over() {
            client.http.finish_raw(now);
        } else {
            client.http.wait_raw((!talk.busy).then_some(now + self.settings.idle), now);
        }
        client.state = Exchange::Arm(talk);
    }

    fn request(&mut self, client: &mut Peer, request: &Request, now: Instant) {
        if ws::is_upgrade(request) {
            match ws::accept(request, &self.settings.hosts) {
                Ok(response) => {
                    client.http.upgrade(&response, now);
                    let socket = Socket::new(self.settings.message_bytes_max);
                    client.state = Exchange::Arm(Box::new(Talk { socket, busy: false, held: None }));
                }
                Err(refusal) => {
                    log::warn!(
                        "arm {}: no WebSocket: {}",
                        client.peer,
                        String::from_utf8_lossy(&refusal.body).trim()
                    );
                    client.http.respond(&refusal, now);
                }
            }
            return;
        }
        if !matches!(request.method.as_str(), "GET" | "HEAD") {
            let refusal = Response::text(405, "only GET and HEAD").with("Allow", "GET, HEAD");
            return client.http.respond(&refusal, now);
        }
        match pages::find(request.path()) {
            // Whatever watches over services asks by the name that it knows, and hears nothing that a stranger may not.
            Page::Health => {
                let uptime = now.saturating_duration_since(self.started);
                let response = pages::health(self.database.is_none(), uptime, self.core.len());
                client.http.respond(&response, now);
            }
            _ if !host::is_own(request, &self.settings.hosts) => {
                client.http.respond(&host::refusal("hosts"), now);
            }
            Page::Fixed(response) => client.http.respond(&response, now),
            Page::Look(look) => {
                client.state = Exchange::Looks;
                self.workers.look(client.token, look);
            }
            Page::Nothing => client.http.respond(&nothing(), now),
        }
    }

    /// Answers a page with what was looked up.
    pub fn looked(&self, client: &mut Peer, looked: Looked, now: Instant) {
        if !matches!(client.state, Exchange::Looks) {
            return;
        }
        client.state = Exchange::Idle;
        match looked {
            Looked::Json(value) => client.http.respond(&pages::safe(Response::json(200, &value)), now),
            Looked::Picture(file, size) => {
                let head = pages::safe(Response::new(200, "image/jpeg", ""));
                client.http.respond_file(&head, Arc::new(file), 0, size, now);
            }
            Looked::Nothing => client.http.respond(&nothing(), now),
            Looked::Failed(why) => {
                client.http.respond(&Response::text(503, &why), now);
            }
        }
    }

    /// Says goodbye to an arm that waits for nothing.
    pub fn dismiss(&self, client: &mut Peer, now: Instant) {
        if let Exchange::Arm(talk) = &mut client.state
            && !talk.busy
            && !talk.socket.is_over()
        {
            talk.socket.going_away();
            client.http.send_raw(&talk.socket.take_output(), now);
            client.http.finish_raw(now);
        }
    }
}

fn nothing() -> Response {
    Response::text(404, "there is nothing here; /sessions is the page")
}

impl Service for Hub {
    type State = Exchange;

    fn event(&mut self, client: &mut Peer, event: ConnEvent, now: Instant) {
        match event {
            ConnEvent::Head(request) => client.state = Exchange::Head(Box::new(request)),
            ConnEvent::Data(bytes) => {
                if let Exchange::Arm(talk) = &mut client.state {
                    talk.socket.received(&bytes);
                }
            }
            ConnEvent::End => {
                if let Exchange::Head(request) = std::mem::take(&mut client.state) {
                    self.request(client, &request, now);
                }
            }
            ConnEvent::Refused(reject) => {
                log::debug!("client {}: {} {}", client.peer, reject.status, reject.why)
            }
        }
    }

    fn feed(&mut self, client: &mut Peer, now: Instant) {
        if matches!(client.state, Exchange::Arm(_)) {
            self.listen(client, now);
        }
    }

    fn gone(&mut self, _: &Peer) {
        // What it sent is worked on to its end; its answer finds nobody.
    }
}

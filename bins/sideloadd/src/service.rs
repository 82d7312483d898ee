//! What requests do: one exchange a connection, from the head to the last byte of the answer.
//!
//! Owns: whose sync is under way ([`crate::turn`]), who follows the log, and the queues to the disk thread and the application.
//! Invariants: every request is answered exactly once, after its body was read to the end; a body goes to the disk thread
//! in pieces that count against the connection's window; a sync that loses its connection is given up, what it staged
//! stays; a commit under way is finished then, and the restart that was asked for with it. Never: touches a file.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::time::Instant;

use edge::http::{ConnEvent, Response};
use mio::Token;
use serde_json::{Value, json};

use crate::core::{Input, Reply, Ticket};
use crate::jobs::{Answer, Disk, Done, Job, PIECE};
use crate::logs::Position;
use crate::naive_time;
use crate::routes::{Refusal, Route, route};
use crate::status;
use crate::store::CommitInfo;
use crate::supervisor::Supervisor;
use crate::turn::Turn;
use edge::http::conns::{Client, Service};

/// Unsent bytes of the log for one client; the rest waits in the ring.
const LOG_AHEAD: usize = 32 << 10;

/// What a connection is in the middle of.
#[derive(Debug, Default)]
pub enum Exchange {
    /// Between requests.
    #[default]
    None,
    /// Refused; the body is read and thrown away, then that is the answer.
    Refused(Refusal),
    /// To be done when the request is complete.
    Act(Route),
    /// A body that is kept: a manifest or chunk lists.
    Collect(Route, Vec<u8>),
    /// A body that goes to the disk thread; `End` there is that job.
    Stream(Upload),
    /// The disk thread has it.
    Disk(Wait),
    /// A file is being sent: bytes that are left, the file while nobody reads in it.
    Sending(u64, Option<File>),
    /// The application's answer is awaited; the fields that it goes to, if not at the top.
    App(Option<Value>),
    /// The log: what was sent, and where it ends unless it goes on.
    Log(Option<Position>, Option<Position>),
}

/// What streams to the disk thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload {
    /// A file.
    File,
    /// Records of a sync.
    Records,
}

/// What is awaited from the disk thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Anything that is simply passed on.
    Plain,
    /// A manifest's answer.
    Begin,
    /// A commit, or a roll-back.
    Commit { rollback: bool },
}

/// Everything requests work on.
#[derive(Debug)]
pub struct Hub {
    /// The disk thread; none in production.
    pub disk: Option<Disk>,
    /// Tasks that found its queue full.
    overflow: VecDeque<(Token, Job)>,
    /// The application.
    pub supervisor: Supervisor,
    turn: Turn,
    /// The commits that are kept, oldest first.
    pub history: Vec<CommitInfo>,
    /// Connections that follow the log.
    pub followers: BTreeSet<Token>,
    /// Longest manifest or chunk list, in bytes.
    pub collect_max: usize,
    /// What `GET /status` says of the daemon itself.
    pub facts: status::Facts,
}

type Peer = Client<Exchange>;

impl Hub {
    /// Nothing under way.
    pub fn new(
        disk: Option<Disk>,
        supervisor: Supervisor,
        history: Vec<CommitInfo>,
        facts: status::Facts,
    ) -> Hub {
        Hub {
            disk,
            overflow: VecDeque::new(),
            supervisor,
            turn: Turn::default(),
            history,
            followers: BTreeSet::new(),
            collect_max: 0,
            facts,
        }
    }

    /// The commit in force.
    pub fn commit(&self) -> u64 {
        self.history.last().map_or(0, |info| info.commit)
    }

    /// Hands a task to the disk thread.
    pub fn send(&mut self, from: Token, job: Job) {
        self.overflow.push_back((from, job));
        self.refill();
    }

    /// What found the disk thread's queue full goes there as far as there is room.
    fn refill(&mut self) {
        let Some(disk) = &self.disk else { return };
        while let Some((from, job)) = self.overflow.pop_front() {
            if let Err(job) = disk.send(from, job) {
                // The windows bound how many can be here; each task that is done makes room.
                self.overflow.push_front((from, job));
                return;
            }
        }
    }

    fn begin(&mut self, client: &mut Peer, route: Route, now: Instant) -> Result<Exchange, Refusal> {
        let token = client.token;
        Ok(match route {
            Route::PutFile { path, size, mtime_ns, mode } => {
                self.send(token, Job::Put { path, size, mtime_ns, mode });
                Exchange::Stream(Upload::File)
            }
            Route::SyncData(id) => {
                self.turn.check(token, id, now)?;
                self.send(token, Job::DataBegin);
                Exchange::Stream(Upload::Records)
            }
            Route::SyncBegin { .. } => {
                self.turn.take(token, client.peer, now)?;
                Exchange::Collect(route, Vec::new())
            }
            Route::SyncChunks(id) => {
                self.turn.check(token, id, now)?;
                Exchange::Collect(route, Vec::new())
            }
            other => Exchange::Act(other),
        })
    }

    /// The request is complete.
    fn finish(&mut self, client: &mut Peer, exchange: Exchange, now: Instant) -> Result<Exchange, Refusal> {
        let token = client.token;
        match exchange {
            Exchange::Refused(refusal) => Err(refusal),
            Exchange::Collect(Route::SyncBegin { force }, manifest) => {
                self.turn.set_busy(token, true);
                self.send(token, Job::Begin { manifest, force });
                Ok(Exchange::Disk(Wait::Begin))
            }
            Exchange::Collect(_, lists) => {
                self.turn.set_busy(token, true);
                self.send(token, Job::Chunks(lists));
                Ok(Exchange::Disk(Wait::Plain))
            }
            Exchange::Stream(upload) => {
                self.turn.set_busy(token, true);
                self.send(token, if upload == Upload::File { Job::PutEnd } else { Job::DataEnd });
                Ok(Exchange::Disk(Wait::Plain))
            }
            Exchange::Act(route) => self.act(client, route, now),
            other => Ok(other),
        }
    }

    fn act(&mut self, client: &mut Peer, route: Route, now: Instant) -> Result<Exchange, Refusal> {
        let token = client.token;
        let ticket = Ticket(token.0 as u64);
        let plain = |hub: &mut Hub, job| {
            hub.send(token, job);
            Ok(Exchange::Disk(Wait::Plain))
        };
        match route {
            Route::ListFiles => plain(self, Job::List),
            Route::GetFile(path) => plain(self, Job::Open(path)),
            Route::DeleteFile(path) => plain(self, Job::Delete(path)),
            Route::Run { restart } => {
                let input = if restart { Input::Restart(ticket) } else { Input::Run(ticket) };
                self.supervisor.handle(input, now);
                Ok(Exchange::App(None))
            }
            Route::Kill => {
                self.supervisor.handle(Input::Kill(ticket), now);
                Ok(Exchange::App(None))
            }
            Route::Signal(named) => {
                self.supervisor.signal(named)?;
                Ok(answer(client, &json!({}), now))
            }
            Route::Logs { follow, since, tail } => self.logs(client, follow, since.as_deref(), tail, now),
            Route::Status => {
                let status = status::json(self, now);
                Ok(answer(client, &status, now))
            }
            Route::SyncInfo => {
                let history: Vec<Value> = self.history.iter().map(status::commit_json).collect();
                Ok(answer(client, &json!({ "commit": self.commit(), "history": history }), now))
            }
            Route::SyncCommit { sync, restart } => {
                self.turn.check(token, sync, now)?;
                self.turn.set_busy(token, true);
                self.send(token, Job::Commit { restart });
                Ok(Exchange::Disk(Wait::Commit { rollback: false }))
            }
            Route::SyncAbandon(sync) => {
                self.turn.check(token, sync, now)?;
                self.turn.end(token);
                plain(self, Job::Abandon)
            }
            Route::Rollback { to, restart } => {
                self.turn.check_free(token, now)?;
                self.turn.clear();
                self.send(token, Job::Rollback { to, restart });
                Ok(Exchange::Disk(Wait::Commit { rollback: true }))
            }
            // Those have bodies and never get here.
            Route::PutFile { .. } | Route::SyncBegin { .. } | Route::SyncChunks(_) | Route::SyncData(_) => {
                Err(Refusal::new(500, "a request with a body lost it"))
            }
        }
    }

    fn logs(
        &mut self,
        client: &mut Peer,
        follow: bool,
        since: Option<&str>,
        tail: Option<usize>,
        now: Instant,
    ) -> Result<Exchange, Refusal> {
        let ring = self.supervisor.ring();
        let since = match (since, tail) {
            (Some(text), _) => Some(Position::parse(text).ok_or_else(|| {
                Refusal::new(
                    400,
                    format!("since={text}: expected the seq of a line, such as 1795531617000.42"),
                )
            })?),
            (None, Some(count)) => Some(ring.tail(count)),
            (None, None) => None,
        };
        let until = (!follow).then(|| ring.end());
        if !client.http.begin_chunks(&Response::new(200, "application/x-ndjson", ""), now) {
            return Err(Refusal::new(400, "the log is sent in chunks, for which HTTP/1.1 is needed"));
        }
        if follow {
            self.followers.insert(client.token);
        }
        Ok(Exchange::Log(since, until))
    }

    /// What the disk thread has done.
    pub fn next_done(&mut self) -> Option<Done> {
        self.refill();
        self.disk.as_ref()?.next_done()
    }

    /// The roll-back that the application's crash asked for is done, or failed.
    pub fn rolled_back(&mut self, done: Done, now: Instant) {
        let result = match done.answer {
            Some(Ok(Answer::Committed { committed, history, .. })) => {
                self.history = history;
                self.turn.clear();
                Ok(committed.restored.unwrap_or(committed.commit))
            }
            Some(Err(refusal)) => Err(refusal.message),
            _ => Err("a bug in sideloadd".to_owned()),
        };
        self.supervisor.handle(Input::RolledBack(result), now);
    }

    /// A task for a connection (if it is still there) is done.
    pub fn done(&mut self, done: Done, client: Option<&mut Peer>, now: Instant) {
        let Done { to, bytes, answer: outcome } = done;
        self.turn.heard(to, now);
        if outcome.is_some() {
            self.turn.set_busy(to, false);
        }
        // What a lost connection has committed is committed all the same.
        if let Some(Ok(Answer::Committed { history, committed, restart })) = &outcome {
            self.history.clone_from(history);
            self.turn.end(to);
            // What was brought back by hand is not on probation.
            if committed.restored.is_none() {
                self.supervisor.handle(Input::Committed, now);
            }
            if *restart && client.is_none() {
                log::info!("whoever asked for the restart is gone; it happens all the same");
                self.supervisor.handle(Input::Restart(Ticket(to.0 as u64)), now);
            }
        }
        let Some(client) = client else { return };
        client.waiting = client.waiting.saturating_sub(bytes);
        if bytes > 0 {
            client.pieces = client.pieces.saturating_sub(1);
        }
        let Some(outcome) = outcome else { return };
        let exchange = std::mem::take(&mut client.state);
        match outcome.and_then(|answer| self.answered(client, exchange, answer, now)) {
            Ok(next) => client.state = next,
            Err(refusal) => {
                // A refused manifest leaves no sync.
                self.turn.end_unless_begun(to);
                client.http.respond(&refusal.response(), now);
                client.state = Exchange::None;
            }
        }
    }

    fn answered(
        &mut self,
        client: &mut Peer,
        exchange: Exchange,
        outcome: Answer,
        now: Instant,
    ) -> Result<Exchange, Refusal> {
        Ok(match (exchange, outcome) {
            (Exchange::Disk(Wait::Begin), Answer::Begun(begun)) => {
                if begun.unchanged {
                    self.turn.end(client.token);
                } else {
                    self.turn.begun(client.token, begun.session);
                }
                answer(client, &status::begun_json(&begun), now)
            }
            (Exchange::Disk(Wait::Commit { rollback }), Answer::Committed { committed, restart, .. }) => {
                let mut fields = status::committed_json(&committed, rollback);
                if !restart {
                    return Ok(answer(client, &fields, now));
                }
                fields["log"] = json!(self.supervisor.ring().end().to_string());
                self.supervisor.handle(Input::Restart(Ticket(client.token.0 as u64)), now);
                Exchange::App(Some(fields))
            }
            (_, Answer::Nothing) => answer(client, &json!({}), now),
            (_, Answer::Json(body)) => {
                client.http.respond(&Response::new(200, "application/json", body), now);
                Exchange::None
            }
            (_, Answer::Missing(missing)) => answer(client, &json!({ "missing": missing }), now),
            (_, Answer::Received(bytes)) => answer(client, &json!({ "received": bytes }), now),
            (_, Answer::File { file, size, mtime_ns }) => {
                let head = Response::new(200, "application/octet-stream", "")
                    .with("mtime", naive_time::format(mtime_ns));
                client.http.begin_sized(&head, size, now);
                if client.http.is_sending() { Exchange::Sending(size, Some(file)) } else { Exchange::None }
            }
            (Exchange::Sending(left, _), Answer::Piece { file, bytes }) => {
                if bytes.is_empty() {
                    log::warn!("a file became shorter while it was sent to {}", client.peer);
                    client.http.abort();
                    return Ok(Exchange::None);
                }
                client.http.send_bytes(&bytes, now);
                match left.saturating_sub(bytes.len() as u64) {
                    0 => Exchange::None,
                    left => Exchange::Sending(left, Some(file)),
                }
            }
            (_, other) => {
                log::error!("the disk thread answered what nobody asked for: {other:?}");
                return Err(Refusal::new(500, "a bug in sideloadd"));
            }
        })
    }

    /// The application answers whoever waits.
    pub fn app_answered(&mut self, client: &mut Peer, reply: &Reply, now: Instant) {
        let Exchange::App(fields) = std::mem::take(&mut client.state) else { return };
        let value = match (reply, fields) {
            (Reply::Refused(status, why), None) => {
                client.http.respond(&Refusal::new(*status, why.as_str()).response(), now);
                return;
            }
            (reply, None) => self.supervisor.reply_json(reply),
            (reply, Some(mut fields)) => {
                fields["app"] = self.supervisor.reply_json(reply);
                fields
            }
        };
        client.state = answer(client, &value, now);
    }
}

impl Service for Hub {
    type State = Exchange;

    fn event(&mut self, client: &mut Peer, event: ConnEvent, now: Instant) {
        self.turn.heard(client.token, now);
        match event {
            ConnEvent::Head(request) => {
                log::debug!("client {}: {} {}", client.peer, request.method, request.target);
                let begun = route(&request).and_then(|route| self.begin(client, route, now));
                client.state = begun.unwrap_or_else(Exchange::Refused);
            }
            ConnEvent::Data(bytes) => match &mut client.state {
                Exchange::Stream(upload) => {
                    let upload = *upload;
                    client.waiting += bytes.len();
                    client.pieces += 1;
                    let job = if upload == Upload::File { Job::PutData(bytes) } else { Job::Data(bytes) };
                    self.send(client.token, job);
                }
                Exchange::Collect(_, kept) if kept.len() + bytes.len() <= self.collect_max => {
                    kept.extend_from_slice(&bytes);
                }
                Exchange::Collect(..) => {
                    let most = edge::text::bytes(self.collect_max as u64);
                    let why = format!("this is longer than limits.manifest-max = {most} on the device");
                    self.turn.end_unless_begun(client.token);
                    client.state = Exchange::Refused(Refusal::new(413, why));
                }
                _ => {}
            },
            ConnEvent::End => {
                let exchange = std::mem::take(&mut client.state);
                match self.finish(client, exchange, now) {
                    Ok(next) => client.state = next,
                    Err(refusal) => client.http.respond(&refusal.response(), now),
                }
            }
            ConnEvent::Refused(reject) => log::debug!("client {}: {reject}", client.peer),
        }
    }

    fn feed(&mut self, client: &mut Peer, now: Instant) {
        match &mut client.state {
            Exchange::Sending(_, file) if client.http.unsent() < PIECE => {
                if let Some(file) = file.take() {
                    self.send(client.token, Job::Read(file));
                }
            }
            Exchange::Log(seen, until) => {
                if until.is_none() && client.http.has_ended() {
                    client.http.abort();
                    return;
                }
                while client.http.unsent() < LOG_AHEAD {
                    let piece = self.supervisor.ring().read(*seen, LOG_AHEAD / 2);
                    client.http.send_chunk(&piece.ndjson, now);
                    *seen = Some(piece.next);
                    if until.is_some_and(|until| piece.next.line >= until.line) {
                        client.http.end_chunks(now);
                        client.state = Exchange::None;
                        return;
                    }
                    if piece.ndjson.is_empty() {
                        return;
                    }
                }
            }
            _ => {}
        }
    }

    fn gone(&mut self, client: &Peer) {
        self.followers.remove(&client.token);
        if matches!(client.state, Exchange::Stream(_) | Exchange::Disk(_)) {
            self.send(client.token, Job::Gone);
        }
        if self.turn.end(client.token) {
            self.send(client.token, Job::Abandon);
        }
    }
}

/// Answers 200 with `value`; the exchange is over.
fn answer(client: &mut Peer, value: &Value, now: Instant) -> Exchange {
    client.http.respond(&Response::json(200, value), now);
    Exchange::None
}

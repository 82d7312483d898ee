//! One connection to the service: TCP, TLS, the request's head and chunks one way, the answer and its acknowledgements the
//! other way, at the same time.
//!
//! Owns the socket and its buffers; both are bounded by who fills them and by the parsers. It decides nothing: what
//! happens becomes [`Event`]s.

use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::net::{Connector, InBuf, OutBuf, Progress, ReadOutcome, Stream};
use edge::tls::ClientTls;
use mio::{Registry, Token};

use super::ack::{self, Ack};
use super::ask::Target;
use super::response::{Part, Reader};
use super::{fault, wire};

/// One address may take this long.
const CONNECT: Duration = Duration::from_secs(8);
/// Bytes read in one turn.
const READ: usize = 64 << 10;
/// Longest text of a refusal that is kept, in bytes, and how long it may take to come.
const REFUSAL_BYTES_MAX: usize = 4096;
const REFUSAL: Duration = Duration::from_secs(2);
/// How long an answer may still come on a connection that can't be written to any more.
const BROKEN: Duration = Duration::from_millis(500);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The connection stands: the head is due.
    Opened,
    /// The answer's head is good.
    Accepted,
    /// The service refuses the request.
    Refused(fault::Fault),
    /// An acknowledgement.
    Ack(Ack),
    /// It is over.
    Closed(String),
}

enum Stage {
    Connecting(Connector),
    Handshake(Stream, Token),
    Open(Stream, Token),
    Closed,
}

struct Refusal {
    status: u16,
    error_type: String,
    body: Vec<u8>,
    until: Instant,
}

/// See the module's text. Dropping it closes the socket.
pub struct Link {
    target: Arc<Target>,
    tls: ClientTls,
    stage: Stage,
    out: OutBuf,
    input: InBuf,
    reader: Reader,
    acks: ack::Parser,
    refusal: Option<Refusal>,
    /// Why it can't be written to any more, and until when an answer may still be read: a service that refuses closes its
    /// side at once, while we send.
    broken: Option<(String, Instant)>,
}

impl Link {
    /// Begins to connect; [`Link::turn`] goes on.
    pub fn new(target: Arc<Target>, tls: ClientTls) -> Link {
        let connector = Connector::new(target.addresses.clone(), CONNECT);
        Link {
            target,
            tls,
            stage: Stage::Connecting(connector),
            out: OutBuf::default(),
            input: InBuf::default(),
            reader: Reader::default(),
            acks: ack::Parser::default(),
            refusal: None,
            broken: None,
        }
    }

    /// Whose credentials it uses.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// An event of the poll, if it is for this connection.
    pub fn ready(&mut self, event: &mio::event::Event) {
        if let Stage::Handshake(stream, token) | Stage::Open(stream, token) = &mut self.stage
            && *token == event.token()
        {
            stream.ready(event);
        }
    }

    /// When [`Link::turn`] is to be called although nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Connecting(connector) => connector.deadline(),
            _ => {
                let refusal = self.refusal.as_ref().map(|refusal| refusal.until);
                refusal.into_iter().chain(self.broken.as_ref().map(|(_, until)| *until)).min()
            }
        }
    }

    /// Bytes that wait for the socket.
    pub fn unsent(&self) -> usize {
        self.out.len()
    }

    /// Queues the request's head.
    pub fn head(&mut self, region: &str, stream: &str, start_ms: u64, relative: bool) {
        let host = self.target.authority();
        let request = wire::PutMedia { host: &host, region, stream, start_ms, relative };
        let now = edge::clock::unix_s() + self.target.skew_s;
        let head = wire::put_media(&request, &self.target.credentials, now);
        self.out.vec().extend_from_slice(head.as_bytes());
    }

    /// Queues bytes of the body.
    pub fn send(&mut self, bytes: &[u8]) {
        self.out.vec().extend_from_slice(bytes);
    }

    /// Moves on as far as it goes without waiting. `true`: there is more to do at once.
    pub fn turn(&mut self, registry: &Registry, now: Instant, events: &mut Vec<Event>) -> bool {
        match self.advance(registry, now, events) {
            Ok(more) => more,
            Err(why) => {
                self.stage = Stage::Closed;
                self.out.clear();
                events.push(Event::Closed(why));
                false
            }
        }
    }

    fn advance(
        &mut self,
        registry: &Registry,
        now: Instant,
        events: &mut Vec<Event>,
    ) -> Result<bool, String> {
        if let Stage::Connecting(connector) = &mut self.stage {
            match connector.advance(registry, now) {
                Progress::Pending => return Ok(false),
                Progress::Failed(why) => {
                    return Err(format!("can't connect to {}: {why}", self.target.authority()));
                }
                Progress::Done(socket, token, _) if self.target.tls => {
                    let stream = Stream::tls_client(socket, &self.tls, &self.target.host);
                    self.stage = Stage::Handshake(stream.map_err(|error| error.to_string())?, token);
                }
                Progress::Done(socket, token, _) => {
                    self.stage = Stage::Open(Stream::plain(socket), token);
                    events.push(Event::Opened);
                }
            }
        }
        let broken = |error: edge::net::Error| match error {
            edge::net::Error::Tls(error) => format!("TLS: {}", edge::tls::explain(&error, "server")),
            other => format!("the connection broke: {other}"),
        };
        let (Stage::Handshake(stream, _) | Stage::Open(stream, _)) = &mut self.stage else {
            return Ok(false);
        };
        if self.broken.is_none()
            && let Err(error) = stream.flush(&mut self.out)
        {
            self.broken = Some((broken(error), now + BROKEN));
        }
        let outcome = stream.read(&mut self.input, READ).map_err(broken);
        let shaking = stream.is_handshaking();
        if let Stage::Handshake(_, _) = &self.stage
            && !shaking
            && let Stage::Handshake(stream, token) = std::mem::replace(&mut self.stage, Stage::Closed)
        {
            self.stage = Stage::Open(stream, token);
            events.push(Event::Opened);
        }
        self.understand(now, events)?;
        if self.refusal.as_ref().is_some_and(|refusal| now >= refusal.until) {
            self.refused(events);
        }
        match (outcome, &self.broken) {
            (Ok(ReadOutcome::Eof), _) => {
                self.refused(events);
                let whole = if self.reader.may_end() { "" } else { " in the middle of its answer" };
                Err(format!("the service has closed the connection{whole}"))
            }
            // Reading fails as well while there is something to write; what has arrived is read when the poll says so.
            (_, Some((why, until))) => {
                if now >= *until {
                    Err(why.clone())
                } else {
                    Ok(false)
                }
            }
            (Err(why), None) => Err(why),
            (Ok(_), None) => Ok(matches!(&self.stage, Stage::Open(stream, _) if stream.is_readable())),
        }
    }

    fn understand(&mut self, now: Instant, events: &mut Vec<Event>) -> Result<(), String> {
        let mut parts = Vec::new();
        let fed = self.reader.feed(self.input.bytes(), &mut parts);
        self.input.clear();
        let mut acks = Vec::new();
        for part in parts {
            match part {
                Part::Head { status: 200, .. } => events.push(Event::Accepted),
                Part::Head { status, error_type } => {
                    self.refusal =
                        Some(Refusal { status, error_type, body: Vec::new(), until: now + REFUSAL });
                }
                Part::Body(bytes) => match &mut self.refusal {
                    Some(refusal) => {
                        let room = REFUSAL_BYTES_MAX - refusal.body.len().min(REFUSAL_BYTES_MAX);
                        refusal.body.extend_from_slice(&bytes[..bytes.len().min(room)]);
                    }
                    None => {
                        let result = self.acks.feed(&bytes, &mut acks);
                        events.extend(acks.drain(..).map(Event::Ack));
                        result.map_err(|error| error.to_string())?;
                    }
                },
                Part::End if self.refusal.is_some() => self.refused(events),
                Part::End => return Err("the service has ended its answer".to_owned()),
            }
        }
        fed.map_err(|error| error.to_string())
    }

    fn refused(&mut self, events: &mut Vec<Event>) {
        if let Some(Refusal { status, error_type, body, .. }) = self.refusal.take() {
            events.push(Event::Refused(fault::read("PutMedia", status, &error_type, &body)));
        }
    }

    /// Says goodbye as far as the socket takes it.
    pub fn close(mut self) {
        if let Stage::Handshake(stream, _) | Stage::Open(stream, _) = &mut self.stage {
            stream.close();
        }
    }
}

//! The way to the server and back: name, TCP, TLS, CONNECT, reading, writing, and the end of each.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use mio::{Registry, Token, net::TcpStream};

use super::{Client, Link, Open, READ_BUDGET};
use crate::{
    mqtt::{ClientEvent, DisconnectKind, session::Fault},
    net::{self, Connector, Progress, ReadOutcome, Stream},
};

impl Client {
    pub(super) fn resolve(&mut self, registry: &Registry, now: Instant) {
        let cfg = self.session.config();
        if let Ok(ip) = cfg.host.parse::<IpAddr>() {
            let address = SocketAddr::new(ip, cfg.port);
            return self.connect(registry, vec![address], now);
        }
        // A question that is still open will do; its answer is not older than this attempt's wish for one.
        if !self.asked {
            self.resolver.resolve(0, &cfg.host, cfg.port, &self.answers.0);
            self.asked = true;
        }
        self.link = Link::Resolving { until: now + cfg.connect_timeout };
    }

    pub(super) fn connect(&mut self, registry: &Registry, addresses: Vec<SocketAddr>, now: Instant) {
        self.link = Link::Connecting(Connector::new(addresses, self.config().connect_timeout));
        self.advance(registry, now);
    }

    pub(super) fn advance(&mut self, registry: &Registry, now: Instant) {
        let Link::Connecting(connector) = &mut self.link else { return };
        match connector.advance(registry, now) {
            Progress::Pending => {}
            Progress::Done(socket, token, address) => self.open(socket, token, address, now),
            Progress::Failed(why) => {
                let cfg = self.config();
                let reason = format!(
                    "can't connect to {}:{} ({why}); is the broker running and the port right?",
                    cfg.host, cfg.port
                );
                self.end(DisconnectKind::Connect, reason);
            }
        }
    }

    pub(super) fn open(&mut self, socket: TcpStream, token: Token, address: SocketAddr, now: Instant) {
        let cfg = self.session.config();
        let stream = match &cfg.tls {
            None => Ok(Stream::plain(socket)),
            Some(tls) => Stream::tls_client(socket, tls, &cfg.host),
        };
        let connack_until = Some(now + cfg.connack_timeout);
        self.input.clear();
        self.starved = false;
        match stream {
            Ok(stream) => {
                self.link = Link::Open(Box::new(Open { stream, token, address, connack_until }));
                match self.session.open(now) {
                    Ok(()) => self.write(now),
                    Err(fault) => self.end(fault.kind, format!("can't say CONNECT: {}", fault.reason)),
                }
            }
            Err(error) => self.end(DisconnectKind::Tls, error.to_string()),
        }
    }

    pub(super) fn open_timer(&mut self, now: Instant) {
        let Link::Open(open) = &self.link else { return };
        if self.stopping.is_some_and(|until| now >= until) {
            self.ended = Some(stopped());
            return;
        }
        if open.connack_until.is_some_and(|until| now >= until) {
            let what =
                if open.stream.is_handshaking() { "the TLS handshake" } else { "an answer to CONNECT" };
            let reason = format!(
                "no end of {what} within {} s; is this an MQTT port{}?",
                self.config().connack_timeout.as_secs_f32(),
                if self.config().tls.is_some() { " with TLS" } else { " without TLS" }
            );
            return self.lose(Fault { kind: DisconnectKind::Timeout, reason });
        }
        if let Err(fault) = self.session.tick(now) {
            return self.lose(fault);
        }
        self.read(now);
        self.write(now);
    }

    /// Whether more may be read from the socket.
    pub(super) fn may_read(&self) -> bool {
        self.ended.is_none()
            && (self.stopping.is_some()
                || self.session.may_deliver() && (self.starved || self.input.len() < READ_BUDGET))
    }

    pub(super) fn read(&mut self, now: Instant) {
        if !self.may_read() {
            return;
        }
        let Link::Open(open) = &mut self.link else { return };
        let before = self.input.len();
        let outcome = open.stream.read(&mut self.input, READ_BUDGET);
        if self.input.len() > before {
            self.session.note_received(now);
            self.starved = false;
        }
        if self.stopping.is_some() {
            // Nobody is left to acknowledge it.
            self.input.clear();
        }
        match outcome {
            Ok(ReadOutcome::Drained | ReadOutcome::More) => {}
            Ok(ReadOutcome::Eof) => {
                let before_connack = open.connack_until.is_some();
                let reason = if before_connack {
                    "the server closed the connection without an answer to CONNECT; does the port want TLS, or                      another MQTT version, or is it something else?"
                } else {
                    "the server closed the connection without a word"
                };
                self.lose(Fault { kind: DisconnectKind::Closed, reason: reason.into() });
            }
            Err(error) => self.broken(&error),
        }
    }

    pub(super) fn write(&mut self, now: Instant) {
        let Link::Open(open) = &mut self.link else { return };
        if self.ended.is_some() {
            return;
        }
        let before = self.session.out.len();
        let outcome = open.stream.flush(&mut self.session.out);
        if self.session.out.len() < before {
            self.session.note_sent(now);
        }
        match outcome {
            Ok(true) if self.stopping.is_some() => {
                // The server closes its side next; to drop the socket earlier could take the DISCONNECT back.
                open.stream.close();
            }
            Ok(_) => {
                if self.session.take_writable() {
                    self.events.push_back(ClientEvent::Writable);
                }
            }
            Err(error) => {
                // The server may have said why before it closed; a read error would only repeat what is known.
                let _ = open.stream.read(&mut self.input, READ_BUDGET);
                self.broken(&error);
            }
        }
    }

    pub(super) fn broken(&mut self, error: &net::Error) {
        let fault = match error {
            net::Error::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => Fault {
                kind: DisconnectKind::Timeout,
                reason: "the network or the server is gone (TCP timeout)".into(),
            },
            net::Error::Io(error) => return self.closed(format!("the connection broke: {error}")),
            net::Error::Tls(error) => {
                let trusted = self.config().tls.as_ref().map_or("nothing", |tls| tls.trusted.as_str());
                Fault {
                    kind: DisconnectKind::Tls,
                    reason: format!("TLS failed: {error} (trusted: {trusted})"),
                }
            }
        };
        self.lose(fault);
    }

    pub(super) fn closed(&mut self, mut reason: String) {
        if matches!(&self.link, Link::Open(open) if open.connack_until.is_some()) {
            reason.push_str(
                " without an answer to CONNECT; does the port want TLS or another MQTT version, or is it something else?",
            );
        }
        self.lose(Fault { kind: DisconnectKind::Closed, reason });
    }

    /// The connection is over; who it was with is added.
    pub(super) fn lose(&mut self, fault: Fault) {
        let fault = if self.stopping.is_some() { stopped() } else { self.name_peer(fault) };
        self.ended.get_or_insert(fault);
    }

    pub(super) fn name_peer(&self, mut fault: Fault) -> Fault {
        let cfg = self.config();
        let peer = match &self.link {
            Link::Open(open) if open.address.ip().to_string() != cfg.host => {
                format!("{}:{} ({})", cfg.host, cfg.port, open.address)
            }
            _ => format!("{}:{}", cfg.host, cfg.port),
        };
        fault.reason = format!("{peer}: {}", fault.reason);
        fault
    }

    /// An attempt is over before there was a connection.
    pub(super) fn end(&mut self, kind: DisconnectKind, reason: String) {
        self.ended.get_or_insert(Fault { kind, reason });
    }

    /// Leaves the link and says so.
    pub(super) fn close(&mut self, fault: Fault) -> ClientEvent {
        if let Link::Open(open) = &mut self.link {
            // The server hears why, as far as the socket takes it; what it makes of it changes nothing here.
            let _ = open.stream.flush(&mut self.session.out);
            open.stream.close();
        }
        self.session.lost();
        self.input.clear();
        self.starved = false;
        if self.stopping.take().is_some() {
            self.link = Link::Stopped;
            let Fault { kind, reason } = stopped();
            return ClientEvent::Disconnected { reason, error: kind, retry_in: Duration::ZERO };
        }
        // `now` is set since `start`; without it there is no link to lose.
        let retry_in = match self.now {
            Some(now) => {
                let delay = self.backoff.next_delay(now, &mut self.rng);
                self.link = Link::Waiting { until: now + delay };
                delay
            }
            None => Duration::ZERO,
        };
        ClientEvent::Disconnected { reason: fault.reason, error: fault.kind, retry_in }
    }
}

pub(super) fn stopped() -> Fault {
    Fault { kind: DisconnectKind::Stopped, reason: "stopped".into() }
}

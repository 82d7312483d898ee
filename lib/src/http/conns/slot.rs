//! One of a server's connections: its stage, and how it is moved on in one turn of the loop.
//!
//! Invariant: a turn is bounded in bytes and steps, whatever the peer sends or takes.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Instant;

use super::{CLOSING, Caps, Client, PIECES_MAX, Service};
use crate::net::{self, InBuf, ReadOutcome, Stream};

/// Bytes read from a connection at once.
const READ: usize = 64 << 10;
/// Bytes sent from a file at once.
const SEND: usize = 512 << 10;
/// Turns of one connection before others get theirs.
const BUDGET: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// TLS until then at most.
    Handshake(Instant),
    /// HTTP.
    Open,
    /// Ended from here; what still comes is thrown away, until then at most.
    Closing(Instant),
}

#[derive(Debug)]
pub(super) struct Slot<T> {
    pub(super) stream: Stream,
    pub(super) stage: Stage,
    pub(super) client: Client<T>,
    /// SHA-256 of the client's certificate.
    pub(super) certificate: Option<String>,
    /// The writing side is shut.
    pub(super) shut: bool,
    /// Since when it waits for a request.
    pub(super) used: Instant,
    /// When its timer fires: its deadline, or earlier.
    pub(super) armed: Option<Instant>,
    /// Bytes written since somebody counted them.
    pub(super) sent: u64,
}

pub(super) enum Turn {
    Waits,
    More,
    Over,
}

impl<T: Default> Slot<T> {
    /// What may be ended for a newcomer, the least worth first: closing, oldest handshake, longest idle.
    pub(super) fn worth(&self) -> Option<(u8, Instant)> {
        match self.stage {
            Stage::Closing(until) => Some((0, until)),
            Stage::Handshake(until) => Some((1, until)),
            Stage::Open => self.client.http.is_idle().then_some((2, self.used)),
        }
    }

    fn may_read(&self, window: usize) -> bool {
        self.client.waiting < window && self.client.pieces < PIECES_MAX
    }

    pub(super) fn deadline(&self, caps: &Caps) -> Option<Instant> {
        match self.stage {
            Stage::Handshake(until) | Stage::Closing(until) => Some(until),
            // While the disk is behind, the client can't be blamed for silence.
            Stage::Open => self.client.http.deadline().filter(|_| self.may_read(caps.window)),
        }
    }

    pub(super) fn pump<S: Service<State = T>>(
        &mut self,
        scratch: &mut InBuf,
        window: usize,
        service: &mut S,
        now: Instant,
    ) -> Result<Turn, net::Error> {
        for _ in 0..BUDGET {
            if matches!(self.stage, Stage::Closing(_)) {
                return Ok(if self.stream.discard() { Turn::Over } else { Turn::Waits });
            }
            let mut moved = self.understand(service, now);
            let io = self.client.http.io();
            if io.close {
                if !self.stream.settle()? {
                    return Ok(Turn::Waits);
                }
                self.stream.close();
                self.stage = Stage::Closing(now + CLOSING);
                continue;
            }
            if io.write {
                let n = self.stream.write(self.client.http.output())?;
                self.client.http.wrote(n, now);
                self.sent += n as u64;
                moved |= n > 0;
            } else if self.client.http.file().is_some() {
                moved |= self.send_file(scratch, now)?;
            } else {
                let settled = self.stream.settle()?;
                if io.shutdown && settled && !self.shut {
                    self.stream.close();
                    self.shut = true;
                }
            }
            if io.read && self.may_read(window) {
                moved |= self.read(scratch, now)?;
            }
            if !moved {
                return Ok(Turn::Waits);
            }
        }
        Ok(Turn::More)
    }

    /// The next bytes of an answer that is a file. `scratch` is empty before and after.
    fn send_file(&mut self, scratch: &mut InBuf, now: Instant) -> Result<bool, net::Error> {
        let Some((file, offset, left)) = self.client.http.file() else { return Ok(false) };
        let n = usize::try_from(left).unwrap_or(usize::MAX).min(SEND);
        if let Some(sent) = self.stream.send_file(file, offset, n)? {
            self.client.http.sent_file(sent as u64, now);
            self.sent += sent as u64;
            return Ok(sent > 0);
        }
        if !self.stream.settle()? {
            return Ok(false);
        }
        let buffer = scratch.vec();
        buffer.resize(n.min(READ), 0);
        let read = file.read_at(buffer, offset);
        match read {
            Ok(0) => {
                scratch.clear();
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            Ok(n) => self.client.http.feed_file(&scratch.bytes()[..n], now),
            Err(error) => {
                scratch.clear();
                return Err(error.into());
            }
        }
        scratch.clear();
        Ok(true)
    }

    /// What was read becomes events, and a long answer is filled up.
    fn understand<S: Service<State = T>>(&mut self, service: &mut S, now: Instant) -> bool {
        let mut moved = false;
        while let Some(event) = self.client.http.next(now) {
            moved = true;
            self.used = now;
            service.event(&mut self.client, event, now);
        }
        let before = self.client.http.unsent();
        service.feed(&mut self.client, now);
        moved || self.client.http.unsent() != before
    }

    fn read(&mut self, scratch: &mut InBuf, now: Instant) -> Result<bool, net::Error> {
        let outcome = self.stream.read(scratch, READ)?;
        if matches!(self.stage, Stage::Handshake(_)) && !self.stream.is_handshaking() {
            self.stage = Stage::Open;
            self.certificate = self.stream.peer_sha256();
            log::debug!(
                "client {}: certificate {}",
                self.client.peer,
                self.certificate.as_deref().unwrap_or("none")
            );
        }
        let got = scratch.len();
        if self.stage == Stage::Open {
            self.client.http.received(scratch.bytes(), now);
        }
        scratch.clear();
        if outcome == ReadOutcome::Eof {
            self.client.http.eof();
        }
        Ok(got > 0 || outcome != ReadOutcome::Drained)
    }
}

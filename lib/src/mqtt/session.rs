//! The client's side of one MQTT connection after another, without I/O and clock: bytes in, events and bytes out.
//!
//! Owns: the packet ids in use (across connections), what each id waits for (on this connection), the server's
//! limits, the keep-alive, and the ids of inbound QoS 2 messages that may be answered without asking.
//! Invariant: an acknowledgement leaves only through `ack`, which the daemon calls, or for an id in `held`,
//! which holds only ids that the daemon declared durable.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{
    ClientConfig, ClientEvent, DisconnectKind, Filter, Message, PeerLimits, PublishError, Qos, Version,
    control,
    pids::Pids,
    reason,
    wire::{self, Frame, WireError, kind},
};
use crate::net::{InBuf, OutBuf};

/// Why the connection must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) kind: DisconnectKind,
    pub(crate) reason: String,
}

impl From<WireError> for Fault {
    fn from(error: WireError) -> Fault {
        Fault { kind: DisconnectKind::Protocol, reason: format!("the server sent what is not MQTT: {error}") }
    }
}

/// How far the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// None.
    Down,
    /// CONNECT is queued or sent.
    AwaitConnack,
    /// CONNACK was good.
    Up,
    /// DISCONNECT is queued or sent; nothing else goes out.
    Closing,
}

/// What an outgoing id waits for on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Puback,
    Pubrec,
    Pubcomp,
    Suback,
}

#[derive(Debug, Clone, Copy)]
struct Exchange {
    wait: Wait,
    /// It uses the server's Receive Maximum: its PUBLISH went out on this connection (4.9).
    counted: bool,
}

/// Acknowledgements may exceed the bound of the output buffer by this much before reading stops, in bytes.
const ACK_RESERVE: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Session {
    cfg: ClientConfig,
    /// Bytes for the server.
    pub(crate) out: OutBuf,
    phase: Phase,
    limits: PeerLimits,
    keep_alive: Option<Duration>,
    pids: Pids,
    exchanges: HashMap<u16, Exchange>,
    window_used: u32,
    held: HashSet<u16>,
    /// Inbound messages of this connection without answer: only these can be answered.
    unanswered: HashSet<u16>,
    paused: bool,
    /// Set by `open`.
    last_sent: Option<Instant>,
    last_received: Option<Instant>,
    /// A PINGREQ is unanswered since.
    ping_sent: Option<Instant>,
    /// A publish was refused for a full buffer.
    want_writable: bool,
}

impl Session {
    pub(crate) fn new(cfg: ClientConfig) -> Session {
        Session {
            cfg,
            out: OutBuf::default(),
            phase: Phase::Down,
            limits: PeerLimits {
                receive_maximum: u16::MAX,
                max_packet_bytes: None,
                max_qos: Qos::ExactlyOnce,
                retain: true,
            },
            keep_alive: None,
            pids: Pids::default(),
            exchanges: HashMap::new(),
            window_used: 0,
            held: HashSet::new(),
            unanswered: HashSet::new(),
            paused: false,
            last_sent: None,
            last_received: None,
            ping_sent: None,
            want_writable: false,
        }
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.cfg
    }

    pub(crate) fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    /// A transport stands: queues CONNECT.
    pub(crate) fn open(&mut self, now: Instant) -> Result<(), Fault> {
        self.lost();
        let connect = control::encode_connect(&self.cfg)
            .map_err(|reason| Fault { kind: DisconnectKind::Protocol, reason: reason.to_owned() })?;
        self.out.vec().extend_from_slice(&connect);
        self.phase = Phase::AwaitConnack;
        (self.last_sent, self.last_received) = (Some(now), Some(now));
        Ok(())
    }

    /// The transport is gone. Packet ids stay taken; those of a SUBSCRIBE are free.
    pub(crate) fn lost(&mut self) {
        self.phase = Phase::Down;
        self.out.clear();
        for (pid, exchange) in self.exchanges.drain() {
            if exchange.wait == Wait::Suback {
                self.pids.release(pid);
            }
        }
        self.window_used = 0;
        self.unanswered.clear();
        self.ping_sent = None;
        self.want_writable = false;
    }

    /// Queues DISCONNECT with this reason, if the server would understand one; nothing goes out after it.
    pub(crate) fn disconnect(&mut self, code: u8) {
        if self.phase == Phase::Up {
            control::encode_disconnect(self.out.vec(), self.cfg.version, code);
        }
        if self.phase != Phase::Down {
            self.phase = Phase::Closing;
        }
    }

    /// Understands bytes up to the next event; `None` when a packet is incomplete, or nothing may be delivered.
    pub(crate) fn step(&mut self, input: &mut InBuf) -> Result<Option<ClientEvent>, Fault> {
        while self.may_deliver() {
            if self.phase == Phase::AwaitConnack
                && input.bytes().first().is_some_and(|b| *b != kind::CONNACK << 4)
            {
                // Seen before the packet is complete: another protocol's greeting would be waited for in vain.
                return Err(WireError::Protocol("something else than CONNACK").into());
            }
            let Some(frame) = wire::frame(input.bytes(), self.cfg.max_packet_bytes)? else { return Ok(None) };
            let total = frame.total;
            let event = self.packet(frame);
            input.consume(total);
            if let Some(event) = event? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// Whether packets may be understood and the socket be read.
    pub(crate) fn may_deliver(&self) -> bool {
        match self.phase {
            Phase::Down | Phase::Closing => false,
            Phase::AwaitConnack => true,
            Phase::Up => !self.paused && self.out.len() < self.cfg.out_buffer_bytes + ACK_RESERVE,
        }
    }

    fn packet(&mut self, frame: Frame<'_>) -> Result<Option<ClientEvent>, Fault> {
        let version = self.cfg.version;
        match (self.phase, frame.kind()) {
            (Phase::AwaitConnack, kind::CONNACK) => {
                self.connack(control::decode_connack(version, frame)?).map(Some)
            }
            (Phase::AwaitConnack, _) => Err(WireError::Protocol("a packet before CONNACK").into()),
            (_, kind::PUBLISH) => {
                let (pid, dup, message) = wire::decode_publish(version, frame)?;
                Ok(self.inbound(pid, dup, message))
            }
            (_, kind::PUBACK | kind::PUBREC | kind::PUBCOMP) => {
                let (pid, reason) = wire::decode_ack(version, frame)?;
                Ok(self.acknowledged(frame.kind(), pid, reason))
            }
            (_, kind::PUBREL) => {
                let (pid, _) = wire::decode_ack(version, frame)?;
                // A PUBLISH with this id is a new message from here on (4.3.3).
                self.held.remove(&pid);
                Ok(Some(ClientEvent::Pubrel { pid }))
            }
            (_, kind::SUBACK) => {
                let (pid, reasons) = control::decode_suback(version, frame)?;
                Ok(self.finish(pid, Wait::Suback).then_some(ClientEvent::Suback { pid, reasons }))
            }
            (_, kind::PINGRESP) if frame.first & 0x0f == 0 && frame.body.is_empty() => Ok(None),
            (_, kind::DISCONNECT) if version == Version::V5 => {
                let (code, text) = control::decode_disconnect(frame)?;
                let reason =
                    format!("the server closed the connection: {}", reason::describe(code, text.as_deref()));
                Err(Fault { kind: DisconnectKind::Server(code), reason })
            }
            _ => Err(WireError::Protocol("a packet that a server does not send").into()),
        }
    }

    fn connack(&mut self, connack: control::Connack) -> Result<ClientEvent, Fault> {
        if connack.reason != 0 {
            let reason = format!(
                "the server refused the connection: {}",
                reason::describe(connack.reason, connack.text.as_deref())
            );
            return Err(Fault { kind: DisconnectKind::Refused(connack.reason), reason });
        }
        if connack.session_present && self.cfg.clean_start {
            return Err(WireError::Protocol("session present after a clean start").into());
        }
        if !connack.session_present {
            // Ids start anew: with the old set, new messages would pass for duplicates.
            self.held.clear();
        }
        if let Some(seconds) = connack.session_expiry_s
            && seconds < self.cfg.session_expiry_s
        {
            log::info!("mqtt: {} keeps the session for {seconds} s only", self.cfg.host);
        }
        self.phase = Phase::Up;
        self.limits = connack.limits;
        let seconds = connack.keep_alive_s.unwrap_or(self.cfg.keep_alive_s);
        self.keep_alive = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        Ok(ClientEvent::Connected { session_present: connack.session_present, limits: connack.limits })
    }

    fn inbound(&mut self, pid: Option<u16>, dup: bool, message: Message) -> Option<ClientEvent> {
        if let Some(pid) = pid
            && message.qos == Qos::ExactlyOnce
            && self.held.contains(&pid)
        {
            if !dup {
                // No redelivery (3.3.1.1): a server that forgot the old exchange uses the id anew. The daemon decides.
                self.held.remove(&pid);
                self.unanswered.insert(pid);
                return Some(ClientEvent::Publish { pid: Some(pid), dup, message });
            }
            // Durable already: the PUBREC was lost.
            wire::encode_ack(self.out.vec(), self.cfg.version, kind::PUBREC, pid, 0);
            return None;
        }
        self.unanswered.extend(pid);
        Some(ClientEvent::Publish { pid, dup, message })
    }

    fn acknowledged(&mut self, packet: u8, pid: u16, reason: u8) -> Option<ClientEvent> {
        match packet {
            kind::PUBACK if self.finish(pid, Wait::Puback) => Some(ClientEvent::Puback { pid, reason }),
            kind::PUBCOMP if self.finish(pid, Wait::Pubcomp) => Some(ClientEvent::Pubcomp { pid, reason }),
            kind::PUBREC => self.received(pid, reason),
            _ => {
                // Nothing waits for it: the server answered twice. What does wait is not touched.
                log::debug!(
                    "mqtt: {} acknowledged packet id {pid}, which does not wait for it",
                    self.cfg.host
                );
                None
            }
        }
    }

    fn received(&mut self, pid: u16, reason: u8) -> Option<ClientEvent> {
        let counted = match self.exchanges.get(&pid) {
            Some(Exchange { wait: Wait::Puback | Wait::Suback, .. }) => return None,
            Some(exchange) => exchange.counted,
            None if self.pids.is_taken(pid) => false,
            None => {
                // The server holds an id that nobody here knows: let it forget it (4.3.3).
                wire::encode_ack(self.out.vec(), self.cfg.version, kind::PUBREL, pid, 0x92);
                return None;
            }
        };
        let wait = if reason >= 0x80 { Wait::Pubrec } else { Wait::Pubcomp };
        self.exchanges.insert(pid, Exchange { wait, counted });
        if reason >= 0x80 {
            self.finish(pid, Wait::Pubrec);
        }
        Some(ClientEvent::Pubrec { pid, reason })
    }

    /// Ends an exchange that waits for `wait` and frees its id. `false`: there is none.
    fn finish(&mut self, pid: u16, wait: Wait) -> bool {
        match self.exchanges.get(&pid) {
            Some(exchange) if exchange.wait == wait => {
                self.window_used = self.window_used.saturating_sub(u32::from(exchange.counted));
                self.exchanges.remove(&pid);
                self.pids.release(pid);
                true
            }
            _ => false,
        }
    }

    pub(crate) fn publish(
        &mut self,
        pid: Option<u16>,
        dup: bool,
        message: &Message,
    ) -> Result<(), PublishError> {
        if self.phase != Phase::Up {
            return Err(PublishError::NotConnected);
        }
        if message.qos > self.limits.max_qos {
            return Err(PublishError::QosNotSupported(self.limits.max_qos as u8));
        }
        if message.retain && !self.limits.retain {
            return Err(PublishError::RetainNotSupported);
        }
        if pid.is_some() != (message.qos != Qos::AtMostOnce) || pid == Some(0) {
            return Err(PublishError::NoPacketId);
        }
        if pid.is_some_and(|pid| self.exchanges.contains_key(&pid)) {
            return Err(PublishError::Invalid("the packet id is in flight on this connection already"));
        }
        let packet =
            wire::Outgoing::new(self.cfg.version, pid, dup, message).map_err(PublishError::Invalid)?;
        let bytes = packet.size();
        if let Some(limit) = self.limits.max_packet_bytes
            && bytes > u64::from(limit)
        {
            return Err(PublishError::TooLarge { bytes, limit: limit.into() });
        }
        if pid.is_some() && self.window_used >= u32::from(self.limits.receive_maximum) {
            return Err(PublishError::WindowFull(self.limits.receive_maximum));
        }
        if !self.out.is_empty() && self.out.len() as u64 + bytes > self.cfg.out_buffer_bytes as u64 {
            self.want_writable = true;
            return Err(PublishError::BufferFull);
        }
        packet.encode(self.out.vec());
        if let Some(pid) = pid {
            let wait = if message.qos == Qos::ExactlyOnce { Wait::Pubrec } else { Wait::Puback };
            self.pids.reserve(pid);
            self.exchanges.insert(pid, Exchange { wait, counted: true });
            self.window_used += 1;
        }
        Ok(())
    }

    pub(crate) fn pubrel(&mut self, pid: u16) -> Result<(), PublishError> {
        if self.phase != Phase::Up {
            return Err(PublishError::NotConnected);
        }
        let counted = self.exchanges.get(&pid).is_some_and(|exchange| exchange.counted);
        self.pids.reserve(pid);
        self.exchanges.insert(pid, Exchange { wait: Wait::Pubcomp, counted });
        wire::encode_ack(self.out.vec(), self.cfg.version, kind::PUBREL, pid, 0);
        Ok(())
    }

    /// PUBACK, PUBREC or PUBCOMP for an inbound message. An answer to a message of an earlier connection is dropped:
    /// in a new session its id may belong to another message.
    pub(crate) fn ack(&mut self, packet: u8, pid: u16, reason: u8) {
        if self.phase != Phase::Up || (packet != kind::PUBCOMP && !self.unanswered.remove(&pid)) {
            return;
        }
        if packet == kind::PUBREC && reason < 0x80 {
            self.held.insert(pid);
        }
        wire::encode_ack(self.out.vec(), self.cfg.version, packet, pid, reason);
    }

    pub(crate) fn subscribe(&mut self, filters: &[Filter]) -> Result<u16, PublishError> {
        if self.phase != Phase::Up {
            return Err(PublishError::NotConnected);
        }
        let pid = self.pids.acquire().ok_or(PublishError::NoPacketId)?;
        let packet = match control::encode_subscribe(self.cfg.version, pid, filters) {
            Ok(packet) => packet,
            Err(reason) => {
                self.pids.release(pid);
                return Err(PublishError::Invalid(reason));
            }
        };
        self.out.vec().extend_from_slice(&packet);
        self.exchanges.insert(pid, Exchange { wait: Wait::Suback, counted: false });
        Ok(pid)
    }

    pub(crate) fn pids(&mut self) -> &mut Pids {
        &mut self.pids
    }

    pub(crate) fn set_clean_start(&mut self, clean: bool) {
        self.cfg.clean_start = clean;
    }

    pub(crate) fn set_held(&mut self, held: HashSet<u16>) {
        self.held = held;
    }

    pub(crate) fn pause(&mut self, paused: bool, now: Option<Instant>) {
        if self.paused && !paused {
            // The answer could not be seen; it has its time again.
            self.ping_sent = self.ping_sent.and(now);
        }
        self.paused = paused;
    }

    /// Bytes of the server arrived.
    pub(crate) fn note_received(&mut self, now: Instant) {
        self.last_received = Some(now);
        self.ping_sent = None;
    }

    /// Bytes went out.
    pub(crate) fn note_sent(&mut self, now: Instant) {
        self.last_sent = Some(now);
    }

    /// Room in the output buffer.
    pub(crate) fn writable_bytes(&self) -> usize {
        if self.phase == Phase::Up { self.cfg.out_buffer_bytes.saturating_sub(self.out.len()) } else { 0 }
    }

    pub(crate) fn window_open(&self) -> bool {
        self.window_used < u32::from(self.limits.receive_maximum)
    }

    /// Whether to tell that there is room again.
    pub(crate) fn take_writable(&mut self) -> bool {
        let tell =
            self.want_writable && self.phase == Phase::Up && self.out.len() <= self.cfg.out_buffer_bytes / 2;
        self.want_writable &= !tell;
        tell
    }

    /// When `tick` wants to be called.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.phase != Phase::Up {
            return None;
        }
        match self.ping_sent {
            Some(since) if !self.paused => Some(since + self.cfg.ping_timeout),
            _ => self.ping_due(),
        }
    }

    /// A ping is due when nothing was sent, and also when nothing was heard: a server that only swallows what is
    /// published is noticed that way.
    fn ping_due(&self) -> Option<Instant> {
        let since = if self.paused { self.last_sent } else { self.last_sent.min(self.last_received) };
        Some(since? + self.keep_alive?)
    }

    pub(crate) fn tick(&mut self, now: Instant) -> Result<(), Fault> {
        if self.phase != Phase::Up {
            return Ok(());
        }
        match self.ping_sent {
            Some(since) if !self.paused && now >= since + self.cfg.ping_timeout => {
                let reason = format!("no answer to a ping within {} s", self.cfg.ping_timeout.as_secs_f32());
                return Err(Fault { kind: DisconnectKind::Timeout, reason });
            }
            Some(_) if !self.paused => {}
            _ if self.ping_due().is_some_and(|due| now >= due) => {
                self.out.vec().extend_from_slice(&[kind::PINGREQ << 4, 0]);
                self.ping_sent = Some(now);
                self.last_sent = Some(now);
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;

//! The server's side of one MQTT connection, without I/O and clock: bytes in, events and bytes out.
//!
//! Owns: how far the connection is, its will, the ids of its QoS 2 messages that are durable, and the ids that wait
//! for the daemon's answer (bounded). It never acknowledges by itself, except a duplicate of a durable id.

use std::{collections::HashSet, time::Duration};

use mqtt_protocol_core::mqtt::{
    packet::{self, v3_1_1, v5_0},
    result_code::{ConnectReasonCode, ConnectReturnCode},
};

use crate::{
    mqtt::{
        Message, Qos, Version,
        control::{self, Connect, ConnectError},
        reason,
        wire::{self, Frame, WireError, kind},
    },
    net::{InBuf, OutBuf},
};

/// What a client wants of the port.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PeerEvent {
    /// CONNECT; the port answers with `accept` or `refuse`.
    Connect(Box<Connect>),
    /// A message.
    Publish { pid: Option<u16>, dup: bool, message: Message },
    /// A release.
    Pubrel { pid: u16 },
    /// DISCONNECT; the will, unless it asked for it, is dropped already.
    Disconnect,
}

/// How far the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    AwaitConnect,
    /// CONNECT was delivered, the port has not answered yet.
    AwaitAccept,
    Up,
    /// The last packet is queued, or the client said DISCONNECT.
    Closing,
}

/// Bounds of a connection, from the port's configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) packet_bytes: u32,
    pub(crate) unacked: usize,
    pub(crate) out_bytes: usize,
}

/// SUBSCRIBE and UNSUBSCRIBE with more filters than this are cut off.
const FILTERS_MAX: usize = 1000;
const NO_BROKER: &str = "this is an ingest port and no broker: it takes messages and delivers none";

#[derive(Debug)]
pub(crate) struct Peer {
    limits: Limits,
    /// Bytes for the client.
    pub(crate) out: OutBuf,
    phase: Phase,
    version: Version,
    max_packet_bytes: u32,
    keep_alive: Option<Duration>,
    session_expiry_s: u32,
    will: Option<Message>,
    held: HashSet<u16>,
    /// Ids of messages that wait for the daemon's answer.
    unanswered: HashSet<u16>,
    paused: bool,
}

impl Peer {
    pub(crate) fn new(limits: Limits) -> Peer {
        Peer {
            limits,
            out: OutBuf::default(),
            phase: Phase::AwaitConnect,
            version: Version::V311,
            max_packet_bytes: u32::MAX,
            keep_alive: None,
            session_expiry_s: 0,
            will: None,
            held: HashSet::new(),
            unanswered: HashSet::new(),
            paused: false,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.phase == Phase::Up
    }

    pub(crate) fn session_expiry_s(&self) -> u32 {
        self.session_expiry_s
    }

    /// After this much silence the client is gone: one and a half times its keep-alive (3.1.2.10).
    pub(crate) fn silence_max(&self) -> Option<Duration> {
        if self.phase == Phase::Up { self.keep_alive } else { None }
    }

    pub(crate) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Whether packets may be understood and the socket be read. `port_paused` holds back all messages.
    pub(crate) fn may_deliver(&self, port_paused: bool) -> bool {
        match self.phase {
            Phase::AwaitConnect => true,
            Phase::AwaitAccept | Phase::Closing => false,
            Phase::Up => {
                !port_paused
                    && !self.paused
                    && self.unanswered.len() < self.limits.unacked
                    && self.out.len() < self.limits.out_bytes
            }
        }
    }

    /// Understands bytes up to the next event. The error is the reason for people; what the client is told of it is
    /// queued already.
    pub(crate) fn step(&mut self, input: &mut InBuf, port_paused: bool) -> Result<Option<PeerEvent>, String> {
        while self.may_deliver(port_paused) {
            match self.next_packet(input) {
                Ok(None) => return Ok(None),
                Ok(Some(None)) => {}
                Ok(Some(event)) => return Ok(event),
                Err(error) => {
                    self.end(error.reason_code());
                    return Err(format!("the client broke the protocol: {error}"));
                }
            }
        }
        Ok(None)
    }

    /// `None`: incomplete. `Some(None)`: understood, and nothing for the port in it.
    fn next_packet(&mut self, input: &mut InBuf) -> Result<Option<Option<PeerEvent>>, WireError> {
        let first = self.phase == Phase::AwaitConnect;
        if first && input.bytes().first().is_some_and(|b| *b != kind::CONNECT << 4) {
            return Err(WireError::Protocol("something else than CONNECT"));
        }
        let Some(frame) = wire::frame(input.bytes(), self.limits.packet_bytes)? else { return Ok(None) };
        let total = frame.total;
        let event = if first { self.connect(frame) } else { self.packet(frame) };
        input.consume(total);
        event.map(Some)
    }

    fn connect(&mut self, frame: Frame<'_>) -> Result<Option<PeerEvent>, WireError> {
        match control::decode_connect(frame) {
            Ok(mut connect) => {
                self.version = connect.version;
                self.max_packet_bytes = connect.max_packet_bytes.unwrap_or(u32::MAX);
                let seconds = u64::from(connect.keep_alive_s);
                self.keep_alive = (seconds > 0).then(|| Duration::from_millis(seconds * 1500));
                self.session_expiry_s = connect.session_expiry_s;
                self.will = connect.will.take();
                self.phase = Phase::AwaitAccept;
                Ok(Some(PeerEvent::Connect(Box::new(connect))))
            }
            Err(ConnectError::Version(level)) => {
                self.version = if level > 5 { Version::V5 } else { Version::V311 };
                self.refuse(0x84);
                Err(WireError::Protocol("a protocol version other than 3.1.1 and 5"))
            }
            Err(ConnectError::Broken(error)) => Err(error),
        }
    }

    fn packet(&mut self, frame: Frame<'_>) -> Result<Option<PeerEvent>, WireError> {
        match frame.kind() {
            kind::PUBLISH => {
                let (pid, dup, message) = wire::decode_publish(self.version, frame)?;
                Ok(self.publish(pid, dup, message))
            }
            kind::PUBREL => {
                let (pid, _) = wire::decode_ack(self.version, frame)?;
                self.held.remove(&pid);
                Ok(Some(PeerEvent::Pubrel { pid }))
            }
            kind::PINGREQ if frame.first & 0x0f == 0 && frame.body.is_empty() => {
                self.out.vec().extend_from_slice(&[kind::PINGRESP << 4, 0]);
                Ok(None)
            }
            kind::SUBSCRIBE => self.subscribe(frame).map(|()| None),
            kind::UNSUBSCRIBE => self.unsubscribe(frame).map(|()| None),
            kind::DISCONNECT => self.disconnect(frame).map(Some),
            _ => Err(WireError::Protocol("a packet that a publisher does not send")),
        }
    }

    fn publish(&mut self, pid: Option<u16>, dup: bool, message: Message) -> Option<PeerEvent> {
        if let Some(pid) = pid {
            if message.qos == Qos::ExactlyOnce && dup && self.held.contains(&pid) {
                // Durable already: the PUBREC was lost.
                wire::encode_ack(self.out.vec(), self.version, kind::PUBREC, pid, 0);
                return None;
            }
            // No redelivery (3.3.1.1) of what is held: a client that forgot uses the id anew. The daemon decides.
            self.held.remove(&pid);
            self.unanswered.insert(pid);
        }
        Some(PeerEvent::Publish { pid, dup, message })
    }

    /// Refused, and the connection stays: some publishers subscribe to their own status by habit.
    fn subscribe(&mut self, frame: Frame<'_>) -> Result<(), WireError> {
        let malformed = |_| WireError::Malformed("SUBSCRIBE");
        let (pid, filters, used) = match self.version {
            Version::V311 => {
                let (p, used) = v3_1_1::Subscribe::parse(frame.body).map_err(malformed)?;
                (p.packet_id(), p.entries().len(), used)
            }
            Version::V5 => {
                let (p, used) = v5_0::Subscribe::parse(frame.body).map_err(malformed)?;
                (p.packet_id(), p.entries().len(), used)
            }
        };
        self.check_filters(frame, pid, filters, used)?;
        let code = if self.version == Version::V5 { 0x83 } else { 0x80 };
        self.answer_filters(kind::SUBACK, pid, &vec![code; filters]);
        Ok(())
    }

    fn unsubscribe(&mut self, frame: Frame<'_>) -> Result<(), WireError> {
        let malformed = |_| WireError::Malformed("UNSUBSCRIBE");
        let (pid, filters, used) = match self.version {
            Version::V311 => {
                let (p, used) = v3_1_1::Unsubscribe::parse(frame.body).map_err(malformed)?;
                (p.packet_id(), p.entries().len(), used)
            }
            Version::V5 => {
                let (p, used) = v5_0::Unsubscribe::parse(frame.body).map_err(malformed)?;
                (p.packet_id(), p.entries().len(), used)
            }
        };
        self.check_filters(frame, pid, filters, used)?;
        // 0x11: there was no subscription. UNSUBACK of 3.1.1 has no reasons.
        let codes = if self.version == Version::V5 { vec![0x11; filters] } else { Vec::new() };
        self.answer_filters(kind::UNSUBACK, pid, &codes);
        Ok(())
    }

    fn check_filters(
        &self,
        frame: Frame<'_>,
        pid: u16,
        filters: usize,
        used: usize,
    ) -> Result<(), WireError> {
        if frame.first & 0x0f != 2 || used != frame.body.len() || pid == 0 || filters == 0 {
            return Err(WireError::Malformed("SUBSCRIBE or UNSUBSCRIBE"));
        }
        if filters > FILTERS_MAX {
            return Err(WireError::Protocol("too many topic filters"));
        }
        Ok(())
    }

    fn answer_filters(&mut self, packet: u8, pid: u16, codes: &[u8]) {
        let text = if packet == kind::SUBACK { NO_BROKER } else { "" };
        let mut body = pid.to_be_bytes().to_vec();
        if self.version == Version::V5 {
            let with_text = wire::reason_string(text);
            // A reason that would exceed what the client takes is left out (3.9.2.1.2).
            let room = (self.max_packet_bytes as usize).saturating_sub(8 + codes.len());
            if with_text.len() <= room { body.extend_from_slice(&with_text) } else { body.push(0) }
        }
        body.extend_from_slice(codes);
        wire::put_packet(self.out.vec(), packet << 4, &body);
    }

    fn disconnect(&mut self, frame: Frame<'_>) -> Result<PeerEvent, WireError> {
        let code = match self.version {
            Version::V311 if frame.first & 0x0f == 0 && frame.body.is_empty() => 0,
            Version::V311 => return Err(WireError::Malformed("DISCONNECT")),
            Version::V5 => {
                let (code, _) = control::decode_disconnect(frame)?;
                if let Some(seconds) = control::disconnect_expiry(frame) {
                    if self.session_expiry_s == 0 && seconds > 0 {
                        return Err(WireError::Protocol("a session that ends at once can't be prolonged"));
                    }
                    self.session_expiry_s = seconds;
                }
                code
            }
        };
        if code == 0 {
            self.will = None;
        }
        self.phase = Phase::Closing;
        Ok(PeerEvent::Disconnect)
    }

    /// Answers CONNECT.
    pub(crate) fn accept(&mut self, session_present: bool, assigned_id: Option<&str>) {
        if self.phase != Phase::AwaitAccept {
            return;
        }
        self.phase = Phase::Up;
        self.connack(session_present, 0, assigned_id);
    }

    /// Refuses CONNECT with this MQTT 5 reason.
    pub(crate) fn refuse(&mut self, code: u8) {
        self.connack(false, code, None);
        self.will = None;
        self.phase = Phase::Closing;
    }

    fn connack(&mut self, session_present: bool, code: u8, assigned_id: Option<&str>) {
        let bytes = match self.version {
            Version::V311 => v3_1_1::Connack::builder()
                .session_present(session_present)
                .return_code(
                    // Every value of `to_return_code` is one.
                    ConnectReturnCode::try_from(reason::to_return_code(code))
                        .unwrap_or(ConnectReturnCode::ServerUnavailable),
                )
                .build()
                .map(|p| p.to_continuous_buffer()),
            Version::V5 => v5_0::Connack::builder()
                .session_present(session_present)
                .reason_code(ConnectReasonCode::try_from(code).unwrap_or(ConnectReasonCode::UnspecifiedError))
                .props(self.connack_properties(code, assigned_id))
                .build()
                .map(|p| p.to_continuous_buffer()),
        };
        match bytes {
            Ok(bytes) => self.out.vec().extend_from_slice(&bytes),
            Err(error) => log::error!("mqtt: can't build CONNACK: {error:?}"),
        }
    }

    /// No Receive Maximum: a client that has sent enough is not read instead.
    fn connack_properties(&self, code: u8, assigned_id: Option<&str>) -> packet::Properties {
        if code != 0 {
            return Vec::new();
        }
        let all = [
            packet::MaximumPacketSize::new(self.limits.packet_bytes.max(1)).map(Into::into),
            packet::WildcardSubscriptionAvailable::new(0).map(Into::into),
            packet::SubscriptionIdentifierAvailable::new(0).map(Into::into),
            packet::SharedSubscriptionAvailable::new(0).map(Into::into),
        ];
        let id = assigned_id.map(|id| packet::AssignedClientIdentifier::new(id).map(Into::into));
        // Each of these values is in range.
        all.into_iter().chain(id).filter_map(Result::ok).collect()
    }

    /// PUBACK, PUBREC or PUBCOMP, as the daemon decided.
    pub(crate) fn ack(&mut self, packet: u8, pid: u16, reason: u8) {
        if self.phase != Phase::Up || pid == 0 {
            return;
        }
        if packet != kind::PUBCOMP {
            self.unanswered.remove(&pid);
        }
        if packet == kind::PUBREC && reason < 0x80 {
            self.held.insert(pid);
        }
        wire::encode_ack(self.out.vec(), self.version, packet, pid, reason);
    }

    /// Ends the connection and tells the client why, as far as its version can.
    pub(crate) fn end(&mut self, code: u8) {
        match self.phase {
            Phase::Closing => return,
            Phase::AwaitAccept => self.connack(false, code, None),
            Phase::Up if self.version == Version::V5 => {
                control::encode_disconnect(self.out.vec(), self.version, code)
            }
            // 3.1.1 has no such word, and before CONNECT nothing is known of the client.
            Phase::Up | Phase::AwaitConnect => {}
        }
        if self.phase != Phase::Up {
            self.will = None;
        }
        self.phase = Phase::Closing;
    }

    /// The will, if it is to be published now that the connection is over.
    pub(crate) fn take_will(&mut self) -> Option<Message> {
        self.will.take()
    }
}

#[cfg(test)]
mod tests;

//! The packets that go over the wire for every message: PUBLISH and its acknowledgements, and the frame around every
//! packet. They are encoded straight into the output buffer and decoded with one copy of the payload.
//!
//! A declared length is checked against the bound before anything is buffered for it. Nothing here panics or
//! allocates more than the packet is long, whatever the bytes are.

use super::{Message, Properties, Qos, Version};

/// What a peer did wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WireError {
    /// Bytes that are no MQTT (2.0: Malformed Packet).
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// A packet that is not allowed here.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// Longer than the bound.
    #[error("a packet of {bytes} bytes is above the limit of {limit} bytes")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The bound.
        limit: u32,
    },
    /// A topic name that can't be one.
    #[error("invalid topic name: {0}")]
    Topic(&'static str),
    /// A topic alias, although none was allowed.
    #[error("a topic alias is used, although none was allowed")]
    TopicAlias,
}

impl WireError {
    /// For DISCONNECT (3.14.2.1).
    pub(crate) fn reason_code(&self) -> u8 {
        match self {
            WireError::Malformed(_) => 0x81,
            WireError::Protocol(_) => 0x82,
            WireError::Topic(_) => 0x90,
            WireError::TopicAlias => 0x94,
            WireError::TooLarge { .. } => 0x95,
        }
    }
}

/// Packet types (2.1.2).
pub(crate) mod kind {
    pub(crate) const CONNECT: u8 = 1;
    pub(crate) const CONNACK: u8 = 2;
    pub(crate) const PUBLISH: u8 = 3;
    pub(crate) const PUBACK: u8 = 4;
    pub(crate) const PUBREC: u8 = 5;
    pub(crate) const PUBREL: u8 = 6;
    pub(crate) const PUBCOMP: u8 = 7;
    pub(crate) const SUBSCRIBE: u8 = 8;
    pub(crate) const SUBACK: u8 = 9;
    pub(crate) const UNSUBSCRIBE: u8 = 10;
    pub(crate) const UNSUBACK: u8 = 11;
    pub(crate) const PINGREQ: u8 = 12;
    pub(crate) const PINGRESP: u8 = 13;
    pub(crate) const DISCONNECT: u8 = 14;
}

/// One packet within a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// Type and flags.
    pub(crate) first: u8,
    /// What follows the fixed header.
    pub(crate) body: &'a [u8],
    /// Length of header and body.
    pub(crate) total: usize,
}

impl Frame<'_> {
    pub(crate) fn kind(&self) -> u8 {
        self.first >> 4
    }
}

/// The first packet in `buffer`; `None` while it is incomplete.
pub(crate) fn frame(buffer: &[u8], limit: u32) -> Result<Option<Frame<'_>>, WireError> {
    let Some((&first, rest)) = buffer.split_first() else { return Ok(None) };
    if first >> 4 == 0 {
        return Err(WireError::Malformed("packet type 0"));
    }
    let Some((length, used)) = variable(rest)? else { return Ok(None) };
    let total = 1 + used + length as usize;
    if total as u64 > u64::from(limit) {
        return Err(WireError::TooLarge { bytes: total as u64, limit });
    }
    match rest.get(used..used + length as usize) {
        Some(body) => Ok(Some(Frame { first, body, total })),
        None => Ok(None),
    }
}

/// A Variable Byte Integer (1.5.5) and its length; `None` while it is incomplete.
fn variable(bytes: &[u8]) -> Result<Option<(u32, usize)>, WireError> {
    let mut value = 0u32;
    for (i, &byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((value, i + 1)));
        }
    }
    if bytes.len() >= 4 { Err(WireError::Malformed("length of more than 4 bytes")) } else { Ok(None) }
}

fn put_variable(out: &mut Vec<u8>, mut value: u32) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

fn variable_len(value: u64) -> u64 {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

/// The largest Remaining Length.
const LENGTH_MAX: u64 = 268_435_455;

/// A PUBLISH that can be sent: checked and measured.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    message: &'a Message,
    pid: Option<u16>,
    dup: bool,
    version: Version,
    properties: u64,
    remaining: u64,
}

impl<'a> Outgoing<'a> {
    /// Checks that the message can be expressed.
    pub(crate) fn new(
        version: Version,
        pid: Option<u16>,
        dup: bool,
        message: &'a Message,
    ) -> Result<Outgoing<'a>, &'static str> {
        topic_name(&message.topic)?;
        let properties = match version {
            Version::V311 => 0,
            Version::V5 => properties_len(&message.properties)?,
        };
        let remaining = 2
            + message.topic.len() as u64
            + if pid.is_some() { 2 } else { 0 }
            + if version == Version::V5 { variable_len(properties) + properties } else { 0 }
            + message.payload.len() as u64;
        if remaining > LENGTH_MAX {
            return Err("the message is larger than MQTT allows (256 MiB)");
        }
        Ok(Outgoing { message, pid, dup, version, properties, remaining })
    }

    /// Size of the whole packet in bytes.
    pub(crate) fn size(&self) -> u64 {
        1 + variable_len(self.remaining) + self.remaining
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let m = self.message;
        out.reserve(self.size() as usize);
        let flags = (u8::from(self.dup) << 3) | ((m.qos as u8) << 1) | u8::from(m.retain);
        out.push((kind::PUBLISH << 4) | flags);
        // Both fit: `new` checked the sum against LENGTH_MAX.
        put_variable(out, self.remaining as u32);
        put_binary(out, m.topic.as_bytes());
        if let Some(pid) = self.pid {
            out.extend_from_slice(&pid.to_be_bytes());
        }
        if self.version == Version::V5 {
            put_variable(out, self.properties as u32);
            put_properties(out, &m.properties);
        }
        out.extend_from_slice(&m.payload);
    }
}

/// Whether `topic` can be the topic of a message (4.7).
pub(crate) fn topic_name(topic: &str) -> Result<(), &'static str> {
    if topic.is_empty() {
        Err("the topic is empty")
    } else if topic.len() > 0xffff {
        Err("the topic is longer than 65535 bytes")
    } else if topic.bytes().any(|b| matches!(b, b'+' | b'#' | 0)) {
        Err("the topic contains a wildcard or a NUL")
    } else {
        Ok(())
    }
}

/// Identifiers of the properties that a message can carry (2.2.2.2).
mod id {
    pub(super) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(super) const EXPIRY: u8 = 0x02;
    pub(super) const CONTENT_TYPE: u8 = 0x03;
    pub(super) const RESPONSE_TOPIC: u8 = 0x08;
    pub(super) const CORRELATION: u8 = 0x09;
    pub(super) const SUBSCRIPTION: u8 = 0x0b;
    pub(super) const REASON_STRING: u8 = 0x1f;
    pub(super) const TOPIC_ALIAS: u8 = 0x23;
    pub(super) const USER: u8 = 0x26;
}

fn properties_len(p: &Properties) -> Result<u64, &'static str> {
    let mut len = 0u64;
    len += if p.payload_utf8.is_some() { 2 } else { 0 };
    len += if p.expiry_s.is_some() { 5 } else { 0 };
    for text in [&p.content_type, &p.response_topic].into_iter().flatten() {
        len += 3 + text_len(text)?;
    }
    if let Some(bytes) = &p.correlation {
        if bytes.len() > 0xffff {
            return Err("the correlation data is longer than 65535 bytes");
        }
        len += 3 + bytes.len() as u64;
    }
    for (name, value) in &p.user {
        len += 5 + text_len(name)? + text_len(value)?;
    }
    Ok(len)
}

fn text_len(text: &str) -> Result<u64, &'static str> {
    if text.len() > 0xffff {
        Err("a property is longer than 65535 bytes")
    } else if text.contains('\0') {
        Err("a property contains a NUL")
    } else {
        Ok(text.len() as u64)
    }
}

fn put_properties(out: &mut Vec<u8>, p: &Properties) {
    if let Some(utf8) = p.payload_utf8 {
        out.extend_from_slice(&[id::PAYLOAD_FORMAT, u8::from(utf8)]);
    }
    if let Some(seconds) = p.expiry_s {
        out.push(id::EXPIRY);
        out.extend_from_slice(&seconds.to_be_bytes());
    }
    if let Some(text) = &p.content_type {
        out.push(id::CONTENT_TYPE);
        put_binary(out, text.as_bytes());
    }
    if let Some(text) = &p.response_topic {
        out.push(id::RESPONSE_TOPIC);
        put_binary(out, text.as_bytes());
    }
    if let Some(bytes) = &p.correlation {
        out.push(id::CORRELATION);
        put_binary(out, bytes);
    }
    for (name, value) in &p.user {
        out.push(id::USER);
        put_binary(out, name.as_bytes());
        put_binary(out, value.as_bytes());
    }
}

/// Two bytes of length, then the bytes. The caller has checked the length.
fn put_binary(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A whole packet of a small body.
pub(crate) fn put_packet(out: &mut Vec<u8>, first: u8, body: &[u8]) {
    out.push(first);
    put_variable(out, body.len() as u32);
    out.extend_from_slice(body);
}

/// A block of properties with this Reason String, or with nothing.
pub(crate) fn reason_string(text: &str) -> Vec<u8> {
    let mut block = Vec::with_capacity(text.len() + 5);
    if text.is_empty() {
        block.push(0);
    } else {
        put_variable(&mut block, text.len() as u32 + 3);
        block.push(id::REASON_STRING);
        put_binary(&mut block, text.as_bytes());
    }
    block
}

/// Takes fields from the front of a packet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) =
            self.0.split_at_checked(count).ok_or(WireError::Malformed("a field is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.take(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn binary(&mut self) -> Result<&'a [u8], WireError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    fn text(&mut self) -> Result<&'a str, WireError> {
        let text =
            std::str::from_utf8(self.binary()?).map_err(|_| WireError::Malformed("text is not UTF-8"))?;
        if text.contains('\0') { Err(WireError::Malformed("text contains a NUL")) } else { Ok(text) }
    }

    /// The block of properties at the front.
    fn properties(&mut self) -> Result<Reader<'a>, WireError> {
        let (length, used) =
            variable(self.0)?.ok_or(WireError::Malformed("the length of the properties is cut off"))?;
        self.take(used)?;
        self.take(length as usize).map(Reader)
    }
}

/// Packet id, DUP and message of a PUBLISH.
pub(crate) fn decode_publish(
    version: Version,
    frame: Frame<'_>,
) -> Result<(Option<u16>, bool, Message), WireError> {
    let qos = Qos::from_u8((frame.first >> 1) & 3).ok_or(WireError::Malformed("QoS 3"))?;
    let dup = frame.first & 8 != 0;
    let mut body = Reader(frame.body);
    let topic = body.text()?;
    let pid = if qos == Qos::AtMostOnce { None } else { Some(body.u16()?) };
    if pid == Some(0) {
        return Err(WireError::Protocol("packet id 0"));
    }
    let properties = match version {
        Version::V311 => Properties::default(),
        Version::V5 => decode_properties(body.properties()?)?,
    };
    topic_name(topic).map_err(WireError::Topic)?;
    let message = Message {
        topic: topic.to_owned(),
        payload: body.0.to_vec(),
        qos,
        retain: frame.first & 1 != 0,
        properties,
    };
    Ok((pid, dup, message))
}

/// The properties of a PUBLISH. A Subscription Identifier is read over: nobody here asks for one.
fn decode_properties(mut block: Reader<'_>) -> Result<Properties, WireError> {
    let mut p = Properties::default();
    while !block.0.is_empty() {
        let twice = match block.u8()? {
            id::PAYLOAD_FORMAT => match block.u8()? {
                value @ (0 | 1) => p.payload_utf8.replace(value == 1).is_some(),
                _ => return Err(WireError::Protocol("payload format above 1")),
            },
            id::EXPIRY => p.expiry_s.replace(block.u32()?).is_some(),
            id::CONTENT_TYPE => p.content_type.replace(block.text()?.to_owned()).is_some(),
            id::RESPONSE_TOPIC => p.response_topic.replace(block.text()?.to_owned()).is_some(),
            id::CORRELATION => p.correlation.replace(block.binary()?.to_vec()).is_some(),
            id::SUBSCRIPTION => {
                let (_, used) = variable(block.0)?.ok_or(WireError::Malformed("a property is cut off"))?;
                block.take(used)?;
                false
            }
            id::TOPIC_ALIAS => return Err(WireError::TopicAlias),
            id::USER => {
                p.user.push((block.text()?.to_owned(), block.text()?.to_owned()));
                false
            }
            _ => return Err(WireError::Malformed("a property that does not belong to PUBLISH")),
        };
        if twice {
            return Err(WireError::Protocol("a property appears twice"));
        }
    }
    Ok(p)
}

/// Appends PUBACK, PUBREC, PUBREL or PUBCOMP. 3.1.1 has no room for a reason.
pub(crate) fn encode_ack(out: &mut Vec<u8>, version: Version, packet: u8, pid: u16, reason: u8) {
    let first = (packet << 4) | if packet == kind::PUBREL { 2 } else { 0 };
    let [high, low] = pid.to_be_bytes();
    if version == Version::V311 || reason == 0 {
        out.extend_from_slice(&[first, 2, high, low]);
    } else {
        out.extend_from_slice(&[first, 3, high, low, reason]);
    }
}

/// Packet id and reason of PUBACK, PUBREC, PUBREL or PUBCOMP.
pub(crate) fn decode_ack(version: Version, frame: Frame<'_>) -> Result<(u16, u8), WireError> {
    let flags = if frame.kind() == kind::PUBREL { 2 } else { 0 };
    if frame.first & 0x0f != flags {
        return Err(WireError::Malformed("wrong flags"));
    }
    let mut body = Reader(frame.body);
    let pid = body.u16()?;
    if pid == 0 {
        return Err(WireError::Protocol("packet id 0"));
    }
    if body.0.is_empty() {
        return Ok((pid, 0));
    }
    if version == Version::V311 {
        return Err(WireError::Malformed("an acknowledgement is too long"));
    }
    let reason = body.u8()?;
    if !body.0.is_empty() {
        let mut block = body.properties()?;
        while !block.0.is_empty() {
            match block.u8()? {
                id::REASON_STRING => block.text().map(drop)?,
                id::USER => block.text().and(block.text()).map(drop)?,
                _ => {
                    return Err(WireError::Malformed(
                        "a property that does not belong to an acknowledgement",
                    ));
                }
            }
        }
    }
    if body.0.is_empty() { Ok((pid, reason)) } else { Err(WireError::Malformed("bytes after the end")) }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;

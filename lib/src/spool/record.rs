//! Body of a message frame: encoding without copying the payload, decoding under every kind of garbage.

use std::sync::Arc;

use super::Error;
use super::types::Record;
use crate::mqtt::{Message, Properties, Qos};

/// Fixed part of the body.
const FIXED: usize = 20;

/// Tags of the property list.
mod tag {
    pub(super) const CONTENT_TYPE: u8 = 1;
    pub(super) const EXPIRY: u8 = 2;
    pub(super) const PAYLOAD_UTF8: u8 = 3;
    pub(super) const RESPONSE_TOPIC: u8 = 4;
    pub(super) const CORRELATION: u8 = 5;
    pub(super) const USER: u8 = 6;
}

/// Everything of the body before the payload, and the length of the whole.
pub(crate) struct Prefix {
    pub bytes: Vec<u8>,
    pub body_len: u64,
}

/// QoS and retain, as the frame's flags.
pub(crate) fn flags(message: &Message) -> u8 {
    message.qos as u8 | u8::from(message.retain) << 2
}

/// QoS from the frame's flags; 3 (never written) counts as 2, the strictest.
pub(crate) fn flags_qos(flags: u8) -> Qos {
    Qos::from_u8(flags & 3).unwrap_or(Qos::ExactlyOnce)
}

/// Encodes what stands before the payload into `into` (cleared first; re-used by the caller).
pub(crate) fn prefix(
    mut into: Vec<u8>,
    message: &Message,
    source: &str,
    in_pid: Option<u16>,
    received_ms: u64,
) -> Result<Prefix, Error> {
    into.clear();
    let topic_len = u16_len(message.topic.len(), "the topic is longer than 65535 bytes")?;
    let source_len = u16_len(source.len(), "the name of its source is longer than 65535 bytes")?;
    into.extend_from_slice(&received_ms.to_le_bytes());
    into.extend_from_slice(&topic_len.to_le_bytes());
    into.extend_from_slice(&source_len.to_le_bytes());
    into.extend_from_slice(&in_pid.unwrap_or(0).to_le_bytes());
    into.extend_from_slice(&[0, 0]);
    into.extend_from_slice(&[0; 4]);
    into.extend_from_slice(message.topic.as_bytes());
    into.extend_from_slice(source.as_bytes());
    let start = into.len();
    properties(&mut into, &message.properties)?;
    let properties_len =
        u32::try_from(into.len() - start).map_err(|_| Error::Message("its properties are too large"))?;
    into[16..FIXED].copy_from_slice(&properties_len.to_le_bytes());
    let body_len = into.len() as u64 + message.payload.len() as u64;
    Ok(Prefix { bytes: into, body_len })
}

fn u16_len(len: usize, problem: &'static str) -> Result<u16, Error> {
    u16::try_from(len).map_err(|_| Error::Message(problem))
}

fn properties(into: &mut Vec<u8>, p: &Properties) -> Result<(), Error> {
    const LONG: &str = "a property is longer than 65535 bytes";
    let mut string = |tag: u8, parts: &[&[u8]]| -> Result<(), Error> {
        into.push(tag);
        for part in parts {
            into.extend_from_slice(&u16_len(part.len(), LONG)?.to_le_bytes());
            into.extend_from_slice(part);
        }
        Ok(())
    };
    if let Some(v) = &p.content_type {
        string(tag::CONTENT_TYPE, &[v.as_bytes()])?;
    }
    if let Some(v) = &p.response_topic {
        string(tag::RESPONSE_TOPIC, &[v.as_bytes()])?;
    }
    if let Some(v) = &p.correlation {
        string(tag::CORRELATION, &[v])?;
    }
    for (name, value) in &p.user {
        string(tag::USER, &[name.as_bytes(), value.as_bytes()])?;
    }
    if let Some(v) = p.expiry_s {
        into.push(tag::EXPIRY);
        into.extend_from_slice(&v.to_le_bytes());
    }
    if let Some(v) = p.payload_utf8 {
        into.extend_from_slice(&[tag::PAYLOAD_UTF8, u8::from(v)]);
    }
    Ok(())
}

/// Reads a body. `None` when it is not one (its checksum was right, so only a foreign writer can cause that).
pub(crate) fn decode(seq: u64, flags: u8, body: &[u8]) -> Option<Record> {
    let mut r = Reader(body);
    let received_ms = u64::from_le_bytes(*r.chunk()?);
    let topic_len = u16::from_le_bytes(*r.chunk()?);
    let source_len = u16::from_le_bytes(*r.chunk()?);
    let in_pid = u16::from_le_bytes(*r.chunk()?);
    let _reserved: &[u8; 2] = r.chunk()?;
    let properties_len = u32::from_le_bytes(*r.chunk()?);
    let topic = r.text(usize::from(topic_len))?;
    let source = Arc::from(std::str::from_utf8(r.take(usize::from(source_len))?).ok()?);
    let properties = decode_properties(r.take(usize::try_from(properties_len).ok()?)?)?;
    let message = Message {
        topic,
        payload: r.0.to_vec(),
        qos: Qos::from_u8(flags & 3)?,
        retain: flags & 4 != 0,
        properties,
    };
    Some(Record { seq, received_ms, source, in_pid: (in_pid != 0).then_some(in_pid), message })
}

fn decode_properties(bytes: &[u8]) -> Option<Properties> {
    let mut p = Properties::default();
    let mut r = Reader(bytes);
    while let Some((tag, rest)) = r.0.split_first() {
        r.0 = rest;
        match *tag {
            tag::CONTENT_TYPE => p.content_type = Some(r.string()?),
            tag::EXPIRY => p.expiry_s = Some(u32::from_le_bytes(*r.chunk()?)),
            tag::PAYLOAD_UTF8 => p.payload_utf8 = Some(r.take(1)? != [0]),
            tag::RESPONSE_TOPIC => p.response_topic = Some(r.string()?),
            tag::CORRELATION => {
                let len = u16::from_le_bytes(*r.chunk()?);
                p.correlation = Some(r.take(usize::from(len))?.to_vec());
            }
            tag::USER => p.user.push((r.string()?, r.string()?)),
            _ => return None,
        }
    }
    Some(p)
}

/// Takes from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }
    fn chunk<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        self.take(N)?.first_chunk()
    }
    fn text(&mut self, len: usize) -> Option<String> {
        Some(std::str::from_utf8(self.take(len)?).ok()?.to_owned())
    }
    fn string(&mut self) -> Option<String> {
        let len = u16::from_le_bytes(*self.chunk()?);
        self.text(usize::from(len))
    }
}

/// Checksum that tells whether two messages are the same (topic and payload; a broker may change properties when it
/// sends again).
pub(crate) fn digest(message: &Message) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(message.topic.as_bytes()), &message.payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Message {
        Message {
            topic: "a/b".into(),
            payload: vec![1, 2, 3],
            qos: Qos::ExactlyOnce,
            retain: true,
            properties: Properties {
                content_type: Some("image/png".into()),
                expiry_s: Some(60),
                payload_utf8: Some(false),
                response_topic: Some("r".into()),
                correlation: Some(vec![0, 255]),
                user: vec![("k".into(), "v".into()), ("k".into(), String::new())],
            },
        }
    }

    fn encoded(m: &Message) -> Vec<u8> {
        let p = prefix(Vec::new(), m, "src", Some(9), 77).unwrap();
        let mut b = p.bytes;
        b.extend_from_slice(&m.payload);
        assert_eq!(b.len() as u64, p.body_len);
        b
    }

    #[test]
    fn a_message_comes_back_whole() {
        for m in [full(), Message { topic: "t".into(), ..Message::default() }] {
            let r = decode(5, flags(&m), &encoded(&m)).unwrap();
            assert_eq!((r.seq, r.received_ms, &*r.source, r.in_pid), (5, 77, "src", Some(9)));
            assert_eq!(r.message, m);
        }
    }

    #[test]
    fn every_prefix_and_every_flip_is_answered_without_panic() {
        let b = encoded(&full());
        let head = b.len() - 3;
        for cut in 0..head {
            assert!(decode(1, 2, &b[..cut]).is_none(), "cut at {cut}");
        }
        for i in 0..b.len() {
            let mut bad = b.clone();
            bad[i] ^= 0x80;
            let _ = decode(1, 2, &bad);
        }
    }

    #[test]
    fn too_long_strings_are_refused() {
        let m = Message { topic: "x".repeat(65_536), ..Message::default() };
        assert!(matches!(prefix(Vec::new(), &m, "s", None, 0), Err(Error::Message(_))));
        let mut m = full();
        m.properties.user.push(("x".repeat(65_536), String::new()));
        assert!(matches!(prefix(Vec::new(), &m, "s", None, 0), Err(Error::Message(_))));
    }
}

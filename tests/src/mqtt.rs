//! As much of MQTT 5 and 3.1.1 on the wire as a publisher needs, written against the OASIS standards
//! and independent of what the daemons use.

/// Protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1
    V311,
    /// MQTT 5
    V5,
}

/// What a server sends to a publisher.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// CONNACK: session present, reason (or return) code.
    Connack(bool, u8),
    /// PUBACK: packet id, reason.
    Puback(u16, u8),
    /// PUBREC: packet id, reason.
    Pubrec(u16, u8),
    /// PUBCOMP: packet id, reason.
    Pubcomp(u16, u8),
    /// SUBACK: packet id.
    Suback(u16),
    /// PINGRESP
    Pingresp,
    /// DISCONNECT with its reason (MQTT 5).
    Disconnect(u8),
}

fn text(out: &mut Vec<u8>, value: &str) {
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value.as_bytes());
}

fn var_int(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        out.push(if value > 0 { byte | 0x80 } else { byte });
        if value == 0 {
            return;
        }
    }
}

fn packet(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    var_int(&mut out, body.len());
    out.extend_from_slice(body);
    out
}

/// CONNECT with clean start 0 (or 1) and a session that outlives the test.
pub fn connect(version: Version, client_id: &str, clean: bool, login: Option<(&str, &str)>) -> Vec<u8> {
    let mut body = Vec::new();
    text(&mut body, "MQTT");
    body.push(if version == Version::V5 { 5 } else { 4 });
    body.push(if login.is_some() { 0xc0 } else { 0 } | if clean { 2 } else { 0 });
    body.extend_from_slice(&60u16.to_be_bytes());
    if version == Version::V5 {
        body.extend_from_slice(&[5, 0x11]);
        body.extend_from_slice(&86_400u32.to_be_bytes());
    }
    text(&mut body, client_id);
    if let Some((user, password)) = login {
        text(&mut body, user);
        text(&mut body, password);
    }
    packet(0x10, &body)
}

/// PUBLISH; `pid` 0 means QoS 0. User properties and a content type go out only with MQTT 5.
pub fn publish(
    version: Version,
    topic: &str,
    payload: &[u8],
    qos: u8,
    pid: u16,
    dup: bool,
    user: &[(&str, &str)],
) -> Vec<u8> {
    let mut body = Vec::with_capacity(payload.len() + topic.len() + 64);
    text(&mut body, topic);
    if qos > 0 {
        body.extend_from_slice(&pid.to_be_bytes());
    }
    if version == Version::V5 {
        let mut properties = Vec::new();
        for (name, value) in user {
            // A content type is a property of its own.
            if *name == "content-type" {
                properties.push(0x03);
            } else {
                properties.push(0x26);
                text(&mut properties, name);
            }
            text(&mut properties, value);
        }
        var_int(&mut body, properties.len());
        body.extend_from_slice(&properties);
    }
    body.extend_from_slice(payload);
    packet(0x30 | u8::from(dup) << 3 | qos << 1, &body)
}

/// PUBREL
pub fn pubrel(pid: u16) -> Vec<u8> {
    packet(0x62, &pid.to_be_bytes())
}

/// SUBSCRIBE to one filter.
pub fn subscribe(version: Version, pid: u16, filter: &str, qos: u8) -> Vec<u8> {
    let mut body = pid.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    text(&mut body, filter);
    body.push(qos);
    packet(0x82, &body)
}

/// PINGREQ
pub fn pingreq() -> Vec<u8> {
    vec![0xc0, 0]
}

/// DISCONNECT, normal.
pub fn disconnect() -> Vec<u8> {
    vec![0xe0, 0]
}

/// Takes one whole packet off the front of the buffer, if there is one. Panics on what a publisher is
/// never sent: that is a fault of the server under test.
pub fn take(buffer: &mut Vec<u8>) -> Option<Incoming> {
    let (length, header) = frame(buffer)?;
    if buffer.len() < header + length {
        return None;
    }
    let first = buffer[0];
    let body: Vec<u8> = buffer.drain(..header + length).skip(header).collect();
    let pid = || u16::from_be_bytes([body[0], body[1]]);
    let reason = || body.get(2).copied().unwrap_or(0);
    Some(match first >> 4 {
        2 => Incoming::Connack(body[0] & 1 == 1, body[1]),
        4 => Incoming::Puback(pid(), reason()),
        5 => Incoming::Pubrec(pid(), reason()),
        7 => Incoming::Pubcomp(pid(), reason()),
        9 => Incoming::Suback(pid()),
        13 => Incoming::Pingresp,
        14 => Incoming::Disconnect(body.first().copied().unwrap_or(0)),
        other => panic!("a publisher was sent packet type {other}"),
    })
}

/// Length of the body and of the header of the packet at the front, as soon as the header is whole.
pub fn frame(buffer: &[u8]) -> Option<(usize, usize)> {
    let (length, n) = var_int_at(buffer.get(1..)?)?;
    Some((length, 1 + n))
}

fn var_int_at(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (i, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, i + 1));
        }
    }
    None
}

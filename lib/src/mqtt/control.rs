//! The packets that are sent once per connection or subscription, by the packet layer of `mqtt-protocol-core`:
//! CONNECT, CONNACK, SUBSCRIBE, SUBACK, DISCONNECT. Both versions come out in one shape.
//!
//! The library's parsers check fields but not that a packet ends with its last field, and some of their accessors
//! panic on flags that the parser let pass; both are checked here first.

use mqtt_protocol_core::mqtt::{
    packet::{self, MaximumPacketSize, Property, SessionExpiryInterval, SubEntry, SubOpts, v3_1_1, v5_0},
    prelude::PropertyValueAccess,
    result_code::{DisconnectReasonCode, MqttError},
};

use super::{
    ClientConfig, Filter, Message, PeerLimits, Properties, Qos, Version, reason, wire, wire::WireError,
};

pub(crate) fn qos_to(qos: Qos) -> packet::Qos {
    match qos {
        Qos::AtMostOnce => packet::Qos::AtMostOnce,
        Qos::AtLeastOnce => packet::Qos::AtLeastOnce,
        Qos::ExactlyOnce => packet::Qos::ExactlyOnce,
    }
}

/// The CONNECT of this configuration, or which part of it can't be expressed.
pub(crate) fn encode_connect(cfg: &ClientConfig) -> Result<Vec<u8>, &'static str> {
    if let Some(will) = &cfg.will {
        wire::topic_name(&will.topic)?;
        if will.payload.len() > 0xffff {
            return Err("the will's payload is longer than 65535 bytes");
        }
    }
    if cfg.client_id.len() > 0xffff || cfg.client_id.contains('\0') {
        return Err("the client id is longer than 65535 bytes or contains a NUL");
    }
    if cfg.client_id.is_empty() && !cfg.clean_start {
        return Err("the client id is empty, and a session is to be kept");
    }
    if cfg.version == Version::V311 && cfg.password.is_some() && cfg.username.is_none() {
        return Err("a password without a user name is not possible");
    }
    match cfg.version {
        Version::V311 => connect_v311(cfg),
        Version::V5 => connect_v5(cfg),
    }
    .map_err(|_| "a field of CONNECT is longer than MQTT allows")
}

fn connect_v311(cfg: &ClientConfig) -> Result<Vec<u8>, MqttError> {
    let mut builder = v3_1_1::Connect::builder()
        .clean_session(cfg.clean_start)
        .client_id(cfg.client_id.as_str())?
        .keep_alive(cfg.keep_alive_s);
    if let Some(will) = &cfg.will {
        builder =
            builder.will_message(will.topic.as_str(), will.payload.clone(), qos_to(will.qos), will.retain)?;
    }
    if let Some(name) = &cfg.username {
        builder = builder.user_name(name.as_str())?;
    }
    if let Some(password) = &cfg.password {
        builder = builder.password(password.expose().as_bytes().to_vec())?;
    }
    Ok(builder.build()?.to_continuous_buffer())
}

fn connect_v5(cfg: &ClientConfig) -> Result<Vec<u8>, MqttError> {
    // Receive Maximum is left out on purpose: mosquitto 2.0.11 loses messages over it. The socket is not read instead.
    let props: packet::Properties = vec![
        SessionExpiryInterval::new(cfg.session_expiry_s)?.into(),
        MaximumPacketSize::new(cfg.max_packet_bytes.max(1))?.into(),
    ];
    let mut builder = v5_0::Connect::builder()
        .clean_start(cfg.clean_start)
        .client_id(cfg.client_id.as_str())?
        .keep_alive(cfg.keep_alive_s)
        .props(props);
    if let Some(will) = &cfg.will {
        builder = builder
            .will_message(will.topic.as_str(), will.payload.clone(), qos_to(will.qos), will.retain)?
            .will_props(properties_to(&will.properties)?);
    }
    if let Some(name) = &cfg.username {
        builder = builder.user_name(name.as_str())?;
    }
    if let Some(password) = &cfg.password {
        builder = builder.password(password.expose().as_bytes().to_vec())?;
    }
    Ok(builder.build()?.to_continuous_buffer())
}

fn properties_to(p: &Properties) -> Result<packet::Properties, MqttError> {
    let mut out: packet::Properties = Vec::new();
    if let Some(text) = &p.content_type {
        out.push(packet::ContentType::new(text)?.into());
    }
    if let Some(seconds) = p.expiry_s {
        out.push(packet::MessageExpiryInterval::new(seconds)?.into());
    }
    if let Some(utf8) = p.payload_utf8 {
        let format = if utf8 { packet::PayloadFormat::String } else { packet::PayloadFormat::Binary };
        out.push(packet::PayloadFormatIndicator::new(format)?.into());
    }
    if let Some(text) = &p.response_topic {
        out.push(packet::ResponseTopic::new(text)?.into());
    }
    if let Some(bytes) = &p.correlation {
        out.push(packet::CorrelationData::new(bytes)?.into());
    }
    for (name, value) in &p.user {
        out.push(packet::UserProperty::new(name, value)?.into());
    }
    Ok(out)
}

/// The message properties among `props`.
pub(crate) fn properties_from(props: &[Property]) -> Properties {
    let mut p = Properties::default();
    for prop in props {
        match prop {
            Property::ContentType(v) => p.content_type = Some(v.val().to_owned()),
            Property::MessageExpiryInterval(v) => p.expiry_s = Some(v.val()),
            Property::PayloadFormatIndicator(_) => p.payload_utf8 = prop.as_u8().map(|v| v == 1),
            Property::ResponseTopic(v) => p.response_topic = Some(v.val().to_owned()),
            Property::CorrelationData(v) => p.correlation = Some(v.val().to_vec()),
            Property::UserProperty(v) => p.user.push((v.key().to_owned(), v.val().to_owned())),
            _ => {}
        }
    }
    p
}

/// The server's answer to CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connack {
    pub(crate) session_present: bool,
    /// MQTT 5 code; 0 = accepted.
    pub(crate) reason: u8,
    /// What the server adds in words, with the address of another server if it names one.
    pub(crate) text: Option<String>,
    pub(crate) limits: PeerLimits,
    /// Server Keep Alive in seconds.
    pub(crate) keep_alive_s: Option<u16>,
    /// Session Expiry Interval that the server uses instead of the one asked for.
    pub(crate) session_expiry_s: Option<u32>,
}

const NO_LIMITS: PeerLimits =
    PeerLimits { receive_maximum: u16::MAX, max_packet_bytes: None, max_qos: Qos::ExactlyOnce, retain: true };

pub(crate) fn decode_connack(version: Version, frame: wire::Frame<'_>) -> Result<Connack, WireError> {
    let malformed = || WireError::Malformed("CONNACK");
    let flags = *frame.body.first().ok_or_else(malformed)?;
    if frame.first & 0x0f != 0 || flags & 0xfe != 0 {
        return Err(malformed());
    }
    let session_present = flags == 1;
    let plain = |reason| Connack {
        session_present,
        reason,
        text: None,
        limits: NO_LIMITS,
        keep_alive_s: None,
        session_expiry_s: None,
    };
    match (version, frame.body) {
        (Version::V311, &[_, code]) => Ok(plain(reason::from_return_code(code))),
        // A server that only knows 3.1.1 refuses version 5 in its own form.
        (Version::V5, &[_, code @ 1..=5]) => Ok(plain(reason::from_return_code(code))),
        (Version::V5, body) => {
            let (connack, used) = v5_0::Connack::parse(body).map_err(|_| malformed())?;
            if used != body.len() {
                return Err(malformed());
            }
            // The parser has accepted the code.
            let mut out = plain(connack.reason_code() as u8);
            connack_properties(&connack.props, &mut out)?;
            Ok(out)
        }
        _ => Err(malformed()),
    }
}

fn connack_properties(props: &[Property], out: &mut Connack) -> Result<(), WireError> {
    for prop in props {
        match prop {
            Property::ReceiveMaximum(v) if v.val() > 0 => out.limits.receive_maximum = v.val(),
            Property::MaximumPacketSize(v) if v.val() > 0 => out.limits.max_packet_bytes = Some(v.val()),
            Property::ReceiveMaximum(_) | Property::MaximumPacketSize(_) => {
                return Err(WireError::Protocol("a limit of 0 in CONNACK"));
            }
            Property::MaximumQos(_) => {
                out.limits.max_qos = prop.as_u8().and_then(Qos::from_u8).unwrap_or(Qos::AtLeastOnce);
            }
            Property::RetainAvailable(_) => out.limits.retain = prop.as_u8() != Some(0),
            Property::ServerKeepAlive(v) => out.keep_alive_s = Some(v.val()),
            Property::SessionExpiryInterval(v) => out.session_expiry_s = Some(v.val()),
            Property::ReasonString(v) => append(&mut out.text, v.val()),
            Property::ServerReference(v) => append(&mut out.text, v.val()),
            _ => {}
        }
    }
    Ok(())
}

fn append(text: &mut Option<String>, more: &str) {
    match text {
        Some(text) => {
            text.push_str(", ");
            text.push_str(more);
        }
        None => *text = Some(more.to_owned()),
    }
}

pub(crate) fn encode_subscribe(
    version: Version,
    pid: u16,
    filters: &[Filter],
) -> Result<Vec<u8>, &'static str> {
    if filters.is_empty() {
        return Err("no topic filter");
    }
    subscribe(version, pid, filters)
        .map_err(|_| "a topic filter is empty, too long or a bad shared subscription")
}

fn subscribe(version: Version, pid: u16, filters: &[Filter]) -> Result<Vec<u8>, MqttError> {
    let mut entries = Vec::with_capacity(filters.len());
    for filter in filters {
        if filter.topic.is_empty() || filter.topic.contains('\0') {
            return Err(MqttError::MalformedPacket);
        }
        let mut options = SubOpts::new().set_qos(qos_to(filter.qos));
        if version == Version::V5 {
            // No Local on a shared subscription is a protocol error.
            options = options
                .set_nl(filter.no_local && !filter.topic.starts_with("$share/"))
                .set_rap(filter.retain_as_published);
        }
        entries.push(SubEntry::new(filter.topic.as_str(), options)?);
    }
    Ok(match version {
        Version::V311 => {
            v3_1_1::Subscribe::builder().packet_id(pid).entries(entries).build()?.to_continuous_buffer()
        }
        Version::V5 => {
            v5_0::Subscribe::builder().packet_id(pid).entries(entries).build()?.to_continuous_buffer()
        }
    })
}

/// Packet id and one reason per filter.
pub(crate) fn decode_suback(version: Version, frame: wire::Frame<'_>) -> Result<(u16, Vec<u8>), WireError> {
    let malformed = || WireError::Malformed("SUBACK");
    if frame.first & 0x0f != 0 {
        return Err(malformed());
    }
    let (pid, reasons, used) = match version {
        Version::V311 => {
            let (p, used) = v3_1_1::Suback::parse(frame.body).map_err(|_| malformed())?;
            (p.packet_id(), p.return_codes().iter().map(|c| *c as u8).collect(), used)
        }
        Version::V5 => {
            let (p, used) = v5_0::Suback::parse(frame.body).map_err(|_| malformed())?;
            (p.packet_id(), p.reason_codes().iter().map(|c| *c as u8).collect(), used)
        }
    };
    if used == frame.body.len() { Ok((pid, reasons)) } else { Err(malformed()) }
}

/// Reason and text of a DISCONNECT (MQTT 5).
pub(crate) fn decode_disconnect(frame: wire::Frame<'_>) -> Result<(u8, Option<String>), WireError> {
    if frame.first & 0x0f != 0 {
        return Err(WireError::Malformed("DISCONNECT"));
    }
    if frame.body.is_empty() {
        return Ok((0, None));
    }
    let (p, used) = v5_0::Disconnect::parse(frame.body).map_err(|_| WireError::Malformed("DISCONNECT"))?;
    if used != frame.body.len() {
        return Err(WireError::Malformed("DISCONNECT"));
    }
    let mut text = None;
    for prop in p.props.iter().flatten() {
        match prop {
            Property::ReasonString(v) => append(&mut text, v.val()),
            Property::ServerReference(v) => append(&mut text, v.val()),
            _ => {}
        }
    }
    Ok((p.reason_code().map_or(0, |code| code as u8), text))
}

/// The Session Expiry Interval of a DISCONNECT that `decode_disconnect` took.
pub(crate) fn disconnect_expiry(frame: wire::Frame<'_>) -> Option<u32> {
    let (p, _) = v5_0::Disconnect::parse(frame.body).ok()?;
    p.props.iter().flatten().find_map(|prop| match prop {
        Property::SessionExpiryInterval(v) => Some(v.val()),
        _ => None,
    })
}

/// A DISCONNECT; without reason it has no body, which both versions understand.
pub(crate) fn encode_disconnect(out: &mut Vec<u8>, version: Version, reason: u8) {
    let known = DisconnectReasonCode::try_from(reason).is_ok();
    if version == Version::V311 || reason == 0 || !known {
        out.extend_from_slice(&[wire::kind::DISCONNECT << 4, 0]);
    } else {
        out.extend_from_slice(&[wire::kind::DISCONNECT << 4, 1, reason]);
    }
}

/// CONNECT as the ingest port sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Connect {
    pub(crate) version: Version,
    pub(crate) client_id: String,
    pub(crate) clean_start: bool,
    pub(crate) keep_alive_s: u16,
    /// Seconds; `u32::MAX` = never. With 3.1.1: never unless clean.
    pub(crate) session_expiry_s: u32,
    pub(crate) will: Option<Message>,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<zeroize::Zeroizing<Vec<u8>>>,
    /// Largest packet the client takes.
    pub(crate) max_packet_bytes: Option<u32>,
    /// It asked for enhanced authentication.
    pub(crate) auth_method: bool,
}

/// Why a CONNECT is refused: with an answer in the client's version, or without any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConnectError {
    /// Not a version that is spoken here.
    Version(u8),
    /// No MQTT at all, or broken: the connection is closed (with CONNACK `reason` if the version is known).
    Broken(WireError),
}

pub(crate) fn decode_connect(frame: wire::Frame<'_>) -> Result<Connect, ConnectError> {
    let broken = |what| ConnectError::Broken(WireError::Malformed(what));
    let body = frame.body;
    if frame.first != wire::kind::CONNECT << 4 {
        return Err(broken("CONNECT expected"));
    }
    if body.get(..6) != Some(b"\0\x04MQTT") {
        // 3.1 names itself MQIsdp.
        return Err(if body.get(..8) == Some(b"\0\x06MQIsdp") {
            ConnectError::Version(3)
        } else {
            broken("CONNECT without the name MQTT")
        });
    }
    let (Some(&level), Some(&flags)) = (body.get(6), body.get(7)) else {
        return Err(broken("CONNECT is cut off"));
    };
    if !matches!(level, 4 | 5) {
        return Err(ConnectError::Version(level));
    }
    let (will, will_qos, will_retain) = (flags & 4 != 0, (flags >> 3) & 3, flags & 0x20 != 0);
    if flags & 1 != 0 || will_qos == 3 || (!will && (will_qos != 0 || will_retain)) {
        return Err(broken("CONNECT flags"));
    }
    if level == 4 { connect_from_v311(body) } else { connect_from_v5(body) }.map_err(ConnectError::Broken)
}

fn will_from(
    topic: Option<&str>,
    payload: Option<&[u8]>,
    flags: u8,
    properties: Properties,
) -> Result<Option<Message>, WireError> {
    let (Some(topic), Some(payload)) = (topic, payload) else { return Ok(None) };
    wire::topic_name(topic).map_err(WireError::Topic)?;
    Ok(Some(Message {
        topic: topic.to_owned(),
        payload: payload.to_vec(),
        qos: Qos::from_u8((flags >> 3) & 3).unwrap_or_default(),
        retain: flags & 0x20 != 0,
        properties,
    }))
}

fn connect_from_v311(body: &[u8]) -> Result<Connect, WireError> {
    let (p, used) = v3_1_1::Connect::parse(body).map_err(|_| WireError::Malformed("CONNECT"))?;
    if used != body.len() || p.client_id().contains('\0') {
        return Err(WireError::Malformed("CONNECT"));
    }
    let clean_start = p.clean_session();
    Ok(Connect {
        version: Version::V311,
        client_id: p.client_id().to_owned(),
        clean_start,
        keep_alive_s: p.keep_alive(),
        session_expiry_s: if clean_start { 0 } else { u32::MAX },
        will: will_from(p.will_topic(), p.will_payload(), body[7], Properties::default())?,
        username: p.user_name().map(str::to_owned),
        password: p.password().map(|b| b.to_vec().into()),
        max_packet_bytes: None,
        auth_method: false,
    })
}

fn connect_from_v5(body: &[u8]) -> Result<Connect, WireError> {
    let (p, used) = v5_0::Connect::parse(body).map_err(|_| WireError::Malformed("CONNECT"))?;
    if used != body.len() || p.client_id().contains('\0') {
        return Err(WireError::Malformed("CONNECT"));
    }
    let mut out = Connect {
        version: Version::V5,
        client_id: p.client_id().to_owned(),
        clean_start: p.clean_start(),
        keep_alive_s: p.keep_alive(),
        session_expiry_s: 0,
        will: will_from(p.will_topic(), p.will_payload(), body[7], properties_from(&p.will_props))?,
        username: p.user_name().map(str::to_owned),
        password: p.password().map(|b| b.to_vec().into()),
        max_packet_bytes: None,
        auth_method: false,
    };
    for prop in &p.props {
        match prop {
            Property::SessionExpiryInterval(v) => out.session_expiry_s = v.val(),
            Property::MaximumPacketSize(v) => out.max_packet_bytes = Some(v.val()),
            Property::AuthenticationMethod(_) => out.auth_method = true,
            _ => {}
        }
    }
    Ok(out)
}

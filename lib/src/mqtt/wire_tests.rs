//! The own encoder and decoder against each other, against the library's, and against bytes that are wrong.

use mqtt_protocol_core::mqtt::packet;

use super::*;

fn rich() -> Message {
    Message {
        topic: "faces/türe".into(),
        payload: vec![0, 1, 255],
        qos: Qos::ExactlyOnce,
        retain: true,
        properties: Properties {
            content_type: Some("image/png".into()),
            expiry_s: Some(77),
            payload_utf8: Some(false),
            response_topic: Some("r".into()),
            correlation: Some(vec![1, 0]),
            user: vec![("id".into(), "1".into()), ("id".into(), String::new())],
        },
    }
}

fn encode(version: Version, pid: Option<u16>, dup: bool, message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    let packet = Outgoing::new(version, pid, dup, message).unwrap();
    packet.encode(&mut out);
    assert_eq!(out.len() as u64, packet.size());
    out
}

#[test]
fn publish_survives_both_versions_and_the_reference_parser_agrees() {
    let message = rich();
    let bytes = encode(Version::V5, Some(513), true, &message);
    let got = decode_publish(Version::V5, frame(&bytes, 1000).unwrap().unwrap()).unwrap();
    assert_eq!(got, (Some(513), true, message.clone()));
    let body = frame(&bytes, 1000).unwrap().unwrap().body;
    let (theirs, _) = packet::v5_0::Publish::parse(bytes[0] & 15, body.into()).unwrap();
    assert_eq!((theirs.topic_name(), theirs.packet_id()), ("faces/türe", Some(513)));
    assert_eq!(theirs.payload().as_slice(), [0, 1, 255]);
    assert_eq!(theirs.to_continuous_buffer(), bytes);

    let old = encode(Version::V311, Some(513), true, &message);
    let got = decode_publish(Version::V311, frame(&old, 1000).unwrap().unwrap()).unwrap();
    assert_eq!(got, (Some(513), true, Message { properties: Properties::default(), ..message }));
    let body = frame(&old, 1000).unwrap().unwrap().body;
    let (theirs, _) = packet::v3_1_1::Publish::parse(old[0] & 15, body.into()).unwrap();
    assert_eq!(theirs.to_continuous_buffer(), old);
}

#[test]
fn lengths_at_every_boundary() {
    for size in [0, 100, 117, 118, 119, 16_373, 16_374, 16_375, 16_376, 2_097_200] {
        let message = Message { topic: "topic".into(), payload: vec![7; size], ..Message::default() };
        let bytes = encode(Version::V5, None, false, &message);
        assert_eq!(frame(&bytes[..bytes.len() - 1], u32::MAX).unwrap(), None);
        let got = decode_publish(Version::V5, frame(&bytes, u32::MAX).unwrap().unwrap()).unwrap();
        assert_eq!(got.2, message);
    }
}

#[test]
fn a_declared_length_is_refused_before_it_is_buffered() {
    let error = frame(&[0x30, 0xff, 0xff, 0xff, 0x7f], 1 << 20).unwrap_err();
    assert_eq!(error, WireError::TooLarge { bytes: 268_435_460, limit: 1 << 20 });
    assert!(matches!(frame(&[0x30, 0xff, 0xff, 0xff, 0xff], u32::MAX), Err(WireError::Malformed(_))));
    assert_eq!(frame(&[0x30, 0xff, 0xff], 1000).unwrap(), None);
}

#[test]
fn acknowledgements_in_all_forms() {
    for packet in [kind::PUBACK, kind::PUBREC, kind::PUBREL, kind::PUBCOMP] {
        for (version, reason) in [(Version::V5, 0), (Version::V5, 0x92), (Version::V311, 0)] {
            let mut out = Vec::new();
            encode_ack(&mut out, version, packet, 700, reason);
            let frame = frame(&out, 100).unwrap().unwrap();
            assert_eq!((frame.kind(), decode_ack(version, frame).unwrap()), (packet, (700, reason)));
        }
    }
    let with_text = [0x40, 8, 0, 9, 0x97, 4, 0x1f, 0, 1, b'x'];
    assert_eq!(decode_ack(Version::V5, frame(&with_text, 99).unwrap().unwrap()), Ok((9, 0x97)));
    for bad in
        [&[0x40, 1, 0][..], &[0x41, 2, 0, 1], &[0x40, 2, 0, 0], &[0x40, 4, 0, 1, 0, 9], &[0x62, 3, 0, 1, 0]]
    {
        assert!(decode_ack(Version::V311, frame(bad, 99).unwrap().unwrap()).is_err(), "{bad:?}");
    }
}

#[test]
fn what_can_not_be_expressed_is_refused() {
    let long = "x".repeat(65_536);
    for topic in ["", "a/+", "#", "a\0b", &long] {
        let message = Message { topic: topic.into(), ..Message::default() };
        assert!(Outgoing::new(Version::V5, None, false, &message).is_err());
    }
    let mut message = rich();
    message.properties.user.push(("a".into(), long));
    assert!(Outgoing::new(Version::V5, None, false, &message).is_err());
    assert!(Outgoing::new(Version::V311, None, false, &message).is_ok());
}

//! Reason codes of MQTT 5 in words (2.4), with what to do about the ones that a person can do something about.

/// The name of a reason code in words, for log lines.
#[must_use]
pub fn reason_text(code: u8) -> &'static str {
    match code {
        0x00 => "success",
        0x04 => "disconnect with will message",
        0x10 => "no matching subscribers",
        0x11 => "no subscription existed",
        0x18 => "continue authentication",
        0x19 => "re-authenticate",
        0x81 => "malformed packet",
        0x82 => "protocol error",
        0x83 => "implementation specific error",
        0x84 => "unsupported protocol version",
        0x85 => "client identifier not valid",
        0x86 => "bad user name or password",
        0x87 => "not authorized",
        0x88 => "server unavailable",
        0x89 => "server busy",
        0x8a => "banned",
        0x8b => "server shutting down",
        0x8c => "bad authentication method",
        0x8d => "keep alive timeout",
        0x8e => "session taken over",
        0x8f => "topic filter invalid",
        0x90 => "topic name invalid",
        0x91 => "packet identifier in use",
        0x92 => "packet identifier not found",
        0x93 => "receive maximum exceeded",
        0x94 => "topic alias invalid",
        0x95 => "packet too large",
        0x96 => "message rate too high",
        0x97 => "quota exceeded",
        0x98 => "administrative action",
        0x99 => "payload format invalid",
        0x9a => "retain not supported",
        0x9b => "QoS not supported",
        0x9c => "use another server",
        0x9d => "server moved",
        0x9e => "shared subscriptions not supported",
        0x9f => "connection rate exceeded",
        0xa0 => "maximum connect time",
        0xa1 => "subscription identifiers not supported",
        0xa2 => "wildcard subscriptions not supported",
        0x80.. => "unspecified error",
        _ => "unknown reason",
    }
}

/// What the person at the device can do about a refusal, if anything.
pub(crate) fn advice(code: u8) -> Option<&'static str> {
    Some(match code {
        0x84 => "the server does not speak this MQTT version: try the other one",
        0x85 => "the server does not take this client id: choose another",
        0x86 => "check the user name and the password file",
        0x87 => {
            "the server knows this client but forbids it: check its access rules, the user name and the certificate"
        }
        0x8a => "the server has banned this client: ask its operator",
        0x8e => "another client connected with the same client id: every client needs its own",
        0x95 => "a packet was larger than the server takes",
        0x9c | 0x9d => "the server asks to use another address: change `host`",
        _ => return None,
    })
}

/// The MQTT 5 reason that a return code of 3.1.1 stands for (MQTT 3.1.1, 3.2.2.3).
pub(crate) fn from_return_code(code: u8) -> u8 {
    match code {
        0 => 0x00,
        1 => 0x84,
        2 => 0x85,
        3 => 0x88,
        4 => 0x86,
        5 => 0x87,
        _ => 0x80,
    }
}

/// The return code of 3.1.1 that comes closest to a reason (MQTT 3.1.1, 3.2.2.3).
pub(crate) fn to_return_code(reason: u8) -> u8 {
    match reason {
        0x00 => 0,
        0x84 => 1,
        0x85 => 2,
        0x86 => 4,
        0x87 | 0x8a | 0x8c => 5,
        _ => 3,
    }
}

/// `0x87 not authorized: check …`, with what the server added.
pub(crate) fn describe(code: u8, from_server: Option<&str>) -> String {
    let mut text = format!("{} (0x{code:02X})", reason_text(code));
    if let Some(more) = from_server.filter(|more| !more.is_empty()) {
        // The server's text is shown as a quoted string: it may hold anything.
        let more: String = more.chars().take(200).collect();
        text.push_str(&format!(", it says {more:?}"));
    }
    if let Some(advice) = advice(code) {
        text.push_str("; ");
        text.push_str(advice);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_read_the_cause_and_the_fix() {
        assert_eq!(
            describe(0x86, None),
            "bad user name or password (0x86); check the user name and the password file"
        );
        assert!(describe(0x9c, Some("b.example\n")).contains(r#"it says "b.example\n"; the server asks"#));
        assert_eq!(reason_text(0xfe), "unspecified error");
        assert_eq!(
            (0..=6).map(from_return_code).collect::<Vec<_>>(),
            [0, 0x84, 0x85, 0x88, 0x86, 0x87, 0x80]
        );
    }
}

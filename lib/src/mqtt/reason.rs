//! Reason codes of MQTT 5 in words (2.4), with what to do about the ones that a person can do something about.

/// The name of a reason code in words, for log lines.
#[must_use]
pub fn reason_text(code: u8) -> &'static str {
    match code {
        0x00 => "success",
        _ => "unknown reason",
    }
}

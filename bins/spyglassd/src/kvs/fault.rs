//! What a refusal of the service means, for people, and whether other credentials could help.

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What was refused, why, and what can be done.
    pub why: String,
    /// It is about who we are: credentials fetched anew may be taken.
    pub credentials: bool,
}

/// Longest text of the service that is repeated, in characters.
const TEXT_MAX: usize = 300;

/// From the status, the header `x-amzn-errortype` (may be empty) and the body (JSON, if all is well).
#[must_use]
pub fn read(what: &str, status: u16, error_type: &str, body: &[u8]) -> Fault {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let field = |name: &str| value.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    let kind = if error_type.is_empty() {
        field("__type").rsplit('#').next().unwrap_or_default()
    } else {
        error_type
    };
    let message =
        [field("message"), field("Message")].into_iter().find(|text| !text.is_empty()).unwrap_or_default();
    let plain = |text: &str| text.chars().filter(|c| !c.is_control()).take(TEXT_MAX).collect::<String>();
    let mut why = format!("{what} answers {status}");
    for (before, text, after) in [(" ", plain(kind), ""), (" (", plain(message), ")")] {
        if !text.is_empty() {
            why.push_str(&format!("{before}{text}{after}"));
        }
    }
    why.push_str(hint(kind));
    Fault { why, credentials: matches!(status, 401 | 403) && kind != "AccessDeniedException" }
}

fn hint(kind: &str) -> &'static str {
    match kind {
        "ResourceNotFoundException" => ": create the stream, or correct stream-name and region",
        "AccessDeniedException" => {
            ": the credentials need kinesisvideo:GetDataEndpoint and kinesisvideo:PutMedia on this stream"
        }
        "ConnectionLimitExceededException" => ": another producer is connected to this stream",
        "InvalidSignatureException" => ": is the secret key right, and the clock of this device?",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_form_is_read_and_a_hint_is_given() {
        let fault = read(
            "GetDataEndpoint",
            404,
            "",
            br#"{"__type":"a.b#ResourceNotFoundException","Message":"no\nsuch"}"#,
        );
        assert_eq!(
            fault.why,
            "GetDataEndpoint answers 404 ResourceNotFoundException (nosuch): create the stream, or correct stream-name and region"
        );
        assert!(!fault.credentials);
        assert!(read("PutMedia", 403, "ExpiredTokenException", b"<html>").credentials);
        assert!(!read("PutMedia", 403, "AccessDeniedException", b"").credentials);
        assert_eq!(read("PutMedia", 500, "", b"").why, "PutMedia answers 500");
    }
}

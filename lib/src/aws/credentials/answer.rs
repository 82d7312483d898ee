//! Credentials in JSON, as a process, a container endpoint, the metadata service or the IoT provider prints them.
//!
//! Never panics, never repeats the text in an error: it may hold half a secret.

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Credentials;
use crate::config::Secret;

/// Whose JSON it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `credential_process`: `Version`, `AccessKeyId`, `SecretAccessKey`, `SessionToken`, `Expiration`.
    Process,
    /// Container endpoint and instance metadata: `AccessKeyId`, `SecretAccessKey`, `Token`, `Expiration`, `Code`.
    Metadata,
    /// AWS IoT: `{"credentials": {"accessKeyId", "secretAccessKey", "sessionToken", "expiration"}}`.
    Iot,
}

/// Reads the credentials.
///
/// # Errors
/// In words: which field is missing or wrong.
pub fn parse(text: &str, shape: Shape, source: &str) -> Result<Credentials, String> {
    let value: Value = serde_json::from_str(text)
        .map_err(|e| format!("the answer is not JSON (line {}, column {})", e.line(), e.column()))?;
    let (object, [id, secret, token, expiration]) = match shape {
        Shape::Process => (&value, ["AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration"]),
        Shape::Metadata => (&value, ["AccessKeyId", "SecretAccessKey", "Token", "Expiration"]),
        Shape::Iot => {
            (&value["credentials"], ["accessKeyId", "secretAccessKey", "sessionToken", "expiration"])
        }
    };
    if shape == Shape::Process && value["Version"] != 1 {
        return Err("expected \"Version\": 1".to_owned());
    }
    if let Some(code) = object.get("Code").and_then(Value::as_str).filter(|c| *c != "Success") {
        let code: String = code.chars().filter(|c| !c.is_control()).take(60).collect();
        return Err(format!("the service says {code}"));
    }
    let field = |name: &str| match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => plain(text, name).map(Some),
        Some(_) => Err(format!("{name} is no text")),
    };
    let needed = |name: &str| field(name)?.filter(|t| !t.is_empty()).ok_or(format!("{name} is missing"));
    let expires_s = match field(expiration)? {
        Some(text) => Some(instant(&text).ok_or(format!("{expiration} is no time in RFC 3339"))?),
        None if shape == Shape::Process => None,
        None => return Err(format!("{expiration} is missing")),
    };
    Ok(Credentials {
        access_key_id: needed(id)?,
        secret_key: Secret::new(needed(secret)?),
        token: field(token)?.filter(|t| !t.is_empty()).map(Secret::new),
        expires_s,
        source: source.to_owned(),
    })
}

/// A time in RFC 3339 as Unix seconds.
pub(super) fn instant(text: &str) -> Option<i64> {
    OffsetDateTime::parse(text.trim(), &Rfc3339).ok().map(OffsetDateTime::unix_timestamp)
}

/// Whatever becomes part of a header must be able to be one.
pub(super) fn plain(text: &str, name: &str) -> Result<String, String> {
    let text = text.trim();
    if text.len() <= 16 * 1024 && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err(format!("{name} has characters that no credential has"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape() {
        let process = r#"{"Version": 1, "AccessKeyId": "AK", "SecretAccessKey": "S3CRET"}"#;
        let c = parse(process, Shape::Process, "x").unwrap();
        assert_eq!((c.access_key_id.as_str(), c.secret_key.expose(), c.expires_s), ("AK", "S3CRET", None));
        assert!(c.token.is_none() && !format!("{c:?}").contains("S3CRET"));
        let meta = r#"{"Code":"Success","AccessKeyId":"AK","SecretAccessKey":"S","Token":"T0K","Expiration":"2026-01-01T00:00:00Z"}"#;
        let c = parse(meta, Shape::Metadata, "x").unwrap();
        assert_eq!((c.token.as_ref().unwrap().expose(), c.expires_s), ("T0K", Some(1_767_225_600)));
        assert!(!format!("{c:?}").contains("T0K"));
        let iot = r#"{"credentials":{"accessKeyId":"AK","secretAccessKey":"S","sessionToken":"T","expiration":"2026-01-01T01:00:00+01:00"}}"#;
        assert_eq!(parse(iot, Shape::Iot, "x").unwrap().expires_s, Some(1_767_225_600));
    }

    #[test]
    fn what_is_wrong_is_named_and_never_shown() {
        for (text, shape, why) in [
            ("S3CRET", Shape::Process, "not JSON"),
            ("[]", Shape::Process, "Version"),
            (r#"{"Version":1,"AccessKeyId":"A"}"#, Shape::Process, "SecretAccessKey is missing"),
            (r#"{"AccessKeyId":"A","SecretAccessKey":"S3CRET"}"#, Shape::Metadata, "Expiration is missing"),
            (r#"{"Code":"AssumeRoleUnauthorizedAccess"}"#, Shape::Metadata, "AssumeRoleUnauthorizedAccess"),
            (
                r#"{"AccessKeyId":"A","SecretAccessKey":"S3CRET","Expiration":"soon"}"#,
                Shape::Metadata,
                "RFC 3339",
            ),
            (
                r#"{"AccessKeyId":"A\nB","SecretAccessKey":"S3CRET","Expiration":"2026-01-01T00:00:00Z"}"#,
                Shape::Metadata,
                "characters",
            ),
            (
                r#"{"AccessKeyId":7,"SecretAccessKey":"S3CRET","Expiration":"2026-01-01T00:00:00Z"}"#,
                Shape::Metadata,
                "no text",
            ),
            ("{}", Shape::Iot, "missing"),
            ("null", Shape::Iot, "missing"),
        ] {
            let error = parse(text, shape, "x").unwrap_err();
            assert!(error.contains(why) && !error.contains("S3CRET"), "{text}: {error}");
        }
    }
}

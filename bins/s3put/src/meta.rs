//! What is known about an object besides its bytes: content type, metadata headers, and the sidecar.
//!
//! Owns: the 2 KB bound of S3's metadata and how text gets into a header. Invariants: every header value is printable
//! ASCII; what doesn't fit goes to the sidecar, never away.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use edge::clock::rfc3339_ms;
use edge::mqtt::{Message, topic};
use edge::spool::Record;
use serde_json::{Map, Value, json};

use crate::key;

/// The bound of S3 for user metadata, in bytes of names (with `x-amz-meta-`) and values.
pub const METADATA_BYTES_MAX: usize = 2048;
const PREFIX: &str = "x-amz-meta-";
/// Longest content type that is taken from a message, in bytes.
const TYPE_BYTES_MAX: usize = 255;

/// A rule of the configuration: messages of such a topic have that type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeRule {
    /// A topic filter.
    pub topic: String,
    /// A content type.
    pub content_type: String,
}

/// The content type: the message's own, else that of the first rule that fits, else what the first bytes say.
pub fn content_type(message: &Message, rules: &[TypeRule]) -> String {
    if let Some(own) = message.properties.content_type.as_deref().map(str::trim).filter(|t| is_type(t)) {
        return own.to_owned();
    }
    if let Some(rule) = rules.iter().find(|rule| topic::matches(&rule.topic, &message.topic)) {
        return rule.content_type.clone();
    }
    sniff(&message.payload, message.properties.payload_utf8 == Some(true)).to_owned()
}

/// Whether `text` can stand in a Content-Type header.
pub fn is_type(text: &str) -> bool {
    let token =
        |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b));
    let essence = text.split(';').next().unwrap_or("").trim();
    text.len() <= TYPE_BYTES_MAX
        && text.bytes().all(|b| (b' '..=b'~').contains(&b))
        && essence.split_once('/').is_some_and(|(kind, sub)| token(kind) && token(sub))
}

fn sniff(bytes: &[u8], is_text: bool) -> &'static str {
    let at = |offset: usize, magic: &[u8]| bytes.get(offset..offset + magic.len()) == Some(magic);
    let known: [(bool, &str); 11] = [
        (at(0, b"\xff\xd8\xff"), "image/jpeg"),
        (at(0, b"\x89PNG\r\n\x1a\n"), "image/png"),
        (at(0, b"GIF87a") || at(0, b"GIF89a"), "image/gif"),
        (at(0, b"RIFF") && at(8, b"WEBP"), "image/webp"),
        (at(0, b"RIFF") && at(8, b"WAVE"), "audio/wav"),
        (at(0, b"II*\0") || at(0, b"MM\0*"), "image/tiff"),
        (at(4, b"ftypavif"), "image/avif"),
        (at(4, b"ftyp"), "video/mp4"),
        (at(0, b"%PDF-"), "application/pdf"),
        (at(0, b"\x1f\x8b\x08"), "application/gzip"),
        (at(0, b"PK\x03\x04"), "application/zip"),
    ];
    if let Some((_, kind)) = known.iter().find(|(is, _)| *is) {
        return kind;
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return "application/octet-stream" };
    let trimmed = text.trim();
    let bracketed = |open, close| trimmed.starts_with(open) && trimmed.ends_with(close);
    if bracketed('{', '}') || bracketed('[', ']') {
        return "application/json";
    }
    let printable = |c: char| !c.is_control() || matches!(c, '\n' | '\r' | '\t');
    if is_text || (!text.is_empty() && text.chars().all(printable)) {
        "text/plain; charset=utf-8"
    } else {
        "application/octet-stream"
    }
}

/// The extension for a content type, with its dot.
pub fn extension(content_type: &str) -> &'static str {
    let essence = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match essence.as_str() {
        "image/jpeg" | "image/jpg" => ".jpg",
        "image/png" => ".png",
        "image/gif" => ".gif",
        "image/webp" => ".webp",
        "image/tiff" => ".tif",
        "image/avif" => ".avif",
        "image/bmp" => ".bmp",
        "video/mp4" => ".mp4",
        "audio/wav" => ".wav",
        "application/pdf" => ".pdf",
        "application/gzip" => ".gz",
        "application/zip" => ".zip",
        "application/json" => ".json",
        "application/xml" | "text/xml" => ".xml",
        "application/cbor" => ".cbor",
        "text/csv" => ".csv",
        "text/html" => ".html",
        text if text.starts_with("text/") => ".txt",
        _ => ".bin",
    }
}

/// Which user properties go into the metadata headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// All.
    All,
    /// Those of these names.
    Names(Vec<String>),
}

impl Listed {
    fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.iter().any(|n| n == name),
        }
    }
}

/// Metadata headers, and whether all that should be in them is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Names in lower case with `x-amz-meta-`, values in printable ASCII.
    pub list: Vec<(String, String)>,
    /// Nothing was left out.
    pub complete: bool,
}

/// Topic, time and QoS, then the listed user properties as far as they fit into `room` bytes.
pub fn headers(record: &Record, listed: &Listed, room: usize) -> Headers {
    let message = &record.message;
    let time = key::property(message, "time").map_or_else(|| rfc3339_ms(record.received_ms), str::to_owned);
    let qos = (message.qos as u8).to_string();
    let own = [("topic", message.topic.as_str()), ("time", &time), ("qos", &qos)];
    let user = message.properties.user.iter().filter(|(name, _)| name != "time" && listed.has(name));
    let all = own.into_iter().chain(user.map(|(name, value)| (name.as_str(), value.as_str())));
    let mut headers = Headers { list: Vec::new(), complete: true };
    let mut used = 0;
    for (name, value) in all {
        let (name, value) = (header_name(name), ascii(value));
        let size = name.len() + value.len();
        if used + size > room || headers.list.iter().any(|(n, _)| *n == name) {
            headers.complete = false;
            continue;
        }
        used += size;
        headers.list.push((name, value));
    }
    headers
}

fn header_name(name: &str) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    PREFIX.chars().chain(name.chars().map(fits)).collect()
}

/// `text` as it is where it is plain printable ASCII, else as an encoded word of RFC 2047, as S3's own answers have it.
pub fn ascii(text: &str) -> String {
    let plain = text.bytes().all(|b| (b' '..=b'~').contains(&b))
        && !text.starts_with(' ')
        && !text.ends_with(' ')
        && !text.contains("  ")
        && !text.starts_with("=?");
    if plain { text.to_owned() } else { format!("=?UTF-8?B?{}?=", STANDARD.encode(text)) }
}

/// The sidecar: all that is known about the object, as JSON. A user property that repeats becomes a list.
pub fn sidecar(record: &Record, key: &str, content_type: &str, sha256: &str, stored_ms: u64) -> Vec<u8> {
    let message = &record.message;
    let mut user: Map<String, Value> = Map::new();
    for (name, value) in &message.properties.user {
        match user.get_mut(name) {
            None => drop(user.insert(name.clone(), json!(value))),
            Some(Value::Array(list)) => list.push(json!(value)),
            Some(first) => *first = json!([first.take(), value]),
        }
    }
    let value = json!({
        "key": key,
        "topic": message.topic,
        "bytes": message.payload.len(),
        "sha256": sha256,
        "content-type": content_type,
        "qos": message.qos as u8,
        "retain": message.retain,
        "received": rfc3339_ms(record.received_ms),
        "stored": rfc3339_ms(stored_ms),
        "source": &*record.source,
        "response-topic": message.properties.response_topic,
        "correlation-base64": message.properties.correlation.as_ref().map(|c| STANDARD.encode(c)),
        "properties": user,
    });
    format!("{value:#}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(user: &[(&str, &str)]) -> Record {
        let mut message = Message { topic: "faces/ü".into(), payload: b"x".to_vec(), ..Message::default() };
        message.properties.user = user.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Record { seq: 1, received_ms: 1_767_225_600_123, source: "broker".into(), in_pid: None, message }
    }

    #[test]
    fn the_type_comes_from_property_then_rule_then_bytes() {
        let rules = [TypeRule { topic: "raw/#".into(), content_type: "application/x-raw".into() }];
        let kind = |topic: &str, own: Option<&str>, payload: &[u8]| {
            let mut m = Message { topic: topic.into(), payload: payload.to_vec(), ..Message::default() };
            m.properties.content_type = own.map(str::to_owned);
            content_type(&m, &rules)
        };
        assert_eq!(kind("raw/x", Some("image/png"), b"\xff\xd8\xff"), "image/png");
        assert_eq!(kind("raw/x", Some("no type\r\nX: y"), b"\xff\xd8\xff"), "application/x-raw");
        assert_eq!(kind("x", None, b"\xff\xd8\xff\xe0"), "image/jpeg");
        assert_eq!(kind("x", None, b"\x89PNG\r\n\x1a\n..."), "image/png");
        assert_eq!(kind("x", None, b"RIFF....WEBPVP8"), "image/webp");
        assert_eq!(kind("x", None, b" {\"a\":1}\n"), "application/json");
        assert_eq!(kind("x", None, "größe".as_bytes()), "text/plain; charset=utf-8");
        assert_eq!(kind("x", None, b""), "application/octet-stream");
        assert_eq!(kind("x", None, b"\0\xff"), "application/octet-stream");
        assert_eq!(extension("image/jpeg; q=1"), ".jpg");
        assert_eq!(extension("text/plain; charset=utf-8"), ".txt");
        assert_eq!(extension("nonsense"), ".bin");
    }

    #[test]
    fn headers_are_ascii_and_fit() {
        let long = "v".repeat(1500);
        let r = record(&[
            ("id", "7"),
            ("Größe", "zwölf"),
            ("time", "2026-01-01T00:00:00Z"),
            ("long", &long),
            ("long2", &long),
            ("z", " x"),
        ]);
        let headers = headers(&r, &Listed::All, METADATA_BYTES_MAX);
        assert!(!headers.complete);
        let size: usize = headers.list.iter().map(|(n, v)| n.len() + v.len()).sum();
        assert!(size <= METADATA_BYTES_MAX, "{size}");
        let get = |name: &str| headers.list.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("x-amz-meta-topic"), Some("=?UTF-8?B?ZmFjZXMvw7w=?="));
        assert_eq!(get("x-amz-meta-time"), Some("2026-01-01T00:00:00Z"));
        assert_eq!(get("x-amz-meta-gr--e"), Some("=?UTF-8?B?enfDtmxm?="));
        assert_eq!(get("x-amz-meta-z"), Some("=?UTF-8?B?IHg=?="));
        assert!(get("x-amz-meta-long").is_some() && get("x-amz-meta-long2").is_none());
        let few = super::headers(&r, &Listed::Names(vec!["id".into()]), METADATA_BYTES_MAX);
        assert!(few.complete && few.list.len() == 4);
        assert_eq!(super::headers(&record(&[]), &Listed::All, 2048).list[1].1, "2026-01-01T00:00:00.123Z");
    }

    #[test]
    fn the_sidecar_has_everything() {
        let r = record(&[("a", "1"), ("b", "2"), ("a", "3"), ("a", "4")]);
        let value: Value =
            serde_json::from_slice(&sidecar(&r, "k", "t/t", "abc", 1_767_225_601_000)).unwrap();
        assert_eq!(value["properties"], json!({"a": ["1", "3", "4"], "b": "2"}));
        assert_eq!(value["received"], "2026-01-01T00:00:00.123Z");
        assert_eq!(value["stored"], "2026-01-01T00:00:01.000Z");
        assert_eq!((&value["key"], &value["bytes"]), (&json!("k"), &json!(1)));
    }
}

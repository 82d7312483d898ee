//! What a device sends to depotd: the query of `/package`, `If-None-Match`, `Range` and `If-Range`. A question is the same
//! in whatever order and spelling it comes; what is kept is bounded; a range lies within the thing. The first byte selects
//! the parser.
#![no_main]

use std::fmt::Write as _;

use depotd::etag::{self, Etags, TAGS_MAX};
use depotd::query::{self, PARAMS_MAX, Payload, Question, TEXT_BYTES_MAX};
use depotd::range::{self, Span};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&selector, data)) = data.split_first() else { return };
    match selector % 3 {
        0 => query(data),
        1 => tags(data),
        _ => range(data),
    }
});

fn query(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(asked) = query::parse(text) else { return };
    let Question { cpu, os, attrs, apps, .. } = &asked.question;
    assert!(!cpu.is_empty() && !os.is_empty() && attrs.len() + apps.len() < PARAMS_MAX);
    assert!(attrs.is_sorted() && apps.windows(2).all(|two| two[0].0 < two[1].0));
    for text in [cpu, os].into_iter().chain(attrs.iter().chain(apps).flat_map(|(name, value)| [name, value])) {
        assert!(text.len() <= TEXT_BYTES_MAX && *text == text.to_ascii_lowercase());
    }
    // Backwards it is the same question.
    let backwards: Vec<&str> = text.rsplit('&').collect();
    let again = query::parse(&backwards.join("&")).expect("the same params in another order");
    assert_eq!((&again.question, again.payload), (&asked.question, asked.payload));
    // And so in the one form that it has.
    let again = query::parse(&canonical(&asked.question, asked.payload)).expect("the canonical form");
    assert_eq!((again.question, again.payload, again.generation), (asked.question, asked.payload, None));
}

fn canonical(question: &Question, payload: Payload) -> String {
    let mut text = format!("cpuArch={}", encoded(&question.cpu));
    for (name, value) in &question.attrs {
        let _ = write!(text, "&attr{}={}", encoded(name), encoded(value));
    }
    for (name, value) in &question.apps {
        let _ = write!(text, "&{}={}", encoded(name), encoded(value));
    }
    // What is not said is the default: spelled out, it might be one param too many.
    if question.os != "prod" {
        let _ = write!(text, "&os={}", encoded(&question.os));
    }
    if payload == Payload::Metadata {
        text += "&payloadType=metadataOnly";
    }
    if question.offers {
        text += "&x-offers=1";
    }
    text
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

fn tags(data: &[u8]) {
    let tags = Etags::parse(data.split(|byte| *byte == b'\n'));
    assert!(tags.md5.len() + tags.other.len() <= TAGS_MAX);
    let mut text = String::from(if tags.any { "*" } else { "" });
    for tag in tags.md5.iter().map(ToString::to_string).chain(tags.other.iter().cloned()) {
        let _ = write!(text, ", W/\"{tag}\"");
    }
    assert_eq!(Etags::parse([text.as_bytes()]), tags);
    assert!(tags.md5.iter().all(|md5| tags.has(Some(md5))) && tags.other.iter().all(|tag| tags.has_tag(tag)));
}

fn range(data: &[u8]) {
    let Some((size, data)) = data.split_first_chunk() else { return };
    let (size, Ok(text)) = (u64::from_le_bytes(*size), std::str::from_utf8(data)) else { return };
    let (value, condition) = text.split_once('\n').unwrap_or((text, ""));
    if let Span::Part { start, len } = range::parse(value, size) {
        assert!(len > 0 && start.checked_add(len).is_some_and(|end| end <= size));
        assert_eq!(range::parse(&format!("bytes={start}-{}", start + len - 1), size), Span::Part { start, len });
    }
    // Only the strong tag itself is a condition that holds.
    if etag::if_range(condition, "tag") {
        assert_eq!(condition.trim(), "\"tag\"");
    }
}

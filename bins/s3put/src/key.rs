//! Object keys: a template over a message.
//!
//! A key has to be a pure function of the message as its author sent it, because the same message can arrive twice (MQTT
//! at QoS 1 repeats what it is not sure of, and so does every restart along the way) and both copies must end as one
//! object. So the defaults use what travels with the message (`time`, `id`, `origin` and `seq` of its user properties,
//! its topic, its content), and the time of receipt is there only for those who ask for it by name.
//!
//! Invariants: a key has 1 to 1024 bytes of UTF-8, no empty segment, no `.` or `..`, no control character; what a
//! variable puts in can't add a segment, save for `{topic}`, whose levels are segments. Encoding in variables is
//! reversible, so different values never fall together.

use std::fmt::Write as _;

use edge::mqtt::Message;
use edge::objects::check_key;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What `{date}` and its kin say for a message without a `time` property.
const UNDATED: &str = "undated";

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Topic,
    TopicLevel(usize),
    Time(TimePart),
    Received(TimePart),
    Id,
    Sha256(usize),
    Ext,
    Property(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TimePart {
    Date,
    Year,
    Month,
    Day,
    Hour,
    Stamp,
}

/// What a key is made of.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub message: &'a Message,
    pub received_ms: u64,
    /// Hexadecimal, of the payload.
    pub sha256: &'a str,
    /// With its dot, or empty.
    pub ext: &'a str,
}

/// A parsed template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// In words: what was expected and what was found.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            let close = rest[open..].find('}').ok_or("expected a } for each {")? + open;
            if open > 0 {
                parts.push(Part::Literal(rest[..open].to_owned()));
            }
            parts.push(variable(&rest[open + 1..close])?);
            rest = &rest[close + 1..];
        }
        if rest.contains('}') {
            return Err("expected a { for each }".into());
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        if parts.iter().all(|p| matches!(p, Part::Literal(_))) {
            return Err("expected at least one {variable}: every message would get the same key".into());
        }
        if text.starts_with('/')
            || text.ends_with('/')
            || text.contains("//")
            || text.chars().any(char::is_control)
        {
            return Err(
                "expected no empty segment (no / at either end, no //) and no control character".into()
            );
        }
        if text.split('/').any(|segment| segment == "." || segment == "..") {
            return Err("expected no segment . or ..".into());
        }
        Ok(Self(parts))
    }

    /// Whether duplicates of a message get the same key (no part of it depends on when it was received).
    pub fn is_pure(&self) -> bool {
        !self.0.iter().any(|part| matches!(part, Part::Received(_)))
    }

    /// Whether different messages usually get different keys.
    pub fn tells_messages_apart(&self) -> bool {
        self.0.iter().any(|part| {
            matches!(
                part,
                Part::Id
                    | Part::Sha256(_)
                    | Part::Property(_)
                    | Part::Received(TimePart::Stamp)
                    | Part::Time(TimePart::Stamp)
            )
        })
    }

    /// The key of a message, with `prefix` (empty, or ending in `/`) before it.
    ///
    /// # Errors
    /// In words: why this message can have no key.
    pub fn key(&self, prefix: &str, facts: &Facts<'_>) -> Result<String, String> {
        let mut key = prefix.to_owned();
        for part in &self.0 {
            put(&mut key, part, facts)?;
        }
        check_key(&key)?;
        Ok(key)
    }
}

fn variable(name: &str) -> Result<Part, String> {
    let time = |part: &str| {
        Some(match part {
            "date" => TimePart::Date,
            "year" => TimePart::Year,
            "month" => TimePart::Month,
            "day" => TimePart::Day,
            "hour" => TimePart::Hour,
            "time" => TimePart::Stamp,
            _ => return None,
        })
    };
    if let Some(part) = time(name) {
        return Ok(Part::Time(part));
    }
    if let Some(part) = name.strip_prefix("received-").and_then(time) {
        return Ok(Part::Received(part));
    }
    let (base, argument) =
        name.split_once(':').map_or((name, None), |(base, argument)| (base, Some(argument)));
    let number =
        |max: usize| argument.and_then(|a| a.parse::<usize>().ok()).filter(|n| (1..=max).contains(n));
    match (base, argument) {
        ("topic", None) => Ok(Part::Topic),
        ("topic", Some(_)) => {
            number(64).map(Part::TopicLevel).ok_or("expected {topic:1} to {topic:64}".into())
        }
        ("id", None) => Ok(Part::Id),
        ("ext", None) => Ok(Part::Ext),
        ("sha256", None) => Ok(Part::Sha256(64)),
        ("sha256", Some(_)) => number(64)
            .filter(|n| *n >= 16)
            .map(Part::Sha256)
            .ok_or("expected {sha256:16} to {sha256:64}".into()),
        ("property", Some(property)) if !property.is_empty() => Ok(Part::Property(property.to_owned())),
        _ => Err(format!(
            "expected {{topic}}, {{topic:N}}, {{date}}, {{year}}, {{month}}, {{day}}, {{hour}}, {{time}}, {{id}}, {{sha256}}, \
             {{sha256:N}}, {{ext}}, {{property:NAME}}, or one of the times with received- before it; found {{{name}}}"
        )),
    }
}

/// The first user property of that name.
pub fn property<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    let found = message.properties.user.iter().find(|(n, _)| n == name);
    found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
}

/// The message's own time (user property `time`, RFC 3339), in UTC.
pub fn own_time(message: &Message) -> Option<OffsetDateTime> {
    let parsed = OffsetDateTime::parse(property(message, "time")?, &Rfc3339).ok()?;
    // Years before 0 or after 9999 have no four digits.
    Some(parsed.to_offset(time::UtcOffset::UTC)).filter(|t| (0..=9999).contains(&t.year()))
}

fn put(key: &mut String, part: &Part, facts: &Facts<'_>) -> Result<(), String> {
    let message = facts.message;
    match part {
        Part::Literal(text) => key.push_str(text),
        Part::Topic => {
            for (n, level) in message.topic.split('/').enumerate() {
                if n > 0 {
                    key.push('/');
                }
                // An empty level can be no segment.
                encode(key, if level.is_empty() { "_" } else { level }, "topic")?;
            }
        }
        Part::TopicLevel(n) => match message.topic.split('/').nth(n - 1) {
            None => {
                return Err(format!(
                    "the topic {:?} has no level {n}, which the key template asks for",
                    message.topic
                ));
            }
            Some("") => key.push('_'),
            Some(level) => encode(key, level, "topic")?,
        },
        Part::Time(part) => match own_time(message) {
            Some(at) => put_time(key, at, *part),
            None => key.push_str(UNDATED),
        },
        Part::Received(part) => {
            let nanos = i128::from(facts.received_ms) * 1_000_000;
            let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
            put_time(key, at, *part);
        }
        Part::Id => match (property(message, "id"), property(message, "origin"), property(message, "seq")) {
            (Some(id), ..) => encode(key, id, "property id")?,
            (None, Some(origin), Some(seq)) => {
                encode(key, origin, "property origin")?;
                key.push('-');
                encode(key, seq, "property seq")?;
            }
            _ => key.push_str(facts.sha256),
        },
        Part::Sha256(digits) => key.push_str(facts.sha256.get(..*digits).unwrap_or(facts.sha256)),
        Part::Ext => key.push_str(facts.ext),
        Part::Property(name) => match property(message, name) {
            Some(value) => encode(key, value, "property")?,
            None => {
                return Err(format!(
                    "the message has no user property {name:?}, which the key template asks for"
                ));
            }
        },
    }
    Ok(())
}

fn put_time(key: &mut String, at: OffsetDateTime, part: TimePart) {
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = at.to_hms();
    // Writing to a String can't fail.
    let _ = match part {
        TimePart::Date => write!(key, "{year:04}-{month:02}-{day:02}"),
        TimePart::Year => write!(key, "{year:04}"),
        TimePart::Month => write!(key, "{month:02}"),
        TimePart::Day => write!(key, "{day:02}"),
        TimePart::Hour => write!(key, "{hour:02}"),
        TimePart::Stamp => {
            write!(
                key,
                "{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}.{:03}Z",
                at.millisecond()
            )
        }
    };
}

/// Appends `value` so that it stays one segment: what is no letter, digit or one of `-_.=+@,~` becomes `%XX`.
fn encode(key: &mut String, value: &str, what: &str) -> Result<(), String> {
    if value.chars().any(char::is_control) {
        return Err(format!("the {what} {value:?} has a control character"));
    }
    for c in value.chars() {
        if c.is_alphanumeric() || "-_.=+@,~".contains(c) {
            key.push(c);
        } else {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                // Writing to a String can't fail.
                let _ = write!(key, "%{byte:02X}");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(topic: &str, user: &[(&str, &str)]) -> Message {
        let mut message = Message { topic: topic.into(), ..Message::default() };
        message.properties.user = user.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        message
    }

    fn key(template: &str, message: &Message, received_ms: u64) -> Result<String, String> {
        let sha256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        Template::parse(template).unwrap().key("p/", &Facts { message, received_ms, sha256, ext: ".jpg" })
    }

    const DEFAULT: &str = "{topic}/{date}/{id}{ext}";

    #[test]
    fn the_default_folds_duplicates_whenever_they_come() {
        let full = message("a/b", &[("id", "f/1"), ("time", "2026-11-21T23:30:00.5-02:00")]);
        assert_eq!(key(DEFAULT, &full, 1).unwrap(), "p/a/b/2026-11-22/f%2F1.jpg");
        assert_eq!(key(DEFAULT, &full, 1), key(DEFAULT, &full, 99_999_999_999));
        let forwarded = message("a", &[("origin", "dev"), ("seq", "17")]);
        assert_eq!(key(DEFAULT, &forwarded, 1).unwrap(), "p/a/undated/dev-17.jpg");
        let bare = message("a", &[("time", "soon"), ("id", "")]);
        assert!(key(DEFAULT, &bare, 1).unwrap().starts_with("p/a/undated/e3b0c44"));
    }

    #[test]
    fn every_variable() {
        let m = message("x/y z/ü", &[("time", "2026-01-02T03:04:05.678Z"), ("camera", "gate 3")]);
        assert_eq!(
            key("{topic:2}/{year}-{month}-{day}T{hour}/{time}/{property:camera}/{sha256:16}", &m, 0).unwrap(),
            "p/y%20z/2026-01-02T03/20260102T030405.678Z/gate%203/e3b0c44298fc1c14"
        );
        assert_eq!(key("{topic}/{received-time}", &m, 1_000).unwrap(), "p/x/y%20z/ü/19700101T000001.000Z");
        assert_eq!(key("{received-date}/{id}", &m, u64::MAX).unwrap().split('/').nth(1), Some("1970-01-01"));
        assert!(!Template::parse("{received-date}").unwrap().is_pure());
        assert!(Template::parse(DEFAULT).unwrap().is_pure());
        assert!(!Template::parse("{topic}/{date}").unwrap().tells_messages_apart());
    }

    #[test]
    fn what_can_be_no_key_is_refused() {
        let refused =
            |topic: &str, user: &[(&str, &str)]| key("{topic}/{id}", &message(topic, user), 0).unwrap_err();
        assert!(refused("a/../b", &[]).contains(".."));
        assert!(refused("a", &[("id", "..")]).contains(".."));
        assert!(refused("a", &[("id", "x\u{7}")]).contains("control"));
        assert!(refused("a\u{1}", &[]).contains("control"));
        assert!(refused(&"x".repeat(1000), &[]).contains("bytes"));
        assert!(key("{topic:3}", &message("a/b", &[]), 0).unwrap_err().contains("no level 3"));
        assert!(key("{property:n}", &message("a", &[]), 0).unwrap_err().contains("no user property"));
        assert_eq!(key("{topic}/x", &message("/a//b", &[]), 0).unwrap(), "p/_/a/_/b/x");
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for bad in [
            "",
            "x",
            "{",
            "}",
            "{x}",
            "{topic",
            "/{id}",
            "{id}/",
            "a//{id}",
            "../{id}",
            "{id}/./x",
            "{topic:0}",
            "{sha256:8}",
            "{property:}",
            "{id}\n",
        ] {
            assert!(Template::parse(bad).is_err(), "{bad:?}");
        }
    }

    /// Whatever arrives: a key that passes the check, or a refusal; and no two ids with one key.
    #[test]
    fn random_topics_and_properties() {
        let seed = std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(3);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut seen = std::collections::HashMap::new();
        for round in 0..5000 {
            let text = |rng: &mut fastrand::Rng| -> String {
                (0..rng.usize(1..6))
                    .map(|_| *rng.choice(&['/', '.', 'a', '%', 'ü', '\0', '2', ' ', '\u{202e}']).unwrap())
                    .collect()
            };
            let (topic, id) = (text(&mut rng), text(&mut rng));
            if let Ok(key) = key("{topic:1}/{id}", &message(&topic, &[("id", &id)]), 0) {
                assert_eq!(check_key(&key), Ok(()), "seed {seed} round {round}");
                let level = topic.split('/').next().unwrap().to_owned();
                let level = if level.is_empty() { "_".to_owned() } else { level };
                let before = seen.insert(key.clone(), (level.clone(), id.clone()));
                assert!(before.is_none_or(|b| b == (level, id)), "seed {seed} round {round}: {key}");
            }
        }
        assert!(seen.len() > 500);
    }
}

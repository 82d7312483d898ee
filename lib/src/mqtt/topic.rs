//! Topic names and filters (MQTT 5 section 4.7): validity, matching, overlap.
//!
//! Owns: nothing; pure functions on text. Never: panics on any text.

/// The longest topic name or filter, in bytes (a UTF-8 string of the protocol, section 1.5.4).
pub const TOPIC_BYTES_MAX: usize = 65_535;

/// What is wrong with `topic` as a name to publish on, if anything.
pub fn check_name(topic: &str) -> Result<(), &'static str> {
    if topic.is_empty() {
        return Err("a topic has at least one character");
    }
    if topic.len() > TOPIC_BYTES_MAX {
        return Err("a topic has at most 65535 bytes");
    }
    if topic.contains('\0') {
        return Err("a topic holds no NUL character");
    }
    if topic.contains(['+', '#']) {
        return Err("a topic to publish on holds no wildcard ('+' or '#')");
    }
    Ok(())
}

/// What is wrong with `filter` as a subscription, if anything. `$share/<group>/<filter>` is accepted (section 4.8.2).
pub fn check_filter(filter: &str) -> Result<(), &'static str> {
    let Some(filter) = plain(filter) else {
        return Err(
            "a shared subscription reads $share/<group>/<filter>, its group without '/', '+' and '#'",
        );
    };
    if filter.is_empty() {
        return Err("a filter has at least one character");
    }
    if filter.len() > TOPIC_BYTES_MAX {
        return Err("a filter has at most 65535 bytes");
    }
    if filter.contains('\0') {
        return Err("a filter holds no NUL character");
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level == "#" && levels.peek().is_some() {
            return Err("'#' stands only at the end of a filter");
        }
        if level.len() > 1 && level.contains(['+', '#']) {
            return Err("'+' and '#' stand alone in their level, as in a/+/b or a/#");
        }
    }
    Ok(())
}

/// The filter less `$share/<group>/`; `None` where that prefix is malformed.
fn plain(filter: &str) -> Option<&str> {
    let Some(rest) = filter.strip_prefix("$share/") else { return Some(filter) };
    let (group, filter) = rest.split_once('/')?;
    (!group.is_empty() && !group.contains(['+', '#'])).then_some(filter)
}

/// Whether a message on `topic` reaches a subscription to `filter`. `#` and `+` at the start do not match topics that
/// begin with `$` (section 4.7.2).
pub fn matches(filter: &str, topic: &str) -> bool {
    captures(filter, topic).is_some()
}

/// What the wildcards of a filter stood for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Captures<'t> {
    /// One level for each `+`, in order.
    pub levels: Vec<&'t str>,
    /// The rest behind `#`, without its leading `/`; empty where the filter has none or it matched nothing.
    pub tail: &'t str,
}

/// As [`matches`], with what the wildcards stood for.
pub fn captures<'t>(filter: &str, topic: &'t str) -> Option<Captures<'t>> {
    let filter = plain(filter)?;
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return None;
    }
    let mut found = Captures::default();
    let mut rest = Some(topic);
    for wanted in filter.split('/') {
        if wanted == "#" {
            found.tail = rest.unwrap_or_default();
            return Some(found);
        }
        let text = rest?;
        let (level, behind) = match text.split_once('/') {
            Some((level, behind)) => (level, Some(behind)),
            None => (text, None),
        };
        match wanted {
            "+" => found.levels.push(level),
            _ if wanted == level => {}
            _ => return None,
        }
        rest = behind;
    }
    rest.is_none().then_some(found)
}

/// Whether there is a topic that both filters match.
pub fn overlap(a: &str, b: &str) -> bool {
    let (Some(a), Some(b)) = (plain(a), plain(b)) else { return false };
    let wild_start = |f: &str| f.starts_with(['+', '#']);
    if (a.starts_with('$') && wild_start(b)) || (b.starts_with('$') && wild_start(a)) {
        return false;
    }
    let (mut left, mut right) = (a.split('/'), b.split('/'));
    loop {
        match (left.next(), right.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(x), Some(y)) if x == y || x == "+" || y == "+" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matching_follows_the_specification() {
        for (filter, topic, expected) in [
            ("faces", "faces", true),
            ("faces", "faces/1", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("#", "a/b", true),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("a/+/c", "a//c", true),
            ("a/+", "a/", true),
            ("a/+", "a", false),
            ("+", "/a", false),
            ("/+", "/a", true),
            ("$share/g/a/+", "a/b", true),
            ("$share/g", "a", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn wildcards_capture_what_they_stood_for() {
        let found = captures("site/+/cam/+/#", "site/7/cam/3/a/b").unwrap();
        assert_eq!(found, Captures { levels: vec!["7", "3"], tail: "a/b" });
        assert_eq!(captures("a/#", "a").unwrap().tail, "");
    }

    #[test]
    fn malformed_filters_and_names_are_refused() {
        for bad in ["", "a#", "a/#/b", "+a", "a/b+", "\0", "$share/", "$share/g", "$share//a", "$share/g+/a"]
        {
            assert!(check_filter(bad).is_err(), "{bad:?}");
        }
        for good in ["#", "+", "+/+/#", "/", "a b", "$share/g/#"] {
            assert!(check_filter(good).is_ok(), "{good:?}");
        }
        assert!(check_name("a/#").is_err() && check_name("").is_err() && check_name("a/b").is_ok());
        assert!(check_name(&"x".repeat(70_000)).is_err());
    }

    /// Overlap is symmetric, and true exactly where some topic of a small alphabet matches both.
    #[test]
    fn overlap_agrees_with_matching() {
        let levels = ["a", "b", "+", "#", "$x"];
        let mut filters = Vec::new();
        for x in levels {
            filters.push(x.to_owned());
            filters.extend(levels.iter().map(|y| format!("{x}/{y}")));
        }
        filters.retain(|f| check_filter(f).is_ok());
        let names = ["a", "b", "c", "$x"];
        let mut topics: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        topics.extend(names.iter().flat_map(|x| names.iter().map(move |y| format!("{x}/{y}"))));
        topics.extend(topics.clone().iter().map(|t| format!("{t}/c")));
        for a in &filters {
            for b in &filters {
                let both = topics.iter().any(|t| matches(a, t) && matches(b, t));
                assert_eq!(overlap(a, b), both, "{a} {b}");
                assert_eq!(overlap(a, b), overlap(b, a));
            }
        }
    }
}

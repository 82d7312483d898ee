//! Routes: which topics are taken from one side, and what they are called on the other.
//!
//! Owns: the template language of `to`. `{topic}` is the whole topic, `{1}` … `{9}` what the n-th `+` of `from` stood
//! for, `{tail}` what `#` stood for, `{device}` our id. Everything else stands for itself.
//! Invariant: what comes out is a valid topic name, or the message is refused.

use edge::mqtt::{Qos, topic};

/// What is wrong with a template, or with what it made of a topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `{` without `}`.
    #[error("expected a '}}' after the '{{' in {0:?}")]
    Unclosed(String),
    /// A name that is none.
    #[error("expected {{topic}}, {{tail}}, {{device}} or {{1}} to {{9}}, found {{{0}}}")]
    Unknown(String),
    /// `{n}` or `{tail}` without its wildcard.
    #[error("{{{name}}} stands for {what} of from = {from:?}, which has none")]
    NoWildcard {
        /// The variable.
        name: String,
        /// What it would stand for.
        what: String,
        /// The filter.
        from: String,
    },
    /// The result is no topic name.
    #[error("the topic {name:?}: {why}")]
    Name {
        /// The result.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Topic,
    Level(usize),
    Tail,
}

/// One route, checked.
#[derive(Debug, Clone)]
pub struct Route {
    /// The filter it takes.
    pub from: String,
    /// Most that it is subscribed with and forwarded at.
    pub qos: Qos,
    to: Vec<Part>,
}

/// The variables of `to`; a digit is the n-th `+`.
fn parse(to: &str, from: &str, device: &str) -> Result<Vec<Part>, Error> {
    let plain = match from.strip_prefix("$share/") {
        Some(rest) => rest.split_once('/').map_or("", |(_, filter)| filter),
        None => from,
    };
    let pluses = plain.split('/').filter(|level| *level == "+").count();
    let mut parts = Vec::new();
    let mut rest = to;
    while let Some((text, behind)) = rest.split_once('{') {
        let (name, behind) = behind.split_once('}').ok_or_else(|| Error::Unclosed(to.to_owned()))?;
        parts.push(Part::Text(text.to_owned()));
        let missing = |what: String| Error::NoWildcard { name: name.into(), what, from: from.to_owned() };
        parts.push(match (name, name.parse::<usize>()) {
            ("topic", _) => Part::Topic,
            ("device", _) => Part::Text(device.to_owned()),
            ("tail", _) if plain.ends_with('#') => Part::Tail,
            ("tail", _) => return Err(missing("the '#'".into())),
            (_, Ok(n)) if (1..=pluses.min(9)).contains(&n) => Part::Level(n - 1),
            (_, Ok(n)) if n > 0 => return Err(missing(format!("'+' number {n}"))),
            _ => return Err(Error::Unknown(name.to_owned())),
        });
        rest = behind;
    }
    parts.push(Part::Text(rest.to_owned()));
    parts.retain(|part| *part != Part::Text(String::new()));
    Ok(parts)
}

impl Route {
    /// Checks `to` against `from` (a valid filter).
    ///
    /// # Errors
    /// [`Error`]: an unknown variable, one whose wildcard `from` lacks, or a text that can't be part of a topic.
    pub fn new(from: &str, to: &str, qos: Qos, device: &str) -> Result<Route, Error> {
        let parts = parse(to, from, device)?;
        let text: String =
            parts.iter().map(|part| if let Part::Text(text) = part { text } else { "x" }).collect();
        topic::check_name(&text).map_err(|why| Error::Name { name: to.to_owned(), why })?;
        Ok(Route { from: from.to_owned(), qos, to: parts })
    }

    /// What `name` is called on the other side; `None` if this route does not take it.
    pub fn target(&self, name: &str) -> Option<Result<String, Error>> {
        let captures = topic::captures(&self.from, name)?;
        let mut target = String::with_capacity(name.len() + 16);
        for part in &self.to {
            match part {
                Part::Text(text) => target.push_str(text),
                Part::Topic => target.push_str(name),
                Part::Level(n) => target.push_str(captures.levels.get(*n).copied().unwrap_or_default()),
                Part::Tail if captures.tail.is_empty() => {
                    // `a/#` matches `a` too: then `b/{tail}` is `b`.
                    if target.ends_with('/') {
                        target.pop();
                    }
                }
                Part::Tail => target.push_str(captures.tail),
            }
        }
        Some(match topic::check_name(&target) {
            Ok(()) => Ok(target),
            Err(why) => Err(Error::Name { name: target, why }),
        })
    }
}

/// A filter that covers every topic which a route with this `to` and `from` can produce.
pub fn target_filter(to: &str, from: &str) -> String {
    if to == "{topic}" {
        return from.to_owned();
    }
    // Up to the first level with a variable the text is fixed; what follows may be anything.
    match to.find('{') {
        None => to.to_owned(),
        Some(at) => match to[..at].rfind('/') {
            Some(slash) => format!("{}/#", &to[..slash]),
            None => "#".to_owned(),
        },
    }
}

/// The routes of one lane. Their filters share no topic, so at most one takes a message.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    routes: Vec<Route>,
}

impl Routes {
    /// Wraps routes whose filters do not overlap.
    pub fn new(routes: Vec<Route>) -> Routes {
        Routes { routes }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter()
    }

    /// Whether a route takes this topic.
    pub fn takes(&self, name: &str) -> bool {
        self.routes.iter().any(|route| topic::matches(&route.from, name))
    }

    /// The target topic and the highest QoS for a message on `name`; `None` if no route takes it.
    pub fn target(&self, name: &str) -> Option<(Result<String, Error>, Qos)> {
        self.routes.iter().find_map(|route| route.target(name).map(|target| (target, route.qos)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(from: &str, to: &str, name: &str) -> Option<String> {
        let route = Route::new(from, to, Qos::AtLeastOnce, "dev7").unwrap();
        route.target(name).map(|target| target.unwrap())
    }

    #[test]
    fn a_topic_is_renamed_by_its_template() {
        assert_eq!(map("faces", "tst011235", "faces").as_deref(), Some("tst011235"));
        assert_eq!(map("faces", "tst011235", "face"), None);
        assert_eq!(map("a/#", "site/{device}/{tail}", "a/b/c").as_deref(), Some("site/dev7/b/c"));
        assert_eq!(map("a/#", "site/{device}/{tail}", "a").as_deref(), Some("site/dev7"));
        assert_eq!(map("+/cam/+", "{2}/{1}", "x/cam/y").as_deref(), Some("y/x"));
        assert_eq!(map("a/+", "up/{topic}", "a/b").as_deref(), Some("up/a/b"));
        assert_eq!(map("$share/g/a/+", "{1}", "a/b").as_deref(), Some("b"));
    }

    #[test]
    fn a_template_that_can_not_work_is_refused_with_what_was_expected() {
        let error =
            |from: &str, to: &str| Route::new(from, to, Qos::AtLeastOnce, "d").unwrap_err().to_string();
        assert_eq!(error("a", "b/{tail}"), "{tail} stands for the '#' of from = \"a\", which has none");
        assert_eq!(error("+/a", "{2}"), "{2} stands for '+' number 2 of from = \"+/a\", which has none");
        assert_eq!(error("a", "{x}"), "expected {topic}, {tail}, {device} or {1} to {9}, found {x}");
        assert_eq!(error("a", "{0}"), "expected {topic}, {tail}, {device} or {1} to {9}, found {0}");
        assert_eq!(error("a", "b{"), "expected a '}' after the '{' in \"b{\"");
        assert!(error("a", "b/#").contains("no wildcard"), "{}", error("a", "b/#"));
        assert!(error("a", "").contains("at least one character"));
    }

    #[test]
    fn an_empty_level_can_make_an_empty_topic_which_is_refused() {
        let route = Route::new("+", "{1}", Qos::AtLeastOnce, "d").unwrap();
        assert!(route.target("").unwrap().is_err());
    }

    #[test]
    fn the_target_filter_covers_what_a_route_produces() {
        for (from, to, filter) in [
            ("a", "b", "b"),
            ("a/#", "{topic}", "a/#"),
            ("a/#", "x/y{tail}", "x/#"),
            ("+", "{1}", "#"),
            ("a/#", "s/{device}/{tail}", "s/#"),
        ] {
            assert_eq!(target_filter(to, from), filter);
        }
    }
}

//! Where in a TOML text a key stands, and which key stands at a place.
//!
//! Owns: nothing; reads the text again with the spans of the parser. Only runs when there is an error to report.
//! Never: panics on a text or key that does not match.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

/// The bytes of the value of `key` (`a.b[2].c`), or of the nearest thing around it that is there.
pub fn span_of(text: &str, key: &str) -> Option<Range<usize>> {
    let (root, _) = DeTable::parse_recoverable(text);
    let mut table: Option<&DeTable<'_>> = Some(root.get_ref());
    let mut found = None;
    let mut rest = key;
    while !rest.is_empty() {
        // A name may have dots of its own: the longest that is there.
        let at = |k: &str| rest.strip_prefix(k).filter(|r| r.is_empty() || r.starts_with(['.', '[']));
        let names = table.into_iter().flat_map(|t| t.iter());
        let fits = names.filter_map(|(key, value)| Some((key, value, at(key.get_ref())?)));
        let Some((key, mut value, after)) = fits.min_by_key(|(.., after)| after.len()) else { break };
        let (indices, after) = split_indices(after);
        rest = after;
        found = Some(if value.get_ref().is_table() { key.span() } else { value.span() });
        for index in indices {
            let Some(item) = value.get_ref().as_array().and_then(|a| a.get(index)) else { break };
            value = item;
            found = Some(value.span());
        }
        table = value.get_ref().as_table();
    }
    found
}

/// The indices `[1][2]` that a text begins with, and what follows them and their dot.
fn split_indices(text: &str) -> (Vec<usize>, &str) {
    let mut indices = Vec::new();
    let mut rest = text;
    while let Some((index, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        indices.extend(index.parse::<usize>());
        rest = after;
    }
    (indices, rest.strip_prefix('.').unwrap_or(rest))
}

/// The dotted path of the innermost key whose key or value covers `span`.
pub fn key_at(text: &str, span: &Range<usize>) -> Option<String> {
    let (root, _) = DeTable::parse_recoverable(text);
    in_table(root.get_ref(), span, "")
}

/// The text of `span` itself where it is a plain key, such as one that stands twice.
pub fn bare_key(text: &str, span: &Range<usize>) -> Option<String> {
    let word = text.get(span.clone())?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    (word.starts_with(|c: char| c.is_ascii_alphabetic()) && word.chars().all(plain)).then(|| word.to_owned())
}

fn in_table(table: &DeTable<'_>, span: &Range<usize>, above: &str) -> Option<String> {
    for (key, value) in table {
        let path =
            if above.is_empty() { key.get_ref().to_string() } else { format!("{above}.{}", key.get_ref()) };
        if covers(&key.span(), span) {
            return Some(path);
        }
        if let Some(found) = in_value(value.get_ref(), &value.span(), span, &path) {
            return Some(found);
        }
    }
    None
}

fn in_value(value: &DeValue<'_>, own: &Range<usize>, span: &Range<usize>, path: &str) -> Option<String> {
    let inside = match value {
        DeValue::Table(table) => in_table(table, span, path),
        DeValue::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(n, item)| in_value(item.get_ref(), &item.span(), span, &format!("{path}[{n}]"))),
        _ => None,
    };
    inside.or_else(|| covers(own, span).then(|| path.to_owned()))
}

fn covers(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end && !outer.is_empty()
}

/// The parser's message in words of the file's author: ranges instead of Rust's types, the likely key for a mistyped one.
pub fn for_people(message: &str, key: &str) -> String {
    let mut text = message.to_owned();
    for (rust, plain) in [
        ("expected u16", "expected an integer from 0 to 65535"),
        ("expected u8", "expected an integer from 0 to 255"),
        ("expected u32", "expected an integer from 0 to 4294967295"),
        ("expected u64", "expected an integer of 0 or more"),
        ("expected usize", "expected an integer of 0 or more"),
        ("expected i64", "expected an integer"),
        ("expected f64", "expected a number"),
        ("expected f32", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("expected a sequence", "expected an array [ … ]"),
        ("expected a map", "expected a table"),
    ] {
        if let Some(at) = text.find(rust)
            && !text[at + rust.len()..].starts_with(|c: char| c.is_ascii_alphanumeric())
        {
            text.replace_range(at..at + rust.len(), plain);
        }
    }
    if text.starts_with("unknown field")
        && let Some(near) = nearest(key.rsplit('.').next().unwrap_or(key), &text)
    {
        text.push_str(&format!("; did you mean `{near}`?"));
    }
    text
}

/// Among the names in backquotes behind "expected", the one at most two edits away from `wrong`.
fn nearest(wrong: &str, message: &str) -> Option<String> {
    let names = message.split_once("expected")?.1;
    names
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|name| (edits(wrong, name), name))
        .filter(|(distance, name)| *distance <= 2 && *distance < name.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name.to_owned())
}

/// Insertions, deletions, replacements and swaps of neighbours that make `b` of `a`; of strings as short as keys.
fn edits(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replace = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = replace.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_dots_and_places_in_lists_are_found() {
        let text = "[app.a]\nx = 1\n[app.\"a.b\"]\nx = 2\n[[s]]\ny = [3]\n[[s]]\ny = [4, 5]\n";
        let found = |key: &str| span_of(text, key).map(|span| &text[span]);
        assert_eq!((found("app.a.x"), found("app.a.b.x")), (Some("1"), Some("2")));
        assert_eq!((found("s[0].y[0]"), found("s[1].y[1]")), (Some("3"), Some("5")));
        assert_eq!(found("app.a.b.z"), Some("\"a.b\""), "the nearest thing around it");
        assert_eq!(
            (found("none"), found("s[7].y"), found("s[x]"), found("")),
            (None, found("s"), found("s"), None)
        );
    }

    #[test]
    fn a_swap_is_one_edit() {
        for (a, b, distance) in
            [("hots", "host", 1), ("hots", "qos", 2), ("prot", "port", 1), ("", "ab", 2), ("a", "a", 0)]
        {
            assert_eq!(edits(a, b), distance, "{a} {b}");
        }
    }
}

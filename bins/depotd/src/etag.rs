//! `If-None-Match` and `If-Range` (RFC 9110 sections 8.8.3, 13.1.2 and 13.1.5), as devices write them.
//!
//! The original's devices send the MD5 sums of what they have, bare, so a tag needs no quotes here. Comparison is weak,
//! as the header asks. Invariants: any bytes are read without a panic; at most [`TAGS_MAX`] tags are kept.

use std::collections::BTreeSet;

use edge::release::Md5;

/// Most tags of a request that are looked at.
pub const TAGS_MAX: usize = 1024;

/// What a device has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Etags {
    /// `*`: whatever there is.
    pub any: bool,
    /// Sums of files.
    pub md5: BTreeSet<Md5>,
    /// Tags that are no MD5 sums, without quotes.
    pub other: BTreeSet<String>,
}

impl Etags {
    /// Reads the values of all `If-None-Match` headers of a request.
    pub fn parse<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut tags = Self::default();
        for value in values {
            tags.read(value);
        }
        tags
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.any && self.md5.is_empty() && self.other.is_empty()
    }

    /// Whether the file with this sum is there.
    #[must_use]
    pub fn has(&self, md5: Option<&Md5>) -> bool {
        self.any || md5.is_some_and(|md5| self.md5.contains(md5))
    }

    /// Whether the thing with this tag (given without quotes) is there.
    #[must_use]
    pub fn has_tag(&self, tag: &str) -> bool {
        self.any || self.other.contains(tag)
    }

    fn read(&mut self, mut rest: &[u8]) {
        while self.md5.len() + self.other.len() < TAGS_MAX {
            let begin = rest.iter().position(|b| !matches!(b, b' ' | b'\t' | b','));
            let Some(begin) = begin else { return };
            rest = &rest[begin..];
            if let Some(after) = rest.strip_prefix(b"W/").or_else(|| rest.strip_prefix(b"w/")) {
                rest = after;
            }
            let quoted = rest.strip_prefix(b"\"");
            let tag;
            (tag, rest) = match quoted {
                // A quoted tag ends at its quote, and may have commas in it.
                Some(quoted) => split(quoted, |b| *b == b'"'),
                None => split(rest, |b| matches!(b, b',' | b' ' | b'\t' | b'"')),
            };
            self.add(tag, quoted.is_some());
        }
    }

    fn add(&mut self, tag: &[u8], quoted: bool) {
        let Ok(tag) = std::str::from_utf8(tag) else { return };
        // In quotes it is a tag like any other.
        if tag == "*" && !quoted {
            self.any = true;
        } else if let Ok(md5) = tag.parse() {
            self.md5.insert(md5);
        } else if !tag.is_empty() {
            self.other.insert(tag.to_owned());
        }
    }
}

/// What comes before the first byte that `ends`, and what after it; that byte is gone.
fn split(bytes: &[u8], ends: impl Fn(&u8) -> bool) -> (&[u8], &[u8]) {
    match bytes.iter().position(ends) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[]),
    }
}

/// Whether `If-Range: value` lets a range of the thing with this (strong) tag be sent. A date never does: the times of
/// files are not told here.
#[must_use]
pub fn if_range(value: &str, tag: &str) -> bool {
    value.trim().strip_prefix('"').and_then(|v| v.strip_suffix('"')) == Some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "900150983cd24fb0d6963f7d28e17f72";
    const B: &str = "d41d8cd98f00b204e9800998ecf8427e";

    fn tags(text: &str) -> Etags {
        Etags::parse([text.as_bytes()])
    }

    #[test]
    fn every_way_to_write_them_is_the_same() {
        let want = tags(&format!("\"{A}\", \"{B}\""));
        assert_eq!(want.md5.len(), 2);
        for text in [
            format!("{A},{B}"),
            format!("{B} , {A},"),
            format!(",, W/\"{A}\",W/{B}\t"),
            format!("{A},{A},\"{B}\",{}", A.to_uppercase()),
            format!("\"{A}\"\"{B}\""),
            format!("w/\"{B}\" {A}"),
            format!("{A},\"{B}"),
        ] {
            assert_eq!(tags(&text), want, "{text}");
        }
        assert_eq!(Etags::parse([A.as_bytes(), B.as_bytes()]), want, "two headers");
    }

    #[test]
    fn stars_others_and_nothing() {
        assert!(tags("*").any && tags(" * ").any && tags(&format!("{A}, *")).any);
        assert!(tags("*").has(None) && tags("*").has_tag("x"));
        assert!(!tags("\"*\"").any && tags("\"*\"").has_tag("*"));
        assert!(tags("").is_empty() && tags(" ,, ").is_empty());
        let other = tags("\"b-1,2\", W/\"x\"");
        assert!(other.has_tag("b-1,2") && other.has_tag("x") && !other.has_tag("b-1"));
        assert!(!other.has(Some(&A.parse().unwrap())) && !tags(A).has(None));
    }

    #[test]
    fn any_bytes_are_read_and_their_number_is_bounded() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..3000 {
            let bytes: Vec<u8> =
                (0..rng.usize(..60)).map(|_| *rng.choice(b"W/\"*, \t0aF\xff").unwrap()).collect();
            let _ = Etags::parse([bytes.as_slice()]);
        }
        let many: String = (0..5000).map(|n| format!("{n:032x},")).collect();
        assert_eq!(tags(&many).md5.len(), TAGS_MAX);
        let headers = (0..TAGS_MAX + 50).map(|n| format!("t{n}")).collect::<Vec<_>>();
        assert_eq!(Etags::parse(headers.iter().map(String::as_bytes)).other.len(), TAGS_MAX);
    }

    #[test]
    fn a_range_needs_the_same_strong_tag() {
        assert!(if_range("\"x\"", "x") && if_range(" \"x\" ", "x"));
        for no in ["x", "W/\"x\"", "\"y\"", "Sun, 06 Nov 1994 08:49:37 GMT", "", "\""] {
            assert!(!if_range(no, "x"), "{no}");
        }
    }
}

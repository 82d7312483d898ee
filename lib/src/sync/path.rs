//! A file's place in the synced tree, as it travels: relative, UTF-8, and nothing that could leave the root.
//!
//! Invariant: whoever holds a [`RelPath`] need not look at the text again. Links on the way are another matter:
//! [`crate::beneath`] looks after those.

use std::fmt;
use std::ops::Deref;

/// The folder under the root that belongs to `sideloadd`; no synced path begins with it.
pub const RESERVED: &str = ".sideloadd";

/// Longest path, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;

/// Longest component, in bytes: what Linux file systems take.
pub const NAME_BYTES_MAX: usize = 255;

/// A checked relative path with `/` between its components.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelPath(String);

/// Why a text is no [`RelPath`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("path {path:?} is refused: {why}")]
pub struct Refusal {
    /// The text, cut to a readable length.
    pub path: String,
    /// Why.
    pub why: &'static str,
}

impl RelPath {
    /// Checks the text.
    ///
    /// # Errors
    /// [`Refusal`] says what is wrong with it.
    pub fn new(text: &str) -> Result<RelPath, Refusal> {
        match fault(text) {
            None => Ok(RelPath(text.to_owned())),
            Some(why) => Err(Refusal { path: text.chars().take(200).collect(), why }),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folders above it, outermost first, without the root: `a`, `a/b` for `a/b/c`.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(at, _)| self.0.get(..at).unwrap_or_default())
    }
}

fn fault(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return Some("it is empty");
    }
    if text.len() > PATH_BYTES_MAX {
        return Some("it is longer than 1024 bytes");
    }
    if text.starts_with('/') {
        return Some("it is absolute; paths are relative to the application's folder");
    }
    if text.contains('\\') {
        return Some("it contains a backslash");
    }
    if text.chars().any(char::is_control) {
        return Some("it contains a control character");
    }
    for name in text.split('/') {
        match name {
            "" => return Some("it has an empty component (a double or trailing slash)"),
            "." => return Some("it has a component \".\""),
            ".." => return Some("it has a component \"..\", which could leave the application's folder"),
            _ if name.len() > NAME_BYTES_MAX => return Some("a component is longer than 255 bytes"),
            _ => {}
        }
    }
    (text.split('/').next() == Some(RESERVED)).then_some(".sideloadd belongs to sideloadd")
}

impl Deref for RelPath {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<std::path::Path> for RelPath {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

impl std::borrow::Borrow<str> for RelPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_leave_the_root_is_refused_and_says_why() {
        for (text, why) in [
            ("", "empty"),
            ("/etc/passwd", "absolute"),
            ("..", ".."),
            ("a/../b", ".."),
            ("a/..", ".."),
            ("./a", "\".\""),
            ("a//b", "double"),
            ("a/", "trailing"),
            ("a\\b", "backslash"),
            ("a\0b", "control"),
            ("a\nb", "control"),
            (".sideloadd", "belongs"),
            (".sideloadd/lock", "belongs"),
        ] {
            let error = RelPath::new(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
        assert!(RelPath::new(&"a".repeat(256)).is_err());
        assert!(RelPath::new(&"a/".repeat(600)).is_err());
    }

    #[test]
    fn ordinary_names_pass() {
        for text in ["a", ".hidden", "...", "a/b c/ü.py", "a/.sideloadd", "..a", "a..", &"n".repeat(255)] {
            assert_eq!(&*RelPath::new(text).unwrap(), text);
        }
        let path = RelPath::new("a/b/c").unwrap();
        assert_eq!(path.parents().collect::<Vec<_>>(), ["a", "a/b"]);
    }
}

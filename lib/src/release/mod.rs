//! What a package server and a device agree on: who made a release, what it is, for whom, and how it is told.
//!
//! * [`Statement`] is what the publisher says of one release, signed as the exact bytes that were published.
//! * [`PublicKeys`] verifies a statement before anybody parses it; minisign's keys and signatures.
//! * [`Details`] is the JSON of `package_details.json` and of a metadata answer.
//! * [`rollout::includes`] decides on the device whether a staged release is for it.
//! * [`Digests`] computes the two sums of a file in one pass: SHA-256 identifies content, MD5 is only the cache hint
//!   (ETag) of the original protocol.
//!
//! Invariants: a name that comes from a statement or a details document was checked ([`valid_name`]) before it can become
//! part of a path; nothing here trusts a number that it did not bound. It does no I/O and reads no clock.

mod details;
mod digest;
pub mod rollout;
mod signature;
mod statement;

pub use details::{Details, Entry, OFFERS_MAX, Offer};
pub use digest::{Digest, Digests, Md5, Sha256, Sums};
pub use signature::{KeyError, PublicKeys, SignatureError};
pub use statement::{STATEMENT_BYTES_MAX, Statement, StatementError, Timestamp};

/// Longest name of an app, version, environment or attribute, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Whether `text` can be the name of an app, an environment or an attribute: 1 to [`NAME_BYTES_MAX`] letters, digits,
/// `.`, `_`, `-`, not beginning with a dot or a dash. It can stand in paths, URLs and tar entries as it is.
#[must_use]
pub fn valid_name(text: &str) -> bool {
    plain(text, b"._-")
}

/// Whether `text` can be a version: as [`valid_name`], and `+`, `~`, `:` within.
#[must_use]
pub fn valid_version(text: &str) -> bool {
    plain(text, b"._-+~:")
}

fn plain(text: &str, more: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_stand_in_paths() {
        for name in ["os_armv8", "videoStreamer", "1", "a.b-c", &"x".repeat(64)] {
            assert!(valid_name(name), "{name}");
        }
        for name in ["", ".", "..", ".a", "-a", "a/b", "a b", "a\0", "ü", "a+b", &"x".repeat(65)] {
            assert!(!valid_name(name), "{name}");
        }
        assert!(valid_version("1.0.0-rc.1+build:5~x"));
        assert!(!valid_version("1/0") && !valid_version("..") && !valid_version(""));
    }
}

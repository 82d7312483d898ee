//! The sums of a file's content, both in one pass.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// A digest of `N` bytes; lower-case hexadecimal as text, either case when read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest<const N: usize>(pub [u8; N]);

/// Identifies content.
pub type Sha256 = Digest<32>;
/// The cache hint of the original protocol; no proof of anything.
pub type Md5 = Digest<16>;

/// The text is not `2 * N` hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {0} hexadecimal digits")]
pub struct NotHex(usize);

impl<const N: usize> FromStr for Digest<N> {
    type Err = NotHex;

    fn from_str(text: &str) -> Result<Self, NotHex> {
        crate::text::from_hex(text).map(Self).ok_or(NotHex(2 * N))
    }
}

impl<const N: usize> fmt::Display for Digest<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<const N: usize> fmt::Debug for Digest<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<const N: usize> Serialize for Digest<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Digest<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a file's content came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sums {
    /// Identifies it.
    pub sha256: Sha256,
    /// Its hint for caches.
    pub md5: Md5,
    /// Its length in bytes.
    pub size: u64,
}

/// Both sums of what is written into it.
#[derive(Clone)]
pub struct Digests {
    sha256: sha2::Sha256,
    md5: md5::Context,
    size: u64,
}

impl Default for Digests {
    fn default() -> Self {
        Self { sha256: sha2::Sha256::new(), md5: md5::Context::new(), size: 0 }
    }
}

impl fmt::Debug for Digests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digests of {} bytes", self.size)
    }
}

impl Digests {
    /// More of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.md5.consume(bytes);
        self.size += bytes.len() as u64;
    }

    /// Bytes so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The sums of all of it.
    #[must_use]
    pub fn finish(self) -> Sums {
        let sha256 = Digest(self.sha256.finalize().into());
        Sums { sha256, md5: Digest(self.md5.finalize().0), size: self.size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sums_in_one_pass() {
        let mut digests = Digests::default();
        digests.update(b"a");
        digests.update(b"bc");
        let sums = digests.finish();
        assert_eq!(sums.size, 3);
        assert_eq!(sums.md5.to_string(), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(
            sums.sha256.to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn text_is_read_strictly() {
        let text = "900150983CD24FB0d6963f7d28e17f72";
        assert_eq!(text.parse::<Md5>().unwrap().to_string(), text.to_lowercase());
        for bad in [
            "",
            "9",
            "900150983cd24fb0d6963f7d28e17f7",
            "900150983cd24fb0d6963f7d28e17f7g",
            "+00150983cd24fb0d6963f7d28e17f72",
        ] {
            assert!(bad.parse::<Md5>().is_err(), "{bad}");
        }
    }
}

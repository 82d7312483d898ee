//! Where objects go. A store is shared by the worker threads; its calls block.
//!
//! The promise of every store: after [`Outcome::Stored`] the object is durable under its key with exactly this content;
//! an object that was there before with other content is never replaced.

pub mod answer;
pub mod dir;
pub mod s3;
#[cfg(test)]
pub mod script;

use crate::core::Outcome;
use crate::meta::Headers;

/// What is to be stored.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    pub key: &'a str,
    pub body: &'a [u8],
    /// Hexadecimal.
    pub sha256: &'a str,
    pub content_type: &'a str,
    /// For stores that have headers.
    pub headers: &'a Headers,
    /// Stored as `<key>.json` before the object itself, if there is one.
    pub sidecar: Option<&'a [u8]>,
}

/// The name of an object's sidecar.
pub fn sidecar_key(key: &str) -> String {
    format!("{key}.json")
}

/// A target.
#[derive(Debug)]
pub enum Store {
    Dir(dir::Dir),
    S3(Box<s3::S3>),
}

impl Store {
    /// Stores the object. Blocks.
    pub fn put(&self, object: &Object<'_>) -> Outcome {
        match self {
            Self::Dir(dir) => dir.put(object),
            Self::S3(s3) => s3.put(object),
        }
    }

    /// For messages and `/status`.
    pub fn name(&self) -> String {
        match self {
            Self::Dir(dir) => format!("dir:{}", dir.root().display()),
            Self::S3(s3) => s3.name(),
        }
    }
}

//! From a durable queue to objects in S3 or a folder, whatever the target does meanwhile.
//!
//! - [`Core`] decides which record is stored when, what an outcome means for it, and when everything has to wait;
//! - [`Pool`] has the threads that do what blocks;
//! - [`Store`] is where objects go. It is shared by the threads; its calls block.
//!
//! What makes a record an object (its key, type, headers) is the program's: it gives the pool a function that builds an
//! [`Object`] and calls [`Store::put`].
//!
//! The promise of every store: after [`Outcome::Stored`] the object is durable under its key with exactly this content;
//! an object that was there before with other content is never replaced, unless the target was asked for that.

pub mod answer;
mod core;
pub mod dir;
pub mod place;
pub mod s3;
#[cfg(test)]
mod script;
mod upload;

pub use core::{Action, Core, Counts, Outcome, Policy};
pub use upload::{Done, Pool};

/// The longest key, in bytes (S3's own bound).
pub const KEY_BYTES_MAX: usize = 1024;

/// What is to be stored.
#[derive(Clone, Copy, Debug)]
pub struct Object<'a> {
    /// Where: see [`check_key`].
    pub key: &'a str,
    /// What.
    pub body: &'a [u8],
    /// Of the body, hexadecimal.
    pub sha256: &'a str,
    /// Of the body.
    pub content_type: &'a str,
    /// For stores that have headers: names in lower case with `x-amz-meta-`, values in printable ASCII.
    pub headers: &'a [(String, String)],
    /// Stored as `<key>.json` before the object itself, if there is one.
    pub sidecar: Option<&'a [u8]>,
}

/// The name of an object's sidecar.
#[must_use]
pub fn sidecar_key(key: &str) -> String {
    format!("{key}.json")
}

/// Whether `key` can be an object's key: 1 to [`KEY_BYTES_MAX`] bytes, no empty segment, no `.` or `..`, no control
/// character.
///
/// # Errors
/// In words: what is wrong with it.
pub fn check_key(key: &str) -> Result<(), String> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(format!("the key has {} bytes; 1 to {KEY_BYTES_MAX} are possible", key.len()));
    }
    if key.chars().any(char::is_control) {
        return Err(format!("the key {key:?} has a control character"));
    }
    if key.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(format!("the key {key:?} has an empty segment, or one that is . or .."));
    }
    Ok(())
}

/// A target.
#[derive(Debug)]
pub enum Store {
    /// A folder.
    Dir(dir::Dir),
    /// A bucket.
    S3(Box<s3::S3>),
}

impl Store {
    /// Stores the object. Blocks.
    #[must_use]
    pub fn put(&self, object: &Object<'_>) -> Outcome {
        match self {
            Self::Dir(dir) => dir.put(object),
            Self::S3(s3) => s3.put(object),
        }
    }

    /// For messages and `/status`.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Dir(dir) => format!("dir:{}", dir.root().display()),
            Self::S3(s3) => s3.name(),
        }
    }
}

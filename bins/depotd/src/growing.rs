//! A file that is being made by one thread while others are sent what is there of it already.
//!
//! Invariant: bytes below [`Growing::written`] are in the file and never change; the state leaves `Growing` once.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Why there is no file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failed {
    /// The disk is full, or nearly.
    Full,
    /// It is larger than all of the cache.
    Large,
    /// Content is not there, or is not what the catalog says.
    Content,
    /// The disk or the store does not do it at the moment.
    Broken,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Growing {
    file: OnceLock<Arc<File>>,
    written: AtomicU64,
    end: OnceLock<Result<u64, Failed>>,
    /// The length that it will have, where that is known.
    pub size: Option<u64>,
}

impl Growing {
    /// Nothing yet, of that size in the end.
    #[must_use]
    pub fn new(size: Option<u64>) -> Self {
        Self { size, ..Self::default() }
    }

    /// Where it is, once there is a file.
    pub fn file(&self) -> Option<&Arc<File>> {
        self.file.get()
    }

    /// Bytes that can be read.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// How it ended, if it has: its length.
    pub fn end(&self) -> Option<&Result<u64, Failed>> {
        self.end.get()
    }

    /// The maker has a file.
    pub fn begin(&self, file: Arc<File>) {
        let _ = self.file.set(file);
    }

    /// The maker has written so many bytes.
    pub fn wrote(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Release);
    }

    /// The maker is done. Only the first word counts.
    pub fn finish(&self, end: Result<u64, Failed>) {
        let _ = self.end.set(end);
    }
}

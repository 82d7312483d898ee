//! The store: the content of releases, each under its SHA-256.
//!
//! Owns: what every store promises ([`BlobStore`]). Invariants: content is durable, complete and verified before it has
//! its name, and only then may a catalog name it; what is there under a name is never changed, only put there again or
//! removed.

pub mod dir;
pub mod s3;

use std::fs::File;
use std::io::Read;

use edge::release::{Sha256, Sums, Timestamp};

use crate::catalog::Release;

/// Content that is read.
pub struct Blob {
    /// The length of the whole content, in bytes.
    pub size: u64,
    /// What was asked for of it.
    pub reader: Box<dyn Read + Send>,
    /// The file that `reader` reads, where there is one, positioned as `reader` is: for `sendfile`.
    pub file: Option<File>,
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blob of {} bytes", self.size)
    }
}

/// Bytes of content from `start` on: `len` of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The first byte.
    pub start: u64,
    /// How many.
    pub len: u64,
}

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Which content.
    pub sha256: Sha256,
    /// Its length in bytes.
    pub size: u64,
    /// Since when.
    pub since: Timestamp,
}

/// What is left of an attempt that never came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its name in the store.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
}

/// Why a store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there.
    #[error("the store has no content {what} ({at}): publish it again, or correct the store's configuration")]
    Missing {
        /// Which.
        what: String,
        /// Where it was looked for.
        at: String,
    },
    /// A file of the store.
    #[error(transparent)]
    File(#[from] edge::fs::Error),
    /// The file that was to be put into the store.
    #[error("cannot read the file to publish")]
    Source(#[source] std::io::Error),
    /// More than the store takes.
    #[error(
        "the file to publish has {size}, more than the 5 GiB that one upload to {store} may have: publish it in parts, or \
         into a store of the kind dir:"
    )]
    Large {
        /// What it has.
        size: String,
        /// What the store is.
        store: String,
    },
    /// It was changed while it was read.
    #[error("the file to publish was changed while it was read: wait until whatever writes it has ended")]
    Torn,
    /// There is not enough space.
    #[error(
        "{free} free in {at}, {needed} are needed: free some space ('depotd gc' removes what no release names)"
    )]
    Full {
        /// As people read it.
        free: String,
        /// As people read it.
        needed: String,
        /// Where.
        at: String,
    },
    /// A release whose content is elsewhere.
    #[error("{url} is not in the store {store}")]
    Elsewhere {
        /// Where it is.
        url: String,
        /// What the store is.
        store: String,
    },
    /// The store's service did not do it, or can't be reached.
    #[error("the store {store}: {why}")]
    Service {
        /// Which.
        store: String,
        /// Why not.
        why: String,
    },
}

/// A store. Its calls block.
pub trait BlobStore: Send {
    /// The content, or a part of it.
    ///
    /// # Errors
    /// [`Error::Missing`], or what reading failed with.
    fn get(&mut self, sha256: &Sha256, span: Option<Span>) -> Result<Blob, Error>;

    /// The content of a release, or a part of it; also of one whose SHA-256 nobody knows (a row of the original's
    /// table), by its URL.
    ///
    /// # Errors
    /// As [`BlobStore::get`]; [`Error::Elsewhere`] for a URL that is not in this store.
    fn open(&mut self, release: &Release, span: Option<Span>) -> Result<Blob, Error> {
        match release.sums {
            Some(sums) => self.get(&sums.sha256, span),
            None => Err(Error::Elsewhere { url: release.url.clone(), store: self.name() }),
        }
    }

    /// Puts the whole of `source` into the store. It is durable and verified when this returns; what was there under the
    /// same name is replaced by it.
    ///
    /// # Errors
    /// [`Error`]: then nothing has the name that had not before.
    fn put(&mut self, source: &mut File) -> Result<Sums, Error>;

    /// Everything in it.
    ///
    /// # Errors
    /// [`Error`]: it can't be listed.
    fn list(&mut self) -> Result<Vec<Held>, Error>;

    /// What attempts left that never came to their end.
    ///
    /// # Errors
    /// [`Error`]: it can't be listed.
    fn leftovers(&mut self) -> Result<Vec<Leftover>, Error> {
        Ok(Vec::new())
    }

    /// Removes what [`BlobStore::leftovers`] found.
    ///
    /// # Errors
    /// [`Error`]: it can't be removed.
    fn sweep(&mut self, _leftover: &Leftover) -> Result<(), Error> {
        Ok(())
    }

    /// Removes content; no error if it is not there.
    ///
    /// # Errors
    /// [`Error`]: it can't be removed.
    fn remove(&mut self, sha256: &Sha256) -> Result<(), Error>;

    /// Where the content is, as releases tell it.
    fn url_of(&self, sha256: &Sha256) -> String;

    /// What the store is, for messages.
    fn name(&self) -> String;

    /// Keeps others from removing content (`alone` = false) or from publishing (`alone` = true) until the process ends.
    /// Says whether that is possible here; where it is not, only content that has been there for long may be removed.
    ///
    /// # Errors
    /// [`Error`]: the lock can't be had.
    fn lock(&mut self, alone: bool) -> Result<bool, Error>;
}

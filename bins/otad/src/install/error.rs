//! Why an installation stopped.

use std::io;
use std::path::{Path, PathBuf};

use edge::beneath;
use edge::release::Sha256;
use edge::text;

/// Why something of the store failed. Whatever it is, what ran before still does.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted, as an infinitive.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The system refused.
    #[error(transparent)]
    File(#[from] edge::fs::Error),
    /// The system refused, or a path left its folder.
    #[error(transparent)]
    Path(#[from] beneath::Error),
    /// Another process has the store open.
    #[error("{} is in use by another otad; stop it first", .0.display())]
    Locked(PathBuf),
    /// There is no room: nothing was changed.
    #[error(
        "not enough space on the disk: {} more are needed and {} are to stay free (free-bytes-min), but only {} are free",
        text::bytes(*need), text::bytes(*keep), text::bytes(*free)
    )]
    Space {
        /// Bytes that are still to be written, as far as is known.
        need: u64,
        /// Bytes that are to stay free.
        keep: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// What came is not what was announced.
    #[error("the content is not the one announced: {what}; expected {expected}, got {got}")]
    Content {
        /// What differs.
        what: &'static str,
        /// As announced.
        expected: String,
        /// As it came.
        got: String,
    },
    /// An archive holds what must not be unpacked, or can't be read.
    #[error("the archive is refused: {entry:?}: {why}")]
    Archive {
        /// The entry, or the archive itself.
        entry: String,
        /// What is wrong with it.
        why: String,
    },
    /// Content that a manifest names is not here.
    #[error("{app}: the content {sha256} is not here: it has to be fetched first")]
    Lacking {
        /// The app.
        app: String,
        /// Its content.
        sha256: Sha256,
    },
    /// Somebody wants otad to end.
    #[error("otad is being stopped")]
    Stopped,
    /// It can't be done now, or must not be done at all.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// Wraps an [`io::Error`] with what was attempted on which path.
    pub(super) fn io<E: Into<io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
        move |source| Error::Io { action, path: path.to_owned(), source: source.into() }
    }

    pub(super) fn refused(why: impl Into<String>) -> Error {
        Error::Refused(why.into())
    }

    /// The error number, if the system gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Io { source, .. } => source.raw_os_error(),
            Error::File(error) => error.source.raw_os_error(),
            Error::Path(error) => error.errno(),
            _ => None,
        }
    }

    /// The disk is full (or a quota is): trying again later may help.
    #[must_use]
    pub fn is_space(&self) -> bool {
        let full = [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT];
        matches!(self, Error::Space { .. })
            || self.errno().is_some_and(|n| full.iter().any(|errno| errno.raw_os_error() == n))
    }

    /// The package is to blame, not this device: the same one will fail again.
    #[must_use]
    pub fn is_content(&self) -> bool {
        matches!(self, Error::Content { .. } | Error::Archive { .. })
    }
}

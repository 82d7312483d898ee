//! Why the store refuses or fails, and which HTTP status that is.

use std::io;
use std::path::PathBuf;

use edge::beneath;
use edge::sync::{RelPath, manifest};

/// What went wrong, in words for the person at the other end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is refused; nothing changed.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Cause and fix.
        message: String,
    },
    /// The sync that this belongs to is not under way any more: another one took its place.
    #[error("this sync was silent for too long and gave way to another; sync again")]
    Gone,
    /// More than half of the tree would be deleted.
    #[error(
        "this sync would delete {deletes} of {of} files; is the folder the right one? If so, sync with --force"
    )]
    ManyDeletes {
        /// Files that would go.
        deletes: u32,
        /// Files there are.
        of: u32,
    },
    /// A path leaves the root, or the system refused.
    #[error(transparent)]
    Path(#[from] beneath::Error),
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
    /// The manifest is refused.
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
}

impl Error {
    pub(super) fn refused(status: u16, message: impl Into<String>) -> Error {
        Error::Refused { status, message: message.into() }
    }

    pub(super) fn io(action: &'static str, path: PathBuf, source: io::Error) -> Error {
        Error::Io { action, path, source }
    }

    pub(super) fn not_found(path: &RelPath) -> Error {
        Error::refused(404, format!("there is no file {path} here; list-files shows what there is"))
    }

    /// The HTTP status to answer with.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Error::Refused { status, .. } => *status,
            Error::ManyDeletes { .. } | Error::Gone => 409,
            Error::Manifest(manifest::Error::TooLarge(_)) => 413,
            Error::Manifest(_) | Error::Path(beneath::Error::Escapes { .. }) => 400,
            Error::Path(beneath::Error::Io { source, .. }) | Error::Io { source, .. } => {
                match source.kind() {
                    io::ErrorKind::NotFound => 404,
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => 507,
                    io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => 409,
                    io::ErrorKind::InvalidFilename => 400,
                    _ => 500,
                }
            }
        }
    }
}

//! Why a sync came to nothing, and what to do about it.

use std::path::PathBuf;

use crate::{client, scan};

/// See the module's text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source folder.
    #[error(transparent)]
    Scan(#[from] scan::Error),
    /// The connection, or the device.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// It would delete more than half of what is there.
    #[error("this would delete {deletes} of the {of} files on the device")]
    Deletes {
        /// Files that would go.
        deletes: u64,
        /// Files of the last sync.
        of: u64,
    },
    /// Somebody else is syncing.
    #[error("{message}")]
    Busy {
        /// What the device says.
        message: String,
    },
    /// Something on the device is in the way, or was changed there meanwhile; waiting does not help.
    #[error("{message}")]
    InTheWay {
        /// What the device says, with what to do.
        message: String,
    },
    /// A file does not hold what the scan found, twice in a row.
    #[error("{} changes while it is sent", path.display())]
    Changed {
        /// The file, or the folder when the device can't tell which.
        path: PathBuf,
    },
    /// The check before the commit.
    #[error("nothing was changed on the device")]
    Gate(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer to the commit: whether it was done is not known.
    #[error("the device did not confirm the commit")]
    Commit(#[source] client::Error),
}

impl Error {
    /// What a person can do about it.
    #[must_use]
    pub fn fix(&self) -> Option<String> {
        match self {
            Error::Scan(error) => error.fix(),
            Error::Client(client::Error::Refused { status: 404 | 405, .. }) => Some(
                "the server there does not know this sync: is it sideloadd? (`sideload send-file` works with the \
                 original, too)"
                    .into(),
            ),
            Error::Client(error) => error.fix(),
            Error::Deletes { .. } => {
                Some("is --src-top the right folder? If it is, say so: --force".into())
            }
            Error::Busy { .. } => Some("wait until the other sync is over, or end it".into()),
            Error::Changed { .. } => Some(format!(
                "something writes it all the time: if the application does not need it, name it in {}",
                scan::IGNORE_FILE
            )),
            // The device says what to do.
            Error::Gate(_) | Error::InTheWay { .. } => None,
            Error::Commit(_) => {
                Some("sync again: either it says that nothing changed, or it does the rest".into())
            }
        }
    }

    /// The exit code of the program.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Scan(error) => error.exit_code(),
            Error::Client(error) | Error::Commit(error) => error.exit_code(),
            Error::Deletes { .. } | Error::InTheWay { .. } => 1,
            Error::Busy { .. } => 75,
            Error::Changed { .. } => 74,
            Error::Gate(_) => 65,
        }
    }

    /// Whether the device may still wait for the rest.
    pub(super) fn leaves_open(&self) -> bool {
        !matches!(self, Error::Deletes { .. } | Error::Busy { .. } | Error::Gate(_) | Error::Scan(_))
    }
}

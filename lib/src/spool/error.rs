//! Why a spool could not be opened, written or read.

use std::io;
use std::path::PathBuf;

/// What went wrong. Every message says what was attempted on which file; the cause is the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value of the configuration is out of range (a daemon checks before, with the line of its TOML).
    #[error("spool: {key}: {text}")]
    Config {
        /// The key.
        key: &'static str,
        /// Expected and found.
        text: String,
    },
    /// Another process holds the lock.
    #[error(
        "the spool {} is in use by another process (it holds the lock file `lock`); stop that one or give this one a folder of its own",
        dir.display()
    )]
    InUse {
        /// The folder.
        dir: PathBuf,
    },
    /// A file was written by a later version of this program.
    #[error(
        "{}: written in spool format {found}, this program reads up to {known}; install the newer version again, or move the folder away to start empty",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The version it says.
        found: u32,
        /// The newest one known here.
        known: u32,
    },
    /// An operation on a file failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The verb: "open", "write", ...
        what: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The disk did not take what was written. After this nothing is known about the unsynced bytes, so nothing more
    /// is acknowledged and the file is not synced again: the process must end (EX_IOERR) and start anew, which
    /// re-reads what is really there.
    #[error("the spool {} is failed: {what}; nothing since the last commit is acknowledged, restart to re-read what is on disk", dir.display())]
    Failed {
        /// The folder.
        dir: PathBuf,
        /// What failed first.
        what: String,
    },
    /// A dead letter can't be written. The record stays in flight.
    #[error("cannot write a dead letter into {} (the record stays in the queue)", path.display())]
    DeadLetter {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A message can't be represented (a string longer than 65535 bytes).
    #[error("cannot store the message: {0}")]
    Message(&'static str),
    /// A sequence number that was not handed out, or is acknowledged already.
    #[error("record {seq} is not in flight")]
    NotInFlight {
        /// The number.
        seq: u64,
    },
}

impl Error {
    /// Whether the spool can't be used any more in this process (end with EX_IOERR).
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Error::NotInFlight { .. } | Error::Message(_) | Error::DeadLetter { .. })
    }
}

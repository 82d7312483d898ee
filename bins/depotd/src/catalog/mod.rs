//! The catalog: which releases there are, for whom, and in which state. It names content by its SHA-256; the content
//! itself is in the [store](crate::store).
//!
//! Owns: [`Release`], and what every catalog promises ([`Catalog`]). Invariants: (app, env, epoch) is there once, however
//! many publish at the same time; a row is never deleted, so that an epoch is never given twice; names and values that
//! come from outside are bound parameters, never part of a query's text.

pub mod config;
pub mod dynamo;
mod row;
pub mod sqlite;

use std::fmt;
use std::str::FromStr;

use edge::release::{Md5, Sha256, Sums, Timestamp};

/// What becomes of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Its statement waits for a signature.
    Pending,
    /// Served.
    Live,
    /// Not served until it is resumed.
    Paused,
    /// Never served again; its content may be removed.
    Retired,
}

impl State {
    /// As it stands in catalogs and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Live => "live",
            Self::Paused => "paused",
            Self::Retired => "retired",
        }
    }

    /// Whether the content must stay.
    #[must_use]
    pub fn needs_content(self) -> bool {
        self != Self::Retired
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Pending, Self::Live, Self::Paused, Self::Retired];
        all.into_iter()
            .find(|state| state.name() == text)
            .ok_or_else(|| format!("no state {text:?} is known"))
    }
}

/// One release of an app in an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// As its publisher spells it; upper and lower case are the same app.
    pub app: String,
    /// For people.
    pub version: String,
    /// In lower case.
    pub env: String,
    /// Counts the releases of the app in the environment, from 1. 0: a row of the original's table, older than all.
    pub epoch: u64,
    /// The cache hint; a row of the original's table may have it where it has no [`Release::sums`].
    pub md5: Option<Md5>,
    /// What the content is; `None` for a row of the original's table.
    pub sums: Option<Sums>,
    /// Where the content is, for old clients and people.
    pub url: String,
    /// The device attributes that select it, in lower case.
    pub attrs: Vec<String>,
    /// Percent of the devices it is for.
    pub rollout: u8,
    /// A device that has the app must have passed this epoch.
    pub from_epoch: u64,
    /// Later releases ask that this one was passed.
    pub floor: bool,
    /// What becomes of it.
    pub state: State,
    /// The bytes that were signed, or are to be.
    pub statement: Option<String>,
    /// Their signature.
    pub signature: Option<String>,
    /// When it was published.
    pub published: Timestamp,
}

impl Release {
    /// The one name that its file has in a bundle: `<app>_<version>`.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}_{}", self.app, self.version)
    }

    /// `scoreboard 1.0.0 (prod, epoch 3)`, for messages.
    #[must_use]
    pub fn title(&self) -> String {
        format!("{} {} ({}, epoch {})", self.app, self.version, self.env, self.epoch)
    }
}

/// Under which name an app is looked up.
#[must_use]
pub fn key(app: &str) -> String {
    app.to_ascii_lowercase()
}

/// Why a catalog did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody has this epoch.
    #[error("epoch {epoch} of {app} in {env} is taken")]
    Taken {
        /// The app.
        app: String,
        /// The environment.
        env: String,
        /// The epoch.
        epoch: u64,
    },
    /// It is not what it was when it was looked at.
    #[error("{0} was changed by somebody else meanwhile: look at it again, then repeat the command")]
    Changed(String),
    /// The file can't be opened.
    #[error(transparent)]
    Open(#[from] edge::sqlite::Error),
    /// A query failed.
    #[error("cannot {what} in the catalog {path}")]
    Sqlite {
        /// What was attempted.
        what: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// Why it failed.
        source: rusqlite::Error,
    },
    /// It was written by a newer program.
    #[error(
        "the catalog {path} has the form {found}, this program knows {known}: use the newer program on it"
    )]
    Newer {
        /// The file.
        path: std::path::PathBuf,
        /// What it has.
        found: i64,
        /// What is known here.
        known: i64,
    },
    /// The catalog's service did not do it, or can't be reached.
    #[error("the catalog {table}: {why}")]
    Service {
        /// Which.
        table: String,
        /// Why not.
        why: String,
    },
    /// A row holds what no program of this kind wrote.
    #[error("the catalog's row {row} can't be read: {why}")]
    Row {
        /// Which.
        row: String,
        /// Why not.
        why: String,
    },
}

/// A catalog. Its calls block.
pub trait Catalog: Send {
    /// What a server needs of the app's live releases in `env`, the highest epoch first: those from the newest that is for
    /// everybody on, and below it those that must be passed through. Upper and lower case of `app` are the same.
    ///
    /// # Errors
    /// [`Error`]: the catalog can't be asked.
    fn live(&mut self, app: &str, env: &str) -> Result<Vec<Release>, Error>;

    /// The apps that have a live release in `env` with the attribute, in order of their names.
    ///
    /// # Errors
    /// As [`Catalog::live`].
    fn apps_with(&mut self, attr: &str, env: &str) -> Result<Vec<String>, Error>;

    /// A number that is another one after somebody else changed anything; `None` where there is no such thing, and
    /// answers can only be trusted for a time.
    ///
    /// # Errors
    /// As [`Catalog::live`].
    fn version(&mut self) -> Result<Option<u64>, Error>;

    /// The length in bytes of the content with this SHA-256, if a live or paused release has it; only such content is served.
    ///
    /// # Errors
    /// As [`Catalog::live`].
    fn content(&mut self, sha256: &Sha256) -> Result<Option<u64>, Error>;

    /// All releases of the app (or of all apps) in the environment (or in all), in order of app and environment, the
    /// highest epoch first.
    ///
    /// # Errors
    /// As [`Catalog::live`].
    fn list(&mut self, app: Option<&str>, env: Option<&str>) -> Result<Vec<Release>, Error>;

    /// Adds a release. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Taken`]: its (app, env, epoch) is there.
    fn insert(&mut self, release: &Release) -> Result<(), Error>;

    /// Puts `now` in the place of `was`, which has the same app, env and epoch. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Changed`]: the state or the statement is not that of `was` any more.
    fn replace(&mut self, was: &Release, now: &Release) -> Result<(), Error>;

    /// Looks for damage of the catalog itself; gives what it found.
    ///
    /// # Errors
    /// As [`Catalog::live`].
    fn damage(&mut self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }
}

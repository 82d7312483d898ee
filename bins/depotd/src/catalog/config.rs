//! The tables `[catalog]`, `[store]` and `[aws]` of `depotd.toml`, and what is opened by them.
//!
//! Owns: what is valid in them. Never: opens anything while it checks; the files that they name excepted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use edge::aws::credentials::Vars;
use edge::config::{self, Loaded};
use serde::{Deserialize, Serialize};

use super::sqlite::Sqlite;
use super::{Catalog, Error};
use crate::store::{self, BlobStore, dir::Dir};

/// `[catalog]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct CatalogTable {
    /// `sqlite:/path/of/the/file` or `dynamodb:table`.
    pub at: String,
    /// How long a command waits for another one that writes (SQLite).
    pub busy_timeout_ms: u64,
    /// The index over `deviceAttr` and `env` (DynamoDB); empty: the table is scanned for attributes.
    pub attr_index: String,
    /// Where DynamoDB is, if it is not Amazon's.
    pub endpoint: String,
}

/// `[store]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct StoreTable {
    /// `dir:/path` or `s3://bucket[/prefix]`.
    pub at: String,
    /// Where S3 is, if it is not Amazon's.
    pub endpoint: String,
    /// The bucket in the path instead of in the host's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
}

/// `[aws]`: for DynamoDB and S3.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct AwsTable {
    /// Such as `eu-west-1`; empty: what the environment or the profile says.
    pub region: String,
    /// The profile in the shared credentials files; empty: the usual chain.
    pub profile: String,
    /// Authorities to trust instead of the system's.
    pub ca_file: PathBuf,
    /// Longest time until a connection stands.
    pub connect_timeout_ms: u64,
    /// Longest silence of the service.
    pub idle_timeout_ms: u64,
}

impl Default for CatalogTable {
    fn default() -> Self {
        Self {
            at: "sqlite:/var/lib/edge/depotd/catalog.db".into(),
            busy_timeout_ms: 10_000,
            attr_index: String::new(),
            endpoint: String::new(),
        }
    }
}

impl Default for StoreTable {
    fn default() -> Self {
        Self { at: "dir:/var/lib/edge/depotd".into(), endpoint: String::new(), path_style: None }
    }
}

impl Default for AwsTable {
    fn default() -> Self {
        Self {
            region: String::new(),
            profile: String::new(),
            ca_file: PathBuf::new(),
            connect_timeout_ms: 5_000,
            idle_timeout_ms: 20_000,
        }
    }
}

/// Where the catalog is, checked.
#[derive(Debug, Clone)]
pub enum CatalogConfig {
    /// A file.
    Sqlite {
        /// Which.
        path: PathBuf,
        /// How long a writer is waited for.
        busy: Duration,
    },
}

/// Where the content is, checked.
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// A folder.
    Dir(PathBuf),
}

impl CatalogConfig {
    /// Checks `[catalog]` (with `[aws]`).
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn check<R>(
        loaded: &Loaded<R>,
        table: &CatalogTable,
        _aws: &AwsTable,
        _vars: &Vars,
    ) -> Result<Self, config::Error> {
        if !(1..=600_000).contains(&table.busy_timeout_ms) {
            return Err(loaded.problem("catalog.busy-timeout-ms", "expected an integer from 1 to 600000"));
        }
        match table.at.split_once(':') {
            Some(("sqlite", path)) if Path::new(path).is_absolute() => {
                Ok(Self::Sqlite { path: path.into(), busy: Duration::from_millis(table.busy_timeout_ms) })
            }
            _ => {
                let expected = format!("expected \"sqlite:/path/of/the/file\", found {:?}", table.at);
                Err(loaded.problem("catalog.at", &expected))
            }
        }
    }

    /// Opens the catalog. Each thread that needs one opens its own.
    ///
    /// # Errors
    /// [`Error`]: it can't be opened.
    pub fn open(&self) -> Result<Box<dyn Catalog>, Error> {
        match self {
            Self::Sqlite { path, busy } => Ok(Box::new(Sqlite::open(path, *busy)?)),
        }
    }

    /// The local folder that it is in, if it is in one.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Sqlite { path, .. } => path.parent(),
        }
    }
}

impl StoreConfig {
    /// Checks `[store]` (with `[aws]`).
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn check<R>(
        loaded: &Loaded<R>,
        table: &StoreTable,
        _aws: &AwsTable,
        _vars: &Vars,
    ) -> Result<Self, config::Error> {
        match table.at.split_once(':') {
            Some(("dir", path)) if Path::new(path).is_absolute() => Ok(Self::Dir(path.into())),
            _ => {
                let expected = format!("expected \"dir:/path\", found {:?}", table.at);
                Err(loaded.problem("store.at", &expected))
            }
        }
    }

    /// Opens the store. Each thread that needs one opens its own.
    ///
    /// # Errors
    /// [`store::Error`]: it can't be opened.
    pub fn open(&self) -> Result<Box<dyn BlobStore>, store::Error> {
        match self {
            Self::Dir(root) => Ok(Box::new(Dir::open(root)?)),
        }
    }

    /// The local folder that it is, if it is one.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Dir(root) => Some(root),
        }
    }
}

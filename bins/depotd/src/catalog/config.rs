//! The tables `[catalog]`, `[store]` and `[aws]` of `depotd.toml`, and what is opened by them.
//!
//! Owns: what is valid in them. Never: opens anything while it checks; the files that they name excepted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use edge::aws::credentials::{ChainConfig, Vars};
use edge::aws::s3::{self as address, Bucket};
use edge::config::{self, Loaded};
use serde::{Deserialize, Serialize};

use super::dynamo::Dynamo;
use super::sqlite::Sqlite;
use super::{Catalog, Error};
use crate::aws::AwsConfig;
use crate::store::{self, BlobStore, dir::Dir, s3::S3};

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
    /// A table of DynamoDB.
    Dynamo {
        /// Which.
        table: String,
        /// Its index over attributes.
        index: Option<String>,
        /// Origin and host.
        at: (String, String),
        /// How it is asked.
        aws: Box<AwsConfig>,
    },
}

/// Where the content is, checked.
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// A folder.
    Dir(PathBuf),
    /// A bucket.
    S3 {
        /// Which.
        bucket: Bucket,
        /// Empty, or ending in `/`.
        prefix: String,
        /// How it is asked.
        aws: Box<AwsConfig>,
    },
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Checks `[aws]`; only what uses it asks for it.
fn aws<R>(
    loaded: &Loaded<R>,
    table: &AwsTable,
    vars: &Vars,
    endpoint: &str,
) -> Result<AwsConfig, config::Error> {
    let profile = some(&table.profile);
    let region = some(&table.region).or_else(|| vars.region(profile.as_deref()));
    // Other servers mostly take any region; Amazon's are nowhere without one.
    let region = region.or_else(|| some(endpoint).map(|_| "us-east-1".to_owned()));
    let Some(region) = region else {
        let expected = "expected a region such as \"eu-west-1\" here, in AWS_REGION or in the profile";
        return Err(loaded.problem("aws.region", expected));
    };
    for (key, value) in
        [("connect-timeout-ms", table.connect_timeout_ms), ("idle-timeout-ms", table.idle_timeout_ms)]
    {
        if !(1..=600_000).contains(&value) {
            return Err(loaded.problem(&format!("aws.{key}"), "expected an integer from 1 to 600000"));
        }
    }
    let ca = (!table.ca_file.as_os_str().is_empty()).then(|| table.ca_file.clone());
    let files = edge::aws::tls::Files { ca: ca.clone(), cert: None, key: None };
    if ca.is_some() {
        edge::aws::tls::load(&files).map_err(|e| loaded.problem("aws.ca-file", &edge::log::chain(&e)))?;
    }
    Ok(AwsConfig {
        region,
        chain: ChainConfig { iot: None, profile, vars: vars.clone() },
        ca,
        connect_timeout: Duration::from_millis(table.connect_timeout_ms),
        idle_timeout: Duration::from_millis(table.idle_timeout_ms),
    })
}

/// Whether DynamoDB would take the name for a table or an index.
fn is_table(name: &str) -> bool {
    (3..=255).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

impl CatalogConfig {
    /// Checks `[catalog]` (with `[aws]`).
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn check<R>(
        loaded: &Loaded<R>,
        table: &CatalogTable,
        aws: &AwsTable,
        vars: &Vars,
    ) -> Result<Self, config::Error> {
        if !(1..=600_000).contains(&table.busy_timeout_ms) {
            return Err(loaded.problem("catalog.busy-timeout-ms", "expected an integer from 1 to 600000"));
        }
        match table.at.split_once(':') {
            Some(("sqlite", path)) if Path::new(path).is_absolute() => {
                Ok(Self::Sqlite { path: path.into(), busy: Duration::from_millis(table.busy_timeout_ms) })
            }
            Some(("dynamodb", name)) if is_table(name) => {
                let index = some(&table.attr_index);
                if index.as_ref().is_some_and(|index| !is_table(index)) {
                    let expected = "expected 3 to 255 letters, digits, '_', '-' or '.'";
                    return Err(loaded.problem("catalog.attr-index", expected));
                }
                let aws = self::aws(loaded, aws, vars, &table.endpoint)?;
                let at = address::service("dynamodb", &aws.region, some(&table.endpoint).as_deref());
                let at = at.map_err(|error| match error {
                    address::Error::Region(_) => loaded.problem("aws.region", &error.to_string()),
                    _ => loaded.problem("catalog.endpoint", &error.to_string()),
                })?;
                Ok(Self::Dynamo { table: name.to_owned(), index, at, aws: Box::new(aws) })
            }
            _ => {
                let forms = "\"sqlite:/path/of/the/file\" or \"dynamodb:table\"";
                Err(loaded.problem("catalog.at", &format!("expected {forms}, found {:?}", table.at)))
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
            Self::Dynamo { table, index, at, aws } => {
                Ok(Box::new(Dynamo::open(aws, at.clone(), table.clone(), index.clone())?))
            }
        }
    }

    /// The local folder that it is in, if it is in one.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Sqlite { path, .. } => path.parent(),
            Self::Dynamo { .. } => None,
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
        aws: &AwsTable,
        vars: &Vars,
    ) -> Result<Self, config::Error> {
        match table.at.split_once(':') {
            Some(("dir", path)) if Path::new(path).is_absolute() => Ok(Self::Dir(path.into())),
            Some(("s3", rest)) if rest.starts_with("//") => {
                let rest = &rest[2..];
                let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let prefix = prefix.trim_end_matches('/');
                if prefix.split('/').any(|part| matches!(part, "." | "..")) || prefix.contains("//") {
                    return Err(loaded.problem("store.at", "expected a prefix without '.', '..' and '//'"));
                }
                let aws = self::aws(loaded, aws, vars, &table.endpoint)?;
                let endpoint = some(&table.endpoint);
                let bucket = Bucket::new(name, &aws.region, endpoint.as_deref(), table.path_style);
                let bucket = bucket.map_err(|error| {
                    let key = match error {
                        address::Error::Name(_) => "store.at",
                        address::Error::Endpoint(_) => "store.endpoint",
                        address::Error::Region(_) => "aws.region",
                    };
                    loaded.problem(key, &error.to_string())
                })?;
                let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
                Ok(Self::S3 { bucket, prefix, aws: Box::new(aws) })
            }
            _ => {
                let forms = "\"dir:/path\" or \"s3://bucket/prefix\"";
                Err(loaded.problem("store.at", &format!("expected {forms}, found {:?}", table.at)))
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
            Self::S3 { bucket, prefix, aws } => Ok(Box::new(S3::open(aws, bucket.clone(), prefix.clone())?)),
        }
    }

    /// The local folder that it is, if it is one.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Dir(root) => Some(root),
            Self::S3 { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Raw {
        catalog: CatalogTable,
        store: StoreTable,
        aws: AwsTable,
    }

    fn check(text: &str) -> Result<(CatalogConfig, StoreConfig), String> {
        let vars = Vars::default();
        let loaded = config::parse::<Raw>(Path::new("t.toml"), text.to_owned()).map_err(|e| e.to_string())?;
        let Raw { catalog, store, aws } = &loaded.raw;
        let catalog = CatalogConfig::check(&loaded, catalog, aws, &vars).map_err(|e| e.to_string())?;
        Ok((catalog, StoreConfig::check(&loaded, store, aws, &vars).map_err(|e| e.to_string())?))
    }

    #[test]
    fn what_is_valid() {
        assert!(matches!(check("").unwrap(), (CatalogConfig::Sqlite { .. }, StoreConfig::Dir(_))));
        let text = "[catalog]\nat = \"dynamodb:apps\"\n[store]\nat = \"s3://bucket/a/b/\"\n[aws]\nregion = \"eu-west-1\"";
        let (catalog, store) = check(text).unwrap();
        let CatalogConfig::Dynamo { at, .. } = catalog else { panic!("{catalog:?}") };
        assert_eq!(at.0, "https://dynamodb.eu-west-1.amazonaws.com");
        let StoreConfig::S3 { prefix, bucket, .. } = store else { panic!("{store:?}") };
        assert_eq!((prefix.as_str(), bucket.name.as_str()), ("a/b/", "bucket"));
    }

    #[test]
    fn what_is_not_names_its_place() {
        for (text, place) in [
            ("[catalog]\nat = \"sqlite:relative\"", "t.toml:2:6: catalog.at"),
            ("[catalog]\nat = \"dynamodb:a\"", "t.toml:2:6: catalog.at"),
            ("[catalog]\nat = \"dynamodb:apps\"", "aws.region"),
            ("[catalog]\nat = \"dynamodb:apps\"\nendpoint = \"x\"", "t.toml:3:12: catalog.endpoint"),
            ("[catalog]\nbusy-timeout-ms = 0", "t.toml:2:19: catalog.busy-timeout-ms"),
            ("[store]\nat = \"file\"", "t.toml:2:6: store.at"),
            ("[store]\nat = \"s3://b/../x\"", "t.toml:2:6: store.at"),
            ("[store]\nat = \"s3://B\"\n[aws]\nregion = \"r\"", "t.toml:2:6: store.at"),
            ("[store]\nat = \"s3://bkt\"\n[aws]\nregion = \"R\"", "t.toml:4:10: aws.region"),
            (
                "[store]\nat = \"s3://bkt\"\n[aws]\nregion = \"r\"\nca-file = \"/none\"",
                "t.toml:5:11: aws.ca-file",
            ),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(place), "{text}: {error}");
        }
    }
}

//! What the publisher says of one release, as JSON. The bytes that were published are what was signed: they travel as
//! they are and are verified before they are parsed; nobody writes them anew.
//!
//! ```text
//! {"v":1,"app":"scoreboard","version":"1.0.0","env":"prod","epoch":3,"md5":"…","sha256":"…","size":10485760,
//!  "attrs":["gamer"],"min-epoch":2,"from-epoch":0,"rollout":10,"salt":"7f3a…","expires":"2027-11-27T00:00:00Z"}
//! ```
//!
//! `epoch` counts the releases of one app in one environment; a device that committed one never takes a lower one.
//! `min-epoch`: with this release committed, nothing below it is ever run again, also not by a rollback.
//! `from-epoch`: a device that has the app must have passed this epoch first (0: from anywhere); one that has none may
//! begin here. `rollout` and `salt`: see [`super::rollout`]. Keys that are not known are passed over; what old devices
//! must not pass over gets another `v`.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Md5, Sha256, valid_name, valid_version};

/// Longest statement, in bytes.
pub const STATEMENT_BYTES_MAX: usize = 8 * 1024;
/// Most attributes of a release.
const ATTRS_MAX: usize = 32;

/// A second since 1970 in UTC; RFC 3339 as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = OffsetDateTime::from_unix_timestamp(self.0).ok().and_then(|at| at.format(&Rfc3339).ok());
        match text {
            Some(text) => f.write_str(&text),
            None => write!(f, "@{}", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Timestamp {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = OffsetDateTime::parse(text, &Rfc3339);
        parsed.map(|at| Self(at.unix_timestamp())).map_err(|_| "expected a time such as 2027-01-31T00:00:00Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What is said of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Statement {
    /// Its form: 1.
    pub v: u32,
    /// The app, as its publisher spells it.
    pub app: String,
    /// Its version, for people.
    pub version: String,
    /// The environment it is for, in lower case: `prod`, `beta` ...
    pub env: String,
    /// Counts the releases of the app in the environment, from 1.
    pub epoch: u64,
    /// The cache hint of its file.
    pub md5: Md5,
    /// Its file.
    pub sha256: Sha256,
    /// The file's length in bytes.
    pub size: u64,
    /// The device attributes that select it, in lower case.
    #[serde(default)]
    pub attrs: Vec<String>,
    /// Nothing below is run again once this is committed.
    #[serde(default)]
    pub min_epoch: u64,
    /// A device that has the app must have passed this one.
    #[serde(default)]
    pub from_epoch: u64,
    /// Percent of the devices it is for, 0 to 100.
    pub rollout: u8,
    /// Shuffles the devices for it.
    #[serde(default)]
    pub salt: String,
    /// Not to be installed from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
}

/// Why bytes are no statement.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// Too long.
    #[error("the statement has {0} bytes, more than {STATEMENT_BYTES_MAX}")]
    Long(usize),
    /// No such JSON.
    #[error("the statement can't be read")]
    Json(#[from] serde_json::Error),
    /// A form of the future.
    #[error(
        "the statement has the form v = {0}; only v = 1 is known here: a newer version of this program is needed"
    )]
    Version(u32),
    /// A field holds what it can't.
    #[error("the statement's {0}: {1}")]
    Field(&'static str, String),
}

impl Statement {
    /// Reads and checks a statement whose signature was verified.
    ///
    /// # Errors
    /// [`StatementError`] names the field.
    pub fn parse(bytes: &[u8]) -> Result<Self, StatementError> {
        if bytes.len() > STATEMENT_BYTES_MAX {
            return Err(StatementError::Long(bytes.len()));
        }
        let statement: Self = serde_json::from_slice(bytes)?;
        statement.check()?;
        Ok(statement)
    }

    /// The bytes to sign and to publish.
    ///
    /// # Errors
    /// [`StatementError`]: it would not be read back.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StatementError> {
        self.check()?;
        let bytes = serde_json::to_vec(self)?;
        if bytes.len() > STATEMENT_BYTES_MAX { Err(StatementError::Long(bytes.len())) } else { Ok(bytes) }
    }

    /// The one name that its file has in a bundle: `<app>_<version>`.
    #[must_use]
    pub fn file_name(&self) -> String {
        format!("{}_{}", self.app, self.version)
    }

    fn check(&self) -> Result<(), StatementError> {
        let field = |name, why: &str| Err(StatementError::Field(name, why.to_owned()));
        const NAME: &str = "expected 1 to 64 letters, digits, '.', '_' or '-', not beginning with '.' or '-'";
        let lower = |text: &str| valid_name(text) && !text.bytes().any(|b| b.is_ascii_uppercase());
        if self.v != 1 {
            return Err(StatementError::Version(self.v));
        }
        if !valid_name(&self.app) {
            return field("app", NAME);
        }
        if !valid_version(&self.version) {
            return field("version", "expected 1 to 64 letters, digits, or any of '._-+~:'");
        }
        if !lower(&self.env) {
            return field("env", NAME);
        }
        if self.epoch == 0 || self.epoch > i64::MAX as u64 {
            return field("epoch", "expected 1 and more");
        }
        if self.min_epoch > self.epoch || self.from_epoch >= self.epoch {
            return field("min-epoch or from-epoch", "expected no more than the release's own epoch");
        }
        if self.size > i64::MAX as u64 {
            return field("size", "too large");
        }
        if self.attrs.len() > ATTRS_MAX || !self.attrs.iter().all(|attr| lower(attr)) {
            return field("attrs", "expected at most 32 names in lower case");
        }
        if self.rollout > 100 {
            return field("rollout", "expected 0 to 100 percent");
        }
        if self.salt.len() > 64 || !self.salt.bytes().all(|b| b.is_ascii_graphic()) {
            return field("salt", "expected at most 64 letters, digits and signs");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"v":1,"app":"videoStreamer","version":"0.0.1","env":"prod","epoch":3,"md5":"900150983cd24fb0d6963f7d28e17f72","sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad","size":3,"attrs":["gamer"],"min-epoch":2,"from-epoch":0,"rollout":10,"salt":"7f3a","expires":"2027-11-27T00:00:00Z"}"#;

    #[test]
    fn it_is_written_as_it_is_read() {
        let statement = Statement::parse(TEXT.as_bytes()).unwrap();
        assert_eq!(statement.expires, Some(Timestamp(1_827_273_600)));
        assert_eq!(statement.file_name(), "videoStreamer_0.0.1");
        assert_eq!(String::from_utf8(statement.to_bytes().unwrap()).unwrap(), TEXT);
    }

    #[test]
    fn what_it_can_t_be_is_refused_and_named() {
        for (from, to, named) in [
            ("\"v\":1", "\"v\":2", "v = 2"),
            ("videoStreamer", "../etc", "app"),
            ("0.0.1", "a/b", "version"),
            ("prod", "Prod", "env"),
            ("\"epoch\":3", "\"epoch\":0", "epoch"),
            ("\"min-epoch\":2", "\"min-epoch\":4", "min-epoch"),
            ("\"from-epoch\":0", "\"from-epoch\":3", "from-epoch"),
            ("\"rollout\":10", "\"rollout\":101", "rollout"),
            ("7f3a", "7 3a", "salt"),
            ("gamer", "Gamer", "attrs"),
            ("\"size\":3", "\"size\":18446744073709551615", "size"),
            ("\"size\":3", "\"size\":-3", "read"),
            ("900150983c", "900150983z", "read"),
            ("2027-11-27", "2027-13-27", "read"),
        ] {
            assert!(TEXT.contains(from), "{from}");
            let error = Statement::parse(TEXT.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
            assert!(error.contains(named), "{from} -> {to}: {error}");
        }
        assert!(matches!(Statement::parse(&vec![b' '; 9000]), Err(StatementError::Long(9000))));
        assert!(Statement::parse(TEXT.replacen("\"v\":1", "\"later\":[1],\"v\":1", 1).as_bytes()).is_ok());
    }
}

//! `package_details.json`, and the answer to a metadata request: what a device should run.
//!
//! ```text
//! { "scoreboard": { "latestVersion": "1.0.0", "url": "s3://…/scoreboard_1.0.0", "status_code": 200,
//!                   "md5": "…", "sha256": "…", "size": 1048576, "download": "/blob/<sha256>",
//!                   "statement": "{…}", "signature": "untrusted comment: …",
//!                   "offers": [ { "latestVersion": …, "md5": … }, … ] } }
//! ```
//!
//! The first three are all that the original server says and all that an old client reads. They name the newest release
//! that is for everybody. `offers` lists, for a device that asked for them, the others it may need: staged releases, and
//! those that must be passed through. A device takes the one with the highest epoch that it may have.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Md5, Sha256};

/// Most apps in one document.
pub const APPS_MAX: usize = 256;
/// Most offers of one app.
pub const OFFERS_MAX: usize = 16;

/// One release as a server tells of it. Nothing in it is proven; see the statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// For people.
    #[serde(rename = "latestVersion")]
    pub version: String,
    /// Where the server has it from; a device can't do much with it.
    pub url: String,
    /// 200: the device lacks it; 304: it sent the file's MD5, or the release is not for everybody yet.
    pub status_code: u16,
    /// The file's cache hint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub md5: Option<Md5>,
    /// The file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha256>,
    /// Its length in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Where to fetch it, relative to the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<String>,
    /// The signed bytes, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<String>,
    /// Their minisign signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// What there is for one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The newest release for everybody.
    #[serde(flatten)]
    pub latest: Offer,
    /// The others; at most [`OFFERS_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offers: Vec<Offer>,
}

/// The whole document, its apps in the order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details(pub Vec<(String, Entry)>);

/// Why bytes are no such document.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such JSON.
    #[error("the package details can't be read")]
    Json(#[from] serde_json::Error),
    /// One app.
    #[error("the package details of {app:?} can't be read")]
    App {
        /// As it is named.
        app: String,
        /// Why not.
        source: serde_json::Error,
    },
    /// More than anybody needs, or a name that can't be one.
    #[error("the package details hold {0}")]
    Bound(String),
}

impl Details {
    /// Reads a document.
    ///
    /// # Errors
    /// [`Error`] names the app.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let apps: Map<String, Value> = serde_json::from_slice(bytes)?;
        if apps.len() > APPS_MAX {
            return Err(Error::Bound(format!("{} apps, more than {APPS_MAX}", apps.len())));
        }
        let mut all = Vec::with_capacity(apps.len());
        for (app, value) in apps {
            if !super::valid_name(&app) {
                return Err(Error::Bound(format!("an app of the name {app:?}")));
            }
            let entry: Entry = match serde_json::from_value(value) {
                Ok(entry) => entry,
                Err(source) => return Err(Error::App { app, source }),
            };
            if entry.offers.len() > OFFERS_MAX {
                return Err(Error::Bound(format!("{} offers for {app:?}", entry.offers.len())));
            }
            all.push((app, entry));
        }
        Ok(Self(all))
    }

    /// The document's bytes: JSON as people read it, as the original server wrote it.
    ///
    /// # Panics
    /// Never: there is nothing in it that JSON can't hold.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut map = Map::new();
        for (app, entry) in &self.0 {
            map.insert(app.clone(), serde_json::to_value(entry).unwrap_or_default());
        }
        let mut text = serde_json::to_vec_pretty(&Value::Object(map)).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_original_s_document_is_read() {
        let text = br#"{"os_armv8": {"latestVersion": "1.1.0", "url": "s3://b/os_armv8_1.1.0", "status_code": 304}}"#;
        let details = Details::parse(text).unwrap();
        assert_eq!(details.0.len(), 1);
        let (app, entry) = &details.0[0];
        assert_eq!(
            (app.as_str(), entry.latest.version.as_str(), entry.latest.status_code),
            ("os_armv8", "1.1.0", 304)
        );
        assert_eq!(Details::parse(&details.to_bytes()).unwrap(), details);
    }

    #[test]
    fn what_is_added_comes_back() {
        let offer = Offer {
            version: "2".into(),
            url: "x".into(),
            status_code: 200,
            md5: Some("900150983cd24fb0d6963f7d28e17f72".parse().unwrap()),
            sha256: None,
            size: Some(3),
            download: Some("/blob/x".into()),
            statement: Some("{}".into()),
            signature: None,
        };
        let entry = Entry { latest: offer.clone(), offers: vec![offer] };
        let details = Details(vec![("a".into(), entry)]);
        assert_eq!(Details::parse(&details.to_bytes()).unwrap(), details);
    }

    #[test]
    fn hostile_documents_are_refused() {
        assert!(Details::parse(b"[]").is_err());
        assert!(
            Details::parse(b"{\"../x\":{\"latestVersion\":\"1\",\"url\":\"\",\"status_code\":200}}").is_err()
        );
        assert!(Details::parse(b"{\"a\":{}}").unwrap_err().to_string().contains("\"a\""));
        let offer = r#"{"latestVersion":"1","url":"","status_code":200}"#;
        let offers = vec![offer; OFFERS_MAX + 1].join(",");
        let text =
            format!(r#"{{"a":{{"latestVersion":"1","url":"","status_code":200,"offers":[{offers}]}}}}"#);
        assert!(Details::parse(text.as_bytes()).is_err());
    }
}

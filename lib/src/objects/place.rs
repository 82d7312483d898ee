//! The keys of a configuration that say where an S3 bucket is and how it is reached, whatever their table is called.

use std::path::Path;

use super::check_key;
use crate::aws::credentials::{ChainConfig, IotTable, Vars};
use crate::aws::s3::{Bucket, Error as AddressError};
use crate::aws::tls;
use crate::config::{self, Loaded};

/// As they are written. An empty text or path stands for a key that is not given.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The table they stand in, for errors: its key `to` names the bucket.
    pub table: &'static str,
    /// Such as `eu-west-1`; else what the environment or the profile says.
    pub region: &'a str,
    /// Where S3 is, if it is not Amazon's.
    pub endpoint: &'a str,
    /// The bucket in the path instead of in the host's name.
    pub path_style: Option<bool>,
    /// The profile in the shared credentials files.
    pub profile: &'a str,
    /// Authorities to trust instead of the system's.
    pub ca_file: &'a Path,
    /// Credentials by a device certificate.
    pub iot: Option<&'a IotTable>,
}

/// What they mean.
#[derive(Debug)]
pub struct Found {
    /// The bucket.
    pub bucket: Bucket,
    /// Of all keys: empty, or ending in `/`.
    pub prefix: String,
    /// Whom to trust.
    pub tls: ureq::tls::TlsConfig,
    /// Where credentials come from.
    pub chain: ChainConfig,
}

impl Place<'_> {
    /// Checks them; `bucket` is `bucket` or `bucket/prefix`, what follows `s3://` in the key `to`.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn find<R>(&self, loaded: &Loaded<R>, bucket: &str, vars: &Vars) -> Result<Found, config::Error> {
        let wrong = |key: &str, message: &str| loaded.problem(&format!("{}.{key}", self.table), message);
        let (name, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() {
            check_key(prefix).map_err(|why| wrong("to", &why))?;
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let (profile, endpoint) = (some(self.profile), some(self.endpoint));
        let region = some(self.region).or_else(|| vars.region(profile.as_deref()));
        // Other S3 servers mostly take any region; Amazon's are nowhere without one.
        let region = region.or_else(|| endpoint.is_some().then(|| "us-east-1".to_owned()));
        let region = region.ok_or_else(|| {
            wrong("region", "expected a region such as \"eu-west-1\" here, in AWS_REGION or in the profile")
        })?;
        let bucket = Bucket::new(name, &region, endpoint.as_deref(), self.path_style).map_err(|error| {
            let key = match error {
                AddressError::Name(_) => "to",
                AddressError::Endpoint(_) => "endpoint",
                AddressError::Region(_) => "region",
            };
            wrong(key, &error.to_string())
        })?;
        let plain = endpoint.as_deref().is_some_and(|e| e.starts_with("http://"));
        let ca = (!self.ca_file.as_os_str().is_empty()).then(|| self.ca_file.to_owned());
        let tls = if plain && ca.is_none() {
            tls::none()
        } else {
            let files = tls::Files { ca, cert: None, key: None };
            tls::load(&files).map_err(|error| wrong("ca-file", &crate::log::chain(&error)))?
        };
        let iot = self.iot.map(|iot| iot.to_config(loaded, &format!("{}.iot", self.table))).transpose()?;
        Ok(Found { bucket, prefix, tls, chain: ChainConfig { iot, profile, vars: vars.clone() } })
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

//! The table that names the AWS IoT credential provider, the same in every daemon's TOML.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::IotConfig;
use crate::aws::tls;
use crate::config::{Error, Loaded, secret_path};

/// `[….iot]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct IotTable {
    /// The host that `aws iot describe-endpoint --endpoint-type iot:CredentialProvider` prints.
    pub endpoint: String,
    /// The role alias.
    pub role_alias: String,
    /// The thing's name, if the policy asks for it.
    pub thing_name: String,
    /// The device's certificate (PEM).
    pub cert_file: PathBuf,
    /// Its key (PEM); a secret.
    pub key_file: PathBuf,
    /// The authority to trust instead of the system's.
    pub ca_file: PathBuf,
}

impl IotTable {
    /// Checks the table, which is called `prefix` in the file, and the files that it names.
    ///
    /// # Errors
    /// With line, column, key and expectation.
    pub fn to_config<R>(&self, loaded: &Loaded<R>, prefix: &str) -> Result<IotConfig, Error> {
        let wrong = |key: &str, message: &str| loaded.problem(&format!("{prefix}.{key}"), message);
        let host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':');
        if self.endpoint.is_empty() || !self.endpoint.chars().all(host) {
            return Err(wrong(
                "endpoint",
                "expected the host that `aws iot describe-endpoint --endpoint-type iot:CredentialProvider` prints",
            ));
        }
        let alias = |c: char| c.is_ascii_alphanumeric() || "=,@-_.".contains(c);
        if self.role_alias.is_empty() || !self.role_alias.chars().all(alias) {
            return Err(wrong("role-alias", "expected the name of a role alias"));
        }
        let (cert, key) = (self.cert_file.clone(), secret_path(&self.key_file));
        let ca = (!self.ca_file.as_os_str().is_empty()).then(|| self.ca_file.clone());
        let files = tls::Files { ca: ca.clone(), cert: Some(cert.clone()), key: Some(key.clone()) };
        tls::load(&files).map_err(|error| wrong("cert-file", &crate::log::chain(&error)))?;
        let url = format!("https://{}/role-aliases/{}/credentials", self.endpoint, self.role_alias);
        let thing_name = (!self.thing_name.is_empty()).then(|| self.thing_name.clone());
        Ok(IotConfig { url, thing_name, cert, key, ca })
    }
}

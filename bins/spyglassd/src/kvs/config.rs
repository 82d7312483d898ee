//! `[stream.kvs]`: its keys, defaults and checks.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use edge::aws::credentials::{ChainConfig, IotTable, Vars};
use edge::aws::tls;
use edge::config::{Error, Loaded, Size, secret_path};
use edge::tls::{ClientTls, ClientTlsConfig, Trust};
use serde::{Deserialize, Serialize};

use super::ask;
use super::core::Policy;
use super::credentials::SourceConfig;
use super::fragment::Limits;
use super::ring::Bounds;

/// The service's limit for a fragment, in bytes.
const FRAGMENT_BYTES_MAX: u64 = 50_000_000;
/// The service's limits for tags: how many a fragment, and how long.
const TAGS_MAX: usize = 10;
const TAG_NAME_BYTES_MAX: usize = 128;
const TAG_VALUE_BYTES_MAX: usize = 256;

/// The table as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Raw {
    /// The stream's name at the service; empty: as here.
    pub stream_name: String,
    /// Such as "eu-west-1"; empty: from the environment or the profile.
    pub region: String,
    /// Where GetDataEndpoint is asked; empty: the region's own.
    pub endpoint: String,
    /// Certificates to trust instead of the system's.
    pub ca_file: PathBuf,
    /// Inline credentials: the id here, the secret in `secret-key-file`.
    pub access_key_id: String,
    /// A file with the secret key.
    pub secret_key_file: PathBuf,
    /// A file that somebody renews.
    pub credentials_file: PathBuf,
    /// A profile of the shared files.
    pub profile: String,
    /// The AWS IoT credential provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iot: Option<IotTable>,
    /// "absolute" or "relative".
    pub timecode: Timecode,
    /// How long a fragment is to be.
    pub fragment_ms: u64,
    /// How long it may get.
    pub fragment_ms_max: u64,
    /// How large it may get.
    pub fragment_bytes_max: Size,
    /// What is kept in memory until it is stored.
    pub ring_bytes: Size,
    /// A folder for what memory does not hold; empty: none.
    pub disk_dir: PathBuf,
    /// What is kept there.
    pub disk_bytes: Size,
    /// A connection's age.
    pub rotate_s: u64,
    /// Before credentials end.
    pub renew_before_s: u64,
    /// Without a frame, the fragment ends.
    pub pause_ms: u64,
    /// Without a frame, the connection ends.
    pub linger_s: u64,
    /// Without a sign of the service, the connection is given up.
    pub stall_s: u64,
    /// The shortest wait after a failure.
    pub backoff_min_ms: u64,
    /// The longest.
    pub backoff_max_ms: u64,
    /// Tags of each fragment.
    pub tags: BTreeMap<String, String>,
}

/// What the times of fragments count from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Timecode {
    /// 1970.
    #[default]
    Absolute,
    /// The start of the connection, which the request states.
    Relative,
}

impl Default for Raw {
    fn default() -> Raw {
        Raw {
            stream_name: String::new(),
            region: String::new(),
            endpoint: String::new(),
            ca_file: PathBuf::new(),
            access_key_id: String::new(),
            secret_key_file: PathBuf::new(),
            credentials_file: PathBuf::new(),
            profile: String::new(),
            iot: None,
            timecode: Timecode::Absolute,
            fragment_ms: 2_000,
            fragment_ms_max: 10_000,
            fragment_bytes_max: Size::mib(16),
            ring_bytes: Size::mib(32),
            disk_dir: PathBuf::new(),
            disk_bytes: Size::mib(512),
            rotate_s: 2_400,
            renew_before_s: 180,
            pause_ms: 3_000,
            linger_s: 20,
            stall_s: 30,
            backoff_min_ms: 1_000,
            backoff_max_ms: 60_000,
            tags: BTreeMap::new(),
        }
    }
}

/// What a sink runs on.
#[derive(Debug, Clone)]
pub struct Config {
    /// The stream's name at the service; `None`: as here.
    pub stream_name: Option<String>,
    /// The region.
    pub region: String,
    /// `https://host`.
    pub endpoint: String,
    /// For GetDataEndpoint.
    pub agent_tls: ureq::tls::TlsConfig,
    /// For PutMedia.
    pub tls: ClientTls,
    /// Who we are.
    pub source: SourceConfig,
    /// How it behaves.
    pub policy: Policy,
    /// What it keeps.
    pub bounds: Bounds,
    /// Where it keeps what memory does not hold.
    pub disk_dir: Option<PathBuf>,
}

impl Raw {
    /// Checks the table, which is called `prefix` in the file; `vars` is the environment of the credential chain.
    ///
    /// # Errors
    /// With line, column, key and expectation.
    pub fn to_config<R>(&self, loaded: &Loaded<R>, prefix: &str, vars: &Vars) -> Result<Config, Error> {
        let wrong = |key: &str, message: &str| loaded.problem(&format!("{prefix}.{key}"), message);
        self.check_bounds(loaded, prefix)?;
        self.check_tags(&wrong)?;
        let name = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        if self.stream_name.len() > 256 || !self.stream_name.chars().all(name) {
            return Err(wrong("stream-name", "expected up to 256 letters, digits and the characters _ . -"));
        }
        let region = some(&self.region).or_else(|| vars.region(some(&self.profile).as_deref()));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let region = region.filter(|region| region.chars().all(plain)).ok_or_else(|| {
            wrong("region", "expected a region such as \"eu-west-1\" here, in AWS_REGION or in the profile")
        })?;
        let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let own = || format!("https://kinesisvideo.{region}.{domain}");
        let endpoint = some(&self.endpoint).unwrap_or_else(own);
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let bare = |endpoint: &str| endpoint.matches('/').count() == 2;
        let (host, _, encrypted) = ask::split(&endpoint).filter(|_| bare(&endpoint)).ok_or_else(|| {
            wrong("endpoint", "expected an address such as \"https://kinesisvideo.eu-west-1.amazonaws.com\"")
        })?;
        if !encrypted && !matches!(host.as_str(), "localhost" | "127.0.0.1") {
            return Err(wrong(
                "endpoint",
                "expected https:// (plain HTTP is for a server on this device only)",
            ));
        }
        let (agent_tls, client_tls) = self.load_tls(encrypted, &wrong)?;
        Ok(Config {
            stream_name: some(&self.stream_name),
            region,
            endpoint,
            agent_tls,
            tls: client_tls,
            source: self.source(loaded, prefix, vars)?,
            policy: self.policy(),
            bounds: Bounds {
                memory: self.ring_bytes.as_usize(),
                disk: if self.disk_dir.as_os_str().is_empty() { 0 } else { self.disk_bytes.0 },
            },
            disk_dir: (!self.disk_dir.as_os_str().is_empty()).then(|| self.disk_dir.clone()),
        })
    }

    fn load_tls(
        &self,
        encrypted: bool,
        wrong: &dyn Fn(&str, &str) -> Error,
    ) -> Result<(ureq::tls::TlsConfig, ClientTls), Error> {
        let ca = (!self.ca_file.as_os_str().is_empty()).then(|| self.ca_file.clone());
        let trust = ca.clone().map_or(Trust::System, Trust::Ca);
        let agent = match (encrypted, &ca) {
            (false, None) => tls::none(),
            _ => tls::load(&tls::Files { ca, cert: None, key: None })
                .map_err(|error| wrong("ca-file", &edge::log::chain(&error)))?,
        };
        let config = ClientTlsConfig { trust, cert: None, key: None, server_name: None };
        let client = ClientTls::load(&config).map_err(|error| wrong("ca-file", &edge::log::chain(&error)))?;
        Ok((agent, client))
    }

    fn source<R>(&self, loaded: &Loaded<R>, prefix: &str, vars: &Vars) -> Result<SourceConfig, Error> {
        let wrong = |key: &str, message: &str| loaded.problem(&format!("{prefix}.{key}"), message);
        let given = [
            !self.access_key_id.is_empty(),
            !self.credentials_file.as_os_str().is_empty(),
            !self.profile.is_empty(),
            self.iot.is_some(),
        ];
        if given.iter().filter(|given| **given).count() > 1 {
            return Err(wrong("", "expected one of access-key-id, credentials-file, profile and iot"));
        }
        let secret = !self.secret_key_file.as_os_str().is_empty();
        if secret == self.access_key_id.is_empty() {
            return Err(wrong(
                "secret-key-file",
                "expected both access-key-id and secret-key-file, or neither; the secret itself is never in this file",
            ));
        }
        if given[0] {
            if !self.access_key_id.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(wrong("access-key-id", "expected letters and digits"));
            }
            let (access_key_id, secret_key_file) = (self.access_key_id.clone(), self.secret_key_file.clone());
            return Ok(SourceConfig::Keys { access_key_id, secret_key_file });
        }
        if given[1] {
            return Ok(SourceConfig::File(secret_path(&self.credentials_file)));
        }
        let iot = self.iot.as_ref().map(|iot| iot.to_config(loaded, &format!("{prefix}.iot"))).transpose()?;
        Ok(SourceConfig::Chain(ChainConfig { iot, profile: some(&self.profile), vars: vars.clone() }))
    }

    fn policy(&self) -> Policy {
        let ms = Duration::from_millis;
        Policy {
            fragment: Limits {
                duration_ms: self.fragment_ms,
                duration_ms_max: self.fragment_ms_max,
                bytes_max: self.fragment_bytes_max.as_usize(),
            },
            tags: self.tags.clone().into_iter().collect(),
            relative: self.timecode == Timecode::Relative,
            rotate: Duration::from_secs(self.rotate_s),
            renew: Duration::from_secs(self.renew_before_s),
            pause: ms(self.pause_ms),
            linger: Duration::from_secs(self.linger_s),
            stall: Duration::from_secs(self.stall_s),
            backoff: (ms(self.backoff_min_ms), ms(self.backoff_max_ms)),
        }
    }

    fn check_bounds<R>(&self, loaded: &Loaded<R>, prefix: &str) -> Result<(), Error> {
        let within = |key: &str, value, min, max| loaded.within(&format!("{prefix}.{key}"), value, min, max);
        let size = |key: &str, value, min, max| {
            loaded.size_within(&format!("{prefix}.{key}"), value, Size(min), Size(max))
        };
        within("fragment-ms", self.fragment_ms, 1_000, 10_000)?;
        within("fragment-ms-max", self.fragment_ms_max, self.fragment_ms, 10_000)?;
        size("fragment-bytes-max", self.fragment_bytes_max, 64 << 10, FRAGMENT_BYTES_MAX)?;
        size("ring-bytes", self.ring_bytes, self.fragment_bytes_max.0, 16 << 30)?;
        size("disk-bytes", self.disk_bytes, self.fragment_bytes_max.0, 1 << 50)?;
        within("rotate-s", self.rotate_s, 10, 2_640)?;
        within("renew-before-s", self.renew_before_s, 120, 3_600)?;
        within("pause-ms", self.pause_ms, 1_000, 10_000)?;
        within("linger-s", self.linger_s, 5, 3_600)?;
        within("stall-s", self.stall_s, 5, 600)?;
        within("backoff-min-ms", self.backoff_min_ms, 100, 60_000)?;
        within("backoff-max-ms", self.backoff_max_ms, self.backoff_min_ms, 3_600_000)
    }

    fn check_tags(&self, wrong: &dyn Fn(&str, &str) -> Error) -> Result<(), Error> {
        if self.tags.len() > TAGS_MAX {
            return Err(wrong("tags", "expected at most 10 tags, which is the service's limit"));
        }
        for (name, value) in &self.tags {
            if name.is_empty() || name.len() > TAG_NAME_BYTES_MAX || name.starts_with("AWS") {
                return Err(wrong("tags", "expected names of 1 to 128 bytes that don't begin with AWS"));
            }
            if value.is_empty() || value.len() > TAG_VALUE_BYTES_MAX {
                return Err(wrong("tags", "expected values of 1 to 256 bytes"));
            }
        }
        Ok(())
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn check(text: &str) -> Result<Config, String> {
        let loaded =
            edge::config::parse::<Raw>(Path::new("x.toml"), text.to_owned()).map_err(|e| e.to_string())?;
        loaded.raw.to_config(&loaded, "kvs", &Vars::default()).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_and_what_is_refused() {
        let config = check("region = \"eu-west-1\"").unwrap();
        assert_eq!(config.endpoint, "https://kinesisvideo.eu-west-1.amazonaws.com");
        assert!(matches!(config.source, SourceConfig::Chain(_)) && config.disk_dir.is_none());
        for (text, why) in [
            ("", "AWS_REGION"),
            ("fragment-ms = 500", "from 1000 to 10000"),
            ("renew-before-s = 60", "from 120"),
            ("access-key-id = \"AK\"", "secret-key-file"),
            ("credentials-file = \"a\"\nprofile = \"b\"", "one of"),
            ("endpoint = \"http://example.com\"", "https"),
            ("endpoint = \"https://example.com/x\"", "expected an address"),
            ("[tags]\nAWS_X = \"y\"", "AWS"),
            ("stream-name = \"a b\"", "letters"),
            ("nonsense = 1", "nonsense"),
        ] {
            let full = if text.is_empty() { String::new() } else { format!("region = \"r-1\"\n{text}") };
            let error = check(&full).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

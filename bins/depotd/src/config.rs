//! `/etc/edge/depotd.toml`: its tables, defaults and checks. `etc/depotd.toml` explains every key.
//!
//! Owns: what a valid configuration is. The tables of the catalog, the store and AWS are
//! [`catalog::config`](crate::catalog::config)'s. Never: opens a socket, the catalog or the store.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use edge::aws::credentials::Vars;
use edge::config::{self, Loaded, Size};
use edge::http;
use edge::http::conns::{Bounds, Caps};
use edge::tls::{ServerTls, ServerTlsConfig};
use serde::{Deserialize, Serialize};

use crate::catalog::config::{AwsTable, CatalogConfig, CatalogTable, StoreConfig, StoreTable};
use crate::reply;

/// The file as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Raw {
    pub listen: String,
    pub ctl_socket: PathBuf,
    pub max_age_s: u64,
    pub drain_ms: u64,
    pub public_keys: Vec<PathBuf>,
    pub tls: Tls,
    pub catalog: CatalogTable,
    pub store: StoreTable,
    pub aws: AwsTable,
    pub answers: Answers,
    pub bundle: Bundle,
    pub limits: Limits,
}

/// `[tls]`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Tls {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// `[answers]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Answers {
    pub bytes_max: Size,
    pub check_ms: u64,
    pub ttl_ms: u64,
    pub threads: usize,
    pub queue_max: usize,
}

/// `[bundle]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Bundle {
    pub dir: PathBuf,
    pub bytes_max: Size,
    pub files_max: usize,
    pub free_min: Size,
    pub level: u32,
    pub threads: usize,
    pub queue_max: usize,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    pub connections_max: usize,
    pub connections_per_peer: usize,
    pub head_bytes: Size,
    pub target_bytes: Size,
    pub handshake_ms: u64,
    pub head_ms: u64,
    pub idle_ms: u64,
    pub write_ms: u64,
    pub open_files: usize,
    pub generations: usize,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            listen: "0.0.0.0:8080".into(),
            ctl_socket: "/run/edge/depotd/ctl.sock".into(),
            max_age_s: 100,
            drain_ms: 10_000,
            public_keys: Vec::new(),
            tls: Tls::default(),
            catalog: CatalogTable::default(),
            store: StoreTable::default(),
            aws: AwsTable::default(),
            answers: Answers::default(),
            bundle: Bundle::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Answers {
    fn default() -> Self {
        Self { bytes_max: Size::mib(4), check_ms: 1000, ttl_ms: 10_000, threads: 2, queue_max: 1024 }
    }
}

impl Default for Bundle {
    fn default() -> Self {
        Self {
            dir: "/var/lib/edge/depotd/cache".into(),
            bytes_max: Size(4 << 30),
            files_max: 256,
            free_min: Size::mib(64),
            level: 6,
            threads: 2,
            queue_max: 64,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            connections_per_peer: 1024,
            head_bytes: Size::kib(16),
            target_bytes: Size::kib(4),
            handshake_ms: 5_000,
            head_ms: 10_000,
            idle_ms: 60_000,
            write_ms: 30_000,
            open_files: 256,
            generations: 64,
        }
    }
}

/// What the daemon runs on.
#[derive(Debug)]
pub struct Config {
    /// The file as read, for `--print-config`.
    pub raw: Raw,
    /// `None`: clear text.
    pub tls: Option<ServerTls>,
    pub catalog: CatalogConfig,
    pub store: StoreConfig,
    pub caps: Caps,
}

impl Config {
    /// Reads and validates `path`; `vars` is the environment of the credential chain.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn load(path: &Path, vars: &Vars) -> Result<Self, config::Error> {
        Self::from_loaded(config::load::<Raw>(path)?, vars)
    }

    /// Validates what was read.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn from_loaded(loaded: Loaded<Raw>, vars: &Vars) -> Result<Self, config::Error> {
        check_bounds(&loaded)?;
        let raw = &loaded.raw;
        if raw.listen.parse::<SocketAddr>().is_err() {
            let found = &raw.listen;
            let why = format!("expected an address and a port such as \"0.0.0.0:8080\", found {found:?}");
            return Err(loaded.problem("listen", &why));
        }
        if !raw.bundle.dir.is_absolute() || raw.bundle.dir == Path::new("/") {
            return Err(loaded.problem("bundle.dir", "expected the absolute path of a folder"));
        }
        let tls = tls(&loaded)?;
        let catalog = CatalogConfig::check(&loaded, &raw.catalog, &raw.aws, vars)?;
        let store = StoreConfig::check(&loaded, &raw.store, &raw.aws, vars)?;
        let caps = caps(&raw.limits);
        Ok(Self { tls, catalog, store, caps, raw: loaded.raw })
    }

    /// Keys that are different in `new` and are not taken in by a reload.
    #[must_use]
    pub fn needs_a_restart(&self, new: &Self) -> Vec<&'static str> {
        let (a, b) = (&self.raw, &new.raw);
        let text = |raw: &Raw| {
            [config::to_toml(&raw.catalog), config::to_toml(&raw.store), config::to_toml(&raw.aws)]
        };
        let changed = [
            (a.listen != b.listen, "listen"),
            (a.ctl_socket != b.ctl_socket, "ctl-socket"),
            (text(a) != text(b), "[catalog], [store] or [aws]"),
            (a.answers.threads != b.answers.threads, "answers.threads"),
            (a.bundle != b.bundle, "[bundle]"),
        ];
        changed.into_iter().filter_map(|(changed, key)| changed.then_some(key)).collect()
    }

    /// `new`, less what is not taken in by a reload.
    #[must_use]
    pub fn with_reloaded(&self, mut new: Self) -> Self {
        let old = &self.raw;
        new.raw.listen.clone_from(&old.listen);
        new.raw.ctl_socket.clone_from(&old.ctl_socket);
        new.raw.catalog = old.catalog.clone();
        new.raw.store = old.store.clone();
        new.raw.aws = old.aws.clone();
        new.raw.answers.threads = old.answers.threads;
        new.raw.bundle = old.bundle.clone();
        new.catalog = self.catalog.clone();
        new.store = self.store.clone();
        new
    }
}

fn check_bounds(loaded: &Loaded<Raw>) -> Result<(), config::Error> {
    let within = |key, value, min, max| loaded.within(key, value, min, max);
    let size = |key, value, min, max| loaded.size_within(key, value, min, max);
    let (raw, day) = (&loaded.raw, 86_400_000);
    within("max-age-s", raw.max_age_s, 0, 31_536_000)?;
    within("drain-ms", raw.drain_ms, 0, 600_000)?;
    let a = &raw.answers;
    size("answers.bytes-max", a.bytes_max, Size::kib(64), Size(4 << 30))?;
    within("answers.check-ms", a.check_ms, 0, 3_600_000)?;
    within("answers.ttl-ms", a.ttl_ms, 0, day)?;
    within("answers.threads", a.threads as u64, 1, 64)?;
    within("answers.queue-max", a.queue_max as u64, 1, 100_000)?;
    let b = &raw.bundle;
    size("bundle.bytes-max", b.bytes_max, Size::mib(1), Size(1 << 50))?;
    within("bundle.files-max", b.files_max as u64, 1, 100_000)?;
    size("bundle.free-min", b.free_min, Size(0), Size(1 << 50))?;
    within("bundle.level", b.level.into(), 0, 9)?;
    within("bundle.threads", b.threads as u64, 1, 64)?;
    within("bundle.queue-max", b.queue_max as u64, 1, 100_000)?;
    let l = &raw.limits;
    bounds(l).check(loaded, 100_000)?;
    size("limits.head-bytes", l.head_bytes, Size::kib(1), Size::kib(256))?;
    size("limits.target-bytes", l.target_bytes, Size(256), Size::kib(64))?;
    within("limits.open-files", l.open_files as u64, 1, 100_000)?;
    within("limits.generations", l.generations as u64, 0, 10_000)
}

fn tls(loaded: &Loaded<Raw>) -> Result<Option<ServerTls>, config::Error> {
    let Tls { cert_file, key_file } = &loaded.raw.tls;
    let (cert, key) = (!cert_file.as_os_str().is_empty(), !key_file.as_os_str().is_empty());
    match (cert, key) {
        (false, false) => return Ok(None),
        (true, false) => return Err(loaded.problem("tls.cert-file", "is given without tls.key-file")),
        (false, true) => return Err(loaded.problem("tls.key-file", "is given without tls.cert-file")),
        (true, true) => {}
    }
    let files = ServerTlsConfig {
        cert: cert_file.clone(),
        key: config::secret_path(key_file),
        client_ca: None,
        client_pins: Vec::new(),
    };
    let wrong = |error| loaded.problem("tls.cert-file", &edge::log::chain(&error));
    ServerTls::load(&files).map(Some).map_err(wrong)
}

fn bounds(limits: &Limits) -> Bounds {
    Bounds {
        connections_max: limits.connections_max,
        connections_per_peer: limits.connections_per_peer,
        handshake_ms: limits.handshake_ms,
        head_ms: limits.head_ms,
        body_ms: None,
        idle_ms: limits.idle_ms,
        write_ms: limits.write_ms,
    }
}

fn caps(limits: &Limits) -> Caps {
    let http = http::Limits {
        head_bytes: limits.head_bytes.as_usize(),
        target_bytes: limits.target_bytes.as_usize(),
        // Nobody has anything to send.
        body_bytes: 0,
        ..http::Limits::default()
    };
    bounds(limits).caps(http, 1, |reject| reply::error(reject.status, reject.why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, config::Error> {
        let loaded = config::parse::<Raw>(Path::new("/x/depotd.toml"), text.to_owned())?;
        Config::from_loaded(loaded, &Vars::new::<[(&str, String); 0], _>([]))
    }

    #[test]
    fn the_shipped_file_holds_the_defaults() {
        let shipped = include_str!("../../../etc/depotd.toml");
        let shipped = load(shipped).unwrap();
        assert_eq!(config::to_toml(&shipped.raw), config::to_toml(&Raw::default()));
    }

    #[test]
    fn errors_name_the_key() {
        for (text, key) in [
            ("listen = \"8080\"", "listen"),
            ("[bundle]\nlevel = 10", "bundle.level"),
            ("[bundle]\ndir = \"cache\"", "bundle.dir"),
            ("[tls]\ncert-file = \"/x\"", "tls.cert-file"),
            ("[limits]\nconnections-max = 0", "limits.connections-max"),
            ("[answers]\nbytes-max = 1", "answers.bytes-max"),
            ("[catalog]\nat = \"x\"", "catalog.at"),
            ("[store]\nat = \"x\"", "store.at"),
            ("later = 1", "later"),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn what_a_reload_takes_in() {
        let (old, new) = (load("").unwrap(), load("max-age-s = 5\nlisten = \"127.0.0.1:1\"").unwrap());
        assert_eq!(old.needs_a_restart(&new), ["listen"]);
        let merged = old.with_reloaded(new);
        assert_eq!((merged.raw.max_age_s, merged.raw.listen.as_str()), (5, "0.0.0.0:8080"));
    }
}

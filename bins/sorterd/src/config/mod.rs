//! `/etc/edge/sorterd.toml`: its tables, defaults and checks. `etc/sorterd.toml` explains every key.
//!
//! Owns: what a valid configuration is; what is seen and where things are kept have files of their own. Never: opens a
//! socket, a database or a model.

pub mod store;
pub mod vision;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use edge::config::{self, Loaded, Size};
use edge::http;
use edge::http::conns::{Bounds, Caps};
use serde::{Deserialize, Serialize};

use crate::vision::{DetectorConfig, StitchConfig, VectorizerConfig};
use store::{DatabaseTable, DbConfig, Env, Mode, UploadConfig, UploadTable};
use vision::{DetectorTable, StitchTable, VectorizerTable};

/// The file as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Raw {
    pub listen: String,
    /// Names under which a browser may ask, besides addresses, `localhost` and this machine's own.
    pub hosts: Vec<String>,
    pub ctl_socket: PathBuf,
    pub state_dir: PathBuf,
    pub drain_ms: u64,
    pub detector: DetectorTable,
    pub vectorizer: VectorizerTable,
    pub groups: Groups,
    pub stitch: StitchTable,
    pub pictures: Pictures,
    pub database: DatabaseTable,
    pub upload: UploadTable,
    pub panel: PanelTable,
    pub limits: Limits,
}

/// `[groups]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Groups {
    pub seed: u64,
}

/// `[pictures]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Pictures {
    pub bytes_max: Size,
    pub pixels_max: u64,
    pub quality: u8,
}

/// `[panel]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct PanelTable {
    pub host: String,
    pub queue_max: usize,
    pub timeout_ms: u64,
}

/// `[limits]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    pub workers: usize,
    pub opencv_threads: u32,
    pub queue_max: usize,
    pub message_bytes_max: Size,
    pub connections_max: usize,
    pub connections_per_peer: usize,
    pub head_ms: u64,
    pub idle_ms: u64,
    pub write_ms: u64,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:6000".into(),
            hosts: Vec::new(),
            ctl_socket: "/run/edge/sorterd/ctl.sock".into(),
            state_dir: "/var/lib/edge/sorterd".into(),
            drain_ms: 30_000,
            detector: DetectorTable::default(),
            vectorizer: VectorizerTable::default(),
            groups: Groups::default(),
            stitch: StitchTable::default(),
            pictures: Pictures::default(),
            database: DatabaseTable::default(),
            upload: UploadTable::default(),
            panel: PanelTable::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Groups {
    fn default() -> Self {
        Self { seed: 1 }
    }
}

impl Default for Pictures {
    fn default() -> Self {
        Self { bytes_max: Size(2 << 30), pixels_max: 16_000_000, quality: 90 }
    }
}

impl Default for PanelTable {
    fn default() -> Self {
        Self { host: String::new(), queue_max: 1000, timeout_ms: 5_000 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            workers: 2,
            opencv_threads: 1,
            queue_max: 32,
            message_bytes_max: Size(2_048_576),
            connections_max: 64,
            connections_per_peer: 64,
            head_ms: 10_000,
            idle_ms: 600_000,
            write_ms: 30_000,
        }
    }
}

/// What the environment says, as the original read it.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `CONTROL_PANEL_HOST`
    pub panel: Option<String>,
    pub store: Env,
}

impl Environment {
    /// That of this process. What is set but empty counts as not set.
    #[must_use]
    pub fn from_process() -> Self {
        let panel = std::env::var("CONTROL_PANEL_HOST").ok().filter(|host| !host.is_empty());
        Self { panel, store: Env::from_process() }
    }
}

/// What the daemon runs on.
#[derive(Debug)]
pub struct Config {
    /// The file as read, for `--print-config`.
    pub raw: Raw,
    pub detector: DetectorConfig,
    pub vectorizer: VectorizerConfig,
    pub stitch: StitchConfig,
    pub database: DbConfig,
    pub mode: Mode,
    /// `None`: nothing leaves the machine.
    pub upload: Option<UploadConfig>,
    /// Host and port of the control panel; "" for none.
    pub panel: String,
    /// Names under which a browser may ask, with this machine's own.
    pub hosts: Vec<String>,
    pub caps: Caps,
}

impl Config {
    /// Reads and validates `path`.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn load(path: &Path, env: &Environment) -> Result<Self, config::Error> {
        Self::from_loaded(config::load::<Raw>(path)?, env)
    }

    /// Validates what was read.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn from_loaded(loaded: Loaded<Raw>, env: &Environment) -> Result<Self, config::Error> {
        check_bounds(&loaded)?;
        let raw = &loaded.raw;
        if raw.listen.parse::<SocketAddr>().is_err() {
            let found = &raw.listen;
            let why = format!("expected an address and a port such as \"127.0.0.1:6000\", found {found:?}");
            return Err(loaded.problem("listen", &why));
        }
        if !raw.state_dir.is_absolute() || raw.state_dir == Path::new("/") {
            return Err(loaded.problem("state-dir", "expected the absolute path of a folder"));
        }
        let panel = env.panel.clone().unwrap_or_else(|| raw.panel.host.clone());
        let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'@' | b'?' | b'#');
        if !panel.bytes().all(plain) {
            let why = format!("expected a host and a port such as \"panel:8000\", found {panel:?}");
            return Err(loaded.problem("panel.host", &why));
        }
        http::host::check(&raw.hosts).map_err(|why| loaded.problem("hosts", &why))?;
        let (mode, upload) = raw.upload.check(&loaded, &raw.state_dir, &env.store)?;
        Ok(Self {
            detector: raw.detector.check(&loaded)?,
            vectorizer: raw.vectorizer.check(&loaded)?,
            stitch: raw.stitch.check(&loaded)?,
            database: raw.database.check(&loaded, &raw.state_dir, &env.store)?,
            mode,
            upload,
            panel,
            hosts: raw.hosts.iter().cloned().chain(http::host::of_machine()).collect(),
            caps: caps(&raw.limits),
            raw: loaded.raw,
        })
    }

    /// What a person should know before it runs.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let address = self.raw.listen.parse::<SocketAddr>();
        if address.is_ok_and(|a| !a.ip().is_loopback()) {
            warnings.push(format!(
                "listen = {:?}: arms have no password, so whoever reaches this port can send pictures and see them",
                self.raw.listen
            ));
        }
        warnings
    }
}

fn check_bounds(loaded: &Loaded<Raw>) -> Result<(), config::Error> {
    let within = |key, value, min, max| loaded.within(key, value, min, max);
    let size = |key, value, min, max| loaded.size_within(key, value, min, max);
    let raw = &loaded.raw;
    within("drain-ms", raw.drain_ms, 0, 600_000)?;
    let p = &raw.pictures;
    size("pictures.bytes-max", p.bytes_max, Size::mib(1), Size(1 << 50))?;
    within("pictures.pixels-max", p.pixels_max, 10_000, 1_000_000_000)?;
    within("pictures.quality", p.quality.into(), 1, 100)?;
    within("panel.queue-max", raw.panel.queue_max as u64, 1, 1_000_000)?;
    within("panel.timeout-ms", raw.panel.timeout_ms, 100, 600_000)?;
    let l = &raw.limits;
    within("limits.workers", l.workers as u64, 1, 64)?;
    within("limits.opencv-threads", l.opencv_threads.into(), 0, 64)?;
    within("limits.queue-max", l.queue_max as u64, 1, 10_000)?;
    size("limits.message-bytes-max", l.message_bytes_max, Size::kib(64), Size::mib(64))?;
    bounds(l).check(loaded, 10_000)
}

fn bounds(limits: &Limits) -> Bounds {
    Bounds {
        connections_max: limits.connections_max,
        connections_per_peer: limits.connections_per_peer,
        // Without TLS there is none.
        handshake_ms: 10_000,
        head_ms: limits.head_ms,
        body_ms: None,
        idle_ms: limits.idle_ms,
        write_ms: limits.write_ms,
    }
}

fn caps(limits: &Limits) -> Caps {
    let http = http::Limits { body_bytes: 0, ..http::Limits::default() };
    let refusal = |reject: http::Reject| http::Response::text(reject.status, reject.why);
    bounds(limits).caps(http, 256 << 10, refusal)
}

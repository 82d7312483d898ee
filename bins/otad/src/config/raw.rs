//! The tables of `/etc/edge/otad.toml` as they are written, with their defaults. `etc/otad.toml` explains every key.

use std::collections::BTreeMap;
use std::path::PathBuf;

use edge::config::Size;
use serde::{Deserialize, Serialize};

/// The file as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Raw {
    pub server: String,
    pub mode: Mode,
    pub public_keys: Vec<PathBuf>,
    pub require_signature: bool,
    pub unlisted_apps: Unlisted,
    pub budget_per_day: Size,
    pub window_clock: WindowClock,
    pub systemctl: PathBuf,
    pub state_dir: PathBuf,
    pub ctl_socket: PathBuf,
    pub device_file: PathBuf,
    pub poll: Poll,
    pub health: Health,
    pub tls: Tls,
    pub limits: Limits,
    pub window: Vec<Window>,
    pub app: BTreeMap<String, App>,
}

/// How content travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One request, one tar.gz.
    Bundle,
    /// The metadata, then each file.
    Files,
}

/// What becomes of an app that the server sends and no `[app.NAME]` knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unlisted {
    /// It is not installed.
    Ignore,
    /// It is installed as a file without unit.
    File,
}

/// What the times of windows mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WindowClock {
    Local,
    Utc,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Poll {
    pub interval_s: u64,
    pub retry_min_s: u64,
    pub retry_max_s: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Health {
    pub active_within_s: u64,
    pub stable_s: u64,
    pub command: Vec<String>,
    pub command_timeout_s: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Tls {
    pub ca_file: PathBuf,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    pub connect_timeout_ms: u64,
    pub idle_timeout_ms: u64,
    pub details_max: Size,
    pub file_max: Size,
    pub expanded_max: Size,
    pub entries_max: u64,
    pub free_min: Size,
    pub keep_generations: u32,
    pub hook_timeout_s: u64,
    pub handler_timeout_s: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Window {
    #[serde(default)]
    pub days: Vec<String>,
    pub from: String,
    pub to: String,
}

/// How content becomes an app's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawKind {
    File,
    Tar,
    Handler,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct App {
    pub kind: RawKind,
    pub mode: String,
    pub unit: String,
    pub pre_install: Vec<String>,
    pub post_install: Vec<String>,
    pub handler: Vec<String>,
    pub health: Vec<String>,
}

impl Default for Raw {
    fn default() -> Self {
        Raw {
            server: String::new(),
            mode: Mode::Files,
            public_keys: Vec::new(),
            require_signature: true,
            unlisted_apps: Unlisted::Ignore,
            budget_per_day: Size(0),
            window_clock: WindowClock::Local,
            systemctl: "/usr/bin/systemctl".into(),
            state_dir: "/var/lib/edge/otad".into(),
            ctl_socket: "/run/edge/otad/ctl.sock".into(),
            device_file: "/etc/edge/device.toml".into(),
            poll: Poll::default(),
            health: Health::default(),
            tls: Tls::default(),
            limits: Limits::default(),
            window: Vec::new(),
            app: BTreeMap::new(),
        }
    }
}

impl Default for Poll {
    fn default() -> Self {
        Poll { interval_s: 3600, retry_min_s: 30, retry_max_s: 3600 }
    }
}

impl Default for Health {
    fn default() -> Self {
        Health { active_within_s: 150, stable_s: 60, command: Vec::new(), command_timeout_s: 30 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connect_timeout_ms: 15_000,
            idle_timeout_ms: 60_000,
            details_max: Size::mib(1),
            file_max: Size(8 << 30),
            expanded_max: Size(16 << 30),
            entries_max: 200_000,
            free_min: Size::mib(64),
            keep_generations: 3,
            hook_timeout_s: 300,
            handler_timeout_s: 1800,
        }
    }
}

impl Default for App {
    fn default() -> Self {
        App {
            kind: RawKind::File,
            mode: "0755".into(),
            unit: String::new(),
            pre_install: Vec::new(),
            post_install: Vec::new(),
            handler: Vec::new(),
            health: Vec::new(),
        }
    }
}

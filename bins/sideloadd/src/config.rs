//! `/etc/edge/sideloadd.toml`: its tables, defaults and checks. `etc/sideloadd.toml` explains every key.
//!
//! Owns: what a valid configuration is. Never: opens a socket or the store.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge::config::{self, Loaded, Size};
use edge::device::Device;
use edge::http;
use edge::http::conns::{Bounds, Caps};
use edge::sync::manifest;
use edge::tls::{self, Facts, ServerTls, ServerTlsConfig};
use serde::{Deserialize, Serialize};

use crate::app::Launcher;
use crate::core::{Policy, Restart};
use crate::routes::Refusal;
use crate::store::StoreConfig;

/// The file as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Raw {
    pub listen: String,
    pub root: PathBuf,
    pub fallback_root: PathBuf,
    pub entrypoints: Vec<String>,
    pub enable_sideloading: bool,
    pub run_app_immediately: bool,
    pub idle_exit_s: u64,
    pub ctl_socket: PathBuf,
    pub device_file: PathBuf,
    pub tls: Tls,
    pub app: App,
    pub logs: Logs,
    pub limits: Limits,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Tls {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    pub client_pins: Vec<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct App {
    pub restart: RawRestart,
    pub backoff_min_ms: u64,
    pub backoff_max_ms: u64,
    pub stop_timeout_ms: u64,
    pub crash_window_s: u64,
    pub rollback_on_crash: bool,
    pub interpreters: BTreeMap<String, Vec<String>>,
    pub env: BTreeMap<String, String>,
}

/// When an application that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RawRestart {
    Never,
    OnFailure,
    Always,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Logs {
    pub bytes_max: Size,
    pub journal: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Limits {
    pub connections_max: usize,
    pub connections_per_peer: usize,
    pub handshake_ms: u64,
    pub head_ms: u64,
    pub body_ms: u64,
    pub idle_ms: u64,
    pub write_ms: u64,
    pub window: Size,
    pub file_max: Size,
    pub files_max: usize,
    pub manifest_max: Size,
    pub free_min: Size,
    pub keep_commits: u32,
    pub history_max: Size,
}

impl Default for Raw {
    fn default() -> Self {
        Raw {
            listen: "0.0.0.0:8123".into(),
            root: "/opt/aws/panorama/storage/sideloaded".into(),
            fallback_root: "/panorama".into(),
            entrypoints: vec!["main.sh".into(), "main.py".into()],
            enable_sideloading: true,
            run_app_immediately: false,
            idle_exit_s: 60,
            ctl_socket: "/run/edge/sideloadd/ctl.sock".into(),
            device_file: "/etc/edge/device.toml".into(),
            tls: Tls::default(),
            app: App::default(),
            logs: Logs::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Tls {
    fn default() -> Self {
        Tls {
            cert_file: "/etc/edge/sideloadd/sideloading_server.cert.pem".into(),
            key_file: "/etc/edge/sideloadd/sideloading_server.key.pem".into(),
            client_pins: vec!["/etc/edge/sideloadd/sideloading_client.cert.pem".into()],
        }
    }
}

impl Default for App {
    fn default() -> Self {
        App {
            restart: RawRestart::Never,
            backoff_min_ms: 500,
            backoff_max_ms: 30_000,
            stop_timeout_ms: 5_000,
            crash_window_s: 10,
            rollback_on_crash: false,
            interpreters: [("py".into(), vec!["python3".into()]), ("sh".into(), vec!["/bin/sh".into()])]
                .into(),
            env: BTreeMap::new(),
        }
    }
}

impl Default for Logs {
    fn default() -> Self {
        Logs { bytes_max: Size::mib(1), journal: true }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 32,
            connections_per_peer: 24,
            handshake_ms: 5_000,
            head_ms: 10_000,
            body_ms: 30_000,
            idle_ms: 60_000,
            write_ms: 30_000,
            window: Size::kib(512),
            file_max: Size(8 << 30),
            files_max: 20_000,
            manifest_max: Size::mib(8),
            free_min: Size::mib(64),
            keep_commits: 5,
            history_max: Size(1 << 30),
        }
    }
}

/// Keys, pins, and what is known of them.
#[derive(Debug, Clone)]
pub struct Secured {
    pub tls: ServerTls,
    pub server: Vec<Facts>,
    pub clients: Vec<Facts>,
}

/// What the daemon runs on.
#[derive(Debug)]
pub struct Config {
    /// The file as read, for `--print-config`.
    pub raw: Raw,
    pub device: String,
    /// `None`: sideloading is not enabled.
    pub secured: Option<Secured>,
    pub caps: Caps,
    pub manifest: manifest::Limits,
    pub store: StoreConfig,
    pub policy: Policy,
}

impl Config {
    /// Reads and validates `path`.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn load(path: &Path) -> Result<Config, config::Error> {
        let loaded = config::load::<Raw>(path)?;
        let device = Device::load(&loaded.raw.device_file)?.id;
        check_bounds(&loaded)?;
        check_names(&loaded)?;
        let raw = &loaded.raw;
        let secured = if raw.enable_sideloading { Some(secured(&loaded)?) } else { None };
        let limits = &raw.limits;
        let manifest =
            manifest::Limits { files_max: limits.files_max, bytes_max: limits.manifest_max.as_usize() };
        let store = StoreConfig {
            root: raw.root.clone(),
            keep_commits: limits.keep_commits,
            history_bytes_max: limits.history_max.0,
            free_bytes_min: limits.free_min.0,
            files_max: limits.files_max,
            file_bytes_max: limits.file_max.0,
        };
        let (caps, policy) = (caps(limits), policy(&raw.app));
        Ok(Config { device, secured, caps, manifest, store, policy, raw: loaded.raw })
    }

    /// What is allowed but hardly meant, at this moment.
    pub fn warnings(&self) -> Vec<String> {
        let now_s = edge::clock::unix_ns() / 1_000_000_000;
        let mut warnings = Vec::new();
        match &self.secured {
            Some(secured) => warnings.extend(secured.expiring(now_s)),
            None if self.raw.root.exists() => warnings.push(format!(
                "enable-sideloading = false: what was sideloaded into {} is not run",
                self.raw.root.display()
            )),
            None => {}
        }
        if self.raw.app.rollback_on_crash && self.raw.limits.keep_commits < 2 {
            warnings.push("app.rollback-on-crash needs limits.keep-commits of at least 2".into());
        }
        warnings
    }
}

impl Config {
    /// Keys that are different in `new` and are not taken in by a reload.
    pub fn needs_a_restart(&self, new: &Config) -> Vec<&'static str> {
        let (a, b) = (&self.raw, &new.raw);
        let (l, m) = (&a.limits, &b.limits);
        let stored =
            |l: &Limits| (l.file_max, l.files_max, l.manifest_max, l.free_min, l.keep_commits, l.history_max);
        let changed = [
            (a.listen != b.listen, "listen"),
            (a.root != b.root, "root"),
            (a.enable_sideloading != b.enable_sideloading, "enable-sideloading"),
            (a.ctl_socket != b.ctl_socket, "ctl-socket"),
            (a.logs.bytes_max != b.logs.bytes_max, "logs.bytes-max"),
            (stored(l) != stored(m), "a limit of files, commits or the disk in [limits]"),
        ];
        changed.into_iter().filter_map(|(changed, key)| changed.then_some(key)).collect()
    }

    /// `new`, less what is not taken in by a reload.
    #[must_use]
    pub fn with_reloaded(&self, mut new: Config) -> Config {
        let old = &self.raw;
        new.raw.listen.clone_from(&old.listen);
        new.raw.root.clone_from(&old.root);
        new.raw.enable_sideloading = old.enable_sideloading;
        new.raw.ctl_socket.clone_from(&old.ctl_socket);
        new.raw.logs.bytes_max = old.logs.bytes_max;
        (new.store, new.manifest) = (self.store.clone(), self.manifest);
        if !old.enable_sideloading {
            new.secured = None;
        } else if new.secured.is_none() {
            new.secured.clone_from(&self.secured);
        }
        new
    }

    /// Where the application is looked for.
    pub fn launcher(&self) -> Launcher {
        Launcher {
            root: self.raw.enable_sideloading.then(|| self.raw.root.clone()),
            fallback_root: self.raw.fallback_root.clone(),
            entrypoints: self.raw.entrypoints.clone(),
            interpreters: self.raw.app.interpreters.clone().into_iter().collect(),
            env: self.raw.app.env.clone(),
        }
    }
}

/// A warning is due from so long before a certificate's end, in seconds.
const EXPIRES_SOON_S: i64 = 7 * 86_400;

impl Secured {
    /// What is to be said of certificates that end soon, or are not valid now (Unix seconds).
    pub fn expiring(&self, now_s: i64) -> Vec<String> {
        expiring(&self.server, &self.clients, now_s)
    }

    /// Whether a certificate with this SHA-256 is pinned.
    pub fn is_pinned(&self, sha256_hex: &str) -> bool {
        self.clients.iter().any(|facts| facts.sha256_hex == sha256_hex)
    }
}

fn expiring(server: &[Facts], clients: &[Facts], now_s: i64) -> Vec<String> {
    let all = server.first().into_iter().map(|f| ("the server certificate (tls.cert-file)", f));
    let all = all.chain(clients.iter().map(|f| ("a client certificate (tls.client-pins)", f)));
    let say = |(what, facts): (&str, &Facts)| {
        let left = facts.not_after.saturating_sub(now_s);
        let name = facts.sha256_hex.get(..8).unwrap_or_default();
        if now_s < facts.not_before {
            Some(format!("{what}, {name}…, is not valid yet: is the clock of this device right?"))
        } else if left < 0 {
            Some(format!("{what}, {name}…, has expired: make new ones with `sideload keys`"))
        } else if left < EXPIRES_SOON_S {
            let (days, hours) = (left / 86_400, left % 86_400 / 3600);
            Some(format!(
                "{what}, {name}…, expires in {days} days {hours} hours: make new ones with `sideload keys`"
            ))
        } else {
            None
        }
    };
    all.filter_map(say).collect()
}

fn check_bounds(loaded: &Loaded<Raw>) -> Result<(), config::Error> {
    let within = |key, value, min, max| loaded.within(key, value, min, max);
    let size = |key, value, min, max| loaded.size_within(key, value, min, max);
    let (raw, day) = (&loaded.raw, 86_400_000);
    within("idle-exit-s", raw.idle_exit_s, 0, 86_400)?;
    let a = &raw.app;
    within("app.backoff-min-ms", a.backoff_min_ms, 1, day)?;
    within("app.backoff-max-ms", a.backoff_max_ms, a.backoff_min_ms, day)?;
    within("app.stop-timeout-ms", a.stop_timeout_ms, 0, 600_000)?;
    within("app.crash-window-s", a.crash_window_s, 0, 86_400)?;
    size("logs.bytes-max", raw.logs.bytes_max, Size::kib(16), Size::mib(256))?;
    let l = &raw.limits;
    bounds(l).check(loaded, 1000)?;
    size("limits.window", l.window, Size::kib(64), Size::mib(16))?;
    size("limits.file-max", l.file_max, Size(1), Size(1 << 50))?;
    within("limits.files-max", l.files_max as u64, 1, 1_000_000)?;
    size("limits.manifest-max", l.manifest_max, Size::kib(64), Size::mib(256))?;
    size("limits.free-min", l.free_min, Size(0), Size(1 << 50))?;
    within("limits.keep-commits", l.keep_commits.into(), 1, 1000)
}

fn check_names(loaded: &Loaded<Raw>) -> Result<(), config::Error> {
    let raw = &loaded.raw;
    for (key, path) in [("root", &raw.root), ("fallback-root", &raw.fallback_root)] {
        if !path.is_absolute() || path == Path::new("/") {
            return Err(loaded.problem(key, "expected the absolute path of a folder"));
        }
    }
    if raw.entrypoints.is_empty() {
        return Err(loaded.problem("entrypoints", "expected at least one file name"));
    }
    for name in &raw.entrypoints {
        edge::sync::RelPath::new(name).map_err(|refusal| {
            loaded.problem(
                "entrypoints",
                &format!("expected a path below root, found {name:?} ({})", refusal.why),
            )
        })?;
    }
    if raw.enable_sideloading {
        let address: Result<SocketAddr, _> = raw.listen.parse();
        address.map_err(|_| {
            let found = &raw.listen;
            loaded.problem(
                "listen",
                &format!("expected an address and a port such as \"0.0.0.0:8123\", found {found:?}"),
            )
        })?;
    }
    for (name, value) in &raw.app.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            let key = format!("app.env.{name}");
            return Err(loaded.problem(&key, "expected the name of a variable and a text, neither with NUL"));
        }
    }
    for (end, command) in &raw.app.interpreters {
        if command.first().is_none_or(String::is_empty) || command.iter().any(|word| word.contains('\0')) {
            let key = format!("app.interpreters.{end}");
            return Err(loaded.problem(&key, "expected a list: the program, then its first arguments"));
        }
    }
    Ok(())
}

fn secured(loaded: &Loaded<Raw>) -> Result<Secured, config::Error> {
    let raw = &loaded.raw.tls;
    let wrong = |key: &'static str| {
        move |error: tls::Error| {
            let fix = "make keys with `sideload keys` and copy them here";
            loaded.problem(key, &format!("{}; {fix}", edge::log::chain(&error)))
        }
    };
    if raw.client_pins.is_empty() {
        return Err(
            loaded.problem("tls.client-pins", "expected at least one file with a client's certificate")
        );
    }
    let server = tls::facts("server certificate", &raw.cert_file).map_err(wrong("tls.cert-file"))?;
    let mut clients = Vec::new();
    for path in &raw.client_pins {
        clients.extend(tls::facts("client certificate", path).map_err(wrong("tls.client-pins"))?);
    }
    let key = config::secret_path(&raw.key_file);
    let files = ServerTlsConfig {
        cert: raw.cert_file.clone(),
        key,
        client_ca: None,
        client_pins: raw.client_pins.clone(),
    };
    let tls = ServerTls::load(&files).map_err(wrong("tls.key-file"))?;
    Ok(Secured { tls, server, clients })
}

fn bounds(limits: &Limits) -> Bounds {
    Bounds {
        connections_max: limits.connections_max,
        connections_per_peer: limits.connections_per_peer,
        handshake_ms: limits.handshake_ms,
        head_ms: limits.head_ms,
        body_ms: Some(limits.body_ms),
        idle_ms: limits.idle_ms,
        write_ms: limits.write_ms,
    }
}

fn caps(limits: &Limits) -> Caps {
    let http = http::Limits {
        // A path may have 1024 bytes, each of them written as three.
        target_bytes: 4 << 10,
        // What is too long is drained and answered, which the codec's own refusal does not do.
        body_bytes: u64::MAX,
        ..http::Limits::default()
    };
    bounds(limits)
        .caps(http, limits.window.as_usize(), |reject| Refusal::new(reject.status, reject.why).response())
}

fn policy(app: &App) -> Policy {
    let ms = Duration::from_millis;
    Policy {
        restart: match app.restart {
            RawRestart::Never => Restart::Never,
            RawRestart::OnFailure => Restart::OnFailure,
            RawRestart::Always => Restart::Always,
        },
        backoff: (ms(app.backoff_min_ms), ms(app.backoff_max_ms)),
        stop_timeout: ms(app.stop_timeout_ms),
        crash_window: Duration::from_secs(app.crash_window_s),
        rollback_on_crash: app.rollback_on_crash,
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;

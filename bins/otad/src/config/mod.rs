//! `/etc/edge/otad.toml`: its checks, and what the daemon runs on. `etc/otad.toml` explains every key.
//!
//! Owns: what a valid configuration is. Never: opens a socket or the store.

mod raw;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use edge::aws::tls;
use edge::config::{self, Loaded, Size};
use edge::device::Device;
use edge::release::{PublicKeys, valid_name};

pub use raw::{Mode, Raw, RawKind, Unlisted, WindowClock};

use crate::ask::Ask;
use crate::core::Policy;
use crate::install::Kind;
use crate::window::Windows;

/// How one app is installed and looked after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct App {
    pub kind: Kind,
    /// The unit to restart and to watch; empty: none.
    pub unit: String,
    /// Commands; empty: none.
    pub pre_install: Vec<String>,
    pub post_install: Vec<String>,
    pub handler: Vec<String>,
    pub health: Vec<String>,
}

/// What the daemon runs on.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file as read, for `--print-config`.
    pub raw: Raw,
    /// Who this device is.
    pub device: String,
    pub ask: Ask,
    pub keys: PublicKeys,
    pub tls: ureq::tls::TlsConfig,
    /// By the name in lower case.
    pub apps: BTreeMap<String, App>,
    pub windows: Windows,
    pub policy: Policy,
}

impl Config {
    /// Reads and validates `path`.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn load(path: &Path) -> Result<Config, config::Error> {
        let loaded = config::load::<Raw>(path)?;
        check_bounds(&loaded)?;
        let raw = &loaded.raw;
        let https = check_server(&loaded)?;
        for (key, folder) in [("state-dir", &raw.state_dir), ("systemctl", &raw.systemctl)] {
            if !folder.is_absolute() || folder == Path::new("/") {
                return Err(loaded.problem(key, "expected an absolute path"));
            }
        }
        let device = Device::load(&raw.device_file)?;
        let machine = rustix::system::uname().machine().to_string_lossy().into_owned();
        let ask = Ask::new(&device.attributes, &machine).map_err(|(key, why)| {
            config::Error::file(&raw.device_file, format!("attributes.{key}: {why}"))
        })?;
        let keys = PublicKeys::load(&raw.public_keys)
            .map_err(|error| loaded.problem("public-keys", &edge::log::chain(&error)))?;
        if raw.require_signature && keys.is_empty() {
            return Err(loaded.problem(
                if raw.public_keys.is_empty() { "public-keys" } else { "require-signature" },
                "expected at least one file with a public key ('depotd keygen' or 'minisign -G' makes them), \
                 or require-signature = false for a server that signs nothing",
            ));
        }
        let tls = tls(&loaded, https)?;
        let apps = apps(&loaded)?;
        let windows = windows(&loaded)?;
        Ok(Config { device: device.id, ask, keys, tls, apps, windows, policy: policy(raw), raw: loaded.raw })
    }

    /// What is allowed but hardly meant.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let raw = &self.raw;
        if !raw.require_signature {
            warnings.push(
                "require-signature = false: whoever can answer for the server decides what this device runs"
                    .into(),
            );
        }
        if raw.server.starts_with("http:") {
            warnings.push("server: plain HTTP; others on the way see and can hold back updates".into());
        }
        for (name, app) in &self.apps {
            if app.unit.is_empty() && app.health.is_empty() && raw.health.command.is_empty() {
                warnings.push(format!(
                    "app.{name}: neither unit nor health command: a bad release is not noticed"
                ));
            }
        }
        if self.apps.is_empty() && raw.unlisted_apps == Unlisted::Ignore {
            warnings
                .push("no [app.NAME] and unlisted-apps = \"ignore\": nothing will ever be installed".into());
        }
        warnings
    }

    /// How an app is installed; `None`: it is not.
    #[must_use]
    pub fn app(&self, name: &str) -> Option<App> {
        match (self.apps.get(&name.to_ascii_lowercase()), self.raw.unlisted_apps) {
            (Some(app), _) => Some(app.clone()),
            (None, Unlisted::Ignore) => None,
            (None, Unlisted::File) => Some(App {
                kind: Kind::File { mode: 0o755 },
                unit: String::new(),
                pre_install: vec![],
                post_install: vec![],
                handler: vec![],
                health: vec![],
            }),
        }
    }

    /// Keys that are different in `new` and are not taken in by a reload.
    #[must_use]
    pub fn needs_a_restart(&self, new: &Config) -> Vec<&'static str> {
        let (a, b) = (&self.raw, &new.raw);
        let changed =
            [(a.state_dir != b.state_dir, "state-dir"), (a.ctl_socket != b.ctl_socket, "ctl-socket")];
        changed.into_iter().filter_map(|(changed, key)| changed.then_some(key)).collect()
    }

    /// Seconds to add to Unix time for the clock of the windows and the budget's day.
    #[must_use]
    pub fn clock_offset_s(&self, unix_s: i64) -> i64 {
        match self.raw.window_clock {
            WindowClock::Utc => 0,
            WindowClock::Local => edge::clock::local_offset_s(unix_s),
        }
    }
}

fn check_bounds(loaded: &Loaded<Raw>) -> Result<(), config::Error> {
    let within = |key, value, min, max| loaded.within(key, value, min, max);
    let size = |key, value, min, max| loaded.size_within(key, value, min, max);
    let (p, h, l) = (&loaded.raw.poll, &loaded.raw.health, &loaded.raw.limits);
    let day = 86_400;
    within("poll.interval-s", p.interval_s, 1, 30 * day)?;
    within("poll.retry-min-s", p.retry_min_s, 1, day)?;
    within("poll.retry-max-s", p.retry_max_s, p.retry_min_s, 7 * day)?;
    within("health.active-within-s", h.active_within_s, 1, day)?;
    within("health.stable-s", h.stable_s, 0, day)?;
    within("health.command-timeout-s", h.command_timeout_s, 1, day)?;
    within("limits.connect-timeout-ms", l.connect_timeout_ms, 100, 600_000)?;
    within("limits.idle-timeout-ms", l.idle_timeout_ms, 100, 3_600_000)?;
    size("limits.details-max", l.details_max, Size::kib(4), Size::mib(16))?;
    size("limits.file-max", l.file_max, Size(1), Size(1 << 50))?;
    size("limits.expanded-max", l.expanded_max, Size(1), Size(1 << 50))?;
    within("limits.entries-max", l.entries_max, 1, 10_000_000)?;
    size("limits.free-min", l.free_min, Size(0), Size(1 << 50))?;
    within("limits.keep-generations", l.keep_generations.into(), 2, 100)?;
    within("limits.hook-timeout-s", l.hook_timeout_s, 1, day)?;
    within("limits.handler-timeout-s", l.handler_timeout_s, 1, day)
}

/// Whether it is HTTPS.
fn check_server(loaded: &Loaded<Raw>) -> Result<bool, config::Error> {
    let server = &loaded.raw.server;
    let expected =
        "expected the package server's address, such as \"https://updates.example.com\", without query";
    let uri: Result<ureq::http::Uri, _> = server.parse();
    let scheme = uri.as_ref().ok().filter(|uri| uri.host().is_some() && uri.query().is_none());
    match scheme.and_then(|uri| uri.scheme_str()) {
        Some("https") => Ok(true),
        Some("http") => Ok(false),
        _ => Err(loaded.problem("server", &format!("{expected}, found {server:?}"))),
    }
}

fn tls(loaded: &Loaded<Raw>, https: bool) -> Result<ureq::tls::TlsConfig, config::Error> {
    if !https {
        return Ok(tls::none());
    }
    let raw = &loaded.raw.tls;
    let given = |path: &Path| (!path.as_os_str().is_empty()).then(|| path.to_owned());
    let key = given(&raw.key_file).map(|path| config::secret_path(&path));
    let files = tls::Files { ca: given(&raw.ca_file), cert: given(&raw.cert_file), key };
    tls::load(&files).map_err(|error| {
        let key = match &error {
            tls::Error::Read { what, .. } | tls::Error::Content { what, .. } => format!("tls.{what}"),
            tls::Error::NoSystemRoots(_) => "tls.ca-file".into(),
            tls::Error::HalfAnIdentity => "tls".into(),
        };
        loaded.problem(&key, &edge::log::chain(&error))
    })
}

fn apps(loaded: &Loaded<Raw>) -> Result<BTreeMap<String, App>, config::Error> {
    let mut apps = BTreeMap::new();
    for (name, raw) in &loaded.raw.app {
        let problem = |key: &str, why: &str| Err(loaded.problem(&format!("app.{name}{key}"), why));
        if !valid_name(name) {
            return problem("", "expected a name of 1 to 64 letters, digits, '.', '_' or '-'");
        }
        let mode = u32::from_str_radix(&raw.mode, 8).unwrap_or(u32::MAX);
        if mode & !0o755 != 0 || mode & 0o400 == 0 {
            let why = "expected permission bits such as \"0755\" or \"0644\": readable for the owner, and writable for \
                       nobody else";
            return problem(".mode", why);
        }
        if (raw.kind == RawKind::Handler) == raw.handler.is_empty() {
            return problem(".handler", "a command and kind = \"handler\" go together");
        }
        if !raw.unit.is_empty() && !valid_unit(&raw.unit) {
            return problem(".unit", "expected the name of a unit such as \"camera.service\"");
        }
        let commands = [
            (".pre-install", &raw.pre_install),
            (".post-install", &raw.post_install),
            (".handler", &raw.handler),
            (".health", &raw.health),
        ];
        for (key, command) in commands {
            if let Err(why) = check_command(command) {
                return problem(key, why);
            }
        }
        let kind = match raw.kind {
            RawKind::File => Kind::File { mode },
            RawKind::Tar => Kind::Tar,
            RawKind::Handler => Kind::Handler,
        };
        let app = App {
            kind,
            unit: raw.unit.clone(),
            pre_install: raw.pre_install.clone(),
            post_install: raw.post_install.clone(),
            handler: raw.handler.clone(),
            health: raw.health.clone(),
        };
        if apps.insert(name.to_ascii_lowercase(), app).is_some() {
            return problem("", "is there twice: names of apps are the same in either case");
        }
    }
    check_command(&loaded.raw.health.command).map_err(|why| loaded.problem("health.command", why))?;
    Ok(apps)
}

fn valid_unit(unit: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"@._-:\\".contains(&b);
    unit.len() < 256 && !unit.starts_with('-') && unit.contains('.') && unit.bytes().all(allowed)
}

fn check_command(command: &[String]) -> Result<(), &'static str> {
    match command.first() {
        None => Ok(()),
        Some(program) if !program.starts_with('/') => {
            Err("expected a list: the program's absolute path, then its arguments")
        }
        Some(_) if command.iter().any(|word| word.contains('\0')) => Err("expected texts without NUL"),
        Some(_) => Ok(()),
    }
}

fn windows(loaded: &Loaded<Raw>) -> Result<Windows, config::Error> {
    let mut windows = Windows::default();
    for (at, raw) in loaded.raw.window.iter().enumerate() {
        windows
            .add(&raw.days, &raw.from, &raw.to)
            .map_err(|(key, why)| loaded.problem(&format!("window[{at}].{key}"), &why))?;
    }
    Ok(windows)
}

fn policy(raw: &Raw) -> Policy {
    let s = Duration::from_secs;
    Policy {
        interval: s(raw.poll.interval_s),
        retry: (s(raw.poll.retry_min_s), s(raw.poll.retry_max_s)),
        active_within: s(raw.health.active_within_s),
        stable: s(raw.health.stable_s),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

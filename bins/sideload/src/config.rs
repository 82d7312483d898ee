//! `sideload.toml`, found upwards from the working directory, under the flags of the command line.
//!
//! Owns: the file's keys, their defaults and bounds. Invariant: a path in the file counts from the folder of the file, a
//! path in a flag from the working directory; a flag wins.
//! Never: connects, or looks whether a path exists.

use std::path::{Path, PathBuf};
use std::time::Duration;

use edge::config::Loaded;
use serde::Deserialize;

use crate::client::{Certs, Target};
use crate::output::Failure;

/// The name that is looked for in the working directory and in each folder above it.
pub const FILE_NAME: &str = "sideload.toml";

/// The port of `sideloadd` unless another one is configured.
pub const PORT: u16 = 8123;

/// What the command line says; it wins over the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--config`: this file, no search.
    pub config: Option<PathBuf>,
    /// `--addr`.
    pub addr: Option<String>,
    /// `--port`.
    pub port: Option<u16>,
    /// `--cert-key-dir`.
    pub cert_key_dir: Option<PathBuf>,
    /// `--src-top`.
    pub src_top: Option<PathBuf>,
}

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The file, if there is one.
    pub file: Option<PathBuf>,
    /// Host name or IP address of the device.
    pub addr: Option<String>,
    /// Its TCP port.
    pub port: u16,
    /// Where the PEM files are.
    pub cert_key_dir: PathBuf,
    /// The application's folder on this host; unknown without a file and without the flag.
    pub src_top: Option<PathBuf>,
    /// For TCP, and once more for the TLS handshake.
    pub connect_timeout: Duration,
    /// For `sideload dev`.
    pub dev: Dev,
}

/// Settings of `sideload dev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dev {
    /// A sync begins when nothing was saved for so long.
    pub debounce: Duration,
    /// And at the latest so long after the first save.
    pub debounce_max: Duration,
    /// Runs with the changed files that match `check_files` behind it; empty: no check.
    pub check: Vec<String>,
    /// Globs, as in .gitignore, of the files to check.
    pub check_files: Vec<String>,
    /// How long a check may take.
    pub check_timeout: Duration,
    /// The first rule that matches a changed file decides; without one the application is restarted. Of several files
    /// the strongest action counts: restart, then a signal, then none.
    pub rules: Vec<Rule>,
}

/// What a change of these files leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Globs, as in .gitignore, relative to src-top.
    pub files: Vec<String>,
    /// What to do after the sync.
    pub action: Action,
}

/// What happens to the application after a sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is restarted with the sync's commit.
    Restart,
    /// It gets this signal, named without SIG (`HUP`).
    Signal(String),
    /// Nothing: it reads the file by itself.
    Sync,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Raw {
    addr: String,
    port: u16,
    cert_key_dir: PathBuf,
    src_top: PathBuf,
    connect_timeout_ms: u64,
    dev: RawDev,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct RawDev {
    debounce_ms: u64,
    debounce_max_ms: u64,
    check: Vec<String>,
    check_files: Vec<String>,
    check_timeout_ms: u64,
    rule: Vec<RawRule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RawRule {
    files: Vec<String>,
    action: String,
}

impl Default for Raw {
    fn default() -> Raw {
        Raw {
            addr: String::new(),
            port: PORT,
            cert_key_dir: ".".into(),
            src_top: ".".into(),
            connect_timeout_ms: 5_000,
            dev: RawDev::default(),
        }
    }
}

impl Default for RawDev {
    fn default() -> RawDev {
        RawDev {
            debounce_ms: 50,
            debounce_max_ms: 500,
            check: ["python3", "-m", "py_compile"].map(String::from).to_vec(),
            check_files: vec!["*.py".into()],
            check_timeout_ms: 10_000,
            rule: Vec::new(),
        }
    }
}

/// The nearest `sideload.toml` in `from` or above it.
#[must_use]
pub fn find(from: &Path) -> Option<PathBuf> {
    from.ancestors().map(|folder| folder.join(FILE_NAME)).find(|path| path.is_file())
}

impl Settings {
    /// The settings for a command started in `cwd` (absolute).
    ///
    /// # Errors
    /// The file that `--config` names is missing, or the file is wrong: path, line, column, key and what was expected.
    pub fn load(cwd: &Path, flags: &Overrides) -> Result<Settings, Failure> {
        let file = flags.config.as_ref().map(|path| cwd.join(path)).or_else(|| find(cwd));
        let mut settings = match &file {
            Some(path) => {
                let settings = edge::config::load::<Raw>(path).and_then(validate)?;
                log::debug!("settings from {}", path.display());
                settings
            }
            None => defaults(cwd),
        };
        if let Some(addr) = &flags.addr {
            settings.addr = Some(addr.clone());
        }
        settings.port = flags.port.unwrap_or(settings.port);
        if let Some(dir) = &flags.cert_key_dir {
            settings.cert_key_dir = beside(cwd, dir);
        }
        if let Some(top) = &flags.src_top {
            settings.src_top = Some(beside(cwd, top));
        }
        Ok(settings)
    }

    /// Where to connect to.
    ///
    /// # Errors
    /// No address is known.
    pub fn target(&self) -> Result<Target, Failure> {
        let Some(addr) = self.addr.clone() else {
            return Err(Failure::usage("no device is named")
                .fix("give --addr ADDRESS, or write addr = \"ADDRESS\" into sideload.toml"));
        };
        Ok(Target {
            addr,
            port: self.port,
            certs: Certs::in_dir(&self.cert_key_dir),
            connect_timeout: self.connect_timeout,
        })
    }

    /// The application's folder on this host.
    ///
    /// # Errors
    /// It is not known, or it is no folder.
    pub fn source(&self) -> Result<&Path, Failure> {
        let Some(top) = &self.src_top else {
            return Err(Failure::usage("the application's folder is not named")
                .fix("give --src-top FOLDER, or write src-top = \"FOLDER\" into sideload.toml"));
        };
        if !top.is_dir() {
            return Err(Failure::new(crate::output::EX_IOERR, format!("{} is no folder", top.display()))
                .fix("--src-top, or src-top in sideload.toml, names the folder of main.py or main.sh"));
        }
        Ok(top)
    }
}

/// What is in force without a file: src-top stays unknown, so that no home folder is sent by mistake.
fn defaults(cwd: &Path) -> Settings {
    let raw = Raw::default();
    Settings {
        file: None,
        addr: None,
        port: raw.port,
        cert_key_dir: cwd.to_owned(),
        src_top: None,
        connect_timeout: Duration::from_millis(raw.connect_timeout_ms),
        dev: dev(raw.dev, Vec::new()),
    }
}

fn validate(loaded: Loaded<Raw>) -> Result<Settings, edge::config::Error> {
    let raw = &loaded.raw;
    if raw.addr.contains(['/', ' ', '@']) {
        let message = format!("expected a host name or an IP address alone, found {:?}", raw.addr);
        return Err(loaded.problem("addr", &message));
    }
    if raw.port == 0 {
        return Err(loaded.problem("port", "expected a port from 1 to 65535, found 0"));
    }
    let times = [
        ("connect-timeout-ms", raw.connect_timeout_ms, 100, 120_000),
        ("dev.debounce-ms", raw.dev.debounce_ms, 1, 10_000),
        ("dev.debounce-max-ms", raw.dev.debounce_max_ms, raw.dev.debounce_ms, 60_000),
        ("dev.check-timeout-ms", raw.dev.check_timeout_ms, 100, 600_000),
    ];
    for (key, value, min, max) in times {
        if value < min || value > max {
            return Err(loaded.problem(key, &format!("expected {min} to {max} milliseconds, found {value}")));
        }
    }
    let mut rules = Vec::new();
    for (at, rule) in raw.dev.rule.iter().enumerate() {
        let action = action(&rule.action).ok_or_else(|| {
            let expected = "expected \"restart\", \"sync\", or \"signal NAME\" such as \"signal HUP\"";
            loaded.problem(&format!("dev.rule[{at}].action"), &format!("{expected}, found {:?}", rule.action))
        })?;
        if rule.files.is_empty() {
            return Err(loaded.problem(&format!("dev.rule[{at}].files"), "expected at least one glob"));
        }
        rules.push(Rule { files: rule.files.clone(), action });
    }
    let file = loaded.path().to_owned();
    let folder = file.parent().unwrap_or(Path::new("/")).to_owned();
    let raw = loaded.raw;
    Ok(Settings {
        addr: (!raw.addr.is_empty()).then_some(raw.addr),
        port: raw.port,
        cert_key_dir: beside(&folder, &raw.cert_key_dir),
        src_top: Some(beside(&folder, &raw.src_top)),
        connect_timeout: Duration::from_millis(raw.connect_timeout_ms),
        dev: dev(raw.dev, rules),
        file: Some(file),
    })
}

fn dev(raw: RawDev, rules: Vec<Rule>) -> Dev {
    Dev {
        debounce: Duration::from_millis(raw.debounce_ms),
        debounce_max: Duration::from_millis(raw.debounce_max_ms),
        check: raw.check,
        check_files: raw.check_files,
        check_timeout: Duration::from_millis(raw.check_timeout_ms),
        rules,
    }
}

fn action(text: &str) -> Option<Action> {
    match text {
        "restart" => Some(Action::Restart),
        "sync" => Some(Action::Sync),
        _ => {
            let name = text.strip_prefix("signal ")?.trim();
            let name = name.strip_prefix("SIG").unwrap_or(name);
            let plain =
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit());
            plain.then(|| Action::Signal(name.to_owned()))
        }
    }
}

/// `path` as seen from `folder`, without `.` components.
fn beside(folder: &Path, path: &Path) -> PathBuf {
    folder.join(path).components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn the_file_is_found_upwards_and_its_paths_are_its_own() {
        let scratch = Scratch::new("config-find");
        let top = scratch.path();
        scratch.write(FILE_NAME, "addr = \"10.0.0.5\"\ncert-key-dir = \"./keys\"\nsrc-top = \"src\"\n");
        let deep = top.join("src/pkg/deep");
        std::fs::create_dir_all(&deep).unwrap();
        let found = Settings::load(&deep, &Overrides::default()).unwrap();
        assert_eq!(found.file, Some(top.join(FILE_NAME)));
        assert_eq!((found.addr.as_deref(), found.port), (Some("10.0.0.5"), 8123));
        assert_eq!(found.cert_key_dir, top.join("keys"));
        assert_eq!(found.src_top, Some(top.join("src")));
        // A nearer file hides it; what it leaves out has its default, its own folder.
        std::fs::write(top.join("src").join(FILE_NAME), "port = 9000\n").unwrap();
        let found = Settings::load(&deep, &Overrides::default()).unwrap();
        assert_eq!((found.addr.as_deref(), found.port), (None, 9000));
        assert_eq!(found.src_top, Some(top.join("src")));
        assert_eq!(found.target().unwrap_err().code, 64);
    }

    #[test]
    fn flags_win_and_count_from_the_working_directory() {
        let scratch = Scratch::new("config-flags");
        scratch.write(FILE_NAME, "addr = \"a\"\nport = 1\ncert-key-dir = \"k\"\n");
        let cwd = scratch.path().join("sub");
        std::fs::create_dir_all(&cwd).unwrap();
        let flags = Overrides {
            addr: Some("b".into()),
            port: Some(2),
            cert_key_dir: Some("k2".into()),
            src_top: Some("../s".into()),
            ..Overrides::default()
        };
        let found = Settings::load(&cwd, &flags).unwrap();
        assert_eq!((found.addr.as_deref(), found.port), (Some("b"), 2));
        assert_eq!(found.cert_key_dir, cwd.join("k2"));
        assert_eq!(found.src_top, Some(cwd.join("../s")));
        assert_eq!(found.target().unwrap().certs.dir, cwd.join("k2"));
        assert_eq!(found.source().unwrap_err().code, 74);
        let other = scratch.write("other.toml", "addr = \"c\"\n");
        let flags = Overrides { config: Some(other), ..Overrides::default() };
        assert_eq!(Settings::load(&cwd, &flags).unwrap().addr.as_deref(), Some("c"));
        let flags = Overrides { config: Some("none.toml".into()), ..Overrides::default() };
        assert_eq!(Settings::load(&cwd, &flags).unwrap_err().code, 78);
    }

    #[test]
    fn without_a_file_the_source_is_not_guessed() {
        let settings = defaults(Path::new("/somewhere"));
        assert_eq!(settings.cert_key_dir, Path::new("/somewhere"));
        let failure = settings.source().unwrap_err();
        assert!(failure.code == 64 && failure.fix.unwrap().contains("--src-top"));
    }

    #[test]
    fn a_wrong_key_is_located() {
        let problem = |text: &str| {
            let loaded = edge::config::parse::<Raw>(Path::new("sideload.toml"), text.to_owned());
            loaded.and_then(validate).unwrap_err().to_string()
        };
        for (text, expected) in [
            ("prot = 1\n", "sideload.toml:1:1: prot: unknown field `prot`"),
            ("addr = \"https://x\"\n", "sideload.toml:1:8: addr: expected a host name or an IP address"),
            ("port = 0\n", "sideload.toml:1:8: port: expected a port from 1"),
            (
                "[dev]\ndebounce-ms = 50\ndebounce-max-ms = 10\n",
                "sideload.toml:3:19: dev.debounce-max-ms: expected 50 to",
            ),
            (
                "[[dev.rule]]\nfiles = [\"*.html\"]\naction = \"reload\"\n",
                "sideload.toml:3:10: dev.rule[0].action: expected \"restart\"",
            ),
            ("[[dev.rule]]\nfiles = []\naction = \"sync\"\n", "sideload.toml:2:9: dev.rule[0].files"),
        ] {
            let found = problem(text);
            assert!(found.starts_with(expected), "{text}\n  found    {found}\n  expected {expected}");
        }
    }

    #[test]
    fn actions_read() {
        assert_eq!(action("restart"), Some(Action::Restart));
        assert_eq!(action("sync"), Some(Action::Sync));
        assert_eq!(action("signal SIGUSR1"), Some(Action::Signal("USR1".into())));
        for wrong in ["", "signal", "signal ", "signal -9; rm", "Restart"] {
            assert_eq!(action(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_sample_holds_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../etc/sideload.toml");
        let raw = edge::config::load::<Raw>(&path).unwrap();
        let found = validate(raw).unwrap();
        let mut expected = defaults(Path::new("/"));
        expected.dev.rules.clone_from(&found.dev.rules);
        assert_eq!(
            (found.port, found.connect_timeout, found.dev),
            (8123, expected.connect_timeout, expected.dev)
        );
    }
}

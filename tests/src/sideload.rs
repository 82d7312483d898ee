//! `sideloadd` as a device and `sideload` as its developer's host: keys, folders, both programs, and clients that share
//! no code with them (curl, Python).
//!
//! Owns: the daemon's process and its folders. Never: looks into `.sideloadd`, which is the daemon's own.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::daemon::Daemon;
use crate::env;
use crate::net::free_port;
use crate::scratch::Scratch;

/// A folder with the four PEM files of the original's names.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Where they are.
    pub dir: PathBuf,
}

impl Keys {
    /// As the original's install.py made them: self-signed, CA:TRUE, a common name and nothing else.
    pub fn openssl(scratch: &Scratch, name: &str) -> Keys {
        let keys = Keys { dir: scratch.dir(name) };
        keys.add("sideloading_server", "pan-sideloading-server");
        keys.add("sideloading_client", "pan-sideloading-client");
        keys
    }

    /// As `sideload keys` makes them.
    pub fn tool(scratch: &Scratch, name: &str) -> Keys {
        let keys = Keys { dir: scratch.dir(name) };
        env::run(Command::new(env::bin("sideload")).arg("keys").arg("--cert-key-dir").arg(&keys.dir));
        keys
    }

    /// One more pair, `stem.cert.pem` and `stem.key.pem`, made by openssl.
    pub fn add(&self, stem: &str, common_name: &str) {
        let mut command = Command::new("openssl");
        command.args([
            "req",
            "-x509",
            "-new",
            "-days",
            "30",
            "-nodes",
            "-subj",
            &format!("/CN={common_name}"),
        ]);
        command.arg("-out").arg(self.dir.join(format!("{stem}.cert.pem")));
        command.arg("-keyout").arg(self.dir.join(format!("{stem}.key.pem")));
        env::run(&mut command);
    }

    /// One more pair that is valid between these years only.
    pub fn add_dated(&self, stem: &str, from_year: i32, to_year: i32) {
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.not_before = rcgen::date_time_ymd(from_year, 1, 1);
        params.not_after = rcgen::date_time_ymd(to_year, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        std::fs::write(self.dir.join(format!("{stem}.cert.pem")), cert.pem()).unwrap();
        std::fs::write(self.dir.join(format!("{stem}.key.pem")), key.serialize_pem()).unwrap();
    }

    /// `stem.cert.pem` in it.
    pub fn cert(&self, stem: &str) -> PathBuf {
        self.dir.join(format!("{stem}.cert.pem"))
    }
}

/// What a [`Device`] is configured with.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Keys at the top of the file, before any table.
    pub top: String,
    /// More pinned client certificates.
    pub more_pins: Vec<PathBuf>,
    /// Keys of `[app]`.
    pub app: String,
    /// More tables.
    pub more: String,
    /// `listen = …` is written (not with socket activation).
    pub listen: bool,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            top: String::new(),
            more_pins: Vec::new(),
            app: "restart = \"never\"\nstop-timeout-ms = 1500\n".into(),
            more: String::new(),
            listen: true,
        }
    }
}

/// A device: the daemon, its root and its keys; and a folder of sources to sync from.
pub struct Device {
    /// The daemon.
    pub daemon: Daemon,
    /// Where it listens.
    pub port: u16,
    /// Where sideloaded files are.
    pub root: PathBuf,
    /// The application that was deployed with the device.
    pub fallback: PathBuf,
    /// Both ends' keys.
    pub keys: Keys,
    /// The developer's folder.
    pub src: PathBuf,
    cache: PathBuf,
}

/// What a command came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Outcome {
    /// Runs it to its end.
    pub fn of(command: &mut Command) -> Outcome {
        crate::process::in_own_group(command);
        let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Outcome {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Its output as JSON; panics unless it succeeded.
    pub fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("not JSON: {e}: {self:?}"))
    }
}

impl Device {
    /// A device with these keys that is not started yet.
    pub fn new(scratch: &Scratch, name: &str, keys: Keys, setup: &Setup) -> Device {
        let (port, root) = (free_port(), scratch.dir(&format!("{name}-root")));
        let (fallback, src) = (scratch.dir(&format!("{name}-deployed")), scratch.dir(&format!("{name}-src")));
        let quoted = |path: &Path| format!("\"{}\"", path.display());
        let mut pins = vec![keys.cert("sideloading_client")];
        pins.extend(setup.more_pins.iter().cloned());
        let pins = pins.iter().map(|p| quoted(p)).collect::<Vec<_>>().join(", ");
        let listen = if setup.listen { format!("listen = \"127.0.0.1:{port}\"\n") } else { String::new() };
        let toml = format!(
            "{listen}root = {}\nfallback-root = {}\nctl-socket = \"{{dir}}/ctl.sock\"\n{}\n\
             [tls]\ncert-file = {}\nkey-file = {}\nclient-pins = [{pins}]\n\n[app]\n{}\n\n{}",
            quoted(&root),
            quoted(&fallback),
            setup.top,
            quoted(&keys.cert("sideloading_server")),
            quoted(&keys.dir.join("sideloading_server.key.pem")),
            setup.app,
            setup.more,
        );
        let daemon = Daemon::new(scratch, "sideloadd", name, &toml);
        Device { daemon, port, root, fallback, keys, src, cache: scratch.dir(&format!("{name}-cache")) }
    }

    /// With keys as openssl makes them, running.
    pub fn start(scratch: &Scratch, setup: &Setup) -> Device {
        let keys = Keys::openssl(scratch, "keys");
        let mut device = Device::new(scratch, "dev", keys, setup);
        device.daemon.start_ready();
        device
    }

    /// `sideload` with the flags that reach this device; add `--src-top` by [`Device::src_top`].
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env::bin("sideload"));
        command.args(arguments).arg("--addr").arg("127.0.0.1").arg("--port").arg(self.port.to_string());
        command.arg("--cert-key-dir").arg(&self.keys.dir).env("XDG_CACHE_HOME", &self.cache);
        command.current_dir(&self.src);
        command
    }

    /// The same, run to its end.
    pub fn cli(&self, arguments: &[&str]) -> Outcome {
        Outcome::of(&mut self.command(arguments))
    }

    /// The same; panics unless it succeeds. Its JSON.
    pub fn ok(&self, arguments: &[&str]) -> Value {
        Outcome::of(self.command(arguments).arg("--json")).json()
    }

    /// `sync` of [`Device::src`]; panics unless it succeeds. Its JSON.
    pub fn sync(&self, more: &[&str]) -> Value {
        Outcome::of(self.sync_command().args(more)).json()
    }

    /// `sync --json` of [`Device::src`], to be run.
    pub fn sync_command(&self) -> Command {
        let mut command = self.command(&["sync", "--json"]);
        command.arg("--src-top").arg(&self.src);
        command
    }

    /// Puts a file into the developer's folder.
    pub fn write(&self, relative: &str, content: impl AsRef<[u8]>) {
        let path = self.src.join(relative);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// A scenario of `tests/sideload_contract.py`; its standard output. Panics unless it succeeds.
    pub fn python(&self, scenario: &str, more: &[&str]) -> String {
        env::run(&mut self.python_command(scenario, more))
    }

    /// The same, to be run.
    pub fn python_command(&self, scenario: &str, more: &[&str]) -> Command {
        let mut command = Command::new("python3");
        command.arg(env::root().join("tests/sideload_contract.py")).arg(scenario);
        command.arg("--port").arg(self.port.to_string()).arg("--keys").arg(&self.keys.dir);
        command.arg("--root").arg(&self.root).args(more);
        command
    }

    /// One request by curl: status and body.
    pub fn curl(&self, method: &str, path: &str) -> (u16, String) {
        let mut command = Command::new("curl");
        command.args(["-sk", "--max-time", "30", "--path-as-is", "-w", "\n%{http_code}", "-X", method]);
        command.arg("--cert").arg(self.keys.cert("sideloading_client"));
        command.arg("--key").arg(self.keys.dir.join("sideloading_client.key.pem"));
        command.arg(format!("https://127.0.0.1:{}{path}", self.port));
        let outcome = Outcome::of(&mut command);
        assert_eq!(outcome.code, 0, "curl {method} {path}: {outcome:?}");
        let (body, status) = outcome.out.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    /// One request by curl that succeeds; its JSON.
    pub fn ask(&self, method: &str, path: &str) -> Value {
        let (status, body) = self.curl(method, path);
        assert_eq!(status, 200, "{method} {path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{method} {path}: {e}: {body}"))
    }

    /// `GET /status` by curl.
    pub fn status(&self) -> Value {
        self.ask("GET", "/status")
    }

    /// Waits until the application is in this state (`running`, `stopped` …); the whole status then.
    pub fn wait_app(&self, state: &str, timeout: Duration) -> Value {
        env::wait_for(&format!("the application to be {state}"), timeout, || {
            Some(self.status()).filter(|s| s["app"]["state"] == state)
        })
    }

    /// The log's lines as they are now (`stream`, `line`), without what the agent says.
    pub fn output(&self) -> Vec<String> {
        let (status, body) = self.curl("GET", "/application/logs");
        assert_eq!(status, 200, "{body}");
        let lines = body.lines().filter(|l| !l.is_empty());
        let lines = lines.map(|l| serde_json::from_str::<Value>(l).unwrap_or_else(|e| panic!("{e}: {l}")));
        lines
            .filter(|l| l["stream"] != "agent")
            .filter_map(|l| l["line"].as_str().map(str::to_owned))
            .collect()
    }

    /// Waits until the application has printed a line with this text.
    pub fn wait_output(&self, text: &str, timeout: Duration) {
        env::wait_for(&format!("the application to say {text:?}"), timeout, || {
            self.output().iter().any(|l| l.contains(text)).then_some(())
        });
    }
}

/// Ends the daemon, and what a killed one left of the application: all that works in one of the device's folders.
impl Drop for Device {
    fn drop(&mut self) {
        if self.daemon.running() {
            self.daemon.process().signal(rustix::process::Signal::TERM);
            let start = Instant::now();
            while self.daemon.running() && start.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.daemon.kill9();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            if let (true, Some(pid)) =
                (cwd == self.root || cwd == self.fallback, rustix::process::Pid::from_raw(pid))
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// What a tree holds: for each path its executable bit and the sum of its content; without `.sideloadd`.
pub type Tree = BTreeMap<String, (bool, String)>;

/// Reads a tree.
pub fn tree(top: &Path) -> Tree {
    let mut found = Tree::new();
    for path in crate::scratch::files(top) {
        let relative = path.strip_prefix(top).unwrap().to_string_lossy().into_owned();
        if relative.starts_with(".sideloadd/") {
            continue;
        }
        let content = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let executable = path.metadata().unwrap().permissions().mode() & 0o100 != 0;
        let sum = Sha256::digest(&content).iter().map(|b| format!("{b:02x}")).collect();
        found.insert(relative, (executable, sum));
    }
    found
}

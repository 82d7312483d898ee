//! A depot of a test's own: `depotd`'s configuration, catalog and store in a folder, its commands run to their end.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::daemon::Daemon;
use crate::scratch::Scratch;
use crate::{env, net, process};

/// A depot.
pub struct Depot {
    /// Where it is.
    pub root: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
}

impl Depot {
    /// A depot in the folder `name`, with a key pair `release.pub` and `release.key` beside its configuration.
    pub fn new(scratch: &Scratch, name: &str) -> Depot {
        let root = scratch.dir(name);
        let at = root.display();
        let text = format!(
            "public-keys = [\"release.pub\"]\n[catalog]\nat = \"sqlite:{at}/var/catalog.db\"\n[store]\nat = \"dir:{at}/var\"\n"
        );
        let depot = Depot::with(root, &text);
        depot.done(&["keygen", "--out", "release"]);
        depot
    }

    /// A depot with this configuration in this folder, and no key.
    pub fn with(root: PathBuf, config: &str) -> Depot {
        let path = root.join("depotd.toml");
        std::fs::write(&path, config).unwrap();
        Depot { root, config: path }
    }

    /// [`Depot::server`], ready.
    pub fn serve(&self, scratch: &Scratch, name: &str, tables: &str) -> (Daemon, String) {
        let (mut daemon, base) = self.server(scratch, name, tables);
        daemon.start_ready();
        (daemon, base)
    }

    /// Its server, not started, for a free port of loopback, and its base address; `tables` go into its configuration. Its cache is
    /// in a folder of the name.
    pub fn server(&self, scratch: &Scratch, name: &str, tables: &str) -> (Daemon, String) {
        let (port, own) = (net::free_port(), std::fs::read_to_string(&self.config).unwrap());
        // The server has no use for the keys, which stand beside the other file.
        let own: String =
            own.lines().filter(|l| !l.starts_with("public-keys")).map(|l| format!("{l}\n")).collect();
        let toml = format!(
            "listen = \"127.0.0.1:{port}\"\nctl-socket = \"{{dir}}/ctl.sock\"\n{own}\n{tables}\n\
             [bundle]\ndir = \"{{dir}}/cache\"\n"
        );
        let daemon = Daemon::new(scratch, "depotd", name, &toml);
        (daemon, format!("http://127.0.0.1:{port}"))
    }

    /// A command, to be run in the depot's folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env::bin("depotd"));
        command.arg("-c").arg(&self.config).args(arguments).current_dir(&self.root).stdin(Stdio::null());
        // Cargo sets it for its tests, and the loader would look for libraries in all of them.
        command.env_remove("LD_LIBRARY_PATH");
        process::in_own_group(&mut command);
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed; what it printed.
    pub fn done(&self, arguments: &[&str]) -> String {
        env::run(&mut self.command(arguments))
    }

    /// Runs a command with `--json` that must succeed; its reply.
    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.done(&[arguments, &["--json"]].concat())).unwrap()
    }

    /// Runs a command that must end with this code; cause and fix.
    pub fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        text
    }

    /// Publishes `content` signed.
    pub fn publish(&self, app: &str, version: &str, env: &str, content: &[u8], more: &[&str]) -> Value {
        let file = self.root.join("content");
        std::fs::write(&file, content).unwrap();
        let main =
            ["publish", "content", "--app", app, "--version", version, "--env", env, "--key", "release.key"];
        self.json(&[&main, more].concat())
    }

    /// All releases, the retired ones too.
    pub fn releases(&self) -> Vec<Value> {
        self.json(&["list", "--all"])["releases"].as_array().unwrap().clone()
    }

    /// The file that holds the content.
    pub fn blob(&self, sha256: &str) -> PathBuf {
        self.root.join("var/blobs").join(&sha256[..2]).join(sha256)
    }
}

/// SHA-256 of a file, in hexadecimal.
pub fn sha256(path: &Path) -> String {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(std::fs::read(path).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

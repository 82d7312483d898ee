//! `otad` as a device: its daemon, its commands, a fake `systemctl`, and what is installed.
//!
//! The fake calls a unit failed whose app `scoreboard` holds the word BAD, and notes every restart in `restarts`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rustix::fs::FlockOperation;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::env;
use crate::packages::{Key, Release, Server};
use crate::process::Process;
use crate::scratch::Scratch;
use crate::sideload::Outcome;

const SYSTEMCTL: &str = r#"#!/bin/sh
here=$(dirname "$0")
case $1 in
restart) echo "$*" >>"$here/restarts" ;;
show)
    if grep -q BAD "$here/state/current/scoreboard/scoreboard" 2>/dev/null; then echo ActiveState=failed
    else echo ActiveState=active; fi
    echo Type=simple; echo SubState=x; echo Result=success; echo NRestarts=0
    echo "InvocationID=$(wc -l <"$here/restarts")" ;;
esac
"#;

/// The apps `scoreboard`, with a unit, and `os_armv8`; a second to get well, one to stay so. The server is asked by command
/// only: the first poll of its own comes at random within the interval, anew after each start.
pub const TABLES: &str = "[poll]\ninterval-s = 604800\n[health]\nactive-within-s = 2\nstable-s = 1\n\
                          [app.scoreboard]\nunit = \"scoreboard.service\"\n[app.os_armv8]\n";

/// A device.
pub struct Device {
    /// Its daemon. Not started yet.
    pub otad: Daemon,
}

impl Device {
    /// The device `cam-1`, an armv8 with the attribute `gamer`. `top` holds more keys, `tables` the tables of otad.toml.
    pub fn new(scratch: &Scratch, server: &str, top: &str, tables: &str) -> Device {
        Device::named(scratch, "device", server, top, tables)
    }

    /// As [`Device::new`], in a folder of this name.
    pub fn named(scratch: &Scratch, folder: &str, server: &str, top: &str, tables: &str) -> Device {
        let device = "id = \"cam-1\"\n[attributes]\ncpu-arch = \"armv8\"\n\"attr.gamer\" = \"prod\"\n";
        let otad = Daemon::new(scratch, "otad", folder, &Device::toml(server, top, tables));
        std::fs::write(otad.dir.join("device.toml"), device).unwrap();
        let systemctl = otad.dir.join("systemctl");
        env::write_program(&systemctl, SYSTEMCTL);
        Device { otad }
    }

    fn toml(server: &str, top: &str, tables: &str) -> String {
        format!(
            "server = \"{server}\"\n{top}\nstate-dir = \"{{dir}}/state\"\nctl-socket = \"{{dir}}/ctl.sock\"\n\
             device-file = \"{{dir}}/device.toml\"\nsystemctl = \"{{dir}}/systemctl\"\n{tables}"
        )
    }

    /// Another configuration, for the next start or reload.
    pub fn configure(&self, server: &str, top: &str, tables: &str) {
        let text = Device::toml(server, top, tables).replace("{dir}", &self.otad.dir.to_string_lossy());
        std::fs::write(&self.otad.config, text).unwrap();
    }

    /// SIGKILL to its daemon. What that had just forked, and has not become another program yet, holds the lock for a moment
    /// longer; nobody does when this returns.
    pub fn kill9(&mut self) {
        self.otad.kill9();
        let lock = self.otad.dir.join("state/lock");
        env::wait_for("the lock of a killed otad", Duration::from_secs(20), || {
            let lock = std::fs::File::open(&lock).ok()?;
            rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()
        });
    }

    /// A command with `--json`: its exit code and what it printed.
    pub fn command(&self, arguments: &[&str]) -> (i32, Value) {
        let mut command = self.otad.command(arguments);
        let done = Outcome::of(command.arg("--json"));
        let value =
            serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {done:?}"));
        (done.code, value)
    }

    /// `check-now --wait`: exit code, word, all of it.
    pub fn check(&self) -> (i32, String, Value) {
        let (code, value) = self.command(&["check-now", "--wait"]);
        (code, value["result"].as_str().unwrap().to_owned(), value)
    }

    /// Checks again until the word is this one.
    pub fn check_until(&self, wanted: &str) -> Value {
        env::wait_for(wanted, Duration::from_secs(60), || {
            let (_, word, value) = self.check();
            if word != wanted {
                std::thread::sleep(Duration::from_millis(300));
            }
            (word == wanted).then_some(value)
        })
    }

    /// A path below what is installed.
    pub fn path(&self, below: &str) -> PathBuf {
        self.otad.dir.join("state/current").join(below)
    }

    /// The file of an app; empty: there is none.
    pub fn content(&self, app: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{app}/{app}"))).unwrap_or_default()
    }

    /// What `current` names.
    pub fn current(&self) -> Option<PathBuf> {
        std::fs::read_link(self.otad.dir.join("state/current")).ok()
    }

    /// The code that `why` has for all apps, and its text; both empty: there is none.
    pub fn why_all(&self) -> (String, String) {
        let (_, why) = self.command(&["why"]);
        let text = |key: &str| why[key].as_str().unwrap_or_default().to_owned();
        (text("why"), text("text"))
    }

    /// The code that `why` has for an app.
    pub fn why(&self, app: &str) -> String {
        self.why_text(app).0
    }

    /// The code and the text that `why` has for an app.
    pub fn why_text(&self, app: &str) -> (String, String) {
        let (_, why) = self.command(&["why"]);
        let apps = why["apps"].as_array().unwrap();
        let found = apps.iter().find(|a| a["app"].as_str().unwrap().eq_ignore_ascii_case(app));
        let found = found.unwrap_or_else(|| panic!("{app} is not in {why}"));
        let text = |key: &str| {
            found[key].as_str().unwrap_or_else(|| panic!("{app} has no {key} in {why}")).to_owned()
        };
        (text("why"), text("text"))
    }

    /// The lines of `systemctl restart` so far.
    pub fn restarts(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.otad.dir.join("restarts")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until no job is under way, and none follows by itself.
    pub fn wait_idle(&self) {
        env::wait_for("otad to be idle", Duration::from_secs(90), || {
            (self.otad.try_status()?["idle"] == true).then_some(())
        });
    }
}

/// The stand-in for the original's server (bundles, no signatures): its process, its folder and its address.
pub fn stand_in(scratch: &Scratch) -> (Process, PathBuf, String) {
    let folder = scratch.dir("server");
    let script = env::root().join("tests/ota_standin.py");
    let process = Process::start("stand-in", Command::new("python3").arg(script).arg(&folder));
    let port = env::wait_for("the stand-in's port", Duration::from_secs(20), || {
        std::fs::read_to_string(folder.join("port")).ok()
    });
    (process, folder, format!("http://127.0.0.1:{port}"))
}

/// Nothing to wait for: what these tests are about happens before the trial. Nor does the device ask by itself, in between
/// or after a failure: it would take the next answer that a test has prepared.
pub const QUICK: &str = "[health]\nstable-s = 0\n[app.scoreboard]\nunit = \"scoreboard.service\"\n[limits]\n\
                     idle-timeout-ms = 3000\ndetails-max = \"64 KiB\"\n\
                     [poll]\ninterval-s = 604800\nretry-min-s = 60\nretry-max-s = 120\n";

/// A server, a publisher, and a device that has the first release.
pub struct Rig {
    /// The server.
    pub server: Server,
    /// Whom the device trusts.
    pub key: Key,
    /// The device.
    pub device: Device,
    /// Of the newest release that was made.
    pub epoch: u64,
    /// What `current` is to name.
    pub link: Option<PathBuf>,
    /// The folder of all.
    pub scratch: Scratch,
}

impl Rig {
    /// With the first release installed. `top` holds more keys, `tables` the tables of otad.toml.
    pub fn new(name: &str, top: &str, tables: &str) -> Rig {
        let scratch = Scratch::new(name);
        let (server, key) = (Server::start(), Key::new(&scratch, "release"));
        let mut device = Device::new(&scratch, &server.address, &trusts(&key, top), tables);
        device.otad.start_ready();
        let mut rig = Rig { server, key, device, epoch: 0, link: None, scratch };
        rig.good();
        rig
    }

    /// Another configuration, for the next start or reload.
    pub fn configure(&self, top: &str, tables: &str) {
        self.device.configure(&self.server.address, &trusts(&self.key, top), tables);
    }

    /// A good release is published and installed.
    pub fn good(&mut self) {
        self.server.clear();
        let release = self.next(format!("good {}", self.epoch + 1));
        self.server.publish(&release, &self.key);
        let (code, word, all) = self.device.check();
        assert_eq!((code, word.as_str()), (0, "updated"), "{all}");
        self.link = self.device.current();
        self.held("the good one");
        self.server.clear();
    }

    /// The next release, not published.
    pub fn next(&mut self, content: impl Into<Vec<u8>>) -> Release {
        self.epoch += 1;
        Release::new("scoreboard", self.epoch, content)
    }

    /// What ran before runs.
    pub fn held(&self, what: &str) {
        assert!(self.device.content("scoreboard").starts_with("good "), "{what}");
        assert_eq!(self.device.current(), self.link, "{what}");
        let status = self.device.otad.status();
        assert_eq!(
            (status["idle"].as_bool(), status["trial"].is_null()),
            (Some(true), true),
            "{what}: {status}"
        );
    }

    /// The check must end with this word, and its text (and that of `why`) must hold this.
    pub fn refused(&self, what: &str, word: &str, text: &str) {
        let (_, got, all) = self.device.check();
        let said = all["text"].as_str().unwrap_or_default();
        assert_eq!(got, word, "{what}: {all}");
        assert!(said.contains(text), "{what}: {said:?} does not say {text:?}");
        let (code, why) = self.device.why_all();
        let code_expected = if word == "refused" { "refused" } else { "server-unreachable" };
        assert!(code == code_expected && why.contains(text), "{what}: {code}: {why}");
        self.held(what);
    }

    /// The device takes the next good release, and stops.
    pub fn end(mut self) {
        self.good();
        let usage = self.device.otad.usage();
        println!("otad: {} kB resident, {} kB at its highest", usage.rss_kb, usage.rss_peak_kb);
        assert!(self.device.otad.term().success());
        self.device.otad.check_log();
    }
}

fn trusts(key: &Key, top: &str) -> String {
    format!("public-keys = [\"{}\"]\n{top}", key.public.display())
}

//! Real units: what an update does to them, and what one that fails brings back. Only where systemd runs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::env;
use e2e::ota::Device;
use e2e::packages::{Key, Release, Server};
use e2e::scratch::Scratch;
use e2e::skip;

/// A unit of a test's own; gone at the end.
struct Unit {
    name: String,
    file: PathBuf,
}

impl Unit {
    /// Runs `program` by the shell.
    fn new(program: &Path) -> Unit {
        let name = format!("edge-test-{}.service", std::process::id());
        let file = Path::new("/run/systemd/system").join(&name);
        let text = format!(
            "[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=/bin/sh {}\nRestart=on-failure\nRestartSec=100ms\n",
            program.display()
        );
        std::fs::write(&file, text).unwrap();
        let unit = Unit { name, file };
        unit.systemctl(&["daemon-reload"]);
        unit
    }

    fn systemctl(&self, arguments: &[&str]) -> String {
        let output = Command::new("systemctl").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn show(&self, property: &str) -> String {
        self.systemctl(&["show", "--value", "-p", property, &self.name])
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.systemctl(&["stop", &self.name]);
        let _ = std::fs::remove_file(&self.file);
        self.systemctl(&["daemon-reload"]);
    }
}

#[test]
fn units_really_restart() {
    if !Path::new("/run/systemd/system").is_dir() {
        skip!("systemd does not run here (tests/device/ota.sh has a device where it does)");
    }
    if !rustix::process::geteuid().is_root() {
        skip!("only root may make units");
    }
    let scratch = Scratch::new("ota-units");
    let (server, key) = (Server::start(), Key::new(&scratch, "release"));
    let unit = Unit::new(&scratch.path().join("device/state/current/scoreboard/scoreboard"));
    let top = format!("public-keys = [\"{}\"]", key.public.display());
    let tables =
        format!("[health]\nactive-within-s = 10\nstable-s = 1\n[app.scoreboard]\nunit = \"{}\"\n", unit.name);
    let mut device = Device::new(&scratch, &server.address, &top, &tables);
    let text = std::fs::read_to_string(&device.otad.config).unwrap();
    let fake = device.otad.dir.join("systemctl").display().to_string();
    std::fs::write(&device.otad.config, text.replace(&fake, "/usr/bin/systemctl")).unwrap();
    device.otad.start_ready();
    let publish = |epoch: u64, program: &str| {
        server.publish(&Release::new("scoreboard", epoch, format!("# {epoch}\n{program}")), &key);
    };
    let mut runs = Vec::new();
    for epoch in [1, 2] {
        publish(epoch, "exec sleep 3600\n");
        assert_eq!(device.check().1, "updated");
        assert_eq!(unit.show("ActiveState"), "active");
        runs.push(unit.show("InvocationID"));
    }
    assert_ne!(runs[0], runs[1], "it was started anew");
    assert_eq!(device.check().1, "no-change");
    assert_eq!(unit.show("InvocationID"), runs[1], "and then left alone");
    for (epoch, program) in [(3, "exit 3\n"), (4, "sleep 0.7; exit 3\n")] {
        publish(epoch, program);
        let (_, word, all) = device.check();
        assert_eq!(word, "rolled-back", "{all}");
        assert!(device.content("scoreboard").starts_with("# 2"));
        env::wait_for("what ran before", Duration::from_secs(60), || {
            (unit.show("ActiveState") == "active").then_some(())
        });
        let pid = unit.show("MainPID");
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(command.starts_with("sleep\x003600"), "{command:?}");
    }
    assert!(device.otad.term().success());
    device.otad.check_log();
}

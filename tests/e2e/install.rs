//! `make install` and `make uninstall` into a folder, and the units that they install.

use std::path::Path;
use std::process::Command;

use e2e::env::{self, root};
use e2e::scratch::{self, Scratch};
use e2e::{need, skip};

const DAEMONS: [&str; 8] = ["faced", "mqfwd", "s3put", "sideloadd", "otad", "depotd", "spyglassd", "sorterd"];

fn install(action: &str, dest: &Path, more: &[(&str, &str)]) -> String {
    let built =
        std::env::var("EDGE_BIN_DIR").unwrap_or_else(|_| root().join("target/debug").display().to_string());
    let mut command = Command::new(root().join("etc/install.sh"));
    command
        .arg(action)
        .env("DESTDIR", dest)
        .env("BUILT", built)
        .env("BINS", DAEMONS.join(" "))
        .env_remove("PREFIX");
    command.envs(more.iter().copied());
    env::run(&mut command)
}

fn tree(dest: &Path) -> Vec<String> {
    let prefix = dest.to_string_lossy().into_owned();
    scratch::files(dest).iter().map(|p| p.to_string_lossy().replace(&prefix, "")).collect()
}

#[test]
fn installs_all_of_it_and_takes_it_away_again() {
    for prefix in ["/usr", "/usr/local"] {
        let scratch = Scratch::new("inst");
        let dest = scratch.dir("dest");
        install("install", &dest, &[("PREFIX", prefix)]);
        let there = tree(&dest);
        for name in DAEMONS {
            let mut wanted = vec![format!("{prefix}/bin/{name}"), format!("/etc/edge/{name}.toml")];
            wanted.push(format!("{prefix}/lib/systemd/system/{name}.service"));
            for path in wanted {
                assert!(there.contains(&path), "{path} is missing in {there:?}");
            }
            let unit = std::fs::read_to_string(
                dest.join(format!("{}/lib/systemd/system/{name}.service", &prefix[1..])),
            );
            assert!(
                unit.unwrap().contains(&format!("ExecStart={prefix}/bin/{name}")),
                "the unit starts what was installed"
            );
        }
        for path in [
            "/etc/edge/device.toml",
            &format!("{prefix}/lib/systemd/system/sideloadd.socket"),
            &format!("{prefix}/lib/systemd/system/edge-otad-recover.service"),
            &format!("{prefix}/lib/systemd/system/edge-apps.target"),
            &format!("{prefix}/lib/tmpfiles.d/edge-sideloadd.conf"),
            &format!("{prefix}/lib/tmpfiles.d/edge-otad.conf"),
            &format!("{prefix}/lib/sysusers.d/edge.conf"),
            &format!("{prefix}/bin/nx_launcher.sh"),
            &format!("{prefix}/lib/python3/dist-packages/edge_spyglass.py"),
            &format!("{prefix}/share/edge/python/edge_spyglass.py"),
        ] {
            assert!(there.iter().any(|p| p == path), "{path} is missing in {there:?}");
        }
        let out =
            Command::new(dest.join(format!("{}/bin/mqfwd", &prefix[1..]))).arg("--version").output().unwrap();
        assert!(out.status.success());
        install("uninstall", &dest, &[("PREFIX", prefix)]);
        assert_eq!(tree(&dest), Vec::<String>::new(), "nothing is left");
        assert!(dest.is_dir(), "DESTDIR itself is not ours to remove");
    }
}

#[test]
fn edited_configuration_is_never_overwritten() {
    let scratch = Scratch::new("conf");
    let dest = scratch.dir("dest");
    install("install", &dest, &[]);
    let mine = dest.join("etc/edge/mqfwd.toml");
    let shipped = std::fs::read_to_string(&mine).unwrap();
    let edited = format!("# mine\n{shipped}");
    std::fs::write(&mine, &edited).unwrap();

    // The same version again: nothing to say but that it was kept, and no .new.
    let said = install("install", &dest, &[]);
    assert!(said.contains("kept /etc/edge/mqfwd.toml"), "{said}");
    assert!(!dest.join("etc/edge/mqfwd.toml.new").exists());
    assert_eq!(std::fs::read_to_string(&mine).unwrap(), edited);

    // As if an older version had been installed: its record names other contents.
    let manifest = dest.join("usr/share/edge/manifest");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let old: String = text
        .lines()
        .map(|l| if l.ends_with(".toml") { format!("{:064} {}\n", 0, &l[65..]) } else { format!("{l}\n") })
        .collect();
    std::fs::write(&manifest, old).unwrap();
    let said = install("install", &dest, &[]);
    assert!(said.contains("/etc/edge/mqfwd.toml.new"), "{said}");
    assert_eq!(std::fs::read_to_string(dest.join("etc/edge/mqfwd.toml.new")).unwrap(), shipped);
    assert_eq!(std::fs::read_to_string(&mine).unwrap(), edited);

    // A file nobody edited follows the new version: it was recorded as the old one's.
    let plain = dest.join("etc/edge/s3put.toml");
    let was = std::fs::read_to_string(&plain).unwrap();
    std::fs::write(&plain, "# an older default\n").unwrap();
    let sum = env::run(Command::new("sha256sum").arg(&plain));
    let text = std::fs::read_to_string(&manifest).unwrap();
    let old: String = text
        .lines()
        .map(|l| {
            if l.ends_with("s3put.toml") {
                format!("{} /etc/edge/s3put.toml\n", &sum[..64])
            } else {
                format!("{l}\n")
            }
        })
        .collect();
    std::fs::write(&manifest, old).unwrap();
    install("install", &dest, &[]);
    assert_eq!(std::fs::read_to_string(&plain).unwrap(), was);

    let said = install("uninstall", &dest, &[]);
    assert!(said.contains("kept /etc/edge/mqfwd.toml"), "{said}");
    assert_eq!(tree(&dest), ["/etc/edge/mqfwd.toml"]);
}

#[test]
fn a_subset_installs_only_that() {
    let scratch = Scratch::new("subset");
    let dest = scratch.dir("dest");
    install("install", &dest, &[("BINS", "mqfwd s3put")]);
    assert!(!tree(&dest).iter().any(|p| p.contains("faced") || p.contains("sideload")), "{:?}", tree(&dest));
}

#[test]
fn units_are_clean_and_confined() {
    need!("systemd-analyze");
    let mut units: Vec<_> = scratch::files(&root().join("systemd"));
    units.retain(|p| p.extension().is_some_and(|e| e == "service" || e == "socket" || e == "target"));
    assert!(units.len() >= 4, "{units:?}");
    let output = Command::new(root().join("tests/units.sh")).args(&units).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{said}");
    assert!(output.status.success(), "{said}");
}

#[test]
fn shell_scripts_are_clean() {
    if !env::have("shellcheck") {
        skip!("shellcheck is not installed (etc/deps.sh check)");
    }
    let mut scripts = scratch::files(&root().join("etc"));
    scripts.extend(scratch::files(&root().join("tests")));
    scripts.retain(|p| p.extension().is_some_and(|e| e == "sh") && !p.to_string_lossy().contains("/target/"));
    scripts.push(root().join(".ci/run"));
    // From the top: what a script reads is named from there.
    env::run(Command::new("shellcheck").args(scripts).current_dir(root()));
}

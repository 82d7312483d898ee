//! The binary without a device: exit codes, what is said, what is left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("sideload-cli-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Folder(folder.canonicalize().unwrap())
    }

    fn sideload(&self, line: &str) -> Output {
        command(&self.0, line).output().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn command(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sideload"));
    command.args(line.split_whitespace()).current_dir(folder).env("XDG_CACHE_HOME", folder.join("cache"));
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn each_kind_of_failure_has_its_code_cause_and_fix() {
    let folder = Folder::new("codes");
    std::fs::write(folder.0.join("bad.toml"), "prot = 1\n").unwrap();
    std::fs::create_dir(folder.0.join("src")).unwrap();
    assert!(folder.sideload("keys --cert-key-dir k").status.success());
    let closed = e2e::net::free_port();
    let here = format!("--addr 127.0.0.1 --port {closed}");
    for (line, code, said) in [
        ("sync --wrong".to_owned(), 64, "there is no flag --wrong"),
        ("list-files".to_owned(), 64, "no device is named"),
        (format!("sync {here} --cert-key-dir k"), 64, "the application's folder is not named"),
        (format!("sync {here} --cert-key-dir k --src-top none"), 74, "is no folder"),
        (format!("list-files {here} --cert-key-dir k"), 69, "can't connect to 127.0.0.1"),
        (format!("list-files {here} --cert-key-dir none"), 77, "sideloading_server.cert.pem"),
        ("keys --cert-key-dir k".to_owned(), 73, "exists already"),
        ("status --config bad.toml".to_owned(), 78, "bad.toml:1:1: prot: unknown field"),
        (format!("delete-file ../x {here} --cert-key-dir k"), 64, "\"..\""),
    ] {
        let out = folder.sideload(&line);
        let stderr = text(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{line}: {stderr}");
        assert!(stderr.starts_with("sideload: ") && stderr.contains(said), "{line}: {stderr}");
        assert!(stderr.contains("\n  fix: ") || code == 78, "{line}: {stderr}");
        assert!(out.stdout.is_empty());
        let out = folder.sideload(&format!("{line} --json"));
        let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(
            (json["exit_code"].as_i64(), out.status.code()),
            (Some(code.into()), Some(code)),
            "{line}"
        );
        assert!(json["error"].as_str().unwrap().contains(said) && out.stderr.is_empty(), "{line}");
    }
}

#[test]
fn doctor_looks_at_what_it_can() {
    let folder = Folder::new("doctor");
    folder.sideload("keys --expiry 3");
    std::fs::write(folder.0.join("main.py"), "").unwrap();
    std::fs::write(folder.0.join("sideload.toml"), "addr = \"127.0.0.1\"\nport = 1\n").unwrap();
    let key = folder.0.join("sideloading_client.key.pem");
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let out = folder.sideload("doctor");
    let said = text(&out.stdout);
    for line in
        ["ok    settings", "ok    source", "warn  client cert", "warn  client key", "fail  connection"]
    {
        assert!(said.contains(line), "{line} in\n{said}");
    }
    assert!(said.contains("fix: chmod 600 "), "{said}");
    assert_eq!(out.status.code(), Some(69));
    let json: serde_json::Value = serde_json::from_slice(&folder.sideload("doctor --json").stdout).unwrap();
    assert_eq!((json["ok"].as_bool(), json["exit_code"].as_i64()), (Some(false), Some(69)));
}

#[test]
fn an_expiry_within_a_week_is_said_once_on_stderr() {
    let folder = Folder::new("expiry");
    std::fs::write(folder.0.join("main.py"), "").unwrap();
    let here = format!("--addr 127.0.0.1 --port {}", e2e::net::free_port());
    for (days, said) in [(3, 1), (30, 0)] {
        assert!(folder.sideload(&format!("keys --force --expiry {days}")).status.success());
        for line in ["sync --src-top .", "run-app", "status --json"] {
            let out = folder.sideload(&format!("{line} {here}"));
            let stderr = text(&out.stderr);
            let lines: Vec<&str> = stderr.lines().filter(|line| line.contains(" expires in ")).collect();
            assert_eq!(lines.len(), said, "{days} days: {line}: {stderr}");
            assert!(lines.iter().all(|l| l.contains(" days") && l.contains("sideload keys")), "{stderr}");
            assert!(!text(&out.stdout).contains("expires"), "{line}");
        }
    }
    // It is about to be mended, or said at length.
    folder.sideload("keys --force --expiry 3");
    for line in [format!("doctor --json {here}"), "keys --device me@there".to_owned()] {
        assert!(!text(&folder.sideload(&line).stderr).contains("expires"), "{line}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_bug() {
    let folder = Folder::new("pipe");
    let mut child =
        command(&folder.0, "--help").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "{}", text(&out.stderr));
}

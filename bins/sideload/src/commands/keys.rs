//! `keys`: the certificates and keys of both ends, and what of them goes where.
//!
//! Invariants: private keys are 0600 from their first moment; nothing that exists is overwritten without --force.

use std::path::Path;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::pem::{self, End, Pair};
use super::place;
use crate::client::{CLIENT_CERT, CLIENT_KEY, SERVER_CERT, SERVER_KEY};
use crate::config::Settings;
use crate::output::{EX_CANTCREAT, Failure, Reply, moment};

/// Where sideloadd looks for the device's files.
const DEVICE_FOLDER: &str = "/etc/edge/sideloadd";

/// The flags of the command.
pub struct Wanted<'a> {
    /// Days of validity.
    pub expiry_days: u32,
    /// The package's source folder, for the original's agent.
    pub app_src_dir: Option<&'a Path>,
    /// `user@host`.
    pub device: Option<&'a str>,
    /// Overwrite.
    pub force: bool,
}

/// `keys`
pub fn run(settings: &Settings, wanted: &Wanted<'_>) -> Result<Reply, Failure> {
    let dir = &settings.cert_key_dir;
    let names = [SERVER_CERT, SERVER_KEY, CLIENT_CERT, CLIENT_KEY];
    let there: Vec<&str> =
        names.into_iter().filter(|name| dir.join(name).symlink_metadata().is_ok()).collect();
    if wanted.device.is_some() && there.len() == names.len() && !wanted.force {
        return Ok(only_where(dir, wanted));
    }
    if !there.is_empty() && !wanted.force {
        let cause = format!("{} exists already; no key is overwritten", dir.join(there[0]).display());
        return Err(Failure::new(EX_CANTCREAT, cause).fix(
            "--force makes new keys (the device needs its new ones, too); --device USER@HOST prints where existing ones go",
        ));
    }
    if let Some(folder) = wanted.app_src_dir.filter(|folder| !folder.is_dir()) {
        return Err(Failure::new(EX_CANTCREAT, format!("{} is no folder", folder.display()))
            .fix("--app-src-dir names the src folder of the application's code package"));
    }
    std::fs::create_dir_all(dir).map_err(|error| cannot_write(dir, &error))?;
    let now = OffsetDateTime::now_utc();
    let server = pem::make(End::Server, wanted.expiry_days, settings.addr.as_deref(), now)?;
    let client = pem::make(End::Client, wanted.expiry_days, None, now)?;
    store(dir, &server, &client, wanted.force)?;
    if let Some(folder) = wanted.app_src_dir {
        // As the original's install.py: all that the device's end needs.
        put(folder, SERVER_KEY, &server.key, 0o600, wanted.force)?;
        put(folder, SERVER_CERT, &server.cert, 0o644, wanted.force)?;
        put(folder, CLIENT_CERT, &client.cert, 0o644, wanted.force)?;
    }
    let expires = now + std::time::Duration::from_secs(u64::from(wanted.expiry_days) * 86_400);
    let expires = moment(u64::try_from(expires.unix_timestamp()).unwrap_or(0) * 1000);
    let mut text = format!("made in {}, valid until {expires}:\n", dir.display());
    for (name, use_) in [
        (SERVER_CERT, "both ends"),
        (SERVER_KEY, "the device only: you may delete it here once it is there"),
        (CLIENT_CERT, "both ends"),
        (CLIENT_KEY, "this host only"),
    ] {
        text.push_str(&format!("  {name:<31} {use_}\n"));
    }
    if let Some(folder) = wanted.app_src_dir {
        text.push_str(&format!("copied what the device needs to {}\n", folder.display()));
    }
    text.push_str(&match wanted.device {
        Some(device) => on_the_device(dir, device),
        None => "next: `sideload keys --device USER@HOST` prints how they get onto the device\n".to_owned(),
    });
    Ok(Reply::new(text, describe(dir, Some(&expires), wanted)))
}

fn only_where(dir: &Path, wanted: &Wanted<'_>) -> Reply {
    let text = wanted.device.map(|device| on_the_device(dir, device)).unwrap_or_default();
    Reply::new(text, describe(dir, None, wanted))
}

fn describe(dir: &Path, expires: Option<&str>, wanted: &Wanted<'_>) -> Value {
    let path = |name: &str| dir.join(name).display().to_string();
    json!({
        "made": expires.is_some(),
        "expires": expires,
        "server_cert": path(SERVER_CERT),
        "server_key": path(SERVER_KEY),
        "client_cert": path(CLIENT_CERT),
        "client_key": path(CLIENT_KEY),
        "copied_to": wanted.app_src_dir.map(|folder| folder.display().to_string()),
        "commands": wanted.device.map(|device| commands(dir, device)),
    })
}

/// Keys first: whoever sees a new certificate finds its key.
fn store(dir: &Path, server: &Pair, client: &Pair, force: bool) -> Result<(), Failure> {
    put(dir, SERVER_KEY, &server.key, 0o600, force)?;
    put(dir, CLIENT_KEY, &client.key, 0o600, force)?;
    put(dir, SERVER_CERT, &server.cert, 0o644, force)?;
    put(dir, CLIENT_CERT, &client.cert, 0o644, force)
}

fn put(folder: &Path, name: &str, text: &str, mode: u32, force: bool) -> Result<(), Failure> {
    let path = folder.join(name);
    place::write(&path, text.as_bytes(), mode, force).map_err(|error| cannot_write(&path, &error))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    let failure = Failure::new(EX_CANTCREAT, format!("cannot make {}: {error}", path.display()));
    match error.kind() {
        std::io::ErrorKind::AlreadyExists => failure.fix("--force overwrites it"),
        _ => failure.fix("--cert-key-dir names another folder"),
    }
}

/// The shell commands that install the device's end.
pub fn commands(dir: &Path, device: &str) -> Vec<String> {
    let files = [SERVER_CERT, SERVER_KEY, CLIENT_CERT];
    let device = quoted(device);
    // The folder is private before the key is in it.
    vec![
        format!("ssh {device} 'umask 077 && mkdir -p .sideload-keys'"),
        format!(
            "scp {} {device}:.sideload-keys/",
            files.map(|name| quoted(&dir.join(name).display().to_string())).join(" ")
        ),
        format!(
            "ssh -t {device} 'sudo install -D -g edge-sideloadd -m 0640 -t {DEVICE_FOLDER} .sideload-keys/*.pem \
             && rm -r .sideload-keys && sudo systemctl reload-or-restart sideloadd'"
        ),
    ]
}

/// What goes where, for people.
pub fn on_the_device(dir: &Path, device: &str) -> String {
    let mut text = format!(
        "the device needs {SERVER_CERT}, {SERVER_KEY} and {CLIENT_CERT} in {DEVICE_FOLDER} (never {CLIENT_KEY}):\n"
    );
    for command in commands(dir, device) {
        text.push_str(&format!("  {command}\n"));
    }
    text.push_str("then, here: `sideload doctor`\n");
    text
}

/// For a POSIX shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-@:+=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;

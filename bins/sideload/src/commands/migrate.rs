//! `migrate`: adopts a folder of keys that the original's install.py made, and writes a sideload.toml.
//!
//! Invariants: the keys are not changed, only their permissions; a sideload.toml that exists is kept without --force.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use edge::tls::{ClientTls, ClientTlsConfig, ServerTls, ServerTlsConfig, Trust};
use serde_json::{Value, json};

use super::{keys, place};
use crate::client::{CLIENT_CERT, CLIENT_KEY, SERVER_CERT, SERVER_KEY};
use crate::config::{FILE_NAME, Overrides, PORT};
use crate::output::{EX_CANTCREAT, EX_IOERR, EX_NOPERM, Failure, Reply, duration, moment};

/// The flags of the command.
pub struct Wanted<'a> {
    /// Where sideload.toml goes, absolute.
    pub cwd: &'a Path,
    /// The folder with the keys.
    pub dir: &'a Path,
    /// The package's source folder: the server's key may be there only.
    pub app_src_dir: Option<PathBuf>,
    /// Overwrite sideload.toml.
    pub force: bool,
}

/// `migrate`
pub fn run(overrides: &Overrides, wanted: &Wanted<'_>) -> Result<Reply, Failure> {
    let dir: PathBuf = wanted.cwd.join(wanted.dir).components().collect();
    let mut lines = Vec::new();
    check_client(&dir)?;
    lines.push("the client's key, its certificate and the server's certificate fit".to_owned());
    let server_key = find_server_key(&dir, wanted.app_src_dir.as_deref());
    match &server_key {
        Some(key) => {
            check_server(&dir, key)?;
            lines.push(format!("the server's key {} fits its certificate", key.display()));
        }
        None => lines.push(format!(
            "{SERVER_KEY} is not here; install.py put it into the package's src folder: --app-src-dir checks it"
        )),
    }
    let now = i64::try_from(edge::clock::unix_ms() / 1000).unwrap_or(i64::MAX);
    let mut dates = Vec::new();
    for name in [SERVER_CERT, CLIENT_CERT] {
        let (line, date) = check_dates(&dir, name, now)?;
        lines.push(line);
        dates.push(date);
    }
    for key in [Some(dir.join(CLIENT_KEY)), server_key.clone()].into_iter().flatten() {
        if make_private(&key)? {
            lines.push(format!("{}: permissions set to 0600, others could read it", key.display()));
        }
    }
    let file = wanted.cwd.join(FILE_NAME);
    if file.exists() && !wanted.force {
        lines.push(format!(
            "{} exists and is kept; its cert-key-dir must be {}",
            file.display(),
            dir.display()
        ));
    } else {
        let text = settings_text(overrides, wanted.cwd, &dir);
        place::write(&file, text.as_bytes(), 0o644, wanted.force).map_err(|error| {
            Failure::new(EX_CANTCREAT, format!("cannot make {}: {error}", file.display()))
                .fix("cd into the top folder of your application, where you may write")
        })?;
        lines.push(format!("wrote {}", file.display()));
    }
    let mut text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let from = server_key.as_deref().and_then(Path::parent).unwrap_or(&dir);
    text.push_str(&keys::on_the_device(from, "USER@DEVICE"));
    let json = json!({
        "cert_key_dir": dir.display().to_string(),
        "server_key": server_key.as_ref().map(|key| key.display().to_string()),
        "file": file.display().to_string(),
        "not_after": Value::Array(dates),
        "notes": lines,
        "commands": keys::commands(from, "USER@DEVICE"),
    });
    Ok(Reply::new(text, json))
}

fn check_client(dir: &Path) -> Result<(), Failure> {
    let config = ClientTlsConfig {
        trust: Trust::PinnedFile(dir.join(SERVER_CERT)),
        cert: Some(dir.join(CLIENT_CERT)),
        key: Some(dir.join(CLIENT_KEY)),
        server_name: None,
    };
    ClientTls::load(&config).map(|_| ()).map_err(|error| {
        Failure::of(EX_NOPERM, &error, None).fix(format!(
            "name the folder where install.py ran, it holds {SERVER_CERT}, {CLIENT_CERT} and {CLIENT_KEY}; \
             or make new ones: `sideload keys`"
        ))
    })
}

fn check_server(dir: &Path, key: &Path) -> Result<(), Failure> {
    let config = ServerTlsConfig {
        cert: dir.join(SERVER_CERT),
        key: key.to_owned(),
        client_ca: None,
        client_pins: vec![dir.join(CLIENT_CERT)],
    };
    ServerTls::load(&config).map(|_| ()).map_err(|error| {
        Failure::of(EX_NOPERM, &error, None)
            .fix("the two come from different runs of install.py: make new ones with `sideload keys`")
    })
}

fn find_server_key(dir: &Path, app_src_dir: Option<&Path>) -> Option<PathBuf> {
    let folders = [Some(dir), app_src_dir];
    folders.into_iter().flatten().map(|folder| folder.join(SERVER_KEY)).find(|key| key.is_file())
}

/// What to say of a certificate's dates; expired is an error.
fn check_dates(dir: &Path, name: &str, now: i64) -> Result<(String, Value), Failure> {
    let path = dir.join(name);
    let bad = |error: edge::tls::Error| Failure::of(EX_NOPERM, &error, None);
    let facts = edge::tls::facts("certificate", &path).map_err(bad)?;
    let not_after = facts.iter().map(|facts| facts.not_after).min().unwrap_or(0);
    let until = moment(u64::try_from(not_after).unwrap_or(0).saturating_mul(1000));
    match u64::try_from(not_after.saturating_sub(now)) {
        Ok(left) if left > 0 => {
            Ok((format!("{name} is valid until {until} ({} left)", duration(left * 1000)), json!(not_after)))
        }
        _ => Err(Failure::new(EX_NOPERM, format!("{} expired on {until}", path.display()))
            .fix("make new keys: `sideload keys`, then put the device's part onto the device")),
    }
}

/// Takes the permissions of others away; whether there were any.
fn make_private(key: &Path) -> Result<bool, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(EX_IOERR, format!("cannot make {} private: {error}", key.display()))
            .fix("whoever owns it can: chmod 600")
    };
    let mode = std::fs::metadata(key).map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(false);
    }
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(true)
}

/// A sideload.toml with what the flags said.
fn settings_text(overrides: &Overrides, cwd: &Path, dir: &Path) -> String {
    let relative = |path: &Path| {
        let path = path.strip_prefix(cwd).unwrap_or(path).display().to_string();
        if path.is_empty() { ".".to_owned() } else { path }
    };
    let src_top = overrides.src_top.as_deref().map(|top| {
        let top: PathBuf = cwd.join(top).components().collect();
        relative(&top)
    });
    // As TOML writes a text, whatever is in it.
    let toml = |text: String| toml::Value::String(text).to_string();
    format!(
        "# For `sideload`; every key is in etc/sideload.toml of the project.\n\n\
         # Host name or IP address of the device.\naddr = {}\n\n\
         # Port of sideloadd on it.\nport = {}\n\n\
         # Where the PEM files are.\ncert-key-dir = {}\n\n\
         # The folder with main.py or main.sh.\nsrc-top = {}\n",
        toml(overrides.addr.clone().unwrap_or_default()),
        overrides.port.unwrap_or(PORT),
        toml(relative(dir)),
        toml(src_top.unwrap_or_else(|| ".".into())),
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::config::Settings;
    use crate::scratch::Scratch;

    /// Pairs as the original's install.py has openssl make them; `false` where there is no openssl.
    fn original(dir: &Path, days: &str) -> bool {
        std::fs::create_dir_all(dir).unwrap();
        for end in ["server", "client"] {
            let (cert, key) = (format!("sideloading_{end}.cert.pem"), format!("sideloading_{end}.key.pem"));
            let args =
                ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=sideloading", "-days", days];
            let mut command = Command::new("openssl");
            match command.args(args).args(["-out", &cert, "-keyout", &key]).current_dir(dir).output() {
                Ok(out) => assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr)),
                Err(_) => {
                    println!("skipped: migrate: openssl is not installed");
                    return false;
                }
            }
            std::fs::set_permissions(dir.join(key), std::fs::Permissions::from_mode(0o644)).unwrap();
        }
        true
    }

    fn migrate(cwd: &Path, dir: &str, force: bool) -> Result<Reply, Failure> {
        let overrides =
            Overrides { addr: Some("10.0.0.9".into()), src_top: Some("src".into()), ..Overrides::default() };
        run(&overrides, &Wanted { cwd, dir: Path::new(dir), app_src_dir: None, force })
    }

    #[test]
    fn a_folder_of_the_original_is_adopted() {
        let scratch = Scratch::new("migrate");
        let cwd = scratch.path();
        if !original(&cwd.join("old"), "30") {
            return;
        }
        let reply = migrate(cwd, "./old", false).unwrap();
        assert!(reply.text.contains("permissions set to 0600"), "{}", reply.text);
        assert!(reply.text.contains(" days left"), "{}", reply.text);
        assert!(reply.text.contains("scp "), "{}", reply.text);
        let mode = std::fs::metadata(cwd.join("old").join(CLIENT_KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let settings = Settings::load(cwd, &Overrides::default()).unwrap();
        assert_eq!(settings.cert_key_dir, cwd.join("old"));
        assert_eq!((settings.addr.as_deref(), settings.src_top), (Some("10.0.0.9"), Some(cwd.join("src"))));
        // A second time: nothing to fix, and the file is kept.
        std::fs::write(cwd.join(FILE_NAME), "port = 9\n").unwrap();
        let again = migrate(cwd, "old", false).unwrap();
        assert!(!again.text.contains("0600") && again.text.contains("is kept"), "{}", again.text);
        assert_eq!(std::fs::read_to_string(cwd.join(FILE_NAME)).unwrap(), "port = 9\n");
        migrate(cwd, "old", true).unwrap();
        assert_ne!(std::fs::read_to_string(cwd.join(FILE_NAME)).unwrap(), "port = 9\n");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let scratch = Scratch::new("migrate-bad");
        let cwd = scratch.path();
        let missing = migrate(cwd, ".", false).unwrap_err();
        assert!(missing.code == 77 && missing.cause.contains(SERVER_CERT), "{missing}");
        if !original(cwd, "30") {
            return;
        }
        std::fs::copy(cwd.join(SERVER_KEY), cwd.join(CLIENT_KEY)).unwrap();
        let mixed = migrate(cwd, ".", false).unwrap_err();
        assert!(mixed.cause.contains("does not belong to the certificate"), "{mixed}");
        assert!(!cwd.join(FILE_NAME).exists());
    }

    #[test]
    fn expired_is_an_error_with_its_date() {
        let scratch = Scratch::new("migrate-old");
        let cwd = scratch.path();
        if !original(cwd, "1") {
            return;
        }
        let later = i64::try_from(edge::clock::unix_ms() / 1000).unwrap() + 3 * 86_400;
        let failure = check_dates(cwd, CLIENT_CERT, later).unwrap_err();
        assert!(failure.cause.contains("expired on 2") && failure.fix.is_some(), "{failure}");
    }
}

//! The commands: each takes settings and its flags, and gives a reply for people and for scripts.
//!
//! Never: prints a reply itself (but for streams: `logs`, `dev`), or exits the process.

mod app;
mod doctor;
mod expiry;
mod files;
mod keys;
pub mod logs;
mod migrate;
mod pem;
mod place;
mod pull;
mod status;
mod sync;

use std::path::Path;

use serde_json::Value;

use crate::args::{Args, Command};
use crate::client::{Client, Request};
use crate::config::Settings;
use crate::output::{EX_IOERR, Failure, Reply};

/// Does what the command line asks for.
///
/// # Errors
/// Cause, fix and exit code.
pub fn run(args: &Args) -> Result<Reply, Failure> {
    let cwd = std::env::current_dir().map_err(|error| {
        Failure::new(EX_IOERR, format!("cannot tell the working directory: {error}"))
            .fix("it was removed or moved: cd into a folder that exists")
    })?;
    let settings = Settings::load(&cwd, &args.overrides)?;
    let json = args.json;
    let of_keys = matches!(args.command, Command::Keys { .. } | Command::Migrate { .. } | Command::Doctor);
    if !of_keys && let Some(text) = expiry::warning(&settings.cert_key_dir, edge::clock::unix_ms() / 1000) {
        log::warn!("{text}");
    }
    match &args.command {
        Command::Sync { force, restart } => sync::run(&settings, *force, *restart, json),
        Command::RunApp => app::run(&settings),
        Command::KillApp => app::kill(&settings),
        Command::Restart => app::restart(&settings),
        Command::Rollback { to, restart } => app::rollback(&settings, *to, *restart),
        Command::SendFile { path } => files::send(&settings, &cwd, path, json),
        Command::DeleteFile { path } => files::delete(&settings, path),
        Command::ListFiles => files::list(&settings),
        Command::Keys { expiry_days, app_src_dir, device, force } => {
            let app_src_dir = app_src_dir.as_ref().map(|dir| cwd.join(dir));
            keys::run(
                &settings,
                &keys::Wanted {
                    expiry_days: *expiry_days,
                    app_src_dir: app_src_dir.as_deref(),
                    device: device.as_deref(),
                    force: *force,
                },
            )
        }
        Command::Migrate { dir, app_src_dir, force } => migrate::run(
            &args.overrides,
            &migrate::Wanted {
                cwd: &cwd,
                dir: Path::new(dir),
                app_src_dir: app_src_dir.as_ref().map(|dir| cwd.join(dir)),
                force: *force,
            },
        ),
        Command::Dev => crate::dev::run(&settings, json).map(|()| Reply::nothing()),
        Command::Logs { follow, since, tail } => logs::run(&settings, *follow, since.as_deref(), *tail, json),
        Command::Status => status::run(&settings),
        Command::Pull { paths, to, force } => {
            // As it was given: it is shown again.
            let to = Path::new(to.as_deref().unwrap_or("."));
            pull::run(&settings, paths, to, *force, json)
        }
        Command::Doctor => doctor::run(&settings),
    }
}

/// A connection to the device.
fn connect(settings: &Settings) -> Result<Client, Failure> {
    Ok(Client::connect(&settings.target()?)?)
}

/// One request without a body, and its JSON.
fn ask(settings: &Settings, method: &'static str, path: &str) -> Result<Value, Failure> {
    Ok(connect(settings)?.request(Request::new(method, path))?.json()?)
}

/// A number in an answer; 0 if the device did not give it.
fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

/// A text in an answer; empty if the device did not give it.
fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

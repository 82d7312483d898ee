//! The command line: what it asks for. Its form is that of [`edge::cli::table`].
//!
//! Owns: names, arities and help texts. Never: reads a file, or decides a default that sideload.toml can set.

mod table;

use std::ffi::OsString;

use crate::config::Overrides;
use crate::output::Failure;

use edge::cli::table::Given;

use self::table::{GRAMMAR, help};

/// A parsed command line.
#[derive(Debug, Clone, PartialEq)]
pub struct Args {
    /// What to do.
    pub command: Command,
    /// Flags over sideload.toml.
    pub overrides: Overrides,
    /// Replies as JSON.
    pub json: bool,
    /// How often `-v` stands there.
    pub verbosity: u8,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the flag of the same name explains each field")]
pub enum Command {
    /// Make the device's files those of src-top.
    Sync { force: bool, restart: bool },
    /// Start the application.
    RunApp,
    /// Stop the application.
    KillApp,
    /// Stop it if it runs, then start it.
    Restart,
    /// Send one file.
    SendFile { path: String },
    /// Delete one file on the device.
    DeleteFile { path: String },
    /// List the files of the device.
    ListFiles,
    /// Make key pairs.
    Keys { expiry_days: u32, app_src_dir: Option<String>, device: Option<String>, force: bool },
    /// Adopt a folder with the original's PEM files.
    Migrate { dir: String, app_src_dir: Option<String>, force: bool },
    /// Save, sync, restart, logs.
    Dev,
    /// The application's output.
    Logs { follow: bool, since: Option<String>, tail: Option<u64> },
    /// How the device is.
    Status,
    /// An earlier commit again.
    Rollback { to: Option<u64>, restart: bool },
    /// Files from the device.
    Pull { paths: Vec<String>, to: Option<String>, force: bool },
    /// What is wrong.
    Doctor,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Asked {
    /// To do something.
    Run(Box<Args>),
    /// A text on stdout: help or version.
    Print(String),
}

/// Reads a command line without the program's name.
///
/// # Errors
/// [`Failure`] with code 64: what is wrong, and where the help is.
pub fn parse(given: Vec<OsString>) -> Result<Asked, Failure> {
    read(given).map_err(|failure| match failure.fix {
        Some(_) => failure,
        None => failure.fix("`sideload --help` lists the commands, `sideload COMMAND --help` explains one"),
    })
}

fn read(words: Vec<OsString>) -> Result<Asked, Failure> {
    let mut given = GRAMMAR.read(words)?;
    let name = if given.rest.is_empty() { None } else { Some(given.rest.remove(0)) };
    if given.has("--version") {
        return Ok(Asked::Print(format!("sideload {}\n", env!("CARGO_PKG_VERSION"))));
    }
    let name = match (name.as_deref(), given.has("--help")) {
        (None | Some("help"), true) => return Ok(Asked::Print(help())),
        (Some("help"), false) if given.rest.is_empty() => return Ok(Asked::Print(help())),
        (Some("help"), false) => {
            return Ok(Asked::Print(GRAMMAR.help_of(GRAMMAR.find(&given.rest.remove(0))?)));
        }
        (None, false) => return Err(Failure::usage("no command is given")),
        (Some(name), _) => name.to_owned(),
    };
    let entry = GRAMMAR.find(&name)?;
    if given.has("--help") {
        return Ok(Asked::Print(GRAMMAR.help_of(entry)));
    }
    GRAMMAR.check(entry, &given)?;
    let overrides = Overrides {
        config: given.text("--config").map(Into::into),
        addr: text(&given, "--addr").filter(|addr| !addr.is_empty()),
        port: given.number("--port")?,
        cert_key_dir: given.text("--cert-key-dir").map(Into::into),
        src_top: given.text("--src-top").map(Into::into),
    };
    if overrides.port == Some(0) {
        return Err(Failure::usage("--port takes a port from 1 to 65535, not 0"));
    }
    let (verbosity, json) = (given.verbosity(), given.has("--json"));
    Ok(Asked::Run(Box::new(Args { command: command(&name, &mut given)?, overrides, json, verbosity })))
}

fn text(given: &Given, long: &str) -> Option<String> {
    given.text(long).map(str::to_owned)
}

fn command(name: &str, given: &mut Given) -> Result<Command, Failure> {
    let force = given.has("--force");
    let restart = given.has("--restart");
    let mut rest = std::mem::take(&mut given.rest).into_iter();
    let mut first = || rest.next().unwrap_or_default();
    Ok(match name {
        "sync" => Command::Sync { force, restart },
        "run-app" => Command::RunApp,
        "kill-app" => Command::KillApp,
        "restart" => Command::Restart,
        "send-file" => Command::SendFile { path: first() },
        "delete-file" => Command::DeleteFile { path: first() },
        "list-files" => Command::ListFiles,
        "keys" => Command::Keys {
            expiry_days: match given.number("--expiry")?.unwrap_or(30) {
                days @ 1..=3650 => days,
                days => return Err(Failure::usage(format!("--expiry takes 1 to 3650 days, not {days}"))),
            },
            app_src_dir: text(given, "--app-src-dir"),
            device: text(given, "--device"),
            force,
        },
        "migrate" => Command::Migrate {
            dir: Some(first()).filter(|dir| !dir.is_empty()).unwrap_or_else(|| ".".into()),
            app_src_dir: text(given, "--app-src-dir"),
            force,
        },
        "dev" => Command::Dev,
        "logs" => Command::Logs {
            follow: given.has("--follow"),
            since: text(given, "--since"),
            tail: given.number("--tail")?,
        },
        "status" => Command::Status,
        "rollback" => Command::Rollback { to: given.number("--to")?, restart },
        "pull" => Command::Pull { paths: rest.collect(), to: text(given, "--to"), force },
        "doctor" => Command::Doctor,
        _ => return Err(Failure::new(edge::cli::EX_SOFTWARE, format!("the command {name} has no code"))),
    })
}

#[cfg(test)]
mod tests;

//! The command line: one table of commands, one of flags; a flag may stand before or behind the command, as `--flag value`
//! or `--flag=value`.
//!
//! Owns: names, arities and help texts. Invariant: a flag that does not belong to the command is refused, not ignored.
//! Never: reads a file, or decides a default that sideload.toml can set.

mod table;

use std::ffi::OsString;

use crate::config::Overrides;
use crate::output::Failure;

use self::table::{Entry, FLAGS, Flag, find, help, help_of};

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

/// The flags that were given, each with its values, and the rest.
struct Given {
    flags: Vec<(&'static Flag, Vec<String>)>,
    rest: Vec<String>,
}

fn read(given: Vec<OsString>) -> Result<Asked, Failure> {
    let mut given = collect(given)?;
    let name = if given.rest.is_empty() { None } else { Some(given.rest.remove(0)) };
    if given.has("--version") {
        return Ok(Asked::Print(format!("sideload {}\n", env!("CARGO_PKG_VERSION"))));
    }
    let name = match (name.as_deref(), given.has("--help")) {
        (None | Some("help"), true) => return Ok(Asked::Print(help())),
        (Some("help"), false) if given.rest.is_empty() => return Ok(Asked::Print(help())),
        (Some("help"), false) => return Ok(Asked::Print(help_of(find(&given.rest.remove(0))?))),
        (None, false) => return Err(Failure::usage("no command is given")),
        (Some(name), _) => name.to_owned(),
    };
    let entry = find(&name)?;
    if given.has("--help") {
        return Ok(Asked::Print(help_of(entry)));
    }
    for (flag, values) in &given.flags {
        if !entry.takes(flag.long) {
            return Err(Failure::usage(format!("{} does not go with {name}", flag.long))
                .fix(format!("`sideload {name} --help` lists what does")));
        }
        if values.len() > 1 && !flag.value.is_empty() {
            return Err(Failure::usage(format!("{} is given twice", flag.long)));
        }
    }
    positions(entry, &given.rest)?;
    let overrides = Overrides {
        config: given.text("--config").map(Into::into),
        addr: given.text("--addr").filter(|addr| !addr.is_empty()),
        port: given.number("--port")?,
        cert_key_dir: given.text("--cert-key-dir").map(Into::into),
        src_top: given.text("--src-top").map(Into::into),
    };
    if overrides.port == Some(0) {
        return Err(Failure::usage("--port takes a port from 1 to 65535, not 0"));
    }
    let verbosity = given.values("--verbose").map_or(0, |v| u8::try_from(v.len()).unwrap_or(u8::MAX));
    let json = given.has("--json");
    Ok(Asked::Run(Box::new(Args { command: command(&name, &mut given)?, overrides, json, verbosity })))
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
            app_src_dir: given.text("--app-src-dir"),
            device: given.text("--device"),
            force,
        },
        "migrate" => Command::Migrate {
            dir: Some(first()).filter(|dir| !dir.is_empty()).unwrap_or_else(|| ".".into()),
            app_src_dir: given.text("--app-src-dir"),
            force,
        },
        "dev" => Command::Dev,
        "logs" => Command::Logs {
            follow: given.has("--follow"),
            since: given.text("--since"),
            tail: given.number("--tail")?,
        },
        "status" => Command::Status,
        "rollback" => Command::Rollback { to: given.number("--to")?, restart },
        "pull" => Command::Pull { paths: rest.collect(), to: given.text("--to"), force },
        "doctor" => Command::Doctor,
        _ => return Err(Failure::new(edge::cli::EX_SOFTWARE, format!("the command {name} has no code"))),
    })
}

fn collect(given: Vec<OsString>) -> Result<Given, Failure> {
    let mut texts = Vec::with_capacity(given.len());
    for argument in given {
        texts.push(argument.into_string().map_err(|argument| {
            Failure::usage(format!("the argument {argument:?} is not UTF-8")).fix("rename the file or folder")
        })?);
    }
    // What stands behind `--` is no flag.
    let behind = match texts.iter().position(|text| text == "--") {
        Some(at) => texts.drain(at..).skip(1).collect(),
        None => Vec::new(),
    };
    let mut separate = Vec::with_capacity(texts.len());
    for text in texts {
        match text.split_once('=') {
            Some((name, value)) if FLAGS.iter().any(|f| f.long == name) => {
                let flag = FLAGS.iter().find(|f| f.long == name).filter(|f| f.value.is_empty());
                if flag.is_some() {
                    return Err(Failure::usage(format!("{name} takes no value")));
                }
                separate.extend([name.to_owned(), value.to_owned()]);
            }
            // `-vv`.
            _ if text.len() > 2 && text.strip_prefix('-').is_some_and(|t| t.bytes().all(|b| b == b'v')) => {
                separate.extend(std::iter::repeat_n("-v".to_owned(), text.len() - 1));
            }
            _ => separate.push(text),
        }
    }
    let mut found = Vec::new();
    let mut arguments = pico_args::Arguments::from_vec(separate.into_iter().map(OsString::from).collect());
    for flag in FLAGS {
        let mut values: Vec<String> = Vec::new();
        for name in [flag.short, flag.long].into_iter().filter(|name| !name.is_empty()) {
            if flag.value.is_empty() {
                while arguments.contains(name) {
                    values.push(String::new());
                }
                continue;
            }
            let taken =
                arguments.values_from_fn(name, |text| Ok::<_, std::convert::Infallible>(text.to_owned()));
            values.extend(
                taken.map_err(|_| Failure::usage(format!("{} needs a value: {}", flag.long, flag.value)))?,
            );
        }
        if let Some(other) = values.iter().find(|v| v.starts_with("--")) {
            return Err(Failure::usage(format!("{} needs a value, found {other}", flag.long)));
        }
        if !values.is_empty() {
            found.push((flag, values));
        }
    }
    let mut rest: Vec<String> =
        arguments.finish().into_iter().map(|text| text.to_string_lossy().into_owned()).collect();
    if let Some(unknown) = rest.iter().find(|text| text.len() > 1 && text.starts_with('-')) {
        return Err(Failure::usage(format!("there is no flag {unknown}")));
    }
    rest.extend(behind);
    Ok(Given { flags: found, rest })
}

fn positions(entry: &Entry, rest: &[String]) -> Result<(), Failure> {
    let Entry { name, positions, .. } = entry;
    if rest.len() < entry.min {
        return Err(Failure::usage(format!("{name} needs {positions}")));
    }
    match rest.get(entry.max) {
        Some(extra) => Err(Failure::usage(format!("{name} does not take {extra:?}"))
            .fix(format!("`sideload {name} --help` shows its form"))),
        None => Ok(()),
    }
}

impl Given {
    fn values(&self, long: &str) -> Option<&Vec<String>> {
        self.flags.iter().find(|(flag, _)| flag.long == long).map(|(_, values)| values)
    }

    fn has(&self, long: &str) -> bool {
        self.values(long).is_some()
    }

    fn text(&self, long: &str) -> Option<String> {
        self.values(long)?.first().cloned()
    }

    fn number<N: std::str::FromStr>(&self, long: &str) -> Result<Option<N>, Failure> {
        let parse = |text: String| {
            text.parse().map_err(|_| Failure::usage(format!("{long} takes a number, not {text:?}")))
        };
        self.text(long).map(parse).transpose()
    }
}

#[cfg(test)]
mod tests;

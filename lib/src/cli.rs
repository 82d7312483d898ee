//! What every daemon's `main` does before its own work: options, configuration, `--check`, exit codes.
//!
//! Owns: the order args -> config -> (`--check` and `--print-config` stop here) -> log -> run, and how an error is shown.
//! Never: opens a socket or a thread.

pub mod output;
mod registry;
pub mod table;

pub use registry::keep_gst_registry;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use pico_args;

/// All went well.
pub const EX_OK: u8 = 0;
/// The command line is wrong (`sysexits.h`).
pub const EX_USAGE: u8 = 64;
/// What was given is refused.
pub const EX_DATAERR: u8 = 65;
/// Something that the daemon needs from outside is not there.
pub const EX_UNAVAILABLE: u8 = 69;
/// A bug of ours.
pub const EX_SOFTWARE: u8 = 70;
/// The system refused something (sockets, threads, descriptors).
pub const EX_OSERR: u8 = 71;
/// A file can't be made: it is there already, or its place can't be written.
pub const EX_CANTCREAT: u8 = 73;
/// A file could not be read or written. After a failed `fsync` nothing was acknowledged.
pub const EX_IOERR: u8 = 74;
/// Not now; the same may go well later.
pub const EX_TEMPFAIL: u8 = 75;
/// The other side did not keep to what was agreed.
pub const EX_PROTOCOL: u8 = 76;
/// A key, a signature or a certificate.
pub const EX_NOPERM: u8 = 77;
/// The configuration is wrong; the units do not restart on it.
pub const EX_CONFIG: u8 = 78;

/// Why a program ends, and with which exit code.
#[derive(Debug)]
pub struct Failure {
    /// One of the `EX_` codes.
    pub code: u8,
    /// The reason, with its sources.
    pub error: Box<dyn Error + Send + Sync>,
}

impl Failure {
    /// `error` ends the program with `code`.
    pub fn new(code: u8, error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        Failure { code, error: error.into() }
    }
    /// Ends the program with [`EX_CONFIG`].
    pub fn config(error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        Failure::new(EX_CONFIG, error)
    }
    /// Ends the program with [`EX_OSERR`].
    pub fn os(error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        Failure::new(EX_OSERR, error)
    }
    /// Ends the program with [`EX_IOERR`].
    pub fn io(error: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        Failure::new(EX_IOERR, error)
    }
}

impl From<crate::config::Error> for Failure {
    fn from(error: crate::config::Error) -> Failure {
        Failure::config(error)
    }
}

/// Who the program is.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// The one noun: crate, binary, unit, configuration file, log tag.
    pub name: &'static str,
    /// One line for `--help`.
    pub about: &'static str,
    /// `env!("CARGO_PKG_VERSION")` of the program's crate.
    pub version: &'static str,
    /// More for `--help`, such as the environment variables it reads; may be empty.
    pub more_help: &'static str,
}

/// The shape that every daemon shares. `main` is `edge::cli::main::<Mine>()`.
pub trait Daemon {
    /// What a valid configuration file becomes.
    type Config;
    /// Who it is.
    const PROGRAM: Program;

    /// Reads and validates the configuration.
    ///
    /// # Errors
    /// With [`EX_CONFIG`] and the file, line, column, key and expectation.
    fn load(path: &Path) -> Result<Self::Config, Failure>;

    /// The configuration in force, as TOML, every default filled in, without secrets.
    fn print(config: &Self::Config) -> String;

    /// Finds what can be found without running: files that are named but missing, folders that can't be written.
    /// Returns warnings, one line each.
    ///
    /// # Errors
    /// What would stop the daemon at its start.
    fn check(config: &Self::Config) -> Result<Vec<String>, Failure>;

    /// Runs until it is told to stop. `path` is read again on SIGHUP.
    ///
    /// # Errors
    /// What ended it, with its exit code.
    fn run(config: Self::Config, path: &Path) -> Result<(), Failure>;

    /// What the program does besides being a daemon, in the order of `--help`.
    const COMMANDS: &'static [Command] = &[];

    /// The command that means to be the daemon, such as `serve`; the same as none.
    const RUN: Option<&'static str> = None;

    /// Runs one of [`Daemon::COMMANDS`]. `path` is that of `--config`; `args` is what follows the command's name, less
    /// the options every program has. What a person asked for goes to standard output.
    ///
    /// # Errors
    /// What ended it, with its exit code; [`EX_USAGE`] for arguments that it doesn't know.
    fn command(name: &str, args: pico_args::Arguments, path: &Path) -> Result<ExitCode, Failure> {
        let _ = (args, path);
        Err(Failure::new(EX_USAGE, format!("unknown command {name:?}")))
    }
}

/// A command of a program that is a daemon, too.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// The word after the program's name.
    pub name: &'static str,
    /// Its own arguments, such as `[--wait]`; may be empty.
    pub usage: &'static str,
    /// One line.
    pub about: &'static str,
}

#[derive(Debug)]
enum Mode {
    Run,
    Check,
    PrintConfig,
    Command(String, pico_args::Arguments),
}

#[derive(Debug)]
struct Args {
    config: PathBuf,
    mode: Mode,
    verbosity: u8,
}

/// Runs the daemon `D` from command line to exit code.
pub fn main<D: Daemon>() -> ExitCode {
    let program = &D::PROGRAM;
    let args = match parse(program, D::COMMANDS, D::RUN) {
        Ok(Some(args)) => args,
        Ok(None) => return ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{}: {message}\nTry '{} --help'.", program.name, program.name);
            return ExitCode::from(EX_USAGE);
        }
    };
    crate::log::init(args.verbosity);
    keep_secrets_out_of_core_dumps();
    let command = if let Mode::Command(name, _) = &args.mode { Some(name.clone()) } else { None };
    match act::<D>(args) {
        Ok(code) => code,
        Err(failure) => {
            match command {
                // For the person who typed it, not for the log.
                Some(command) if failure.error.downcast_ref::<crate::config::Error>().is_none() => {
                    eprintln!("{} {command}: {}", program.name, crate::log::chain(failure.error.as_ref()));
                }
                _ => report(program.name, &failure),
            }
            ExitCode::from(failure.code)
        }
    }
}

fn act<D: Daemon>(args: Args) -> Result<ExitCode, Failure> {
    if let Mode::Command(name, rest) = args.mode {
        return D::command(&name, rest, &args.config);
    }
    let config = D::load(&args.config)?;
    match args.mode {
        Mode::PrintConfig => {
            print!("{}", D::print(&config));
            Ok(ExitCode::SUCCESS)
        }
        Mode::Check => {
            for warning in D::check(&config)? {
                log::warn!("{warning}");
            }
            println!("{}: {} is good", D::PROGRAM.name, args.config.display());
            Ok(ExitCode::SUCCESS)
        }
        Mode::Run | Mode::Command(..) => D::run(config, &args.config).map(|()| ExitCode::SUCCESS),
    }
}

/// `None` when `--help` or `--version` was answered.
fn parse(program: &Program, commands: &[Command], run: Option<&str>) -> Result<Option<Args>, String> {
    let mut given = pico_args::Arguments::from_env();
    if given.contains(["-h", "--help"]) {
        print!("{}", help(program, commands));
        return Ok(None);
    }
    if given.contains(["-V", "--version"]) {
        println!("{} {}", program.name, program.version);
        return Ok(None);
    }
    let mut verbosity = 0u8;
    while given.contains("-vv") {
        verbosity = verbosity.saturating_add(2);
    }
    while given.contains(["-v", "--verbose"]) {
        verbosity = verbosity.saturating_add(1);
    }
    let mode = match (given.contains("--check"), given.contains("--print-config")) {
        (true, _) => Mode::Check,
        (false, true) => Mode::PrintConfig,
        (false, false) => Mode::Run,
    };
    let config = given
        .opt_value_from_os_str(["-c", "--config"], |v| Ok::<_, std::convert::Infallible>(PathBuf::from(v)))
        .map_err(|_| "--config needs a path".to_owned())?
        .unwrap_or_else(|| PathBuf::from(format!("/etc/edge/{}.toml", program.name)));
    if let Ok(Some(name)) = given.subcommand()
        && run != Some(name.as_str())
    {
        return if commands.iter().any(|command| command.name == name) {
            Ok(Some(Args { config, mode: Mode::Command(name, given), verbosity }))
        } else if commands.is_empty() {
            Err(format!("unexpected argument {name:?}"))
        } else {
            Err(format!("unknown command {name:?}"))
        };
    }
    match given.finish().first() {
        Some(extra) => Err(format!("unexpected argument {extra:?}")),
        None => Ok(Some(Args { config, mode, verbosity })),
    }
}

fn help(program: &Program, commands: &[Command]) -> String {
    let Program { name, about, more_help, .. } = program;
    let mut usage = format!("Usage: {name} [options]");
    for Command { name: command, usage: arguments, about } in commands {
        let line = format!("{name} {command} {arguments}");
        usage += &format!("\n       {line:<42} {about}");
    }
    let mut text = format!(
        "{name}: {about}\n\n{usage}\n\n  \
         -c, --config FILE  configuration (default /etc/edge/{name}.toml)\n      \
         --check        find what is wrong with the configuration, and stop\n      \
         --print-config print the configuration in force with all defaults, and stop\n  \
         -v, --verbose      log more; twice for everything\n  \
         -V, --version      print the version\n  \
         -h, --help         print this\n\n\
         Signals: TERM and INT drain and stop, HUP reads the configuration again.\n\
         Exit codes: 0 stopped as asked, 64 usage, 69 unavailable, 70 bug, 71 system, 74 disk, 78 configuration.\n"
    );
    if !more_help.is_empty() {
        text.push('\n');
        text.push_str(more_help);
        text.push('\n');
    }
    text
}

/// A configuration error comes with an excerpt of several lines, which a log line would escape.
fn report(name: &str, failure: &Failure) {
    match failure.error.downcast_ref::<crate::config::Error>() {
        Some(error) => {
            log::error!("{}", crate::log::chain(error));
            if let Some(excerpt) = error.excerpt() {
                eprint!("{excerpt}");
            }
        }
        None => log::error!("{name} stops: {}", crate::log::chain(failure.error.as_ref())),
    }
}

/// Passwords and session keys live in memory; a core dump would put them on disk.
/// For programs that do not start by [`main`]; it does this by itself.
pub fn keep_secrets_out_of_core_dumps() {
    if std::env::var_os("EDGE_ALLOW_CORE_DUMPS").is_some() {
        return;
    }
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        log::debug!("cannot turn off core dumps: {error}");
    }
}

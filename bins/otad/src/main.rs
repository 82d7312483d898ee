//! `otad`: asks a package server what this device should run; installs it atomically; rolls back. Start-up only.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use edge::cli::{self, Command, Failure, Program, pico_args};
use otad::config::Config;

struct Otad;

impl cli::Daemon for Otad {
    type Config = Config;
    const PROGRAM: Program = Program {
        name: "otad",
        about: "asks a package server what this device should run; installs it atomically; rolls back",
        version: env!("CARGO_PKG_VERSION"),
        more_help: "All commands take --json. Exit codes of commands: 0 it is so, 1 rolled back, 65 damaged (verify),\n\
                    69 no daemon, 75 not now (window, budget, server), 76 refused.",
    };
    const COMMANDS: &'static [Command] = &[
        Command { name: "status", usage: "", about: "what is installed, and what goes on" },
        Command { name: "why", usage: "", about: "why an app is not newer than it is" },
        Command {
            name: "check-now",
            usage: "[--wait] [--force]",
            about: "ask the server now; --force: whatever window and budget say",
        },
        Command {
            name: "rollback",
            usage: "[GENERATION]",
            about: "bring back the generation before, and no other",
        },
        Command {
            name: "retry",
            usage: "[GENERATION] [--dir DIR]",
            about: "let what was rolled back be installed again by the next poll",
        },
        Command { name: "history", usage: "[--dir DIR]", about: "what was installed, and how it went" },
        Command {
            name: "verify",
            usage: "[--dir DIR]",
            about: "compare what is installed with its manifest",
        },
        Command {
            name: "recover",
            usage: "",
            about: "finish what a power cut interrupted; before the apps start",
        },
    ];

    fn load(path: &Path) -> Result<Config, Failure> {
        Ok(Config::load(path)?)
    }

    fn print(config: &Config) -> String {
        edge::config::to_toml(&config.raw)
    }

    fn check(config: &Config) -> Result<Vec<String>, Failure> {
        let dir = &config.raw.state_dir;
        if dir.exists() && !dir.is_dir() {
            return Err(Failure::config(format!("state-dir: {} is no folder", dir.display())));
        }
        Ok(config.warnings())
    }

    fn run(config: Config, path: &Path) -> Result<(), Failure> {
        otad::daemon::run(config, path)
    }

    fn command(name: &str, args: pico_args::Arguments, path: &Path) -> Result<ExitCode, Failure> {
        otad::commands::run(name, args, path)
    }
}

fn main() -> ExitCode {
    cli::main::<Otad>()
}

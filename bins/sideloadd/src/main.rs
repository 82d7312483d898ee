//! `sideloadd`: receives an application's files over mutual TLS, runs, restarts, logs and kills it. Start-up only.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use edge::cli::{self, Failure, Program};
use sideloadd::config::Config;

struct Sideloadd;

impl cli::Daemon for Sideloadd {
    type Config = Config;
    const PROGRAM: Program = Program {
        name: "sideloadd",
        about: "receives an application's files over mutual TLS, runs, restarts, logs and kills it",
        version: env!("CARGO_PKG_VERSION"),
        more_help: "Environment: LISTEN_PID and LISTEN_FDS, the sockets of sideloadd.socket. The application inherits\n\
                    the environment, less what concerns this program alone.",
    };

    fn load(path: &Path) -> Result<Config, Failure> {
        Ok(Config::load(path)?)
    }

    fn print(config: &Config) -> String {
        edge::config::to_toml(&config.raw)
    }

    fn check(config: &Config) -> Result<Vec<String>, Failure> {
        let root = &config.raw.root;
        if root.exists() && !root.is_dir() {
            return Err(Failure::config(format!("root: {} is no folder", root.display())));
        }
        Ok(config.warnings())
    }

    fn run(config: Config, path: &Path) -> Result<(), Failure> {
        sideloadd::daemon::run(config, path)
    }
}

fn main() -> ExitCode {
    cli::main::<Sideloadd>()
}

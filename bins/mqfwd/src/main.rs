//! mqfwd: forwards messages between a local MQTT broker and one in the cloud, through a spool on disk.
//!
//! Start-up. Each direction is a [`lane::Lane`]; what it promises stands in ARCHITECTURE.md. A reload opens
//! everything anew with the new configuration, which costs nothing since all that matters is on disk.
#![forbid(unsafe_code)]

mod config;
mod core;
mod daemon;
mod gate;
mod lane;
mod route;
mod status;

use std::path::Path;
use std::process::ExitCode;

use edge::cli::{self, Failure, Program};
use edge::notify::Notifier;
use edge::signal::Signals;

use crate::config::Config;
use crate::daemon::Daemon;

struct Mqfwd;

impl cli::Daemon for Mqfwd {
    type Config = Config;
    const PROGRAM: Program = Program {
        name: "mqfwd",
        about: "forwards MQTT messages to another broker, nothing acknowledged before it is on disk",
        version: env!("CARGO_PKG_VERSION"),
        more_help: "Environment: CLOUD_MQTT_HOST and CLOUD_MQTT_PORT override host and port of [cloud].",
    };

    fn load(path: &Path) -> Result<Config, Failure> {
        Ok(Config::load(path)?)
    }

    fn print(config: &Config) -> String {
        edge::config::to_toml(&config.raw)
    }

    fn check(config: &Config) -> Result<Vec<String>, Failure> {
        let dir = &config.raw.state_dir;
        let mut warnings = Vec::new();
        match std::fs::metadata(dir) {
            Ok(found) if !found.is_dir() => {
                return Err(Failure::config(format!("state-dir {} is not a folder", dir.display())));
            }
            Ok(_) => {}
            Err(error) => {
                warnings.push(format!("state-dir {}: {error}; it is made at the start", dir.display()))
            }
        }
        Ok(warnings)
    }

    fn run(config: Config, path: &Path) -> Result<(), Failure> {
        let mut signals = Signals::new().map_err(Failure::os)?;
        let mut notifier = Notifier::from_env();
        let mut config = config;
        loop {
            let daemon = Daemon::open(config, &mut signals, &mut notifier)?;
            match daemon.serve(path)? {
                Some(new) => config = new,
                None => return Ok(()),
            }
        }
    }
}

fn main() -> ExitCode {
    edge::cli::main::<Mqfwd>()
}

//! `depotd`: the package server: publish, sign, resolve by device attributes, serve. Start-up only.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use depotd::commands;
use depotd::config::Config;
use edge::aws::credentials::Vars;
use edge::cli::{self, Command, Failure, Program};

struct Depotd;

/// Those of [`commands`], after the one that means to be the daemon.
const ALL: [Command; commands::COMMANDS.len() + 1] = {
    let serve = Command { name: "serve", usage: "", about: "be the server; the same as without a command" };
    let mut all = [serve; commands::COMMANDS.len() + 1];
    let mut n = 0;
    while n < commands::COMMANDS.len() {
        let entry = &commands::COMMANDS[n];
        all[n + 1] = Command { name: entry.name, usage: "", about: entry.about };
        n += 1;
    }
    all
};

impl cli::Daemon for Depotd {
    type Config = Config;
    const PROGRAM: Program = Program {
        name: "depotd",
        about: "the package server: publish, sign, resolve by device attributes, serve",
        version: env!("CARGO_PKG_VERSION"),
        more_help: "`depotd COMMAND --help` explains a command.\n\
                    Environment, for DynamoDB and S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE,\n\
                    AWS_REGION, AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE, AWS_CONTAINER_CREDENTIALS_*, AWS_EC2_METADATA_*.",
    };
    const COMMANDS: &'static [Command] = &ALL;
    const RUN: Option<&'static str> = Some("serve");

    fn load(path: &Path) -> Result<Config, Failure> {
        Ok(Config::load(path, &Vars::from_env())?)
    }

    fn print(config: &Config) -> String {
        edge::config::to_toml(&config.raw)
    }

    fn check(config: &Config) -> Result<Vec<String>, Failure> {
        let dir = &config.raw.bundle.dir;
        if dir.exists() && !dir.is_dir() {
            return Err(Failure::config(format!("bundle.dir: {} is no folder", dir.display())));
        }
        Ok(Vec::new())
    }

    fn run(config: Config, path: &Path) -> Result<(), Failure> {
        depotd::daemon::run(config, path)
    }
}

fn main() -> ExitCode {
    commands::main().unwrap_or_else(cli::main::<Depotd>)
}

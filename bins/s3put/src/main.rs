//! `s3put`: MQTT messages to objects in S3 or a folder. Start-up and loop.
//!
//! A message is acknowledged to its sender when it is in the spool on disk, and leaves the spool when it is an object.
//! One thread runs the poll; `edge::objects` has the decisions and the threads that store, `spool` one that syncs.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "a program's items are documented where they need to be")]

mod config;
mod daemon;
mod key;
mod meta;
mod object;
mod status;

use std::path::Path;
use std::process::ExitCode;

use edge::aws::credentials::Vars;
use edge::cli::{self, Failure, Program};

use config::{Config, TargetConfig};

struct S3put;

impl cli::Daemon for S3put {
    type Config = Config;
    const PROGRAM: Program = Program {
        name: "s3put",
        about: "stores MQTT messages as objects in S3 or in a folder",
        version: env!("CARGO_PKG_VERSION"),
        more_help: "Environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, AWS_REGION,\n\
                    AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE, AWS_CONTAINER_CREDENTIALS_*, AWS_EC2_METADATA_*, HTTPS_PROXY.",
    };

    fn load(path: &Path) -> Result<Config, Failure> {
        Ok(Config::load(path, &Vars::from_env())?)
    }

    fn print(config: &Config) -> String {
        edge::config::to_toml(&config.raw)
    }

    fn check(config: &Config) -> Result<Vec<String>, Failure> {
        if let TargetConfig::Dir { root, .. } = &config.target
            && root.exists()
            && !root.is_dir()
        {
            return Err(Failure::config(format!("target.to: {} is no folder", root.display())));
        }
        Ok(config.warnings())
    }

    fn run(config: Config, path: &Path) -> Result<(), Failure> {
        daemon::run(config, path)
    }
}

fn main() -> ExitCode {
    cli::main::<S3put>()
}

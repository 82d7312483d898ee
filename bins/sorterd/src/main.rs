//! `sorterd`: the inference service of a sorting arm. Start-up only.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use edge::cli::{self, Failure, Program};
use sorterd::config::{Config, Environment};
use sorterd::vision::{Detector, Vectorizer};

struct Sorterd;

impl cli::Daemon for Sorterd {
    type Config = Config;
    const PROGRAM: Program = Program {
        name: "sorterd",
        about: "finds what lies before a sorting arm and tells it the moves that sort it",
        version: env!("CARGO_PKG_VERSION"),
        more_help: "Environment: MODE (local, aws-dev or production), PG_CONN (postgresql://user:password@host:port/db),\n\
                    CONTROL_PANEL_HOST (host:port), and for S3 AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN,\n\
                    AWS_PROFILE, AWS_REGION, AWS_SHARED_CREDENTIALS_FILE, AWS_CONFIG_FILE, AWS_CONTAINER_CREDENTIALS_*,\n\
                    AWS_EC2_METADATA_*. What it says goes before what the file says.",
    };

    fn load(path: &Path) -> Result<Config, Failure> {
        Ok(Config::load(path, &Environment::from_process())?)
    }

    fn print(config: &Config) -> String {
        edge::config::to_toml(&config.raw)
    }

    fn check(config: &Config) -> Result<Vec<String>, Failure> {
        Detector::open(&config.detector).map_err(Failure::config)?;
        Vectorizer::open(&config.vectorizer).map_err(Failure::config)?;
        Ok(config.warnings())
    }

    fn run(config: Config, path: &Path) -> Result<(), Failure> {
        // As in the unit, also by hand: pictures of somebody's workplace and what is known of them are not for everybody on
        // the machine. Files have 0640 at most, folders 0750.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
        sorterd::daemon::run(config, path)
    }
}

fn main() -> ExitCode {
    cli::main::<Sorterd>()
}

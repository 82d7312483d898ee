//! The program: `--check`, start-up, reload.
//!
//! Owns: the order in which things begin. Never: runs the loop (see `daemon`).

use std::path::Path;

use edge::cli::{self, Failure, Program};
use edge::notify::Notifier;
use edge::signal::Signals;

use crate::config::Config;
use crate::daemon::Daemon;
use crate::sources::{self, SourceSpec};

/// The program.
#[derive(Debug)]
pub struct Spyglassd;

impl cli::Daemon for Spyglassd {
    type Config = Config;
    const PROGRAM: Program = Program {
        name: "spyglassd",
        about: "re-streams what an application sees: RTSP, Kinesis Video Streams, a browser page",
        version: env!("CARGO_PKG_VERSION"),
        more_help: "Environment: GST_REGISTRY (where GStreamer keeps what it knows of its plug-ins; default in cache-dir).",
    };

    fn load(path: &Path) -> Result<Config, Failure> {
        Ok(Config::load(path)?)
    }

    fn print(config: &Config) -> String {
        edge::config::to_toml(&config.raw)
    }

    fn check(config: &Config) -> Result<Vec<String>, Failure> {
        cli::keep_gst_registry(&config.raw.cache_dir);
        check(config)
    }

    fn run(config: Config, path: &Path) -> Result<(), Failure> {
        // The application that feeds it is what the machine is there for: each frame wakes up the loop, the converter and
        // the encoder's threads, and they must not take the CPU from the put() that woke them.
        if let Err(error) = edge::sys::wait_for_a_turn() {
            // Under systemd the unit says it; the sandbox then forbids that a service changes it.
            log::debug!("scheduling as batch is not possible: {error}");
        }
        // GStreamer starts and ends threads with every viewer and every encoder.
        edge::sys::share_memory_pools(2);
        cli::keep_gst_registry(&config.raw.cache_dir);
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

/// Finds what can be found without running: encoders, pipelines, files. A camera may be unplugged: that is a warning.
fn check(config: &Config) -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    let encoder = config.raw.encoder.kind.probe().map_err(Failure::config)?;
    if config.raw.encoder.kind != encoder {
        warnings.push(format!("encoder \"auto\" is {} on this machine", encoder.element()));
    }
    let mut blurs = false;
    for stream in &config.streams {
        if let Some(privacy) = &stream.privacy {
            blurs = true;
            crate::privacy::finder(privacy).map_err(|why| stream_fails(&stream.name, &why))?;
        }
        let Some(source) = &stream.source else { continue };
        let fail = |what: String| stream_fails(&stream.name, &what);
        match &source.spec {
            SourceSpec::V4l(path) if !path.exists() => {
                warnings.push(format!(
                    "stream {}: {} is not there; it is waited for",
                    stream.name,
                    path.display()
                ));
            }
            SourceSpec::File(path) => {
                std::fs::File::open(path)
                    .map_err(|e| fail(format!("cannot read {}: {e}", path.display())))?;
            }
            _ => {}
        }
        sources::build(source).map_err(|e| fail(e.to_string()))?;
    }
    if blurs && config.other.is_some() {
        let what = "frames.any-name is true: streams that no [[stream]] names are not blurred";
        warnings.push(what.to_owned());
    }
    Ok(warnings)
}

fn stream_fails(name: &str, what: &str) -> Failure {
    Failure::config(format!("stream {name}: {what}"))
}

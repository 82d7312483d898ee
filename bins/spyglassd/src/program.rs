//! The program: `--check`, start-up, reload.
//!
//! Owns: the order in which things begin. Never: runs the loop (see `daemon`).

use std::path::Path;

use edge::cli::{self, Failure, Program};
use edge::notify::Notifier;
use edge::signal::Signals;
use rustix::process::{getpriority_process, setpriority_process};

use crate::config::{Config, StreamConfig};
use crate::daemon::Daemon;
use crate::pipeline::chain::Settings;
use crate::sources::{self, SourceSpec};

/// How far its threads stand behind the application's (`nice(2)`); the unit says the same.
const NICE: i32 = 5;

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
        give_way();
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

/// Lets the application that feeds this program go first: it is what the machine is there for. Each frame wakes up the
/// loop, the converter and the encoder's threads, and they must not take the CPU from the put() that woke them.
fn give_way() {
    if let Err(error) = edge::sys::wait_for_a_turn() {
        // Under systemd the unit says it; the sandbox then forbids that a service changes it.
        log::debug!("scheduling as batch is not possible: {error}");
    }
    // Any other value than 0 is somebody's choice: the unit's, or the shell's that started it.
    let nice = match getpriority_process(None) {
        Ok(0) => setpriority_process(None, NICE).map(|()| NICE),
        other => other,
    };
    let nice = nice.inspect_err(|e| log::debug!("a lower priority is not possible: {e}")).unwrap_or(0);
    // A kernel that shares the CPU out between sessions first (autogroup) compares priorities within a session only. As a
    // service this program has one of its own, which is given the same priority; that of a shell is not its to change.
    if std::fs::read_to_string("/proc/self/stat").is_ok_and(|stat| leads_its_session(&stat))
        && let Err(error) = std::fs::write("/proc/self/autogroup", nice.to_string())
    {
        log::debug!("the session's priority stays: {error}");
    }
}

/// Whether the process whose `/proc/PID/stat` this is leads its session (`proc_pid_stat(5)`, fields 1 and 6).
///
/// Read there because a container often runs its programs in a session from outside: its number is 0 then, which
/// `rustix::process::getsid` takes for impossible.
fn leads_its_session(stat: &str) -> bool {
    let pid = stat.split_whitespace().next();
    // A name in parentheses, which may have spaces and parentheses of its own, then state, parent, group and session.
    let session = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(3));
    pid.is_some() && pid == session
}

/// Finds what can be found without running: encoders, pipelines, files. A camera may be unplugged: that is a warning.
fn check(config: &Config) -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    let encoder = config.raw.encoder.kind.probe().map_err(Failure::config)?;
    if config.raw.encoder.kind != encoder {
        warnings.push(format!("encoder \"auto\" is {} on this machine", encoder.element()));
    }
    let e = &config.raw.encoder;
    let settings = Settings {
        kind: encoder,
        preset: e.preset.clone(),
        threads: e.threads,
        bitrate_kbit: 1000,
        gop_frames: 60,
        fit: e.fit,
    };
    settings.check().map_err(Failure::config)?;
    let blurs = |stream: &StreamConfig| stream.privacy.is_some();
    if let Some(privacy) = config.other.as_ref().and_then(|other| other.privacy.as_ref()) {
        crate::privacy::finder(privacy).map_err(|why| Failure::config(format!("privacy: {why}")))?;
    }
    for stream in &config.streams {
        if let Some(privacy) = &stream.privacy {
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
    if config.streams.iter().any(blurs) && config.other.as_ref().is_some_and(|other| !blurs(other)) {
        let what =
            "frames.any-name is true: streams that no [[stream]] names are not blurred without [privacy]";
        warnings.push(what.to_owned());
    }
    Ok(warnings)
}

fn stream_fails(name: &str, what: &str) -> Failure {
    Failure::config(format!("stream {name}: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_from_outside_the_container_is_not_led_from_within() {
        assert!(leads_its_session("21 (spyglassd) S 1 21 21 0 -1 4194560"));
        assert!(leads_its_session("21 (a ) S 1 2 3) S 1 21 21 0 -1 4194560"));
        assert!(!leads_its_session("21 (spyglassd) S 1 21 7 0 -1 4194560"));
        assert!(!leads_its_session("1 (spyglassd) S 0 0 0 0 -1 4194560"));
        assert!(!leads_its_session(""));
    }
}

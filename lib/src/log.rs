//! One line per event on stderr, with the priority prefix that journald understands (`sd-daemon(3)`).
//!
//! Owns: the process-wide backend of the `log` crate. Control characters are escaped, so that nothing a peer sends
//! can forge a line. Never: buffers, rotates, or logs a secret (secrets are [`crate::config::Secret`], which print as `***`).

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Stderr {
    terminal: bool,
}

static BACKEND: OnceLock<Stderr> = OnceLock::new();

/// Starts logging: warnings, errors and notable events; `verbosity` 1 adds debug, 2 and more add everything.
/// On a terminal a line begins with the level, elsewhere with `<N>`. A second call only sets the level.
pub fn init(verbosity: u8) {
    let backend = BACKEND.get_or_init(|| Stderr { terminal: std::io::stderr().is_terminal() });
    // Fails only when a backend is set already, which is this one.
    let _ = log::set_logger(backend);
    log::set_max_level(match verbosity {
        0 => LevelFilter::Info,
        1 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    });
}

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries talk below "warning" only at the highest verbosity.
        let ours =
            !matches!(metadata.target().split("::").next(), Some("rustls" | "ureq" | "ureq_proto" | "mio"));
        // ureq's finest level is the bytes on the wire, session tokens and fetched keys among them: never.
        let wire = metadata.level() == Level::Trace && metadata.target().starts_with("ureq");
        ours || metadata.level() <= Level::Warn || (log::max_level() == LevelFilter::Trace && !wire)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = String::with_capacity(160);
        let (number, word) = match record.level() {
            Level::Error => (3, "error"),
            Level::Warn => (4, "warning"),
            Level::Info => (6, "info"),
            Level::Debug | Level::Trace => (7, "debug"),
        };
        // Writing to a String cannot fail.
        let _ = if self.terminal { write!(line, "{word}: ") } else { write!(line, "<{number}>") };
        let _ = write!(Escaped(&mut line), "{}", record.args());
        line.push('\n');
        // One write, so that lines of threads do not mix. Nobody is left to tell when stderr is gone.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

/// A `fmt::Write` that escapes control characters.
struct Escaped<'a>(&'a mut String);

impl std::fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            match c {
                '\n' => self.0.push_str("\\n"),
                c if c.is_control() => self.0.extend(c.escape_default()),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

/// The whole chain of an error in one line, `: ` between the links.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let link = source.to_string();
        // Some libraries repeat their source in their own text.
        if !text.ends_with(&link) {
            text.push_str(": ");
            text.push_str(&link);
        }
        next = source.source();
    }
    text
}

/// Lets one event through per `every`, and counts what it held back.
#[derive(Debug, Clone)]
pub struct Throttle {
    every: Duration,
    last: Option<Instant>,
    held: u64,
}

impl Throttle {
    /// At most one event per `every`.
    pub fn new(every: Duration) -> Throttle {
        Throttle { every, last: None, held: 0 }
    }

    /// An event happened: `Some(n)` if it should be logged now, `n` being those held back since the last one.
    pub fn event(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < self.every) {
            self.held += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_cannot_forge_a_line() {
        let mut line = String::new();
        write!(Escaped(&mut line), "client {:?}", "x\n<0>all is lost\x1b[2J").unwrap();
        assert_eq!(line, "client \"x\\n<0>all is lost\\u{1b}[2J\"");
    }

    #[test]
    fn the_throttle_counts_what_it_held_back() {
        let t0 = Instant::now();
        let mut throttle = Throttle::new(Duration::from_secs(60));
        assert_eq!(throttle.event(t0), Some(0));
        assert_eq!(throttle.event(t0 + Duration::from_secs(1)), None);
        assert_eq!(throttle.event(t0 + Duration::from_secs(59)), None);
        assert_eq!(throttle.event(t0 + Duration::from_secs(60)), Some(2));
    }

    #[test]
    fn a_chain_does_not_repeat_itself() {
        let io = std::io::Error::other("disk on fire");
        let error = crate::fs::Error { action: "write", path: "/x".into(), source: io };
        assert_eq!(chain(&error), "cannot write /x: disk on fire");
    }
}

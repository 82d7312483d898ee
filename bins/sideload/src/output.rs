//! What people and scripts get to see of a command: its reply as text or JSON, its failure with cause and fix, its exit
//! code.
//!
//! Invariants: replies go to stdout, everything else to stderr; with `--json` stdout holds JSON only, one value a line.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;

use edge::cli::{EX_CONFIG, EX_USAGE};
use serde_json::{Value, json};

pub use edge::cli::EX_IOERR;

/// The device refused (HTTP 4xx): nothing to kill, no entry point, no such file.
pub const EX_REFUSED: u8 = 1;
/// A file can't be made on this host.
pub const EX_CANTCREAT: u8 = 73;
/// Certificates, keys or TLS.
pub const EX_NOPERM: u8 = 77;

/// For `--help`: each exit code of the program.
pub const EXIT_CODES: &str = "\
Exit codes:
   0  done                                  73  a file can't be made on this host
   1  the device refused; it says why       74  a file can't be read or written on this host
  64  wrong usage                           75  the device is busy, full or in trouble: try again
  65  the content was refused, or a check   76  the answer was not understood
  69  the device can't be reached           77  certificates or TLS
  70  a bug                                 78  sideload.toml is wrong
";

/// Why a command came to nothing.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// The cause, with its sources.
    pub cause: String,
    /// What a person can do.
    pub fix: Option<String>,
    /// Lines to show as they are, such as the place in sideload.toml.
    pub excerpt: Option<String>,
}

impl Failure {
    /// A failure without a fix.
    pub fn new(code: u8, cause: impl Into<String>) -> Failure {
        Failure { code, cause: cause.into(), fix: None, excerpt: None }
    }

    /// The command line is wrong.
    pub fn usage(cause: impl Into<String>) -> Failure {
        Failure::new(EX_USAGE, cause)
    }

    /// A file of this host: what was attempted on which, and the system's reason.
    pub fn file(error: &edge::fs::Error) -> Failure {
        Failure::new(EX_IOERR, edge::log::chain(error))
    }

    /// With what to do about it.
    #[must_use]
    pub fn fix(self, fix: impl Into<String>) -> Failure {
        Failure { fix: Some(fix.into()), ..self }
    }

    /// With what to do about it, unless that is known already.
    #[must_use]
    pub fn or_fix(self, fix: &str) -> Failure {
        if self.fix.is_some() { self } else { self.fix(fix) }
    }

    /// From an error that knows both.
    pub fn of(code: u8, error: &dyn Error, fix: Option<String>) -> Failure {
        Failure { fix, ..Failure::new(code, edge::log::chain(error)) }
    }

    /// As it stands in `--json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({ "error": self.cause, "fix": self.fix, "exit_code": self.code })
    }

    /// As people read it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("sideload: {}\n", visible(&self.cause));
        if let Some(excerpt) = &self.excerpt {
            text.push_str(excerpt);
        }
        if let Some(fix) = &self.fix {
            let _ = writeln!(text, "  fix: {}", visible(fix));
        }
        text
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.cause)
    }
}

impl Error for Failure {}

impl From<edge::config::Error> for Failure {
    fn from(error: edge::config::Error) -> Failure {
        Failure { excerpt: error.excerpt(), ..Failure::of(EX_CONFIG, &error, None) }
    }
}

impl From<crate::client::Error> for Failure {
    fn from(error: crate::client::Error) -> Failure {
        Failure::of(error.exit_code(), &error, error.fix())
    }
}

impl From<crate::sync::Error> for Failure {
    fn from(error: crate::sync::Error) -> Failure {
        Failure::of(error.exit_code(), &error, error.fix())
    }
}

impl From<crate::scan::Error> for Failure {
    fn from(error: crate::scan::Error) -> Failure {
        Failure::of(error.exit_code(), &error, error.fix())
    }
}

/// What a command has to say at its end.
#[derive(Debug, Default, PartialEq)]
pub struct Reply {
    /// For people; ends with a newline unless it is empty.
    pub text: String,
    /// For scripts.
    pub json: Value,
    /// The exit code; a diagnosis that found something can have another one than 0.
    pub code: u8,
}

impl Reply {
    /// One line for people, a value for scripts.
    pub fn line(text: impl Into<String>, json: Value) -> Reply {
        Reply { text: format!("{}\n", text.into()), json, code: 0 }
    }

    /// Several lines.
    pub fn text(text: String, json: Value) -> Reply {
        Reply { text, json, code: 0 }
    }

    /// Nothing more to say: the command has streamed its output.
    #[must_use]
    pub fn nothing() -> Reply {
        Reply::default()
    }
}

/// Writes the end of a command, and gives its exit code.
pub fn finish(result: Result<Reply, Failure>, as_json: bool) -> u8 {
    match (result, as_json) {
        (Ok(reply), true) if reply.json.is_null() => reply.code,
        (Ok(reply), true) => print(&format!("{}\n", reply.json), reply.code),
        (Ok(reply), false) => print(&reply.text, reply.code),
        (Err(failure), true) => print(&format!("{}\n", failure.to_json()), failure.code),
        (Err(failure), false) => {
            eprint!("{}", failure.to_text());
            failure.code
        }
    }
}

/// `println!` panics when the reader of a pipe has gone (`sideload logs | head`); this does not.
pub fn print(text: &str, code: u8) -> u8 {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => EX_IOERR,
        _ => code,
    }
}

/// The text without control characters: what a device sends must not move the cursor of a terminal.
#[must_use]
pub fn visible(text: &str) -> String {
    let keep = |c: char| if c.is_control() && c != '\t' { '\u{fffd}' } else { c };
    text.chars().map(keep).collect()
}

/// `1 file`, `3 files`.
#[must_use]
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A length of time in two units at most: `45 ms`, `12 s`, `3 min 20 s`, `5 h 2 min`, `29 days`.
#[must_use]
pub fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0 => format!("{ms} ms"),
        1..=59 => format!("{s} s"),
        60..=3599 => two(s / 60, "min", s % 60, "s"),
        3600..=86_399 => two(s / 3600, "h", s % 3600 / 60, "min"),
        86_400..=863_999 => two(s / 86_400, if s < 172_800 { "day" } else { "days" }, s % 86_400 / 3600, "h"),
        _ => format!("{} days", s / 86_400),
    }
}

fn two(major: u64, unit: &str, minor: u64, small: &str) -> String {
    if minor == 0 { format!("{major} {unit}") } else { format!("{major} {unit} {minor} {small}") }
}

/// A moment (Unix milliseconds) as `2026-11-24 14:46:57Z`.
#[must_use]
pub fn moment(unix_ms: u64) -> String {
    let format = time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second]Z");
    let nanoseconds = i128::from(unix_ms) * 1_000_000;
    time::OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
        .ok()
        .and_then(|moment| moment.format(format).ok())
        .unwrap_or_else(|| format!("{unix_ms} ms"))
}

/// Columns of equal width, two spaces between them; the columns in `right` are aligned to the right.
#[must_use]
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let length = |text: &str| text.chars().count();
    let width = |at: usize| rows.iter().filter_map(|r| r.get(at)).map(|c| length(c)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            let cell = visible(cell);
            let gap = " ".repeat(widths[at].saturating_sub(length(&cell)));
            let (before, after) = if right.contains(&at) { (gap.as_str(), "") } else { ("", gap.as_str()) };
            let _ = write!(line, "{}{before}{cell}{after}", if at == 0 { "" } else { "  " });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let cases = [0, 45, 12_900, 60_000, 200_000, 3_600_000, 18_130_000, 90_000_000, 2_505_600_000];
        let texts =
            ["0 ms", "45 ms", "12 s", "1 min", "3 min 20 s", "1 h", "5 h 2 min", "1 day 1 h", "29 days"];
        assert_eq!(cases.map(duration), texts);
        assert_eq!(moment(1_795_531_617_123), "2026-11-24 14:46:57Z");
    }

    #[test]
    fn tables_align() {
        let rows = vec![
            vec!["a.py".to_owned(), "12".to_owned(), "x".to_owned()],
            vec!["longer.py".to_owned(), "3".to_owned(), String::new()],
        ];
        assert_eq!(table(&rows, &[1]), "a.py       12  x\nlonger.py   3\n");
        assert_eq!(table(&[], &[]), "");
    }

    #[test]
    fn a_failure_has_cause_and_fix_in_both_forms() {
        let failure = Failure::new(69, "can't connect\u{1b}[2J").fix("turn it on");
        assert_eq!(failure.to_text(), "sideload: can't connect\u{fffd}[2J\n  fix: turn it on\n");
        let json = failure.to_json();
        assert_eq!(json["exit_code"], 69);
        assert_eq!(json["fix"], "turn it on");
        for code in [0, 1, 64, 65, 69, 70, 73, 74, 75, 76, 77, 78] {
            assert!(EXIT_CODES.contains(&format!("{code:>2}  ")), "{code}");
        }
    }

    #[test]
    fn a_wrong_file_shows_its_place() {
        let error = edge::config::parse::<std::collections::BTreeMap<String, u8>>(
            std::path::Path::new("sideload.toml"),
            "port = 300\n".into(),
        )
        .unwrap_err();
        let text = Failure::from(error).to_text();
        assert!(text.starts_with("sideload: sideload.toml:1:8: port: "), "{text}");
        assert!(text.contains(" 1 | port = 300\n   |        ^^^\n"), "{text}");
    }
}

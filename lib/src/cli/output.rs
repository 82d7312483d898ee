//! What people and scripts get to see of a command: its reply as text or JSON, its failure with cause and fix, its exit
//! code.
//!
//! Invariants: replies go to stdout, everything else to stderr; with `--json` stdout holds JSON only, one value a line;
//! what came from elsewhere does not move the cursor of a terminal ([`visible`]).

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::{Value, json};

use super::{EX_CONFIG, EX_DATAERR, EX_IOERR, EX_SOFTWARE, EX_USAGE};

/// Why a command came to nothing.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// The cause, with its sources.
    pub cause: String,
    /// What a person can do.
    pub fix: Option<String>,
    /// Lines to show as they are, such as the place in the configuration.
    pub excerpt: Option<String>,
}

impl Failure {
    /// A failure without a fix.
    pub fn new(code: u8, cause: impl Into<String>) -> Failure {
        Failure { code, cause: cause.into(), fix: None, excerpt: None }
    }

    /// The command line is wrong ([`EX_USAGE`]).
    pub fn usage(cause: impl Into<String>) -> Failure {
        Failure::new(EX_USAGE, cause)
    }

    /// What was asked for can't be done with what there is ([`EX_DATAERR`]).
    pub fn refused(cause: impl Into<String>) -> Failure {
        Failure::new(EX_DATAERR, cause)
    }

    /// A bug of ours ([`EX_SOFTWARE`]).
    pub fn bug(cause: impl Into<String>) -> Failure {
        Failure::new(EX_SOFTWARE, cause)
    }

    /// A file of this host ([`EX_IOERR`]): what was attempted on which, and the system's reason.
    pub fn file(error: &crate::fs::Error) -> Failure {
        Failure::new(EX_IOERR, crate::log::chain(error))
    }

    /// From an error that may know what to do.
    pub fn of(code: u8, error: &dyn Error, fix: Option<String>) -> Failure {
        Failure { fix, ..Failure::new(code, crate::log::chain(error)) }
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

    /// As it stands in `--json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({ "error": self.cause, "fix": self.fix, "exit_code": self.code })
    }

    /// As people read it; `program` is who says it.
    #[must_use]
    pub fn to_text(&self, program: &str) -> String {
        let mut text = format!("{program}: {}\n", visible(&self.cause));
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

impl From<crate::config::Error> for Failure {
    fn from(error: crate::config::Error) -> Failure {
        Failure { excerpt: error.excerpt(), ..Failure::of(EX_CONFIG, &error, None) }
    }
}

impl From<crate::fs::Error> for Failure {
    fn from(error: crate::fs::Error) -> Failure {
        Failure::file(&error)
    }
}

/// What a command has to say at its end.
#[derive(Debug, Default, PartialEq)]
pub struct Reply {
    /// For people; ends with a newline unless it is empty.
    pub text: String,
    /// For scripts.
    pub json: Value,
    /// The exit code; a check that found something has another one than 0.
    pub code: u8,
}

impl Reply {
    /// Lines for people, a value for scripts.
    pub fn new(text: impl Into<String>, json: Value) -> Reply {
        Reply { text: text.into(), json, code: 0 }
    }

    /// One line for people, a value for scripts.
    pub fn line(text: impl Into<String>, json: Value) -> Reply {
        Reply::new(format!("{}\n", text.into()), json)
    }

    /// Nothing more to say: the command has streamed its output.
    #[must_use]
    pub fn nothing() -> Reply {
        Reply::default()
    }
}

/// Writes the end of a command of `program`, and gives its exit code.
pub fn finish(program: &str, result: Result<Reply, Failure>, as_json: bool) -> u8 {
    match (result, as_json) {
        (Ok(reply), true) if reply.json.is_null() => reply.code,
        (Ok(reply), true) => print(&format!("{}\n", reply.json), reply.code),
        (Ok(reply), false) => print(&reply.text, reply.code),
        (Err(failure), true) => print(&format!("{}\n", failure.to_json()), failure.code),
        (Err(failure), false) => {
            eprint!("{}", failure.to_text(program));
            failure.code
        }
    }
}

/// `println!` panics when the reader of a pipe has gone (`… | head`); this does not. Gives `code`, or that of a failure.
pub fn print(text: &str, code: u8) -> u8 {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => EX_IOERR,
        _ => code,
    }
}

/// The text without control characters: what another machine sent must not move the cursor of a terminal.
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
    fn tables_align() {
        let rows = vec![
            vec!["a.py".to_owned(), "12".to_owned(), "x".to_owned()],
            vec!["longer.py".to_owned(), "3".to_owned(), String::new()],
        ];
        assert_eq!(table(&rows, &[1]), "a.py       12  x\nlonger.py   3\n");
        assert_eq!(table(&[], &[]), "");
        assert_eq!((count(1, "file"), count(3, "file")), ("1 file".into(), "3 files".into()));
    }

    #[test]
    fn a_failure_has_cause_and_fix_in_both_forms() {
        let failure = Failure::new(69, "can't connect\u{1b}[2J\n").fix("turn it on").or_fix("never");
        assert_eq!(failure.to_text("x"), "x: can't connect\u{fffd}[2J\u{fffd}\n  fix: turn it on\n");
        assert_eq!(failure.to_json()["exit_code"], 69);
        assert_eq!(failure.to_json()["fix"], "turn it on");
        assert_eq!([Failure::usage("").code, Failure::refused("").code, Failure::bug("").code], [64, 65, 70]);
    }

    #[test]
    fn a_wrong_file_shows_its_place() {
        let wrong = crate::config::parse::<std::collections::BTreeMap<String, u8>>(
            std::path::Path::new("x.toml"),
            "port = 300\n".into(),
        );
        let failure = Failure::from(wrong.unwrap_err());
        let text = failure.to_text("x");
        assert!(failure.code == EX_CONFIG && text.starts_with("x: x.toml:1:8: port: "), "{text}");
        assert!(text.contains(" 1 | port = 300\n   |        ^^^\n"), "{text}");
    }
}

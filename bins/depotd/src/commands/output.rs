//! What people and scripts get to see of a command: its reply as text or JSON, its failure with cause and fix, its exit
//! code.
//!
//! Invariants: replies go to stdout, everything else to stderr; with `--json` stdout holds one JSON value.

use std::fmt::Write as _;
use std::io::Write as _;

use edge::cli::{EX_CONFIG, EX_IOERR, EX_SOFTWARE, EX_UNAVAILABLE, EX_USAGE};
use edge::release::Timestamp;
use serde_json::{Value, json};

use crate::{catalog, sign, store};

/// A check found something.
pub const EX_FOUND: u8 = 1;
/// What was given is refused: the version exists, the statement does not fit.
pub const EX_DATAERR: u8 = 65;
/// A file is there already.
pub const EX_CANTCREAT: u8 = 73;
/// Somebody else was faster.
pub const EX_TEMPFAIL: u8 = 75;
/// A key or a signature.
pub const EX_NOPERM: u8 = 77;

/// For `--help`: each exit code of the commands.
pub const EXIT_CODES: &str = "\
Exit codes:
   0  done                                  73  a file is there already
   1  'verify' found something              74  a file can't be read or written
  64  wrong usage                           75  changed by somebody else meanwhile: look, then repeat
  65  refused: exists, or does not fit      77  a key or a signature
  69  DynamoDB or S3 refuse or are away     78  depotd.toml is wrong
  70  a bug
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
    /// Lines to show as they are, such as the place in depotd.toml.
    pub excerpt: Option<String>,
}

impl Failure {
    /// A failure without a fix.
    pub fn new(code: u8, cause: impl Into<String>) -> Self {
        Self { code, cause: cause.into(), fix: None, excerpt: None }
    }

    /// The command line is wrong.
    pub fn usage(cause: impl Into<String>) -> Self {
        Self::new(EX_USAGE, cause)
    }

    /// What was asked for can't be done with what there is.
    pub fn refused(cause: impl Into<String>) -> Self {
        Self::new(EX_DATAERR, cause)
    }

    /// A bug of ours.
    pub fn bug(cause: impl Into<String>) -> Self {
        Self::new(EX_SOFTWARE, cause)
    }

    /// With what to do about it.
    #[must_use]
    pub fn fix(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }

    /// As it stands in `--json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({ "error": self.cause, "fix": self.fix, "exit_code": self.code })
    }

    /// As people read it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("depotd: {}\n", visible(&self.cause));
        if let Some(excerpt) = &self.excerpt {
            text.push_str(excerpt);
        }
        if let Some(fix) = &self.fix {
            let _ = writeln!(text, "  fix: {}", visible(fix));
        }
        text
    }
}

impl From<edge::config::Error> for Failure {
    fn from(error: edge::config::Error) -> Self {
        Self { excerpt: error.excerpt(), ..Self::new(EX_CONFIG, edge::log::chain(&error)) }
    }
}

impl From<edge::fs::Error> for Failure {
    fn from(error: edge::fs::Error) -> Self {
        Self::new(EX_IOERR, edge::log::chain(&error))
    }
}

impl From<catalog::Error> for Failure {
    fn from(error: catalog::Error) -> Self {
        let code = match &error {
            catalog::Error::Taken { .. } | catalog::Error::Changed(_) => EX_TEMPFAIL,
            catalog::Error::Service { .. } => EX_UNAVAILABLE,
            _ => EX_IOERR,
        };
        Self::new(code, edge::log::chain(&error))
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        let code = match &error {
            store::Error::Service { .. } => EX_UNAVAILABLE,
            store::Error::Torn => EX_TEMPFAIL,
            _ => EX_IOERR,
        };
        Self::new(code, edge::log::chain(&error))
    }
}

impl From<sign::Error> for Failure {
    fn from(error: sign::Error) -> Self {
        let code = if matches!(error, sign::Error::Exists(_)) { EX_CANTCREAT } else { EX_NOPERM };
        Self::new(code, edge::log::chain(&error))
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
    /// Text for people, a value for scripts.
    pub fn new(text: impl Into<String>, json: Value) -> Self {
        Self { text: text.into(), json, code: 0 }
    }
}

/// Writes the end of a command, and gives its exit code.
pub fn finish(result: Result<Reply, Failure>, as_json: bool) -> u8 {
    match (result, as_json) {
        (Ok(reply), true) => print(&format!("{}\n", reply.json), reply.code),
        (Ok(reply), false) => print(&reply.text, reply.code),
        (Err(failure), true) => print(&format!("{}\n", failure.to_json()), failure.code),
        (Err(failure), false) => {
            eprint!("{}", failure.to_text());
            failure.code
        }
    }
}

/// `println!` panics when the reader of a pipe has gone (`depotd list | head`); this does not.
pub fn print(text: &str, code: u8) -> u8 {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => EX_IOERR,
        _ => code,
    }
}

/// The text without control characters, which would move the cursor of a terminal.
#[must_use]
pub fn visible(text: &str) -> String {
    let keep = |c: char| if c.is_control() && c != '\t' && c != '\n' { '\u{fffd}' } else { c };
    text.chars().map(keep).collect()
}

/// `1 file`, `3 files`.
#[must_use]
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A moment as `2026-11-24 14:46Z`.
#[must_use]
pub fn moment(at: Timestamp) -> String {
    let text = at.to_string();
    match (text.get(..10), text.get(11..16)) {
        (Some(day), Some(time)) if text.as_bytes()[10] == b'T' => format!("{day} {time}Z"),
        _ => text,
    }
}

/// A word that a shell takes as it is; quoted where it must be.
#[must_use]
pub fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:=+@%,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Columns of equal width, two spaces between them; the columns in `right` are aligned to the right.
#[must_use]
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let length = |text: &str| text.chars().count();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
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
    fn tables_times_and_words() {
        let rows = vec![
            vec!["app".to_owned(), "12".to_owned(), "x".to_owned()],
            vec!["longer".to_owned(), "3".to_owned(), String::new()],
        ];
        assert_eq!(table(&rows, &[1]), "app     12  x\nlonger   3\n");
        assert_eq!(moment(Timestamp(1_795_531_617)), "2026-11-24 14:46Z");
        assert_eq!(shell("a_1.0.json"), "a_1.0.json");
        assert_eq!(shell("it's"), r"'it'\''s'");
    }

    #[test]
    fn a_failure_has_cause_and_fix_in_both_forms() {
        let failure = Failure::refused("it exists\u{1b}[2J").fix("take another");
        assert_eq!(failure.to_text(), "depotd: it exists\u{fffd}[2J\n  fix: take another\n");
        assert_eq!(failure.to_json()["exit_code"], 65);
        for code in [0, 1, 64, 65, 69, 70, 73, 74, 75, 77, 78] {
            assert!(EXIT_CODES.contains(&format!("{code:>2}  ")), "{code}");
        }
    }
}

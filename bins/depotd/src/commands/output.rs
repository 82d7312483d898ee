//! What people and scripts get to see of a command, in the form of [`edge::cli::output`]: its exit codes, what they are for
//! the program's own errors, times, words for a shell.

pub use edge::cli::output::{Failure, Reply, count, table};
use edge::cli::{EX_CANTCREAT, EX_DATAERR, EX_IOERR, EX_UNAVAILABLE};
pub use edge::cli::{EX_NOPERM, EX_TEMPFAIL};
use edge::release::Timestamp;

use crate::{catalog, sign, store};

/// A check found something.
pub const EX_FOUND: u8 = 1;
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
            store::Error::Large { .. } => EX_DATAERR,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_words() {
        assert_eq!(moment(Timestamp(1_795_531_617)), "2026-11-24 14:46Z");
        assert_eq!(shell("a_1.0.json"), "a_1.0.json");
        assert_eq!(shell("it's"), r"'it'\''s'");
    }

    #[test]
    fn the_help_names_every_exit_code() {
        for code in [0, 1, 64, 65, 69, 70, 73, 74, 75, 77, 78] {
            assert!(EXIT_CODES.contains(&format!("{code:>2}  ")), "{code}");
        }
    }
}

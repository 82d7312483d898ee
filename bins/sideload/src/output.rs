//! What people and scripts get to see of a command, in the form of [`edge::cli::output`]: its exit codes, the causes and
//! fixes of the program's own errors, times.

pub use edge::cli::output::{Failure, Reply, count, print, table, visible};
pub use edge::cli::{EX_CANTCREAT, EX_IOERR, EX_NOPERM};

/// The device refused (HTTP 4xx): nothing to kill, no entry point, no such file.
pub const EX_REFUSED: u8 = 1;

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

/// Writes the end of a command, and gives its exit code.
pub fn finish(result: Result<Reply, Failure>, as_json: bool) -> u8 {
    edge::cli::output::finish("sideload", result, as_json)
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
    fn the_help_names_every_exit_code() {
        for code in [0, 1, 64, 65, 69, 70, 73, 74, 75, 76, 77, 78] {
            assert!(EXIT_CODES.contains(&format!("{code:>2}  ")), "{code}");
        }
    }
}

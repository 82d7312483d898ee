//! File times as the contract writes them: ISO 8601 without an offset, meant as UTC, at most six digits of a fraction.
//!
//! Invariant: what [`format()`] prints, [`parse`] reads back to the microsecond. Never: knows a time zone.

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time};

/// What a time must look like, for error messages.
pub const EXPECTED: &str =
    "expected a naive ISO time in UTC such as 2026-11-24T14:46:57.123456, without Z or offset";

/// Nanoseconds since 1970 of `YYYY-MM-DDTHH:MM:SS` with up to six digits of a fraction; a blank may stand for the `T`.
/// `None`: it is something else (an offset among it), or a time that does not exist or fit.
pub fn parse(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    if !text.is_ascii() || bytes.len() < 19 {
        return None;
    }
    let (whole, fraction) = text.split_at(19);
    let marks = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if marks.iter().any(|(at, mark)| bytes[*at] != *mark) || !matches!(bytes[10], b'T' | b' ') {
        return None;
    }
    let number = |from: usize, to: usize| {
        let digits = &whole[from..to];
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u16>().ok()).flatten()
    };
    let small = |from: usize| number(from, from + 2).and_then(|n| u8::try_from(n).ok());
    let month = Month::try_from(small(5)?).ok()?;
    let date = Date::from_calendar_date(i32::from(number(0, 4)?), month, small(8)?).ok()?;
    let clock = Time::from_hms_nano(small(11)?, small(14)?, small(17)?, nanos(fraction)?).ok()?;
    i64::try_from(PrimitiveDateTime::new(date, clock).assume_utc().unix_timestamp_nanos()).ok()
}

/// Of `""` or `.` and one to six digits.
fn nanos(fraction: &str) -> Option<u32> {
    if fraction.is_empty() {
        return Some(0);
    }
    let digits = fraction.strip_prefix('.')?;
    if !(1..=6).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    format!("{digits:0<9}").parse().ok()
}

/// Always with six digits, so that readers that insist on a fraction are served as well.
pub fn format(unix_ns: i64) -> String {
    // Every i64 of nanoseconds is between the years 1677 and 2262.
    let at =
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ns)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.microsecond()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_python_prints() {
        let whole = 1_795_531_617_000_000_000;
        assert_eq!(parse("2026-11-24T14:46:57"), Some(whole));
        assert_eq!(parse("2026-11-24 14:46:57.5"), Some(whole + 500_000_000));
        assert_eq!(parse("2026-11-24T14:46:57.123456"), Some(whole + 123_456_000));
        assert_eq!(parse("1969-12-31T23:59:59.999999"), Some(-1000));
        for ns in [0, -1000, whole + 123_456_000, i64::MAX / 1000 * 1000] {
            assert_eq!(parse(&format(ns)), Some(ns), "{}", format(ns));
        }
        assert_eq!(format(whole + 999), "2026-11-24T14:46:57.000000");
    }

    #[test]
    fn refuses_the_rest() {
        for bad in [
            "",
            "now",
            "2026-11-24",
            "2026-11-24T14:46:57Z",
            "2026-11-24T14:46:57+00:00",
            "2026-11-24T14:46:57.1234567",
            "2026-11-24T14:46:57.",
            "2026-13-24T14:46:57",
            "2026-02-30T14:46:57",
            "2026-11-24T24:46:57",
            "+026-11-24T14:46:57",
            "9999-11-24T14:46:57",
            "2026-11-24T14:46:5é",
        ] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}

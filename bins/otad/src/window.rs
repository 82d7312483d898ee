//! Maintenance windows: spans of the week in which the device may change.
//!
//! Pure arithmetic on minutes since Monday 00:00 of a clock that the caller chose (local time or UTC).

use std::time::Duration;

const DAY: u32 = 24 * 60;
const WEEK: u32 = 7 * DAY;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// The windows; none means that every time is good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows(Vec<(u32, u32)>);

impl Windows {
    /// Adds one: days (none: every day) as `mon` … `sun`, and the times `HH:MM`. One that ends before it begins ends on
    /// the next day.
    ///
    /// # Errors
    /// The key, and what was expected.
    pub fn add(&mut self, days: &[String], from: &str, to: &str) -> Result<(), (&'static str, String)> {
        let clock = |key, text: &str| {
            clock(text).ok_or_else(|| (key, format!("expected a time from 00:00 to 24:00, found {text:?}")))
        };
        let (from, to) = (clock("from", from)?, clock("to", to)?);
        if from == to || from == DAY {
            return Err((
                "to",
                "expected a time after 'from'; leave the window out for the whole day".into(),
            ));
        }
        let length = if to > from { to - from } else { DAY - from + to };
        let mut numbers = Vec::new();
        for day in days {
            let small = day.to_ascii_lowercase();
            let Some(number) = DAYS.iter().position(|name| *name == small) else {
                return Err(("days", format!("expected \"mon\" to \"sun\", found {day:?}")));
            };
            numbers.push(number as u32);
        }
        if numbers.is_empty() {
            numbers.extend(0..7);
        }
        self.0.extend(numbers.into_iter().map(|day| (day * DAY + from, length)));
        Ok(())
    }

    /// Whether a second of the clock (Unix time, plus the zone's offset) lies in a window.
    #[must_use]
    pub fn is_open(&self, clock_s: i64) -> bool {
        let now = minute(clock_s);
        self.0.is_empty() || self.0.iter().any(|(start, length)| (now + WEEK - start) % WEEK < *length)
    }

    /// How long until the next one opens (zero: one is open), and how long that one is.
    #[must_use]
    pub fn next(&self, clock_s: i64) -> (Duration, Duration) {
        if self.is_open(clock_s) {
            return (Duration::ZERO, Duration::ZERO);
        }
        let now = minute(clock_s);
        let ahead = self.0.iter().map(|(start, length)| ((start + WEEK - now) % WEEK, *length)).min();
        let (minutes, length) = ahead.unwrap_or((0, 0));
        let left = u64::from(minutes) * 60 - clock_s.rem_euclid(60) as u64;
        (Duration::from_secs(left), Duration::from_secs(u64::from(length) * 60))
    }
}

/// Minutes since Monday; 1970 began on a Thursday.
fn minute(clock_s: i64) -> u32 {
    (clock_s.div_euclid(60) + i64::from(3 * DAY)).rem_euclid(i64::from(WEEK)) as u32
}

fn clock(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let digits = |t: &str| t.len() == 2 && t.bytes().all(|b| b.is_ascii_digit());
    if !digits(hours) || !digits(minutes) {
        return None;
    }
    let (hours, minutes): (u32, u32) = (hours.parse().ok()?, minutes.parse().ok()?);
    (minutes < 60 && hours * 60 + minutes <= DAY).then_some(hours * 60 + minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-27, a Friday, at this time.
    fn friday(hours: i64, minutes: i64) -> i64 {
        1_795_737_600 + hours * 3600 + minutes * 60
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_it_begins() {
        let mut windows = Windows::default();
        assert!(windows.is_open(friday(12, 0)), "none means always");
        windows.add(&["Fri".into()], "22:00", "02:00").unwrap();
        for (at, open) in [
            (friday(21, 59), false),
            (friday(22, 0), true),
            (friday(25, 59), true),
            (friday(26, 0), false),
            (friday(1, 0), false),
        ] {
            assert_eq!(windows.is_open(at), open, "{at}");
        }
        assert_eq!(windows.next(friday(21, 0)), (Duration::from_secs(3600), Duration::from_secs(4 * 3600)));
        assert_eq!(windows.next(friday(21, 0) + 1).0, Duration::from_secs(3599));
        assert_eq!(windows.next(friday(23, 0)).0, Duration::ZERO);
        assert_eq!(windows.next(friday(26, 0)).0, Duration::from_secs(7 * 86_400 - 4 * 3600));
    }

    #[test]
    fn the_week_wraps_and_mistakes_are_named() {
        let mut windows = Windows::default();
        windows.add(&["sun".into()], "23:00", "01:00").unwrap();
        let monday = friday(0, 30) + 3 * 86_400;
        assert!(windows.is_open(monday) && !windows.is_open(monday + 1800));
        windows.add(&[], "00:00", "24:00").unwrap();
        assert!(windows.is_open(friday(3, 0)));
        for (days, from, to, key) in [
            ("noday", "01:00", "02:00", "days"),
            ("mon", "1:00", "02:00", "from"),
            ("mon", "01:00", "24:01", "to"),
            ("mon", "01:00", "01:00", "to"),
            ("mon", "01:60", "03:00", "from"),
        ] {
            assert_eq!(windows.add(&[days.into()], from, to).unwrap_err().0, key);
        }
    }
}

//! The wall clock. Decisions take `now` as an argument; this is where a shell gets it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; 0 before.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Nanoseconds since 1970, as file times are given; 0 before.
#[must_use]
pub fn unix_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// RFC 3339 with milliseconds, UTC. What a date can't hold is the epoch.
#[must_use]
pub fn rfc3339_ms(unix_ms: u64) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000);
    let at = at.unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (hour, minute, second, ms) = at.to_hms_milli();
    let (year, month, day) = at.to_calendar_date();
    let month = u8::from(month);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Seconds since 1970; 0 before.
#[must_use]
pub fn unix_s() -> i64 {
    unix_ns() / 1_000_000_000
}

/// Seconds that local time is ahead of UTC at a Unix time.
#[must_use]
pub fn local_offset_s(unix_s: i64) -> i64 {
    crate::sys::local_offset_s(unix_s)
}

/// Time since the system started, the time it slept included (`CLOCK_BOOTTIME`): what intervals are measured on.
#[must_use]
pub fn boot() -> std::time::Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (s, ns) = (u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
    std::time::Duration::new(s, ns)
}

#[cfg(test)]
mod tests {
    use super::rfc3339_ms;

    #[test]
    fn times_are_utc_with_milliseconds() {
        assert_eq!(rfc3339_ms(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339_ms(1_767_225_599_999), "2025-12-31T23:59:59.999Z");
        // Beyond what a date can hold: the epoch, never a panic.
        assert_eq!(rfc3339_ms(u64::MAX), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn boot_time_runs_and_local_time_is_near_utc() {
        let then = super::boot();
        assert!(super::boot() >= then && !then.is_zero());
        assert!(super::local_offset_s(super::unix_s()).abs() <= 14 * 3600);
    }
}

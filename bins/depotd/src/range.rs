//! `Range` (RFC 9110 section 14.2): one range of bytes. Several ranges are not served; then the whole is sent, which the
//! header allows.

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Span {
    /// Everything: no range was asked for, or none that is understood.
    Whole,
    /// So many bytes from there on.
    Part {
        /// The first byte.
        start: u64,
        /// How many; never 0.
        len: u64,
    },
    /// There is none of it.
    Unsatisfiable,
}

/// What `Range: value` means for something of `size` bytes.
#[must_use]
pub fn parse(value: &str, size: u64) -> Span {
    let Some((unit, range)) = value.trim().split_once('=') else { return Span::Whole };
    let Some((first, last)) = range.trim().split_once('-') else { return Span::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Span::Whole;
    }
    match (first.is_empty(), last.is_empty()) {
        (true, false) => match number(last) {
            Some(0) => Span::Unsatisfiable,
            Some(_) if size == 0 => Span::Unsatisfiable,
            Some(n) => Span::Part { start: size - n.min(size), len: n.min(size) },
            None => Span::Whole,
        },
        (false, true) => match number(first) {
            Some(start) if start >= size => Span::Unsatisfiable,
            Some(start) => Span::Part { start, len: size - start },
            None => Span::Whole,
        },
        (false, false) => match (number(first), number(last)) {
            (Some(start), Some(end)) if start <= end && start >= size => Span::Unsatisfiable,
            (Some(start), Some(end)) if start <= end => {
                Span::Part { start, len: end.min(size - 1) - start + 1 }
            }
            _ => Span::Whole,
        },
        (true, true) => Span::Whole,
    }
}

/// Digits alone; more than fits is as good as the largest.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_what_there_is() {
        let part = |start, len| Span::Part { start, len };
        for (text, want) in [
            ("bytes=0-", part(0, 10)),
            ("bytes=3-5", part(3, 3)),
            ("BYTES = 3-5", part(3, 3)),
            ("bytes=9-99", part(9, 1)),
            ("bytes=9-99999999999999999999999", part(9, 1)),
            ("bytes=-4", part(6, 4)),
            ("bytes=-40", part(0, 10)),
            ("bytes=10-", Span::Unsatisfiable),
            ("bytes=10-12", Span::Unsatisfiable),
            ("bytes=99999999999999999999999-", Span::Unsatisfiable),
            ("bytes=-0", Span::Unsatisfiable),
            ("bytes=5-3", Span::Whole),
            ("bytes=0-1,3-4", Span::Whole),
            ("bytes=a-", Span::Whole),
            ("bytes=-", Span::Whole),
            ("bytes=+1-2", Span::Whole),
            ("lines=0-1", Span::Whole),
            ("0-1", Span::Whole),
            ("", Span::Whole),
        ] {
            assert_eq!(parse(text, 10), want, "{text}");
        }
        assert_eq!(parse("bytes=0-", 0), Span::Unsatisfiable);
        assert_eq!(parse("bytes=-1", 0), Span::Unsatisfiable);
        assert_eq!(parse("bytes=0-0", u64::MAX), part(0, 1));
    }
}

//! Percent-encoding and queries of request targets (RFC 3986 section 2.1).
//!
//! Invariant: nothing here judges a path; whoever opens files checks what comes out.

/// Decodes `%41` to its byte. `None`: a percent sign without two hexadecimal digits. A plus sign stays one.
#[must_use]
pub fn percent_decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            // Two digits of four bits.
            out.push((digit()? << 4 | digit()?) as u8);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

/// Encodes what is not unreserved; slashes stay.
#[must_use]
pub fn percent_encode_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                out.push(char::from(byte))
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// The pairs of a query (without its `?`), in order; a name without `=` has an empty value. Plus signs are blanks. What
/// can't be decoded, or is no UTF-8, is left out.
#[must_use]
pub fn query(text: &str) -> Vec<(String, String)> {
    let decode = |part: &str| String::from_utf8(percent_decode(&part.replace('+', " "))?).ok();
    let pair = |part: &str| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        Some((decode(name)?, decode(value)?))
    };
    text.split('&').filter(|part| !part.is_empty()).filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_go_both_ways() {
        for path in ["a b/\u{fc}.py", "100%", "a+b?c#d", "plain-name_1.2~"] {
            let encoded = percent_encode_path(path);
            assert!(!encoded.contains([' ', '?', '#', '+']), "{encoded}");
            assert_eq!(percent_decode(&encoded).unwrap(), path.as_bytes());
        }
        assert_eq!(percent_decode("%2e%2E%2f%00"), Some(b"../\0".to_vec()));
        for bad in ["%", "%4", "%zz", "a%+1"] {
            assert_eq!(percent_decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn queries_become_pairs() {
        let pairs = query("follow&since=12.3&&name=a+b%26c&bad=%zz");
        let pairs: Vec<_> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("follow", ""), ("since", "12.3"), ("name", "a b&c")]);
    }
}

//! Bytes as text for people and protocols.

/// SHA-256 of `bytes`, as lower-case hexadecimal digits.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex(&sha2::Sha256::digest(bytes))
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Reads exactly `2 * N` hexadecimal digits of either case, and nothing beside them.
#[must_use]
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// A number of bytes as people read it: `312 B`, `4.0 KB`, `1.25 GB` (powers of 1024).
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KB", "MB", "GB", "TB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut value, mut unit) = (count as f64 / 1024.0, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    #[test]
    fn hex_is_read_strictly() {
        assert_eq!(super::from_hex("00fFa9"), Some([0, 255, 0xa9]));
        assert_eq!(super::hex(&[0, 255, 0xa9]), "00ffa9");
        for bad in ["", "0", "00ff", "00ffa900", "+0ffa9", "00f a9", "0xffa9", "00ffg9", "00\u{e9}a9"] {
            assert_eq!(super::from_hex::<3>(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_are_short() {
        let sizes = [0, 1023, 1024, 4300, 99_000, 1 << 20, 300 << 20, 5 << 40];
        let texts = ["0 B", "1023 B", "1.00 KB", "4.20 KB", "96.7 KB", "1.00 MB", "300 MB", "5.00 TB"];
        assert_eq!(sizes.map(super::bytes), texts);
    }
}

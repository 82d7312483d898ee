//! Unsigned LEB128 numbers and bounded pieces of a byte slice, for the sync protocol's decoders.
//!
//! Invariant: reading never goes beyond the slice and never panics; a number longer than it need be is refused, so that
//! there is one encoding for each.

/// Appends `value`.
pub fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        // The low seven bits and the mark that more follow.
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads from the front of a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next number; `None` when the slice ends before it does, or it is none.
    pub fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for at in 0..10 {
            let byte = *self.0.get(at)?;
            let bits = u64::from(byte & 0x7F);
            if at == 9 && byte > 1 || at > 0 && byte == 0 {
                return None;
            }
            value |= bits << (7 * at);
            if byte & 0x80 == 0 {
                self.0 = &self.0[at + 1..];
                return Some(value);
            }
        }
        None
    }

    /// The next number, as another type that must hold it.
    pub fn get<T: TryFrom<u64>>(&mut self) -> Option<T> {
        T::try_from(self.number()?).ok()
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// The next 32 bytes.
    pub fn sum(&mut self) -> Option<[u8; 32]> {
        self.bytes(32)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_encoding() {
        for value in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            put(&mut out, value);
            let mut reader = Reader(&out);
            assert_eq!(reader.number(), Some(value));
            assert!(reader.0.is_empty());
            assert_eq!(Reader(&out[..out.len() - 1]).number(), None);
        }
        assert_eq!(Reader(&[0x80, 0]).number(), None);
        assert_eq!(Reader(&[0xFF; 11]).number(), None);
        assert_eq!(Reader(&[0x80, 2]).get::<u8>(), None);
    }
}

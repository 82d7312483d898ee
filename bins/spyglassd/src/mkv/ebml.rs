//! EBML elements (RFC 8794): an identifier, a size, content. Only what the writer in this folder needs.

/// The size that says "until the parent ends or a sibling begins" (section 6.2), in eight bytes.
const UNKNOWN_SIZE: [u8; 8] = [0x01, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF];

/// Appends an identifier, its length marker included.
pub(super) fn id(out: &mut Vec<u8>, id: u32) {
    let bytes = id.to_be_bytes();
    let skip = bytes.iter().take_while(|b| **b == 0).count();
    out.extend_from_slice(&bytes[skip..]);
}

/// Appends the smallest size field for `size`, which is below 2^56 - 1.
pub(super) fn size(out: &mut Vec<u8>, size: u64) {
    // All ones is reserved for the unknown size, so n bytes hold up to 2^(7n) - 2.
    let length = (1..8).find(|n| size < (1 << (7 * n)) - 1).unwrap_or(8);
    let marked = size | 1 << (7 * length);
    out.extend_from_slice(&marked.to_be_bytes()[8 - length..]);
}

/// Opens an element of unknown size.
pub(super) fn open(out: &mut Vec<u8>, element: u32) {
    id(out, element);
    out.extend_from_slice(&UNKNOWN_SIZE);
}

/// An element with these bytes.
pub(super) fn bytes(out: &mut Vec<u8>, element: u32, content: &[u8]) {
    id(out, element);
    size(out, content.len() as u64);
    out.extend_from_slice(content);
}

/// An unsigned integer in as few bytes as it needs, at least one.
pub(super) fn uint(out: &mut Vec<u8>, element: u32, value: u64) {
    let be = value.to_be_bytes();
    let skip = be.iter().take_while(|b| **b == 0).count().min(7);
    bytes(out, element, &be[skip..]);
}

/// An element around what `fill` writes.
pub(super) fn master(out: &mut Vec<u8>, element: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut content = Vec::new();
    fill(&mut content);
    bytes(out, element, &content);
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_take_as_few_bytes_as_they_can_and_are_never_all_ones() {
        for (value, expected) in [
            (0, &[0x80][..]),
            (126, &[0xFE]),
            (127, &[0x40, 0x7F]),
            (16_382, &[0x7F, 0xFE]),
            (16_383, &[0x20, 0x3F, 0xFF]),
            (1 << 50, &[0x01, 0x04, 0, 0, 0, 0, 0, 0]),
        ] {
            let mut out = Vec::new();
            super::size(&mut out, value);
            assert_eq!(out, expected, "{value}");
        }
        let mut out = Vec::new();
        super::uint(&mut out, 0x2AD7B1, 1_000_000);
        super::uint(&mut out, 0xE7, 0);
        assert_eq!(out, [0x2A, 0xD7, 0xB1, 0x83, 0x0F, 0x42, 0x40, 0xE7, 0x81, 0]);
    }
}

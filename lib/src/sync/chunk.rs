//! Content-defined chunks of big files: a byte inserted at the head moves the borders along with the content, so that
//! all chunks but one are found again. FastCDC: a gear hash over at most 64 bytes, with a stricter mask before the
//! average length and a laxer one behind it, so that lengths gather around the average.
//!
//! Invariants: the borders are a function of the content alone (both ends must find the same ones: the table, the masks
//! and the lengths are part of the protocol); a chunk is at most [`MAX`] long and at least [`MIN`], but the last.

use sha2::{Digest as _, Sha256};

/// Shortest chunk but the last one, in bytes.
pub const MIN: usize = 16 << 10;
/// Usual length, in bytes.
pub const AVG: usize = 64 << 10;
/// Longest chunk, in bytes.
pub const MAX: usize = 256 << 10;

/// 18 and 14 bits: two more and two fewer than log2([`AVG`]). The upper bits of a gear hash saw the most bytes.
const MASK_BEFORE: u64 = 0x3_FFFF << 46;
const MASK_BEHIND: u64 = 0x3FFF << 50;

/// One chunk of a big file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// Length in bytes, 1 to [`MAX`].
    pub len: u32,
    /// SHA-256 of its bytes.
    pub sum: [u8; 32],
}

impl Chunk {
    /// The chunk that these bytes are. `bytes` is at most [`MAX`] long.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Chunk {
        // At most MAX, which fits.
        Chunk { len: bytes.len() as u32, sum: Sha256::digest(bytes).into() }
    }
}

/// How long the chunk is that begins at `bytes[0]`. `bytes` must hold [`MAX`] bytes, or all that is left of the file.
#[must_use]
pub fn cut(bytes: &[u8]) -> usize {
    let end = bytes.len().min(MAX);
    if end <= MIN {
        return end;
    }
    let mut hash = 0u64;
    let middle = end.min(AVG);
    // Sixty-four bytes before the shortest length fill the hash; what is before them can't matter.
    for &byte in &bytes[MIN - 64..MIN] {
        hash = (hash << 1).wrapping_add(GEAR[byte as usize]);
    }
    for (at, &byte) in bytes[MIN..middle].iter().enumerate() {
        hash = (hash << 1).wrapping_add(GEAR[byte as usize]);
        if hash & MASK_BEFORE == 0 {
            return MIN + at + 1;
        }
    }
    for (at, &byte) in bytes[middle..end].iter().enumerate() {
        hash = (hash << 1).wrapping_add(GEAR[byte as usize]);
        if hash & MASK_BEHIND == 0 {
            return middle + at + 1;
        }
    }
    end
}

/// One random number a byte value: the outputs of splitmix64 from the seed 0.
const GEAR: [u64; 256] = {
    let mut table = [0; 256];
    let mut state = 0u64;
    let mut at = 0;
    while at < 256 {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        table[at] = z ^ (z >> 31);
        at += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn chunks(data: &[u8]) -> Vec<Chunk> {
        let (mut at, mut found) = (0, Vec::new());
        while at < data.len() {
            let len = cut(&data[at..data.len().min(at + MAX)]);
            found.push(Chunk::of(&data[at..at + len]));
            at += len;
        }
        found
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(11);
        (0..len).map(|_| rng.u8(..)).collect()
    }

    #[test]
    fn lengths_keep_their_bounds_and_gather_around_the_average() {
        let data = noise(16 << 20);
        let found = chunks(&data);
        let last = found.len() - 1;
        assert!(found.iter().all(|c| c.len as usize <= MAX));
        assert!(found[..last].iter().all(|c| c.len as usize >= MIN));
        let mean = data.len() / found.len();
        assert!((AVG / 2..AVG * 2).contains(&mean), "mean length {mean}");
    }

    #[test]
    fn a_byte_at_the_head_or_in_the_middle_costs_few_chunks() {
        let data = noise(8 << 20);
        let before: HashSet<_> = chunks(&data).into_iter().collect();
        for at in [0, data.len() / 2, data.len()] {
            let mut edited = data.clone();
            edited.insert(at, 0x55);
            let new: Vec<_> = chunks(&edited).into_iter().filter(|c| !before.contains(c)).collect();
            assert!(new.len() <= 3, "{} chunks changed by a byte at {at}", new.len());
        }
    }

    #[test]
    fn the_borders_never_change() {
        // They are part of the protocol: a new version of either end must find the same ones.
        let lens: Vec<u32> = chunks(&noise(1 << 20)).iter().map(|c| c.len).take(4).collect();
        assert_eq!(lens, BORDERS);
        let zeros = vec![0u8; MAX + 5];
        assert_eq!(cut(&zeros[..MAX]), MAX);
        assert_eq!((cut(&[]), cut(&[1]), cut(&zeros[..MIN])), (0, 1, MIN));
    }

    const BORDERS: [u32; 4] = [84830, 77096, 82405, 75310];
}

//! The model service's reader: chunks, then EBML elements, as far as they go. It panics where the stream is not as agreed.

use crate::mkv;

/// What a fragment should hold: its frames' numbers by its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) timecode_ms: u64,
    pub(super) frames: Vec<u64>,
}

/// Reads chunks, then EBML elements, as far as they go.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) body: Vec<u8>,
    pub(super) raw: Vec<u8>,
    pub(super) ended: bool,
    pub(super) at: usize,
    pub(super) fragments: Vec<Stored>,
    /// The last fragment is known to be whole.
    pub(super) whole: usize,
    pub(super) level: Option<u8>,
}

impl Reader {
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(bytes);
        while let Some(end) = self.raw.windows(2).position(|w| w == b"\r\n") {
            let n = usize::from_str_radix(std::str::from_utf8(&self.raw[..end]).unwrap(), 16).unwrap();
            if self.raw.len() < end + 2 + n + 2 {
                break;
            }
            assert!(!self.ended, "nothing follows the last chunk");
            self.ended = n == 0;
            self.body.extend_from_slice(&self.raw[end + 2..end + 2 + n]);
            assert_eq!(&self.raw[end + 2 + n..end + 4 + n], b"\r\n");
            self.raw.drain(..end + 4 + n);
        }
        self.read();
    }

    fn vint(&self, at: usize, keep: bool) -> Option<(u64, usize)> {
        let first = *self.body.get(at)?;
        let length = first.leading_zeros() as usize + 1;
        let bytes = self.body.get(at..at + length)?;
        let mut value = if keep { u64::from(first) } else { u64::from(first) & ((1 << (8 - length)) - 1) };
        for byte in &bytes[1..] {
            value = value << 8 | u64::from(*byte);
        }
        Some((value, at + length))
    }

    fn read(&mut self) {
        while let Some((id, at)) = self.vint(self.at, true) {
            let Some((size, content)) = self.vint(at, false) else { return };
            if matches!(id, 0x1853_8067 | 0x1F43_B675) {
                assert_eq!(size, (1 << 56) - 1, "segment and clusters have an unknown size");
                self.at = content;
                if id == 0x1F43_B675 {
                    self.whole = self.fragments.len();
                    self.fragments.push(Stored { timecode_ms: 0, frames: Vec::new() });
                }
                continue;
            }
            let Some(bytes) = self.body.get(content..content + size as usize).map(<[u8]>::to_vec) else {
                return;
            };
            self.at = content + size as usize;
            match id {
                0x1A45_DFA3 | 0x1549_A966 => {}
                0x1654_AE6B => {
                    self.level = bytes.windows(4).find(|w| w[..3] == [1, 0x42, 0xC0]).map(|w| w[3])
                }
                0x1254_C367 => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    if text.contains(mkv::END_OF_FRAGMENT) {
                        self.whole = self.fragments.len();
                    } else {
                        assert!(text.contains("place") && text.contains("gate"));
                    }
                }
                0xE7 => {
                    let last = self.fragments.last_mut().unwrap();
                    last.timecode_ms = bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b));
                }
                0xA3 => {
                    let last = self.fragments.last_mut().unwrap();
                    let key = bytes[3] == 0x80;
                    assert!(key || !last.frames.is_empty(), "a cluster begins on a key frame");
                    assert_eq!(key, bytes[8] == 0x65);
                    let text = String::from_utf8_lossy(&bytes[9..]).into_owned();
                    last.frames.push(
                        text.strip_prefix("frame ").unwrap().split(' ').next().unwrap().parse().unwrap(),
                    );
                }
                other => panic!("element {other:x} at {}", self.at),
            }
        }
        if self.ended {
            self.whole = self.fragments.len();
        }
    }
}

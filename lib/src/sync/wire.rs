//! What travels after the manifest: chunk lists of big files, then pieces of content.
//!
//! Chunk lists (one body): `"ECL1"`, then until the end: entry (varint) count (varint) count x { len (varint) sum (32
//! bytes) }.
//!
//! Content (a stream of records): `"ESD1"` once, then per record
//!
//! ```text
//! entry (varint)  offset (varint, bytes)  raw (varint, bytes)  packed (varint: 0, or bytes of an LZ4 block)  bytes
//! ```
//!
//! A file below [`super::content::BIG`] comes as pieces in the order of their offsets, an empty one as one record of no
//! bytes; a bigger one as whole chunks at their offsets. Invariants: a record has at most [`PIECE_MAX`] bytes, so a
//! decoder holds at most that much twice; decoders never panic.

use super::chunk::{self, Chunk};
use super::varint::{self, Reader};

/// Most bytes of content in one record: the longest chunk.
pub const PIECE_MAX: usize = chunk::MAX;

const LISTS_MAGIC: &[u8; 4] = b"ECL1";
const RECORDS_MAGIC: &[u8; 4] = b"ESD1";
/// Longest head of a record: four numbers of at most ten bytes.
const HEAD_MAX: usize = 40;
/// Below this many bytes compression is not tried.
const COMPRESS_FROM: usize = 128;

/// Why bytes are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sync data: {0}")]
pub struct Error(pub &'static str);

/// The chunks of some entries of a manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkLists(pub Vec<(u32, Vec<Chunk>)>);

impl ChunkLists {
    /// The bytes that travel.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = LISTS_MAGIC.to_vec();
        for (entry, chunks) in &self.0 {
            varint::put(&mut out, u64::from(*entry));
            varint::put(&mut out, chunks.len() as u64);
            for chunk in chunks {
                varint::put(&mut out, u64::from(chunk.len));
                out.extend_from_slice(&chunk.sum);
            }
        }
        out
    }

    /// Reads what [`ChunkLists::encode`] wrote. The caller bounds the length of `bytes`, and so what this takes.
    ///
    /// # Errors
    /// [`Error`] for anything else.
    pub fn decode(bytes: &[u8]) -> Result<ChunkLists, Error> {
        let cut = Error("the chunk lists are cut short or damaged");
        let mut reader = Reader(bytes.strip_prefix(LISTS_MAGIC).ok_or(Error("these are no chunk lists"))?);
        let mut lists: Vec<(u32, Vec<Chunk>)> = Vec::new();
        while !reader.0.is_empty() {
            let entry: u32 = reader.get().ok_or(cut.clone())?;
            let count: usize = reader.get().ok_or(cut.clone())?;
            // A chunk has at least 33 bytes, which bounds what a false count can reserve.
            let mut chunks = Vec::with_capacity(count.min(reader.0.len() / 33 + 1));
            for _ in 0..count {
                let len: u32 = reader.get().ok_or(cut.clone())?;
                if len == 0 || len as usize > chunk::MAX {
                    return Err(Error("a chunk's length is out of bounds"));
                }
                chunks.push(Chunk { len, sum: reader.sum().ok_or(cut.clone())? });
            }
            lists.push((entry, chunks));
        }
        Ok(ChunkLists(lists))
    }
}

/// A piece of content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Index into the manifest.
    pub entry: u32,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// The bytes, [`PIECE_MAX`] at most.
    pub data: Vec<u8>,
}

/// What a stream of records begins with.
pub fn begin(out: &mut Vec<u8>) {
    out.extend_from_slice(RECORDS_MAGIC);
}

/// Appends a record. `data` is at most [`PIECE_MAX`] long. It is compressed where that saves a tenth or more; `worth`
/// remembers for the pieces of one file whether it did, so that what is compressed already costs one try in sixteen.
pub fn encode(entry: u32, offset: u64, data: &[u8], worth: &mut Worth, out: &mut Vec<u8>) {
    varint::put(out, u64::from(entry));
    varint::put(out, offset);
    varint::put(out, data.len() as u64);
    if worth.try_it(data.len()) {
        let packed = lz4_flex::block::compress(data);
        let saves = packed.len() + data.len() / 10 < data.len();
        worth.learn(saves);
        if saves {
            varint::put(out, packed.len() as u64);
            out.extend_from_slice(&packed);
            return;
        }
    }
    varint::put(out, 0);
    out.extend_from_slice(data);
}

/// Whether compressing a file's pieces is worth its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Worth {
    skip: u8,
}

impl Worth {
    fn try_it(&mut self, len: usize) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        len >= COMPRESS_FROM
    }

    fn learn(&mut self, saves: bool) {
        self.skip = if saves { 0 } else { 15 };
    }
}

/// Reads a stream of records as it arrives.
#[derive(Debug, Default)]
pub struct Decoder {
    begun: bool,
    bytes: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Before the first byte.
    #[must_use]
    pub fn new() -> Decoder {
        Decoder::default()
    }

    /// Bytes arrived. Take every [`Decoder::next`] before the next call: at most one record's bytes are left then.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole record; `None`: more bytes are needed.
    ///
    /// # Errors
    /// The stream is damaged; nothing after it can be read.
    #[expect(clippy::should_implement_trait, reason = "it can fail, and goes on after None")]
    pub fn next(&mut self) -> Result<Option<Record>, Error> {
        let mut rest = self.bytes.get(self.start..).unwrap_or_default();
        if !self.begun {
            if rest.len() < RECORDS_MAGIC.len() {
                return Ok(None);
            }
            rest = rest.strip_prefix(RECORDS_MAGIC).ok_or(Error("this is no sync data"))?;
            self.begun = true;
            self.start += RECORDS_MAGIC.len();
        }
        let mut reader = Reader(rest);
        let head = (|| Some((reader.number()?, reader.number()?, reader.number()?, reader.number()?)))();
        let Some((entry, offset, raw, packed)) = head else {
            // Four whole numbers never need more than that.
            return if rest.len() >= HEAD_MAX { Err(Error("a record's head is damaged")) } else { Ok(None) };
        };
        let entry = u32::try_from(entry).map_err(|_| Error("a record's entry is out of bounds"))?;
        if raw > PIECE_MAX as u64 || packed > raw {
            return Err(Error("a record is longer than 256 KiB, or grows when compressed"));
        }
        // Both are at most PIECE_MAX now.
        let (raw, packed) = (raw as usize, packed as usize);
        let stored = if packed == 0 { raw } else { packed };
        let Some(bytes) = reader.bytes(stored) else { return Ok(None) };
        let data = if packed == 0 {
            bytes.to_vec()
        } else {
            let mut data = vec![0; raw];
            match lz4_flex::block::decompress_into(bytes, &mut data) {
                Ok(n) if n == raw => data,
                _ => return Err(Error("a record's compressed bytes are damaged")),
            }
        };
        self.start = self.bytes.len() - reader.0.len();
        Ok(Some(Record { entry, offset, data }))
    }

    /// Whether the stream may end here.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.begun && self.start == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_go_through_in_any_pieces() {
        let mut rng = fastrand::Rng::with_seed(21);
        let noise: Vec<u8> = (0..PIECE_MAX).map(|_| rng.u8(..)).collect();
        let text = b"the same words again and again. ".repeat(2000);
        let sent: Vec<Record> = [&noise[..], &text, b"", &noise[..100], &text[..2000]]
            .iter()
            .enumerate()
            .map(|(n, data)| Record { entry: n as u32, offset: (n as u64) << 33, data: data.to_vec() })
            .collect();
        let mut bytes = Vec::new();
        begin(&mut bytes);
        for record in &sent {
            encode(record.entry, record.offset, &record.data, &mut Worth::default(), &mut bytes);
        }
        assert!(
            bytes.len() < noise.len() + text.len() / 4 + 3000,
            "{} bytes: was it compressed?",
            bytes.len()
        );
        for step in [1, 7, 4096, bytes.len()] {
            let (mut decoder, mut got) = (Decoder::new(), Vec::new());
            assert!(!decoder.is_clean());
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some(record) = decoder.next().unwrap() {
                    got.push(record);
                }
            }
            assert_eq!(got, sent, "in steps of {step}");
            assert!(decoder.is_clean());
        }
        assert!({
            let mut decoder = Decoder::new();
            decoder.push(&bytes[..bytes.len() - 1]);
            while decoder.next().unwrap().is_some() {}
            !decoder.is_clean()
        });
    }

    #[test]
    fn what_does_not_compress_is_hardly_tried_again() {
        let mut worth = Worth::default();
        assert!(worth.try_it(4096));
        worth.learn(false);
        assert_eq!((0..32).filter(|_| worth.try_it(4096)).count(), 17);
    }

    #[test]
    fn damage_is_an_error_or_another_record_but_never_a_panic() {
        let mut bytes = Vec::new();
        begin(&mut bytes);
        encode(3, 9, &b"abcd".repeat(500), &mut Worth::default(), &mut bytes);
        let mut rng = fastrand::Rng::with_seed(4);
        for _ in 0..5000 {
            let mut damaged = bytes.clone();
            let at = rng.usize(..damaged.len());
            damaged[at] ^= 1 << rng.u8(..8);
            let mut decoder = Decoder::new();
            decoder.push(&damaged);
            while let Ok(Some(record)) = decoder.next() {
                assert!(record.data.len() <= PIECE_MAX);
            }
        }
        let mut decoder = Decoder::new();
        decoder.push(b"ESD1");
        decoder.push(&[0x80; 64]);
        assert!(decoder.next().is_err());
    }

    #[test]
    fn chunk_lists_go_both_ways() {
        let chunk = |n: u32| Chunk { len: n + 1, sum: [n as u8; 32] };
        let lists =
            ChunkLists(vec![(7, (0..100).map(chunk).collect()), (9, vec![]), (300, vec![chunk(200)])]);
        let bytes = lists.encode();
        assert_eq!(ChunkLists::decode(&bytes).unwrap(), lists);
        assert!(ChunkLists::decode(&bytes[..bytes.len() - 1]).is_err());
        assert!(ChunkLists::decode(b"ECL").is_err());
        let mut huge = b"ECL1\0".to_vec();
        varint::put(&mut huge, u64::MAX);
        assert!(ChunkLists::decode(&huge).is_err());
    }
}

//! What names content: a hash of the bytes, the same on both ends.
//!
//! * Below [`BIG`] it is the SHA-256 of the content.
//! * From [`BIG`] on it is the SHA-256 of `"edge-sync-chunks-1"` followed by each chunk's length (u32, little-endian)
//!   and sum. Each chunk is then verified as it arrives, and the whole by its list: no second pass over the file.
//!
//! Reading is done here, opening is not. At most 512 KiB of the content is in memory, for each thread.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use sha2::{Digest as _, Sha256};

use super::chunk::{self, Chunk};

/// From this size on, in bytes, a file travels as content-defined chunks.
pub const BIG: u64 = 1 << 20;

const DOMAIN: &[u8] = b"edge-sync-chunks-1";

/// Bytes in memory while hashing: two chunks of the greatest length.
const BUFFER: usize = 2 * chunk::MAX;

/// The name of content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId(pub [u8; 32]);

impl ContentId {
    /// 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn to_hex(self) -> String {
        self.to_string()
    }

    /// Reads what [`ContentId::to_hex`] wrote; `None` for anything else.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<ContentId> {
        let written = !text.bytes().any(|digit| digit.is_ascii_uppercase());
        written.then(|| crate::text::from_hex(text)).flatten().map(ContentId)
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentId({self})")
    }
}

/// What reading a file found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// The content's name.
    pub id: ContentId,
    /// Bytes read.
    pub size: u64,
    /// The chunks, from [`BIG`] on.
    pub chunks: Option<Vec<Chunk>>,
}

/// Names what `reader` holds, to its end. Whether it is big is decided by the bytes that are there.
///
/// # Errors
/// What the reader returns.
pub fn hash(reader: &mut impl Read) -> io::Result<Hashed> {
    let mut buffer = vec![0u8; BUFFER];
    let mut filled = fill(reader, &mut buffer, 0)?;
    if filled < BUFFER {
        return Ok(Hashed { id: of_small(&buffer[..filled]), size: filled as u64, chunks: None });
    }
    // Either kind is possible up to BIG, so both sums are taken until then.
    let mut small = Some(Sha256::new());
    let (mut chunks, mut size, mut start) = (Vec::new(), 0u64, 0);
    loop {
        if filled - start < chunk::MAX {
            buffer.copy_within(start..filled, 0);
            filled = fill(reader, &mut buffer, filled - start)?;
            start = 0;
        }
        if start == filled {
            break;
        }
        let len = chunk::cut(&buffer[start..filled]);
        let bytes = &buffer[start..start + len];
        if let Some(sum) = &mut small {
            sum.update(bytes);
        }
        chunks.push(Chunk::of(bytes));
        size += len as u64;
        start += len;
        if size >= BIG {
            small = None;
        }
    }
    Ok(match small {
        Some(sum) => Hashed { id: ContentId(sum.finalize().into()), size, chunks: None },
        None => Hashed { id: of_chunks(&chunks), size, chunks: Some(chunks) },
    })
}

/// The same for a file of `size` bytes, from [`BIG`] on, on two threads. `read` gets what was read, in bytes, as it goes.
///
/// A border depends on the one before it, but two runs over the same content that began at different places soon share
/// one, and all that follow. So the second half is cut from its middle on, and the first half's run goes on until it
/// meets a border of the second.
///
/// # Errors
/// What reading returns.
pub fn hash_halves(file: &File, size: u64, read: &(dyn Fn(u64) + Sync)) -> io::Result<Hashed> {
    let middle = size / 2;
    let (mut chunks, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| chunks_from(&mut At { file, at: middle, read }, |_| false));
        let mut second = Some(second);
        let mut behind: Option<io::Result<Vec<Chunk>>> = None;
        let mut borders = HashMap::new();
        let mut met = 0;
        let first = chunks_from(&mut At { file, at: 0, read }, |at| {
            let Some(past) = at.checked_sub(middle) else { return false };
            if let Some(second) = second.take() {
                let chunks =
                    second.join().unwrap_or_else(|_| Err(io::Error::other("a thread ended by a bug")));
                borders = chunks.as_deref().map(borders_of).unwrap_or_default();
                behind = Some(chunks);
            }
            // Nothing to meet after an error: that is what is returned.
            let found = borders.get(&past).copied();
            met = found.unwrap_or(met);
            found.is_some() || matches!(behind, Some(Err(_)))
        })?;
        // The first run always gets past the middle, or the file became shorter.
        let behind = behind.unwrap_or_else(|| Ok(Vec::new()))?;
        Ok::<_, io::Error>((first, behind.get(met..).unwrap_or_default().to_vec()))
    })?;
    chunks.extend(second);
    let size = chunks.iter().map(|chunk| u64::from(chunk.len)).sum();
    Ok(Hashed { id: of_chunks(&chunks), size, chunks: Some(chunks) })
}

/// Where each of these chunks begins, counted from the first, and its index.
fn borders_of(chunks: &[Chunk]) -> HashMap<u64, usize> {
    let mut at = 0;
    let mut borders = HashMap::with_capacity(chunks.len() + 1);
    for (index, chunk) in chunks.iter().enumerate() {
        borders.insert(at, index);
        at += u64::from(chunk.len);
    }
    borders.insert(at, chunks.len());
    borders
}

/// The chunks of what the reader gives, until `stop` says of a border (counted in bytes) that it is the last.
fn chunks_from(reader: &mut impl Read, mut stop: impl FnMut(u64) -> bool) -> io::Result<Vec<Chunk>> {
    let mut buffer = vec![0u8; BUFFER];
    let (mut filled, mut start, mut at, mut chunks) = (0, 0, 0u64, Vec::new());
    loop {
        if filled - start < chunk::MAX {
            buffer.copy_within(start..filled, 0);
            filled = fill(reader, &mut buffer, filled - start)?;
            start = 0;
        }
        if start == filled {
            return Ok(chunks);
        }
        let len = chunk::cut(&buffer[start..filled]);
        chunks.push(Chunk::of(&buffer[start..start + len]));
        start += len;
        at += len as u64;
        if stop(at) {
            return Ok(chunks);
        }
    }
}

/// A file read from a place on, whoever else reads in it.
struct At<'a> {
    file: &'a File,
    at: u64,
    read: &'a (dyn Fn(u64) + Sync),
}

impl Read for At<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(into, self.at)?;
        self.at += n as u64;
        (self.read)(n as u64);
        Ok(n)
    }
}

/// The name of a big file with these chunks.
#[must_use]
pub fn of_chunks(chunks: &[Chunk]) -> ContentId {
    let mut sum = Sha256::new();
    sum.update(DOMAIN);
    for chunk in chunks {
        sum.update(chunk.len.to_le_bytes());
        sum.update(chunk.sum);
    }
    ContentId(sum.finalize().into())
}

/// The name of this content, of any size.
#[must_use]
pub fn of_bytes(mut bytes: &[u8]) -> ContentId {
    if (bytes.len() as u64) < BIG {
        return of_small(bytes);
    }
    let mut chunks = Vec::new();
    while !bytes.is_empty() {
        let (chunk, rest) = bytes.split_at(chunk::cut(bytes));
        chunks.push(Chunk::of(chunk));
        bytes = rest;
    }
    of_chunks(&chunks)
}

fn of_small(bytes: &[u8]) -> ContentId {
    ContentId(Sha256::digest(bytes).into())
}

/// Names a small file piece by piece.
#[derive(Clone, Debug, Default)]
pub struct SmallHasher(Sha256);

impl SmallHasher {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The name of all of them, for a content below [`BIG`].
    #[must_use]
    pub fn finish(self) -> ContentId {
        ContentId(self.0.finalize().into())
    }
}

/// Reads until the buffer is full or the end; how much of it is filled then.
fn fill(reader: &mut impl Read, buffer: &mut [u8], mut filled: usize) -> io::Result<usize> {
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives few bytes at a time.
    struct Drip<'a>(&'a [u8], usize);

    impl Read for Drip<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = self.1.min(into.len()).min(self.0.len());
            into[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn the_name_depends_on_the_content_and_not_on_how_it_was_read() {
        let mut rng = fastrand::Rng::with_seed(3);
        let big = BIG as usize;
        for len in [0, 1, 4095, BUFFER - 1, BUFFER, BUFFER + 1, big - 1, big, big + 1, 3 * big + 77] {
            let data: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
            let whole = hash(&mut &data[..]).unwrap();
            assert_eq!(whole, hash(&mut Drip(&data, 7001)).unwrap(), "{len}");
            assert_eq!(whole.id, of_bytes(&data), "{len}");
            assert_eq!(whole.size, len as u64);
            assert_eq!(whole.chunks.is_some(), len >= big, "{len}");
            if let Some(chunks) = &whole.chunks {
                assert_eq!(chunks.iter().map(|c| u64::from(c.len)).sum::<u64>(), len as u64);
            }
        }
        let mut small = SmallHasher::default();
        small.update(b"ab");
        small.update(b"c");
        assert_eq!(
            small.finish().to_hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn halves_on_two_threads_are_the_whole() {
        let path = std::env::temp_dir().join(format!("edge-halves-{}", std::process::id()));
        let mut rng = fastrand::Rng::with_seed(17);
        let mut noise: Vec<u8> = (0..5 << 20).map(|_| rng.u8(..)).collect();
        let mut flat = vec![0u8; 3 << 20];
        flat.extend_from_slice(&noise[..1_500_000]);
        noise.extend_from_slice(&[7; 700_001]);
        let periodic = b"0123456789abcdef\n".repeat(200_000);
        for data in [&noise[..], &flat[..], &periodic[..], &noise[..BIG as usize], &noise[..2_345_678]] {
            std::fs::write(&path, data).unwrap();
            let (file, sum) = (File::open(&path).unwrap(), std::sync::atomic::AtomicU64::new(0));
            let count = |n| {
                sum.fetch_add(n, std::sync::atomic::Ordering::Relaxed);
            };
            let halves = hash_halves(&file, data.len() as u64, &count).unwrap();
            assert_eq!(halves, hash(&mut &data[..]).unwrap(), "{} bytes", data.len());
            assert!(sum.into_inner() >= data.len() as u64);
            // A size that is not that of the file gives what is there.
            for size in [data.len() as u64 * 3, data.len() as u64 / 3 * 2] {
                assert_eq!(hash_halves(&file, size, &|_| ()).unwrap(), halves);
            }
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn hex_goes_both_ways_and_takes_nothing_else() {
        let id = of_bytes(b"x");
        assert_eq!(ContentId::from_hex(&id.to_hex()), Some(id));
        assert_eq!(ContentId::from_hex(&id.to_hex().to_uppercase()), None);
        assert_eq!(ContentId::from_hex("12"), None);
    }
}

//! The manifest: which files the application's folder should hold.
//!
//! Encoded:
//!
//! ```text
//! "ESM1"  flags (u8: 1 = the rest is one LZ4 block)  decoded length (varint, only with flag 1)
//! count (varint), then per entry:
//!   shared (varint: bytes of the path that are those of the one before)  rest length (varint)  rest
//!   size (varint)  mode (varint, permission bits)  mtime (zigzag varint, ns since 1970)  id (32 bytes)
//! ```
//!
//! Invariants of a [`Manifest`]: sorted by path, no path twice, no file where another entry needs a folder. A decoder
//! takes at most [`Limits`], never panics, and refuses trailing bytes.

use super::varint::{self, Reader};
use super::{ContentId, RelPath, content, path};

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub path: RelPath,
    /// Bytes.
    pub size: u64,
    /// Permission bits, `0o777` at most.
    pub mode: u32,
    /// Time of the last change, nanoseconds since 1970. Not part of what makes two manifests differ.
    pub mtime_ns: i64,
    /// The content's name.
    pub id: ContentId,
}

/// The files of one commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    entries: Vec<Entry>,
}

/// What a decoder accepts at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries.
    pub files_max: usize,
    /// Bytes after decompression.
    pub bytes_max: usize,
}

/// Why something is no manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are not an encoded manifest.
    #[error("this is no manifest: {0}")]
    Malformed(&'static str),
    /// It is too large.
    #[error("the manifest has more than {0}; raise the limit on the device, or ignore files")]
    TooLarge(String),
    /// A path is refused.
    #[error(transparent)]
    Path(#[from] path::Refusal),
    /// Two entries contradict each other.
    #[error("manifest: {0}")]
    Conflict(String),
}

const MAGIC: &[u8; 4] = b"ESM1";
const COMPRESSED: u8 = 1;
/// Below this many bytes compression is not tried.
const COMPRESS_FROM: usize = 512;

impl Manifest {
    /// Sorts and checks.
    ///
    /// # Errors
    /// A path twice, or a file where a folder is needed.
    pub fn new(mut entries: Vec<Entry>) -> Result<Manifest, Error> {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        check(&entries)?;
        Ok(Manifest { entries })
    }

    /// The files, by path.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of that path.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Entry> {
        let at = self.entries.binary_search_by(|e| e.path.as_str().cmp(path)).ok()?;
        self.entries.get(at)
    }

    /// All bytes together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|e| e.size).fold(0, u64::saturating_add)
    }

    /// Names the tree: paths, sizes, modes and content, not the times.
    #[must_use]
    pub fn id(&self) -> ContentId {
        let mut sum = content::SmallHasher::default();
        for entry in &self.entries {
            sum.update(entry.path.as_bytes());
            sum.update(&[0]);
            sum.update(&entry.size.to_le_bytes());
            sum.update(&entry.mode.to_le_bytes());
            sum.update(&entry.id.0);
        }
        sum.finish()
    }

    /// The bytes that travel and are stored.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut plain = Vec::with_capacity(self.entries.len() * 64);
        varint::put(&mut plain, self.entries.len() as u64);
        let mut before = "";
        for entry in &self.entries {
            let path = entry.path.as_str();
            let shared = before.bytes().zip(path.bytes()).take_while(|(a, b)| a == b).count();
            varint::put(&mut plain, shared as u64);
            varint::put(&mut plain, (path.len() - shared) as u64);
            plain.extend_from_slice(&path.as_bytes()[shared..]);
            varint::put(&mut plain, entry.size);
            varint::put(&mut plain, u64::from(entry.mode));
            // Zigzag: times before 1970 exist, too.
            varint::put(&mut plain, (entry.mtime_ns << 1 ^ entry.mtime_ns >> 63) as u64);
            plain.extend_from_slice(&entry.id.0);
            before = path;
        }
        let mut out = MAGIC.to_vec();
        if plain.len() >= COMPRESS_FROM {
            let packed = lz4_flex::block::compress(&plain);
            if packed.len() < plain.len() {
                out.push(COMPRESSED);
                varint::put(&mut out, plain.len() as u64);
                out.extend_from_slice(&packed);
                return out;
            }
        }
        out.push(0);
        out.extend_from_slice(&plain);
        out
    }

    /// Reads what [`Manifest::encode`] wrote.
    ///
    /// # Errors
    /// [`Error`]: anything else, or more than `limits` allow.
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Manifest, Error> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(Error::Malformed("it does not begin with ESM1"))?;
        let (&flags, rest) = rest.split_first().ok_or(CUT)?;
        match flags {
            0 => Self::decode_plain(rest, limits),
            COMPRESSED => {
                let mut reader = Reader(rest);
                let len: usize = reader.get().ok_or(CUT)?;
                if len > limits.bytes_max {
                    return Err(Error::TooLarge(format!("{} bytes", limits.bytes_max)));
                }
                // LZ4 makes at most 255 bytes of one: a small message can't ask for a large allocation.
                if len / 255 > reader.0.len() {
                    return Err(Error::Malformed("its compressed part can't be that long"));
                }
                let mut plain = vec![0; len];
                match lz4_flex::block::decompress_into(reader.0, &mut plain) {
                    Ok(n) if n == len => Self::decode_plain(&plain, limits),
                    _ => Err(Error::Malformed("its compressed part is damaged")),
                }
            }
            _ => Err(Error::Malformed("unknown flags (is the other end a newer version?)")),
        }
    }

    fn decode_plain(bytes: &[u8], limits: &Limits) -> Result<Manifest, Error> {
        if bytes.len() > limits.bytes_max {
            return Err(Error::TooLarge(format!("{} bytes", limits.bytes_max)));
        }
        let mut reader = Reader(bytes);
        let count: usize = reader.get().ok_or(CUT)?;
        if count > limits.files_max {
            return Err(Error::TooLarge(format!("{} files", limits.files_max)));
        }
        // An entry has at least 37 bytes, which bounds what a false count can reserve.
        let mut entries: Vec<Entry> = Vec::with_capacity(count.min(bytes.len() / 37 + 1));
        for _ in 0..count {
            let before = entries.last().map_or("", |e| e.path.as_str());
            let entry = Self::decode_entry(&mut reader, before)?;
            entries.push(entry);
        }
        if !reader.0.is_empty() {
            return Err(Error::Malformed("something follows its last entry"));
        }
        if !entries.is_sorted_by(|a, b| a.path < b.path) {
            return Err(Error::Malformed("its entries are not sorted by path"));
        }
        check(&entries)?;
        Ok(Manifest { entries })
    }

    fn decode_entry(reader: &mut Reader<'_>, before: &str) -> Result<Entry, Error> {
        let shared: usize = reader.get().ok_or(CUT)?;
        let rest: usize = reader.get().ok_or(CUT)?;
        if rest > path::PATH_BYTES_MAX {
            return Err(Error::Malformed("a path is too long"));
        }
        let mut text = before.as_bytes().get(..shared).ok_or(CUT)?.to_vec();
        text.extend_from_slice(reader.bytes(rest).ok_or(CUT)?);
        let text = std::str::from_utf8(&text).map_err(|_| Error::Malformed("a path is not UTF-8"))?;
        let path = RelPath::new(text)?;
        let size = reader.number().ok_or(CUT)?;
        let mode: u32 = reader.get().ok_or(CUT)?;
        if mode > 0o777 {
            return Err(Error::Malformed("a mode has more than permission bits"));
        }
        let zigzag = reader.number().ok_or(CUT)?;
        let mtime_ns = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
        let id = ContentId(reader.sum().ok_or(CUT)?);
        Ok(Entry { path, size, mode, mtime_ns, id })
    }
}

const CUT: Error = Error::Malformed("it is cut short or damaged");

/// `entries` are sorted. "a" and "a/b" need not be neighbours ("a-b" sorts between them), so folders are looked up.
fn check(entries: &[Entry]) -> Result<(), Error> {
    for pair in entries.windows(2) {
        if pair[0].path == pair[1].path {
            return Err(Error::Conflict(format!("{:?} is there twice", pair[0].path.as_str())));
        }
    }
    for entry in entries {
        for folder in entry.path.parents() {
            if entries.binary_search_by(|e| e.path.as_str().cmp(folder)).is_ok() {
                return Err(Error::Conflict(format!(
                    "{folder:?} is a file, and the folder of {:?}",
                    entry.path.as_str()
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub const LIMITS: Limits = Limits { files_max: 5000, bytes_max: 1 << 20 };

    fn entry(path: &str, n: u64) -> Entry {
        Entry {
            path: RelPath::new(path).unwrap(),
            size: n * 1000,
            mode: if n.is_multiple_of(2) { 0o644 } else { 0o755 },
            mtime_ns: 1_700_000_000_000_000_000 - n as i64 * 1_700_000_000_000_000,
            id: content::of_bytes(&n.to_le_bytes()),
        }
    }

    #[test]
    fn goes_both_ways_small_and_large() {
        for count in [0, 1, 3, 1000] {
            let entries = (0..count).rev().map(|n| entry(&format!("src/part{}/f{n}.py", n % 7), n)).collect();
            let manifest = Manifest::new(entries).unwrap();
            let bytes = manifest.encode();
            assert_eq!(Manifest::decode(&bytes, &LIMITS).unwrap(), manifest, "{count}");
            assert_eq!(manifest.entries().len(), count as usize);
        }
    }

    #[test]
    fn limits_and_contradictions_are_refused() {
        let many = Manifest::new((0..100).map(|n| entry(&format!("f{n}"), n)).collect()).unwrap().encode();
        let limits = |files_max, bytes_max| Limits { files_max, bytes_max };
        assert!(matches!(Manifest::decode(&many, &limits(99, 1 << 20)), Err(Error::TooLarge(_))));
        assert!(matches!(Manifest::decode(&many, &limits(100, 100)), Err(Error::TooLarge(_))));
        assert!(Manifest::new(vec![entry("a", 1), entry("a", 2)]).is_err());
        let error = Manifest::new(vec![entry("a", 1), entry("a-b", 2), entry("a/b", 3)]).unwrap_err();
        assert!(error.to_string().contains("folder of"), "{error}");
        let mut bad = b"ESM1\0\x01\0\x02..".to_vec();
        bad.extend_from_slice(&[0; 40]);
        assert!(matches!(Manifest::decode(&bad, &LIMITS), Err(Error::Path(_))));
    }

    #[test]
    fn damage_never_panics_and_times_are_no_difference() {
        let manifest = Manifest::new((0..50).map(|n| entry(&format!("d/f{n}"), n)).collect()).unwrap();
        let bytes = manifest.encode();
        let mut rng = fastrand::Rng::with_seed(8);
        for len in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..len], &LIMITS).is_err(), "cut at {len}");
        }
        for _ in 0..3000 {
            let mut damaged = bytes.clone();
            let at = rng.usize(..damaged.len());
            damaged[at] ^= 1 << rng.u8(..8);
            let _ = Manifest::decode(&damaged, &LIMITS);
        }
        let mut touched = manifest.entries().to_vec();
        touched[3].mtime_ns += 5;
        assert_eq!(Manifest::new(touched.clone()).unwrap().id(), manifest.id());
        touched[3].mode = 0o700;
        assert_ne!(Manifest::new(touched).unwrap().id(), manifest.id());
    }
}

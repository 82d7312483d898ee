//! What content a file had when it was last read, so that an unchanged file is not read again.
//!
//! The key is device and inode; size, modification and change time must be the same. An entry is trusted only if both
//! times lay at least [`SETTLED_NS`] before the moment it was recorded: a file changed within the clock's granularity
//! of its reading looks unchanged. The change time can't be set by a program, so that a restored modification time fools
//! nobody.
//!
//! On disk: `"EHC1"`, then per entry dev, ino, size (varints), mtime, ctime, recorded (i64 LE, ns), id (32 bytes), chunk
//! count (varint; 0 for none) and chunks { len (varint) sum (32) }; at the end the CRC-32C of all before it (u32 LE). It
//! is a cache: a damaged or foreign file is an empty one.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::ContentId;
use super::chunk::{self, Chunk};
use super::content::Hashed;
use super::varint::{self, Reader};
use crate::beneath::Stat;

/// How long before its recording a file must have been left alone, ns.
pub const SETTLED_NS: i64 = 2_000_000_000;

/// Most entries; above it the cache is emptied of those not used since it was loaded.
pub const ENTRIES_MAX: usize = 200_000;

/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 20;

const MAGIC: &[u8; 4] = b"EHC1";

#[derive(Clone, Debug)]
struct Known {
    size: u64,
    mtime_ns: i64,
    ctime_ns: i64,
    recorded_ns: i64,
    used: bool,
    hashed: Arc<Hashed>,
}

impl Known {
    fn matches(&self, stat: &Stat) -> bool {
        let same = self.size == stat.size && self.mtime_ns == stat.mtime_ns && self.ctime_ns == stat.ctime_ns;
        same && self.recorded_ns.saturating_sub(self.mtime_ns.max(self.ctime_ns)) >= SETTLED_NS
    }
}

/// The cache. It does no I/O but [`HashCache::load`] and [`HashCache::save`].
#[derive(Clone, Debug, Default)]
pub struct HashCache {
    known: HashMap<(u64, u64), Known>,
    changed: bool,
}

impl HashCache {
    /// Reads the file; empty if there is none or it is damaged.
    #[must_use]
    pub fn load(path: &Path) -> HashCache {
        let read = std::fs::metadata(path).and_then(|m| {
            if m.len() > FILE_BYTES_MAX {
                return Err(std::io::Error::other("it is larger than 256 MiB"));
            }
            std::fs::read(path)
        });
        match read {
            Ok(bytes) => decode(&bytes).unwrap_or_else(|| {
                log::warn!("the hash cache {} is damaged; all files are read once", path.display());
                HashCache::default()
            }),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    log::warn!(
                        "cannot read the hash cache {}: {error}; all files are read once",
                        path.display()
                    );
                }
                HashCache::default()
            }
        }
    }

    /// Writes the file (a new one, renamed into place), if anything changed. It is not fsynced: a torn one is found by
    /// its checksum.
    ///
    /// # Errors
    /// What the system returns; the old file is whole then.
    pub fn save(&mut self, path: &Path) -> std::io::Result<()> {
        if !self.changed {
            return Ok(());
        }
        let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
        let written =
            std::fs::write(&temporary, self.encode()).and_then(|()| std::fs::rename(&temporary, path));
        if written.is_err() {
            // The first error is the one to report.
            let _ = std::fs::remove_file(&temporary);
        }
        written?;
        self.changed = false;
        Ok(())
    }

    /// What this file holds, if that can be trusted.
    pub fn get(&mut self, stat: &Stat) -> Option<Arc<Hashed>> {
        let known = self.known.get_mut(&(stat.dev, stat.ino)).filter(|known| known.matches(stat))?;
        known.used = true;
        Some(Arc::clone(&known.hashed))
    }

    /// What this file held when it was recorded, trusted or not: a place to look for chunks that are then verified.
    #[must_use]
    pub fn hint(&self, stat: &Stat) -> Option<Arc<Hashed>> {
        self.known.get(&(stat.dev, stat.ino)).map(|known| Arc::clone(&known.hashed))
    }

    /// Records what was read. `stat` was taken before the reading and was the same after it; `now_ns` is the time
    /// before it.
    pub fn put(&mut self, stat: &Stat, hashed: Arc<Hashed>, now_ns: i64) {
        if self.known.len() >= ENTRIES_MAX {
            self.known.retain(|_, known| known.used);
            if self.known.len() >= ENTRIES_MAX {
                self.known.clear();
            }
        }
        let Stat { size, mtime_ns, ctime_ns, .. } = *stat;
        let known = Known { size, mtime_ns, ctime_ns, recorded_ns: now_ns, used: true, hashed };
        self.known.insert((stat.dev, stat.ino), known);
        self.changed = true;
    }

    /// We changed a trusted file's attributes or number of names ourselves: `before` and `after` are its states just
    /// around that. Its content did not change by it.
    pub fn carry(&mut self, before: &Stat, after: &Stat) {
        if let Some(known) = self.known.get_mut(&(before.dev, before.ino))
            && known.size == before.size
            && known.mtime_ns == before.mtime_ns
            && known.ctime_ns == before.ctime_ns
            && after.size == before.size
        {
            (known.mtime_ns, known.ctime_ns) = (after.mtime_ns, after.ctime_ns);
            self.changed = true;
        }
    }

    /// Forgets the file.
    pub fn forget(&mut self, stat: &Stat) {
        self.changed |= self.known.remove(&(stat.dev, stat.ino)).is_some();
    }

    /// Forgets what was not asked for since the cache was loaded, so that it does not grow with files long gone.
    pub fn forget_unused(&mut self) {
        let before = self.known.len();
        self.known.retain(|_, known| known.used);
        self.changed |= self.known.len() != before;
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for ((dev, ino), known) in &self.known {
            varint::put(&mut out, *dev);
            varint::put(&mut out, *ino);
            varint::put(&mut out, known.size);
            for time in [known.mtime_ns, known.ctime_ns, known.recorded_ns] {
                out.extend_from_slice(&time.to_le_bytes());
            }
            out.extend_from_slice(&known.hashed.id.0);
            let chunks = known.hashed.chunks.as_deref().unwrap_or_default();
            varint::put(&mut out, chunks.len() as u64);
            for chunk in chunks {
                varint::put(&mut out, u64::from(chunk.len));
                out.extend_from_slice(&chunk.sum);
            }
        }
        let crc = self::crc(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }
}

/// CRC-32C (Castagnoli), which seals the small files of a store.
#[must_use]
pub fn crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

fn decode(bytes: &[u8]) -> Option<HashCache> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if self::crc(body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut reader = Reader(body.strip_prefix(MAGIC)?);
    let mut known = HashMap::new();
    while !reader.0.is_empty() {
        let (dev, ino, size) = (reader.number()?, reader.number()?, reader.number()?);
        let mut time = || Some(i64::from_le_bytes(reader.bytes(8)?.try_into().ok()?));
        let (mtime_ns, ctime_ns, recorded_ns) = (time()?, time()?, time()?);
        let id = ContentId(reader.sum()?);
        let count: usize = reader.get()?;
        let mut chunks = Vec::with_capacity(count.min(reader.0.len() / 33 + 1));
        for _ in 0..count {
            let len: u32 = reader.get()?;
            if len == 0 || len as usize > chunk::MAX {
                return None;
            }
            chunks.push(Chunk { len, sum: reader.sum()? });
        }
        let hashed = Arc::new(Hashed { id, size, chunks: (count > 0).then_some(chunks) });
        known.insert((dev, ino), Known { size, mtime_ns, ctime_ns, recorded_ns, used: false, hashed });
    }
    Some(HashCache { known, changed: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::content;

    const S: i64 = 1_000_000_000;

    fn stat(ino: u64, time: i64) -> Stat {
        Stat {
            dev: 1,
            ino,
            size: 3,
            mode: 0o644,
            mtime_ns: time,
            ctime_ns: time,
            is_file: true,
            is_dir: false,
            nlink: 1,
        }
    }

    fn hashed(bytes: &[u8]) -> Arc<Hashed> {
        Arc::new(content::hash(&mut &bytes[..]).unwrap())
    }

    #[test]
    fn only_settled_files_are_trusted() {
        let mut cache = HashCache::default();
        let content = hashed(b"abc");
        cache.put(&stat(1, 100 * S), content.clone(), 102 * S);
        cache.put(&stat(2, 100 * S), content.clone(), 102 * S - 1);
        cache.put(&stat(3, 100 * S), content.clone(), 50 * S);
        assert_eq!(cache.get(&stat(1, 100 * S)), Some(content));
        assert_eq!(cache.get(&stat(2, 100 * S)), None, "changed within 2 s of the reading");
        assert_eq!(cache.get(&stat(3, 100 * S)), None, "changed in the future");
        for change in [
            |s: &mut Stat| s.size += 1,
            |s: &mut Stat| s.mtime_ns -= 1,
            |s: &mut Stat| s.ctime_ns += 1,
            |s: &mut Stat| s.ino += 7,
            |s: &mut Stat| s.dev += 1,
        ] {
            let mut other = stat(1, 100 * S);
            change(&mut other);
            assert_eq!(cache.get(&other), None);
        }
        let (before, after) = (stat(1, 100 * S), Stat { ctime_ns: 101 * S, ..stat(1, 100 * S) });
        cache.carry(&before, &after);
        assert_eq!(cache.get(&after), None, "our own change is as recent as any");
    }

    #[test]
    fn goes_to_disk_and_back_and_a_damaged_file_is_an_empty_cache() {
        let path = std::env::temp_dir().join(format!("edge-hash-cache-{}", std::process::id()));
        let mut cache = HashCache::load(&path);
        let big: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
        cache.put(&Stat { size: 3_000_000, ..stat(1, 0) }, hashed(&big), 10 * S);
        cache.put(&stat(2, 0), hashed(b"abc"), 10 * S);
        cache.save(&path).unwrap();
        let mut back = HashCache::load(&path);
        assert_eq!(back.get(&Stat { size: 3_000_000, ..stat(1, 0) }), Some(hashed(&big)));
        back.forget_unused();
        assert_eq!(back.get(&stat(2, 0)), None);
        let mut bytes = std::fs::read(&path).unwrap();
        for at in [0, 5, bytes.len() / 2, bytes.len() - 1] {
            bytes[at] ^= 1;
            assert!(decode(&bytes).is_none(), "{at}");
            bytes[at] ^= 1;
        }
        assert!(decode(&bytes).is_some() && decode(&[]).is_none());
        std::fs::remove_file(path).unwrap();
    }
}

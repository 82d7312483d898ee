//! A sync under way: content arrives and becomes objects.
//!
//! Invariants: an object gets its name only after its whole content was verified, or was copied from a file that the
//! hash cache trusts; a big file's part has its chunks at
//! their places, so that a later sync finds by hashing which of them are there already.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use edge::beneath::Stat;
use edge::sync::ContentId;
use edge::sync::chunk::Chunk;
use edge::sync::content::{self, Hashed, SmallHasher};
use edge::sync::manifest::{Entry, Manifest};
use edge::sync::wire::{ChunkLists, Record};

use super::disk::Disk;
use super::{Error, Live, Now, Seen, Store, object, ours};

/// The kernel is asked to write out what came of a big file each time that many bytes came.
const WRITE_OUT: u64 = 8 << 20;

/// One sync.
#[derive(Debug)]
pub struct Session {
    pub(super) id: u64,
    pub(super) manifest: Manifest,
    /// What was at its paths.
    pub(super) live: Vec<Seen>,
    /// Content that is there and was verified: what its file looked like then.
    pub(super) objects: HashMap<ContentId, Stat>,
    /// What is still to come.
    wanted: HashMap<u32, Wanted>,
    /// The part written last. One only: a sync of ten thousand files needs no ten thousand descriptors.
    open: Option<(u32, File)>,
}

#[derive(Debug)]
enum Wanted {
    /// No byte has come.
    Nothing,
    /// A small file that is arriving.
    Small { hasher: SmallHasher, next: u64 },
    /// A big file whose chunks are known.
    Big(Big),
}

#[derive(Debug)]
struct Big {
    chunks: Vec<Chunk>,
    /// Where each chunk begins.
    offsets: Vec<u64>,
    have: Vec<bool>,
    missing: usize,
    /// Bytes written since the kernel was asked to write them out.
    unwritten: u64,
}

impl Session {
    pub(super) fn new(id: u64, manifest: Manifest, live: Vec<Seen>, lacks: &[u32]) -> Session {
        let (objects, wanted) = (HashMap::new(), HashMap::new());
        let mut session = Session { id, manifest, live, objects, wanted, open: None };
        session.want(lacks);
        session
    }

    pub(super) fn want(&mut self, lacks: &[u32]) {
        self.wanted = lacks.iter().map(|at| (*at, Wanted::Nothing)).collect();
    }

    /// Entries that are still wanted.
    pub(super) fn lacking(&self) -> usize {
        self.wanted.len()
    }

    /// The content that paths of the manifest have already.
    pub(super) fn present(&self) -> HashSet<ContentId> {
        let both = self.manifest.entries().iter().zip(&self.live);
        both.filter(|(_, seen)| seen.state != Live::Other).map(|(entry, _)| entry.id).collect()
    }

    /// All content of the manifest.
    pub(super) fn ids(&self) -> HashSet<ContentId> {
        self.manifest.entries().iter().map(|entry| entry.id).collect()
    }

    fn entry(&self, at: u32) -> Result<&Entry, Error> {
        let entry = self.manifest.entries().get(at as usize).filter(|_| self.wanted.contains_key(&at));
        entry.ok_or_else(|| Error::refused(400, format!("entry {at} was not asked for")))
    }
}

pub(super) fn part(entry: &Entry) -> String {
    ours(&format!("stage/{}.part", entry.id))
}

fn wrong(entry: &Entry) -> Error {
    Error::refused(
        422,
        format!(
            "what arrived of {} is not what the manifest says; did it change meanwhile? Sync again",
            entry.path
        ),
    )
}

/// Ranges of chunks that are missing: first, count.
pub type Missing = Vec<(u32, Vec<(u32, u32)>)>;

impl Store {
    fn session(&mut self) -> Result<&mut Session, Error> {
        self.session.as_mut().ok_or(Error::Gone)
    }

    /// The number of the sync under way.
    #[must_use]
    pub fn session_id(&self) -> Option<u64> {
        self.session.as_ref().map(|session| session.id)
    }

    /// Takes the chunk lists of big files and says which chunks are to be sent: those that neither an earlier attempt
    /// nor the files of the commit in force have.
    ///
    /// # Errors
    /// A list that is not that of its entry, or the disk failed.
    pub fn chunks(&mut self, lists: ChunkLists, now: Now) -> Result<Missing, Error> {
        let mut answer = Vec::new();
        for (at, chunks) in lists.0 {
            let entry = self.session()?.entry(at)?.clone();
            let size: u64 = chunks.iter().map(|c| u64::from(c.len)).sum();
            if entry.size < content::BIG || size != entry.size || content::of_chunks(&chunks) != entry.id {
                return Err(wrong(&entry));
            }
            let (mut big, file) = self.open_part(&entry, chunks)?;
            if big.missing > 0 {
                self.fill_from_tree(&entry, &mut big, &file, now)?;
            }
            answer.push((at, ranges(&big.have)));
            let session = self.session()?;
            session.open = Some((at, file));
            if big.missing == 0 {
                self.complete(at, &entry, Some(big.chunks), now)?;
            } else {
                session.wanted.insert(at, Wanted::Big(big));
            }
        }
        Ok(answer)
    }

    /// Opens or makes the part, and looks which chunks an earlier attempt left in it.
    fn open_part(&self, entry: &Entry, chunks: Vec<Chunk>) -> Result<(Big, File), Error> {
        let rel = part(entry);
        let mut offsets = Vec::with_capacity(chunks.len());
        let mut at = 0;
        for chunk in &chunks {
            offsets.push(at);
            at += u64::from(chunk.len);
        }
        let old = self.disk.stat(&rel)?.filter(|stat| stat.is_file && stat.size == entry.size);
        let file = if old.is_some() { self.disk.open_again(&rel)? } else { self.disk.create(&rel)? };
        let mut have = vec![false; chunks.len()];
        if old.is_some() {
            // Most of what did not come is holes: those are hashed once.
            let mut zeros: HashMap<u32, Chunk> = HashMap::new();
            let mut buffer = Vec::new();
            for ((chunk, offset), have) in chunks.iter().zip(&offsets).zip(&mut have) {
                buffer.resize(chunk.len as usize, 0);
                if file.read_exact_at(&mut buffer, *offset).is_err() {
                    continue;
                }
                let found = if buffer.iter().all(|byte| *byte == 0) {
                    *zeros.entry(chunk.len).or_insert_with(|| Chunk::of(&buffer))
                } else {
                    Chunk::of(&buffer)
                };
                *have = found == *chunk;
            }
        } else {
            self.disk.set_len(&file, entry.size, &rel)?;
        }
        let missing = have.iter().filter(|have| !**have).count();
        Ok((Big { chunks, offsets, have, missing, unwritten: 0 }, file))
    }

    /// Copies chunks that big files of the tree have.
    fn fill_from_tree(&mut self, entry: &Entry, big: &mut Big, part: &File, now: Now) -> Result<(), Error> {
        // The file's own old state first, then the others of the commit in force: a rename with an edit.
        let mut sources = vec![entry.path.clone()];
        let others = self.head.entries().iter().filter(|e| e.size >= content::BIG && e.path != entry.path);
        sources.extend(others.map(|e| e.path.clone()));
        for source in sources {
            let Some(stat) = self.disk.stat(&source)?.filter(|s| s.is_file && s.size >= content::BIG) else {
                continue;
            };
            // A hint may be out of date: each chunk is hashed while it is copied. Without one only the file itself is
            // read; to read all others for a chance would take longer than the content takes to come.
            let known = match self.cache.hint(&stat) {
                Some(hint) => hint,
                None if source == entry.path => self.hash_of(&source, &stat, now)?,
                None => continue,
            };
            let Some(old) = &known.chunks else { continue };
            let file = self.disk.open(&source)?;
            let trusted = self.cache.get(&stat).is_some();
            if !trusted || !self.copy_from(entry, big, part, (&file, &stat), old)? {
                self.fill_from(entry, big, part, &file, old)?;
            }
            if big.missing == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Copies within the kernel, in long runs, from a file that the cache trusts to hold these chunks. `false`: it was
    /// changed meanwhile, and nothing of it counts.
    fn copy_from(
        &self,
        entry: &Entry,
        big: &mut Big,
        part: &File,
        (file, before): (&File, &Stat),
        old: &[Chunk],
    ) -> Result<bool, Error> {
        let rel = self::part(entry);
        let places = places(old);
        let mut copied = Vec::new();
        let mut index = 0;
        while index < big.chunks.len() {
            let (first, at) = (index, big.offsets[index]);
            let Some(from) = places.get(&big.chunks[first]).copied().filter(|_| !big.have[first]) else {
                index += 1;
                continue;
            };
            let mut len = 0;
            while let Some(chunk) = big.chunks.get(index)
                && !big.have[index]
                && places.get(chunk) == Some(&(from + len))
                && len < WRITE_OUT
            {
                len += u64::from(chunk.len);
                index += 1;
            }
            match self.disk.copy(file, from, part, at, len, &rel) {
                // It became shorter.
                Err(error) if error.status() == 409 => return Ok(false),
                done => done?,
            }
            copied.push(first..index);
            Disk::write_out_early(part, at, len);
        }
        let path = || self.disk.root.path().join(&rel);
        if Stat::of(file).map_err(|source| Error::io("look at the source of", path(), source))? != *before {
            return Ok(false);
        }
        for run in copied {
            big.missing -= run.len();
            big.have[run].fill(true);
        }
        Ok(true)
    }

    /// Chunk by chunk, each verified on the way: what is copied is what was asked for, whoever writes there meanwhile.
    fn fill_from(
        &self,
        entry: &Entry,
        big: &mut Big,
        part: &File,
        file: &File,
        old: &[Chunk],
    ) -> Result<(), Error> {
        let rel = self::part(entry);
        let places = places(old);
        let mut buffer = Vec::new();
        for index in 0..big.chunks.len() {
            let (chunk, offset) = (big.chunks[index], big.offsets[index]);
            let Some(from) = places.get(&chunk).copied().filter(|_| !big.have[index]) else { continue };
            buffer.resize(chunk.len as usize, 0);
            if file.read_exact_at(&mut buffer, from).is_ok() && Chunk::of(&buffer) == chunk {
                self.write_chunk(big, index, part, &buffer, offset, &rel)?;
            }
        }
        Ok(())
    }

    fn write_chunk(
        &self,
        big: &mut Big,
        index: usize,
        part: &File,
        bytes: &[u8],
        offset: u64,
        rel: &str,
    ) -> Result<(), Error> {
        self.disk.write_at(part, bytes, offset, rel)?;
        big.have[index] = true;
        big.missing -= 1;
        big.unwritten += bytes.len() as u64;
        if big.unwritten >= WRITE_OUT {
            let end = offset + bytes.len() as u64;
            Disk::write_out_early(part, end.saturating_sub(big.unwritten), big.unwritten);
            big.unwritten = 0;
        }
        Ok(())
    }

    /// Takes a piece of content.
    ///
    /// # Errors
    /// It was not asked for, or is not what the manifest says (422), or the disk failed.
    pub fn data(&mut self, record: &Record, now: Now) -> Result<(), Error> {
        let at = record.entry;
        let entry = self.session()?.entry(at)?.clone();
        let state = self.session()?.wanted.insert(at, Wanted::Nothing).unwrap_or(Wanted::Nothing);
        match state {
            Wanted::Big(big) => self.big_piece(&entry, big, record, now),
            Wanted::Nothing if entry.size >= content::BIG => {
                Err(Error::refused(400, format!("{}: send its chunk list first", entry.path)))
            }
            Wanted::Nothing => {
                let file = self.disk.create(&part(&entry))?;
                self.session()?.open = Some((at, file));
                self.small_piece(&entry, SmallHasher::default(), 0, record, now)
            }
            Wanted::Small { hasher, next } => self.small_piece(&entry, hasher, next, record, now),
        }
    }

    /// The part of this entry, opened again if another one came between.
    fn part_file(&mut self, at: u32, entry: &Entry) -> Result<File, Error> {
        match self.session()?.open.take() {
            Some((open, file)) if open == at => Ok(file),
            _ => self.disk.open_again(&part(entry)),
        }
    }

    fn small_piece(
        &mut self,
        entry: &Entry,
        mut hasher: SmallHasher,
        next: u64,
        record: &Record,
        now: Now,
    ) -> Result<(), Error> {
        let end = next + record.data.len() as u64;
        if record.offset != next || end > entry.size || (record.data.is_empty() && entry.size > 0) {
            return Err(Error::refused(400, format!("{}: pieces out of order", entry.path)));
        }
        let file = self.part_file(record.entry, entry)?;
        if !record.data.is_empty() {
            self.disk.write_at(&file, &record.data, next, &part(entry))?;
            hasher.update(&record.data);
        }
        let session = self.session()?;
        session.open = Some((record.entry, file));
        if end < entry.size {
            session.wanted.insert(record.entry, Wanted::Small { hasher, next: end });
            return Ok(());
        }
        if hasher.finish() != entry.id {
            return Err(wrong(entry));
        }
        self.complete(record.entry, entry, None, now)
    }

    fn big_piece(&mut self, entry: &Entry, mut big: Big, record: &Record, now: Now) -> Result<(), Error> {
        let found = big.offsets.binary_search(&record.offset);
        let chunk = found.ok().and_then(|index| big.chunks.get(index).map(|chunk| (index, *chunk)));
        let (index, have) = match chunk {
            Some((index, chunk)) if Chunk::of(&record.data) == chunk => (index, big.have[index]),
            other => {
                self.session()?.wanted.insert(record.entry, Wanted::Big(big));
                return Err(match other {
                    None => {
                        Error::refused(400, format!("{}: no chunk begins at {}", entry.path, record.offset))
                    }
                    Some(_) => wrong(entry),
                });
            }
        };
        let file = self.part_file(record.entry, entry)?;
        if !have {
            self.write_chunk(&mut big, index, &file, &record.data, record.offset, &part(entry))?;
        }
        let session = self.session()?;
        session.open = Some((record.entry, file));
        if big.missing > 0 {
            session.wanted.insert(record.entry, Wanted::Big(big));
            return Ok(());
        }
        self.complete(record.entry, entry, Some(big.chunks), now)
    }

    /// All of it came and was verified: it becomes an object, with the mode and time that it is going to have.
    fn complete(
        &mut self,
        at: u32,
        entry: &Entry,
        chunks: Option<Vec<Chunk>>,
        now: Now,
    ) -> Result<(), Error> {
        let file = self.part_file(at, entry)?;
        let rel = part(entry);
        self.disk.set_attributes(&file, entry.mode, entry.mtime_ns, &rel)?;
        self.disk.rename(&rel, &object(entry.id))?;
        let stat = Stat::of(&file).map_err(|e| Error::io("look at", self.disk.root.path().join(&rel), e))?;
        // Too fresh to be trusted; but a hint where its chunks are.
        let hashed = Hashed { id: entry.id, size: entry.size, chunks };
        self.cache.put(&stat, Arc::new(hashed), now.unix_ns);
        let session = self.session()?;
        session.objects.insert(entry.id, stat);
        session.wanted.remove(&at);
        Ok(())
    }
}

/// Where a chunk is in a file with these chunks.
fn places(chunks: &[Chunk]) -> HashMap<Chunk, u64> {
    let mut at = 0u64;
    let mut places = HashMap::with_capacity(chunks.len());
    for chunk in chunks {
        places.entry(*chunk).or_insert(at);
        at += u64::from(chunk.len);
    }
    places
}

fn ranges(have: &[bool]) -> Vec<(u32, u32)> {
    let mut found: Vec<(u32, u32)> = Vec::new();
    for (at, _) in have.iter().enumerate().filter(|(_, have)| !**have) {
        // A file of 2^32 chunks has 64 TiB at the least.
        let at = at as u32;
        match found.last_mut() {
            Some((first, count)) if *first + *count == at => *count += 1,
            _ => found.push((at, 1)),
        }
    }
    found
}

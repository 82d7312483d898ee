//! A sync under way: content arrives and becomes objects.
//!
//! Invariants: an object gets its name only after its whole content was verified; a big file's part has its chunks at
//! their places, so that a later sync finds by hashing which of them are there already.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use edge::beneath::Stat;
use edge::sync::chunk::Chunk;
use edge::sync::content::{self, Hashed, SmallHasher};
use edge::sync::manifest::{Entry, Manifest};
use edge::sync::wire::{ChunkLists, Record};

use super::{Begun, Error, Live, Now, Store, object, ours};

/// One sync.
#[derive(Debug)]
pub struct Session {
    pub(super) id: u64,
    pub(super) manifest: Manifest,
    pub(super) live: Vec<Live>,
    /// What is still to come.
    wanted: HashMap<u32, Wanted>,
}

#[derive(Debug)]
enum Wanted {
    /// No byte has come.
    Nothing,
    /// A small file that is arriving.
    Small { file: File, hasher: SmallHasher, next: u64 },
    /// A big file whose chunks are known.
    Big(Big),
}

#[derive(Debug)]
struct Big {
    file: File,
    chunks: Vec<Chunk>,
    /// Where each chunk begins.
    offsets: Vec<u64>,
    have: Vec<bool>,
    missing: usize,
}

impl Session {
    pub(super) fn new(manifest: Manifest, live: Vec<Live>, begun: &Begun) -> Session {
        let wanted = begun.lacks.iter().map(|at| (*at, Wanted::Nothing)).collect();
        Session { id: begun.session, manifest, live, wanted }
    }

    /// Entries that are still wanted.
    pub(super) fn lacking(&self) -> usize {
        self.wanted.len()
    }

    fn entry(&self, at: u32) -> Result<&Entry, Error> {
        let entry = self.manifest.entries().get(at as usize).filter(|_| self.wanted.contains_key(&at));
        entry.ok_or_else(|| Error::refused(400, format!("entry {at} was not asked for")))
    }
}

fn part(entry: &Entry) -> String {
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
        self.session.as_mut().ok_or_else(|| Error::refused(409, "no sync is under way here: begin again"))
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
            let mut big = self.open_part(&entry, chunks)?;
            if big.missing > 0 {
                self.fill_from_tree(&entry, &mut big, now)?;
            }
            if big.missing == 0 {
                self.complete_big(at, &entry, big, now)?;
                answer.push((at, Vec::new()));
            } else {
                answer.push((at, ranges(&big.have)));
                self.session()?.wanted.insert(at, Wanted::Big(big));
            }
        }
        Ok(answer)
    }

    /// Opens or makes the part, and looks which chunks an earlier attempt left in it.
    fn open_part(&self, entry: &Entry, chunks: Vec<Chunk>) -> Result<Big, Error> {
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
            let mut buffer = Vec::new();
            for ((chunk, offset), have) in chunks.iter().zip(&offsets).zip(&mut have) {
                buffer.resize(chunk.len as usize, 0);
                let read = file.read_exact_at(&mut buffer, *offset);
                // A hole is zeros: not worth its hash, unless the content is.
                *have = read.is_ok() && Chunk::of(&buffer) == *chunk;
            }
        } else {
            self.disk.set_len(&file, entry.size, &rel)?;
        }
        let missing = have.iter().filter(|have| !**have).count();
        Ok(Big { file, chunks, offsets, have, missing })
    }

    /// Copies chunks that big files of the tree have.
    fn fill_from_tree(&mut self, entry: &Entry, big: &mut Big, now: Now) -> Result<(), Error> {
        // The file's own old state first, then the others of the commit in force: a rename with an edit.
        let mut sources = vec![entry.path.clone()];
        let others = self.head.entries().iter().filter(|e| e.size >= content::BIG && e.path != entry.path);
        sources.extend(others.map(|e| e.path.clone()));
        for source in sources {
            let Some(stat) = self.disk.stat(&source)?.filter(|s| s.is_file && s.size >= content::BIG) else {
                continue;
            };
            let trusted = self.cache.get(&stat);
            // A hint may be out of date: what it leads to is hashed. Without one the file itself is read, if it is ours.
            let known = match (&trusted, self.cache.hint(&stat)) {
                (Some(known), _) => Arc::clone(known),
                (None, Some(hint)) => hint,
                (None, None) => self.hash_of(&source, &stat, now)?,
            };
            let Some(old) = &known.chunks else { continue };
            let file = self.disk.open(&source)?;
            self.fill_from(entry, big, &file, old, trusted.is_some())?;
            if big.missing == 0 {
                break;
            }
        }
        Ok(())
    }

    fn fill_from(
        &self,
        entry: &Entry,
        big: &mut Big,
        file: &File,
        old: &[Chunk],
        trusted: bool,
    ) -> Result<(), Error> {
        let rel = part(entry);
        let mut at = 0u64;
        let mut places = HashMap::with_capacity(old.len());
        for chunk in old {
            places.entry(*chunk).or_insert(at);
            at += u64::from(chunk.len);
        }
        // Runs that are neighbours in both files are copied at once.
        let mut run: Option<(u64, u64, u64)> = None;
        let mut buffer = Vec::new();
        for index in 0..big.chunks.len() {
            let (chunk, offset) = (big.chunks[index], big.offsets[index]);
            let found = places.get(&chunk).copied().filter(|_| !big.have[index]);
            if let Some(from) = found {
                let len = u64::from(chunk.len);
                if trusted {
                    run = match run {
                        Some((f, t, l)) if f + l == from && t + l == offset => Some((f, t, l + len)),
                        other => {
                            self.copy_run(file, big, other, &rel)?;
                            Some((from, offset, len))
                        }
                    };
                } else {
                    buffer.resize(chunk.len as usize, 0);
                    if file.read_exact_at(&mut buffer, from).is_err() || Chunk::of(&buffer) != chunk {
                        continue;
                    }
                    self.disk.write_at(&big.file, &buffer, offset, &rel)?;
                }
                big.have[index] = true;
                big.missing -= 1;
            }
        }
        self.copy_run(file, big, run, &rel)
    }

    fn copy_run(&self, from: &File, big: &Big, run: Option<(u64, u64, u64)>, rel: &str) -> Result<(), Error> {
        match run {
            Some((from_at, to_at, len)) => self.disk.copy(from, from_at, &big.file, to_at, len, rel),
            None => Ok(()),
        }
    }

    /// Takes a piece of content.
    ///
    /// # Errors
    /// It was not asked for, or is not what the manifest says (422), or the disk failed.
    pub fn data(&mut self, record: &Record, now: Now) -> Result<(), Error> {
        let entry = self.session()?.entry(record.entry)?.clone();
        let state = self.session()?.wanted.remove(&record.entry).unwrap_or(Wanted::Nothing);
        let taken = match state {
            Wanted::Big(big) => self.big_piece(&entry, big, record, now),
            Wanted::Nothing if entry.size >= content::BIG => {
                Err(Error::refused(400, format!("{}: send its chunk list first", entry.path)))
            }
            Wanted::Nothing => {
                let file = self.disk.create(&part(&entry))?;
                self.small_piece(&entry, file, SmallHasher::default(), 0, record, now)
            }
            Wanted::Small { file, hasher, next } => self.small_piece(&entry, file, hasher, next, record, now),
        };
        if taken.is_err()
            && let Some(session) = &mut self.session
        {
            // It is still wanted, from the beginning.
            session.wanted.insert(record.entry, Wanted::Nothing);
        }
        taken
    }

    fn small_piece(
        &mut self,
        entry: &Entry,
        file: File,
        mut hasher: SmallHasher,
        next: u64,
        record: &Record,
        now: Now,
    ) -> Result<(), Error> {
        let rel = part(entry);
        let end = next + record.data.len() as u64;
        if record.offset != next || end > entry.size || (record.data.is_empty() && entry.size > 0) {
            return Err(Error::refused(400, format!("{}: pieces out of order", entry.path)));
        }
        if !record.data.is_empty() {
            self.disk.write_at(&file, &record.data, next, &rel)?;
            hasher.update(&record.data);
        }
        if end < entry.size {
            self.session()?.wanted.insert(record.entry, Wanted::Small { file, hasher, next: end });
            return Ok(());
        }
        let id = hasher.finish();
        if id != entry.id {
            return Err(wrong(entry));
        }
        self.name_object(entry, &file, Hashed { id, size: entry.size, chunks: None }, now)
    }

    fn big_piece(&mut self, entry: &Entry, mut big: Big, record: &Record, now: Now) -> Result<(), Error> {
        let Ok(index) = big.offsets.binary_search(&record.offset) else {
            return Err(Error::refused(400, format!("{}: no chunk begins at {}", entry.path, record.offset)));
        };
        if Chunk::of(&record.data) != big.chunks[index] {
            return Err(wrong(entry));
        }
        if !big.have[index] {
            self.disk.write_at(&big.file, &record.data, record.offset, &part(entry))?;
            big.have[index] = true;
            big.missing -= 1;
        }
        if big.missing > 0 {
            self.session()?.wanted.insert(record.entry, Wanted::Big(big));
            return Ok(());
        }
        self.complete_big(record.entry, entry, big, now)
    }

    fn complete_big(&mut self, at: u32, entry: &Entry, big: Big, now: Now) -> Result<(), Error> {
        self.session()?.wanted.remove(&at);
        let hashed = Hashed { id: entry.id, size: entry.size, chunks: Some(big.chunks) };
        self.name_object(entry, &big.file, hashed, now)
    }

    fn name_object(&mut self, entry: &Entry, file: &File, hashed: Hashed, now: Now) -> Result<(), Error> {
        self.disk.rename(&part(entry), &object(entry.id))?;
        if let Ok(stat) = Stat::of(file) {
            // Too fresh to be trusted; but a hint where its chunks are.
            self.cache.put(&stat, Arc::new(hashed), now.unix_ns);
        }
        Ok(())
    }
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

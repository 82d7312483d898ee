//! The journal: two files of a fixed size, used in turn.
//!
//! Owns the [`State`] and the files `journal.0` and `journal.1`. One of them is active: a snapshot of the state, then
//! one frame for each change. When it is full, a snapshot goes into the other one, which becomes active; the old one
//! is left alone until then, so at every instant one of them is whole on disk. Both are allocated in advance: a full
//! disk does not stop the journal, so records can always be acknowledged and space be given back.

use std::io;
use std::sync::Arc;

use super::Error;
use super::disk::{Disk, DiskFile};
use super::frame::{
    self, FILE_HEADER, FRAME_HEADER, FileHeader, FileKind, Frame, HeaderRead, Kind, Pos, VERSION,
};
use super::scan::{Found, Scanner};
use super::state::{Entry, State};

const NAMES: [&str; 2] = ["journal.0", "journal.1"];
/// Small in tests, so that they switch often.
const SIZE: u64 = if cfg!(any(test, fuzzing)) { 8 << 10 } else { 1 << 20 };
/// Room kept for a marker at the end.
const RESERVE: u64 = FRAME_HEADER;

/// The open journal.
pub(crate) struct Journal {
    disk: Arc<dyn Disk>,
    pub state: State,
    id: u64,
    slot: usize,
    generation: u32,
    salt: u64,
    file: Arc<dyn DiskFile>,
    size: u64,
    offset: u64,
    snapshot_end: u64,
    durable: u64,
    body: Vec<u8>,
}

/// What the files say.
#[derive(Debug, Default)]
pub(crate) struct OnDisk {
    pub state: State,
    /// The files can't be trusted: handshakes are dropped from the state, the cursor is kept as far as known.
    pub damaged: bool,
    /// Identity of the spool, when a header gives it.
    pub id: Option<u64>,
    /// Whether a complete snapshot was found.
    pub complete: bool,
    /// The whole one: the other is written next.
    slot: usize,
    generation: u32,
}

struct Parsed {
    slot: usize,
    header: FileHeader,
    state: State,
    complete: bool,
    damaged: bool,
    used: bool,
}

/// Reads both files.
pub(crate) fn recover(disk: &Arc<dyn Disk>) -> Result<OnDisk, Error> {
    let mut found = OnDisk::default();
    let (mut parsed, mut blank) = (Vec::new(), false);
    for (slot, name) in NAMES.iter().enumerate() {
        let io_error = |source| Error::Io { what: "read the journal", path: disk.path(name), source };
        let file = match disk.open(name) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                blank = true;
                continue;
            }
            Err(e) => return Err(io_error(e)),
        };
        let mut head = [0u8; FILE_HEADER as usize];
        let n = file.read_at(&mut head, 0).map_err(io_error)?;
        match FileHeader::decode(FileKind::Journal, &head[..n]) {
            HeaderRead::Good(header) => parsed.push(parse(slot, header, file).map_err(io_error)?),
            HeaderRead::Future(version) => {
                return Err(Error::Version { path: disk.path(name), found: version, known: VERSION });
            }
            HeaderRead::Blank => blank = true,
            // A header is one sector, which disks write whole or not at all.
            HeaderRead::Damaged => found.damaged = true,
        }
    }
    parsed.sort_by_key(|p| std::cmp::Reverse(p.header.index));
    if let Some(newest) = parsed.first() {
        found.id = Some(newest.header.id);
        found.generation = newest.header.index;
    }
    // From the second generation on both files have been written: one that is blank or gone was in use.
    found.damaged |= blank && found.generation > 1;
    choose(&mut found, parsed);
    if !found.complete && !found.damaged {
        // A first start that a crash cut short is begun again.
        found.generation = 0;
    }
    Ok(found)
}

/// Takes the newest whole file. A newest one without a complete snapshot that was never in use is a switch that a
/// crash cut short: then the other one is whole. Anything else that is not whole is damage; then an older state must
/// not be used for handshakes, because a packet id it knows may have been used for another message since.
fn choose(found: &mut OnDisk, parsed: Vec<Parsed>) {
    let mut chosen = None;
    let mut fallback = State::default();
    for p in parsed {
        fallback.cursor = fallback.cursor.max(p.state.cursor);
        fallback.next_seq = fallback.next_seq.max(p.state.next_seq);
        fallback.pos = fallback.pos.max(p.state.pos);
        fallback.acked.extend(p.state.acked.iter().copied());
        if chosen.is_some() || found.damaged {
            continue;
        }
        if p.complete && !p.damaged {
            found.slot = p.slot;
            chosen = Some(p.state);
        } else if p.damaged || p.used {
            found.damaged = true;
        }
    }
    match chosen {
        Some(state) if !found.damaged => {
            found.state = state;
            found.complete = true;
        }
        _ => {
            fallback.acked = fallback.acked.split_off(&fallback.cursor);
            found.state = fallback;
        }
    }
}

fn parse(slot: usize, header: FileHeader, file: Arc<dyn DiskFile>) -> io::Result<Parsed> {
    let limit = file.len()?;
    let mut scan = Scanner::new(file, header.index, Some(header.salt), limit);
    let durable = last_durable(&mut scan)?;
    let mut p = Parsed {
        slot,
        header,
        state: State::default(),
        complete: false,
        damaged: false,
        used: durable.offset() > FILE_HEADER,
    };
    let mut offset = FILE_HEADER;
    loop {
        match scan.read(offset)? {
            Found::Frame { frame, body, next } => {
                if let Some(entry) = Entry::decode(frame.kind, frame.seq, scan.body(body)) {
                    p.complete |= matches!(entry, Entry::SnapshotEnd { .. });
                    p.state.apply(&entry);
                }
                offset = next;
            }
            // Beyond what is known to be durable, the first gap ends the journal: nothing after it was waited for.
            _ if Pos::new(header.index, offset) >= durable => return Ok(p),
            _ => {
                p.damaged = true;
                match scan.resync(offset + 8, |_| true)? {
                    Some(next) => offset = next,
                    None => return Ok(p),
                }
            }
        }
    }
}

fn last_durable(scan: &mut Scanner) -> io::Result<Pos> {
    let mut durable = Pos::default();
    let mut offset = FILE_HEADER;
    loop {
        match scan.read(offset)? {
            Found::Frame { frame, next, .. } => {
                durable = durable.max(frame.durable);
                offset = next;
            }
            Found::End => return Ok(durable),
            Found::Invalid => match scan.resync(offset + 8, |_| true)? {
                Some(next) => offset = next,
                None => return Ok(durable),
            },
        }
    }
}

impl Journal {
    /// Writes `state` as a new generation into the file that is not the whole one, then into the other, and waits until
    /// each is on disk.
    pub(crate) fn start(
        disk: Arc<dyn Disk>,
        found: &OnDisk,
        state: State,
        id: u64,
        salt: u64,
    ) -> Result<Journal, Error> {
        let io_error = |name: &str| {
            let path = disk.path(name);
            move |source| Error::Io { what: "write the journal", path, source }
        };
        for name in NAMES {
            if disk.open(name).is_err() {
                disk.create(name, SIZE).and_then(|f| f.sync()).map_err(io_error(name))?;
            }
        }
        disk.sync_dir("").map_err(io_error(""))?;
        let file = disk.open(NAMES[found.slot]).map_err(io_error(NAMES[found.slot]))?;
        let mut journal = Journal {
            state,
            id,
            slot: found.slot,
            generation: found.generation,
            salt,
            file,
            size: 0,
            offset: FILE_HEADER,
            snapshot_end: FILE_HEADER,
            durable: FILE_HEADER,
            body: Vec::new(),
            disk: Arc::clone(&disk),
        };
        // Both files: from then on one that is blank or has no good header is damage, and any old damage is gone.
        for _ in NAMES {
            journal.switch().and_then(|()| journal.file.sync()).map_err(io_error(NAMES[journal.slot]))?;
        }
        journal.committed(journal.write_pos());
        Ok(journal)
    }

    /// Writes a change and applies it. It is durable after the next commit.
    pub(crate) fn append(&mut self, entry: &Entry) -> io::Result<()> {
        let mut body = std::mem::take(&mut self.body);
        let (kind, seq) = entry.encode(&mut body);
        if self.offset + frame::framed(body.len() as u64) + RESERVE > self.size {
            if self.durable >= self.snapshot_end {
                self.switch()?;
            } else {
                // The snapshot of the active file is not on disk yet, so the other file is still the whole one.
                self.size += SIZE;
                self.file.preallocate(self.size)?;
            }
        }
        self.write(kind, seq, &body)?;
        self.body = body;
        self.state.apply(entry);
        Ok(())
    }

    /// Notes in the file how far it is durable.
    pub(crate) fn mark(&mut self) -> io::Result<()> {
        if self.offset + FRAME_HEADER <= self.size { self.write(Kind::Marker, 0, &[]) } else { Ok(()) }
    }

    /// Where the next frame goes.
    pub(crate) fn write_pos(&self) -> Pos {
        Pos::new(self.generation, self.offset)
    }

    pub(crate) fn file(&self) -> Arc<dyn DiskFile> {
        Arc::clone(&self.file)
    }

    /// A commit that covered everything up to `pos` is done.
    pub(crate) fn committed(&mut self, pos: Pos) {
        if pos.index() == self.generation {
            self.durable = self.durable.max(pos.offset());
        }
    }

    fn write(&mut self, kind: Kind, seq: u64, body: &[u8]) -> io::Result<()> {
        let frame = Frame {
            salt: self.salt,
            durable: Pos::new(self.generation, self.durable),
            seq,
            behind: 0,
            // Entries are at most 64 KiB and some, see Entry::encode.
            len: body.len() as u32,
            body_crc: crc32c::crc32c(body),
            kind,
            flags: 0,
        };
        let head = frame.encode(self.write_pos());
        self.file.write_at(&[&head, body], self.offset)?;
        self.offset += frame::framed(body.len() as u64);
        Ok(())
    }

    /// Makes the other file the active one, with a snapshot of the state.
    fn switch(&mut self) -> io::Result<()> {
        let state = std::mem::take(&mut self.state);
        let done = self.switch_to(&state);
        self.state = state;
        done
    }

    fn switch_to(&mut self, state: &State) -> io::Result<()> {
        let mut body = Vec::new();
        let mut bytes = FILE_HEADER;
        for entry in state.snapshot() {
            entry.encode(&mut body);
            bytes += frame::framed(body.len() as u64);
        }
        let slot = 1 - self.slot;
        let file = self.disk.open(NAMES[slot])?;
        let size = SIZE.max((bytes * 2).next_multiple_of(SIZE)).max(file.len()?);
        file.preallocate(size)?;
        self.slot = slot;
        self.file = file;
        self.size = size;
        self.generation = self.generation.wrapping_add(1);
        // Different from the salt of every other generation, and as unpredictable as the first.
        self.salt = self.salt.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.durable = FILE_HEADER;
        self.offset = FILE_HEADER;
        let header = FileHeader {
            kind: FileKind::Journal,
            index: self.generation,
            salt: self.salt,
            id: self.id,
            first_seq: state.next_seq,
            durable: self.write_pos(),
            durable_seq: 0,
        };
        self.file.write_at(&[&header.encode()], 0)?;
        for entry in state.snapshot() {
            let (kind, seq) = entry.encode(&mut body);
            self.write(kind, seq, &body)?;
        }
        self.snapshot_end = self.offset;
        Ok(())
    }
}

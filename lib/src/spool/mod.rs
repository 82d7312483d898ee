//! The durable queue: records in order on disk, acknowledged in any order, exactly what was promised after any crash.
//!
//! Owns one folder. It runs one thread, `spool-sync`, which does what blocks (`fdatasync`, making and removing files);
//! everything else happens in the caller's loop. It never syncs a file descriptor again after that failed, never hands
//! out a record that is not durable, and never keeps a record in memory because it waits for an acknowledgement.
//!
//! # The folder
//!
//! | name | what |
//! |---|---|
//! | `lock` | locked (`flock`) by the process that has the spool open |
//! | `NNNNNNNNNN.seg` | a segment: records. The decimal number is its index, rising, never used again |
//! | `spare` | the file of the next segment: allocated in advance, or a sent segment re-used. Content means nothing |
//! | `journal.0`, `journal.1` | the cursor and the QoS 2 handshakes, in turn |
//! | `quarantine/` | damaged bytes, `SEGMENT-OFFSET-LENGTH.bin`; `...-cut.bin` is a torn tail that was cut off |
//! | `dead-letter/` | `SEQ.msg`: a JSON object about the record and why, an empty line, the payload |
//!
//! # Format 1
//!
//! All numbers are little-endian; checksums are CRC-32C. Segments and journals have the same two parts.
//!
//! File header, 64 bytes:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `EDGESPL\n` (segment) or `EDGEJNL\n` (journal) |
//! | 8 | 4 | format version. A later one is refused; bytes 0-11 and 60-63 stay as they are in every version |
//! | 12 | 4 | index of the segment, generation of the journal |
//! | 16 | 8 | salt: random, different for each time a file is begun |
//! | 24 | 8 | id of the spool |
//! | 32 | 8 | number of the first record that can be in the segment |
//! | 40 | 8 | durable place when the file was begun (index in the upper, offset in the lower 32 bits) |
//! | 48 | 8 | number of the first record not durable then |
//! | 56 | 4 | zero |
//! | 60 | 4 | checksum of bytes 0-59 |
//!
//! Then frames, each at a multiple of eight; what stands between the end of one and the next is not looked at:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `EdFr` |
//! | 4 | 4 | checksum of bytes 8-47 followed by the frame's place (8 bytes, index and offset as above) |
//! | 8 | 8 | salt of the file |
//! | 16 | 8 | durable place when this was written: all before it is on disk |
//! | 24 | 8 | number of the record (message), next number (mark, end), number the entry is about (journal) |
//! | 32 | 4 | length of the body |
//! | 36 | 4 | checksum of the body |
//! | 40 | 1 | kind: 1 message, 2 mark, 3 end of the segment; journal: 16 cursor, 17 held, 18 released, 19 all held of a source gone, 20 published, 21 received, 22 done, 23 all outbound gone, 24 acknowledged, 25 end of the snapshot |
//! | 41 | 1 | message: QoS in bits 0-1, retain in bit 2 |
//! | 42 | 2 | zero |
//! | 44 | 4 | how many records right before this number were not durable then |
//! | 48 | | body |
//!
//! Body of a message: time of receipt (u64, unix ms), length of topic (u16), of source (u16), packet id or 0 (u16), zero
//! (u16), length of the properties (u32); topic, source, properties, and the payload up to the end. A property is a tag
//! (u8) and its value: 1 content type, 3 payload is text (u8), 4 response topic, 5 correlation data, 6 user property
//! (two strings), where strings and bytes have a u16 length before them; 2 expiry in seconds (u32).
//!
//! Body of a journal entry: packet id (u16), length of the source (u16), checksum of topic and payload (u32), two
//! numbers (u64: cursor place and next record number, else 0), source.
//!
//! # Torn or damaged
//!
//! Every frame says how far the log was durable when it was written, and after a commit that nothing follows a mark
//! says it. The furthest such place V is known when a spool is opened. Before V everything was synced, so what can't be
//! read there is damage: it is copied to the quarantine and counted, and reading goes on at the next frame that is whole
//! (a frame counts only at its own place, with the salt of its file and a number that fits). From V on nothing was
//! waited for beyond the last commit, and frames are in the order of writing: the first gap there ends the log. What is
//! behind it was never acknowledged, because a commit that covered it would have covered the gap; it is cut off, so that
//! the source's second sending keeps its order. A frame names its place and salt, so zeros, stale bytes of a re-used
//! file, and frames in somebody's payload can't be taken for one. Damage to the very last commit before a power cut,
//! before its mark reached the disk, is the one thing taken for a torn tail; the bytes are kept in the quarantine.
//!
//! # Why nothing is lost
//!
//! - A record is acknowledged when a commit is done that began after it was written ([`Spool::durable`]). The commit
//!   syncs the segments, the folder when a segment was begun, and the journal. A failed sync ends everything: no ticket
//!   after it is ever durable.
//! - A segment is removed only when the cursor is past it *in the journal on disk*. A cursor that is lost or old means
//!   sending again.
//! - A restart cuts, syncs what it keeps, and writes the journal anew, before it hands out or acknowledges anything.
//! - The spare of an earlier process is not used: a crash may have undone its renaming, and its frames would be valid
//!   again under their old name.
//!
//! # Why QoS 2 is exactly once
//!
//! With both peers' sessions kept; over every crash of this process, and of the machine:
//!
//! *Inbound.* The record and its packet id (`held`) are one ticket; PUBREC waits for it. A crash before: at most one of
//! the two survived. An entry without its record is void (its number is not below the end of the log after the cut), and
//! the source sends again; a record without its entry is found when the tail is read and held anew (only the records
//! behind the highest number the journal ever held: an earlier one may have been released since). A crash after: the
//! second PUBLISH finds the packet id held and is answered, not stored. PUBCOMP waits for `released`: if it did not, a
//! crash would leave the packet id held, and the source's next message under it would be taken for a duplicate and lost.
//! A PUBREL for a packet id that is not held is answered, after everything written before it. Removing a segment loses
//! no packet id: they are in the journal, and every snapshot of it.
//!
//! *Outbound.* PUBLISH waits for `published` (else a crash would send the record under another packet id: twice);
//! PUBREL waits for `received` (else a crash would send PUBLISH again after the peer forgot the packet id: twice). PUBCOMP
//! is journaled (`done`) without waiting: lost, PUBREL goes out again and is answered. The packet id is used again only
//! under a `published` that stands behind that `done` in the journal. Records done beyond the cursor stay known until
//! the cursor passes them.
//!
//! *A peer without its session* ([`Spool::in_session_lost`], [`Spool::out_session_lost`]): what was held is forgotten, what
//! was published goes out as new. Then, and when the journal is damaged ([`Recovery::journal_lost`]), duplicates are
//! possible and loss is not, provided the caller begins a new session with the next hop: old packet ids there are
//! unknown now.
//!
//! *The journal itself.* Entries are appended to one file; when it is full a snapshot goes to the other, which is left
//! alone as long as the first one's snapshot is not durable. So one of them is whole at any instant, and its size is that
//! of two snapshots or 1 MiB. Both are allocated in advance: with a full disk records can still be acknowledged and
//! segments given back.

mod commit;
mod config;
mod disk;
mod engine;
mod error;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod journal;
#[cfg(test)]
mod policy_tests;
mod qos2;
#[cfg(test)]
mod qos2_sim;
mod read;
mod record;
mod recover;
mod scan;
#[cfg(any(test, fuzzing))]
mod sim;
#[cfg(test)]
mod sim_tests;
mod state;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod types;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;

use mio::Waker;

use disk::{Disk, RealDisk};
use engine::Engine;
use frame::Pos;
use journal::Journal;
use recover::Segment;

pub use config::{Full, FullByQos, Problem, SpoolConfig};
pub use error::Error;
pub use table::{FullKey, Table};
pub use types::{Append, Delivery, MEMORY, OutState, Record, Recovery, Seq, Stats, Ticket};

/// A durable queue in a folder. See the [module documentation](self).
///
/// One round of a daemon's loop: [`poll`](Spool::poll) (what the disk finished), then appends and journal entries,
/// [`next`](Spool::next) and [`ack`](Spool::ack), and [`flush`](Spool::flush) last; then sleep no longer than
/// [`deadline`](Spool::deadline).
pub struct Spool {
    config: SpoolConfig,
    disk: Arc<dyn Disk>,
    engine: Engine,
    rng: fastrand::Rng,
    id: u64,
    journal: Journal,
    /// In order. The last one may be active.
    segments: VecDeque<Segment>,
    active: Option<write::Active>,
    next_index: u32,
    next_seq: Seq,
    spare: write::Spare,
    /// Segment files and the spare.
    disk_bytes: u64,
    commit: commit::Commit,
    reader: read::Reader,
    memory: write::Memory,
    stats: Stats,
    failed: Option<String>,
}

impl Spool {
    /// Opens or makes the spool in `config.dir`, and starts the thread `spool-sync`.
    ///
    /// `waker` is woken whenever [`Spool::poll`] has something to say (several spools may share one). `entropy` is
    /// any unpredictable number; it keeps stale bytes of a re-used file from being taken for records.
    ///
    /// # Errors
    /// Bad bounds, a folder in use by another process, a file of a later format, or a failing disk.
    pub fn open(
        config: SpoolConfig,
        waker: Option<Arc<Waker>>,
        entropy: u64,
    ) -> Result<(Spool, Recovery), Error> {
        config.check().map_err(|p| Error::Config { key: p.key, text: p.text })?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&config.dir)?);
        let engine = Engine::thread(Arc::clone(&disk), waker).map_err(|source| Error::Io {
            what: "start the sync thread of",
            path: config.dir.clone(),
            source,
        })?;
        Spool::open_on(disk, engine, config, entropy)
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        engine: Engine,
        config: SpoolConfig,
        entropy: u64,
    ) -> Result<(Spool, Recovery), Error> {
        let found = recover::recover(&disk, &config)?;
        let mut rng = fastrand::Rng::with_seed(entropy);
        let id = found.id.unwrap_or_else(|| rng.u64(1..));
        let journal = Journal::start(Arc::clone(&disk), &found.journal, found.state, id, rng.u64(..))?;
        write::Spare::clear(&*disk)?;
        let disk_bytes = found.segments.iter().map(|s| s.bytes).sum::<u64>();
        let mut spool = Spool {
            engine,
            rng,
            id,
            segments: found.segments.into(),
            active: None,
            next_index: found.next_index,
            next_seq: journal.state.next_seq,
            spare: write::Spare::None,
            disk_bytes,
            commit: commit::Commit::new(found.end, journal.state.next_seq, journal.state.pos),
            reader: read::Reader::new(journal.state.cursor, journal.state.pos),
            memory: write::Memory::default(),
            stats: Stats { damaged: found.report.damaged, ..Stats::default() },
            failed: None,
            journal,
            disk,
            config,
        };
        spool.want_spare();
        Ok((spool, found.report))
    }

    /// Identity of this folder's numbering: a random number made with the folder. A sequence number tells a duplicate
    /// only together with it (an emptied folder starts again at 1 under a new id).
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (cursor, _) = self.cursor();
        Stats {
            queued: self.next_seq.saturating_sub(cursor).saturating_sub(self.reader.acked_ahead()),
            in_flight: self.reader.in_flight(),
            memory: self.memory.queue.len(),
            disk_bytes: self.disk_bytes,
            held: self.journal.state.held_count,
            outbound: self.journal.state.out.len(),
            ..self.stats.clone()
        }
    }

    /// Refuses everything after the first failure.
    fn usable(&self) -> Result<(), Error> {
        match &self.failed {
            None => Ok(()),
            Some(what) => Err(Error::Failed { dir: self.config.dir.clone(), what: what.clone() }),
        }
    }

    /// The first failure: nothing more is acknowledged.
    fn fail(&mut self, what: impl std::fmt::Display) -> Error {
        let what = self.failed.get_or_insert_with(|| what.to_string()).clone();
        Error::Failed { dir: self.config.dir.clone(), what }
    }

    /// The lowest record not acknowledged, and where it is.
    fn cursor(&self) -> (Seq, Pos) {
        self.reader.cursor()
    }
}

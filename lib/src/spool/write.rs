//! The writing half: placing records into segments, and what happens when there is no room.
//!
//! Owns the active segment, the spare file, and the QoS 0 messages that stay in memory. Never syncs.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::commit::Dirty;
use super::disk::{Disk, DiskFile, is_full};
use super::engine::{Job, SPARE};
use super::frame::{self, FILE_HEADER, FRAME_HEADER, FileHeader, FileKind, Frame, Kind, Pos};
use super::recover::Segment;
use super::scan::Found;
use super::state::Entry;
use super::types::{Append, MEMORY, Record, Seq, Ticket};
use super::{Error, Full, Spool, record};
use crate::mqtt::{Message, Qos};

/// Room kept at the end of a segment: the frame that ends it.
const RESERVE: u64 = FRAME_HEADER;

/// The segment being written.
pub(crate) struct Active {
    pub file: Arc<dyn DiskFile>,
    pub index: u32,
    pub salt: u64,
    pub offset: u64,
    pub bytes: u64,
}

impl Active {
    fn fits(&self, framed: u64) -> bool {
        self.offset + framed + RESERVE <= self.bytes
    }

    pub(crate) fn pos(&self) -> Pos {
        Pos::new(self.index, self.offset)
    }

    /// Writes a frame and moves on.
    pub(crate) fn frame(
        &mut self,
        kind: Kind,
        flags: u8,
        seq: Seq,
        durable: (Pos, Seq),
        body: [&[u8]; 2],
    ) -> io::Result<()> {
        let len = (body[0].len() + body[1].len()) as u32;
        let body_crc = crc32c::crc32c_append(crc32c::crc32c(body[0]), body[1]);
        let (durable, first) = durable;
        // At most the records of one segment and one group: far below 2^32.
        let behind = u32::try_from(seq.saturating_sub(first)).unwrap_or(u32::MAX);
        let head =
            Frame { salt: self.salt, durable, seq, behind, len, body_crc, kind, flags }.encode(self.pos());
        self.file.write_at(&[&head, body[0], body[1]], self.offset)?;
        self.offset += frame::framed(u64::from(len));
        Ok(())
    }
}

/// The file the next segment is made from, so that a full disk shows before it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spare {
    None,
    /// The thread is at it. Its bytes are counted already.
    Pending,
    Ready,
}

impl Spare {
    /// Removes what is left of it from the last time. It can't be used again: a crash may have undone the renaming of
    /// a segment that was begun, and its stale frames would then stand under the very name they were written for.
    pub(crate) fn clear(disk: &dyn Disk) -> Result<(), Error> {
        let io_error = |source| Error::Io { what: "remove the spare file in", path: disk.path(""), source };
        for (name, _) in disk.list("").map_err(io_error)? {
            if name.starts_with(SPARE) {
                disk.unlink(&name).map_err(io_error)?;
            }
        }
        Ok(())
    }
}

/// QoS 0 messages that never see the disk. Each is handed out after the records that were written before it.
#[derive(Default)]
pub(crate) struct Memory {
    pub queue: VecDeque<(Pos, Arc<Record>)>,
    pub bytes: usize,
    next: Seq,
}

impl Memory {
    pub(crate) fn pop(&mut self) -> Option<Arc<Record>> {
        let (_, record) = self.queue.pop_front()?;
        self.bytes -= weight(&record.message);
        Some(record)
    }
}

/// Bytes a message holds in memory, roughly.
pub(crate) fn weight(m: &Message) -> usize {
    let user: usize = m.properties.user.iter().map(|(k, v)| k.len() + v.len() + 64).sum();
    m.topic.len() + m.payload.len() + user + 256
}

impl Spool {
    /// Stores a message (QoS 0 in memory unless `spool-qos0`). For QoS 2 with an `in_pid` the packet id is held for
    /// `source` from now on, with the same ticket.
    ///
    /// # Errors
    /// A failed disk (final), or a message that can't be represented. A full disk is not an error but
    /// [`Append::Blocked`] or a drop, by the policy of the message's QoS.
    pub fn append(
        &mut self,
        message: Message,
        source: &str,
        in_pid: Option<u16>,
        received_ms: u64,
    ) -> Result<Append, Error> {
        self.usable()?;
        let source = self.source(source);
        let record = Record { seq: self.next_seq, received_ms, source, in_pid, message };
        if record.message.qos == Qos::AtMostOnce && !self.config.spool_qos0 {
            return Ok(self.append_memory(record));
        }
        let scratch = std::mem::take(&mut self.commit.scratch);
        let prefix = record::prefix(scratch, &record.message, &record.source, in_pid, received_ms)?;
        let outcome = self.append_disk(record, &prefix);
        self.commit.scratch = prefix.bytes;
        outcome
    }

    fn append_disk(&mut self, record: Record, prefix: &record::Prefix) -> Result<Append, Error> {
        if prefix.body_len > self.config.max_record_bytes {
            self.stats.too_large += 1;
            return Ok(Append::TooLarge(record.message));
        }
        let holds = record.message.qos == Qos::ExactlyOnce && record.in_pid.is_some();
        if holds && self.journal.state.held_count >= self.config.held_max {
            self.stats.held_full += 1;
            return Ok(Append::HeldFull(record.message));
        }
        let at = loop {
            match self.place(&record, prefix) {
                Ok(Some(at)) => break at,
                Ok(None) => match self.config.full.of(record.message.qos) {
                    Full::DropOldest if self.drop_oldest()? => {}
                    Full::DropNewest => {
                        self.stats.dropped[record.message.qos as usize] += 1;
                        return Ok(Append::Dropped);
                    }
                    Full::Block | Full::DropOldest => {
                        self.stats.blocked += 1;
                        return Ok(Append::Blocked(record.message));
                    }
                },
                Err(e) => return Err(self.fail(format_args!("cannot write a record: {e}"))),
            }
        };
        self.appended(record, at, holds)
    }

    /// Books a record that stands in the active segment.
    fn appended(&mut self, record: Record, at: Pos, holds: bool) -> Result<Append, Error> {
        let end = self.active.as_ref().map_or(at, Active::pos);
        let bytes = end.offset() - at.offset();
        let from = std::mem::replace(&mut self.commit.message_end, end);
        self.next_seq += 1;
        self.stats.appended += 1;
        self.stats.appended_bytes += bytes;
        self.commit.note(Dirty::Segment, bytes);
        if holds && let Some(pid) = record.in_pid {
            let digest = record::digest(&record.message);
            self.journal(Entry::Held { source: Arc::clone(&record.source), pid, seq: record.seq, digest })?;
        }
        let seq = record.seq;
        self.reader.keep(from, at, end, record, self.config.tail_bytes);
        Ok(Append::Stored { seq, ticket: self.written() })
    }

    fn append_memory(&mut self, mut record: Record) -> Append {
        let weight = weight(&record.message);
        if weight > self.config.memory_bytes {
            self.stats.too_large += 1;
            return Append::TooLarge(record.message);
        }
        while self.memory.bytes + weight > self.config.memory_bytes {
            match self.config.full.qos0 {
                Full::Block => {
                    self.stats.blocked += 1;
                    return Append::Blocked(record.message);
                }
                Full::DropNewest => {
                    self.stats.dropped[0] += 1;
                    return Append::Dropped;
                }
                Full::DropOldest => {
                    self.memory.pop();
                    self.stats.dropped[0] += 1;
                }
            }
        }
        self.memory.next += 1;
        record.seq = MEMORY | self.memory.next;
        let seq = record.seq;
        self.memory.bytes += weight;
        self.memory.queue.push_back((self.commit.message_end, Arc::new(record)));
        Append::Stored { seq, ticket: Ticket(0) }
    }

    /// One allocation for a run of messages from the same source.
    fn source(&mut self, name: &str) -> Arc<str> {
        match &self.commit.source {
            Some(last) if **last == *name => Arc::clone(last),
            _ => {
                let source: Arc<str> = Arc::from(name);
                self.commit.source = Some(Arc::clone(&source));
                source
            }
        }
    }

    /// Whether a message of this many bytes (topic, properties, payload) can be stored now without dropping any.
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        let framed = frame::framed(bytes as u64 + 512);
        if self.failed.is_some() {
            return false;
        }
        (!self.commit.no_space && self.active.as_ref().is_some_and(|a| a.fits(framed)))
            || (self.spare == Spare::Ready && FILE_HEADER + framed + RESERVE <= self.config.segment_bytes)
            || (!self.stats.disk_full
                && self.disk_bytes + self.segment_bytes(framed) <= self.config.max_bytes)
    }

    /// Size of the file for a segment that must hold this frame.
    fn segment_bytes(&self, framed: u64) -> u64 {
        self.config.segment_bytes.max((FILE_HEADER + framed + 2 * RESERVE).next_multiple_of(4096))
    }

    /// Writes the record where there is room. `None`: there is none (the bound, or the disk).
    fn place(&mut self, record: &Record, prefix: &record::Prefix) -> io::Result<Option<Pos>> {
        let framed = frame::framed(prefix.body_len);
        let room = !self.commit.no_space && self.active.as_ref().is_some_and(|a| a.fits(framed));
        if !room && !self.rotate(framed)? {
            return Ok(None);
        }
        let durable = (self.commit.durable_pos, self.commit.durable_seq);
        let Some(active) = &mut self.active else { return Ok(None) };
        let at = active.pos();
        let body = [prefix.bytes.as_slice(), &record.message.payload];
        match active.frame(Kind::Message, record::flags(&record.message), record.seq, durable, body) {
            Ok(()) => Ok(Some(at)),
            Err(e) if is_full(&e) => {
                // Part of it may stand there: the next frame overwrites it, and a restart cuts it off.
                self.no_space();
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn no_space(&mut self) {
        self.commit.no_space = true;
        self.stats.disk_full = true;
    }

    /// Ends the active segment and begins the next. `false`: no room for one.
    fn rotate(&mut self, framed: u64) -> io::Result<bool> {
        let bytes = self.segment_bytes(framed);
        let name = Segment::name(self.next_index);
        let file = match self.segment_file(&name, bytes) {
            Ok(Some(file)) => file,
            Ok(None) => return Ok(false),
            Err(e) if is_full(&e) => {
                self.no_space();
                return Ok(false);
            }
            Err(e) => return Err(e),
        };
        let salt = self.rng.u64(..);
        let header = FileHeader {
            kind: FileKind::Segment,
            index: self.next_index,
            salt,
            id: self.id,
            first_seq: self.next_seq,
            durable: self.commit.durable_pos,
            durable_seq: self.commit.durable_seq,
        };
        if let Err(e) = file.write_at(&[&header.encode()], 0) {
            self.disk.unlink(&name)?;
            self.disk_bytes -= bytes;
            if is_full(&e) {
                self.no_space();
                return Ok(false);
            }
            return Err(e);
        }
        self.seal()?;
        self.commit.no_space = false;
        self.commit.dir = true;
        self.segments.push_back(Segment::new(self.next_index, salt, bytes));
        self.active = Some(Active { file, index: self.next_index, salt, offset: FILE_HEADER, bytes });
        self.next_index += 1;
        self.want_spare();
        Ok(true)
    }

    /// A file for the next segment, from the spare or new.
    fn segment_file(&mut self, name: &str, bytes: u64) -> io::Result<Option<Arc<dyn DiskFile>>> {
        if self.spare == Spare::Ready {
            if bytes == self.config.segment_bytes {
                let file = self.disk.open(SPARE)?;
                self.disk.rename(SPARE, name)?;
                self.spare = Spare::None;
                return Ok(Some(file));
            }
            self.disk.unlink(SPARE)?;
            self.spare = Spare::None;
            self.disk_bytes -= self.config.segment_bytes;
        }
        if self.disk_bytes + bytes > self.config.max_bytes {
            return Ok(None);
        }
        let file = self.disk.create(name, bytes)?;
        self.disk_bytes += bytes;
        Ok(Some(file))
    }

    /// Writes the end frame. Its room was kept.
    fn seal(&mut self) -> io::Result<()> {
        let durable = (self.commit.durable_pos, self.commit.durable_seq);
        let Some(mut active) = self.active.take() else { return Ok(()) };
        match active.frame(Kind::End, 0, self.next_seq, durable, [&[], &[]]) {
            Ok(()) => {}
            // A file system without preallocation: the end of the file says the same.
            Err(e) if is_full(&e) => active.file.truncate(active.offset)?,
            Err(e) => return Err(e),
        }
        self.commit.sealed.push(active.file);
        self.commit.note(Dirty::Segment, 0);
        Ok(())
    }

    /// Asks for a spare file if the bound allows one.
    pub(crate) fn want_spare(&mut self) {
        let bytes = self.config.segment_bytes;
        if self.spare == Spare::None
            && !self.stats.disk_full
            && self.disk_bytes + bytes <= self.config.max_bytes
        {
            self.spare = Spare::Pending;
            self.disk_bytes += bytes;
            self.engine.submit(Job::Prepare { bytes });
        }
    }

    /// Makes room by giving up the oldest segment that may go. `false`: none may.
    fn drop_oldest(&mut self) -> Result<bool, Error> {
        let active = self.active.as_ref().map(|a| a.index);
        for i in 0..self.segments.len() {
            let s = &self.segments[i];
            if Some(s.index) == active || s.pinned || self.reader.holds(s.index) {
                continue;
            }
            let index = s.index;
            let lost = match self.droppable(index) {
                Ok(lost) => lost,
                Err(e) => return Err(self.fail(format_args!("cannot read segment {index}: {e}"))),
            };
            let Some(lost) = lost else {
                self.segments[i].pinned = true;
                continue;
            };
            for (sum, n) in self.stats.dropped.iter_mut().zip(lost) {
                *sum += n;
            }
            return match self.give_up(i) {
                Ok(()) => Ok(true),
                Err(e) => Err(self.fail(format_args!("cannot remove segment {index}: {e}"))),
            };
        }
        Ok(false)
    }

    /// How many unread records of each QoS a segment has; `None` if one of them must not be dropped.
    fn droppable(&mut self, index: u32) -> io::Result<Option<[u64; 3]>> {
        let mut lost = [0; 3];
        let Some(mut scan) = self.scanner(index)? else { return Ok(Some(lost)) };
        let mut offset = self.reader.start_in(index);
        loop {
            match scan.read(offset)? {
                Found::Frame { frame, next, .. } => {
                    if frame.kind == Kind::Message && !self.journal.state.acked.contains(&frame.seq) {
                        let qos = record::flags_qos(frame.flags);
                        if self.config.full.of(qos) != Full::DropOldest {
                            return Ok(None);
                        }
                        lost[qos as usize] += 1;
                    }
                    offset = next;
                }
                Found::End => return Ok(Some(lost)),
                Found::Invalid => match scan.resync(offset + 8, |_| true)? {
                    Some(next) => offset = next,
                    None => return Ok(Some(lost)),
                },
            }
        }
    }

    fn give_up(&mut self, i: usize) -> io::Result<()> {
        let Some(s) = self.segments.remove(i) else { return Ok(()) };
        let name = Segment::name(s.index);
        if self.spare == Spare::None && s.bytes == self.config.segment_bytes {
            self.disk.rename(&name, SPARE)?;
            self.spare = Spare::Ready;
        } else {
            self.disk.unlink(&name)?;
            self.disk_bytes -= s.bytes;
        }
        self.disk.sync_dir("")?;
        self.stats.disk_full = false;
        let next = self.segments.get(i).map_or(self.next_index, |s| s.index);
        self.reader.skip_segment(s.index, next);
        Ok(())
    }
}

//! The reading half: records in order, acknowledgements in any order, and what comes again.
//!
//! Owns the reading place, the records in flight (24 bytes each; the payloads are read again when needed) and the
//! tail: just-written records kept so that the usual case reads nothing from disk. Hands out only what is durable.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::frame::{FILE_HEADER, Frame, Kind, Pos};
use super::recover::Segment;
use super::scan::{Found, Scanner};
use super::state::Entry;
use super::types::{Delivery, Record, Seq};
use super::{Error, Spool, record, store, write};

/// A record handed out.
#[derive(Debug, Clone, Copy)]
struct Flight {
    seq: Seq,
    pos: Pos,
    acked: bool,
    again: bool,
}

/// A record kept in memory: `from` is the end of the record before it.
struct Kept {
    from: Pos,
    pos: Pos,
    end: Pos,
    record: Arc<Record>,
}

/// State of the reading half.
pub(crate) struct Reader {
    pos: Pos,
    want: Seq,
    /// Records below were acknowledged before the spool was opened.
    floor: Seq,
    flights: VecDeque<Flight>,
    acked: usize,
    /// Where in `flights` the next one to be handed out again is looked for.
    resend: usize,
    tail: VecDeque<Kept>,
    tail_bytes: usize,
    ahead: Option<Scanner>,
    back: Option<Scanner>,
}

impl Reader {
    pub(crate) fn new(cursor: Seq, pos: Pos) -> Reader {
        Reader {
            pos,
            want: cursor,
            floor: cursor,
            flights: VecDeque::new(),
            acked: 0,
            resend: 0,
            tail: VecDeque::new(),
            tail_bytes: 0,
            ahead: None,
            back: None,
        }
    }

    pub(crate) fn cursor(&self) -> (Seq, Pos) {
        self.flights.front().map_or((self.want, self.pos), |f| (f.seq, f.pos))
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.flights.len() - self.acked
    }

    pub(crate) fn acked_ahead(&self) -> u64 {
        self.acked as u64
    }

    pub(crate) fn acked_seqs(&self) -> Vec<Seq> {
        self.flights.iter().filter(|f| f.acked).map(|f| f.seq).collect()
    }

    #[cfg(test)]
    pub(crate) fn kept_bytes(&self) -> usize {
        self.tail_bytes
    }

    fn find(&self, seq: Seq) -> Option<usize> {
        self.flights.binary_search_by_key(&seq, |f| f.seq).ok().filter(|i| !self.flights[*i].acked)
    }

    pub(crate) fn is_in_flight(&self, seq: Seq) -> bool {
        self.find(seq).is_some()
    }

    /// Whether a segment has records in flight.
    pub(crate) fn holds(&self, index: u32) -> bool {
        self.flights.iter().any(|f| !f.acked && f.pos.index() == index)
    }

    /// Where unread records of a segment begin.
    pub(crate) fn start_in(&self, index: u32) -> u64 {
        match self.pos.index().cmp(&index) {
            std::cmp::Ordering::Less => FILE_HEADER,
            std::cmp::Ordering::Equal => self.pos.offset().max(FILE_HEADER),
            std::cmp::Ordering::Greater => u64::MAX,
        }
    }

    /// A segment is gone.
    pub(crate) fn skip_segment(&mut self, index: u32, next: u32) {
        if self.pos.index() == index {
            self.pos = Pos::new(next, FILE_HEADER);
        }
        self.tail.retain(|k| k.pos.index() != index);
        self.tail_bytes = self.tail.iter().map(|k| write::weight(&k.record.message)).sum();
        self.ahead = self.ahead.take().filter(|s| s.index() != index);
        self.back = self.back.take().filter(|s| s.index() != index);
    }

    /// Keeps a record just written, if reading is close behind.
    pub(crate) fn keep(&mut self, from: Pos, pos: Pos, end: Pos, record: Record, bound: usize) {
        let weight = write::weight(&record.message);
        let joins = self.tail.back().map_or(self.pos == from, |k| k.end == from);
        if !joins || self.tail_bytes + weight > bound {
            // Too far behind: reading goes through the disk until it has caught up.
            self.tail = VecDeque::new();
            self.tail_bytes = 0;
            return;
        }
        self.tail_bytes += weight;
        self.tail.push_back(Kept { from, pos, end, record: Arc::new(record) });
    }

    fn take_kept(&mut self) -> Option<Kept> {
        let front = self.tail.front()?;
        if front.from != self.pos && front.pos != self.pos {
            return None;
        }
        let kept = self.tail.pop_front()?;
        self.tail_bytes -= write::weight(&kept.record.message);
        Some(kept)
    }

    fn ack(&mut self, seq: Seq) -> bool {
        let Some(i) = self.find(seq) else { return false };
        self.flights[i].acked = true;
        self.acked += 1;
        while self.flights.front().is_some_and(|f| f.acked) {
            self.flights.pop_front();
            self.acked -= 1;
            self.resend = self.resend.saturating_sub(1);
        }
        true
    }
}

/// A stretch of a segment that is no frame.
struct Gap {
    index: u32,
    from: u64,
    to: u64,
}

impl Spool {
    /// The next record to be sent, in order; only what is durable. `None`: nothing now, or `window` records are
    /// handed out from the oldest unacknowledged one on. A QoS 0 record that is not on disk needs no `ack`.
    ///
    /// # Errors
    /// The disk can't be read (final). Damage is not an error: it is copied to `quarantine/`, counted, and what
    /// follows is returned.
    #[allow(clippy::should_implement_trait, reason = "not an iterator: it fails, and goes on after None")]
    pub fn next(&mut self) -> Result<Option<Delivery>, Error> {
        self.usable()?;
        while let Some(flight) = self.reader.flights.get(self.reader.resend).copied() {
            self.reader.resend += 1;
            if flight.acked {
                continue;
            }
            match self.read_back(flight.pos)? {
                Some(record) => return Ok(Some(self.delivery(record, flight.again))),
                None => self.lost(flight),
            }
        }
        if self.reader.flights.len() >= self.config.window {
            return Ok(None);
        }
        if let Some((after, _)) = self.memory.queue.front()
            && (self.reader.pos >= *after)
        {
            let record = self.memory.pop();
            return Ok(record.map(|record| Delivery { record, again: false, outbound: None }));
        }
        self.next_new()
    }

    fn next_new(&mut self) -> Result<Option<Delivery>, Error> {
        while self.reader.pos < self.commit.durable_message_end {
            let (record, pos, end) = match self.reader.take_kept() {
                Some(kept) => (kept.record, kept.pos, kept.end),
                None => match self.read_ahead()? {
                    Some(found) => found,
                    None => {
                        // Nothing durable is left: what lies in between holds no record.
                        self.reader.pos = self.reader.pos.max(self.commit.durable_message_end);
                        return Ok(None);
                    }
                },
            };
            let seq = record.seq;
            self.reader.pos = end;
            let known = seq < self.reader.floor || self.journal.state.acked.contains(&seq);
            if seq < self.reader.want && !known {
                // Numbers never go back in a log we wrote; whatever this is, it is not passed over in silence.
                self.stats.damaged += 1;
                self.stats.damaged_records += 1;
                continue;
            }
            self.reader.want = self.reader.want.max(seq + 1);
            if known {
                continue;
            }
            self.reader.flights.push_back(Flight { seq, pos, acked: false, again: true });
            self.reader.resend = self.reader.flights.len();
            return Ok(Some(self.delivery(record, false)));
        }
        Ok(None)
    }

    fn delivery(&self, record: Arc<Record>, again: bool) -> Delivery {
        let state = &self.journal.state;
        let outbound =
            state.out_by_seq.get(&record.seq).and_then(|pid| state.out.get(pid).map(|(_, out)| (*pid, *out)));
        Delivery { again: again || outbound.is_some(), record, outbound }
    }

    /// Whether `next` may have something, so that the caller can take a packet id first.
    #[must_use]
    pub fn has_next(&self) -> bool {
        let r = &self.reader;
        r.resend < r.flights.len()
            || (r.flights.len() < self.config.window
                && (r.pos < self.commit.durable_message_end
                    || self.memory.queue.front().is_some_and(|(after, _)| r.pos >= *after)))
    }

    /// The next hop has it (PUBACK; object stored). Any order. Returns `false` when it was not in flight.
    pub fn ack(&mut self, seq: Seq) -> bool {
        let known = self.reader.ack(seq);
        if known {
            self.stats.acked += 1;
        }
        known
    }

    /// Hands out everything unacknowledged once more, in order, marked `again` (after a reconnect).
    pub fn rewind(&mut self) {
        self.reader.resend = 0;
    }

    /// Reads a record in flight once more, without changing the order of `next`.
    ///
    /// # Errors
    /// Not in flight (also when its bytes were damaged meanwhile, which is counted), or the disk can't be read.
    pub fn fetch(&mut self, seq: Seq) -> Result<Arc<Record>, Error> {
        self.usable()?;
        let flight = self.reader.find(seq).map(|i| self.reader.flights[i]);
        let Some(flight) = flight else { return Err(Error::NotInFlight { seq }) };
        match self.read_back(flight.pos)? {
            Some(record) => Ok(record),
            None => {
                self.lost(flight);
                Err(Error::NotInFlight { seq })
            }
        }
    }

    /// Puts a record in flight into `dead-letter/`, durably, and acknowledges it, so that it is not sent again. Blocks
    /// for the sync: it is rare. The oldest dead letters make room.
    ///
    /// # Errors
    /// Not in flight; or the file can't be written: then the record stays in flight and the spool stays usable
    /// (`Error::is_final` says which).
    pub fn dead_letter(&mut self, seq: Seq, reason: &str, now_ms: u64) -> Result<(), Error> {
        let record = self.fetch(seq)?;
        let (bytes, count) = (self.config.dead_letter_bytes, self.config.dead_letter_count);
        let removed = store::dead_letter(&*self.disk, &record, reason, now_ms, bytes, count)
            .map_err(|source| Error::DeadLetter { path: self.disk.path(super::disk::DEAD_LETTER), source })?;
        self.stats.dead_letters += 1;
        self.stats.dead_letters_removed += removed;
        match self.journal.state.out_by_seq.get(&seq).copied() {
            Some(pid) => self.journal(Entry::Done { pid, seq })?,
            None => self.journal(Entry::Acked { seq })?,
        }
        self.ack(seq);
        Ok(())
    }

    /// A record handed out before can't be read any more.
    fn lost(&mut self, flight: Flight) {
        self.stats.damaged += 1;
        self.stats.damaged_records += 1;
        self.reader.ack(flight.seq);
    }

    /// A scanner over what is durable of a segment.
    pub(crate) fn scanner(&self, index: u32) -> io::Result<Option<Scanner>> {
        let Some(segment) = self.segments.iter().find(|s| s.index == index) else { return Ok(None) };
        let file = self.disk.open(&Segment::name(index))?;
        let limit = file.len()?;
        let mut scan = Scanner::new(file, index, segment.salt, limit);
        if index == self.commit.durable_pos.index() {
            scan.set_limit(limit.min(self.commit.durable_pos.offset()));
        }
        if segment.salt.is_none() {
            let (low, high) = (1, self.next_seq);
            scan.discover(|f| plausible(f, low, high))?;
        }
        Ok(Some(scan))
    }

    fn read_back(&mut self, pos: Pos) -> Result<Option<Arc<Record>>, Error> {
        let found = self.read_back_io(pos);
        found.map_err(|e| self.fail(format_args!("cannot read segment {}: {e}", pos.index())))
    }

    fn read_back_io(&mut self, pos: Pos) -> io::Result<Option<Arc<Record>>> {
        let kept = self.reader.back.take().filter(|s| s.index() == pos.index() && pos.offset() < s.limit());
        let Some(mut scan) = (match kept {
            Some(scan) => Some(scan),
            None => self.scanner(pos.index())?,
        }) else {
            return Ok(None);
        };
        let found = match scan.read(pos.offset())? {
            Found::Frame { frame, body, .. } if frame.kind == Kind::Message => {
                record::decode(frame.seq, frame.flags, scan.body(body)).map(Arc::new)
            }
            _ => None,
        };
        self.reader.back = Some(scan);
        Ok(found)
    }

    fn read_ahead(&mut self) -> Result<Option<(Arc<Record>, Pos, Pos)>, Error> {
        let mut scan = self.reader.ahead.take();
        let found = self.read_ahead_io(&mut scan);
        self.reader.ahead = scan;
        found.map_err(|e| self.fail(format_args!("cannot read segment {}: {e}", self.reader.pos.index())))
    }

    /// Walks frames from the reading place to the next record.
    fn read_ahead_io(&mut self, scan: &mut Option<Scanner>) -> io::Result<Option<(Arc<Record>, Pos, Pos)>> {
        loop {
            if !self.scan_here(scan)? {
                return Ok(None);
            }
            let Some(scan) = scan.as_mut() else { return Ok(None) };
            let (index, offset) = (scan.index(), self.reader.pos.offset());
            match scan.read(offset)? {
                Found::Frame { frame, body, next } => {
                    let end = Pos::new(index, next);
                    if frame.kind == Kind::Message {
                        match record::decode(frame.seq, frame.flags, scan.body(body)) {
                            Some(r) => return Ok(Some((Arc::new(r), self.reader.pos, end))),
                            None => {
                                self.damage(scan, Gap { index, from: offset, to: next }, Some(frame.seq + 1))?
                            }
                        }
                    }
                    self.reader.pos =
                        if frame.kind == Kind::End { Pos::new(index, scan.limit()) } else { end };
                }
                // More of it is written, but not durable yet.
                Found::End if index >= self.commit.durable_pos.index() => return Ok(None),
                Found::End => {
                    let Some(next) = self.segment_after(index) else { return Ok(None) };
                    self.reader.pos = Pos::new(next, FILE_HEADER);
                }
                Found::Invalid => self.skip_gap(scan, index, offset)?,
            }
        }
    }

    /// Makes the scanner stand on the segment of the reading place, or of the next one there is.
    fn scan_here(&mut self, scan: &mut Option<Scanner>) -> io::Result<bool> {
        let durable = self.commit.durable_pos;
        let mut index = self.reader.pos.index();
        if !self.segments.iter().any(|s| s.index == index) {
            let Some(next) = self.segment_after(index) else { return Ok(false) };
            index = next;
            self.reader.pos = Pos::new(index, FILE_HEADER);
        }
        if index > durable.index() {
            return Ok(false);
        }
        match scan {
            Some(s) if s.index() == index => {
                // It was the active one when the scanner was made: more of it is durable now.
                let edge = index == durable.index();
                if edge && durable.offset() > s.limit() {
                    s.set_limit(durable.offset());
                } else if !edge && s.is_partial() {
                    s.set_whole()?;
                }
            }
            _ => *scan = self.scanner(index)?,
        }
        Ok(scan.is_some())
    }

    fn segment_after(&self, index: u32) -> Option<u32> {
        self.segments.iter().map(|s| s.index).find(|i| *i > index)
    }

    /// Finds where frames go on, and keeps what is between.
    fn skip_gap(&mut self, scan: &mut Scanner, index: u32, offset: u64) -> io::Result<()> {
        let (low, high) = (self.reader.want, self.next_seq);
        let found = scan.resync(offset + 8, |f| plausible(f, low, high))?;
        let to = found.unwrap_or(scan.limit());
        let mut seq = None;
        if let Some(at) = found
            && let Found::Frame { frame, .. } = scan.read(at)?
        {
            seq = Some(frame.seq);
        }
        self.damage(scan, Gap { index, from: offset, to }, seq)?;
        self.reader.pos = Pos::new(index, to);
        Ok(())
    }

    /// Counts a damaged place and copies it. `seq`: the number that was to follow it, if known.
    fn damage(&mut self, scan: &mut Scanner, gap: Gap, seq: Option<Seq>) -> io::Result<()> {
        self.stats.damaged += 1;
        self.stats.damaged_records += seq.unwrap_or(self.reader.want).saturating_sub(self.reader.want);
        let len = gap.to.saturating_sub(gap.from);
        let name = format!("{:010}-{}-{len}.bin", gap.index, gap.from);
        let read = |at: u64, into: &mut [u8]| {
            let bytes = scan.bytes(gap.from + at, into.len())?;
            into[..bytes.len()].copy_from_slice(bytes);
            Ok(bytes.len())
        };
        match store::quarantine(&*self.disk, &name, len, self.config.quarantine_bytes, read) {
            // The copy is for people: a full disk must not stop what can still be delivered.
            Err(e) if !super::disk::is_full(&e) => Err(e),
            _ => Ok(()),
        }
    }
}

/// Whether a frame found after damage can be one of this log.
fn plausible(frame: &Frame, low: Seq, high: Seq) -> bool {
    match frame.kind {
        Kind::Message => (low..high).contains(&frame.seq),
        Kind::Marker | Kind::End => (low..=high).contains(&frame.seq),
        _ => false,
    }
}

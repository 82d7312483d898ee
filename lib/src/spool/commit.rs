//! Group commit: what is written but not durable, when it is synced, and what follows from a finished sync.
//!
//! Owns the tickets. A ticket is the number of an operation; a commit covers every operation up to the one that was
//! written when it began. At most one commit runs; what arrives meanwhile is the next group.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::disk::{DiskFile, is_full};
use super::engine::{Done, Job};
use super::frame::{FRAME_HEADER, Kind, Pos};
use super::recover::Segment;
use super::state::Entry;
use super::types::{Seq, Ticket};
use super::write::Spare;
use super::{Error, Spool};

/// How long a full disk is left alone before the next try.
const FULL_RETRY: Duration = Duration::from_secs(2);

/// Which file an operation wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dirty {
    Segment,
    Journal,
}

/// State of the committing half.
pub(crate) struct Commit {
    written: u64,
    durable: u64,
    /// Everything before this place in the segments is on disk.
    pub durable_pos: Pos,
    /// Number of the first record that is not.
    pub durable_seq: Seq,
    /// End of the last record that is on disk.
    pub durable_message_end: Pos,
    /// End of the last record written.
    pub message_end: Pos,
    /// Cursor that is on disk: segments below it may go.
    cursor: Pos,
    count: u32,
    bytes: u64,
    since: Option<Instant>,
    segment: bool,
    journal: bool,
    /// The folder has new entries.
    pub dir: bool,
    /// Files ended since the last commit began.
    pub sealed: Vec<Arc<dyn DiskFile>>,
    running: Option<Group>,
    cursor_since: Option<Instant>,
    full_since: Option<Instant>,
    /// The active segment got no block from the disk.
    pub no_space: bool,
    /// Segments being removed by the thread: bytes, and whether one becomes the spare.
    removing: Option<(u64, bool)>,
    pub scratch: Vec<u8>,
    pub source: Option<Arc<str>>,
}

/// A commit under way.
struct Group {
    ticket: u64,
    pos: Pos,
    seq: Seq,
    message_end: Pos,
    journal: Pos,
    cursor: Pos,
    segment: bool,
    with_journal: bool,
}

impl Commit {
    pub(crate) fn new(end: Pos, next_seq: Seq, cursor: Pos) -> Commit {
        Commit {
            written: 0,
            durable: 0,
            durable_pos: end,
            durable_seq: next_seq,
            durable_message_end: end,
            message_end: end,
            cursor,
            count: 0,
            bytes: 0,
            since: None,
            segment: false,
            journal: false,
            dir: false,
            sealed: Vec::new(),
            running: None,
            cursor_since: None,
            full_since: None,
            no_space: false,
            removing: None,
            scratch: Vec::new(),
            source: None,
        }
    }

    /// An operation wrote something.
    pub(crate) fn note(&mut self, what: Dirty, bytes: u64) {
        self.written += 1;
        self.count = self.count.saturating_add(1);
        self.bytes += bytes;
        match what {
            Dirty::Segment => self.segment = true,
            Dirty::Journal => self.journal = true,
        }
    }

    fn dirty(&self) -> bool {
        self.segment || self.journal
    }
}

impl Spool {
    /// Everything written up to this ticket is on disk.
    #[must_use]
    pub fn durable(&self) -> Ticket {
        Ticket(self.commit.durable)
    }

    /// The ticket of everything written so far, durable or not.
    #[must_use]
    pub fn written(&self) -> Ticket {
        Ticket(self.commit.written)
    }

    /// Starts a commit if one is due. Call once at the end of each round of the loop: what one round wrote shares
    /// one sync.
    ///
    /// # Errors
    /// A failed disk (final).
    pub fn flush(&mut self, now: Instant) -> Result<(), Error> {
        self.usable()?;
        self.retry_full(now);
        if self.cursor_due(now) {
            self.save_cursor()?;
        }
        if self.commit.running.is_some() || !self.commit.dirty() {
            return Ok(());
        }
        let since = *self.commit.since.get_or_insert(now);
        let waited = now.saturating_duration_since(since);
        if self.commit.count >= self.config.commit_count
            || self.commit.bytes >= self.config.commit_bytes
            || waited >= Duration::from_millis(u64::from(self.config.commit_ms))
        {
            self.start_group();
        }
        Ok(())
    }

    /// When `flush` wants to be called next, if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let c = &self.commit;
        let group = c.since.filter(|_| c.running.is_none() && c.dirty());
        let group = group.map(|t| t + Duration::from_millis(u64::from(self.config.commit_ms)));
        let cursor = c.cursor_since.map(|t| t + Duration::from_millis(u64::from(self.config.cursor_ms)));
        let full = c.full_since.map(|t| t + FULL_RETRY);
        [group, cursor, full].into_iter().flatten().min()
    }

    /// Whether the cursor should go into the journal: when that lets a segment go, or after a while.
    fn cursor_due(&mut self, now: Instant) -> bool {
        let (seq, pos) = self.cursor();
        let state = &self.journal.state;
        if seq == state.cursor && pos == state.pos {
            self.commit.cursor_since = None;
            return false;
        }
        let since = *self.commit.cursor_since.get_or_insert(now);
        let frees =
            self.segments.front().is_some_and(|s| s.index < pos.index() && state.pos.index() < pos.index());
        frees
            || now.saturating_duration_since(since) >= Duration::from_millis(u64::from(self.config.cursor_ms))
    }

    fn save_cursor(&mut self) -> Result<(), Error> {
        let (seq, pos) = self.cursor();
        self.commit.cursor_since = None;
        self.journal(Entry::Cursor { seq, pos, next_seq: self.next_seq })
    }

    /// Writes a journal entry. It has the ticket [`Spool::written`] then.
    pub(crate) fn journal(&mut self, entry: Entry) -> Result<(), Error> {
        self.usable()?;
        if let Err(e) = self.journal.append(&entry) {
            return Err(self.fail(format_args!("cannot write the journal: {e}")));
        }
        self.commit.note(Dirty::Journal, 0);
        Ok(())
    }

    fn start_group(&mut self) {
        let c = &mut self.commit;
        let mut files = std::mem::take(&mut c.sealed);
        let mut pos = c.durable_pos;
        if c.segment
            && let Some(active) = &self.active
        {
            files.push(Arc::clone(&active.file));
            pos = active.pos();
        }
        if c.journal {
            files.push(self.journal.file());
        }
        c.running = Some(Group {
            ticket: c.written,
            pos,
            seq: self.next_seq,
            message_end: c.message_end,
            // Without its sync nothing new is durable there, a mark of the last commit included.
            journal: if c.journal { self.journal.write_pos() } else { Pos::default() },
            cursor: self.journal.state.pos,
            segment: c.segment,
            with_journal: c.journal,
        });
        let dir = std::mem::take(&mut c.dir);
        (c.count, c.bytes, c.since, c.segment, c.journal) = (0, 0, None, false, false);
        self.engine.submit(Job::Commit { files, dir });
    }

    /// Takes in what the thread finished. Returns whether anything became durable or any space free.
    ///
    /// # Errors
    /// The sync failed: final. Acknowledge nothing more, end the process with EX_IOERR.
    pub fn poll(&mut self) -> Result<bool, Error> {
        self.usable()?;
        let mut news = false;
        loop {
            match self.engine.try_done() {
                Ok(Some(done)) => {
                    self.finish(done)?;
                    news = true;
                }
                Ok(None) => return Ok(news),
                Err(what) => return Err(self.fail(what)),
            }
        }
    }

    fn finish(&mut self, done: Done) -> Result<(), Error> {
        match done {
            Done::Commit { result: Err(e), .. } => Err(self.fail(format_args!("cannot sync: {e}"))),
            Done::Commit { result: Ok(()), took } => {
                self.stats.commits += 1;
                self.stats.commit_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                self.committed()
            }
            Done::Prepare(result) => self.prepared(result),
            Done::Remove(result) => self.removed(result),
        }
    }

    fn committed(&mut self) -> Result<(), Error> {
        let Some(group) = self.commit.running.take() else { return Ok(()) };
        let c = &mut self.commit;
        c.durable = group.ticket;
        c.durable_pos = c.durable_pos.max(group.pos);
        c.durable_seq = group.seq;
        c.durable_message_end = group.message_end;
        c.cursor = c.cursor.max(group.cursor);
        self.journal.committed(group.journal);
        if !self.commit.dirty() {
            self.mark(group.segment, group.with_journal)?;
        }
        self.reap();
        Ok(())
    }

    /// Notes in the files how far they are durable. Nothing waits for it; it tells damage from a torn tail when this
    /// was the last commit before a crash.
    fn mark(&mut self, segment: bool, journal: bool) -> Result<(), Error> {
        let mut result = if journal { self.journal.mark() } else { Ok(()) };
        let durable = (self.commit.durable_pos, self.commit.durable_seq);
        if let Some(active) = &mut self.active
            && segment
            && active.offset + 2 * FRAME_HEADER <= active.bytes
        {
            result = result.and_then(|()| active.frame(Kind::Marker, 0, self.next_seq, durable, [&[], &[]]));
        }
        match result {
            Err(e) if !is_full(&e) => Err(self.fail(format_args!("cannot write: {e}"))),
            _ => Ok(()),
        }
    }

    /// Has the thread remove what is below the durable cursor.
    pub(crate) fn reap(&mut self) {
        if self.commit.removing.is_some() {
            return;
        }
        let active = self.active.as_ref().map(|a| a.index);
        let (mut names, mut bytes, mut recycle) = (Vec::new(), 0, false);
        while let Some(s) = self.segments.front()
            && s.index < self.commit.cursor.index()
            && Some(s.index) != active
        {
            if names.is_empty() && s.bytes == self.config.segment_bytes && self.spare == Spare::None {
                recycle = true;
            } else {
                bytes += s.bytes;
            }
            names.push(Segment::name(s.index));
            self.segments.pop_front();
        }
        if !names.is_empty() {
            if recycle {
                self.spare = Spare::Pending;
            }
            self.commit.removing = Some((bytes, recycle));
            self.engine.submit(Job::Remove { names, recycle });
        }
    }

    fn removed(&mut self, result: std::io::Result<bool>) -> Result<(), Error> {
        let (bytes, recycle) = self.commit.removing.take().unwrap_or((0, false));
        if let Err(e) = result {
            return Err(self.fail(format_args!("cannot remove sent segments: {e}")));
        }
        self.disk_bytes -= bytes;
        if recycle {
            self.spare = Spare::Ready;
        }
        self.stats.disk_full = false;
        self.commit.no_space = false;
        self.want_spare();
        self.reap();
        Ok(())
    }

    fn prepared(&mut self, result: std::io::Result<()>) -> Result<(), Error> {
        match result {
            Ok(()) => self.spare = Spare::Ready,
            Err(e) => {
                self.spare = Spare::None;
                self.disk_bytes -= self.config.segment_bytes;
                if !is_full(&e) {
                    return Err(self.fail(format_args!("cannot make the next segment: {e}")));
                }
                self.stats.disk_full = true;
            }
        }
        Ok(())
    }

    /// A full disk may have room again without our doing.
    fn retry_full(&mut self, now: Instant) {
        if !self.stats.disk_full {
            self.commit.full_since = None;
            return;
        }
        let since = *self.commit.full_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= FULL_RETRY {
            self.commit.full_since = None;
            self.commit.no_space = false;
            self.stats.disk_full = false;
            self.want_spare();
        }
    }

    /// Waits until everything written is durable (start-up, shut-down, tests; a loop uses `flush` and `poll`).
    ///
    /// # Errors
    /// A failed disk (final).
    pub fn settle(&mut self) -> Result<(), Error> {
        self.usable()?;
        loop {
            if self.commit.running.is_none() {
                if !self.commit.dirty() {
                    return Ok(());
                }
                self.start_group();
            }
            match self.engine.wait_done() {
                Ok(done) => self.finish(done)?,
                Err(what) => return Err(self.fail(what)),
            }
        }
    }

    /// Commits everything, the cursor and the acknowledgements above it included, waits for it and ends the thread.
    ///
    /// # Errors
    /// A failed disk.
    pub fn close(mut self) -> Result<(), Error> {
        self.usable()?;
        for seq in self.reader.acked_seqs() {
            self.journal(Entry::Acked { seq })?;
        }
        self.save_cursor()?;
        self.settle()?;
        // The marks of the last commit, so that no later damage can be taken for a torn tail.
        self.commit.segment = self.active.is_some();
        self.commit.journal = true;
        self.settle()
    }
}

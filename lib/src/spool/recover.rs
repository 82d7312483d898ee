//! What is on disk when a spool is opened, and making it whole again.
//!
//! Order matters and is argued in the module documentation of `spool`: cut the tail, sync what is kept, write the
//! journal anew; nothing is handed out or acknowledged before. Every step can be repeated after a crash in it.

use std::io;
use std::sync::Arc;

use super::disk::Disk;
use super::frame::{FILE_HEADER, FileHeader, FileKind, HeaderRead, Kind, Pos, VERSION, looks_like_frame};
use super::journal::{self, OnDisk};
use super::record;
use super::scan::{Found, Scanner};
use super::state::{Entry, State};
use super::types::{Recovery, Seq};
use super::{Error, SpoolConfig, store};
use crate::mqtt::Qos;

/// A segment file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub index: u32,
    /// `None`: its header is lost.
    pub salt: Option<u64>,
    /// Length of the file.
    pub bytes: u64,
    /// Holds records whose policy forbids dropping them (known after looking once).
    pub pinned: bool,
    header_durable: Option<(Pos, Seq)>,
    first_seq: Seq,
}

impl Segment {
    pub(crate) fn new(index: u32, salt: u64, bytes: u64) -> Segment {
        Segment { index, salt: Some(salt), bytes, pinned: false, header_durable: None, first_seq: 0 }
    }

    pub(crate) fn name(index: u32) -> String {
        format!("{index:010}.seg")
    }
}

/// Everything a spool starts from.
pub(crate) struct Recovered {
    pub segments: Vec<Segment>,
    pub state: State,
    pub journal: OnDisk,
    /// End of what is on disk.
    pub end: Pos,
    pub next_index: u32,
    pub id: Option<u64>,
    pub report: Recovery,
}

struct Tail {
    end: Pos,
    /// Above all records that are kept, and not above any that was cut.
    next_seq: Seq,
    torn_bytes: u64,
}

/// Reads, cuts and syncs the folder. The journal is left to the caller to write anew.
pub(crate) fn recover(disk: &Arc<dyn Disk>, config: &SpoolConfig) -> Result<Recovered, Error> {
    let io_error = |source| Error::Io { what: "recover the spool", path: disk.path(""), source };
    let mut journal = journal::recover(disk)?;
    let mut state = std::mem::take(&mut journal.state);
    let mut id = journal.id;
    let mut segments = headers(disk, &mut id)?;
    // Segments are never made before the journal is on disk. Without any, an incomplete journal is a first start that a
    // crash cut short.
    journal.damaged = if segments.is_empty() && !journal.complete && state.cursor <= 1 {
        false
    } else {
        journal.damaged || !journal.complete
    };
    let found = segments.len();
    let newest = segments.last().map_or(0, |s| s.index);
    let (durable, first) = last_durable(disk, &segments).map_err(io_error)?;
    remove_acked(disk, &mut segments, state.pos).map_err(io_error)?;
    // Numbers of what will be cut are left out as well: they may have been seen in the journal.
    state.next_seq = segments.iter().map(|s| s.first_seq).max().unwrap_or(1).max(state.next_seq);
    let tail = read_tail(disk, config, &mut segments, (durable, first), &mut state).map_err(io_error)?;
    let next_seq = tail.next_seq.max(state.cursor).max(1);
    let mut report = Recovery { segments: found, torn_bytes: tail.torn_bytes, ..Recovery::default() };
    report.damaged = lost_headers(disk, config, &segments).map_err(io_error)?;
    settle(&mut state, &segments, next_seq, journal.damaged);
    report.cursor = state.cursor;
    report.next_seq = state.next_seq;
    report.journal_lost = journal.damaged;
    report.held = state.held_count;
    report.outbound = state.out.len();
    let next_index = newest.max(state.pos.index()).max(durable.index()).max(tail.end.index()) + 1;
    Ok(Recovered { segments, state, journal, end: tail.end, next_index, id, report })
}

/// Reads all segment headers, in order.
fn headers(disk: &Arc<dyn Disk>, id: &mut Option<u64>) -> Result<Vec<Segment>, Error> {
    let io_error = |name: &str| {
        let path = disk.path(name);
        move |source| Error::Io { what: "read", path, source }
    };
    let mut segments = Vec::new();
    for (name, bytes) in disk.list("").map_err(io_error(""))? {
        let Some(index) = name.strip_suffix(".seg").filter(|n| n.len() == 10).and_then(|n| n.parse().ok())
        else {
            continue;
        };
        let mut head = [0u8; FILE_HEADER as usize];
        // An unreadable header is a lost header; a gone disk shows again at the next read.
        let n = disk.open(&name).map_err(io_error(&name))?.read_at(&mut head, 0).unwrap_or(0);
        let mut segment = Segment { salt: None, ..Segment::new(index, 0, bytes) };
        match FileHeader::decode(FileKind::Segment, &head[..n]) {
            HeaderRead::Good(h) if h.index == index => {
                segment.salt = Some(h.salt);
                segment.first_seq = h.first_seq;
                segment.header_durable = Some((h.durable, h.durable_seq));
                *id = id.or(Some(h.id));
            }
            HeaderRead::Future(version) => {
                return Err(Error::Version { path: disk.path(&name), found: version, known: VERSION });
            }
            HeaderRead::Good(_) | HeaderRead::Blank | HeaderRead::Damaged => {}
        }
        segments.push(segment);
    }
    segments.sort_by_key(|s| s.index);
    Ok(segments)
}

/// How far the log is known to have been durable, which is what the last readable frame says; and the number of the
/// first record after that place. The frame itself may be cut later, so this is the only time it is seen.
fn last_durable(disk: &Arc<dyn Disk>, segments: &[Segment]) -> io::Result<(Pos, Seq)> {
    for segment in segments.iter().rev() {
        let mut durable = segment.header_durable;
        let mut scan = scanner(disk, segment)?;
        let mut from = FILE_HEADER;
        if segment.salt.is_none() && !scan.discover(|_| true)? {
            continue;
        }
        while let Some(offset) = scan.resync(from, |_| true)? {
            let Found::Frame { frame, next, .. } = scan.read(offset)? else { break };
            if durable.is_none_or(|(pos, _)| pos < frame.durable) {
                durable = Some((frame.durable, frame.seq.saturating_sub(u64::from(frame.behind))));
            }
            from = next;
        }
        if let Some(durable) = durable {
            return Ok(durable);
        }
    }
    Ok((Pos::default(), 1))
}

fn scanner(disk: &Arc<dyn Disk>, segment: &Segment) -> io::Result<Scanner> {
    let file = disk.open(&Segment::name(segment.index))?;
    let bytes = file.len()?;
    Ok(Scanner::new(file, segment.index, segment.salt, bytes))
}

/// Removes what is wholly below the cursor (a removal that a crash undid).
fn remove_acked(disk: &Arc<dyn Disk>, segments: &mut Vec<Segment>, cursor: Pos) -> io::Result<()> {
    let keep = segments.iter().position(|s| s.index >= cursor.index()).unwrap_or(segments.len());
    for s in segments.drain(..keep) {
        disk.unlink(&Segment::name(s.index))?;
    }
    Ok(())
}

/// Reads what came after `durable`, takes its packet ids as held, and cuts at the first gap: nothing behind a gap
/// there was acknowledged.
fn read_tail(
    disk: &Arc<dyn Disk>,
    config: &SpoolConfig,
    segments: &mut Vec<Segment>,
    (durable, first): (Pos, Seq),
    state: &mut State,
) -> io::Result<Tail> {
    let mut tail = Tail { end: durable, next_seq: first, torn_bytes: 0 };
    let mut cut = None;
    for (i, segment) in segments.iter().enumerate().filter(|(_, s)| s.index >= durable.index()) {
        let mut scan = scanner(disk, segment)?;
        if segment.salt.is_none() {
            scan.discover(|_| true)?;
        }
        let from =
            if segment.index == durable.index() { durable.offset().max(FILE_HEADER) } else { FILE_HEADER };
        // A header that was never durable is a gap like any other.
        let begun = segment.salt.is_some() || Pos::new(segment.index, FILE_HEADER) < durable;
        let (end, whole) =
            if begun { read_frames(&mut scan, from, &mut tail, state)? } else { (FILE_HEADER, false) };
        tail.end = Pos::new(segment.index, end);
        if !whole {
            tail.torn_bytes = keep_torn(disk, config, &mut scan, end)?;
            cut = Some((i, end));
            break;
        }
        disk.open(&Segment::name(segment.index))?.sync()?;
    }
    if let Some((i, end)) = cut {
        let keep = if end > FILE_HEADER { i + 1 } else { i };
        if end > FILE_HEADER {
            let file = disk.open(&Segment::name(segments[i].index))?;
            file.truncate(end)?;
            file.sync()?;
            segments[i].bytes = end;
        }
        for s in segments.drain(keep..) {
            disk.unlink(&Segment::name(s.index))?;
        }
    }
    disk.sync_dir("")?;
    Ok(tail)
}

/// Frames from `from` on. Returns where they end, and whether the segment ends there properly.
fn read_frames(scan: &mut Scanner, from: u64, tail: &mut Tail, state: &mut State) -> io::Result<(u64, bool)> {
    let mut offset = from;
    loop {
        match scan.read(offset)? {
            Found::Frame { frame, body, next } => {
                match frame.kind {
                    // Before it: the place is written down as durable, and read from again.
                    Kind::End => return Ok((offset, true)),
                    Kind::Marker => tail.next_seq = tail.next_seq.max(frame.seq),
                    Kind::Message => {
                        tail.next_seq = tail.next_seq.max(frame.seq + 1);
                        hold(state, frame.seq, frame.flags, scan.body(body));
                    }
                    _ => {}
                }
                offset = next;
            }
            Found::End => return Ok((offset, true)),
            Found::Invalid => return Ok((offset, false)),
        }
    }
}

/// The record may be on disk while the journal's entry for its packet id is not.
fn hold(state: &mut State, seq: Seq, flags: u8, body: &[u8]) {
    if seq <= state.held_seq || record::flags_qos(flags) != Qos::ExactlyOnce {
        return;
    }
    if let Some(r) = record::decode(seq, flags, body)
        && let Some(pid) = r.in_pid
    {
        let digest = record::digest(&r.message);
        state.apply(&Entry::Held { source: r.source, pid, seq, digest });
    }
}

/// Bytes of what is cut that were ever written, as far as they can be told from stale ones; copied to the quarantine
/// for people, because cutting is the one thing here that can't be undone.
fn keep_torn(disk: &Arc<dyn Disk>, config: &SpoolConfig, scan: &mut Scanner, end: u64) -> io::Result<u64> {
    let mut torn = 0;
    let head = scan.bytes(end, 8)?;
    if looks_like_frame(head) {
        let head = scan.bytes(end, super::frame::FRAME_HEADER as usize)?.to_vec();
        let len =
            super::frame::Frame::decode(&head, Pos::new(scan.index(), end)).map_or(0, |f| u64::from(f.len));
        torn = (head.len() as u64 + len).min(scan.limit().saturating_sub(end));
    }
    let mut from = end + 8;
    while let Some(offset) = scan.resync(from, |_| true)? {
        let Found::Frame { next, .. } = scan.read(offset)? else { break };
        torn = next.min(scan.limit()) - end;
        from = next;
    }
    if torn > 0 {
        let name = format!("{:010}-{end}-{torn}-cut.bin", scan.index());
        let file = disk.open(&Segment::name(scan.index()))?;
        // Only a convenience: a full disk must not keep the spool from opening.
        let _ = store::quarantine(&**disk, &name, torn, config.quarantine_bytes, |at, into| {
            file.read_at(into, end + at)
        });
    }
    Ok(torn)
}

/// Counts and copies headers that are damaged.
fn lost_headers(disk: &Arc<dyn Disk>, config: &SpoolConfig, segments: &[Segment]) -> io::Result<u64> {
    let mut lost = 0;
    for s in segments.iter().filter(|s| s.salt.is_none()) {
        lost += 1;
        let file = disk.open(&Segment::name(s.index))?;
        let name = format!("{:010}-0-{FILE_HEADER}.bin", s.index);
        // Only a convenience, see above.
        let _ = store::quarantine(&**disk, &name, FILE_HEADER, config.quarantine_bytes, |at, into| {
            file.read_at(into, at)
        });
    }
    Ok(lost)
}

/// Brings the state in line with the segments.
fn settle(state: &mut State, segments: &[Segment], next_seq: Seq, damaged: bool) {
    // A packet id whose record was cut was never acknowledged: the source sends the message again.
    let void: Vec<_> = state
        .held
        .iter()
        .flat_map(|(source, pids)| pids.iter().map(move |(pid, h)| (Arc::clone(source), *pid, h.seq)))
        .filter(|(_, _, seq)| *seq >= next_seq)
        .collect();
    for (source, pid, _) in void {
        state.apply(&Entry::Released { source, pid });
    }
    state.held_seq = state.held_seq.min(next_seq - 1);
    state.next_seq = state.next_seq.max(next_seq);
    if damaged {
        // Nothing known about packet ids can be trusted. Sending twice is allowed then, taking a new message for an
        // old one is not.
        state.held.clear();
        state.held_count = 0;
        state.apply(&Entry::OutClear);
    }
    state.cursor = state.cursor.max(1);
    if state.pos.offset() < FILE_HEADER {
        state.pos = Pos::new(segments.first().map_or(0, |s| s.index), FILE_HEADER);
    }
}

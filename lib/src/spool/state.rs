//! What the journal says, and the one function that changes it.
//!
//! Owns the cursor, the inbound packet ids held, the outbound handshakes, and the records acknowledged beyond the
//! cursor. The same [`State::apply`] runs live and at recovery, so that both always agree. No I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::frame::{Kind, Pos};
use super::types::{OutState, Seq};

/// A change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Everything below `seq` is acknowledged; reading starts at `pos`. `next_seq` keeps numbers from being used
    /// twice when no segment is left.
    Cursor { seq: Seq, pos: Pos, next_seq: Seq },
    /// PUBLISH at QoS 2 from `source` stored as record `seq`.
    Held { source: Arc<str>, pid: u16, seq: Seq, digest: u32 },
    /// PUBREL seen.
    Released { source: Arc<str>, pid: u16 },
    /// The source lost its session.
    HeldClear { source: Arc<str> },
    /// The record goes out under this packet id.
    Published { pid: u16, seq: Seq },
    /// PUBREC seen.
    Received { pid: u16, seq: Seq },
    /// PUBCOMP seen (or the record given up).
    Done { pid: u16, seq: Seq },
    /// The next hop lost its session.
    OutClear,
    /// Acknowledged beyond the cursor.
    Acked { seq: Seq },
    /// A snapshot is complete. `held_seq` is the highest record whose packet id was ever journaled as held.
    SnapshotEnd { held_seq: Seq },
}

/// One inbound packet id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeldPid {
    pub seq: Seq,
    pub digest: u32,
}

/// The state of the journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub cursor: Seq,
    pub pos: Pos,
    pub next_seq: Seq,
    pub held: HashMap<Arc<str>, BTreeMap<u16, HeldPid>>,
    pub held_count: usize,
    /// Highest record whose packet id was journaled as held, released or not.
    pub held_seq: Seq,
    pub out: BTreeMap<u16, (Seq, OutState)>,
    pub out_by_seq: HashMap<Seq, u16>,
    pub acked: BTreeSet<Seq>,
}

impl State {
    /// The transition function.
    pub(crate) fn apply(&mut self, entry: &Entry) {
        match entry {
            Entry::Cursor { seq, pos, next_seq } => {
                self.cursor = *seq;
                self.pos = *pos;
                self.next_seq = self.next_seq.max(*next_seq);
                self.acked = self.acked.split_off(seq);
            }
            Entry::Held { source, pid, seq, digest } => {
                let held = HeldPid { seq: *seq, digest: *digest };
                if self.held.entry(Arc::clone(source)).or_default().insert(*pid, held).is_none() {
                    self.held_count += 1;
                }
                self.held_seq = self.held_seq.max(*seq);
            }
            Entry::Released { source, pid } => self.release(source, *pid),
            Entry::HeldClear { source } => {
                self.held_count -= self.held.remove(source).map_or(0, |m| m.len());
            }
            Entry::Published { pid, seq } => {
                // A packet id is taken again only after its handshake ended: an older one under it is over.
                if let Some((old, _)) = self.out.insert(*pid, (*seq, OutState::Published)) {
                    self.out_by_seq.remove(&old);
                    if old != *seq {
                        self.finished(old);
                    }
                }
                self.out_by_seq.insert(*seq, *pid);
            }
            Entry::Received { pid, seq } => {
                if let Some((old, _)) = self.out.insert(*pid, (*seq, OutState::Received)) {
                    self.out_by_seq.remove(&old);
                }
                self.out_by_seq.insert(*seq, *pid);
            }
            Entry::Done { pid, seq } => {
                self.out.remove(pid);
                self.out_by_seq.remove(seq);
                self.finished(*seq);
            }
            Entry::OutClear => {
                self.out.clear();
                self.out_by_seq.clear();
            }
            Entry::Acked { seq } => self.finished(*seq),
            Entry::SnapshotEnd { held_seq } => self.held_seq = self.held_seq.max(*held_seq),
        }
    }

    fn finished(&mut self, seq: Seq) {
        if seq >= self.cursor {
            self.acked.insert(seq);
        }
    }

    fn release(&mut self, source: &str, pid: u16) {
        let Some(pids) = self.held.get_mut(source) else { return };
        if pids.remove(&pid).is_some() {
            self.held_count -= 1;
        }
        if pids.is_empty() {
            self.held.remove(source);
        }
    }

    pub(crate) fn held_pid(&self, source: &str, pid: u16) -> Option<HeldPid> {
        self.held.get(source)?.get(&pid).copied()
    }

    /// Entries that rebuild this state, `SnapshotEnd` last.
    pub(crate) fn snapshot(&self) -> impl Iterator<Item = Entry> + '_ {
        let cursor = Entry::Cursor { seq: self.cursor, pos: self.pos, next_seq: self.next_seq };
        let held = self.held.iter().flat_map(|(source, pids)| {
            pids.iter().map(|(pid, held)| Entry::Held {
                source: Arc::clone(source),
                pid: *pid,
                seq: held.seq,
                digest: held.digest,
            })
        });
        let out = self.out.iter().map(|(pid, (seq, state))| match state {
            OutState::Published => Entry::Published { pid: *pid, seq: *seq },
            OutState::Received => Entry::Received { pid: *pid, seq: *seq },
        });
        let acked = self.acked.iter().map(|seq| Entry::Acked { seq: *seq });
        std::iter::once(cursor)
            .chain(held)
            .chain(out)
            .chain(acked)
            .chain(std::iter::once(Entry::SnapshotEnd { held_seq: self.held_seq }))
    }
}

/// Fixed part of an entry's body: packet id, length of the source, digest, two numbers.
const FIXED: usize = 24;

impl Entry {
    /// Kind, number and body of the frame.
    pub(crate) fn encode(&self, body: &mut Vec<u8>) -> (Kind, Seq) {
        let (kind, seq, pid, digest, a, b, source): (Kind, Seq, u16, u32, u64, u64, &str) = match self {
            Entry::Cursor { seq, pos, next_seq } => (Kind::Cursor, *seq, 0, 0, pos.0, *next_seq, ""),
            Entry::Held { source, pid, seq, digest } => (Kind::Held, *seq, *pid, *digest, 0, 0, source),
            Entry::Released { source, pid } => (Kind::Released, 0, *pid, 0, 0, 0, source),
            Entry::HeldClear { source } => (Kind::HeldClear, 0, 0, 0, 0, 0, source),
            Entry::Published { pid, seq } => (Kind::Published, *seq, *pid, 0, 0, 0, ""),
            Entry::Received { pid, seq } => (Kind::Received, *seq, *pid, 0, 0, 0, ""),
            Entry::Done { pid, seq } => (Kind::Done, *seq, *pid, 0, 0, 0, ""),
            Entry::OutClear => (Kind::OutClear, 0, 0, 0, 0, 0, ""),
            Entry::Acked { seq } => (Kind::Acked, *seq, 0, 0, 0, 0, ""),
            Entry::SnapshotEnd { held_seq } => (Kind::SnapshotEnd, *held_seq, 0, 0, 0, 0, ""),
        };
        body.clear();
        body.extend_from_slice(&pid.to_le_bytes());
        // Sources are at most 65535 bytes: record::prefix refuses longer ones before anything is held for them.
        body.extend_from_slice(&(source.len() as u16).to_le_bytes());
        body.extend_from_slice(&digest.to_le_bytes());
        body.extend_from_slice(&a.to_le_bytes());
        body.extend_from_slice(&b.to_le_bytes());
        body.extend_from_slice(source.as_bytes());
        (kind, seq)
    }

    /// `None` when it is no journal entry.
    pub(crate) fn decode(kind: Kind, seq: Seq, body: &[u8]) -> Option<Entry> {
        let (fixed, source) = body.split_at_checked(FIXED)?;
        let pid = u16::from_le_bytes(*fixed.first_chunk()?);
        let digest = u32::from_le_bytes(*fixed[4..].first_chunk()?);
        let a = u64::from_le_bytes(*fixed[8..].first_chunk()?);
        let b = u64::from_le_bytes(*fixed[16..].first_chunk()?);
        let source = || Some(Arc::from(std::str::from_utf8(source).ok()?));
        Some(match kind {
            Kind::Cursor => Entry::Cursor { seq, pos: Pos(a), next_seq: b },
            Kind::Held => Entry::Held { source: source()?, pid, seq, digest },
            Kind::Released => Entry::Released { source: source()?, pid },
            Kind::HeldClear => Entry::HeldClear { source: source()? },
            Kind::Published => Entry::Published { pid, seq },
            Kind::Received => Entry::Received { pid, seq },
            Kind::Done => Entry::Done { pid, seq },
            Kind::OutClear => Entry::OutClear,
            Kind::Acked => Entry::Acked { seq },
            Kind::SnapshotEnd => Entry::SnapshotEnd { held_seq: seq },
            Kind::Message | Kind::Marker | Kind::End => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rebuilt(s: &State) -> State {
        let mut again = State::default();
        let mut body = Vec::new();
        for e in s.snapshot() {
            let (kind, seq) = e.encode(&mut body);
            let back = Entry::decode(kind, seq, &body).unwrap();
            assert_eq!(back, e);
            again.apply(&back);
        }
        again
    }

    #[test]
    fn a_snapshot_rebuilds_the_state() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut s = State::default();
        for i in 1..2000u64 {
            let source: Arc<str> = Arc::from(format!("s{}", rng.u8(..3)));
            let pid = rng.u16(1..20);
            let e = match rng.u8(..8) {
                0 => Entry::Held { source, pid, seq: i, digest: rng.u32(..) },
                1 => Entry::Released { source, pid },
                2 if rng.u8(..10) == 0 => Entry::HeldClear { source },
                3 => Entry::Published { pid, seq: i },
                4 => s.out.get(&pid).map_or(Entry::OutClear, |(seq, _)| Entry::Received { pid, seq: *seq }),
                5 => {
                    s.out.get(&pid).map_or(Entry::Acked { seq: i }, |(seq, _)| Entry::Done { pid, seq: *seq })
                }
                6 => Entry::Cursor { seq: i / 2, pos: Pos(i), next_seq: i },
                _ => Entry::Acked { seq: i },
            };
            s.apply(&e);
            assert_eq!(s.held_count, s.held.values().map(BTreeMap::len).sum::<usize>());
            assert_eq!(s.out.len(), s.out_by_seq.len());
            assert_eq!(rebuilt(&s), s, "after {e:?}");
        }
    }

    #[test]
    fn a_reused_packet_id_ends_the_handshake_before() {
        let mut s = State::default();
        s.apply(&Entry::Published { pid: 1, seq: 10 });
        s.apply(&Entry::Published { pid: 1, seq: 11 });
        assert_eq!(s.out.get(&1), Some(&(11, OutState::Published)));
        assert!(s.acked.contains(&10));
    }
}

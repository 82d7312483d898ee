//! What goes over a connection: the head of the Matroska stream, then fragment by fragment.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::http::{LAST_CHUNK, chunk};

use super::{Action, Now, Session, State};
use crate::kvs::fragment::{End, Run};
use crate::mkv;

/// Bytes that wait for the socket, at most about.
pub(super) const FILL: usize = 128 << 10;
/// How long the service may take to acknowledge the rest of a connection that is finished.
const FINISH: Duration = Duration::from_secs(10);
/// The service takes five fragments a second, which matters when a backlog is sent.
const FRAGMENT_EVERY: Duration = Duration::from_millis(210);

#[derive(Debug)]
pub(super) struct Sent {
    pub(super) seq: u64,
    pub(super) timecode_ms: u64,
    /// When its last byte was handed over.
    pub(super) done: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) run: Arc<Run>,
    /// What cluster times are counted from, in milliseconds of Unix time.
    pub(super) base_ms: u64,
    /// The head of the Matroska stream is due, with this name.
    pub(super) head: Option<[u8; 16]>,
    /// The fragment being sent, and how much of its blocks is.
    pub(super) sending: Option<(u64, usize)>,
    /// The first fragment not looked at yet.
    pub(super) next_seq: u64,
    /// When the next fragment may begin.
    pub(super) next_at: Instant,
    /// What waits for PERSISTED.
    pub(super) sent: VecDeque<Sent>,
    pub(super) opened: Instant,
    pub(super) expires: Option<Instant>,
    /// The answer's head has come.
    pub(super) answered: bool,
    /// The last sign of the service.
    pub(super) heard: Instant,
    /// When bytes were last handed over.
    pub(super) filled: Instant,
}

impl Session {
    /// Appends what is to be sent next, framed in chunks, as long as `out` is short. To be called whenever `out` has become
    /// shorter, and after every other input.
    pub fn fill(&mut self, out: &mut Vec<u8>, now: Now) {
        if self.state != State::Open || out.len() >= FILL {
            return;
        }
        let mut bytes = Vec::new();
        let mut finish = false;
        while out.len() + bytes.len() < FILL {
            match self.piece(&mut bytes, now) {
                Piece::More => {}
                Piece::Nothing => break,
                Piece::Finish => {
                    finish = true;
                    break;
                }
            }
        }
        if let Some(conn) = &mut self.conn
            && !bytes.is_empty()
        {
            conn.filled = now.at;
        }
        self.counts.bytes += bytes.len() as u64;
        chunk(out, &bytes);
        if finish {
            out.extend_from_slice(LAST_CHUNK);
            self.enter(State::Finishing(now.at + FINISH), now);
            if self.conn.as_ref().is_none_or(|conn| conn.sent.is_empty()) {
                self.actions.push_back(Action::Close);
                self.over(now);
            }
        }
    }

    fn piece(&mut self, out: &mut Vec<u8>, now: Now) -> Piece {
        let Some(conn) = &mut self.conn else { return Piece::Nothing };
        let Some((seq, done)) = conn.sending else { return self.next_fragment(out, now) };
        if let Some(uid) = conn.head.take() {
            mkv::header(out, &conn.run.header, uid);
        }
        let Some(fragment) = self.ring.get(seq).map(|entry| &entry.fragment) else {
            // Neither trimmed nor acknowledged while half sent; if it were, only a new connection is safe.
            self.fail("a fragment was lost while it was being sent".to_owned(), now);
            return Piece::Nothing;
        };
        if done == 0 {
            let tags = self.policy.tags.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            mkv::tags(out, tags);
            mkv::cluster(out, fragment.start_ms.saturating_sub(conn.base_ms));
        }
        let rest = fragment.blocks.get(done..).unwrap_or_default();
        let piece = &rest[..rest.len().min(FILL / 2)];
        out.extend_from_slice(piece);
        conn.sending = Some((seq, done + piece.len()));
        if piece.len() < rest.len() {
            return Piece::More;
        }
        match fragment.end {
            End::Open if piece.is_empty() => return Piece::Nothing,
            End::Open => return Piece::More,
            End::Pause => mkv::end_of_fragment(out),
            End::Next => {}
        }
        (conn.sending, conn.next_seq) = (None, seq + 1);
        if let Some(sent) = conn.sent.back_mut() {
            sent.done = Some(now.at);
        }
        Piece::More
    }

    /// Chooses the fragment that is sent next.
    fn next_fragment(&mut self, out: &mut Vec<u8>, now: Now) -> Piece {
        let Some(conn) = &mut self.conn else { return Piece::Nothing };
        if self.next.is_some() {
            return Piece::Finish;
        }
        let Some(fragment) = self.ring.from(conn.next_seq).map(|entry| &entry.fragment) else {
            let quiet = self.unit_at.is_none_or(|at| now.at >= at + self.policy.linger);
            let over = self.stopping || quiet && conn.sent.is_empty();
            return if over { Piece::Finish } else { Piece::Nothing };
        };
        if fragment.run.id != conn.run.id {
            return Piece::Finish;
        }
        if now.at < conn.next_at {
            return Piece::Nothing;
        }
        conn.next_at = now.at + FRAGMENT_EVERY;
        let (seq, start_ms) = (fragment.seq, fragment.start_ms);
        if !self.ring.load(seq) {
            return Piece::More;
        }
        let timecode_ms = start_ms.saturating_sub(conn.base_ms);
        conn.sent.push_back(Sent { seq, timecode_ms, done: None });
        conn.sending = Some((seq, 0));
        self.counts.resent += u64::from(seq < self.sent_below);
        self.sent_below = self.sent_below.max(seq + 1);
        self.piece(out, now)
    }
}

enum Piece {
    More,
    Nothing,
    Finish,
}

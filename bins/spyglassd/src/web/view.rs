//! What one connection watches, and the bytes that wait for it.
//!
//! Invariant: what waits is bounded. A viewer who falls behind by more than the bound loses what waits and goes on at the
//! next key frame; one who takes nothing at all is ended by the connection's own deadline.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use edge::http::{Conn, Request};

/// Bytes handed to the connection before more are.
const UNSENT: usize = 64 << 10;

/// A piece of the live stream.
#[derive(Clone, Debug)]
pub struct Piece {
    /// An MP4 fragment.
    pub bytes: Arc<[u8]>,
    /// It begins with a key frame.
    pub key: bool,
    /// The initialisation segment that it belongs to.
    pub init: Arc<[u8]>,
}

/// The state of a connection.
#[derive(Debug, Default)]
pub struct View {
    /// The request being read.
    pub request: Option<Request>,
    /// What is watched; `None`: nothing.
    pub stream: Option<String>,
    queue: VecDeque<Arc<[u8]>>,
    bytes: usize,
    /// The initialisation segment that the viewer has.
    init: Option<Arc<[u8]>>,
    /// Nothing is taken before a key frame.
    waits_for_key: bool,
}

impl View {
    /// Begins to watch.
    pub fn watch(&mut self, stream: &str) {
        *self = View { stream: Some(stream.to_owned()), waits_for_key: true, ..View::default() };
    }

    /// Takes a piece of the video. `false`: the viewer is too slow and was skipped: a key frame would help.
    pub fn video(&mut self, piece: &Piece, bytes_max: usize) -> bool {
        if self.waits_for_key && !piece.key {
            return true;
        }
        if self.bytes + piece.bytes.len() > bytes_max && !self.queue.is_empty() {
            self.queue.clear();
            self.bytes = 0;
            self.waits_for_key = !piece.key;
            // What was thrown away may have held the initialisation segment.
            self.init = None;
            if !piece.key {
                return false;
            }
        }
        self.waits_for_key = false;
        if self.init.as_ref() != Some(&piece.init) {
            self.queue(Arc::clone(&piece.init));
            self.init = Some(Arc::clone(&piece.init));
        }
        self.queue(Arc::clone(&piece.bytes));
        true
    }

    /// Takes a whole part of a multipart stream, unless the one before still waits.
    pub fn picture(&mut self, part: &Arc<[u8]>) -> bool {
        let free = self.queue.is_empty();
        if free {
            self.queue(Arc::clone(part));
        }
        free
    }

    fn queue(&mut self, bytes: Arc<[u8]>) {
        self.bytes += bytes.len();
        self.queue.push_back(bytes);
    }

    /// Hands on what the connection takes.
    pub fn feed(&mut self, http: &mut Conn, now: Instant) {
        while http.unsent() < UNSENT
            && let Some(bytes) = self.queue.pop_front()
        {
            self.bytes -= bytes.len();
            http.send_chunk(&bytes, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(n: u8, bytes: usize, key: bool, init: &Arc<[u8]>) -> Piece {
        Piece { bytes: vec![n; bytes].into(), key, init: Arc::clone(init) }
    }

    fn queued(view: &View) -> Vec<u8> {
        view.queue.iter().map(|bytes| bytes[0]).collect()
    }

    #[test]
    fn a_viewer_begins_at_a_key_frame_and_a_slow_one_skips_to_the_next() {
        let init: Arc<[u8]> = vec![100].into();
        let mut view = View::default();
        view.watch("gate");
        assert!(view.video(&piece(1, 10, false, &init), 50) && queued(&view).is_empty());
        assert!(view.video(&piece(2, 10, true, &init), 50));
        assert!(view.video(&piece(3, 10, false, &init), 50));
        assert_eq!(queued(&view), [100, 2, 3]);
        assert!(!view.video(&piece(4, 40, false, &init), 50), "skipped");
        assert!(view.video(&piece(5, 10, false, &init), 50) && queued(&view).is_empty());
        let other: Arc<[u8]> = vec![101].into();
        assert!(view.video(&piece(6, 10, true, &other), 50) && view.video(&piece(7, 10, false, &other), 50));
        assert_eq!((queued(&view), view.bytes), (vec![101, 6, 7], 21));
        let part: Arc<[u8]> = vec![9].into();
        assert!(!view.picture(&part));
    }
}

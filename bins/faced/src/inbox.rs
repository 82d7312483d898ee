//! What waits for a detector thread: of each camera the latest frame, and crops to encode.
//!
//! A live source replaces the frame that still waits (a slow detector drops frames and never lags); a source that must
//! not lose any waits for the place to be free. The end of a source takes its place behind its last frame, so that
//! whoever reads the results sees them in order.
//!
//! Owns: the places and the buffers that are used again. Invariant: at most one frame a camera waits.
//! Never: blocks a live source.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::convert::Rgb;
use crate::frame::Frame;

/// Why a source delivers nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It came to its end (a file, a folder).
    Ended,
    /// It failed; in words.
    Lost(String),
    /// It was told to stop.
    Stopped,
}

/// A crop to be encoded; `T` is what the asker wants back with it.
#[derive(Debug)]
pub struct EncodeJob<T> {
    /// The crop.
    pub crop: Rgb,
    /// Goes back to the asker.
    pub ticket: T,
}

/// What a detector thread is to do next.
#[derive(Debug)]
pub enum Work<T> {
    /// Look for faces.
    Frame(Frame),
    /// Encode a crop.
    Encode(EncodeJob<T>),
    /// Pass it on.
    End(usize, End),
}

#[derive(Debug, Default)]
struct Place {
    frame: Option<Frame>,
    end: Option<End>,
    spare: Vec<Vec<u8>>,
    /// The source must not wait any longer.
    released: bool,
    /// Frames are kept waiting while the inbox is held.
    holdable: bool,
}

#[derive(Debug)]
struct State<T> {
    places: Vec<Place>,
    encode: VecDeque<EncodeJob<T>>,
    next: usize,
    held: bool,
    closed: bool,
}

/// The inbox of one detector thread.
#[derive(Debug)]
pub struct Inbox<T> {
    state: Mutex<State<T>>,
    work: Condvar,
    space: Condvar,
}

/// Buffers kept for use again, a camera: one is filled while another is looked at.
const SPARE_MAX: usize = 2;

impl<T> Inbox<T> {
    /// Places for cameras `0..cameras`; those of which `holdable` says so wait while the inbox is held.
    #[must_use]
    pub fn new(holdable: Vec<bool>) -> Inbox<T> {
        let places = holdable.into_iter().map(|holdable| Place { holdable, ..Place::default() }).collect();
        let state = State { places, encode: VecDeque::new(), next: 0, held: false, closed: false };
        Inbox { state: Mutex::new(state), work: Condvar::new(), space: Condvar::new() }
    }

    /// A panic elsewhere while the lock was held leaves places that are still sound.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A source begins (again).
    pub fn begin(&self, camera: usize) {
        let mut state = self.lock();
        state.places[camera].released = false;
        state.places[camera].end = None;
    }

    /// A buffer to fill, perhaps used before.
    #[must_use]
    pub fn spare(&self, camera: usize) -> Vec<u8> {
        self.lock().places[camera].spare.pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn recycle(&self, camera: usize, buffer: Vec<u8>) {
        let spare = &mut self.lock().places[camera].spare;
        if spare.len() < SPARE_MAX {
            spare.push(buffer);
        }
    }

    /// Puts a frame in its camera's place; `true` when another one had to go for it.
    pub fn offer(&self, mut frame: Frame) -> bool {
        let mut state = self.lock();
        let place = &mut state.places[frame.stamp.camera];
        let old = place.frame.take();
        let dropped = old.is_some();
        if let Some(old) = old {
            // The older frame ended a stillness that nobody has heard of yet.
            frame.stamp.still_until_ms = frame.stamp.still_until_ms.or(old.stamp.still_until_ms);
            if place.spare.len() < SPARE_MAX {
                place.spare.push(old.data);
            }
        }
        place.frame = Some(frame);
        drop(state);
        self.work.notify_one();
        dropped
    }

    /// Waits until the camera's place is free; `false` when the source is to stop.
    #[must_use]
    pub fn wait_for_space(&self, camera: usize) -> bool {
        let mut state = self.lock();
        loop {
            if state.closed || state.places[camera].released {
                return false;
            }
            if state.places[camera].frame.is_none() {
                return true;
            }
            state = self.space.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends a wait of this camera's source, now and until it begins again.
    pub fn release(&self, camera: usize) {
        self.lock().places[camera].released = true;
        self.space.notify_all();
    }

    /// The source delivers nothing more.
    pub fn finish(&self, camera: usize, end: End) {
        self.lock().places[camera].end = Some(end);
        self.work.notify_one();
    }

    /// Asks for a crop to be encoded, before anything else is looked at.
    pub fn encode(&self, job: EncodeJob<T>) {
        self.lock().encode.push_back(job);
        self.work.notify_one();
    }

    /// While held, frames of sources that can wait are not given out.
    pub fn hold(&self, held: bool) {
        self.lock().held = held;
        if !held {
            self.work.notify_one();
        }
    }

    /// The next thing to do; waits for it. `None` when the inbox is closed.
    #[must_use]
    pub fn take(&self) -> Option<Work<T>> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(work) = state.next_work() {
                if matches!(work, Work::Frame(_)) {
                    self.space.notify_all();
                }
                return Some(work);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends all waits, for good.
    pub fn close(&self) {
        self.lock().closed = true;
        self.work.notify_all();
        self.space.notify_all();
    }
}

impl<T> State<T> {
    fn next_work(&mut self) -> Option<Work<T>> {
        if let Some(job) = self.encode.pop_front() {
            return Some(Work::Encode(job));
        }
        let count = self.places.len();
        for n in 0..count {
            let camera = (self.next + n) % count;
            let place = &mut self.places[camera];
            if place.frame.is_some() && self.held && place.holdable {
                continue;
            }
            if let Some(frame) = place.frame.take() {
                self.next = camera + 1;
                return Some(Work::Frame(frame));
            }
            if let Some(end) = place.end.take() {
                return Some(Work::End(camera, end));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Format, Layout, Matrix, Stamp};
    use std::sync::Arc;

    fn frame(camera: usize, at_ms: u64) -> Frame {
        let layout = Layout::packed(Format::Grey, 2, 2, 0, Matrix::Bt601).unwrap();
        let stamp = Stamp { camera, at_ms, time_ms: 0, still_until_ms: None };
        Frame { stamp, layout, data: vec![0; 4], origin: None }
    }

    fn taken(work: Option<Work<()>>) -> (usize, u64) {
        match work {
            Some(Work::Frame(f)) => (f.stamp.camera, f.stamp.at_ms),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_latest_frame_wins_and_cameras_take_turns() {
        let inbox = Inbox::new(vec![false; 2]);
        assert!(!inbox.offer(frame(0, 1)));
        assert!(inbox.offer(frame(0, 2)));
        assert!(!inbox.offer(frame(1, 1)));
        assert_eq!(taken(inbox.take()), (0, 2));
        inbox.offer(frame(0, 3));
        assert_eq!(taken(inbox.take()), (1, 1));
        assert_eq!(taken(inbox.take()), (0, 3));
        assert_eq!(inbox.spare(0).len(), 4, "the dropped frame's buffer is used again");
    }

    #[test]
    fn the_end_comes_after_the_last_frame_and_encoding_first() {
        let inbox = Inbox::new(vec![false]);
        inbox.offer(frame(0, 1));
        inbox.finish(0, End::Ended);
        inbox.encode(EncodeJob { crop: Rgb { width: 0, height: 0, data: vec![] }, ticket: () });
        assert!(matches!(inbox.take(), Some(Work::Encode(_))));
        assert_eq!(taken(inbox.take()), (0, 1));
        assert!(matches!(inbox.take(), Some(Work::End(0, End::Ended))));
        inbox.close();
        assert!(inbox.take().is_none());
    }

    #[test]
    fn a_source_that_must_not_lose_frames_waits() {
        let inbox: Arc<Inbox<()>> = Arc::new(Inbox::new(vec![true]));
        let source = Arc::clone(&inbox);
        let thread = std::thread::spawn(move || {
            let mut sent = 0;
            while sent < 50 && source.wait_for_space(0) {
                assert!(!source.offer(frame(0, sent)), "nothing is dropped");
                sent += 1;
            }
            sent
        });
        let seen: Vec<u64> = (0..50).map(|_| taken(inbox.take()).1).collect();
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
        assert_eq!(thread.join().unwrap(), 50);
        // Held frames stay, and a waiting source can be told to stop.
        inbox.hold(true);
        inbox.offer(frame(0, 99));
        inbox.encode(EncodeJob { crop: Rgb { width: 0, height: 0, data: vec![] }, ticket: () });
        assert!(matches!(inbox.take(), Some(Work::Encode(_))));
        let source = Arc::clone(&inbox);
        let thread = std::thread::spawn(move || source.wait_for_space(0));
        inbox.release(0);
        assert!(!thread.join().unwrap());
        inbox.hold(false);
        assert_eq!(taken(inbox.take()), (0, 99));
    }
}

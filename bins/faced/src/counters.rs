//! What a camera's threads count, read by the main loop.
//!
//! Owns: atomic counters. Never: a decision; a count may be a moment old.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Counters of one camera since the start of the program.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames the source delivered.
    pub frames: AtomicU64,
    /// Frames that gave way to a later one before they were looked at.
    pub dropped: AtomicU64,
    /// Frames left out because nothing had changed.
    pub gated: AtomicU64,
    /// Frames that could not be read.
    pub bad: AtomicU64,
    /// Frames searched for faces.
    pub looked: AtomicU64,
    /// Faces found in them.
    pub detections: AtomicU64,
    /// Time the searches took, in microseconds.
    pub detect_us: AtomicU64,
    /// Camera's clock at the last frame that was left out, plus 1; 0 = none since the last that was not.
    still_ms: AtomicU64,
    /// The gate of an MJPG stream is closed.
    pub closed: AtomicBool,
}

impl Counters {
    /// Adds one.
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    /// A frame of `at_ms` was left out.
    pub fn still(&self, at_ms: u64) {
        Counters::count(&self.gated);
        self.still_ms.store(at_ms + 1, Relaxed);
    }

    /// Until when the scene is known to stand still, if it does now.
    #[must_use]
    pub fn still_until(&self) -> Option<u64> {
        self.still_ms.load(Relaxed).checked_sub(1)
    }

    /// A frame goes to the detector: until when the scene had stood still before it.
    #[must_use]
    pub fn take_still(&self) -> Option<u64> {
        self.still_ms.swap(0, Relaxed).checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stillness_is_remembered_until_a_frame_passes() {
        let counters = Counters::default();
        assert_eq!(counters.take_still(), None);
        counters.still(0);
        counters.still(66);
        assert_eq!((counters.still_until(), counters.gated.load(Relaxed)), (Some(66), 2));
        assert_eq!((counters.take_still(), counters.still_until()), (Some(66), None));
    }
}

//! A medium's way in: units as buffers with the times of its own clock.
//!
//! Invariants: a medium begins with a key frame and, after a gap, goes on with one; no unit is in the future of its clock;
//! their times increase. Never: blocks.

use std::sync::Arc;

use gst::ClockTime;
use gst::prelude::*;
use gst_app::AppSrc;

use crate::unit::Unit;

/// A medium's way in.
#[derive(Debug)]
pub struct Feed {
    /// Its number, never used again.
    pub id: u64,
    /// The stream's name.
    pub name: String,
    frames: AppSrc,
    /// What is added to a unit's time, once the first one is there.
    offset_ns: Option<i64>,
    last_ns: Option<u64>,
    waits_for_key: bool,
}

impl Feed {
    /// The way into a medium of the stream `name`.
    pub fn new(id: u64, name: &str, frames: AppSrc) -> Feed {
        Feed { id, name: name.to_owned(), frames, offset_ns: None, last_ns: None, waits_for_key: true }
    }

    /// `false` when the unit is lost to this medium.
    pub fn push(&mut self, unit: &Unit, queue_bytes: u64) -> bool {
        if self.waits_for_key && !unit.key {
            return true;
        }
        if self.frames.current_level_bytes() > queue_bytes {
            self.waits_for_key = true;
            return false;
        }
        // Before its clock runs, a medium counts from zero.
        let now = self.frames.current_running_time().map_or(0, ClockTime::nseconds);
        let (now, pts) = (i64::try_from(now).unwrap_or(0), i64::try_from(unit.pts_ns).unwrap_or(i64::MAX));
        // A unit must not lie in the future, where it would be held back; if the first one was late, the others are
        // early by that much, and the offset follows.
        let offset = self.offset_ns.map_or(now - pts, |o| o.min(now.max(1) - pts)).max(-pts);
        self.offset_ns = Some(offset);
        let floor = self.last_ns.map_or(0, |last| last + 1);
        let placed = u64::try_from(pts.saturating_add(offset)).unwrap_or(0).max(floor);
        self.last_ns = Some(placed);
        let mut buffer = gst::Buffer::from_slice(Arc::clone(&unit.data));
        if let Some(buffer) = buffer.get_mut() {
            buffer.set_pts(ClockTime::from_nseconds(placed));
            buffer.set_dts(ClockTime::from_nseconds(placed));
            if !unit.key {
                buffer.set_flags(gst::BufferFlags::DELTA_UNIT);
            }
        }
        self.waits_for_key = self.frames.push_buffer(buffer).is_err();
        !self.waits_for_key
    }
}

//! Where frames come from. `spec` is what stands in the configuration, `feed` what all sources share; `v4l` is read by
//! the main loop, `gst` and `images` have a thread each.
//!
//! Every source delivers into the [`crate::inbox::Inbox`] of its detector thread, last of all its end, and tells the
//! main loop what it negotiated through [`SourceEvent`]. Never: retries (the main loop does).

pub mod feed;
pub mod gst;
pub mod images;
pub mod spec;
pub mod v4l;

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::frame::Format;

/// What a source delivers, as negotiated.
#[derive(Debug, Clone, PartialEq)]
pub struct StreamInfo {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Frames a second, where the source says so.
    pub fps: Option<f64>,
    /// How the pixels come.
    pub format: Format,
    /// For people: the device's own name, the decoder.
    pub what: String,
}

impl std::fmt::Display for StreamInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{} {}", self.width, self.height, self.format.name())?;
        if let Some(fps) = self.fps {
            write!(f, " at {} fps", (fps * 100.0).round() / 100.0)?;
        }
        if !self.what.is_empty() {
            write!(f, " ({})", self.what)?;
        }
        Ok(())
    }
}

/// What a source's thread tells the main loop.
#[derive(Debug)]
pub enum SourceEvent {
    /// Frames come, in this form.
    Opened {
        /// Camera.
        camera: usize,
        /// What was negotiated.
        info: StreamInfo,
    },
    /// A V4L2 device is streaming; the main loop reads it from here on.
    Capture {
        /// Camera.
        camera: usize,
        /// The open device.
        capture: Box<v4l::Capture>,
    },
}

/// Tells a source's thread to stop, also while it sleeps or waits for something else.
#[derive(Default)]
pub struct Stop {
    asked: Mutex<bool>,
    changed: Condvar,
    wake: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stop").field("asked", &self.is_asked()).finish_non_exhaustive()
    }
}

impl Stop {
    /// Not asked yet.
    #[must_use]
    pub fn new() -> Arc<Stop> {
        Arc::new(Stop::default())
    }

    /// Asks.
    pub fn ask(&self) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
        if let Some(wake) = &*self.wake.lock().unwrap_or_else(PoisonError::into_inner) {
            wake();
        }
    }

    /// Calls `wake` when it is asked; at once, when that happened before.
    pub fn on_ask(&self, wake: impl Fn() + Send + 'static) {
        let mut place = self.wake.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_asked() {
            wake();
        }
        *place = Some(Box::new(wake));
    }

    /// Whether it was asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps for `time`, or until it is asked; `true` when it was.
    #[must_use]
    pub fn sleep(&self, time: Duration) -> bool {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.changed.wait_timeout_while(asked, time, |asked| !*asked);
        *wait.unwrap_or_else(PoisonError::into_inner).0
    }
}

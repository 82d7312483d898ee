//! The way of a frame from its source into the inbox: counted, judged by the motion gate, and only then copied.
//!
//! Owns: the camera's gate for frames that need no decoding, and the camera's clock. Invariant: a frame that does not
//! pass the gate is not copied. Never: blocks unless the camera must not lose frames.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::Sender;
use std::time::Instant;

use mio::Waker;

use super::{SourceEvent, StreamInfo};
use crate::config::Camera;
use crate::counters::Counters;
use crate::face::Mailbox;
use crate::frame::{Frame, FrameError, Layout, Stamp, View};
use crate::gate::Gate;
use crate::inbox::End;

/// What one connection of a camera delivers into.
#[derive(Debug)]
pub struct Feed {
    camera: usize,
    config: Camera,
    inbox: Arc<Mailbox>,
    counters: Arc<Counters>,
    events: Sender<SourceEvent>,
    waker: Arc<Waker>,
    gate: Gate,
    begun: Instant,
    offered_ms: Option<u64>,
}

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fed {
    /// It waits for the detector.
    Taken,
    /// Nothing had changed.
    Still,
    /// The source is to stop.
    Stop,
}

impl Feed {
    /// A feed for a connection that begins at `now`.
    #[must_use]
    pub fn new(
        camera: usize,
        config: &Camera,
        inbox: &Arc<Mailbox>,
        counters: &Arc<Counters>,
        events: &Sender<SourceEvent>,
        waker: &Arc<Waker>,
        now: Instant,
    ) -> Feed {
        inbox.begin(camera);
        Feed {
            camera,
            gate: Gate::new(config.gate),
            config: config.clone(),
            inbox: Arc::clone(inbox),
            counters: Arc::clone(counters),
            events: events.clone(),
            waker: Arc::clone(waker),
            begun: now,
            offered_ms: None,
        }
    }

    /// The camera's configuration.
    #[must_use]
    pub fn config(&self) -> &Camera {
        &self.config
    }

    /// The camera's index.
    #[must_use]
    pub fn camera(&self) -> usize {
        self.camera
    }

    /// The camera's clock for a live source: milliseconds since the connection began.
    #[must_use]
    pub fn clock_ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begun).as_millis()).unwrap_or(u64::MAX)
    }

    /// A frame was read that will not be looked at, because a later one is there already.
    pub fn skipped(&self) {
        Counters::count(&self.counters.frames);
        Counters::count(&self.counters.dropped);
    }

    /// A frame could not be read.
    pub fn bad(&self) {
        Counters::count(&self.counters.frames);
        Counters::count(&self.counters.bad);
    }

    /// A frame in somebody else's memory.
    ///
    /// # Errors
    /// When it is shorter than its layout; it was counted as bad.
    pub fn raw(&mut self, layout: &Layout, data: &[u8], at_ms: u64, time_ms: u64) -> Result<Fed, FrameError> {
        let view = View::new(layout, data).inspect_err(|_| self.bad())?;
        Counters::count(&self.counters.frames);
        if !self.gate.inspect(&view, at_ms).passes() {
            self.counters.still(at_ms);
            return Ok(Fed::Still);
        }
        let still = self.counters.take_still();
        Ok(self.copy(layout, &data[..layout.bytes], at_ms, time_ms, still))
    }

    /// A JPEG in somebody else's memory. The detector thread judges it; while nothing moves only a few a second are
    /// passed on.
    pub fn jpeg(&mut self, layout: &Layout, data: &[u8], at_ms: u64, time_ms: u64) -> Fed {
        Counters::count(&self.counters.frames);
        let since = self.offered_ms.map(|then| at_ms.saturating_sub(then));
        let pause = 1_000 / u64::from(self.config.gate_mjpg_fps);
        if self.counters.closed.load(Relaxed) && since.is_some_and(|ms| ms < pause) {
            self.counters.still(at_ms);
            return Fed::Still;
        }
        self.offered_ms = Some(at_ms);
        self.copy(layout, data, at_ms, time_ms, None)
    }

    /// A decoded picture, for which the source waits until the detector has room: none is lost.
    ///
    /// # Errors
    /// When it is shorter than its layout; it was counted as bad.
    pub fn picture(
        &mut self,
        layout: Layout,
        data: Vec<u8>,
        at_ms: u64,
        time_ms: u64,
        origin: Arc<str>,
    ) -> Result<Fed, FrameError> {
        let view = View::new(&layout, &data).inspect_err(|_| self.bad())?;
        Counters::count(&self.counters.frames);
        if !self.gate.inspect(&view, at_ms).passes() {
            self.counters.still(at_ms);
            return Ok(Fed::Still);
        }
        if !self.inbox.wait_for_space(self.camera) {
            return Ok(Fed::Stop);
        }
        let still_until_ms = self.counters.take_still();
        let stamp = Stamp { camera: self.camera, at_ms, time_ms, still_until_ms };
        self.offer(Frame { stamp, layout, data, origin: Some(origin) });
        Ok(Fed::Taken)
    }

    fn copy(&mut self, layout: &Layout, data: &[u8], at_ms: u64, time_ms: u64, still: Option<u64>) -> Fed {
        if self.config.fast && !self.inbox.wait_for_space(self.camera) {
            return Fed::Stop;
        }
        let mut buffer = self.inbox.spare(self.camera);
        buffer.clear();
        buffer.extend_from_slice(data);
        let stamp = Stamp { camera: self.camera, at_ms, time_ms, still_until_ms: still };
        self.offer(Frame { stamp, layout: *layout, data: buffer, origin: None });
        Fed::Taken
    }

    fn offer(&self, frame: Frame) {
        if self.inbox.offer(frame) {
            Counters::count(&self.counters.dropped);
        }
    }

    /// What tells the main loop something, also after the feed itself was handed over.
    pub fn teller(&self) -> impl Fn(SourceEvent) + use<> {
        let (events, waker, name) = (self.events.clone(), Arc::clone(&self.waker), self.config.name.clone());
        move |event| {
            // Without a receiver the program is ending.
            if events.send(event).is_ok()
                && let Err(error) = waker.wake()
            {
                log::error!("camera {name}: cannot wake the main loop: {error}");
            }
        }
    }

    /// Tells the main loop what was negotiated.
    pub fn opened(&self, info: StreamInfo) {
        self.teller()(SourceEvent::Opened { camera: self.camera, info });
    }

    /// The source delivers nothing more.
    pub fn finish(self, end: End) {
        self.inbox.finish(self.camera, end);
    }
}

//! A running encoder of one stream: frames go in with their time, units come out on GStreamer's thread.
//!
//! Owns: the pipeline. Invariants: times pass through unchanged (the stream's own, in nanoseconds); at most
//! `queue_frames` frames wait, so that a slow encoder costs frames and not delay; dropping it ends its threads, soon.
//! Never: decides when a key frame is due (the core does), blocks while frames are pushed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use gst::ClockTime;
use gst::prelude::*;
use gst_app::{AppSink, AppSinkCallbacks, AppSrc};
use gst_video::UpstreamForceKeyUnitEvent;

use super::chain::{Kind, Settings, even};
use super::picture::Shape;
use super::{PipelineError, parse, part, retire, start, watch};
use crate::unit::Unit;

/// Frames whose times are remembered until they come out.
const REMEMBERED: usize = 64;

/// What comes out.
#[derive(Debug)]
pub enum Output {
    /// A unit, and how long it took from the frame's arrival, in microseconds.
    Unit(Unit, u64),
    /// The pipeline failed; nothing more comes.
    Failed(String),
}

/// A frame on its way to an encoder.
#[derive(Debug)]
pub struct Job {
    /// Its pixels.
    pub buffer: gst::Buffer,
    /// How they lie.
    pub shape: Shape,
    /// Its times.
    pub stamp: Stamp,
    /// A key frame is due.
    pub key: bool,
}

/// Times of a frame.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    /// On the stream's timeline, in nanoseconds; above that of the frame before.
    pub pts_ns: u64,
    /// Unix time, in milliseconds.
    pub wall_ms: u64,
    /// When it arrived here.
    pub arrived: Instant,
}

type Stamps = Arc<Mutex<VecDeque<Stamp>>>;

/// A running encoder.
#[derive(Debug)]
pub struct Encoder {
    pipeline: gst::Pipeline,
    frames: AppSrc,
    units: AppSink,
    encoder: gst::Element,
    kind: Kind,
    shape: Shape,
    size: (u32, u32),
    queue_frames: u32,
    stamps: Stamps,
    bitrate_kbit: u32,
}

impl Encoder {
    /// Starts one for frames of `shape`. `size`: the stream's own, `None` = the frames', made even.
    ///
    /// # Errors
    /// [`PipelineError`]: an element is missing, or the encoder does not start.
    pub fn new(
        settings: &Settings,
        shape: Shape,
        size: Option<(u32, u32)>,
        queue_frames: u32,
        out: impl Fn(Output) + Send + Sync + 'static,
    ) -> Result<Encoder, PipelineError> {
        let size = even(size.unwrap_or(shape.size));
        let pipeline = parse(&settings.text(shape.size, size))?;
        let frames: AppSrc = part(&pipeline, "frames")?;
        frames.set_caps(Some(&shape.caps()));
        frames.set_max_bytes(0);
        let units: AppSink = part(&pipeline, "units")?;
        let stamps: Stamps = Arc::default();
        let out = Arc::new(out);
        let (told, seen) = (Arc::clone(&out), Arc::clone(&stamps));
        let sample = move |sink: &AppSink| {
            let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
            if let Some((unit, took)) = unit(&sample, &seen) {
                told(Output::Unit(unit, took));
            }
            Ok(gst::FlowSuccess::Ok)
        };
        units.set_callbacks(AppSinkCallbacks::builder().new_sample(sample).build());
        watch(&pipeline, move |why| {
            out(Output::Failed(why.unwrap_or_else(|| "the encoder came to an end".to_owned())));
        });
        let encoder = part(&pipeline, "encoder")?;
        let kind = settings.kind;
        let bitrate_kbit = settings.bitrate_kbit;
        let made = Encoder {
            pipeline,
            frames,
            units,
            encoder,
            kind,
            shape,
            size,
            queue_frames,
            stamps,
            bitrate_kbit,
        };
        start(&made.pipeline)?;
        Ok(made)
    }

    /// Which one it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Pixels of its units.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        self.size
    }

    /// What its frames are.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Bits a second in thousands.
    #[must_use]
    pub fn bitrate_kbit(&self) -> u32 {
        self.bitrate_kbit
    }

    /// Gives it a frame; `false` when its queue is full and the frame was let go.
    ///
    /// # Errors
    /// [`PipelineError::Push`]: it does not run any more.
    pub fn push(
        &mut self,
        mut buffer: gst::Buffer,
        shape: Shape,
        stamp: Stamp,
    ) -> Result<bool, PipelineError> {
        let waiting = self.frames.current_level_bytes();
        if waiting > 0 && waiting >= buffer.size() as u64 * u64::from(self.queue_frames) {
            return Ok(false);
        }
        if shape != self.shape {
            self.frames.set_caps(Some(&shape.caps()));
            self.shape = shape;
        }
        {
            // A source's buffer may have another user, a slot's never has: this copies a reference, never the bytes.
            let buffer = buffer.make_mut();
            buffer.set_pts(ClockTime::from_nseconds(stamp.pts_ns));
            buffer.set_dts(ClockTime::NONE);
            buffer.set_duration(ClockTime::NONE);
        }
        let mut stamps = lock(&self.stamps);
        if stamps.len() >= REMEMBERED {
            stamps.pop_front();
        }
        stamps.push_back(stamp);
        drop(stamps);
        match self.frames.push_buffer(buffer) {
            Ok(_) => Ok(true),
            Err(error) => Err(PipelineError::Push(error.to_string())),
        }
    }

    /// The next frame becomes a key frame.
    pub fn force_key(&self) {
        let event = UpstreamForceKeyUnitEvent::builder().all_headers(true).build();
        if !self.units.send_event(event) {
            log::debug!("the encoder takes no request for a key frame");
        }
    }

    /// Changes the rate, where the encoder can.
    pub fn set_bitrate(&mut self, kbit: u32) {
        if self.kind.set_bitrate(&self.encoder, kbit) {
            self.bitrate_kbit = kbit;
        }
    }
}

impl Drop for Encoder {
    fn drop(&mut self) {
        retire(&self.pipeline);
    }
}

fn lock(stamps: &Stamps) -> MutexGuard<'_, VecDeque<Stamp>> {
    stamps.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the appsink has, and the microseconds since its frame arrived.
fn unit(sample: &gst::Sample, stamps: &Stamps) -> Option<(Unit, u64)> {
    let buffer = sample.buffer()?;
    // x264enc moves its times far from zero and says so in the segment.
    let pts = match sample.segment().and_then(|s| s.downcast_ref::<ClockTime>()) {
        Some(segment) => segment.to_running_time(buffer.pts()?)?,
        None => buffer.pts()?,
    };
    let pts_ns = pts.nseconds();
    let mut known = lock(stamps);
    // Frames before it that the encoder left out have no further use.
    while known.front().is_some_and(|s| s.pts_ns < pts_ns) {
        known.pop_front();
    }
    let stamp = known.pop_front().filter(|s| s.pts_ns == pts_ns);
    drop(known);
    let took = stamp.map_or(0, |s| u64::try_from(s.arrived.elapsed().as_micros()).unwrap_or(u64::MAX));
    let map = buffer.map_readable().ok()?;
    let unit = Unit {
        pts_ns,
        wall_ms: stamp.map_or_else(edge::clock::unix_ms, |s| s.wall_ms),
        // h264parse also takes the I picture of a scene cut for a key frame; a decoder can't begin there.
        key: !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT) && crate::h264::is_idr(&map),
        data: Arc::from(map.as_slice()),
    };
    Some((unit, took))
}

#[cfg(test)]
#[path = "encoder_tests.rs"]
mod tests;

//! A stream's encoders, from the order to start them on: the one for units, and the one for pictures.
//!
//! Owns: nothing of its own; see the stream. Invariants: a start runs on a thread of its own (`pipeline::starting`), and
//! its end is looked at when its letter comes, after whatever the pipeline itself said of a failure; frames that wait for
//! it are encoded first. Never: blocks, decides which frames are encoded.

use std::time::Instant;

use super::Stream;
use crate::mail::Letter;
use crate::pipeline::PipelineError;
use crate::pipeline::chain::{Fit, Kind, Settings};
use crate::pipeline::encoder::{Encoder, Job, Stamp};
use crate::pipeline::picture::{NOMINAL_FPS, Shape};
use crate::pipeline::starting::Staged;
use crate::pipeline::still::Still;

/// A rate that differs by less than this part is left as it is.
const RATE_STEP: f64 = 0.2;

impl Stream {
    pub(super) fn encode(
        &mut self,
        buffer: gst::Buffer,
        shape: Shape,
        stamp: Stamp,
        key: bool,
        now: Instant,
    ) {
        if let Some(wish) = self.wanted.jpeg {
            self.offer_still(&buffer, shape, stamp.pts_ns, wish, now);
        }
        if !self.wanted.units {
            return;
        }
        if self.retry_at.is_some_and(|at| at > now) {
            return self.core.not_taken(true);
        }
        let renegotiate = self.config.encoder.fit == Fit::Renegotiate;
        let other = |old: Shape| (old.size != shape.size && renegotiate) || old.fps != shape.fps;
        if self.encoder.as_ref().is_some_and(|(old, _)| other(*old)) {
            self.let_go(false);
        }
        if self.encoder.is_none()
            && let Err(error) = self.open_encoder(shape)
        {
            self.core.not_taken(true);
            return self.fail(&error.to_string(), now);
        }
        self.push(Job { buffer, shape, stamp, key }, now);
    }

    /// Hands a frame to the encoder, or lets it wait for one that is being started.
    fn push(&mut self, job: Job, now: Instant) {
        let Some((_, staged)) = &mut self.encoder else { return self.core.not_taken(true) };
        let taken = match staged.running_mut() {
            None => Ok(staged.hold(job)),
            Some(encoder) => {
                if job.key {
                    encoder.force_key();
                }
                encoder.push(job.buffer, job.shape, job.stamp)
            }
        };
        match taken {
            Ok(true) => {}
            Ok(false) => self.core.not_taken(false),
            Err(error) => {
                self.core.not_taken(true);
                self.fail(&error.to_string(), now);
            }
        }
    }

    fn open_encoder(&mut self, shape: Shape) -> Result<(), PipelineError> {
        let (wished, known) = (self.config.encoder.kind, self.kind);
        let told = told_fps(shape);
        let size = self.config.size.unwrap_or(shape.size);
        let mut settings = Settings {
            bitrate_kbit: self.core.bitrate_kbit(size, told),
            gop_frames: self.core.gop_frames(told),
            ..self.config.encoder.clone()
        };
        self.runs += 1;
        let (mail, id, run) = (self.mail.clone(), self.id, self.runs);
        let (post, size, queue) = (mail.clone(), self.config.size, self.config.queue_frames);
        let make = move || {
            settings.kind = known.map_or_else(|| wished.probe(), Ok)?;
            let out = move |output| post.send(id, run, Letter::Encoder(output));
            Encoder::new(&settings, shape, size, queue, out)
        };
        let staged = Staged::start(run, queue as usize, make, move || mail.send(id, run, Letter::Started))?;
        self.encoder = Some((shape, staged));
        Ok(())
    }

    /// Looks whether a start has ended.
    pub(super) fn started(&mut self, now: Instant) {
        match self.still.as_mut().map(Staged::poll) {
            Some(Ok(Some(waiting))) => {
                for (buffer, shape, pts_ns) in waiting {
                    self.show(&buffer, shape, pts_ns);
                }
            }
            Some(Err(error)) => {
                self.still = None;
                self.complain(&format!("JPEG pictures fail: {error}"), now);
            }
            Some(Ok(None)) | None => {}
        }
        match self.encoder.as_mut().map(|(_, staged)| staged.poll()) {
            Some(Ok(Some(waiting))) => {
                self.name_kind();
                for job in waiting {
                    self.push(job, now);
                }
            }
            Some(Err(error)) => self.fail(&error.to_string(), now),
            Some(Ok(None)) | None => {}
        }
    }

    /// Says once which encoder it is, and remembers that it works.
    fn name_kind(&mut self) {
        let found = self.encoder.as_ref().and_then(|(_, staged)| staged.running()).map(Encoder::kind);
        if let (None, Some(kind)) = (self.kind, found) {
            let how = if self.config.encoder.kind == Kind::Auto { ", taken by \"auto\"" } else { "" };
            log::info!("stream {}: encoder {}{how}", self.config.name, kind.element());
            self.kind = Some(kind);
        }
    }

    /// Ends the encoder. Frames that waited for its start are counted as let go.
    pub(super) fn let_go(&mut self, failed: bool) {
        let waiting = self.encoder.take().map_or(0, |(_, staged)| staged.waiting());
        for _ in 0..waiting {
            self.core.not_taken(failed);
        }
    }

    fn offer_still(
        &mut self,
        buffer: &gst::Buffer,
        shape: Shape,
        pts_ns: u64,
        wish: (u32, u32),
        now: Instant,
    ) {
        if self.still.is_none() {
            self.runs += 1;
            let (mail, id, run) = (self.mail.clone(), self.id, self.runs);
            let post = mail.clone();
            let make =
                move || Still::new(shape, wish, move |output| post.send(id, run, Letter::Still(output)));
            match Staged::start(run, 1, make, move || mail.send(id, run, Letter::Started)) {
                Ok(staged) => self.still = Some(staged),
                Err(error) => return self.complain(&error.to_string(), now),
            }
        }
        self.show(buffer, shape, pts_ns);
    }

    /// Offers a frame to the JPEG encoder, or lets one wait for its start.
    fn show(&mut self, buffer: &gst::Buffer, shape: Shape, pts_ns: u64) {
        let Some(staged) = &mut self.still else { return };
        match staged.running_mut() {
            Some(still) => still.offer(buffer, shape, pts_ns),
            // A picture less is no loss: the next frame makes one.
            None => drop(staged.hold((buffer.clone(), shape, pts_ns))),
        }
    }

    /// The bit rate follows the frame rate that is seen.
    pub(super) fn adjust_rate(&mut self) {
        let Some(encoder) = self.encoder.as_mut().and_then(|(_, staged)| staged.running_mut()) else {
            return;
        };
        let wanted = self.core.bitrate_kbit(encoder.size(), told_fps(encoder.shape()));
        let now = f64::from(encoder.bitrate_kbit());
        if (f64::from(wanted) - now).abs() > now * RATE_STEP {
            encoder.set_bitrate(wanted);
        }
    }
}

fn told_fps(shape: Shape) -> f64 {
    match shape.fps {
        (n, d) if n > 0 && d > 0 => f64::from(n) / f64::from(d),
        _ => f64::from(NOMINAL_FPS),
    }
}

#[cfg(test)]
#[path = "encode_tests.rs"]
mod tests;

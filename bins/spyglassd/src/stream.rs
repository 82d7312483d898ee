//! One stream: its core, its encoder, its own source if it has one. Frames come in, units go out to the daemon.
//!
//! Owns: the pipelines, and when they run. Invariants: no encoder runs while nobody needs one, none is kept longer than
//! `idle-close` after that; a source of our own runs only while it is needed; what failed is tried again after a growing
//! delay and meanwhile frames are let go at once; while an encoder is being started, `queue-frames` frames wait for it and
//! further ones are let go; with privacy, what reaches an encoder comes from the thread that blurs.
//! Never: knows an output.

mod encode;

use std::sync::Arc;
use std::time::Instant;

use edge::clock::unix_ms;
use edge::log::Throttle;
use edge::retry::Backoff;
use mio::Token;

use crate::config::StreamConfig;
use crate::core::{Core, State, Verdict};
use crate::frames::geometry::Layout;
use crate::frames::ring::SlotBytes;
use crate::frames::wire::{Frame, PTS_NOW};
use crate::mail::{Letter, Sender};
use crate::pipeline::chain::Kind;
use crate::pipeline::encoder::{self, Encoder, Job, Stamp};
use crate::pipeline::picture::{Shape, video_format, wrap};
use crate::pipeline::starting::Staged;
use crate::pipeline::still::{self, Still};
use crate::privacy;
use crate::privacy::worker::{self, Clean};
use crate::sources::{self, Source};
use crate::unit::Unit;

/// An encoder that worked for so long is trusted again.
const STABLE: std::time::Duration = std::time::Duration::from_secs(30);

/// Who needs a stream now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Units.
    pub units: bool,
    /// JPEG pictures: most a second, and their quality.
    pub jpeg: Option<(u32, u32)>,
}

/// What the daemon does next.
#[derive(Debug)]
pub enum Step {
    /// Hands this on.
    Unit(Unit),
    /// Hands this on.
    Jpeg(Arc<[u8]>),
    /// Nothing.
    None,
}

/// An application that feeds the stream.
#[derive(Debug, Clone, Copy)]
pub struct Producer {
    /// Its connection.
    pub token: Token,
    /// Frames a second as it said; 0 = unknown.
    pub fps: (i32, i32),
    /// Its first frame has come.
    pub has_begun: bool,
}

impl Producer {
    /// A frame has come: true at the first one.
    pub fn begins(&mut self) -> bool {
        !std::mem::replace(&mut self.has_begun, true)
    }
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    /// Its number, never used again.
    pub id: u64,
    /// Its settings.
    pub config: StreamConfig,
    /// Its decisions.
    pub core: Core,
    /// Who feeds it.
    pub producer: Option<Producer>,
    /// Who needs it.
    pub wanted: Wanted,
    /// What was found for [`Kind::Auto`], or works.
    kind: Option<Kind>,
    /// With the shape of the frame that it was started for.
    encoder: Option<(Shape, Staged<Encoder, Job>)>,
    still: Option<Staged<Still, (gst::Buffer, Shape, u64)>>,
    source: Option<(u64, Source)>,
    blurring: Option<(u64, worker::Worker)>,
    blurred: Option<(Option<usize>, u64)>,
    mail: Sender,
    runs: u64,
    unneeded: Option<Instant>,
    retry_at: Option<Instant>,
    backoff: Backoff,
    rng: fastrand::Rng,
    complain: Throttle,
}

impl Stream {
    /// A stream that does nothing yet.
    #[must_use]
    pub fn new(id: u64, config: StreamConfig, mail: Sender) -> Stream {
        let backoff = Backoff::new(config.retry.0, config.retry.1, STABLE);
        Stream {
            core: Core::new(config.core.clone(), unix_ms()),
            id,
            config,
            producer: None,
            wanted: Wanted::default(),
            kind: None,
            encoder: None,
            still: None,
            source: None,
            blurring: None,
            blurred: None,
            mail,
            runs: 0,
            unneeded: None,
            retry_at: None,
            backoff,
            rng: fastrand::Rng::new(),
            complain: Throttle::new(std::time::Duration::from_secs(10)),
        }
    }

    /// Whether frames come or could come at once: viewers may connect.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.producer.is_some() || self.config.source.is_some()
    }

    /// The encoder in use, its picture's size and its rate.
    #[must_use]
    pub fn encoding(&self) -> Option<(Kind, (u32, u32), u32)> {
        let encoder = self.encoder.as_ref()?.1.running()?;
        Some((encoder.kind(), encoder.size(), encoder.bitrate_kbit()))
    }

    /// Of the last frame that was searched for faces: the parts that were blurred (`None` = everything), and how long
    /// that took, in microseconds.
    #[must_use]
    pub fn blurred(&self) -> Option<(Option<usize>, u64)> {
        self.blurred
    }

    /// An application begins to feed it.
    pub fn begin(&mut self, producer: Producer) {
        log::info!("stream {}: an application is connected", self.config.name);
        self.producer = Some(producer);
        self.core.begin(unix_ms());
        self.retry_at = None;
    }

    /// The application is gone.
    pub fn end(&mut self, why: &str) {
        log::info!("stream {}: the application is gone: {why}", self.config.name);
        self.producer = None;
        self.close_pipelines();
        self.core.end(&format!("the application is gone: {why}"), unix_ms());
    }

    /// A frame in a slot.
    pub fn frame(&mut self, frame: &Frame, layout: &Layout, bytes: SlotBytes, now: Instant) {
        let fps = self.producer.map_or((0, 1), |p| p.fps);
        let shape = Shape { format: video_format(layout.format), size: (layout.width, layout.height), fps };
        let pts = (frame.pts_ns != PTS_NOW).then_some(frame.pts_ns);
        let verdict = self.core.frame(pts, frame.dropped, self.is_needed(), now, unix_ms());
        let Verdict::Encode { pts_ns, key } = verdict else { return };
        match wrap(bytes, layout) {
            Ok(buffer) => self.admit(buffer, shape, (pts_ns, key), now),
            Err(why) => self.fail(&why, now),
        }
    }

    /// What a pipeline of this stream said.
    pub fn letter(&mut self, run: u64, letter: Letter, now: Instant) -> Step {
        let current = |held: Option<u64>| held == Some(run);
        match letter {
            Letter::Started => self.started(now),
            Letter::Encoder(encoder::Output::Unit(unit, took_us))
                if current(self.encoder.as_ref().map(|e| e.1.run())) =>
            {
                self.core.unit(unit.pts_ns, unit.key, unit.data.len(), took_us, now, unix_ms());
                self.backoff.connected(now);
                return Step::Unit(unit);
            }
            Letter::Encoder(encoder::Output::Failed(why))
                if current(self.encoder.as_ref().map(|e| e.1.run())) =>
            {
                self.fail(&why, now);
            }
            Letter::Still(still::Output::Jpeg(jpeg)) if current(self.still.as_ref().map(Staged::run)) => {
                if self.core.state().0 == State::Starting && !self.wanted.units {
                    self.core.set(State::Streaming, "pictures only", unix_ms());
                }
                return Step::Jpeg(jpeg);
            }
            Letter::Still(still::Output::Failed(why)) if current(self.still.as_ref().map(Staged::run)) => {
                self.complain(&format!("JPEG pictures fail: {why}"), now);
                self.still = None;
            }
            Letter::Source(output) if current(self.source.as_ref().map(|s| s.0)) => self.heard(output, now),
            Letter::Privacy(output) if current(self.blurring.as_ref().map(|b| b.0)) => match output {
                worker::Output::Clean(Clean { buffer, shape, stamp, key, areas, took_us }) => {
                    self.blurred = Some((areas, took_us));
                    self.encode(buffer, shape, stamp, key, now);
                }
                worker::Output::Failed(why) => self.fail(&why, now),
            },
            _ => {}
        }
        Step::None
    }

    /// Time has passed, or who needs it has changed. When to come again.
    pub fn tick(&mut self, now: Instant) -> Option<Instant> {
        self.core.tick(now, unix_ms());
        // A start's letter may not have found room.
        self.started(now);
        let needed = self.is_needed();
        self.unneeded = if needed { None } else { self.unneeded.or(Some(now)) };
        if self.wanted.jpeg.is_none() {
            self.still = None;
        }
        let close_at = self.unneeded.map(|at| at + self.config.idle_close);
        if close_at.is_some_and(|at| at <= now) && self.runs_something() {
            log::debug!("stream {}: nobody needs it; its pipelines are closed", self.config.name);
            self.close_pipelines();
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        if needed && self.config.source.is_some() && self.source.is_none() && self.retry_at.is_none() {
            self.open_source(now);
        }
        self.adjust_rate();
        let closing = close_at.filter(|_| self.runs_something());
        let retry = self.retry_at.filter(|_| self.config.source.is_some() && needed);
        [closing, retry].into_iter().flatten().min()
    }

    fn is_needed(&self) -> bool {
        self.wanted.units || self.wanted.jpeg.is_some()
    }

    fn runs_something(&self) -> bool {
        self.encoder.is_some() || self.source.is_some() || self.blurring.is_some()
    }

    fn close_pipelines(&mut self) {
        let encoded = self.encoder.is_some();
        self.let_go(false);
        self.still = None;
        self.blurring = None;
        self.blurred = None;
        if self.source.take().is_some() {
            self.core.end("", unix_ms());
            self.core.set(State::Waiting, "nobody watches; the source is closed", unix_ms());
        }
        if encoded {
            // An encoder's pictures are most of what this process ever holds.
            edge::sys::give_back_memory();
        }
    }

    /// A frame that is to be encoded goes there, with privacy by way of the thread that blurs.
    fn admit(&mut self, buffer: gst::Buffer, shape: Shape, (pts_ns, key): (u64, bool), now: Instant) {
        let stamp = Stamp { pts_ns, wall_ms: unix_ms(), arrived: now };
        if self.config.privacy.is_none() {
            return self.encode(buffer, shape, stamp, key, now);
        }
        if self.retry_at.is_some_and(|at| at > now) {
            return self.core.not_taken(true);
        }
        if self.blurring.is_none()
            && let Err(why) = self.start_blurring()
        {
            self.core.not_taken(true);
            return self.fail(&why, now);
        }
        let taken = self.blurring.as_mut().is_some_and(|(_, worker)| worker.offer(buffer, shape, stamp, key));
        if !taken {
            self.core.not_taken(false);
        }
    }

    fn start_blurring(&mut self) -> Result<(), String> {
        let Some(config) = &self.config.privacy else { return Ok(()) };
        self.runs += 1;
        let (mail, id, run) = (self.mail.clone(), self.id, self.runs);
        let (finder, out) = (config.clone(), move |output| mail.send(id, run, Letter::Privacy(output)));
        let worker = worker::Worker::start(config, move || privacy::finder(&finder), out);
        self.blurring =
            Some((run, worker.map_err(|e| format!("no thread can be had that blurs faces: {e}"))?));
        Ok(())
    }

    fn open_source(&mut self, now: Instant) {
        let Some(config) = &self.config.source else { return };
        self.runs += 1;
        let (mail, id, run) = (self.mail.clone(), self.id, self.runs);
        self.core.begin(unix_ms());
        match Source::start(config, move |output| mail.send(id, run, Letter::Source(output))) {
            Ok(source) => self.source = Some((run, source)),
            Err(error) => self.fail(&error.to_string(), now),
        }
    }

    fn heard(&mut self, output: sources::Output, now: Instant) {
        let repeat = self.config.source.as_ref().is_some_and(|s| s.repeat);
        match output {
            sources::Output::Frame(buffer, shape, pts_ns) => {
                let verdict = self.core.frame(Some(pts_ns), 0, self.is_needed(), now, unix_ms());
                if let Verdict::Encode { pts_ns, key } = verdict {
                    self.admit(buffer, shape, (pts_ns, key), now);
                }
            }
            sources::Output::Ended if repeat && self.source.as_ref().is_some_and(|(_, s)| s.rewind()) => {
                self.core.rewound();
            }
            sources::Output::Ended => {
                self.source = None;
                self.fail("the source came to its end", now);
            }
            sources::Output::Failed(why) => {
                self.source = None;
                self.fail(&why, now);
            }
        }
    }

    fn fail(&mut self, why: &str, now: Instant) {
        let delay = self.backoff.next_delay(now, &mut self.rng);
        self.complain(&format!("{why}; tried again in {:.1} s", delay.as_secs_f64()), now);
        self.retry_at = Some(now + delay);
        self.let_go(true);
        self.blurring = None;
        self.core.set(State::Error, why, unix_ms());
    }

    fn complain(&mut self, why: &str, now: Instant) {
        let name = &self.config.name;
        if let Some(left_out) = self.complain.event(now) {
            let more =
                if left_out == 0 { String::new() } else { format!(" ({left_out} such lines left out)") };
            log::error!("stream {name}: {why}{more}");
        }
    }
}

//! The life of a camera: opening, streaming, lost and tried again, ended.
//!
//! Owns: the thread or the device of each source, its delays, what the status says about it. Invariant: a camera has at
//! most one source at a time; the next begins only when the last frame and the end of the one before came through the
//! detector. Never: ends the program because a camera failed.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use edge::net::Tokens;
use edge::retry::Backoff;
use mio::{Registry, Token, Waker};

use crate::config::{Camera, Limits};
use crate::counters::Counters;
use crate::face::Mailbox;
use crate::inbox::End;
use crate::source::feed::Feed;
use crate::source::spec::SourceSpec;
use crate::source::v4l::Capture;
use crate::source::{SourceEvent, Stop, StreamInfo, gst, images};

/// A camera that streams for this long starts its delays over when it is lost.
const STABLE: Duration = Duration::from_secs(30);

/// Where a camera stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Its source is being opened.
    Opening,
    /// Frames come.
    Streaming,
    /// Lost; tried again at this time.
    Waiting(Instant),
    /// It came to its end.
    Ended,
    /// It failed and is not tried again (a file, with `exit-when-done`), or was told to stop.
    Stopped,
}

impl Phase {
    /// The word for the status.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Phase::Opening => "opening",
            Phase::Streaming => "streaming",
            Phase::Waiting(_) => "lost",
            Phase::Ended => "ended",
            Phase::Stopped => "stopped",
        }
    }
}

/// What sources deliver into.
#[derive(Debug, Clone)]
pub struct Wiring {
    /// To the main loop.
    pub events: Sender<SourceEvent>,
    /// Of the main loop.
    pub waker: Arc<Waker>,
}

/// One camera.
#[derive(Debug)]
pub struct Shell {
    /// Its configuration.
    pub config: Camera,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// Where it stands.
    pub phase: Phase,
    /// Why it is lost.
    pub why: String,
    /// What was negotiated.
    pub info: Option<StreamInfo>,
    /// Frames a second, measured over the last tick.
    pub fps: f64,
    /// How often it was lost.
    pub losses: u64,
    index: usize,
    inbox: Arc<Mailbox>,
    stop: Arc<Stop>,
    /// Why it is being stopped, when that is not an order.
    losing: Option<String>,
    thread: Option<JoinHandle<()>>,
    capture: Option<(Token, Box<Capture>)>,
    backoff: Backoff,
    counted: (Instant, u64),
    heard: Instant,
}

impl Shell {
    /// A camera that does nothing yet.
    #[must_use]
    pub fn new(index: usize, config: &Camera, limits: &Limits, inbox: Arc<Mailbox>, now: Instant) -> Shell {
        Shell {
            config: config.clone(),
            counters: Arc::default(),
            phase: Phase::Stopped,
            why: String::new(),
            info: None,
            fps: 0.0,
            losses: 0,
            index,
            inbox,
            stop: Stop::new(),
            losing: None,
            thread: None,
            capture: None,
            backoff: Backoff::new(limits.retry.0, limits.retry.1, STABLE),
            counted: (now, 0),
            heard: now,
        }
    }

    /// Opens the source.
    pub fn start(&mut self, wiring: &Wiring, now: Instant) {
        self.phase = Phase::Opening;
        self.stop = Stop::new();
        self.losing = None;
        self.heard = now;
        self.counted = (now, self.counters.frames.load(Relaxed));
        let Wiring { events, waker } = wiring;
        let feed = Feed::new(self.index, &self.config, &self.inbox, &self.counters, events, waker, now);
        let (stop, source) = (Arc::clone(&self.stop), self.config.source.clone());
        let work = move || match source {
            SourceSpec::V4l(path) => match Capture::open(&path, feed) {
                Ok(capture) => capture.hand_over(),
                Err(refused) => {
                    let (why, feed) = *refused;
                    feed.finish(End::Lost(why));
                }
            },
            SourceSpec::Images(folder) => images::run(feed, &folder, &stop),
            _ => gst::run(feed, &stop),
        };
        // Linux shows 15 bytes of it.
        match std::thread::Builder::new().name(format!("src-{}", self.config.name)).spawn(work) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => self.inbox.finish(self.index, End::Lost(format!("no thread for it: {error}"))),
        }
    }

    /// The source told what it delivers.
    pub fn opened(&mut self, info: StreamInfo, now: Instant) {
        if self.info.as_ref() != Some(&info) || self.phase != Phase::Streaming {
            log::info!("camera {}: {} streams {info}", self.config.name, self.config.source);
        }
        self.phase = Phase::Streaming;
        self.why.clear();
        self.info = Some(info);
        self.heard = now;
        self.backoff.connected(now);
    }

    /// The device is open; it is read from here on.
    pub fn capture(&mut self, capture: Box<Capture>, registry: &Registry) {
        if self.stop.is_asked() {
            return capture.close(End::Stopped);
        }
        let token = Tokens::next();
        match capture.register(registry, token) {
            Ok(()) => self.capture = Some((token, capture)),
            Err(error) => capture.close(End::Lost(format!("its device cannot be polled: {error}"))),
        }
    }

    /// An event of the poll; `true` when it was for this camera.
    pub fn ready(&mut self, registry: &Registry, token: Token, now: Instant) -> bool {
        let Some((own, capture)) = &mut self.capture else { return false };
        if *own != token {
            return false;
        }
        if let Err(error) = capture.ready(now) {
            let hint = if error.raw_os_error() == Some(19) { " (was it unplugged?)" } else { "" };
            self.close_capture(
                registry,
                End::Lost(format!("reading {} failed: {error}{hint}", self.config.source)),
            );
        }
        true
    }

    fn close_capture(&mut self, registry: &Registry, end: End) {
        if let Some((_, capture)) = self.capture.take() {
            capture.deregister(registry);
            capture.close(end);
        }
    }

    /// The end of the source came through the detector. `once`: a file that fails is not tried again.
    pub fn ended(&mut self, end: End, once: bool, now: Instant, rng: &mut fastrand::Rng) {
        if let Some(thread) = self.thread.take() {
            // It has nothing left to do; a panic in it was reported by itself.
            let _ = thread.join();
        }
        let end = match (end, self.losing.take()) {
            (End::Stopped, Some(why)) => End::Lost(why),
            (end, _) => end,
        };
        let name = &self.config.name;
        match end {
            End::Ended => {
                log::info!("camera {name}: {} came to its end", self.config.source);
                self.phase = Phase::Ended;
            }
            End::Stopped => self.phase = Phase::Stopped,
            End::Lost(why) if once && self.config.source.is_finite() => {
                log::error!("camera {name}: {why}; it is not tried again (exit-when-done)");
                (self.losses, self.why, self.phase) = (self.losses + 1, why, Phase::Stopped);
            }
            End::Lost(why) => {
                let delay = self.backoff.next_delay(now, rng);
                let level = if why == self.why { log::Level::Debug } else { log::Level::Warn };
                log::log!(level, "camera {name}: lost: {why}; tried again in {:.1} s", delay.as_secs_f64());
                (self.losses, self.why, self.phase) = (self.losses + 1, why, Phase::Waiting(now + delay));
            }
        }
        self.fps = 0.0;
    }

    /// Measures the rate, and gives up on a live camera that is silent for too long.
    pub fn tick(&mut self, registry: &Registry, limits: &Limits, now: Instant) {
        let frames = self.counters.frames.load(Relaxed);
        let (then, before) = self.counted;
        let elapsed = now.saturating_duration_since(then).as_secs_f64();
        if elapsed > 0.0 {
            self.fps = (frames - before) as f64 / elapsed;
        }
        self.counted = (now, frames);
        if frames > before {
            self.heard = now;
        }
        let active = matches!(self.phase, Phase::Opening | Phase::Streaming);
        let silent = now.saturating_duration_since(self.heard) > limits.frame_timeout;
        if active && silent && !self.config.source.is_finite() && self.losing.is_none() {
            let ms = limits.frame_timeout.as_millis();
            let why = format!("no frame from {} for {ms} ms", self.config.source);
            if self.capture.is_some() {
                self.close_capture(registry, End::Lost(why));
            } else {
                self.losing = Some(why);
                self.halt();
            }
        }
    }

    /// Tells the source to stop; its end comes through the detector.
    pub fn stop(&mut self, registry: &Registry) {
        match self.phase {
            Phase::Waiting(_) => self.phase = Phase::Stopped,
            Phase::Opening | Phase::Streaming => {
                self.losing = None;
                self.halt();
                self.close_capture(registry, End::Stopped);
            }
            Phase::Ended | Phase::Stopped => {}
        }
    }

    fn halt(&self) {
        self.stop.ask();
        self.inbox.release(self.index);
    }

    /// Whether no source is at work and none will be by itself.
    #[must_use]
    pub fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Ended | Phase::Stopped)
    }

    /// One line for `systemctl status`.
    #[must_use]
    pub fn line(&self) -> String {
        let name = &self.config.name;
        match self.phase {
            Phase::Streaming => format!("{name} {:.1} fps", self.fps),
            // No count-down: nothing wakes up to keep it true.
            Phase::Waiting(_) => {
                format!("{name} LOST ({}; tried again, {} times so far)", self.why, self.losses)
            }
            phase => format!("{name} {}", phase.word()),
        }
    }
}

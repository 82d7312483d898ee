//! One configuration at work: its cameras, detector threads and decisions. A reload ends a session and begins another.
//!
//! Owns: the threads. Invariants: results are taken in the order each detector thread gives them; faces that were
//! picked are encoded before the session is over. Never: talks to the broker or to systemd.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::{Registry, Waker};

use crate::cameras::{Phase, Shell, Wiring};
use crate::config::Config;
use crate::core::{Core, Picked};
use crate::detect::DetectError;
use crate::face::{Face, Mailbox};
use crate::inbox::{EncodeJob, Inbox};
use crate::source::SourceEvent;
use crate::worker::{Outcome, Worker};

/// Results that may wait for the main loop before a detector thread has to.
const RESULTS_MAX: usize = 16;
/// How often trouble with frames of one camera is logged.
const COMPLAINT: Duration = Duration::from_secs(60);

type Ticket = Box<Face>;

/// A session could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The detector.
    #[error(transparent)]
    Detector(#[from] DetectError),
    /// The system gives no thread.
    #[error("cannot start a detector thread")]
    Thread(#[source] std::io::Error),
    /// OpenCV.
    #[error("cannot set the number of OpenCV's threads")]
    OpenCv(#[source] opencv::Error),
}

/// One configuration at work.
#[derive(Debug)]
pub struct Session {
    /// What it works by.
    pub config: Config,
    /// The cameras.
    pub shells: Vec<Shell>,
    /// The decisions.
    pub core: Core,
    wiring: Wiring,
    events: Receiver<SourceEvent>,
    results: Receiver<Outcome<Ticket>>,
    inboxes: Vec<Arc<Mailbox>>,
    threads: Vec<JoinHandle<()>>,
    encoding: usize,
    held: bool,
    complained: Vec<Option<Instant>>,
    encode_failures: u64,
}

impl Session {
    /// Loads the detectors and starts their threads; no camera is opened yet.
    ///
    /// # Errors
    /// [`SessionError`].
    pub fn new(config: &Config, waker: &Arc<Waker>, now: Instant) -> Result<Session, SessionError> {
        opencv::core::set_num_threads(config.opencv_threads).map_err(SessionError::OpenCv)?;
        let (events_in, events) = mpsc::channel();
        let (results_in, results) = mpsc::sync_channel(RESULTS_MAX);
        let waits = |c: &crate::config::Camera| c.fast || c.stills;
        let inboxes: Vec<Arc<Mailbox>> = (0..config.threads)
            .map(|_| Arc::new(Inbox::new(config.cameras.iter().map(waits).collect())))
            .collect();
        let inbox_of = |camera: usize| Arc::clone(&inboxes[camera % inboxes.len()]);
        let shells: Vec<Shell> = config
            .cameras
            .iter()
            .enumerate()
            .map(|(n, camera)| Shell::new(n, camera, &config.limits, inbox_of(n), now))
            .collect();
        let threads = start_workers(config, &inboxes, &shells, &results_in, waker)?;
        let detector = match config.detector {
            crate::detect::DetectorConfig::Haar(_) => "haar",
            crate::detect::DetectorConfig::YuNet(_) => "yunet",
        };
        Ok(Session {
            core: Core::new(&config.cameras, config.faces.publish, detector),
            wiring: Wiring { events: events_in, waker: Arc::clone(waker) },
            complained: vec![None; shells.len()],
            shells,
            events,
            results,
            inboxes,
            threads,
            encoding: 0,
            held: false,
            encode_failures: 0,
            config: config.clone(),
        })
    }

    /// Opens every camera.
    pub fn start(&mut self, now: Instant) {
        for shell in &mut self.shells {
            shell.start(&self.wiring, now);
        }
    }

    /// Opens a camera again whose delay is over.
    pub fn retry(&mut self, camera: usize, now: Instant) {
        self.shells[camera].start(&self.wiring, now);
    }

    /// Takes in what sources and detectors reported, at most `budget` results; encoded faces go to `publish`. `true` when
    /// there may be more.
    pub fn turn(
        &mut self,
        registry: &Registry,
        now: Instant,
        rng: &mut fastrand::Rng,
        budget: usize,
        publish: &mut dyn FnMut(Face, Vec<u8>),
    ) -> bool {
        while let Ok(event) = self.events.try_recv() {
            match event {
                SourceEvent::Opened { camera, info } => self.shells[camera].opened(info, now),
                SourceEvent::Capture { camera, capture } => self.shells[camera].capture(capture, registry),
            }
        }
        for _ in 0..budget {
            let Ok(outcome) = self.results.try_recv() else { return false };
            match outcome {
                Outcome::Looked { stamp, sights } => {
                    let picked = self.core.looked(&stamp, sights);
                    self.encode(picked);
                }
                Outcome::Failed { camera, why } => self.complain(camera, &why, now),
                Outcome::Encoded { ticket, payload } => {
                    self.encoding -= 1;
                    match payload {
                        Ok(payload) => publish(*ticket, payload),
                        Err(error) => {
                            self.encode_failures += 1;
                            log::error!("camera {}: a face is given up: {error}", ticket.camera_name);
                        }
                    }
                }
                Outcome::End { camera, end } => {
                    let picked = self.core.ended(camera);
                    self.encode(picked);
                    self.shells[camera].ended(end, self.config.raw.exit_when_done, now, rng);
                }
            }
        }
        true
    }

    fn encode(&mut self, picked: Vec<Picked>) {
        for (ticket, crop) in picked {
            self.encoding += 1;
            self.inboxes[ticket.camera % self.inboxes.len()].encode(EncodeJob { crop, ticket });
        }
    }

    fn complain(&mut self, camera: usize, why: &str, now: Instant) {
        let last = &mut self.complained[camera];
        if last.is_none_or(|then| now.saturating_duration_since(then) >= COMPLAINT) {
            *last = Some(now);
            log::warn!("camera {}: {why} (said at most once a minute)", self.shells[camera].config.name);
        }
    }

    /// Once a second: rates, silent cameras, tracks before a closed gate.
    pub fn tick(&mut self, registry: &Registry, now: Instant) {
        for n in 0..self.shells.len() {
            let shell = &mut self.shells[n];
            shell.tick(registry, &self.config.limits, now);
            // A file's own clock must not depend on when the main loop looks at it.
            let live = !shell.config.source.is_finite() && shell.phase == Phase::Streaming;
            if live && let Some(at_ms) = shell.counters.still_until() {
                let picked = self.core.still(n, at_ms);
                self.encode(picked);
            }
        }
    }

    /// Whether a tick is of use: an idle program does not wake up.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.shells.iter().any(|s| matches!(s.phase, Phase::Opening | Phase::Streaming))
    }

    /// Sources that can wait are held while the queue is too full.
    pub fn hold(&mut self, held: bool) {
        if held != self.held {
            self.held = held;
            self.inboxes.iter().for_each(|inbox| inbox.hold(held));
        }
    }

    /// Tells all sources to stop.
    pub fn stop(&mut self, registry: &Registry) {
        self.hold(false);
        self.shells.iter_mut().for_each(|shell| shell.stop(registry));
    }

    /// Whether all cameras are done and everything picked is encoded.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.encoding == 0 && self.shells.iter().all(Shell::is_done)
    }

    /// Ends the threads. Sources that did not stop in time are left to the end of the process.
    pub fn close(mut self) {
        self.inboxes.iter().for_each(|inbox| inbox.close());
        drop(self.results);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a detector thread ended by a panic");
            }
        }
    }
}

fn start_workers(
    config: &Config,
    inboxes: &[Arc<Mailbox>],
    shells: &[Shell],
    results: &SyncSender<Outcome<Ticket>>,
    waker: &Arc<Waker>,
) -> Result<Vec<JoinHandle<()>>, SessionError> {
    let counters: Vec<_> = shells.iter().map(|s| Arc::clone(&s.counters)).collect();
    let mut threads = Vec::new();
    for (n, inbox) in inboxes.iter().enumerate() {
        let worker = Worker::new(config, Arc::clone(inbox), &counters, results.clone(), Arc::clone(waker))?;
        let builder = std::thread::Builder::new().name(format!("detect-{n}"));
        threads.push(builder.spawn(move || worker.run()).map_err(SessionError::Thread)?);
    }
    Ok(threads)
}

//! From raw frames to units, through GStreamer.
//!
//! - [`chain`]: which elements, with which settings, for which encoder
//! - [`encoder`]: a running encoder of one stream
//! - [`picture`]: raw frames as GStreamer buffers, without a copy
//! - [`still`]: JPEG pictures for whoever can't play H.264
//! - [`starting`]: how either is started without a wait

pub mod chain;
pub mod encoder;
pub mod picture;
pub mod starting;
pub mod still;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use gst::prelude::*;

/// Pipelines that wait for their end, at most.
const ENDING_MAX: usize = 64;
static ENDING: AtomicUsize = AtomicUsize::new(0);

/// Why a pipeline can't be built or started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PipelineError {
    /// GStreamer itself.
    #[error("GStreamer can't be started: {0}")]
    Init(String),
    /// An element is missing, or a setting is not understood.
    #[error("the pipeline {text:?} can't be built: {why}{hint}")]
    Build {
        /// What was built.
        text: String,
        /// GStreamer's word.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// No encoder of those that were tried is there.
    #[error("no encoder: {0}")]
    NoEncoder(String),
    /// It does not start.
    #[error("the pipeline can't be started: {0}")]
    Start(String),
    /// A frame is not taken.
    #[error("the pipeline takes no frame: {0}")]
    Push(String),
}

/// One of so many places, taken for as long as the thread lives that does what may take long.
pub(crate) struct Place(&'static AtomicUsize);

impl Place {
    /// Takes one of `most`, of which `taken` are taken; `what` tells what holds them, should none be left.
    pub(crate) fn take(
        taken: &'static AtomicUsize,
        most: usize,
        what: &'static str,
    ) -> Result<Place, PipelineError> {
        let next = |n: usize| (n < most).then_some(n + 1);
        match taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, next) {
            Ok(_) => Ok(Place(taken)),
            Err(n) => Err(PipelineError::Start(format!("{n} {what} yet"))),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Starts GStreamer; further calls do nothing.
///
/// # Errors
/// [`PipelineError::Init`].
pub fn init() -> Result<(), PipelineError> {
    gst::init().map_err(|e| PipelineError::Init(e.to_string()))
}

/// Parses a pipeline.
pub(crate) fn parse(text: &str) -> Result<gst::Pipeline, PipelineError> {
    init()?;
    let failed = |why: String, hint| PipelineError::Build { text: text.to_owned(), why, hint };
    let parsed = gst::parse::launch_full(text, None, gst::ParseFlags::FATAL_ERRORS).map_err(|error| {
        let hint = match error.kind::<gst::ParseError>() {
            Some(gst::ParseError::NoSuchElement) => {
                "; 'gst-inspect-1.0' lists what is installed (packages gstreamer1.0-plugins-base, -good, -bad, -ugly)"
            }
            _ => "; try it with gst-launch-1.0 and fakesink at its end",
        };
        failed(error.message().to_owned(), hint)
    })?;
    parsed.downcast().map_err(|_| failed("it is a single element".to_owned(), ""))
}

/// The element of that name in a pipeline of ours, as what it is.
pub(crate) fn part<T: IsA<gst::Element>>(pipeline: &gst::Pipeline, name: &str) -> Result<T, PipelineError> {
    let element = pipeline.by_name(name).and_then(|e| e.dynamic_cast::<T>().ok());
    element.ok_or_else(|| PipelineError::Start(format!("it has no element {name} of the right kind")))
}

/// Calls `told` with the reason when the pipeline fails, or with `None` at its end, on the thread where that happens.
pub(crate) fn watch(pipeline: &gst::Pipeline, told: impl Fn(Option<String>) + Send + Sync + 'static) {
    let Some(bus) = pipeline.bus() else { return };
    bus.set_sync_handler(move |_, message| {
        match message.view() {
            gst::MessageView::Error(error) => told(Some(reason(error))),
            gst::MessageView::Eos(_) => told(None),
            _ => {}
        }
        gst::BusSyncReply::Drop
    });
}

/// An error message of a bus for people; the debug text names the element's own reason.
fn reason(error: &gst::message::Error) -> String {
    let from = error.src().map(|s| s.name().to_string()).unwrap_or_default();
    let mut text = format!("{} ({from})", error.error().message());
    // The first line is the place in GStreamer's source, the next ones say what happened.
    let detail = error.debug().and_then(|d| d.lines().nth(1).map(|l| l.trim().to_owned()));
    if let Some(line) = detail.filter(|l| !l.is_empty()) {
        text.push_str(": ");
        text.push_str(&line);
    }
    text
}

/// Starts it, or says why not.
pub(crate) fn start(pipeline: &gst::Pipeline) -> Result<(), PipelineError> {
    let failed = |_| PipelineError::Start("its state can't be changed (see the lines before)".to_owned());
    pipeline.set_state(gst::State::Playing).map(|_| ()).map_err(failed)
}

/// Ends it on a thread that does only this: letting go of an encoder's device may take as long as it likes.
pub(crate) fn retire(pipeline: &gst::Pipeline) {
    static TEARDOWN: OnceLock<Option<Sender<gst::Pipeline>>> = OnceLock::new();
    let thread = TEARDOWN.get_or_init(|| {
        let (pipelines, ended) = channel::<gst::Pipeline>();
        let work = move || {
            for pipeline in ended {
                stop(&pipeline);
                ENDING.fetch_sub(1, Ordering::AcqRel);
            }
        };
        let thread = std::thread::Builder::new().name("teardown".to_owned()).spawn(work);
        thread.map(|_| pipelines).inspect_err(|e| log::warn!("pipelines are ended by the loop: {e}")).ok()
    });
    if ENDING.fetch_add(1, Ordering::AcqRel) < ENDING_MAX
        && let Some(thread) = thread
        && thread.send(pipeline.clone()).is_ok()
    {
        return;
    }
    // That many hang: then the loop does, too, and its watchdog starts the program anew.
    ENDING.fetch_sub(1, Ordering::AcqRel);
    stop(pipeline);
}

/// Waits until all pipelines have ended, the sources' too, and those under way have started or failed, but not forever.
pub(crate) fn settle(most: Duration) {
    let until = Instant::now() + most;
    let alive = || ENDING.load(Ordering::Acquire) + crate::sources::alive() + starting::alive();
    while alive() > 0 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Ends it and waits for its threads.
pub(crate) fn stop(pipeline: &gst::Pipeline) {
    if let Some(bus) = pipeline.bus() {
        bus.unset_sync_handler();
    }
    if let Err(error) = pipeline.set_state(gst::State::Null) {
        log::debug!("a pipeline can't be torn down: {error}");
    }
}

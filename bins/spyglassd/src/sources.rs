//! Sources of our own: a camera, a network camera, a file, a pipeline. They run only while somebody needs their stream.
//!
//! Owns: what may stand in `source`, the pipeline that is made of it, and a thread for that: opening a camera, reaching
//! another machine and letting go of either may take as long as they like. Invariants: frames leave on GStreamer's thread
//! as samples that nobody has copied; one waits at most; a password never leaves this file. Never: encodes, blocks the
//! caller.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use edge::source;
use gst::ClockTime;
use gst::prelude::*;
use gst_app::{AppSink, AppSinkCallbacks};
use gst_video::VideoInfo;

use crate::config::SourceConfig;
use crate::pipeline::picture::Shape;
use crate::pipeline::{PipelineError, Place, parse, part, start, stop, watch};

const EXPECTED: &str = "expected v4l:/dev/videoN, file:PATH, rtsp://… or gst:PIPELINE";

/// What a stream reads from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceSpec {
    /// A V4L2 device node.
    V4l(PathBuf),
    /// A video file, at its own pace.
    File(PathBuf),
    /// A network camera (`rtsp://` or `rtsps://`).
    Rtsp(String),
    /// A GStreamer pipeline that ends in raw video.
    Gst(String),
}

impl SourceSpec {
    /// Reads what stands in the file.
    ///
    /// # Errors
    /// In words for the person who wrote it.
    pub fn parse(text: &str) -> Result<SourceSpec, String> {
        let (kind, rest) = source::split(text, EXPECTED, "stream")?;
        match kind {
            "v4l" => Ok(SourceSpec::V4l(rest.into())),
            "file" => Ok(SourceSpec::File(rest.into())),
            "rtsp" => Ok(SourceSpec::Rtsp(rest.to_owned())),
            "gst" => Ok(SourceSpec::Gst(rest.trim().to_owned())),
            _ => Err(source::unknown(kind, EXPECTED)),
        }
    }

    fn text(&self) -> String {
        let head = match self {
            SourceSpec::V4l(_) => "v4l2src name=source ! decodebin".to_owned(),
            SourceSpec::File(_) => "filesrc name=source ! decodebin".to_owned(),
            SourceSpec::Rtsp(_) => {
                "rtspsrc name=source latency=200 protocols=tcp ! application/x-rtp,media=video ! decodebin"
                    .to_owned()
            }
            SourceSpec::Gst(text) => text.clone(),
        };
        format!("{head} ! videoconvert ! appsink name=sink enable-last-sample=false max-buffers=1 drop=true")
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceSpec::V4l(path) => write!(f, "v4l:{}", path.display()),
            SourceSpec::File(path) => write!(f, "file:{}", path.display()),
            SourceSpec::Rtsp(address) => f.write_str(address),
            SourceSpec::Gst(pipeline) => write!(f, "gst:{pipeline}"),
        }
    }
}

/// What comes out of a source.
#[derive(Debug)]
pub enum Output {
    /// A frame, with its time on the source's clock in nanoseconds.
    Frame(gst::Buffer, Shape, u64),
    /// It came to its end.
    Ended,
    /// It failed.
    Failed(String),
}

/// Sources that run or have not ended yet, at most.
const SOURCES_MAX: usize = 256;
static SOURCES: AtomicUsize = AtomicUsize::new(0);

/// Sources that run or have not ended yet.
pub(crate) fn alive() -> usize {
    SOURCES.load(Ordering::Acquire)
}

/// A file is to begin again.
#[derive(Debug)]
struct Rewind;

/// The handle of a running source. Dropping it ends the source; nobody waits for that.
#[derive(Debug)]
pub struct Source {
    orders: Sender<Rewind>,
}

/// Builds the pipeline without starting it.
///
/// # Errors
/// [`PipelineError`]: bad syntax, or an element that is not installed.
pub fn build(config: &SourceConfig) -> Result<gst::Pipeline, PipelineError> {
    let pipeline = parse(&config.spec.text())?;
    if let Some(source) = pipeline.by_name("source") {
        match &config.spec {
            SourceSpec::V4l(path) => source.set_property("device", path.to_string_lossy().as_ref()),
            SourceSpec::File(path) => source.set_property("location", path.to_string_lossy().as_ref()),
            SourceSpec::Rtsp(address) => {
                source.set_property("location", address.as_str());
                if let Some((user, password)) = &config.login {
                    source.set_property("user-id", user.as_str());
                    source.set_property("user-pw", password.expose());
                }
            }
            SourceSpec::Gst(_) => {}
        }
    }
    Ok(pipeline)
}

impl Source {
    /// Starts it; what goes wrong comes out of it.
    ///
    /// # Errors
    /// No thread can be had, or too many sources have not ended yet.
    pub fn start(
        config: &SourceConfig,
        out: impl Fn(Output) + Send + Sync + 'static,
    ) -> Result<Source, PipelineError> {
        let place = Place::take(&SOURCES, SOURCES_MAX, "sources run or have not ended")?;
        let (orders, taken) = channel();
        let config = config.clone();
        let work = move || {
            run(&config, &Arc::new(out), &taken);
            drop(place);
        };
        let thread = std::thread::Builder::new().name("source".to_owned()).spawn(work);
        thread.map_err(|e| PipelineError::Start(format!("there is no thread for it: {e}")))?;
        Ok(Source { orders })
    }

    /// Begins a file again; `false` when it has ended for good.
    pub fn rewind(&self) -> bool {
        self.orders.send(Rewind).is_ok()
    }
}

/// The source's thread: until its handle is dropped.
fn run<F: Fn(Output) + Send + Sync + 'static>(
    config: &SourceConfig,
    out: &Arc<F>,
    orders: &Receiver<Rewind>,
) {
    let pipeline = match open(config, out) {
        Ok(pipeline) => pipeline,
        Err(error) => return out(Output::Failed(error.to_string())),
    };
    match start(&pipeline) {
        Err(error) => out(Output::Failed(error.to_string())),
        Ok(()) => {
            while orders.recv().is_ok() {
                let flags = gst::SeekFlags::FLUSH | gst::SeekFlags::KEY_UNIT;
                if pipeline.seek_simple(flags, ClockTime::ZERO).is_err() {
                    out(Output::Failed("the file can't begin again".to_owned()));
                }
            }
        }
    }
    stop(&pipeline);
}

/// The pipeline, with its ends tied to `out`.
fn open<F: Fn(Output) + Send + Sync + 'static>(
    config: &SourceConfig,
    out: &Arc<F>,
) -> Result<gst::Pipeline, PipelineError> {
    let pipeline = build(config)?;
    let sink: AppSink = part(&pipeline, "sink")?;
    let caps = gst::Caps::builder("video/x-raw")
        .field("format", gst::List::new(["I420", "NV12", "BGR", "RGB", "BGRx", "GRAY8"]))
        .build();
    sink.set_caps(Some(&caps));
    // Only a file has to be held back to its own pace; a live source is already as late as it is.
    sink.set_property("sync", matches!(config.spec, SourceSpec::File(_)));
    let (told, out) = (Arc::clone(out), Arc::clone(out));
    let sample = move |sink: &AppSink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        match frame(&sample) {
            Some(output) => told(output),
            None => return Err(gst::FlowError::NotNegotiated),
        }
        Ok(gst::FlowSuccess::Ok)
    };
    sink.set_callbacks(AppSinkCallbacks::builder().new_sample(sample).build());
    let secret = config.login.as_ref().map(|(_, password)| password.clone());
    watch(&pipeline, move |why| {
        out(match why {
            Some(why) => {
                Output::Failed(secret.as_ref().map_or(why.clone(), |s| why.replace(s.expose(), "***")))
            }
            None => Output::Ended,
        });
    });
    Ok(pipeline)
}

fn frame(sample: &gst::Sample) -> Option<Output> {
    let info = VideoInfo::from_caps(sample.caps()?).ok()?;
    let buffer = sample.buffer_owned()?;
    let pts = match sample.segment().and_then(|s| s.downcast_ref::<ClockTime>()) {
        Some(segment) => segment.to_running_time(buffer.pts()?)?,
        None => buffer.pts()?,
    };
    let shape = Shape {
        format: info.format(),
        size: (info.width(), info.height()),
        fps: (info.fps().numer(), info.fps().denom()),
    };
    Some(Output::Frame(buffer, shape, pts.nseconds()))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_kind_is_read_and_mistakes_are_named() {
        let parse = |t| SourceSpec::parse(t).unwrap();
        assert_eq!(parse("v4l:/dev/video0"), SourceSpec::V4l("/dev/video0".into()));
        assert_eq!(parse("file:a b.mp4"), SourceSpec::File("a b.mp4".into()));
        assert!(matches!(parse("rtsp://cam.local:554/s"), SourceSpec::Rtsp(_)));
        assert_eq!(parse("gst: videotestsrc ! x"), SourceSpec::Gst("videotestsrc ! x".into()));
        for (text, word) in [
            ("/dev/video0", "expected v4l:"),
            ("v4l:", "nothing follows"),
            ("images:x", "found \"images\""),
            ("rtsp://", "rtsp://host"),
            ("rtsp://me:secret@cam/s", "password-file"),
        ] {
            let error = SourceSpec::parse(text).unwrap_err();
            assert!(error.contains(word) && !error.contains("secret@"), "{text}: {error}");
        }
    }

    #[test]
    fn a_pipeline_gives_frames_and_ends() {
        let spec = SourceSpec::Gst(
            "videotestsrc num-buffers=5 ! video/x-raw,width=64,height=48,framerate=25/1".into(),
        );
        let (tx, rx) = channel();
        let config = SourceConfig { spec, login: None, repeat: false };
        let source = Source::start(&config, move |out| drop(tx.send(out))).unwrap();
        let mut frames = 0;
        loop {
            match rx.recv_timeout(Duration::from_secs(20)).unwrap() {
                Output::Frame(_, shape, pts) => {
                    assert_eq!((shape.size, shape.fps, pts % 40_000_000), ((64, 48), (25, 1), 0));
                    frames += 1;
                }
                Output::Ended => break,
                Output::Failed(why) => panic!("{why}"),
            }
        }
        assert!(frames > 0);
        drop(source);
        let spec = SourceSpec::Gst("videotestsrc ! nosuchelement".into());
        let error = build(&SourceConfig { spec, login: None, repeat: false }).unwrap_err().to_string();
        assert!(error.contains("nosuchelement") && error.contains("gst-inspect-1.0"), "{error}");
    }
}

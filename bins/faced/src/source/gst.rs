//! Files, network cameras and the user's own pipelines, through GStreamer.
//!
//! A thread a camera builds the pipeline, waits on its bus and tears it down; frames are judged and copied on
//! GStreamer's streaming thread. GStreamer is loaded when the first of these threads starts, so that a device with
//! V4L2 cameras alone never pays for it.
//! Owns: the pipeline. Invariant: at most one frame waits in the sink; a frame that is not wanted is not copied.
//! Never: prints a password.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use gst::prelude::*;
use gst::{ClockTime, MessageType, MessageView, Sample};
use gst_app::{AppSink, AppSinkCallbacks};

use super::feed::{Fed, Feed};
use super::spec::SourceSpec;
use super::{Stop, StreamInfo};
use crate::config::Camera;
use crate::frame::{Format, Layout, Matrix};
use crate::inbox::End;
use edge::clock::unix_ms;

const FORMATS: [(&str, Format); 5] = [
    ("I420", Format::I420),
    ("NV12", Format::Nv12),
    ("YUY2", Format::Yuyv),
    ("GRAY8", Format::Grey),
    ("RGB", Format::Rgb),
];
const SINK: &str = "faced-sink";
const SOURCE: &str = "faced-source";

/// Runs the camera's pipeline until its end, until it fails, or until it is told to stop.
pub fn run(feed: Feed, stop: &Stop) {
    let config = feed.config().clone();
    let shared = Arc::new(Mutex::new(Some(Delivery { feed, layout: None, why: None })));
    let end = match build(&config) {
        Ok(pipeline) => {
            let end = play(&config, &pipeline, &shared, stop);
            if let Err(error) = pipeline.set_state(gst::State::Null) {
                log::debug!("camera {}: cannot tear its pipeline down: {error}", config.name);
            }
            end
        }
        Err(why) => End::Lost(why),
    };
    let delivery = shared.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(delivery) = delivery {
        let end = match (end, delivery.why) {
            (End::Lost(_), Some(why)) => End::Lost(why),
            (end, _) => end,
        };
        delivery.feed.finish(end);
    }
}

/// What the streaming thread works with.
#[derive(Debug)]
struct Delivery {
    feed: Feed,
    layout: Option<(gst::Caps, Layout)>,
    /// Why frames can't be used, found on the streaming thread.
    why: Option<String>,
}

/// The pipeline of this camera, not yet running.
///
/// # Errors
/// In words: bad syntax, or an element that is not installed.
pub fn build(config: &Camera) -> Result<gst::Pipeline, String> {
    gst::init().map_err(|e| format!("GStreamer cannot be started: {e}"))?;
    let sink = format!("appsink name={SINK}");
    let text = match &config.source {
        SourceSpec::File(_) => format!("filesrc name={SOURCE} ! decodebin ! videoconvert ! {sink}"),
        SourceSpec::Rtsp(_) => format!(
            "rtspsrc name={SOURCE} latency=200 ! application/x-rtp,media=video ! decodebin ! videoconvert ! {sink}"
        ),
        SourceSpec::Gst(text) => format!("{text} ! videoconvert ! {sink}"),
        other => return Err(format!("{other} is no source for GStreamer")),
    };
    let parsed = gst::parse::launch_full(&text, None, gst::ParseFlags::FATAL_ERRORS)
        .map_err(|e| format!("the pipeline {text:?} cannot be built: {}{}", e.message(), hint(&e)))?;
    let pipeline = parsed
        .downcast::<gst::Pipeline>()
        .map_err(|_| format!("{text:?} is a single element, no pipeline"))?;
    if let Some(source) = pipeline.by_name(SOURCE) {
        set_up(&source, config);
    }
    Ok(pipeline)
}

fn hint(error: &gst::glib::Error) -> &'static str {
    match error.kind::<gst::ParseError>() {
        Some(gst::ParseError::NoSuchElement) => {
            "; 'gst-inspect-1.0' lists what is installed (packages gstreamer1.0-plugins-base, -good, -bad, -libav)"
        }
        _ => "; try it with gst-launch-1.0 and fakesink at its end",
    }
}

fn set_up(source: &gst::Element, config: &Camera) {
    match &config.source {
        SourceSpec::File(path) => source.set_property("location", path.to_string_lossy().as_ref()),
        SourceSpec::Rtsp(address) => {
            source.set_property("location", address.as_str());
            source.set_property_from_str("protocols", if config.udp { "udp" } else { "tcp" });
            if let Some((user, password)) = &config.login {
                source.set_property("user-id", user.as_str());
                source.set_property("user-pw", password.expose());
            }
        }
        _ => {}
    }
}

fn play(
    config: &Camera,
    pipeline: &gst::Pipeline,
    shared: &Arc<Mutex<Option<Delivery>>>,
    stop: &Stop,
) -> End {
    let lost = |why: &str| End::Lost(why.to_owned());
    let Some(bus) = pipeline.bus() else { return lost("the pipeline has no bus") };
    let Some(sink) = pipeline.by_name(SINK).and_then(|sink| sink.downcast::<AppSink>().ok()) else {
        return lost("the pipeline has no sink of ours");
    };
    set_up_sink(&sink, config, shared);
    let waker = bus.clone();
    stop.on_ask(move || {
        let wake = gst::message::Application::new(gst::Structure::new_empty("stop"));
        // It is refused only while the pipeline is torn down, which is what is wanted.
        let _ = waker.post(wake);
    });
    if pipeline.set_state(gst::State::Playing).is_err() {
        let why = bus.pop_filtered(&[MessageType::Error]).map(|m| reason(&m, config));
        return End::Lost(why.unwrap_or_else(|| format!("{} cannot be started", config.source)));
    }
    let wanted = [MessageType::Eos, MessageType::Error, MessageType::Application];
    loop {
        let message = bus.timed_pop_filtered(ClockTime::NONE, &wanted);
        if stop.is_asked() {
            return End::Stopped;
        }
        let Some(message) = message else { continue };
        match message.view() {
            MessageView::Eos(_) if config.repeat => {
                let flags = gst::SeekFlags::FLUSH | gst::SeekFlags::KEY_UNIT;
                if let Err(error) = pipeline.seek_simple(flags, ClockTime::ZERO) {
                    return End::Lost(format!("{} cannot begin again: {error}", config.source));
                }
            }
            MessageView::Eos(_) if config.source.is_finite() => return End::Ended,
            MessageView::Eos(_) => return End::Lost(format!("{} ended", config.source)),
            MessageView::Error(_) => return End::Lost(reason(&message, config)),
            _ => {}
        }
    }
}

/// An error message of the bus for people; the debug text names the element's own reason.
fn reason(message: &gst::Message, config: &Camera) -> String {
    let MessageView::Error(error) = message.view() else { return "unknown".to_owned() };
    let from = error.src().map(|s| s.name().to_string()).unwrap_or_default();
    let mut text = format!("{}: {} ({from})", config.source, error.error().message());
    if let Some(detail) = error.debug() {
        // The first line is the place in GStreamer's source, the next ones say what happened.
        if let Some(line) = detail.lines().nth(1).map(str::trim).filter(|l| !l.is_empty()) {
            text.push_str(": ");
            text.push_str(line);
        }
    }
    if let Some((_, password)) = &config.login {
        text = text.replace(password.expose(), "***");
    }
    text
}

fn set_up_sink(sink: &AppSink, config: &Camera, shared: &Arc<Mutex<Option<Delivery>>>) {
    let formats = FORMATS.map(|(name, _)| name);
    let caps = gst::Caps::builder("video/x-raw").field("format", gst::List::new(formats)).build();
    sink.set_caps(Some(&caps));
    sink.set_max_buffers(1);
    sink.set_drop(!config.fast);
    // Only a file at its own pace has to wait for the clock; a live source is already as late as it is.
    sink.set_sync(config.source.is_finite() && !config.fast);
    sink.set_property("enable-last-sample", false);
    let shared = Arc::clone(shared);
    let sample = move |sink: &AppSink| {
        let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
        match &mut *shared.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(delivery) => delivery.sample(&sample),
            None => Err(gst::FlowError::Flushing),
        }
    };
    sink.set_callbacks(AppSinkCallbacks::builder().new_sample(sample).build());
}

impl Delivery {
    fn sample(&mut self, sample: &Sample) -> Result<gst::FlowSuccess, gst::FlowError> {
        let layout = match self.layout(sample) {
            Ok(layout) => layout,
            Err(why) => {
                self.why = Some(why);
                return Err(gst::FlowError::NotNegotiated);
            }
        };
        let Some(buffer) = sample.buffer() else { return Ok(gst::FlowSuccess::Ok) };
        let at_ms = match self.feed.config().source.is_finite() {
            true => running_ms(sample, buffer).unwrap_or_default(),
            false => self.feed.clock_ms(Instant::now()),
        };
        let Ok(map) = buffer.map_readable() else {
            self.feed.bad();
            return Ok(gst::FlowSuccess::Ok);
        };
        match self.feed.raw(&layout, &map, at_ms, unix_ms()) {
            Ok(Fed::Stop) => Err(gst::FlowError::Flushing),
            Ok(_) => Ok(gst::FlowSuccess::Ok),
            Err(error) => {
                self.why = Some(format!("{}: {error}", self.feed.config().source));
                Err(gst::FlowError::Error)
            }
        }
    }

    /// The layout of this sample; worked out when the caps change.
    fn layout(&mut self, sample: &Sample) -> Result<Layout, String> {
        let caps = sample.caps().ok_or("frames come without caps")?;
        if let Some((known, layout)) = &self.layout
            && known.as_ref() == caps
        {
            return Ok(*layout);
        }
        let (layout, fps) = read_caps(caps)?;
        let Layout { width, height, format, .. } = layout;
        self.layout = Some((caps.to_owned(), layout));
        self.feed.opened(StreamInfo { width, height, fps, format, what: String::new() });
        Ok(layout)
    }
}

fn read_caps(caps: &gst::CapsRef) -> Result<(Layout, Option<f64>), String> {
    let wrong = || format!("frames come as {caps}, which is not understood");
    let fields = caps.structure(0).ok_or_else(wrong)?;
    let name = fields.get::<&str>("format").map_err(|_| wrong())?;
    let format = FORMATS.iter().find(|(n, _)| *n == name).map(|(_, format)| *format).ok_or_else(wrong)?;
    let side = |key| fields.get::<i32>(key).ok().and_then(|n| u32::try_from(n).ok()).ok_or_else(wrong);
    let (width, height) = (side("width")?, side("height")?);
    // "bt709" and the like, or range:matrix:transfer:primaries in numbers, range 1 = full, matrix 3 = BT.709.
    let colorimetry = fields.get::<&str>("colorimetry").unwrap_or_default();
    let matrix = match colorimetry.split(':').collect::<Vec<_>>()[..] {
        ["1", ..] => Matrix::Full,
        ["bt709"] | [_, "3", ..] => Matrix::Bt709,
        _ => Matrix::Bt601,
    };
    let fps = fields.get::<gst::Fraction>("framerate").ok().filter(|f| f.numer() > 0 && f.denom() > 0);
    let fps = fps.map(|f| f64::from(f.numer()) / f64::from(f.denom()));
    Ok((Layout::gstreamer(format, width, height, matrix).map_err(|e| e.to_string())?, fps))
}

/// Where the frame stands in the file, in milliseconds.
fn running_ms(sample: &Sample, buffer: &gst::BufferRef) -> Option<u64> {
    let segment = sample.segment()?.downcast_ref::<ClockTime>()?;
    Some(segment.to_running_time(buffer.pts()?)?.mseconds())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caps_become_a_layout() {
        gst::init().unwrap();
        let caps = |text: &str| text.parse::<gst::Caps>().unwrap();
        let (layout, fps) = read_caps(&caps(
            "video/x-raw,format=I420,width=480,height=270,framerate=30000/1001,colorimetry=bt709",
        ))
        .unwrap();
        assert_eq!((layout.format, layout.width, layout.matrix), (Format::I420, 480, Matrix::Bt709));
        assert!((fps.unwrap() - 29.97).abs() < 0.01);
        let (layout, fps) =
            read_caps(&caps("video/x-raw,format=GRAY8,width=5,height=3,framerate=0/1")).unwrap();
        assert_eq!((layout.format, layout.planes[0].stride, fps), (Format::Grey, 8, None));
        let (layout, _) =
            read_caps(&caps("video/x-raw,format=NV12,width=4,height=4,colorimetry=1:4:0:0")).unwrap();
        assert_eq!(layout.matrix, Matrix::Full);
        assert!(read_caps(&caps("video/x-raw,format=RGBA,width=4,height=4")).unwrap_err().contains("RGBA"));
        assert!(read_caps(&caps("video/x-raw,format=RGB,width=0,height=4")).is_err());
    }
}

//! A V4L2 camera: opened and negotiated on a thread of its own (a USB camera takes its time), then read by the main
//! loop through the device's file descriptor.
//!
//! Owns: the open device, its mapped buffers and its feed. Invariants: of several waiting buffers only the latest is
//! looked at, in place; the stream is stopped before it is dropped (the crate's own drop would end the program on an
//! error that an unplugged camera may well give). Never: waits for a frame.

use std::io;
use std::path::Path;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use v4l::buffer::{Flags, Type};
use v4l::capability::Flags as Capability;
use v4l::format::{Colorspace, FourCC, Quantization};
use v4l::frameinterval::FrameIntervalEnum;
use v4l::io::traits::{CaptureStream, Stream as _};
use v4l::prelude::{Device, MmapStream};
use v4l::video::Capture as _;
use v4l::video::capture::Parameters;

use super::feed::Feed;
use super::{SourceEvent, StreamInfo};
use crate::config::raw::V4lFormat;
use crate::frame::{Format, Layout, Matrix};
use crate::inbox::End;
use edge::clock::unix_ms;

/// Buffers asked of the driver: one is being looked at, one filled, two for a late loop.
const BUFFERS: u32 = 4;
/// `poll(2)`: there is something to read.
const POLLIN: i16 = 1;
/// The device is gone.
const ENODEV: i32 = 19;

/// In the order of preference when the file does not choose: raw before JPEG, for its price.
const FORMATS: [(V4lFormat, &[u8; 4], Format); 4] = [
    (V4lFormat::Yuyv, b"YUYV", Format::Yuyv),
    (V4lFormat::Nv12, b"NV12", Format::Nv12),
    (V4lFormat::Grey, b"GREY", Format::Grey),
    (V4lFormat::Mjpg, b"MJPG", Format::Mjpg),
];

/// A camera that streams.
pub struct Capture {
    device: Device,
    stream: Option<MmapStream<'static>>,
    layout: Layout,
    feed: Option<Feed>,
    complained: bool,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("layout", &self.layout).finish_non_exhaustive()
    }
}

/// Why a camera can't be used, in words.
type Why = String;

fn failed(action: &str, path: &Path) -> impl FnOnce(io::Error) -> Why {
    let (action, path) = (action.to_owned(), path.display().to_string());
    move |error| {
        let hint = match error.raw_os_error() {
            Some(2 | 6 | ENODEV) => "; is it plugged in? 'v4l2-ctl --list-devices' shows what is there",
            Some(1) => "; the unit's DeviceAllow= does not name it ('systemctl cat faced')",
            Some(13) => "; the user of this program must be in the group video",
            Some(16) => "; another program uses it ('fuser -v' shows which)",
            _ => "",
        };
        format!("cannot {action} {path}: {error}{hint}")
    }
}

impl Capture {
    /// Opens and negotiates, and starts the stream.
    ///
    /// # Errors
    /// In words: what was tried, on what, why it failed. The feed is given back, so that its end can be told.
    pub fn open(path: &Path, feed: Feed) -> Result<Capture, Box<(Why, Feed)>> {
        match open(path, &feed) {
            Ok((device, stream, layout, info)) => {
                feed.opened(info);
                Ok(Capture { device, stream: Some(stream), layout, feed: Some(feed), complained: false })
            }
            Err(why) => Err(Box::new((why, feed))),
        }
    }

    /// Gives itself to the main loop.
    pub fn hand_over(mut self) {
        let Some(feed) = self.feed.take() else { return };
        let (camera, events) = (feed.camera(), feed.teller());
        self.feed = Some(feed);
        events(SourceEvent::Capture { camera, capture: Box::new(self) });
    }

    /// Adds the device to the poll.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.device.handle().fd()), token, Interest::READABLE)
    }

    /// Takes it out again.
    pub fn deregister(&self, registry: &Registry) {
        if let Err(error) = registry.deregister(&mut SourceFd(&self.device.handle().fd())) {
            log::debug!("cannot take a camera out of the poll: {error}");
        }
    }

    /// Reads all frames that are there; the latest goes on.
    ///
    /// # Errors
    /// When the device failed or is gone.
    pub fn ready(&mut self, now: Instant) -> io::Result<()> {
        let (Some(stream), Some(feed)) = (&mut self.stream, &mut self.feed) else { return Ok(()) };
        let handle = stream.handle();
        if handle.poll(POLLIN, 0)? == 0 {
            return Ok(());
        }
        loop {
            let (buffer, meta) = CaptureStream::next(stream)?;
            if handle.poll(POLLIN, 0)? > 0 {
                feed.skipped();
                continue;
            }
            let used = (meta.bytesused as usize).min(buffer.len());
            if meta.flags.contains(Flags::ERROR) || used == 0 {
                feed.bad();
                return Ok(());
            }
            let (at_ms, time_ms, data) = (feed.clock_ms(now), unix_ms(), &buffer[..used]);
            let fed = match self.layout.format {
                Format::Mjpg => Ok(feed.jpeg(&self.layout, data, at_ms, time_ms)),
                _ => feed.raw(&self.layout, data, at_ms, time_ms),
            };
            if let Err(error) = fed
                && !self.complained
            {
                self.complained = true;
                log::warn!("camera {}: {error}; such frames are left out and counted", feed.config().name);
            }
            return Ok(());
        }
    }

    /// Ends the stream and tells why.
    pub fn close(mut self, end: End) {
        self.stop();
        if let Some(feed) = self.feed.take() {
            feed.finish(end);
        }
    }

    fn stop(&mut self) {
        let Some(mut stream) = self.stream.take() else { return };
        match stream.stop() {
            Err(error) if error.raw_os_error() != Some(ENODEV) => {
                // Dropping it would try the same again and end the program on the error.
                log::warn!("a camera cannot be stopped: {error}; its buffers stay mapped");
                std::mem::forget(stream);
            }
            _ => drop(stream),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop();
    }
}

type Opened = (Device, MmapStream<'static>, Layout, StreamInfo);

fn open(path: &Path, feed: &Feed) -> Result<Opened, Why> {
    let config = feed.config();
    let device = Device::with_path(path).map_err(failed("open", path))?;
    let caps = device.query_caps().map_err(failed("ask for the capabilities of", path))?;
    if !caps.capabilities.contains(Capability::VIDEO_CAPTURE | Capability::STREAMING) {
        let hint = if caps.capabilities.contains(Capability::VIDEO_CAPTURE_MPLANE) {
            "it is multi-planar: use a source such as \"gst:v4l2src device=…\" or nvarguscamerasrc"
        } else {
            "it is no camera that streams (a camera may have several nodes: try the next one)"
        };
        return Err(format!("{} ({}): {hint}", path.display(), caps.card));
    }
    let current = device.format().map_err(failed("ask for the format of", path))?;
    let (width, height) = config.size.unwrap_or((current.width, current.height));
    let fourcc = choose(&device, path, config.format, (width, height), config.fps)?;
    let wanted = v4l::Format::new(width, height, fourcc);
    let got = device.set_format(&wanted).map_err(failed("set the format of", path))?;
    let format =
        FORMATS.iter().find(|(_, code, _)| got.fourcc == FourCC::new(code)).map(|(.., format)| *format);
    let format = format.ok_or_else(|| format!("{} insists on the format {}", path.display(), got.fourcc))?;
    let matrix = match (got.colorspace, got.quantization) {
        (_, Quantization::FullRange) => Matrix::Full,
        (Colorspace::Rec709, _) => Matrix::Bt709,
        _ => Matrix::Bt601,
    };
    let layout = Layout::packed(
        format,
        got.width,
        got.height,
        got.stride as usize * usize::from(format != Format::Mjpg),
        matrix,
    )
    .map_err(|e| format!("{}: {e}", path.display()))?;
    if let Some(fps) = config.fps {
        // A device that can't choose its rate refuses this; what it then does is reported below.
        if let Err(error) = device.set_params(&Parameters::with_fps(fps)) {
            log::debug!("camera {}: cannot set {fps} frames a second: {error}", config.name);
        }
    }
    let fps =
        device.params().ok().map(|p| f64::from(p.interval.denominator) / f64::from(p.interval.numerator));
    let mut stream = MmapStream::with_buffers(&device, Type::VideoCapture, BUFFERS)
        .map_err(failed("map buffers of", path))?;
    stream.set_timeout(std::time::Duration::ZERO);
    // `next` queues buffer 0 itself before it takes the first frame.
    for index in 1..BUFFERS as usize {
        if CaptureStream::queue(&mut stream, index).is_err() {
            break;
        }
    }
    stream.start().map_err(failed("start", path))?;
    let fps = fps.filter(|fps| fps.is_finite() && *fps > 0.0);
    let info = StreamInfo { width: got.width, height: got.height, fps, format, what: caps.card };
    Ok((device, stream, layout, info))
}

/// The format to ask for: the one in the file, else the first that reaches the wanted rate, else the first.
fn choose(
    device: &Device,
    path: &Path,
    wanted: V4lFormat,
    (width, height): (u32, u32),
    fps: Option<u32>,
) -> Result<FourCC, Why> {
    let offered = device.enum_formats().map_err(failed("list the formats of", path))?;
    let has = |code: &[u8; 4]| offered.iter().any(|f| f.fourcc == FourCC::new(code));
    let known: Vec<&[u8; 4]> = FORMATS
        .iter()
        .filter(|(name, code, _)| (wanted == V4lFormat::Auto || wanted == *name) && has(code))
        .map(|(_, code, _)| *code)
        .collect();
    let Some(first) = known.first() else {
        let names: Vec<String> = offered.iter().map(|f| f.fourcc.to_string()).collect();
        let wanted = if wanted == V4lFormat::Auto {
            "MJPG, YUYV, NV12, GREY".to_owned()
        } else {
            format!("{wanted:?}")
        };
        return Err(format!("{} offers {}, and {wanted} is wanted", path.display(), names.join(", ")));
    };
    let fast_enough = known.iter().find(|code| {
        let intervals = device.enum_frameintervals(FourCC::new(code), width, height).unwrap_or_default();
        intervals.iter().any(|i| match &i.interval {
            FrameIntervalEnum::Discrete(f) => f.denominator >= fps.unwrap_or(0).saturating_mul(f.numerator),
            FrameIntervalEnum::Stepwise(s) => {
                s.min.denominator >= fps.unwrap_or(0).saturating_mul(s.min.numerator)
            }
        })
    });
    Ok(FourCC::new(fast_enough.unwrap_or(first)))
}

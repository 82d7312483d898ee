//! Raw frames as GStreamer buffers.
//!
//! A slot's memory becomes a buffer without a copy: GStreamer holds the [`SlotBytes`] and drops it when its last user is
//! done, which gives the slot back. Rows that are not where GStreamer would put them are described by a video meta.
//! Owns: nothing. Never: copies a pixel.

use gst_video::{VideoFormat, VideoFrameFlags, VideoInfo, VideoMeta};

use crate::frames::geometry::{Format, Layout};
use crate::frames::ring::SlotBytes;

/// What a buffer holds: the caps of the pipeline that takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// How pixels lie.
    pub format: VideoFormat,
    /// Pixels.
    pub size: (u32, u32),
    /// Frames a second as a fraction; 0 = unknown.
    pub fps: (i32, i32),
}

/// The rate that an encoder is told where nobody knows it. It must be told one: x264 without a rate holds each frame
/// back until the next one says how long it lasted. Times are the frames' own all the same; the rate control alone
/// believes it, and the core scales the bit rate once the true rate is seen.
pub const NOMINAL_FPS: i32 = 30;

impl Shape {
    /// GStreamer's name for it.
    #[must_use]
    pub fn caps(&self) -> gst::Caps {
        let fps = if self.fps.0 > 0 { self.fps } else { (NOMINAL_FPS, 1) };
        gst::Caps::builder("video/x-raw")
            .field("format", self.format.to_str())
            .field("width", i32::try_from(self.size.0).unwrap_or(i32::MAX))
            .field("height", i32::try_from(self.size.1).unwrap_or(i32::MAX))
            .field("pixel-aspect-ratio", gst::Fraction::new(1, 1))
            .field("framerate", gst::Fraction::new(fps.0, fps.1.max(1)))
            .build()
    }
}

/// GStreamer's word for a format.
#[must_use]
pub fn video_format(format: Format) -> VideoFormat {
    match format {
        Format::Bgr => VideoFormat::Bgr,
        Format::Rgb => VideoFormat::Rgb,
        // The fourth byte is ignored, and x says so: nobody blends.
        Format::Bgra => VideoFormat::Bgrx,
        Format::Gray8 => VideoFormat::Gray8,
        Format::Nv12 => VideoFormat::Nv12,
        Format::I420 => VideoFormat::I420,
    }
}

/// The frame in a slot as a buffer.
///
/// # Errors
/// In words, when GStreamer does not take the geometry.
pub fn wrap(bytes: SlotBytes, layout: &Layout) -> Result<gst::Buffer, String> {
    let format = video_format(layout.format);
    let mut buffer = gst::Buffer::from_slice(bytes);
    let info = VideoInfo::builder(format, layout.width, layout.height).build().map_err(|e| e.to_string())?;
    let (offsets, strides) = (&layout.offsets[..layout.planes], &layout.strides[..layout.planes]);
    if info.offset() != offsets || info.stride() != strides {
        let Some(buffer) = buffer.get_mut() else { return Err("a new buffer has another user".to_owned()) };
        let flags = VideoFrameFlags::empty();
        VideoMeta::add_full(buffer, flags, format, layout.width, layout.height, offsets, strides)
            .map_err(|e| e.to_string())?;
    }
    Ok(buffer)
}

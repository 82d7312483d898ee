//! Pictures as cameras deliver them: where each colour component lies in the bytes.
//!
//! Owns: the layouts (YUYV, NV12, I420, GREY, RGB, and the full-range YCbCr of a decoded JPEG) and the frame that
//! travels from a source to a detector. Invariant: a [`Frame`] or [`View`] holds at least the bytes its layout names,
//! checked once when it is made, so that readers may index freely.
//! Never: converts (see `convert`), decodes, or talks to a device.

use std::sync::Arc;

/// The largest picture taken, in pixels: above it a header is wrong or the device is not meant for this.
pub const PIXELS_MAX: u64 = 64_000_000;

/// How the pixels are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// A JPEG picture a frame.
    Mjpg,
    /// Packed 4:2:2, `Y0 U Y1 V`.
    Yuyv,
    /// A plane of Y, then one of interleaved U and V at half the width and height.
    Nv12,
    /// Planes of Y, U and V, the latter two at half the width and height.
    I420,
    /// Luma alone.
    Grey,
    /// Packed, 3 bytes a pixel.
    Rgb,
    /// Packed Y, Cb, Cr, 3 bytes a pixel, full range (a decoded JPEG).
    Ycc,
}

impl Format {
    /// The name used in the configuration, in logs and in the status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Mjpg => "MJPG",
            Format::Yuyv => "YUYV",
            Format::Nv12 => "NV12",
            Format::I420 => "I420",
            Format::Grey => "GREY",
            Format::Rgb => "RGB",
            Format::Ycc => "YCbCr",
        }
    }
}

/// How YUV becomes RGB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Matrix {
    /// ITU-R BT.601, luma 16 to 235: standard definition and nearly every webcam.
    #[default]
    Bt601,
    /// ITU-R BT.709, luma 16 to 235: most high-definition video.
    Bt709,
    /// ITU-R BT.601, luma 0 to 255: JPEG.
    Full,
}

/// One colour component: sample `(x, y)` is the byte `offset + y * stride + x * step`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plane {
    /// First sample.
    pub offset: usize,
    /// Bytes from one row to the next.
    pub stride: usize,
    /// Bytes from one sample to the next.
    pub step: usize,
    /// How often the width is halved.
    pub shift_x: u8,
    /// How often the height is halved.
    pub shift_y: u8,
}

/// Where everything lies in a frame's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// How the pixels are stored.
    pub format: Format,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// How YUV becomes RGB; without meaning for GREY and RGB.
    pub matrix: Matrix,
    /// Y (or R), U (or G), V (or B); GREY repeats Y.
    pub planes: [Plane; 3],
    /// Bytes needed.
    pub bytes: usize,
}

/// Why a picture can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Zero, odd where the format needs even, or beyond [`PIXELS_MAX`].
    #[error(
        "a {format} picture of {width}x{height} can't be used (even sizes up to {PIXELS_MAX} pixels can)"
    )]
    Size {
        /// Name of the format.
        format: &'static str,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// The rows overlap.
    #[error("rows of {stride} bytes are too short for a {format} picture {width} pixels wide")]
    Stride {
        /// Name of the format.
        format: &'static str,
        /// Bytes a row.
        stride: usize,
        /// Width in pixels.
        width: u32,
    },
    /// The device delivered less than a frame.
    #[error("the frame has {found} bytes instead of {expected}")]
    Short {
        /// Bytes delivered.
        found: usize,
        /// Bytes the layout needs.
        expected: usize,
    },
}

fn plane(offset: usize, stride: usize, step: usize, shift_x: u8, shift_y: u8) -> Plane {
    Plane { offset, stride, step, shift_x, shift_y }
}

const fn round_up(n: usize, to: usize) -> usize {
    n.div_ceil(to) * to
}

impl Layout {
    /// A packed or semi-planar picture whose first plane has rows of `stride` bytes (0 = as short as possible) and whose
    /// further planes follow without a gap, as V4L2 and the decoders of this program store them.
    ///
    /// # Errors
    /// [`FrameError::Size`] and [`FrameError::Stride`].
    pub fn packed(
        format: Format,
        width: u32,
        height: u32,
        stride: usize,
        matrix: Matrix,
    ) -> Result<Layout, FrameError> {
        check_size(format, width, height)?;
        let (w, h) = (width as usize, height as usize);
        let row = match format {
            Format::Yuyv => w * 2,
            Format::Rgb | Format::Ycc => w * 3,
            _ => w,
        };
        let stride = if stride == 0 { row } else { stride };
        if stride < row {
            return Err(FrameError::Stride { format: format.name(), stride, width });
        }
        let luma = stride * h;
        let (planes, bytes) = match format {
            Format::Yuyv => {
                ([plane(0, stride, 2, 0, 0), plane(1, stride, 4, 1, 0), plane(3, stride, 4, 1, 0)], luma)
            }
            Format::Nv12 => {
                let chroma = |n| plane(luma + n, stride, 2, 1, 1);
                ([plane(0, stride, 1, 0, 0), chroma(0), chroma(1)], luma + stride * h / 2)
            }
            Format::I420 => {
                let (half, size) = (stride / 2, stride / 2 * (h / 2));
                let chroma = |n| plane(luma + n, half, 1, 1, 1);
                ([plane(0, stride, 1, 0, 0), chroma(0), chroma(size)], luma + 2 * size)
            }
            Format::Rgb | Format::Ycc => {
                ([plane(0, stride, 3, 0, 0), plane(1, stride, 3, 0, 0), plane(2, stride, 3, 0, 0)], luma)
            }
            Format::Grey | Format::Mjpg => ([plane(0, stride, 1, 0, 0); 3], luma),
        };
        Ok(Layout { format, width, height, matrix, planes, bytes })
    }

    /// The layout GStreamer uses when buffers carry no other (`gst_video_info_set_format`): rows rounded up to 4 bytes,
    /// luma heights of subsampled formats to even rows. Odd sizes are allowed.
    ///
    /// # Errors
    /// [`FrameError::Size`].
    pub fn gstreamer(format: Format, width: u32, height: u32, matrix: Matrix) -> Result<Layout, FrameError> {
        // The next even size passes the check of `packed` whenever this size would.
        let even = |n: u32| n.next_multiple_of(2);
        check_size(format, even(width), even(height))?;
        check_size(Format::Grey, width, height)?;
        let (w, h) = (width as usize, height as usize);
        let row = match format {
            Format::Yuyv => round_up(w, 2) * 2,
            Format::Rgb | Format::Ycc => w * 3,
            _ => w,
        };
        let stride = round_up(row, 4);
        let luma = stride * round_up(h, 2);
        let rows = h.div_ceil(2);
        let first = |step| plane(0, stride, step, 0, 0);
        let (planes, bytes) = match format {
            Format::I420 => {
                let half = round_up(w.div_ceil(2), 4);
                let chroma = |n| plane(luma + n, half, 1, 1, 1);
                ([first(1), chroma(0), chroma(half * rows)], luma + 2 * half * rows)
            }
            Format::Nv12 => {
                let chroma = |n| plane(luma + n, stride, 2, 1, 1);
                ([first(1), chroma(0), chroma(1)], luma + stride * rows)
            }
            Format::Yuyv => ([first(2), plane(1, stride, 4, 1, 0), plane(3, stride, 4, 1, 0)], stride * h),
            Format::Rgb | Format::Ycc => {
                ([first(3), plane(1, stride, 3, 0, 0), plane(2, stride, 3, 0, 0)], stride * h)
            }
            Format::Grey | Format::Mjpg => ([first(1); 3], stride * h),
        };
        Ok(Layout { format, width, height, matrix, planes, bytes })
    }
}

fn check_size(format: Format, width: u32, height: u32) -> Result<(), FrameError> {
    let odd = match format {
        Format::Yuyv => !width.is_multiple_of(2),
        Format::Nv12 | Format::I420 => !width.is_multiple_of(2) || !height.is_multiple_of(2),
        _ => false,
    };
    if odd || width == 0 || height == 0 || u64::from(width) * u64::from(height) > PIXELS_MAX {
        return Err(FrameError::Size { format: format.name(), width, height });
    }
    Ok(())
}

/// Pixels that belong to somebody else (a driver's buffer, a pipeline's).
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    layout: &'a Layout,
    data: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks that `data` holds what `layout` names.
    ///
    /// # Errors
    /// [`FrameError::Short`].
    pub fn new(layout: &'a Layout, data: &'a [u8]) -> Result<View<'a>, FrameError> {
        if data.len() < layout.bytes {
            return Err(FrameError::Short { found: data.len(), expected: layout.bytes });
        }
        Ok(View { layout, data })
    }

    /// Where everything lies.
    #[must_use]
    pub fn layout(&self) -> &'a Layout {
        self.layout
    }

    /// The bytes, at least as many as the layout needs.
    #[must_use]
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The sample of component `component` that covers pixel `(x, y)`, which must lie inside the picture.
    #[must_use]
    pub fn sample(&self, component: usize, x: u32, y: u32) -> u8 {
        let p = &self.layout.planes[component];
        self.data[p.offset + (y >> p.shift_y) as usize * p.stride + (x >> p.shift_x) as usize * p.step]
    }
}

/// What is common to all frames of one camera connection.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// The camera's index in the configuration.
    pub camera: usize,
    /// Milliseconds on the camera's own clock: capture time of a live camera, position in a file.
    pub at_ms: u64,
    /// Wall clock when it was read, Unix milliseconds.
    pub time_ms: u64,
    /// Until when (on the camera's clock) frames before this one were found unchanged and left out.
    pub still_until_ms: Option<u64>,
}

/// A picture on its way to the detector.
#[derive(Debug, Clone)]
pub struct Frame {
    /// When and whence.
    pub stamp: Stamp,
    /// Where everything lies; for [`Format::Mjpg`] `bytes` is meaningless.
    pub layout: Layout,
    /// The pixels, or the JPEG file.
    pub data: Vec<u8>,
    /// Name of the file, for a folder of pictures.
    pub origin: Option<Arc<str>>,
}

impl Frame {
    /// The pixels.
    ///
    /// # Errors
    /// [`FrameError::Short`].
    pub fn view(&self) -> Result<View<'_>, FrameError> {
        View::new(&self.layout, &self.data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_lie_where_the_formats_say() {
        let yuyv = Layout::packed(Format::Yuyv, 4, 1, 0, Matrix::Bt601).unwrap();
        let bytes = [10, 200, 20, 100, 30, 201, 40, 101];
        let view = View::new(&yuyv, &bytes).unwrap();
        let row = |c| (0..4).map(|x| view.sample(c, x, 0)).collect::<Vec<_>>();
        assert_eq!((row(0), row(1)), (vec![10, 20, 30, 40], vec![200, 200, 201, 201]));
        assert_eq!(row(2), [100, 100, 101, 101]);

        let nv12 = Layout::packed(Format::Nv12, 2, 2, 4, Matrix::Bt601).unwrap();
        let bytes = [1, 2, 0, 0, 3, 4, 0, 0, 50, 60, 0, 0];
        let view = View::new(&nv12, &bytes).unwrap();
        assert_eq!((view.sample(0, 1, 1), view.sample(1, 1, 1), view.sample(2, 0, 1)), (4, 50, 60));
        assert_eq!(nv12.bytes, 12);
    }

    #[test]
    fn gstreamer_rounds_rows_up() {
        // 270 rows, 482 wide: luma rows of 484, chroma rows of 244 (241 rounded up).
        let layout = Layout::gstreamer(Format::I420, 482, 270, Matrix::Bt709).unwrap();
        assert_eq!((layout.planes[0].stride, layout.planes[1].stride), (484, 244));
        assert_eq!(layout.planes[1].offset, 484 * 270);
        assert_eq!(layout.planes[2].offset, 484 * 270 + 244 * 135);
        assert_eq!(layout.bytes, 484 * 270 + 244 * 270);
        assert_eq!(Layout::gstreamer(Format::Rgb, 5, 2, Matrix::Bt601).unwrap().planes[0].stride, 16);
        // Odd: 5 x 3 has luma rows of 8, four of them, then two rows of 4 for each chroma plane.
        let layout = Layout::gstreamer(Format::I420, 5, 3, Matrix::Bt601).unwrap();
        assert_eq!((layout.planes[1].offset, layout.planes[2].offset, layout.bytes), (32, 40, 48));
        let data = [0; 48];
        assert_eq!(View::new(&layout, &data).unwrap().sample(2, 4, 2), 0);
    }

    #[test]
    fn what_cannot_be_a_picture_is_refused() {
        for (format, w, h) in
            [(Format::Yuyv, 3, 2), (Format::Nv12, 4, 3), (Format::Grey, 0, 1), (Format::Rgb, 9000, 9000)]
        {
            assert!(matches!(Layout::packed(format, w, h, 0, Matrix::Bt601), Err(FrameError::Size { .. })));
        }
        let short = Layout::packed(Format::Grey, 4, 4, 3, Matrix::Bt601);
        assert!(matches!(short, Err(FrameError::Stride { .. })));
        let layout = Layout::packed(Format::Grey, 4, 4, 0, Matrix::Bt601).unwrap();
        assert_eq!(View::new(&layout, &[0; 15]).unwrap_err(), FrameError::Short { found: 15, expected: 16 });
    }
}

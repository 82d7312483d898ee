//! Formats, and where the planes of a picture lie in its slot.
//!
//! Owns: the arithmetic of strides and planes. Invariants: nothing overflows whatever a client says; a [`Layout`] never
//! reaches beyond [`Layout::bytes`]. Never: touches a pixel.

/// How pixels lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 3 bytes a pixel, as OpenCV has them.
    Bgr,
    /// 3 bytes a pixel.
    Rgb,
    /// 4 bytes a pixel, alpha ignored.
    Bgra,
    /// 1 byte a pixel.
    Gray8,
    /// Luma, then interleaved chroma of half width and height.
    Nv12,
    /// Luma, then two chroma planes of half width and height.
    I420,
}

const FORMATS: [(Format, u32, &str); 6] = [
    (Format::Bgr, 1, "BGR"),
    (Format::Rgb, 2, "RGB"),
    (Format::Bgra, 3, "BGRA"),
    (Format::Gray8, 4, "GRAY8"),
    (Format::Nv12, 5, "NV12"),
    (Format::I420, 6, "I420"),
];

impl Format {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u32 {
        FORMATS.iter().find(|(f, ..)| *f == self).map_or(0, |(_, n, _)| *n)
    }

    /// The format of a number on the wire.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Format> {
        FORMATS.iter().find(|(_, n, _)| *n == number).map(|(f, ..)| *f)
    }

    /// GStreamer's name, which is everybody's.
    #[must_use]
    pub fn name(self) -> &'static str {
        FORMATS.iter().find(|(f, ..)| *f == self).map_or("", |(.., name)| name)
    }

    /// Bytes of a row of the first plane, without padding.
    fn row(self, width: u64) -> u64 {
        match self {
            Format::Bgr | Format::Rgb => 3 * width,
            Format::Bgra => 4 * width,
            Format::Gray8 | Format::Nv12 | Format::I420 => width,
        }
    }
}

/// Where a picture's planes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// How pixels lie.
    pub format: Format,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Planes in use.
    pub planes: usize,
    /// Where each begins, in bytes.
    pub offsets: [usize; 3],
    /// Bytes from row to row of each.
    pub strides: [i32; 3],
    /// Bytes of all.
    pub bytes: usize,
}

/// Why a picture can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// Rows would overlap.
    #[error("stride {stride}: a row of {width} pixels {format} needs {needs} bytes")]
    Stride {
        /// What was said.
        stride: u32,
        /// Pixels.
        width: u32,
        /// Format's name.
        format: &'static str,
        /// At least this.
        needs: u64,
    },
    /// Larger than this daemon takes.
    #[error(
        "a picture of {width}x{height} is larger than {width_max}x{height_max} (frames.width-max, height-max)"
    )]
    Large {
        /// Pixels.
        width: u32,
        /// Pixels.
        height: u32,
        /// Pixels.
        width_max: u32,
        /// Pixels.
        height_max: u32,
    },
    /// More bytes than an address space has.
    #[error("a picture of {0} rows of {1} bytes is more than memory can hold")]
    Huge(u32, u64),
}

impl Layout {
    /// A picture with rows `stride` bytes apart (0 = packed); chroma planes follow the luma plane at once, with
    /// rows as far apart (NV12) or half as far, rounded up (I420).
    ///
    /// # Errors
    /// [`GeometryError`]: it is larger than `max`, or its rows overlap.
    pub fn new(
        format: Format,
        (width, height): (u32, u32),
        stride: u32,
        max: (u32, u32),
    ) -> Result<Layout, GeometryError> {
        if width > max.0 || height > max.1 {
            return Err(GeometryError::Large { width, height, width_max: max.0, height_max: max.1 });
        }
        let (w, h) = (u64::from(width), u64::from(height));
        // Chroma of an odd width has one column more than half, which NV12 stores in the same row length.
        let row = if format == Format::Nv12 { w.next_multiple_of(2) } else { format.row(w) };
        let stride_bytes = if stride == 0 { row } else { u64::from(stride) };
        if stride_bytes < row {
            return Err(GeometryError::Stride { stride, width, format: format.name(), needs: row });
        }
        let huge = || GeometryError::Huge(height, stride_bytes);
        if i32::try_from(stride_bytes).is_err() {
            return Err(huge());
        }
        let half = stride_bytes.div_ceil(2);
        let (luma, chroma_rows) = (stride_bytes * h, h.div_ceil(2));
        let (planes, offsets, strides, bytes) = match format {
            Format::Nv12 => {
                (2, [0, luma, 0], [stride_bytes, stride_bytes, 0], luma + stride_bytes * chroma_rows)
            }
            Format::I420 => {
                let chroma = half * chroma_rows;
                (3, [0, luma, luma + chroma], [stride_bytes, half, half], luma + 2 * chroma)
            }
            _ => (1, [0; 3], [stride_bytes, 0, 0], luma),
        };
        if isize::try_from(bytes).is_err() {
            return Err(huge());
        }
        Ok(Layout {
            format,
            width,
            height,
            planes,
            // All are below `bytes`, which fits.
            offsets: offsets.map(|n| n as usize),
            strides: strides.map(|n| n as i32),
            bytes: bytes as usize,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: (u32, u32) = (8192, 8192);

    #[test]
    fn planes_follow_each_other() {
        let bgr = Layout::new(Format::Bgr, (1280, 720), 0, MAX).unwrap();
        assert_eq!((bgr.bytes, bgr.strides[0], bgr.planes), (2_764_800, 3840, 1));
        let i420 = Layout::new(Format::I420, (5, 3), 0, MAX).unwrap();
        assert_eq!((i420.offsets, i420.strides, i420.bytes), ([0, 15, 21], [5, 3, 3], 27));
        let nv12 = Layout::new(Format::Nv12, (5, 3), 8, MAX).unwrap();
        assert_eq!((nv12.offsets, nv12.strides, nv12.bytes), ([0, 24, 0], [8, 8, 0], 40));
        assert_eq!(Layout::new(Format::Nv12, (5, 3), 0, MAX).unwrap().strides[0], 6);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(matches!(
            Layout::new(Format::Bgra, (100, 4), 399, MAX),
            Err(GeometryError::Stride { needs: 400, .. })
        ));
        assert!(matches!(Layout::new(Format::Gray8, (8193, 1), 0, MAX), Err(GeometryError::Large { .. })));
        let all = (u32::MAX, u32::MAX);
        for format in FORMATS.map(|(f, ..)| f) {
            let _ = Layout::new(format, all, u32::MAX, all);
            let _ = Layout::new(format, all, 0, all);
        }
        assert!(matches!(Layout::new(Format::Gray8, all, 0, all), Err(GeometryError::Huge(..))));
        assert_eq!(Format::from_number(0), None);
        assert!(FORMATS.iter().all(|(f, n, _)| Format::from_number(*n) == Some(*f)));
    }
}

//! From camera pixels to RGB and luma, for the part of a picture that is wanted.
//!
//! Owns: the YUV arithmetic (8-bit fixed point) and JPEG and PNG decoding. Invariant: what is converted is the crop, in
//! full resolution; the whole frame is never converted to RGB.
//! Never: scales (see `detect::scale`), keeps a frame.

use std::io::Cursor;

use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::frame::{Format, FrameError, Layout, Matrix, PIXELS_MAX, Plane, View};

/// A rectangle in pixels of the full frame. Non-empty, inside the frame it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Left edge.
    pub x: u32,
    /// Upper edge.
    pub y: u32,
    /// Width, at least 1.
    pub w: u32,
    /// Height, at least 1.
    pub h: u32,
}

impl Area {
    /// The part of `x, y, w, h` that lies inside a picture of `width` x `height`, edges rounded outwards; `None` when
    /// that is nothing (or a number is not finite).
    #[must_use]
    pub fn inside(x: f32, y: f32, w: f32, h: f32, width: u32, height: u32) -> Option<Area> {
        if ![x, y, w, h].iter().all(|v| v.is_finite()) {
            return None;
        }
        let (left, top) = (x.floor().max(0.0), y.floor().max(0.0));
        let (right, bottom) = ((x + w).ceil().min(width as f32), (y + h).ceil().min(height as f32));
        (right > left && bottom > top).then_some(Area {
            x: left as u32,
            y: top as u32,
            w: (right - left) as u32,
            h: (bottom - top) as u32,
        })
    }
}

/// Packed RGB, 3 bytes a pixel, no padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rgb {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// `width * height * 3` bytes.
    pub data: Vec<u8>,
}

/// Cuts `area` out of the picture as RGB.
#[must_use]
pub fn crop_rgb(view: &View<'_>, area: Area) -> Rgb {
    let layout = view.layout();
    let [a, b, c] = layout.planes;
    let (left, right) = (area.x as usize, (area.x + area.w) as usize);
    let mut data = vec![0; area.w as usize * area.h as usize * 3];
    for (y, line) in (area.y..).zip(data.chunks_exact_mut(area.w as usize * 3)) {
        // The rows, so that a pixel costs no multiplication by the stride.
        let row = |p: &Plane| &view.data()[p.offset + (y >> p.shift_y) as usize * p.stride..];
        let (row_a, row_b, row_c) = (row(&a), row(&b), row(&c));
        let at = |row: &[u8], p: &Plane, x: usize| row[(x >> p.shift_x) * p.step];
        let pixels = (left..right).zip(line.chunks_exact_mut(3));
        match layout.format {
            Format::Rgb => line.copy_from_slice(&row_a[left * 3..right * 3]),
            Format::Grey | Format::Mjpg => pixels.for_each(|(x, pixel)| pixel.fill(row_a[x])),
            _ => pixels.for_each(|(x, pixel)| {
                let (y, u, v) = (at(row_a, &a, x), at(row_b, &b, x), at(row_c, &c, x));
                pixel.copy_from_slice(&rgb_of_yuv(layout.matrix, y, u, v));
            }),
        }
    }
    Rgb { width: area.w, height: area.h, data }
}

/// The luma of `area`, row by row.
#[must_use]
pub fn crop_luma(view: &View<'_>, area: Area) -> Vec<u8> {
    let rgb = view.layout().format == Format::Rgb;
    let mut luma = Vec::with_capacity(area.w as usize * area.h as usize);
    for y in area.y..area.y + area.h {
        luma.extend((area.x..area.x + area.w).map(|x| match rgb {
            true => luma_of_rgb([0, 1, 2].map(|component| view.sample(component, x, y))),
            false => view.sample(0, x, y),
        }));
    }
    luma
}

/// BT.601 luma of an RGB pixel.
#[must_use]
pub fn luma_of_rgb([r, g, b]: [u8; 3]) -> u8 {
    ((77 * u32::from(r) + 150 * u32::from(g) + 29 * u32::from(b) + 128) >> 8) as u8
}

/// One pixel from YUV to RGB, in 8-bit fixed point, clamped.
#[must_use]
pub fn rgb_of_yuv(matrix: Matrix, y: u8, u: u8, v: u8) -> [u8; 3] {
    // Luma offset and gain, then R of V, G of U, G of V, B of U; each times 256.
    let (offset, gain, rv, gu, gv, bu) = match matrix {
        Matrix::Bt601 => (16, 298, 409, -100, -208, 516),
        Matrix::Bt709 => (16, 298, 459, -55, -136, 541),
        Matrix::Full => (0, 256, 359, -88, -183, 454),
    };
    let luma = gain * (i32::from(y) - offset) + 128;
    let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
    [luma + rv * v, luma + gu * u + gv * v, luma + bu * u].map(|c| (c >> 8).clamp(0, 255) as u8)
}

/// Why a picture file or a camera's JPEG can't be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not a JPEG, damaged, or of a kind that is not supported.
    #[error("not a readable JPEG: {0}")]
    Jpeg(String),
    /// Not a PNG, damaged, or too large.
    #[error("not a readable PNG")]
    Png(#[source] png::DecodingError),
    /// A size that is refused.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// Neither of the two formats.
    #[error("neither PNG nor JPEG (by its first bytes)")]
    Unknown,
}

/// What to take from a JPEG.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Luma alone: about half the work.
    Luma,
    /// All components, as stored ([`Format::Ycc`]).
    Colour,
}

/// Decodes a JPEG (also a camera's, which leaves its Huffman tables out).
///
/// # Errors
/// [`DecodeError`]; any bytes are taken without a panic.
pub fn decode_jpeg(bytes: &[u8], wanted: Wanted) -> Result<(Layout, Vec<u8>), DecodeError> {
    let side_max = PIXELS_MAX.isqrt() as usize * 2;
    let options = |space| {
        DecoderOptions::default()
            .set_max_width(side_max)
            .set_max_height(side_max)
            .set_strict_mode(false)
            .jpeg_set_out_colorspace(space)
    };
    let jpeg = |e: zune_jpeg::errors::DecodeErrors| DecodeError::Jpeg(e.to_string());
    let space = if wanted == Wanted::Luma { ColorSpace::Luma } else { ColorSpace::YCbCr };
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options(space));
    decoder.decode_headers().map_err(jpeg)?;
    let (stored, info) = (decoder.input_colorspace(), decoder.info());
    let format = match (stored, wanted) {
        (Some(ColorSpace::Luma), _) | (Some(ColorSpace::YCbCr), Wanted::Luma) => Format::Grey,
        (Some(ColorSpace::YCbCr), Wanted::Colour) => Format::Ycc,
        // RGB or CMYK inside (picture files only): let the decoder convert.
        _ => Format::Rgb,
    };
    if let Some(info) = &info {
        Layout::packed(format, u32::from(info.width), u32::from(info.height), 0, Matrix::Full)?;
    }
    if format == Format::Rgb {
        decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options(ColorSpace::RGB));
    } else if format == Format::Grey {
        decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options(ColorSpace::Luma));
    }
    let data = decoder.decode().map_err(jpeg)?;
    let (width, height) = decoder.info().map_or((0, 0), |i| (u32::from(i.width), u32::from(i.height)));
    let layout = Layout::packed(format, width, height, 0, Matrix::Full)?;
    View::new(&layout, &data)?;
    Ok((layout, data))
}

/// Decodes a picture file, PNG or JPEG by its first bytes.
///
/// # Errors
/// [`DecodeError`]; any bytes are taken without a panic.
pub fn decode_picture(bytes: &[u8]) -> Result<(Layout, Vec<u8>), DecodeError> {
    match bytes {
        [0xff, 0xd8, ..] => decode_jpeg(bytes, Wanted::Colour),
        [0x89, b'P', b'N', b'G', ..] => decode_png(bytes),
        _ => Err(DecodeError::Unknown),
    }
}

fn decode_png(bytes: &[u8]) -> Result<(Layout, Vec<u8>), DecodeError> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(DecodeError::Png)?;
    let (width, height) = reader.info().size();
    let grey = matches!(reader.info().color_type, png::ColorType::Grayscale | png::ColorType::GrayscaleAlpha);
    let format = if grey { Format::Grey } else { Format::Rgb };
    let layout = Layout::packed(format, width, height, 0, Matrix::Full)?;
    let size = reader.output_buffer_size().unwrap_or(0);
    let mut data = vec![0; size];
    let info = reader.next_frame(&mut data).map_err(DecodeError::Png)?;
    data.truncate(info.buffer_size());
    let (channels, keep) = match info.color_type {
        png::ColorType::Grayscale => (1, 1),
        png::ColorType::GrayscaleAlpha => (2, 1),
        png::ColorType::Rgba => (4, 3),
        _ => (3, 3),
    };
    if channels != keep {
        data = data.chunks_exact(channels).flat_map(|pixel| pixel[..keep].iter().copied()).collect();
    }
    View::new(&layout, &data)?;
    Ok((layout, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// BT.601 colour bars at 100 %, limited range: (Y, U, V) and what they are in RGB.
    const BARS_601: [([u8; 3], [u8; 3]); 6] = [
        ([235, 128, 128], [255, 255, 255]),
        ([16, 128, 128], [0, 0, 0]),
        ([81, 90, 240], [255, 0, 0]),
        ([145, 54, 34], [0, 255, 0]),
        ([41, 240, 110], [0, 0, 255]),
        ([126, 128, 128], [128, 128, 128]),
    ];

    fn near(found: [u8; 3], expected: [u8; 3]) -> bool {
        found.iter().zip(expected).all(|(a, b)| a.abs_diff(b) <= 2)
    }

    #[test]
    fn known_colours_come_out_right() {
        for ([y, u, v], rgb) in BARS_601 {
            assert!(near(rgb_of_yuv(Matrix::Bt601, y, u, v), rgb), "{rgb:?}");
        }
        assert!(near(rgb_of_yuv(Matrix::Bt709, 63, 102, 240), [255, 0, 0]));
        assert!(near(rgb_of_yuv(Matrix::Bt709, 173, 42, 26), [0, 255, 0]));
        assert!(near(rgb_of_yuv(Matrix::Full, 76, 85, 255), [255, 0, 0]));
    }

    #[test]
    fn a_crop_is_the_same_from_every_format() {
        // A 4x4 picture, left half red, right half blue, in BT.601.
        let (red, blue) = ([81u8, 90, 240], [41u8, 240, 110]);
        let colour = |x: usize| if x < 2 { red } else { blue };
        let mut yuyv = Vec::new();
        let (mut luma, mut nv, mut us, mut vs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for y in 0..4 {
            for x in 0..4 {
                luma.push(colour(x)[0]);
                yuyv.extend([colour(x)[0], colour(x)[1 + x % 2]]);
            }
            for x in [0, 2].into_iter().filter(|_| y % 2 == 0) {
                nv.extend(&colour(x)[1..]);
                us.push(colour(x)[1]);
                vs.push(colour(x)[2]);
            }
        }
        let nv12 = [luma.clone(), nv].concat();
        let i420 = [luma, us, vs].concat();
        let area = Area { x: 1, y: 1, w: 2, h: 2 };
        for (format, bytes) in [(Format::Yuyv, &yuyv), (Format::Nv12, &nv12), (Format::I420, &i420)] {
            let layout = Layout::packed(format, 4, 4, 0, Matrix::Bt601).unwrap();
            let view = View::new(&layout, bytes).unwrap();
            let crop = crop_rgb(&view, area);
            let pixels: Vec<_> = crop.data.chunks(3).collect();
            assert_eq!((crop.width, crop.height, pixels.len()), (2, 2, 4));
            assert!(near(pixels[2].try_into().unwrap(), [255, 0, 0]), "{format:?}");
            assert!(near(pixels[3].try_into().unwrap(), [0, 0, 255]), "{format:?}");
            assert_eq!(crop_luma(&view, area), [81, 41, 81, 41]);
        }
    }

    #[test]
    fn areas_are_clipped_and_never_empty() {
        let area = Area::inside(-5.5, 2.2, 10.0, 3.0, 100, 4).unwrap();
        assert_eq!(area, Area { x: 0, y: 2, w: 5, h: 2 });
        assert_eq!(Area::inside(100.0, 0.0, 5.0, 5.0, 100, 100), None);
        assert_eq!(Area::inside(f32::NAN, 0.0, 5.0, 5.0, 100, 100), None);
        assert_eq!(Area::inside(0.0, 0.0, f32::INFINITY, 5.0, 100, 100), None);
    }

    #[test]
    fn pictures_are_decoded_and_rubbish_is_refused() {
        let pixels = vec![200u8; 16 * 8 * 3];
        let mut jpeg = Vec::new();
        let encoder = jpeg_encoder::Encoder::new(&mut jpeg, 90);
        encoder.encode(&pixels, 16, 8, jpeg_encoder::ColorType::Rgb).unwrap();
        let (layout, data) = decode_picture(&jpeg).unwrap();
        assert_eq!((layout.format, layout.width, layout.height), (Format::Ycc, 16, 8));
        let view = View::new(&layout, &data).unwrap();
        assert!(near(crop_rgb(&view, Area { x: 3, y: 3, w: 1, h: 1 }).data.try_into().unwrap(), [200; 3]));
        let (layout, data) = decode_jpeg(&jpeg, Wanted::Luma).unwrap();
        assert_eq!((layout.format, data.len()), (Format::Grey, 128));

        assert!(matches!(decode_picture(b"hello"), Err(DecodeError::Unknown)));
        for cut in [2, 20, jpeg.len() / 2] {
            // A cut JPEG is an error or a partly grey picture, never a panic.
            let _ = decode_picture(&jpeg[..cut]);
        }
        assert!(decode_picture(b"\x89PNG\r\n\x1a\nxxxxxxxxxxxxxxxxxxx").is_err());
    }

    #[test]
    fn a_png_with_alpha_or_a_palette_becomes_rgb() {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 2, 1);
        encoder.set_color(png::ColorType::Rgba);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header().unwrap().write_image_data(&[1, 2, 3, 255, 4, 5, 6, 0]).unwrap();
        let (layout, data) = decode_picture(&file).unwrap();
        assert_eq!((layout.format, data), (Format::Rgb, vec![1, 2, 3, 4, 5, 6]));
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 2, 1);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_palette(vec![9, 8, 7, 6, 5, 4]);
        encoder.write_header().unwrap().write_image_data(&[1, 0]).unwrap();
        let (layout, data) = decode_picture(&file).unwrap();
        assert_eq!((layout.format, data), (Format::Rgb, vec![6, 5, 4, 9, 8, 7]));
    }
}

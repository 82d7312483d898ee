//! The small picture a detector searches in, made from the camera's own pixels.
//!
//! Every plane is scaled as it is stored and only the small result is converted, which costs a fraction of converting
//! the whole frame first. Owns: nothing. Never: enlarges.

use opencv::core::{Mat, Rect, Size};
use opencv::prelude::*;
use opencv::{core, imgproc};

use super::{DetectError, opencv};
use crate::convert::{luma_of_rgb, rgb_of_yuv};
use crate::frame::{Format, Plane, View};

/// One component of a scaled picture: sample n is byte `offset + n * step` of `mat`.
#[derive(Debug, Clone, Copy)]
struct At {
    mat: usize,
    offset: usize,
    step: usize,
}

/// The three components of a scaled picture.
#[derive(Debug)]
struct Small {
    mats: Vec<Mat>,
    at: [At; 3],
}

/// The luma of the frame as an 8-bit picture of `w` x `h`.
///
/// # Errors
/// [`DetectError::OpenCv`].
pub fn luma(view: &View<'_>, w: u32, h: u32) -> Result<Mat, DetectError> {
    let mut small = small(view, w, h, false)?;
    match view.layout().format {
        Format::Rgb | Format::Ycc => {
            let rgb = view.layout().format == Format::Rgb;
            let bytes = small.mats[0].data_bytes().map_err(opencv("read a scaled frame"))?;
            let luma: Vec<u8> = bytes
                .chunks_exact(3)
                .map(|p| if rgb { luma_of_rgb([p[0], p[1], p[2]]) } else { p[0] })
                .collect();
            mat_of(h, w, &luma)
        }
        _ => Ok(small.mats.swap_remove(0)),
    }
}

/// Fills `blob` with the frame as BGR, 0 to 255, plane after plane (NCHW), scaled to `w` x `h` and padded with zeros at
/// the right and the bottom to `padded_w` x `padded_h`.
///
/// # Errors
/// [`DetectError::OpenCv`].
pub fn bgr_planes(
    view: &View<'_>,
    (w, h): (u32, u32),
    (padded_w, padded_h): (u32, u32),
    blob: &mut Vec<f32>,
) -> Result<(), DetectError> {
    let layout = view.layout();
    let small = small(view, w, h, true)?;
    let (w, h, padded_w, area) =
        (w as usize, h as usize, padded_w as usize, padded_w as usize * padded_h as usize);
    blob.clear();
    blob.resize(3 * area, 0.0);
    let mut bytes = Vec::with_capacity(3);
    for at in &small.at {
        bytes.push(small.mats[at.mat].data_bytes().map_err(opencv("read a scaled frame"))?);
    }
    let (blue, rest) = blob.split_at_mut(area);
    let (green, red) = rest.split_at_mut(area);
    for y in 0..h {
        for x in 0..w {
            let [a, b, c] = [0, 1, 2].map(|n| bytes[n][small.at[n].offset + (y * w + x) * small.at[n].step]);
            let [r, g, b] = match layout.format {
                Format::Rgb => [a, b, c],
                Format::Grey | Format::Mjpg => [a, a, a],
                _ => rgb_of_yuv(layout.matrix, a, b, c),
            };
            let n = y * padded_w + x;
            (blue[n], green[n], red[n]) = (f32::from(b), f32::from(g), f32::from(r));
        }
    }
    Ok(())
}

fn small(view: &View<'_>, w: u32, h: u32, colour: bool) -> Result<Small, DetectError> {
    let layout = view.layout();
    let at = |mat, offset, step| At { mat, offset, step };
    let (width, height) = (layout.width as usize, layout.height as usize);
    let grey = at(0, 0, 1);
    let component = |n: usize, channels: usize| {
        let p = &layout.planes[n];
        let columns = (width >> p.shift_x) * p.step / channels;
        resized(view, p, channels, columns, height >> p.shift_y, w, h)
    };
    Ok(match layout.format {
        Format::Rgb | Format::Ycc => {
            Small { mats: vec![component(0, 3)?], at: [at(0, 0, 3), at(0, 1, 3), at(0, 2, 3)] }
        }
        Format::Yuyv => yuyv(view, w, h, colour)?,
        Format::Nv12 if colour => {
            Small { mats: vec![component(0, 1)?, component(1, 2)?], at: [grey, at(1, 0, 2), at(1, 1, 2)] }
        }
        Format::I420 if colour => {
            let mats = vec![component(0, 1)?, component(1, 1)?, component(2, 1)?];
            Small { mats, at: [grey, at(1, 0, 1), at(2, 0, 1)] }
        }
        _ => Small { mats: vec![component(0, 1)?], at: [grey; 3] },
    })
}

/// `Y0 U Y1 V` is a picture of half the width with four channels: scaling that gives all three components at once,
/// as long as it is to become smaller than that. For a larger result the luma is taken out first.
fn yuyv(view: &View<'_>, w: u32, h: u32, colour: bool) -> Result<Small, DetectError> {
    let layout = view.layout();
    let p = &layout.planes[0];
    let (width, height) = (layout.width as usize, layout.height as usize);
    let at = |offset| At { mat: 1, offset, step: 4 };
    let grey = At { mat: 0, offset: 0, step: 1 };
    if w * 2 <= layout.width {
        let four = resized(view, p, 4, width / 2, height, w, h)?;
        let bytes = four.data_bytes().map_err(opencv("read a scaled frame"))?;
        let luma: Vec<u8> =
            bytes.chunks_exact(4).map(|q| ((u16::from(q[0]) + u16::from(q[2])).div_ceil(2)) as u8).collect();
        return Ok(Small { mats: vec![mat_of(h, w, &luma)?, four], at: [grey, at(1), at(3)] });
    }
    let mut luma = Vec::with_capacity(width * height);
    for row in 0..height {
        let line = &view.data()[row * p.stride..][..width * 2];
        luma.extend(line.chunks_exact(2).map(|pair| pair[0]));
    }
    let luma =
        Mat::new_rows_cols_with_data(height as i32, width as i32, &luma).map_err(opencv("wrap a frame"))?;
    let luma = resize(&luma, w, h)?;
    let mats = if colour { vec![luma, resized(view, p, 4, width / 2, height, w, h)?] } else { vec![luma] };
    Ok(Small { mats, at: if colour { [grey, at(1), at(3)] } else { [grey; 3] } })
}

/// Scales the plane as a picture of `columns` x `rows` pixels of `channels` bytes each.
fn resized(
    view: &View<'_>,
    plane: &Plane,
    channels: usize,
    columns: usize,
    rows: usize,
    w: u32,
    h: u32,
) -> Result<Mat, DetectError> {
    const WRAP: &str = "wrap a frame";
    // Component 1 of a packed picture begins inside a pixel; its plane begins with component 0.
    let start = plane.offset;
    // The last row may end before its padding does.
    let whole = (view.data().len() - start) / plane.stride;
    let bytes;
    let rows_of = if whole >= rows {
        &view.data()[start..start + rows * plane.stride]
    } else {
        let mut padded = view.data()[start..].to_vec();
        padded.resize(rows * plane.stride, 0);
        bytes = padded;
        &bytes[..]
    };
    let flat =
        Mat::new_rows_cols_with_data(rows as i32, plane.stride as i32, rows_of).map_err(opencv(WRAP))?;
    let used = Rect::new(0, 0, (columns * channels) as i32, rows as i32);
    if plane.stride == columns * channels {
        let shaped = flat.reshape(channels as i32, rows as i32).map_err(opencv(WRAP))?;
        return resize(&shaped, w, h);
    }
    let part = Mat::roi(&flat, used).map_err(opencv(WRAP))?;
    if channels == 1 {
        return resize(&part, w, h);
    }
    // A region with several channels can't be reshaped while it has gaps between its rows.
    let close = part.try_clone().map_err(opencv(WRAP))?;
    let shaped = close.reshape(channels as i32, rows as i32).map_err(opencv(WRAP))?;
    resize(&shaped, w, h)
}

fn resize(source: &(impl MatTraitConst + core::ToInputArray), w: u32, h: u32) -> Result<Mat, DetectError> {
    let size = Size::new(w as i32, h as i32);
    let mut out = Mat::default();
    // Averaging keeps small faces from dissolving into aliases; where a plane is not to shrink (chroma), it can't.
    let shrinks = source.cols() >= size.width && source.rows() >= size.height;
    let how = if shrinks { imgproc::INTER_AREA } else { imgproc::INTER_LINEAR };
    imgproc::resize(source, &mut out, size, 0.0, 0.0, how).map_err(opencv("scale a frame"))?;
    Ok(out)
}

/// A picture of one channel that owns a copy of `data`.
fn mat_of(h: u32, w: u32, data: &[u8]) -> Result<Mat, DetectError> {
    let wrapped = Mat::new_rows_cols_with_data(h as i32, w as i32, data).map_err(opencv("wrap a frame"))?;
    wrapped.try_clone().map_err(opencv("copy a frame"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Layout, Matrix};

    /// The same picture (left half red, right half blue, BT.601) in each format, 64 x 32.
    fn picture(format: Format, stride: usize) -> (Layout, Vec<u8>) {
        let layout = Layout::packed(format, 64, 32, stride, Matrix::Bt601).unwrap();
        let mut data = vec![0u8; layout.bytes];
        for y in 0..32usize {
            for x in 0..64usize {
                let left = x < 32;
                let value = match format {
                    Format::Rgb => {
                        if left {
                            [255, 0, 0]
                        } else {
                            [0, 0, 255]
                        }
                    }
                    _ => {
                        if left {
                            [81, 90, 240]
                        } else {
                            [41, 240, 110]
                        }
                    }
                };
                for (p, v) in layout.planes.iter().zip(value).take(if format == Format::Grey { 1 } else { 3 })
                {
                    data[p.offset + (y >> p.shift_y) * p.stride + (x >> p.shift_x) * p.step] = v;
                }
            }
        }
        (layout, data)
    }

    #[test]
    fn all_formats_scale_to_the_same_picture() {
        let formats = [Format::Yuyv, Format::Nv12, Format::I420, Format::Rgb, Format::Ycc, Format::Grey];
        for format in formats {
            for (extra, (w, h)) in [(0, (16, 8)), (12, (16, 8)), (0, (48, 24)), (4, (48, 24)), (0, (64, 32))]
            {
                let row = Layout::packed(format, 64, 32, 0, Matrix::Bt601).unwrap().planes[0].stride;
                let (layout, data) = picture(format, row + extra);
                let view = View::new(&layout, &data).unwrap();
                let grey = luma(&view, w, h).unwrap();
                let bytes = grey.data_bytes().unwrap();
                assert_eq!(bytes.len(), (w * h) as usize);
                let (left, right) = if format == Format::Rgb { (77, 29) } else { (81, 41) };
                assert!(
                    bytes[0].abs_diff(left) < 3 && bytes[w as usize - 1].abs_diff(right) < 3,
                    "{format:?}"
                );
                if format == Format::Grey {
                    continue;
                }
                let mut blob = Vec::new();
                bgr_planes(&view, (w, h), (64, 32), &mut blob).unwrap();
                let plane = 64 * 32;
                let near = |n: usize, v: f32| (blob[n] - v).abs() < 6.0;
                // Red on the left, blue on the right, and nothing in the padding.
                assert!(near(0, 0.0) && near(plane, 0.0) && near(2 * plane, 255.0), "{format:?} {w}");
                let right = w as usize - 1;
                assert!(near(right, 255.0) && near(2 * plane + right, 0.0), "{format:?} {w}");
                assert!(w == 64 || blob[w as usize] == 0.0);
                assert!(h == 32 || blob[h as usize * 64] == 0.0);
            }
        }
    }
}

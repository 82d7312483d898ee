//! Pictures as the input of a network: resized, scaled, planes of red, green, blue (or blue, green, red).
//!
//! Owns: the arithmetic, which is a table a channel. Invariant: (value - mean) * scale, with bilinear resizing.

use opencv::core::{Mat, Size};
use opencv::imgproc;
use opencv::prelude::*;

/// What a network takes for a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Subtracted from each channel (0 to 255), in the order of the network's channels.
    pub mean: [f32; 3],
    /// Then multiplied.
    pub scale: [f32; 3],
    /// Whether the network's channels are red, green, blue; else blue, green, red.
    pub rgb: bool,
    /// Whether the picture keeps its proportions, in the middle of a grey frame; else it is stretched.
    pub letterbox: bool,
}

/// Grey of the frame, as the YOLO programs have it.
const FRAME: u8 = 114;

/// Where a picture lies in the input: `x * scale_x + left` in pixels of the input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Placing {
    pub scale_x: f32,
    pub scale_y: f32,
    pub left: f32,
    pub top: f32,
}

impl Input {
    /// How many values one picture has.
    #[must_use]
    pub fn values(&self) -> usize {
        3 * self.width as usize * self.height as usize
    }

    /// Adds a picture (8-bit BGR) to the blob.
    ///
    /// # Errors
    /// OpenCV's, of resizing.
    pub fn push(&self, picture: &Mat, blob: &mut Vec<f32>) -> opencv::Result<Placing> {
        let (w, h) = (self.width as f32, self.height as f32);
        let (pw, ph) = (picture.cols() as f32, picture.rows() as f32);
        let (mut scale_x, mut scale_y) = (w / pw, h / ph);
        let (mut inner_w, mut inner_h) = (self.width, self.height);
        if self.letterbox {
            let scale = scale_x.min(scale_y);
            inner_w = ((pw * scale).round() as u32).clamp(1, self.width);
            inner_h = ((ph * scale).round() as u32).clamp(1, self.height);
            (scale_x, scale_y) = (inner_w as f32 / pw, inner_h as f32 / ph);
        }
        let (left, top) = ((self.width - inner_w) / 2, (self.height - inner_h) / 2);
        let size = Size::new(inner_w as i32, inner_h as i32);
        let mut inner = Mat::default();
        imgproc::resize(picture, &mut inner, size, 0.0, 0.0, imgproc::INTER_LINEAR)?;
        let pixels = inner.data_bytes()?;
        let start = blob.len();
        let plane = self.width as usize * self.height as usize;
        for channel in 0..3 {
            let table: [f32; 256] =
                std::array::from_fn(|v| (v as f32 - self.mean[channel]) * self.scale[channel]);
            blob.resize(start + plane * (channel + 1), table[usize::from(FRAME)]);
            let component = if self.rgb { 2 - channel } else { channel };
            let rows = blob[start + plane * channel..].chunks_exact_mut(self.width as usize);
            let lines = pixels.chunks_exact(inner_w as usize * 3);
            for (row, line) in rows.skip(top as usize).zip(lines) {
                for (value, pixel) in row[left as usize..].iter_mut().zip(line.as_chunks::<3>().0) {
                    *value = table[usize::from(pixel[component])];
                }
            }
        }
        Ok(Placing { scale_x, scale_y, left: left as f32, top: top as f32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::Picture;

    #[test]
    fn a_picture_is_stretched_or_framed() {
        let picture = Picture::blank(20, 10, [10, 20, 30]).unwrap();
        let mut input = Input {
            width: 8,
            height: 8,
            mean: [1.0, 2.0, 3.0],
            scale: [1.0, 2.0, 0.5],
            rgb: true,
            letterbox: false,
        };
        let mut blob = vec![7.0];
        let placing = input.push(picture.mat(), &mut blob).unwrap();
        assert_eq!(placing, Placing { scale_x: 0.4, scale_y: 0.8, left: 0.0, top: 0.0 });
        assert_eq!((blob.len(), blob[0]), (1 + input.values(), 7.0));
        assert!(blob[1..65].iter().all(|v| *v == 29.0) && blob[65..129].iter().all(|v| *v == 36.0));
        assert!(blob[129..].iter().all(|v| *v == 3.5));
        (input.rgb, input.letterbox) = (false, true);
        let mut blob = Vec::new();
        let placing = input.push(picture.mat(), &mut blob).unwrap();
        assert_eq!(placing, Placing { scale_x: 0.4, scale_y: 0.4, left: 0.0, top: 2.0 });
        assert_eq!(
            (blob.len(), blob[0], blob[15], blob[16], blob[47], blob[48]),
            (192, 113.0, 113.0, 9.0, 9.0, 113.0)
        );
        assert_eq!((blob[64], blob[64 + 16], blob[128 + 16]), (224.0, 36.0, 13.5));
    }
}

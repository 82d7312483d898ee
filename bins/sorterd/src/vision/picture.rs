//! A picture: decoded from an arm's JPEG, cut, encoded again.
//!
//! Invariant: 8-bit BGR, at least 1 x 1, contiguous, its pixels shared with no other picture. Its size is checked
//! before anything of that size is allocated. Never: scales.

use opencv::core::{CV_8UC1, CV_8UC3, Mat, Rect, Scalar};
use opencv::imgproc;
use opencv::prelude::*;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::found::Found;

/// Why a picture can't be decoded, cut or encoded.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// Other bytes than a JPEG's at the beginning.
    #[error("not a JPEG (by its first bytes); send the picture as JPEG")]
    Unknown,
    /// Damaged, cut off, or of a kind that is not supported.
    #[error("not a readable JPEG: {0}")]
    Jpeg(String),
    /// More pixels than allowed.
    #[error("a picture of {width}x{height} is above the limit of {pixels_max} pixels; make it smaller")]
    Size {
        /// In pixels.
        width: usize,
        /// In pixels.
        height: usize,
        /// What is allowed.
        pixels_max: u64,
    },
    /// The box has nothing of the picture in it.
    #[error("no part of the box {found:?} is in the picture of {width}x{height}")]
    Outside {
        /// The box.
        found: Found,
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
    },
    /// The encoder's word; a side is above 65535 pixels.
    #[error("cannot encode a picture of {width}x{height} as JPEG: {why}")]
    Encode {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// What it says.
        why: String,
    },
    /// OpenCV refused something; out of memory, mostly.
    #[error("OpenCV failed to {action}")]
    OpenCv {
        /// As an infinitive.
        action: &'static str,
        /// What it says.
        source: opencv::Error,
    },
}

fn opencv(action: &'static str) -> impl FnOnce(opencv::Error) -> PictureError {
    move |source| PictureError::OpenCv { action, source }
}

/// A picture, 8-bit BGR.
#[derive(Debug, Clone)]
pub struct Picture {
    mat: Mat,
}

impl Picture {
    /// Decodes a JPEG of at most `pixels_max` pixels. A JPEG that breaks off in the middle is refused: half a picture
    /// would be sorted as if the rest were empty.
    ///
    /// # Errors
    /// [`PictureError`]; any bytes are taken without a panic.
    pub fn decode(bytes: &[u8], pixels_max: u64) -> Result<Picture, PictureError> {
        if !bytes.starts_with(&[0xff, 0xd8]) {
            return Err(PictureError::Unknown);
        }
        let options = |space| {
            DecoderOptions::default()
                .set_max_width(usize::from(u16::MAX))
                .set_max_height(usize::from(u16::MAX))
                .set_strict_mode(true)
                .jpeg_set_out_colorspace(space)
        };
        let jpeg = |e: zune_jpeg::errors::DecodeErrors| PictureError::Jpeg(e.to_string());
        let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options(ColorSpace::BGR));
        decoder.decode_headers().map_err(jpeg)?;
        let (width, height) =
            decoder.info().map_or((0, 0), |i| (usize::from(i.width), usize::from(i.height)));
        if width == 0 || height == 0 {
            return Err(PictureError::Jpeg("it has no pixels".to_owned()));
        }
        if (width * height) as u64 > pixels_max {
            return Err(PictureError::Size { width, height, pixels_max });
        }
        let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
        if grey {
            // The decoder makes no colours of grey.
            decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options(ColorSpace::Luma));
            decoder.decode_headers().map_err(jpeg)?;
        }
        let (typ, channels) = if grey { (CV_8UC1, 1) } else { (CV_8UC3, 3) };
        if decoder.output_buffer_size() != Some(width * height * channels) {
            return Err(PictureError::Jpeg("its colours cannot be converted to BGR".to_owned()));
        }
        let mut mat = Mat::new_rows_cols_with_default(height as i32, width as i32, typ, Scalar::default())
            .map_err(opencv("make a picture"))?;
        let pixels = mat.data_bytes_mut().map_err(opencv("reach the pixels"))?;
        decoder.decode_into(pixels).map_err(jpeg)?;
        if grey {
            let mut bgr = Mat::default();
            imgproc::cvt_color_def(&mat, &mut bgr, imgproc::COLOR_GRAY2BGR)
                .map_err(opencv("convert a grey picture"))?;
            mat = bgr;
        }
        Picture::of(mat)
    }

    /// A picture of one colour, blue, green, red.
    ///
    /// # Errors
    /// [`PictureError::OpenCv`]: no memory, or no size.
    pub fn blank(width: u32, height: u32, bgr: [u8; 3]) -> Result<Picture, PictureError> {
        let [b, g, r] = bgr.map(f64::from);
        let side = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        let colour = Scalar::new(b, g, r, 0.0);
        let mat = Mat::new_rows_cols_with_default(side(height), side(width), CV_8UC3, colour)
            .map_err(opencv("make a picture"))?;
        Picture::of(mat)
    }

    /// Takes what OpenCV made.
    ///
    /// # Errors
    /// [`PictureError::OpenCv`]: it is empty or something else than 8-bit BGR.
    pub(super) fn of(mat: Mat) -> Result<Picture, PictureError> {
        if mat.typ() != CV_8UC3 || mat.rows() < 1 || mat.cols() < 1 || !mat.is_continuous() {
            let why = format!("{}x{} of type {}", mat.cols(), mat.rows(), mat.typ());
            return Err(opencv("make a picture")(opencv::Error::new(opencv::core::StsBadArg, why)));
        }
        Ok(Picture { mat })
    }

    /// In pixels, at least 1.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.mat.cols().unsigned_abs()
    }

    /// In pixels, at least 1.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.mat.rows().unsigned_abs()
    }

    pub(super) fn mat(&self) -> &Mat {
        &self.mat
    }

    pub(super) fn into_mat(self) -> Mat {
        self.mat
    }

    pub(super) fn mat_mut(&mut self) -> &mut Mat {
        &mut self.mat
    }

    /// Its pixels row by row, 3 bytes each: blue, green, red.
    ///
    /// # Errors
    /// [`PictureError::OpenCv`]
    pub fn pixels(&self) -> Result<&[u8], PictureError> {
        self.mat.data_bytes().map_err(opencv("reach the pixels"))
    }

    /// A copy of what is in the box.
    ///
    /// # Errors
    /// [`PictureError::Outside`]: that is nothing.
    pub fn crop(&self, found: &Found) -> Result<Picture, PictureError> {
        let (w, h) = (self.mat.cols(), self.mat.rows());
        let (x1, y1, x2, y2) = (found.x1.max(0), found.y1.max(0), found.x2.min(w), found.y2.min(h));
        if x1 >= x2 || y1 >= y2 {
            let (width, height) = (self.width(), self.height());
            return Err(PictureError::Outside { found: *found, width, height });
        }
        let part =
            Mat::roi(&self.mat, Rect::new(x1, y1, x2 - x1, y2 - y1)).map_err(opencv("cut a picture"))?;
        Picture::of(part.try_clone().map_err(opencv("copy a part of a picture"))?)
    }

    /// As a JPEG file of this quality, 1 to 100 (others are moved into that range).
    ///
    /// # Errors
    /// [`PictureError::Encode`]: a side is above 65535 pixels.
    pub fn encode_jpeg(&self, quality: u8) -> Result<Vec<u8>, PictureError> {
        let (width, height) = (self.width(), self.height());
        let refused = |why: String| PictureError::Encode { width, height, why };
        let side = |n: u32| u16::try_from(n).map_err(|_| refused("a side is above 65535 pixels".to_owned()));
        let pixels = self.pixels()?;
        let mut out = Vec::with_capacity(pixels.len() / 8 + 1024);
        let encoder = jpeg_encoder::Encoder::new(&mut out, quality.clamp(1, 100));
        encoder
            .encode(pixels, side(width)?, side(height)?, jpeg_encoder::ColorType::Bgr)
            .map_err(|e| refused(e.to_string()))?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A picture whose every pixel is different from its neighbours', smoothly.
    fn ramp(width: u32, height: u32) -> Picture {
        let mut picture = Picture::blank(width, height, [0; 3]).unwrap();
        let pixels = picture.mat.data_bytes_mut().unwrap();
        for (n, pixel) in pixels.chunks_exact_mut(3).enumerate() {
            let (x, y) = (n % width as usize, n / width as usize);
            pixel.copy_from_slice(&[(x * 255 / width as usize) as u8, (y * 255 / height as usize) as u8, 90]);
        }
        picture
    }

    #[test]
    fn what_is_encoded_is_decoded_again() {
        for (w, h) in [(60, 40), (1, 1), (17, 3), (641, 479)] {
            let picture = ramp(w, h);
            let back = Picture::decode(&picture.encode_jpeg(95).unwrap(), 1 << 20).unwrap();
            assert_eq!((back.width(), back.height()), (w, h));
            let (a, b) = (picture.pixels().unwrap(), back.pixels().unwrap());
            let off = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(off <= 12, "{w}x{h}: {off}");
        }
    }

    #[test]
    fn grey_jpegs_become_bgr() {
        let mut file = Vec::new();
        let luma: Vec<u8> = (0..64 * 32).map(|n| (n % 64 * 3) as u8).collect();
        jpeg_encoder::Encoder::new(&mut file, 95)
            .encode(&luma, 64, 32, jpeg_encoder::ColorType::Luma)
            .unwrap();
        let picture = Picture::decode(&file, 1 << 20).unwrap();
        for (pixel, luma) in picture.pixels().unwrap().chunks(3).zip(&luma) {
            assert!(pixel.iter().all(|c| c.abs_diff(*luma) < 8), "{pixel:?} {luma}");
        }
    }

    #[test]
    fn a_picture_that_is_too_large_is_refused_by_its_header() {
        let file = ramp(100, 50).encode_jpeg(80).unwrap();
        assert!(Picture::decode(&file, 5000).is_ok());
        let error = Picture::decode(&file, 4999).unwrap_err().to_string();
        assert!(error.contains("100x50") && error.contains("4999"), "{error}");
        // The largest a header can claim, with a few bytes of content.
        let mut huge = file.clone();
        let at = huge.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        huge[at + 5..at + 9].fill(0xff);
        assert!(matches!(Picture::decode(&huge, 1 << 24), Err(PictureError::Size { width: 65535, .. })));
    }

    #[test]
    fn half_a_picture_is_none() {
        let file = ramp(320, 240).encode_jpeg(90).unwrap();
        for part in 1..10 {
            let cut = &file[..file.len() * part / 10];
            assert!(Picture::decode(cut, 1 << 20).is_err(), "{part}/10");
        }
        assert!(matches!(Picture::decode(b"", 100), Err(PictureError::Unknown)));
        assert!(matches!(Picture::decode(b"\x89PNG\r\n\x1a\n", 100), Err(PictureError::Unknown)));
    }

    #[test]
    fn damaged_bytes_never_panic() {
        let seed = std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
        let mut random = fastrand::Rng::with_seed(seed);
        let file = ramp(48, 32).encode_jpeg(80).unwrap();
        for _ in 0..3000 {
            let mut bytes = file.clone();
            for _ in 0..random.usize(1..6) {
                let at = random.usize(2..bytes.len());
                match random.u8(0..4) {
                    0 => bytes[at] = random.u8(..),
                    1 => bytes.truncate(at.max(3)),
                    2 => bytes.insert(at, random.u8(..)),
                    _ => bytes[at] = 0xff,
                }
            }
            let _ = Picture::decode(&bytes, 1 << 16);
            let mut noise: Vec<u8> = (0..random.usize(0..400)).map(|_| random.u8(..)).collect();
            let _ = Picture::decode(&noise, 1 << 16);
            noise.splice(0..noise.len().min(2), [0xff, 0xd8]);
            let _ = Picture::decode(&noise, 1 << 16);
        }
    }

    #[test]
    fn a_crop_is_clipped_and_its_own() {
        let mut picture = ramp(100, 80);
        let found = Found { class: 0, score: 1.0, x1: -5, y1: 70, x2: 20, y2: 200 };
        let crop = picture.crop(&found).unwrap();
        assert_eq!((crop.width(), crop.height()), (20, 10));
        let first = crop.pixels().unwrap()[..3].to_vec();
        assert_eq!(first, picture.pixels().unwrap()[70 * 300..][..3]);
        picture.mat.data_bytes_mut().unwrap().fill(0);
        assert_eq!(crop.pixels().unwrap()[..3], first);
        let outside = Found { x1: 100, x2: 120, ..found };
        assert!(picture.crop(&outside).unwrap_err().to_string().contains("100x80"));
        let turned = Found { x1: 20, x2: 10, ..found };
        assert!(matches!(picture.crop(&turned), Err(PictureError::Outside { .. })));
    }

    #[test]
    fn pictures_may_change_threads() {
        fn send<T: Send>() {}
        send::<Picture>();
        send::<crate::vision::Detector>();
        send::<crate::vision::Vectorizer>();
    }
}

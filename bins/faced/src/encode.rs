//! A crop as a JPEG or PNG file.
//!
//! Owns: nothing. Never: scales or filters the crop.

use crate::convert::Rgb;

/// The picture format of the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PictureFormat {
    /// JPEG with this quality, 1 to 100.
    Jpeg(u8),
    /// PNG, lossless.
    Png,
}

impl PictureFormat {
    /// MIME type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            PictureFormat::Jpeg(_) => "image/jpeg",
            PictureFormat::Png => "image/png",
        }
    }
}

/// Why a crop can't be encoded; it would be a mistake in this program.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The encoder's word.
    #[error("cannot encode a crop of {width}x{height} as {format}: {why}")]
    Refused {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// MIME type.
        format: &'static str,
        /// What the encoder says.
        why: String,
    },
}

/// Encodes the crop.
///
/// # Errors
/// [`EncodeError`], for a side above 65535 pixels (JPEG) or a buffer of the wrong size.
pub fn encode(crop: &Rgb, format: PictureFormat) -> Result<Vec<u8>, EncodeError> {
    let refused = |why: String| EncodeError::Refused {
        width: crop.width,
        height: crop.height,
        format: format.content_type(),
        why,
    };
    let expected = crop.width as usize * crop.height as usize * 3;
    if crop.data.len() != expected {
        return Err(refused(format!("{} bytes instead of {expected}", crop.data.len())));
    }
    match format {
        PictureFormat::Jpeg(quality) => {
            let side = |n: u32| u16::try_from(n).map_err(|e| refused(e.to_string()));
            let mut out = Vec::with_capacity(expected / 8 + 1024);
            let encoder = jpeg_encoder::Encoder::new(&mut out, quality);
            encoder
                .encode(&crop.data, side(crop.width)?, side(crop.height)?, jpeg_encoder::ColorType::Rgb)
                .map_err(|e| refused(e.to_string()))?;
            Ok(out)
        }
        PictureFormat::Png => {
            let mut out = Vec::with_capacity(expected / 2 + 1024);
            let mut encoder = png::Encoder::new(&mut out, crop.width, crop.height);
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_depth(png::BitDepth::Eight);
            encoder.set_compression(png::Compression::Fast);
            let mut writer = encoder.write_header().map_err(|e| refused(e.to_string()))?;
            writer.write_image_data(&crop.data).map_err(|e| refused(e.to_string()))?;
            writer.finish().map_err(|e| refused(e.to_string()))?;
            Ok(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::{Area, crop_rgb, decode_picture};
    use crate::frame::View;

    fn ramp(width: u32, height: u32) -> Rgb {
        let data = (0..width * height).flat_map(|n| [(n % width) as u8, (n / width) as u8, 90]).collect();
        Rgb { width, height, data }
    }

    #[test]
    fn what_is_encoded_can_be_decoded_again() {
        let crop = ramp(60, 40);
        for format in [PictureFormat::Png, PictureFormat::Jpeg(95)] {
            let file = encode(&crop, format).unwrap();
            let (layout, data) = decode_picture(&file).unwrap();
            let view = View::new(&layout, &data).unwrap();
            let back = crop_rgb(&view, Area { x: 0, y: 0, w: 60, h: 40 });
            let off = back.data.iter().zip(&crop.data).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(off <= if format == PictureFormat::Png { 0 } else { 12 }, "{format:?}: {off}");
        }
    }

    #[test]
    fn a_wrong_buffer_is_refused() {
        let crop = Rgb { width: 10, height: 10, data: vec![0; 299] };
        assert!(
            encode(&crop, PictureFormat::Png).unwrap_err().to_string().contains("299 bytes instead of 300")
        );
        let wide = Rgb { width: 70_000, height: 1, data: vec![0; 210_000] };
        assert!(encode(&wide, PictureFormat::Jpeg(90)).is_err());
    }
}

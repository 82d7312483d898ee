//! The sequence parameter set (ITU-T H.264 section 7.3.2.1.1), up to what tells the picture's size.
//!
//! Invariant: every read is bounded, so that any bytes give a value or `None`, never a panic and never a long loop.

/// What a sequence parameter set says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sps {
    /// `profile_idc`.
    pub profile: u8,
    /// The constraint flags, as the byte in the stream.
    pub constraints: u8,
    /// `level_idc`: ten times the level.
    pub level: u8,
    /// Width in pixels, after cropping; at most 16384.
    pub width: u32,
    /// Height in pixels, after cropping; at most 16384.
    pub height: u32,
    /// `chroma_format_idc`: 1 is 4:2:0.
    pub chroma_format: u8,
    /// Bits a luma sample.
    pub bit_depth_luma: u8,
    /// Bits a chroma sample.
    pub bit_depth_chroma: u8,
}

/// Largest width and height, in pixels. Level 6.2 allows 139264 macroblocks, in either direction at most 1055.
const SIDE_MAX: u32 = 16_384;

impl Sps {
    /// Reads a NAL unit, header included.
    #[must_use]
    pub fn parse(nal: &[u8]) -> Option<Sps> {
        let [_, profile, constraints, level, rest @ ..] = nal else { return None };
        let rbsp = unescape(rest);
        let mut bits = Bits { bytes: &rbsp, at: 0 };
        bits.ue()?;
        let (mut chroma_format, mut luma, mut chroma, mut separate) = (1, 8, 8, false);
        if matches!(profile, 100 | 110 | 122 | 244 | 44 | 83 | 86 | 118 | 128 | 138 | 139 | 134 | 135) {
            chroma_format = u8::try_from(bits.ue()?).ok().filter(|c| *c <= 3)?;
            separate = chroma_format == 3 && bits.flag()?;
            luma = 8 + u8::try_from(bits.ue()?).ok().filter(|d| *d <= 6)?;
            chroma = 8 + u8::try_from(bits.ue()?).ok().filter(|d| *d <= 6)?;
            bits.flag()?;
            if bits.flag()? {
                for list in 0..if chroma_format == 3 { 12 } else { 8 } {
                    if bits.flag()? {
                        scaling_list(&mut bits, if list < 6 { 16 } else { 64 })?;
                    }
                }
            }
        }
        bits.ue()?;
        picture_order(&mut bits)?;
        bits.ue()?;
        bits.flag()?;
        let side = |blocks: u32| blocks.checked_add(1)?.checked_mul(16).filter(|s| *s <= 2 * SIDE_MAX);
        let width = side(bits.ue()?)?;
        let map_height = side(bits.ue()?)?;
        let frames_only = bits.flag()?;
        let height = if frames_only { map_height } else { map_height.checked_mul(2)? };
        if !frames_only {
            bits.flag()?;
        }
        bits.flag()?;
        let (mut cut_x, mut cut_y) = (0, 0);
        if bits.flag()? {
            let fields = if frames_only { 1 } else { 2 };
            // Section 7.4.2.1.1: the unit is a chroma sample, or a luma sample where there is no chroma.
            let (unit_x, unit_y) = match chroma_format {
                _ if separate => (1, fields),
                1 => (2, 2 * fields),
                2 => (2, fields),
                _ => (1, fields),
            };
            let (left, right, top, bottom) = (bits.ue()?, bits.ue()?, bits.ue()?, bits.ue()?);
            cut_x = left.checked_add(right)?.checked_mul(unit_x)?;
            cut_y = top.checked_add(bottom)?.checked_mul(unit_y)?;
        }
        let seen = |side: u32, cut: u32| side.checked_sub(cut).filter(|s| (1..=SIDE_MAX).contains(s));
        Some(Sps {
            profile: *profile,
            constraints: *constraints,
            level: *level,
            width: seen(width, cut_x)?,
            height: seen(height, cut_y)?,
            chroma_format,
            bit_depth_luma: luma,
            bit_depth_chroma: chroma,
        })
    }
}

fn picture_order(bits: &mut Bits<'_>) -> Option<()> {
    match bits.ue()? {
        0 => {
            bits.ue()?;
        }
        1 => {
            bits.flag()?;
            bits.ue()?;
            bits.ue()?;
            for _ in 0..bits.ue().filter(|n| *n <= 255)? {
                bits.ue()?;
            }
        }
        2 => {}
        _ => return None,
    }
    Some(())
}

/// Section 7.3.2.1.1.1. Its values do not matter here.
fn scaling_list(bits: &mut Bits<'_>, size: u32) -> Option<()> {
    let (mut last, mut next) = (8_i64, 8_i64);
    for _ in 0..size {
        if next != 0 {
            next = (last + bits.se()? + 256).rem_euclid(256);
        }
        last = if next == 0 { last } else { next };
    }
    Some(())
}

/// Without the bytes that keep start codes out (section 7.4.1): 00 00 03 becomes 00 00.
fn unescape(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len());
    let mut zeros = 0;
    for byte in data {
        if zeros >= 2 && *byte == 3 {
            zeros = 0;
            continue;
        }
        zeros = if *byte == 0 { zeros + 1 } else { 0 };
        out.push(*byte);
    }
    out
}

struct Bits<'a> {
    bytes: &'a [u8],
    /// The next bit.
    at: usize,
}

impl Bits<'_> {
    fn flag(&mut self) -> Option<bool> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Some(bit == 1)
    }

    /// An unsigned Exp-Golomb code of at most 31 leading zeros (section 9.1).
    fn ue(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while !self.flag()? {
            zeros += 1;
            if zeros > 31 {
                return None;
            }
        }
        let mut value = 1_u32;
        for _ in 0..zeros {
            value = value << 1 | u32::from(self.flag()?);
        }
        Some(value - 1)
    }

    fn se(&mut self) -> Option<i64> {
        let code = i64::from(self.ue()?);
        Some(if code % 2 == 1 { (code + 1) / 2 } else { -(code / 2) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::SPS_640X480;
    use super::*;

    #[test]
    fn sizes_profiles_and_cropping() {
        let sps = Sps::parse(&SPS_640X480).unwrap();
        assert_eq!((sps.profile, sps.level, sps.width, sps.height), (66, 30, 640, 480));
        // High profile, 1920x1080: 68 rows of macroblocks, 8 lines cropped.
        let high = [
            0x67, 0x64, 0x00, 0x28, 0xAC, 0xD9, 0x40, 0x78, 0x02, 0x27, 0xE5, 0xC0, 0x44, 0x00, 0x00, 0x03,
            0x00, 0x04, 0x00, 0x00, 0x03, 0x00, 0xF0, 0x3C, 0x60, 0xC6, 0x58,
        ];
        let sps = Sps::parse(&high).unwrap();
        assert_eq!((sps.profile, sps.width, sps.height, sps.chroma_format), (100, 1920, 1080, 1));
    }

    #[test]
    fn no_prefix_and_no_noise_panics() {
        let mut rng = fastrand::Rng::with_seed(11);
        for n in 0..SPS_640X480.len() {
            let _ = Sps::parse(&SPS_640X480[..n]);
        }
        let mut accepted = 0;
        for _ in 0..20_000 {
            let mut nal: Vec<u8> = (0..rng.usize(..60)).map(|_| rng.u8(..)).collect();
            if let Some(profile) = nal.get_mut(1) {
                *profile = [66, 77, 100, 244][rng.usize(..4)];
            }
            if let Some(sps) = Sps::parse(&nal) {
                accepted += 1;
                assert!(sps.width <= SIDE_MAX && sps.height <= SIDE_MAX && sps.width > 0 && sps.height > 0);
            }
        }
        assert!(accepted > 0, "some noise is a parameter set");
    }
}

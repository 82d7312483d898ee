//! H.264 as the outputs need it: NAL units out of Annex B, parameter sets, the `avcC` record, length-prefixed samples.
//!
//! Pure functions over bytes. Invariants: never panics on any input, copies no picture data but into the caller's
//! buffer. It does not decode pictures and does not check them.

mod sps;

pub use sps::Sps;

/// NAL unit types (ITU-T H.264 table 7-1).
mod kind {
    pub const IDR: u8 = 5;
    pub const SPS: u8 = 7;
    pub const PPS: u8 = 8;
    pub const DELIMITER: u8 = 9;
    pub const END_OF_SEQUENCE: u8 = 10;
    pub const END_OF_STREAM: u8 = 11;
    pub const FILLER: u8 = 12;
}

/// Longest parameter set that is taken, in bytes: its length is written in 16 bits.
const SET_BYTES_MAX: usize = 0xFFFF;

/// The NAL units of an Annex B byte stream, without start codes and without the zeros that may follow a unit.
#[must_use]
pub fn nals(data: &[u8]) -> Nals<'_> {
    let first = start_code(data, 0);
    Nals { rest: first.map(|(_, after)| &data[after..]).unwrap_or_default() }
}

/// See [`nals`].
#[derive(Clone, Debug)]
pub struct Nals<'a> {
    /// What follows the last start code seen.
    rest: &'a [u8],
}

impl<'a> Iterator for Nals<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        while !self.rest.is_empty() {
            let (unit, rest) = match start_code(self.rest, 0) {
                Some((at, after)) => (&self.rest[..at], &self.rest[after..]),
                None => (self.rest, &[][..]),
            };
            self.rest = rest;
            // A NAL unit never ends in a zero byte (section 7.4.1): zeros belong to what separates it.
            let end = unit.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
            if end > 0 {
                return Some(&unit[..end]);
            }
        }
        None
    }
}

/// Where the next start code (00 00 01) begins and where it ends.
fn start_code(data: &[u8], from: usize) -> Option<(usize, usize)> {
    let mut at = from;
    // The third byte decides how far to jump: above 1 it can be part of no start code that begins here or at the next two.
    while let Some(window) = data.get(at..at + 3) {
        match window {
            [0, 0, 1] => return Some((at, at + 3)),
            [_, _, 0] => at += 1,
            [_, _, _] => at += 3,
            _ => return None,
        }
    }
    None
}

/// The type of a NAL unit; 0 (unspecified) for an empty one.
fn kind_of(nal: &[u8]) -> u8 {
    nal.first().map_or(0, |b| b & 0x1F)
}

/// Whether the access unit holds an IDR picture.
#[must_use]
pub fn is_idr(data: &[u8]) -> bool {
    nals(data).any(|nal| kind_of(nal) == kind::IDR)
}

/// What a decoder must know before the first picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sequence parameter set, with its NAL header, as it stood in the stream.
    pub sps_nal: Vec<u8>,
    /// The picture parameter set, likewise.
    pub pps_nal: Vec<u8>,
    /// What the first says.
    pub sps: Sps,
}

impl Header {
    /// From an access unit that begins with its parameter sets; `None` if one of them is missing or can't be read. Of
    /// several, the first of each: our encoders write one.
    #[must_use]
    pub fn of(data: &[u8]) -> Option<Header> {
        let find =
            |kind| nals(data).find(|nal| kind_of(nal) == kind && (4..=SET_BYTES_MAX).contains(&nal.len()));
        let sps_nal = find(kind::SPS)?.to_vec();
        let pps =
            nals(data).find(|nal| kind_of(nal) == kind::PPS && (2..=SET_BYTES_MAX).contains(&nal.len()));
        let pps_nal = pps?.to_vec();
        let sps = Sps::parse(&sps_nal)?;
        Some(Header { sps_nal, pps_nal, sps })
    }

    /// The AVCDecoderConfigurationRecord (ISO/IEC 14496-15 section 5.3.3.1): lengths of 4 bytes.
    #[must_use]
    pub fn avcc(&self) -> Vec<u8> {
        let length = |set: &[u8]| u16::try_from(set.len()).unwrap_or(u16::MAX).to_be_bytes();
        let mut out = vec![1, self.sps.profile, self.sps.constraints, self.sps.level, 0xFC | 3, 0xE0 | 1];
        out.extend_from_slice(&length(&self.sps_nal));
        out.extend_from_slice(&self.sps_nal);
        out.push(1);
        out.extend_from_slice(&length(&self.pps_nal));
        out.extend_from_slice(&self.pps_nal);
        // The profiles that carry the chroma format have it here as well.
        if matches!(self.sps.profile, 100 | 110 | 122 | 144 | 244) {
            out.push(0xFC | self.sps.chroma_format);
            out.push(0xF8 | self.sps.bit_depth_luma.saturating_sub(8));
            out.push(0xF8 | self.sps.bit_depth_chroma.saturating_sub(8));
            out.push(0);
        }
        out
    }

    /// `avc1.42C01E`, as RFC 6381 names it.
    #[must_use]
    pub fn codec(&self) -> String {
        format!("avc1.{:02X}{:02X}{:02X}", self.sps.profile, self.sps.constraints, self.sps.level)
    }
}

/// Appends the access unit as a sample: each NAL unit behind its length in 4 bytes. Parameter sets (they are in the
/// `avcC` record), delimiters and filler stay out, as ISO/IEC 14496-15 section 5.3.2 wants it for `avc1`.
pub fn to_sample(data: &[u8], out: &mut Vec<u8>) {
    for nal in sample_nals(data) {
        out.extend_from_slice(&u32::try_from(nal.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(nal);
    }
}

/// How many bytes [`to_sample`] appends.
#[must_use]
pub fn sample_len(data: &[u8]) -> usize {
    sample_nals(data).map(|nal| nal.len() + 4).sum()
}

fn sample_nals(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    nals(data).filter(|nal| {
        !matches!(
            kind_of(nal),
            0 | kind::SPS
                | kind::PPS
                | kind::DELIMITER
                | kind::END_OF_SEQUENCE
                | kind::END_OF_STREAM
                | kind::FILLER
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 640x480, constrained baseline, level 3.0, and its PPS, as x264 writes them.
    pub(super) const SPS_640X480: [u8; 24] = [
        0x67, 0x42, 0xC0, 0x1E, 0xDA, 0x02, 0x80, 0xF6, 0xC0, 0x44, 0x00, 0x00, 0x03, 0x00, 0x04, 0x00, 0x00,
        0x03, 0x00, 0xC8, 0x3C, 0x58, 0xBA, 0x80,
    ];
    const PPS: [u8; 4] = [0x68, 0xCE, 0x0F, 0xC8];

    fn unit(parts: &[&[u8]]) -> Vec<u8> {
        parts.iter().flat_map(|p| [&[0, 0, 0, 1], *p].concat()).collect()
    }

    #[test]
    fn units_are_split_at_either_start_code_and_lose_trailing_zeros() {
        let data =
            [&[0, 0, 0, 1, 9, 0xF0, 0, 0, 1, 0x65, 1, 0, 2, 0, 0, 0][..], &[0, 0, 1, 0x41, 7]].concat();
        let found: Vec<&[u8]> = nals(&data).collect();
        assert_eq!(found, [&[9, 0xF0][..], &[0x65, 1, 0, 2], &[0x41, 7]]);
        assert!(is_idr(&data));
        for data in [&[][..], &[0], &[0, 0, 1], &[0, 0, 1, 0, 0, 1], &[5, 5, 5], &[0, 0, 0, 0]] {
            assert_eq!(nals(data).count(), 0, "{data:?}");
        }
    }

    #[test]
    fn splitting_agrees_with_a_slow_reader() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..2000 {
            let data: Vec<u8> =
                (0..rng.usize(..40)).map(|_| [0, 0, 0, 1, 1, 2, 0xFF][rng.usize(..7)]).collect();
            let mut slow: Vec<Vec<u8>> = Vec::new();
            let mut at = 0;
            while at < data.len() {
                if data[at..].starts_with(&[0, 0, 1]) {
                    slow.push(Vec::new());
                    at += 3;
                } else {
                    if let Some(last) = slow.last_mut() {
                        last.push(data[at]);
                    }
                    at += 1;
                }
            }
            for nal in &mut slow {
                while nal.last() == Some(&0) {
                    nal.pop();
                }
            }
            slow.retain(|nal| !nal.is_empty());
            assert_eq!(nals(&data).map(<[u8]>::to_vec).collect::<Vec<_>>(), slow, "{data:?}");
        }
    }

    #[test]
    fn header_record_and_sample() {
        let picture = [0x65, 0x88, 0x84, 0x01];
        let data = unit(&[&[9, 0x10], &SPS_640X480, &PPS, &[6, 5, 1, 0x80], &picture]);
        let header = Header::of(&data).unwrap();
        assert_eq!((header.sps.width, header.sps.height), (640, 480));
        assert_eq!(header.codec(), "avc1.42C01E");
        let avcc = header.avcc();
        assert_eq!(&avcc[..8], [1, 0x42, 0xC0, 0x1E, 0xFF, 0xE1, 0, 24]);
        assert_eq!(&avcc[8 + 24..], [&[1, 0, 4][..], &PPS].concat());
        let mut sample = Vec::new();
        to_sample(&data, &mut sample);
        assert_eq!(sample, [&[0, 0, 0, 4, 6, 5, 1, 0x80][..], &[0, 0, 0, 4], &picture].concat());
        assert_eq!(sample_len(&data), sample.len());
        assert!(Header::of(&unit(&[&SPS_640X480, &picture])).is_none(), "no PPS");
        assert!(Header::of(&unit(&[&SPS_640X480[..3], &PPS])).is_none(), "half an SPS");
    }
}

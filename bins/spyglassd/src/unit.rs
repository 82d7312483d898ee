//! One encoded picture on its way from the encoder to the outputs. It is made once and shared by all of them.

use std::sync::Arc;

/// An H.264 access unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Presentation time in nanoseconds since the stream's first frame; strictly increasing within a stream. There are no
    /// B-frames, so it is the decoding time too.
    pub pts_ns: u64,
    /// When the frame was taken, in milliseconds of Unix time.
    pub wall_ms: u64,
    /// An IDR picture, with its SPS and PPS in `data` before it.
    pub key: bool,
    /// Annex B: each NAL unit behind a start code (ITU-T H.264, annex B). One access unit, complete.
    pub data: Arc<[u8]>,
}

//! Matroska as Kinesis Video Streams takes it: one segment and clusters of unknown size, so that it can be sent while it
//! is made; times in milliseconds; one H.264 track.
//!
//! The order is [`header`], then for each fragment [`tags`] (if there are any), [`cluster`], [`simple_block`]s; after the
//! last fragment before a pause [`end_of_fragment`]. There is no SeekHead, no Cues and no Void: nobody seeks in a stream.
//!
//! Pure: bytes are appended to the caller's buffer. Never: keeps a frame, reads a clock.

mod ebml;

use crate::h264::{self, Header};

/// Element identifiers (RFC 9559).
mod id {
    pub const EBML: u32 = 0x1A45_DFA3;
    pub const EBML_VERSION: u32 = 0x4286;
    pub const EBML_READ_VERSION: u32 = 0x42F7;
    pub const EBML_ID_BYTES_MAX: u32 = 0x42F2;
    pub const EBML_SIZE_BYTES_MAX: u32 = 0x42F3;
    pub const DOC_TYPE: u32 = 0x4282;
    pub const DOC_TYPE_VERSION: u32 = 0x4287;
    pub const DOC_TYPE_READ_VERSION: u32 = 0x4285;
    pub const SEGMENT: u32 = 0x1853_8067;
    pub const INFO: u32 = 0x1549_A966;
    pub const SEGMENT_UUID: u32 = 0x73A4;
    pub const TIMESTAMP_SCALE: u32 = 0x2A_D7B1;
    pub const MUXING_APP: u32 = 0x4D80;
    pub const WRITING_APP: u32 = 0x5741;
    pub const TRACKS: u32 = 0x1654_AE6B;
    pub const TRACK_ENTRY: u32 = 0xAE;
    pub const TRACK_NUMBER: u32 = 0xD7;
    pub const TRACK_UID: u32 = 0x73C5;
    pub const TRACK_TYPE: u32 = 0x83;
    pub const FLAG_LACING: u32 = 0x9C;
    pub const NAME: u32 = 0x536E;
    pub const CODEC_ID: u32 = 0x86;
    pub const CODEC_PRIVATE: u32 = 0x63A2;
    pub const VIDEO: u32 = 0xE0;
    pub const PIXEL_WIDTH: u32 = 0xB0;
    pub const PIXEL_HEIGHT: u32 = 0xBA;
    pub const CLUSTER: u32 = 0x1F43_B675;
    pub const TIMESTAMP: u32 = 0xE7;
    pub const SIMPLE_BLOCK: u32 = 0xA3;
    pub const TAGS: u32 = 0x1254_C367;
    pub const TAG: u32 = 0x7373;
    pub const SIMPLE_TAG: u32 = 0x67C8;
    pub const TAG_NAME: u32 = 0x45A3;
    pub const TAG_STRING: u32 = 0x4487;
}

/// Tells Kinesis Video Streams that the fragment is over although no other follows yet.
pub const END_OF_FRAGMENT: &str = "AWS_KINESISVIDEO_END_OF_FRAGMENT";
/// The only track's number.
const TRACK: u8 = 1;
const SIMPLE_BLOCK_KEY: u8 = 0x80;
/// Bytes of a SimpleBlock before its frame: track, relative time, flags.
const BLOCK_HEAD_BYTES: usize = 4;

/// The EBML header, the segment's beginning, and the track. `uid` is random.
pub fn header(out: &mut Vec<u8>, video: &Header, uid: [u8; 16]) {
    ebml::master(out, id::EBML, |out| {
        ebml::uint(out, id::EBML_VERSION, 1);
        ebml::uint(out, id::EBML_READ_VERSION, 1);
        ebml::uint(out, id::EBML_ID_BYTES_MAX, 4);
        ebml::uint(out, id::EBML_SIZE_BYTES_MAX, 8);
        ebml::bytes(out, id::DOC_TYPE, b"matroska");
        ebml::uint(out, id::DOC_TYPE_VERSION, 2);
        ebml::uint(out, id::DOC_TYPE_READ_VERSION, 2);
    });
    ebml::open(out, id::SEGMENT);
    ebml::master(out, id::INFO, |out| {
        ebml::bytes(out, id::SEGMENT_UUID, &uid);
        ebml::uint(out, id::TIMESTAMP_SCALE, 1_000_000);
        ebml::bytes(out, id::MUXING_APP, b"spyglassd");
        ebml::bytes(out, id::WRITING_APP, b"spyglassd");
    });
    ebml::master(out, id::TRACKS, |out| {
        ebml::master(out, id::TRACK_ENTRY, |out| {
            ebml::uint(out, id::TRACK_NUMBER, TRACK.into());
            ebml::uint(out, id::TRACK_UID, 1);
            ebml::uint(out, id::TRACK_TYPE, 1);
            ebml::uint(out, id::FLAG_LACING, 0);
            ebml::bytes(out, id::NAME, b"video");
            ebml::bytes(out, id::CODEC_ID, b"V_MPEG4/ISO/AVC");
            ebml::bytes(out, id::CODEC_PRIVATE, &video.avcc());
            ebml::master(out, id::VIDEO, |out| {
                ebml::uint(out, id::PIXEL_WIDTH, video.sps.width.into());
                ebml::uint(out, id::PIXEL_HEIGHT, video.sps.height.into());
            });
        });
    });
}

/// Tags of the cluster that follows. Nothing is written for none.
pub fn tags<'a>(out: &mut Vec<u8>, tags: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let mut content = Vec::new();
    for (name, value) in tags {
        ebml::master(&mut content, id::TAG, |out| {
            ebml::master(out, id::SIMPLE_TAG, |out| {
                ebml::bytes(out, id::TAG_NAME, name.as_bytes());
                ebml::bytes(out, id::TAG_STRING, value.as_bytes());
            });
        });
    }
    if !content.is_empty() {
        ebml::bytes(out, id::TAGS, &content);
    }
}

/// Ends the fragment before it for Kinesis Video Streams.
pub fn end_of_fragment(out: &mut Vec<u8>) {
    tags(out, [(END_OF_FRAGMENT, "")]);
}

/// Begins a cluster at this time, in milliseconds.
pub fn cluster(out: &mut Vec<u8>, timestamp_ms: u64) {
    ebml::open(out, id::CLUSTER);
    ebml::uint(out, id::TIMESTAMP, timestamp_ms);
}

/// One picture (an access unit in Annex B), `offset_ms` after its cluster's time.
pub fn simple_block(out: &mut Vec<u8>, offset_ms: i16, key: bool, unit: &[u8]) {
    ebml::id(out, id::SIMPLE_BLOCK);
    ebml::size(out, (BLOCK_HEAD_BYTES + h264::sample_len(unit)) as u64);
    out.push(0x80 | TRACK);
    out.extend_from_slice(&offset_ms.to_be_bytes());
    out.push(if key { SIMPLE_BLOCK_KEY } else { 0 });
    h264::to_sample(unit, out);
}

//! The reader of parameter sets against x264 at many sizes.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use spyglassd::h264::Header;
use support::{Scratch, encode, have};

#[test]
fn sizes_are_those_that_were_encoded() {
    if !have("sizes_are_those_that_were_encoded", &["ffmpeg"]) {
        return;
    }
    let scratch = Scratch::new("h264");
    for size in [(320, 180), (642, 362), (1280, 720), (1920, 1080), (64, 64)] {
        let units = encode(&scratch.0, size, 2, 2, 0);
        let header = Header::of(&units[0].data).unwrap();
        assert_eq!((header.sps.width, header.sps.height), size);
        assert!(Header::of(&units[1].data).is_none(), "only key frames carry it");
    }
}

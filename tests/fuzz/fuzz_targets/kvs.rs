//! What Kinesis Video Streams sends: the answer's framing and the acknowledgements in it. However the bytes are cut, the
//! same comes out. The first byte selects the parser, the second how the rest is cut.
#![no_main]
#![allow(dead_code)]

// By path: the crate itself links GStreamer.
#[path = "../../../bins/spyglassd/src/kvs/ack.rs"]
mod ack;
#[path = "../../../bins/spyglassd/src/kvs/response.rs"]
mod response;

use ack::{Ack, Parser};
use response::{Part, Reader};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [selector, cut, data @ ..] = data else { return };
    let pieces: Vec<&[u8]> = data.chunks(usize::from(*cut) + 1).collect();
    if selector % 2 == 0 {
        let read = |pieces: &[&[u8]]| -> (Vec<Ack>, bool) {
            let (mut parser, mut out) = (Parser::default(), Vec::new());
            let good = pieces.iter().all(|piece| parser.feed(piece, &mut out).is_ok());
            (out, good)
        };
        assert_eq!(read(&[data]), read(&pieces));
    } else {
        let read = |pieces: &[&[u8]]| -> (Vec<Part>, Vec<u8>, bool) {
            let (mut reader, mut out) = (Reader::default(), Vec::new());
            let good = pieces.iter().all(|piece| reader.feed(piece, &mut out).is_ok());
            let mut body = Vec::new();
            out.retain(|part| match part {
                Part::Body(bytes) => {
                    body.extend_from_slice(bytes);
                    false
                }
                _ => true,
            });
            (out, body, good)
        };
        assert_eq!(read(&[data]), read(&pieces));
    }
});

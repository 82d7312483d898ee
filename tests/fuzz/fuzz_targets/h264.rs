//! Annex B and parameter sets, and the writers of Matroska and MP4 on top: any bytes give an answer, sizes are what was
//! announced, and boxes and elements add up to what was written.
#![no_main]
#![allow(dead_code)]

// By path: the crate itself links GStreamer.
#[path = "../../../bins/spyglassd/src/h264/mod.rs"]
mod h264;
#[path = "../../../bins/spyglassd/src/mkv/mod.rs"]
mod mkv;
#[path = "../../../bins/spyglassd/src/mp4.rs"]
mod mp4;

use h264::Header;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    for nal in h264::nals(data) {
        assert!(!nal.is_empty() && nal.last() != Some(&0));
        assert!(!nal.windows(3).any(|w| w == [0, 0, 1]));
    }
    let mut sample = Vec::new();
    h264::to_sample(data, &mut sample);
    assert_eq!(sample.len(), h264::sample_len(data));
    let mut at = 0;
    while at < sample.len() {
        let length = u32::from_be_bytes(sample[at..at + 4].try_into().unwrap()) as usize;
        at += 4 + length;
    }
    assert_eq!(at, sample.len());

    let mut block = Vec::new();
    mkv::simple_block(&mut block, 7, true, data);
    assert!(block.ends_with(&sample) && block[0] == 0xA3);
    let mut fragment = Vec::new();
    mp4::fragment(&mut fragment, 1, 0, &[mp4::Sample { unit: data, duration: 1, key: true }]);
    assert_eq!(boxes(&fragment), [*b"moof", *b"mdat"]);
    assert!(fragment.ends_with(&sample));
    if let Some(header) = Header::of(data) {
        assert!(header.sps.width > 0 && header.sps.height > 0);
        let (mut init, mut head) = (Vec::new(), Vec::new());
        mp4::init(&mut init, &header);
        assert_eq!(boxes(&init), [*b"ftyp", *b"moov"]);
        mkv::header(&mut head, &header, [0; 16]);
        assert!(head.windows(header.avcc().len()).any(|w| w == header.avcc()));
    }
});

fn boxes(mut bytes: &[u8]) -> Vec<[u8; 4]> {
    let mut kinds = Vec::new();
    while !bytes.is_empty() {
        let size = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
        kinds.push(bytes[4..8].try_into().unwrap());
        bytes = &bytes[size..];
    }
    kinds
}

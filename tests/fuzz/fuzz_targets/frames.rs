//! What an application says at spyglassd's frames socket: what decodes encodes to the same bytes, and no size or stride
//! makes a layout that reaches beyond its bytes.
#![no_main]

// The two files alone, so that fuzzing needs no GStreamer.
#[expect(dead_code, reason = "the rest of the daemon uses what is left over here")]
#[path = "../../../bins/spyglassd/src/frames"]
mod frames {
    pub mod geometry;
    pub mod wire;
}

use frames::geometry::Layout;
use frames::wire::{Message, is_name};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(message) = Message::decode(data) else { return };
    assert_eq!(message.encode(), data);
    if let Message::Hello(hello) = message {
        assert!(is_name(&hello.name) && hello.width > 0 && hello.height > 0);
        for max in [(4096, 4096), (u32::MAX, u32::MAX)] {
            let Ok(layout) = Layout::new(hello.format, (hello.width, hello.height), hello.stride, max) else { continue };
            for plane in 0..layout.planes {
                let rows = if plane == 0 { layout.height } else { layout.height.div_ceil(2) } as usize;
                let stride = layout.strides[plane] as usize;
                assert!(stride > 0 && layout.offsets[plane] + stride * rows <= layout.bytes);
            }
        }
    }
});

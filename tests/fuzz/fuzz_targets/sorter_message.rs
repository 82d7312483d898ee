//! What an arm says to sorterd: headers and picture are the message cut at its first separator, and a name that passes leads
//! nowhere; any constants and any box give pulse widths or none.
#![no_main]
#![allow(dead_code)]

// The files alone, so that fuzzing needs no OpenCV.
#[path = "../../../bins/sorterd/src/found.rs"]
mod found;
#[path = "../../../bins/sorterd/src/geometry.rs"]
mod geometry;
#[path = "../../../bins/sorterd/src/message.rs"]
mod message;

use found::Found;
use message::{Request, SPLIT, Session};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok((headers, picture)) = message::split(data) {
        assert_eq!([headers, SPLIT, picture].concat(), data);
        assert!(!headers.windows(SPLIT.len()).any(|w| w == SPLIT), "an earlier separator");
    }
    if let Ok(request) = message::binary(data) {
        let (Request::Process { session, image, picture } | Request::After { session, image, picture }) = request else {
            panic!("a command came with a picture");
        };
        assert!(data.ends_with(&picture));
        check(&session);
        for name in [image.file(), image.after_file()] {
            assert!(safe(&name) && name.ends_with(".jpg"));
        }
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    match message::text(text) {
        Ok(Request::Commands { session, constants }) => {
            check(&session);
            let byte = |n: usize| i32::from(data[n % data.len()]) * 16;
            let found = Found { class: 0, score: 1.0, x1: byte(0), y1: byte(1), x2: byte(2), y2: byte(3) };
            let servos = geometry::servos(&found, 1500, (640, 480), &constants);
            assert!(servos.is_none_or(|servos| servos.iter().all(|s| s.is_finite())));
        }
        Ok(Request::StitchAfter { session }) => check(&session),
        Ok(_) => panic!("a picture came as text"),
        Err(error) => assert!(error.to_string().len() < 4096, "a short answer to a long mistake"),
    }
});

fn check(session: &Session) {
    assert!(safe(&session.arm) && safe(&session.session), "{session:?}");
}

fn safe(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=64).contains(&name.len()) && name.chars().all(plain) && !name.contains("..") && !name.starts_with('.')
}

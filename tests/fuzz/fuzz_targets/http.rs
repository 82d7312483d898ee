//! Requests of a hostile client into the server codec, and answers of a hostile server into what reads them: S3's error
//! bodies, dates, credentials in JSON, shared configuration files.
#![no_main]

use std::time::{Duration, Instant};

use edge::aws::credentials::{self, Shape};
use edge::aws::s3::ErrorBody;
use edge::http::{Conn, ConnEvent, Decoder, Event, Limits, Response, date};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((cut, data)) = data.split_first() else { return };
    let cut = usize::from(*cut).max(1);
    assert_eq!(decode(data, data.len().max(1)), decode(data, cut), "the same however the stream is cut");
    converse(data, cut);
    let answer = ErrorBody::parse(data);
    assert!(answer.code.chars().count() <= 300 && answer.message.chars().count() <= 300);
    if let Ok(text) = std::str::from_utf8(data) {
        if let Some(at) = date::parse(text) {
            assert_eq!(date::parse(&date::format(at)), Some(at));
        }
        for shape in [Shape::Process, Shape::Metadata, Shape::Iot] {
            let _ = credentials::parse(text, shape, "fuzz");
        }
        let _ = credentials::parse_ini(text);
    }
});

/// The events of a stream fed in pieces: heads, the bodies' bytes, ends, and the status of the refusal.
fn decode(data: &[u8], piece: usize) -> (Vec<String>, Vec<u8>, Option<u16>) {
    let mut decoder = Decoder::new(Limits::default());
    let (mut buffer, mut heads, mut body) = (Vec::new(), Vec::new(), Vec::new());
    for piece in data.chunks(piece) {
        buffer.extend_from_slice(piece);
        loop {
            let (consumed, more) = match decoder.step(&buffer) {
                Err(reject) => return (heads, body, Some(reject.status)),
                Ok(step) => {
                    let more = step.event.is_some();
                    match step.event {
                        Some(Event::Head(request)) => heads.push(format!("{request:?}")),
                        Some(Event::Data(data)) => body.extend_from_slice(data),
                        Some(Event::End) => body.push(0xff),
                        None => {}
                    }
                    (step.consumed, more)
                }
            };
            buffer.drain(..consumed);
            if !more {
                break;
            }
        }
    }
    (heads, body, None)
}

/// A whole connection: whatever comes in, memory stays bounded, and it ends when its time is over.
fn converse(data: &[u8], piece: usize) {
    let mut now = Instant::now();
    let limits = Limits::default();
    let mut conn = Conn::new(limits, now);
    for piece in data.chunks(piece) {
        if conn.io().read {
            conn.received(piece, now);
        }
        while let Some(event) = conn.next(now) {
            if event == ConnEvent::End {
                conn.respond(&Response::text(200, "fuzz"), now);
            }
        }
        let n = conn.output().len() / 2;
        conn.wrote(n, now);
        assert!(conn.unsent() < limits.out_bytes + 4096);
        now += Duration::from_millis(1);
    }
    conn.eof();
    for _ in 0..4 {
        now += Duration::from_secs(3600);
        let _ = conn.expire(now);
        conn.wrote(conn.output().len(), now);
    }
    assert!(conn.io().close);
}

//! Handshake and frames of a hostile client into sorterd's WebSocket: messages are the same however the stream is cut, none is
//! longer than its bound, and nothing piles up.
#![no_main]
#![allow(dead_code)]

// The file alone, so that fuzzing needs no OpenCV.
#[path = "../../../bins/sorterd/src/ws.rs"]
mod ws;

use std::time::Instant;

use edge::http::{Conn, ConnEvent, Limits};
use ws::{Incoming, Socket};

const MESSAGE_MAX: usize = 700;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((cut, data)) = data.split_first() else { return };
    let cut = usize::from(*cut).max(1);
    shake(data);
    assert_eq!(talk(data, data.len().max(1)), talk(data, cut), "the same however the stream is cut");
});

fn shake(data: &[u8]) {
    let now = Instant::now();
    let mut conn = Conn::new(Limits::default(), now);
    conn.received(data, now);
    let Some(ConnEvent::Head(request)) = conn.next(now) else { return };
    match ws::accept(&request, &[]) {
        Ok(answer) => {
            assert_eq!(answer.status, 101);
            assert!(request.method == "GET" && request.header("sec-websocket-key").is_some());
            if let Some(origin) = request.header("origin") {
                let host = request.header("host").unwrap_or_default().to_lowercase();
                assert!(!host.is_empty() && origin.to_lowercase().ends_with(&host), "another site's page");
            }
        }
        Err(answer) => assert!((400..500).contains(&answer.status)),
    }
}

/// The messages of a stream fed in pieces, and whether it ended.
fn talk(data: &[u8], piece: usize) -> (Vec<Incoming>, bool) {
    let mut socket = Socket::new(MESSAGE_MAX);
    let mut messages = Vec::new();
    for piece in data.chunks(piece) {
        socket.received(piece);
        loop {
            match socket.next_message() {
                Ok(Some(message)) => {
                    let length = match &message {
                        Incoming::Text(text) => text.len(),
                        Incoming::Binary(bytes) => bytes.len(),
                    };
                    assert!(length <= MESSAGE_MAX);
                    messages.push(message);
                    socket.send("true".into());
                }
                Ok(None) => break,
                Err(_) => {
                    assert!(socket.is_over());
                    assert!(socket.take_output().len() <= data.len() * 4 + 256);
                    return (messages, true);
                }
            }
        }
        // What is held is one unfinished message at most.
        assert!(socket.waiting() <= MESSAGE_MAX + 64, "{} bytes wait", socket.waiting());
        assert!(socket.take_output().len() <= data.len() * 4 + 256);
    }
    (messages, false)
}

//! Tests of the request decoder.

use super::*;

/// Everything the stream says, fed in pieces of `size` bytes.
fn run(stream: &[u8], size: usize, limits: Limits) -> (Vec<(String, Vec<u8>)>, Option<u16>) {
    let mut decoder = Decoder::new(limits);
    let (mut buffer, mut requests, mut body) = (Vec::new(), Vec::new(), Vec::new());
    let mut target = String::new();
    for piece in stream.chunks(size) {
        buffer.extend_from_slice(piece);
        loop {
            let (consumed, more) = match decoder.step(&buffer) {
                Err(reject) => return (requests, Some(reject.status)),
                Ok(Step { consumed, event: None }) => (consumed, false),
                Ok(Step { consumed, event: Some(event) }) => {
                    match event {
                        Event::Head(request) => target = request.target,
                        Event::Data(data) => body.extend_from_slice(data),
                        Event::End => requests.push((std::mem::take(&mut target), std::mem::take(&mut body))),
                    }
                    (consumed, true)
                }
            };
            buffer.drain(..consumed);
            if !more {
                break;
            }
        }
    }
    (requests, None)
}

fn refused(stream: &str) -> Option<u16> {
    let whole = run(stream.as_bytes(), usize::MAX, Limits::default());
    assert_eq!(whole, run(stream.as_bytes(), 1, Limits::default()), "{stream:?} depends on how it is cut");
    whole.1
}

#[test]
fn pipelined_requests_of_every_framing_whatever_the_cut() {
    let stream = b"\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\nPUT /b HTTP/1.1\r\nhost: x\r\nContent-Length: 5\r\n\r\nhello\
POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nT: 1\r\n\r\n\
POST /d HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\nGET /e HTTP/1.0\r\n\r\n";
    let expected: Vec<(String, Vec<u8>)> =
        [("/a", ""), ("/b", "hello"), ("/c", "hello world"), ("/d", ""), ("/e", "")]
            .map(|(t, b)| (t.to_owned(), b.as_bytes().to_vec()))
            .to_vec();
    for size in [1, 2, 3, 7, 64, 10_000] {
        assert_eq!(run(stream, size, Limits::default()), (expected.clone(), None), "pieces of {size}");
    }
}

#[test]
fn ambiguous_framing_is_refused() {
    let with = |headers: &str| refused(&format!("POST / HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n"));
    assert_eq!(with("Content-Length: 1\r\nTransfer-Encoding: chunked"), Some(400));
    assert_eq!(with("Content-Length: 1\r\nContent-Length: 1"), Some(400));
    for bad in ["+1", "-1", "0x1", "1,1", "1 1", "", "٣"] {
        assert_eq!(with(&format!("Content-Length: {bad}")), Some(400), "{bad:?}");
    }
    assert_eq!(with("Content-Length: 99999999999999999999999"), Some(413));
    assert_eq!(with("Transfer-Encoding: gzip, chunked"), Some(501));
    assert_eq!(with("Transfer-Encoding : chunked"), Some(400));
    assert_eq!(with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), Some(400));
    assert_eq!(refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Some(400));
    assert_eq!(with("Expect: the worst"), Some(417));
}

#[test]
fn malformed_heads_are_refused() {
    assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), Some(400), "no host");
    assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"), Some(400));
    assert_eq!(refused("GET / HTTP/2.0\r\nHost: a\r\n\r\n"), Some(505));
    assert_eq!(refused("GET /\r\n\r\n"), Some(400));
    assert_eq!(refused("\x16\x03\x01\x02"), Some(400), "a TLS hello is told at once");
    assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n folded\r\n\r\n"), Some(400));
    assert_eq!(refused(&"\r\n".repeat(100)), Some(400));
    assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n"), Some(400));
}

#[test]
fn malformed_chunks_are_refused() {
    let with = |chunks: &str| {
        refused(&format!("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"))
    };
    for bad in
        ["x\r\n", "\r\n", "-1\r\n", "+1\r\n", "1\nab", "1\r\nabc", "1\r\na\n0\r\n", "1111111111111111\r\n"]
    {
        assert_eq!(with(bad), Some(400), "{bad:?}");
    }
    assert_eq!(with(&format!("1;{}\r\n", "x".repeat(300))), Some(400));
    assert_eq!(with("ffffff\r\n"), Some(413));
    assert_eq!(with(&format!("0\r\nT: {}\r\n\r\n", "x".repeat(9000))), Some(431));
}

#[test]
fn every_limit_has_its_status() {
    let long = "x".repeat(9000);
    assert_eq!(refused(&format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n")), Some(414));
    assert_eq!(refused(&format!("GET / HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n")), Some(431));
    let many: String = (0..65).map(|i| format!("X{i}: 1\r\n")).collect();
    assert_eq!(refused(&format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n")), Some(431));
    assert_eq!(refused("PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 65537\r\n\r\n"), Some(413));
    // Many chunks, each under the limit, are over it together.
    let chunks = format!("8000\r\n{}\r\n", "a".repeat(0x8000)).repeat(3);
    let stream = format!("PUT / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
    assert_eq!(run(stream.as_bytes(), 4096, Limits::default()).1, Some(413));
}

#[test]
fn an_error_stays() {
    let mut decoder = Decoder::new(Limits::default());
    let first = decoder.step(b"\x00").unwrap_err();
    assert_eq!(decoder.step(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap_err(), first);
}

#[test]
fn what_the_application_asks_of_a_request() {
    let mut decoder = Decoder::new(Limits::default());
    let step = decoder
        .step(b"GET http://h/status?a=b HTTP/1.1\r\nHost: x\r\nX-Y: z\r\nConnection: foo, Close\r\n\r\n");
    let Ok(Step { event: Some(Event::Head(request)), .. }) = step else { panic!("{step:?}") };
    assert_eq!((request.path(), request.query()), ("/status", "a=b"));
    assert_eq!((request.header("x-y"), request.keep_alive), (Some("z"), false));
}

/// Random edits of valid streams: never a panic, and the same answer however the stream is cut.
#[test]
fn damaged_streams_never_panic() {
    let seed = std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
    let mut rng = fastrand::Rng::with_seed(seed);
    let base = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
PUT /b HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello";
    for round in 0..3000 {
        let mut stream = base.to_vec();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(..stream.len());
            match rng.u8(..3) {
                0 => stream[at] = rng.u8(..),
                1 => drop(stream.remove(at)),
                _ => stream.insert(at, *rng.choice(b"\r\n :;0f").unwrap()),
            }
        }
        let whole = run(&stream, usize::MAX, Limits::default());
        let bytewise = run(&stream, 1, Limits::default());
        assert_eq!(whole, bytewise, "seed {seed} round {round}: {:?}", String::from_utf8_lossy(&stream));
    }
}

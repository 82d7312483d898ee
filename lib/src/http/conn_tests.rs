//! Tests of the server connection.

use super::*;

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n";

fn conn(now: Instant) -> Conn {
    Conn::new(Limits::default(), now)
}

fn sent(conn: &mut Conn, now: Instant) -> String {
    let text = String::from_utf8(conn.output().to_vec()).unwrap();
    conn.wrote(text.len(), now);
    text
}

fn events(conn: &mut Conn, now: Instant) -> Vec<ConnEvent> {
    std::iter::from_fn(|| conn.next(now)).collect()
}

#[test]
fn pipelined_requests_are_answered_one_by_one() {
    let now = Instant::now();
    let mut c = conn(now);
    c.received(&[GET, GET].concat(), now);
    assert_eq!(events(&mut c, now).len(), 2, "head and end of the first only");
    c.respond(&Response::text(200, "1"), now);
    assert_eq!(events(&mut c, now).len(), 2);
    c.respond(&Response::text(404, "2"), now);
    let text = sent(&mut c, now);
    assert!(text.find("200 OK").unwrap() < text.find("404 Not Found").unwrap());
    assert_eq!(c.io(), Io { read: true, ..Io::default() });
    assert_eq!(c.deadline(), Some(now + Limits::default().idle_timeout));
}

#[test]
fn an_early_answer_closes_and_lingers() {
    let now = Instant::now();
    let mut c = conn(now);
    c.received(b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", now);
    assert!(matches!(c.next(now), Some(ConnEvent::Head(_))));
    c.respond(&Response::text(404, "no"), now);
    assert!(sent(&mut c, now).contains("Connection: close"));
    assert_eq!(c.io(), Io { read: true, shutdown: true, ..Io::default() });
    c.received(&[0; 97], now);
    assert!(!c.io().close);
    c.eof();
    assert!(c.io().close);
}

#[test]
fn an_answer_before_the_end_of_a_bodyless_request_keeps_the_connection() {
    let now = Instant::now();
    let mut c = conn(now);
    c.received(GET, now);
    assert!(matches!(c.next(now), Some(ConnEvent::Head(_))));
    c.respond(&Response::text(200, "yes"), now);
    assert!(!sent(&mut c, now).contains("Connection: close"));
    assert_eq!(events(&mut c, now), []);
    c.received(GET, now);
    assert_eq!(events(&mut c, now).len(), 2);
}

#[test]
fn silence_is_408_within_a_request_and_a_quiet_close_between() {
    let limits = Limits::default();
    let now = Instant::now();
    let mut c = conn(now);
    assert_eq!(c.expire(now + limits.head_timeout), None);
    assert!(c.io().close, "nothing was sent, nothing is said");

    for begun in [&GET[..10], b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na"] {
        let mut c = conn(now);
        c.received(begun, now);
        let _ = events(&mut c, now);
        assert_eq!(c.expire(now + limits.head_timeout.min(limits.body_timeout) / 2), None);
        let late = c.expire(now + limits.head_timeout.max(limits.body_timeout));
        assert!(matches!(late, Some(ConnEvent::Refused(Reject { status: 408, .. }))), "{late:?}");
        assert!(sent(&mut c, now).starts_with("HTTP/1.1 408"));
    }
}

#[test]
fn a_trickle_does_not_move_the_heads_deadline() {
    let now = Instant::now();
    let mut c = conn(now);
    for (i, byte) in GET[..20].iter().enumerate() {
        c.received(&[*byte], now + Duration::from_millis(i as u64 * 100));
        let _ = events(&mut c, now);
    }
    assert_eq!(c.deadline(), Some(now + Limits::default().head_timeout));
}

#[test]
fn a_peer_that_does_not_read_is_dropped_and_bounded() {
    let now = Instant::now();
    let limits = Limits { out_bytes: 1000, ..Limits::default() };
    let mut c = Conn::new(limits, now);
    c.received(&GET.repeat(50), now);
    let mut answers = 0;
    while let Some(event) = c.next(now) {
        if event == ConnEvent::End {
            c.respond(&Response::text(200, &"x".repeat(100)), now);
            answers += 1;
        }
    }
    assert!(answers < 10 && c.unsent() < 1400, "{answers} {}", c.unsent());
    assert_eq!(c.expire(now + limits.write_timeout), None);
    assert!(c.io().close);
}

#[test]
fn chunked_answers_head_and_http_1_0() {
    let now = Instant::now();
    let mut c = conn(now);
    c.received(GET, now);
    let _ = events(&mut c, now);
    assert!(c.begin_chunks(&Response::new(200, "text/plain", ""), now));
    c.send_chunk(b"hello", now);
    c.end_chunks(now);
    let text = sent(&mut c, now);
    assert!(
        text.contains("Transfer-Encoding: chunked") && text.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        "{text}"
    );

    c.received(b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n", now);
    let _ = events(&mut c, now);
    c.respond(&Response::text(200, "body"), now);
    let text = sent(&mut c, now);
    assert!(text.contains("Content-Length") && text.ends_with("\r\n\r\n"), "{text}");

    c.received(b"GET /a HTTP/1.0\r\n\r\n", now);
    let _ = events(&mut c, now);
    assert!(!c.begin_chunks(&Response::new(200, "text/plain", ""), now));
    c.respond(&Response::text(200, "body"), now);
    assert!(sent(&mut c, now).contains("Connection: close"));
    assert!(c.io().close);
}

#[test]
fn a_half_closed_peer_still_gets_its_answer() {
    let now = Instant::now();
    let mut c = conn(now);
    c.received(GET, now);
    c.eof();
    assert_eq!(events(&mut c, now).len(), 2);
    c.respond(&Response::text(200, "x"), now);
    assert!(sent(&mut c, now).contains("Connection: close"));
    assert!(c.io().close);
}

#[test]
fn an_end_within_a_body_closes_at_once_however_it_comes() {
    let now = Instant::now();
    let put = b"PUT /a HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n";
    for body in [&b""[..], b"abc"] {
        // In one piece with the head, and after it.
        for together in [true, false] {
            let mut c = conn(now);
            c.received(&[put, body].concat(), now);
            if together {
                c.eof();
            }
            let seen = events(&mut c, now);
            assert!(matches!(seen[0], ConnEvent::Head(_)), "{seen:?}");
            assert!(!seen.contains(&ConnEvent::End));
            if !together {
                c.eof();
            }
            assert!(c.io().close, "{body:?} {together}");
        }
    }
}

#[test]
fn expect_continue_is_granted_when_the_body_is_wanted() {
    let now = Instant::now();
    let mut c = conn(now);
    c.received(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n", now);
    assert_eq!(events(&mut c, now).len(), 1);
    assert_eq!(sent(&mut c, now), "HTTP/1.1 100 Continue\r\n\r\n");
    let mut c = conn(now);
    c.received(b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n\r\n", now);
    assert!(matches!(events(&mut c, now)[..], [ConnEvent::Refused(Reject { status: 413, .. })]));
}

#[test]
fn an_answer_of_known_length_comes_in_pieces_and_never_too_long() {
    let now = Instant::now();
    let mut c = conn(now);
    c.received(GET, now);
    let _ = events(&mut c, now);
    c.begin_sized(&Response::new(200, "application/octet-stream", ""), 5, now);
    c.send_bytes(b"he", now);
    c.received(GET, now);
    assert_eq!(events(&mut c, now), [], "the next request waits for the end of this answer");
    c.send_bytes(b"llo, world", now);
    let text = sent(&mut c, now);
    assert!(text.contains("Content-Length: 5\r\n") && text.ends_with("\r\n\r\nhello"), "{text}");
    assert_eq!(events(&mut c, now).len(), 2);

    // The buffer does not grow although the peer always leaves a rest.
    c.begin_sized(&Response::new(200, "application/octet-stream", ""), 1 << 30, now);
    for _ in 0..1000 {
        c.send_bytes(&[7; 32 << 10], now);
        c.wrote(c.unsent() - 100, now);
    }
    assert!(c.output.len() < 200 << 10, "{}", c.output.len());
    c.abort();
    assert!(c.io().close);
}

#[test]
fn refusals_take_the_form_that_the_application_gives_them() {
    let now = Instant::now();
    let mut c =
        conn(now).with_refusals(|r| Response::new(r.status, "application/json", format!("[{:?}]", r.why)));
    c.received(b"\x16\x03\x01", now);
    assert!(matches!(events(&mut c, now)[..], [ConnEvent::Refused(_)]));
    assert!(sent(&mut c, now).contains("application/json"));
}

#[test]
fn a_file_is_sent_by_the_shell_after_the_head() {
    let t0 = Instant::now();
    let mut conn = Conn::new(Limits::default(), t0);
    conn.received(b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n", t0);
    while conn.next(t0).is_some() {}
    let file = Arc::new(File::open("/dev/null").unwrap());
    conn.respond_file(&Response::new(200, "a/b", ""), file, 5, 10, t0);
    assert!(conn.file().is_none(), "the head goes first");
    conn.wrote(conn.unsent(), t0);
    assert_eq!(conn.file().map(|(_, offset, left)| (offset, left)), Some((5, 10)));
    // A peer that does not read is not waited for for ever.
    assert!(conn.deadline().is_some());
    conn.sent_file(4, t0);
    assert_eq!(conn.file().map(|(_, offset, left)| (offset, left)), Some((9, 6)));
    conn.feed_file(b"abcdef", t0);
    assert_eq!((conn.output(), conn.file().is_none()), (&b"abcdef"[..], true));
    // The next request is looked at.
    assert!(matches!(conn.next(t0), Some(ConnEvent::Head(request)) if request.target == "/2"));
}

#[test]
fn another_protocol_passes_through_and_ends_in_order() {
    let limits = Limits::default();
    let now = Instant::now();
    let mut c = conn(now);
    c.received(&[GET, b"first"].concat(), now);
    assert_eq!(events(&mut c, now).len(), 2);
    c.upgrade(&Response::text(101, "").with("Upgrade", "x"), now);
    assert!(sent(&mut c, now).starts_with("HTTP/1.1 101 Switching Protocols\r\n"));
    assert_eq!(events(&mut c, now), [ConnEvent::Data(b"first".to_vec())]);
    assert!(c.deadline().is_none() && !c.is_idle(), "the application is at work");
    c.wait_raw(Some(now + limits.idle_timeout), now);
    assert_eq!(c.deadline(), Some(now + limits.idle_timeout));
    assert!(c.is_idle());
    c.received(GET, now);
    assert_eq!(events(&mut c, now), [ConnEvent::Data(GET.to_vec())], "nobody reads a request in it");
    c.send_raw(b"answer", now);
    assert_eq!(c.deadline(), Some(now + limits.write_timeout));
    c.finish_raw(now);
    assert!(!c.io().close && !c.io().read);
    assert_eq!(sent(&mut c, now), "answer");
    assert_eq!(c.io(), Io { read: true, shutdown: true, ..Io::default() });
    c.eof();
    assert!(c.io().close);

    let mut c = conn(now);
    c.upgrade(&Response::text(101, ""), now);
    assert_eq!(c.unsent(), 0, "nobody asked");
    c.received(GET, now);
    assert_eq!(events(&mut c, now).len(), 2);
    c.upgrade(&Response::text(101, ""), now);
    c.wait_raw(Some(now), now);
    c.wrote(c.unsent(), now);
    assert_eq!(c.expire(now), None);
    assert!(c.io().close);
}

#[test]
fn what_came_before_the_peers_end_is_understood() {
    let now = Instant::now();
    let later = Some(now + Limits::default().idle_timeout);
    // A body whose last piece and end of the connection come together.
    let mut c = conn(now);
    c.received(b"PUT /x HTTP/1.1\r\nHost: d\r\nContent-Length: 5\r\n\r\n", now);
    assert_eq!(events(&mut c, now).len(), 1);
    c.received(b"hello", now);
    c.eof();
    assert_eq!(events(&mut c, now), [ConnEvent::Data(b"hello".to_vec()), ConnEvent::End]);
    c.respond(&Response::text(200, "ok"), now);
    assert!(sent(&mut c, now).starts_with("HTTP/1.1 200"));
    assert!(c.io().close);

    // The same of another protocol, whose application was waiting for it.
    let upgraded = || {
        let mut c = conn(now);
        c.received(GET, now);
        assert_eq!(events(&mut c, now).len(), 2);
        c.upgrade(&Response::text(101, ""), now);
        c.wrote(c.unsent(), now);
        c.wait_raw(later, now);
        c
    };
    let mut c = upgraded();
    c.received(b"last words", now);
    c.eof();
    assert!(!c.io().close && !c.io().read);
    assert_eq!(events(&mut c, now), [ConnEvent::Data(b"last words".to_vec())]);
    c.wait_raw(None, now);
    assert!(!c.io().close && c.deadline().is_none(), "the application is at work on it");
    c.send_raw(b"answer", now);
    c.wait_raw(later, now);
    assert_eq!(sent(&mut c, now), "answer");
    assert!(c.io().close, "nobody is waited for");

    // Nothing came before the end, or the application was at work when it came.
    let mut c = upgraded();
    c.eof();
    assert!(c.io().close);
    let mut c = upgraded();
    c.wait_raw(None, now);
    c.eof();
    assert!(!c.io().close);
    c.wait_raw(later, now);
    assert!(c.io().close);
}

//! The client against a scripted TLS server.

use std::{
    io::Read,
    net::TcpListener,
    sync::mpsc,
    time::{Duration, Instant},
};

use super::{
    testing::{Server, certificates, make_pair},
    *,
};

fn get(path: &str) -> Request<'_> {
    Request::new("GET", path).silence_max(Duration::from_secs(10))
}

fn text(answer: Answer<'_>) -> String {
    String::from_utf8(answer.bytes(1 << 20).unwrap()).unwrap()
}

/// `count` bytes, then the end.
fn zeros(count: u64) -> impl Read {
    std::io::repeat(0).take(count)
}

#[test]
fn requests_share_a_connection_and_answers_come_in_all_framings() {
    let server = Server::start("framings", 2, |peer, number| {
        if number == 0 {
            let seen = peer.request().unwrap();
            assert_eq!(seen.line, "GET /files HTTP/1.1");
            assert!(seen.headers.iter().any(|h| h.starts_with("Host: 127.0.0.1:")), "{:?}", seen.headers);
            peer.json(200, "[1]");
            let seen = peer.request().unwrap();
            assert_eq!((seen.line.as_str(), seen.body.as_slice()), ("PUT /files/a HTTP/1.1", &b"abc"[..]));
            assert!(seen.headers.contains(&"mtime: 1".into()));
            peer.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            // Head, chunk lines and content arrive in pieces of one byte.
            for byte in b"5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: 1\r\n\r\n" {
                peer.send([*byte]);
            }
            peer.request().unwrap();
            peer.json(404, r#"{"message":"no such one"}"#);
        } else {
            peer.request().unwrap();
            // Until the close, which comes without close_notify.
            peer.send("HTTP/1.0 200 OK\r\n\r\nuntil the end");
        }
    });
    let mut client = Client::connect(&server.target).unwrap();
    assert_eq!(client.request(get("/files")).unwrap().json().unwrap(), serde_json::json!([1]));
    let headers = [("mtime", "1")];
    let put = Request::new("PUT", "/files/a").headers(&headers).body(Body::Bytes(b"abc"));
    assert_eq!(text(client.request(put).unwrap()), "hello world");
    let answer = client.request(get("/none")).unwrap();
    assert_eq!(answer.status, 404);
    drop(answer);
    // The answer was not read to its end, so that a new connection is made.
    let mut answer = client.request(get("/close")).unwrap();
    let mut small = [0; 5];
    assert_eq!(answer.read_piece(&mut small).unwrap(), 5);
    assert_eq!(text(answer), " the end");
    let wire = client.wire();
    assert!(wire.sent > 500 && wire.received > 1000, "{wire:?}");
    server.join();
}

#[test]
fn an_answer_while_the_body_is_being_sent_is_the_answer() {
    let server = Server::start("early", 2, |peer, _| {
        peer.head().unwrap();
        // It reads no further, says no, and closes with bytes of ours unread: the system resets the connection.
        peer.json(507, r#"{"message":"the disk is full"}"#);
        peer.close_notify();
    });
    let mut client = Client::connect(&server.target).unwrap();
    for len in [Some(1 << 30), None] {
        let mut reader = zeros(1 << 30);
        let put = Request::new("PUT", "/files/big").body(Body::Reader { reader: &mut reader, len });
        match client.request(put).and_then(Answer::json) {
            Err(Error::Refused { status: 507, message, .. }) => assert_eq!(message, "the disk is full"),
            other => panic!("{other:?}"),
        }
    }
    server.join();
}

#[test]
fn interim_answers_do_not_stop_a_body() {
    let server = Server::start("interim", 1, |peer, _| {
        let seen = peer.head().unwrap();
        peer.send("HTTP/1.1 100 Continue\r\n\r\n");
        std::thread::sleep(Duration::from_millis(100));
        let seen = peer.body(seen).unwrap();
        peer.send("HTTP/1.1 103 Early\r\nA: b\r\n\r\n");
        peer.json(200, &seen.body.len().to_string());
    });
    let mut client = Client::connect(&server.target).unwrap();
    let mut reader = zeros(30_000_000);
    let post = Request::new("POST", "/x").body(Body::Reader { reader: &mut reader, len: None });
    assert_eq!(client.request(post).unwrap().json().unwrap(), 30_000_000);
    server.join();
}

#[test]
fn a_stale_connection_is_replaced_and_only_what_may_be_is_sent_twice() {
    let (closing, closed) = mpsc::channel();
    let server = Server::start("stale", 4, move |peer, number| match number {
        // Closed while idle: seen before anything is sent.
        0 => {
            peer.request().unwrap();
            peer.json(200, "1");
            peer.close_notify();
            closing.send(()).unwrap();
        }
        // Closed after a further request was read: a GET may be repeated.
        1 => {
            assert!(peer.request().unwrap().line.starts_with("POST /a"));
            peer.json(200, "2");
            peer.request().unwrap();
        }
        2 => {
            assert!(peer.request().unwrap().line.starts_with("GET /b"));
            peer.json(200, "3");
            assert!(peer.request().unwrap().line.starts_with("POST /c"));
        }
        _ => {
            assert!(peer.request().unwrap().line.starts_with("GET /d"));
            peer.json(200, "4");
        }
    });
    let mut client = Client::connect(&server.target).unwrap();
    assert_eq!(client.request(get("/")).unwrap().json().unwrap(), 1);
    closed.recv().unwrap();
    assert_eq!(client.request(Request::new("POST", "/a")).unwrap().json().unwrap(), 2);
    assert_eq!(client.request(get("/b")).unwrap().json().unwrap(), 3);
    let error = client.request(Request::new("POST", "/c")).map(|_| ()).unwrap_err();
    assert!(error.is_lost_connection(), "{error}");
    assert_eq!(client.request(get("/d")).unwrap().json().unwrap(), 4);
    server.join();
}

#[test]
fn nonsense_truncation_and_silence_are_errors_that_say_so() {
    let server = Server::start("nonsense", 5, |peer, number| {
        peer.request().unwrap();
        match number {
            0 => peer.send("220 smtp.example.com ESMTP\r\n"),
            1 => peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"),
            2 => peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
            3 => peer.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{x"),
            // Says nothing until the client has gone.
            _ => drop(peer.head()),
        }
    });
    let mut client = Client::connect(&server.target).unwrap();
    let mut ask = |silence: u64| {
        let request = Request::new("POST", "/").silence_max(Duration::from_millis(silence));
        client.request(request).and_then(Answer::json).unwrap_err()
    };
    let error = ask(5000);
    assert!(matches!(&error, Error::Protocol { .. }), "{error}");
    assert_eq!(error.exit_code(), 76);
    for _ in 0..2 {
        let error = ask(5000);
        assert!(matches!(&error, Error::Closed { during: "in the middle of its answer", .. }), "{error}");
        assert_eq!(error.exit_code(), 69);
    }
    assert!(ask(5000).to_string().contains("no JSON"));
    let begun = Instant::now();
    let error = ask(200);
    assert!(matches!(&error, Error::Silent { .. }), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop(client);
    server.join();
}

#[test]
fn lines_come_one_by_one_and_a_stopper_ends_them() {
    let server = Server::start("lines", 1, |peer, _| {
        peer.request().unwrap();
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        peer.send("8\r\n{\"a\":1}\n\r\n1\r\n\n\r\n6\r\n{\"a\":2\r\n2\r\n}\n\r\n");
        // Until the client goes.
        peer.head();
    });
    let client = Client::connect(&server.target).unwrap();
    let mut lines = client.into_lines(get("/application/logs?follow=1")).unwrap();
    assert_eq!(lines.next_line().unwrap().unwrap(), "{\"a\":1}");
    assert_eq!(lines.next_line().unwrap().unwrap(), "{\"a\":2}");
    let stopper = lines.stopper().unwrap().unwrap();
    let waiting = std::thread::spawn(move || lines.next_line());
    std::thread::sleep(Duration::from_millis(50));
    stopper.stop();
    assert!(waiting.join().unwrap().unwrap_err().is_lost_connection());
    server.join();
}

#[test]
fn a_body_that_shrinks_is_our_error() {
    let server = Server::start("shrinks", 1, |peer, _| {
        peer.request();
    });
    let mut client = Client::connect(&server.target).unwrap();
    let mut reader = zeros(10);
    let put = Request::new("PUT", "/x").body(Body::Reader { reader: &mut reader, len: Some(20) });
    let error = client.request(put).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Body(_)), "{error}");
    server.join();
}

#[test]
fn trust_is_explained() {
    // The device's certificate is another one.
    let server = Server::start("other", 1, |peer, _| {
        peer.request();
    });
    make_pair(&server.folder.0, SERVER_CERT, SERVER_KEY, |_| {});
    let error = Client::connect(&server.target).map(|_| ()).unwrap_err();
    let chain = edge::log::chain(&error);
    assert!(chain.contains("another certificate than the one pinned in"), "{chain}");
    assert!(chain.contains(SERVER_CERT) && error.fix().is_some() && error.exit_code() == 77, "{chain}");
    server.join();

    // The device's certificate has expired.
    let folder = certificates("expired");
    make_pair(&folder.0, SERVER_CERT, SERVER_KEY, |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let config = Server::config(&folder.0, false);
    let server = Server::with(folder, config, 1, |peer, _| {
        peer.request();
    });
    let error = Client::connect(&server.target).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("has expired, by the clock of this host"), "{error}");
    server.join();

    // The device does not know us: in TLS 1.3 it says so after the handshake, here with and without a pause.
    for pause in [0, 100] {
        let folder = certificates("stranger");
        let config = Server::config(&folder.0, true);
        let server = Server::with(folder, config, 1, |peer, _| {
            assert!(peer.request().is_none());
        });
        let error = Client::connect(&server.target).and_then(|mut client| {
            std::thread::sleep(Duration::from_millis(pause));
            client.request(get("/files"))?.json()
        });
        let error = error.unwrap_err();
        assert!(error.to_string().contains("does not trust the client certificate"), "{error}");
        assert!(error.fix().unwrap().contains(CLIENT_CERT) && error.exit_code() == 77);
        server.join();
    }
}

#[test]
fn what_is_not_there_is_explained() {
    let folder = certificates("absent");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut target = Target {
        addr: "127.0.0.1".into(),
        port: listener.local_addr().unwrap().port(),
        certs: Certs::in_dir(&folder.0),
        connect_timeout: Duration::from_millis(300),
    };
    // Something listens and says nothing.
    let error = Client::connect(&target).map(|_| ()).unwrap_err();
    assert!(matches!(&error, Error::Silent { during: "during the TLS handshake", .. }), "{error}");
    // It speaks something else, and has time to.
    target.connect_timeout = Duration::from_secs(5);
    let thread = std::thread::spawn(move || {
        use std::io::Write;
        // The connection that was given up above comes first.
        drop(listener.accept());
        let mut socket = listener.accept().unwrap().0;
        socket.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").unwrap();
        let _ = socket.read(&mut [0; 100]);
        drop(listener);
    });
    let error = Client::connect(&target).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
    thread.join().unwrap();
    // Nothing listens.
    let error = Client::connect(&target).map(|_| ()).unwrap_err();
    assert!(error.fix().unwrap().contains("systemctl status sideloadd"), "{error}");
    assert_eq!(error.exit_code(), 69);
    target.addr = "no-such-host.invalid".into();
    let error = Client::connect(&target).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Resolve { .. }), "{error}");
    std::fs::remove_file(folder.0.join(CLIENT_KEY)).unwrap();
    let error = Client::connect(&target).map(|_| ()).unwrap_err();
    assert!(edge::log::chain(&error).contains(CLIENT_KEY), "{error}");
    assert_eq!(error.exit_code(), 77);
}

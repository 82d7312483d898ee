//! Tests of the WebSocket codec: `tungstenite`'s own client side against it.

use super::*;

use edge::http::{Conn, ConnEvent, Limits};
use std::time::Instant;

fn client() -> WebSocket<Pipe> {
    WebSocket::from_raw_socket(Pipe::default(), Role::Client, None)
}

/// Moves all bytes in both directions.
fn exchange(client: &mut WebSocket<Pipe>, server: &mut Socket) {
    let _ = client.flush();
    server.received(&std::mem::take(&mut client.get_mut().output));
    client.get_mut().input.extend(server.take_output());
}

fn request(head: &str) -> Request {
    let now = Instant::now();
    let mut conn = Conn::new(Limits::default(), now);
    conn.received(head.as_bytes(), now);
    match conn.next(now) {
        Some(ConnEvent::Head(request)) => request,
        other => panic!("{other:?}"),
    }
}

const GOOD: &str = "GET /any HTTP/1.1\r\nHost: arm:6000\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
                    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn the_handshake_of_the_rfc() {
    let asked = request(&format!("{GOOD}\r\n"));
    assert!(is_upgrade(&asked));
    let answer = accept(&asked, &[]).unwrap();
    let accepted = answer.headers.iter().find(|(name, _)| *name == "Sec-WebSocket-Accept").unwrap();
    assert_eq!(accepted.1, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert!(!is_upgrade(&request("GET / HTTP/1.1\r\nHost: x\r\n\r\n")));
}

#[test]
fn wrong_handshakes_are_refused() {
    let with =
        |from: &str, to: &str| accept(&request(&(GOOD.replace(from, to) + "\r\n")), &[]).unwrap_err().status;
    assert_eq!(with("GET", "POST"), 400);
    assert_eq!(with("keep-alive, Upgrade", "keep-alive"), 400);
    assert_eq!(with("Version: 13", "Version: 8"), 426);
    assert_eq!(with("dGhlIHNhbXBsZSBub25jZQ==", "dGhl"), 400);
    assert_eq!(with("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j\"Q=="), 400);
    assert_eq!(with("Upgrade: websocket\r\n", "Upgrade: websocket\r\nOrigin: https://evil.example\r\n"), 403);
    assert_eq!(with("Upgrade: websocket\r\n", "Upgrade: websocket\r\nOrigin: null\r\n"), 403);
}

#[test]
fn a_browsers_page_has_to_be_this_servers_under_a_name_of_its_own() {
    let status = |host: &str, origin: &str| {
        let asked = GOOD
            .replace("arm:6000", host)
            .replace("Upgrade: websocket", &format!("Upgrade: websocket{origin}"));
        accept(&request(&(asked + "\r\n")), &["arm".into()]).map_or_else(|r| r.status, |r| r.status)
    };
    for own in ["arm:6000", "ARM:6000", "localhost:6000", "10.0.0.7:6000", "[::1]:6000", "arm"] {
        assert_eq!(status(own, &format!("\r\nOrigin: http://{own}")), 101, "{own}");
    }
    // A stranger's name that leads here: what the page says of itself and what it asks for agree.
    for foreign in ["evil.example:6000", "arm.evil.example", "localhost.evil.example:6000"] {
        assert_eq!(status(foreign, &format!("\r\nOrigin: http://{foreign}")), 403, "{foreign}");
        assert_eq!(status(foreign, ""), 101, "an arm knows this server by any name: {foreign}");
    }
    assert_eq!(status("arm:6000", "\r\nOrigin: http://arm:6001"), 403);
}

#[test]
fn messages_pings_and_goodbyes() {
    let (mut arm, mut server) = (client(), Socket::new(1000));
    arm.send(Message::binary(vec![7; 1000])).unwrap();
    arm.send(Message::Ping(vec![1].into())).unwrap();
    arm.send(Message::text("hello")).unwrap();
    exchange(&mut arm, &mut server);
    assert_eq!(server.next_message(), Ok(Some(Incoming::Binary(vec![7; 1000]))));
    assert_eq!(server.next_message(), Ok(Some(Incoming::Text("hello".into()))));
    assert_eq!(server.next_message(), Ok(None));
    server.send("true".into());
    exchange(&mut arm, &mut server);
    assert_eq!(arm.read().unwrap(), Message::Pong(vec![1].into()));
    assert_eq!(arm.read().unwrap(), Message::text("true"));
    arm.close(None).unwrap();
    exchange(&mut arm, &mut server);
    assert_eq!(server.next_message(), Err(Over { why: None }));
    assert!(server.is_over());
    exchange(&mut arm, &mut server);
    assert!(matches!(arm.read(), Ok(Message::Close(_))), "the goodbye is answered");
}

#[test]
fn too_long_is_1009_and_nonsense_1002() {
    for (sent, code) in [(vec![0; 1001], CloseCode::Size), (vec![], CloseCode::Protocol)] {
        let (mut arm, mut server) = (client(), Socket::new(1000));
        if sent.is_empty() {
            // Not masked, as a client's frames have to be.
            server.received(&[0x81, 1, b'x']);
        } else {
            arm.send(Message::binary(sent)).unwrap();
            exchange(&mut arm, &mut server);
        }
        assert!(server.next_message().unwrap_err().why.is_some());
        server.send("not sent any more".into());
        exchange(&mut arm, &mut server);
        let Ok(Message::Close(Some(frame))) = arm.read() else { panic!() };
        assert_eq!(frame.code, code);
    }
}

#[test]
fn many_small_frames_are_bounded_together() {
    use tungstenite::protocol::frame::Frame;
    use tungstenite::protocol::frame::coding::{Data, OpCode};
    let (mut arm, mut server) = (client(), Socket::new(1000));
    let mut over = None;
    for n in 0..200 {
        let kind = if n == 0 { Data::Binary } else { Data::Continue };
        arm.send(Message::Frame(Frame::message(vec![0; 10], OpCode::Data(kind), false))).unwrap();
        exchange(&mut arm, &mut server);
        if let Err(why) = server.next_message() {
            over = Some((n, why));
            break;
        }
    }
    assert_eq!(over.unwrap().0, 100);
}

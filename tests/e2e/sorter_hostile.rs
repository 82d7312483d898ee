//! sorterd against messages, names and clients that are not what they should be.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use e2e::env::{seed, wait_for};
use e2e::net::local;
use e2e::scratch::{self, Scratch};
use e2e::skip;
use e2e::sorter::{Sorter, draw, have_arm, headers, question};
use e2e::websocket::{BINARY, PING, PONG, TEXT, WebSocket, frame, message, upgrade};
use serde_json::{Value, json};

const LIMIT: usize = 2_048_576;

/// Names that must never become a path or SQL.
const NAMES: &[&str] = &[
    "",
    ".",
    "..",
    "../x",
    "..%2fx",
    "a/b",
    "/etc/passwd",
    "a\\b",
    "a\0b",
    "a b",
    "a\nb",
    "x'; DROP TABLE objects; --",
    "x\" OR \"1\"=\"1",
    "<script>alert(1)</script>",
    "ü",
    "..jpg/..",
    "~",
    "$(id)",
    "*",
];

fn commands(names: (&str, &str, &str)) -> Vec<Value> {
    let (arm, session, image) = names;
    let of = |command: &str| json!({ "command": command, "arm_id": arm, "session_id": session, "image_name": image });
    vec![of("recv_img_proc"), of("recv_img_after")]
}

#[test]
fn names_become_neither_paths_nor_sql() {
    let scratch = Scratch::new("sorname");
    let mut sorter = Sorter::start(&scratch, "");
    let picture = b"\xff\xd8\xff\xe0 whatever".as_slice();
    let long = "x".repeat(300);
    for name in NAMES.iter().copied().chain([long.as_str()]) {
        for headers in [("arm1", "s1", name), ("arm1", name, "1500.jpg"), (name, "s1", "1500.jpg")]
            .map(commands)
            .concat()
        {
            assert_eq!(sorter.send(&headers, picture), json!(false), "{headers}");
        }
        let mut socket = WebSocket::connect(sorter.port);
        for (arm, session) in [("arm1", name), (name, "s1")] {
            let mut ask = question(session);
            ask["arm_id"] = json!(arm);
            ask["arm_constants"]["arm_id"] = json!(arm);
            let answer = socket.ask(&ask);
            assert!(answer["error"].is_string(), "{ask}: {answer}");
        }
    }
    // Nor the paths of HTTP.
    for path in [
        "/pictures/../sorterd.toml",
        "/pictures/arm1/../../../sorterd.toml",
        "/pictures/%2e%2e/%2e%2e/sorterd.toml",
        "/pictures/arm1/s1/..%2f..%2f..%2fsorterd.toml",
        "/pictures//etc/passwd",
        "/pictures/arm1/s1/",
        "/pictures/arm1/s1/.%00.jpg",
        "/api/sessions/../x",
        "/api/sessions/x'/y",
        "/api/sessions/a/b/c",
    ] {
        let (status, head, body) = sorter.get(path);
        assert!((400..500).contains(&status), "{path}: {head}");
        assert!(!String::from_utf8_lossy(&body).contains("listen ="), "{path}");
    }
    let made: Vec<_> = scratch::files(&sorter.daemon.dir)
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "jpg"))
        .collect();
    assert!(made.is_empty(), "{made:?}");
    assert_eq!(sorter.json("/api/sessions")["sessions"], json!([]));
    sorter.daemon.check_log();
    assert!(sorter.daemon.term().success());
}

/// A picture whose other headers are wrong is a picture: an arm takes all that is not false for success.
fn wrong_headers_are_a_no(socket: &mut WebSocket) {
    for command in ["recv_img_proc", "recv_img_after"] {
        let mut all = headers("s1", "1500.jpg");
        all["command"] = json!(command);
        for key in ["arm_id", "session_id", "image_name"] {
            for wrong in [None, Some(json!(null)), Some(json!([])), Some(json!(15.5))] {
                let mut headers = all.clone();
                match wrong {
                    Some(wrong) => headers[key] = wrong,
                    None => drop(headers.as_object_mut().unwrap().remove(key)),
                }
                assert_eq!(socket.picture(&headers, b"\xff\xd8"), json!(false), "{headers}");
            }
        }
        all["image_name"] = json!(1500);
        assert_eq!(socket.picture(&all, b"\xff\xd8"), json!(false), "{all}");
    }
}

#[test]
fn messages_that_are_none_are_refused_and_the_connection_stays() {
    let scratch = Scratch::new("sormsg");
    let sorter = Sorter::start(&scratch, "");
    let mut socket = WebSocket::connect(sorter.port);
    for text in [
        "",
        "{",
        "[]",
        "42",
        "null",
        "{}",
        r#"{"command": 7}"#,
        r#"{"command": "launch"}"#,
        r#"{"command": "recv_img_proc", "arm_id": "a", "session_id": "s", "image_name": "1.jpg"}"#,
        r#"{"command": "get_commands_of_session"}"#,
        r#"{"command": "get_commands_of_session", "arm_id": "a", "session_id": "s"}"#,
        r#"{"command": "get_commands_of_session", "arm_id": "a", "session_id": 5, "arm_constants": {}}"#,
        r#"{"command": "get_commands_of_session", "arm_id": "a", "session_id": "s", "arm_constants": {"arm_id": "a"}}"#,
        r#"{"command": "get_commands_of_session", "arm_id": "a", "session_id": "s", "arm_constants": {"arm_id": "a",
            "arm_radius": "wide", "dist_max_as_pw": 1, "dist_min_as_pw": 1, "rotation_range_as_deg": 1, "rotation_range_as_pw": 1}}"#,
        &"[".repeat(50_000),
    ] {
        assert!(socket.send(TEXT, text.as_bytes()));
        let answer = socket.answer();
        assert!(answer["error"].as_str().is_some_and(|e| !e.is_empty()), "{text:.60}: {answer}");
    }
    // A degree range of nothing would divide by it.
    let mut nothing = question("s1");
    nothing["arm_constants"]["rotation_range_as_deg"] = json!(0);
    assert!(socket.ask(&nothing)["error"].is_string());
    let good = headers("s1", "1500.jpg").to_string().into_bytes();
    let separator = b"___SPLIT___".as_slice();
    for (what, bytes) in [
        ("nothing", Vec::new()),
        ("no separator", good.clone()),
        ("only a separator", separator.to_vec()),
        ("no headers", [separator, b"\xff\xd8"].concat()),
        ("no picture", [&good, separator].concat()),
        ("not a picture", [&good, separator, b"GIF89a not a JPEG at all"].concat()),
        ("broken JSON", [b"{\"command\": ", separator, b"\xff\xd8"].concat()),
        ("headers that are not text", [b"\xff\xfe\xfd", separator, b"\xff\xd8"].concat()),
        ("half a separator", [&good[..], b"___SPLIT__", b"\xff\xd8"].concat()),
        ("an unknown command", [br#"{"command":"sing"}"#.as_slice(), separator, b"\xff\xd8"].concat()),
        ("no command", [br#"{"image_name":7}"#.as_slice(), separator, b"\xff\xd8"].concat()),
    ] {
        assert!(socket.send(BINARY, &bytes));
        let answer = socket.answer();
        let is_picture = matches!(what, "no picture" | "not a picture");
        let right = if is_picture { answer == json!(false) } else { answer["error"].is_string() };
        assert!(right, "{what}: {answer}");
    }
    wrong_headers_are_a_no(&mut socket);
    sorter.daemon.wait_log("the headers of the picture are not as they should be", Duration::from_secs(60));
    // Still the same connection, and it works.
    assert_eq!(socket.ask(&question("s1")), json!([]));
    sorter.daemon.check_log();
}

/// Pictures that begin well and do not go on, of sizes that nobody has memory for, and noise.
#[test]
fn broken_pictures_cost_nothing_but_a_no() {
    if !have_arm() {
        skip!("the arm's Python is not there (etc/tools.sh arm)");
    }
    let scratch = Scratch::new("sorbad");
    let mut rng = fastrand::Rng::with_seed(seed());
    let sorter = Sorter::start(&scratch, "");
    let (_, good) = draw(&scratch, "single").remove(0);
    let mut huge = good.clone();
    let size = good.windows(2).position(|w| w == [0xff, 0xc0]).expect("a baseline JPEG") + 5;
    huge[size..size + 4].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    let mut socket = WebSocket::connect(sorter.port);
    assert_eq!(socket.picture(&headers("s1", "1500.jpg"), &huge), json!(false), "4 gigapixels");
    for n in 0..60 {
        let mut broken = good.clone();
        match n % 3 {
            0 => broken.truncate(rng.usize(2..good.len() / 2)),
            1 => (0..40).for_each(|_| broken[rng.usize(..good.len())] = rng.u8(..)),
            _ => broken = (0..rng.usize(1..5000)).map(|_| rng.u8(..)).collect(),
        }
        // Some are pictures still; what counts is an answer.
        let answer = socket.picture(&headers("s2", &format!("{n}.jpg")), &broken);
        assert!(answer.is_boolean(), "{answer}");
        assert!(n % 3 != 2 || answer == json!(false), "noise is no picture");
    }
    assert_eq!(socket.picture(&headers("s3", "1500.jpg"), &good), json!(true));
    let objects = sorter.session("arm1", "s3")["images"][0]["objects"].as_array().unwrap().len();
    assert_eq!(objects, 4, "two items, two containers");
    sorter.daemon.check_log();
}

#[test]
fn a_message_may_be_as_long_as_the_limit_and_not_a_byte_longer() {
    let scratch = Scratch::new("sorlim");
    let sorter = Sorter::start(&scratch, "");
    let headers = headers("s1", "1500.jpg");
    let room = LIMIT - message(&headers, b"").len();
    let mut socket = WebSocket::connect(sorter.port);
    // Not a picture, but taken in whole.
    assert_eq!(socket.picture(&headers, &vec![7; room]), json!(false));
    assert_eq!(socket.ask(&question("s1")), json!([]));
    socket.send(BINARY, &message(&headers, &vec![7; room + 1]));
    assert_eq!(socket.close_code(), 1009);
    // The same by parts, and by a head that only claims it.
    let mut socket = WebSocket::connect(sorter.port);
    socket.frame(false, BINARY, &vec![7; LIMIT / 2]);
    socket.frame(false, 0, &vec![7; LIMIT / 2]);
    socket.frame(true, 0, &[7; 2]);
    assert_eq!(socket.close_code(), 1009);
    let mut socket = WebSocket::connect(sorter.port);
    let claim = [&[0x82, 0xff][..], &(u64::MAX >> 1).to_be_bytes(), &[0; 4]].concat();
    socket.stream.write_all(&claim).unwrap();
    let code = socket.close_code();
    assert!([1009, 1002].contains(&code), "{code}");
    sorter.daemon.check_log();
}

#[test]
fn frames_against_the_protocol_end_the_connection() {
    let scratch = Scratch::new("sorws");
    let sorter = Sorter::start(&scratch, "");
    let unmasked = [0x81, 2, b'h', b'i'].to_vec();
    for (what, bytes, codes) in [
        ("unmasked", unmasked, &[1002][..]),
        ("a reserved bit", [&[0xf1], &frame(true, TEXT, b"{}")[1..]].concat(), &[1002]),
        ("an unknown opcode", frame(true, 3, b""), &[1002]),
        ("a fragmented ping", frame(false, PING, b""), &[1002]),
        ("a long ping", frame(true, PING, &[0; 126]), &[1002]),
        ("a continuation of nothing", frame(true, 0, b"x"), &[1002]),
        ("two messages in one", [frame(false, TEXT, b"a"), frame(true, TEXT, b"b")].concat(), &[1002]),
        ("text that is none", frame(true, TEXT, &[0xff, 0xfe]), &[1007, 1002]),
    ] {
        let mut socket = WebSocket::connect(sorter.port);
        socket.stream.write_all(&bytes).unwrap();
        let code = socket.close_code();
        assert!(codes.contains(&code) || code == 0, "{what}: {code}");
        let mut rest = Vec::new();
        socket.stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert!(socket.stream.read_to_end(&mut rest).is_ok(), "{what}: it hangs up");
    }
    // In order: a ping between the fragments of a message.
    let mut socket = WebSocket::connect(sorter.port);
    let text = question("s1").to_string().into_bytes();
    socket.frame(false, TEXT, &text[..20]);
    socket.send(PING, b"there?");
    socket.frame(true, 0, &text[20..]);
    assert_eq!(socket.receive(), Some((PONG, b"there?".to_vec())));
    assert_eq!(socket.answer(), json!([]));
    socket.send(e2e::websocket::CLOSE, &1000_u16.to_be_bytes());
    assert_eq!(socket.close_code(), 1000);
    sorter.daemon.check_log();
}

#[test]
fn other_sites_and_half_handshakes_are_refused() {
    let scratch = Scratch::new("sororg");
    let sorter = Sorter::start(&scratch, "");
    let own = format!("Host: 127.0.0.1:{}\r\n", sorter.port);
    for origin in ["http://evil.test", "null", "http://arm.test.evil.test", "https://127.0.0.1.evil.test"] {
        let refused = WebSocket::try_connect(sorter.port, &format!("Origin: {origin}\r\n"));
        let head = refused.err().unwrap_or_else(|| panic!("{origin} may connect"));
        assert!(head.starts_with("HTTP/1.1 403"), "{origin}: {head}");
    }
    // The page's own, and an arm, which sends none.
    assert!(WebSocket::try_page(sorter.port, &sorter.host()).is_ok());
    drop(WebSocket::connect(sorter.port));
    for (what, request) in [
        ("no key", upgrade("").replace("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "")),
        ("a short key", upgrade("").replace("dGhlIHNhbXBsZSBub25jZQ==", "short")),
        ("another version", upgrade("").replace("Version: 13", "Version: 8")),
        ("two hosts", upgrade(&own)),
        ("POST", upgrade("").replacen("GET", "POST", 1)),
        ("HTTP/1.0", upgrade("").replacen("HTTP/1.1", "HTTP/1.0", 1)),
        ("no HTTP", "\x16\x03\x01\x02\x00\x01\r\n\r\n".to_owned()),
        ("endless headers", upgrade(&format!("X: {}\r\n", "x".repeat(200_000)))),
    ] {
        let mut stream = TcpStream::connect(local(sorter.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // It may hang up before all is written.
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{what}: {answer}");
    }
    assert_eq!(sorter.get("/").0, 200);
    sorter.daemon.check_log();
}

/// A stranger's page whose name was given this server's address: to the browser it is this server's own.
#[test]
fn names_that_lead_here_do_not_let_a_strangers_page_in() {
    let scratch = Scratch::new("sorreb");
    let sorter = Sorter::start(&scratch, "hosts = [\"Sorter.example.org\"]");
    let machine = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let local = format!("{}.local", machine.split('.').next().unwrap());
    let port = sorter.port;
    let own =
        ["127.0.0.1", "localhost", "LOCALHOST.", "[::1]", "10.9.8.7", "sorter.example.org", &machine, &local];
    for host in own.map(|name| format!("{name}:{port}")) {
        assert!(WebSocket::try_page(port, &host).is_ok(), "{host}");
        assert_eq!(sorter.get_at(&host, "/api/sessions").0, 200, "{host}");
    }
    for host in
        ["evil.example", "evil.sorter.example.org", "localhost.evil.example", "127.0.0.1.evil.example"]
    {
        let host = format!("{host}:{port}");
        let head = WebSocket::try_page(port, &host).err().unwrap_or_else(|| panic!("{host} may command"));
        assert!(head.starts_with("HTTP/1.1 403") && head.contains("add the name to hosts"), "{head}");
        for path in [
            "/sessions",
            "/sessions/arm1/s1",
            "/page.js",
            "/api/sessions",
            "/pictures/arm1/s1/1.jpg",
            "/none",
        ] {
            let (status, _, body) = sorter.get_at(&host, path);
            let body = String::from_utf8_lossy(&body).into_owned();
            assert_eq!(status, 403, "{path}: {body}");
            assert!(body.contains("add the name to hosts in its configuration"), "{body}");
        }
        assert_eq!(sorter.get_at(&host, "/").0, 200, "whoever watches over services");
    }
    // What arms and programs call this server is theirs to know.
    assert_eq!(WebSocket::connect(port).ask(&question("s1")), json!([]));
    let (_, head, _) = sorter.get("/api/sessions");
    assert!(head.contains("Cross-Origin-Resource-Policy: same-origin"), "{head}");
    sorter.daemon.check_log();
}

/// Clients that send a byte now and then, or nothing, or never read: others are served as if they were not there.
#[test]
fn slow_and_silent_clients_harm_nobody() {
    if !have_arm() {
        skip!("the arm's Python is not there (etc/tools.sh arm)");
    }
    let scratch = Scratch::new("sorslow");
    let sorter = Sorter::start(&scratch, "");
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(local(sorter.port)).unwrap()).collect();
    let idle: Vec<_> = (0..10).map(|_| WebSocket::connect(sorter.port)).collect();
    let (_, picture) = draw(&scratch, "single").remove(0);
    let port = sorter.port;
    let slow = std::thread::spawn(move || {
        let mut socket = WebSocket::connect(port);
        let bytes = frame(true, BINARY, &message(&headers("slow", "1500.jpg"), &picture));
        for part in bytes.chunks(bytes.len() / 40) {
            socket.stream.write_all(part).unwrap();
            std::thread::sleep(Duration::from_millis(50));
        }
        socket.answer()
    });
    // Asks on and on and reads nothing.
    let mut deaf = WebSocket::connect(sorter.port);
    deaf.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    let ask = frame(true, TEXT, br#"{"command":"nothing of the kind"}"#);
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until && deaf.stream.write_all(&ask).is_ok() {}
    sorter.play_well("sort", &[]);
    assert_eq!(slow.join().unwrap(), json!(true), "slow is not wrong");
    assert!(sorter.daemon.usage().rss_kb < 400_000, "{} kB", sorter.daemon.usage().rss_kb);
    drop((silent, idle, deaf));
    sorter.daemon.check_log();
}

/// More pictures than the queue holds: some are refused at once, none is lost in silence, and it works on.
#[test]
fn a_full_queue_says_no() {
    if !have_arm() {
        skip!("the arm's Python is not there (etc/tools.sh arm)");
    }
    let scratch = Scratch::new("sorfull");
    let sorter = Sorter::start(&scratch, "[limits]\nqueue-max = 2\nworkers = 1\n");
    let (_, picture) = draw(&scratch, "single").remove(0);
    let mut sockets: Vec<_> = (0..30).map(|_| WebSocket::connect(sorter.port)).collect();
    // All come at once.
    sorter.daemon.process().signal(rustix::process::Signal::STOP);
    for (n, socket) in sockets.iter_mut().enumerate() {
        assert!(socket.send(BINARY, &message(&headers("s1", &format!("{n}.jpg")), &picture)));
    }
    sorter.daemon.process().signal(rustix::process::Signal::CONT);
    let answers: Vec<_> = sockets.iter_mut().map(WebSocket::answer).collect();
    let taken = answers.iter().filter(|a| **a == json!(true)).count();
    assert!(answers.iter().all(Value::is_boolean) && (2..30).contains(&taken), "{answers:?}");
    let shown = sorter.session("arm1", "s1")["images"].as_array().unwrap().len();
    assert_eq!(shown, taken, "what was answered true is there, what was refused is not");
    wait_for("room", Duration::from_secs(60), || {
        (sorter.send(&headers("s1", "99.jpg"), &picture) == json!(true)).then_some(())
    });
    sorter.daemon.check_log();
}

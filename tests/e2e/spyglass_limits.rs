//! spyglassd's bounds: clients that hold on to what they don't use cost themselves, and nobody else.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use e2e::env::wait_for;
use e2e::scratch::Scratch;
use e2e::spyglass::{Raw, Spyglass, frame, have_numpy, hello, page, report};
use e2e::{need, skip};

/// Connections to RTSP that say nothing.
fn idle(spy: &Spyglass, count: usize) -> Vec<TcpStream> {
    let connect = |_| {
        let socket = TcpStream::connect(("127.0.0.1", spy.port)).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    (0..count).map(connect).collect()
}

/// Those that the daemon has not closed.
fn open(sockets: &[TcpStream]) -> usize {
    let is_open = |mut socket: &TcpStream| {
        let read = socket.read(&mut [0; 16]);
        read.is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
    };
    sockets.iter().filter(|socket| is_open(socket)).count()
}

/// How often a thread of the daemon with this name has waited for something.
fn waits(spy: &Spyglass, thread: &str) -> u64 {
    let tasks = format!("/proc/{}/task", spy.daemon.process().pid());
    let named = std::fs::read_dir(tasks)
        .unwrap()
        .map(|task| task.unwrap().path())
        .find(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == thread));
    let status = std::fs::read_to_string(named.unwrap().join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn idle_connections_to_rtsp_are_bounded_and_hold_up_nobody() {
    need!("ffmpeg");
    if !have_numpy() {
        skip!("python3 with numpy is not installed (make deps)");
    }
    let scratch = Scratch::new("spym");
    let spy = Spyglass::start(&scratch, "sessions-max = 8\nconnections-max = 16\n", "");
    spy.daemon.allow_files(Some(500));
    let crowd = idle(&spy, 488);
    wait_for("all but 16 to be closed", Duration::from_secs(10), || (open(&crowd) <= 16).then_some(()));
    // An application and a viewer come in, past those that still wait.
    let _app = spy.app("cam", (320, 180), 15, 60);
    spy.wait_state("cam", "WAITING");
    let viewer = spy.viewer("ffmpeg", "tcp", &spy.url("cam"), 25);
    spy.wait_state("cam", "STREAMING");
    // More of them do not throw out who asks for a stream or plays; by and by the others go, too.
    let more = idle(&spy, 40);
    wait_for("those that do not play to be closed", Duration::from_secs(30), || {
        (open(&crowd) + open(&more) == 0).then_some(())
    });
    let seen = report(viewer, Duration::from_secs(60));
    assert_eq!(seen["ordered"], true, "{seen}");
    assert!(seen["pictures"].as_u64().unwrap() > 100, "{seen}");
    assert!(spy.daemon.lines.contain("rtsp.connections-max"));
    // With nobody there, RTSP does not wake up.
    wait_for("the viewer to be gone", Duration::from_secs(30), || {
        (spy.stream("cam")["viewers"] == 0).then_some(())
    });
    let mut last = (waits(&spy, "rtsp"), Instant::now());
    wait_for("RTSP to sleep", Duration::from_secs(60), || {
        let now = waits(&spy, "rtsp");
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(12)).then_some(())
    });
    spy.daemon.check_log();
}

#[test]
fn an_application_that_comes_while_there_is_no_descriptor_is_let_in_later() {
    let scratch = Scratch::new("spyf");
    let spy = Spyglass::start(&scratch, "", "");
    spy.daemon.allow_files(Some(0));
    let app = Raw::connect(&spy);
    assert!(app.send(&hello("cam", (64, 48), 0, 1, 2)));
    spy.daemon.wait_log("frames socket: can't let a client in", Duration::from_secs(60));
    // Nothing more happens at the socket: the daemon has to try by itself.
    std::thread::sleep(Duration::from_millis(1500));
    spy.daemon.allow_files(None);
    assert_eq!(app.receive().get(4), Some(&2), "RING");
    spy.daemon.check_log();
}

fn describe(spy: &Spyglass, name: &str) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", spy.port)).unwrap();
    write!(socket, "DESCRIBE {} RTSP/1.0\r\nCSeq: 1\r\n\r\n", spy.url(name)).unwrap();
    socket
}

/// The beginning of an answer; empty when none comes in time.
fn answer(mut socket: &TcpStream, within: Duration) -> String {
    socket.set_read_timeout(Some(within)).unwrap();
    let mut bytes = [0; 512];
    let read = socket.read(&mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

#[test]
fn viewers_of_a_silent_stream_keep_nobody_else_waiting() {
    if !have_numpy() {
        skip!("python3 with numpy is not installed (make deps)");
    }
    let scratch = Scratch::new("spyq");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!(
        "[encoder]\nidle-close-ms = 500\n[[stream]]\nname = \"dead\"\nsource = \"rtsp://{}/x\"\n",
        silent.local_addr().unwrap()
    );
    let spy = Spyglass::start(&scratch, "", &more);
    let quiet = Raw::connect(&spy);
    assert!(quiet.send(&hello("quiet", (64, 48), 0, 1, 4)));
    assert_eq!(quiet.receive()[4], 2, "RING");
    let _app = spy.app("live", (320, 180), 15, 400);
    spy.wait_state("live", "WAITING");
    // Once before: what is loaded for the first picture takes a slow machine longer than the others wait.
    let first = answer(&describe(&spy, "live"), Duration::from_secs(60));
    assert!(first.starts_with("RTSP/1.0 200"), "{first:?}");
    spy.wait_state("live", "WAITING");
    // A stream whose application has sent no frame yet is not there yet; one with a source of its own is waited for.
    for _ in 0..20 {
        let refused = answer(&describe(&spy, "quiet"), Duration::from_secs(30));
        assert!(refused.starts_with("RTSP/1.0 404"), "{refused:?}");
    }
    let dead: Vec<TcpStream> = (0..40).map(|_| describe(&spy, "dead")).collect();
    spy.wait_state("dead", "STARTING");
    let asked = Instant::now();
    let live = answer(&describe(&spy, "live"), Duration::from_secs(60));
    println!("the live stream was described after {:?}", asked.elapsed());
    assert!(live.starts_with("RTSP/1.0 200"), "{live:?}");
    // They give up 20 s after they have asked: in that case the live one would have waited for them.
    assert_eq!(answer(&dead[0], Duration::from_millis(50)), "", "it still waits");
    assert!(quiet.send(&frame(0, (64, 48), 0, 0)));
    wait_for("the quiet stream to be there", Duration::from_secs(60), || {
        let said = answer(&describe(&spy, "quiet"), Duration::from_millis(500));
        (!said.starts_with("RTSP/1.0 404")).then_some(())
    });
    spy.daemon.check_log();
}

#[test]
fn streams_that_nobody_feeds_make_room_and_their_viewers_are_sent_away() {
    need!("ffmpeg");
    if !have_numpy() {
        skip!("python3 with numpy is not installed (make deps)");
    }
    let scratch = Scratch::new("spyv");
    let (spy, port) = Spyglass::start_with_page(&scratch, "", "[limits]\nstreams-max = 2\n");
    let mut app = spy.app("gone", (320, 180), 15, 400);
    spy.wait_state("gone", "WAITING");
    let get = |path: &str| {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(socket, "GET /{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    };
    let (video, pictures) = (get("gone.mp4"), get("gone.mjpg"));
    let mut player = spy.viewer("ffmpeg", "tcp", &spy.url("gone"), 400);
    wait_for("three viewers", Duration::from_secs(60), || (spy.stream("gone")["viewers"] == 3).then_some(()));
    app.kill9();
    spy.wait_state("gone", "STOPPED");
    let other = Raw::connect(&spy);
    assert!(other.send(&hello("other", (64, 48), 0, 1, 2)));
    assert_eq!(other.receive()[4], 2, "RING");
    assert_eq!(spy.stream("gone")["viewers"], 3, "they wait for it to come back");
    // The last picture is too old by then, and the next one is waited for.
    std::thread::sleep(Duration::from_millis(300));
    let picture = get("gone.jpg");
    // Who asks after it is heard after it.
    assert!(page(port, "streams.json").contains("gone"));
    // There is no third place: the one that nobody feeds is given away, whoever watches it.
    let third = Raw::connect(&spy);
    assert!(third.send(&hello("third", (64, 48), 0, 1, 2)));
    assert_eq!(third.receive()[4], 2, "RING");
    assert!(spy.stream("gone").is_null());
    let mut told = Vec::new();
    let _ = (&picture).take(400).read_to_end(&mut told);
    assert!(told.starts_with(b"HTTP/1.1 503"), "{}", String::from_utf8_lossy(&told));
    for mut viewer in [&video, &pictures] {
        let mut seen = Vec::new();
        viewer.read_to_end(&mut seen).expect("the end of it");
        assert!(seen.starts_with(b"HTTP/1.1 200"));
    }
    player.wait_exit(Duration::from_secs(60));
    // Streams that are fed stay.
    let fourth = Raw::connect(&spy);
    assert!(fourth.send(&hello("fourth", (64, 48), 0, 1, 2)));
    assert!(fourth.error().contains("streams-max"));
    spy.daemon.check_log();
}

#[test]
fn a_viewer_that_was_killed_gives_its_place_back() {
    need!("ffmpeg");
    if !have_numpy() {
        skip!("python3 with numpy is not installed (make deps)");
    }
    let scratch = Scratch::new("spyk");
    let spy = Spyglass::start(&scratch, "sessions-max = 1\n", "");
    let _app = spy.app("cam", (320, 180), 15, 60);
    spy.wait_state("cam", "WAITING");
    // Each ends by a kill of its player, which says no TEARDOWN.
    for n in 0..3 {
        let seen = report(spy.viewer("ffmpeg", "tcp", &spy.url("cam"), 2), Duration::from_secs(60));
        assert!(seen["pictures"].as_u64().unwrap() > 5, "viewer {n}: {seen}");
        wait_for("the viewer to be gone", Duration::from_secs(30), || {
            (spy.stream("cam")["viewers"] == 0).then_some(())
        });
    }
    spy.daemon.check_log();
}

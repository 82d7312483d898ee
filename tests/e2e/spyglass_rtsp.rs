//! spyglassd's RTSP with real players: what arrives, and what happens when either end goes. How fast is printed; it is
//! measured in `make bench`, for a machine that is busy with other tests is no measure.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::env::{self, wait_for};
use e2e::process::Process;
use e2e::scratch::Scratch;
use e2e::spyglass::{Spyglass, end_player, have_numpy, report};
use e2e::{need, skip};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde_json::Value;

const SIZE: (u32, u32) = (640, 360);
const FPS: u32 = 20;

macro_rules! needs_players {
    () => {
        need!("ffmpeg", "ffprobe", "gst-launch-1.0");
        if !have_numpy() {
            skip!("python3 with numpy is not installed (make deps)");
        }
    };
}

fn f(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("no number: {value}"))
}

/// What every viewer of a steady stream must have seen.
fn check(seen: &Value, size: (u32, u32), what: &str) {
    println!(
        "{what}: first {} ms, delay p50 {} p95 {} max {}, {} pictures, {} missing",
        seen["first_ms"],
        seen["delay_ms_p50"],
        seen["delay_ms_p95"],
        seen["delay_ms_max"],
        seen["pictures"],
        seen["missing"]
    );
    assert_eq!(seen["size"], serde_json::json!([size.0, size.1]), "{what}: {seen}");
    assert_eq!(seen["ordered"], true, "{what}: {seen}");
    assert!(f(&seen["pictures"]) >= 20.0, "{what}: {seen}");
}

#[test]
fn players_see_the_frames_in_order_over_tcp_and_udp() {
    needs_players!();
    let scratch = Scratch::new("spyr");
    let spy = Spyglass::start(&scratch, "", "");
    let app = spy.app("cam", SIZE, FPS, 120);
    spy.wait_state("cam", "WAITING");
    for (player, transport) in [("ffmpeg", "tcp"), ("ffmpeg", "udp"), ("gst", "tcp"), ("gst", "udp")] {
        let seen = report(spy.viewer(player, transport, &spy.url("cam"), 4), Duration::from_secs(60));
        check(&seen, SIZE, &format!("{player} over {transport}"));
        // Neither in a burst nor in slow motion, wherever a busy machine leaves frames out.
        let pace = f(&seen["fps"]) / f64::from(FPS);
        assert!((0.3..1.7).contains(&pace), "{player} {transport}: {}", seen["fps"]);
        // A machine that is busy with other tests drops frames at the encoder or before it, and says so; it never loses
        // them after, but for packets of UDP that a starved player leaves unread.
        let drops = spy.stream("cam")["drops"].clone();
        let dropped = f(&drops["encoder-slow"]) + f(&drops["no-slot"]);
        assert!(transport == "udp" || f(&seen["missing"]) <= dropped, "{drops}; {player}: {seen}");
    }
    app.signal(rustix::process::Signal::INT);
    let app = report(app, Duration::from_secs(20));
    assert_eq!(app["state"], "STREAMING", "{app}");
    assert!(f(&app["sent"]) >= f(&app["frames"]) * 0.5, "{app}");
    println!("put: p50 {} ms, p99 {} ms", app["put_ms_p50"], app["put_ms_p99"]);
    spy.daemon.check_log();
}

#[test]
fn nothing_is_encoded_while_nobody_watches_and_the_first_viewer_sees_soon() {
    needs_players!();
    let scratch = Scratch::new("spyi");
    let spy = Spyglass::start(&scratch, "", "[encoder]\ngop-ms = 60000\n");
    let _app = spy.app("cam", SIZE, FPS, 180);
    spy.wait_state("cam", "WAITING");
    let idle = wait_for("frames to be released at once", Duration::from_secs(30), || {
        Some(spy.stream("cam")).filter(|idle| f(&idle["drops"]["unwanted"]) >= 20.0)
    });
    assert_eq!((&idle["units"], &idle["why"]), (&0.into(), &"nobody watches".into()), "{idle}");
    assert!(f(&idle["drops"]["no-slot"]) < 10.0, "{idle}");
    // The first viewer starts the encoder; later ones, which the encoder outlives, get key frames long before the GOP
    // ends: without them no picture could be decoded in the time that a viewer waits for its first.
    for n in 0..3 {
        let seen = report(spy.viewer("ffmpeg", "tcp", &spy.url("cam"), 3), Duration::from_secs(60));
        check(&seen, SIZE, &format!("viewer {n}"));
    }
    // One encode, and it ends after idle-close.
    wait_for("the encoder to be closed", Duration::from_secs(25), || {
        spy.stream("cam")["encoder"].is_null().then_some(())
    });
    assert_eq!(spy.stream("cam")["state"], "WAITING");
    spy.daemon.check_log();
}

#[test]
fn ten_viewers_share_one_encode_and_one_that_is_killed_harms_nobody() {
    needs_players!();
    let scratch = Scratch::new("spyt");
    let spy = Spyglass::start(&scratch, "", "");
    let _app = spy.app("cam", (320, 180), 10, 400);
    spy.wait_state("cam", "WAITING");
    let transport = |n: usize| if n.is_multiple_of(2) { "tcp" } else { "udp" };
    let viewers: Vec<Process> =
        (0..10).map(|n| spy.viewer("ffmpeg", transport(n), &spy.url("cam"), 400)).collect();
    wait_for("ten viewers", Duration::from_secs(60), || (spy.stream("cam")["viewers"] == 10).then_some(()));
    let mut victim = spy.viewer("ffmpeg", "tcp", &spy.url("cam"), 400);
    wait_for("eleven viewers", Duration::from_secs(60), || {
        (spy.stream("cam")["viewers"] == 11).then_some(())
    });
    let before = spy.stream("cam");
    // Killed with its player: no TEARDOWN is said.
    end_player(&victim);
    victim.kill9();
    wait_for("the killed one to be noticed", Duration::from_secs(60), || {
        (spy.stream("cam")["viewers"] == 10).then_some(())
    });
    let noticed = f(&spy.stream("cam")["units"]);
    wait_for("a hundred units for those that are left", Duration::from_secs(120), || {
        (f(&spy.stream("cam")["units"]) >= noticed + 100.0).then_some(())
    });
    for (n, viewer) in viewers.into_iter().enumerate() {
        end_player(&viewer);
        let seen = report(viewer, Duration::from_secs(60));
        assert_eq!(seen["ordered"], true, "viewer {n}: {seen}");
        assert!(f(&seen["pictures"]) >= 20.0, "viewer {n}: {seen}");
    }
    let after = spy.stream("cam");
    let units = f(&after["units"]) - f(&before["units"]);
    assert!(
        units <= f(&after["frames"]) - f(&before["frames"]) + 3.0,
        "one encode a frame, whoever watches: {after}"
    );
    wait_for("all viewers to be gone", Duration::from_secs(90), || {
        (spy.stream("cam")["viewers"] == 0).then_some(())
    });
    spy.daemon.check_log();
}

#[test]
fn a_viewer_waits_for_a_producer_that_was_killed_and_sees_it_come_back() {
    needs_players!();
    let scratch = Scratch::new("spyk");
    let spy = Spyglass::start(&scratch, "", "");
    let mut app = spy.app("cam", SIZE, FPS, 60);
    spy.wait_state("cam", "WAITING");
    let viewer = spy.viewer("gst", "tcp", &spy.url("cam"), 18);
    spy.wait_state("cam", "STREAMING");
    std::thread::sleep(Duration::from_secs(2));
    app.kill9();
    spy.wait_state("cam", "STOPPED");
    std::thread::sleep(Duration::from_secs(2));
    let back = Instant::now();
    let _app = spy.app("cam", SIZE, FPS, 60);
    spy.wait_state("cam", "STREAMING");
    println!("streaming again after {:?}", back.elapsed());
    let seen = report(viewer, Duration::from_secs(60));
    let numbers: Vec<f64> = seen["numbers"].as_array().unwrap().iter().map(f).collect();
    let restarts: Vec<usize> = (1..numbers.len()).filter(|n| numbers[*n] < numbers[n - 1]).collect();
    assert_eq!(restarts.len(), 1, "the second producer counts from zero again: {seen}");
    assert!(numbers.len() - restarts[0] > 20, "pictures of the second one: {seen}");
    assert_eq!(spy.stream("cam")["sessions"], 2);
    spy.daemon.check_log();
}

#[test]
fn two_producers_have_a_stream_each_and_a_name_is_given_once() {
    needs_players!();
    let scratch = Scratch::new("spy2");
    let spy = Spyglass::start(&scratch, "", "");
    let _one = spy.app("one", (320, 180), 10, 90);
    let _two = spy.app("two", (321, 241), 15, 90);
    spy.wait_state("one", "WAITING");
    spy.wait_state("two", "WAITING");
    let third = report(spy.app("one", (64, 48), 10, 2), Duration::from_secs(20));
    assert_eq!((&third["sent"], &third["state"]), (&0.into(), &"ERROR".into()), "{third}");
    assert!(third["error"].as_str().unwrap().contains("another application feeds"), "{third}");
    let viewers = [("one", (320, 180)), ("two", (322, 242))];
    let playing: Vec<Process> =
        viewers.iter().map(|(name, _)| spy.viewer("ffmpeg", "tcp", &spy.url(name), 5)).collect();
    for ((name, size), viewer) in viewers.iter().zip(playing) {
        check(&report(viewer, Duration::from_secs(60)), *size, name);
    }
    let probe = Command::new("ffprobe")
        .args(["-v", "error", "-rtsp_transport", "tcp", "-select_streams", "v", "-show_entries"])
        .args(["stream=codec_name,width,height,has_b_frames", "-of", "csv=p=0", &spy.url("two")])
        .output()
        .unwrap();
    let probe = String::from_utf8_lossy(&probe.stdout).trim().to_owned();
    assert_eq!(probe, "h264,322,242,0");
    spy.daemon.check_log();
}

#[test]
fn viewers_need_the_password_where_there_is_one() {
    needs_players!();
    let scratch = Scratch::new("spya");
    let passwords = scratch.write("passwords", "anna:s3cret\n");
    let more = format!("[access]\npassword-file = \"{}\"\n", passwords.display());
    let spy = Spyglass::start(&scratch, "", &more);
    let _app = spy.app("cam", (320, 180), 10, 180);
    spy.wait_state("cam", "WAITING");
    // Digest and nothing else is offered: Basic would send the password as it is.
    let request = format!("DESCRIBE {} RTSP/1.0\r\nCSeq: 1\r\n\r\n", spy.url("cam"));
    let mut socket = TcpStream::connect(("127.0.0.1", spy.port)).unwrap();
    socket.write_all(request.as_bytes()).unwrap();
    let mut answer = [0; 2048];
    let length = socket.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..length]);
    let offers: Vec<&str> = answer.lines().filter(|l| l.starts_with("WWW-Authenticate:")).collect();
    assert!(answer.starts_with("RTSP/1.0 401") && offers.len() == 1, "{answer}");
    assert!(offers[0].starts_with("WWW-Authenticate: Digest ") && offers[0].contains("nonce="), "{answer}");
    let with = |who: &str| spy.url("cam").replace("rtsp://", &format!("rtsp://{who}"));
    for who in ["", "anna:wrong@", "bert:s3cret@"] {
        for player in ["ffmpeg", "gst"] {
            let seen = report(spy.viewer(player, "tcp", &with(who), 3), Duration::from_secs(60));
            assert_eq!(seen["pictures"], 0, "{player} {who}: {seen}");
            let error = seen["error"].as_str().unwrap();
            assert!(error.contains("401") || error.contains("nauthorized"), "{player} {who}: {seen}");
        }
        let refused = Command::new("ffprobe").args(["-v", "error", &with(who)]).output().unwrap();
        assert!(!refused.status.success() && refused.stdout.is_empty(), "{who}");
    }
    for (player, transport) in [("ffmpeg", "tcp"), ("ffmpeg", "udp"), ("gst", "tcp"), ("gst", "udp")] {
        let seen = report(spy.viewer(player, transport, &with("anna:s3cret@"), 5), Duration::from_secs(60));
        check(&seen, (320, 180), &format!("{player} over {transport} with the password"));
    }
    let probe = [
        "-v",
        "error",
        "-rtsp_transport",
        "tcp",
        "-show_entries",
        "stream=codec_name,width",
        "-of",
        "csv=p=0",
    ];
    let probed = env::run(Command::new("ffprobe").args(probe).arg(with("anna:s3cret@")));
    assert_eq!(probed.trim(), "h264,320");
    assert!(!spy.daemon.lines.contain("s3cret"));
}

#[test]
fn a_source_of_its_own_runs_while_somebody_watches() {
    needs_players!();
    let scratch = Scratch::new("spyo");
    let more = "[encoder]\nidle-close-ms = 1000\n[[stream]]\nname = \"test\"\nsource = \"gst:videotestsrc is-live=true ! \
                video/x-raw,width=320,height=240,framerate=15/1\"\n";
    let spy = Spyglass::start(&scratch, "", more);
    assert_eq!(spy.stream("test")["state"], "WAITING");
    let seen = report(spy.viewer("ffmpeg", "tcp", &spy.url("test"), 5), Duration::from_secs(60));
    assert_eq!(seen["size"], serde_json::json!([320, 240]), "{seen}");
    assert!(f(&seen["pictures"]) >= 20.0, "{seen}");
    wait_for("the source to be closed", Duration::from_secs(30), || {
        spy.stream("test")["why"].as_str().unwrap().contains("source is closed").then_some(())
    });
    let frames = spy.stream("test")["frames"].clone();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(spy.stream("test")["frames"], frames, "the source is closed");
    let missing = Command::new("ffprobe").args(["-v", "error", &spy.url("nothing")]).output().unwrap();
    assert!(String::from_utf8_lossy(&missing.stderr).contains("404"), "an unknown stream is not there");
    env::run(&mut spy.daemon.command(&["--check"]));
}

#[test]
fn a_source_that_hangs_holds_up_nobody() {
    needs_players!();
    let scratch = Scratch::new("spyh");
    // One says nothing; at the other nobody takes up a connection, so that connecting to it never ends.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let full = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&full, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let full_port = SocketAddrV4::try_from(rustix::net::getsockname(&full).unwrap()).unwrap().port();
    let _queue: Vec<_> = (0..4)
        .map(|_| {
            let flags = SocketFlags::NONBLOCK;
            let socket =
                rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
            let _ = rustix::net::connect(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, full_port));
            socket
        })
        .collect();
    let more = format!(
        "[encoder]\nidle-close-ms = 500\n[[stream]]\nname = \"silent\"\nsource = \"rtsp://{}/x\"\n\
         [[stream]]\nname = \"full\"\nsource = \"gst:tcpclientsrc host=127.0.0.1 port={full_port} ! decodebin\"\n",
        silent.local_addr().unwrap()
    );
    let mut spy = Spyglass::start(&scratch, "", &more);
    let _app = spy.app("cam", (320, 180), 10, 400);
    spy.wait_state("cam", "WAITING");
    let watched = spy.viewer("ffmpeg", "tcp", &spy.url("cam"), 400);
    spy.wait_state("cam", "STREAMING");
    // Viewers of either come and go: the sources are opened, and closed again half a second later.
    let mut slowest = Duration::ZERO;
    let mut state = |name: &str| {
        let asked = Instant::now();
        let state = spy.stream(name)["state"].clone();
        slowest = slowest.max(asked.elapsed());
        state
    };
    for name in ["silent", "full"] {
        let viewer = spy.viewer("ffmpeg", "tcp", &spy.url(name), 400);
        let minute = Duration::from_secs(60);
        wait_for(&format!("{name} to be opened"), minute, || (state(name) == "STARTING").then_some(()));
        for there in [Some(viewer), None] {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(2) {
                state(name);
                std::thread::sleep(Duration::from_millis(10));
            }
            drop(there);
        }
    }
    println!("the slowest answer of the loop took {slowest:?}");
    assert!(slowest < Duration::from_millis(1500), "{slowest:?}");
    end_player(&watched);
    let seen = report(watched, Duration::from_secs(60));
    check(&seen, (320, 180), "another stream meanwhile");
    let begun = Instant::now();
    assert!(spy.daemon.term().success());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    spy.daemon.check_log();
}

//! A network camera: a small RTSP server of the test's own (RTP over the same TCP connection, JPEG payload, Basic
//! authentication) that hangs up now and then.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use e2e::broker::Broker;
use e2e::daemon::Daemon;
use e2e::scratch::Scratch;
use e2e::{config, env, need, skip};
use gst::prelude::*;

const LONG: Duration = Duration::from_secs(30);
/// `admin:s3cret-pass` in base64.
const BASIC: &str = "Authorization: Basic YWRtaW46czNjcmV0LXBhc3M=";

struct Server {
    port: u16,
    hang_up: Arc<AtomicBool>,
    plays: Arc<AtomicU32>,
}

impl Server {
    fn start() -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            port: listener.local_addr().unwrap().port(),
            hang_up: Arc::default(),
            plays: Arc::default(),
        };
        let (hang_up, plays) = (Arc::clone(&server.hang_up), Arc::clone(&server.plays));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (hang_up, plays) = (Arc::clone(&hang_up), Arc::clone(&plays));
                std::thread::spawn(move || drop(serve(stream, &hang_up, &plays)));
            }
        });
        server
    }
}

/// Answers requests until PLAY, then sends packets.
fn serve(mut stream: TcpStream, hang_up: &AtomicBool, plays: &AtomicU32) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    loop {
        let (mut request, mut line) = (String::new(), String::new());
        while lines.read_line(&mut line)? > 2 {
            request.push_str(&line);
            line.clear();
        }
        if request.is_empty() {
            return Ok(());
        }
        let cseq = request.lines().find(|l| l.starts_with("CSeq")).unwrap_or("CSeq: 0").trim().to_owned();
        let sdp = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\nc=IN IP4 0.0.0.0\r\na=control:one\r\n";
        let method = request.split(' ').next().unwrap_or_default();
        let (status, more) = match method {
            "OPTIONS" => ("200 OK", "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n\r\n".to_owned()),
            _ if !request.contains(BASIC) => {
                ("401 Unauthorized", "WWW-Authenticate: Basic realm=\"cam\"\r\n\r\n".to_owned())
            }
            "DESCRIBE" => (
                "200 OK",
                format!("Content-Type: application/sdp\r\nContent-Length: {}\r\n\r\n{sdp}", sdp.len()),
            ),
            "SETUP" => {
                ("200 OK", "Session: 7\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n".to_owned())
            }
            _ => ("200 OK", "Session: 7\r\n\r\n".to_owned()),
        };
        stream.write_all(format!("RTSP/1.0 {status}\r\n{cseq}\r\n{more}").as_bytes())?;
        if method == "PLAY" {
            plays.fetch_add(1, Ordering::Relaxed);
            return play(&mut stream, hang_up);
        }
    }
}

fn play(stream: &mut TcpStream, hang_up: &AtomicBool) -> std::io::Result<()> {
    let text = "videotestsrc is-live=true ! video/x-raw,format=I420,width=320,height=240,framerate=10/1 ! \
                jpegenc ! rtpjpegpay pt=26 ! appsink name=s sync=false";
    let pipeline = gst::parse::launch(text).unwrap().downcast::<gst::Pipeline>().unwrap();
    let sink = pipeline.by_name("s").unwrap().downcast::<gst_app::AppSink>().unwrap();
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut result = Ok(());
    while let (Ok(sample), false) = (sink.pull_sample(), hang_up.swap(false, Ordering::Relaxed)) {
        let packet = sample.buffer().unwrap().map_readable().unwrap();
        let mut framed = vec![b'$', 0];
        framed.extend_from_slice(&(packet.len() as u16).to_be_bytes());
        framed.extend_from_slice(&packet);
        result = stream.write_all(&framed);
        if result.is_err() {
            break;
        }
    }
    pipeline.set_state(gst::State::Null).unwrap();
    result
}

#[test]
fn a_network_camera_streams_with_a_password_and_is_found_again() {
    need!("mosquitto");
    if !Path::new("/usr/share/opencv4/haarcascades/haarcascade_frontalface_default.xml").exists() {
        skip!("the package opencv-data is not installed");
    }
    gst::init().unwrap();
    if ["rtspsrc", "rtpjpegpay", "jpegdec"].iter().any(|e| gst::ElementFactory::find(e).is_none()) {
        skip!("the package gstreamer1.0-plugins-good is not installed");
    }
    let server = Server::start();
    let scratch = Scratch::new("faced-rtsp");
    let broker = Broker::start(&scratch, "broker");
    let secret = scratch.write("password", "s3cret-pass\n");
    let source = format!("rtsp://127.0.0.1:{}/one", server.port);
    let login = format!("username = \"admin\"\npassword-file = \"{}\"\n", secret.display());
    let wrong = scratch.write("wrong", "n0t-this-one\n");
    let mistaken = format!("username = \"admin\"\npassword-file = \"{}\"\n", wrong.display());
    let cameras = [("net", source.as_str(), login.as_str()), ("mistaken", &source, &mistaken)];
    let tables = "[gate]\nenabled = false\n[limits]\nretry-min-ms = 50\nretry-max-ms = 200\n";
    let mut daemon =
        Daemon::new(&scratch, "faced", "faced", &config::faced(broker.port, &cameras, "", tables));
    daemon.unset("GST_REGISTRY");
    daemon.start_ready();
    let camera = |n: usize| daemon.status()["cameras"][n].clone();
    let looked = |n: u64| move |c: &serde_json::Value| c["looked"].as_u64().unwrap() >= n;
    let seen = env::wait_for("frames of the camera", LONG, || Some(camera(0)).filter(looked(10)));
    assert_eq!((seen["width"].as_u64(), seen["height"].as_u64()), (Some(320), Some(240)));
    let refused = env::wait_for("the wrong password", LONG, || {
        Some(camera(1)).filter(|c| c["losses"].as_u64().unwrap() >= 1)
    });
    assert_eq!(refused["looked"].as_u64(), Some(0), "{refused}");
    assert!(refused["why"].as_str().unwrap().contains("Unauthorized"), "{refused}");

    server.hang_up.store(true, Ordering::Relaxed);
    env::wait_for("the loss to be seen", LONG, || {
        Some(camera(0)).filter(|c| c["losses"].as_u64().unwrap() >= 1)
    });
    let before = camera(0)["looked"].as_u64().unwrap();
    env::wait_for("frames again", LONG, || Some(camera(0)).filter(looked(before + 10)));
    assert!(server.plays.load(Ordering::Relaxed) >= 2);
    assert!(daemon.term().success());
    let log = daemon.lines.tail(1000);
    assert!(!log.contains("s3cret") && !log.contains("n0t-this"), "{log}");
}

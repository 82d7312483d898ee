//! The program itself on pictures, a clip and a real broker: what is published, what waits, what is said when something
//! is missing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use e2e::broker::Broker;
use e2e::daemon::Daemon;
use e2e::scratch::Scratch;
use e2e::{config, env, need, net, picture, skip};

const CASCADE: &str = "/usr/share/opencv4/haarcascades/haarcascade_frontalface_default.xml";
const LONG: Duration = Duration::from_secs(30);

/// The photograph with the astronaut's face.
macro_rules! photo {
    () => {{
        need!("mosquitto", "mosquitto_sub");
        if !Path::new(CASCADE).exists() {
            skip!("the package opencv-data is not installed");
        }
        let named = std::env::var_os("EDGE_ASTRONAUT").map(PathBuf::from).filter(|p| p.exists());
        match named.map_or_else(|| env::shared_data("astronaut.png").map_or_else(picture::astronaut, Ok), Ok)
        {
            Ok(photo) => photo,
            Err(why) => skip!("the photograph can't be had: {why}"),
        }
    }};
}

#[derive(Clone, Debug)]
struct Got {
    topic: String,
    content_type: String,
    payload: Vec<u8>,
    user: BTreeMap<String, String>,
}

/// An independent receiver: payloads in hex, so that pictures come through.
struct Receiver {
    child: std::process::Child,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Receiver {
    fn start(port: u16) -> Receiver {
        use std::io::BufRead as _;
        let port = port.to_string();
        let mut child = Command::new("mosquitto_sub")
            .args(["-h", "127.0.0.1", "-p", &port, "-V", "5", "-q", "2", "-t", "#"])
            .args(["-D", "connect", "receive-maximum", "65535", "-F", "%t\t%C\t%x\t%P"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = std::io::BufReader::new(child.stdout.take().unwrap());
        let got = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&got);
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                shared.lock().unwrap().push(parse(&line));
            }
        });
        let receiver = Receiver { child, got };
        // It is subscribed when it gets what we retain for it.
        env::wait_for("the receiver's subscription", LONG, || {
            let args = ["-h", "127.0.0.1", "-p", &port, "-t", "rig/probe", "-m", "x"];
            env::run(Command::new("mosquitto_pub").args(args));
            receiver.on("rig/probe").first().map(|_| ())
        });
        receiver
    }

    fn on(&self, topic: &str) -> Vec<Got> {
        self.got.lock().unwrap().iter().filter(|g| g.topic == topic).cloned().collect()
    }

    fn wait(&self, topic: &str, n: usize) -> Vec<Got> {
        env::wait_for(&format!("{n} messages on {topic}"), LONG, || {
            let got = self.on(topic);
            (got.len() >= n).then_some(got)
        })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(line: &str) -> Got {
    let fields: Vec<&str> = line.splitn(4, '\t').collect();
    let hex = fields[2].as_bytes();
    let digit = |b: u8| (b as char).to_digit(16).unwrap() as u8;
    let user = fields[3].split(' ').filter_map(|pair| pair.split_once(':'));
    Got {
        topic: fields[0].to_owned(),
        content_type: fields[1].to_owned(),
        payload: hex.chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect(),
        user: user.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
    }
}

fn pictures(scratch: &Scratch, photo: &Path, n: usize) -> String {
    let folder = scratch.dir("pictures");
    for i in 0..n {
        std::fs::copy(photo, folder.join(format!("{i:03}.png"))).unwrap();
    }
    format!("images:{}", folder.display())
}

const JOB: &str = "exit-when-done = true\nreport-file = \"{dir}/report.json\"\n";
const FAST: &str = "pace = \"fast\"\n";

fn faced(scratch: &Scratch, port: u16, cameras: &[(&str, &str, &str)], top: &str, tables: &str) -> Daemon {
    let mut daemon = Daemon::new(scratch, "faced", "faced", &config::faced(port, cameras, top, tables));
    let device = "id = \"nx-7\"\n[location]\nlatitude = 47.5\nlongitude = -8.25\n";
    std::fs::write(daemon.dir.join("device.toml"), device).unwrap();
    daemon.unset("GST_REGISTRY");
    daemon
}

#[test]
fn each_face_comes_once_with_all_that_is_known_about_it() {
    let photo = photo!();
    let scratch = Scratch::new("faced-pictures");
    let broker = Broker::start(&scratch, "broker");
    let receiver = Receiver::start(broker.port);
    let source = pictures(&scratch, &photo, 5);
    let tables =
        "[faces]\ntopic = \"site/{device}/{camera}\"\nevent-topic = \"events\"\nformat = \"png\"\nqos = 2\n";
    let mut daemon = faced(&scratch, broker.port, &[("gate", &source, FAST)], JOB, tables);
    assert!(daemon.start().wait_exit(LONG).success(), "{}", daemon.lines.tail(20));
    let got = receiver.wait("site/nx-7/gate", 5);
    let events = receiver.wait("events", 5);
    assert_eq!((got.len(), events.len()), (5, 5));
    for (n, face) in got.iter().enumerate() {
        let value =
            |key: &str| face.user.get(key).map(String::as_str).unwrap_or_else(|| panic!("{key}: {face:?}"));
        assert_eq!(face.content_type, "image/png");
        assert!(face.payload.starts_with(b"\x89PNG"));
        assert_eq!((value("device"), value("camera"), value("detector")), ("nx-7", "gate", "haar"));
        assert_eq!((value("latitude"), value("longitude")), ("47.5", "-8.25"));
        assert_eq!(
            (value("frame"), value("track"), value("file")),
            ("512x512", &*(n + 1).to_string(), &*format!("{n:03}.png"))
        );
        assert!(value("score-raw").parse::<f64>().unwrap() > 0.0 && !face.user.contains_key("score"));
        assert!(
            value("time").len() == 24 && value("time").ends_with('Z') && value("time") <= value("published")
        );
        let bbox: Vec<f32> = value("bbox").split(',').map(|v| v.parse().unwrap()).collect();
        assert!(
            bbox[0] > 150.0 && bbox[0] + bbox[2] < 300.0 && bbox[1] > 30.0 && bbox[1] + bbox[3] < 220.0,
            "{bbox:?}"
        );
        assert!(!face.user.contains_key("late"));
        let event: serde_json::Value = serde_json::from_slice(&events[n].payload).unwrap();
        assert_eq!((event["id"].as_str(), event["file"].as_str()), (Some(value("id")), Some(value("file"))));
        assert_eq!(events[n].content_type, "application/json");
    }
    let ids: std::collections::BTreeSet<_> = got.iter().map(|g| g.user["id"].clone()).collect();
    assert_eq!(ids.len(), 5);
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(daemon.dir.join("report.json")).unwrap()).unwrap();
    assert_eq!((report["frames"].as_u64(), report["published"].as_u64()), (Some(5), Some(5)));
    let states = receiver.wait("edge/nx-7/faced", 2);
    assert_eq!(states.iter().map(|s| &s.payload[..]).collect::<Vec<_>>(), [&b"online"[..], b"offline"]);
}

#[test]
fn what_the_broker_missed_comes_late_and_complete() {
    let photo = photo!();
    let scratch = Scratch::new("faced-late");
    let source = pictures(&scratch, &photo, 30);
    let port = net::free_port();
    // Room for a few faces only: a folder waits instead of losing any.
    let tables = "[limits]\nqueue = \"64 KiB\"\n";
    let mut daemon = faced(&scratch, port, &[("gate", &source, FAST)], JOB, tables);
    daemon.start_ready();
    let waiting = || daemon.status()["queue"]["waiting"].as_u64().filter(|n| *n >= 2);
    let first = env::wait_for("faces that wait", LONG, waiting);
    std::thread::sleep(Duration::from_millis(300));
    let status = daemon.status();
    assert!(status["queue"]["waiting"].as_u64().unwrap() < 10, "the folder waits: {first} {status}");
    assert_eq!((status["dropped"].as_u64(), status["broker"]["connected"].as_bool()), (Some(0), Some(false)));
    let broker = Broker::start_with(&scratch, "broker", port, "");
    let receiver = Receiver::start(port);
    let got = receiver.wait("faces", 25);
    assert!(daemon.wait_exit(LONG).success());
    let late = got.iter().filter(|g| g.user.get("late").is_some_and(|v| v == "true")).count();
    // What was sent before the receiver subscribed it did not see; the daemon counts it.
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(daemon.dir.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["published"].as_u64(), Some(30));
    assert!(
        report["late"].as_u64().unwrap() >= 2 && report["late"].as_u64().unwrap() < 30,
        "{report} {late}"
    );
    drop(broker);
}

#[test]
fn a_live_camera_drops_the_oldest_faces_when_the_broker_stays_away() {
    let photo = photo!();
    let scratch = Scratch::new("faced-bound");
    let text = format!(
        "gst:filesrc location={} ! pngdec ! imagefreeze is-live=true ! videoconvert ! video/x-raw,format=I420,framerate=30/1",
        photo.display()
    );
    let tables = "[faces]\npublish = \"every\"\n[gate]\nenabled = false\n[limits]\nqueue = \"100 KiB\"\n";
    let mut daemon = faced(&scratch, net::free_port(), &[("live", &text, "")], "drain-ms = 100\n", tables);
    daemon.start_ready();
    env::wait_for("dropped faces", LONG, || daemon.status()["dropped"].as_u64().filter(|n| *n > 10));
    let status = daemon.status();
    assert!(status["queue"]["bytes"].as_u64().unwrap() <= 100 * 1024, "{status}");
    let camera = &status["cameras"][0];
    assert_eq!((camera["width"].as_u64(), camera["format"].as_str()), (Some(512), Some("I420")), "{status}");
    assert!(camera["fps_nominal"].as_f64() == Some(30.0), "{status}");
    assert!(daemon.term().success());
    daemon.wait_log("messages are given up", LONG);
}

#[test]
fn a_lost_camera_is_named_and_comes_back() {
    let photo = photo!();
    let scratch = Scratch::new("faced-lost");
    let broker = Broker::start(&scratch, "broker");
    let receiver = Receiver::start(broker.port);
    let good = pictures(&scratch, &photo, 1);
    let late = scratch.join("not-yet");
    let absent = format!("images:{}", late.display());
    let cameras: [(&str, &str, &str); 4] = [
        ("here", &good, "loop = true\ninterval-ms = 100\n"),
        ("away", &absent, FAST),
        ("unplugged", "v4l:/dev/video-nobody-has", ""),
        ("broken", "gst:videotestsrc num-buffers=3 ! video/x-raw,width=64,height=48", ""),
    ];
    let tables = "[limits]\nretry-min-ms = 20\nretry-max-ms = 100\n";
    let mut daemon = faced(&scratch, broker.port, &cameras, "", tables);
    daemon.start_ready();
    receiver.wait("faces", 3);
    let find = |name: &str| {
        let status = daemon.status();
        status["cameras"].as_array().unwrap().iter().find(|c| c["name"] == name).unwrap().clone()
    };
    for (name, why) in [
        ("away", "cannot read the folder"),
        ("unplugged", "/dev/video-nobody-has: No such file"),
        ("broken", "ended"),
    ] {
        let camera =
            env::wait_for(name, LONG, || Some(find(name)).filter(|c| c["losses"].as_u64() >= Some(2)));
        assert!(camera["why"].as_str().unwrap().contains(why), "{camera}");
    }
    std::fs::create_dir(&late).unwrap();
    std::fs::copy(&photo, late.join("x.png")).unwrap();
    env::wait_for("the folder to be read", LONG, || Some(find("away")).filter(|c| c["state"] == "ended"));
    let from_away = || receiver.on("faces").iter().any(|g| g.user["camera"] == "away").then_some(());
    env::wait_for("its face", LONG, from_away);
    assert!(daemon.running());
    daemon.kill9();
    let states = receiver.wait("edge/nx-7/faced", 2);
    assert_eq!(states[1].payload, b"offline", "the last will");
}

#[test]
fn a_reload_takes_a_good_file_and_refuses_a_bad_one() {
    let photo = photo!();
    let scratch = Scratch::new("faced-reload");
    let broker = Broker::start(&scratch, "broker");
    let receiver = Receiver::start(broker.port);
    let source = pictures(&scratch, &photo, 1);
    let keys = "loop = true\ninterval-ms = 50\n";
    let mut daemon = faced(&scratch, broker.port, &[("a", &source, keys)], "", "");
    daemon.start_ready();
    receiver.wait("faces", 2);
    let good = std::fs::read_to_string(&daemon.config).unwrap();
    let hup = |daemon: &Daemon| {
        env::run(Command::new("kill").args(["-HUP", &daemon.process().pid().to_string()]));
    };
    std::fs::write(&daemon.config, good.replace("[mqtt]", "[faces]\ntopic = \"a/#\"\n[mqtt]")).unwrap();
    hup(&daemon);
    daemon.wait_log("the old configuration stays", LONG);
    let so_far = receiver.on("faces").len();
    receiver.wait("faces", so_far + 2);
    std::fs::write(&daemon.config, good.replace("[mqtt]", "[faces]\ntopic = \"new/{camera}\"\n[mqtt]"))
        .unwrap();
    hup(&daemon);
    receiver.wait("new/a", 2);
    assert_eq!(daemon.status()["broker"]["connections"].as_u64(), Some(1), "the connection stays");
    assert!(daemon.term().success());
}

#[test]
fn a_clip_at_full_speed_gives_the_same_each_time_and_over_3_1_1_the_picture_alone() {
    let _ = photo!();
    let Some(clip) = env::shared_data("head-pose-face-detection-female.mp4") else {
        skip!("no clip (EDGE_DATA names its folder)");
    };
    let source = format!("file:{}", clip.display());
    let mut runs = Vec::new();
    for version in ["5", "5", "3.1.1"] {
        let scratch = Scratch::new("faced-clip");
        let broker = Broker::start(&scratch, "broker");
        let receiver = Receiver::start(broker.port);
        let mut daemon =
            faced(&scratch, broker.port, &[("clip", &source, FAST)], JOB, "[faces]\npublish = \"every\"\n");
        let text = std::fs::read_to_string(&daemon.config).unwrap();
        std::fs::write(&daemon.config, text.replace("[mqtt]", &format!("[mqtt]\nversion = \"{version}\"")))
            .unwrap();
        assert!(daemon.start().wait_exit(LONG).success(), "{}", daemon.lines.tail(20));
        let report: serde_json::Value =
            serde_json::from_slice(&std::fs::read(daemon.dir.join("report.json")).unwrap()).unwrap();
        assert_eq!(report["frames_dropped"].as_u64(), Some(0));
        let got = receiver.wait("faces", report["published"].as_u64().unwrap() as usize);
        assert!(got.len() > 10, "{report}");
        if version == "3.1.1" {
            assert!(got.iter().all(|g| g.user.is_empty() && g.payload.starts_with(&[0xff, 0xd8])));
        }
        runs.push(got.into_iter().map(|g| g.payload).collect::<Vec<_>>());
    }
    assert!(runs[0] == runs[1] && runs[1] == runs[2], "the same pictures in the same order");
}

#[test]
fn check_says_what_is_missing() {
    need!("mosquitto");
    let scratch = Scratch::new("faced-check");
    std::fs::create_dir_all(scratch.join("empty")).unwrap();
    let empty = format!("images:{}", scratch.join("empty").display());
    let cases: [(&str, &str, i32, &str); 7] = [
        ("v4l:/dev/video-nobody-has", "", 0, "it is waited for"),
        ("file:/nowhere/x.mp4", "", 78, "cannot read /nowhere/x.mp4"),
        (&empty, "", 78, "there is no .png, .jpg or .jpeg file in"),
        ("gst:videotestsrc ! nosuchelement", "", 78, "nosuchelement"),
        ("gst:videotestsrc ! ! x", "", 78, "cannot be built"),
        ("v4l:/dev/null", "[detector]\ncascade = \"/nowhere.xml\"\n", 78, "opencv-data"),
        ("v4l:/dev/null", "[detector]\nkind = \"yunet\"\nmodel = \"/nowhere.onnx\"\n", 78, "make models"),
    ];
    for (n, (source, tables, code, words)) in cases.into_iter().enumerate() {
        if code == 0 && !Path::new(CASCADE).exists() {
            continue;
        }
        let text = config::faced(1, &[("a", source, "")], "", tables);
        let mut daemon = Daemon::new(&scratch, "faced", &format!("check-{n}"), &text);
        daemon.unset("GST_REGISTRY");
        let output = daemon.command(&["--check"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{source}: {said}");
        assert!(said.contains(words), "{source}: {said}");
    }
}

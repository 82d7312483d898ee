//! The whole pipeline: pictures -> faced -> broker -> mqfwd -> broker -> s3put -> store, read back by
//! somebody else (awscli, ffprobe).

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use e2e::aws::S3;
use e2e::broker::Broker;
use e2e::config::{self, End, Mqfwd, S3put};
use e2e::daemon::Daemon;
use e2e::scratch::{self, Scratch};
use e2e::{env, need, net, picture, skip};

use crate::rig;

const PICTURES: usize = 6;
const LONG: Duration = Duration::from_secs(60);
const DEVICE: &str = "id = \"gate-3\"\n[location]\nlatitude = 52.5\nlongitude = 13.4\n";
/// The topic in the cloud.
const TOPIC: &str = "tst011235";

/// Everything between a folder of pictures and a store.
struct Pipeline {
    scratch: Scratch,
    daemons: Vec<Daemon>,
    _brokers: Vec<Broker>,
}

impl Pipeline {
    /// Runs until faced has published its pictures. `target` makes the configuration of s3put.
    fn run(scratch: Scratch, photo: &Path, brokers: bool, target: impl FnOnce(End) -> S3put) -> Pipeline {
        let stills = scratch.join("stills");
        picture::stills(photo, &stills, PICTURES as u32);
        let (mut running, mut ends) = (Vec::new(), Vec::new());
        for name in ["edge", "cloud"] {
            if brokers {
                running.push(rig::telling_broker(&scratch, name));
                ends.push(End::Broker(running[running.len() - 1].port));
            } else {
                ends.push(End::Listen(net::free_port()));
            }
        }
        let port = |end: End| match end {
            End::Broker(port) | End::Listen(port) => port,
        };
        let mut store = target(ends[1]);
        store.topic = TOPIC.into();
        let relay = Mqfwd::new(ends[0], port(ends[1]), 1).toml();
        let relay = relay
            .replace("from = \"t/#\"\nto = \"up/{tail}\"", &format!("from = \"faces\"\nto = \"{TOPIC}\""));
        let source = format!("images:{}", stills.display());
        let camera = [("gate", source.as_str(), "interval-ms = 50\n")];
        let faces = config::faced(port(ends[0]), &camera, "exit-when-done = true\n", "");
        let mut daemons = vec![
            Daemon::new(&scratch, "s3put", "s3put", &store.toml()),
            Daemon::new(&scratch, "mqfwd", "mqfwd", &relay),
            Daemon::new(&scratch, "faced", "faced", &faces),
        ];
        // Who subscribes where; with faced, the last one, nothing is left to wait for.
        let mut subscribes = [("rig-s3put", 1), ("rig-down", 0)].into_iter();
        for daemon in &mut daemons {
            std::fs::write(daemon.dir.join("device.toml"), DEVICE).unwrap();
            daemon.env("AWS_ACCESS_KEY_ID", e2e::aws::KEY_ID).env("AWS_SECRET_ACCESS_KEY", e2e::aws::SECRET);
            daemon.start_ready();
            // Subscriptions stand before the next one sends.
            if let Some((client, n)) = subscribes.next()
                && brokers
            {
                rig::wait_subscribed(&running[n], client);
            }
        }
        let status = daemons[2].wait_exit(LONG);
        assert!(status.success(), "faced ended with {status}:\n{}", daemons[2].lines.tail(20));
        Pipeline { scratch, daemons, _brokers: running }
    }

    fn check_logs(&self) {
        self.daemons.iter().for_each(Daemon::check_log);
    }
}

/// A JPEG that another program decodes, of a sensible size.
fn check_picture(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    assert!(
        bytes.starts_with(&[0xff, 0xd8]) && bytes.ends_with(&[0xff, 0xd9]),
        "{} is no whole JPEG",
        path.display()
    );
    let mut ffprobe = Command::new("ffprobe");
    ffprobe
        .args(["-v", "error", "-show_entries", "stream=codec_name,width,height", "-of", "csv=p=0"])
        .arg(path);
    let said = env::run(&mut ffprobe);
    let fields: Vec<&str> = said.trim().split(',').collect();
    assert_eq!(fields[0], "mjpeg");
    let (width, height): (u32, u32) = (fields[1].parse().unwrap(), fields[2].parse().unwrap());
    // The face is a quarter of these pictures; a crop of it is neither a speck nor the whole.
    assert!((80..=400).contains(&width) && (80..=400).contains(&height), "a crop of {width}x{height}");
}

fn objects(root: &Path) -> Vec<PathBuf> {
    let mut found = scratch::files(root);
    found.retain(|p| {
        p.extension().is_some_and(|e| e == "jpg")
            && !p.file_name().unwrap().to_string_lossy().starts_with('.')
    });
    found
}

fn photo() -> Result<PathBuf, String> {
    picture::astronaut()
}

#[test]
fn pictures_to_s3_read_back_with_awscli() {
    need!("mosquitto", "aws", "ffmpeg", "ffprobe");
    let photo = match photo() {
        Ok(photo) => photo,
        Err(why) => skip!("the photograph can't be fetched: {why}"),
    };
    let scratch = Scratch::new("pipe-s3");
    let Some(s3) = S3::s3s(&scratch, "faces") else { skip!("s3s-fs is not built (etc/tools.sh s3s)") };
    let pipeline = Pipeline::run(scratch, &photo, true, |end| S3put::to_s3(end, "faces", &s3.endpoint()));
    env::wait_for("all objects", LONG, || {
        std::thread::sleep(Duration::from_millis(300));
        let keys = s3.keys("faces");
        (keys.iter().filter(|k| k.ends_with(".jpg")).count() >= PICTURES).then_some(())
    });
    let keys: Vec<String> = s3.keys("faces").into_iter().filter(|k| k.ends_with(".jpg")).collect();
    assert_eq!(keys.len(), PICTURES, "one face in each picture: {keys:?}");
    for key in &keys {
        assert!(key.starts_with(&format!("{TOPIC}/")), "{key}");
        let head = s3.head("faces", key);
        assert_eq!(head["ContentType"], "image/jpeg");
        let meta = &head["Metadata"];
        assert_eq!(meta["device"], "gate-3", "{meta}");
        assert_eq!(meta["camera"], "gate");
        assert_eq!(meta["detector"], "haar");
        assert_eq!(meta["topic"], TOPIC);
        assert_eq!(meta["qos"], "1");
        assert_eq!(meta["frame"], "480x480");
        assert!(meta["bbox"].as_str().is_some_and(|b| b.split(',').count() == 4), "{meta}");
        assert!(meta["time"].as_str().is_some_and(|t| t.ends_with('Z') && t.contains('.')), "{meta}");
        assert!(meta["latitude"].as_str().is_some_and(|l| l.starts_with("52.5")), "{meta}");
    }
    let copy = pipeline.scratch.dir("copy");
    s3.fetch_all("faces", &copy);
    objects(&copy).iter().for_each(|p| check_picture(p));
    pipeline.check_logs();
}

#[test]
fn pictures_to_a_folder() {
    need!("mosquitto", "ffmpeg", "ffprobe");
    let photo = match photo() {
        Ok(photo) => photo,
        Err(why) => skip!("the photograph can't be fetched: {why}"),
    };
    for brokers in [true, false] {
        let scratch = Scratch::new("pipe-dir");
        let out = scratch.dir("out");
        let pipeline = Pipeline::run(scratch, &photo, brokers, |end| S3put::to_dir(end, &out));
        env::wait_for("all objects", LONG, || (objects(&out).len() >= PICTURES).then_some(()));
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(objects(&out).len(), PICTURES, "one face in each picture");
        for path in objects(&out) {
            check_picture(&path);
            let sidecar = std::fs::read_to_string(format!("{}.json", path.display())).expect("a sidecar");
            let sidecar: serde_json::Value = serde_json::from_str(&sidecar).unwrap();
            assert_eq!(sidecar["content-type"], "image/jpeg");
            assert_eq!(sidecar["properties"]["device"], "gate-3");
            assert_eq!(sidecar["topic"], TOPIC);
        }
        pipeline.check_logs();
    }
}

//! The processes of the demo: brokers, store, daemons; how they are wired, watched and ended.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::aws::{self, S3};
use e2e::broker::Broker;
use e2e::config::{self, End, S3put};
use e2e::daemon::{Daemon, sum_metric};
use e2e::process::Usage;
use e2e::scratch::Scratch;
use e2e::{net, picture};

use crate::Wish;
use crate::objects::{self, Object};

const BUCKET: &str = "faces";
/// The cloud's name for what the device calls `faces`, as in the system this follows.
const CLOUD_TOPIC: &str = "tst011235";

/// What has happened so far.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub frames: u64,
    pub faces: u64,
    pub published: u64,
    pub forwarded: u64,
    pub stored: u64,
}

pub struct Pipeline {
    /// Whether a source has no end of its own.
    pub endless: bool,
    /// Whether the cameras were told to end.
    pub stopped: bool,
    pub stopped_at: Option<Instant>,
    wish_brokers: bool,
    sources: Vec<(String, String)>,
    out: PathBuf,
    faced: Daemon,
    mqfwd: Daemon,
    s3put: Daemon,
    s3: Option<S3>,
    brokers: Vec<Broker>,
    last_usage: Vec<(String, Usage, f64)>,
    started: Instant,
    // Last, so that it is removed when all processes have ended.
    _scratch: Scratch,
}

impl Pipeline {
    pub fn start(wish: &Wish, out: &Path, stop: &AtomicBool) -> Result<Pipeline, String> {
        let scratch = Scratch::new("demo");
        let (sources, endless) = cameras(wish, &scratch, stop)?;
        let brokers: Vec<Broker> = match wish.brokers {
            true => ["edge", "cloud"].iter().map(|name| Broker::start(&scratch, name)).collect(),
            false => Vec::new(),
        };
        let (edge, cloud) = match brokers.as_slice() {
            [edge, cloud] => (End::Broker(edge.port), End::Broker(cloud.port)),
            _ => (End::Listen(net::free_port()), End::Listen(net::free_port())),
        };
        let s3 = match wish.s3 {
            true => Some(S3::s3s(&scratch, BUCKET).ok_or("s3s-fs is not built: run etc/tools.sh s3s")?),
            false => None,
        };
        std::fs::create_dir_all(out.join("objects")).map_err(|e| e.to_string())?;
        let mut s3put = Daemon::new(&scratch, "s3put", "s3put", &s3put_toml(cloud, s3.as_ref(), out));
        s3put.env("AWS_ACCESS_KEY_ID", aws::KEY_ID).env("AWS_SECRET_ACCESS_KEY", aws::SECRET);
        let mut mqfwd = Daemon::new(&scratch, "mqfwd", "mqfwd", &mqfwd_toml(edge, cloud));
        let mut faced = Daemon::new(&scratch, "faced", "faced", &faced_toml(edge, &sources));
        for daemon in [&s3put, &mqfwd, &faced] {
            let device = "id = \"demo-device\"\n[location]\nlatitude = 28.5729\nlongitude = -80.6490\nname = \"pad 39A\"\n";
            std::fs::write(daemon.dir.join("device.toml"), device).map_err(|e| e.to_string())?;
        }
        s3put.start_ready();
        mqfwd.start_ready();
        // Receivers subscribe before the first face is sent.
        std::thread::sleep(Duration::from_millis(500));
        faced.start_ready();
        let (out, started) = (out.to_path_buf(), Instant::now());
        let (stopped, stopped_at, last_usage, wish_brokers) = (false, None, Vec::new(), wish.brokers);
        Ok(Pipeline {
            endless,
            stopped,
            stopped_at,
            wish_brokers,
            sources,
            out,
            faced,
            mqfwd,
            s3put,
            s3,
            brokers,
            last_usage,
            started,
            _scratch: scratch,
        })
    }

    /// One line that shows what is connected to what.
    pub fn picture(&self) -> String {
        let cameras: Vec<_> = self.sources.iter().map(|(_, source)| source.as_str()).collect();
        let store = if self.s3.is_some() { "S3 (s3s-fs)" } else { "folder" };
        let hop =
            |i: usize| self.brokers.get(i).map_or(String::new(), |b| format!(" -> mosquitto:{}", b.port));
        format!("{}\n  -> faced{} -> mqfwd{} -> s3put -> {store}", cameras.join("\n"), hop(0), hop(1))
    }

    /// Reads the daemons' own figures. One that has ended keeps the last ones.
    pub fn look(&mut self, counts: &mut Counts) {
        let read = |daemon: &Daemon| e2e::daemon::http_get(&daemon.ctl(), "/metrics").ok();
        let raise = |to: &mut u64, text: &str, name: &str| *to = (*to).max(sum_metric(text, name) as u64);
        if let Some(text) = read(&self.faced) {
            raise(&mut counts.frames, &text, "faced_frames_total");
            raise(&mut counts.faces, &text, "faced_detections_total");
            raise(&mut counts.published, &text, "faced_published_total");
        }
        if let Some(text) = read(&self.mqfwd) {
            raise(&mut counts.forwarded, &text, "mqfwd_acked_total");
        }
        if let Some(text) = read(&self.s3put) {
            raise(&mut counts.stored, &text, "s3put_stored_total");
        }
        // What is published while faced ends is seen one hop later.
        counts.published = counts.published.max(counts.forwarded);
        let seconds = self.started.elapsed().as_secs_f64();
        for daemon in [&self.faced, &self.mqfwd, &self.s3put] {
            let usage = daemon.usage();
            if usage.rss_kb > 0 {
                self.last_usage.retain(|(name, ..)| *name != daemon.name);
                self.last_usage.push((daemon.name.clone(), usage, seconds));
            }
        }
    }

    /// Whether every camera has come to its end.
    pub fn ended(&mut self) -> bool {
        self.faced.exited().is_some()
    }

    /// Tells faced to end: it publishes what it still follows, and waits for the acknowledgements.
    pub fn stop_cameras(&mut self) {
        if self.faced.running() {
            self.faced.term();
        }
        self.stopped = true;
        self.stopped_at = Some(Instant::now());
    }

    /// The name of a daemon that ended though nobody told it to.
    pub fn dead(&mut self) -> Option<String> {
        let failed = self.faced.exited().is_some_and(|status| !status.success());
        let names = [("faced", failed), ("mqfwd", !self.mqfwd.running()), ("s3put", !self.s3put.running())];
        names.iter().find(|(_, dead)| *dead).map(|(name, _)| (*name).to_owned())
    }

    /// Peak memory and CPU of each daemon, and over how many seconds.
    pub fn usage(&self) -> Vec<(String, Usage, f64)> {
        self.last_usage.clone()
    }

    /// What was stored, read back from the store.
    pub fn objects(&self) -> Vec<Object> {
        match &self.s3 {
            Some(s3) => {
                let copy = self.out.join("objects");
                s3.fetch_all(BUCKET, &copy);
                objects::from_s3(s3, BUCKET, &copy)
            }
            None => objects::from_folder(&self.out.join("objects")),
        }
    }

    /// Where the objects are, for people.
    pub fn store_name(&self) -> String {
        let folder = self.out.join("objects").display().to_string();
        if self.s3.is_some() { format!("{folder} (a copy of s3://{BUCKET})") } else { folder }
    }

    /// What kind of pipeline it was, for the page.
    pub fn description(&self) -> String {
        let brokers =
            if self.wish_brokers { "two mosquitto brokers" } else { "no broker: durable ingest ports" };
        let store = if self.s3.is_some() { "S3 (s3s-fs)" } else { "a folder" };
        format!("{}, stored in {store}", brokers)
    }

    /// The last lines of every daemon.
    pub fn logs(&self) -> String {
        let all = [&self.faced, &self.mqfwd, &self.s3put];
        all.iter().map(|d| format!("{}:\n{}", d.name, d.lines.tail(12))).collect()
    }

    /// Ends everything, senders first.
    pub fn end(&mut self) {
        for daemon in [&mut self.faced, &mut self.mqfwd, &mut self.s3put] {
            if daemon.running() {
                daemon.term();
            }
        }
        for broker in &mut self.brokers {
            broker.stop();
        }
    }
}

/// The cameras of the demo (name, source), and whether they have no end.
fn cameras(
    wish: &Wish,
    scratch: &Scratch,
    stop: &AtomicBool,
) -> Result<(Vec<(String, String)>, bool), String> {
    if let Some(source) = &wish.source {
        let source = source_of(source)?;
        let endless = !(source.starts_with("file:") || source.starts_with("images:"));
        return Ok((vec![("camera".into(), source)], endless));
    }
    let photo = picture::astronaut().map_err(|why| {
        format!("the photograph could not be fetched: {why}\nGive pictures of your own: make demo SOURCE=folder-or-video")
    })?;
    let cache = e2e::env::root().join("target/data");
    let (video, stills) = (cache.join("walk-2.mp4"), cache.join("stills-1"));
    if !video.exists() || !stills.exists() {
        println!("making a video and pictures from a photograph (once, some seconds)");
        // Renamed when whole: a Ctrl-C in between leaves nothing half made under these names.
        let (new_video, new_stills) = (scratch.join("walk.mp4"), scratch.join("stills"));
        picture::video(&photo, &new_video, 20);
        picture::stills(&photo, &new_stills, 8);
        let _ = std::fs::remove_dir_all(&stills);
        let mut copy = std::process::Command::new("cp");
        e2e::env::run(copy.arg("-r").arg(&new_stills).arg(&stills));
        std::fs::copy(&new_video, cache.join("walk-2.part")).map_err(|e| e.to_string())?;
        std::fs::rename(cache.join("walk-2.part"), &video).map_err(|e| e.to_string())?;
    }
    if stop.load(Ordering::Relaxed) {
        return Err("stopped before it began".into());
    }
    let sources = vec![
        ("walk".to_owned(), format!("file:{}", video.display())),
        ("stills".to_owned(), format!("images:{}", stills.display())),
    ];
    Ok((sources, false))
}

/// A source as faced takes it, from what a person types: a file, a folder, a device, an address.
fn source_of(text: &str) -> Result<String, String> {
    if ["v4l:", "file:", "images:", "rtsp://", "rtsps://", "gst:"].iter().any(|p| text.starts_with(p)) {
        let path = text.strip_prefix("file:").or(text.strip_prefix("images:"));
        let Some(path) = path else { return Ok(text.to_owned()) };
        let full = Path::new(path).canonicalize().map_err(|e| format!("SOURCE {path}: {e}"))?;
        return Ok(text.replace(path, &full.to_string_lossy()));
    }
    let path = Path::new(text).canonicalize().map_err(|e| format!("SOURCE {text}: {e}"))?;
    let kind = if path.is_dir() {
        "images"
    } else if text.starts_with("/dev/") {
        "v4l"
    } else {
        "file"
    };
    Ok(format!("{kind}:{}", path.display()))
}

fn faced_toml(edge: End, sources: &[(String, String)]) -> String {
    let (End::Broker(port) | End::Listen(port)) = edge;
    let keys = |source: &str| if source.starts_with("images:") { "interval-ms = 500\n" } else { "" };
    let cameras: Vec<_> =
        sources.iter().map(|(name, source)| (name.as_str(), source.as_str(), keys(source))).collect();
    // GStreamer looks at all its plug-ins once; the demo need not wait for that each time.
    let cache = e2e::env::root().join("target/data/gst-cache");
    let toml = config::faced(port, &cameras, "exit-when-done = true\n", "");
    toml.replace("{dir}/cache", &cache.to_string_lossy())
}

fn mqfwd_toml(edge: End, cloud: End) -> String {
    let (End::Broker(cloud_port) | End::Listen(cloud_port)) = cloud;
    let config = config::Mqfwd::new(edge, cloud_port, 1);
    config
        .toml()
        .replace("from = \"t/#\"\nto = \"up/{tail}\"", &format!("from = \"faces\"\nto = \"{CLOUD_TOPIC}\""))
}

fn s3put_toml(cloud: End, s3: Option<&S3>, out: &Path) -> String {
    let mut config = match s3 {
        Some(s3) => S3put::to_s3(cloud, BUCKET, &s3.endpoint()),
        None => S3put::to_dir(cloud, &out.join("objects")),
    };
    config.topic = CLOUD_TOPIC.to_owned();
    config.toml()
}

//! What `faced` runs on: the file, checked, with the device's identity and the files it names.
//!
//! Owns: what a valid configuration is. Never: opens a camera or a socket.

pub mod raw;

use std::path::Path;
use std::time::Duration;

use edge::config::{self, Loaded, Secret};
use edge::device::Device;
use edge::mqtt::{ClientConfig, Qos, endpoint};

use crate::detect::{DetectorConfig, haar::HaarConfig, yunet::YuNetConfig};
use crate::encode::PictureFormat;
use crate::gate::GateConfig;
use crate::source::spec::SourceSpec;
use crate::template;
use crate::track::TrackConfig;
use raw::{Kind, Pace, Picture, Raw, RawCamera, V4lFormat};

/// The configuration in force.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file as read, for `--print-config`.
    pub raw: Raw,
    /// Who this device is.
    pub device: Device,
    /// Which detector.
    pub detector: DetectorConfig,
    /// Detector threads.
    pub threads: usize,
    /// Threads OpenCV may use by itself.
    pub opencv_threads: i32,
    /// When and as what faces are published.
    pub faces: Faces,
    /// Bounds.
    pub limits: Limits,
    /// The broker.
    pub mqtt: ClientConfig,
    /// At least one.
    pub cameras: Vec<Camera>,
    /// How long a stop waits for the last acknowledgements.
    pub drain: Duration,
}

/// What is published.
#[derive(Debug, Clone)]
pub struct Faces {
    /// One crop a face, or one a detection.
    pub publish: raw::Publish,
    /// Margin around the box, as a part of its larger side.
    pub crop_margin: f32,
    /// Payload.
    pub format: PictureFormat,
    /// Template of the topic.
    pub topic: String,
    /// Of faces and events.
    pub qos: Qos,
    /// Template of the topic of JSON events, if there is one.
    pub event_topic: Option<String>,
    /// Topic of the retained status, if there is one.
    pub status_topic: Option<String>,
}

/// Bounds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Payload bytes waiting for the broker.
    pub queue_bytes: u64,
    /// How old a waiting face may become.
    pub queue_age: Duration,
    /// Unacknowledged messages.
    pub in_flight: u16,
    /// How long an open camera may be silent.
    pub frame_timeout: Duration,
    /// First and last ceiling of the delay before a lost camera is tried again.
    pub retry: (Duration, Duration),
}

/// One camera.
#[derive(Debug, Clone)]
pub struct Camera {
    /// Unique; letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// Where frames come from.
    pub source: SourceSpec,
    /// Wanted size, `None` = the device's choice.
    pub size: Option<(u32, u32)>,
    /// Wanted rate, `None` = the device's choice.
    pub fps: Option<u32>,
    /// Wanted V4L2 format.
    pub format: V4lFormat,
    /// As fast as the detector works, and nothing is left out.
    pub fast: bool,
    /// Begin again at the end.
    pub repeat: bool,
    /// Time between two pictures of a folder.
    pub interval: Duration,
    /// Every picture of the folder is a scene of its own.
    pub stills: bool,
    /// RTSP user and password.
    pub login: Option<(String, Secret)>,
    /// RTSP over UDP.
    pub udp: bool,
    /// Width of the picture that is searched.
    pub detect_width: u32,
    /// Motion gate.
    pub gate: GateConfig,
    /// Rate at which a still MJPG stream is looked at.
    pub gate_mjpg_fps: u32,
    /// Tracks.
    pub track: TrackConfig,
}

impl Config {
    /// Reads and validates `path`.
    ///
    /// # Errors
    /// The first key that is wrong, with its place and what was expected.
    pub fn load(path: &Path) -> Result<Config, config::Error> {
        Config::validate(config::load::<Raw>(path)?)
    }

    fn validate(loaded: Loaded<Raw>) -> Result<Config, config::Error> {
        let raw = &loaded.raw;
        let device = Device::load(&raw.device_file)?;
        let mqtt = raw.mqtt.to_client(&loaded, "mqtt", "faced-{device}", &device)?;
        check_ranges(&loaded)?;
        let faces = faces(&loaded, &device)?;
        if raw.camera.is_empty() {
            return Err(loaded.problem("camera", "expected at least one [[camera]] with name and source"));
        }
        let mut cameras: Vec<Camera> = Vec::with_capacity(raw.camera.len());
        for (n, camera) in raw.camera.iter().enumerate() {
            if cameras.iter().any(|c| c.name == camera.name) {
                let key = format!("camera[{n}].name");
                return Err(loaded.problem(&key, "expected a name that no other camera has"));
            }
            cameras.push(self::camera(&loaded, n, camera)?);
        }
        let ms = Duration::from_millis;
        let limits = Limits {
            queue_bytes: raw.limits.queue.0,
            queue_age: Duration::from_secs(raw.limits.queue_age_s),
            in_flight: raw.limits.in_flight,
            frame_timeout: ms(raw.limits.frame_timeout_ms),
            retry: (ms(raw.limits.retry_min_ms), ms(raw.limits.retry_max_ms)),
        };
        Ok(Config {
            detector: detector(&loaded)?,
            threads: raw.detector.threads.min(cameras.len()),
            opencv_threads: raw.detector.opencv_threads,
            drain: ms(raw.drain_ms),
            device,
            faces,
            limits,
            mqtt,
            cameras,
            raw: loaded.raw,
        })
    }

    /// Whether any camera needs GStreamer.
    #[must_use]
    pub fn needs_gstreamer(&self) -> bool {
        self.cameras.iter().any(|c| c.source.needs_gstreamer())
    }
}

fn check_ranges(loaded: &Loaded<Raw>) -> Result<(), config::Error> {
    let raw = &loaded.raw;
    let (d, g, t, l) = (&raw.detector, &raw.gate, &raw.track, &raw.limits);
    let within = |x: f32, low: f32, high: f32| x.is_finite() && x >= low && x <= high;
    let checks: [(&str, bool, &str); 19] = [
        ("detector.detect-width", (32..=4096).contains(&d.detect_width), "pixels from 32 to 4096"),
        ("detector.min-face-px", (1..=4096).contains(&d.min_face_px), "pixels from 1 to 4096"),
        ("detector.scale-factor", d.scale_factor > 1.0 && d.scale_factor <= 4.0, "a number above 1, up to 4"),
        ("detector.min-neighbors", (0..=100).contains(&d.min_neighbors), "an integer from 0 to 100"),
        ("detector.min-score", within(d.min_score, 0.0, 1.0), "a number from 0 to 1"),
        ("detector.nms-iou", within(d.nms_iou, 0.0, 1.0), "a number from 0 to 1"),
        ("detector.threads", (1..=16).contains(&d.threads), "an integer from 1 to 16"),
        ("detector.opencv-threads", (1..=64).contains(&d.opencv_threads), "an integer from 1 to 64"),
        ("gate.threshold", within(g.threshold, 0.5, 255.0), "grey levels from 0.5 to 255"),
        ("gate.cells", (1..=576).contains(&g.cells), "an integer from 1 to 576"),
        ("gate.mjpg-fps", (1..=120).contains(&g.mjpg_fps), "frames a second from 1 to 120"),
        ("track.min-iou", within(t.min_iou, 0.01, 1.0), "a number from 0.01 to 1"),
        ("track.min-hits", (1..=1000).contains(&t.min_hits), "an integer from 1 to 1000"),
        ("faces.crop-margin", within(raw.faces.crop_margin, 0.0, 4.0), "a number from 0 to 4"),
        ("faces.jpeg-quality", (1..=100).contains(&raw.faces.jpeg_quality), "an integer from 1 to 100"),
        ("limits.in-flight", l.in_flight >= 1, "an integer from 1 to 65535"),
        ("limits.tracks", (1..=10_000).contains(&l.tracks), "an integer from 1 to 10000"),
        ("limits.frame-timeout-ms", l.frame_timeout_ms >= 100, "at least 100 milliseconds"),
        (
            "limits.retry-min-ms",
            l.retry_min_ms >= 10 && l.retry_min_ms <= l.retry_max_ms,
            "at least 10 milliseconds and at most retry-max-ms",
        ),
    ];
    for (key, good, expected) in checks {
        if !good {
            return Err(loaded.problem(key, &format!("expected {expected}")));
        }
    }
    Ok(())
}

fn detector(loaded: &Loaded<Raw>) -> Result<DetectorConfig, config::Error> {
    let d = &loaded.raw.detector;
    match d.kind {
        Kind::Haar => Ok(DetectorConfig::Haar(HaarConfig {
            cascade: d.cascade.clone(),
            scale_factor: d.scale_factor,
            neighbors_min: d.min_neighbors,
            face_px_min: d.min_face_px,
        })),
        Kind::Yunet if d.model.as_os_str().is_empty() => Err(loaded.problem(
            "detector.model",
            "expected the path of face_detection_yunet_2023mar.onnx ('make models' downloads and checks it)",
        )),
        Kind::Yunet => Ok(DetectorConfig::YuNet(YuNetConfig {
            model: d.model.clone(),
            score_min: d.min_score,
            nms_iou: d.nms_iou,
            face_px_min: d.min_face_px,
        })),
    }
}

fn faces(loaded: &Loaded<Raw>, device: &Device) -> Result<Faces, config::Error> {
    let f = &loaded.raw.faces;
    let check = |key: &str, text: &str, camera: bool| {
        template::check(text, camera).map_err(|why| loaded.problem(&format!("faces.{key}"), &why))
    };
    check("topic", &f.topic, true)?;
    if !f.event_topic.is_empty() {
        check("event-topic", &f.event_topic, true)?;
    }
    if !f.status_topic.is_empty() {
        check("status-topic", &f.status_topic, false)?;
    }
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    Ok(Faces {
        publish: f.publish,
        crop_margin: f.crop_margin,
        format: match f.format {
            Picture::Jpeg => PictureFormat::Jpeg(f.jpeg_quality),
            Picture::Png => PictureFormat::Png,
        },
        topic: f.topic.clone(),
        qos: endpoint::qos(loaded, "faces.qos", f.qos)?,
        event_topic: some(&f.event_topic),
        status_topic: some(&f.status_topic).map(|t| template::fill(&t, &device.id, "")),
    })
}

fn camera(loaded: &Loaded<Raw>, n: usize, c: &RawCamera) -> Result<Camera, config::Error> {
    let wrong = |key: &str, message: &str| loaded.problem(&format!("camera[{n}].{key}"), message);
    let raw = &loaded.raw;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if c.name.is_empty() || c.name.len() > 64 || !c.name.chars().all(allowed) {
        return Err(wrong("name", "expected 1 to 64 letters, digits, '-', '_' or '.'"));
    }
    let source = SourceSpec::parse(&c.source).map_err(|why| wrong("source", &why))?;
    if (c.width == 0) != (c.height == 0) || c.width > 16_384 || c.height > 16_384 {
        return Err(wrong("width", "expected width and height together, each up to 16384, or neither"));
    }
    let v4l = matches!(source, SourceSpec::V4l(_));
    for (key, given, fits, whose) in [
        ("width", c.width > 0, v4l, "v4l: sources (a pipeline says it in its own caps)"),
        ("fps", c.fps > 0, v4l, "v4l: sources (a pipeline says it in its own caps)"),
        ("format", c.format != V4lFormat::Auto, v4l, "v4l: sources"),
        ("pace", c.pace == Pace::Fast, source.is_finite(), "file: and images: sources"),
        ("loop", c.repeat, source.is_finite(), "file: and images: sources"),
        ("sequence", c.sequence, matches!(source, SourceSpec::Images(_)), "images: sources"),
        ("username", !c.username.is_empty(), matches!(source, SourceSpec::Rtsp(_)), "rtsp: sources"),
        ("udp", c.udp, matches!(source, SourceSpec::Rtsp(_)), "rtsp: sources"),
    ] {
        if given && !fits {
            return Err(wrong(key, &format!("expected only with {whose}")));
        }
    }
    if c.detect_width != 0 && !(32..=4096).contains(&c.detect_width) {
        return Err(wrong("detect-width", "expected pixels from 32 to 4096"));
    }
    let stills = matches!(source, SourceSpec::Images(_)) && !c.sequence;
    let gate = GateConfig {
        enabled: c.gate.unwrap_or(raw.gate.enabled) && !stills,
        threshold: raw.gate.threshold,
        cells: raw.gate.cells,
        hold_ms: raw.gate.hold_ms,
        force_ms: raw.gate.force_ms,
    };
    let track = TrackConfig {
        iou_min: raw.track.min_iou,
        gap_ms: raw.track.gap_ms,
        hits_min: if stills { 1 } else { raw.track.min_hits },
        publish_after_ms: raw.faces.publish_after_ms,
        tracks_max: raw.limits.tracks,
    };
    Ok(Camera {
        name: c.name.clone(),
        login: login(loaded, n, c)?,
        size: (c.width > 0).then_some((c.width, c.height)),
        fps: (c.fps > 0).then_some(c.fps),
        format: c.format,
        fast: c.pace == Pace::Fast,
        repeat: c.repeat,
        interval: Duration::from_millis(c.interval_ms),
        stills,
        udp: c.udp,
        detect_width: if c.detect_width > 0 { c.detect_width } else { raw.detector.detect_width },
        gate,
        gate_mjpg_fps: raw.gate.mjpg_fps,
        track,
        source,
    })
}

fn login(loaded: &Loaded<Raw>, n: usize, c: &RawCamera) -> Result<Option<(String, Secret)>, config::Error> {
    if c.username.is_empty() {
        return Ok(None);
    }
    let key = format!("camera[{n}].password-file");
    if c.password_file.as_os_str().is_empty() {
        return Err(loaded.problem(&key, "expected the file with the password of username"));
    }
    let secret =
        config::read_secret(&c.password_file).map_err(|e| loaded.problem(&key, &edge::log::chain(&e)))?;
    Ok(Some((c.username.clone(), secret)))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

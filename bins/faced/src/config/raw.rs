//! `/etc/edge/faced.toml` as it is written. `etc/faced.toml` explains every key.
//!
//! Owns: the names and the defaults. Never: checks anything beyond types.

use std::path::PathBuf;

use edge::config::Size;
use edge::mqtt::endpoint::Broker;
use serde::{Deserialize, Serialize};

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "etc/faced.toml explains every key, once")]
pub struct Raw {
    pub device_file: PathBuf,
    pub ctl_socket: PathBuf,
    pub cache_dir: PathBuf,
    pub exit_when_done: bool,
    pub report_file: PathBuf,
    pub drain_ms: u64,
    pub detector: RawDetector,
    pub gate: RawGate,
    pub track: RawTrack,
    pub faces: RawFaces,
    pub limits: RawLimits,
    pub mqtt: Broker,
    pub camera: Vec<RawCamera>,
}

impl Default for Raw {
    fn default() -> Self {
        Raw {
            device_file: "/etc/edge/device.toml".into(),
            ctl_socket: "/run/edge/faced/ctl.sock".into(),
            cache_dir: "/var/cache/edge/faced".into(),
            exit_when_done: false,
            report_file: PathBuf::new(),
            drain_ms: 5_000,
            detector: RawDetector::default(),
            gate: RawGate::default(),
            track: RawTrack::default(),
            faces: RawFaces::default(),
            limits: RawLimits::default(),
            mqtt: Broker::default(),
            camera: Vec::new(),
        }
    }
}

/// `kind` of `[detector]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Haar cascade.
    Haar,
    /// YuNet network.
    Yunet,
}

/// `[detector]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "etc/faced.toml explains every key, once")]
pub struct RawDetector {
    pub kind: Kind,
    pub detect_width: u32,
    pub min_face_px: u32,
    pub cascade: PathBuf,
    pub scale_factor: f64,
    pub min_neighbors: i32,
    pub model: PathBuf,
    pub min_score: f32,
    pub nms_iou: f32,
    pub threads: usize,
    pub opencv_threads: i32,
}

impl Default for RawDetector {
    fn default() -> Self {
        RawDetector {
            kind: Kind::Haar,
            detect_width: 320,
            min_face_px: 48,
            cascade: "/usr/share/opencv4/haarcascades/haarcascade_frontalface_default.xml".into(),
            scale_factor: 1.2,
            min_neighbors: 5,
            model: PathBuf::new(),
            min_score: 0.7,
            nms_iou: 0.3,
            threads: 1,
            opencv_threads: 1,
        }
    }
}

/// `[gate]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "etc/faced.toml explains every key, once")]
pub struct RawGate {
    pub enabled: bool,
    pub threshold: f32,
    pub cells: u32,
    pub hold_ms: u64,
    pub force_ms: u64,
    pub mjpg_fps: u32,
}

impl Default for RawGate {
    fn default() -> Self {
        RawGate { enabled: true, threshold: 6.0, cells: 2, hold_ms: 500, force_ms: 5_000, mjpg_fps: 5 }
    }
}

/// `[track]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "etc/faced.toml explains every key, once")]
pub struct RawTrack {
    pub min_iou: f32,
    pub gap_ms: u64,
    pub min_hits: u32,
}

impl Default for RawTrack {
    fn default() -> Self {
        RawTrack { min_iou: 0.3, gap_ms: 1_000, min_hits: 2 }
    }
}

/// `publish` of `[faces]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Publish {
    /// One crop a face.
    Best,
    /// One crop a detection.
    Every,
}

/// `format` of `[faces]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Picture {
    Jpeg,
    Png,
}

/// `[faces]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "etc/faced.toml explains every key, once")]
pub struct RawFaces {
    pub publish: Publish,
    pub publish_after_ms: u64,
    pub crop_margin: f32,
    pub format: Picture,
    pub jpeg_quality: u8,
    pub topic: String,
    pub qos: u8,
    pub event_topic: String,
    pub status_topic: String,
}

impl Default for RawFaces {
    fn default() -> Self {
        RawFaces {
            publish: Publish::Best,
            publish_after_ms: 3_000,
            crop_margin: 0.2,
            format: Picture::Jpeg,
            jpeg_quality: 92,
            topic: "faces".into(),
            qos: 1,
            event_topic: String::new(),
            status_topic: "edge/{device}/faced".into(),
        }
    }
}

/// `[limits]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "etc/faced.toml explains every key, once")]
pub struct RawLimits {
    pub queue: Size,
    pub queue_age_s: u64,
    pub in_flight: u16,
    pub tracks: usize,
    pub frame_timeout_ms: u64,
    pub retry_min_ms: u64,
    pub retry_max_ms: u64,
}

impl Default for RawLimits {
    fn default() -> Self {
        RawLimits {
            queue: Size::mib(64),
            queue_age_s: 24 * 3600,
            in_flight: 20,
            tracks: 64,
            frame_timeout_ms: 10_000,
            retry_min_ms: 1_000,
            retry_max_ms: 30_000,
        }
    }
}

/// `pace` of a camera that reads files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// As the file says, or `interval-ms`.
    #[default]
    Own,
    /// As fast as the detector works; nothing is left out.
    Fast,
}

/// `format` of a `v4l:` camera.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "etc/faced.toml explains every key, once")]
pub enum V4lFormat {
    #[default]
    Auto,
    Yuyv,
    Mjpg,
    Nv12,
    Grey,
}

/// One `[[camera]]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/faced.toml explains every key, once")]
pub struct RawCamera {
    pub name: String,
    pub source: String,
    #[serde(default)]
    pub width: u32,
    #[serde(default)]
    pub height: u32,
    #[serde(default)]
    pub fps: u32,
    #[serde(default)]
    pub format: V4lFormat,
    #[serde(default)]
    pub pace: Pace,
    #[serde(default, rename = "loop")]
    pub repeat: bool,
    #[serde(default = "one_second")]
    pub interval_ms: u64,
    #[serde(default)]
    pub sequence: bool,
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub password_file: PathBuf,
    #[serde(default)]
    pub udp: bool,
    #[serde(default)]
    pub detect_width: u32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gate: Option<bool>,
}

fn one_second() -> u64 {
    1_000
}

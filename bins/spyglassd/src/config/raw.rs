//! `/etc/edge/spyglassd.toml` as it is written. `etc/spyglassd.toml` explains every key.
//!
//! Owns: the names and the defaults. Never: checks anything beyond types.

use std::path::PathBuf;

use edge::config::Size;
use serde::{Deserialize, Serialize};

use crate::kvs::config as kvs;
use crate::pipeline::chain::{Fit, Kind};
use crate::privacy::config as privacy;
use crate::record::config as record;
use crate::web::config as web;

/// The whole file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "etc/spyglassd.toml explains every key, once")]
pub struct Raw {
    pub ctl_socket: PathBuf,
    pub cache_dir: PathBuf,
    pub frames: RawFrames,
    pub encoder: RawEncoder,
    pub rtsp: RawRtsp,
    pub web: web::Raw,
    pub access: RawAccess,
    pub limits: RawLimits,
    pub privacy: privacy::Raw,
    pub stream: Vec<RawStream>,
}

impl Default for Raw {
    fn default() -> Self {
        Raw {
            ctl_socket: "/run/edge/spyglassd/ctl.sock".into(),
            cache_dir: "/var/cache/edge/spyglassd".into(),
            frames: RawFrames::default(),
            encoder: RawEncoder::default(),
            rtsp: RawRtsp::default(),
            web: web::Raw::default(),
            access: RawAccess::default(),
            limits: RawLimits::default(),
            privacy: privacy::Raw::default(),
            stream: Vec::new(),
        }
    }
}

/// `[frames]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "etc/spyglassd.toml explains every key, once")]
pub struct RawFrames {
    pub socket: PathBuf,
    pub mode: String,
    pub any_name: bool,
    pub producers_max: usize,
    pub hello_timeout_ms: u64,
    pub slots: u32,
    pub slot_bytes_max: Size,
    pub width_max: u32,
    pub height_max: u32,
}

impl Default for RawFrames {
    fn default() -> Self {
        RawFrames {
            socket: "/run/edge/spyglassd/frames.sock".into(),
            mode: "0660".to_owned(),
            any_name: true,
            producers_max: 8,
            hello_timeout_ms: 5000,
            slots: 4,
            slot_bytes_max: Size::mib(64),
            width_max: 4096,
            height_max: 4096,
        }
    }
}

/// `[encoder]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "etc/spyglassd.toml explains every key, once")]
pub struct RawEncoder {
    pub kind: Kind,
    pub preset: String,
    pub threads: u32,
    pub bitrate_kbit: u32,
    pub bits_per_pixel: f64,
    pub gop_ms: u64,
    pub key_interval_ms: u64,
    pub fit: Fit,
    pub warmup_frames: u32,
    pub queue_frames: u32,
    pub idle_close_ms: u64,
    pub retry_min_ms: u64,
    pub retry_max_ms: u64,
}

impl Default for RawEncoder {
    fn default() -> Self {
        RawEncoder {
            kind: Kind::X264,
            preset: "superfast".to_owned(),
            threads: 0,
            bitrate_kbit: 0,
            bits_per_pixel: 0.1,
            gop_ms: 2000,
            key_interval_ms: 1000,
            fit: Fit::Letterbox,
            warmup_frames: 0,
            queue_frames: 2,
            idle_close_ms: 10_000,
            retry_min_ms: 1000,
            retry_max_ms: 60_000,
        }
    }
}

/// `[rtsp]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "etc/spyglassd.toml explains every key, once")]
pub struct RawRtsp {
    pub listen: String,
    pub udp: bool,
    pub sessions_max: u32,
    pub connections_max: u32,
    pub queue_bytes: Size,
}

impl Default for RawRtsp {
    fn default() -> Self {
        RawRtsp {
            listen: "127.0.0.1:8554".to_owned(),
            udp: true,
            sessions_max: 32,
            connections_max: 64,
            queue_bytes: Size::mib(4),
        }
    }
}

/// `[access]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "etc/spyglassd.toml explains every key, once")]
pub struct RawAccess {
    pub password_file: PathBuf,
    pub allow_anonymous: bool,
}

/// `[limits]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "etc/spyglassd.toml explains every key, once")]
pub struct RawLimits {
    pub streams_max: usize,
    pub stall_ms: u64,
    pub units_waiting: usize,
}

impl Default for RawLimits {
    fn default() -> Self {
        RawLimits { streams_max: 8, stall_ms: 5000, units_waiting: 256 }
    }
}

/// One `[[stream]]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "etc/spyglassd.toml explains every key, once")]
pub struct RawStream {
    pub name: String,
    #[serde(default)]
    pub source: String,
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub password_file: PathBuf,
    #[serde(default, rename = "loop")]
    pub repeat: bool,
    #[serde(default)]
    pub width: u32,
    #[serde(default)]
    pub height: u32,
    pub fit: Option<Fit>,
    pub bitrate_kbit: Option<u32>,
    pub warmup_frames: Option<u32>,
    pub kvs: Option<kvs::Raw>,
    pub record: Option<record::Raw>,
    pub privacy: Option<privacy::Raw>,
}

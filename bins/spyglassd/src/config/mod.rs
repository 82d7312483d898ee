//! What `spyglassd` runs on: the file, checked, with the files it names.
//!
//! Owns: what a valid configuration is. Never: opens a camera or a socket.

pub mod access;
pub mod raw;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use edge::aws::credentials::Vars;
use edge::config::{self, Loaded, Secret};

use crate::core::CoreConfig;
use crate::frames::port::PortConfig;
use crate::frames::ring::SLOTS_MAX;
use crate::frames::wire;
use crate::pipeline::chain::{Fit, PRESETS, Settings};
use crate::sources::SourceSpec;
use access::Users;
use raw::{Raw, RawStream};

/// The configuration in force.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file as read, for `--print-config`.
    pub raw: Raw,
    /// The frames socket.
    pub port: PortConfig,
    /// RTSP, if it is served.
    pub rtsp: Option<SocketAddr>,
    /// The page.
    pub web: crate::web::config::Config,
    /// Who may watch; `None` = everybody who can reach it.
    pub users: Option<Arc<Users>>,
    /// Those that the file names.
    pub streams: Vec<StreamConfig>,
    /// Any other that an application brings, if it may.
    pub other: Option<StreamConfig>,
}

/// One stream.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// Unique; empty in the template of others.
    pub name: String,
    /// Where frames come from; `None` = an application.
    pub source: Option<SourceConfig>,
    /// Pixels, `None` = those of the first frame.
    pub size: Option<(u32, u32)>,
    /// How to encode. Its rate and GOP are filled in when frames come.
    pub encoder: Settings,
    /// Decisions.
    pub core: CoreConfig,
    /// Frames that wait for the encoder.
    pub queue_frames: u32,
    /// Kinesis Video Streams, if it goes there.
    pub kvs: Option<crate::kvs::config::Config>,
    /// Files, if it goes there.
    pub record: Option<crate::record::config::Config>,
    /// What is blurred before it is encoded, if anything is.
    pub privacy: Option<crate::privacy::config::Config>,
    /// How long an encoder that nobody needs is kept.
    pub idle_close: Duration,
    /// First and last ceiling of the delay before what failed is tried again.
    pub retry: (Duration, Duration),
}

/// A source of our own.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// What.
    pub spec: SourceSpec,
    /// RTSP user and password.
    pub login: Option<(String, Secret)>,
    /// A file begins again at its end.
    pub repeat: bool,
}

impl Config {
    /// Reads and validates `path`.
    ///
    /// # Errors
    /// The first key that is wrong, with its place and what was expected.
    pub fn load(path: &Path) -> Result<Config, config::Error> {
        Config::validate(config::load::<Raw>(path)?)
    }

    /// The same for a text.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str) -> Result<Config, config::Error> {
        Config::validate(config::parse(Path::new("spyglassd.toml"), text.to_owned())?)
    }

    fn validate(loaded: Loaded<Raw>) -> Result<Config, config::Error> {
        check_ranges(&loaded)?;
        let raw = &loaded.raw;
        let users = match raw.access.password_file.as_os_str().is_empty() {
            true => None,
            false => {
                let users = Users::load(&raw.access.password_file);
                Some(Arc::new(users.map_err(|why| loaded.problem("access.password-file", &why))?))
            }
        };
        let guarded = users.is_some() || raw.access.allow_anonymous;
        let rtsp = match raw.rtsp.listen.as_str() {
            "" => None,
            text => Some(access::listen(text, guarded).map_err(|w| loaded.problem("rtsp.listen", &w))?),
        };
        let web = raw.web.to_config(&loaded, "web")?;
        if web.listen.is_some() {
            access::listen(&raw.web.listen, guarded).map_err(|w| loaded.problem("web.listen", &w))?;
        }
        let privacy = raw.privacy.to_config(&loaded, "privacy")?;
        let common = |own| StreamConfig { privacy: privacy.clone(), ..settings(raw, own) };
        let mut streams: Vec<StreamConfig> = Vec::with_capacity(raw.stream.len());
        for (n, stream) in raw.stream.iter().enumerate() {
            if streams.iter().any(|s| s.name == stream.name) {
                let key = format!("stream[{n}].name");
                return Err(loaded.problem(&key, "expected a name that no other stream has"));
            }
            streams.push(self::stream(&loaded, n, stream, common(Some(stream)))?);
        }
        if streams.len() > raw.limits.streams_max {
            return Err(
                loaded.problem("limits.streams-max", "expected at least as many as there are [[stream]]")
            );
        }
        let other = raw.frames.any_name.then(|| common(None));
        Ok(Config { port: port(&loaded)?, rtsp, web, users, streams, other, raw: loaded.raw })
    }

    /// The configuration of the stream `name`, if there may be one.
    #[must_use]
    pub fn stream(&self, name: &str) -> Option<StreamConfig> {
        let named = self.streams.iter().find(|s| s.name == name).cloned();
        named.or_else(|| self.other.clone().map(|other| StreamConfig { name: name.to_owned(), ..other }))
    }
}

fn check_ranges(loaded: &Loaded<Raw>) -> Result<(), config::Error> {
    let Raw { frames: f, encoder: e, rtsp: r, limits: l, .. } = &loaded.raw;
    let presets = format!("one of x264's presets: {}", PRESETS.join(", "));
    let checks: [(&str, bool, &str); 20] = [
        ("frames.producers-max", (1..=1024).contains(&f.producers_max), "an integer from 1 to 1024"),
        ("frames.hello-timeout-ms", f.hello_timeout_ms >= 100, "at least 100 milliseconds"),
        ("frames.slots", (2..=SLOTS_MAX).contains(&f.slots), "an integer from 2 to 32"),
        ("frames.slot-bytes-max", (4096..=1 << 30).contains(&f.slot_bytes_max.0), "from 4 KiB to 1 GiB"),
        ("frames.width-max", (16..=16_384).contains(&f.width_max), "pixels from 16 to 16384"),
        ("frames.height-max", (16..=16_384).contains(&f.height_max), "pixels from 16 to 16384"),
        ("encoder.preset", PRESETS.contains(&e.preset.as_str()), &presets),
        ("encoder.threads", e.threads <= 64, "an integer from 0 to 64"),
        ("encoder.bitrate-kbit", e.bitrate_kbit <= 1_000_000, "kilobits a second from 0 to 1000000"),
        (
            "encoder.bits-per-pixel",
            e.bits_per_pixel.is_finite() && (0.001..=10.0).contains(&e.bits_per_pixel),
            "a number from 0.001 to 10",
        ),
        ("encoder.gop-ms", (100..=60_000).contains(&e.gop_ms), "milliseconds from 100 to 60000"),
        (
            "encoder.key-interval-ms",
            (100..=60_000).contains(&e.key_interval_ms),
            "milliseconds from 100 to 60000",
        ),
        ("encoder.queue-frames", (1..=32).contains(&e.queue_frames), "an integer from 1 to 32"),
        (
            "encoder.retry-min-ms",
            e.retry_min_ms >= 100 && e.retry_min_ms <= e.retry_max_ms,
            "at least 100 milliseconds and at most retry-max-ms",
        ),
        ("rtsp.sessions-max", (1..=10_000).contains(&r.sessions_max), "an integer from 1 to 10000"),
        (
            "rtsp.connections-max",
            (r.sessions_max..=10_000).contains(&r.connections_max),
            "an integer from that of sessions-max to 10000",
        ),
        ("rtsp.queue-bytes", r.queue_bytes.0 >= 64 * 1024, "at least 64 KiB"),
        ("limits.streams-max", (1..=256).contains(&l.streams_max), "an integer from 1 to 256"),
        ("limits.stall-ms", l.stall_ms >= 500, "at least 500 milliseconds"),
        ("limits.units-waiting", (16..=65_536).contains(&l.units_waiting), "an integer from 16 to 65536"),
    ];
    for (key, good, expected) in checks {
        if !good {
            return Err(loaded.problem(key, &format!("expected {expected}")));
        }
    }
    Ok(())
}

fn port(loaded: &Loaded<Raw>) -> Result<PortConfig, config::Error> {
    let f = &loaded.raw.frames;
    let mode = u32::from_str_radix(&f.mode, 8).ok().filter(|mode| *mode <= 0o777);
    let mode =
        mode.ok_or_else(|| loaded.problem("frames.mode", "expected an octal mode such as \"0660\""))?;
    Ok(PortConfig {
        socket: f.socket.clone(),
        mode,
        producers_max: f.producers_max,
        hello_timeout: Duration::from_millis(f.hello_timeout_ms),
        slots: f.slots,
        slot_bytes_max: f.slot_bytes_max.as_usize(),
        size_max: (f.width_max, f.height_max),
    })
}

/// What `[encoder]` says, with what the stream says of its own.
fn settings(raw: &Raw, own: Option<&RawStream>) -> StreamConfig {
    let e = &raw.encoder;
    let (ms, ns) = (Duration::from_millis, |ms: u64| ms * 1_000_000);
    let fit = own.and_then(|s| s.fit).unwrap_or(e.fit);
    StreamConfig {
        name: own.map(|s| s.name.clone()).unwrap_or_default(),
        source: None,
        size: own.filter(|s| s.width > 0).map(|s| (s.width, s.height)),
        encoder: Settings {
            kind: e.kind,
            preset: e.preset.clone(),
            threads: e.threads,
            bitrate_kbit: 0,
            gop_frames: 0,
            fit,
        },
        core: CoreConfig {
            warmup_frames: own.and_then(|s| s.warmup_frames).unwrap_or(e.warmup_frames),
            gop_ns: ns(e.gop_ms),
            key_interval_ns: ns(e.key_interval_ms),
            bitrate_kbit: own.and_then(|s| s.bitrate_kbit).unwrap_or(e.bitrate_kbit),
            bits_per_pixel: e.bits_per_pixel,
            stall: ms(raw.limits.stall_ms),
        },
        queue_frames: e.queue_frames,
        kvs: None,
        record: None,
        privacy: None,
        idle_close: ms(e.idle_close_ms),
        retry: (ms(e.retry_min_ms), ms(e.retry_max_ms)),
    }
}

/// The stream that `s`, the table number `n`, describes; `config` is what it has of the tables for all streams.
fn stream(
    loaded: &Loaded<Raw>,
    n: usize,
    s: &RawStream,
    mut config: StreamConfig,
) -> Result<StreamConfig, config::Error> {
    let wrong = |key: &str, message: &str| loaded.problem(&format!("stream[{n}].{key}"), message);
    if !wire::is_name(&s.name) {
        return Err(wrong(
            "name",
            "expected 1 to 64 letters, digits, '-', '_' or '.', and no '.' at its beginning",
        ));
    }
    if (s.width == 0) != (s.height == 0) || s.width > 16_384 || s.height > 16_384 {
        return Err(wrong("width", "expected width and height together, each up to 16384, or neither"));
    }
    if s.width > 0 && s.fit.unwrap_or(loaded.raw.encoder.fit) == Fit::Renegotiate {
        return Err(wrong("fit", "expected letterbox or stretch with a fixed width and height"));
    }
    if let Some(kvs) = &s.kvs {
        config.kvs = Some(kvs.to_config(loaded, &format!("stream[{n}].kvs"), &Vars::from_env())?);
    }
    if let Some(record) = &s.record {
        config.record = Some(record.to_config(loaded, &format!("stream[{n}].record"))?);
    }
    if let Some(privacy) = &s.privacy {
        config.privacy = privacy.to_config(loaded, &format!("stream[{n}].privacy"))?;
    }
    if s.source.is_empty() {
        if !s.username.is_empty() || s.repeat {
            return Err(wrong("source", "expected a source that username or loop belong to"));
        }
        return Ok(config);
    }
    let spec = SourceSpec::parse(&s.source).map_err(|why| wrong("source", &why))?;
    if s.repeat && !matches!(spec, SourceSpec::File(_)) {
        return Err(wrong("loop", "expected only with file: sources"));
    }
    let login = match s.username.as_str() {
        "" => None,
        _ if !matches!(spec, SourceSpec::Rtsp(_)) => {
            return Err(wrong("username", "expected only with rtsp:// sources"));
        }
        _ if s.password_file.as_os_str().is_empty() => {
            return Err(wrong("password-file", "expected the file with the password of username"));
        }
        user => {
            let secret = config::read_secret(&s.password_file);
            let secret = secret.map_err(|e| wrong("password-file", &edge::log::chain(&e)))?;
            Some((user.to_owned(), secret))
        }
    };
    config.source = Some(SourceConfig { spec, login, repeat: s.repeat });
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_what_the_installed_file_says() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../etc/spyglassd.toml");
        let text = std::fs::read_to_string(file).unwrap();
        let installed = Config::parse(&text).unwrap();
        let mut built_in = Config::parse("").unwrap();
        // The file shows one stream, commented out.
        built_in.raw.stream.clear();
        assert_eq!(edge::config::to_toml(&installed.raw), edge::config::to_toml(&built_in.raw));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, words) in [
            ("[rtsp]\nlisten = \"0.0.0.0:8554\"", "rtsp.listen: listening on 0.0.0.0:8554"),
            ("[encoder]\nkind = \"h265\"", "encoder.kind"),
            ("[encoder]\npreset = \"a ! b\"", "encoder.preset"),
            (
                "[encoder]\npreset = \"nonsense\"",
                "encoder.preset: expected one of x264's presets: ultrafast, superfast",
            ),
            ("[frames]\nmode = \"9\"", "frames.mode"),
            ("[frames]\nslots = 33", "frames.slots"),
            ("[rtsp]\nconnections-max = 0", "rtsp.connections-max"),
            (
                "[rtsp]\nsessions-max = 65",
                "rtsp.connections-max: expected an integer from that of sessions-max",
            ),
            ("[[stream]]\nname = \"a/b\"", "stream[0].name"),
            ("[[stream]]\nname = \"a\"\n[[stream]]\nname = \"a\"", "stream[1].name"),
            ("[[stream]]\nname = \"a\"\nwidth = 3", "width and height together"),
            ("[[stream]]\nname = \"a\"\nloop = true", "stream[0].source"),
            ("[[stream]]\nname = \"a\"\nsource = \"v4l:\"", "nothing follows"),
            ("[[stream]]\nname = \"a\"\nsource = \"rtsp://u:p@h/\"", "password"),
            ("[access]\npassword-file = \"/nonexistent\"", "access.password-file: cannot read"),
            ("[[stream]]\nname = \"a\"\n[stream.privacy]\nmargin = -1", "stream[0].privacy.margin"),
            ("[[stream]]\nname = \"a\"\n[stream.privacy]\nblur = \"all\"", "stream[0].privacy.blur"),
            (
                "[[stream]]\nname = \"a\"\n[stream.privacy]\nblur = \"faces\"\ndetector = \"yunet\"",
                "face_detection_yunet_2023mar.onnx",
            ),
        ] {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}\n{error}");
        }
    }

    #[test]
    fn faces_are_blurred_or_the_file_is_refused() {
        let text = |blur: &str| format!("[[stream]]\nname = \"a\"\n[stream.privacy]\nblur = \"{blur}\"\n");
        assert!(Config::parse(&text("none")).unwrap().stream("a").unwrap().privacy.is_none());
        let faces = Config::parse(&text("faces"));
        if cfg!(feature = "privacy") {
            assert!(faces.unwrap().stream("a").unwrap().privacy.is_some());
        } else {
            let error = faces.unwrap_err().to_string();
            let words = ["stream[0].privacy.blur", "built without OpenCV", "FEATURES=privacy"];
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
        let all = Config::parse(&format!("[privacy]\nblur = \"faces\"\n{}", text("none")));
        if cfg!(feature = "privacy") {
            let all = all.unwrap();
            assert!(all.stream("a").unwrap().privacy.is_none(), "what a stream says goes before");
            assert!(all.stream("brought").unwrap().privacy.is_some());
        } else {
            assert!(all.unwrap_err().to_string().contains("privacy.blur"));
        }
    }

    #[test]
    fn a_stream_has_its_own_settings_over_the_common_ones() {
        let text =
            "[encoder]\nbitrate-kbit = 100\n[[stream]]\nname = \"a\"\nbitrate-kbit = 7\nfit = \"stretch\"\n";
        let config = Config::parse(text).unwrap();
        let (own, other) = (config.stream("a").unwrap(), config.stream("b").unwrap());
        assert_eq!((own.core.bitrate_kbit, own.encoder.fit), (7, Fit::Stretch));
        assert_eq!(
            (other.core.bitrate_kbit, other.encoder.fit, other.name.as_str()),
            (100, Fit::Letterbox, "b")
        );
        let closed = Config::parse("[frames]\nany-name = false").unwrap();
        assert!(closed.stream("b").is_none());
        let open = Config::parse("[rtsp]\nlisten = \"0.0.0.0:1\"\n[access]\nallow-anonymous = true").unwrap();
        assert_eq!(open.rtsp.unwrap().port(), 1);
    }
}

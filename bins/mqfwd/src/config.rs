//! `/etc/edge/mqfwd.toml`: its tables, defaults and checks. `etc/mqfwd.toml` explains every key.
//!
//! Owns: what a valid configuration is. Never: opens a socket or the spool.

use std::path::{Path, PathBuf};
use std::time::Duration;

use edge::config::{self, Loaded};
use edge::device::Device;
use edge::mqtt::endpoint::{self, Broker, Mode, ProtocolVersion, Source};
use edge::mqtt::{ClientConfig, topic};
use edge::spool::{SpoolConfig, Table as SpoolTable};
use serde::{Deserialize, Serialize};

use crate::route::{Route, Routes};

/// The file as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Raw {
    pub state_dir: PathBuf,
    pub ctl_socket: PathBuf,
    pub device_file: PathBuf,
    pub drain_ms: u64,
    pub forward: Forward,
    pub spool: SpoolTable,
    pub local: Broker,
    pub cloud: Broker,
    pub route: Vec<RawRoute>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Forward {
    pub window: usize,
    pub ack_timeout_s: u64,
    pub poison_disconnects: u32,
    pub hold_min_s: u64,
    pub hold_max_s: u64,
    pub hops_max: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RawRoute {
    pub from: String,
    #[serde(default = "same_topic")]
    pub to: String,
    #[serde(default = "qos_1")]
    pub qos: u8,
    #[serde(default)]
    pub direction: Direction,
}

/// Which way a route goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the local side to the cloud.
    #[default]
    Out,
    /// From the cloud to the local side.
    In,
}

impl Direction {
    /// The word used in files, folders and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Direction::Out => "out",
            Direction::In => "in",
        }
    }
}

fn same_topic() -> String {
    "{topic}".into()
}

fn qos_1() -> u8 {
    1
}

impl Default for Forward {
    fn default() -> Self {
        Forward {
            window: 4096,
            ack_timeout_s: 30,
            poison_disconnects: 5,
            hold_min_s: 1,
            hold_max_s: 60,
            hops_max: 8,
        }
    }
}

impl Default for Raw {
    fn default() -> Self {
        Raw {
            state_dir: "/var/lib/edge/mqfwd".into(),
            ctl_socket: "/run/edge/mqfwd/ctl.sock".into(),
            device_file: "/etc/edge/device.toml".into(),
            drain_ms: 3000,
            forward: Forward::default(),
            spool: SpoolTable::default(),
            local: Broker::default(),
            cloud: Broker::default(),
            route: Vec::new(),
        }
    }
}

/// What the daemon runs on.
#[derive(Debug)]
pub struct Config {
    /// The file as read, with the environment applied, for `--print-config`.
    pub raw: Raw,
    /// Who we are.
    pub device: Device,
    /// One or two lanes: out, in.
    pub lanes: Vec<LaneConfig>,
    /// How long a stop waits for the last acknowledgements.
    pub drain: Duration,
}

/// One direction: where messages come from, where they wait, where they go.
#[derive(Debug)]
pub struct LaneConfig {
    pub direction: Direction,
    pub source: Source,
    pub sink: ClientConfig,
    pub spool: SpoolConfig,
    pub routes: Routes,
    pub forward: Forward,
}

impl Config {
    /// Reads and validates `path`. `CLOUD_MQTT_HOST` and `CLOUD_MQTT_PORT` of the environment override the file.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn load(path: &Path) -> Result<Config, config::Error> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let mut loaded = config::load::<Raw>(path)?;
        if let Some(host) = variable("CLOUD_MQTT_HOST") {
            loaded.raw.cloud.host = host;
        }
        if let Some(port) = variable("CLOUD_MQTT_PORT") {
            loaded.raw.cloud.port = port.parse().map_err(|_| {
                let text = format!("expected a port from 1 to 65535, found {port:?}");
                config::Error::file(Path::new("environment variable CLOUD_MQTT_PORT"), text)
            })?;
        }
        let device = Device::load(&loaded.raw.device_file)?;
        validate(&loaded, device)
    }
}

fn validate(loaded: &Loaded<Raw>, device: Device) -> Result<Config, config::Error> {
    let raw = &loaded.raw;
    check_bounds(loaded)?;
    if raw.route.is_empty() {
        return Err(
            loaded.problem("route", "expected at least one [[route]] with from = \"…\" and to = \"…\"")
        );
    }
    let mut lanes = Vec::new();
    for direction in [Direction::Out, Direction::In] {
        let routes = routes(loaded, direction, &device)?;
        if !routes.is_empty() {
            lanes.push(lane(loaded, direction, routes, &device)?);
        }
    }
    check_loops(loaded)?;
    let drain = Duration::from_millis(raw.drain_ms);
    Ok(Config { raw: raw.clone(), device, lanes, drain })
}

fn check_bounds(loaded: &Loaded<Raw>) -> Result<(), config::Error> {
    let Forward { window, ack_timeout_s, poison_disconnects, hold_min_s, hold_max_s, hops_max } =
        loaded.raw.forward;
    let within = |key, value, min, max| loaded.within(key, value, min, max);
    within("forward.window", window as u64, 1, 65_535)?;
    within("forward.ack-timeout-s", ack_timeout_s, 1, 86_400)?;
    within("forward.poison-disconnects", poison_disconnects.into(), 2, 1_000_000)?;
    within("forward.hold-min-s", hold_min_s, 1, 86_400)?;
    within("forward.hold-max-s", hold_max_s, hold_min_s, 86_400)?;
    within("forward.hops-max", hops_max as u64, 1, 64)?;
    within("drain-ms", loaded.raw.drain_ms, 0, 600_000)
}

fn routes(loaded: &Loaded<Raw>, direction: Direction, device: &Device) -> Result<Routes, config::Error> {
    let mut routes: Vec<Route> = Vec::new();
    for (n, raw) in loaded.raw.route.iter().enumerate() {
        if raw.direction != direction {
            continue;
        }
        let key = |name: &str| format!("route[{n}].{name}");
        endpoint::filter(loaded, &key("from"), &raw.from)?;
        let qos = endpoint::qos(loaded, &key("qos"), raw.qos)?;
        let route = Route::new(&raw.from, &raw.to, qos, &device.id)
            .map_err(|error| loaded.problem(&key("to"), &error.to_string()))?;
        if let Some(other) = routes.iter().find(|other| topic::overlap(&other.from, &route.from)) {
            let text = format!(
                "expected a filter that shares no topic with {:?} of another route the same way: the broker might deliver twice",
                other.from
            );
            return Err(loaded.problem(&key("from"), &text));
        }
        routes.push(route);
    }
    Ok(Routes::new(routes))
}

fn lane(
    loaded: &Loaded<Raw>,
    direction: Direction,
    routes: Routes,
    device: &Device,
) -> Result<LaneConfig, config::Error> {
    let raw = &loaded.raw;
    // Each lane has connections of its own: one that is paused because its spool is full must not hold back the
    // acknowledgements of the other.
    let (source, sink) = match direction {
        Direction::Out => (
            raw.local.to_source(loaded, "local", "mqfwd-{device}-local", device)?,
            raw.cloud.to_client(loaded, "cloud", "mqfwd-{device}", device)?,
        ),
        Direction::In => {
            if raw.local.mode == Some(Mode::Listen) {
                let text = "expected \"subscribe\": routes with direction = \"in\" publish to a local broker, and the \
                            ingest port delivers nothing";
                return Err(loaded.problem("local.mode", text));
            }
            let mut source = raw.cloud.to_client(loaded, "cloud", "mqfwd-{device}", device)?;
            let mut sink = raw.local.to_client(loaded, "local", "mqfwd-{device}-local", device)?;
            source.client_id.push_str("-in");
            sink.client_id.push_str("-in");
            (Source::Broker(Box::new(source)), sink)
        }
    };
    let spool = raw.spool.to_config(loaded, "spool", raw.state_dir.join(direction.word()))?;
    Ok(LaneConfig { direction, source, sink, spool, routes, forward: raw.forward })
}

/// A message that goes out and matches an inward route would come back. MQTT 5 carries the property that stops it;
/// 3.1.1 can't, so there such routes are refused.
fn check_loops(loaded: &Loaded<Raw>) -> Result<(), config::Error> {
    let raw = &loaded.raw;
    if raw.local.version == ProtocolVersion::V5 && raw.cloud.version == ProtocolVersion::V5 {
        return Ok(());
    }
    let of = |direction| raw.route.iter().enumerate().filter(move |(_, route)| route.direction == direction);
    for (_, out) in of(Direction::Out) {
        for (n, inward) in of(Direction::In) {
            let out_reaches = crate::route::target_filter(&out.to, &out.from);
            let in_reaches = crate::route::target_filter(&inward.to, &inward.from);
            if topic::overlap(&out_reaches, &inward.from) && topic::overlap(&in_reaches, &out.from) {
                let text = format!(
                    "this route and the one from {:?} can send a message round in circles, and MQTT 3.1.1 carries \
                     nothing to stop it: use version = \"5\" on both sides, or topics that do not meet",
                    out.from
                );
                return Err(loaded.problem(&format!("route[{n}].from"), &text));
            }
        }
    }
    Ok(())
}

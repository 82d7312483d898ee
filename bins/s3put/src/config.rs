//! `/etc/edge/s3put.toml`: its tables, defaults and checks. `etc/s3put.toml` explains every key.
//!
//! Owns: what a valid configuration is, and the [`Store`] that it describes. Never: opens a socket or the spool.

use std::path::{Path, PathBuf};
use std::time::Duration;

use edge::aws::credentials::{IotTable, Vars};
use edge::config::{self, Loaded};
use edge::device::Device;
use edge::mqtt::Filter;
use edge::mqtt::endpoint::{self, Broker, Source};
use edge::objects::dir::Dir;
use edge::objects::place::Place;
use edge::objects::s3::{S3, Settings};
use edge::objects::{Policy, Store};
use edge::spool::{SpoolConfig, Table as SpoolTable};
use serde::{Deserialize, Serialize};

use crate::key::Template;
use crate::meta::{Listed, TypeRule, is_type};

/// The file as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Raw {
    pub state_dir: PathBuf,
    pub ctl_socket: PathBuf,
    pub device_file: PathBuf,
    pub drain_ms: u64,
    pub source: Broker,
    pub target: Target,
    pub object: Object,
    pub upload: Upload,
    pub spool: SpoolTable,
    pub content_type: Vec<RawRule>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Target {
    pub to: String,
    pub region: String,
    pub endpoint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    pub conditional: bool,
    pub profile: String,
    pub ca_file: PathBuf,
    pub create: bool,
    pub file_mode: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iot: Option<IotTable>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Object {
    pub key: String,
    pub user_properties: Vec<String>,
    pub sidecar: SidecarWhen,
}

/// Which objects get a sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SidecarWhen {
    /// In a folder all, in S3 those whose metadata does not fit into the headers.
    #[default]
    Auto,
    /// All.
    Always,
    /// None.
    Never,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Upload {
    pub workers: usize,
    pub attempts: u32,
    pub retry_min_ms: u64,
    pub retry_max_ms: u64,
    pub hold_min_ms: u64,
    pub hold_max_ms: u64,
    pub connect_timeout_ms: u64,
    pub idle_timeout_ms: u64,
    pub request_timeout_ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RawRule {
    pub topic: String,
    #[serde(rename = "type")]
    pub kind: String,
}

impl Default for Raw {
    fn default() -> Self {
        Raw {
            state_dir: "/var/lib/edge/s3put".into(),
            ctl_socket: "/run/edge/s3put/ctl.sock".into(),
            device_file: "/etc/edge/device.toml".into(),
            drain_ms: 5000,
            source: Broker::default(),
            target: Target::default(),
            object: Object::default(),
            upload: Upload::default(),
            spool: SpoolTable::default(),
            content_type: Vec::new(),
        }
    }
}

impl Default for Target {
    fn default() -> Self {
        Target {
            to: String::new(),
            region: String::new(),
            endpoint: String::new(),
            path_style: None,
            conditional: true,
            profile: String::new(),
            ca_file: PathBuf::new(),
            create: true,
            file_mode: "0640".into(),
            iot: None,
        }
    }
}

impl Default for Object {
    fn default() -> Self {
        Object {
            key: "{topic}/{date}/{id}{ext}".into(),
            user_properties: vec!["*".into()],
            sidecar: SidecarWhen::Auto,
        }
    }
}

impl Default for Upload {
    fn default() -> Self {
        Upload {
            workers: 8,
            attempts: 5,
            retry_min_ms: 200,
            retry_max_ms: 30_000,
            hold_min_ms: 1_000,
            hold_max_ms: 60_000,
            connect_timeout_ms: 5_000,
            idle_timeout_ms: 20_000,
            request_timeout_ms: 300_000,
        }
    }
}

/// Where objects go, checked.
#[derive(Debug)]
pub enum TargetConfig {
    Dir { root: PathBuf, mode: u32, create: bool },
    S3(Box<Settings>),
}

/// What the daemon runs on.
#[derive(Debug)]
pub struct Config {
    /// The file as read, for `--print-config`.
    pub raw: Raw,
    pub source: Source,
    pub filters: Vec<Filter>,
    pub spool: SpoolConfig,
    pub target: TargetConfig,
    pub policy: Policy,
    pub objects: Objects,
    pub drain: Duration,
}

/// How a message becomes an object.
#[derive(Debug, Clone)]
pub struct Objects {
    /// Empty, or ending in `/`.
    pub prefix: String,
    pub template: Template,
    pub rules: Vec<TypeRule>,
    pub listed: Listed,
    /// Each object gets a sidecar.
    pub sidecar_always: bool,
    /// An object whose metadata doesn't fit gets one.
    pub sidecar_overflow: bool,
}

impl TargetConfig {
    /// The store.
    pub fn open(self) -> Store {
        match self {
            Self::Dir { root, mode, .. } => Store::Dir(Dir::new(root, mode)),
            Self::S3(settings) => Store::S3(Box::new(S3::new(*settings))),
        }
    }
}

impl Config {
    /// Reads and validates `path`; `vars` is the environment of the credential chain.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn load(path: &Path, vars: &Vars) -> Result<Config, config::Error> {
        let loaded = config::load::<Raw>(path)?;
        let device = Device::load(&loaded.raw.device_file)?;
        let raw = &loaded.raw;
        check_bounds(&loaded)?;
        let (target, prefix) = target(&loaded, vars)?;
        let objects = objects(&loaded, prefix, matches!(target, TargetConfig::Dir { .. }))?;
        let (source, filters) = raw.source.to_subscriber(&loaded, "source", "s3put-{device}", &device)?;
        let spool = raw.spool.to_config(&loaded, "spool", raw.state_dir.join("spool"))?;
        if spool.window < raw.upload.workers {
            return Err(loaded.problem("spool.window", "expected at least as many records as upload.workers"));
        }
        let ms = Duration::from_millis;
        let upload = &raw.upload;
        let policy = Policy {
            workers: upload.workers,
            refusals_max: upload.attempts,
            retry: (ms(upload.retry_min_ms), ms(upload.retry_max_ms)),
            hold: (ms(upload.hold_min_ms), ms(upload.hold_max_ms)),
        };
        let drain = ms(raw.drain_ms);
        Ok(Config { source, filters, spool, target, policy, objects, drain, raw: loaded.raw })
    }

    /// What is allowed but hardly meant.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.objects.template.is_pure() {
            warnings.push(format!(
                "object.key = {:?} has the time of receipt in it: a message that arrives twice becomes two objects",
                self.raw.object.key
            ));
        }
        if !self.objects.template.tells_messages_apart() {
            warnings.push(format!(
                "object.key = {:?} gives different messages the same key: all but the first will end in dead-letter/",
                self.raw.object.key
            ));
        }
        if let TargetConfig::Dir { root, .. } = &self.target
            && !root.is_dir()
        {
            warnings.push(format!("target.to: the folder {} does not exist yet", root.display()));
        }
        warnings
    }
}

fn check_bounds(loaded: &Loaded<Raw>) -> Result<(), config::Error> {
    let within = |key, value, min, max| loaded.within(key, value, min, max);
    let (raw, day) = (&loaded.raw, 86_400_000);
    within("drain-ms", raw.drain_ms, 0, 600_000)?;
    let u = &raw.upload;
    within("upload.workers", u.workers as u64, 1, 64)?;
    within("upload.attempts", u.attempts.into(), 1, 1_000_000)?;
    within("upload.retry-min-ms", u.retry_min_ms, 1, day)?;
    within("upload.retry-max-ms", u.retry_max_ms, u.retry_min_ms, day)?;
    within("upload.hold-min-ms", u.hold_min_ms, 1, day)?;
    within("upload.hold-max-ms", u.hold_max_ms, u.hold_min_ms, day)?;
    within("upload.connect-timeout-ms", u.connect_timeout_ms, 1, day)?;
    within("upload.idle-timeout-ms", u.idle_timeout_ms, 1, day)?;
    within("upload.request-timeout-ms", u.request_timeout_ms, u.idle_timeout_ms, day)
}

/// The target, and the prefix of its keys.
fn target(loaded: &Loaded<Raw>, vars: &Vars) -> Result<(TargetConfig, String), config::Error> {
    let target = &loaded.raw.target;
    let wrong = |key: &str, message: &str| loaded.problem(&format!("target.{key}"), message);
    if let Some(path) = target.to.strip_prefix("dir:") {
        let root = PathBuf::from(path);
        if !root.is_absolute() {
            return Err(wrong("to", "expected an absolute path after dir:"));
        }
        let mode =
            u32::from_str_radix(&target.file_mode, 8).ok().filter(|m| m & !0o777 == 0 && m & 0o600 == 0o600);
        let mode = mode.ok_or_else(|| {
            wrong("file-mode", "expected an octal mode from \"0600\" to \"0777\" that lets us read and write")
        })?;
        return Ok((TargetConfig::Dir { root, mode, create: target.create }, String::new()));
    }
    let Some(rest) = target.to.strip_prefix("s3://") else {
        return Err(wrong(
            "to",
            &format!("expected s3://bucket, s3://bucket/prefix or dir:/path, found {:?}", target.to),
        ));
    };
    let place = Place {
        table: "target",
        region: &target.region,
        endpoint: &target.endpoint,
        path_style: target.path_style,
        profile: &target.profile,
        ca_file: &target.ca_file,
        iot: target.iot.as_ref(),
    };
    let found = place.find(loaded, rest, vars)?;
    let ms = Duration::from_millis;
    let upload = &loaded.raw.upload;
    let settings = Settings {
        user_agent: concat!("s3put/", env!("CARGO_PKG_VERSION")),
        table: "target",
        bucket: found.bucket,
        tls: found.tls,
        chain: found.chain,
        conditional: target.conditional,
        connections: upload.workers,
        connect_timeout: ms(upload.connect_timeout_ms),
        idle_timeout: ms(upload.idle_timeout_ms),
        request_timeout: ms(upload.request_timeout_ms),
    };
    Ok((TargetConfig::S3(Box::new(settings)), found.prefix))
}

fn objects(loaded: &Loaded<Raw>, prefix: String, folder: bool) -> Result<Objects, config::Error> {
    let object = &loaded.raw.object;
    let template = Template::parse(&object.key).map_err(|why| loaded.problem("object.key", &why))?;
    let mut rules = Vec::new();
    for (n, rule) in loaded.raw.content_type.iter().enumerate() {
        endpoint::filter(loaded, &format!("content-type[{n}].topic"), &rule.topic)?;
        if !is_type(&rule.kind) {
            let key = format!("content-type[{n}].type");
            return Err(loaded
                .problem(&key, &format!("expected a type such as \"image/png\", found {:?}", rule.kind)));
        }
        rules.push(TypeRule { topic: rule.topic.clone(), content_type: rule.kind.clone() });
    }
    let all = object.user_properties.iter().any(|name| name == "*");
    let listed = if all { Listed::All } else { Listed::Names(object.user_properties.clone()) };
    let sidecar = object.sidecar;
    Ok(Objects {
        prefix,
        template,
        rules,
        listed,
        sidecar_always: sidecar == SidecarWhen::Always || (sidecar == SidecarWhen::Auto && folder),
        sidecar_overflow: sidecar != SidecarWhen::Never,
    })
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;

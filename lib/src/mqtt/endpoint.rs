//! How a broker, or the ingest port, is written in a TOML file; the same keys in every daemon.
//!
//! Owns: the tables [`Broker`] and [`Listen`] and their checks. Never: connects.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ingest::{IngestConfig, Users};
use super::{ClientConfig, Filter, Version, topic};
use crate::config::{self, Loaded, Size};
use crate::device::Device;
use crate::tls;

/// The table of a broker to connect to. All keys have defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Broker {
    /// Where messages come from; only in a table that a daemon receives from (`[local]` of mqfwd, `[source]` of s3put).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The ingest port; only with `mode = "listen"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Listen>,
    /// Topic filters to subscribe to; only in a table that [`Broker::to_subscriber`] reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topics: Option<Vec<String>>,
    /// QoS to subscribe with; likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qos: Option<u8>,
    /// Group of a shared subscription; likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_group: Option<String>,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// `"5"` or `"3.1.1"`.
    pub version: ProtocolVersion,
    /// Client id; `{device}` stands for the device's id. Empty: a default made by the daemon.
    pub client_id: String,
    /// User name; empty for none.
    pub username: String,
    /// File with the password; empty for none.
    pub password_file: PathBuf,
    /// Keep-alive in seconds, 0 = off.
    pub keep_alive_s: u16,
    /// How long the broker keeps our session while we are away, in seconds (MQTT 5).
    pub session_expiry_s: u32,
    /// Longest name look-up, and longest wait for each address, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Longest wait from the TCP connection to CONNACK, in milliseconds.
    pub connack_timeout_ms: u64,
    /// Longest wait for the answer to a ping, in milliseconds.
    pub ping_timeout_ms: u64,
    /// First ceiling of the delay between attempts, in milliseconds.
    pub reconnect_min_ms: u64,
    /// Last ceiling of the delay between attempts, in milliseconds.
    pub reconnect_max_ms: u64,
    /// A connection that lasted this long, in seconds, starts the delays over.
    pub reconnect_stable_s: u64,
    /// Largest packet taken from the broker.
    pub max_packet: Size,
    /// Bound of the output buffer.
    pub out_buffer: Size,
    /// TLS; absent for plain TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

impl Default for Broker {
    fn default() -> Self {
        Broker {
            mode: None,
            listen: None,
            topics: None,
            qos: None,
            share_group: None,
            host: "127.0.0.1".into(),
            port: 1883,
            version: ProtocolVersion::V5,
            client_id: String::new(),
            username: String::new(),
            password_file: PathBuf::new(),
            keep_alive_s: 30,
            session_expiry_s: 7 * 24 * 3600,
            connect_timeout_ms: 10_000,
            connack_timeout_ms: 10_000,
            ping_timeout_ms: 10_000,
            reconnect_min_ms: 1_000,
            reconnect_max_ms: 120_000,
            reconnect_stable_s: 60,
            max_packet: Size::mib(16),
            out_buffer: Size::mib(1),
            tls: None,
        }
    }
}

/// How a daemon receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// It subscribes at a broker.
    #[default]
    Subscribe,
    /// It accepts publishers itself.
    Listen,
}

/// Where a daemon receives from: a checked table that allows both modes.
#[derive(Debug, Clone)]
pub enum Source {
    /// A broker to subscribe at.
    Broker(Box<ClientConfig>),
    /// Our own port.
    Listen(Box<IngestConfig>),
}

/// Protocol version as written in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProtocolVersion {
    /// MQTT 5.
    #[serde(rename = "5")]
    V5,
    /// MQTT 3.1.1.
    #[serde(rename = "3.1.1")]
    V311,
}

impl From<ProtocolVersion> for Version {
    fn from(version: ProtocolVersion) -> Version {
        match version {
            ProtocolVersion::V5 => Version::V5,
            ProtocolVersion::V311 => Version::V311,
        }
    }
}

/// The TLS table of a broker. Whom to trust: exactly one of `system-roots`, `ca-file`, `pin-file`, `pin-sha256`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Tls {
    /// Trust the certificates of the operating system.
    pub system_roots: bool,
    /// Trust the authorities in this PEM file.
    pub ca_file: PathBuf,
    /// Trust exactly the certificates in this PEM file.
    pub pin_file: PathBuf,
    /// Trust exactly the certificates with these SHA-256 sums (hex, of the DER form).
    pub pin_sha256: Vec<String>,
    /// Our own certificate chain (PEM), where the broker asks for one.
    pub cert_file: PathBuf,
    /// The key of `cert-file` (PEM). A bare name is looked up among the unit's credentials.
    pub key_file: PathBuf,
    /// The name that the broker's certificate must have, where it is not `host`.
    pub server_name: String,
}

fn some(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}

impl Tls {
    fn to_client(&self) -> Result<tls::ClientTlsConfig, &'static str> {
        let mut trusts = Vec::new();
        if self.system_roots {
            trusts.push(tls::Trust::System);
        }
        trusts.extend(some(&self.ca_file).map(tls::Trust::Ca));
        trusts.extend(some(&self.pin_file).map(tls::Trust::PinnedFile));
        if !self.pin_sha256.is_empty() {
            trusts.push(tls::Trust::PinnedSha256(self.pin_sha256.clone()));
        }
        let trust = match (trusts.pop(), trusts.is_empty()) {
            (Some(trust), true) => trust,
            (Some(_), false) => {
                return Err("expected only one of system-roots, ca-file, pin-file and pin-sha256");
            }
            (None, _) => {
                return Err(
                    "expected one of system-roots = true, ca-file, pin-file or pin-sha256: whom to trust?",
                );
            }
        };
        let (cert, key) = (some(&self.cert_file), some(&self.key_file).map(|p| config::secret_path(&p)));
        if cert.is_some() != key.is_some() {
            return Err("expected cert-file and key-file together, or neither");
        }
        let server_name = (!self.server_name.is_empty()).then(|| self.server_name.clone());
        Ok(tls::ClientTlsConfig { trust, cert, key, server_name })
    }
}

impl Broker {
    /// As [`Broker::to_client`] for a table that messages are received from: either mode will do.
    ///
    /// # Errors
    /// The first key that is wrong, with its place.
    pub fn to_source<R>(
        &self,
        loaded: &Loaded<R>,
        table: &str,
        default_id: &str,
        device: &Device,
    ) -> Result<Source, config::Error> {
        self.no_subscription(loaded, table)?;
        self.any_source(loaded, table, default_id, device)
    }

    /// As [`Broker::to_source`], with what to subscribe to: `topics`, `qos` (default 1) and `share-group`.
    ///
    /// # Errors
    /// The first key that is wrong, with its place.
    pub fn to_subscriber<R>(
        &self,
        loaded: &Loaded<R>,
        table: &str,
        default_id: &str,
        device: &Device,
    ) -> Result<(Source, Vec<Filter>), config::Error> {
        let wrong = |key: &str, message: &str| Err(loaded.problem(&format!("{table}.{key}"), message));
        let source = self.any_source(loaded, table, default_id, device)?;
        let qos = qos(loaded, &format!("{table}.qos"), self.qos.unwrap_or(1))?;
        let topics = self.topics.as_deref().unwrap_or_default();
        if topics.is_empty() && matches!(source, Source::Broker(_)) {
            return wrong("topics", "expected at least one topic filter, such as [\"faces/#\"]");
        }
        let group = self.share_group.as_deref().unwrap_or_default();
        if group.contains(['/', '+', '#', '\0']) {
            return wrong("share-group", "expected a name without '/', '+' and '#'");
        }
        let mut filters = Vec::new();
        for (n, topic) in topics.iter().enumerate() {
            filter(loaded, &format!("{table}.topics[{n}]"), topic)?;
            let topic = if group.is_empty() { topic.clone() } else { format!("$share/{group}/{topic}") };
            filters.push(Filter { topic, qos, no_local: false, retain_as_published: true });
        }
        Ok((source, filters))
    }

    fn no_subscription<R>(&self, loaded: &Loaded<R>, table: &str) -> Result<(), config::Error> {
        let given = [
            ("topics", self.topics.is_some()),
            ("qos", self.qos.is_some()),
            ("share-group", self.share_group.is_some()),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((key, _)) => {
                Err(loaded.problem(&format!("{table}.{key}"), "expected no such key in this table"))
            }
            None => Ok(()),
        }
    }

    fn any_source<R>(
        &self,
        loaded: &Loaded<R>,
        table: &str,
        default_id: &str,
        device: &Device,
    ) -> Result<Source, config::Error> {
        match self.mode.unwrap_or_default() {
            Mode::Subscribe => {
                Ok(Source::Broker(Box::new(self.any_client(loaded, table, default_id, device)?)))
            }
            Mode::Listen => {
                let listen = self.listen.clone().unwrap_or_default();
                Ok(Source::Listen(Box::new(listen.to_ingest(loaded, &format!("{table}.listen"))?)))
            }
        }
    }

    /// Checks the table `table` (such as `"cloud"`) of `loaded` and reads the files that it names.
    /// `default_id` names the client where the file does not; `{device}` in either is replaced.
    ///
    /// # Errors
    /// The first key that is wrong, with its place.
    pub fn to_client<R>(
        &self,
        loaded: &Loaded<R>,
        table: &str,
        default_id: &str,
        device: &Device,
    ) -> Result<ClientConfig, config::Error> {
        self.no_subscription(loaded, table)?;
        self.any_client(loaded, table, default_id, device)
    }

    fn any_client<R>(
        &self,
        loaded: &Loaded<R>,
        table: &str,
        default_id: &str,
        device: &Device,
    ) -> Result<ClientConfig, config::Error> {
        self.check_bounds(loaded, table)?;
        let wrong = |key: &str, message: &str| Err(loaded.problem(&format!("{table}.{key}"), message));
        let client_id = if self.client_id.is_empty() { default_id } else { &self.client_id };
        let client_id = client_id.replace("{device}", &device.id);
        if client_id.len() > 256 || client_id.contains('\0') {
            return wrong("client-id", "expected at most 256 bytes without NUL");
        }
        let mut client = ClientConfig::new(self.host.clone(), self.port, client_id);
        client.version = self.version.into();
        client.username = (!self.username.is_empty()).then(|| self.username.clone());
        if let Some(file) = some(&self.password_file) {
            if client.username.is_none() && client.version == Version::V311 {
                return wrong(
                    "password-file",
                    "MQTT 3.1.1 sends a password only with a username: set username",
                );
            }
            match config::read_secret(&file) {
                Ok(secret) => client.password = Some(secret),
                Err(error) => return wrong("password-file", &crate::log::chain(&error)),
            }
        }
        if let Some(table) = &self.tls {
            let settings = match table.to_client() {
                Ok(settings) => settings,
                Err(message) => return wrong("tls", message),
            };
            match tls::ClientTls::load(&settings) {
                Ok(loaded) => client.tls = Some(loaded),
                Err(error) => return wrong("tls", &crate::log::chain(&error)),
            }
        }
        let ms = Duration::from_millis;
        client.keep_alive_s = self.keep_alive_s;
        client.session_expiry_s = self.session_expiry_s;
        client.connect_timeout = ms(self.connect_timeout_ms);
        client.connack_timeout = ms(self.connack_timeout_ms);
        client.ping_timeout = ms(self.ping_timeout_ms);
        client.backoff = (
            ms(self.reconnect_min_ms),
            ms(self.reconnect_max_ms),
            Duration::from_secs(self.reconnect_stable_s),
        );
        client.max_packet_bytes = u32::try_from(self.max_packet.0).unwrap_or(u32::MAX);
        client.out_buffer_bytes = self.out_buffer.as_usize();
        Ok(client)
    }

    /// Whether every value is within its bounds.
    fn check_bounds<R>(&self, loaded: &Loaded<R>, table: &str) -> Result<(), config::Error> {
        let wrong = |key: &str, message: &str| Err(loaded.problem(&format!("{table}.{key}"), message));
        if self.mode.is_some_and(|mode| mode == Mode::Listen) {
            return wrong(
                "mode",
                "expected \"subscribe\": nothing is received here, so this table names a broker",
            );
        }
        if self.listen.is_some() {
            return wrong("listen", "expected no such table unless mode = \"listen\"");
        }
        if self.host.is_empty() || self.host.contains([' ', '/', '[', ']']) {
            return wrong("host", "expected a host name or an address, without a port and without brackets");
        }
        if self.port == 0 {
            return wrong("port", "expected an integer from 1 to 65535, found 0");
        }
        if self.reconnect_min_ms == 0 || self.reconnect_min_ms > self.reconnect_max_ms {
            return wrong("reconnect-min-ms", "expected at least 1 and at most reconnect-max-ms");
        }
        for (key, value) in [
            ("connect-timeout-ms", self.connect_timeout_ms),
            ("connack-timeout-ms", self.connack_timeout_ms),
            ("ping-timeout-ms", self.ping_timeout_ms),
            ("reconnect-max-ms", self.reconnect_max_ms),
        ] {
            if !(1..=86_400_000).contains(&value) {
                return wrong(key, "expected milliseconds from 1 to 86400000 (a day)");
            }
        }
        if !(1024..=268_435_460).contains(&self.max_packet.0) {
            return wrong("max-packet", "expected from 1 KiB to 256 MiB");
        }
        if self.out_buffer.0 < 4096 {
            return wrong("out-buffer", "expected at least 4 KiB");
        }
        Ok(())
    }
}

/// The table of a durable ingest port (`mode = "listen"`).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Listen {
    /// `address:port` to listen on.
    pub address: String,
    /// Clients at once.
    pub max_clients: usize,
    /// Largest packet taken.
    pub max_packet: Size,
    /// Unacknowledged messages of one client; at the bound its socket is not read.
    pub max_unacked: usize,
    /// File of `name:password` lines (also in the form of `mosquitto_passwd`); empty lets everybody in.
    pub users_file: PathBuf,
    /// Certificate chain (PEM) for TLS; empty for plain TCP.
    pub cert_file: PathBuf,
    /// Key of `cert-file` (PEM).
    pub key_file: PathBuf,
    /// Authorities (PEM), one of which must have signed a client's certificate; empty asks for none.
    pub client_ca_file: PathBuf,
}

impl Default for Listen {
    fn default() -> Self {
        Listen {
            address: "127.0.0.1:1883".into(),
            max_clients: 64,
            max_packet: Size::mib(16),
            max_unacked: 1000,
            users_file: PathBuf::new(),
            cert_file: PathBuf::new(),
            key_file: PathBuf::new(),
            client_ca_file: PathBuf::new(),
        }
    }
}

impl Listen {
    /// Checks the table `table` of `loaded` and reads the files that it names.
    ///
    /// # Errors
    /// The first key that is wrong, with its place.
    pub fn to_ingest<R>(&self, loaded: &Loaded<R>, table: &str) -> Result<IngestConfig, config::Error> {
        let wrong = |key: &str, message: &str| Err(loaded.problem(&format!("{table}.{key}"), message));
        if self.address.parse::<std::net::SocketAddr>().is_err() {
            return wrong("address", "expected an address and a port such as 127.0.0.1:1883 or [::]:1883");
        }
        if !(1..=65_535).contains(&self.max_clients) {
            return wrong("max-clients", "expected from 1 to 65535");
        }
        if !(1..=65_535).contains(&self.max_unacked) {
            return wrong("max-unacked", "expected from 1 to 65535");
        }
        if !(1024..=268_435_460).contains(&self.max_packet.0) {
            return wrong("max-packet", "expected from 1 KiB to 256 MiB");
        }
        let mut ingest = IngestConfig::new(self.address.clone());
        ingest.max_clients = self.max_clients;
        ingest.max_unacked = self.max_unacked;
        ingest.max_packet_bytes = u32::try_from(self.max_packet.0).unwrap_or(u32::MAX);
        if let Some(file) = some(&self.users_file) {
            match Users::load(&config::secret_path(&file)) {
                Ok(users) => ingest.users = Some(users),
                Err(error) => return wrong("users-file", &crate::log::chain(&error)),
            }
        }
        match (some(&self.cert_file), some(&self.key_file)) {
            (None, None) => {}
            (Some(cert), Some(key)) => {
                let key = config::secret_path(&key);
                let settings = tls::ServerTlsConfig {
                    cert,
                    key,
                    client_ca: some(&self.client_ca_file),
                    client_pins: Vec::new(),
                };
                match tls::ServerTls::load(&settings) {
                    Ok(loaded) => ingest.tls = Some(loaded),
                    Err(error) => return wrong("cert-file", &crate::log::chain(&error)),
                }
            }
            _ => return wrong("cert-file", "expected cert-file and key-file together, or neither"),
        }
        Ok(ingest)
    }
}

/// Checks a QoS as written in a file.
///
/// # Errors
/// At `key`, when it is not 0, 1 or 2.
pub fn qos<R>(loaded: &Loaded<R>, key: &str, value: u8) -> Result<super::Qos, config::Error> {
    super::Qos::from_u8(value)
        .ok_or_else(|| loaded.problem(key, &format!("expected 0, 1 or 2, found {value}")))
}

/// Checks a topic filter as written in a file.
///
/// # Errors
/// At `key`, with what is wrong.
pub fn filter<R>(loaded: &Loaded<R>, key: &str, value: &str) -> Result<(), config::Error> {
    topic::check_filter(value).map_err(|why| loaded.problem(key, &format!("{why}, found {value:?}")))
}

//! The tables `[database]` and `[upload]` of `sorterd.toml`: where boxes are kept and where pictures go.
//!
//! Owns: what is valid in them, and what the environment adds: `MODE` and `PG_CONN`, as in the service that this one
//! replaces, win over the file. Never: opens anything; the files that they name excepted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use edge::aws::credentials::{IotTable, Vars};
use edge::config::{self, Loaded, Secret};
use edge::objects::Policy;
use edge::objects::place::Place;
use edge::objects::s3::Settings;
use edge::spool::{SpoolConfig, Table as SpoolTable};
use edge::tls::{ClientTls, ClientTlsConfig, Trust};
use serde::{Deserialize, Serialize};

use crate::db::pg::PgConfig;
use crate::db::pg::address::{Address, Host, SslMode};
use crate::db::pg::stream::{Tls, unchecked};

/// The file's name where `database.path` names none.
const FILE: &str = "sorterd.db";

/// `[database]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct DatabaseTable {
    /// The SQLite file; empty: `sorterd.db` in `state-dir`.
    pub path: PathBuf,
    /// How long another process that writes to the file is waited for.
    pub busy_timeout_ms: u64,
    /// A file with the connection string of a PostgreSQL server; `PG_CONN` wins. See `edge::config::secret_path`.
    pub conn_file: PathBuf,
    /// Authorities to trust instead of the system's (PostgreSQL); so does `sslrootcert` in the string.
    pub ca_file: PathBuf,
    /// Longest time until the server has let us in.
    pub connect_timeout_ms: u64,
    /// Longest time until it has answered.
    pub query_timeout_ms: u64,
    /// First and last ceiling of the delay after a connection that could not be made.
    pub retry_min_ms: u64,
    pub retry_max_ms: u64,
}

/// `[upload]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct UploadTable {
    /// `local` (nothing leaves the machine), `aws-dev` or `production` (which do the same); `MODE` wins.
    pub mode: String,
    /// `s3://bucket` or `s3://bucket/prefix`.
    pub to: String,
    /// Such as `eu-west-1`; empty: what the environment or the profile says.
    pub region: String,
    /// Where S3 is, if it is not Amazon's.
    pub endpoint: String,
    /// The bucket in the path instead of in the host's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// The profile in the shared credentials files; empty: the usual chain.
    pub profile: String,
    /// Authorities to trust instead of the system's.
    pub ca_file: PathBuf,
    /// Credentials by a device certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iot: Option<IotTable>,
    /// Pictures uploaded at once.
    pub workers: usize,
    /// How often a picture may be refused before it goes to `dead-letter/`.
    pub attempts: u32,
    /// First and last ceiling of the delay after a failure that passes.
    pub retry_min_ms: u64,
    pub retry_max_ms: u64,
    /// First and last ceiling of the delay between probes while S3 refuses us.
    pub hold_min_ms: u64,
    pub hold_max_ms: u64,
    /// Longest time until a connection stands.
    pub connect_timeout_ms: u64,
    /// Longest silence of the server.
    pub idle_timeout_ms: u64,
    /// Longest whole request.
    pub request_timeout_ms: u64,
    /// Longest time that a session waits for pictures that another machine was sent.
    pub fetch_wait_ms: u64,
    /// The queue on disk.
    pub spool: SpoolTable,
}

impl Default for DatabaseTable {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            busy_timeout_ms: 10_000,
            conn_file: PathBuf::new(),
            ca_file: PathBuf::new(),
            connect_timeout_ms: 5_000,
            query_timeout_ms: 10_000,
            retry_min_ms: 200,
            retry_max_ms: 10_000,
        }
    }
}

impl Default for UploadTable {
    fn default() -> Self {
        Self {
            mode: "local".into(),
            to: String::new(),
            region: String::new(),
            endpoint: String::new(),
            path_style: None,
            profile: String::new(),
            ca_file: PathBuf::new(),
            iot: None,
            workers: 4,
            attempts: 5,
            retry_min_ms: 200,
            retry_max_ms: 30_000,
            hold_min_ms: 1_000,
            hold_max_ms: 60_000,
            connect_timeout_ms: 5_000,
            idle_timeout_ms: 20_000,
            request_timeout_ms: 300_000,
            fetch_wait_ms: 15_000,
            spool: SpoolTable::default(),
        }
    }
}

/// What the environment says.
#[derive(Debug, Clone, Default)]
pub struct Env {
    /// `MODE`
    pub mode: Option<String>,
    /// `PG_CONN`
    pub pg_conn: Option<Secret>,
    /// What the chain of credentials looks at.
    pub aws: Vars,
}

impl Env {
    /// That of this process. What is set but empty counts as not set.
    #[must_use]
    pub fn from_process() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self { mode: set("MODE"), pg_conn: set("PG_CONN").map(Secret::new), aws: Vars::from_env() }
    }
}

/// Where pictures go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They stay here.
    Local,
    /// To S3.
    AwsDev,
    /// To S3.
    Production,
}

impl Mode {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::AwsDev => "aws-dev",
            Self::Production => "production",
        }
    }
}

/// Where boxes are kept, checked.
#[derive(Debug, Clone)]
pub enum DbConfig {
    /// A file.
    Sqlite {
        path: PathBuf,
        /// How long a writer is waited for.
        busy: Duration,
    },
    /// A server.
    Postgres(Box<PgConfig>),
}

/// Where pictures go, checked.
#[derive(Debug, Clone)]
pub struct UploadConfig {
    /// Of all keys: empty, or ending in `/`.
    pub prefix: String,
    pub target: Settings,
    pub policy: Policy,
    pub spool: SpoolConfig,
    /// Longest search for the pictures of a session that are not here.
    pub fetch_wait: Duration,
}

impl DatabaseTable {
    /// Checks the table, which stands as `[database]` in `loaded`.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn check<R>(
        &self,
        loaded: &Loaded<R>,
        state_dir: &Path,
        env: &Env,
    ) -> Result<DbConfig, config::Error> {
        let within = |key: &str, value, min, max| loaded.within(&format!("database.{key}"), value, min, max);
        within("busy-timeout-ms", self.busy_timeout_ms, 1, 600_000)?;
        within("connect-timeout-ms", self.connect_timeout_ms, 1, 600_000)?;
        within("query-timeout-ms", self.query_timeout_ms, 1, 600_000)?;
        within("retry-min-ms", self.retry_min_ms, 1, 600_000)?;
        within("retry-max-ms", self.retry_max_ms, self.retry_min_ms, 600_000)?;
        if let Some(text) = &env.pg_conn {
            return self
                .postgres(text)
                .map_err(|why| loaded.problem("database", &format!("PG_CONN in the environment: {why}")));
        }
        if !self.conn_file.as_os_str().is_empty() {
            let wrong = |why: &str| loaded.problem("database.conn-file", why);
            if !self.path.as_os_str().is_empty() {
                return Err(wrong("expected path (SQLite) or conn-file (PostgreSQL), not both"));
            }
            let text = config::read_secret(&self.conn_file).map_err(|e| wrong(&edge::log::chain(&e)))?;
            return self.postgres(&text).map_err(|why| wrong(&why));
        }
        let busy = Duration::from_millis(self.busy_timeout_ms);
        if self.path.as_os_str().is_empty() {
            return Ok(DbConfig::Sqlite { path: state_dir.join(FILE), busy });
        }
        if !self.path.is_absolute() || self.path.file_name().is_none() {
            return Err(loaded.problem("database.path", "expected the absolute path of a file"));
        }
        Ok(DbConfig::Sqlite { path: self.path.clone(), busy })
    }

    /// The server of a connection string; what is wrong with it in words.
    fn postgres(&self, text: &Secret) -> Result<DbConfig, String> {
        let address = Address::parse(text.expose())?;
        let ca = some_path(&self.ca_file).or_else(|| address.ca_file.clone());
        let checked = |trust| {
            let tls = ClientTlsConfig { trust, cert: None, key: None, server_name: None };
            ClientTls::load(&tls).map(|tls| tls.config).map_err(|error| edge::log::chain(&error))
        };
        let tls = match (address.ssl, ca) {
            // Nobody stands in between within the machine.
            _ if matches!(address.host, Host::Socket(_)) => Tls::Off,
            (SslMode::Disable, _) => Tls::Off,
            (SslMode::Prefer, _) => Tls::Prefer(unchecked()?.into()),
            (SslMode::Require, None) => Tls::Require(unchecked()?.into()),
            (SslMode::Require | SslMode::VerifyFull, Some(ca)) => Tls::Require(checked(Trust::Ca(ca))?),
            (SslMode::VerifyFull, None) => Tls::Require(checked(Trust::System)?),
        };
        let ms = Duration::from_millis;
        Ok(DbConfig::Postgres(Box::new(PgConfig {
            connect_timeout: address.connect_timeout.unwrap_or(ms(self.connect_timeout_ms)),
            address,
            tls,
            query_timeout: ms(self.query_timeout_ms),
            retry: (ms(self.retry_min_ms), ms(self.retry_max_ms)),
        })))
    }
}

impl UploadTable {
    /// Checks the table, which stands as `[upload]` in `loaded`. Mode `local` has no [`UploadConfig`]; what else is in the
    /// table is checked all the same, as far as it needs neither bucket nor region.
    ///
    /// # Errors
    /// With file, line, column, key and expectation.
    pub fn check<R>(
        &self,
        loaded: &Loaded<R>,
        state_dir: &Path,
        env: &Env,
    ) -> Result<(Mode, Option<UploadConfig>), config::Error> {
        self.check_bounds(loaded)?;
        let spool = self.spool.to_config(loaded, "upload.spool", state_dir.join("uploads"))?;
        if spool.window < self.workers {
            let expected = "expected at least as many records as upload.workers";
            return Err(loaded.problem("upload.spool.window", expected));
        }
        let mode = self.mode(loaded, env)?;
        if mode == Mode::Local {
            return Ok((mode, None));
        }
        let wrong = |message: &str| loaded.problem("upload.to", message);
        let Some(rest) = self.to.strip_prefix("s3://") else {
            let forms = "s3://bucket or s3://bucket/prefix";
            return Err(wrong(&format!("expected {forms} in mode {}, found {:?}", mode.name(), self.to)));
        };
        let place = Place {
            table: "upload",
            region: &self.region,
            endpoint: &self.endpoint,
            path_style: self.path_style,
            profile: &self.profile,
            ca_file: &self.ca_file,
            iot: self.iot.as_ref(),
        };
        let found = place.find(loaded, rest, &env.aws)?;
        let ms = Duration::from_millis;
        let policy = Policy {
            workers: self.workers,
            refusals_max: self.attempts,
            retry: (ms(self.retry_min_ms), ms(self.retry_max_ms)),
            hold: (ms(self.hold_min_ms), ms(self.hold_max_ms)),
        };
        let target = Settings {
            user_agent: concat!("sorterd/", env!("CARGO_PKG_VERSION")),
            table: "upload",
            bucket: found.bucket,
            tls: found.tls,
            chain: found.chain,
            // A picture that comes again replaces the one before, as its boxes do.
            conditional: false,
            connections: self.workers,
            connect_timeout: ms(self.connect_timeout_ms),
            idle_timeout: ms(self.idle_timeout_ms),
            request_timeout: ms(self.request_timeout_ms),
        };
        let fetch_wait = ms(self.fetch_wait_ms);
        Ok((mode, Some(UploadConfig { prefix: found.prefix, target, policy, spool, fetch_wait })))
    }

    fn mode<R>(&self, loaded: &Loaded<R>, env: &Env) -> Result<Mode, config::Error> {
        let all = [Mode::Local, Mode::AwsDev, Mode::Production];
        let (text, said) = match &env.mode {
            Some(text) => (text, "the environment's MODE says"),
            None => (&self.mode, "found"),
        };
        all.into_iter().find(|mode| mode.name() == text).ok_or_else(|| {
            let expected = "expected \"local\", \"aws-dev\" or \"production\"";
            loaded.problem("upload.mode", &format!("{expected}, {said} {text:?}"))
        })
    }

    fn check_bounds<R>(&self, loaded: &Loaded<R>) -> Result<(), config::Error> {
        let within = |key: &str, value, min, max| loaded.within(&format!("upload.{key}"), value, min, max);
        let day = 86_400_000;
        within("workers", self.workers as u64, 1, 64)?;
        within("attempts", self.attempts.into(), 1, 1_000_000)?;
        within("retry-min-ms", self.retry_min_ms, 1, day)?;
        within("retry-max-ms", self.retry_max_ms, self.retry_min_ms, day)?;
        within("hold-min-ms", self.hold_min_ms, 1, day)?;
        within("hold-max-ms", self.hold_max_ms, self.hold_min_ms, day)?;
        within("connect-timeout-ms", self.connect_timeout_ms, 1, day)?;
        within("idle-timeout-ms", self.idle_timeout_ms, 1, day)?;
        within("request-timeout-ms", self.request_timeout_ms, self.idle_timeout_ms, day)?;
        within("fetch-wait-ms", self.fetch_wait_ms, 1, 600_000)
    }
}

fn some_path(path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| path.to_owned())
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;

//! Credentials: what they are, and the provider that keeps them fresh.
//!
//! The chain, in this order; the first link that is set up decides, and if it fails the chain ends there with its
//! reason (falling through would use an identity that nobody meant):
//! 1. AWS IoT credential provider, if configured (mutual TLS with the device's certificate);
//! 2. the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`;
//! 3. the profile (`AWS_PROFILE`, else `default`) in the shared credentials and config files: keys, or
//!    `credential_process`;
//! 4. the container endpoint (`AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` or `_FULL_URI`);
//! 5. the instance metadata service, version 2 (unless `AWS_EC2_METADATA_DISABLED=true`).
//!
//! Invariants: nothing secret is printed, by `Debug` or in an error; however many threads ask, one fetches.

mod answer;
mod chain;
mod http;
mod process;
mod profile;
mod provider;
mod table;

pub use answer::{Shape, parse};
pub use chain::{ChainConfig, IotConfig, Vars};
pub use profile::parse_ini;
pub use provider::Provider;
pub use table::IotTable;

use crate::config::Secret;

/// What requests are signed with. `Debug` shows no secret.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Not secret by itself: it is part of every request in the clear.
    pub access_key_id: String,
    /// The secret key.
    pub secret_key: Secret,
    /// The session token of temporary credentials.
    pub token: Option<Secret>,
    /// When they end, in Unix seconds; `None`: never by themselves.
    pub expires_s: Option<i64>,
    /// Where they came from, for people: `environment`, `profile "x" in /…` and so on.
    pub source: String,
}

/// Why there are no credentials: what each link of the chain said, up to the one that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no AWS credentials: {}", list(.0))]
pub struct Error(pub Vec<(String, String)>);

fn list(links: &[(String, String)]) -> String {
    links.iter().map(|(link, why)| format!("{link}: {why}")).collect::<Vec<_>>().join("; ")
}

/// What a link of the chain says: credentials, or why it has none, or why it failed though it is set up.
pub(crate) enum Link {
    Found(Credentials),
    NotSet(String),
    Failed(String),
}

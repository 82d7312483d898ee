//! TLS settings made from files, for clients and for servers: rustls with ring, TLS 1.2 and 1.3.
//!
//! Trust is either the system's roots, a CA file, or pinned certificates. A pinned certificate is compared byte for
//! byte (or by its SHA-256); neither its name nor its issuer nor CA:TRUE matters then, but its validity dates do.

use std::{path::PathBuf, sync::Arc};

/// Whom a client trusts.
#[derive(Debug, Clone)]
pub enum Trust {
    /// The certificates of the operating system.
    System,
    /// The certificates of this PEM file.
    Ca(PathBuf),
    /// Exactly the certificates of this PEM file, each an end-entity certificate.
    PinnedFile(PathBuf),
    /// Exactly the certificates with these SHA-256 sums (of the DER form), in hex, with or without colons.
    PinnedSha256(Vec<String>),
}

/// Settings of a client as they stand in the TOML.
#[derive(Debug, Clone)]
pub struct ClientTlsConfig {
    /// Whom to trust.
    pub trust: Trust,
    /// Client certificate chain (PEM).
    pub cert: Option<PathBuf>,
    /// Its key (PEM: PKCS#8, PKCS#1 or SEC1).
    pub key: Option<PathBuf>,
    /// Name to ask for and to check instead of the host.
    pub server_name: Option<String>,
}

/// Settings of a client, loaded. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ClientTls {
    /// For other users of rustls.
    pub config: Arc<rustls::ClientConfig>,
    /// Overrides the host name.
    pub server_name: Option<String>,
}

/// Settings of a server as they stand in the TOML.
#[derive(Debug, Clone)]
pub struct ServerTlsConfig {
    /// Certificate chain (PEM).
    pub cert: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
    /// When given, a client must show a certificate of one of these CAs (PEM).
    pub client_ca: Option<PathBuf>,
}

/// Settings of a server, loaded. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// For other users of rustls.
    pub config: Arc<rustls::ServerConfig>,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be used.
    #[error("{what} {path}: {reason}")]
    File {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The settings contradict each other or the system has nothing to offer.
    #[error("{0}")]
    Settings(String),
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file.
    pub fn load(_cfg: &ClientTlsConfig) -> Result<ClientTls, Error> {
        Err(Error::Settings("not there yet".into()))
    }
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file.
    pub fn load(_cfg: &ServerTlsConfig) -> Result<ServerTls, Error> {
        Err(Error::Settings("not there yet".into()))
    }
}

//! TLS settings made from files, for clients and for servers: rustls with ring, TLS 1.2 and 1.3.
//!
//! Trust is either the system's roots, a CA file, or pinned certificates. A pinned certificate is compared byte for
//! byte (or by its SHA-256); neither its name nor its issuer nor CA:TRUE matters then, but its validity dates do.
//! It never logs key material, and every error names the file.

mod pinned;

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::WebPkiServerVerifier,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

pub use pinned::{Pin, Pinned};

/// Whom a client trusts.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub config: Arc<ClientConfig>,
    /// Overrides the host name.
    pub server_name: Option<String>,
    /// Whom it trusts, for error messages: "the system's certificates", "the CA file …", "the pinned …".
    pub trusted: String,
}

/// Settings of a server as they stand in the TOML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTlsConfig {
    /// Certificate chain (PEM).
    pub cert: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
    /// When given, a client must show a certificate of one of these CAs (PEM).
    pub client_ca: Option<PathBuf>,
    /// When not empty, a client must show exactly one of the certificates in these files (PEM, several in each if need
    /// be), valid now; goes without `client_ca`. Sessions are never resumed then, so that a pin that is taken away, or
    /// a date that passes, counts from the next connection on.
    pub client_pins: Vec<PathBuf>,
}

/// What a person wants to know of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of the DER form, 64 lower-case hexadecimal digits.
    pub sha256_hex: String,
    /// Valid from, Unix seconds.
    pub not_before: i64,
    /// Valid to, Unix seconds.
    pub not_after: i64,
}

/// Looks at the certificates of a PEM file. `what` names the file's purpose in errors.
///
/// # Errors
/// The file can't be read or holds no certificate.
pub fn facts(what: &'static str, path: &Path) -> Result<Vec<Facts>, Error> {
    let look = |der: &CertificateDer<'_>| {
        let (not_before, not_after) = pinned::validity(der)
            .ok_or_else(|| file_error(what, path, &"is damaged: it has no validity dates"))?;
        Ok(Facts { sha256_hex: crate::text::sha256_hex(der), not_before, not_after })
    };
    certificates(what, path)?.iter().map(look).collect()
}

/// Why a handshake failed, for the person at the end that logs it. `peer` is "client" or "server".
#[must_use]
pub fn explain(error: &rustls::Error, peer: &str) -> String {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error as E};
    match error {
        E::InvalidCertificate(Bad::UnknownIssuer) => {
            format!("the {peer}'s certificate is not one of those pinned here")
        }
        E::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            format!("the {peer}'s certificate has expired (or the clock here is wrong): make new keys")
        }
        E::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            format!("the {peer}'s certificate is not valid yet: is the clock right on both sides?")
        }
        E::NoCertificatesPresented => format!("the {peer} showed no certificate"),
        E::InvalidMessage(_) => format!("what the {peer} sent is no TLS (plain HTTP?)"),
        E::AlertReceived(Alert::CertificateExpired) => {
            format!("the {peer} says that our certificate has expired (or its clock is wrong)")
        }
        E::AlertReceived(
            Alert::UnknownCA
            | Alert::CertificateUnknown
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate,
        ) => format!("the {peer} does not accept our certificate: is it pinned there?"),
        E::AlertReceived(Alert::CertificateRequired) => format!("the {peer} asks for a certificate"),
        other => other.to_string(),
    }
}

/// Settings of a server, loaded. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerTls {
    /// For other users of rustls.
    pub config: Arc<ServerConfig>,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be used.
    #[error("{what} {}: {reason}", path.display())]
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

/// Files above this are no certificates, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file.
    pub fn load(cfg: &ClientTlsConfig) -> Result<ClientTls, Error> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Settings(format!("TLS: {error}")))?;
        let (builder, trusted) = match &cfg.trust {
            Trust::System => {
                (builder.with_root_certificates(system_roots()?), "the system's certificates".into())
            }
            Trust::Ca(path) => (
                builder.with_root_certificates(ca_file("CA file", path)?),
                format!("the CA file {}", path.display()),
            ),
            Trust::PinnedFile(path) => {
                let pins =
                    certificates("pinned certificate", path)?.iter().map(|c| Pin::Der(c.to_vec())).collect();
                let verifier = Arc::new(Pinned::new(pins, &provider));
                let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
                (builder, format!("the certificate pinned in {}", path.display()))
            }
            Trust::PinnedSha256(sums) => {
                let verifier = Arc::new(Pinned::new(pins_from_hex(sums)?, &provider));
                (
                    builder.dangerous().with_custom_certificate_verifier(verifier),
                    "the pinned SHA-256 sum".into(),
                )
            }
        };
        let config = match (&cfg.cert, &cfg.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let chain = certificates("client certificate", cert)?;
                check_pair(&provider, &chain, ("client certificate", cert), ("client key", key))?;
                builder
                    .with_client_auth_cert(chain, private_key("client key", key)?)
                    .map_err(|error| file_error("client certificate", cert, &error))?
            }
            (Some(cert), None) => return Err(half(cert, "certificate", "key")),
            (None, Some(key)) => return Err(half(key, "key", "certificate")),
        };
        Ok(ClientTls { config: Arc::new(config), server_name: cfg.server_name.clone(), trusted })
    }
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file.
    pub fn load(cfg: &ServerTlsConfig) -> Result<ServerTls, Error> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Settings(format!("TLS: {error}")))?;
        let builder = match &cfg.client_ca {
            Some(_) if !cfg.client_pins.is_empty() => {
                return Err(Error::Settings(
                    "a client CA and pinned client certificates exclude each other".into(),
                ));
            }
            None if cfg.client_pins.is_empty() => builder.with_no_client_auth(),
            None => {
                let mut pins = Vec::new();
                for path in &cfg.client_pins {
                    let found = certificates("pinned client certificate", path)?;
                    pins.extend(found.iter().map(|c| Pin::Der(c.to_vec())));
                }
                builder.with_client_cert_verifier(Arc::new(Pinned::new(pins, &provider)))
            }
            Some(path) => {
                let roots = Arc::new(ca_file("client CA file", path)?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
                    .build()
                    .map_err(|error| file_error("client CA file", path, &error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates("server certificate", &cfg.cert)?;
        check_pair(&provider, &chain, ("server certificate", &cfg.cert), ("server key", &cfg.key))?;
        let mut config = builder
            .with_single_cert(chain, private_key("server key", &cfg.key)?)
            .map_err(|error| file_error("server certificate", &cfg.cert, &error))?;
        if !cfg.client_pins.is_empty() {
            config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(ServerTls { config: Arc::new(config) })
    }
}

/// Which of the two forms of a verifier's roots: all that the system has; certificates it can't read are skipped.
fn system_roots() -> Result<RootCertStore, Error> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        return Err(Error::Settings(format!(
            "the system has no trusted certificates{why}: install the package ca-certificates, or name a CA file"
        )));
    }
    Ok(roots)
}

fn ca_file(what: &'static str, path: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(what, path)? {
        roots.add(certificate).map_err(|error| file_error(what, path, &error))?;
    }
    // Fails early what would fail at the first connection.
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots.clone()), Arc::new(ring::default_provider()))
        .build()
        .map_err(|error| file_error(what, path, &error))?;
    Ok(roots)
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(what, path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|error| file_error(what, path, &error))?;
    if found.is_empty() {
        return Err(file_error(what, path, &"holds no PEM certificate (-----BEGIN CERTIFICATE-----)"));
    }
    Ok(found)
}

fn private_key(what: &'static str, path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let pem = zeroize::Zeroizing::new(read(what, path)?);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        rustls::pki_types::pem::Error::NoItemsFound => {
            file_error(what, path, &"holds no PEM private key without password (-----BEGIN PRIVATE KEY-----)")
        }
        error => file_error(what, path, &error),
    })
}

/// Says which of the two files is wrong, and that they do not belong together.
fn check_pair(
    provider: &CryptoProvider,
    chain: &[CertificateDer<'static>],
    (cert_what, cert): (&'static str, &Path),
    (key_what, key): (&'static str, &Path),
) -> Result<(), Error> {
    let signer = provider
        .key_provider
        .load_private_key(private_key(key_what, key)?)
        .map_err(|error| file_error(key_what, key, &error))?;
    match rustls::sign::CertifiedKey::new(chain.to_vec(), signer).keys_match() {
        // Unknown: a key that can't tell its public half; rustls decides later.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(file_error(key_what, key, &format!("does not belong to the certificate {}", cert.display())))
        }
        Err(error) => Err(file_error(cert_what, cert, &error)),
    }
}

fn pins_from_hex(sums: &[String]) -> Result<Vec<Pin>, Error> {
    if sums.is_empty() {
        return Err(Error::Settings("no pinned SHA-256 sum is given".into()));
    }
    let parse = |sum: &String| {
        Pin::from_hex(sum).ok_or_else(|| {
            Error::Settings(format!(
                "{sum:?} is no SHA-256 sum: expected 64 hex digits, as `openssl x509 -noout -fingerprint -sha256` \
                 prints them"
            ))
        })
    };
    sums.iter().map(parse).collect()
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| file_error(what, path, &error))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(file_error(what, path, &"is larger than 1 MiB"));
    }
    Ok(bytes)
}

fn file_error(what: &'static str, path: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::File { what, path: path.to_owned(), reason: reason.to_string() }
}

fn half(path: &Path, have: &str, lack: &str) -> Error {
    Error::Settings(format!(
        "the client {have} {} is given without its {lack}: set both or none",
        path.display()
    ))
}

#[cfg(test)]
mod tests;

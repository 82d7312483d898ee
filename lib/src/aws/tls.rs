//! TLS settings for `ureq` from files: whom to trust, and who we are.
//!
//! Everything is checked here, since `ureq` panics on a certificate whose key does not belong to it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

/// The files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Certificates of the authorities to trust (PEM) instead of the system's.
    pub ca: Option<PathBuf>,
    /// Our certificate, then those of its issuers (PEM); goes with `key`.
    pub cert: Option<PathBuf>,
    /// Its private key (PEM, not encrypted).
    pub key: Option<PathBuf>,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One can't be read.
    #[error("cannot read {path} (the {what})")]
    Read {
        /// The file.
        path: PathBuf,
        /// What it is for.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// One doesn't hold what it should.
    #[error("{path} (the {what}): {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What it is for.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// The system has none.
    #[error(
        "no authority certificate was found on this system (on Debian: apt install ca-certificates): {0}"
    )]
    NoSystemRoots(String),
    /// Only one of the two.
    #[error("a client certificate needs both its file and its key's file")]
    HalfAnIdentity,
}

/// The settings that the files make.
///
/// # Errors
/// [`Error`] names the file.
pub fn load(files: &Files) -> Result<TlsConfig, Error> {
    let roots = match &files.ca {
        Some(path) => certificates(path, "ca-file")?,
        None => system_roots()?,
    };
    let identity = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => Some(identity(cert, key)?),
        (None, None) => None,
        _ => return Err(Error::HalfAnIdentity),
    };
    Ok(config(roots, identity))
}

/// The settings of a client that only ever speaks plain HTTP: TLS is refused, since nobody is trusted.
pub fn none() -> TlsConfig {
    config(Vec::new(), None)
}

fn config(roots: Vec<Certificate<'static>>, identity: Option<ClientCert>) -> TlsConfig {
    TlsConfig::builder()
        .root_certs(RootCerts::from(roots))
        .client_cert(identity)
        // ureq panics where it finds no provider; it is built without one of its own.
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

fn system_roots() -> Result<Vec<Certificate<'static>>, Error> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        return Err(Error::NoSystemRoots(why));
    }
    Ok(found.certs.iter().map(|c| Certificate::from_der(c).to_owned()).collect())
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), what, source })
}

fn certificates(path: &Path, what: &'static str) -> Result<Vec<Certificate<'static>>, Error> {
    let content = |why: &str| Error::Content { path: path.to_owned(), what, why: why.to_owned() };
    let mut certs = Vec::new();
    for item in parse_pem(&read(path, what)?) {
        match item {
            Ok(PemItem::Certificate(cert)) => certs.push(cert),
            Ok(_) => {}
            Err(error) => return Err(content(&error.to_string())),
        }
    }
    if certs.is_empty() { Err(content("expected certificates in PEM form, found none")) } else { Ok(certs) }
}

fn identity(cert: &Path, key: &Path) -> Result<ClientCert, Error> {
    let chain = certificates(cert, "cert-file")?;
    let pem = zeroize::Zeroizing::new(read(key, "key-file")?);
    let content = |why: String| Error::Content { path: key.to_owned(), what: "key-file", why };
    let private = PrivateKey::from_pem(&pem)
        .map_err(|_| content("expected an unencrypted private key in PEM form, found none".into()))?;
    check_pair(&chain, &pem).map_err(|why| content(format!("does not fit {}: {why}", cert.display())))?;
    Ok(ClientCert::new_with_certs(&chain, private))
}

/// Whether rustls will take the pair, by letting it try.
fn check_pair(chain: &[Certificate<'static>], key_pem: &[u8]) -> Result<(), String> {
    use rustls::pki_types::pem::PemObject as _;
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(key_pem).map_err(|e| e.to_string())?;
    let chain = chain.iter().map(|c| rustls::pki_types::CertificateDer::from(c.der().to_vec())).collect();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|e| e.to_string())?.with_root_certificates(rustls::RootCertStore::empty());
    builder.with_client_auth_cert(chain, key).map(drop).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_checked_before_ureq_sees_them() {
        let folder = std::env::temp_dir().join(format!("edge-aws-tls-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (a, b) = (
            rcgen::generate_simple_self_signed(["a".into()]).unwrap(),
            rcgen::generate_simple_self_signed(["b".into()]).unwrap(),
        );
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let cert = write("a.pem", &a.cert.pem());
        let key = write("a.key", &a.signing_key.serialize_pem());
        let other = write("b.key", &b.signing_key.serialize_pem());
        let junk = write("junk", "nothing");
        let with = |ca: &Option<PathBuf>, cert: &Option<PathBuf>, key: &Option<PathBuf>| {
            load(&Files { ca: ca.clone(), cert: cert.clone(), key: key.clone() })
                .map(drop)
                .map_err(|e| e.to_string())
        };
        assert_eq!(with(&cert, &cert, &key), Ok(()));
        assert!(with(&cert, &cert, &other).unwrap_err().contains("does not fit"));
        assert!(with(&junk, &None, &None).unwrap_err().contains("found none"));
        assert!(with(&cert, &cert, &junk).unwrap_err().contains("private key"));
        assert!(with(&cert, &cert, &None).unwrap_err().contains("both"));
        assert!(with(&Some(folder.join("no")), &None, &None).unwrap_err().contains("cannot read"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}

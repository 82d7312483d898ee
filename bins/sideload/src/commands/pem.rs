//! A self-signed certificate with its key, as both ends pin it.
//!
//! ECDSA P-256, CA:FALSE, digitalSignature, a SAN, a random serial number: what rustls, OpenSSL and Python's ssl all take.
//! Never: writes a file.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SanType, SerialNumber,
};
use time::OffsetDateTime;

use edge::cli::EX_SOFTWARE;

use crate::output::Failure;

/// Valid from so long before now, for a device whose clock is behind.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

/// Which end it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// sideloadd.
    Server,
    /// The host.
    Client,
}

/// Certificate and key, PEM.
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// PKCS#8.
    pub key: String,
}

/// Makes a pair that is valid for `days` from `now`. `addr`: where the server will be reached, if that is known.
pub fn make(end: End, days: u32, addr: Option<&str>, now: OffsetDateTime) -> Result<Pair, Failure> {
    let bug = |error: rcgen::Error| Failure::new(EX_SOFTWARE, format!("cannot make a certificate: {error}"));
    let (name, purpose) = match end {
        End::Server => ("sideloadd", ExtendedKeyUsagePurpose::ServerAuth),
        End::Client => ("sideload", ExtendedKeyUsagePurpose::ClientAuth),
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![dns(name).map_err(bug)?];
    if let (End::Server, Some(addr)) = (end, addr) {
        match addr.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(ip) => params.subject_alt_names.push(SanType::IpAddress(ip)),
            // The pin counts, not the name: one that a certificate can't hold is left out.
            Err(_) => params.subject_alt_names.extend(dns(addr)),
        }
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::from_secs(u64::from(days) * 86_400);
    params.serial_number = Some(SerialNumber::from(serial()?));
    let key = KeyPair::generate().map_err(bug)?;
    let cert = params.self_signed(&key).map_err(bug)?;
    Ok(Pair { cert: cert.pem(), key: key.serialize_pem() })
}

fn dns(name: &str) -> Result<SanType, rcgen::Error> {
    Ok(SanType::DnsName(name.to_owned().try_into()?))
}

/// 127 random bits behind a leading one: positive, and never of fewer bytes (RFC 5280, 4.1.2.2).
fn serial() -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0u8; 16];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| Failure::new(edge::cli::EX_OSERR, "the system gives no random numbers"))?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(bytes)
}

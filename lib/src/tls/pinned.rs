//! A verifier of the other end, server or client, that trusts exact certificates and nothing else.
//!
//! The handshake signature is checked by rustls' own functions, so the peer does hold the key of the pinned
//! certificate. The validity dates are read here, because the public part of webpki does not show them, and because
//! its path building refuses a self-signed CA:TRUE certificate as a server's own.

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use sha2::{Digest, Sha256};

/// One certificate that is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pin {
    /// The whole certificate.
    Der(Vec<u8>),
    /// The SHA-256 sum of the whole certificate.
    Sha256([u8; 32]),
}

impl Pin {
    /// 64 hex digits, with or without colons between the bytes.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Pin> {
        crate::text::from_hex(&text.trim().replace(':', "")).map(Pin::Sha256)
    }

    fn matches(&self, der: &[u8]) -> bool {
        match self {
            Pin::Der(pinned) => pinned == der,
            Pin::Sha256(sum) => Sha256::digest(der)[..] == sum[..],
        }
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct Pinned {
    pins: Vec<Pin>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    /// Trusts these.
    #[must_use]
    pub fn new(pins: Vec<Pin>, provider: &CryptoProvider) -> Pinned {
        Pinned { pins, algorithms: provider.signature_verification_algorithms }
    }

    /// Whether `der` is pinned and valid at `now`.
    ///
    /// # Errors
    /// `UnknownIssuer` when it is not pinned, `Expired`, `NotValidYet`, or `BadEncoding`.
    pub fn check(&self, der: &[u8], now: UnixTime) -> Result<(), CertificateError> {
        if !self.pins.iter().any(|pin| pin.matches(der)) {
            return Err(CertificateError::UnknownIssuer);
        }
        let (not_before, not_after) = validity(der).ok_or(CertificateError::BadEncoding)?;
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if seconds < not_before {
            Err(CertificateError::NotValidYet)
        } else if seconds > not_after {
            Err(CertificateError::Expired)
        } else {
            Ok(())
        }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A client is judged as a server is: the same pins, dates and signatures.
impl ClientCertVerifier for Pinned {
    /// None: a client has one certificate to show, whatever its issuer is called.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// notBefore and notAfter of an X.509 certificate (RFC 5280, 4.1) in Unix seconds.
pub(super) fn validity(der: &[u8]) -> Option<(i64, i64)> {
    let (certificate, _) = expect(der, SEQUENCE)?;
    let (mut tbs, _) = expect(certificate, SEQUENCE)?;
    if tbs.first() == Some(&VERSION) {
        tbs = expect(tbs, VERSION)?.1;
    }
    let (_serial, rest) = expect(tbs, INTEGER)?;
    let (_algorithm, rest) = expect(rest, SEQUENCE)?;
    let (_issuer, rest) = expect(rest, SEQUENCE)?;
    let (validity, _) = expect(rest, SEQUENCE)?;
    let (not_before, rest) = time(validity)?;
    let (not_after, _) = time(rest)?;
    Some((not_before, not_after))
}

fn expect(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, value, rest) = element(der)?;
    (found == tag).then_some((value, rest))
}

/// Tag, value and what follows. Lengths to 4 bytes: more than any certificate.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0usize, |sum, b| (sum << 8) | usize::from(*b)), rest)
        }
        _ => return None,
    };
    let (value, rest) = rest.split_at_checked(length)?;
    Some((tag, value, rest))
}

fn time(der: &[u8]) -> Option<(i64, &[u8])> {
    let (tag, text, rest) = element(der)?;
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let (year, text) = match (tag, text.len()) {
        // Two digits: 1950 to 2049.
        (UTC_TIME, 12) => {
            let year: i32 = text[..2].parse().ok()?;
            (year + if year >= 50 { 1900 } else { 2000 }, &text[2..])
        }
        (GENERALIZED_TIME, 14) => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let part = |at: usize| text[at..at + 2].parse::<u8>().ok();
    let month = time::Month::try_from(part(0)?).ok()?;
    let date = time::Date::from_calendar_date(year, month, part(2)?).ok()?;
    let clock = time::Time::from_hms(part(4)?, part(6)?, part(8)?.min(59)).ok()?;
    Some((time::PrimitiveDateTime::new(date, clock).assume_utc().unix_timestamp(), rest))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn certificate() -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(vec!["broker".into()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2024, 2, 29);
        params.not_after = rcgen::date_time_ymd(2051, 3, 1);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn dates_are_read_in_both_forms_and_enforced() {
        let der = certificate();
        // notBefore is a UTCTime, notAfter (2051) a GeneralizedTime.
        assert_eq!(validity(&der), Some((1_709_164_800, 2_561_241_600)));
        let pinned = Pinned::new(vec![Pin::Der(der.clone())], &rustls::crypto::ring::default_provider());
        assert_eq!(pinned.check(&der, at(1_709_164_799)), Err(CertificateError::NotValidYet));
        assert_eq!(pinned.check(&der, at(1_709_164_800)), Ok(()));
        assert_eq!(pinned.check(&der, at(2_561_241_601)), Err(CertificateError::Expired));
    }

    #[test]
    fn only_the_exact_certificate_matches() {
        let (der, other) = (certificate(), certificate());
        let sum = Sha256::digest(&der).iter().map(|b| format!("{b:02X}")).collect::<Vec<_>>();
        for pin in [
            Pin::Der(der.clone()),
            Pin::from_hex(&sum.join(":")).unwrap(),
            Pin::from_hex(&sum.concat()).unwrap(),
        ] {
            let pinned = Pinned::new(vec![pin], &rustls::crypto::ring::default_provider());
            assert_eq!(pinned.check(&der, at(1_800_000_000)), Ok(()));
            assert_eq!(pinned.check(&other, at(1_800_000_000)), Err(CertificateError::UnknownIssuer));
        }
        for bad in ["", "ab", &"g".repeat(64), &"+1".repeat(32), &"é".repeat(32)] {
            assert_eq!(Pin::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn broken_certificates_never_panic() {
        let der = certificate();
        let mut rng = fastrand::Rng::with_seed(11);
        for _ in 0..20_000 {
            let mut bad = der.clone();
            bad.truncate(rng.usize(..bad.len()));
            for _ in 0..rng.usize(..4) {
                if !bad.is_empty() {
                    let at = rng.usize(..bad.len().min(200));
                    bad[at] = rng.u8(..);
                }
            }
            let _ = validity(&bad);
        }
    }
}

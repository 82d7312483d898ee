//! What can go wrong between this host and the device, for people: each error has a cause (its `Display` and its
//! sources) and, where a person can act, a [`Error::fix`].
//!
//! Never: shows a key, or repeats its source in its own text.

use std::{io, path::PathBuf};

use rustls::{AlertDescription, CertificateError};
use serde_json::Value;

/// The step between two requests, at which nothing is under way.
pub(super) const IDLE: &str = "between two requests";

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A certificate or key file on this host can't be used.
    #[error("the certificates of this host")]
    Certificates {
        /// Where they were looked for.
        dir: PathBuf,
        /// Which file, and why.
        source: edge::tls::Error,
    },
    /// The name of the device has no address.
    #[error("the name {host:?} has no address")]
    Resolve {
        /// As configured.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// No TCP connection.
    #[error("can't connect to {address}")]
    Connect {
        /// The last address that was tried.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The two ends do not trust each other, or the other end does not speak TLS.
    #[error("TLS with {address}: {what}")]
    Tls {
        /// Whom it was with.
        address: String,
        /// What happened, in words.
        what: String,
        /// What to do.
        fix: String,
        /// As the library says it.
        source: Box<rustls::Error>,
    },
    /// The connection ended before the answer did.
    #[error("the connection to {address} ended {during}")]
    Closed {
        /// Whom it was with.
        address: String,
        /// At which step.
        during: &'static str,
        /// Why, if the system said.
        source: Option<io::Error>,
    },
    /// The device was silent for too long.
    #[error("{address} was silent for {seconds} s {during}")]
    Silent {
        /// Whom it was with.
        address: String,
        /// At which step.
        during: &'static str,
        /// How long.
        seconds: u64,
    },
    /// What was to be sent could not be read.
    #[error("can't read what is to be sent")]
    Body(#[source] io::Error),
    /// The answer is not what HTTP or `sideloadd` says.
    #[error("the answer of {address} makes no sense: {what}")]
    Protocol {
        /// Whom it came from.
        address: String,
        /// What is wrong with it.
        what: String,
    },
    /// The device answered, and the answer is no.
    #[error("{message}")]
    Refused {
        /// HTTP status, 300 to 599.
        status: u16,
        /// What the device says.
        message: String,
        /// The whole answer, `Null` if it was no JSON.
        details: Value,
    },
}

impl Error {
    /// What a person can do about it.
    #[must_use]
    pub fn fix(&self) -> Option<String> {
        match self {
            Error::Certificates { dir, .. } => Some(format!(
                "`sideload keys` makes them, `sideload migrate` adopts existing ones; they are looked for in {} \
                 (--cert-key-dir, or cert-key-dir in sideload.toml)",
                dir.display()
            )),
            Error::Resolve { .. } => {
                Some("give the device's IP address: --addr, or addr in sideload.toml".into())
            }
            Error::Connect { source, address } => Some(connect_fix(source, address)),
            Error::Tls { fix, .. } => Some(fix.clone()),
            Error::Closed { .. } => {
                Some("is sideloadd still running there? `journalctl -u sideloadd` says why it ended".into())
            }
            Error::Silent { .. } => Some(
                "check the network to the device, and whether its disk or processor is overloaded".into(),
            ),
            Error::Protocol { .. } => {
                Some("is it sideloadd that listens on this port, and of this version?".into())
            }
            Error::Refused { status: 507, .. } => {
                Some("free space on the device, `sideload status` shows it".into())
            }
            Error::Body(_) | Error::Refused { .. } => None,
        }
    }

    /// The exit code of the program.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Certificates { .. } | Error::Tls { .. } => 77,
            Error::Resolve { .. } | Error::Connect { .. } | Error::Closed { .. } | Error::Silent { .. } => 69,
            Error::Body(_) => 74,
            Error::Protocol { .. } => 76,
            Error::Refused { status: 413 | 422, .. } => 65,
            Error::Refused { status: 408 | 429 | 500.., .. } => 75,
            Error::Refused { .. } => 1,
        }
    }

    /// Whether the request may have reached the device, and what became of it is not known.
    #[must_use]
    pub fn leaves_open(&self) -> bool {
        self.is_lost_connection() && !matches!(self, Error::Closed { during: IDLE, .. })
    }

    /// Whether a new connection may help: this one ended or went silent.
    #[must_use]
    pub fn is_lost_connection(&self) -> bool {
        matches!(self, Error::Closed { .. } | Error::Silent { .. })
    }
}

fn connect_fix(source: &io::Error, address: &str) -> String {
    match source.kind() {
        io::ErrorKind::ConnectionRefused => format!(
            "the device is there but nothing listens on {address}: `systemctl status sideloadd` on it; \
             enable-sideloading = false also means that nothing listens"
        ),
        io::ErrorKind::TimedOut => {
            "nothing answers at this address: is the device on, the address right, the port open in its firewall?"
                .into()
        }
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "this host has no way to that address: check the network, and the address".into()
        }
        _ => "check the address and the port (--addr, --port)".into(),
    }
}

/// The names of the files that a TLS error may have to do with.
pub(super) struct Who<'a> {
    pub(super) address: &'a str,
    pub(super) server_cert: String,
    pub(super) client_cert: String,
}

/// Says what a TLS error means here.
pub(super) fn tls(who: &Who<'_>, source: rustls::Error) -> Error {
    let clock = "compare `date -u` on both sides (`sideload doctor` does), ";
    let (what, fix) = match &source {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => (
            format!("it shows another certificate than the one pinned in {}", who.server_cert),
            format!(
                "another device at this address, or new keys on it: put the server certificate of this device at {}",
                who.server_cert
            ),
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => (
            "its certificate has expired, by the clock of this host".into(),
            format!("{clock}or make new keys: `sideload keys`, then install both sides"),
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => (
            "its certificate is not valid yet, by the clock of this host".into(),
            format!("{clock}or wait: the certificate was made on a host whose clock is ahead"),
        ),
        rustls::Error::AlertReceived(alert) => return alerted(who, *alert, source),
        rustls::Error::InvalidMessage(_) | rustls::Error::InappropriateMessage { .. } => (
            "what answers there does not speak TLS".into(),
            "is it sideloadd that listens on this port? (--port; 8123 unless it was changed)".into(),
        ),
        rustls::Error::PeerIncompatible(_) => {
            ("the two sides have no TLS version or cipher in common".into(), "is it sideloadd there?".into())
        }
        _ => ("failed".into(), "`journalctl -u sideloadd` on the device has its side of it".into()),
    };
    Error::Tls { address: who.address.into(), what, fix, source: Box::new(source) }
}

/// The device refused this host. In TLS 1.3 this comes after the handshake, with the first answer.
fn alerted(who: &Who<'_>, alert: AlertDescription, source: rustls::Error) -> Error {
    let cert = &who.client_cert;
    let (what, fix) = match alert {
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied => (
            format!("the device does not trust the client certificate {cert}"),
            format!(
                "pin {cert} on the device (client-pins in /etc/edge/sideloadd.toml) and `systemctl reload sideloadd`; \
                 `sideload keys --device` prints what goes where"
            ),
        ),
        AlertDescription::CertificateExpired | AlertDescription::CertificateRevoked => (
            format!("the device says that the client certificate {cert} is out of date"),
            "compare `date -u` on both sides, or make new keys: `sideload keys`, then install both sides"
                .into(),
        ),
        AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure => (
            "the device got no client certificate that it can use".into(),
            format!("check {cert} and its key"),
        ),
        _ => (
            "the device ended the handshake".into(),
            "`journalctl -u sideloadd` on the device says why".to_owned(),
        ),
    };
    Error::Tls { address: who.address.into(), what, fix, source: Box::new(source) }
}

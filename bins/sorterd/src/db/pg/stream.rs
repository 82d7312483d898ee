//! The connection's bytes: TCP or a Unix socket, plain or TLS, with a deadline on every call.
//!
//! Invariants: no call lasts beyond the deadline that was set last (the look-up of a host's name excepted, which the
//! system bounds); nothing is read ahead before TLS begins.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

use super::address::{Address, Host};

/// How the connection is encrypted.
#[derive(Debug, Clone)]
pub enum Tls {
    Off,
    /// If the server can.
    Prefer(Arc<ClientConfig>),
    /// Or there is no connection.
    Require(Arc<ClientConfig>),
}

/// A socket of either kind.
#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket with a deadline.
#[derive(Debug)]
pub struct Timed {
    socket: Socket,
    deadline: Instant,
}

/// The connection.
#[derive(Debug)]
pub enum Stream {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A timeout of zero would mean none.
    if left < Duration::from_millis(1) { Err(late()) } else { Ok(left) }
}

/// The kernel says a timeout in another way.
fn timed<T>(result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| if error.kind() == io::ErrorKind::WouldBlock { late() } else { error })
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = Some(left(self.deadline)?);
        timed(match &mut self.socket {
            Socket::Tcp(tcp) => tcp.set_read_timeout(left).and_then(|()| tcp.read(buffer)),
            Socket::Unix(unix) => unix.set_read_timeout(left).and_then(|()| unix.read(buffer)),
        })
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = Some(left(self.deadline)?);
        timed(match &mut self.socket {
            Socket::Tcp(tcp) => tcp.set_write_timeout(left).and_then(|()| tcp.write(bytes)),
            Socket::Unix(unix) => unix.set_write_timeout(left).and_then(|()| unix.write(bytes)),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(timed) => timed.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(timed) => timed.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}

impl Stream {
    /// Connects, and encrypts as `tls` says, until `deadline`.
    ///
    /// # Errors
    /// What the system, the server or TLS says.
    pub fn connect(address: &Address, tls: &Tls, deadline: Instant) -> io::Result<Self> {
        let host = match &address.host {
            Host::Socket(folder) => {
                let path = folder.join(format!(".s.PGSQL.{}", address.port));
                return Ok(Self::over(UnixStream::connect(path)?, deadline));
            }
            Host::Net(host) => host,
        };
        let tcp = connect_tcp(host, address.port, deadline)?;
        // Questions and answers are short, and each waits for the other.
        tcp.set_nodelay(true)?;
        let mut timed = Timed { socket: Socket::Tcp(tcp), deadline };
        let (config, must) = match tls {
            Tls::Off => return Ok(Self::Plain(timed)),
            Tls::Prefer(config) => (config, false),
            Tls::Require(config) => (config, true),
        };
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        timed.write_all(&request)?;
        // Exactly one byte: what somebody slipped in behind it must not count as the server's.
        let mut answer = [0];
        timed.read_exact(&mut answer)?;
        match answer[0] {
            b'S' => {}
            b'N' if !must => return Ok(Self::Plain(timed)),
            b'N' => {
                return Err(io::Error::other(
                    "the server has no TLS, which sslmode asks for: switch ssl on there, or set sslmode=disable",
                ));
            }
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "this is no PostgreSQL server")),
        }
        let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
        let mut client = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
        while client.is_handshaking() {
            client.complete_io(&mut timed)?;
        }
        Ok(Self::Tls(Box::new(StreamOwned::new(client, timed))))
    }

    /// Over a socket within this machine.
    pub fn over(socket: UnixStream, deadline: Instant) -> Self {
        Self::Plain(Timed { socket: Socket::Unix(socket), deadline })
    }

    /// Every call ends at `deadline` from now on.
    pub fn set_deadline(&mut self, deadline: Instant) {
        match self {
            Self::Plain(timed) => timed.deadline = deadline,
            Self::Tls(tls) => tls.sock.deadline = deadline,
        }
    }

    /// Whether nobody on the way can read along: TLS, or within this machine.
    pub fn is_private(&self) -> bool {
        match self {
            Self::Plain(timed) => matches!(timed.socket, Socket::Unix(_)),
            Self::Tls(_) => true,
        }
    }
}

/// The first of the host's addresses that answers.
fn connect_tcp(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host's name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Settings that encrypt and believe any certificate: what `sslmode=require` means to PostgreSQL's own clients. They keep
/// off who listens, not who stands in between.
///
/// # Errors
/// In words.
pub fn unchecked() -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| format!("TLS: {error}"))?;
    let verifier = Arc::new(Unchecked(provider));
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Believes any certificate, and still checks that the server has its key.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

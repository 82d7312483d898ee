//! HTTP/1.1 over mutual TLS to a `sideloadd`, blocking, with every wait bounded.
//!
//! Owns: one connection, made anew when it was closed between two requests. Trusts exactly the pinned server
//! certificate. Bodies stream in both directions: memory does not depend on their size.
//! Never: follows redirects, uses a proxy, or sends a request twice that the device may have acted upon.

mod answer;
mod error;
mod request;
mod response;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod transport;

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use edge::tls::{ClientTls, ClientTlsConfig, Trust};
use rustls::pki_types::ServerName;

use self::{
    answer::{Framing, Head},
    request::Sent,
    transport::{Fault, Transport},
};

pub use error::Error;
pub use request::{Body, Request};
pub use response::{Answer, Lines};

/// File name of the server's certificate, as the original tool named it.
pub const SERVER_CERT: &str = "sideloading_server.cert.pem";
/// File name of the server's key (it is made on the host, and used on the device only).
pub const SERVER_KEY: &str = "sideloading_server.key.pem";
/// File name of the client's certificate.
pub const CLIENT_CERT: &str = "sideloading_client.cert.pem";
/// File name of the client's key.
pub const CLIENT_KEY: &str = "sideloading_client.key.pem";

/// The three files the client needs, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certs {
    /// The folder they are in, for error messages.
    pub dir: PathBuf,
    /// The pinned certificate of the server.
    pub server_cert: PathBuf,
    /// The client's certificate.
    pub client_cert: PathBuf,
    /// The client's private key.
    pub client_key: PathBuf,
}

impl Certs {
    /// The files in `dir`, by the original's names.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Certs {
        Certs {
            dir: dir.to_owned(),
            server_cert: dir.join(SERVER_CERT),
            client_cert: dir.join(CLIENT_CERT),
            client_key: dir.join(CLIENT_KEY),
        }
    }
}

/// Where the device is and how the two know each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Host name or IP address.
    pub addr: String,
    /// TCP port.
    pub port: u16,
    /// The files.
    pub certs: Certs,
    /// For all addresses of the name together, and once more for the TLS handshake.
    pub connect_timeout: Duration,
}

/// Bytes on TCP: what a packet capture would count as payload, TLS included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counter {
    /// To the device.
    pub sent: u64,
    /// From the device.
    pub received: u64,
}

impl std::ops::Sub for Counter {
    type Output = Counter;
    fn sub(self, earlier: Counter) -> Counter {
        Counter {
            sent: self.sent.saturating_sub(earlier.sent),
            received: self.received.saturating_sub(earlier.received),
        }
    }
}

/// Ends a client's present connection from another thread: what it waits for then fails with [`Error::Closed`], or the
/// lines of a log end.
#[derive(Debug)]
pub struct Stopper(TcpStream);

impl Stopper {
    /// Ends the connection; more than once is fine.
    pub fn stop(&self) {
        // It may be closed already, which is what was asked for.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// See the module's text.
pub struct Client {
    target: Target,
    tls: ClientTls,
    transport: Option<Transport>,
    /// Where the body of the last answer stands; a new request needs it to be over.
    body: Framing,
    /// The connection can't take a further request after this answer.
    last: bool,
    /// A request was answered on this connection.
    used: bool,
    /// Bytes of connections that are gone.
    wire_before: Counter,
}

impl Client {
    /// Reads the files and connects.
    ///
    /// # Errors
    /// [`Error::Certificates`], [`Error::Resolve`], [`Error::Connect`], [`Error::Tls`]. A device that does not trust
    /// the client's certificate says so with the first answer only (TLS 1.3).
    pub fn connect(target: &Target) -> Result<Client, Error> {
        let mut client = Client::prepare(target)?;
        client.reconnect()?;
        Ok(client)
    }

    /// Reads the files; the first request connects.
    ///
    /// # Errors
    /// [`Error::Certificates`].
    pub fn prepare(target: &Target) -> Result<Client, Error> {
        let certs = &target.certs;
        let tls = ClientTls::load(&ClientTlsConfig {
            trust: Trust::PinnedFile(certs.server_cert.clone()),
            cert: Some(certs.client_cert.clone()),
            key: Some(certs.client_key.clone()),
            server_name: None,
        })
        .map_err(|source| Error::Certificates { dir: certs.dir.clone(), source })?;
        Ok(Client {
            target: target.clone(),
            tls,
            transport: None,
            body: Framing::Done,
            last: false,
            used: false,
            wire_before: Counter::default(),
        })
    }

    /// Bytes since the client was made, over all its connections.
    #[must_use]
    pub fn wire(&self) -> Counter {
        let now = self.transport.as_ref().map(|t| t.wire).unwrap_or_default();
        Counter { sent: self.wire_before.sent + now.sent, received: self.wire_before.received + now.received }
    }

    /// The address of the other end, while connected.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.transport.as_ref().map(|t| t.peer)
    }

    /// The device as configured.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Something that ends the present connection from another thread; `None` while not connected.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn stopper(&self) -> io::Result<Option<Stopper>> {
        self.transport.as_ref().map(|t| t.socket().map(Stopper)).transpose()
    }

    /// Closes the connection; the next request makes a new one.
    pub fn close(&mut self) {
        if let Some(old) = self.transport.take() {
            self.wire_before.sent += old.wire.sent;
            self.wire_before.received += old.wire.received;
        }
        (self.body, self.last, self.used) = (Framing::Done, false, false);
    }

    /// Sends a request and reads the head of its answer. A kept-alive connection that the device closed meanwhile is
    /// replaced; a request that was sent already is sent once more only if it may be ([`Request::repeatable`]).
    ///
    /// # Errors
    /// All but [`Error::Refused`]: see [`Answer::ok`].
    pub fn request(&mut self, mut request: Request<'_>) -> Result<Answer<'_>, Error> {
        let reused = self.ready(request.continues)?;
        let head = match self.exchange(&mut request) {
            Err(Error::Closed { .. }) if reused && request.is_repeatable() => {
                log::debug!("the connection was stale: {} {} once more", request.method, request.path);
                self.reconnect()?;
                self.exchange(&mut request)
            }
            other => other,
        };
        let head = head.inspect_err(|_| self.close())?;
        Ok(Answer::new(self, head, request.silence_max))
    }

    /// Sends a request whose answer is lines without end; the client becomes their reader.
    ///
    /// # Errors
    /// As [`Client::request`], and [`Error::Refused`].
    pub fn into_lines(mut self, request: Request<'_>) -> Result<Lines, Error> {
        let silence_max = request.silence_max;
        self.request(request)?.check()?;
        Ok(Lines::new(self, silence_max))
    }

    /// An open connection that awaits a request; whether it served one before, which it must have if `continues`.
    fn ready(&mut self, continues: bool) -> Result<bool, Error> {
        let free = self.body == Framing::Done && !self.last;
        if free && let Some(transport) = &mut self.transport {
            match transport.is_fresh() {
                Ok(true) => return Ok(self.used),
                // The device refused our certificate after the handshake.
                Err(fault @ Fault::Tls(_)) if !self.used => {
                    return Err(self.lost(fault, "after the handshake"));
                }
                Ok(false) | Err(_) => {}
            }
        }
        if continues {
            return Err(self.lost(Fault::Closed(None), error::IDLE));
        }
        self.reconnect()?;
        Ok(false)
    }

    fn reconnect(&mut self) -> Result<(), Error> {
        self.close();
        let Target { addr, port, connect_timeout, .. } = &self.target;
        let socket = transport::dial(addr, *port, *connect_timeout).map_err(|error| match error {
            (host, source, true) => Error::Resolve { host, source },
            (address, source, false) => Error::Connect { address, source },
        })?;
        // The name is not checked against a pinned certificate; an invalid one must not stop us.
        let name = ServerName::try_from(addr.clone())
            .or_else(|_| ServerName::try_from("sideloadd"))
            .map_err(|error| self.nonsense(format!("no server name ({error})")))?;
        let made = Transport::handshake(socket, self.tls.config.clone(), name, *connect_timeout);
        self.transport = Some(made.map_err(|fault| self.broken(fault, "during the TLS handshake"))?);
        Ok(())
    }

    /// One attempt: request out, head in.
    fn exchange(&mut self, request: &mut Request<'_>) -> Result<Head, Error> {
        let silence_max = request.silence_max;
        let host = self.address();
        let Some(transport) = &mut self.transport else {
            return Err(self.broken(Fault::Closed(None), "before the request"));
        };
        let sent = match request::send(transport, request, &host) {
            Ok(sent) => sent,
            Err(request::Failed::Reader(error)) => return Err(Error::Body(error)),
            Err(request::Failed::Peer(fault)) => return Err(self.broken(fault, "while sending to it")),
        };
        loop {
            let head = self.head(request.method == "HEAD", silence_max)?;
            if head.status < 200 {
                continue;
            }
            // The device answered before it had read the whole body: it will not read a further request here.
            self.last = !head.keep_alive || sent != Sent::All;
            self.used = true;
            self.body = head.framing;
            return Ok(head);
        }
    }

    /// The next head.
    fn head(&mut self, head_request: bool, silence_max: Duration) -> Result<Head, Error> {
        loop {
            let Some(transport) = &mut self.transport else {
                return Err(self.broken(Fault::Closed(None), "before its answer"));
            };
            match answer::head(transport.plain(), head_request) {
                Ok(Some((head, length))) => {
                    transport.consume(length);
                    return Ok(head);
                }
                Ok(None) => {}
                Err(what) => return Err(self.nonsense(what)),
            }
            match transport.fill(silence_max) {
                Ok(true) => {}
                Ok(false) => return Err(self.broken(Fault::Closed(None), "before its answer")),
                Err(fault) => return Err(self.broken(fault, "before its answer")),
            }
        }
    }

    /// `host:port` as configured, for messages and the Host header.
    fn address(&self) -> String {
        let Target { addr, port, .. } = &self.target;
        if addr.contains(':') && !addr.starts_with('[') {
            format!("[{addr}]:{port}")
        } else {
            format!("{addr}:{port}")
        }
    }

    pub(crate) fn nonsense(&self, what: String) -> Error {
        Error::Protocol { address: self.address(), what }
    }

    /// Puts a fault in words.
    fn broken(&self, fault: Fault, during: &'static str) -> Error {
        let address = self.address();
        match fault {
            Fault::Silent(limit) => {
                Error::Silent { address, during, seconds: limit.as_secs_f64().ceil() as u64 }
            }
            Fault::Closed(source) => Error::Closed { address, during, source },
            Fault::Tls(source) => error::tls(
                &error::Who {
                    address: &address,
                    server_cert: self.target.certs.server_cert.display().to_string(),
                    client_cert: self.target.certs.client_cert.display().to_string(),
                },
                source,
            ),
        }
    }
}

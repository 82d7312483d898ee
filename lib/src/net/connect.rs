//! One attempt to reach a host: its addresses one after the other, each with its own timeout, until one accepts.
//!
//! Owns the half-open socket. What failed on the way is kept in words for the final error.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use mio::{Interest, Registry, Token, net::TcpStream};

use super::Tokens;

/// How far the attempt came.
#[derive(Debug)]
pub enum Progress {
    /// Wait for an event or the deadline.
    Pending,
    /// Connected, registered for reading and writing under this token.
    Done(TcpStream, Token, SocketAddr),
    /// All addresses failed; which and why.
    Failed(String),
}

/// See the module's text.
#[derive(Debug)]
pub struct Connector {
    addresses: std::vec::IntoIter<SocketAddr>,
    timeout: Duration,
    current: Option<Attempt>,
    failures: Vec<String>,
}

#[derive(Debug)]
struct Attempt {
    socket: TcpStream,
    token: Token,
    address: SocketAddr,
    until: Instant,
}

/// More addresses of one name than this are not tried.
const ADDRESSES_MAX: usize = 8;

impl Connector {
    /// `timeout` is for each address. Call [`Connector::advance`] to begin.
    #[must_use]
    pub fn new(mut addresses: Vec<SocketAddr>, timeout: Duration) -> Connector {
        addresses.truncate(ADDRESSES_MAX);
        Connector { addresses: addresses.into_iter(), timeout, current: None, failures: Vec::new() }
    }

    /// The token of the socket that is being connected.
    #[must_use]
    pub fn token(&self) -> Option<Token> {
        self.current.as_ref().map(|a| a.token)
    }

    /// When the current address is given up.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.current.as_ref().map(|a| a.until)
    }

    /// Looks at the current attempt (after an event of its token, or its deadline) and begins the next if it failed.
    pub fn advance(&mut self, registry: &Registry, now: Instant) -> Progress {
        if let Some(attempt) = self.current.take() {
            match outcome(&attempt.socket) {
                Ok(true) => return Progress::Done(attempt.socket, attempt.token, attempt.address),
                Ok(false) if now < attempt.until => {
                    self.current = Some(attempt);
                    return Progress::Pending;
                }
                Ok(false) => {
                    self.failed(
                        attempt.address,
                        &format!("no answer within {} s", self.timeout.as_secs_f32()),
                    );
                }
                Err(error) => self.failed(attempt.address, &error.to_string()),
            }
        }
        self.begin_next(registry, now)
    }

    fn begin_next(&mut self, registry: &Registry, now: Instant) -> Progress {
        while let Some(address) = self.addresses.next() {
            match open(address, registry) {
                Ok((socket, token)) => {
                    self.current = Some(Attempt { socket, token, address, until: now + self.timeout });
                    return Progress::Pending;
                }
                Err(error) => self.failed(address, &error.to_string()),
            }
        }
        Progress::Failed(std::mem::take(&mut self.failures).join("; "))
    }

    fn failed(&mut self, address: SocketAddr, reason: &str) {
        self.failures.push(format!("{address}: {reason}"));
    }
}

fn open(address: SocketAddr, registry: &Registry) -> io::Result<(TcpStream, Token)> {
    let mut socket = TcpStream::connect(address)?;
    let token = Tokens::next();
    registry.register(&mut socket, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok((socket, token))
}

/// `Ok(false)`: still under way.
fn outcome(socket: &TcpStream) -> io::Result<bool> {
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    match socket.peer_addr() {
        Ok(_) => super::tune(socket).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(connector: &mut Connector, poll: &mut mio::Poll) -> Progress {
        let mut events = mio::Events::with_capacity(8);
        let mut progress = connector.advance(poll.registry(), Instant::now());
        let give_up = Instant::now() + Duration::from_secs(10);
        while matches!(progress, Progress::Pending) && Instant::now() < give_up {
            poll.poll(&mut events, Some(Duration::from_millis(20))).unwrap();
            progress = connector.advance(poll.registry(), Instant::now());
        }
        progress
    }

    #[test]
    fn the_next_address_is_tried_after_a_refusal() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let refused = e2e::net::local(e2e::net::free_port());
        let mut poll = mio::Poll::new().unwrap();
        let mut connector = Connector::new(vec![refused, good], Duration::from_secs(5));
        assert!(matches!(drive(&mut connector, &mut poll), Progress::Done(_, _, at) if at == good));
    }

    #[test]
    fn a_silent_address_costs_its_timeout_and_all_failures_are_named() {
        let refused = e2e::net::local(e2e::net::free_port());
        // A full backlog drops further SYNs: the one way to a silent address without leaving the machine.
        let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        silent.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        silent.listen(0).unwrap();
        let silent_at = silent.local_addr().unwrap().as_socket().unwrap();
        let fill: Vec<_> = (0..4).map(|_| TcpStream::connect(silent_at).unwrap()).collect();
        std::thread::sleep(Duration::from_millis(100));
        let mut poll = mio::Poll::new().unwrap();
        let mut connector = Connector::new(vec![silent_at, refused], Duration::from_millis(200));
        let Progress::Failed(why) = drive(&mut connector, &mut poll) else { panic!("must fail") };
        assert!(why.contains(&format!("{silent_at}: no answer within 0.2 s")), "{why}");
        assert!(why.contains(&format!("{refused}: ")) && why.contains("refused"), "{why}");
        drop(fill);
    }
}

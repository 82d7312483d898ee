//! A TCP proxy between a daemon and its peer that can misbehave: cut, refuse, stall, delay.
//!
//! One thread accepts; each connection has two threads a direction (read, and write when due). All end
//! with the proxy or with the connection.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[derive(Default)]
struct State {
    refuse: AtomicBool,
    stall: AtomicBool,
    reset: AtomicBool,
    closed: AtomicBool,
    delay_us: AtomicU64,
    accepted: AtomicU64,
    passed: AtomicU64,
    open: Mutex<Vec<TcpStream>>,
}

impl State {
    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A running proxy.
pub struct Proxy {
    /// Where it listens (127.0.0.1).
    pub port: u16,
    state: Arc<State>,
}

impl Proxy {
    /// Listens on a free port and passes everything on to the target.
    pub fn start(target: u16) -> Proxy {
        Proxy::to(crate::net::local(target))
    }

    /// The same for any address.
    pub fn to(target: SocketAddr) -> Proxy {
        let listener = crate::net::listen();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.closed.load(Ordering::Relaxed) {
                    return;
                }
                shared.accepted.fetch_add(1, Ordering::Relaxed);
                if !shared.refuse.load(Ordering::Relaxed) {
                    // A target that is away looks to the client like a connection closed at once.
                    let _ = connect(client, target, &shared);
                    // Refused in the meantime: this one came too late to be cut with the others.
                    if shared.refuse.load(Ordering::Relaxed) {
                        shared.cut();
                    }
                }
            }
        });
        Proxy { port, state }
    }

    /// Closes all open connections, both sides, at once.
    pub fn cut(&self) {
        self.state.cut();
    }

    /// Ends all open connections as a peer does that crashed: by a reset, not by an orderly end. For this proxy's last act.
    pub fn reset(&self) {
        self.state.reset.store(true, Ordering::Relaxed);
        for stream in self.state.open.lock().unwrap().drain(..) {
            let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
            // Ends the threads' reading and says nothing to the peer; the last one to close the socket does.
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    /// Whether new connections are closed at once; turning it on also cuts the open ones.
    pub fn refuse(&self, on: bool) {
        self.state.refuse.store(on, Ordering::Relaxed);
        if on {
            self.cut();
        }
    }

    /// Whether bytes stop flowing while the connections stay open.
    pub fn stall(&self, on: bool) {
        self.state.stall.store(on, Ordering::Relaxed);
    }

    /// Delays every byte this long in each direction (half the round trip).
    pub fn delay(&self, one_way: Duration) {
        self.state.delay_us.store(one_way.as_micros() as u64, Ordering::Relaxed);
    }

    /// Bytes passed on so far, both directions together.
    pub fn passed(&self) -> u64 {
        self.state.passed.load(Ordering::Relaxed)
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.state.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Relaxed);
        self.cut();
        // Wakes the accepting thread, which then sees that it is over.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn connect(client: TcpStream, target: SocketAddr, state: &Arc<State>) -> std::io::Result<()> {
    let server = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    {
        let mut open = state.open.lock().unwrap();
        // Connections that ended long ago are forgotten here, lest descriptors pile up.
        open.retain(|stream| stream.peer_addr().is_ok());
        open.push(client.try_clone()?);
        open.push(server.try_clone()?);
    }
    direction(client.try_clone()?, server.try_clone()?, state.clone());
    direction(server, client, state.clone());
    Ok(())
}

/// Reads on one thread, writes on another when the delay has passed, so that delay does not cost rate.
fn direction(from: TcpStream, to: TcpStream, state: Arc<State>) {
    let (sender, receiver) = sync_channel::<(Instant, Vec<u8>)>(4096);
    let shared = state.clone();
    std::thread::spawn(move || read_all(from, &sender, &state));
    std::thread::spawn(move || {
        let mut to = to;
        for (due, bytes) in receiver {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            while shared.stall.load(Ordering::Relaxed) && !shared.closed.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            if to.write_all(&bytes).is_err() {
                break;
            }
            shared.passed.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        if !shared.reset.load(Ordering::Relaxed) {
            let _ = to.shutdown(Shutdown::Both);
        }
    });
}

fn read_all(mut from: TcpStream, sender: &SyncSender<(Instant, Vec<u8>)>, state: &State) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n) = from.read(&mut buffer) {
        let due = Instant::now() + Duration::from_micros(state.delay_us.load(Ordering::Relaxed));
        if n == 0 || sender.send((due, buffer[..n].to_vec())).is_err() {
            return;
        }
    }
}

/// A server that answers every connection with bytes of its own choosing: nonsense from `answer(n)`,
/// n counting the connections, sent as soon as the peer has said something.
pub fn nonsense(mut answer: impl FnMut(u64) -> Vec<u8> + Send + 'static) -> u16 {
    let listener = crate::net::listen();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for (n, client) in listener.incoming().flatten().enumerate() {
            let bytes = answer(n as u64);
            std::thread::spawn(move || {
                let mut client = client;
                let mut heard = [0; 4096];
                let _ = client.set_read_timeout(Some(Duration::from_secs(2)));
                let _ = client.read(&mut heard);
                let _ = client.write_all(&bytes);
                // Reads on for a moment: closing with unread bytes would be a reset, another fault.
                let _ = client.set_read_timeout(Some(Duration::from_millis(100)));
                while client.read(&mut heard).is_ok_and(|n| n > 0) {}
            });
        }
    });
    port
}

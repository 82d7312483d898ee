//! A TLS server that does what a test's script says, connection by connection.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

use super::{CLIENT_CERT, CLIENT_KEY, Certs, SERVER_CERT, SERVER_KEY, Target};

/// A folder of its own, removed at the end.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Folder {
        let dir = std::env::temp_dir().join(format!("sideload-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Folder(dir.canonicalize().unwrap())
    }
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Self-signed, CA:TRUE, a name and nothing else: as `openssl req -x509` makes them.
pub(crate) fn make_pair(dir: &Path, cert: &str, key: &str, edit: impl FnOnce(&mut CertificateParams)) {
    let pair = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    edit(&mut params);
    let made = params.self_signed(&pair).unwrap();
    fs::write(dir.join(cert), made.pem()).unwrap();
    fs::write(dir.join(key), pair.serialize_pem()).unwrap();
}

/// One connection, the server's side.
pub(crate) struct Peer {
    pub(crate) stream: BufReader<StreamOwned<ServerConnection, TcpStream>>,
}

/// A request as it was read.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
}

impl Peer {
    /// Request line and headers; `None` when the client has gone.
    pub(crate) fn head(&mut self) -> Option<Seen> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            match self.stream.read_line(&mut line) {
                Ok(0) | Err(_) => return None,
                Ok(_) if line.trim_end().is_empty() => break,
                Ok(_) => lines.push(line.trim_end().to_owned()),
            }
        }
        let line = lines.remove(0);
        Some(Seen { line, headers: lines, body: Vec::new() })
    }
    /// A whole request.
    pub(crate) fn request(&mut self) -> Option<Seen> {
        let seen = self.head()?;
        self.body(seen)
    }
    /// The rest of a request.
    pub(crate) fn body(&mut self, mut seen: Seen) -> Option<Seen> {
        let value = |name: &str| {
            let found = seen.headers.iter().find_map(|h| h.strip_prefix(name));
            found.map(|v| v.trim().to_owned())
        };
        if let Some(length) = value("Content-Length:") {
            seen.body.resize(length.parse().unwrap(), 0);
            self.stream.read_exact(&mut seen.body).ok()?;
        } else if value("Transfer-Encoding:").is_some() {
            loop {
                let mut line = String::new();
                self.stream.read_line(&mut line).ok()?;
                let size = usize::from_str_radix(line.trim_end(), 16).ok()?;
                let old = seen.body.len();
                seen.body.resize(old + size + 2, 0);
                self.stream.read_exact(&mut seen.body[old..]).ok()?;
                seen.body.truncate(old + size);
                if size == 0 {
                    break;
                }
            }
        }
        Some(seen)
    }
    pub(crate) fn send(&mut self, text: impl AsRef<[u8]>) {
        // The client may be gone, which is what some tests are about.
        let _ = self.stream.get_mut().write_all(text.as_ref());
        let _ = self.stream.get_mut().flush();
    }
    pub(crate) fn json(&mut self, status: u16, json: &str) {
        self.send(format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{json}", json.len()));
    }
    /// Ends TLS as it should be ended.
    pub(crate) fn close_notify(&mut self) {
        let stream = self.stream.get_mut();
        stream.conn.send_close_notify();
        let _ = stream.flush();
    }
}

/// The server.
pub(crate) struct Server {
    pub(crate) folder: Folder,
    pub(crate) target: Target,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `connections` connections one after the other by `script(peer, number)`.
    pub(crate) fn start(
        name: &str,
        connections: usize,
        script: impl FnMut(&mut Peer, usize) + Send + 'static,
    ) -> Server {
        let folder = certificates(name);
        let config = Server::config(&folder.0, false);
        Server::with(folder, config, connections, script)
    }

    pub(crate) fn with(
        folder: Folder,
        config: ServerConfig,
        connections: usize,
        mut script: impl FnMut(&mut Peer, usize) + Send + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let config = Arc::new(config);
        let thread = std::thread::spawn(move || {
            for number in 0..connections {
                let mut fds = [PollFd::new(&listener, PollFlags::IN)];
                let patience = Timespec { tv_sec: 30, tv_nsec: 0 };
                assert_eq!(rustix::event::poll(&mut fds, Some(&patience)), Ok(1), "connection {number}");
                let socket = listener.accept().unwrap().0;
                // An answer must not wait for an acknowledgement when the connection is reset after it.
                socket.set_nodelay(true).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                let stream = StreamOwned::new(ServerConnection::new(config.clone()).unwrap(), socket);
                script(&mut Peer { stream: BufReader::new(stream) }, number);
            }
        });
        let target = Target {
            addr: "127.0.0.1".into(),
            port,
            certs: Certs::in_dir(&folder.0),
            connect_timeout: Duration::from_secs(5),
        };
        Server { folder, target, thread: Some(thread) }
    }

    /// With `strangers`, a client must show a certificate of a CA that nobody has.
    pub(crate) fn config(dir: &Path, strangers: bool) -> ServerConfig {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if strangers {
            make_pair(dir, "stranger.pem", "stranger.key", |_| {});
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(dir.join("stranger.pem")).unwrap()).unwrap();
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap(),
            )
        } else {
            builder.with_no_client_auth()
        };
        let chain = vec![CertificateDer::from_pem_file(dir.join(SERVER_CERT)).unwrap()];
        builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(dir.join(SERVER_KEY)).unwrap()).unwrap()
    }

    /// Waits for the script's end; its panics are the test's.
    pub(crate) fn join(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A folder with the certificates of both sides.
pub(crate) fn certificates(name: &str) -> Folder {
    let folder = Folder::new(name);
    make_pair(&folder.0, SERVER_CERT, SERVER_KEY, |_| {});
    make_pair(&folder.0, CLIENT_CERT, CLIENT_KEY, |_| {});
    folder
}

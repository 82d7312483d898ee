//! TLS between the own streams over loopback, and what is said about bad files.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use mio::{Interest, Poll, Token, net::TcpStream};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;
use crate::net::{InBuf, OutBuf, ReadOutcome, Stream};

/// A folder of its own, removed at the end.
struct Files(PathBuf);

impl Files {
    fn new(name: &str) -> Files {
        let dir = std::env::temp_dir().join(format!("edge-tls-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        Files(dir)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Pki {
    files: Files,
    ca: PathBuf,
    server: ServerTlsConfig,
    client_cert: PathBuf,
    client_key: PathBuf,
    lone: ServerTlsConfig,
}

/// A CA with a server and a client certificate, and a self-signed CA:TRUE server certificate for another name.
fn pki(name: &str) -> Pki {
    let files = Files::new(name);
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_cert = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let leaf = |who: &str| {
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec![who.into()]).unwrap().signed_by(&key, &issuer).unwrap();
        (
            files.write(&format!("{who}.pem"), &cert.pem()),
            files.write(&format!("{who}.key"), &key.serialize_pem()),
        )
    };
    let (cert, key) = leaf("localhost");
    let (client_cert, client_key) = leaf("device");
    let ca = files.write("ca.pem", &ca_cert.pem());
    let lone_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["elsewhere".into()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let lone_cert = params.self_signed(&lone_key).unwrap();
    let lone = ServerTlsConfig {
        cert: files.write("lone.pem", &lone_cert.pem()),
        key: files.write("lone.key", &lone_key.serialize_pem()),
        client_ca: None,
        client_pins: Vec::new(),
    };
    Pki {
        server: ServerTlsConfig { cert, key, client_ca: None, client_pins: Vec::new() },
        files,
        ca,
        client_cert,
        client_key,
        lone,
    }
}

fn trust(trust: Trust) -> ClientTlsConfig {
    ClientTlsConfig { trust, cert: None, key: None, server_name: None }
}

/// Sends `size` bytes each way; what the client's side said, or both sides' end result.
fn talk(client: &ClientTlsConfig, server: &ServerTlsConfig, size: usize) -> Result<(), crate::net::Error> {
    let (client, server) = (ClientTls::load(client).unwrap(), ServerTls::load(server).unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    let mut poll = Poll::new().unwrap();
    let wrap = |socket: std::net::TcpStream, token: usize| {
        socket.set_nonblocking(true).unwrap();
        let mut socket = TcpStream::from_std(socket);
        poll.registry().register(&mut socket, Token(token), Interest::READABLE | Interest::WRITABLE).unwrap();
        socket
    };
    let near = Stream::tls_client(wrap(near, 0), &client, "localhost")?;
    let far = Stream::tls_server(wrap(far, 1), &server).unwrap();
    let mut streams = [near, far];
    let (mut outs, mut ins) = (<[OutBuf; 2]>::default(), <[InBuf; 2]>::default());
    let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
    outs.iter_mut().for_each(|out| out.vec().extend_from_slice(&data));
    let mut events = mio::Events::with_capacity(8);
    let give_up = Instant::now() + Duration::from_secs(20);
    while ins.iter().any(|i| i.len() < size) {
        assert!(Instant::now() < give_up, "stuck at {} and {} bytes", ins[0].len(), ins[1].len());
        poll.poll(&mut events, Some(Duration::from_millis(50))).unwrap();
        for event in &events {
            streams[event.token().0].ready(event);
        }
        // The server first, so that its refusal of a client certificate reaches the client.
        for side in [1, 0] {
            let outcome = streams[side].read(&mut ins[side], 100_000);
            let flushed = streams[side].flush(&mut outs[side]);
            match (side, outcome, flushed) {
                (0, Err(error), _) | (0, _, Err(error)) => return Err(error),
                (0, Ok(ReadOutcome::Eof), _) => return Err(std::io::Error::other("closed").into()),
                _ => {}
            }
        }
    }
    assert!(ins.iter().all(|i| i.bytes() == data));
    Ok(())
}

#[test]
fn a_ca_a_pin_and_a_client_certificate_work() {
    let p = pki("good");
    talk(&trust(Trust::Ca(p.ca.clone())), &p.server, 3 << 20).unwrap();
    // The name does not match and it is a CA: only the pin counts.
    talk(&trust(Trust::PinnedFile(p.lone.cert.clone())), &p.lone, 10).unwrap();
    let der = certificates("x", &p.lone.cert).unwrap();
    let sum: String =
        <sha2::Sha256 as sha2::Digest>::digest(&der[0]).iter().map(|b| format!("{b:02x}")).collect();
    talk(&trust(Trust::PinnedSha256(vec![sum])), &p.lone, 10).unwrap();
    let mutual = ServerTlsConfig { client_ca: Some(p.ca.clone()), ..p.server.clone() };
    let known = ClientTlsConfig {
        cert: Some(p.client_cert.clone()),
        key: Some(p.client_key.clone()),
        ..trust(Trust::Ca(p.ca.clone()))
    };
    talk(&known, &mutual, 10).unwrap();
    let refused = talk(&trust(Trust::Ca(p.ca.clone())), &mutual, 10).unwrap_err();
    assert!(refused.to_string().contains("ertificate"), "{refused}");
}

#[test]
fn strangers_are_refused() {
    let p = pki("bad");
    let error = talk(&trust(Trust::Ca(p.ca.clone())), &p.lone, 10).unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    let error = talk(&trust(Trust::PinnedFile(p.server.cert.clone())), &p.lone, 10).unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
    let named = ClientTlsConfig { server_name: Some("other".into()), ..trust(Trust::Ca(p.ca.clone())) };
    let error = talk(&named, &p.server, 10).unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");
}

#[test]
fn bad_files_are_named() {
    let p = pki("files");
    let missing = p.files.0.join("missing.pem");
    let empty = p.files.write("empty.pem", "nothing here");
    let says = |cfg: &ClientTlsConfig, parts: &[&str]| {
        let text = ClientTls::load(cfg).unwrap_err().to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    };
    says(&trust(Trust::Ca(missing)), &["CA file", "missing.pem", "No such file"]);
    says(&trust(Trust::Ca(empty.clone())), &["empty.pem", "holds no PEM certificate"]);
    says(&trust(Trust::PinnedFile(empty)), &["pinned certificate", "empty.pem"]);
    says(&trust(Trust::PinnedSha256(vec!["12".into()])), &["64 hex digits"]);
    let base = trust(Trust::Ca(p.ca.clone()));
    says(
        &ClientTlsConfig { cert: Some(p.client_cert.clone()), ..base.clone() },
        &["device.pem", "without its key"],
    );
    let mixed =
        ClientTlsConfig { cert: Some(p.client_cert.clone()), key: Some(p.lone.key.clone()), ..base.clone() };
    says(&mixed, &["lone.key", "does not belong to", "device.pem"]);
    let swapped =
        ClientTlsConfig { cert: Some(p.client_key.clone()), key: Some(p.client_cert.clone()), ..base };
    says(&swapped, &["device.key", "holds no PEM certificate"]);
}

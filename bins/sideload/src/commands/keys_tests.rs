//! The keys, looked at as rustls, OpenSSL and Python do.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use edge::tls::{ClientTls, ClientTlsConfig, ServerTls, ServerTlsConfig, Trust};

use super::*;
use crate::config::Overrides;
use crate::scratch::Scratch;

const ALL: [&str; 4] = [SERVER_CERT, SERVER_KEY, CLIENT_CERT, CLIENT_KEY];

fn settings(dir: &Path) -> Settings {
    let flags = Overrides {
        cert_key_dir: Some(dir.to_owned()),
        addr: Some("10.0.0.5".into()),
        ..Overrides::default()
    };
    Settings::load(Path::new("/"), &flags).unwrap()
}

fn plain() -> Wanted<'static> {
    Wanted { expiry_days: 30, app_src_dir: None, device: None, force: false }
}

fn mode(path: PathBuf) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// A program's output, or `None` when it is not installed.
fn output(program: &str, args: &[&str], dir: &Path) -> Option<String> {
    match Command::new(program).args(args).current_dir(dir).output() {
        Ok(out) => {
            let all = [out.stdout, out.stderr].concat();
            let text = String::from_utf8_lossy(&all).into_owned();
            assert!(out.status.success(), "{program} {args:?}: {text}");
            Some(text)
        }
        Err(_) => {
            println!("skipped: {program}: it is not installed");
            None
        }
    }
}

#[test]
fn keys_are_private_pairs_and_never_overwritten() {
    let scratch = Scratch::new("keys");
    let dir = scratch.path().join("new");
    let src = scratch.path().join("src");
    std::fs::create_dir(&src).unwrap();
    let reply = run(&settings(&dir), &Wanted { app_src_dir: Some(&src), ..plain() }).unwrap();
    assert!(reply.text.contains("valid until 2"), "{}", reply.text);
    assert_eq!(ALL.map(|name| mode(dir.join(name))), [0o644, 0o600, 0o644, 0o600]);
    assert_eq!((mode(src.join(SERVER_KEY)), src.join(CLIENT_KEY).exists()), (0o600, false));
    for name in [SERVER_CERT, SERVER_KEY, CLIENT_CERT] {
        assert_eq!(std::fs::read(src.join(name)).unwrap(), std::fs::read(dir.join(name)).unwrap());
    }
    let before = std::fs::read(dir.join(SERVER_KEY)).unwrap();
    let failure = run(&settings(&dir), &plain()).unwrap_err();
    assert_eq!((failure.code, failure.fix.is_some()), (73, true));
    // One file alone is enough to stop it.
    for name in &ALL[..3] {
        std::fs::remove_file(dir.join(name)).unwrap();
    }
    assert_eq!(run(&settings(&dir), &plain()).unwrap_err().code, 73);
    run(&settings(&dir), &Wanted { force: true, ..plain() }).unwrap();
    assert_ne!(before, std::fs::read(dir.join(SERVER_KEY)).unwrap());
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 4, "no temporary file is left");
}

#[test]
fn rustls_takes_them_and_they_end_when_asked() {
    let scratch = Scratch::new("keys-rustls");
    let dir = scratch.path();
    run(&settings(dir), &Wanted { expiry_days: 3, ..plain() }).unwrap();
    ServerTls::load(&ServerTlsConfig {
        cert: dir.join(SERVER_CERT),
        key: dir.join(SERVER_KEY),
        client_ca: None,
        client_pins: vec![dir.join(CLIENT_CERT)],
    })
    .unwrap();
    ClientTls::load(&ClientTlsConfig {
        trust: Trust::PinnedFile(dir.join(SERVER_CERT)),
        cert: Some(dir.join(CLIENT_CERT)),
        key: Some(dir.join(CLIENT_KEY)),
        server_name: None,
    })
    .unwrap();
    let now = OffsetDateTime::now_utc().unix_timestamp();
    for name in [SERVER_CERT, CLIENT_CERT] {
        let facts = &edge::tls::facts("certificate", &dir.join(name)).unwrap()[0];
        assert!((facts.not_after - now - 3 * 86_400).abs() < 60, "{}", facts.not_after - now);
        assert!(facts.not_before < now);
    }
}

#[test]
fn openssl_takes_them() {
    let scratch = Scratch::new("keys-openssl");
    let dir = scratch.path();
    run(&settings(dir), &plain()).unwrap();
    let mut serials = Vec::new();
    for (name, purpose) in [(SERVER_CERT, "sslserver"), (CLIENT_CERT, "sslclient")] {
        let verify = ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", name, name];
        let Some(text) = output("openssl", &verify, dir) else { return };
        assert!(text.contains(": OK"), "{text}");
        let text = output("openssl", &["x509", "-in", name, "-noout", "-text"], dir).unwrap();
        for part in ["CA:FALSE", "Digital Signature", "DNS:sideload", "prime256v1", "ecdsa-with-SHA256"] {
            assert!(text.contains(part), "no {part} in {text}");
        }
        assert_eq!(text.contains("IP Address:10.0.0.5"), name == SERVER_CERT);
        serials.push(output("openssl", &["x509", "-in", name, "-noout", "-serial"], dir).unwrap());
    }
    assert_ne!(serials[0], serials[1]);
    assert!(serials.iter().all(|serial| serial.trim().len() == "serial=".len() + 32), "{serials:?}");
}

#[test]
fn pythons_ssl_takes_them_at_both_ends() {
    let scratch = Scratch::new("keys-python");
    let dir = scratch.path();
    run(&settings(dir), &plain()).unwrap();
    let script = "
import socket, ssl, threading
def context(side, own, peer):
    c = ssl.SSLContext(side)
    c.check_hostname = False
    c.verify_mode = ssl.CERT_REQUIRED
    c.load_cert_chain(f'sideloading_{own}.cert.pem', f'sideloading_{own}.key.pem')
    c.load_verify_locations(f'sideloading_{peer}.cert.pem')
    c.verify_flags |= ssl.VERIFY_X509_STRICT
    return c
a, b = socket.socketpair()
def serve():
    s = context(ssl.PROTOCOL_TLS_SERVER, 'server', 'client').wrap_socket(b, server_side=True)
    s.sendall(s.recv(9))
t = threading.Thread(target=serve)
t.start()
s = context(ssl.PROTOCOL_TLS_CLIENT, 'client', 'server').wrap_socket(a, server_hostname='x')
s.sendall(b'there')
print(s.version(), s.recv(9))
t.join()
";
    if let Some(text) = output("python3", &["-c", script], dir) {
        assert!(text.contains("TLSv1.3 b'there'"), "{text}");
    }
}

#[test]
fn the_way_onto_the_device_is_shell_that_can_be_pasted() {
    let scratch = Scratch::new("keys-device");
    let dir = scratch.path();
    let wanted = Wanted { device: Some("root@cam"), ..plain() };
    let made = run(&settings(dir), &wanted).unwrap();
    let again = run(&settings(dir), &wanted).unwrap();
    assert!(made.text.ends_with(&again.text) && again.text.contains("root@cam:"), "{}", again.text);
    assert_eq!((made.json["made"].as_bool(), again.json["made"].as_bool()), (Some(true), Some(false)));
    let all = commands(Path::new("/tmp/my keys"), "root@cam; reboot").join("\n");
    assert!(all.contains("'/tmp/my keys/sideloading_server.cert.pem'") && all.contains("'root@cam; reboot'"));
    assert!(!all.contains(CLIENT_KEY));
    assert_eq!(quoted("it's"), r"'it'\''s'");
}

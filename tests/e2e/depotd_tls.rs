//! `depotd serve` with TLS of its own: the same answers, new certificates by a reload, and nobody without TLS.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::depot::Depot;
use e2e::scratch::Scratch;
use e2e::{env, net};
use rustix::process::Signal;

const OS: &str = "/package?cpuArch=armv8";

/// A certificate for 127.0.0.1 and its key, as `cert.pem` and `key.pem`; its own authority.
fn certificate(dir: &Path, name: &str) {
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    std::fs::write(dir.join("cert.pem"), cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

/// By curl, trusting `authority` alone: status and body; its error if it takes no answer.
fn get(scratch: &Scratch, url: &str, authority: &Path, arguments: &[&str]) -> Result<(u16, Vec<u8>), String> {
    let into = scratch.join("fetched");
    let _ = std::fs::remove_file(&into);
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "30", "-w", "%{http_code}", "--cacert"]).arg(authority);
    let output = curl.args(arguments).arg("-o").arg(&into).arg(url).output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let status = String::from_utf8_lossy(&output.stdout).parse().unwrap();
    Ok((status, std::fs::read(into).unwrap_or_default()))
}

#[test]
fn depotd_answers_the_same_over_tls() {
    let scratch = Scratch::new("depot-tls");
    let depot = Depot::new(&scratch, "depot");
    depot.done(&["sample", "--size", "3000000", "--key", "release.key"]);
    let keys = scratch.dir("keys");
    certificate(&keys, "first");
    let first = scratch.write("first.pem", std::fs::read(keys.join("cert.pem")).unwrap());
    let at = keys.display();
    let tables = format!("[tls]\ncert-file = \"{at}/cert.pem\"\nkey-file = \"{at}/key.pem\"\n");
    let (mut secure, plain_base) = depot.serve(&scratch, "secure", &tables);
    let (_plain, plain) = depot.serve(&scratch, "plain", "");
    let base = plain_base.replace("http://", "https://");
    let of =
        |path: &str, arguments: &[&str]| get(&scratch, &format!("{base}{path}"), &first, arguments).unwrap();
    let same = |path: &str, arguments: &[&str]| {
        let clear = get(&scratch, &format!("{plain}{path}"), &first, arguments).unwrap();
        assert!(of(path, arguments) == clear, "{path} {arguments:?}");
        clear
    };
    // A head has the second of its making in it, which the other one's need not be.
    let timeless = |(status, head): (u16, Vec<u8>)| {
        let head = String::from_utf8(head).unwrap();
        (
            status,
            head.lines().filter(|line| !line.starts_with("Date: ")).map(str::to_owned).collect::<Vec<_>>(),
        )
    };
    let details = same(&format!("{OS}&payloadType=metadataOnly"), &[]);
    let details: serde_json::Value = serde_json::from_slice(&details.1).unwrap();
    let blob = details["os_armv8"]["download"].as_str().unwrap();
    // Sent while it is made, and from the disk; and what a file is read for, since TLS has to see it.
    assert_eq!(same(OS, &[]).0, 200);
    assert_eq!(same(OS, &[]).0, 200);
    assert_eq!(same(blob, &[]).1.len(), 3_000_000);
    let part = same(blob, &["-H", "Range: bytes=1000000-2999998"]);
    assert_eq!((part.0, part.1.len()), (206, 1_999_999));
    let md5 = format!("If-None-Match: {}", details["os_armv8"]["md5"].as_str().unwrap());
    assert_eq!(same(OS, &["-H", &md5]).0, 304);
    assert_eq!(same("/package", &[]).0, 400);
    let head = timeless(get(&scratch, &format!("{plain}{blob}"), &first, &["-I"]).unwrap());
    assert_eq!(timeless(of(blob, &["-I"])), head);
    assert!(head.0 == 200 && head.1.iter().any(|line| line == "Content-Length: 3000000"), "{head:?}");

    // Nobody without TLS, nobody who trusts others, and who is silent holds nobody up.
    let port: u16 = base.rsplit(':').next().unwrap().parse().unwrap();
    let _silent: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(net::local(port)).unwrap()).collect();
    let mut clear = std::net::TcpStream::connect(net::local(port)).unwrap();
    clear.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    clear.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = clear.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    certificate(&keys, "second");
    let second = scratch.write("second.pem", std::fs::read(keys.join("cert.pem")).unwrap());
    assert!(get(&scratch, &format!("{base}/"), &second, &[]).is_err());

    // A reload takes the new pair; one that does not fit leaves the old one in force.
    secure.process().signal(Signal::HUP);
    let taken = || get(&scratch, &format!("{base}/"), &second, &[]).ok();
    env::wait_for("the new certificate", Duration::from_secs(60), taken);
    assert!(get(&scratch, &format!("{base}/"), &first, &[]).is_err());
    std::fs::write(keys.join("key.pem"), "no key").unwrap();
    secure.process().signal(Signal::HUP);
    secure.wait_log("the old configuration stays in force", Duration::from_secs(60));
    assert_eq!(get(&scratch, &format!("{base}/"), &second, &[]).unwrap().0, 200);
    secure.check_log();
    assert!(secure.term().success());
}

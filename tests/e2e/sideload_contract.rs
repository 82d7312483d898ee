//! `sideloadd` seen by clients that know its contract only: Python's http.client and ssl, curl, openssl's certificates.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::env::{self, wait_for};
use e2e::need;
use e2e::net::{free_port, local, wait_listening};
use e2e::process::Process;
use e2e::scratch::Scratch;
use e2e::sideload::{Device, Keys, Outcome, Setup};

const SOON: Duration = Duration::from_secs(90);

/// Every request of the contract, with certificates as openssl makes them and as `sideload keys` makes them.
#[test]
fn the_contract_is_kept_with_both_kinds_of_keys() {
    need!("python3", "openssl");
    let scratch = Scratch::new("slc");
    for (name, keys) in [("o", Keys::openssl(&scratch, "k1")), ("t", Keys::tool(&scratch, "k2"))] {
        let app = "restart = \"never\"\nstop-timeout-ms = 20000\n";
        let mut device = Device::new(&scratch, name, keys, &Setup { app: app.into(), ..Setup::default() });
        device.daemon.start_ready();
        device.python("contract", &[]);
        device.daemon.check_log();
        let start = Instant::now();
        assert_eq!(device.daemon.term().code(), Some(0));
        // Far less than stop-timeout-ms, which is what waiting for an application would take.
        assert!(start.elapsed() < Duration::from_secs(8), "nothing to wait for: {:?}", start.elapsed());
        assert!(!device.daemon.lines.contain("left behind"), "{}", device.daemon.lines.tail(5));
    }
}

#[test]
fn rejected_bodies_and_sudden_ends_harm_nobody() {
    need!("python3", "openssl");
    let scratch = Scratch::new("slr");
    let device = Device::start(&scratch, &Setup::default());
    device.python("rejected_body", &[]);
    device.python("end_of_file", &[]);
    device.daemon.check_log();
}

/// The private keys that `sideload keys` makes are private, and it does not replace any by mistake.
#[test]
fn keys_are_private_and_never_replaced_by_mistake() {
    need!("openssl");
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new("slk");
    let keys = Keys::tool(&scratch, "k");
    for side in ["server", "client"] {
        let key = keys.dir.join(format!("sideloading_{side}.key.pem"));
        assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let cert = keys.cert(&format!("sideloading_{side}"));
        let said = env::run(Command::new("openssl").args(["x509", "-noout", "-text", "-in"]).arg(cert));
        assert!(said.contains("CA:FALSE") && said.contains("Digital Signature"), "{said}");
    }
    let before = std::fs::read(keys.cert("sideloading_server")).unwrap();
    let mut again = Command::new(env::bin("sideload"));
    let outcome = Outcome::of(again.arg("keys").arg("--cert-key-dir").arg(&keys.dir));
    assert_ne!(outcome.code, 0, "{outcome:?}");
    assert_eq!(std::fs::read(keys.cert("sideloading_server")).unwrap(), before);
}

/// No client certificate, a stranger's, one that has expired and one that is not valid yet (both pinned!): TLS 1.2 and
/// 1.3 end before any byte of HTTP, in either direction.
#[test]
fn wrong_certificates_are_refused_before_any_http() {
    need!("python3", "openssl");
    let scratch = Scratch::new("slw");
    let keys = Keys::openssl(&scratch, "keys");
    keys.add("stranger", "pan-sideloading-client");
    keys.add_dated("outdated", 2020, 2021);
    keys.add_dated("early", 2090, 2095);
    let setup = Setup { more_pins: vec![keys.cert("outdated"), keys.cert("early")], ..Setup::default() };
    let mut device = Device::new(&scratch, "dev", keys, &setup);
    device.daemon.start_ready();
    let said = device.python("refused", &[]);
    print!("{said}");
    assert!(!device.root.join("intruder").exists());
    // The log tells of it, once for a peer that comes again and again.
    assert!(device.daemon.lines.contain("is refused: the client showed no certificate"));
    device.daemon.check_log();
}

/// The client refuses a device that is not the one whose certificate it has, and sends it nothing.
#[test]
fn the_client_refuses_another_device() {
    need!("openssl");
    let scratch = Scratch::new("slx");
    let mut device = Device::start(&scratch, &Setup::default());
    device.write("secret.py", "x = 1\n");
    device.keys = Keys::openssl(&scratch, "others");
    let outcome = Outcome::of(&mut device.sync_command());
    assert_eq!(outcome.code, 77, "{outcome:?}");
    assert!(outcome.out.contains("certificate"), "{outcome:?}");
    assert_eq!(
        std::fs::read_dir(&device.root)
            .unwrap()
            .filter(|e| { e.as_ref().unwrap().file_name() != ".sideloadd" })
            .count(),
        0
    );
    // And nobody at all there.
    device.daemon.kill9();
    let outcome = device.cli(&["list-files"]);
    assert_eq!(outcome.code, 69, "{outcome:?}");
}

#[test]
fn no_path_leads_out_of_the_root() {
    need!("python3", "openssl");
    let scratch = Scratch::new("slp");
    let device = Device::start(&scratch, &Setup::default());
    let outside = scratch.dir("outside");
    scratch.write("outside/secret", "for nobody\n");
    let link = |to: &Path, name: &str| symlink(to, device.root.join(name)).unwrap();
    std::fs::create_dir(device.root.join("deep")).unwrap();
    std::fs::write(device.root.join("target"), "inside\n").unwrap();
    link(&outside, "out");
    link(&outside.join("secret"), "out-file");
    link(Path::new("../outside"), "up");
    link(&outside, "deep/out");
    link(Path::new("loop"), "loop");
    link(Path::new("target"), "inside");
    link(Path::new("deep/out"), "chain");
    device.python("attack", &["--src", &outside.to_string_lossy()]);
    // A sync can't be led out either: what the manifest wants is under a link that leads out.
    device.write("out/secret", "overwritten\n");
    let outcome = Outcome::of(&mut device.sync_command());
    println!("{outcome:?}");
    assert_eq!(std::fs::read_to_string(outside.join("secret")).unwrap(), "for nobody\n");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
    device.daemon.check_log();
}

/// The original's way of syncing works, and the second time nothing is sent.
#[test]
fn the_originals_way_of_syncing_works() {
    need!("python3", "openssl");
    let scratch = Scratch::new("slo");
    let device = Device::start(&scratch, &Setup::default());
    for n in 0..60 {
        device.write(&format!("pkg {}/f{n}.py", n % 7), format!("print({n})\n"));
    }
    let src = device.src.to_string_lossy().into_owned();
    let counts = |sent: usize, deleted: usize| format!("{{\"sent\": {sent}, \"deleted\": {deleted}}}\n");
    assert_eq!(device.python("original_sync", &["--src", &src]), counts(60, 0));
    assert_eq!(device.python("original_sync", &["--src", &src]), counts(0, 0));
    device.write("pkg 0/f0.py", "print('longer than before')\n");
    std::fs::remove_file(device.src.join("pkg 1/f1.py")).unwrap();
    assert_eq!(device.python("original_sync", &["--src", &src]), counts(1, 1));
    assert_eq!(e2e::sideload::tree(&device.root), e2e::sideload::tree(&device.src));
    // The new way finds nothing to send after the old one, and the other way round.
    let report = device.sync(&[]);
    assert_eq!(report["payload_bytes"], 0, "{report}");
    assert_eq!(device.python("original_sync", &["--src", &src]), counts(0, 0));
}

/// The original's commands, as `sideload` has them; and what they say when there is nothing to do.
#[test]
fn the_originals_commands_work() {
    need!("openssl");
    let scratch = Scratch::new("sln");
    let device = Device::start(&scratch, &Setup::default());
    for (arguments, code) in
        [(&["run-app"][..], 1), (&["kill-app"], 1), (&["delete-file", "x"], 1), (&["frobnicate"], 64)]
    {
        let outcome = device.cli(arguments);
        assert_eq!(outcome.code, code, "{arguments:?}: {outcome:?}");
        assert!(outcome.err.lines().count() >= 2, "cause and fix: {outcome:?}");
    }
    device.write("main.py", "import time\nprint('hello', flush=True)\ntime.sleep(60)\n");
    device.write("data/a b.txt", "1");
    assert_eq!(device.cli(&["send-file", "data/a b.txt", "--src-top", "."]).code, 0);
    assert!(device.cli(&["list-files"]).out.contains("data/a b.txt"));
    device.sync(&[]);
    device.ok(&["run-app"]);
    device.wait_output("hello", SOON);
    assert_eq!(device.cli(&["run-app"]).code, 1, "it runs already");
    assert!(device.cli(&["logs"]).out.contains("hello"));
    assert_eq!(device.ok(&["status"])["app"]["state"], "running");
    device.ok(&["kill-app"]);
    device.ok(&["restart"]);
    device.ok(&["kill-app"]);
    assert_eq!(device.cli(&["delete-file", "data/a b.txt"]).code, 0);
    assert!(!device.root.join("data/a b.txt").exists());
    let pulled = scratch.dir("pulled");
    device.ok(&["pull", "--to", &pulled.to_string_lossy()]);
    assert!(pulled.join("main.py").exists());
    device.daemon.check_log();
}

/// In production there is no listener, and what was sideloaded before is not run.
#[test]
fn production_listens_on_nothing_and_ignores_sideloaded_code() {
    need!("openssl");
    let scratch = Scratch::new("slq");
    let setup =
        Setup { top: "enable-sideloading = false\nrun-app-immediately = true\n".into(), ..Setup::default() };
    let mut device = Device::new(&scratch, "dev", Keys::openssl(&scratch, "keys"), &setup);
    let proof = scratch.join("ran");
    let code =
        |who: &str| format!("#!/bin/sh\necho {who} >> {}\npwd >> {0}\nexec sleep 60\n", proof.display());
    for (top, who) in [(&device.root, "sideloaded"), (&device.fallback, "deployed")] {
        std::fs::write(top.join("main.sh"), code(who)).unwrap();
    }
    device.daemon.start_ready();
    let ran = wait_for("the application", SOON, || {
        std::fs::read_to_string(&proof).ok().filter(|t| t.lines().count() == 2)
    });
    assert_eq!(ran, format!("deployed\n{}\n", device.fallback.display()));
    assert!(std::net::TcpStream::connect_timeout(&local(device.port), Duration::from_millis(500)).is_err());
    assert_eq!(
        listening_sockets(device.daemon.process().pid()),
        Vec::<String>::new(),
        "no TCP socket at all"
    );
    // Nothing deployed: an error that says so, and still not the sideloaded one.
    device.daemon.term();
    std::fs::remove_file(device.fallback.join("main.sh")).unwrap();
    std::fs::remove_file(&proof).unwrap();
    device.daemon.start();
    std::thread::sleep(Duration::from_secs(1));
    assert!(!proof.exists());
    device.daemon.kill9();
}

/// TCP sockets of a process that listen, by their inodes.
fn listening_sockets(pid: u32) -> Vec<String> {
    let mut inodes = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let to = std::fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
        inodes.extend(to.strip_prefix("socket:[").map(|t| t.trim_end_matches(']').to_owned()));
    }
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        for line in
            std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default().lines().skip(1)
        {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields.get(3) == Some(&"0A")
                && fields.get(9).is_some_and(|inode| inodes.iter().any(|i| i == inode))
            {
                found.push(line.to_owned());
            }
        }
    }
    found
}

/// systemd's socket activation: the first connection starts the daemon, which takes the socket over.
#[test]
fn a_socket_from_systemd_is_taken_over() {
    need!("openssl", "systemd-socket-activate");
    let scratch = Scratch::new("sla");
    let mut device = Device::new(
        &scratch,
        "dev",
        Keys::openssl(&scratch, "keys"),
        &Setup { listen: true, ..Setup::default() },
    );
    // What the file says does not matter then: the socket that is handed over has another port.
    let activated = free_port();
    let mut command = Command::new("systemd-socket-activate");
    command.arg(format!("--listen=127.0.0.1:{activated}")).arg(env::bin("sideloadd"));
    command.arg("--config").arg(&device.daemon.config).stdin(Stdio::null());
    let mut process = Process::start("systemd-socket-activate", &mut command);
    wait_for("it to listen", SOON, || process.lines.contain("Listening on").then_some(()));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!device.daemon.ctl().exists(), "nobody has connected yet");
    let configured = std::mem::replace(&mut device.port, activated);
    device.write("a.txt", "a");
    assert_eq!(device.sync(&[])["changed"], 1);
    assert_eq!(device.ask("GET", "/files")[0]["filepath"], "a.txt");
    assert!(std::net::TcpStream::connect(local(configured)).is_err(), "only the socket that was handed over");
    assert_eq!(process.term(SOON).code(), Some(0));
}

/// Silent, slow and deaf peers are held while another client works, and are got rid of in the end.
#[test]
fn slow_peers_block_nobody() {
    need!("python3", "openssl");
    let scratch = Scratch::new("sls");
    // Whoever waited for one of them would wait for one of these at the least.
    let limits = "[limits]\nhandshake-ms = 12000\nhead-ms = 12000\n";
    let device = Device::start(&scratch, &Setup { more: limits.into(), ..Setup::default() });
    wait_listening(device.port, "sideloadd", SOON);
    std::fs::write(device.root.join("big"), vec![7; 64 << 20]).unwrap();
    for n in 0..50 {
        device.write(&format!("f{n}"), format!("{n}"));
    }
    let mut slow = Process::start("slow", &mut device.python_command("slow", &["--hold", "18"]));
    wait_for("the slow ones", SOON, || slow.lines.contain("holding").then_some(()));
    let mut worst = Duration::ZERO;
    for n in 0..10 {
        device.write("f0", format!("again {n}"));
        let start = Instant::now();
        device.sync(&[]);
        assert_eq!(device.curl("GET", "/status").0, 200);
        worst = worst.max(start.elapsed());
    }
    println!("a sync and a status beside 15 bad peers: {worst:?} at worst");
    assert!(worst < Duration::from_secs(8), "{worst:?}");
    assert!(slow.wait_exit(Duration::from_secs(40)).success(), "{}", slow.lines.tail(20));
    let last: serde_json::Value = serde_json::from_str(slow.lines.all().last().unwrap()).unwrap();
    // 6 that never began a handshake, 3 with a header that never ends.
    assert!(last["cut"].as_u64().unwrap() >= 9, "{last}");
    let peak_mb = device.daemon.usage().rss_peak_kb / 1024;
    assert!(peak_mb < 48, "peers that do not read cost little: {peak_mb} MB");
    device.daemon.check_log();
}

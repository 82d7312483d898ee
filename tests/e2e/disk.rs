//! A disk that fails, fills up or lies: what was acknowledged is still delivered, and the daemon says
//! what happened.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::publisher::{self, Plan, Publisher};
use e2e::scratch;
use e2e::shim;
use e2e::subscriber::Account;
use e2e::{need, skip};

use crate::relay::Line;

const LONG: Duration = Duration::from_secs(60);
const EX_IOERR: i32 = 74;

/// fsync fails: the process ends with 74, nothing of that group was acknowledged, the next start delivers.
#[test]
fn failing_fsync_ends_the_daemon_and_loses_nothing() {
    need!("mosquitto", "mosquitto_sub");
    let Some(library) = shim::library() else { skip!("no C compiler for the faulty-fsync library") };
    for once in [false, true] {
        let mut line = Line::new("eio", true, 1, |_| {});
        let state = line.mqfwd.dir.join("state");
        shim::preload(&mut line.mqfwd, &library, &state);
        line.mqfwd.env("FAULT_SYNC_AT", "25");
        if once {
            // The second fsync "succeeds", as Linux does it after having thrown the pages away.
            line.mqfwd.env("FAULT_SYNC_ONCE", "1");
        }
        line.start();
        let plan = Plan { window: 5, rate: 2000, ..Plan::new(line.publish_port, "camera", 1, 4000) };
        let mut publisher = Publisher::start(plan);
        let status = line.mqfwd.wait_exit(LONG);
        assert_eq!(status.code(), Some(EX_IOERR), "exit code after EIO:\n{}", line.mqfwd.lines.tail(10));
        let said = line.mqfwd.lines.tail(5);
        assert!(said.contains("Input/output error") || said.contains("os error 5"), "it says why: {said}");
        for name in ["LD_PRELOAD", "FAULT_SYNC_AT", "FAULT_SYNC_ONCE"] {
            line.mqfwd.unset(name);
        }
        line.mqfwd.start_ready();
        publisher.wait_done(LONG);
        let got = line.subscriber.wait_distinct(4000, LONG);
        Account::of(&publisher.acked_numbers(), &got).check(false);
        line.mqfwd.check_log();
    }
}

/// The disk says ENOSPC for a while (to writes and to the making of segments): what is acknowledged all the
/// same is on disk, and afterwards all goes on.
#[test]
fn no_space_left_for_a_while() {
    need!("mosquitto", "mosquitto_sub", "strace");
    if !ptrace_permitted() {
        skip!("strace is not permitted to trace here");
    }
    let mut line = Line::new("enospc", true, 1, |c| {
        // Segments as small as they may be: a new one is wanted, and refused, often.
        c.more = "[spool]\nsegment-bytes = \"64 KiB\"\nmax-bytes = \"64 MiB\"\n".into();
    });
    let fault = "inject=pwritev,pwritev2,pwrite64,fallocate:error=ENOSPC:when=150..156";
    line.mqfwd.wrap(&[
        "strace",
        "-D",
        "-f",
        "-q",
        "-o",
        "/dev/null",
        "-e",
        "trace=pwritev,pwritev2,pwrite64,fallocate",
        "-e",
        fault,
    ]);
    line.start();
    let mut publisher =
        Publisher::start(Plan { rate: 1000, ..Plan::new(line.publish_port, "camera", 1, 3000) });
    let deadline = std::time::Instant::now() + LONG;
    while publisher.acked() < 3000 && std::time::Instant::now() < deadline {
        restart_if_ended(&mut line.mqfwd);
        std::thread::sleep(Duration::from_millis(50));
    }
    publisher.wait_done(Duration::from_secs(5));
    let got = line.subscriber.wait_distinct(3000, LONG);
    Account::of(&publisher.acked_numbers(), &got).check(false);
    line.mqfwd.check_log();
}

fn ptrace_permitted() -> bool {
    let mut strace = Command::new("strace");
    strace.args(["-o", "/dev/null", "true"]).stderr(std::process::Stdio::null());
    strace.status().is_ok_and(|s| s.success())
}

/// As systemd would (`Restart=on-failure`). A start that ends at once is tried again by the caller.
fn restart_if_ended(daemon: &mut e2e::daemon::Daemon) {
    if !daemon.running() {
        daemon.start();
    }
}

/// A file system of 3 MiB, really full: the spool blocks, the cloud comes back, everything arrives.
#[test]
fn a_small_file_system_fills_up() {
    need!("mosquitto", "mosquitto_sub", "mount");
    let mut line = Line::new("full", true, 1, |c| {
        // The bound is above what fits, so that the file system is what says no.
        c.more = "[spool]\nsegment-bytes = \"256 KiB\"\nmax-bytes = \"64 MiB\"\n".into();
    });
    let state = line.scratch.dir("mqfwd/state");
    let Some(_mounted) = Mounted::tmpfs(&state, "size=3m") else {
        skip!("mounting a tmpfs is not permitted here")
    };
    line.start();
    line.cloud_proxy.refuse(true);
    let mut publisher = Publisher::start(Plan::new(line.publish_port, "camera", 1, 8000));
    let mut last = 0;
    e2e::env::wait_for("the file system to be full", LONG, || {
        std::thread::sleep(Duration::from_millis(700));
        restart_if_ended(&mut line.mqfwd);
        let acked = publisher.acked();
        let still = acked == last && acked > 500;
        last = acked;
        still.then_some(())
    });
    assert!(last < 8000, "3 MiB do not hold 8 MB");
    let said = line.mqfwd.lines.all().join("\n");
    assert!(
        said.contains("full") || said.contains("No space left"),
        "the log says that the disk is full:\n{said}"
    );
    line.cloud_proxy.refuse(false);
    let deadline = std::time::Instant::now() + LONG;
    while publisher.acked() < 8000 && std::time::Instant::now() < deadline {
        restart_if_ended(&mut line.mqfwd);
        std::thread::sleep(Duration::from_millis(50));
    }
    publisher.wait_done(Duration::from_secs(5));
    let got = line.subscriber.wait_distinct(8000, LONG);
    Account::of(&publisher.acked_numbers(), &got).check(false);
    line.mqfwd.check_log();
    drop(line.mqfwd);
}

/// A mounted tmpfs, unmounted at the end.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn tmpfs(at: &'a Path, options: &str) -> Option<Mounted<'a>> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).stderr(std::process::Stdio::null());
        mount.status().ok()?.success().then_some(Mounted(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Fills the spool with n messages while the cloud is away, and kills the daemon.
fn spooled(name: &str, n: u64) -> Line {
    let mut line = Line::new(name, true, 1, |c| {
        c.more = "[spool]\nsegment-bytes = \"256 KiB\"\nmax-bytes = \"64 MiB\"\n".into();
    });
    line.start();
    line.cloud_proxy.refuse(true);
    let mut publisher = Publisher::start(Plan::new(line.publish_port, "camera", 1, n));
    publisher.wait_done(LONG);
    line.mqfwd.kill9();
    line
}

/// The file and the place in it where the payload of message n lies.
fn find(dir: &Path, n: u64) -> (std::path::PathBuf, usize) {
    let payload = publisher::payload(n, 1024);
    for file in scratch::files(dir) {
        let bytes = std::fs::read(&file).unwrap();
        if let Some(at) = bytes.windows(32).position(|w| w == &payload[..32]) {
            return (file, at);
        }
    }
    panic!("message {n} is not in the spool below {}", dir.display());
}

fn delivered(line: &mut Line, n: u64) -> Vec<u64> {
    line.mqfwd.start_ready();
    line.cloud_proxy.refuse(false);
    let got = line.subscriber.wait_distinct(n as usize, LONG);
    let account = Account::of(&[], &got);
    assert_eq!((account.damaged, account.out_of_order.len()), (0, 0), "what arrives is whole and in order");
    line.mqfwd.check_log();
    let arrived: std::collections::HashSet<u64> =
        got.iter().filter_map(|g| publisher::number(g.payload.as_bytes())).collect();
    (0..n + 1).filter(|i| !arrived.contains(i)).collect()
}

/// The last record was half written when the power went: it is cut off, all before it is delivered.
#[test]
fn torn_tail_is_cut() {
    need!("mosquitto", "mosquitto_sub");
    let mut line = spooled("torn", 1000);
    let (file, at) = find(&line.mqfwd.dir.join("state"), 999);
    let mut bytes = std::fs::read(&file).unwrap();
    // The second half of its payload never reached the disk; what was preallocated reads as zeros.
    bytes[at + 512..].fill(0);
    std::fs::write(&file, bytes).unwrap();
    let missing = delivered(&mut line, 999);
    assert_eq!(missing, [999], "only the torn record is gone");
}

/// A bit rotted in the middle: that record goes to quarantine and is counted, all others are delivered.
#[test]
fn flipped_byte_is_quarantined() {
    need!("mosquitto", "mosquitto_sub");
    let mut line = spooled("flip", 1000);
    let state = line.mqfwd.dir.join("state");
    let (file, at) = find(&state, 400);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[at + 300] ^= 0x10;
    std::fs::write(&file, bytes).unwrap();
    let missing = delivered(&mut line, 999);
    // `delivered` looks one number beyond what it waits for.
    assert_eq!(missing, [400], "only the damaged record is gone");
    let kept = scratch::files(&state).iter().any(|f| f.to_string_lossy().contains("quarantine"));
    assert!(kept, "the damaged bytes are kept: {:?}", scratch::files(&state));
}

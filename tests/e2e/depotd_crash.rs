//! `depotd publish` killed before each of its state-changing system calls: the catalog and the store have the old or the
//! new state, and the same command again succeeds.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use e2e::depot::{Depot, sha256};
use e2e::scratch::Scratch;
use e2e::{env, need, skip};

/// What changes something that outlives the process, or begins to.
const CALLS: &str = "openat,write,pwrite64,writev,pwritev,fsync,fdatasync,rename,renameat,renameat2,link,linkat,mkdir,mkdirat,\
                     unlink,unlinkat,truncate,ftruncate,fallocate,flock,chmod,fchmod,chown,fchown,copy_file_range";

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    env::run(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// How often the command makes each of the calls.
fn count(depot: &Depot, command: &[&str]) -> Option<BTreeMap<String, usize>> {
    let trace = depot.root.join("../trace");
    let inner = depot.command(command);
    let mut strace = Command::new("strace");
    strace.arg("-f").arg("-e").arg(format!("trace={CALLS}")).arg("-o").arg(&trace);
    strace
        .arg(inner.get_program())
        .args(inner.get_args())
        .current_dir(&depot.root)
        .env_remove("LD_LIBRARY_PATH");
    let output = strace.output().unwrap();
    if String::from_utf8_lossy(&output.stderr).contains("Operation not permitted") {
        return None;
    }
    assert!(output.status.success(), "{output:?}");
    let mut calls = BTreeMap::new();
    let mut threads = std::collections::BTreeSet::new();
    for line in std::fs::read_to_string(&trace).unwrap().lines() {
        let (thread, rest) = line.split_once(' ').unwrap();
        threads.insert(thread.to_owned());
        if let Some((name, _)) = rest.trim_start().split_once('(') {
            *calls.entry(name.to_owned()).or_insert(0) += 1;
        }
    }
    // The kills count the calls of one thread.
    assert_eq!(threads.len(), 1);
    Some(calls)
}

/// Runs the command and kills it before the `n`th `call`; whether it died.
fn kill(depot: &Depot, command: &[&str], call: &str, n: usize) -> bool {
    let inner = depot.command(command);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    strace.args(["-e", &format!("inject={call}:signal=SIGKILL:when={n}")]);
    strace
        .arg(inner.get_program())
        .args(inner.get_args())
        .current_dir(&depot.root)
        .env_remove("LD_LIBRARY_PATH");
    !strace.output().unwrap().status.success()
}

/// The versions that are live; everything that is there is whole.
fn live(depot: &Depot, at: &str) -> Vec<String> {
    let said = depot.run(&["verify"]);
    assert!(
        said.status.success(),
        "{at}: {}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    let mut live = Vec::new();
    for release in depot.releases().iter().filter(|r| r["state"] == "live") {
        let hash = release["sha256"].as_str().unwrap();
        assert_eq!(sha256(&depot.blob(hash)), hash, "{at}");
        live.push(release["version"].as_str().unwrap().to_owned());
    }
    live
}

fn matrix(scratch: &Scratch, base: &Depot, command: &[&str], old: &[&str], new: &[&str]) {
    let saved = scratch.join("saved");
    copy(&base.root, &saved);
    let Some(calls) = count(base, command) else { skip!("strace may not trace here") };
    let (mut points, mut of_new) = (0, 0);
    for (call, times) in &calls {
        for n in 1..=*times {
            let at = format!("{command:?} killed before {call} {n}");
            copy(&saved, &base.root);
            assert!(kill(base, command, call, n), "{at}: it did not die");
            let found = live(base, &at);
            assert!(found == old || found == new, "{at}: {found:?}");
            of_new += usize::from(found == new);
            base.done(command);
            assert_eq!(live(base, &at), new, "{at}");
            points += 1;
        }
    }
    println!("{command:?}: {points} points, {of_new} of them with the new state; calls {calls:?}");
    copy(&saved, &base.root);
    if !calls.contains_key("rename") {
        return;
    }
    // A half-made file of the store is swept.
    kill(base, command, "rename", 1);
    base.done(&["gc"]);
    assert_eq!(live(base, "gc"), old);
    let blobs = base.root.join("var/blobs");
    let temporary = std::fs::read_dir(blobs)
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with(".put-"));
    assert_eq!(temporary.count(), 0);
}

#[test]
fn depotd_publish_killed_at_every_system_call() {
    need!("strace");
    let scratch = Scratch::new("depot-crash");
    let depot = Depot::new(&scratch, "d");
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(depot.root.join("two"), content).unwrap();
    let publish = [
        "publish",
        "two",
        "--app",
        "cam",
        "--version",
        "2.0",
        "--env",
        "prod",
        "--attr",
        "x",
        "--key",
        "release.key",
    ];
    // The very first one, which makes catalog and store as well.
    matrix(&scratch, &depot, &publish, &[], &["2.0"]);
    // One more.
    let _ = std::fs::remove_dir_all(depot.root.join("var"));
    depot.publish("cam", "1.0", "prod", b"one", &[]);
    matrix(&scratch, &depot, &publish, &["1.0"], &["2.0", "1.0"]);
}

#[test]
fn depotd_accept_and_pause_killed_at_every_system_call() {
    need!("strace", "minisign");
    let scratch = Scratch::new("depot-crash-later");
    let depot = Depot::new(&scratch, "d");
    depot.publish("cam", "1.0", "prod", b"one", &[]);
    std::fs::write(depot.root.join("two"), b"two").unwrap();
    let later = ["publish", "two", "--app", "cam", "--version", "2.0", "--env", "prod", "--sign-later"];
    matrix(&scratch, &depot, &later, &["1.0"], &["1.0"]);
    depot.done(&later);
    env::run(
        Command::new("minisign")
            .args(["-Sm", "cam_2.0_prod.statement", "-s", "release.key"])
            .current_dir(&depot.root),
    );
    matrix(&scratch, &depot, &["accept", "cam_2.0_prod.statement"], &["1.0"], &["2.0", "1.0"]);
    depot.done(&["accept", "cam_2.0_prod.statement"]);
    matrix(
        &scratch,
        &depot,
        &["pause", "cam", "--env", "prod", "--version", "2.0"],
        &["2.0", "1.0"],
        &["1.0"],
    );
}

//! `sideload sync`: what goes over the wire, what stays, and that the device has the old tree or the new one whatever
//! dies in between.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::env::{self, wait_for};
use e2e::need;
use e2e::process::Process;
use e2e::proxy::Proxy;
use e2e::scratch::Scratch;
use e2e::sideload::{Device, Keys, Outcome, Setup, Tree, tree};

const SOON: Duration = Duration::from_secs(90);
const LONG: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

fn noise(rng: &mut fastrand::Rng, bytes: usize) -> Vec<u8> {
    let mut data = vec![0; bytes];
    rng.fill(&mut data);
    data
}

fn number(report: &serde_json::Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("{key} in {report}"))
}

/// Runs a command while watching the highest resident memory of it; what it came to and kB.
fn watched(command: &mut Command) -> (Outcome, u64) {
    let mut process = Process::start("sideload", command);
    let (mut peak, start) = (0, Instant::now());
    let status = loop {
        peak = peak.max(process.usage().rss_peak_kb);
        if let Some(status) = process.exited() {
            break status;
        }
        assert!(start.elapsed() < LONG, "it takes too long:\n{}", process.lines.tail(20));
        std::thread::sleep(Duration::from_millis(2));
    };
    // Its last line may still be on its way to the thread that reads it.
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(50));
        if !process.lines.all().is_empty() {
            break;
        }
    }
    let out = process.lines.all().join("\n");
    (Outcome { code: status.code().unwrap_or(-1), out, err: String::new() }, peak)
}

/// 256 MiB, then one byte changed, one inserted at the head, and renamed: the memory of both ends stays small and the
/// wire carries the difference.
#[test]
fn a_large_file_costs_little_memory_and_its_changes_little_wire() {
    need!("openssl");
    let scratch = Scratch::new("sll");
    let device = Device::start(&scratch, &Setup::default());
    let mut data = noise(&mut fastrand::Rng::with_seed(env::seed()), 256 << 20);
    let before = device.daemon.usage().rss_kb;
    let step = |what: &str, wire_max: u64| {
        let start = Instant::now();
        let (outcome, client) = watched(&mut device.sync_command());
        let report = outcome.json();
        let wire = number(&report, "wire_sent") + number(&report, "wire_received");
        let daemon = device.daemon.usage().rss_peak_kb;
        println!(
            "{what}: {:.2?}, wire {wire} B, payload {} B; peak client {client} kB, daemon {daemon} kB (idle {before} kB)",
            start.elapsed(),
            number(&report, "payload_bytes"),
        );
        assert!(wire <= wire_max, "{what}: {report}");
        assert!(daemon < before + 24 * 1024, "{what}: the daemon grew from {before} to {daemon} kB");
        assert!(client < 48 * 1024, "{what}: the client took {client} kB");
        assert_eq!(tree(&device.root), tree(&device.src), "{what}");
        report
    };
    device.write("model.bin", &data);
    step("cold", 260 * MIB);
    data[100 << 20] ^= 1;
    device.write("model.bin", &data);
    step("one byte changed", MIB);
    data.insert(0, b'x');
    device.write("model.bin", &data);
    step("one byte inserted at the head", MIB);
    std::fs::rename(device.src.join("model.bin"), device.src.join("renamed.bin")).unwrap();
    let report = step("renamed", MIB / 4);
    assert_eq!(number(&report, "payload_bytes"), 0);
    std::fs::File::options()
        .append(true)
        .open(device.src.join("renamed.bin"))
        .unwrap()
        .set_modified(std::time::SystemTime::now())
        .unwrap();
    let report = step("touched", MIB / 4);
    assert_eq!((number(&report, "payload_bytes"), &report["unchanged"]), (0, &true.into()));
    drop(data);
    // Read back by another client, memory still small.
    let (status, _) = device.curl("GET", "/status");
    assert_eq!(status, 200);
    device.daemon.check_log();
}

/// The tree of one round: a bit of everything, and something different each time.
fn mutate(rng: &mut fastrand::Rng, src: &Path) {
    let write = |name: &str, data: &[u8]| {
        let path = src.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, data).unwrap();
    };
    for _ in 0..rng.usize(1..40) {
        let name = format!("d{}/f{}.py", rng.u8(..6), rng.u8(..30));
        let size = rng.usize(..4000);
        write(&name, &noise(rng, size));
    }
    for _ in 0..rng.usize(..6) {
        let _ = std::fs::remove_file(src.join(format!("d{}/f{}.py", rng.u8(..6), rng.u8(..30))));
    }
    if rng.bool() {
        // A large one grows a part in its middle.
        let mut data = std::fs::read(src.join("big.bin")).unwrap_or_default();
        let at = data.len() / 2;
        let part = noise(rng, 700_000);
        data.splice(at..at, part);
        data.truncate(3 << 20);
        write("big.bin", &data);
    }
    if rng.u8(..4) == 0 {
        let _ = std::fs::rename(src.join("d1"), src.join(format!("moved{}", rng.u8(..3))));
    }
    let tool = src.join("tool.sh");
    write("tool.sh", b"#!/bin/sh\n");
    let mode = if rng.bool() { 0o755 } else { 0o644 };
    std::fs::set_permissions(tool, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// kill -9 of the daemon or of the client at random points of a sync: the tree is the old one or the new one, and what
/// the application wrote is as it was.
#[test]
fn killed_at_any_point_the_tree_is_old_or_new() {
    need!("openssl");
    let scratch = Scratch::new("slz");
    let mut rng = fastrand::Rng::with_seed(env::seed());
    let mut device = Device::start(&scratch, &Setup::default());
    std::fs::write(device.root.join("state.db"), "the application wrote this").unwrap();
    let with_state = |src: &Path, root: &Path| {
        let mut expected = tree(src);
        expected.insert("state.db".into(), tree(root)["state.db"].clone());
        expected
    };
    for _ in 0..4 {
        mutate(&mut rng, &device.src);
    }
    let start = Instant::now();
    device.sync(&[]);
    let mut whole = start.elapsed().max(Duration::from_millis(100));
    let mut old: Tree = with_state(&device.src, &device.root);
    assert_eq!(tree(&device.root), old);
    let (mut olds, mut news, mut finished, mut round) = (0, 0, 0, 0);
    const ROUNDS: u32 = 40;
    const ROUNDS_MAX: u32 = 200;
    while round < ROUNDS || (round < ROUNDS_MAX && (olds < 3 || news < 3)) {
        mutate(&mut rng, &device.src);
        let new = with_state(&device.src, &device.root);
        // It may want to delete more than half, which is not the question here.
        let mut client = Process::start("sideload", device.sync_command().arg("--force"));
        // More of them early, where a kill finds the most under way.
        std::thread::sleep(whole.mul_f64(rng.f64().powi(2) * 1.2));
        let daemon_dies = round % 2 == 0;
        if daemon_dies {
            device.daemon.kill9();
            client.kill9();
            // What a crash left is put right by the next start, before anybody is served.
            device.daemon.start_ready();
        } else {
            finished += u32::from(client.exited().is_some());
            client.kill9();
            // The disk thread answers in turn: a commit that was asked for is done by then.
            device.curl("GET", "/files");
        }
        let is_settled = |tree: &Tree| *tree == old || *tree == new;
        let found = if daemon_dies {
            tree(&device.root)
        } else {
            // The daemon may just be at the commit: it ends by itself.
            wait_for("the old tree or the new one", SOON, || tree_at_rest(&device.root).filter(is_settled))
        };
        assert!(
            is_settled(&found),
            "round {round} (daemon dies: {daemon_dies}): neither old nor new; beside the old {:?}, beside the new {:?}",
            differing(&found, &old),
            differing(&found, &new)
        );
        (olds, news) = if found == new { (olds, news + 1) } else { (olds + 1, news) };
        // How long a sync takes changes with the machine's load: the kills follow it.
        whole = whole.mul_f64(if found == new { 0.85 } else { 1.15 });
        whole = whole.clamp(Duration::from_millis(50), Duration::from_secs(20));
        old = found;
        round += 1;
    }
    println!(
        "{round} kills: {olds} times the old tree, {news} times the new one ({finished} syncs had ended before)"
    );
    assert!(olds >= 3 && news >= 3, "the kills were spread: {olds} and {news}");
    device.sync(&["--force"]);
    assert_eq!(tree(&device.root), with_state(&device.src, &device.root));
    device.daemon.check_log();
}

/// The paths in which two trees differ.
fn differing(one: &Tree, other: &Tree) -> std::collections::BTreeSet<String> {
    one.keys().chain(other.keys()).filter(|path| one.get(*path) != other.get(*path)).cloned().collect()
}

/// The tree, unless it changes while it is read or a moment later.
fn tree_at_rest(top: &Path) -> Option<Tree> {
    let read = || std::panic::catch_unwind(|| tree(top)).ok();
    let first = read()?;
    std::thread::sleep(Duration::from_millis(100));
    read().filter(|second| *second == first)
}

/// What was transferred before an interruption is not sent again: after the client was killed, after the daemon was.
#[test]
fn an_interrupted_transfer_resumes() {
    need!("openssl");
    let scratch = Scratch::new("sli");
    let mut device = Device::start(&scratch, &Setup::default());
    let mut rng = fastrand::Rng::with_seed(env::seed());
    for daemon_dies in [false, true] {
        let name = format!("model-{daemon_dies}.bin");
        device.write(&name, noise(&mut rng, 64 << 20));
        for n in 0..20 {
            device.write(&format!("small-{daemon_dies}/{n}"), noise(&mut rng, 50_000));
        }
        let proxy = Proxy::start(device.port);
        let direct = std::mem::replace(&mut device.port, proxy.port);
        let mut client = Process::start("sideload", &mut device.sync_command());
        wait_for("half of it", LONG, || (proxy.passed() > 40 * MIB).then_some(()));
        if daemon_dies {
            device.daemon.kill9();
        }
        client.kill9();
        drop(proxy);
        device.port = direct;
        if daemon_dies {
            device.daemon.start_ready();
        }
        assert!(!device.root.join(&name).exists(), "not committed");
        let report = device.sync(&[]);
        let sent = number(&report, "wire_sent");
        println!("resumed (daemon died: {daemon_dies}): {sent} of {} bytes the second time", 65 * MIB);
        assert!(sent < 32 * MIB, "{report}");
        assert_eq!(tree(&device.root), tree(&device.src));
    }
    device.daemon.check_log();
}

/// A connection that breaks in the middle is made again by the client itself.
#[test]
fn a_cut_connection_does_not_end_the_sync() {
    need!("openssl");
    let scratch = Scratch::new("slb");
    let mut device = Device::start(&scratch, &Setup::default());
    device.write("model.bin", noise(&mut fastrand::Rng::with_seed(env::seed()), 48 << 20));
    let proxy = Proxy::start(device.port);
    let direct = std::mem::replace(&mut device.port, proxy.port);
    let mut client = Process::start("sideload", &mut device.sync_command());
    wait_for("a part of it", LONG, || (proxy.passed() > 16 * MIB).then_some(()));
    proxy.cut();
    let status = client.wait_exit(LONG);
    device.port = direct;
    println!("after a cut: {status}: {}", client.lines.tail(3));
    if !status.success() {
        // Then it has said so, and the next one finishes it.
        assert!(status.code().is_some_and(|code| code >= 64), "{status}");
        assert!(number(&device.sync(&[]), "wire_sent") < 40 * MIB);
    }
    assert_eq!(tree(&device.root), tree(&device.src));
}

/// Renamed, copied, touched, made executable: no payload. What the application wrote stays. Ignored files stay here.
#[test]
fn only_new_content_is_sent_and_only_what_was_synced_is_deleted() {
    need!("openssl");
    let scratch = Scratch::new("slt");
    let device = Device::start(&scratch, &Setup::default());
    let mut rng = fastrand::Rng::with_seed(5);
    for n in 0..30 {
        device.write(&format!("pkg/m{n}.py"), noise(&mut rng, 3000));
    }
    device.write("weights.bin", noise(&mut rng, 2 << 20));
    device.write(".gitignore", "*.log\n/build/\n");
    device.write(".sideloadignore", "notes/\n");
    let kept = ["x.log", "build/out.o", "notes/todo", "sideloading_client.key.pem"];
    for name in kept {
        device.write(name, "not for the device");
    }
    device.sync(&[]);
    for name in kept {
        assert!(!device.root.join(name).exists(), "{name}");
    }
    let payload = |what: &str| {
        let report = device.sync(&[]);
        println!("{what}: wire {} B", number(&report, "wire_sent"));
        (number(&report, "payload_bytes"), report)
    };
    assert_eq!(payload("nothing changed").0, 0);
    std::fs::rename(device.src.join("pkg"), device.src.join("package")).unwrap();
    std::fs::copy(device.src.join("weights.bin"), device.src.join("package/copy.bin")).unwrap();
    std::fs::rename(device.src.join("weights.bin"), device.src.join("w2.bin")).unwrap();
    assert_eq!(payload("renamed and copied").0, 0);
    // A copy is a file of its own: the application may write to one of them.
    use std::os::unix::fs::MetadataExt;
    let inode = |name: &str| device.root.join(name).metadata().unwrap().ino();
    assert_ne!(inode("package/copy.bin"), inode("w2.bin"));
    std::fs::set_permissions(device.src.join("package/m1.py"), std::fs::Permissions::from_mode(0o755))
        .unwrap();
    let (bytes, report) = payload("made executable");
    assert_eq!((bytes, number(&report, "changed")), (0, 1));
    assert_eq!(device.root.join("package/m1.py").metadata().unwrap().permissions().mode() & 0o111, 0o111);
    for path in e2e::scratch::files(&device.src) {
        let file = std::fs::File::options().append(true).open(path).unwrap();
        file.set_modified(std::time::SystemTime::now() + Duration::from_secs(5)).unwrap();
    }
    assert_eq!(payload("all touched").0, 0);
    // The application's own files stay, also in folders that the developer removes.
    std::fs::write(device.root.join("package/cache.db"), "mine").unwrap();
    std::fs::remove_file(device.src.join("package/m2.py")).unwrap();
    assert_eq!(number(&payload("one deleted").1, "deleted"), 1);
    assert!(!device.root.join("package/m2.py").exists());
    std::fs::remove_dir_all(device.src.join("package")).unwrap();
    let refused = Outcome::of(&mut device.sync_command());
    assert!(refused.code == 1 && refused.out.contains("--force"), "more than half: {refused:?}");
    assert!(device.root.join("package/m1.py").exists());
    device.sync(&["--force"]);
    assert_eq!(std::fs::read_to_string(device.root.join("package/cache.db")).unwrap(), "mine");
    assert!(!device.root.join("package/m1.py").exists());
    device.daemon.check_log();
}

/// By hand: back to the commit before, and to a named one; then forward again by a sync.
#[test]
fn rollback_restores_earlier_commits() {
    need!("openssl");
    let scratch = Scratch::new("slv");
    let mut device = Device::start(&scratch, &Setup::default());
    let mut trees = Vec::new();
    let mut commits = Vec::new();
    for version in 0..3 {
        device.write("main.py", format!("print({version})\n"));
        device.write("big.bin", vec![version; 2 << 20]);
        device.write(&format!("only{version}"), "x");
        if version > 0 {
            std::fs::remove_file(device.src.join(format!("only{}", version - 1))).unwrap();
        }
        commits.push(number(&device.sync(&[]), "commit"));
        trees.push(tree(&device.root));
    }
    device.ok(&["rollback"]);
    assert_eq!(tree(&device.root), trees[1]);
    device.ok(&["rollback", "--to", &commits[0].to_string()]);
    assert_eq!(tree(&device.root), trees[0]);
    let outcome = device.cli(&["rollback", "--to", "4711"]);
    assert!(outcome.code != 0 && !outcome.err.is_empty(), "{outcome:?}");
    device.daemon.kill9();
    device.daemon.start_ready();
    assert_eq!(tree(&device.root), trees[0], "also after a crash");
    let report = device.sync(&[]);
    assert_eq!(tree(&device.root), trees[2]);
    assert_eq!(number(&report, "payload_bytes"), 0, "all of it was still there: {report}");
    device.daemon.check_log();
}

/// Folders and files have the same permissions whatever the daemon's umask is, by a sync and by an old client's request.
#[test]
fn modes_do_not_depend_on_the_umask() {
    need!("openssl");
    let scratch = Scratch::new("slu");
    for umask in ["000", "022", "077"] {
        let keys = Keys::openssl(&scratch, &format!("keys-{umask}"));
        let mut device = Device::new(&scratch, &format!("dev-{umask}"), keys, &Setup::default());
        std::fs::remove_dir(&device.root).unwrap();
        device.daemon.wrap(&["sh", "-c", &format!("umask {umask}; exec \"$@\""), "sh"]).start_ready();
        let write = |path: &str, mode| {
            device.write(path, "#!/bin/sh\n");
            std::fs::set_permissions(device.src.join(path), PermissionsExt::from_mode(mode)).unwrap();
        };
        let files = [("main.py", 0o644), ("sub/deep/run.sh", 0o755), ("sub/own.txt", 0o600)];
        files.iter().for_each(|(path, mode)| write(path, *mode));
        device.sync(&[]);
        write("sent/a/b.txt", 0o644);
        device.ok(&["send-file", "sent/a/b.txt", "--src-top", "."]);
        let folders = ["", "sub", "sub/deep", "sent", "sent/a"].map(|path| (path, 0o755));
        for (path, mode) in files.into_iter().chain(folders).chain([("sent/a/b.txt", 0o644)]) {
            let found = std::fs::metadata(device.root.join(path)).unwrap().permissions().mode() & 0o7777;
            assert_eq!(found, mode, "umask {umask}: {path:?} has {found:o}, not {mode:o}");
        }
    }
}

/// Keys are made, and files pulled, on a host without /proc.
#[test]
fn keys_and_pull_need_no_proc() {
    need!("openssl", "unshare");
    let scratch = Scratch::new("slp");
    let device = Device::start(&scratch, &Setup::default());
    let without_proc = |command: &Command| {
        let mut bare = Command::new("unshare");
        bare.args(["--mount", "sh", "-c", "mount -t tmpfs none /proc && exec \"$@\"", "sh"]);
        Outcome::of(bare.arg(command.get_program()).args(command.get_args()))
    };
    if without_proc(&Command::new("true")).code != 0 {
        e2e::skip!("no mount namespace without /proc can be made (root is needed)");
    }
    let keys = scratch.join("new-keys");
    let outcome =
        without_proc(Command::new(env::bin("sideload")).args(["keys", "--cert-key-dir"]).arg(&keys));
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let modes = ["server.cert", "server.key", "client.cert", "client.key"].map(|name| {
        let path = keys.join(format!("sideloading_{name}.pem"));
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    });
    assert_eq!(modes, [0o644, 0o600, 0o644, 0o600]);
    let to = scratch.dir("pulled");
    for (content, force) in [("one\n", false), ("two\n", true)] {
        device.write("out/one.txt", content);
        device.sync(&[]);
        let mut pull = device.command(&["pull", "out"]);
        pull.arg("--to").arg(&to).args(force.then_some("--force"));
        let outcome = without_proc(&pull);
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert_eq!(std::fs::read_to_string(to.join("out/one.txt")).unwrap(), content);
    }
    assert_eq!(e2e::scratch::files(&to).len(), 1, "no temporary name is left");
}

/// Before the disk is full: 507, exit code 75, and the tree is as it was.
#[test]
fn a_disk_that_is_nearly_full_is_left_alone() {
    need!("openssl");
    let scratch = Scratch::new("sld");
    let setup = Setup { more: "[limits]\nfree-min = \"1000000 GiB\"\n".into(), ..Setup::default() };
    let device = Device::start(&scratch, &setup);
    device.write("a.py", "1");
    let outcome = Outcome::of(&mut device.sync_command());
    assert_eq!(outcome.code, 75, "{outcome:?}");
    assert!(outcome.out.contains("full"), "{outcome:?}");
    assert_eq!(device.cli(&["send-file", "a.py", "--src-top", "."]).code, 75);
    assert_eq!(tree(&device.root), Tree::new());
    device.daemon.check_log();
}

/// Python takes a compilation for current whose source has the same second and size: two saves of equal length within a
/// second. The second save is what runs, by every way a file can be replaced.
#[test]
fn python_runs_the_second_of_two_saves_within_one_second() {
    need!("openssl", "python3");
    let scratch = Scratch::new("slp");
    let device = Device::start(&scratch, &Setup::default());
    let second = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let save = |version: u32| {
        device.write("pkg/mod.py", format!("VERSION = {version}\n"));
        let file = std::fs::File::options().append(true).open(device.src.join("pkg/mod.py")).unwrap();
        file.set_modified(second + Duration::from_millis(u64::from(version) * 100)).unwrap();
    };
    let run = || {
        let mut python = Command::new("python3");
        python.arg("main.py").current_dir(&device.root);
        let outcome =
            Outcome::of(python.env_remove("PYTHONDONTWRITEBYTECODE").env_remove("PYTHONPYCACHEPREFIX"));
        assert_eq!(outcome.code, 0, "{outcome:?}");
        outcome.out.trim().to_owned()
    };
    let compiled = || {
        let cache = std::fs::read_dir(device.root.join("pkg/__pycache__"));
        cache.into_iter().flatten().flatten().any(|e| e.file_name().to_string_lossy().starts_with("mod."))
    };
    device.write("main.py", "from pkg import mod\nprint(mod.VERSION)\n");
    save(1);
    device.sync(&[]);
    assert_eq!((run().as_str(), compiled()), ("1", true));
    let mtime = |path: &Path| path.metadata().unwrap().modified().unwrap();
    save(2);
    device.sync(&[]);
    // What Python goes by is the same indeed.
    assert_eq!(mtime(&device.root.join("pkg/mod.py")), second + Duration::from_millis(200));
    assert_eq!((run().as_str(), compiled()), ("2", true));
    device.ok(&["rollback"]);
    assert_eq!((run().as_str(), compiled()), ("1", true));
    save(3);
    let outcome = Outcome::of(device.command(&["send-file", "pkg/mod.py"]).arg("--src-top").arg(&device.src));
    assert_eq!((outcome.code, run().as_str()), (0, "3"), "{outcome:?}");
    device.daemon.check_log();
}

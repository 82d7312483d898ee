//! Several developers at one device, clients that are lost, and what is said of a device that can't take a sync now.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::env::{self, wait_for};
use e2e::process::Process;
use e2e::proxy::Proxy;
use e2e::scratch::Scratch;
use e2e::sideload::{Device, Outcome, Setup, Tree, tree};
use e2e::{need, skip};

const SOON: Duration = Duration::from_secs(90);
const LONG: Duration = Duration::from_secs(60);

/// A developer's own folder and cache.
struct Developer {
    src: PathBuf,
    cache: PathBuf,
}

impl Developer {
    fn new(scratch: &Scratch, name: &str) -> Developer {
        Developer { src: scratch.dir(name), cache: scratch.dir(&format!("{name}-cache")) }
    }

    fn sync(&self, device: &Device) -> Command {
        let mut command = device.command(&["sync", "--json", "--force"]);
        command.arg("--src-top").arg(&self.src).env("XDG_CACHE_HOME", &self.cache);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.src.join(name), content).unwrap();
    }
}

/// Both press the button at the same time, over and over, each with another state of the same files. One at the least
/// gets through each time, who does not is told by whom it was, and the device has the one tree or the other.
#[test]
fn two_developers_at_once_never_mix_their_trees() {
    need!("openssl");
    let scratch = Scratch::new("stt");
    let device = Device::start(&scratch, &Setup::default());
    let developers = ["ann", "bob"].map(|name| Developer::new(&scratch, name));
    let mut rng = fastrand::Rng::with_seed(env::seed());
    let (mut refused, mut commits) = (0, 0);
    for round in 0..25 {
        let mut children = Vec::new();
        for (who, developer) in developers.iter().enumerate() {
            for n in 0..rng.usize(20..60) {
                developer.write(&format!("f{n}.py"), format!("# {who} in round {round}, file {n}\n"));
            }
            developer.write("main.py", format!("print({who}, {round})\n"));
            // Above 1 MiB: a sync takes several requests.
            let mut noise = vec![0; 1 << 20 | rng.usize(..1 << 20)];
            rng.fill(&mut noise);
            developer.write("model.bin", noise);
        }
        for developer in &developers {
            children.push(developer.sync(&device).spawn().unwrap());
            std::thread::sleep(Duration::from_millis(rng.u64(..8)));
        }
        let mut last: Option<(u64, Tree)> = None;
        for (child, developer) in children.into_iter().zip(&developers) {
            let output = child.wait_with_output().unwrap();
            let err = String::from_utf8_lossy(if output.status.success() {
                &output.stderr
            } else {
                &output.stdout
            });
            if output.status.code() == Some(75) {
                assert!(err.contains("another sync is in progress, from 127.0.0.1"), "{err}");
                refused += 1;
                continue;
            }
            assert_eq!(output.status.code(), Some(0), "{err}");
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let commit = report["commit"].as_u64().unwrap();
            commits += 1;
            if last.as_ref().is_none_or(|(before, _)| *before < commit) {
                last = Some((commit, tree(&developer.src)));
            }
        }
        let (commit, expected) = last.expect("one of two gets through");
        assert_eq!(tree(&device.root), expected, "round {round}");
        assert_eq!(device.ask("GET", "/sync")["commit"], commit);
    }
    println!("{commits} commits, {refused} refused");
    assert!(refused > 0 && commits >= 25, "{commits} commits, {refused} refused: they never met");
    device.daemon.check_log();
}

/// A sync under way keeps others out; one whose client went silent gives way, and its client is told so.
#[test]
fn a_sync_under_way_keeps_others_out_until_it_is_silent() {
    need!("openssl");
    let scratch = Scratch::new("sts");
    let mut device = Device::start(&scratch, &Setup::default());
    let (ann, bob) = (Developer::new(&scratch, "ann"), Developer::new(&scratch, "bob"));
    ann.write("model.bin", (0..40_000_000u32).map(|n| (n.wrapping_mul(n) >> 9) as u8).collect::<Vec<_>>());
    bob.write("main.py", "print('bob')\n");
    let proxy = Proxy::start(device.port);
    let direct = std::mem::replace(&mut device.port, proxy.port);
    let slow = ann.sync(&device).spawn().unwrap();
    wait_for("a part of it", LONG, || (proxy.passed() > 4 << 20).then_some(()));
    proxy.stall(true);
    device.port = direct;
    let outcome = Outcome::of(&mut bob.sync(&device));
    assert_eq!(outcome.code, 75, "{outcome:?}");
    assert!(
        outcome.out.contains("another sync is in progress") && outcome.out.contains("wait until"),
        "{outcome:?}"
    );
    wait_for("Ann's to give way", Duration::from_secs(30), || {
        let outcome = Outcome::of(&mut bob.sync(&device));
        assert!([0, 75].contains(&outcome.code), "{outcome:?}");
        (outcome.code == 0).then_some(())
    });
    proxy.stall(false);
    let output = slow.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(if output.status.success() { &output.stderr } else { &output.stdout });
    assert_eq!(output.status.code(), Some(75), "{err}");
    assert!(err.contains("gave way to another") && !err.contains("is it sideloadd"), "{err}");
    assert_eq!(tree(&device.root), tree(&bob.src));
    device.daemon.check_log();
}

/// The client dies while the device makes its commit durable. The commit stands, and so does the restart.
#[test]
fn the_restart_happens_although_its_client_is_lost() {
    need!("openssl", "python3", "strace");
    let mut strace = Command::new("strace");
    if !strace.args(["-o", "/dev/null", "true"]).stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
        skip!("strace is not permitted to trace here");
    }
    let scratch = Scratch::new("str");
    let keys = e2e::sideload::Keys::openssl(&scratch, "keys");
    let mut device = Device::new(&scratch, "dev", keys, &Setup::default());
    // Each flush takes so long that the client dies within.
    let slow = "inject=fsync,syncfs:delay_enter=400000";
    device.daemon.wrap(&[
        "strace",
        "-D",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "trace=fsync,syncfs",
        "-e",
        slow,
    ]);
    device.daemon.start_ready();
    let program = |text: &str| format!("import time\nprint('{text}', flush=True)\ntime.sleep(600)\n");
    device.write("main.py", program("the first one"));
    device.sync(&["--restart"]);
    device.wait_output("the first one", SOON);
    let journal = device.root.join(".sideloadd/stage/journal");
    let lose = |mut client: Process, proxy: &Proxy, reset: bool| {
        wait_for("the commit to be under way", SOON, || journal.exists().then_some(()));
        if reset {
            proxy.reset();
        }
        client.kill9();
    };
    let direct = device.port;
    for (reset, text) in [(false, "the second one"), (true, "the third one")] {
        let proxy = Proxy::start(direct);
        device.port = proxy.port;
        device.write("main.py", program(text));
        lose(Process::start("sideload", device.sync_command().arg("--restart")), &proxy, reset);
        device.port = direct;
        device.wait_output(text, SOON);
        assert_eq!(tree(&device.root), tree(&device.src));
    }
    // The same for going back.
    let proxy = Proxy::start(direct);
    device.port = proxy.port;
    lose(
        Process::start("sideload", device.command(&["rollback"]).args(["--restart", "--json"])),
        &proxy,
        true,
    );
    device.port = direct;
    wait_for("the second one again", SOON, || {
        (device.output().iter().filter(|line| line.contains("the second one")).count() == 2).then_some(())
    });
    device.daemon.wait_log("whoever asked for the restart is gone", SOON);
    device.daemon.check_log();
}

/// What is in the way on the device is no other sync, and a device that is busy is not away.
#[test]
fn what_is_in_the_way_is_named_and_a_busy_device_is_not_away() {
    need!("openssl", "python3");
    let scratch = Scratch::new("stw");
    let mut device = Device::start(&scratch, &Setup::default());
    let elsewhere = scratch.dir("elsewhere");
    symlink(&elsewhere, device.root.join("data")).unwrap();
    device.write("data/x", "x");
    let outcome = Outcome::of(&mut device.sync_command());
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.out.contains("data is no folder on the device"), "{outcome:?}");
    assert!(!outcome.out.contains("other sync"), "{outcome:?}");
    assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
    std::fs::remove_file(device.root.join("data")).unwrap();

    // Ann's sync is held up; Bob's `dev` waits for it and says why.
    let ann = Developer::new(&scratch, "ann");
    ann.write("model.bin", (0..40_000_000u32).map(|n| (n.wrapping_mul(n) >> 9) as u8).collect::<Vec<_>>());
    let proxy = Proxy::start(device.port);
    let direct = std::mem::replace(&mut device.port, proxy.port);
    let slow = ann.sync(&device).spawn().unwrap();
    device.port = direct;
    wait_for("a part of it", LONG, || (proxy.passed() > 4 << 20).then_some(()));
    proxy.stall(true);
    device.write("main.py", "import time\nprint('bob', flush=True)\ntime.sleep(600)\n");
    let mut dev = Process::start("sideload dev", device.command(&["dev"]).arg("--src-top").arg(&device.src));
    // A little of Ann's comes through now and then, lest it is silent for too long where Bob's is slow to begin.
    let mut heard = Instant::now();
    wait_for("the reason", SOON, || {
        if heard.elapsed() > Duration::from_secs(3) {
            let before = proxy.passed();
            proxy.stall(false);
            wait_for("a little more", SOON, || (proxy.passed() > before).then_some(()));
            proxy.stall(true);
            heard = Instant::now();
        }
        dev.lines.contain("not now: another sync is in progress").then_some(())
    });
    proxy.stall(false);
    assert!(slow.wait_with_output().unwrap().status.success());
    // It would delete Ann's model, one of one: that takes a word from Bob, and is said as such.
    wait_for("the next reason", SOON, || dev.lines.contain("this would delete 1 of the 1").then_some(()));
    let lines = dev.lines.all().join("\n");
    assert!(!lines.contains("is away") && !lines.contains("is back"), "{lines}");
    dev.kill9();
    device.daemon.check_log();
}

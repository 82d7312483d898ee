//! `sideload dev`: what editors do to files, and what the device makes of it.

use std::time::{Duration, Instant};

use e2e::env::wait_for;
use e2e::need;
use e2e::process::Process;
use e2e::scratch::Scratch;
use e2e::sideload::{Device, Outcome, Setup, tree};

const SOON: Duration = Duration::from_secs(90);

/// A device and a running `sideload dev` whose application prints `version N`.
fn dev(scratch: &Scratch, more: &str) -> (Device, Process) {
    let device = Device::start(scratch, &Setup::default());
    save(&device, 0);
    device.write("pkg/data.txt", "0");
    let toml = format!(
        "addr = \"127.0.0.1\"\nport = {}\ncert-key-dir = \"{}\"\n[dev]\ncheck-timeout-ms = 60000\n{more}",
        device.port,
        device.keys.dir.display()
    );
    device.write("sideload.toml", toml);
    device.write(".sideloadignore", "sideload.toml\n.sideloadignore\n");
    let mut command = std::process::Command::new(e2e::env::bin("sideload"));
    command.arg("dev").current_dir(&device.src).env("XDG_CACHE_HOME", scratch.dir("dev-cache"));
    let process = Process::start("sideload dev", &mut command);
    wait_for("the first version", SOON, || process.lines.contain("version 0").then_some(()));
    (device, process)
}

fn source(version: u32) -> String {
    format!("import time\nprint('version', {version}, flush=True)\ntime.sleep(600)\n")
}

fn save(device: &Device, version: u32) {
    device.write("main.py", source(version));
}

/// Whether the device has what the developer has, ignored files aside.
fn same(device: &Device) -> bool {
    let mut mine = std::panic::catch_unwind(|| tree(&device.src)).unwrap_or_default();
    mine.retain(|path, _| !path.contains("sideload") && !path.contains("__pycache__"));
    std::panic::catch_unwind(|| tree(&device.root)).is_ok_and(|there| there == mine)
}

fn wait_same(device: &Device, what: &str) {
    wait_for(what, SOON, || same(device).then_some(()));
}

fn count(process: &Process, text: &str) -> usize {
    process.lines.all().iter().filter(|l| l.contains(text)).count()
}

/// One save: one line that tells of it, and the new code's output.
#[test]
fn a_save_is_running_a_moment_later() {
    need!("openssl", "python3");
    let scratch = Scratch::new("svs");
    let (device, mut process) = dev(&scratch, "");
    let mut times = Vec::new();
    for version in 1..=10 {
        let start = Instant::now();
        save(&device, version);
        wait_for("the new code", SOON, || process.lines.contain(&format!("version {version}")).then_some(()));
        times.push(start.elapsed());
    }
    times.sort();
    println!("save to first log line, debug build: median {:?}, worst {:?}", times[5], times[9]);
    wait_for("a line for each save", SOON, || (count(&process, "saved main.py") >= 10).then_some(()));
    process.signal(rustix::process::Signal::INT);
    process.wait_exit(SOON);
    // The application goes on: the developer only stopped watching.
    assert_eq!(device.status()["app"]["state"], "running");
    device.daemon.check_log();
}

/// Many saves in a short time are few restarts, and the last one is what runs.
#[test]
fn a_storm_of_saves_ends_with_the_last_one() {
    need!("openssl", "python3");
    let scratch = Scratch::new("svt");
    let (device, process) = dev(&scratch, "");
    for version in 1..=60 {
        save(&device, version);
        device.write(&format!("pkg/f{version}.txt"), format!("{version}"));
        std::thread::sleep(Duration::from_millis(10));
    }
    wait_for("the last version", SOON, || process.lines.contain("version 60").then_some(()));
    wait_same(&device, "all files");
    let restarts = count(&process, "saved ");
    println!("60 saves were {restarts} syncs");
    assert!((1..50).contains(&restarts), "they are not joined: {}", process.lines.tail(70));
    device.daemon.check_log();
}

/// A save as editors do it: a temporary file beside, then renamed over the old one.
#[test]
fn an_editors_rename_is_a_save() {
    need!("openssl", "python3");
    let scratch = Scratch::new("svr");
    let (device, process) = dev(&scratch, "");
    for version in 1..=3 {
        // vim: the old one becomes a backup, the new one is written afresh. Others: write beside, rename over.
        if version == 2 {
            std::fs::rename(device.src.join("main.py"), device.src.join("main.py~")).unwrap();
            save(&device, version);
            std::fs::remove_file(device.src.join("main.py~")).unwrap();
        } else {
            device.write(".main.py.swp", source(version));
            std::fs::rename(device.src.join(".main.py.swp"), device.src.join("main.py")).unwrap();
        }
        wait_for("the new code", SOON, || process.lines.contain(&format!("version {version}")).then_some(()));
    }
    wait_same(&device, "no temporary file is left");
}

/// Folders that go, come with content at once, and are renamed.
#[test]
fn folders_come_and_go() {
    need!("openssl", "python3");
    let scratch = Scratch::new("svf");
    let (device, process) = dev(&scratch, "");
    std::fs::remove_dir_all(device.src.join("pkg")).unwrap();
    wait_same(&device, "a deleted folder");
    assert!(!device.root.join("pkg/data.txt").exists());
    // Files are in the new folders before anybody can watch them.
    for n in 0..20 {
        device.write(&format!("new/a/b/c{n}/file.txt"), format!("{n}"));
    }
    wait_same(&device, "new folders");
    device.write("new/a/b/c3/later.txt", "watched as well");
    wait_same(&device, "a file in a new folder");
    std::fs::rename(device.src.join("new/a"), device.src.join("moved")).unwrap();
    wait_same(&device, "a renamed folder");
    device.write("moved/b/c3/later.txt", "still watched");
    wait_same(&device, "a file in a renamed folder");
    // Ignored ones are neither sent nor a reason to restart. What the saves above lead to is over when a further one is
    // through.
    save(&device, 8);
    wait_for("the last restart", SOON, || {
        let lines = process.lines.all();
        lines.iter().any(|l| l.contains("saved main.py") && l.contains("-> restarted")).then_some(())
    });
    let facts = || {
        let status = device.status();
        (status["commit"]["number"].clone(), status["app"]["pid"].clone())
    };
    let before = facts();
    assert!(before.0.is_u64() && before.1.is_u64(), "{before:?}");
    device.write(".git/objects/aa/bb", "x");
    device.write("x.pem", "x");
    std::thread::sleep(Duration::from_millis(800));
    assert_eq!(facts(), before, "{}", process.lines.tail(20));
    std::fs::remove_dir_all(device.src.join(".git")).unwrap();
    std::fs::remove_file(device.src.join("x.pem")).unwrap();
    save(&device, 9);
    wait_for("the application", SOON, || process.lines.contain("version 9").then_some(()));
    device.daemon.check_log();
}

/// Code that does not compile never replaces the process that works.
#[test]
fn broken_code_leaves_the_good_process_alone() {
    need!("openssl", "python3");
    let scratch = Scratch::new("svb");
    let (device, process) = dev(&scratch, "");
    let pid = device.status()["app"]["pid"].clone();
    device.write("main.py", "def broken(:\n");
    wait_for("what is wrong", SOON, || process.lines.contain("SyntaxError").then_some(()));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(device.status()["app"]["pid"], pid, "the same process goes on");
    assert_eq!(std::fs::read_to_string(device.root.join("main.py")).unwrap(), source(0));
    save(&device, 2);
    wait_for("the repaired code", SOON, || process.lines.contain("version 2").then_some(()));
}

/// By rules a save is a signal, or nothing but a sync.
#[test]
fn rules_decide_what_a_save_leads_to() {
    need!("openssl", "python3");
    let scratch = Scratch::new("svu");
    let rules = "[[dev.rule]]\nfiles = [\"static/**\"]\naction = \"sync\"\n\
                 [[dev.rule]]\nfiles = [\"config.json\"]\naction = \"signal HUP\"\n";
    let (device, process) = dev(&scratch, rules);
    device.write(
        "main.py",
        "import signal, time\nsignal.signal(signal.SIGHUP, lambda *a: print('config read', flush=True))\n\
         print('version 1', flush=True)\nwhile True: time.sleep(0.05)\n",
    );
    wait_for("the application", SOON, || process.lines.contain("version 1").then_some(()));
    let pid = device.wait_app("running", SOON)["app"]["pid"].clone();
    device.write("static/page.html", "<p>");
    wait_same(&device, "a static file");
    device.write("config.json", "{}");
    wait_for("the signal", SOON, || process.lines.contain("config read").then_some(()));
    assert_eq!(device.status()["app"]["pid"], pid, "never restarted");
}

/// No inotify instance is left for this user: what to do is said.
#[test]
fn without_inotify_instances_it_says_what_to_raise() {
    need!("openssl", "unshare");
    let scratch = Scratch::new("svi");
    let device = Device::start(&scratch, &Setup::default());
    save(&device, 0);
    let script = "echo 0 > /proc/sys/user/max_inotify_instances && exec \"$@\"";
    let limited = |command: &std::process::Command| {
        let mut bare = std::process::Command::new("unshare");
        bare.args(["--user", "--map-root-user", "sh", "-c", script, "sh"]);
        Outcome::of(bare.arg(command.get_program()).args(command.get_args()))
    };
    if limited(&std::process::Command::new("true")).code != 0 {
        e2e::skip!("no user namespace with a limit of its own can be made");
    }
    let outcome = limited(device.command(&["dev"]).arg("--src-top").arg(&device.src));
    assert_eq!(outcome.code, 74, "{outcome:?}");
    for text in ["no inotify instances left", "sysctl fs.inotify.max_user_instances="] {
        assert!(outcome.err.contains(text), "{text}: {outcome:?}");
    }
}

/// The device goes away and comes back: `dev` goes on by itself, and what was saved meanwhile arrives.
#[test]
fn a_device_that_comes_back_is_caught_up_with() {
    need!("openssl", "python3");
    let scratch = Scratch::new("svc");
    let (mut device, mut process) = dev(&scratch, "");
    device.daemon.kill9();
    save(&device, 5);
    std::thread::sleep(Duration::from_secs(1));
    assert!(process.exited().is_none(), "{}", process.lines.tail(20));
    device.daemon.start_ready();
    wait_for("what was saved meanwhile", Duration::from_secs(40), || {
        process.lines.contain("version 5").then_some(())
    });
}

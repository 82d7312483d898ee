//! The sideloaded application as a process: its children, its ends, its output, and what happens when it crashes.

use std::time::Duration;

use e2e::env::wait_for;
use e2e::need;
use e2e::process::Process;
use e2e::proxy::Proxy;
use e2e::scratch::Scratch;
use e2e::sideload::{Device, Keys, Outcome, Setup, tree};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(90);

/// Whether a process is there and no zombie.
fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().next())
        .is_some_and(|state| state != "Z" && state != "X")
}

/// Children in the background, in sessions of their own, forked twice, deaf to SIGTERM: none outlives kill-app.
#[test]
fn kill_app_ends_everything_that_was_forked() {
    need!("openssl", "setsid", "python3");
    let scratch = Scratch::new("spf");
    let mut device = Device::start(&scratch, &Setup::default());
    let pids = scratch.dir("pids");
    let note = |name: &str| format!("echo $$ > {}/{name}; mv {0}/{name} {0}/{name}.pid", pids.display());
    device.write(
        "main.sh",
        format!(
            "#!/bin/sh\n{}\n\
             sh -c '{}; exec sleep 600' &\n\
             setsid sh -c '{}; exec sleep 600' &\n\
             (setsid sh -c '(sh -c \"{}; exec sleep 600\" &) ; exit 0' &)\n\
             sh -c 'trap \"\" TERM; {}; while :; do sleep 1; done' &\n\
             python3 daemon.py &\n\
             wait\n",
            note("main"),
            note("plain"),
            note("session"),
            note("double").replace('$', "\\$"),
            note("deaf"),
        ),
    );
    device.write(
        "daemon.py",
        format!(
            "import os, signal, time\n\
             if os.fork(): os._exit(0)\n\
             os.setsid()\n\
             if os.fork(): os._exit(0)\n\
             signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
             open('{0}/py', 'w').write(str(os.getpid()))\n\
             os.rename('{0}/py', '{0}/py.pid')\n\
             time.sleep(600)\n",
            pids.display()
        ),
    );
    device.sync(&[]);
    for round in 0..2 {
        device.ok(&["run-app"]);
        let found: Vec<u32> = wait_for("six processes", SOON, || {
            let read = |p: std::path::PathBuf| std::fs::read_to_string(p).ok()?.trim().parse().ok();
            let files =
                e2e::scratch::files(&pids).into_iter().filter(|p| p.extension().is_some_and(|e| e == "pid"));
            let found: Vec<u32> = files.filter_map(read).collect();
            (found.len() == 6).then_some(found)
        });
        assert!(found.iter().all(|pid| alive(*pid)), "{found:?}");
        // By hand, and by the daemon's own end.
        if round == 0 {
            device.ok(&["kill-app"]);
            assert_eq!(device.status()["app"]["state"], "stopped");
        } else {
            assert_eq!(device.daemon.term().code(), Some(0));
        }
        let left: Vec<&u32> = found.iter().filter(|pid| alive(**pid)).collect();
        assert!(left.is_empty(), "round {round}: still there: {left:?} of {found:?}");
        for path in e2e::scratch::files(&pids) {
            std::fs::remove_file(path).unwrap();
        }
    }
    device.daemon.check_log();
}

/// What shows the daemon another /proc before it starts: nobody's processes but those it may look into (as systemd's
/// `ProtectProc=invisible`), none at all, or those of another namespace.
const HIDDEN: &str = "mount -t proc -o hidepid=2 proc /proc && \
                      exec setpriv --regid 65534 --clear-groups --bounding-set=-all --inh-caps=-all \"$@\"";
const NO_PROC: &str = "mount -t tmpfs none /proc && exec \"$@\"";
const FOREIGN: &str = "exec \"$@\"";

/// A device whose daemon is started by `unshare FLAGS sh -c SCRIPT`; `None` where that can't be done here.
fn behind(scratch: &Scratch, flags: &[&str], script: &str) -> Option<Device> {
    let wrap: Vec<&str> =
        std::iter::once("unshare").chain(flags.iter().copied()).chain(["sh", "-c", script, "sh"]).collect();
    let probe = std::process::Command::new(wrap[0]).args(&wrap[1..]).arg("true").output();
    if !probe.is_ok_and(|out| out.status.success()) {
        return None;
    }
    let mut device = Device::new(scratch, "dev", Keys::openssl(scratch, "keys"), &Setup::default());
    device.daemon.wrap(&wrap).start_ready();
    Some(device)
}

/// One that can't be looked into (as ssh-agent), another below it, and one of those in a session of its own: all end,
/// whether asked for or by the daemon's own end.
#[test]
fn kill_app_ends_what_proc_does_not_show() {
    need!("openssl", "python3", "unshare", "setpriv");
    let scratch = Scratch::new("spi");
    let Some(mut device) = behind(&scratch, &["--mount"], HIDDEN) else {
        e2e::skip!("no mount namespace with another /proc can be made (root is needed)");
    };
    let pids = scratch.join("pids");
    device.write(
        "main.py",
        format!(
            "import ctypes, os, signal, time\n\
             def hide():\n    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n    signal.signal(15, signal.SIG_IGN)\n\
             def stay():\n    open({0:?}, 'a').write('%d\\n' % os.getpid())\n    while True: time.sleep(1)\n\
             if os.fork() == 0:\n    hide()\n    os.setsid()\n    if os.fork() == 0: os.setsid()\n    stay()\n\
             if os.fork() == 0: hide(); stay()\n\
             stay()\n",
            pids.display().to_string()
        ),
    );
    device.sync(&[]);
    for round in 0..2 {
        device.ok(&["run-app"]);
        let found: Vec<u32> = wait_for("four processes", SOON, || {
            let text = std::fs::read_to_string(&pids).ok()?;
            let found: Vec<u32> = text.lines().filter_map(|l| l.parse().ok()).collect();
            (found.len() == 4).then_some(found)
        });
        assert!(found.iter().all(|pid| alive(*pid)), "{found:?}");
        let start = std::time::Instant::now();
        if round == 0 {
            device.ok(&["kill-app"]);
            assert_eq!(device.status()["app"]["state"], "stopped");
        } else {
            assert_eq!(device.daemon.term().code(), Some(0));
        }
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
        let left: Vec<&u32> = found.iter().filter(|pid| alive(**pid)).collect();
        assert!(left.is_empty(), "round {round}: still there: {left:?} of {found:?}");
        std::fs::remove_file(&pids).unwrap();
    }
    device.daemon.check_log();
}

/// Without /proc, and with that of another namespace, whose numbers mean others: the daemon says so, ends the
/// application all the same, and nobody else.
#[test]
fn kill_app_needs_no_proc() {
    need!("openssl", "python3", "unshare");
    for (name, flags, script) in [
        ("spn", &["--mount"][..], NO_PROC),
        ("spx", &["--mount", "--pid", "--fork", "--kill-child"][..], FOREIGN),
    ] {
        let scratch = Scratch::new(name);
        let Some(device) = behind(&scratch, flags, script) else {
            e2e::skip!("no namespace with another /proc can be made (root is needed)");
        };
        device.write(
            "main.py",
            "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\n\
             if os.fork() == 0: os.setsid()\n\
             os.write(1, b'up\\n')\nwhile True: time.sleep(1)\n",
        );
        device.sync(&[]);
        device.ok(&["run-app"]);
        wait_for("both", SOON, || (device.output().iter().filter(|l| *l == "up").count() == 2).then_some(()));
        let start = std::time::Instant::now();
        let stopped = device.ok(&["kill-app"]);
        assert!(stopped.to_string().contains("signal 9"), "{stopped}");
        assert!(start.elapsed() < Duration::from_secs(8), "{name}: {:?}", start.elapsed());
        assert_eq!(device.status()["app"]["state"], "stopped");
        assert!(device.daemon.lines.contain("/proc"), "{name}: it says that /proc is none of its own");
    }
}

/// A process that KILL does not end, as one that a driver holds: here the freezer of cgroup v1 does.
struct Frozen(std::path::PathBuf);

impl Frozen {
    fn new(pid: &str) -> std::io::Result<Frozen> {
        let group =
            std::path::Path::new("/sys/fs/cgroup/freezer").join(format!("edge-{}", std::process::id()));
        std::fs::create_dir(&group)?;
        let frozen = Frozen(group);
        std::fs::write(frozen.0.join("cgroup.procs"), pid)?;
        std::fs::write(frozen.0.join("freezer.state"), "FROZEN")?;
        wait_for("the freezer", SOON, || {
            std::fs::read_to_string(frozen.0.join("freezer.state"))
                .is_ok_and(|s| s == "FROZEN\n")
                .then_some(())
        });
        Ok(frozen)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Best effort; it may not be there.
        let _ = std::fs::write(self.0.join("freezer.state"), "THAWED");
        for _ in 0..200 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What KILL does not end is named and left after ten seconds; the application can be run again, and the daemon ends.
#[test]
fn what_can_not_be_killed_is_named_and_left() {
    need!("openssl", "python3");
    let scratch = Scratch::new("spz");
    let mut device = Device::start(&scratch, &Setup::default());
    device.write(
        "main.py",
        "import os, time\nif os.fork() == 0: os.setsid()\nos.write(1, b'pid %d\\n' % os.getpid())\n\
         while True: time.sleep(1)\n",
    );
    device.sync(&[]);
    let first = device.ok(&["run-app"])["pid"].to_string();
    let two = |device: &Device, lines: usize| -> Vec<String> {
        wait_for("both processes", SOON, || {
            let pids = device.output().into_iter().filter_map(|l| l.strip_prefix("pid ").map(str::to_owned));
            let pids: Vec<String> = pids.collect();
            (pids.len() == lines).then_some(pids)
        })
    };
    let child = two(&device, 2).into_iter().find(|pid| *pid != first).unwrap();
    let Ok(frozen) = Frozen::new(&child) else {
        e2e::skip!("no freezer of cgroup v1 can be used (root is needed)");
    };
    let start = std::time::Instant::now();
    let outcome = device.cli(&["kill-app"]);
    let took = start.elapsed();
    assert!(outcome.code != 0 && outcome.err.contains(&format!("pid {child} (python")), "{outcome:?}");
    assert!(took > Duration::from_secs(10) && took < Duration::from_secs(15), "{took:?}");
    assert!(!alive(first.parse().unwrap()), "the others did end");
    assert_eq!(device.status()["app"]["state"], "stopped");
    let cpu_ms = device.daemon.usage().cpu_ms;
    assert!(cpu_ms < 2000, "no hot loop: {cpu_ms} ms of CPU in {took:?}");
    device.ok(&["run-app"]);
    let pids = two(&device, 4);
    // The daemon's own end waits for it less long.
    let start = std::time::Instant::now();
    assert_eq!(device.daemon.term().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(device.daemon.lines.contain(&format!("left behind: pid {child} (python")));
    drop(frozen);
    let gone = |pid: &String| !alive(pid.parse().unwrap());
    wait_for("the thawed one to have had its KILL", SOON, || pids.iter().all(gone).then_some(()));
}

/// An application that ends by itself: how is reported, and it can be run again.
#[test]
fn an_application_that_ends_by_itself_can_run_again() {
    need!("openssl", "python3");
    let scratch = Scratch::new("spe");
    let device = Device::start(&scratch, &Setup::default());
    device.write("main.py", "import os, sys\nprint('in', os.getcwd(), flush=True)\nsys.exit(7)\n");
    device.sync(&[]);
    for _ in 0..3 {
        device.ok(&["run-app"]);
        let status = device.wait_app("stopped", SOON);
        assert!(status["app"]["last_exit"].to_string().contains('7'), "{}", status["app"]);
        let outcome = device.cli(&["kill-app"]);
        assert_eq!(outcome.code, 1, "nothing to kill: {outcome:?}");
    }
    let said = device.output();
    let cwd = format!("in {}", device.root.canonicalize().unwrap().display());
    assert_eq!(said.iter().filter(|l| **l == cwd).count(), 3, "{said:?}");
    // main.sh comes before main.py, and the sideloaded one before the deployed one.
    std::fs::write(device.fallback.join("main.sh"), "#!/bin/sh\necho deployed\n").unwrap();
    device.write("main.sh", "echo shell\n");
    device.sync(&[]);
    device.ok(&["run-app"]);
    device.wait_output("shell", SOON);
    device.wait_app("stopped", SOON);
    device.cli(&["delete-file", "main.sh"]);
    device.cli(&["delete-file", "main.py"]);
    device.ok(&["run-app"]);
    device.wait_output("deployed", SOON);
}

/// Restarted on failure with a growing pause, not after a good end; a stop by hand is not undone.
#[test]
fn the_restart_policy_is_kept() {
    need!("openssl", "python3");
    let scratch = Scratch::new("spp");
    let app =
        "restart = \"on-failure\"\nbackoff-min-ms = 500\nbackoff-max-ms = 1000\nstop-timeout-ms = 1000\n";
    let device = Device::start(&scratch, &Setup { app: app.into(), ..Setup::default() });
    let count = scratch.join("count");
    device.write(
        "main.py",
        format!(
            "import sys, time\nopen({0:?}, 'a').write('x')\nn = len(open({0:?}).read())\nprint('start', n, flush=True)\n\
             if n < 3: sys.exit(1)\nif n == 3: time.sleep(600)\nsys.exit(0)\n",
            count.display().to_string()
        ),
    );
    device.sync(&[]);
    device.ok(&["run-app"]);
    device.wait_output("start 3", SOON);
    let status = device.wait_app("running", SOON);
    assert_eq!(status["app"]["restarts"], 2, "{}", status["app"]);
    device.ok(&["kill-app"]);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(device.status()["app"]["state"], "stopped");
    device.ok(&["run-app"]);
    device.wait_output("start 4", SOON);
    device.wait_app("stopped", SOON);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!device.output().iter().any(|l| l == "start 5"), "it ended well: no restart");
}

/// `sideload logs -f` through a connection that is cut again and again: each line once, in order.
#[test]
fn following_the_log_loses_and_doubles_nothing_across_reconnects() {
    need!("openssl", "python3");
    let scratch = Scratch::new("spl");
    let mut device = Device::start(&scratch, &Setup::default());
    device.write(
        "main.py",
        "import sys, time\nfor n in range(6000):\n    print('line', n, flush=True)\n    if n % 10 == 0: time.sleep(0.01)\n\
         sys.stderr.write('done\\n')\ntime.sleep(600)\n",
    );
    device.sync(&[]);
    let proxy = Proxy::start(device.port);
    let direct = std::mem::replace(&mut device.port, proxy.port);
    let mut follower = Process::start("sideload", &mut device.command(&["logs", "-f", "--json"]));
    device.port = direct;
    device.ok(&["run-app"]);
    wait_for("the first connection", SOON, || (proxy.accepted() >= 1).then_some(()));
    // Until they were felt, which is when the follower has come back three times.
    wait_for("new connections", Duration::from_secs(40), || {
        std::thread::sleep(Duration::from_millis(250));
        proxy.cut();
        (proxy.accepted() >= 4).then_some(())
    });
    wait_for("the last line", Duration::from_secs(60), || follower.lines.contain("\"done\"").then_some(()));
    let entries: Vec<Value> =
        follower.lines.all().iter().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let lines = entries.iter().filter(|e| e["stream"] == "stdout").filter_map(|e| e["line"].as_str());
    let lines: Vec<&str> = lines.collect();
    let expected: Vec<String> = (0..6000).map(|n| format!("line {n}")).collect();
    assert_eq!(
        lines.len(),
        6000,
        "first difference: {:?}",
        lines.iter().zip(&expected).find(|(a, b)| a != b)
    );
    assert!(lines.iter().zip(&expected).all(|(a, b)| a == b));
    assert!(entries.iter().all(|e| e.get("gap").is_none()), "the ring was large enough");
    follower.kill9();
    device.daemon.check_log();
}

/// What the ring has lost is marked with its number, after a small ring ran over and after the daemon was restarted.
#[test]
fn what_the_log_has_lost_is_marked() {
    need!("openssl", "python3");
    let scratch = Scratch::new("spg");
    let setup = Setup { more: "[logs]\nbytes-max = \"64 KiB\"\n".into(), ..Setup::default() };
    let mut device = Device::start(&scratch, &setup);
    device.write(
        "main.py",
        "for n in range(20000): print('line', n)\nprint('end', flush=True)\nimport time\ntime.sleep(600)\n",
    );
    device.sync(&[]);
    device.ok(&["run-app"]);
    device.wait_output("end", SOON);
    let read = |since: &str| -> Vec<Value> {
        let (status, body) = device.curl("GET", &format!("/application/logs?since={since}"));
        assert_eq!(status, 200, "{body}");
        body.lines().filter(|l| !l.is_empty()).map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let last = read("0.0").last().unwrap()["seq"].as_str().unwrap().to_owned();
    let (epoch, newest) = last.split_once('.').unwrap();
    let newest: u64 = newest.parse().unwrap();
    let entries = read(&format!("{epoch}.5"));
    let gap = entries[0]["gap"].as_u64().unwrap_or_else(|| panic!("a gap first: {}", entries[0]));
    assert!(gap > 1000, "{}", entries[0]);
    assert_eq!(5 + gap + (entries.len() as u64 - 1), newest, "gap and lines add up");
    let numbers: Vec<u64> = entries[1..]
        .iter()
        .map(|e| e["seq"].as_str().unwrap().split_once('.').unwrap().1.parse().unwrap())
        .collect();
    assert!(numbers.windows(2).all(|w| w[1] == w[0] + 1), "no line twice or missing behind it");
    let rss = device.daemon.usage().rss_peak_kb;
    assert!(rss < 32 * 1024, "20000 lines passed through a ring of 64 KiB: {rss} kB");
    // After a restart the old position is of another epoch: the client is told, and gets what there is.
    device.daemon.term();
    device.daemon.start_ready();
    device.ok(&["run-app"]);
    device.wait_output("end", SOON);
    let (status, body) = device.curl("GET", &format!("/application/logs?since={last}"));
    assert_eq!(status, 200);
    let first: Value = serde_json::from_str(body.lines().find(|l| !l.is_empty()).unwrap()).unwrap();
    assert!(first.get("gap").is_some(), "{first}");
    device.daemon.check_log();
}

/// A commit whose application crashes at once is taken back, and the one before runs.
#[test]
fn a_crash_after_a_sync_restores_the_commit_before() {
    need!("openssl", "python3");
    let scratch = Scratch::new("spc");
    let app = "restart = \"on-failure\"\nbackoff-min-ms = 500\nstop-timeout-ms = 1000\n\
               crash-window-s = 8\nrollback-on-crash = true\n";
    let device = Device::start(&scratch, &Setup { app: app.into(), ..Setup::default() });
    device.write("main.py", "import time\nprint('good one', flush=True)\ntime.sleep(600)\n");
    device.write("lib/a.py", "A = 1\n");
    let good = device.sync(&["--restart"])["commit"].clone();
    device.wait_output("good one", SOON);
    let tree_of_good = tree(&device.root);
    device.write("main.py", "print('bad one', flush=True)\nraise SystemExit(3)\n");
    device.write("lib/b.py", "B = 1\n");
    let bad = device.sync(&["--restart"])["commit"].clone();
    assert_ne!(good, bad);
    wait_for("the good tree", SOON, || (tree(&device.root) == tree_of_good).then_some(()));
    wait_for("the good application", SOON, || {
        (device.output().iter().filter(|l| *l == "good one").count() == 2).then_some(())
    });
    assert_eq!(device.wait_app("running", SOON)["app"]["state"], "running");
    let (_, log) = device.curl("GET", "/application/logs");
    let told = log.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
    let told: Vec<String> = told
        .filter(|e| e["stream"] == "agent")
        .filter_map(|e| e["line"].as_str().map(str::to_owned))
        .collect();
    assert!(
        told.iter().any(|l| l.contains("going back to the commit before")),
        "the log tells of it: {told:?}"
    );
    // What crashes for a reason of its own much later is not a commit's fault.
    device.daemon.check_log();
}

/// A signal by name reaches the application; one that makes no sense is refused.
#[test]
fn a_signal_reaches_the_application() {
    need!("openssl", "python3");
    let scratch = Scratch::new("sph");
    let device = Device::start(&scratch, &Setup::default());
    device.write(
        "main.py",
        "import signal, time\nsignal.signal(signal.SIGHUP, lambda *a: print('read again', flush=True))\n\
         print('ready', flush=True)\nwhile True: time.sleep(0.1)\n",
    );
    device.sync(&[]);
    assert_eq!(device.curl("POST", "/application/signal?name=HUP").0, 409);
    device.ok(&["run-app"]);
    device.wait_output("ready", SOON);
    device.ask("POST", "/application/signal?name=HUP");
    device.wait_output("read again", SOON);
    assert_eq!(device.curl("POST", "/application/signal?name=KILL").0, 400);
    let stopped = device.ok(&["kill-app"]);
    assert!(stopped.to_string().contains("signal 15"), "{stopped}");
}

/// `doctor` finds nothing on a good device, and an end of certificates that is near or here.
#[test]
fn doctor_tells_good_from_bad() {
    need!("openssl", "python3");
    let scratch = Scratch::new("spd");
    let keys = Keys::tool(&scratch, "k");
    let mut device = Device::new(&scratch, "dev", keys, &Setup::default());
    device.daemon.start_ready();
    device.write("main.py", "print(1)\n");
    device.sync(&[]);
    let doctor = |device: &Device| {
        let src = device.src.to_string_lossy().into_owned();
        Outcome::of(device.command(&["doctor"]).args(["--src-top", &src]))
    };
    let outcome = doctor(&device);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    device.daemon.kill9();
    let outcome = doctor(&device);
    assert_eq!(outcome.code, 69, "{outcome:?}");
    assert!(outcome.out.contains("fail") || outcome.err.contains("fail"), "{outcome:?}");
}

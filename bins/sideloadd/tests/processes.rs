//! Real processes: children that fork, leave the group, ignore TERM, write a lot and end at once.
//!
//! All of them are children of this one test process, which is their subreaper: one test at a time.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use edge::signal::Signals;
use rustix::process::{Pid, Signal};
use sideloadd::app::{App, Entry, Launcher};
use sideloadd::core::Exit;
use sideloadd::logs::{Position, Pumped, Ring, Stream, pump};
use sideloadd::processes::{self, Processes};

static ONE: Mutex<()> = Mutex::new(());
const LONG: Duration = Duration::from_secs(20);

struct Scene {
    top: PathBuf,
    /// The daemon's: with it TERM and others are blocked in this thread.
    _signals: Signals,
    _one: MutexGuard<'static, ()>,
}

impl Scene {
    fn new(name: &str) -> Scene {
        let one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        processes::adopt_orphans().unwrap();
        let top = std::env::temp_dir().join(format!("sideloadd-processes-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&top);
        std::fs::create_dir_all(&top).unwrap();
        Scene { top, _signals: Signals::with_child().unwrap(), _one: one }
    }

    fn launcher(&self) -> Launcher {
        Launcher {
            root: Some(self.top.clone()),
            fallback_root: self.top.join("nowhere"),
            entrypoints: vec!["main.sh".into(), "main.py".into(), "run".into()],
            interpreters: vec![("sh".into(), vec!["/bin/sh".into()]), ("py".into(), vec!["python3".into()])],
            env: BTreeMap::from([("EXTRA".to_owned(), "yes".to_owned())]),
        }
    }

    fn entry(&self, name: &str, text: &str) -> Entry {
        std::fs::write(self.top.join(name), text).unwrap();
        self.launcher().find().unwrap()
    }

    fn start(&self, name: &str, text: &str) -> Run {
        let app = App::start(&self.entry(name, text)).unwrap();
        let processes = Processes::of(app.pid);
        Run { app, processes, ring: Ring::new(1 << 20, 1), exit: None }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let until = Instant::now() + LONG;
        let mut processes = Processes::default();
        while processes::any_descendants() && Instant::now() < until {
            processes.kill();
            processes::reap();
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = std::fs::remove_dir_all(&self.top);
    }
}

struct Run {
    app: App,
    processes: Processes,
    ring: Ring,
    exit: Option<Exit>,
}

impl Run {
    /// What the daemon does on SIGCHLD: output first, then who has ended.
    fn turn(&mut self) -> bool {
        let ended = processes::reap();
        let mut wet = false;
        for (stream, pipe) in [(Stream::Stdout, &mut self.app.stdout), (Stream::Stderr, &mut self.app.stderr)]
        {
            let Pumped { dry, ended, .. } =
                pump(pipe, stream, &mut self.ring, 1 << 16, 0, &mut |_| {}).unwrap();
            wet |= !dry;
            if ended {
                self.ring.close(stream, 0, &mut |_| {});
            }
        }
        if let Some((_, exit)) = ended.into_iter().find(|(pid, _)| *pid == self.app.pid) {
            self.exit = Some(exit);
        }
        wet
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&Run) -> bool) {
        let end = Instant::now() + LONG;
        loop {
            let wet = self.turn();
            if !wet && done(self) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {:?} {:?}", self.lines(), self.exit);
            if !wet {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let piece = self.ring.read(Some(Position { epoch: 1, line: 0 }), usize::MAX);
        let objects = piece.ndjson.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        let line = |bytes| -> serde_json::Value { serde_json::from_slice(bytes).unwrap() };
        objects.map(|o| line(o)["line"].as_str().unwrap_or("GAP").to_owned()).collect()
    }

    fn until_line(&mut self, line: &str) {
        self.until(line, |run| run.lines().iter().any(|l| l == line));
    }
}

fn is_alive(pid: &str) -> bool {
    let state = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    !state.is_empty() && !state.contains(") Z ")
}

#[test]
fn it_hears_term_has_its_folder_and_none_of_our_secrets() {
    let scene = Scene::new("environment");
    // A variable of the manager reaches this process only if its own parent set it: the program `env` does.
    let text = "echo in $(pwd); echo extra $EXTRA $PYTHONUNBUFFERED; echo <$NOTIFY_SOCKET$LISTEN_FDS>; \
                read line || echo nothing to read; trap 'echo heard; exit 3' TERM; \
                grep -E 'SigBlk|NSpgid' /proc/self/status; echo ours $(ls -l /proc/self/fd | grep -c anon_inode); \
                echo ready; while :; do sleep 0.05; done\n"
        .replace("<", "'<'")
        .replace(">;", "'>';");
    let mut run = scene.start("main.sh", &text);
    run.until_line("ready");
    let lines = run.lines();
    let folder = scene.top.canonicalize().unwrap();
    for expected in [&format!("in {}", folder.display()), "extra yes 1", "<>", "nothing to read"] {
        assert!(lines.iter().any(|l| l == expected), "{expected}: {lines:?}");
    }
    assert!(lines.iter().any(|l| l == "SigBlk:\t0000000000000000"), "{lines:?}");
    // Neither the signalfd nor anything else of a daemon.
    assert!(lines.iter().any(|l| l == "ours 0"), "{lines:?}");
    let group = rustix::process::getpgid(Pid::from_raw(run.app.pid.cast_signed())).unwrap();
    assert_eq!(group.as_raw_nonzero().get(), run.app.pid.cast_signed());
    run.processes.terminate();
    run.until("end", |run| run.exit.is_some() && !processes::any_descendants());
    assert_eq!(run.exit, Some(Exit::Code(3)));
    // The shell says of its `sleep` that it was terminated, on the other stream.
    assert!(run.lines().contains(&"heard".to_owned()));
}

#[test]
fn every_process_hears_term_once() {
    let scene = Scene::new("once");
    let text = "\
import os, signal, sys, time
def heard(number, frame):
    os.write(1, b'heard %s\\n' % name)
name = b'first'
signal.signal(signal.SIGTERM, heard)
for name_, leave in ((b'second', False), (b'third', True)):
    if os.fork() == 0:
        name = name_
        if leave: os.setsid()
        break
os.write(1, b'ready %s\\n' % name)
for _ in range(1000):
    if os.path.exists('end'): break
    time.sleep(0.05)
";
    let mut run = scene.start("main.py", text);
    for name in ["ready first", "ready second", "ready third"] {
        run.until_line(name);
    }
    run.processes.terminate();
    for name in ["heard first", "heard second", "heard third"] {
        run.until_line(name);
    }
    // They end by themselves, and hear before that whatever was sent to them.
    std::fs::write(scene.top.join("end"), "").unwrap();
    run.until("end", |_| !processes::any_descendants());
    assert_eq!(run.lines().iter().filter(|l| l.starts_with("heard")).count(), 3, "{:?}", run.lines());
}

#[test]
fn whoever_left_the_group_or_forked_twice_is_killed_too() {
    let scene = Scene::new("descendants");
    let text = "\
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
def say(what): os.write(1, b'%s %d\\n' % (what, os.getpid()))
def stay():
    while True: time.sleep(60)
if os.fork() == 0: say(b'child'); stay()
if os.fork() == 0: os.setsid(); say(b'session'); stay()
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    os.closerange(3, 20); say(b'daemon'); stay()
say(b'first')
stay()
";
    let mut run = scene.start("main.py", text);
    let has = |run: &Run, what: &str| run.lines().iter().any(|l| l.starts_with(what));
    run.until("four", |run| ["child", "session", "daemon", "first"].iter().all(|w| has(run, w)));
    let pids: Vec<String> = run.lines().iter().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect();
    run.processes.terminate();
    std::thread::sleep(Duration::from_millis(50));
    run.turn();
    assert!(pids.iter().all(|pid| is_alive(pid)), "TERM is ignored by all of them");
    // As after an exit of the first process alone.
    rustix::process::kill_process(Pid::from_raw(run.app.pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    run.until("the first", |run| run.exit.is_some());
    assert_eq!(run.exit.unwrap().to_string(), "signal 9 (KILL)");
    assert!(processes::any_descendants());
    run.processes.kill();
    run.until("all", |_| !processes::any_descendants());
    assert!(!pids.iter().any(|pid| is_alive(pid)));
}

/// Runs the test of this name once more, in a mount namespace (and what `flags` add) that `script` has changed; its
/// output. `None` in that run itself; panics unless it succeeds.
fn elsewhere(name: &str, flags: &[&str], script: &str) -> Option<Result<(), String>> {
    const INSIDE: &str = "SIDELOADD_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        return None;
    }
    // Its process is a child of this one, as an application would be.
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let wrapped = |arguments: &[&str]| {
        let mut command = std::process::Command::new("unshare");
        command.arg("--mount").args(flags).args(["sh", "-c", script, "sh"]).args(arguments).env(INSIDE, "1");
        command.output()
    };
    if !wrapped(&["true"]).is_ok_and(|output| output.status.success()) {
        return Some(Err(
            "no namespace with another /proc can be made (root, unshare and setpriv are needed)".into(),
        ));
    }
    let program = std::env::current_exe().unwrap();
    let output = wrapped(&[program.to_str().unwrap(), "--exact", name, "--nocapture"]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    Some(Ok(()))
}

/// The kernel's word, which needs no /proc. Who waits to be reaped counts.
fn is_there(pid: &str) -> bool {
    let pid = Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::test_kill_process(pid).is_ok()
}

/// Starts one that ignores TERM, with a child in its group, one in its own session and one of that again; all of them say
/// their numbers. `prelude` is run by each child.
fn deaf_family(scene: &Scene, prelude: &str) -> (Run, Vec<String>) {
    let text = format!(
        "\
import ctypes, os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def stay(what):
    os.write(1, b'%s %d\\n' % (what, os.getpid()))
    while True: time.sleep(60)
if os.fork() == 0:
    {prelude}
    stay(b'child')
if os.fork() == 0:
    {prelude}
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        stay(b'grandchild')
    stay(b'session')
stay(b'first')
"
    );
    let mut run = scene.start("main.py", &text);
    run.until("four", |run| run.lines().len() == 4);
    let pids = run.lines().iter().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect();
    (run, pids)
}

#[test]
fn who_is_hidden_in_proc_hears_term_and_is_killed() {
    let name = "who_is_hidden_in_proc_hears_term_and_is_killed";
    let script = "mount -t proc -o hidepid=2 proc /proc && \
                  exec setpriv --regid 65534 --clear-groups --bounding-set=-all --inh-caps=-all \"$@\"";
    match elsewhere(name, &[], script) {
        Some(Ok(())) => return,
        Some(Err(why)) => return println!("skipped: {name}: {why}"),
        None => {}
    }
    let scene = Scene::new("hidden");
    assert!(processes::warnings().is_empty(), "{:?}", processes::warnings());
    // Who left the group, and can't be looked into.
    let text = "\
import ctypes, os, signal, time
def heard(number, frame):
    os.write(1, b'heard\\n')
    os._exit(0)
if os.fork() == 0:
    ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
    os.setsid()
    signal.signal(signal.SIGTERM, heard)
    os.write(1, b'ready %d\\n' % os.getpid())
while True: time.sleep(60)
";
    let mut run = scene.start("main.py", text);
    run.until("ready", |run| run.lines().len() == 1);
    let pid = run.lines()[0].split_once(' ').unwrap().1.to_owned();
    assert!(!Path::new("/proc").join(&pid).exists(), "it is not hidden here");
    run.processes.terminate();
    run.until_line("heard");
    run.until("end", |_| !processes::any_descendants());
    let (mut run, pids) = deaf_family(&scene, "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)");
    // More than once: the grandchild is found when it has become ours.
    let mut again = Processes::of(run.app.pid);
    run.until("all", |_| {
        again.kill();
        !processes::any_descendants()
    });
    assert!(!pids.iter().any(|pid| is_there(pid)));
}

#[test]
fn without_a_proc_of_our_own_all_are_killed_and_nobody_else() {
    let name = "without_a_proc_of_our_own_all_are_killed_and_nobody_else";
    for (flags, script) in [
        (&[][..], "mount -t tmpfs none /proc && exec \"$@\""),
        (&["--pid", "--fork", "--kill-child"][..], "\"$@\""),
    ] {
        match elsewhere(name, flags, script) {
            Some(Ok(())) => continue,
            Some(Err(why)) => return println!("skipped: {name}: {why}"),
            None => {}
        }
        let scene = Scene::new("no-proc");
        assert!(processes::warnings().iter().any(|w| w.contains("/proc")), "{:?}", processes::warnings());
        let (mut run, pids) = deaf_family(&scene, "pass");
        run.processes.terminate();
        std::thread::sleep(Duration::from_millis(50));
        run.turn();
        assert!(pids.iter().all(|pid| is_there(pid)), "TERM is ignored by all of them");
        let mut again = Processes::of(run.app.pid);
        run.until("all", |_| {
            again.kill();
            !processes::any_descendants()
        });
        assert_eq!(run.exit, Some(Exit::Signal(9)));
        assert!(!pids.iter().any(|pid| is_there(pid)));
        return;
    }
}

#[test]
fn one_that_forks_all_the_time_does_not_get_away() {
    let scene = Scene::new("forker");
    // Each process lives for a moment only, in a session of its own, and leaves one behind.
    let text = "\
import os, time
os.write(1, b'ready\\n')
while True:
    if os.fork(): os._exit(0)
    os.setsid()
    time.sleep(0.001)
";
    let mut run = scene.start("main.py", text);
    run.until_line("ready");
    std::thread::sleep(Duration::from_millis(100));
    let (mut calls, mut processes) = (0, Processes::of(run.app.pid));
    run.until("all", |_| {
        processes.kill();
        processes::reap();
        calls += 1;
        !processes::any_descendants()
    });
    println!("{calls} calls");
}

#[test]
fn all_that_was_written_comes_before_the_end() {
    let scene = Scene::new("output");
    for _ in 0..20 {
        let mut run = scene.start("main.sh", "seq 1 5000; echo oops >&2; printf 'no end'; exit 7\n");
        run.until("end", |run| run.exit.is_some());
        // In the very turn that saw the exit, the pipes had been read to their end.
        let lines = run.lines();
        assert_eq!(lines.len(), 5002, "{:?}", lines.last());
        assert!(lines.contains(&"oops".to_owned()) && lines.contains(&"no end".to_owned()));
        assert_eq!(run.exit, Some(Exit::Code(7)));
    }
}

#[test]
fn of_a_flood_the_newest_lines_are_kept() {
    let scene = Scene::new("flood");
    let mut run = scene.start("main.sh", "seq 1 100000; echo the end\n");
    run.until("end", |run| run.exit.is_some());
    let lines = run.lines();
    assert_eq!(run.ring.end().line, 100_001);
    assert_eq!(lines.last().unwrap(), "the end");
    assert_eq!(lines[0], "GAP");
    let numbers: Vec<u32> = lines[1..lines.len() - 1].iter().map(|l| l.parse().unwrap()).collect();
    assert!(numbers.len() > 1000 && numbers.windows(2).all(|w| w[0] + 1 == w[1]));
}

#[test]
fn it_ends_with_the_thread_that_started_it() {
    let scene = Scene::new("parent");
    let entry = scene.entry("main.sh", "exec sleep 60\n");
    let pid = std::thread::spawn(move || App::start(&entry).unwrap().pid).join().unwrap();
    let end = Instant::now() + LONG;
    let mut exit = None;
    while exit.is_none() && Instant::now() < end {
        exit = processes::reap().into_iter().find(|(other, _)| *other == pid);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(exit, Some((pid, Exit::Signal(9))));
}

#[test]
fn what_can_not_be_started_says_so() {
    let scene = Scene::new("missing");
    let mut entry = scene.entry("main.sh", "exit 0\n");
    entry.argv[0] = "/nowhere/interpreter".into();
    let error = App::start(&entry).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    // A file that is executable, for nobody.
    std::fs::remove_file(scene.top.join("main.sh")).unwrap();
    std::fs::write(scene.top.join("run"), "#!/nowhere/interpreter\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(scene.top.join("run"), PermissionsExt::from_mode(0o755)).unwrap();
    let entry = scene.launcher().find().unwrap();
    assert_eq!(App::start(&entry).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    assert!(!processes::any_descendants());
}

//! From a save to the first line that the restarted application prints: `sideload dev` beside the loop that people put
//! together from watchexec, rsync and ssh.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use e2e::scratch::Scratch;
use e2e::table::{Table, percentile};
use e2e::{env, process};

use super::link::Link;
use super::peers::{Peer, Way, python};
use super::verdict;
use crate::Verdict;

/// A first line that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Beyond the interpreter's own start.
const TARGET_MS: f64 = 150.0;

/// The application: a module that is saved, and what prints it first.
const MAIN: &str = "import sys\nimport time\n\nimport helper\n\nprint(f'value {helper.VALUE}.', flush=True)\n\
                    while True:\n    time.sleep(3600)\n";

/// Without `with_ours` the peers only.
pub fn run(link: &Link, with_ours: bool, verdicts: &mut Vec<Verdict>) {
    // At least fifty for a percentile worth the name, unless BENCH_N asks for fewer.
    let saves = crate::scaled(60);
    println!("\nFrom a save to the restarted application's first line: {saves} saves, ms\n");
    let mut table = Table::new(&["", "p50", "p95", "most"]);
    let mut row = |name: &str, times: &mut Vec<f64>| {
        let at = [50.0, 95.0, 100.0].map(|p| percentile(times, p));
        let cells = at.map(|ms| format!("{ms:.0}"));
        table.row(&[vec![name.to_owned()], cells.to_vec()].concat());
        at
    };
    let [start, ..] = row("the interpreter alone, no network", &mut alone(30));
    let mut p95 = None;
    if with_ours {
        let [_, ours, _] = row("sideload dev", &mut ours(link, saves));
        let what = "save to first line, p95, beyond the interpreter's start";
        verdicts.push(verdict(what, ours - start, TARGET_MS, false, "ms"));
        p95 = Some(ours);
    }
    match watchexec() {
        None => println!("skipped: watchexec + rsync + restart: not built (etc/tools.sh watchexec)"),
        Some(watchexec) => {
            for (mux, how) in [(true, ", ControlMaster"), (false, "")] {
                let name = format!("watchexec + rsync + restart over ssh{how}");
                let [_, theirs, _] = row(&name, &mut theirs(link, &watchexec, mux, saves));
                let what = format!("save to first line, p95: {name} / ours");
                verdicts.extend(p95.map(|ours| verdict(&what, theirs / ours, 1.0, true, "x")));
            }
        }
    }
    println!("{}", table.text());
}

fn watchexec() -> Option<std::path::PathBuf> {
    env::tool("bin/watchexec").or_else(|| env::which("watchexec"))
}

fn application(scratch: &Scratch) -> std::path::PathBuf {
    scratch.write("app/main.py", MAIN);
    save(&scratch.join("app"), 0);
    scratch.join("app")
}

/// Of another length each time: rsync -a and Python's bytecode cache both take a file of the same length for the same if
/// it was saved within the same second.
fn save(app: &Path, value: u64) {
    let padding = "#".repeat((value % 7) as usize + 1);
    fs::write(app.join("helper.py"), format!("VALUE = {value}  {padding}\n")).unwrap();
}

/// What the interpreter needs to the first line when somebody starts it right here, with its caches warm.
fn alone(times: u64) -> Vec<f64> {
    let scratch = Scratch::new("bench");
    let app = application(&scratch);
    (0..times)
        .map(|n| {
            save(&app, n);
            let start = Instant::now();
            let mut reader = Reader::start(Command::new(python()).arg("main.py").current_dir(&app));
            (reader.wait_for(n) - start).as_secs_f64() * 1000.0
        })
        .collect()
}

fn ours(link: &Link, saves: u64) -> Vec<f64> {
    let scratch = Scratch::new("bench");
    let app = application(&scratch);
    let peer = Peer::start(link, Way::Sideload);
    let mut command = peer.sideload("dev");
    command.arg("--src-top").arg(&app);
    watch(&app, Reader::start(&mut command), saves)
}

fn theirs(link: &Link, watchexec: &Path, mux: bool, saves: u64) -> Vec<f64> {
    let scratch = Scratch::new("bench");
    let app = application(&scratch);
    let peer = Peer::start(link, Way::Ssh { mux, sums: false });
    let (dest, pid, ssh) = (peer.dest(), scratch.join("pid"), peer.ssh());
    let sync = peer.sync(&app);
    // Within the namespace already: only what follows `ip netns exec NAME`.
    let words: Vec<_> = sync.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let rsync = words.iter().position(|word| word == "rsync").map_or(0, |at| at + 1);
    let quoted: Vec<_> = words[rsync..].iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "rsync {} && exec {ssh} 'kill $(cat {pid}) 2>/dev/null; echo $$ >{pid}; cd {dest} && exec {} main.py'\n",
        quoted.join(" "),
        python().display(),
        pid = pid.display(),
        dest = dest.display(),
    );
    let script = scratch.write("loop.sh", script);
    let mut command = link.host(watchexec);
    command.args(["-q", "-r", "-w"]).arg(&app).args(["--", "sh"]).arg(script);
    command.env("HOME", scratch.path()).current_dir(&app);
    let times = watch(&app, Reader::start(&mut command), saves);
    // The application outlives the ssh that started it.
    if let Some(pid) = fs::read_to_string(&pid).ok().and_then(|text| text.trim().parse().ok()) {
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid).unwrap(),
            rustix::process::Signal::KILL,
        );
    }
    times
}

/// Saves now and then, and waits for the line each time.
fn watch(app: &Path, mut reader: Reader, saves: u64) -> Vec<f64> {
    reader.wait_for(0);
    let mut rng = fastrand::Rng::with_seed(50);
    (1..=saves)
        .map(|n| {
            std::thread::sleep(Duration::from_millis(rng.u64(400..800)));
            save(app, n);
            let saved = Instant::now();
            (reader.wait_for(n) - saved).as_secs_f64() * 1000.0
        })
        .collect()
}

/// A command whose lines are noted with the moment they came; ended with its owner.
struct Reader {
    child: Child,
    lines: Receiver<(Instant, String)>,
    seen: Vec<String>,
}

impl Reader {
    fn start(command: &mut Command) -> Reader {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        process::in_own_group(command);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("can't start {command:?}: {e}"));
        let (sender, lines) = channel();
        forward(child.stdout.take().unwrap(), sender.clone());
        forward(child.stderr.take().unwrap(), sender);
        Reader { child, lines, seen: Vec::new() }
    }

    /// When the application printed this value first.
    fn wait_for(&mut self, value: u64) -> Instant {
        let wanted = format!("value {value}.");
        loop {
            let Ok((at, line)) = self.lines.recv_timeout(PATIENCE) else {
                panic!("no line with {wanted:?}; the last lines:\n{}", self.seen.join("\n"));
            };
            if line.contains(&wanted) {
                return at;
            }
            self.seen.push(line);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let end = Instant::now() + Duration::from_secs(5);
        while self.child.try_wait().unwrap().is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn forward(from: impl Read + Send + 'static, to: Sender<(Instant, String)>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send((Instant::now(), line)).is_err() {
                return;
            }
        }
    });
}

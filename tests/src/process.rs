//! A child process that ends with its owner, and what the kernel says about it (CPU, memory, wake-ups).

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Lines kept of what a process wrote: the newest.
const LINES_MAX: usize = 20_000;

static OWN_GROUPS: AtomicBool = AtomicBool::new(false);

/// From now on children are process groups of their own: a Ctrl-C at the terminal does not reach them.
pub fn own_groups() {
    OWN_GROUPS.store(true, Ordering::Relaxed);
}

/// Makes the command a process group of its own, where that was asked for.
pub fn in_own_group(command: &mut Command) {
    if OWN_GROUPS.load(Ordering::Relaxed) {
        command.process_group(0);
    }
}

/// The last lines a process wrote to standard error (and output, where asked).
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<VecDeque<String>>>);

impl Lines {
    /// All lines kept.
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().cloned().collect()
    }

    /// The last `n` lines in one text.
    pub fn tail(&self, n: usize) -> String {
        let lines = self.0.lock().unwrap();
        lines.iter().skip(lines.len().saturating_sub(n)).map(|l| format!("    {l}\n")).collect()
    }

    /// Whether a line contains the text.
    pub fn contain(&self, text: &str) -> bool {
        self.0.lock().unwrap().iter().any(|line| line.contains(text))
    }

    fn collect(&self, from: impl Read + Send + 'static) {
        let lines = self.clone();
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            while from.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                let mut lines = lines.0.lock().unwrap();
                if lines.len() == LINES_MAX {
                    lines.pop_front();
                }
                lines.push_back(text);
                line.clear();
            }
        });
    }
}

/// A running child; killed (SIGKILL, by pid) and reaped when dropped.
pub struct Process {
    /// What it is, for messages.
    pub name: String,
    child: Child,
    /// What it wrote.
    pub lines: Lines,
}

impl Process {
    /// Starts the command; both its outputs are collected into `lines`.
    pub fn start(name: &str, command: &mut Command) -> Process {
        Process::start_with(name, command, Lines::default())
    }

    /// Starts the command, adding to lines collected earlier (a restart).
    pub fn start_with(name: &str, command: &mut Command, lines: Lines) -> Process {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        in_own_group(command);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("can't start {name} ({command:?}): {e}"));
        lines.collect(child.stdout.take().unwrap());
        lines.collect(child.stderr.take().unwrap());
        Process { name: name.to_owned(), child, lines }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid() as i32).unwrap();
        // It may have ended by itself: then there is nobody to tell.
        let _ = rustix::process::kill_process(pid, signal);
    }

    /// SIGKILL, and waits for the end.
    pub fn kill9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for the end; panics (showing what it said) if it does not come.
    pub fn wait_exit(&mut self, timeout: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.exited() {
                // What it wrote last is on its way through the pipe.
                std::thread::sleep(Duration::from_millis(50));
                return status;
            }
            let tail = || self.lines.tail(20);
            assert!(start.elapsed() < timeout, "{} did not end within {timeout:?}:\n{}", self.name, tail());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, then waits for the end.
    pub fn term(&mut self, timeout: Duration) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait_exit(timeout)
    }

    /// What it has used so far.
    pub fn usage(&self) -> Usage {
        Usage::of(self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let state = self.child.try_wait().ok().flatten();
            println!(
                "{} ({}) said last:\n{}",
                self.name,
                state.map_or("running".into(), |s| s.to_string()),
                self.lines.tail(25)
            );
        }
        self.kill9();
    }
}

/// Resources of a process, all its threads together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time, user and system, ms.
    pub cpu_ms: u64,
    /// Resident memory now, kB.
    pub rss_kb: u64,
    /// Resident memory at its highest, kB.
    pub rss_peak_kb: u64,
    /// Times a thread went to sleep by itself: one for each wake-up.
    pub wakeups: u64,
}

impl Usage {
    /// Reads /proc; zeros when the process is gone.
    pub fn of(pid: u32) -> Usage {
        let mut usage = Usage::default();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name in parentheses (which may hold blanks): state is field 3, utime 14, stime 15.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
        usage.cpu_ms = (ticks(11) + ticks(12)) * 1000 / rustix::param::clock_ticks_per_second();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        usage.rss_kb = field(&status, "VmRSS:");
        usage.rss_peak_kb = field(&status, "VmHWM:");
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
            usage.wakeups += field(&status, "voluntary_ctxt_switches:");
        }
        usage
    }
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find(|line| line.starts_with(name));
    line.and_then(|l| l.split_whitespace().nth(1)).and_then(|v| v.parse().ok()).unwrap_or(0)
}

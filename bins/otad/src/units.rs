//! Other people's programs: hooks, handlers, health commands, and `systemctl`.
//!
//! Each runs in a process group of its own, which is killed as a whole when its time is over or otad stops; its output
//! goes to the log, line by line. Invariant: none is left behind by a call that returns.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, Signal};

/// Lines of a program that are logged.
const LINES_MAX: usize = 200;
/// Of a line, in bytes.
const LINE_BYTES_MAX: usize = 1024;
/// How often it is looked whether the program has ended, or otad stops.
const LOOK: Duration = Duration::from_millis(100);
/// For `systemctl show`.
const SHOW_TIMEOUT: Duration = Duration::from_secs(30);
/// What belongs to this service alone.
const NOT_INHERITED: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "CREDENTIALS_DIRECTORY",
    "INVOCATION_ID",
];

/// One run of a program.
pub struct Run<'a> {
    /// For messages.
    pub label: &'a str,
    pub argv: &'a [String],
    pub env: &'a [(&'static str, String)],
    pub timeout: Duration,
    pub stop: &'a AtomicBool,
    /// Its lines go to the log.
    pub log: bool,
}

impl Run<'_> {
    /// Runs it to its end; what it wrote, if it ended with 0.
    ///
    /// # Errors
    /// Why it did not, with its last line.
    pub fn output(&self) -> Result<String, String> {
        let label = self.label;
        let (program, arguments) =
            self.argv.split_first().ok_or_else(|| format!("{label}: there is no program"))?;
        let (reader, writer) = std::io::pipe().map_err(|error| format!("{label}: no pipe: {error}"))?;
        let other = writer.try_clone().map_err(|error| format!("{label}: no pipe: {error}"))?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(writer).stderr(other);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        edge::sys::own_signals(&mut command);
        let child = command.spawn();
        // The command holds the pipe's writing ends, without which its end would never be seen.
        drop(command);
        let child = child.map_err(|error| format!("{label}: can't start {program}: {error}"))?;
        let mut group = Group(child);
        let mut output = Output { label, log: self.log, text: String::new(), line: Vec::new(), lines: 0 };
        let ended = self.wait(&mut group, reader, &mut output);
        output.end_line();
        let last = output.text.lines().last().unwrap_or_default().to_owned();
        match ended {
            Ok(()) => Ok(output.text),
            Err(why) if last.is_empty() => Err(format!("{label}: {why}")),
            Err(why) => Err(format!("{label}: {why}: {last}")),
        }
    }

    fn wait(
        &self,
        group: &mut Group,
        mut reader: std::io::PipeReader,
        output: &mut Output<'_>,
    ) -> Result<(), String> {
        let deadline = Instant::now() + self.timeout;
        let mut open = true;
        let mut buffer = [0; 4096];
        loop {
            if open && readable(&reader) {
                match reader.read(&mut buffer) {
                    Ok(0) => open = false,
                    Ok(n) => {
                        output.take(buffer.get(..n).unwrap_or_default());
                        // A program that only ever writes must not outlive its time.
                        if Instant::now() < deadline {
                            continue;
                        }
                    }
                    Err(error) => return Err(format!("its output can't be read: {error}")),
                }
            }
            // A descendant may keep the pipe open: the program's own end counts.
            if let Some(status) = group.0.try_wait().map_err(|error| error.to_string())? {
                return if status.success() { Ok(()) } else { Err(format!("it ended with {status}")) };
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err("otad is being stopped".into());
            }
            if Instant::now() >= deadline {
                return Err(format!("it did not end within {} s", self.timeout.as_secs()));
            }
            if !open {
                std::thread::sleep(LOOK / 5);
            }
        }
    }
}

/// Waits a moment for something to read.
fn readable(reader: &std::io::PipeReader) -> bool {
    let mut fds = [PollFd::new(reader, PollFlags::IN)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
    rustix::event::poll(&mut fds, Some(&timeout)).is_ok_and(|n| n > 0)
}

/// A program and all that came of it; killed and reaped with it.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // Nobody may be left of it.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Output<'a> {
    label: &'a str,
    log: bool,
    text: String,
    line: Vec<u8>,
    lines: usize,
}

impl Output<'_> {
    fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.end_line(),
                _ if self.line.len() < LINE_BYTES_MAX => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn end_line(&mut self) {
        if self.line.is_empty() || self.lines >= LINES_MAX {
            self.line.clear();
            return;
        }
        self.lines += 1;
        let line = String::from_utf8_lossy(&self.line).into_owned();
        if self.log {
            log::info!("{}: {line}", self.label);
        }
        self.text.push_str(&line);
        self.text.push('\n');
        self.line.clear();
    }
}

/// `systemctl`, or what stands for it.
pub struct Systemctl<'a> {
    pub program: &'a Path,
    pub stop: &'a AtomicBool,
}

impl Systemctl<'_> {
    /// Restarts a unit and waits for it as long as `systemctl` does, at most `timeout`.
    ///
    /// # Errors
    /// What it said.
    pub fn restart(&self, unit: &str, timeout: Duration) -> Result<(), String> {
        self.run(&["restart", "--", unit], timeout, true).map(drop)
    }

    /// Marks of the unit's run: they change when it is started again.
    ///
    /// # Errors
    /// It is not active.
    pub fn probe(&self, unit: &str) -> Result<String, String> {
        let properties = "--property=Type,ActiveState,SubState,Result,NRestarts,InvocationID";
        let text = self.run(&["show", properties, "--", unit], SHOW_TIMEOUT, false)?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_default()
        };
        let (active, sub, result) = (value("ActiveState"), value("SubState"), value("Result"));
        let done = value("Type") == "oneshot" && active == "inactive" && result == "success";
        if active != "active" && !done {
            return Err(format!("{unit} is {active} ({sub}, {result})"));
        }
        Ok(format!("{unit} {} {}", value("InvocationID"), value("NRestarts")))
    }

    fn run(&self, arguments: &[&str], timeout: Duration, log: bool) -> Result<String, String> {
        let mut argv = vec![self.program.to_string_lossy().into_owned()];
        argv.extend(arguments.iter().map(|word| (*word).to_owned()));
        let label = format!("systemctl {}", arguments.first().unwrap_or(&""));
        Run { label: &label, argv: &argv, env: &[], timeout, stop: self.stop, log }.output()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, timeout_ms: u64) -> Result<String, String> {
        let argv = ["/bin/sh", "-c", script].map(str::to_owned);
        let stop = AtomicBool::new(false);
        let env = [("OTAD_APP", "x".to_owned())];
        let timeout = Duration::from_millis(timeout_ms);
        Run { label: "hook", argv: &argv, env: &env, timeout, stop: &stop, log: false }.output()
    }

    #[test]
    fn what_it_says_and_how_it_ends() {
        assert_eq!(run("echo \"$OTAD_APP\"; echo b >&2", 5000).unwrap(), "x\nb\n");
        let why = run("echo no room; exit 3", 5000).unwrap_err();
        assert!(why.contains("exit status: 3") && why.ends_with("no room"), "{why}");
        let argv = ["/nonexistent/x".to_owned()];
        let stop = AtomicBool::new(false);
        let run = Run { label: "h", argv: &argv, env: &[], timeout: Duration::ZERO, stop: &stop, log: false };
        assert!(run.output().unwrap_err().contains("/nonexistent/x"));
    }

    #[test]
    fn its_whole_group_ends_with_its_time() {
        let start = Instant::now();
        // Time enough to say the number of the descendant, which is the last line.
        let why = run("sleep 60 & echo $!; sleep 60", 3000).unwrap_err();
        assert!(why.contains("did not end"), "{why}");
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
        let pid: u32 = why.rsplit(' ').next().unwrap().parse().unwrap();
        // Gone, or waits for its new parent to take note.
        let is_gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        };
        while !is_gone() {
            assert!(start.elapsed() < Duration::from_secs(40), "the descendant {pid} lived on");
            std::thread::sleep(Duration::from_millis(10));
        }
        let why = run("yes", 300).unwrap_err();
        assert!(why.contains("did not end"), "{why}");
    }
}

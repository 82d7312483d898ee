//! A daemon under test: its configuration file, its process, readiness through `NOTIFY_SOCKET`, and its
//! control socket. The same value is started again after a kill, with the same state.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::env;
use crate::process::{Lines, Process, Usage};
use crate::scratch::Scratch;

/// How long a daemon may take from its start to READY=1 on a slow machine, where spyglassd makes GStreamer's registry first.
const READY_S: Duration = Duration::from_secs(90);

/// A daemon, running or not.
pub struct Daemon {
    /// Its name: binary, log tag.
    pub name: String,
    /// Its own folder: configuration, state, sockets.
    pub dir: PathBuf,
    /// Its configuration file.
    pub config: PathBuf,
    /// What it has written since the first start.
    pub lines: Lines,
    env: Vec<(String, String)>,
    wrap: Vec<String>,
    notify: UnixDatagram,
    process: Option<Process>,
    starts: u32,
}

impl Daemon {
    /// A daemon with this configuration, in which `{dir}` stands for its own folder. Not started yet.
    pub fn new(scratch: &Scratch, name: &str, instance: &str, toml: &str) -> Daemon {
        let dir = scratch.dir(instance);
        let config = dir.join(format!("{name}.toml"));
        std::fs::write(&config, toml.replace("{dir}", &dir.to_string_lossy())).unwrap();
        let notify = UnixDatagram::bind(dir.join("notify")).unwrap();
        let name = name.to_owned();
        let env = vec![("NOTIFY_SOCKET".to_owned(), dir.join("notify").to_string_lossy().into_owned())];
        Daemon {
            name,
            dir,
            config,
            lines: Lines::default(),
            env,
            wrap: Vec::new(),
            notify,
            process: None,
            starts: 0,
        }
    }

    /// Sets an environment variable for the next start.
    pub fn env(&mut self, name: &str, value: impl AsRef<str>) -> &mut Daemon {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Takes an environment variable away again.
    pub fn unset(&mut self, name: &str) -> &mut Daemon {
        self.env.retain(|(n, _)| n != name);
        self
    }

    /// A command that the daemon is started by (it must `exec` it, so that the pid stays).
    pub fn wrap(&mut self, command: &[&str]) -> &mut Daemon {
        self.wrap = command.iter().map(|s| (*s).to_owned()).collect();
        self
    }

    /// The command line as it will be run, with more arguments.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let bin = env::bin(&self.name);
        let mut command = match self.wrap.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(bin);
                command
            }
            None => Command::new(bin),
        };
        for name in
            ["NOTIFY_SOCKET", "WATCHDOG_USEC", "CLOUD_MQTT_HOST", "CLOUD_MQTT_PORT", "CREDENTIALS_DIRECTORY"]
        {
            command.env_remove(name);
        }
        command.arg("--config").arg(&self.config).args(arguments);
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    /// Starts it and returns at once.
    pub fn start(&mut self) -> &mut Daemon {
        // What a killed run had said is not for the new one.
        self.notify.set_nonblocking(true).unwrap();
        while self.notify.recv(&mut [0; 512]).is_ok() {}
        let mut command = self.command(&[]);
        self.process = Some(Process::start_with(&self.name, &mut command, self.lines.clone()));
        self.starts += 1;
        self
    }

    /// Starts it and waits for READY=1.
    pub fn start_ready(&mut self) -> &mut Daemon {
        self.start();
        self.wait_ready();
        self
    }

    /// Waits for READY=1; panics with its log when it ends before, or takes too long.
    pub fn wait_ready(&mut self) {
        let start = Instant::now();
        self.notify.set_nonblocking(false).unwrap();
        self.notify.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut buffer = [0; 4096];
        loop {
            if let Ok(n) = self.notify.recv(&mut buffer) {
                if buffer[..n].split(|b| *b == b'\n').any(|line| line == b"READY=1") {
                    return;
                }
            } else if let Some(status) = self.exited() {
                std::thread::sleep(Duration::from_millis(50));
                panic!("{} ended with {status} before it was ready:\n{}", self.name, self.lines.tail(20));
            }
            let tail = || self.lines.tail(20);
            assert!(start.elapsed() < READY_S, "{} was not ready within {READY_S:?}:\n{}", self.name, tail());
        }
    }

    /// SIGKILL. Nothing when it is not running.
    pub fn kill9(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill9();
        }
    }

    /// SIGTERM and wait; its exit status.
    pub fn term(&mut self) -> ExitStatus {
        let mut process = self.process.take().expect("the daemon is running");
        process.term(Duration::from_secs(20))
    }

    /// Waits for it to end by itself.
    pub fn wait_exit(&mut self, timeout: Duration) -> ExitStatus {
        let mut process = self.process.take().expect("the daemon is running");
        process.wait_exit(timeout)
    }

    /// Its exit status, if it has ended by itself.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(Process::exited)
    }

    /// Whether it is running.
    pub fn running(&mut self) -> bool {
        self.process.is_some() && self.exited().is_none()
    }

    /// Its process; panics when it is not running.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the daemon is running")
    }

    /// What it has used so far; zeros when it is not running.
    pub fn usage(&self) -> Usage {
        self.process.as_ref().map(Process::usage).unwrap_or_default()
    }

    /// How many files it may have open from now on: all that it has and `more` (of which holes may take some), or
    /// without a number 1024.
    pub fn allow_files(&self, more: Option<u64>) {
        let pid = self.process().pid();
        let files = PathBuf::from(format!("/proc/{pid}/fd"));
        let first_free = (0..).find(|n: &u64| !files.join(n.to_string()).is_symlink());
        let most = more.map_or(1024, |more| first_free.expect("a number without a file") + more);
        let limit = Rlimit { current: Some(most), maximum: Some(1024.max(most)) };
        let pid = pid.try_into().ok().and_then(Pid::from_raw);
        prlimit(pid, Resource::Nofile, limit).expect("prlimit");
    }

    /// Its control socket.
    pub fn ctl(&self) -> PathBuf {
        self.dir.join("ctl.sock")
    }

    /// GET /status.
    pub fn status(&self) -> Value {
        let body =
            http_get(&self.ctl(), "/status").unwrap_or_else(|e| panic!("{}: GET /status: {e}", self.name));
        serde_json::from_str(&body)
            .unwrap_or_else(|e| panic!("{}: /status is not JSON: {e}: {body}", self.name))
    }

    /// GET /status, if it answers.
    pub fn try_status(&self) -> Option<Value> {
        serde_json::from_str(&http_get(&self.ctl(), "/status").ok()?).ok()
    }

    /// GET /metrics.
    pub fn metrics(&self) -> String {
        http_get(&self.ctl(), "/metrics").unwrap_or_else(|e| panic!("{}: GET /metrics: {e}", self.name))
    }

    /// The sum of a metric over all its labels; 0 when it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        sum_metric(&self.metrics(), name)
    }

    /// Waits until its log has a line with this text.
    pub fn wait_log(&self, text: &str, timeout: Duration) {
        let start = Instant::now();
        while !self.lines.contain(text) {
            let tail = || self.lines.tail(20);
            assert!(start.elapsed() < timeout, "{} never said {text:?}:\n{}", self.name, tail());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// No line of its log tells of a panic or a bug.
    pub fn check_log(&self) {
        for line in self.lines.all() {
            assert!(
                !line.contains("panicked at") && !line.contains("RUST_BACKTRACE"),
                "{}: {line}",
                self.name
            );
        }
    }
}

/// Adds up a metric in Prometheus text over all its labels.
pub fn sum_metric(text: &str, name: &str) -> f64 {
    let mut sum = 0.0;
    for line in text.lines() {
        let Some((key, value)) = line.rsplit_once(' ') else { continue };
        if key == name || key.strip_prefix(name).is_some_and(|rest| rest.starts_with('{')) {
            sum += value.parse::<f64>().unwrap_or(0.0);
        }
    }
    sum
}

/// One HTTP request over a Unix socket; the body of a 200 answer.
pub fn http_get(socket: &Path, path: &str) -> Result<String, String> {
    let mut stream = UnixStream::connect(socket).map_err(|e| format!("{}: {e}", socket.display()))?;
    let limit = Some(Duration::from_secs(5));
    stream.set_read_timeout(limit).map_err(|e| e.to_string())?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(|e| e.to_string())?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("not HTTP: {answer}"))?;
    if head.split_whitespace().nth(1) == Some("200") { Ok(body.to_owned()) } else { Err(head.to_owned()) }
}

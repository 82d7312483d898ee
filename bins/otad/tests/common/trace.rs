//! Runs this test program under strace, as the program that updates: records the system calls that change something,
//! and stops or fails one of them.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// All that may change a file, a folder or what is durable; `?`: not on every architecture.
const CHANGES: &str = "?open,openat,openat2,?creat,write,writev,pwrite64,pwritev,ftruncate,fallocate,?mkdir,mkdirat,\
    ?link,linkat,?symlink,symlinkat,?rename,?renameat,renameat2,?unlink,unlinkat,?rmdir,fsync,fdatasync,syncfs,\
    fchmod,?chmod,fchmodat,utimensat,copy_file_range,sendfile";

/// A call that changes something: the `nth` one of this name in the whole run.
#[derive(Clone, Debug)]
pub struct Call {
    pub name: String,
    nth: usize,
    /// As strace shows it, with the paths of descriptors.
    pub line: String,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// SIGKILL at its entry: it is not done.
    Kill,
    /// It fails, and later ones work.
    Once(&'static str),
    /// It and all later ones of its name fail.
    FromNowOn(&'static str),
}

impl Call {
    pub fn is_sync(&self) -> bool {
        matches!(&self.name[..], "fsync" | "fdatasync" | "syncfs")
    }

    /// How it would fail on a disk that is full, or broken.
    pub fn errno(&self) -> &'static str {
        if self.is_sync() || self.name.starts_with("unlink") || self.name == "rmdir" {
            "EIO"
        } else {
            "ENOSPC"
        }
    }
}

/// Tells the test program that it is the one to be traced: `DIR COMMAND`.
const TRACED: &str = "OTAD_TRACED";

/// If this process is the one that is traced: what it shall do, where.
pub fn command() -> Option<(PathBuf, String)> {
    let text = std::env::var(TRACED).ok()?;
    let (dir, command) = text.rsplit_once(' ')?;
    Some((dir.into(), command.into()))
}

/// Whether strace works here; else says that the test is skipped.
pub fn available(test: &str) -> bool {
    let works = Command::new("strace").args(["-qq", "-e", "trace=none", "true"]).output();
    let why = match works {
        Ok(output) if output.status.success() => return true,
        Ok(_) => "strace can't trace here",
        Err(_) => "strace is not installed",
    };
    println!("skipped: {test}: {why}");
    false
}

/// At the end of the process that is traced, if it was asked for.
pub fn tell_peak(dir: &Path) {
    if std::env::var_os("OTAD_TELL_PEAK").is_some() {
        std::fs::copy("/proc/self/status", dir.with_extension("status")).unwrap();
    }
}

/// The largest resident memory of a run that succeeds, in kB.
pub fn peak_kb(dir: &Path, command: &str) -> u64 {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.env(TRACED, format!("{} {command}", dir.display())).env("OTAD_TELL_PEAK", "1");
    assert!(program.status().unwrap().success());
    let status = std::fs::read_to_string(dir.with_extension("status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

fn strace(dir: &Path, command: &str, options: &[&str]) -> ExitStatus {
    let mut strace = Command::new("strace");
    strace.env(TRACED, format!("{} {command}", dir.display())).args(["-f", "-qq"]).args(options);
    // On one thread: strace counts calls per thread.
    strace.arg(std::env::current_exe().unwrap()).args([
        "--exact",
        "program",
        "--test-threads=1",
        "--nocapture",
    ]);
    strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap()
}

/// The calls of a run that succeeds.
pub fn record(dir: &Path, command: &str) -> Vec<Call> {
    let log = dir.with_extension("trace");
    let trace = format!("trace={CHANGES}");
    let status =
        strace(dir, command, &["--seccomp-bpf", "-y", "-s", "0", "-o", log.to_str().unwrap(), "-e", &trace]);
    assert!(status.success(), "{command}: {status}");
    let text = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(log).unwrap();
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut calls = Vec::new();
    for line in text.lines() {
        // With -f each line begins with the process.
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
        let Some((name, rest)) = line.split_once('(') else { continue };
        let nth = seen.entry(name.to_owned()).and_modify(|n| *n += 1).or_insert(1);
        let opens = name.starts_with("open") && !rest.contains("O_CREAT") && !rest.contains("O_TRUNC");
        let says = name == "write" && (rest.starts_with("1<") || rest.starts_with("2<"));
        if !opens && !says {
            calls.push(Call { name: name.to_owned(), nth: *nth, line: line.to_owned() });
        }
    }
    calls
}

/// Runs it with a fault at this call; whether it succeeded.
pub fn inject(dir: &Path, command: &str, call: &Call, fault: Fault) -> bool {
    let (name, nth) = (&call.name, call.nth);
    let what = match fault {
        // The error: so that the call is not done, whatever the order of the two.
        Fault::Kill => format!("inject={name}:error=EIO:signal=KILL:when={nth}"),
        Fault::Once(errno) => format!("inject={name}:error={errno}:when={nth}"),
        Fault::FromNowOn(errno) => format!("inject={name}:error={errno}:when={nth}+"),
    };
    let trace = format!("trace={name}");
    // Quicker, but it would not deliver the signal.
    let filter = if matches!(fault, Fault::Kill) { "-f" } else { "--seccomp-bpf" };
    let status = strace(dir, command, &[filter, "-o", "/dev/null", "-e", &trace, "-e", &what]);
    if matches!(fault, Fault::Kill) {
        assert_eq!(status.signal(), Some(9), "{call:?} was not reached: {status}");
    }
    status.success()
}

/// What is not durable yet, as paths: files with new bytes, folders with new names.
#[derive(Default)]
pub struct Durable {
    dirty: BTreeSet<String>,
    pub renames: usize,
}

impl Durable {
    /// One call. A rename must not publish what is not durable; one of `state` or `current` must not come before
    /// anything else is durable, but for names of its own folder (its temporary is one).
    pub fn apply(&mut self, call: &Call) {
        let paths = paths(&call.line);
        let first = || paths.first().cloned().unwrap_or_else(|| panic!("no path in {}", call.line));
        match &call.name[..] {
            _ if call.line.contains(") = -1 ") => {}
            "syncfs" => self.dirty.clear(),
            "fsync" | "fdatasync" => drop(self.dirty.remove(&first())),
            "write" | "pwrite64" | "ftruncate" | "copy_file_range" => drop(self.dirty.insert(first())),
            "fchmod" | "chmod" | "utimensat" => {}
            "unlink" | "unlinkat" | "rmdir" => drop(self.dirty.insert(above(&first()))),
            "rename" | "renameat" | "renameat2" => self.rename(&paths, &call.line),
            _ => {
                // Something with a name of its own; links name what they lead to first.
                let made = paths.last().cloned().unwrap_or_default();
                self.dirty.insert(above(&made));
            }
        }
    }

    fn rename(&mut self, paths: &[String], line: &str) {
        let [from, to] = paths else { panic!("{line}") };
        if !to.contains("/.old-") {
            self.renames += 1;
            let below = |path: &&String| *path == from || path.starts_with(&format!("{from}/"));
            let lost: Vec<&String> = self.dirty.iter().filter(below).collect();
            assert!(lost.is_empty(), "{line}: not durable: {lost:?}");
            if to.ends_with("/state") || to.ends_with("/current") {
                let folder = above(to);
                let lost: Vec<&String> = self.dirty.iter().filter(|path| **path != folder).collect();
                assert!(lost.is_empty(), "{line}: not durable: {lost:?}");
            }
        }
        self.dirty.retain(|path| path != from && !path.starts_with(&format!("{from}/")));
        self.dirty.extend([above(from), above(to)]);
    }
}

fn above(path: &str) -> String {
    path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned()
}

/// The paths of a call as strace -y shows them: a descriptor's, or a name, below the descriptor before it.
fn paths(line: &str) -> Vec<String> {
    let (mut found, mut folder) = (Vec::new(), None);
    let arguments = line.split_once('(').map_or("", |(_, rest)| rest);
    let arguments = arguments.rsplit_once(") = ").map_or(arguments, |(arguments, _)| arguments);
    for argument in arguments.split(", ") {
        if argument.ends_with("...") {
            // Data, not a name.
        } else if let Some(name) = argument.strip_prefix('"') {
            let name = name.trim_end_matches('"');
            let folder: Option<String> = folder.take();
            found.push(if name.starts_with('/') {
                name.to_owned()
            } else {
                format!("{}/{name}", folder.unwrap_or_default())
            });
        } else if let Some((_, path)) = argument.split_once('<') {
            let path = path.trim_end_matches('>').to_owned();
            found.extend(folder.replace(path));
        }
    }
    found.extend(folder);
    found.retain(|path| !path.is_empty());
    found
}

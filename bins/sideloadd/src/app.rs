//! The application's processes: finding the entry point, starting it, ending all that came of it.
//!
//! The application is a process group of its own, and this process is the subreaper of all its descendants: whoever
//! calls `setsid` or forks twice becomes a child of ours when its parent ends. All our descendants are the
//! application's, since the daemon starts nothing else. Never: decides when (see [`crate::core`]); blocks.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mio::unix::pipe;
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, WaitOptions};

use crate::core::Exit;

/// What an application must not inherit: the manager's sockets and secrets, and what would mislead its libraries.
const NOT_INHERITED: [&str; 9] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
    "JOURNAL_STREAM",
    "INVOCATION_ID",
];

/// Where to look for the application, and how to run it.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The sideloaded tree; `None` in production: then nothing in it is ever run.
    pub root: Option<PathBuf>,
    /// Where to look next.
    pub fallback_root: PathBuf,
    /// File names, the preferred one first.
    pub entrypoints: Vec<String>,
    /// By extension, without the dot: the program and its first arguments.
    pub interpreters: Vec<(String, Vec<String>)>,
    /// Variables to set, beside those of the daemon and `PYTHONUNBUFFERED`.
    pub env: BTreeMap<String, String>,
}

/// A found entry point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file.
    pub path: PathBuf,
    /// The folder it runs in: the one it is in.
    pub folder: PathBuf,
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Variables to set.
    pub env: BTreeMap<String, String>,
}

/// There is nothing to run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoEntry {
    /// None of the files is there.
    #[error("no entry point was found; looked for {0}")]
    Nowhere(String),
    /// One is there and can't be run.
    #[error("the entry point {} can't be run: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
}

/// How often [`kill_all`] looks again at once.
const KILL_ROUNDS: usize = 8;

impl Launcher {
    /// The paths that are looked at, in that order.
    #[must_use]
    pub fn candidates(&self) -> Vec<PathBuf> {
        let roots = self.root.iter().chain([&self.fallback_root]);
        roots.flat_map(|root| self.entrypoints.iter().map(|name| root.join(name))).collect()
    }

    /// The first entry point that is there.
    ///
    /// # Errors
    /// None is, or it is no file that can be run; the text lists where was looked.
    pub fn find(&self) -> Result<Entry, NoEntry> {
        for root in self.root.iter().chain([&self.fallback_root]) {
            for name in &self.entrypoints {
                let path = root.join(name);
                if std::fs::symlink_metadata(&path).is_ok() {
                    self.check(root, name, &path)?;
                    return self.entry(path);
                }
            }
        }
        let places: Vec<String> = self.candidates().iter().map(|p| p.display().to_string()).collect();
        Err(NoEntry::Nowhere(places.join(", ")))
    }

    /// It is a regular file within its root.
    fn check(&self, root: &Path, name: &str, path: &Path) -> Result<(), NoEntry> {
        let unusable = |why| NoEntry::Unusable { path: path.to_owned(), why };
        if self.root.as_deref() == Some(root) {
            let beneath =
                edge::beneath::Root::open(root).map_err(|_| unusable("its folder can't be opened"))?;
            let file = beneath
                .open_file(name, OFlags::RDONLY | OFlags::NONBLOCK, 0)
                .map_err(|_| unusable("it can't be opened, or is a link that leaves the folder"))?;
            let regular = file.metadata().is_ok_and(|meta| meta.is_file());
            return if regular { Ok(()) } else { Err(unusable("it is no regular file")) };
        }
        let regular = std::fs::metadata(path).is_ok_and(|meta| meta.is_file());
        if regular { Ok(()) } else { Err(unusable("it is no regular file")) }
    }

    fn entry(&self, path: PathBuf) -> Result<Entry, NoEntry> {
        use std::os::unix::fs::PermissionsExt as _;
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let mut argv: Vec<OsString> = Vec::new();
        match self.interpreters.iter().find(|(known, _)| *known == extension) {
            Some((_, command)) => {
                argv.extend(command.iter().map(OsString::from));
                // Its own name only: as it would be typed in its folder.
                argv.push(path.file_name().unwrap_or_default().to_owned());
            }
            None => {
                let mode = std::fs::metadata(&path).map(|meta| meta.permissions().mode()).unwrap_or(0);
                if mode & 0o111 == 0 {
                    let why = "it is not executable, and its extension has no interpreter in [interpreters]";
                    return Err(NoEntry::Unusable { path, why });
                }
                argv.push(path.clone().into_os_string());
            }
        }
        let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
        Ok(Entry { path, folder, argv, env: self.env.clone() })
    }
}

/// A running application.
#[derive(Debug)]
pub struct App {
    /// Its first process, which leads its group.
    pub pid: u32,
    /// Its standard output, non-blocking.
    pub stdout: pipe::Receiver,
    /// Its standard error, non-blocking.
    pub stderr: pipe::Receiver,
}

impl App {
    /// Starts the entry point: in its folder, in a group of its own, with nothing to read, and Python unbuffered.
    /// Its first process ends with the calling thread, which therefore is the daemon's main one.
    ///
    /// # Errors
    /// What the system says; the interpreter may be missing.
    pub fn start(entry: &Entry) -> io::Result<App> {
        let (program, arguments) =
            entry.argv.split_first().ok_or_else(|| io::Error::other("an interpreter without a program"))?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(&entry.folder).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        command.env("PYTHONUNBUFFERED", "1").env("PWD", &entry.folder).envs(&entry.env);
        edge::sys::own_signals(&mut command);
        let mut child = command.spawn()?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(io::Error::other("no pipes"));
        };
        // The child is reaped by `reap`, whoever started it.
        Ok(App { pid: child.id(), stdout: receiver(stdout.into())?, stderr: receiver(stderr.into())? })
    }

    /// Sends a signal to the whole group.
    ///
    /// # Errors
    /// No process of the group is left, or none may be signalled.
    pub fn signal_group(pid: u32, signal: Signal) -> io::Result<()> {
        let group = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(rustix::process::kill_process_group(group, signal)?)
    }
}

fn receiver(fd: OwnedFd) -> io::Result<pipe::Receiver> {
    let receiver = pipe::Receiver::from(fd);
    receiver.set_nonblocking(true)?;
    Ok(receiver)
}

/// Makes this process the one that the application's orphans are given to. Call it before the first start.
///
/// # Errors
/// What `prctl(2)` says.
pub fn adopt_orphans() -> io::Result<()> {
    // Any process id: the kernel only looks whether there is one.
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Children that have ended since the last call.
pub fn reap() -> Vec<(u32, Exit)> {
    let mut ended = Vec::new();
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        let exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => continue,
        };
        ended.push((pid.as_raw_nonzero().get().unsigned_abs(), exit));
    }
    ended
}

/// Asks the application that `leader` leads to end: TERM, once to each of its processes.
///
/// The group gets it at one moment; what left the group (`setsid`) gets it one by one.
pub fn terminate(leader: u32) {
    // No process of the group may be left, others may.
    let _ = App::signal_group(leader, Signal::TERM);
    let outside = descendants().into_iter().filter(|p| p.group.unsigned_abs() != leader);
    signal_each(outside, Signal::TERM);
}

/// Ends every descendant of this process with KILL. One that forks all the time may still get away with a child:
/// call it again until [`any_descendants`] says that none is left.
pub fn kill_all() {
    for _ in 0..KILL_ROUNDS {
        let living: Vec<Process> = descendants().into_iter().filter(|p| !p.ended).collect();
        if living.is_empty() {
            return;
        }
        // Who is stopped can't fork, so that the second look finds who was born during the first.
        signal_each(living.into_iter(), Signal::STOP);
        signal_each(descendants().into_iter(), Signal::KILL);
    }
}

fn signal_each(processes: impl Iterator<Item = Process>, signal: Signal) {
    for process in processes {
        if let Some(pid) = Pid::from_raw(process.pid) {
            // It may have ended meanwhile: then it needs no signal.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// Whether a descendant is left, one that waits to be reaped included.
#[must_use]
pub fn any_descendants() -> bool {
    // ECHILD: no child, so no descendant either, since orphans become children.
    let flags = rustix::process::WaitIdOptions::EXITED
        | rustix::process::WaitIdOptions::NOHANG
        | rustix::process::WaitIdOptions::NOWAIT;
    !matches!(rustix::process::waitid(rustix::process::WaitId::All, flags), Err(rustix::io::Errno::CHILD))
}

/// A descendant, as /proc shows it.
#[derive(Clone, Copy, Debug)]
struct Process {
    pid: i32,
    group: i32,
    /// It is a zombie, which only waits to be reaped.
    ended: bool,
}

/// All descendants, from /proc; parents before their children.
fn descendants() -> Vec<Process> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // The name of a process is any bytes.
        let stat = std::fs::read(entry.path().join("stat")).unwrap_or_default();
        if let Some((parent, process)) = parse_stat(pid, &String::from_utf8_lossy(&stat)) {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut found = Vec::new();
    let mut next = 0;
    let mut parent = rustix::process::getpid().as_raw_nonzero().get();
    loop {
        found.extend(children.remove(&parent).unwrap_or_default());
        let Some(process): Option<&Process> = found.get(next) else { return found };
        parent = process.pid;
        next += 1;
    }
}

/// Parent, group and state from `/proc/PID/stat` (`proc(5)`).
fn parse_stat(pid: i32, stat: &str) -> Option<(i32, Process)> {
    // The name in parentheses may hold parentheses and blanks.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    Some((parent, Process { pid, group, ended }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn scene(name: &str) -> PathBuf {
        let top = std::env::temp_dir().join(format!("sideloadd-app-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&top);
        std::fs::create_dir_all(top.join("root")).unwrap();
        std::fs::create_dir_all(top.join("fallback")).unwrap();
        top
    }

    fn launcher(top: &Path, production: bool) -> Launcher {
        Launcher {
            root: (!production).then(|| top.join("root")),
            fallback_root: top.join("fallback"),
            entrypoints: vec!["main.sh".into(), "main.py".into(), "run".into()],
            interpreters: vec![
                ("sh".into(), vec!["/bin/sh".into()]),
                ("py".into(), vec!["python3".into(), "-u".into()]),
            ],
            env: BTreeMap::new(),
        }
    }

    #[test]
    fn the_sideloaded_tree_comes_first_and_never_in_production() {
        let top = scene("order");
        let nothing = launcher(&top, false).find().unwrap_err().to_string();
        assert!(nothing.contains("root/main.sh") && nothing.contains("fallback/run"), "{nothing}");
        std::fs::write(top.join("fallback/main.sh"), "").unwrap();
        assert_eq!(launcher(&top, false).find().unwrap().folder, top.join("fallback"));
        std::fs::write(top.join("root/main.py"), "").unwrap();
        let entry = launcher(&top, false).find().unwrap();
        assert_eq!(entry.folder, top.join("root"));
        assert_eq!(entry.argv, ["python3", "-u", "main.py"]);
        std::fs::write(top.join("root/main.sh"), "").unwrap();
        assert_eq!(launcher(&top, false).find().unwrap().argv, ["/bin/sh", "main.sh"]);
        assert_eq!(launcher(&top, true).find().unwrap().folder, top.join("fallback"));
        std::fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn the_name_of_a_process_may_hold_anything() {
        let (parent, process) = parse_stat(9, "9 (a) Z 1 (b) S 7 8 8 0 -1").unwrap();
        assert_eq!((parent, process.group, process.ended), (7, 8, false));
        assert!(parse_stat(9, "9 (x) Z 1 9 9").unwrap().1.ended);
        assert!(parse_stat(9, "").is_none());
    }

    #[test]
    fn what_can_not_be_run_says_why() {
        let top = scene("why");
        std::fs::write(top.join("root/run"), "#!/bin/sh\n").unwrap();
        let why = launcher(&top, false).find().unwrap_err().to_string();
        assert!(why.contains("not executable"), "{why}");
        symlink("/bin/sh", top.join("root/main.sh")).unwrap();
        let why = launcher(&top, false).find().unwrap_err().to_string();
        assert!(why.contains("leaves"), "{why}");
        std::fs::remove_file(top.join("root/main.sh")).unwrap();
        std::fs::create_dir(top.join("root/main.sh")).unwrap();
        let why = launcher(&top, false).find().unwrap_err().to_string();
        assert!(why.contains("no regular file"), "{why}");
        std::fs::remove_dir_all(top).unwrap();
    }
}

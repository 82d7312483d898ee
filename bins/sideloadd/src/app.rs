//! The application's first process: finding the entry point, and starting it as a process group of its own. All that
//! comes of it is found and ended by [`crate::processes`].
//!
//! Never: decides when (see [`crate::core`]); blocks.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mio::unix::pipe;
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal};

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
        // The child is reaped by `processes::reap`, whoever started it.
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

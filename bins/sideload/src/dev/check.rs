//! The check before the good process is killed: a command with the changed files behind it.
//!
//! It runs beside the upload and is awaited before the commit. Invariant: nothing is left in the source folder (Python
//! writes its byte code into a temporary folder). Never: outlives its time.

use std::{
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use ignore::gitignore::Gitignore;

use super::{debounce::Changes, rules};
use crate::scan;

/// More files than this are not put on one command line; the rest goes unchecked.
const FILES_MAX: usize = 1000;
/// Bytes of its output that are shown.
const OUTPUT_MAX: u64 = 16 * 1024;

/// The check said no.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failed(String);

/// How to check.
#[derive(Debug)]
pub struct Check {
    command: Vec<String>,
    files: Gitignore,
    timeout: Duration,
    litter: PathBuf,
    /// The command can't be started here, which was said once.
    missing: bool,
}

/// A file at the moment of its check: inode, size, modification and change time.
type Seen = (u64, u64, (i64, i64), (i64, i64));

/// A check under way.
#[derive(Debug)]
pub struct Running {
    files: Vec<(PathBuf, Option<Seen>)>,
    child: Child,
    output: Receiver<String>,
    timeout: Duration,
}

impl Check {
    /// An empty `command`: no check.
    ///
    /// # Errors
    /// A glob is wrong.
    pub fn new(
        top: &Path,
        command: &[String],
        files: &[String],
        timeout: Duration,
    ) -> Result<Check, rules::Error> {
        let litter = std::env::temp_dir().join(format!("sideload-check-{}", std::process::id()));
        Ok(Check {
            command: command.to_vec(),
            files: rules::globs(top, files.iter().map(String::as_str))?,
            timeout,
            litter,
            missing: false,
        })
    }

    /// Starts the check of those changed files that are to be checked and exist; `None` when there are none.
    pub fn start(&mut self, top: &Path, changes: &Changes) -> Option<Running> {
        let (program, arguments) = self.command.split_first()?;
        if self.missing {
            return None;
        }
        let wanted = |path: &PathBuf| rules::matches(&self.files, path) && path.is_file();
        let files: Vec<PathBuf> = match changes.paths() {
            Some(paths) => paths.map(Path::to_owned).filter(wanted).take(FILES_MAX).collect(),
            None => {
                let all = scan::walker(top).build().filter_map(Result::ok).map(ignore::DirEntry::into_path);
                all.filter(wanted).take(FILES_MAX).collect()
            }
        };
        if files.is_empty() {
            return None;
        }
        let seen: Vec<_> = files.iter().map(|path| (path.clone(), seen(path))).collect();
        let started = Command::new(program)
            .args(arguments)
            .args(&files)
            .current_dir(top)
            .env("PYTHONPYCACHEPREFIX", &self.litter)
            // Where the interpreter may not keep what it has compiled of its own library, it compiles that each time.
            .env_remove("PYTHONDONTWRITEBYTECODE")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match started {
            Ok(child) => child,
            Err(error) => {
                log::warn!("no check before restarts: {program} can't be started: {error}");
                self.missing = true;
                return None;
            }
        };
        let (tell, output) = channel();
        if let Some(stderr) = child.stderr.take() {
            // Ends with the command's output.
            let reader = std::thread::Builder::new().name("dev-check".into());
            let spawned = reader.spawn(move || {
                let mut text = Vec::new();
                let mut stderr = stderr;
                let _ = Read::by_ref(&mut stderr).take(OUTPUT_MAX).read_to_end(&mut text);
                // Not read, it would block on a full pipe.
                let _ = std::io::copy(&mut stderr, &mut std::io::sink());
                // Nobody waits for it any more when the sync has failed.
                let _ = tell.send(String::from_utf8_lossy(&text).into_owned());
            });
            if let Err(error) = spawned {
                log::warn!("the check's output is not read: {error}");
            }
        }
        Some(Running { files: seen, child, output, timeout: self.timeout })
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        // It is there only when Python was asked.
        let _ = std::fs::remove_dir_all(&self.litter);
    }
}

fn seen(path: &Path) -> Option<Seen> {
    let meta = path.metadata().ok()?;
    Some((meta.ino(), meta.size(), (meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec())))
}

impl Running {
    /// Whether it checks all of these, as they are now.
    #[must_use]
    pub fn covers(&self, changes: &Changes) -> bool {
        let known = |path: &Path| self.files.iter().any(|(file, _)| file == path);
        changes.paths().is_some_and(|mut paths| paths.all(known))
            && self.files.iter().all(|(path, before)| before.is_some() && seen(path) == *before)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`Failed`] with what the command printed.
    pub fn wait(mut self) -> Result<(), Failed> {
        let Ok(text) = self.output.recv_timeout(self.timeout) else {
            return Err(Failed(format!("the check took more than {} s", self.timeout.as_secs_f32())));
        };
        match self.child.wait() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) if text.trim().is_empty() => Err(Failed(format!("the check ended with {status}"))),
            Ok(_) => Err(Failed(text.trim_end().to_owned())),
            Err(error) => Err(Failed(format!("the check: {error}"))),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both are without effect when it has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn check(top: &Path, command: &[&str]) -> Check {
        let command: Vec<String> = command.iter().map(|s| (*s).to_owned()).collect();
        Check::new(top, &command, &["*.py".to_owned()], Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn python_is_checked_without_a_trace() {
        let scratch = Scratch::new("check-python");
        let top = scratch.path();
        let good = scratch.write("good.py", "print(1)\n");
        let bad = scratch.write("bad.py", "def f(:\n");
        let text = scratch.write("notes.txt", "def f(:\n");
        let mut check = check(top, &["python3", "-m", "py_compile"]);
        let Some(running) = check.start(top, &Changes::one(good.clone())) else {
            println!("skipped: python_is_checked_without_a_trace: no python3");
            return;
        };
        let changes = Changes::one(good.clone());
        assert!(running.covers(&changes) && !running.covers(&Changes::one(bad.clone())));
        scratch.write("good.py", "print(22)\n");
        assert!(!running.covers(&changes));
        running.wait().unwrap();
        let error = check.start(top, &Changes::one(bad)).unwrap().wait().unwrap_err().to_string();
        assert!(error.contains("bad.py") && error.contains("SyntaxError"), "{error}");
        assert!(check.start(top, &Changes::one(text)).is_none());
        assert!(check.start(top, &Changes::one(top.join("gone.py"))).is_none());
        assert!(check.start(top, &Changes::All).unwrap().wait().is_err());
        assert!(!top.join("__pycache__").exists());
        assert!(check.litter.is_dir(), "what it compiled of its own library is there for the next one");
    }

    #[test]
    fn a_check_that_hangs_or_is_missing_stops_nobody() {
        let scratch = Scratch::new("check-hangs");
        let top = scratch.path();
        let file = scratch.write("a.py", "");
        let mut slow = check(top, &["sh", "-c", "exec sleep 60"]);
        slow.timeout = Duration::from_millis(50);
        let error = slow.start(top, &Changes::one(file.clone())).unwrap().wait().unwrap_err();
        assert!(error.to_string().contains("more than"), "{error}");
        assert!(check(top, &["/no/such/program"]).start(top, &Changes::one(file.clone())).is_none());
        assert!(check(top, &[]).start(top, &Changes::one(file)).is_none());
    }
}

//! What the surroundings offer: folders with binaries and tools, commands, the seed; and how a test
//! that can't run here says so.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Ends the calling test as skipped. The line is what `tests/run.sh` counts.
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {{
        let thread = std::thread::current();
        println!("skipped: {}: {}", thread.name().unwrap_or("test"), format_args!($($why)*));
        return;
    }};
}

/// Ends the calling test as skipped unless every named command is on the PATH.
#[macro_export]
macro_rules! need {
    ($($command:expr),+) => {
        $( if !$crate::env::have($command) { $crate::skip!("{} is not installed (make deps)", $command); } )+
    };
}

/// The root of the checkout.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Where a daemon's binary is: `EDGE_BIN_DIR`, else `target/debug`.
pub fn bin(name: &str) -> PathBuf {
    let dir = std::env::var_os("EDGE_BIN_DIR").map_or_else(|| root().join("target/debug"), PathBuf::from);
    let dir = if dir.is_absolute() { dir } else { root().join(dir) };
    let path = dir.join(name);
    assert!(path.exists(), "{} is not there: build it first (cargo build -p {name})", path.display());
    path
}

/// A tool from `EDGE_TOOLS` (else `target/tools`), if it was built there.
pub fn tool(relative: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("EDGE_TOOLS").map_or_else(|| root().join("target/tools"), PathBuf::from);
    Some(dir.join(relative)).filter(|path| path.exists())
}

/// A file of the shared test data: `EDGE_TEST_DATA`, else `../shared/data` beside the checkout (or two up).
pub fn shared_data(name: &str) -> Option<PathBuf> {
    let named = std::env::var_os("EDGE_TEST_DATA").map(PathBuf::from);
    let beside = ["../shared/data", "../../shared/data"].map(|p| root().join(p));
    named.into_iter().chain(beside).map(|dir| dir.join(name)).find(|path| path.exists())
}

/// Whether a command is on the PATH (mosquitto is in /usr/sbin, which not every PATH has).
pub fn have(command: &str) -> bool {
    which(command).is_some()
}

/// The full path of a command.
pub fn which(command: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(command)).find(|p| p.is_file())
}

/// The seed of this run: `EDGE_SEED`, else a new one. Printed, so that a failure can be replayed.
pub fn seed() -> u64 {
    let seed = match std::env::var("EDGE_SEED") {
        Ok(text) => text.parse().expect("EDGE_SEED is a number"),
        Err(_) => fastrand::u64(..),
    };
    println!("seed: replay with EDGE_SEED={seed}");
    seed
}

/// Waits until `done` yields something; `what` is for the message when it does not.
pub fn wait_for<T>(what: &str, timeout: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < timeout, "waited {timeout:?} in vain for: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Writes an executable script that may be run at once. Another process writes it: what another thread starts in that moment
/// would hold a file that we write until it becomes another program, and nobody can run a file that somebody writes (ETXTBSY).
pub fn write_program(path: &Path, text: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", "printf %s \"$2\" >\"$1\" && chmod 755 \"$1\"", "sh"]).arg(path).arg(text);
    run(&mut shell);
}

/// Runs a command to its end; its standard output. Panics with its standard error if it fails.
pub fn run(command: &mut Command) -> String {
    crate::process::in_own_group(command);
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("can't run {command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?} ended with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

//! Faults as from the kernel: a preloaded library (shim/fault.c) that makes fsync below one folder fail or dawdle, and
//! the loading of a library dawdle.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::daemon::Daemon;
use crate::env;

/// Compiles the library once a run; None without a C compiler.
pub fn library() -> Option<PathBuf> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let compiler = env::which("cc").or_else(|| env::which("gcc"))?;
            let out = std::env::temp_dir().join(format!("edge-fault-{}.so", std::process::id()));
            let source = env::root().join("tests/shim/fault.c");
            env::run(
                Command::new(compiler)
                    .args(["-shared", "-fPIC", "-O1", "-o"])
                    .arg(&out)
                    .arg(source)
                    .arg("-ldl"),
            );
            Some(out)
        })
        .clone()
}

/// Puts the library under the daemon's next start, for files below `dir`.
pub fn preload(daemon: &mut Daemon, library: &Path, dir: &Path) {
    daemon.env("LD_PRELOAD", library.to_string_lossy()).env("FAULT_DIR", dir.to_string_lossy());
}

//! A temporary folder for a unit test.

use std::path::{Path, PathBuf};

/// A folder of its own, removed at the end.
pub struct Scratch(PathBuf);

impl Scratch {
    /// An empty folder; `name` keeps tests apart.
    pub fn new(name: &str) -> Scratch {
        let folder = std::env::temp_dir().join(format!("sideload-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Scratch(folder.canonicalize().unwrap())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file into it.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

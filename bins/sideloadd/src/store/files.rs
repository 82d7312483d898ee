//! The plain operations of old clients: list, read, put, delete. Each file for itself, no commit.
//!
//! Invariant: a put is staged, flushed and renamed, so that a path has its old content or the new one.

use std::fs::File;

use edge::beneath::Stat;
use edge::sync::RelPath;

use super::bytecode;
use super::commit::parent;
use super::stage::Session;
use super::{Error, OURS, Store, ours};

/// Folders within folders that are listed, at most.
pub(super) const DEPTH_MAX: usize = 512;

/// A file of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Relative to the root.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Last change, ns since 1970.
    pub mtime_ns: i64,
}

/// A file that is arriving. Dropping it leaves a stage file, which the next start removes; [`Store::give_up`] at once.
#[derive(Debug)]
pub struct Put {
    file: File,
    rel: String,
    path: RelPath,
    size: u64,
    written: u64,
    mtime_ns: Option<i64>,
    mode: Option<u32>,
    /// It begins with `#!`.
    script: bool,
}

impl Store {
    /// All regular files of the tree, by path.
    ///
    /// # Errors
    /// The disk failed.
    pub fn list(&self) -> Result<Vec<FileInfo>, Error> {
        let mut found = Vec::new();
        self.walk("", 0, &mut |path, stat| {
            found.push(FileInfo { path: path.to_owned(), size: stat.size, mtime_ns: stat.mtime_ns });
        })?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// The paths of all files below a folder, links and others included.
    pub(super) fn files_below(&self, folder: &str) -> Result<Vec<String>, Error> {
        let mut found = Vec::new();
        self.walk(folder, 0, &mut |path, _| found.push(path.to_owned()))?;
        Ok(found)
    }

    fn walk(&self, folder: &str, depth: usize, each: &mut dyn FnMut(&str, &Stat)) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Ok(());
        }
        for name in self.disk.names(folder)? {
            if folder.is_empty() && name == OURS {
                continue;
            }
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            match self.disk.stat(&path)? {
                Some(stat) if stat.is_dir => self.walk(&path, depth + 1, each)?,
                Some(stat) if stat.is_file => each(&path, &stat),
                // Links, sockets and so on are not content; and one may be gone by now.
                _ => {}
            }
        }
        Ok(())
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// 404: there is none; 400: it is no regular file, or leaves the root.
    pub fn read(&self, path: &RelPath) -> Result<(File, Stat), Error> {
        let file = match self.disk.open(path) {
            Err(error) if error.status() == 404 => return Err(Error::not_found(path)),
            other => other?,
        };
        let full = self.disk.root.path().join(path);
        let stat = Stat::of(&file).map_err(|source| Error::Io { action: "look at", path: full, source })?;
        if !stat.is_file {
            return Err(Error::refused(400, format!("{path} is no regular file")));
        }
        Ok((file, stat))
    }

    /// Begins a file of `size` bytes. `mode`: its permission bits; without, an existing file keeps its own, and a new
    /// one is executable if it begins with `#!`.
    ///
    /// # Errors
    /// 413, 507, 409 (it is a folder), or the path leaves the root.
    pub fn put(
        &mut self,
        path: RelPath,
        size: u64,
        mtime_ns: Option<i64>,
        mode: Option<u32>,
    ) -> Result<Put, Error> {
        let most = self.cfg.file_bytes_max;
        if size > most {
            let (size, most) = (edge::text::bytes(size), edge::text::bytes(most));
            return Err(Error::refused(
                413,
                format!("{path} has {size}, more than file-max = {most} on the device"),
            ));
        }
        self.finish_decided()?;
        // What is there now: a folder is in the way, a link that leaves the root is refused here and not after the body.
        let old = self.disk.stat(&path)?;
        if old.is_some_and(|stat| stat.is_dir) {
            return Err(Error::refused(409, format!("{path} is a folder on the device")));
        }
        if old.is_some_and(|stat| !stat.is_file) {
            self.disk.open(&path)?;
        }
        self.make_room(size, &self.session.as_ref().map(Session::ids).unwrap_or_default())?;
        let mode = mode.or(old.filter(|stat| stat.is_file).map(|stat| stat.mode & 0o777));
        self.sessions += 1;
        let rel = ours(&format!("stage/put-{}", self.sessions));
        let file = self.disk.create(&rel)?;
        Ok(Put { file, rel, path, size, written: 0, mtime_ns, mode, script: false })
    }

    /// The next bytes of it.
    ///
    /// # Errors
    /// More than were announced, or the disk failed.
    pub fn write(&self, put: &mut Put, bytes: &[u8]) -> Result<(), Error> {
        if put.written + bytes.len() as u64 > put.size {
            return Err(Error::refused(400, format!("{} is longer than announced", put.path)));
        }
        if put.written == 0 {
            put.script = bytes.starts_with(b"#!");
        }
        self.disk.write_at(&put.file, bytes, put.written, &put.rel)?;
        put.written += bytes.len() as u64;
        Ok(())
    }

    /// Puts it into place.
    ///
    /// # Errors
    /// It is shorter than announced, or the disk failed; the old file stays then, unless only the last `fsync` failed.
    pub fn finish_put(&mut self, put: Put) -> Result<(), Error> {
        let done = self.place_put(&put);
        if done.is_err() {
            self.give_up(put);
        }
        done
    }

    fn place_put(&self, put: &Put) -> Result<(), Error> {
        if put.written != put.size {
            return Err(Error::refused(400, format!("{} is shorter than announced", put.path)));
        }
        let usual = if put.script { 0o755 } else { 0o644 };
        self.disk.set_mode(&put.rel, put.mode.unwrap_or(usual))?;
        if let Some(mtime_ns) = put.mtime_ns {
            self.disk.set_mtime(&put.rel, mtime_ns)?;
        }
        self.disk.fsync(&put.file, &put.rel)?;
        self.disk.make_folders(parent(&put.path))?;
        // Durably before the new source is there; once more after it, should the application have written it again.
        let recompile = || {
            let folders = bytecode::remove(&self.disk, std::iter::once(put.path.as_str()))?;
            folders.iter().try_for_each(|folder| self.disk.fsync_dir(folder))
        };
        recompile()?;
        self.disk.rename(&put.rel, &put.path)?;
        recompile()?;
        // Every folder on the way may be new.
        put.path.parents().chain([""]).try_for_each(|folder| self.disk.fsync_dir(folder))
    }

    /// Removes what has arrived of it.
    pub fn give_up(&self, put: Put) {
        if let Err(error) = self.disk.unlink(&put.rel) {
            log::warn!("can't remove {}: {}", put.rel, edge::log::chain(&error));
        }
    }

    /// Deletes a file.
    ///
    /// # Errors
    /// 404: it is not there; 409: it is a folder.
    pub fn delete_file(&mut self, path: &RelPath) -> Result<(), Error> {
        self.finish_decided()?;
        match self.disk.stat(path)? {
            None => Err(Error::not_found(path)),
            Some(stat) if stat.is_dir => Err(Error::refused(409, format!("{path} is a folder"))),
            Some(_) => {
                self.disk.unlink(path)?;
                self.disk.fsync_dir(parent(path))
            }
        }
    }
}

//! A simulated disk for tests: loses and tears what was not synced, fails on demand.
//!
//! A file is what is durable plus the writes since; a crash keeps any of their 512-byte sectors. The folder is what is
//! durable plus the operations since; a crash keeps a prefix of them (as journaling file systems do).
#![cfg_attr(fuzzing, allow(dead_code, reason = "the fuzzer uses less of it than the tests"))]

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

use super::disk::{Disk, DiskFile};

const SECTOR: usize = 512;

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug, Clone, Default)]
struct Data {
    durable: Vec<u8>,
    current: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Debug, Clone)]
enum DirChange {
    Set(String, usize),
    Rename(String, String),
    Unlink(String),
}

#[derive(Default)]
struct Inner {
    files: Vec<Data>,
    names: HashMap<String, usize>,
    durable_names: HashMap<String, usize>,
    dir_pending: Vec<DirChange>,
    ops: u64,
    crash_at: Option<u64>,
    dead: bool,
    sync_errors: bool,
    space: Option<u64>,
}

/// What survives a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The process: everything written.
    Process,
    /// The machine: what was synced, and any part of the rest.
    Power,
}

#[derive(Clone, Default)]
pub(crate) struct SimDisk(Arc<Mutex<Inner>>);

struct SimFile(SimDisk, usize);

fn apply(names: &mut HashMap<String, usize>, change: &DirChange) {
    match change {
        DirChange::Set(name, id) => drop(names.insert(name.clone(), *id)),
        DirChange::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        DirChange::Unlink(name) => drop(names.remove(name)),
    }
}

fn write(into: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if into.len() < offset + bytes.len() {
        into.resize(offset + bytes.len(), 0);
    }
    into[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl Inner {
    /// Counts a change, and dies when it is the one to die at.
    fn op(&mut self) -> io::Result<()> {
        self.ops += 1;
        if self.crash_at == Some(self.ops) {
            self.dead = true;
        }
        self.alive()
    }
    fn alive(&self) -> io::Result<()> {
        if self.dead { Err(io::Error::other("crashed")) } else { Ok(()) }
    }
    fn used(&self) -> u64 {
        self.names.values().map(|id| self.files[*id].current.len() as u64).sum()
    }
    fn grow(&self, by: u64) -> io::Result<()> {
        match self.space {
            Some(space) if self.used() + by > space => Err(Errno::NOSPC.into()),
            _ => Ok(()),
        }
    }
}

impl SimDisk {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
    pub(crate) fn ops(&self) -> u64 {
        self.lock().ops
    }
    /// Every operation from the `n`th from now on fails.
    pub(crate) fn crash_after(&self, n: u64) {
        let mut i = self.lock();
        i.crash_at = Some(i.ops + n);
    }
    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }
    pub(crate) fn fail_syncs(&self, fail: bool) {
        self.lock().sync_errors = fail;
    }
    pub(crate) fn set_space(&self, bytes: Option<u64>) {
        self.lock().space = bytes;
    }
    /// The content of a file.
    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        let i = self.lock();
        i.files[i.names[name]].current.clone()
    }
    /// Replaces the content of a file, durably (damage).
    pub(crate) fn replace(&self, name: &str, bytes: Vec<u8>) {
        let mut i = self.lock();
        let id = i.names[name];
        i.files[id] = Data { durable: bytes.clone(), current: bytes, pending: Vec::new() };
    }
    /// Every file of the folder itself.
    pub(crate) fn all(&self) -> Vec<(String, Vec<u8>)> {
        let i = self.lock();
        let mut v: Vec<_> = i.names.iter().map(|(n, id)| (n.clone(), i.files[*id].current.clone())).collect();
        v.sort();
        v
    }
    /// Makes a file, durably.
    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut i = self.lock();
        let id = i.files.len();
        i.files.push(Data { durable: bytes.clone(), current: bytes, pending: Vec::new() });
        i.names.insert(name.to_owned(), id);
        i.durable_names.insert(name.to_owned(), id);
    }
    pub(crate) fn names(&self, prefix: &str, suffix: &str) -> Vec<String> {
        let i = self.lock();
        let mut v: Vec<_> =
            i.names.keys().filter(|n| n.starts_with(prefix) && n.ends_with(suffix)).cloned().collect();
        v.sort();
        v
    }

    /// The machine comes back with what survived.
    pub(crate) fn restart(&self, crash: Crash, rng: &mut fastrand::Rng) {
        let mut i = self.lock();
        let i = &mut *i;
        i.dead = false;
        i.crash_at = None;
        if crash == Crash::Power {
            let kept = rng.usize(..=i.dir_pending.len());
            for change in i.dir_pending.iter().take(kept) {
                apply(&mut i.durable_names, change);
            }
            i.names = i.durable_names.clone();
            for file in &mut i.files {
                let keep = [0.0, 0.3, 0.7, 1.0][rng.usize(..4)];
                let mut bytes = std::mem::take(&mut file.durable);
                for change in file.pending.drain(..) {
                    survive(&mut bytes, change, keep, rng);
                }
                file.current = bytes;
            }
        }
        for file in &mut i.files {
            file.pending.clear();
            file.durable = file.current.clone();
        }
        i.durable_names = i.names.clone();
        i.dir_pending.clear();
    }
}

/// Applies those sectors of a change that reached the disk.
fn survive(bytes: &mut Vec<u8>, change: Change, keep: f64, rng: &mut fastrand::Rng) {
    match change {
        Change::Length(len) if rng.f64() < keep => bytes.resize(len as usize, 0),
        Change::Length(_) => {}
        Change::Write(offset, new) => {
            let mut at = 0;
            while at < new.len() {
                let place = offset as usize + at;
                let end = (place / SECTOR + 1) * SECTOR - offset as usize;
                let end = end.min(new.len());
                if rng.f64() < keep {
                    write(bytes, place, &new[at..end]);
                }
                at = end;
            }
        }
    }
}

impl Disk for SimDisk {
    fn list(&self, sub: &str) -> io::Result<Vec<(String, u64)>> {
        let i = self.lock();
        i.alive()?;
        let prefix = if sub.is_empty() { String::new() } else { format!("{sub}/") };
        Ok(i.names
            .iter()
            .filter_map(|(n, id)| {
                let rest = n.strip_prefix(&prefix)?;
                (!rest.contains('/')).then(|| (rest.to_owned(), i.files[*id].current.len() as u64))
            })
            .collect())
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let i = self.lock();
        i.alive()?;
        let id = *i.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile(self.clone(), id)))
    }
    fn create(&self, name: &str, bytes: u64) -> io::Result<Arc<dyn DiskFile>> {
        let mut i = self.lock();
        i.op()?;
        i.grow(bytes)?;
        let id = i.files.len();
        i.files.push(Data::default());
        let change = DirChange::Set(name.to_owned(), id);
        apply(&mut i.names, &change);
        i.dir_pending.push(change);
        i.files[id].current.resize(bytes as usize, 0);
        i.files[id].pending.push(Change::Length(bytes));
        Ok(Arc::new(SimFile(self.clone(), id)))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut i = self.lock();
        i.op()?;
        if !i.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let change = DirChange::Rename(from.to_owned(), to.to_owned());
        apply(&mut i.names, &change);
        i.dir_pending.push(change);
        Ok(())
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut i = self.lock();
        i.op()?;
        let change = DirChange::Unlink(name.to_owned());
        apply(&mut i.names, &change);
        i.dir_pending.push(change);
        Ok(())
    }
    fn sync_dir(&self, _sub: &str) -> io::Result<()> {
        let mut i = self.lock();
        i.op()?;
        let i = &mut *i;
        for change in i.dir_pending.drain(..) {
            apply(&mut i.durable_names, &change);
        }
        Ok(())
    }
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("sim").join(name)
    }
}

impl DiskFile for SimFile {
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut i = self.0.lock();
        let dying = i.op();
        let all = parts.concat();
        let len = i.files[self.1].current.len() as u64;
        i.grow((offset + all.len() as u64).saturating_sub(len))?;
        // The operation the process dies in may be half done, up to a sector.
        let half = (offset as usize + all.len() / 2) / SECTOR * SECTOR;
        let part = if dying.is_err() { half.saturating_sub(offset as usize) } else { all.len() };
        let all = all[..part].to_vec();
        let file = &mut i.files[self.1];
        write(&mut file.current, offset as usize, &all);
        file.pending.push(Change::Write(offset, all));
        dying
    }
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let i = self.0.lock();
        i.alive()?;
        let bytes = i.files[self.1].current.get(offset as usize..).unwrap_or(&[]);
        let n = bytes.len().min(into.len());
        into[..n].copy_from_slice(&bytes[..n]);
        Ok(n)
    }
    fn sync(&self) -> io::Result<()> {
        let mut i = self.0.lock();
        i.op()?;
        if i.sync_errors {
            return Err(Errno::IO.into());
        }
        let file = &mut i.files[self.1];
        file.pending.clear();
        file.durable = file.current.clone();
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        let i = self.0.lock();
        i.alive()?;
        Ok(i.files[self.1].current.len() as u64)
    }
    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let mut i = self.0.lock();
        i.op()?;
        let file = &mut i.files[self.1];
        file.current.resize(bytes as usize, 0);
        file.pending.push(Change::Length(bytes));
        Ok(())
    }
    fn preallocate(&self, bytes: u64) -> io::Result<()> {
        let mut i = self.0.lock();
        i.op()?;
        let len = i.files[self.1].current.len() as u64;
        if bytes > len {
            i.grow(bytes - len)?;
            let file = &mut i.files[self.1];
            file.current.resize(bytes as usize, 0);
            file.pending.push(Change::Length(bytes));
        }
        Ok(())
    }
}

//! What is in the files: from the cache, or by reading them, on two threads when it is much.
//!
//! Invariant: what is returned was read from a file that had the same state before and after.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, SystemTime},
};

use edge::{
    beneath::Stat,
    sync::{
        cache::HashCache,
        content::{self, Hashed},
    },
};
use rustix::fs::OFlags;

use super::{Error, Watcher, walk::Found};

/// From this many bytes on, threads pay.
const THREADS_FROM: u64 = 256 * 1024;
/// Hashing threads.
const THREADS: usize = 2;
/// From this many bytes on, a file is read by two threads by itself.
const HALVES_FROM: u64 = 8 << 20;
/// How often a file is read that changes meanwhile.
const ATTEMPTS: u32 = 4;
/// How long its writer gets before the next attempt.
const PAUSE: Duration = Duration::from_millis(30);
/// How often the watcher hears of it.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// State and content of a file; `None`: it is not there any more.
pub(super) type Known = Option<(Stat, Arc<Hashed>)>;

/// In the order of the files.
pub(super) struct All {
    pub(super) known: Vec<Known>,
    pub(super) read_files: usize,
    pub(super) read_bytes: u64,
}

/// What one reading found, and when it began (ns since 1970).
struct Fresh {
    stat: Stat,
    hashed: Arc<Hashed>,
    began_ns: i64,
}

/// Looks all files up, and reads those that are not known.
pub(super) fn all(files: &[Found], cache: &mut HashCache, watcher: &mut dyn Watcher) -> Result<All, Error> {
    let mut known: Vec<Known> =
        files.iter().map(|file| cache.get(&file.stat).map(|hashed| (file.stat, hashed))).collect();
    let stale: Vec<usize> = (0..files.len()).filter(|&at| known[at].is_none()).collect();
    let total: u64 = stale.iter().map(|&at| files[at].stat.size).sum();
    let mut keep = |at: usize, fresh: Option<Fresh>| {
        if let Some(fresh) = fresh {
            cache.put(&fresh.stat, Arc::clone(&fresh.hashed), fresh.began_ns);
            known[at] = Some((fresh.stat, fresh.hashed));
        }
    };
    if total < THREADS_FROM {
        let nobody = AtomicU64::new(0);
        for &at in &stale {
            keep(at, file(&files[at].path, &nobody)?);
        }
    } else {
        threads(files, &stale, total, &mut keep, watcher)?;
    }
    Ok(All { known, read_files: stale.len(), read_bytes: total })
}

fn threads(
    files: &[Found],
    stale: &[usize],
    total: u64,
    keep: &mut dyn FnMut(usize, Option<Fresh>),
    watcher: &mut dyn Watcher,
) -> Result<(), Error> {
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (sender, results) = mpsc::channel();
        for _ in 0..THREADS.min(stale.len()) {
            let (sender, next, done) = (sender.clone(), &next, &done);
            scope.spawn(move || {
                while let Some(&at) = stale.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Nobody listens any more after the first error.
                    if sender.send((at, file(&files[at].path, done))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        loop {
            match results.recv_timeout(TELL_EVERY) {
                Ok((at, Ok(fresh))) => keep(at, fresh),
                Ok((_, Err(error))) => {
                    next.store(stale.len(), Ordering::Relaxed);
                    return Err(error);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    watcher.hashing(done.load(Ordering::Relaxed).min(total), total);
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    watcher.hashing(total, total);
                    return Ok(());
                }
            }
        }
    })
}

/// Reads one file until it holds still.
fn file(path: &Path, done: &AtomicU64) -> Result<Option<Fresh>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        match read_once(path, done) {
            Ok(Some(fresh)) => return Ok(Some(fresh)),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
    }
    Err(Error::Changing { path: path.to_owned() })
}

/// `None`: it changed meanwhile.
fn read_once(path: &Path, done: &AtomicU64) -> io::Result<Option<Fresh>> {
    let began_ns = now_ns();
    let file = open(path)?;
    let before = Stat::of(&file)?;
    if !before.is_file {
        return Err(io::Error::other("it is no regular file any more"));
    }
    let hashed = if before.size >= HALVES_FROM {
        let count = |bytes| {
            done.fetch_add(bytes, Ordering::Relaxed);
        };
        content::hash_halves(&file, before.size, &count)?
    } else {
        content::hash(&mut Counted { file: &file, done })?
    };
    let after = Stat::of(&file)?;
    let same = hashed.size == before.size
        && (before.size, before.mtime_ns, before.ctime_ns) == (after.size, after.mtime_ns, after.ctime_ns);
    Ok(same.then(|| Fresh { stat: before, hashed: Arc::new(hashed), began_ns }))
}

/// Opens a file for reading; a FIFO that took its place does not hang us.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

struct Counted<'a> {
    file: &'a File,
    done: &'a AtomicU64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.done.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// The clock of the file system's times.
fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

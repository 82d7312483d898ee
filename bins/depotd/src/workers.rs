//! The threads that block: `depot-look-N` ask the catalog and open files of the store, `depot-make-N` make bundles.
//!
//! Owns: the threads, each with a catalog or store of its own. Invariants: every job is followed by exactly one [`Done`];
//! queues are bounded; the catalog's version is always asked by the same thread, since SQLite counts for each connection.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex};

use edge::release::Sha256;
use mio::Waker;

use crate::bundle::{self, Kitchen, Recipe};
use crate::catalog::Catalog;
use crate::core::{self, Resolved};
use crate::growing::{Failed, Growing};
use crate::query::Question;
use crate::store::{self, BlobStore};

/// Something to look up.
#[derive(Debug)]
pub enum Look {
    /// Whether the catalog has changed.
    Version,
    /// What a question comes to. The number comes back.
    Question(Arc<Question>, u64),
    /// Content for `/blob`.
    Content(Sha256, u64),
}

/// Something to make.
#[derive(Debug)]
pub struct Make {
    pub name: String,
    pub recipe: Recipe,
    pub growing: Arc<Growing>,
    /// At most so many bytes may come of it.
    pub bytes_max: u64,
}

/// Content that may be served.
#[derive(Debug)]
pub struct Found {
    pub size: u64,
    /// `None`: it is elsewhere.
    pub file: Option<File>,
}

/// What came of it. Errors are logged by whoever takes it.
#[derive(Debug)]
pub enum Done {
    Version(Result<Option<u64>, String>),
    Question(Arc<Question>, u64, Result<Resolved, String>),
    Content(Sha256, u64, Result<Option<Found>, String>),
    Made(String, Result<u64, (Failed, String)>),
}

/// The threads.
#[derive(Debug)]
pub struct Workers {
    look: Vec<SyncSender<Look>>,
    next: usize,
    make: Option<SyncSender<Make>>,
    done: Receiver<Done>,
    /// Files being made or waiting for it.
    making: Arc<AtomicUsize>,
    make_max: usize,
}

/// What the threads are made with.
pub struct Setup {
    /// One for each thread.
    pub catalogs: Vec<(Box<dyn Catalog>, Box<dyn BlobStore>)>,
    pub look_max: usize,
    /// One for each thread.
    pub stores: Vec<Box<dyn BlobStore>>,
    pub make_max: usize,
    /// Content is opened where it is.
    pub local: bool,
    pub dir: PathBuf,
    pub level: u32,
    pub free_min: u64,
}

impl Workers {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system has none.
    pub fn start(setup: Setup, waker: &Arc<Waker>) -> std::io::Result<Self> {
        let (done, inbox) = mpsc::channel();
        let Setup { local, level, free_min, make_max, .. } = setup;
        let mut look = Vec::new();
        for (n, (catalog, store)) in setup.catalogs.into_iter().enumerate() {
            let (jobs, queue) = mpsc::sync_channel(setup.look_max);
            look.push(jobs);
            let looker = Looker { catalog, store, local, done: done.clone(), waker: Arc::clone(waker) };
            std::thread::Builder::new().name(format!("depot-look-{n}")).spawn(move || looker.run(&queue))?;
        }
        let (make, queue) = mpsc::sync_channel(make_max);
        let queue = Arc::new(Mutex::new(queue));
        let making = Arc::new(AtomicUsize::new(0));
        for (n, store) in setup.stores.into_iter().enumerate() {
            let maker = Maker {
                store,
                dir: setup.dir.clone(),
                level,
                free_min,
                done: done.clone(),
                waker: Arc::clone(waker),
                making: Arc::clone(&making),
            };
            let queue = Arc::clone(&queue);
            std::thread::Builder::new().name(format!("depot-make-{n}")).spawn(move || maker.run(&queue))?;
        }
        Ok(Self { look, next: 0, make: Some(make), done: inbox, making, make_max })
    }

    /// Gives something to look up; `false`: the queue is full.
    pub fn look(&mut self, job: Look) -> bool {
        let n = if matches!(job, Look::Version) { 0 } else { self.next };
        self.next = (self.next + 1) % self.look.len().max(1);
        self.look.get(n).is_some_and(|queue| queue.try_send(job).is_ok())
    }

    /// Gives something to make; `false`: the queue is full.
    pub fn make(&mut self, job: Make) -> bool {
        let sent = self.make.as_ref().is_some_and(|queue| queue.try_send(job).is_ok());
        if sent {
            self.making.fetch_add(1, Ordering::Relaxed);
        }
        sent
    }

    /// Files being made or waiting for it, and how many may.
    #[must_use]
    pub fn making(&self) -> (usize, usize) {
        (self.making.load(Ordering::Relaxed), self.make_max)
    }

    /// What is done.
    pub fn next_done(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }
}

struct Looker {
    catalog: Box<dyn Catalog>,
    store: Box<dyn BlobStore>,
    local: bool,
    done: Sender<Done>,
    waker: Arc<Waker>,
}

impl Looker {
    fn run(mut self, queue: &Receiver<Look>) {
        while let Ok(job) = queue.recv() {
            let done = match job {
                Look::Version => Done::Version(self.catalog.version().map_err(|e| edge::log::chain(&e))),
                Look::Question(question, epoch) => {
                    let resolved = core::resolve(self.catalog.as_mut(), &question);
                    Done::Question(question, epoch, resolved.map_err(|e| edge::log::chain(&e)))
                }
                Look::Content(sha256, epoch) => Done::Content(sha256, epoch, self.content(&sha256)),
            };
            if self.done.send(done).is_err() {
                return;
            }
            let _ = self.waker.wake();
        }
    }

    fn content(&mut self, sha256: &Sha256) -> Result<Option<Found>, String> {
        let Some(size) = self.catalog.content(sha256).map_err(|e| edge::log::chain(&e))? else {
            return Ok(None);
        };
        if !self.local {
            return Ok(Some(Found { size, file: None }));
        }
        match self.store.get(sha256, None) {
            Ok(blob) => Ok(Some(Found { size: blob.size, file: blob.file })),
            Err(store::Error::Missing { .. }) => {
                log::error!("the catalog names content {sha256}, which the store lacks: 'depotd verify'");
                Ok(None)
            }
            Err(error) => Err(edge::log::chain(&error)),
        }
    }
}

struct Maker {
    store: Box<dyn BlobStore>,
    dir: PathBuf,
    level: u32,
    free_min: u64,
    done: Sender<Done>,
    waker: Arc<Waker>,
    making: Arc<AtomicUsize>,
}

impl Maker {
    fn run(mut self, queue: &Mutex<Receiver<Make>>) {
        loop {
            let job = match queue.lock() {
                Ok(queue) => queue.recv(),
                // Another thread ended by a bug while it held the lock: the queue itself is whole.
                Err(poisoned) => poisoned.into_inner().recv(),
            };
            let Ok(Make { name, recipe, growing, bytes_max }) = job else { return };
            let waker = Arc::clone(&self.waker);
            let wake = move || drop(waker.wake());
            let mut kitchen = Kitchen {
                store: self.store.as_mut(),
                dir: &self.dir,
                level: self.level,
                free_min: self.free_min,
                bytes_max,
                wake: &wake,
            };
            let made = bundle::make(&recipe, &name, &growing, &mut kitchen);
            let made = made.map_err(|error| (error.to_failed(), edge::log::chain(&error)));
            self.making.fetch_sub(1, Ordering::Relaxed);
            if self.done.send(Done::Made(name, made)).is_err() {
                return;
            }
            let _ = self.waker.wake();
        }
    }
}

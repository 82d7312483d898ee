//! The thread `sideload-disk`: it owns the store, and does all that reads, writes, hashes or syncs files.
//!
//! Owns: the [`Store`], and per connection what is half done (a file being written, records half received).
//! Invariants: tasks are done in the order given; every task is followed by exactly one [`Done`]; an upload that failed
//! swallows the rest of its body and is answered at its end, so that the client reads the answer. The queue is bounded.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::time::Duration;

use edge::sync::manifest::{self, Manifest};
use edge::sync::{RelPath, wire};
use mio::{Token, Waker};
use serde::Serialize;

use crate::naive_time;
use crate::routes::Refusal;
use crate::store::{self, Begun, CommitInfo, Committed, Now, Put, Store};

/// A piece of a file on its way to a client, in bytes.
pub const PIECE: usize = 64 << 10;

/// After a commit, how long there is nothing to do before what it left behind is looked after (the hash cache trusts a
/// file two seconds after its last change), and how often that is tried.
const QUIET: Duration = Duration::from_millis(2500);
const TRIES: u32 = 8;

/// Something to do.
#[derive(Debug)]
pub enum Job {
    /// The files as JSON.
    List,
    /// Open a file.
    Open(RelPath),
    /// Read on in it.
    Read(File),
    /// A file's content will come as [`Job::PutData`].
    Put { path: RelPath, size: u64, mtime_ns: Option<i64>, mode: Option<u32> },
    /// Some of it.
    PutData(Vec<u8>),
    /// That was all.
    PutEnd,
    /// Remove a file.
    Delete(RelPath),
    /// A sync begins; an encoded manifest.
    Begin { manifest: Vec<u8>, force: bool },
    /// Encoded chunk lists.
    Chunks(Vec<u8>),
    /// Encoded records will come as [`Job::Data`].
    DataBegin,
    /// Some of them.
    Data(Vec<u8>),
    /// That was all.
    DataEnd,
    /// Put the sync into force. `restart` is for [`Answer::Committed`].
    Commit { restart: bool },
    /// Forget the sync.
    Abandon,
    /// Back to an earlier commit, or the one before.
    Rollback { to: Option<u64>, restart: bool },
    /// The connection is gone: forget what it left half done.
    Gone,
}

/// What came of it.
#[derive(Debug)]
pub enum Answer {
    /// Nothing to tell.
    Nothing,
    /// JSON, as it is.
    Json(Vec<u8>),
    /// An open file, its size and time.
    File { file: File, size: u64, mtime_ns: i64 },
    /// Bytes of it; none at its end.
    Piece { file: File, bytes: Vec<u8> },
    /// A sync has begun.
    Begun(Begun),
    /// Chunks that are to be sent.
    Missing(Vec<(u32, Vec<(u32, u32)>)>),
    /// Bytes of records taken.
    Received(u64),
    /// A commit or rollback, the history now, and whether a restart was asked for with it: whoever asked may be gone.
    Committed { committed: Committed, history: Vec<CommitInfo>, restart: bool },
}

/// For whom a task is done, what it freed of the window, and the answer.
#[derive(Debug)]
pub struct Done {
    /// The connection, or a token of the daemon's own.
    pub to: Token,
    /// Bytes of its window.
    pub bytes: usize,
    /// `None`: a piece that has no answer of its own.
    pub answer: Option<Result<Answer, Refusal>>,
}

struct Task {
    from: Token,
    job: Job,
}

/// The way to the thread and back.
#[derive(Debug)]
pub struct Disk {
    tasks: Option<SyncSender<Task>>,
    done: Receiver<Done>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// What the thread decodes under.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of manifests.
    pub manifest: manifest::Limits,
}

/// Tasks that wait for the thread; more wait with the loop, bounded by the connections' windows.
const QUEUE: usize = 128;

impl Disk {
    /// Starts the thread with `store`.
    ///
    /// # Errors
    /// The system has no thread.
    pub fn start(store: Store, bounds: Bounds, waker: Arc<Waker>) -> std::io::Result<Disk> {
        let (tasks, inbox) = mpsc::sync_channel(QUEUE);
        let (outbox, done) = mpsc::channel();
        let worker = Worker { store, bounds, uploads: HashMap::new() };
        let thread = std::thread::Builder::new()
            .name("sideload-disk".into())
            .spawn(move || worker.run(&inbox, &outbox, &waker))?;
        Ok(Disk { tasks: Some(tasks), done, thread: Some(thread) })
    }

    /// Gives it something to do.
    ///
    /// # Errors
    /// The job, when the queue is full.
    pub fn send(&self, from: Token, job: Job) -> Result<(), Job> {
        let Some(tasks) = &self.tasks else { return Ok(()) };
        match tasks.try_send(Task { from, job }) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(task)) => Err(task.job),
            Err(TrySendError::Disconnected(_)) => {
                log::error!("the disk thread is gone");
                Ok(())
            }
        }
    }

    /// What is done.
    pub fn next_done(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }

    /// Waits until everything given is done, and ends the thread.
    pub fn close(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the disk thread ended by a bug");
        }
    }
}

/// What a connection has half done here.
enum Upload {
    File(Result<Put, Refusal>),
    Records { decoder: wire::Decoder, received: u64, failed: Option<Refusal> },
}

struct Worker {
    store: Store,
    bounds: Bounds,
    uploads: HashMap<Token, Upload>,
}

type Outcome = Result<Answer, Refusal>;

impl Worker {
    fn run(mut self, inbox: &Receiver<Task>, outbox: &mpsc::Sender<Done>, waker: &Waker) {
        let mut untidy = 0;
        loop {
            let wait = if untidy > 0 { inbox.recv_timeout(QUIET) } else { inbox.recv().map_err(Into::into) };
            let task = match wait {
                Ok(task) => task,
                Err(RecvTimeoutError::Timeout) => {
                    untidy = if self.store.housekeeping(now()) { 0 } else { untidy - 1 };
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            if matches!(task.job, Job::Commit { .. } | Job::Rollback { .. } | Job::Abandon) {
                untidy = TRIES;
            }
            let bytes = match &task.job {
                Job::PutData(bytes) | Job::Data(bytes) => bytes.len(),
                _ => 0,
            };
            let answer = self.act(task.from, task.job);
            if outbox.send(Done { to: task.from, bytes, answer }).is_err() {
                break;
            }
            if let Err(error) = waker.wake() {
                log::error!("the disk thread can't wake the loop: {error}");
            }
        }
        if untidy > 0 {
            self.store.housekeeping(now());
        }
    }

    fn act(&mut self, from: Token, job: Job) -> Option<Outcome> {
        let outcome = match job {
            Job::PutData(bytes) => {
                self.put_data(from, &bytes);
                return None;
            }
            Job::Data(bytes) => {
                self.records(from, &bytes);
                return None;
            }
            Job::Put { path, size, mtime_ns, mode } => {
                let put = self.store.put(path, size, mtime_ns, mode).map_err(|error| refusal(&error));
                self.uploads.insert(from, Upload::File(put));
                return None;
            }
            Job::DataBegin => {
                let decoder = wire::Decoder::new();
                self.uploads.insert(from, Upload::Records { decoder, received: 0, failed: None });
                return None;
            }
            Job::Gone => {
                if let Some(Upload::File(Ok(put))) = self.uploads.remove(&from) {
                    self.store.give_up(put);
                }
                return None;
            }
            Job::List => self.list(),
            Job::Open(path) => self.open(&path),
            Job::Read(file) => read(file),
            Job::PutEnd => self.put_end(from),
            Job::Delete(path) => {
                self.store.delete_file(&path).map(|()| Answer::Nothing).map_err(|e| refusal(&e))
            }
            Job::Begin { manifest, force } => self.begin(&manifest, force),
            Job::Chunks(lists) => self.chunks(&lists),
            Job::DataEnd => self.records_end(from),
            Job::Commit { restart } => {
                let committed = self.store.commit(now());
                self.committed(committed, restart)
            }
            Job::Rollback { to, restart } => {
                let committed = self.store.rollback(to, now());
                self.committed(committed, restart)
            }
            Job::Abandon => {
                self.store.abandon();
                Ok(Answer::Nothing)
            }
        };
        Some(outcome)
    }

    fn list(&mut self) -> Outcome {
        #[derive(Serialize)]
        struct Line<'a> {
            filepath: &'a str,
            mtime: String,
            size: u64,
        }
        let files = self.store.list().map_err(|error| refusal(&error))?;
        let lines: Vec<Line<'_>> = files
            .iter()
            .map(|f| Line { filepath: &f.path, mtime: naive_time::format(f.mtime_ns), size: f.size })
            .collect();
        serde_json::to_vec(&lines).map(Answer::Json).map_err(|error| Refusal::new(500, error.to_string()))
    }

    fn open(&mut self, path: &RelPath) -> Outcome {
        let (file, stat) = self.store.read(path).map_err(|error| refusal(&error))?;
        Ok(Answer::File { file, size: stat.size, mtime_ns: stat.mtime_ns })
    }

    fn put_data(&mut self, from: Token, bytes: &[u8]) {
        if let Some(Upload::File(put)) = self.uploads.get_mut(&from)
            && let Ok(open) = put
            && let Err(error) = self.store.write(open, bytes)
            && let Ok(open) = std::mem::replace(put, Err(refusal(&error)))
        {
            self.store.give_up(open);
        }
    }

    fn put_end(&mut self, from: Token) -> Outcome {
        match self.uploads.remove(&from) {
            Some(Upload::File(put)) => {
                self.store.finish_put(put?).map(|()| Answer::Nothing).map_err(|error| refusal(&error))
            }
            _ => Err(Refusal::new(500, "no file is being written")),
        }
    }

    fn begin(&mut self, manifest: &[u8], force: bool) -> Outcome {
        let manifest = Manifest::decode(manifest, &self.bounds.manifest).map_err(|error| {
            let status = if matches!(error, manifest::Error::TooLarge(_)) { 413 } else { 400 };
            Refusal::new(status, edge::log::chain(&error))
        })?;
        self.store.begin(manifest, force, now()).map(Answer::Begun).map_err(|error| refusal(&error))
    }

    fn chunks(&mut self, lists: &[u8]) -> Outcome {
        let lists = wire::ChunkLists::decode(lists).map_err(|error| Refusal::new(400, error.to_string()))?;
        self.store.chunks(lists, now()).map(Answer::Missing).map_err(|error| refusal(&error))
    }

    fn records(&mut self, from: Token, bytes: &[u8]) {
        let Some(Upload::Records { decoder, received, failed }) = self.uploads.get_mut(&from) else { return };
        *received += bytes.len() as u64;
        if failed.is_some() {
            return;
        }
        decoder.push(bytes);
        loop {
            let taken = match decoder.next() {
                Ok(None) => return,
                Ok(Some(record)) => self.store.data(&record, now()).map_err(|error| refusal(&error)),
                Err(error) => Err(Refusal::new(400, error.to_string())),
            };
            if let Err(refusal) = taken {
                *failed = Some(refusal);
                return;
            }
        }
    }

    fn records_end(&mut self, from: Token) -> Outcome {
        match self.uploads.remove(&from) {
            Some(Upload::Records { failed: Some(refusal), .. }) => Err(refusal),
            Some(Upload::Records { decoder, received, .. }) if decoder.is_clean() => {
                Ok(Answer::Received(received))
            }
            Some(Upload::Records { .. }) => Err(Refusal::new(400, "the data ends within a record")),
            _ => Err(Refusal::new(500, "no data is being sent")),
        }
    }

    fn committed(&mut self, committed: Result<Committed, store::Error>, restart: bool) -> Outcome {
        let committed = committed.map_err(|error| refusal(&error))?;
        Ok(Answer::Committed { committed, history: self.store.history().to_vec(), restart })
    }
}

fn read(mut file: File) -> Outcome {
    let mut bytes = vec![0; PIECE];
    let n = file.read(&mut bytes).map_err(|error| Refusal::new(500, error.to_string()))?;
    bytes.truncate(n);
    Ok(Answer::Piece { file, bytes })
}

/// What a client is told of the store's trouble; what is not the client's fault is logged as well.
fn refusal(error: &store::Error) -> Refusal {
    let message = edge::log::chain(error);
    let status = error.status();
    if status >= 500 {
        log::error!("answering {status}: {message}");
    }
    let details = match error {
        store::Error::ManyDeletes { deletes, of } => {
            vec![("deletes", (*deletes).into()), ("of", (*of).into())]
        }
        store::Error::Gone => return Refusal::busy(status, message),
        _ => Vec::new(),
    };
    Refusal { details, ..Refusal::new(status, message) }
}

/// The clock of the store.
pub fn now() -> Now {
    Now { unix_ns: edge::clock::unix_ns() }
}

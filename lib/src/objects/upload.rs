//! The worker threads: each takes one record at a time and stores it as an object.
//!
//! Owns: the threads and the two channels. Invariants: at most one record per thread and one per place waiting, so
//! memory stays under the core's bound; a thread ends when the queue is closed.

use std::sync::{Arc, Mutex, PoisonError, mpsc};

use mio::Waker;

use super::Outcome;
use crate::spool::Record;

/// Stack of a worker, in bytes: TLS handshakes and ureq need some.
const STACK_BYTES: usize = 512 * 1024;

/// What a worker reports.
#[derive(Debug)]
pub struct Done {
    /// The core's.
    pub place: usize,
    /// What became of it.
    pub outcome: Outcome,
    /// Payload bytes.
    pub bytes: usize,
}

/// The workers.
#[derive(Debug)]
pub struct Pool {
    jobs: mpsc::Sender<(usize, Arc<Record>)>,
    done: mpsc::Receiver<Done>,
}

impl Pool {
    /// Starts `workers` threads, named `<name>-N`. `store` makes a record an object and stores it; it may block. `waker`
    /// is woken after each result.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        name: &str,
        workers: usize,
        store: impl Fn(&Record) -> Outcome + Send + Sync + 'static,
        waker: &Arc<Waker>,
    ) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<(usize, Arc<Record>)>();
        let (results, done) = mpsc::channel();
        let (queue, store) = (Arc::new(Mutex::new(queue)), Arc::new(store));
        for n in 0..workers {
            let (queue, store) = (Arc::clone(&queue), Arc::clone(&store));
            let (results, waker) = (results.clone(), Arc::clone(waker));
            let thread = std::thread::Builder::new().name(format!("{name}-{n}")).stack_size(STACK_BYTES);
            thread.spawn(move || {
                loop {
                    // Nobody panics while holding the lock; and the receiver would be whole all the same.
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((place, record)) = next else { return };
                    let bytes = record.message.payload.len();
                    let outcome = store(&record);
                    drop(record);
                    if results.send(Done { place, outcome, bytes }).is_err() {
                        return;
                    }
                    if let Err(error) = waker.wake() {
                        log::warn!("upload: can't wake the main loop: {error}");
                    }
                }
            })?;
        }
        Ok(Self { jobs, done })
    }

    /// Gives a record to whichever thread is free. Called by the core's order only, so that the queue is never longer
    /// than there are places.
    pub fn run(&self, place: usize, record: Arc<Record>) {
        if self.jobs.send((place, record)).is_err() {
            log::error!("upload: all worker threads are gone");
        }
    }

    /// The next result, if there is one.
    #[must_use]
    pub fn next_done(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }
}

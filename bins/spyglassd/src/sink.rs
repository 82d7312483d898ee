//! A sink of one stream: a thread that takes its units, and the handle that the loop has of it.
//!
//! Owns: what both ends share. Invariants: the loop never waits for the thread but in [`Sink::stop`]; a sink needs units
//! all the time. Never: knows what the thread does with them.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use mio::Waker;
use serde_json::{Value, json};

use crate::inbox::Inbox;
use crate::unit::Unit;

/// What the loop and the thread share.
#[derive(Debug)]
pub struct Shared {
    /// Units for the thread.
    pub inbox: Inbox,
    status: Mutex<Value>,
    key_wanted: AtomicBool,
    stop: AtomicBool,
}

impl Shared {
    /// For a thread that lets at most `bytes_max` bytes of units wait.
    #[must_use]
    pub fn new(bytes_max: usize) -> Arc<Shared> {
        Arc::new(Shared {
            inbox: Inbox::new(bytes_max),
            status: Mutex::new(json!({ "state": "WAITING" })),
            key_wanted: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        })
    }

    /// The thread would be helped by a key frame.
    pub fn want_key(&self) {
        self.key_wanted.store(true, Ordering::Relaxed);
    }

    /// Whether the thread is to finish what it has and end.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// What `/status` is to say of it from now on.
    pub fn publish(&self, status: Value) {
        // A panic of another thread leaves a whole value behind: it is assigned at once.
        *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

/// How a sink's thread waits.
#[derive(Debug)]
pub enum Wake {
    /// In a poll that has this waker.
    Poll(Arc<Waker>),
    /// Parked.
    Park,
}

/// The loop's handle.
#[derive(Debug)]
pub struct Sink {
    kind: &'static str,
    shared: Arc<Shared>,
    wake: Wake,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// Starts the thread. `kind` names it in `/status` and in the log, with `stream` also in lists of threads.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        kind: &'static str,
        stream: &str,
        shared: Arc<Shared>,
        wake: Wake,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<Sink> {
        let name = format!("{kind}-{stream}").chars().take(15).collect();
        let thread = std::thread::Builder::new().name(name).spawn(work)?;
        Ok(Sink { kind, shared, wake, thread: Some(thread) })
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Takes a unit. Never blocks for long.
    pub fn push(&self, unit: &Unit) {
        self.shared.inbox.push(unit);
        self.wake();
    }

    /// True once when a key frame would help.
    #[must_use]
    pub fn take_key_wanted(&self) -> bool {
        self.shared.key_wanted.swap(false, Ordering::Relaxed)
    }

    /// What `/status` says of it.
    #[must_use]
    pub fn status(&self) -> Value {
        self.shared.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the thread has finished what it has, which takes it three seconds at most.
    pub fn stop(mut self) {
        self.end();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("{}: the thread has panicked", self.kind);
        }
    }

    fn end(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wake();
    }

    fn wake(&self) {
        match (&self.wake, &self.thread) {
            (Wake::Poll(waker), _) => {
                if let Err(error) = waker.wake() {
                    log::warn!("{}: the thread can't be woken up: {error}", self.kind);
                }
            }
            (Wake::Park, Some(thread)) => thread.thread().unpark(),
            (Wake::Park, None) => {}
        }
    }
}

/// Without [`Sink::stop`] the thread does the same, but nobody waits for it.
impl Drop for Sink {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.end();
        }
    }
}

//! The install thread and the two channels to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use mio::Waker;
use serde_json::{Value, json};

use crate::config::Config;
use crate::core::{Done, Job};
use crate::status::View;
use crate::worker::{Worker, today};

/// Stack, in bytes: TLS handshakes, ureq and zlib need some.
const STACK_BYTES: usize = 512 * 1024;

/// What the thread is asked for.
#[derive(Debug)]
pub enum Task {
    Job(Job),
    Config(Arc<Config>),
    /// Compare what is installed with its manifest.
    Verify(u64),
    /// Let a release out of quarantine: the one with this beginning of its manifest's hash.
    Retry(u64, Option<[u8; 4]>),
}

/// What it says.
#[derive(Debug)]
pub struct Said {
    pub done: Option<Done>,
    pub verified: Option<Value>,
    pub retried: Option<Value>,
    pub view: View,
}

/// The thread.
#[derive(Debug)]
pub struct Thread {
    tasks: Option<mpsc::Sender<Task>>,
    said: mpsc::Receiver<Said>,
    stop: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

impl Thread {
    /// Starts it. `waker` is woken after each task.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(
        mut worker: Worker,
        config: Arc<Config>,
        stop: Arc<AtomicBool>,
        waker: Waker,
    ) -> std::io::Result<Thread> {
        let (tasks, queue) = mpsc::channel::<Task>();
        let (results, said) = mpsc::channel();
        let thread = std::thread::Builder::new().name("install".into()).stack_size(STACK_BYTES);
        let handle = thread.spawn(move || {
            let mut config = config;
            while let Ok(task) = queue.recv() {
                let (mut done, mut verified, mut retried) = (None, None, None);
                match task {
                    Task::Job(job) => {
                        log::debug!("install: {job:?}");
                        let came = worker.run(job);
                        log::debug!("install: {came:?}");
                        done = Some(came);
                    }
                    Task::Config(new) => {
                        config = Arc::clone(&new);
                        worker.set_config(new);
                    }
                    Task::Verify(number) => verified = Some(verify(&worker, number)),
                    Task::Retry(number, which) => retried = Some(retry(&mut worker, number, which)),
                }
                let view = View::of(&worker, today(&config));
                if results.send(Said { done, verified, retried, view }).is_err() {
                    return;
                }
                if let Err(error) = waker.wake() {
                    log::warn!("install: can't wake the main loop: {error}");
                }
            }
        })?;
        Ok(Thread { tasks: Some(tasks), said, stop, handle: Some(handle) })
    }

    pub fn send(&self, task: Task) {
        if self.tasks.as_ref().is_none_or(|tasks| tasks.send(task).is_err()) {
            log::error!("the install thread is gone");
        }
    }

    /// The next word, if there is one.
    pub fn next(&self) -> Option<Said> {
        self.said.try_recv().ok()
    }

    /// What is under way ends as soon as it can.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits for its end.
    pub fn close(&mut self) {
        self.stop();
        self.tasks = None;
        if let Some(handle) = self.handle.take()
            && handle.join().is_err()
        {
            log::error!("the install thread panicked");
        }
    }
}

fn verify(worker: &Worker, number: u64) -> Value {
    let Some((id, _)) = worker.store.current() else {
        return json!({ "number": number, "generation": null, "damage": [] });
    };
    match worker.store.verify(id) {
        Ok(damage) => {
            let damage: Vec<Value> = damage.iter().map(|d| json!({ "app": d.app, "why": d.why })).collect();
            json!({ "number": number, "generation": id.to_string(), "damage": damage })
        }
        Err(error) => json!({ "number": number, "error": edge::log::chain(&error) }),
    }
}

fn retry(worker: &mut Worker, number: u64, which: Option<[u8; 4]>) -> Value {
    match worker.retry(which) {
        Ok(of) => json!({ "number": number, "of": of }),
        Err(error) => json!({ "number": number, "error": error }),
    }
}

//! What runs beside the daemon's loop: syncs, and making and removing files.
//!
//! Owns the thread `spool-sync`. It does one job after the other and reports each through a channel and a
//! `mio::Waker`. After a failed sync it does nothing more: the same descriptor is never synced again.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mio::Waker;

use super::disk::{Disk, DiskFile};

/// The spare segment file.
pub(crate) const SPARE: &str = "spare";
const SPARE_NEW: &str = "spare.new";

/// Something to do.
pub(crate) enum Job {
    /// Sync these files, then the folder.
    Commit { files: Vec<Arc<dyn DiskFile>>, dir: bool },
    /// Make the spare file.
    Prepare { bytes: u64 },
    /// Remove these segments; the first may become the spare.
    Remove { names: Vec<String>, recycle: bool },
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Done {
    Commit {
        result: io::Result<()>,
        took: Duration,
    },
    Prepare(io::Result<()>),
    /// Whether the first one became the spare.
    Remove(io::Result<bool>),
}

/// Runs a job.
pub(crate) fn run(disk: &dyn Disk, job: Job) -> Done {
    match job {
        Job::Commit { files, dir } => {
            let start = Instant::now();
            let mut result = files.iter().try_for_each(|f| f.sync());
            if dir {
                result = result.and_then(|()| disk.sync_dir(""));
            }
            Done::Commit { result, took: start.elapsed() }
        }
        Job::Prepare { bytes } => Done::Prepare(prepare(disk, bytes)),
        Job::Remove { names, recycle } => Done::Remove(remove(disk, &names, recycle)),
    }
}

/// The name `spare` is durable, so a segment made from it can never carry an old name after a crash.
fn prepare(disk: &dyn Disk, bytes: u64) -> io::Result<()> {
    disk.create(SPARE_NEW, bytes)?.sync()?;
    disk.rename(SPARE_NEW, SPARE)?;
    disk.sync_dir("")
}

fn remove(disk: &dyn Disk, names: &[String], recycle: bool) -> io::Result<bool> {
    for (i, name) in names.iter().enumerate() {
        if recycle && i == 0 { disk.rename(name, SPARE)? } else { disk.unlink(name)? }
    }
    disk.sync_dir("")?;
    Ok(recycle)
}

/// Who runs the jobs.
pub(crate) enum Engine {
    /// The thread.
    Thread { jobs: Option<Sender<Job>>, done: Receiver<Done>, thread: Option<JoinHandle<()>> },
    /// Whoever calls [`Engine::step`] (tests).
    #[cfg_attr(not(any(test, fuzzing)), expect(dead_code, reason = "built by tests and the fuzzer only"))]
    Inline {
        disk: Arc<dyn Disk>,
        jobs: std::collections::VecDeque<Job>,
        done: std::collections::VecDeque<Done>,
    },
}

impl Engine {
    /// Starts the thread.
    pub(crate) fn thread(disk: Arc<dyn Disk>, waker: Option<Arc<Waker>>) -> io::Result<Engine> {
        let (jobs, todo) = channel::<Job>();
        let (report, done) = channel();
        let work = move || {
            for job in todo {
                let result = run(&*disk, job);
                let stop = matches!(&result, Done::Commit { result: Err(_), .. });
                // The receiving end is gone only when the spool is being dropped.
                let _ = report.send(result);
                if let Some(waker) = &waker {
                    // A full eventfd is woken already; any other failure shows as a missed deadline of the caller.
                    let _ = waker.wake();
                }
                if stop {
                    return;
                }
            }
        };
        let thread =
            std::thread::Builder::new().name("spool-sync".into()).stack_size(128 * 1024).spawn(work)?;
        Ok(Engine::Thread { jobs: Some(jobs), done, thread: Some(thread) })
    }

    /// Runs jobs in the caller's own time.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn inline(disk: Arc<dyn Disk>) -> Engine {
        Engine::Inline { disk, jobs: Default::default(), done: Default::default() }
    }

    pub(crate) fn submit(&mut self, job: Job) {
        match self {
            // A thread that ended reported why before; that report is what the caller sees.
            Engine::Thread { jobs, .. } => drop(jobs.as_ref().map(|j| j.send(job))),
            Engine::Inline { jobs, .. } => jobs.push_back(job),
        }
    }

    /// A finished job, if any.
    pub(crate) fn try_done(&mut self) -> Result<Option<Done>, &'static str> {
        match self {
            Engine::Thread { done, .. } => match done.try_recv() {
                Ok(d) => Ok(Some(d)),
                Err(TryRecvError::Empty) => Ok(None),
                Err(TryRecvError::Disconnected) => Err("its sync thread ended"),
            },
            Engine::Inline { done, .. } => Ok(done.pop_front()),
        }
    }

    /// Waits for the next finished job.
    pub(crate) fn wait_done(&mut self) -> Result<Done, &'static str> {
        match self {
            Engine::Thread { done, .. } => done.recv().map_err(|_| "its sync thread ended"),
            Engine::Inline { disk, jobs, done } => {
                if done.is_empty()
                    && let Some(job) = jobs.pop_front()
                {
                    done.push_back(run(&**disk, job));
                }
                done.pop_front().ok_or("nothing to wait for")
            }
        }
    }

    /// Runs one job now (inline only).
    #[cfg(test)]
    pub(crate) fn step(&mut self) -> bool {
        let Engine::Inline { disk, jobs, done } = self else { return false };
        let Some(job) = jobs.pop_front() else { return false };
        done.push_back(run(&**disk, job));
        true
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Engine::Thread { jobs, thread, .. } = self {
            *jobs = None;
            if let Some(thread) = thread.take() {
                // A panic of the thread was reported by the panic hook already.
                let _ = thread.join();
            }
        }
    }
}

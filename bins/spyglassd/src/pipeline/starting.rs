//! Pipelines that are being started, each on a thread of its own: loading an encoder's plug-in and opening its device may
//! take as long as they like.
//!
//! Owns: the thread, and the jobs that wait for its end, as many as they may be. Invariants: a start that nobody waits for
//! any more lets go of what it has made; at most [`STARTING_MAX`] are under way, those that nobody waits for among them.
//! Never: blocks the caller, looks into a job.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};

use super::{PipelineError, Place};

/// Starts under way, at most.
const STARTING_MAX: usize = 64;
static STARTING: AtomicUsize = AtomicUsize::new(0);

/// Starts under way.
pub(crate) fn alive() -> usize {
    STARTING.load(Ordering::Acquire)
}

/// Something that runs, or will once its start has ended. Dropping it is no wait either.
#[derive(Debug)]
pub struct Staged<T, J> {
    run: u64,
    stage: Stage<T, J>,
}

#[derive(Debug)]
enum Stage<T, J> {
    Starting { made: Receiver<Result<T, PipelineError>>, waiting: VecDeque<J>, most: usize },
    Running(T),
}

impl<T: Send + 'static, J> Staged<T, J> {
    /// Begins the start that is `make`, under the number `run`; `told` is called on its thread when it has ended. At most
    /// `most` jobs wait for that.
    ///
    /// # Errors
    /// [`PipelineError::Start`]: no thread can be had, or too many starts have not ended yet.
    pub fn start(
        run: u64,
        most: usize,
        make: impl FnOnce() -> Result<T, PipelineError> + Send + 'static,
        told: impl FnOnce() + Send + 'static,
    ) -> Result<Self, PipelineError> {
        let place =
            Place::take(&STARTING, STARTING_MAX, "encoders are being started, and have not answered")?;
        let (sender, made) = sync_channel(1);
        let work = move || {
            // Where nobody waits for it any more, this is what ends it.
            drop(sender.send(make()));
            drop(place);
            told();
        };
        let thread = std::thread::Builder::new().name("starting".to_owned()).spawn(work);
        thread.map_err(|e| PipelineError::Start(format!("there is no thread for it: {e}")))?;
        Ok(Staged { run, stage: Stage::Starting { made, waiting: VecDeque::new(), most } })
    }

    /// Its number.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// What runs; `None` while it is being started.
    pub fn running(&self) -> Option<&T> {
        match &self.stage {
            Stage::Running(running) => Some(running),
            Stage::Starting { .. } => None,
        }
    }

    /// The same, to work with.
    pub fn running_mut(&mut self) -> Option<&mut T> {
        match &mut self.stage {
            Stage::Running(running) => Some(running),
            Stage::Starting { .. } => None,
        }
    }

    /// Keeps a job until it runs; `false` when there is no room, or when it runs.
    pub fn hold(&mut self, job: J) -> bool {
        match &mut self.stage {
            Stage::Starting { waiting, most, .. } if waiting.len() < *most => {
                waiting.push_back(job);
                true
            }
            _ => false,
        }
    }

    /// Jobs that wait.
    pub fn waiting(&self) -> usize {
        match &self.stage {
            Stage::Starting { waiting, .. } => waiting.len(),
            Stage::Running(_) => 0,
        }
    }

    /// Once, when the start has ended: the jobs that have waited for it, in their order.
    ///
    /// # Errors
    /// Why it does not run. It is of no further use.
    pub fn poll(&mut self) -> Result<Option<VecDeque<J>>, PipelineError> {
        let Stage::Starting { made, waiting, .. } = &mut self.stage else { return Ok(None) };
        let running = match made.try_recv() {
            Err(TryRecvError::Empty) => return Ok(None),
            Err(TryRecvError::Disconnected) => {
                return Err(PipelineError::Start("the thread that was to do it has panicked".to_owned()));
            }
            Ok(made) => made?,
        };
        let waiting = std::mem::take(waiting);
        self.stage = Stage::Running(running);
        Ok(Some(waiting))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use super::*;

    /// Says when it goes.
    struct Made(Arc<AtomicUsize>);

    impl Drop for Made {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn jobs_wait_for_a_slow_start_and_further_ones_are_refused() {
        let gone = Arc::new(AtomicUsize::new(0));
        let ((go, wait), (tell, told)) = (channel::<()>(), channel());
        let made = Made(Arc::clone(&gone));
        let make = move || wait.recv().map(|()| made).map_err(|e| PipelineError::Start(e.to_string()));
        let begun = Instant::now();
        let mut staged = Staged::start(7, 2, make, move || tell.send(()).unwrap()).unwrap();
        assert_eq!((staged.hold('a'), staged.hold('b'), staged.hold('c')), (true, true, false));
        assert_eq!((staged.run(), staged.waiting(), staged.running().is_none()), (7, 2, true));
        assert!(staged.poll().unwrap().is_none());
        assert!(begun.elapsed() < Duration::from_secs(5), "nothing of this waits: {:?}", begun.elapsed());
        go.send(()).unwrap();
        told.recv_timeout(LONG).unwrap();
        assert_eq!(staged.poll().unwrap().unwrap(), ['a', 'b']);
        assert!(staged.poll().unwrap().is_none(), "they come once");
        assert!(staged.running_mut().is_some() && !staged.hold('d') && staged.waiting() == 0);
        drop(staged);
        assert_eq!(gone.load(Ordering::Acquire), 1);
    }

    #[test]
    fn a_failed_start_says_why_and_a_panic_is_no_wait_for_ever() {
        let (tell, told) = channel();
        let make = || Err::<(), _>(PipelineError::Push("the device is gone".to_owned()));
        let mut staged = Staged::<_, ()>::start(1, 1, make, move || tell.send(()).unwrap()).unwrap();
        told.recv_timeout(LONG).unwrap();
        assert!(staged.poll().unwrap_err().to_string().contains("the device is gone"));
        let make = || -> Result<(), PipelineError> { panic!("on purpose") };
        let mut staged = Staged::<_, ()>::start(2, 1, make, || {}).unwrap();
        let begun = Instant::now();
        let why = loop {
            match staged.poll() {
                Err(error) => break error.to_string(),
                Ok(_) => assert!(begun.elapsed() < LONG),
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        assert!(why.contains("panicked"), "{why}");
    }

    #[test]
    fn a_start_that_nobody_waits_for_lets_go_of_what_it_made() {
        let (gone, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        for _ in 0..20 {
            let (made, gate) = (Made(Arc::clone(&gone)), Arc::clone(&open));
            let make = move || {
                while !gate.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(made)
            };
            drop(Staged::<_, ()>::start(1, 1, make, || {}).unwrap());
        }
        assert_eq!(gone.load(Ordering::Acquire), 0);
        open.store(true, Ordering::Release);
        let begun = Instant::now();
        while gone.load(Ordering::Acquire) < 20 {
            assert!(begun.elapsed() < LONG, "{} of 20", gone.load(Ordering::Acquire));
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

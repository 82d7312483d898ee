//! What GStreamer's threads tell the loop, through one bounded channel and the loop's waker.
//!
//! Owns: the channel. Invariants: a sender never blocks; what does not fit is dropped and counted, and a stream that
//! lost a unit is told so by the count. Never: looks into a letter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use mio::Waker;

use crate::pipeline::{encoder, still};
use crate::privacy::worker;
use crate::sources;

/// One message. `stream` is the stream's number, `run` the number of the pipeline that sent it: what an older one of
/// the same stream still says is thrown away.
#[derive(Debug)]
pub struct Mail {
    /// To whom.
    pub stream: u64,
    /// From which of its pipelines.
    pub run: u64,
    /// What.
    pub letter: Letter,
}

/// What is said.
#[derive(Debug)]
pub enum Letter {
    /// By the H.264 encoder.
    Encoder(encoder::Output),
    /// By the JPEG encoder.
    Still(still::Output),
    /// By the source.
    Source(sources::Output),
    /// By the thread that blurs.
    Privacy(worker::Output),
    /// The start of an encoder has ended, one way or the other.
    Started,
}

/// The way to the loop.
#[derive(Debug, Clone)]
pub struct Sender {
    letters: SyncSender<Mail>,
    waker: Arc<Waker>,
    lost: Arc<AtomicU64>,
}

/// A channel for `most` letters.
#[must_use]
pub fn channel(most: usize, waker: Arc<Waker>) -> (Sender, Receiver<Mail>) {
    let (letters, receiver) = sync_channel(most);
    (Sender { letters, waker, lost: Arc::default() }, receiver)
}

impl Sender {
    /// Sends without waiting.
    pub fn send(&self, stream: u64, run: u64, letter: Letter) {
        match self.letters.try_send(Mail { stream, run, letter }) {
            Ok(()) => self.wake(),
            Err(TrySendError::Full(_)) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
            // The loop is over.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// Wakes the loop up.
    pub fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            log::debug!("the loop can't be woken up: {error}");
        }
    }

    /// Letters that did not fit, so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

//! The durable queue.

mod commit;
mod config;
mod disk;
mod engine;
mod error;
mod frame;
mod journal;
mod qos2;
#[cfg(test)]
mod qos2_sim;
mod read;
mod record;
mod recover;
mod scan;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod sim_tests;
mod state;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod types;
mod write;

use std::collections::VecDeque;
use std::sync::Arc;

use mio::Waker;

use disk::{Disk, RealDisk};
use engine::Engine;
use frame::Pos;
use journal::Journal;
use recover::Segment;

pub use config::{Full, FullByQos, Problem, SpoolConfig};
pub use error::Error;
pub use table::{FullKey, Table};
pub use types::{Append, Delivery, MEMORY, OutState, Record, Recovery, Seq, Stats, Ticket};

/// A durable queue in a folder. See the [module documentation](self).
///
/// One round of a daemon's loop: [`poll`](Spool::poll) (what the disk finished), then appends and journal entries,
/// [`next`](Spool::next) and [`ack`](Spool::ack), and [`flush`](Spool::flush) last; then sleep no longer than
/// [`deadline`](Spool::deadline).
pub struct Spool {
    config: SpoolConfig,
    disk: Arc<dyn Disk>,
    engine: Engine,
    rng: fastrand::Rng,
    id: u64,
    journal: Journal,
    /// In order. The last one may be active.
    segments: VecDeque<Segment>,
    active: Option<write::Active>,
    next_index: u32,
    next_seq: Seq,
    spare: write::Spare,
    /// Segment files and the spare.
    disk_bytes: u64,
    commit: commit::Commit,
    reader: read::Reader,
    memory: write::Memory,
    stats: Stats,
    failed: Option<String>,
}

impl Spool {
    /// Opens or makes the spool in `config.dir`, and starts the thread `spool-sync`.
    ///
    /// `waker` is woken whenever [`Spool::poll`] has something to say (several spools may share one). `entropy` is
    /// any unpredictable number; it keeps stale bytes of a re-used file from being taken for records.
    ///
    /// # Errors
    /// Bad bounds, a folder in use by another process, a file of a later format, or a failing disk.
    pub fn open(
        config: SpoolConfig,
        waker: Option<Arc<Waker>>,
        entropy: u64,
    ) -> Result<(Spool, Recovery), Error> {
        config.check().map_err(|p| Error::Config { key: p.key, text: p.text })?;
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(&config.dir)?);
        let engine = Engine::thread(Arc::clone(&disk), waker).map_err(|source| Error::Io {
            what: "start the sync thread of",
            path: config.dir.clone(),
            source,
        })?;
        Spool::open_on(disk, engine, config, entropy)
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        engine: Engine,
        config: SpoolConfig,
        entropy: u64,
    ) -> Result<(Spool, Recovery), Error> {
        let found = recover::recover(&disk, &config)?;
        let mut rng = fastrand::Rng::with_seed(entropy);
        let id = found.id.unwrap_or_else(|| rng.u64(1..));
        let journal = Journal::start(Arc::clone(&disk), &found.journal, found.state, id, rng.u64(..))?;
        write::Spare::clear(&*disk)?;
        let disk_bytes = found.segments.iter().map(|s| s.bytes).sum::<u64>();
        let mut spool = Spool {
            engine,
            rng,
            id,
            segments: found.segments.into(),
            active: None,
            next_index: found.next_index,
            next_seq: journal.state.next_seq,
            spare: write::Spare::None,
            disk_bytes,
            commit: commit::Commit::new(found.end, journal.state.next_seq, journal.state.pos),
            reader: read::Reader::new(journal.state.cursor, journal.state.pos),
            memory: write::Memory::default(),
            stats: Stats { damaged: found.report.damaged, ..Stats::default() },
            failed: None,
            journal,
            disk,
            config,
        };
        spool.want_spare();
        Ok((spool, found.report))
    }

    /// Identity of this folder's numbering: a random number made with the folder. A sequence number tells a duplicate
    /// only together with it (an emptied folder starts again at 1 under a new id).
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Counters and gauges.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (cursor, _) = self.cursor();
        Stats {
            queued: self.next_seq.saturating_sub(cursor).saturating_sub(self.reader.acked_ahead()),
            in_flight: self.reader.in_flight(),
            memory: self.memory.queue.len(),
            disk_bytes: self.disk_bytes,
            held: self.journal.state.held_count,
            outbound: self.journal.state.out.len(),
            ..self.stats.clone()
        }
    }

    /// Refuses everything after the first failure.
    fn usable(&self) -> Result<(), Error> {
        match &self.failed {
            None => Ok(()),
            Some(what) => Err(Error::Failed { dir: self.config.dir.clone(), what: what.clone() }),
        }
    }

    /// The first failure: nothing more is acknowledged.
    fn fail(&mut self, what: impl std::fmt::Display) -> Error {
        let what = self.failed.get_or_insert_with(|| what.to_string()).clone();
        Error::Failed { dir: self.config.dir.clone(), what }
    }

    /// The lowest record not acknowledged, and where it is.
    fn cursor(&self) -> (Seq, Pos) {
        self.reader.cursor()
    }
}

//! Pictures on their way to S3, in modes `aws-dev` and `production`.
//!
//! Owns: a spool on disk, the decisions and threads of [`edge::objects`], and what is said of them. What is appended is
//! safe once [`Uploads::durable`] has reached its ticket; from then on it becomes an object under its key, or lies in
//! `dead-letter/`, whatever S3, the network or this process do meanwhile.
//!
//! Invariants: nobody waits for S3; pictures of one key are stored one after the other in the order of their appending, so
//! that the last one is what stays; memory is bounded by a picture a worker and the spool's tail.
//!
//! At the spool's bound (`upload.spool.max-bytes`, or a full disk) [`Uploads::append`] refuses: neither the arm nor what is
//! queued already may suffer from it, and the picture itself is in the daemon's own folder already, from where it can be
//! brought by hand. Nothing older is dropped for it. The caller names the picture in its log; it is counted as `refused`.

mod stats;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge::clock::unix_ms;
use edge::log::Throttle;
use edge::mqtt::{Message, Properties, Qos};
use edge::objects::s3::S3;
use edge::objects::{Action, Core, Object, Outcome, Pool, Store, check_key};
use edge::spool::{Append, Record, Spool, Ticket};
use edge::text::sha256_hex;
use mio::Waker;

use crate::config::store::UploadConfig;
pub use stats::Stats;

/// How often a trouble that lasts is logged.
const ALARM_EVERY: Duration = Duration::from_secs(60);
const BURY_AGAIN: Duration = Duration::from_secs(10);
/// Keys of stored pictures kept for [`Uploads::uploaded`].
const UPLOADED_MAX: usize = 10_000;
/// The records' source.
const SOURCE: &str = "arm";

/// Why a picture was not queued, or nothing can be any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spool failed.
    #[error(transparent)]
    Spool(#[from] edge::spool::Error),
    /// No threads.
    #[error("cannot start the upload threads")]
    Threads(#[source] std::io::Error),
    /// No object can have this key.
    #[error("cannot queue an upload: {0}")]
    Key(String),
    /// At the bound.
    #[error(
        "cannot queue the upload of {key} ({bytes} bytes): {why}; the picture stays on this machine only"
    )]
    Full { key: String, bytes: usize, why: String },
}

impl Error {
    /// Whether the disk failed, so that the process has to end (74) and start anew.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Spool(error) if error.is_final())
    }
}

/// The uploads.
#[derive(Debug)]
pub struct Uploads {
    spool: SpoolBox,
    core: Core<Arc<Record>>,
    pool: Pool,
    store: Arc<Store>,
    prefix: String,
    record_bytes_max: u64,
    /// Keys of the pictures that have places.
    busy: HashSet<String>,
    /// A picture whose key is busy: it is the next one.
    next: Option<Arc<Record>>,
    /// Dead letters that could not be written, and when that is tried again.
    unburied: Vec<(Arc<Record>, String)>,
    bury_at: Option<Instant>,
    /// With the worker threads.
    uploading: usize,
    uploaded: Vec<String>,
    stored_bytes: u64,
    refused: u64,
    stopping: bool,
    alarm_at: Option<Instant>,
    trouble_log: Throttle,
    dead_log: Throttle,
}

/// The spool has no `Debug`.
struct SpoolBox(Spool);

impl std::fmt::Debug for SpoolBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spool")
    }
}

impl Uploads {
    /// Opens the spool (its folder's parent has to be there) and starts the threads `sorter-up-N`; they, and the spool,
    /// wake `waker` when [`Uploads::turn`] has something to do. What an earlier process left is uploaded.
    ///
    /// # Errors
    /// [`Error`]: the spool can't be opened, or there are no threads.
    pub fn open(config: &UploadConfig, waker: &Arc<Waker>) -> Result<Self, Error> {
        let (spool, recovery) =
            Spool::open(config.spool.clone(), Some(Arc::clone(waker)), fastrand::u64(..))?;
        log::info!("uploads: {recovery}");
        let store = Arc::new(Store::S3(Box::new(S3::new(config.target.clone()))));
        log::info!("uploads into {}", store.name());
        let (target, prefix) = (Arc::clone(&store), config.prefix.clone());
        let put = move |record: &Record| put(record, &target, &prefix);
        let pool = Pool::start("sorter-up", config.policy.workers, put, waker).map_err(Error::Threads)?;
        Ok(Self {
            spool: SpoolBox(spool),
            core: Core::new(config.policy, fastrand::Rng::new()),
            pool,
            store,
            prefix: config.prefix.clone(),
            record_bytes_max: config.spool.max_record_bytes,
            busy: HashSet::new(),
            next: None,
            unburied: Vec::new(),
            bury_at: None,
            uploading: 0,
            uploaded: Vec::new(),
            stored_bytes: 0,
            refused: 0,
            stopping: false,
            alarm_at: None,
            trouble_log: Throttle::new(ALARM_EVERY),
            dead_log: Throttle::new(ALARM_EVERY),
        })
    }

    /// Queues a picture for the object `key` (below the configured prefix). It is safe when [`Uploads::durable`] is at
    /// least the ticket; that comes with a later [`Uploads::turn`].
    ///
    /// # Errors
    /// [`Error::Full`] and [`Error::Key`] are about this picture only; a failed disk is [final](Error::is_final).
    pub fn append(&mut self, key: &str, content_type: &str, bytes: &[u8]) -> Result<Ticket, Error> {
        check_key(&format!("{}{key}", self.prefix)).map_err(|why| {
            self.refused += 1;
            Error::Key(why)
        })?;
        let message = Message {
            topic: key.to_owned(),
            payload: bytes.to_vec(),
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties { content_type: Some(content_type.to_owned()), ..Properties::default() },
        };
        let why = match self.spool.0.append(message, SOURCE, None, unix_ms())? {
            Append::Stored { ticket, .. } => return Ok(ticket),
            Append::TooLarge(_) => {
                format!("more than upload.spool.max-record-bytes = {}", self.record_bytes_max)
            }
            _ if self.spool.0.stats().disk_full => "the disk is full".to_owned(),
            _ => format!(
                "the queue on disk is at its bound upload.spool.max-bytes ({} wait)",
                self.spool.0.stats().queued
            ),
        };
        self.refused += 1;
        Err(Error::Full { key: key.to_owned(), bytes: bytes.len(), why })
    }

    /// Everything up to this ticket is safe on disk.
    #[must_use]
    pub fn durable(&self) -> Ticket {
        self.spool.0.durable()
    }

    /// One turn: takes in what the disk and the threads have done, starts what can be started, and begins to sync what was
    /// appended. To be called in each round of the loop, after the appends.
    ///
    /// # Errors
    /// The disk failed: [final](Error::is_final).
    pub fn turn(&mut self, now: Instant) -> Result<(), Error> {
        self.spool.0.poll()?;
        let mut actions = Vec::new();
        while let Some(done) = self.pool.next_done() {
            self.uploading = self.uploading.saturating_sub(1);
            if matches!(done.outcome, Outcome::Stored { .. }) {
                self.stored_bytes += done.bytes as u64;
            }
            actions.extend(self.core.finished(done.place, done.outcome, now));
        }
        if self.bury_at.is_some_and(|at| at <= now) {
            self.bury_at = None;
            for (record, why) in std::mem::take(&mut self.unburied) {
                self.bury(record, why, now);
            }
        }
        let mut acted = !actions.is_empty();
        self.act(actions, now);
        if !self.stopping {
            let mut actions = self.core.due(now);
            self.begin(&mut actions)?;
            acted |= !actions.is_empty();
            self.act(actions, now);
        }
        self.observe(acted, now);
        self.spool.0.flush(now)?;
        Ok(())
    }

    /// When [`Uploads::turn`] has something to do without being woken.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let core = if self.stopping { None } else { self.core.deadline() };
        [self.spool.0.deadline(), core, self.bury_at, self.alarm_at].into_iter().flatten().min()
    }

    /// The keys of the pictures that became objects since this was asked last (of the last 10 000).
    pub fn uploaded(&mut self) -> Vec<String> {
        std::mem::take(&mut self.uploaded)
    }

    /// Starts nothing new; what is under way goes on. For the drain before [`Uploads::close`].
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// How many uploads are under way right now.
    #[must_use]
    pub fn uploading(&self) -> usize {
        self.uploading
    }

    /// Makes everything durable. What is not uploaded yet is uploaded by the next process.
    ///
    /// # Errors
    /// The disk failed.
    pub fn close(self) -> Result<(), Error> {
        if self.uploading > 0 {
            log::warn!("{} uploads did not end in time; they will be done again", self.uploading);
        }
        Ok(self.spool.0.close()?)
    }

    /// Gives places to what is queued.
    fn begin(&mut self, actions: &mut Vec<Action<Arc<Record>>>) -> Result<(), Error> {
        while self.unburied.is_empty() && self.core.has_room() {
            let record = match self.next.take() {
                Some(record) => record,
                None => match self.spool.0.next()? {
                    Some(delivery) => delivery.record,
                    None => return Ok(()),
                },
            };
            if self.busy.contains(&record.message.topic) {
                self.next = Some(record);
                return Ok(());
            }
            let key = record.message.topic.clone();
            match self.core.begin(record) {
                Ok(action) => {
                    self.busy.insert(key);
                    actions.push(action);
                }
                Err(record) => {
                    self.next = Some(record);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn act(&mut self, actions: Vec<Action<Arc<Record>>>, now: Instant) {
        for action in actions {
            match action {
                Action::Run { place, job } => {
                    // While stopping, what was released by the last outcome waits for the next start.
                    if !self.stopping {
                        self.uploading += 1;
                        self.pool.run(place, job);
                    }
                }
                Action::Ack(record) => {
                    self.busy.remove(&record.message.topic);
                    self.spool.0.ack(record.seq);
                    if self.uploaded.len() < UPLOADED_MAX {
                        self.uploaded.push(record.message.topic.clone());
                    }
                }
                Action::DeadLetter(record, why) => {
                    self.busy.remove(&record.message.topic);
                    if let Some(held) = self.dead_log.event(now) {
                        let key = &record.message.topic;
                        log::error!(
                            "upload: {key} goes to dead-letter/: {why} (and {held} more since the last line)"
                        );
                    }
                    self.bury(record, why, now);
                }
            }
        }
    }

    fn bury(&mut self, record: Arc<Record>, why: String, now: Instant) {
        if let Err(error) = self.spool.0.dead_letter(record.seq, &why, unix_ms()) {
            log::error!(
                "upload: the dead letter of {} can't be written and is kept; nothing new is uploaded until it can: {}",
                record.message.topic,
                edge::log::chain(&error)
            );
            self.unburied.push((record, why));
            self.bury_at = Some(now + BURY_AGAIN);
        }
    }

    /// Says aloud what changed: holds at once and then once a minute, troubles once a minute.
    fn observe(&mut self, acted: bool, now: Instant) {
        match (self.core.held(), self.alarm_at) {
            (Some((_, why)), None) => {
                self.alarm_at = Some(now + ALARM_EVERY);
                log::error!("holding all uploads: {why}; nothing is dropped, one is tried again and again");
            }
            (Some((since, why)), Some(at)) if at <= now => {
                self.alarm_at = Some(now + ALARM_EVERY);
                let minutes = now.saturating_duration_since(since).as_secs() / 60;
                log::error!("holding all uploads for {minutes} min: {why}");
            }
            (None, Some(_)) => {
                self.alarm_at = None;
                log::info!("{} accepts again: no longer holding", self.store.name());
            }
            _ => {}
        }
        if let Some((_, why)) = self.core.trouble()
            && acted
            && let Some(held) = self.trouble_log.event(now)
        {
            log::warn!("upload: {why}; will be tried again (and {held} more since the last line)");
        }
    }
}

/// Stores a picture. Blocks.
fn put(record: &Record, store: &Store, prefix: &str) -> Outcome {
    let Message { topic, payload, properties, .. } = &record.message;
    let content_type = properties.content_type.as_deref().unwrap_or("application/octet-stream");
    let (key, sha256) = (format!("{prefix}{topic}"), sha256_hex(payload));
    store.put(&Object {
        key: &key,
        body: payload,
        sha256: &sha256,
        content_type,
        headers: &[],
        sidecar: None,
    })
}

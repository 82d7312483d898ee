//! The threads that block: `sorter-work-N` see and group, `sorter-db` asks the database, `sorter-stitch` makes panoramas,
//! `sorter-tidy` takes old pictures away, `sorter-fetch-N` (where there is a bucket) wait for pictures that other machines
//! were sent.
//!
//! Owns: the threads, each with what it works with. Invariant: every job is followed by exactly one [`Done`]; how many
//! there are at once is bounded by whoever gives them.

mod keeper;
mod stitcher;

use std::fs::File;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use edge::log::chain;
use edge::text::sha256_hex;
use mio::{Token, Waker};
use serde_json::Value;

use crate::album::{Album, Wanted};
use crate::config::Config;
use crate::config::store::DbConfig;
use crate::core::{Ask, Facts, Id, Kept, Outcome, Seen, Stitch, Work};
use crate::db::Db;
use crate::message::Session;
use crate::panel::Panel;
use crate::plan::{Plan, Scene, Shot};
use crate::shelf::{Shelf, Tidied};
use crate::vision::{Detector, Picture, Vectorizer, group};
use keeper::Keeper;
use stitcher::Stitcher;

/// Something that a page wants to know.
#[derive(Debug)]
pub enum Look {
    Sessions,
    Session(Session),
    Picture(Session, String),
}

/// The answer to it.
#[derive(Debug)]
pub enum Looked {
    Json(Value),
    Picture(File, u64),
    Nothing,
    Failed(String),
}

/// For the thread of the database.
#[derive(Debug)]
enum DbJob {
    Ask(Id, Ask),
    Look(Token, Look),
    /// Which pictures were taken afterwards, for their panorama.
    After(Session),
    Forget(Vec<Session>),
}

/// For the thread of the panoramas: which, and the pictures taken afterwards that the database knows of.
type Order = (Stitch, Vec<Wanted>);

/// For the threads that wait for pictures.
#[derive(Debug)]
struct Search {
    id: Id,
    session: Session,
    wanted: Vec<Wanted>,
    deadline: Instant,
}

/// What came of a job.
#[derive(Debug)]
pub enum Done {
    Task(Id, Outcome),
    Look(Token, Looked),
    /// A panorama, kept here; of how many pictures.
    Stitched(Result<(Kept, usize), (Session, &'static str, String)>),
    Tidied(Result<Tidied, String>),
    /// So many pictures of other machines were fetched for a panorama.
    Fetched(usize),
    /// Whether the database answers, and why it does not.
    Database(Option<String>),
}

/// The threads.
#[derive(Debug)]
pub struct Workers {
    work: Sender<(Id, Work)>,
    db: Sender<DbJob>,
    orders: Sender<Order>,
    tidy: Sender<bool>,
    searches: Sender<Search>,
    album: Album,
    done: Receiver<Done>,
    forgets: bool,
}

/// Where results go.
#[derive(Clone)]
struct Out {
    done: Sender<Done>,
    waker: Arc<Waker>,
}

impl Out {
    fn send(&self, done: Done) {
        // The other end is gone only when the process ends.
        let _ = self.done.send(done);
        let _ = self.waker.wake();
    }
}

/// Why the threads could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the detector can't be used")]
    Detector(#[source] crate::vision::Error),
    #[error("the vectorizer can't be used")]
    Vectorizer(#[source] crate::vision::Error),
    #[error("the database can't be used")]
    Database(#[from] crate::db::Error),
    #[error("cannot start a thread")]
    Thread(#[from] std::io::Error),
}

impl Workers {
    /// Starts the threads; models are loaded before.
    ///
    /// # Errors
    /// A model or the database's file is no use, or the system has no threads.
    pub fn start(
        config: &Config,
        shelf: &Shelf,
        panel: &Arc<Panel>,
        waker: &Arc<Waker>,
    ) -> Result<Self, Error> {
        crate::vision::threads(config.raw.limits.opencv_threads);
        let (done, inbox) = mpsc::channel();
        let out = Out { done, waker: Arc::clone(waker) };
        let album = Album::new(config, shelf);
        let (work, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        for n in 0..config.raw.limits.workers {
            let worker = Worker {
                detector: Detector::open(&config.detector).map_err(Error::Detector)?,
                vectorizer: Vectorizer::open(&config.vectorizer).map_err(Error::Vectorizer)?,
                shelf: shelf.clone(),
                album: album.clone(),
                pixels_max: config.raw.pictures.pixels_max,
                seed: config.raw.groups.seed,
                out: out.clone(),
            };
            let queue = Arc::clone(&queue);
            thread(format!("sorter-work-{n}"), move || worker.run(&queue))?;
        }
        let searches = searchers(config, &album, &out)?;
        let (ask, asks) = mpsc::channel();
        let (orders, queue) = mpsc::channel();
        let keeper = Keeper {
            db: open(&config.database)?,
            config: config.database.clone(),
            shelf: shelf.clone(),
            well: true,
            orders: orders.clone(),
            out: out.clone(),
        };
        thread("sorter-db".into(), move || keeper.run(&asks))?;
        let stitcher = Stitcher {
            album: album.clone(),
            shelf: shelf.clone(),
            config: config.stitch.clone(),
            quality: config.raw.pictures.quality,
            panel: Arc::clone(panel),
            out: out.clone(),
        };
        thread("sorter-stitch".into(), move || stitcher.run(&queue))?;
        let (tidy, queue) = mpsc::channel();
        let (shelf, bytes_max) = (shelf.clone(), config.raw.pictures.bytes_max.0);
        thread("sorter-tidy".into(), move || {
            while let Ok(starting) = queue.recv() {
                out.send(Done::Tidied(shelf.tidy(bytes_max, starting).map_err(|error| chain(&error))));
            }
        })?;
        let forgets = matches!(config.database, DbConfig::Sqlite { .. });
        Ok(Self { work, db: ask, orders, tidy, searches, album, done: inbox, forgets })
    }

    /// Something to compute.
    pub fn work(&self, id: Id, work: Work) {
        // A thread ends by a bug only; its panic ends the process.
        let _ = self.work.send((id, work));
    }

    /// Something to ask the database.
    pub fn ask(&self, id: Id, ask: Ask) {
        let _ = self.db.send(DbJob::Ask(id, ask));
    }

    /// Something that a page wants to know.
    pub fn look(&self, token: Token, look: Look) {
        let _ = self.db.send(DbJob::Look(token, look));
    }

    /// Pictures of other machines to fetch. The time for it begins now, so that nobody's answer waits for others' searches.
    pub fn fetch(&self, id: Id, session: Session, wanted: Vec<Wanted>) {
        let deadline = self.album.deadline();
        let _ = self.searches.send(Search { id, session, wanted, deadline });
    }

    /// A panorama to make.
    pub fn stitch(&self, stitch: Stitch) {
        match stitch {
            Stitch::After { session } if self.album.has_bucket() => {
                let _ = self.db.send(DbJob::After(session));
            }
            stitch => {
                let _ = self.orders.send((stitch, Vec::new()));
            }
        }
    }

    /// Old pictures are to go.
    pub fn tidy(&self, starting: bool) {
        let _ = self.tidy.send(starting);
    }

    /// The pictures of these sessions are gone. A database on a server is its operator's to tidy.
    pub fn forget(&self, gone: Vec<Session>) {
        if self.forgets && !gone.is_empty() {
            let _ = self.db.send(DbJob::Forget(gone));
        }
    }

    /// What is done.
    pub fn next_done(&self) -> Option<Done> {
        self.done.try_recv().ok()
    }
}

/// Opens the database. A server may come later; a file that can't be opened won't.
fn open(config: &DbConfig) -> Result<Option<Db>, Error> {
    match Db::open(config) {
        Err(error) if matches!(config, DbConfig::Sqlite { .. }) => Err(error.into()),
        Err(error) => {
            log::error!(
                "the database can't be reached: {}; it is tried again for each request",
                chain(&error)
            );
            Ok(None)
        }
        Ok(db) => {
            log::info!("boxes are kept in {}", db.name());
            Ok(Some(db))
        }
    }
}

/// Starts the threads `sorter-fetch-N`, none without a bucket.
fn searchers(config: &Config, album: &Album, out: &Out) -> Result<Sender<Search>, Error> {
    let (searches, queue) = mpsc::channel();
    let queue = Arc::new(Mutex::new(queue));
    for n in 0..config.upload.as_ref().map_or(0, |upload| upload.policy.workers) {
        let (album, out, queue) = (album.clone(), out.clone(), Arc::clone(&queue));
        let run = move || {
            while let Some(Search { id, session, wanted, deadline }) = next(&queue) {
                let fetched = album.bring(&session, &wanted, deadline);
                out.send(Done::Task(id, Outcome::Fetched(fetched)));
            }
        };
        thread(format!("sorter-fetch-{n}"), run)?;
    }
    Ok(searches)
}

/// The next job of a queue that several threads share; `None`: there won't be one.
fn next<T>(queue: &Mutex<Receiver<T>>) -> Option<T> {
    // Where another thread ended by a bug while it held the lock, the queue itself is whole.
    queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv().ok()
}

fn thread(name: String, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name).spawn(run).map(drop)
}

struct Worker {
    detector: Detector,
    vectorizer: Vectorizer,
    shelf: Shelf,
    album: Album,
    pixels_max: u64,
    seed: u64,
    out: Out,
}

impl Worker {
    fn run(mut self, queue: &Mutex<Receiver<(Id, Work)>>) {
        while let Some((id, work)) = next(queue) {
            let outcome = match work {
                Work::See(kept) => Outcome::Seen(self.see(kept)),
                Work::Keep(kept) => Outcome::Kept(self.keep_only(kept)),
                Work::Group { session, shots, constants } => {
                    let scene = Scene::locate(&shots, &constants);
                    self.group(&session, &shots, scene).unwrap_or_else(|why| Outcome::Grouped(Err(why)))
                }
            };
            self.out.send(Done::Task(id, outcome));
        }
    }

    fn decode(&self, bytes: &[u8]) -> Result<Picture, String> {
        Picture::decode(bytes, self.pixels_max).map_err(|error| chain(&error))
    }

    fn keep(&self, kept: Kept) -> Result<Kept, String> {
        self.shelf.put(&kept.session, &kept.name, &kept.bytes).map_err(|error| chain(&error))?;
        Ok(kept)
    }

    fn see(&mut self, kept: Kept) -> Result<Seen, String> {
        let picture = self.decode(&kept.bytes)?;
        let found = self.detector.detect(&picture).map_err(|error| chain(&error))?;
        let facts = facts(&kept, &picture);
        Ok(Seen { kept: self.keep(kept)?, facts, found })
    }

    fn keep_only(&self, kept: Kept) -> Result<(Kept, Facts), String> {
        let picture = self.decode(&kept.bytes)?;
        let facts = facts(&kept, &picture);
        Ok((self.keep(kept)?, facts))
    }

    /// [`Outcome::Grouped`], or [`Outcome::Missing`] where pictures have to be fetched first.
    fn group(&mut self, session: &Session, shots: &[Shot], scene: Scene) -> Result<Outcome, String> {
        let plan = |scene, groups| Ok(Outcome::Grouped(Ok(Plan { scene, groups })));
        if !scene.can_be_sorted() {
            return plan(scene, Vec::new());
        }
        let k = scene.containers.len();
        if k == 1 {
            let groups = vec![0; scene.items.len()];
            return plan(scene, groups);
        }
        let mut missing = Vec::new();
        let mut crops: Vec<Option<Picture>> = vec![None; scene.items.len()];
        // Picture by picture, so that one of them is in memory.
        for shot in shots {
            let mut picture = None;
            for (item, crop) in scene.items.iter().zip(&mut crops) {
                let Some(first) = item.seen.first().filter(|seen| seen.base == shot.name.0) else { continue };
                let Some((_, found)) = shot.objects.iter().find(|(id, _)| *id == first.id) else { continue };
                if picture.is_none() {
                    picture = self.album.read(session, &shot.wanted())?;
                }
                let Some(picture) = &picture else {
                    missing.push(shot.wanted());
                    break;
                };
                *crop = Some(picture.crop(found).map_err(|error| chain(&error))?);
            }
        }
        if !missing.is_empty() {
            return Ok(Outcome::Missing(missing));
        }
        let crops: Vec<Picture> = crops.into_iter().flatten().collect();
        if crops.len() != scene.items.len() {
            return Err(
                "an item has no picture: the pictures of the session changed meanwhile; ask again".into()
            );
        }
        let vectors = self.vectorizer.vectors(&crops).map_err(|error| chain(&error))?;
        let groups = group::kmeans(&vectors, k, self.seed).map_err(|error| chain(&error))?;
        plan(scene, groups)
    }
}

fn facts(kept: &Kept, picture: &Picture) -> Facts {
    Facts { size: (picture.width(), picture.height()), sha256: sha256_hex(&kept.bytes) }
}

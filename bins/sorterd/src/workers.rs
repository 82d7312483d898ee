//! The threads that block: `sorter-work-N` see and group, `sorter-db` asks the database, `sorter-stitch` makes panoramas.
//!
//! Owns: the threads, each with what it works with. Invariant: every job is followed by exactly one [`Done`]; how many
//! there are at once is bounded by whoever gives them.

use std::fs::File;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use edge::log::chain;
use mio::{Token, Waker};
use serde_json::Value;

use crate::config::Config;
use crate::config::store::DbConfig;
use crate::core::{Ask, Id, Kept, Outcome, Seen, Stitch, Work};
use crate::db::Db;
use crate::message::{ImageName, Session};
use crate::pages;
use crate::panel::{Panel, Step};
use crate::plan::{Plan, Scene, Shot};
use crate::shelf::{PANORAMAS, Shelf, Tidied};
use crate::vision::{Detector, Picture, StitchConfig, Vectorizer, draw, group, stitch};

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
    Forget(Vec<Session>),
}

/// For the thread of the panoramas.
#[derive(Debug)]
enum Chore {
    Stitch(Stitch),
    Tidy { starting: bool },
}

/// What came of a job.
#[derive(Debug)]
pub enum Done {
    Task(Id, Outcome),
    Look(Token, Looked),
    /// A panorama, kept here; of how many pictures.
    Stitched(Result<(Kept, usize), (Session, &'static str, String)>),
    Tidied(Result<Tidied, String>),
    /// Whether the database answers, and why it does not.
    Database(Option<String>),
}

/// The threads.
#[derive(Debug)]
pub struct Workers {
    work: Sender<(Id, Work)>,
    db: Sender<DbJob>,
    chores: Sender<Chore>,
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
    Detector(#[from] crate::vision::detect::Error),
    #[error("the vectorizer can't be used")]
    Vectorizer(#[from] crate::vision::vectorize::Error),
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
        let (work, queue) = mpsc::channel();
        let queue = Arc::new(Mutex::new(queue));
        for n in 0..config.raw.limits.workers {
            let worker = Worker {
                detector: Detector::open(&config.detector)?,
                vectorizer: Vectorizer::open(&config.vectorizer)?,
                shelf: shelf.clone(),
                pixels_max: config.raw.pictures.pixels_max,
                seed: config.raw.groups.seed,
                out: out.clone(),
            };
            let queue = Arc::clone(&queue);
            thread(format!("sorter-work-{n}"), move || worker.run(&queue))?;
        }
        let sqlite = matches!(config.database, DbConfig::Sqlite { .. });
        let db = Db::open(&config.database);
        // A server may come later; a file that can't be opened won't.
        let db = match db {
            Err(error) if sqlite => return Err(error.into()),
            Err(error) => {
                log::error!(
                    "the database can't be reached: {}; it is tried again for each request",
                    chain(&error)
                );
                None
            }
            Ok(db) => {
                log::info!("boxes are kept in {}", db.name());
                Some(db)
            }
        };
        let (ask, asks) = mpsc::channel();
        let keeper = Keeper {
            db,
            config: config.database.clone(),
            shelf: shelf.clone(),
            well: true,
            out: out.clone(),
        };
        thread("sorter-db".into(), move || keeper.run(&asks))?;
        let (chores, queue) = mpsc::channel();
        let stitcher = Stitcher {
            shelf: shelf.clone(),
            config: config.stitch.clone(),
            pixels_max: config.raw.pictures.pixels_max,
            quality: config.raw.pictures.quality,
            bytes_max: config.raw.pictures.bytes_max.0,
            panel: Arc::clone(panel),
            out,
        };
        thread("sorter-stitch".into(), move || stitcher.run(&queue))?;
        Ok(Self { work, db: ask, chores, done: inbox, forgets: sqlite })
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

    /// A panorama to make.
    pub fn stitch(&self, stitch: Stitch) {
        let _ = self.chores.send(Chore::Stitch(stitch));
    }

    /// Old pictures are to go.
    pub fn tidy(&self, starting: bool) {
        let _ = self.chores.send(Chore::Tidy { starting });
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

fn thread(name: String, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name(name).spawn(run).map(drop)
}

struct Worker {
    detector: Detector,
    vectorizer: Vectorizer,
    shelf: Shelf,
    pixels_max: u64,
    seed: u64,
    out: Out,
}

impl Worker {
    fn run(mut self, queue: &Mutex<Receiver<(Id, Work)>>) {
        loop {
            let job = match queue.lock() {
                Ok(queue) => queue.recv(),
                // Another thread ended by a bug while it held the lock: the queue itself is whole.
                Err(poisoned) => poisoned.into_inner().recv(),
            };
            let Ok((id, work)) = job else { return };
            let outcome = match work {
                Work::See(kept) => Outcome::Seen(self.see(kept)),
                Work::Keep(kept) => Outcome::Kept(self.decode(&kept.bytes).and_then(|_| self.keep(kept))),
                Work::Group { session, shots, constants } => {
                    let scene = Scene::locate(&shots, &constants);
                    Outcome::Grouped(self.group(&session, &shots, scene))
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
        Ok(Seen { kept: self.keep(kept)?, size: (picture.width(), picture.height()), found })
    }

    fn group(&mut self, session: &Session, shots: &[Shot], scene: Scene) -> Result<Plan, String> {
        if !scene.can_be_sorted() {
            return Ok(Plan { scene, groups: Vec::new() });
        }
        let k = scene.containers.len();
        if k == 1 {
            let groups = vec![0; scene.items.len()];
            return Ok(Plan { scene, groups });
        }
        let mut crops: Vec<Option<Picture>> = vec![None; scene.items.len()];
        // Picture by picture, so that one of them is in memory.
        for shot in shots {
            let mut picture = None;
            for (item, crop) in scene.items.iter().zip(&mut crops) {
                let Some(first) = item.seen.first().filter(|seen| seen.base == shot.name.0) else { continue };
                let Some((_, found)) = shot.objects.iter().find(|(id, _)| *id == first.id) else { continue };
                if picture.is_none() {
                    let bytes = self.shelf.get(session, &shot.name.file()).map_err(|error| {
                        format!("{}; pictures and commands have to go to the same machine", chain(&error))
                    })?;
                    picture = Some(self.decode(&bytes)?);
                }
                let of = picture.as_ref().map(|picture| picture.crop(found));
                *crop = of.transpose().map_err(|error| chain(&error))?;
            }
        }
        let crops: Vec<Picture> = crops.into_iter().flatten().collect();
        if crops.len() != scene.items.len() {
            return Err(
                "an item has no picture: the pictures of the session changed meanwhile; ask again".into()
            );
        }
        let vectors = self.vectorizer.vectors(&crops).map_err(|error| chain(&error))?;
        let groups = group::kmeans(&vectors, k, self.seed).map_err(|error| chain(&error))?;
        Ok(Plan { scene, groups })
    }
}

struct Keeper {
    db: Option<Db>,
    config: DbConfig,
    shelf: Shelf,
    well: bool,
    out: Out,
}

impl Keeper {
    fn run(mut self, queue: &Receiver<DbJob>) {
        while let Ok(job) = queue.recv() {
            match job {
                DbJob::Ask(id, ask) => {
                    let outcome = match ask {
                        Ask::Replace { session: s, image, size, found } => {
                            Outcome::Replaced(self.with(|db| {
                                db.replace_boxes(&s.arm, &s.session, &image.file(), size.0, size.1, &found)
                            }))
                        }
                        Ask::Shots { session } => Outcome::Shots(self.shots(&session)),
                        Ask::SaveAnswer { session: s, json } => {
                            Outcome::Saved(self.with(|db| db.save_answer(&s.arm, &s.session, &json)))
                        }
                    };
                    self.out.send(Done::Task(id, outcome));
                }
                DbJob::Look(token, look) => {
                    let looked = self.look(&look).unwrap_or_else(Looked::Failed);
                    self.out.send(Done::Look(token, looked));
                }
                DbJob::Forget(gone) => {
                    for s in gone {
                        if let Err(why) = self.with(|db| db.forget(&s.arm, &s.session)) {
                            log::warn!("the boxes of an old session stay: {why}");
                        }
                    }
                }
            }
        }
    }

    fn with<T>(&mut self, job: impl FnOnce(&mut Db) -> Result<T, crate::db::Error>) -> Result<T, String> {
        let result = match &mut self.db {
            Some(db) => job(db),
            None => Db::open(&self.config).and_then(|db| job(self.db.insert(db))),
        };
        let result = result.map_err(|error| chain(&error));
        let why = result.as_ref().err().cloned();
        if why.is_none() != self.well {
            self.well = why.is_none();
            self.out.send(Done::Database(why));
        }
        result
    }

    fn shots(&mut self, session: &Session) -> Result<Vec<Shot>, String> {
        let rows = self.with(|db| db.images(&session.arm, &session.session))?;
        let shot = |row: crate::db::ImageRow| {
            let name = ImageName::parse(&row.image).ok()?;
            Some(Shot { name, size: (row.width, row.height), objects: row.objects })
        };
        let mut shots: Vec<Shot> = rows.into_iter().filter_map(shot).collect();
        shots.sort_by_key(|shot| shot.name);
        Ok(shots)
    }

    fn look(&mut self, look: &Look) -> Result<Looked, String> {
        match look {
            Look::Sessions => {
                let rows = self.with(|db| db.sessions(pages::SESSIONS_MAX))?;
                Ok(Looked::Json(pages::sessions(&rows)))
            }
            Look::Session(session) => {
                let shots = self.shots(session)?;
                let answer = self.with(|db| db.answer(&session.arm, &session.session))?;
                let (after, panoramas) = (self.shelf.after(session), self.shelf.panoramas(session));
                if shots.is_empty() && after.is_empty() {
                    return Ok(Looked::Nothing);
                }
                Ok(Looked::Json(pages::session(session, &shots, answer.as_deref(), &after, &panoramas)))
            }
            Look::Picture(session, name) => Ok(self
                .shelf
                .file(session, name)
                .map_or(Looked::Nothing, |(file, size)| Looked::Picture(file, size))),
        }
    }
}

struct Stitcher {
    shelf: Shelf,
    config: StitchConfig,
    pixels_max: u64,
    quality: u8,
    bytes_max: u64,
    panel: Arc<Panel>,
    out: Out,
}

impl Stitcher {
    fn run(self, queue: &Receiver<Chore>) {
        while let Ok(chore) = queue.recv() {
            let done = match chore {
                Chore::Tidy { starting } => {
                    Done::Tidied(self.shelf.tidy(self.bytes_max, starting).map_err(|error| chain(&error)))
                }
                Chore::Stitch(stitch) => {
                    let (session, name, kind) = match &stitch {
                        Stitch::Original { session, .. } => (session.clone(), PANORAMAS[0], "comm_gen"),
                        Stitch::After { session } => (session.clone(), PANORAMAS[1], "after"),
                    };
                    let made = self.stitch(&stitch, &session, name, kind);
                    Done::Stitched(made.map_err(|why| (session, kind, why)))
                }
            };
            self.out.send(done);
        }
    }

    fn stitch(
        &self,
        stitch: &Stitch,
        session: &Session,
        name: &str,
        kind: &str,
    ) -> Result<(Kept, usize), String> {
        let tell = |step: Step| self.panel.tell(session, kind, step);
        tell(Step::Stitching);
        let mut pictures = Vec::new();
        match stitch {
            Stitch::Original { shots, groups, .. } => {
                for shot in shots {
                    let mut picture = self.read(session, &shot.name.file())?;
                    let boxes: Vec<_> =
                        shot.objects.iter().map(|(id, found)| (*found, groups.get(id).copied())).collect();
                    draw::boxes(&mut picture, &boxes).map_err(|error| chain(&error))?;
                    pictures.push(picture);
                }
                tell(Step::Drawn);
            }
            Stitch::After { session } => {
                for name in self.shelf.after(session) {
                    pictures.push(self.read(session, &name.after_file())?);
                }
            }
        }
        let panorama = stitch::panorama(pictures, &self.config).map_err(|error| chain(&error))?;
        tell(Step::Stitched);
        let bytes = panorama.picture.encode_jpeg(self.quality).map_err(|error| chain(&error))?;
        self.shelf.put(session, name, &bytes).map_err(|error| chain(&error))?;
        tell(Step::Saved);
        Ok((Kept { session: session.clone(), name: name.to_owned(), bytes }, panorama.used))
    }

    fn read(&self, session: &Session, name: &str) -> Result<Picture, String> {
        let bytes = self.shelf.get(session, name).map_err(|error| chain(&error))?;
        Picture::decode(&bytes, self.pixels_max).map_err(|error| chain(&error))
    }
}

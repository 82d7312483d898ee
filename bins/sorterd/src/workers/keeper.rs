//! `sorter-db`: the one thread that asks the database, and looks up what pages show.
//!
//! Owns: the database. A database that can't be reached is asked anew by each job.

use std::sync::mpsc::{Receiver, Sender};

use edge::log::chain;

use super::{DbJob, Done, Look, Looked, Order, Out};
use crate::album::Wanted;
use crate::config::store::DbConfig;
use crate::core::{Ask, Outcome, Stitch};
use crate::db::{Db, Image};
use crate::message::{ImageName, Session};
use crate::pages;
use crate::plan::Shot;
use crate::shelf::Shelf;

pub(super) struct Keeper {
    pub db: Option<Db>,
    pub config: DbConfig,
    pub shelf: Shelf,
    /// Whether the database answered when it was asked last.
    pub well: bool,
    /// For panoramas that begin with a question to the database.
    pub orders: Sender<Order>,
    pub out: Out,
}

impl Keeper {
    pub fn run(mut self, queue: &Receiver<DbJob>) {
        while let Ok(job) = queue.recv() {
            match job {
                DbJob::Ask(id, ask) => {
                    let outcome = self.ask(ask);
                    self.out.send(Done::Task(id, outcome));
                }
                DbJob::After(session) => self.after(session),
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

    fn ask(&mut self, ask: Ask) -> Outcome {
        match ask {
            Ask::Replace { session: s, image, facts, found } => {
                let name = image.file();
                let image = Image { name: &name, size: facts.size, sha256: &facts.sha256 };
                Outcome::Replaced(self.with(|db| db.replace_boxes(&s.arm, &s.session, &image, &found)))
            }
            Ask::NoteAfter { session: s, name, facts } => {
                let image = Image { name: &name, size: facts.size, sha256: &facts.sha256 };
                Outcome::Replaced(self.with(|db| db.note_after(&s.arm, &s.session, &image)))
            }
            Ask::Shots { session } => Outcome::Shots(self.shots(&session)),
            Ask::SaveAnswer { session: s, json } => {
                Outcome::Saved(self.with(|db| db.save_answer(&s.arm, &s.session, &json)))
            }
        }
    }

    /// Which pictures were taken afterwards, whatever machine was sent them; then their panorama.
    fn after(&mut self, session: Session) {
        match self.with(|db| db.after(&session.arm, &session.session)) {
            Ok(rows) => {
                let pictures = rows.into_iter().map(Wanted::from).collect();
                let _ = self.orders.send((Stitch::After { session }, pictures));
            }
            Err(why) => self.out.send(Done::Stitched(Err((session, "after", why)))),
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
            let (size, sha256) = ((row.width, row.height), row.sha256);
            Some(Shot { name, size, sha256, objects: row.objects })
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

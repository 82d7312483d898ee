//! Decisions: what is done with a message of an arm, in which order, and what is answered when. No I/O, no clock.
//!
//! A message becomes a task. A task goes through the steps of its kind; each step is an [`Action`] for the shell, and what
//! came of it comes back by [`Core::outcome`]:
//!
//! ```text
//! picture:   see (or keep) -> write boxes -> hand to the uploads -> true
//! commands:  read boxes -> group -> keep the answer -> the list; the panorama is made meanwhile
//! ```
//!
//! Grouping may find that another machine was sent some of the pictures: they are fetched, and it is done once more.
//!
//! Invariants: every task is answered once, by `false` or an error where a step failed; two messages about one picture
//! are done one after the other, so that boxes and file belong together; at most `tasks_max` tasks are in hand.

use std::collections::{BTreeMap, HashMap, VecDeque};

use mio::Token;
use serde_json::json;

use crate::album::Wanted;
use crate::found::Found;
use crate::geometry::ArmConstants;
use crate::message::{ImageName, Request, Session};
use crate::panel::Step;
use crate::plan::{Plan, Shot};

/// A task's name.
pub type Id = u64;

/// A picture that is to be kept, or has been.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    pub session: Session,
    /// The file's name.
    pub name: String,
    pub bytes: Vec<u8>,
}

/// What a kept picture is, for those who meet one of its name elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Of its bytes, hexadecimal.
    pub sha256: String,
}

/// For the threads that compute.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Keep the picture and find what is on it.
    See(Kept),
    /// Keep the picture.
    Keep(Kept),
    /// Locate and group what was found.
    Group { session: Session, shots: Vec<Shot>, constants: ArmConstants },
}

/// For the thread of the database.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    Replace {
        session: Session,
        image: ImageName,
        facts: Facts,
        found: Vec<Found>,
    },
    /// A picture taken afterwards, for the other machines.
    NoteAfter {
        session: Session,
        name: String,
        facts: Facts,
    },
    Shots {
        session: Session,
    },
    SaveAnswer {
        session: Session,
        json: String,
    },
}

/// A panorama to make.
#[derive(Debug, Clone, PartialEq)]
pub enum Stitch {
    /// Of what the commands were made from; the group of each box.
    Original { session: Session, shots: Vec<Shot>, groups: BTreeMap<i64, usize> },
    /// Of the pictures taken afterwards.
    After { session: Session },
}

impl Stitch {
    /// Whether both make the same file.
    #[must_use]
    pub fn is_of_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Original { session: a, .. }, Self::Original { session: b, .. })
            | (Self::After { session: a }, Self::After { session: b }) => a == b,
            _ => false,
        }
    }
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Work(Id, Work),
    Ask(Id, Ask),
    /// Bring pictures that another machine was sent.
    Fetch(Id, Session, Vec<Wanted>),
    /// Hand it to the uploads, if there are any; [`Outcome::Appended`] when it is safe there.
    Append(Id, Kept),
    Stitch(Stitch),
    /// Answer the arm.
    Reply(Token, String),
    /// Nothing to answer: the arm may go on.
    Done(Token),
    /// Tell the control panel; the text is of the kind `log_type`.
    Tell(Session, String, Step),
    /// Tell the log and the control panel.
    Warn(Session, String, String),
}

/// What came of a step. Errors are for people.
#[derive(Debug)]
pub enum Outcome {
    Seen(Result<Seen, String>),
    Kept(Result<(Kept, Facts), String>),
    Replaced(Result<(), String>),
    Appended(Result<(), String>),
    Shots(Result<Vec<Shot>, String>),
    Grouped(Result<Plan, String>),
    /// Grouping needs pictures that are not here.
    Missing(Vec<Wanted>),
    Fetched(Result<usize, String>),
    Saved(Result<(), String>),
}

/// What was found on a picture.
#[derive(Debug)]
pub struct Seen {
    pub kept: Kept,
    pub facts: Facts,
    pub found: Vec<Found>,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub pictures: u64,
    pub after: u64,
    pub boxes: u64,
    pub commands: u64,
    pub refused: u64,
    pub failed: u64,
}

#[derive(Debug)]
enum Kind {
    Process { image: ImageName },
    After,
    Commands { constants: ArmConstants, answer: String, shots: Vec<Shot>, fetched: bool },
}

#[derive(Debug)]
struct Task {
    token: Token,
    session: Session,
    /// How the panel calls it.
    log_type: String,
    kind: Kind,
    /// The file it works on.
    file: Option<(Session, String)>,
    kept: Option<Kept>,
}

/// The decisions.
#[derive(Debug)]
pub struct Core {
    tasks: BTreeMap<Id, Task>,
    next: Id,
    tasks_max: usize,
    /// Files in hand, and the tasks that wait for them with their first step.
    files: HashMap<(Session, String), VecDeque<(Id, Work)>>,
    /// Pictures leave the machine.
    uploads: bool,
    pub counts: Counts,
}

impl Core {
    #[must_use]
    pub fn new(tasks_max: usize, uploads: bool) -> Self {
        Self {
            tasks: BTreeMap::new(),
            next: 0,
            tasks_max,
            files: HashMap::new(),
            uploads,
            counts: Counts::default(),
        }
    }

    /// Tasks in hand.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// A message that was no request: its answer. `picture`: its sender waits for `true` or `false`.
    pub fn refuse(&mut self, token: Token, picture: bool, why: &str) -> Action {
        self.counts.refused += 1;
        let answer = if picture { "false".to_owned() } else { json!({ "error": why }).to_string() };
        Action::Reply(token, answer)
    }

    /// An arm wants something.
    pub fn request(&mut self, token: Token, request: Request) -> Vec<Action> {
        let picture = matches!(request, Request::Process { .. } | Request::After { .. });
        if self.tasks.len() >= self.tasks_max && !matches!(request, Request::StitchAfter { .. }) {
            let why =
                format!("busy: {} messages are being worked on already; ask again later", self.tasks.len());
            let (session, log_type) = about(&request);
            return vec![Action::Warn(session, log_type, why.clone()), self.refuse(token, picture, &why)];
        }
        let (session, log_type) = about(&request);
        match request {
            Request::StitchAfter { session } => {
                vec![Action::Stitch(Stitch::After { session }), Action::Done(token)]
            }
            Request::Commands { session, constants } => {
                let (answer, shots) = (String::new(), Vec::new());
                let kind = Kind::Commands { constants, answer, shots, fetched: false };
                let started = Action::Tell(session.clone(), log_type.clone(), Step::CommandsStarted);
                let id = self.add(Task {
                    token,
                    session: session.clone(),
                    log_type,
                    kind,
                    file: None,
                    kept: None,
                });
                vec![started, Action::Ask(id, Ask::Shots { session })]
            }
            Request::Process { image, picture, .. } => {
                self.picture(token, session, log_type, Kind::Process { image }, image.file(), picture)
            }
            Request::After { image, picture, .. } => {
                self.picture(token, session, log_type, Kind::After, image.after_file(), picture)
            }
        }
    }

    fn add(&mut self, task: Task) -> Id {
        self.next += 1;
        self.tasks.insert(self.next, task);
        self.next
    }

    fn picture(
        &mut self,
        token: Token,
        session: Session,
        log_type: String,
        kind: Kind,
        name: String,
        bytes: Vec<u8>,
    ) -> Vec<Action> {
        let received = Action::Tell(session.clone(), log_type.clone(), Step::Received);
        let kept = Kept { session: session.clone(), name: name.clone(), bytes };
        let work = if matches!(kind, Kind::Process { .. }) { Work::See(kept) } else { Work::Keep(kept) };
        let file = (session.clone(), name);
        let id = self.add(Task { token, session, log_type, kind, file: Some(file.clone()), kept: None });
        if let Some(waiting) = self.files.get_mut(&file) {
            waiting.push_back((id, work));
            return vec![received];
        }
        self.files.insert(file, VecDeque::new());
        vec![received, Action::Work(id, work)]
    }

    /// What came of a step of `id`.
    pub fn outcome(&mut self, id: Id, outcome: Outcome) -> Vec<Action> {
        let Some(task) = self.tasks.get_mut(&id) else { return Vec::new() };
        let tell = |task: &Task, step| Action::Tell(task.session.clone(), task.log_type.clone(), step);
        let failed = match outcome {
            Outcome::Seen(Ok(Seen { kept, facts, found })) => {
                let Kind::Process { image } = task.kind else { return Vec::new() };
                task.kept = Some(kept);
                self.counts.boxes += found.len() as u64;
                let session = task.session.clone();
                let replace = Ask::Replace { session, image, facts, found };
                return vec![tell(task, Step::Predicted), tell(task, Step::Saving), Action::Ask(id, replace)];
            }
            Outcome::Replaced(Ok(())) => {
                let boxes = matches!(task.kind, Kind::Process { .. });
                let written = boxes.then(|| tell(task, Step::Written));
                return written.into_iter().chain(self.hand_on(id)).collect();
            }
            Outcome::Kept(Ok((kept, facts))) => {
                let (session, name) = (kept.session.clone(), kept.name.clone());
                task.kept = Some(kept);
                if self.uploads {
                    return vec![Action::Ask(id, Ask::NoteAfter { session, name, facts })];
                }
                return self.hand_on(id);
            }
            Outcome::Appended(Ok(())) => return self.finish(id, "true".to_owned()),
            Outcome::Shots(Ok(shots)) => {
                let Kind::Commands { shots: kept, .. } = &mut task.kind else { return Vec::new() };
                *kept = shots;
                let retrieved = tell(task, Step::BoxesRetrieved);
                return std::iter::once(retrieved).chain(group(id, task)).collect();
            }
            Outcome::Missing(wanted) => {
                let Kind::Commands { fetched, .. } = &mut task.kind else { return Vec::new() };
                if !std::mem::replace(fetched, true) {
                    return vec![Action::Fetch(id, task.session.clone(), wanted)];
                }
                // Tidied away, or replaced by an arm that goes on sending.
                "the pictures of the session changed meanwhile; ask again".to_owned()
            }
            Outcome::Fetched(Ok(_)) => return group(id, task).into_iter().collect(),
            Outcome::Grouped(Ok(plan)) => return self.grouped(id, &plan),
            Outcome::Saved(saved) => return self.saved(id, saved),
            Outcome::Seen(Err(why))
            | Outcome::Kept(Err(why))
            | Outcome::Replaced(Err(why))
            | Outcome::Appended(Err(why))
            | Outcome::Shots(Err(why))
            | Outcome::Fetched(Err(why))
            | Outcome::Grouped(Err(why)) => why,
        };
        self.fail(id, &failed)
    }

    /// The picture is kept here: on to the uploads, or done.
    fn hand_on(&mut self, id: Id) -> Vec<Action> {
        let kept = self.tasks.get_mut(&id).and_then(|task| task.kept.take());
        match kept {
            Some(kept) if self.uploads => vec![Action::Append(id, kept)],
            _ => self.finish(id, "true".to_owned()),
        }
    }

    fn grouped(&mut self, id: Id, plan: &Plan) -> Vec<Action> {
        let Some(task) = self.tasks.get_mut(&id) else { return Vec::new() };
        let Kind::Commands { answer, shots, .. } = &mut task.kind else { return Vec::new() };
        *answer = json!(plan.commands()).to_string();
        let (session, log_type) = (task.session.clone(), task.log_type.clone());
        let mut actions = vec![
            Action::Tell(session.clone(), log_type.clone(), Step::CoordinatesDone),
            Action::Tell(session.clone(), log_type, Step::Grouped),
            Action::Ask(id, Ask::SaveAnswer { session: session.clone(), json: plan.json().to_string() }),
        ];
        let shots = std::mem::take(shots);
        if !shots.is_empty() {
            actions.push(Action::Stitch(Stitch::Original { session, shots, groups: plan.group_of() }));
        }
        actions
    }

    fn saved(&mut self, id: Id, saved: Result<(), String>) -> Vec<Action> {
        let Some(task) = self.tasks.get_mut(&id) else { return Vec::new() };
        let Kind::Commands { answer, .. } = &mut task.kind else { return Vec::new() };
        let answer = std::mem::take(answer);
        // The arm can go on without it: only the page lacks the groups.
        let warn = saved.err().map(|why| {
            let why = format!("the answer is not kept for the page: {why}");
            Action::Warn(task.session.clone(), task.log_type.clone(), why)
        });
        warn.into_iter().chain(self.finish(id, answer)).collect()
    }

    fn fail(&mut self, id: Id, why: &str) -> Vec<Action> {
        let Some(task) = self.tasks.get(&id) else { return Vec::new() };
        self.counts.failed += 1;
        let answer = match task.kind {
            Kind::Commands { .. } => json!({ "error": why }).to_string(),
            _ => "false".to_owned(),
        };
        let warn = Action::Warn(task.session.clone(), task.log_type.clone(), why.to_owned());
        let (token, file) = (task.token, task.file.clone());
        self.tasks.remove(&id);
        let next = file.and_then(|file| self.free(file));
        [warn, Action::Reply(token, answer)].into_iter().chain(next).collect()
    }

    fn finish(&mut self, id: Id, answer: String) -> Vec<Action> {
        let Some(task) = self.tasks.remove(&id) else { return Vec::new() };
        let step = match task.kind {
            Kind::Process { .. } => {
                self.counts.pictures += 1;
                Step::Processed
            }
            Kind::After => {
                self.counts.after += 1;
                Step::Processed
            }
            Kind::Commands { .. } => {
                self.counts.commands += 1;
                Step::CommandsDone
            }
        };
        let next = task.file.and_then(|file| self.free(file));
        [Action::Reply(task.token, answer), Action::Tell(task.session, task.log_type, step)]
            .into_iter()
            .chain(next)
            .collect()
    }

    /// Lets the next task that waits for the file begin.
    fn free(&mut self, file: (Session, String)) -> Option<Action> {
        let waiting = self.files.get_mut(&file)?;
        let next = waiting.pop_front();
        if next.is_none() {
            self.files.remove(&file);
        }
        next.map(|(id, work)| Action::Work(id, work))
    }
}

/// The grouping of what was read for it.
fn group(id: Id, task: &Task) -> Option<Action> {
    let Kind::Commands { constants, shots, .. } = &task.kind else { return None };
    let (session, shots) = (task.session.clone(), shots.clone());
    Some(Action::Work(id, Work::Group { session, shots, constants: *constants }))
}

/// The session and how the panel calls what a request is about.
fn about(request: &Request) -> (Session, String) {
    match request {
        Request::Process { session, image, .. } => (session.clone(), image.0.to_string()),
        Request::After { session, .. } | Request::StitchAfter { session } => {
            (session.clone(), "after".to_owned())
        }
        Request::Commands { session, .. } => (session.clone(), "comm_gen".to_owned()),
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

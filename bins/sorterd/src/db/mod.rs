//! Where boxes are kept: SQLite or PostgreSQL.
//!
//! Owns: [`Db`], what is asked of it, and the schema. Its calls block, so it belongs to one thread, `sorter-db`.
//! Invariants: a change is one transaction, durable when the call returns; names that come from outside are bound
//! parameters, never part of a statement's text; both databases get the same statements and give the same answers.
//! Every call may be repeated: what is stored is the same afterwards.

mod engine;
pub mod pg;
mod sqlite;

use edge::clock::unix_ms;

use crate::config::store::DbConfig;
use crate::found::Found;
use engine::{Engine, Fields, Kind, Row, Statement, Value};

/// What brings a database from form `n` to form `n + 1`.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql"), include_str!("schema_2.sql")];

/// Objects that go into one statement; SQLite takes 32766 parameters, PostgreSQL 65535, each object has six.
const OBJECTS_PER_STATEMENT: usize = 500;

const TOUCH: &str = "\
    INSERT INTO sorter_session (arm, session, updated_ms) VALUES ($1, $2, $3) \
    ON CONFLICT (arm, session) DO UPDATE SET updated_ms = excluded.updated_ms";

const PICTURE: &str = "\
    INSERT INTO sorter_picture (arm, session, image, width, height, sha256, stored_ms) \
    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (arm, session, image) DO UPDATE \
    SET width = excluded.width, height = excluded.height, sha256 = excluded.sha256, stored_ms = excluded.stored_ms";

const NOTE_AFTER: &str = "\
    INSERT INTO sorter_after (arm, session, image, width, height, sha256, stored_ms) \
    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (arm, session, image) DO UPDATE \
    SET width = excluded.width, height = excluded.height, sha256 = excluded.sha256, stored_ms = excluded.stored_ms";

const AFTER: &str = "\
    SELECT image, width, height, sha256 FROM sorter_after WHERE arm = $1 AND session = $2 ORDER BY image";

const FORGET: &str = "DELETE FROM sorter_object WHERE arm = $1 AND session = $2 AND image = $3";

const IMAGES: &str = "\
    SELECT p.image, p.width, p.height, p.sha256, o.id, o.class, o.score, o.x1, o.y1, o.x2, o.y2 \
    FROM sorter_picture p LEFT JOIN sorter_object o ON o.arm = p.arm AND o.session = p.session AND o.image = p.image \
    WHERE p.arm = $1 AND p.session = $2 ORDER BY p.image, o.id";

const SESSIONS: &str = "\
    SELECT s.arm, s.session, s.updated_ms, \
        (SELECT count(*) FROM sorter_picture p WHERE p.arm = s.arm AND p.session = s.session), \
        (SELECT count(*) FROM sorter_object o WHERE o.arm = s.arm AND o.session = s.session) \
    FROM sorter_session s ORDER BY s.updated_ms DESC, s.arm, s.session LIMIT $1";

const SAVE: &str = "\
    INSERT INTO sorter_session (arm, session, updated_ms, answer) VALUES ($1, $2, $3, $4) \
    ON CONFLICT (arm, session) DO UPDATE SET updated_ms = excluded.updated_ms, answer = excluded.answer";

/// In the order of [`Db::replace_boxes`], so that the two wait for each other.
const GONE: [&str; 4] = [
    "DELETE FROM sorter_session WHERE arm = $1 AND session = $2",
    "DELETE FROM sorter_picture WHERE arm = $1 AND session = $2",
    "DELETE FROM sorter_object WHERE arm = $1 AND session = $2",
    "DELETE FROM sorter_after WHERE arm = $1 AND session = $2",
];

const ANSWER: &str = "SELECT answer FROM sorter_session WHERE arm = $1 AND session = $2";

/// A picture that is to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image<'a> {
    pub name: &'a str,
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// Of its bytes, hexadecimal.
    pub sha256: &'a str,
}

/// A picture and what was found on it.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRow {
    pub image: String,
    /// In pixels.
    pub width: u32,
    pub height: u32,
    /// Of its bytes, hexadecimal; not known of pictures from before the second form.
    pub sha256: Option<String>,
    /// In the order in which they were given, with ids that ascend over all pictures.
    pub objects: Vec<(i64, Found)>,
}

/// A session, in numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    pub arm: String,
    pub session: String,
    pub images: u64,
    pub objects: u64,
    /// When anything was stored for it last: ms since 1970.
    pub updated_ms: u64,
}

/// Why the database did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be opened.
    #[error(transparent)]
    Open(#[from] edge::sqlite::Error),
    /// SQLite refused.
    #[error("cannot {what} in the database {path}")]
    Sqlite { what: &'static str, path: std::path::PathBuf, source: rusqlite::Error },
    /// The PostgreSQL server can't be reached, hung up or said nothing in time. If it broke at the very end it may have been
    /// done all the same.
    #[error("cannot {what} in the database {at}")]
    Unreachable { what: &'static str, at: String, source: std::io::Error },
    /// It could not be reached a moment ago.
    #[error("cannot {what} in the database {at}, which is tried again in {ms} ms at the earliest: {why}")]
    Waiting { what: &'static str, at: String, ms: u128, why: String },
    /// The PostgreSQL server refused; `code` is the SQLSTATE.
    #[error("cannot {what} in the database {at}: the server says {code}: {message}{hint}")]
    Server { what: &'static str, at: String, code: String, message: String, hint: &'static str },
    /// It does not speak as it should, or wants a login that we don't give.
    #[error("cannot {what} in the database {at}: {why}")]
    Protocol { what: &'static str, at: String, why: String },
    /// It was written by a newer program.
    #[error(
        "the database {at} has the form {found}, this program knows {known}: use the newer program on it"
    )]
    Newer { at: String, found: usize, known: usize },
    /// A row holds what no program of this kind wrote.
    #[error("cannot {what}: a row of the database can't be read: {why}")]
    Row { what: &'static str, why: String },
    /// It can't be stored.
    #[error("cannot {what}: {why}")]
    Value { what: &'static str, why: String },
}

impl Error {
    /// Whether the database was there and refused what was asked.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Sqlite { .. } | Self::Server { .. })
    }

    /// Whether it may pass: the database is away, or has no room for us now. Other errors stay until somebody acts.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Waiting { .. } => true,
            // Connection exceptions, no resources, operator's intervention, deadlocks.
            Self::Server { code, .. } => ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class)),
            Self::Sqlite { source, .. } => {
                use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
                source
                    .sqlite_error_code()
                    .is_some_and(|c| matches!(c, DatabaseBusy | DatabaseLocked | DiskFull))
            }
            _ => false,
        }
    }
}

/// A database.
pub struct Db {
    engine: Box<dyn Engine>,
    /// The tables are there and up to date.
    ready: bool,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Db").field(&self.engine.name()).finish()
    }
}

impl Db {
    /// Opens the database; makes its tables, or brings them up to date. Blocks. A PostgreSQL server that can't be reached is
    /// no error here: the calls say so until it is back, and the first one that reaches it sees to the tables.
    ///
    /// # Errors
    /// [`Error`]: it can't be opened, refuses us, or is of a newer form.
    pub fn open(config: &DbConfig) -> Result<Self, Error> {
        let engine: Box<dyn Engine> = match config {
            DbConfig::Sqlite { path, busy } => Box::new(sqlite::Sqlite::open(path, *busy)?),
            DbConfig::Postgres(config) => Box::new(pg::Postgres::new((**config).clone())),
        };
        let mut db = Self { engine, ready: false };
        match db.prepare() {
            Err(Error::Unreachable { .. }) => Ok(db),
            result => result.map(|()| db),
        }
    }

    /// Where the data is, without a secret.
    #[must_use]
    pub fn name(&self) -> String {
        self.engine.name()
    }

    /// Stores a picture and what was found on it, in the place of what was known of it. A score that is no number is
    /// stored as 0.
    ///
    /// # Errors
    /// [`Error`]: nothing was stored.
    pub fn replace_boxes(
        &mut self,
        arm: &str,
        session: &str,
        image: &Image<'_>,
        found: &[Found],
    ) -> Result<(), Error> {
        let what = "store the boxes of a picture";
        let now = Value::Int(now_ms());
        let (width, height) = (Value::Int(image.size.0.into()), Value::Int(image.size.1.into()));
        let [arm, session, image, sha256] = texts(what, [arm, session, image.name, image.sha256])?;
        // The session first and the picture second, so that two who store the same wait for each other in this order.
        let mut statements = vec![
            Statement::change(TOUCH, vec![arm, session, now]),
            Statement::change(PICTURE, vec![arm, session, image, width, height, sha256, now]),
            Statement::change(FORGET, vec![arm, session, image]),
        ];
        statements
            .extend(found.chunks(OBJECTS_PER_STATEMENT).map(|some| insert([arm, session, image], some)));
        self.run(what, &statements).map(drop)
    }

    /// Stores that a picture was taken after the sorting, in the place of what was known of it.
    ///
    /// # Errors
    /// [`Error`]: nothing was stored.
    pub fn note_after(&mut self, arm: &str, session: &str, image: &Image<'_>) -> Result<(), Error> {
        let what = "store that a picture was taken afterwards";
        let now = Value::Int(now_ms());
        let (width, height) = (Value::Int(image.size.0.into()), Value::Int(image.size.1.into()));
        let [arm, session, image, sha256] = texts(what, [arm, session, image.name, image.sha256])?;
        let statements = [
            Statement::change(TOUCH, vec![arm, session, now]),
            Statement::change(NOTE_AFTER, vec![arm, session, image, width, height, sha256, now]),
        ];
        self.run(what, &statements).map(drop)
    }

    /// The pictures of a session that were taken after the sorting, without objects.
    ///
    /// # Errors
    /// [`Error`]: the database can't be asked.
    pub fn after(&mut self, arm: &str, session: &str) -> Result<Vec<ImageRow>, Error> {
        const COLUMNS: &[Kind] = &[Kind::Text, Kind::Int, Kind::Int, Kind::Text];
        let what = "look up the pictures taken afterwards";
        let names = texts(what, [arm, session])?;
        let rows = self.run(what, &[Statement::query(AFTER, names.to_vec(), COLUMNS)])?;
        let image = |row: Row| {
            let mut fields = Fields::new(what, row);
            let (image, width, height) = (fields.text()?, fields.int()?, fields.int()?);
            Ok(ImageRow { image, width, height, sha256: fields.text_or_null()?, objects: Vec::new() })
        };
        rows.into_iter().map(image).collect()
    }

    /// The pictures of a session in the order of their names' bytes, each with its objects in the order of their ids.
    ///
    /// # Errors
    /// [`Error`]: the database can't be asked.
    pub fn images(&mut self, arm: &str, session: &str) -> Result<Vec<ImageRow>, Error> {
        const COLUMNS: &[Kind] = &[
            Kind::Text,
            Kind::Int,
            Kind::Int,
            Kind::Text,
            Kind::Int,
            Kind::Int,
            Kind::Real,
            Kind::Int,
            Kind::Int,
            Kind::Int,
            Kind::Int,
        ];
        let what = "look up the pictures of a session";
        let names = texts(what, [arm, session])?;
        let rows = self.run(what, &[Statement::query(IMAGES, names.to_vec(), COLUMNS)])?;
        let mut images: Vec<ImageRow> = Vec::new();
        for row in rows {
            let mut fields = Fields::new(what, row);
            let (image, width, height) = (fields.text()?, fields.int()?, fields.int()?);
            let sha256 = fields.text_or_null()?;
            if images.last().is_none_or(|last| last.image != image) {
                images.push(ImageRow { image, width, height, sha256, objects: Vec::new() });
            }
            if let (Some(last), Some(id)) = (images.last_mut(), fields.int_or_null()?) {
                last.objects.push((id, object(&mut fields)?));
            }
        }
        // PostgreSQL orders by its own language.
        images.sort_by(|a, b| a.image.cmp(&b.image));
        Ok(images)
    }

    /// At most `limit` sessions, the one that changed last first.
    ///
    /// # Errors
    /// [`Error`]: the database can't be asked.
    pub fn sessions(&mut self, limit: u32) -> Result<Vec<SessionRow>, Error> {
        const COLUMNS: &[Kind] = &[Kind::Text, Kind::Text, Kind::Int, Kind::Int, Kind::Int];
        let what = "list the sessions";
        let values = vec![Value::Int(limit.into())];
        let rows = self.run(what, &[Statement::query(SESSIONS, values, COLUMNS)])?;
        let session = |row: Row| {
            let mut fields = Fields::new(what, row);
            let (arm, session, updated_ms) = (fields.text()?, fields.text()?, fields.int()?);
            Ok(SessionRow { arm, session, images: fields.int()?, objects: fields.int()?, updated_ms })
        };
        rows.into_iter().map(session).collect()
    }

    /// Keeps what was last computed for a session.
    ///
    /// # Errors
    /// [`Error`]: nothing was stored.
    pub fn save_answer(&mut self, arm: &str, session: &str, json: &str) -> Result<(), Error> {
        let what = "store the answer of a session";
        let [arm, session, json] = texts(what, [arm, session, json])?;
        let values = vec![arm, session, Value::Int(now_ms()), json];
        self.run(what, &[Statement::change(SAVE, values)]).map(drop)
    }

    /// What was last computed for a session.
    ///
    /// # Errors
    /// [`Error`]: the database can't be asked.
    pub fn answer(&mut self, arm: &str, session: &str) -> Result<Option<String>, Error> {
        let what = "look up the answer of a session";
        let names = texts(what, [arm, session])?;
        let rows = self.run(what, &[Statement::query(ANSWER, names.to_vec(), &[Kind::Text])])?;
        match rows.into_iter().next() {
            Some(row) => Fields::new(what, row).text_or_null(),
            None => Ok(None),
        }
    }

    /// Takes a session away: its pictures, its objects and its answer.
    ///
    /// # Errors
    /// [`Error`]: all of it is there still.
    pub fn forget(&mut self, arm: &str, session: &str) -> Result<(), Error> {
        let what = "take an old session away";
        let names = texts(what, [arm, session])?;
        let statements = GONE.map(|sql| Statement::change(sql, names.to_vec()));
        self.run(what, &statements).map(drop)
    }

    /// Runs the statements once the tables are there.
    fn run(&mut self, what: &'static str, statements: &[Statement<'_>]) -> Result<Vec<Row>, Error> {
        self.prepare()?;
        self.engine.run(what, statements)
    }

    fn prepare(&mut self) -> Result<(), Error> {
        if !self.ready {
            // Twice, because another process may be at the same: then our changes fail, and its are there.
            self.migrate().or_else(|error| if error.is_refusal() { self.migrate() } else { Err(error) })?;
            self.ready = true;
        }
        Ok(())
    }

    fn migrate(&mut self) -> Result<(), Error> {
        let what = "bring the tables up to date";
        let dialect = self.engine.dialect();
        let made = self.engine.run(what, &[Statement::query(dialect.is_made, vec![], &[Kind::Text])])?;
        let found = if made.is_empty() {
            0
        } else {
            let sql = "SELECT max(version) FROM sorter_schema";
            let rows = self.engine.run(what, &[Statement::query(sql, vec![], &[Kind::Int])])?;
            let row = rows.into_iter().next().unwrap_or_default();
            Fields::new(what, row).int_or_null::<usize>()?.unwrap_or(0)
        };
        let known = MIGRATIONS.len();
        if found == known {
            return Ok(());
        }
        if found > known {
            return Err(Error::Newer { at: self.engine.name(), found, known });
        }
        let lock = (!dialect.lock.is_empty()).then(|| Statement::change(dialect.lock, vec![]));
        let mut statements: Vec<Statement<'_>> = lock.into_iter().collect();
        if made.is_empty() {
            let sql = "CREATE TABLE sorter_schema (version BIGINT NOT NULL PRIMARY KEY)";
            statements.push(Statement::change(sql, vec![]));
        }
        for (n, migration) in MIGRATIONS.iter().enumerate().skip(found) {
            let text = migration.replace("{id}", dialect.id);
            let parts = text.split(";\n").filter(|part| !part.trim().is_empty());
            statements.extend(parts.map(|part| Statement::change(part.to_owned(), vec![])));
            let version = Value::Int(n as i64 + 1);
            let sql = "INSERT INTO sorter_schema (version) VALUES ($1)";
            statements.push(Statement::change(sql, vec![version]));
        }
        self.engine.run(what, &statements).map(drop)
    }
}

fn now_ms() -> i64 {
    i64::try_from(unix_ms()).unwrap_or(i64::MAX)
}

/// PostgreSQL's text holds no NUL, so neither does ours.
fn texts<'a, const N: usize>(what: &'static str, texts: [&'a str; N]) -> Result<[Value<'a>; N], Error> {
    match texts.iter().find(|text| text.contains('\0')) {
        Some(text) => Err(Error::Value { what, why: format!("{text:?} has a NUL character") }),
        None => Ok(texts.map(Value::Text)),
    }
}

/// The statement that stores some objects of a picture, in this order.
fn insert<'a>(names: [Value<'a>; 3], found: &[Found]) -> Statement<'a> {
    use std::fmt::Write as _;
    let mut sql =
        "INSERT INTO sorter_object (arm, session, image, class, score, x1, y1, x2, y2) VALUES ".to_owned();
    let mut values = names.to_vec();
    for (n, f) in found.iter().enumerate() {
        let first = values.len() + 1;
        let comma = if n == 0 { "" } else { ", " };
        let [class, score, x1, y1, x2, y2] = std::array::from_fn(|i| first + i);
        // Writing into a string does not fail.
        let _ = write!(sql, "{comma}($1, $2, $3, ${class}, ${score}, ${x1}, ${y1}, ${x2}, ${y2})");
        let score = if f.score.is_finite() { f.score } else { 0.0 };
        values.extend([Value::Int(f.class.into()), Value::Real(score)]);
        values.extend([f.x1, f.y1, f.x2, f.y2].map(|n| Value::Int(n.into())));
    }
    Statement::change(sql, values)
}

fn object(fields: &mut Fields) -> Result<Found, Error> {
    Ok(Found {
        class: fields.int()?,
        score: fields.real()?,
        x1: fields.int()?,
        y1: fields.int()?,
        x2: fields.int()?,
        y2: fields.int()?,
    })
}

//! The database in one SQLite file, in WAL mode.
//!
//! Invariants: every commit is durable when it returns (`synchronous = FULL`).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, OpenFlags, ToSql, TransactionBehavior, params_from_iter};

use super::Error;
use super::engine::{Cell, Dialect, Engine, Kind, Row, Statement, Value};

/// Between two looks at whether another process is done with the file.
const BUSY_AGAIN: Duration = Duration::from_millis(10);

/// A database.
#[derive(Debug)]
pub struct Sqlite {
    connection: Connection,
    path: PathBuf,
}

impl ToSql for Value<'_> {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        match self {
            Self::Int(n) => n.to_sql(),
            Self::Real(x) => x.to_sql(),
            Self::Text(text) => text.to_sql(),
        }
    }
}

impl Sqlite {
    /// Opens the file; makes it, and its folder, where it is not there. Another process that writes is waited for up to
    /// `busy`.
    ///
    /// # Errors
    /// [`Error`]: it can't be opened.
    pub fn open(path: &Path, busy: Duration) -> Result<Self, Error> {
        let open = |source| Error::Open { path: path.to_owned(), source };
        let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        edge::fs::create_dir_durably(folder)?;
        let new = !path.exists();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(open)?;
        connection.busy_timeout(busy).map_err(open)?;
        write_ahead(&connection, busy).map_err(open)?;
        connection.execute_batch("PRAGMA synchronous = FULL").map_err(open)?;
        if new {
            edge::fs::fsync_dir(folder)?;
        }
        Ok(Self { connection, path: path.to_owned() })
    }
}

/// Changes to a write-ahead log. The mode that is in force afterwards does not matter: a filesystem without shared memory
/// keeps the old one, which is slower and as safe.
fn write_ahead(connection: &Connection, busy: Duration) -> rusqlite::Result<()> {
    let until = Instant::now() + busy;
    loop {
        let changed = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0));
        match changed {
            // Two that make the same file: for this change alone SQLite does not wait by itself.
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && Instant::now() < until =>
            {
                std::thread::sleep(BUSY_AGAIN);
            }
            changed => return changed.map(drop),
        }
    }
}

impl Engine for Sqlite {
    fn dialect(&self) -> Dialect {
        Dialect {
            id: "INTEGER PRIMARY KEY AUTOINCREMENT",
            is_made: "SELECT name FROM sqlite_master WHERE type = 'table' AND name = 'sorter_schema'",
            lock: "",
        }
    }

    fn run(&mut self, what: &'static str, statements: &[Statement<'_>]) -> Result<Vec<Row>, Error> {
        let path = &self.path;
        let failed = |source| Error::Sqlite { what, path: path.clone(), source };
        if let [one] = statements {
            return execute(&self.connection, one).map_err(failed);
        }
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        let mut rows = Vec::new();
        for statement in statements {
            rows = execute(&transaction, statement).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        Ok(rows)
    }

    fn name(&self) -> String {
        format!("sqlite:{}", self.path.display())
    }
}

fn execute(connection: &Connection, statement: &Statement<'_>) -> rusqlite::Result<Vec<Row>> {
    let mut prepared = connection.prepare_cached(&statement.sql)?;
    let values = params_from_iter(&statement.values);
    if statement.columns.is_empty() {
        prepared.execute(values)?;
        return Ok(Vec::new());
    }
    let row = |row: &rusqlite::Row<'_>| {
        let cells = statement.columns.iter().enumerate();
        cells.map(|(n, kind)| cell(row, n, *kind)).collect::<rusqlite::Result<Row>>()
    };
    prepared.query_map(values, row)?.collect()
}

fn cell(row: &rusqlite::Row<'_>, n: usize, kind: Kind) -> rusqlite::Result<Cell> {
    if matches!(row.get_ref(n)?, ValueRef::Null) {
        return Ok(Cell::Null);
    }
    Ok(match kind {
        Kind::Int => Cell::Int(row.get(n)?),
        Kind::Real => Cell::Real(row.get(n)?),
        Kind::Text => Cell::Text(row.get(n)?),
    })
}

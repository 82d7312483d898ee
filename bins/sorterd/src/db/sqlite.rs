//! The database in one SQLite file, in WAL mode.
//!
//! Invariants: every commit is durable when it returns (by `edge::sqlite`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, ToSql, TransactionBehavior, params_from_iter};

use super::Error;
use super::engine::{Cell, Dialect, Engine, Kind, Row, Statement, Value};

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
        Ok(Self { connection: edge::sqlite::open(path, busy)?, path: path.to_owned() })
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

//! What the two databases have in common for us: statements with bound parameters, run together or not at all, and rows
//! of typed cells.
//!
//! Owns: the nouns that the queries are written in. The same text goes to both databases: parameters are `$1`, `$2`, …,
//! first used in that order, which SQLite numbers the same way.

use std::borrow::Cow;

use super::Error;

/// A bound parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Int(i64),
    Real(f32),
    Text(&'a str),
}

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Int,
    Real,
    Text,
}

/// One field of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Cell {
    Null,
    Int(i64),
    Real(f32),
    Text(String),
}

/// A row.
pub type Row = Vec<Cell>;

/// One statement.
#[derive(Debug)]
pub struct Statement<'a> {
    pub sql: Cow<'static, str>,
    pub values: Vec<Value<'a>>,
    /// The columns of its rows; empty where it gives none.
    pub columns: &'static [Kind],
}

impl<'a> Statement<'a> {
    /// One that gives no rows.
    pub fn change(sql: impl Into<Cow<'static, str>>, values: Vec<Value<'a>>) -> Self {
        Self { sql: sql.into(), values, columns: &[] }
    }

    /// One that gives rows.
    pub fn query(sql: &'static str, values: Vec<Value<'a>>, columns: &'static [Kind]) -> Self {
        Self { sql: sql.into(), values, columns }
    }
}

/// How the statements differ from database to database.
#[derive(Debug, Clone, Copy)]
pub struct Dialect {
    /// A column whose values are given in ascending order and never used again.
    pub id: &'static str,
    /// Gives a row if the table of the schema's version is there.
    pub is_made: &'static str,
    /// Keeps others from changing the schema until the end of the transaction; empty where every writer does.
    pub lock: &'static str,
}

/// A database.
pub trait Engine: Send {
    fn dialect(&self) -> Dialect;

    /// Runs the statements as one transaction, durable when it returns. The rows of the last one. Whatever fails, nothing
    /// was done, unless the connection broke at the very end: then nobody knows, and doing it again does no harm.
    ///
    /// `what` is a verb with its object, for the error.
    fn run(&mut self, what: &'static str, statements: &[Statement<'_>]) -> Result<Vec<Row>, Error>;

    /// Where the data is, without a secret.
    fn name(&self) -> String;
}

/// Takes the fields of a row one by one.
pub struct Fields {
    cells: std::vec::IntoIter<Cell>,
    what: &'static str,
}

impl Fields {
    pub fn new(what: &'static str, row: Row) -> Self {
        Self { cells: row.into_iter(), what }
    }

    fn wrong(&self, expected: &str, found: Option<&Cell>) -> Error {
        Error::Row { what: self.what, why: format!("expected {expected}, found {found:?}") }
    }

    /// The next field as an integer of any type.
    pub fn int<T: TryFrom<i64>>(&mut self) -> Result<T, Error> {
        self.int_or_null()?.ok_or_else(|| self.wrong("an integer", Some(&Cell::Null)))
    }

    pub fn int_or_null<T: TryFrom<i64>>(&mut self) -> Result<Option<T>, Error> {
        match self.cells.next() {
            Some(Cell::Null) => Ok(None),
            Some(cell @ Cell::Int(n)) => {
                T::try_from(n).map(Some).map_err(|_| self.wrong("a smaller integer", Some(&cell)))
            }
            other => Err(self.wrong("an integer", other.as_ref())),
        }
    }

    pub fn real(&mut self) -> Result<f32, Error> {
        match self.cells.next() {
            Some(Cell::Real(x)) => Ok(x),
            other => Err(self.wrong("a number", other.as_ref())),
        }
    }

    pub fn text(&mut self) -> Result<String, Error> {
        self.text_or_null()?.ok_or_else(|| self.wrong("text", Some(&Cell::Null)))
    }

    pub fn text_or_null(&mut self) -> Result<Option<String>, Error> {
        match self.cells.next() {
            Some(Cell::Null) => Ok(None),
            Some(Cell::Text(text)) => Ok(Some(text)),
            other => Err(self.wrong("text", other.as_ref())),
        }
    }
}

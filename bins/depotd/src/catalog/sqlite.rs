//! The catalog in one SQLite file, in WAL mode: the server reads while a command writes.
//!
//! Invariants: every commit is durable when it returns (by `edge::sqlite`); a change and what attributes select by it
//! are one transaction. The form of the file is its `user_version`; an older one is brought up to date when it is opened.

use std::path::{Path, PathBuf};
use std::time::Duration;

use edge::release::{Sha256, Sums, Timestamp};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};

use super::{Catalog, Error, Release, State, key};

/// What brings a file from form `n` to form `n + 1`.
const MIGRATIONS: &[&str] = &[include_str!("schema.sql")];

const LIVE: &str = "\
    SELECT app, version, env, epoch, state, rollout, floor, from_epoch, md5, sha256, size, url, attrs, statement, signature, \
        published \
    FROM release WHERE app_key = ?1 AND env = ?2 AND state = 1 AND epoch >= coalesce((SELECT max(epoch) FROM release \
        WHERE app_key = ?1 AND env = ?2 AND state = 1 AND rollout >= 100), 0) \
    UNION ALL \
    SELECT app, version, env, epoch, state, rollout, floor, from_epoch, md5, sha256, size, url, attrs, statement, signature, \
        published \
    FROM release WHERE app_key = ?1 AND env = ?2 AND state = 1 AND floor = 1 AND epoch < coalesce((SELECT max(epoch) \
        FROM release WHERE app_key = ?1 AND env = ?2 AND state = 1 AND rollout >= 100), 0) \
    ORDER BY epoch DESC";

const SELECTED: &str = "SELECT app FROM selects WHERE attr = ?1 AND env = ?2 ORDER BY app_key";

const LIST: &str = "\
    SELECT app, version, env, epoch, state, rollout, floor, from_epoch, md5, sha256, size, url, attrs, statement, signature, \
        published \
    FROM release WHERE (?1 IS NULL OR app_key = ?1) AND (?2 IS NULL OR env = ?2) ORDER BY app_key, env, epoch DESC";

/// A catalog.
#[derive(Debug)]
pub struct Sqlite {
    connection: Connection,
    path: PathBuf,
}

fn code(state: State) -> i64 {
    match state {
        State::Pending => 0,
        State::Live => 1,
        State::Paused => 2,
        State::Retired => 3,
    }
}

impl Sqlite {
    /// Opens the file; makes it, and its folder, where it is not there. A writer is waited for up to `busy`.
    ///
    /// # Errors
    /// [`Error`]: it can't be opened, or is of a newer form.
    pub fn open(path: &Path, busy: Duration) -> Result<Self, Error> {
        let connection = edge::sqlite::open(path, busy)?;
        let mut catalog = Self { connection, path: path.to_owned() };
        catalog.migrate()?;
        Ok(catalog)
    }

    fn migrate(&mut self) -> Result<(), Error> {
        let failed = failed("bring the tables up to date", self.path.clone());
        let known = MIGRATIONS.len() as i64;
        let form = |c: &Connection| c.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0));
        if form(&self.connection).map_err(&failed)? == known {
            return Ok(());
        }
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        // Asked again: another process may have been faster.
        let found = form(&transaction).map_err(&failed)?;
        if !(0..=known).contains(&found) {
            return Err(Error::Newer { path: self.path.clone(), found, known });
        }
        for migration in MIGRATIONS.iter().skip(found as usize) {
            transaction.execute_batch(migration).map_err(&failed)?;
        }
        transaction.pragma_update(None, "user_version", known).map_err(&failed)?;
        transaction.commit().map_err(&failed)
    }

    fn query(
        &self,
        what: &'static str,
        sql: &str,
        values: impl rusqlite::Params,
    ) -> Result<Vec<Release>, Error> {
        let failed = failed(what, self.path.clone());
        let mut statement = self.connection.prepare_cached(sql).map_err(&failed)?;
        let rows = statement.query_map(values, release).map_err(&failed)?;
        rows.collect::<Result<_, _>>().map_err(&failed)
    }

    fn change<T>(
        &mut self,
        what: &'static str,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, rusqlite::Error>,
    ) -> Result<T, Error> {
        let failed = failed(what, self.path.clone());
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        let done = change(&transaction).map_err(&failed)?;
        transaction.commit().map_err(&failed)?;
        Ok(done)
    }
}

fn failed(what: &'static str, path: PathBuf) -> impl Fn(rusqlite::Error) -> Error {
    move |source| Error::Sqlite { what, path: path.clone(), source }
}

/// A column as another type than SQLite's.
fn parsed<T: std::str::FromStr>(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<T>>
where
    T::Err: std::fmt::Display,
{
    let text: Option<String> = row.get(at)?;
    let wrong = |e: T::Err| rusqlite::Error::FromSqlConversionFailure(at, Type::Text, e.to_string().into());
    text.map(|text| text.parse().map_err(wrong)).transpose()
}

fn release(row: &Row<'_>) -> rusqlite::Result<Release> {
    let md5 = parsed(row, 8)?;
    let sums = match (md5, parsed(row, 9)?, row.get::<_, Option<u64>>(10)?) {
        (Some(md5), Some(sha256), Some(size)) => Some(Sums { sha256, md5, size }),
        _ => None,
    };
    let wrong = |at, why: String| rusqlite::Error::FromSqlConversionFailure(at, Type::Text, why.into());
    let attrs: String = row.get(12)?;
    Ok(Release {
        app: row.get(0)?,
        version: row.get(1)?,
        env: row.get(2)?,
        epoch: row.get(3)?,
        state: match row.get(4)? {
            0 => State::Pending,
            1 => State::Live,
            2 => State::Paused,
            3 => State::Retired,
            other => return Err(wrong(4, format!("no state {other} is known"))),
        },
        rollout: row.get(5)?,
        floor: row.get(6)?,
        from_epoch: row.get(7)?,
        md5,
        sums,
        url: row.get(11)?,
        attrs: serde_json::from_str(&attrs).map_err(|e| wrong(12, e.to_string()))?,
        statement: row.get(13)?,
        signature: row.get(14)?,
        published: Timestamp(row.get(15)?),
    })
}

fn write(to: &Transaction<'_>, release: &Release) -> Result<(), rusqlite::Error> {
    let sql = "INSERT OR REPLACE INTO release (app_key, app, version, env, epoch, state, rollout, floor, from_epoch, md5, \
               sha256, size, url, attrs, statement, signature, published) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)";
    let Release { app, version, env, epoch, url, rollout, from_epoch, floor, .. } = release;
    to.prepare_cached(sql)?.execute(params![
        key(app),
        app,
        version,
        env,
        epoch,
        code(release.state),
        rollout,
        floor,
        from_epoch,
        release.md5.map(|md5| md5.to_string()),
        release.sums.map(|sums| sums.sha256.to_string()),
        release.sums.map(|sums| sums.size),
        url,
        serde_json::to_string(&release.attrs).unwrap_or_default(),
        release.statement,
        release.signature,
        release.published.0,
    ])?;
    select(to, &key(app), env)
}

/// Writes anew what selects the app in the environment.
fn select(to: &Transaction<'_>, app_key: &str, env: &str) -> Result<(), rusqlite::Error> {
    to.prepare_cached("DELETE FROM selects WHERE app_key = ?1 AND env = ?2")?.execute([app_key, env])?;
    // The newest one's spelling of the app is the last one written.
    to.prepare_cached(
        "INSERT OR REPLACE INTO selects (attr, env, app_key, app) \
         SELECT a.value, r.env, r.app_key, r.app FROM release r, json_each(r.attrs) a \
         WHERE r.app_key = ?1 AND r.env = ?2 AND r.state = 1 ORDER BY r.epoch",
    )?
    .execute([app_key, env])?;
    Ok(())
}

fn lookup(to: &Transaction<'_>, release: &Release) -> Result<Option<(i64, Option<String>)>, rusqlite::Error> {
    let sql = "SELECT state, statement FROM release WHERE app_key = ?1 AND env = ?2 AND epoch = ?3";
    let mut statement = to.prepare_cached(sql)?;
    let row = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
    statement.query_row(params![key(&release.app), release.env, release.epoch], row).optional()
}

impl Catalog for Sqlite {
    fn live(&mut self, app: &str, env: &str) -> Result<Vec<Release>, Error> {
        self.query("look up an app", LIVE, params![key(app), env])
    }

    fn apps_with(&mut self, attr: &str, env: &str) -> Result<Vec<String>, Error> {
        let failed = failed("look up an attribute", self.path.clone());
        let mut statement = self.connection.prepare_cached(SELECTED).map_err(&failed)?;
        let rows = statement.query_map([attr, env], |row| row.get(0)).map_err(&failed)?;
        rows.collect::<Result<_, _>>().map_err(&failed)
    }

    fn version(&mut self) -> Result<Option<u64>, Error> {
        let failed = failed("ask for changes", self.path.clone());
        let mut statement = self.connection.prepare_cached("PRAGMA data_version").map_err(&failed)?;
        statement.query_row([], |row| row.get(0)).map(Some).map_err(failed)
    }

    fn content(&mut self, sha256: &Sha256) -> Result<Option<u64>, Error> {
        let failed = failed("look up content", self.path.clone());
        let sql = "SELECT size FROM release WHERE sha256 = ?1 AND state IN (1, 2) LIMIT 1";
        let mut statement = self.connection.prepare_cached(sql).map_err(&failed)?;
        statement.query_row([sha256.to_string()], |row| row.get(0)).optional().map_err(failed)
    }

    fn list(&mut self, app: Option<&str>, env: Option<&str>) -> Result<Vec<Release>, Error> {
        self.query("list the releases", LIST, params![app.map(key), env])
    }

    fn insert(&mut self, release: &Release) -> Result<(), Error> {
        let done = self.change("add a release", |transaction| {
            let free = lookup(transaction, release)?.is_none();
            if free {
                write(transaction, release)?;
            }
            Ok(free)
        })?;
        let Release { app, env, epoch, .. } = release;
        if done { Ok(()) } else { Err(Error::Taken { app: app.clone(), env: env.clone(), epoch: *epoch }) }
    }

    fn replace(&mut self, was: &Release, now: &Release) -> Result<(), Error> {
        let done = self.change("change a release", |transaction| {
            let same = lookup(transaction, was)? == Some((code(was.state), was.statement.clone()));
            if same {
                write(transaction, now)?;
            }
            Ok(same)
        })?;
        if done { Ok(()) } else { Err(Error::Changed(was.title())) }
    }

    fn damage(&mut self) -> Result<Vec<String>, Error> {
        let failed = failed("look for damage", self.path.clone());
        let mut statement = self.connection.prepare("PRAGMA integrity_check(20)").map_err(&failed)?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).map_err(&failed)?;
        let mut found: Vec<String> = rows.collect::<Result<_, _>>().map_err(&failed)?;
        found.retain(|line| line != "ok");
        Ok(found)
    }
}

#[cfg(test)]
#[path = "sqlite_tests.rs"]
pub(crate) mod tests;

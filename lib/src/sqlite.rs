//! A database in one SQLite file, in WAL mode: others read while one writes.
//!
//! Owns: how such a file is opened, which several processes may do at once. Behind the feature `sqlite`, which only programs
//! with such a file turn on. Invariants: every commit is durable when it returns (`synchronous = FULL`), and so is the name
//! of the file. Never: makes a table.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::fs;

/// Between two looks at whether another process is done with the file.
const BUSY_AGAIN: Duration = Duration::from_millis(10);

/// Why there is no database.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file can't be opened, or is none of SQLite's.
    #[error("cannot open the database {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rusqlite::Error,
    },
    /// The file's folder can't be made or synced.
    #[error(transparent)]
    Folder(#[from] fs::Error),
}

/// Opens the file; makes it, and its folder, where it is not there. Another process that writes is waited for up to `busy`,
/// here and in whatever is asked of the connection.
///
/// # Errors
/// [`Error`]: it can't be opened.
pub fn open(path: &Path, busy: Duration) -> Result<Connection, Error> {
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_durably(folder)?;
    let new = !path.exists();
    let connection = connect(path, busy).map_err(|source| Error::Open { path: path.to_owned(), source })?;
    if new {
        fs::fsync_dir(folder)?;
    }
    Ok(connection)
}

fn connect(path: &Path, busy: Duration) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(busy)?;
    write_ahead(&connection, busy)?;
    connection.execute_batch("PRAGMA synchronous = FULL")?;
    Ok(connection)
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

//! Which files count: `.gitignore` as git reads it, [`IGNORE_FILE`], and what is never sent.
//!
//! In a git work tree the rules of the folders above apply as well, up to its top, and `.git/info/exclude`; elsewhere
//! the `.gitignore` files from the source folder downwards do. Hidden files count. The user's global ignore file does
//! not, since another developer would then send another tree.

use std::{
    ffi::OsStr,
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use edge::{
    beneath::Stat,
    sync::{RelPath, path::RESERVED},
};
use ignore::{DirEntry, WalkBuilder};

use super::{Error, Skipped, refusal};

/// Rules as in `.gitignore`, for what git keeps and the device does not need (or with `!`, the reverse).
pub const IGNORE_FILE: &str = ".sideloadignore";

/// A file that counts.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) rel: RelPath,
    pub(super) path: PathBuf,
    /// Of the file itself, or of what a link names.
    pub(super) stat: Stat,
}

/// What a walk found, files sorted by path.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) files: Vec<Found>,
    pub(super) skipped: Vec<Skipped>,
}

/// A walk over what counts below `top` (absolute, without links), folders included.
#[must_use]
pub fn walker(top: &Path) -> WalkBuilder {
    let in_repository = top.ancestors().any(|folder| folder.join(".git").exists());
    let mut builder = WalkBuilder::new(top);
    builder
        .hidden(false)
        .ignore(false)
        .git_global(false)
        .git_ignore(true)
        .git_exclude(true)
        // Outside a work tree the rules of folders above the source folder are somebody else's.
        .require_git(in_repository)
        .parents(in_repository)
        .follow_links(false)
        .add_custom_ignore_filename(IGNORE_FILE)
        .filter_entry(|entry| entry.depth() == 0 || !never(entry));
    builder
}

/// The names of what counts in `folder`, at `top` or below it; only the folders on the way there are read. Empty when
/// a rule ignores the folder.
#[must_use]
pub fn listing(top: &Path, folder: &Path) -> Vec<PathBuf> {
    let on_the_way = folder.to_owned();
    walker(top)
        .max_depth(Some(folder.strip_prefix(top).map_or(0, |rel| rel.components().count()) + 1))
        .filter_entry(move |entry| {
            let path = entry.path();
            entry.depth() == 0
                || (!never(entry) && (on_the_way.starts_with(path) || path.parent() == Some(&on_the_way)))
        })
        .build()
        .filter_map(Result::ok)
        .map(DirEntry::into_path)
        .filter(|path| path.parent() == Some(folder))
        .collect()
}

/// What no rule can make part of a sync: keys and certificates, git's own files, the device's own folder, and the file
/// that says where the device is (at the top; below it a file of this name is the application's).
fn never(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let at_top = entry.depth() == 1;
    name == OsStr::new(".git")
        || (at_top && (name == OsStr::new(RESERVED) || name == OsStr::new(crate::config::FILE_NAME)))
        || Path::new(name).extension().is_some_and(|extension| extension.eq_ignore_ascii_case("pem"))
        || name == OsStr::new(".pem")
}

/// All files below `top`.
pub(super) fn files(top: &Path) -> Result<Files, Error> {
    let failed = |source| Error::Walk { top: top.to_owned(), source };
    let mut found = Files::default();
    for entry in walker(top).build() {
        let entry = match entry {
            Ok(entry) => entry,
            // It went away between being listed and being looked at.
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(failed(error)),
        };
        if let Some(error) = entry.error() {
            log::warn!("an ignore rule is left out: {error}");
        }
        let Some(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            continue;
        }
        let meta = if kind.is_symlink() {
            match std::fs::metadata(entry.path()) {
                Ok(meta) => meta,
                Err(_) => {
                    found.skip(top, &entry, "a link to nothing");
                    continue;
                }
            }
        } else {
            match entry.metadata() {
                Ok(meta) => meta,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(failed(error)),
            }
        };
        if meta.is_dir() {
            found.skip(top, &entry, "a link to a folder");
        } else if !meta.is_file() {
            found.skip(top, &entry, "no regular file");
        } else {
            let path = entry.into_path();
            found.files.push(Found { rel: rel(top, &path)?, path, stat: stat(&meta) });
        }
    }
    found.files.sort_by(|a, b| a.rel.cmp(&b.rel));
    Ok(found)
}

impl Files {
    fn skip(&mut self, top: &Path, entry: &DirEntry, why: &'static str) {
        let path = entry.path().strip_prefix(top).unwrap_or(entry.path()).to_owned();
        self.skipped.push(Skipped { path, why });
    }
}

fn is_gone(error: &ignore::Error) -> bool {
    error.io_error().is_some_and(|io| io.kind() == std::io::ErrorKind::NotFound)
}

fn rel(top: &Path, path: &Path) -> Result<RelPath, Error> {
    let rel = path.strip_prefix(top).unwrap_or(path);
    let Some(text) = rel.to_str() else {
        return Err(Error::Name { path: path.to_owned(), why: "it is not UTF-8".into() });
    };
    RelPath::new(text).map_err(|why| refusal(path, &why))
}

/// The same facts as [`Stat::of`], from what the walk has asked the system for already.
fn stat(meta: &Metadata) -> Stat {
    let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
    Stat {
        dev: meta.dev(),
        ino: meta.ino(),
        size: meta.size(),
        mode: meta.mode() & 0o7777,
        mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
        ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
        is_file: meta.is_file(),
        is_dir: meta.is_dir(),
        nlink: meta.nlink(),
    }
}

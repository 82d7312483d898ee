//! Python's byte code of files that are replaced.
//!
//! Python holds `__pycache__/X.*.pyc` for a compilation of `X.py` if the second of the modification time and the size in
//! it are those of the source. Two saves of equal size within one second look the same to it, and so does a file that a
//! rollback brings back: the old code would run. Therefore the byte code goes with the source it was made of. It is a
//! cache, no work of the application's, and is made again by the next import.
//!
//! Invariants: only regular files with these names are removed; byte code that can't be removed, because it lies in a
//! place that is not ours to change, is said in the log and is no reason to fail.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use edge::beneath;

use super::Error;
use super::commit::parent;
use super::disk::Disk;

/// Where Python puts byte code, beside the source.
const FOLDER: &str = "__pycache__";

/// The name of a module's source without its ending, if `path` is one.
fn module(path: &str) -> Option<&str> {
    let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
    name.strip_suffix(".py").filter(|stem| !stem.is_empty())
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

/// Where the byte code of `path` is if it is a Python source: the file beside it (as Python 2 and `compileall -b` write
/// it), and what the names in [`FOLDER`] beside it begin with.
pub fn places(path: &str) -> Option<(String, String)> {
    let stem = module(path)?;
    let folder = parent(path);
    Some((join(folder, &format!("{stem}.pyc")), format!("{}/{stem}.", join(folder, FOLDER))))
}

/// Removes the byte code of these sources. The folders that lost something, to be made durable.
///
/// # Errors
/// The disk failed.
pub fn remove<'a>(disk: &Disk, sources: impl Iterator<Item = &'a str>) -> Result<BTreeSet<String>, Error> {
    let mut modules: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for path in sources {
        if let Some(stem) = module(path) {
            modules.entry(parent(path)).or_default().insert(stem);
        }
    }
    let mut changed = BTreeSet::new();
    for (folder, stems) in modules {
        let cache = join(folder, FOLDER);
        // A folder that can't be listed is a place that is not ours.
        for name in tolerate(disk.names(&cache), &cache)?.unwrap_or_default() {
            // The source's name may hold dots as well as what follows it.
            let listed = name.ends_with(".pyc")
                && name.match_indices('.').any(|(end, _)| name.get(..end).is_some_and(|s| stems.contains(s)));
            if listed && remove_one(disk, &join(&cache, &name))? {
                changed.insert(cache.clone());
            }
        }
        for stem in stems {
            if remove_one(disk, &join(folder, &format!("{stem}.pyc")))? {
                changed.insert(folder.to_owned());
            }
        }
    }
    Ok(changed)
}

fn remove_one(disk: &Disk, path: &str) -> Result<bool, Error> {
    match tolerate(disk.stat(path), path)?.flatten() {
        Some(stat) if stat.is_file => Ok(tolerate(disk.unlink(path), path)?.unwrap_or(false)),
        _ => Ok(false),
    }
}

/// What lies in a place that is not ours to change is `None`.
fn tolerate<T>(result: Result<T, Error>, path: &str) -> Result<Option<T>, Error> {
    let error = match result {
        Ok(value) => return Ok(Some(value)),
        Err(error) => error,
    };
    let kind = match &error {
        Error::Path(error) => error.kind(),
        Error::Io { source, .. } => Some(source.kind()),
        _ => None,
    };
    let foreign = matches!(error, Error::Path(beneath::Error::Escapes { .. }))
        || matches!(kind, Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem));
    if !foreign {
        return Err(error);
    }
    log::warn!(
        "old byte code at {path} can't be removed, Python may run it if the source has the same size and was changed \
         within the same second: {}",
        edge::log::chain(&error)
    );
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_have_byte_code() {
        let at = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(places("a.py"), at("a.pyc", "__pycache__/a."));
        assert_eq!(places("p/q/a.b.py"), at("p/q/a.b.pyc", "p/q/__pycache__/a.b."));
        for other in ["a.pyc", ".py", "p/.py", "py", "a.py/x", "a.pyi"] {
            assert_eq!(places(other), None, "{other}");
        }
    }
}

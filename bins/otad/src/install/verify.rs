//! Whether what is installed is still what was installed. Reads everything, changes nothing.
//!
//! What Python compiles beside its source, where it may write, is no damage: it is not looked at unless it was released.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use edge::release::{Digest, Sha256};
use sha2::Digest as _;

use super::build::FILE_MODE;
use super::disk::entries;
use super::{Error, GenId, Item, Kind, Store, Tree};

const BUFFER: usize = 128 << 10;

/// Where Python keeps what it compiled (PEP 3147).
const PYTHON: &str = "__pycache__";

/// An app that is not as it was installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The app.
    pub app: String,
    /// What is wrong.
    pub why: String,
}

impl Store {
    /// Compares a generation with its manifest: files by type, mode, size and SHA-256, unpacked archives by the sums
    /// taken when they were unpacked.
    ///
    /// # Errors
    /// There is no such generation.
    pub fn verify(&self, id: &GenId) -> Result<Vec<Damage>, Error> {
        let Some(file) = self.known.get(id) else {
            return Err(Error::refused(format!("there is no generation {id}")));
        };
        let never = AtomicBool::new(false);
        let mut damage = Vec::new();
        for item in file.manifest.items() {
            let tree = file.trees.get(&item.app);
            let why = check(&self.app_dir(id, &item.app), item, tree, &never)?;
            damage.extend(why.map(|why| Damage { app: item.app.clone(), why }));
        }
        Ok(damage)
    }
}

/// What is wrong with the folder of an app, if anything is; also that it can't be read.
pub(super) fn check(
    folder: &Path,
    item: &Item,
    tree: Option<&Tree>,
    stop: &AtomicBool,
) -> Result<Option<String>, Error> {
    let checked = match item.kind {
        Kind::Tar => check_tree(folder, tree, stop),
        Kind::File { mode } => check_file(folder, item, mode, stop),
        Kind::Handler => check_file(folder, item, FILE_MODE, stop),
    };
    match checked {
        Ok(why) => Ok(why.map(str::to_owned)),
        Err(Error::Stopped) => Err(Error::Stopped),
        Err(error) => Ok(Some(edge::log::chain(&error).to_string())),
    }
}

fn check_file(
    folder: &Path,
    item: &Item,
    mode: u32,
    stop: &AtomicBool,
) -> Result<Option<&'static str>, Error> {
    let path = folder.join(&item.app);
    let there = entries(folder)?;
    // What is cheap to see comes first.
    let why = match there.iter().find(|(name, _)| *name == path) {
        None => Some("its file is gone"),
        Some((_, meta)) if !meta.is_file() => Some("it is no file any more"),
        Some((_, meta)) if meta.len() != item.size => Some("its content was changed"),
        Some((_, meta)) if meta.permissions().mode() & 0o7777 != mode => Some("its mode was changed"),
        Some(_) if there.iter().any(|(name, _)| *name != path && !name.ends_with(PYTHON)) => {
            Some("something was added to its folder")
        }
        Some(_) => None,
    };
    match why {
        Some(why) => Ok(Some(why)),
        None => Ok((sha256_of(&path, stop)? != item.sha256).then_some("its content was changed")),
    }
}

fn check_tree(
    folder: &Path,
    expected: Option<&Tree>,
    stop: &AtomicBool,
) -> Result<Option<&'static str>, Error> {
    let mut sums = Sums::default();
    walk(folder, "", &mut sums, false, &mut vec![0; BUFFER], stop)?;
    let whole = |expected: &Tree| *expected == sums.tree || *expected == sums.tree.with(&sums.compiled);
    Ok((!expected.is_some_and(whole)).then_some("files in it were changed, added or removed"))
}

/// Of what there is: what Python may have compiled, and the rest.
#[derive(Default)]
struct Sums {
    tree: Tree,
    compiled: Tree,
}

fn walk(
    folder: &Path,
    above: &str,
    sums: &mut Sums,
    compiled: bool,
    buffer: &mut [u8],
    stop: &AtomicBool,
) -> Result<(), Error> {
    for (path, meta) in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let rel = if above.is_empty() { name.to_string() } else { format!("{above}/{name}") };
        let mode = meta.permissions().mode() & 0o7777;
        let compiled = compiled || (meta.is_dir() && name == PYTHON);
        let tree = if compiled { &mut sums.compiled } else { &mut sums.tree };
        if meta.is_dir() {
            tree.folder(&rel, mode);
            walk(&path, &rel, sums, compiled, buffer, stop)?;
        } else if meta.is_symlink() {
            let target = std::fs::read_link(&path).map_err(Error::io("read the link", &path))?;
            tree.link(&rel, &target.to_string_lossy());
        } else if meta.is_file() {
            let mut crc = 0;
            read_all(&path, buffer, stop, |piece| crc = crc32c::crc32c_append(crc, piece))?;
            tree.file(&rel, mode, meta.len(), crc);
        } else {
            tree.link(&rel, "(neither file nor folder nor link)");
        }
    }
    Ok(())
}

/// Without the MD5 that other sums come with: nothing asks for it here, and it would take longer than the rest.
pub(super) fn sha256_of(path: &Path, stop: &AtomicBool) -> Result<Sha256, Error> {
    let mut hash = sha2::Sha256::new();
    read_all(path, &mut vec![0; BUFFER], stop, |piece| hash.update(piece))?;
    Ok(Digest(hash.finalize().into()))
}

fn read_all(
    path: &Path,
    buffer: &mut [u8],
    stop: &AtomicBool,
    mut take: impl FnMut(&[u8]),
) -> Result<(), Error> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        match file.read(buffer).map_err(Error::io("read", path))? {
            0 => return Ok(()),
            n => take(buffer.get(..n).unwrap_or_default()),
        }
    }
}

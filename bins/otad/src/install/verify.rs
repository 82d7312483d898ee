//! Whether what is installed is still what was installed. Reads everything, changes nothing.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use edge::release::Digests;

use super::disk::entries;
use super::extract::crc_of;
use super::{Error, GenId, Item, Kind, Store, Tree};

const BUFFER: usize = 128 << 10;

/// An app that is not as it was installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The app.
    pub app: String,
    /// What is wrong.
    pub why: String,
}

impl Store {
    /// Compares a generation with its manifest: content by SHA-256, unpacked archives by the sums taken when they were
    /// unpacked.
    ///
    /// # Errors
    /// There is no such generation.
    pub fn verify(&self, id: &GenId) -> Result<Vec<Damage>, Error> {
        let Some(file) = self.known.get(id) else {
            return Err(Error::refused(format!("there is no generation {id}")));
        };
        let mut damage = Vec::new();
        for item in file.manifest.items() {
            let folder = self.app_dir(id, &item.app);
            let checked = match item.kind {
                Kind::Tar => check_tree(&folder, file.trees.get(&item.app)),
                Kind::File { .. } | Kind::Handler => check_content(&folder.join(&item.app), item),
            };
            let why = match checked {
                Ok(None) => continue,
                Ok(Some(why)) => why.to_owned(),
                Err(error) => edge::log::chain(&error).to_string(),
            };
            damage.push(Damage { app: item.app.clone(), why });
        }
        Ok(damage)
    }
}

fn check_content(path: &Path, item: &Item) -> Result<Option<&'static str>, Error> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let (mut digests, mut buffer) = (Digests::default(), vec![0; BUFFER]);
    loop {
        match file.read(&mut buffer).map_err(Error::io("read", path))? {
            0 => break,
            n => digests.update(buffer.get(..n).unwrap_or_default()),
        }
    }
    Ok((digests.finish().sha256 != item.sha256).then_some("its content was changed"))
}

fn check_tree(folder: &Path, expected: Option<&Tree>) -> Result<Option<&'static str>, Error> {
    let mut tree = Tree::default();
    let mut buffer = vec![0; BUFFER];
    walk(folder, "", &mut tree, &mut buffer)?;
    Ok((Some(&tree) != expected).then_some("files in it were changed, added or removed"))
}

fn walk(folder: &Path, above: &str, tree: &mut Tree, buffer: &mut [u8]) -> Result<(), Error> {
    for (path, meta) in entries(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let rel = if above.is_empty() { name.into_owned() } else { format!("{above}/{name}") };
        let mode = meta.permissions().mode() & 0o7777;
        if meta.is_dir() {
            tree.folder(&rel, mode);
            walk(&path, &rel, tree, buffer)?;
        } else if meta.is_symlink() {
            let target = std::fs::read_link(&path).map_err(Error::io("read the link", &path))?;
            tree.link(&rel, &target.to_string_lossy());
        } else if meta.is_file() {
            let mut file = File::open(&path).map_err(Error::io("open", &path))?;
            let crc = crc_of(&mut file, buffer).map_err(Error::io("read", &path))?;
            tree.file(&rel, mode, meta.len(), crc);
        } else {
            tree.link(&rel, "(neither file nor folder nor link)");
        }
    }
    Ok(())
}

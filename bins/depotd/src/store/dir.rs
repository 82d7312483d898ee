//! Content as files: `blobs/<2 hexadecimal digits>/<sha256>`.
//!
//! A file is written under a temporary name, hashed as it is written, fsynced, renamed, and its folder fsynced. After a
//! crash there is the whole file under its name or none; a temporary file is never looked at again, and `depotd gc`
//! removes it. Publishers hold `blobs/.lock` shared, `gc` alone.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use edge::fs::{context, create_dir_durably, free_bytes, fsync_dir};
use edge::release::{Digests, Sha256, Sums, Timestamp};
use rustix::fs::FlockOperation;

use super::{Blob, BlobStore, Error, Held, Leftover, Span};

const TEMPORARY: &str = ".put-";
/// What a disk must have left beside the content.
const SPARE_BYTES: u64 = 1 << 20;

/// A folder of content.
#[derive(Debug)]
pub struct Dir {
    root: PathBuf,
    lock: Option<File>,
}

impl Dir {
    /// The store in the folder `root`; makes its `blobs` where it is not there.
    ///
    /// # Errors
    /// [`Error`]: it can't be made.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let root = root.join("blobs");
        create_dir_durably(&root)?;
        Ok(Self { root, lock: None })
    }

    /// Where the content is.
    #[must_use]
    pub fn path_of(&self, sha256: &Sha256) -> PathBuf {
        let name = sha256.to_string();
        self.root.join(&name[..2]).join(name)
    }

    fn temporary(&self) -> Result<(PathBuf, File), Error> {
        // A left-over of a process with our id is written over.
        let path = self.root.join(format!("{TEMPORARY}{}", std::process::id()));
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&path);
        Ok((path.clone(), file.map_err(context("create", &path))?))
    }

    /// Calls `each` with every name in the folder and its metadata.
    fn walk(folder: &Path, each: &mut dyn FnMut(&str, std::fs::Metadata)) -> Result<(), Error> {
        for entry in std::fs::read_dir(folder).map_err(context("read the folder", folder))? {
            let entry = entry.map_err(context("read the folder", folder))?;
            let path = entry.path();
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Removed or renamed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(context("look at", &path)(error).into()),
            };
            each(&entry.file_name().to_string_lossy(), metadata);
        }
        Ok(())
    }
}

/// Copies all of `source` and gives the sums of what was copied.
fn copy(source: &mut File, to: &mut File, path: &Path) -> Result<Sums, Error> {
    let mut digests = Digests::default();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match source.read(&mut buffer) {
            Ok(0) => return Ok(digests.finish()),
            Ok(n) => {
                digests.update(&buffer[..n]);
                to.write_all(&buffer[..n]).map_err(context("write", path))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Source(error)),
        }
    }
}

impl BlobStore for Dir {
    fn get(&mut self, sha256: &Sha256, span: Option<Span>) -> Result<Blob, Error> {
        let path = self.path_of(sha256);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Missing { what: sha256.to_string(), at: path.display().to_string() });
            }
            Err(error) => return Err(context("open", &path)(error).into()),
        };
        let size = file.metadata().map_err(context("look at", &path))?.len();
        let Span { start, len } = span.unwrap_or(Span { start: 0, len: size });
        if start > 0 {
            file.seek(SeekFrom::Start(start)).map_err(context("seek in", &path))?;
        }
        let own = file.try_clone().map_err(context("duplicate the descriptor of", &path))?;
        Ok(Blob { size, reader: Box::new(file.take(len)), file: Some(own) })
    }

    fn put(&mut self, source: &mut File) -> Result<Sums, Error> {
        source.rewind().map_err(Error::Source)?;
        let len = source.metadata().map_err(Error::Source)?.len();
        let free = free_bytes(&self.root)?;
        if len.saturating_add(SPARE_BYTES) > free {
            let (free, needed) = (edge::text::bytes(free), edge::text::bytes(len + SPARE_BYTES));
            return Err(Error::Full { free, needed, at: self.root.display().to_string() });
        }
        let (temporary, mut file) = self.temporary()?;
        let mut put = || -> Result<Sums, Error> {
            let sums = copy(source, &mut file, &temporary)?;
            if sums.size != len {
                return Err(Error::Torn);
            }
            file.sync_all().map_err(context("fsync", &temporary))?;
            let path = self.path_of(&sums.sha256);
            let folder = path.parent().unwrap_or(&self.root);
            create_dir_durably(folder)?;
            std::fs::rename(&temporary, &path).map_err(context("rename a temporary file to", &path))?;
            fsync_dir(folder)?;
            Ok(sums)
        };
        put().inspect_err(|_| {
            // The first error is the one to report; a left-over temporary file is harmless.
            let _ = std::fs::remove_file(&temporary);
        })
    }

    fn list(&mut self) -> Result<Vec<Held>, Error> {
        let mut folders = Vec::new();
        Self::walk(&self.root, &mut |name, metadata| {
            if metadata.is_dir() && name.len() == 2 {
                folders.push(self.root.join(name));
            }
        })?;
        folders.sort();
        let mut held = Vec::new();
        for folder in folders {
            Self::walk(&folder, &mut |name, metadata| {
                let since = Timestamp(metadata.mtime());
                if let Ok(sha256) = name.parse::<Sha256>()
                    && folder.ends_with(&name[..2])
                {
                    held.push(Held { sha256, size: metadata.len(), since });
                }
            })?;
        }
        held.sort_unstable_by_key(|held| held.sha256);
        Ok(held)
    }

    fn leftovers(&mut self) -> Result<Vec<Leftover>, Error> {
        let mut found = Vec::new();
        Self::walk(&self.root, &mut |name, metadata| {
            if name.starts_with(TEMPORARY) && metadata.is_file() {
                found.push(Leftover { name: name.to_owned(), size: metadata.len() });
            }
        })?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn sweep(&mut self, leftover: &Leftover) -> Result<(), Error> {
        remove(&self.root.join(&leftover.name))
    }

    fn remove(&mut self, sha256: &Sha256) -> Result<(), Error> {
        remove(&self.path_of(sha256))
    }

    fn url_of(&self, sha256: &Sha256) -> String {
        format!("/blob/{sha256}")
    }

    fn name(&self) -> String {
        format!("dir:{}", self.root.display())
    }

    fn lock(&mut self, alone: bool) -> Result<bool, Error> {
        let path = self.root.join(".lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o644).open(&path);
        let file = file.map_err(context("create", &path))?;
        let how = if alone { FlockOperation::LockExclusive } else { FlockOperation::LockShared };
        rustix::fs::flock(&file, how).map_err(|e| context("lock", &path)(io::Error::from(e)))?;
        self.lock = Some(file);
        Ok(true)
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(context("remove", path)(error).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("edge-depot-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        folder
    }

    fn file(folder: &Path, content: &[u8]) -> File {
        let path = folder.join("source");
        std::fs::write(&path, content).unwrap();
        File::open(path).unwrap()
    }

    #[test]
    fn what_was_put_is_read_whole_and_in_parts() {
        let folder = scratch("put");
        let mut dir = Dir::open(&folder).unwrap();
        let sums = dir.put(&mut file(&folder, b"hello, world")).unwrap();
        assert_eq!(sums, dir.put(&mut file(&folder, b"hello, world")).unwrap());
        assert_eq!((sums.size, dir.url_of(&sums.sha256)), (12, format!("/blob/{}", sums.sha256)));
        let mut read = |span| {
            let mut blob = dir.get(&sums.sha256, span).unwrap();
            let mut text = String::new();
            blob.reader.read_to_string(&mut text).unwrap();
            assert_eq!(blob.size, 12);
            text
        };
        assert_eq!(read(None), "hello, world");
        assert_eq!(read(Some(Span { start: 7, len: 3 })), "wor");
        assert_eq!(read(Some(Span { start: 12, len: 0 })), "");
        let held = dir.list().unwrap();
        assert_eq!(held.iter().map(|held| (held.sha256, held.size)).collect::<Vec<_>>(), [(sums.sha256, 12)]);
        dir.remove(&sums.sha256).unwrap();
        dir.remove(&sums.sha256).unwrap();
        let error = dir.get(&sums.sha256, None).unwrap_err();
        assert!(matches!(error, Error::Missing { .. }), "{error}");
        assert!(dir.list().unwrap().is_empty() && dir.leftovers().unwrap().is_empty());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn damage_is_mended_and_leftovers_are_found() {
        let folder = scratch("mend");
        let mut dir = Dir::open(&folder).unwrap();
        let sums = dir.put(&mut file(&folder, b"content")).unwrap();
        std::fs::write(dir.path_of(&sums.sha256), b"damaged").unwrap();
        dir.put(&mut file(&folder, b"content")).unwrap();
        assert_eq!(std::fs::read(dir.path_of(&sums.sha256)).unwrap(), b"content");
        std::fs::write(folder.join("blobs/.put-1"), b"half").unwrap();
        let left = dir.leftovers().unwrap();
        assert_eq!(left, [Leftover { name: ".put-1".into(), size: 4 }]);
        dir.sweep(&left[0]).unwrap();
        assert!(dir.leftovers().unwrap().is_empty() && dir.lock(true).unwrap());
        std::fs::remove_dir_all(folder).unwrap();
    }
}

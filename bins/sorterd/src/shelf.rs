//! Pictures on disk: `<state-dir>/pictures/<arm>/<session>/<name>`, and `fetched_<name>` beside it for what another machine
//! was sent.
//!
//! Owns: that folder. Invariants: a picture is whole or not there, and outlives a power cut once [`Shelf::put`] returned;
//! how many bytes there are is known without looking. [`Shelf::tidy`] takes the sessions not touched for the longest away until
//! the rest is below a bound; what comes before it is done, and the session touched last, may be beyond it. Never: builds a
//! path of a name that [`message`](crate::message) did not check.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use edge::fs::{Error, context};

use crate::message::{ImageName, Session};

/// The panorama of the pictures as they were sorted by, and that of those taken afterwards.
pub const PANORAMAS: [&str; 2] = ["original_stitch.jpg", "after_stitch.jpg"];
const MODE: u32 = 0o640;
/// What the names of pictures begin with that came from the bucket.
const FETCHED: &str = "fetched_";

/// The folder. All copies are the same one.
#[derive(Debug, Clone)]
pub struct Shelf {
    root: PathBuf,
    count: Arc<Count>,
}

#[derive(Debug, Default)]
struct Count {
    /// Bytes there are.
    bytes: AtomicU64,
    /// Held for writing by who counts them and takes away, so that nothing is put meanwhile; for reading by who puts.
    quiet: RwLock<()>,
}

/// What a tidying came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tidied {
    /// Bytes there are.
    pub bytes: u64,
    /// Sessions that were taken away.
    pub gone: Vec<Session>,
}

impl Shelf {
    /// Below `state_dir`. [`Shelf::bytes`] is right from the first [`Shelf::tidy`] on.
    ///
    /// # Errors
    /// The folder can't be made.
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let root = state_dir.join("pictures");
        edge::fs::create_dir_durably(&root)?;
        Ok(Self { root, count: Arc::default() })
    }

    /// Bytes of pictures and panoramas there are.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.count.bytes.load(Ordering::Relaxed)
    }

    fn folder(&self, session: &Session) -> PathBuf {
        self.root.join(&session.arm).join(&session.session)
    }

    /// Keeps `bytes` durably; what was there under that name is replaced.
    ///
    /// # Errors
    /// The step that failed; what was there is there still.
    pub fn put(&self, session: &Session, name: &str, bytes: &[u8]) -> Result<(), Error> {
        // The lock guards no data that a panic could have left half done.
        let _putting = self.count.quiet.read().unwrap_or_else(PoisonError::into_inner);
        let folder = self.folder(session);
        edge::fs::create_dir_durably(&folder)?;
        let path = folder.join(name);
        let replaced = fs::symlink_metadata(&path).map_or(0, |meta| meta.len());
        edge::fs::write_durably(&path, bytes, MODE)?;
        let count = &self.count.bytes;
        count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        // Before the first count there may be less than what goes. The closure always has an answer, so this can't fail.
        let less = |all: u64| Some(all.saturating_sub(replaced));
        let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        Ok(())
    }

    /// The bytes kept under `name`.
    ///
    /// # Errors
    /// There are none, or they can't be read.
    pub fn get(&self, session: &Session, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.folder(session).join(name);
        fs::read(&path).map_err(context("read the picture", &path))
    }

    /// Keeps a picture that another machine was sent, beside what this one was.
    ///
    /// # Errors
    /// The step that failed.
    pub fn put_fetched(&self, session: &Session, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.put(session, &format!("{FETCHED}{name}"), bytes)
    }

    /// The bytes of a picture that another machine was sent.
    ///
    /// # Errors
    /// There are none, or they can't be read.
    pub fn get_fetched(&self, session: &Session, name: &str) -> Result<Vec<u8>, Error> {
        self.get(session, &format!("{FETCHED}{name}"))
    }

    /// The file under `name` and its size, or `None`; of a picture that came here both ways, the one that an arm sent.
    #[must_use]
    pub fn file(&self, session: &Session, name: &str) -> Option<(File, u64)> {
        let known = PANORAMAS.contains(&name) || name_of(name).is_some();
        let folder = known.then(|| self.folder(session))?;
        let file =
            File::open(folder.join(name)).or_else(|_| File::open(folder.join(format!("{FETCHED}{name}"))));
        let file = file.ok()?;
        let size = file.metadata().ok().filter(fs::Metadata::is_file)?.len();
        Some((file, size))
    }

    /// The pictures taken after the sorting, in the order of their pulse widths.
    #[must_use]
    pub fn after(&self, session: &Session) -> Vec<ImageName> {
        let Ok(entries) = fs::read_dir(self.folder(session)) else { return Vec::new() };
        let mut names: Vec<ImageName> = entries
            .filter_map(|entry| {
                let file = entry.ok()?.file_name();
                let file = file.to_str()?;
                name_of(file.strip_prefix(FETCHED).unwrap_or(file))
            })
            .filter_map(|(name, after)| after.then_some(name))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The panoramas there are.
    #[must_use]
    pub fn panoramas(&self, session: &Session) -> Vec<&'static str> {
        let folder = self.folder(session);
        PANORAMAS.into_iter().filter(|name| folder.join(name).is_file()).collect()
    }

    /// Takes away whole sessions until at most `bytes_max` are left, never the one touched last; and what a killed process
    /// left half written, when `starting`.
    ///
    /// # Errors
    /// A folder can't be read.
    pub fn tidy(&self, bytes_max: u64, starting: bool) -> Result<Tidied, Error> {
        let _alone = self.count.quiet.write().unwrap_or_else(PoisonError::into_inner);
        let mut sessions = Vec::new();
        for arm in names(&self.root)? {
            for session in names(&self.root.join(&arm))? {
                let Ok(session) = Session::new(&arm, &session) else { continue };
                let (bytes, touched) = self.measure(&session, starting)?;
                sessions.push((touched, bytes, session));
            }
        }
        sessions.sort();
        let mut tidied = Tidied { bytes: sessions.iter().map(|(_, bytes, _)| bytes).sum(), gone: Vec::new() };
        let spared = sessions.len().saturating_sub(1);
        for (_, bytes, session) in sessions.into_iter().take(spared) {
            if tidied.bytes <= bytes_max {
                break;
            }
            let folder = self.folder(&session);
            fs::remove_dir_all(&folder)
                .map_err(context("remove the pictures of an old session in", &folder))?;
            // An arm without sessions; not empty otherwise.
            let _ = fs::remove_dir(self.root.join(&session.arm));
            tidied.bytes -= bytes;
            tidied.gone.push(session);
        }
        self.count.bytes.store(tidied.bytes, Ordering::Relaxed);
        Ok(tidied)
    }

    /// Bytes of a session, and when it was touched last.
    fn measure(&self, session: &Session, starting: bool) -> Result<(u64, SystemTime), Error> {
        let folder = self.folder(session);
        let (mut bytes, mut touched) = (0, SystemTime::UNIX_EPOCH);
        for name in names(&folder)? {
            let path = folder.join(&name);
            if starting && name.starts_with('.') && name.contains(".tmp-") {
                let _ = fs::remove_file(&path);
                continue;
            }
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            bytes += meta.len();
            touched = touched.max(meta.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        }
        Ok((bytes, touched))
    }
}

/// The picture that a file's name means, and whether it was taken afterwards.
fn name_of(file: &str) -> Option<(ImageName, bool)> {
    let after = file.strip_prefix("after_");
    ImageName::parse(after.unwrap_or(file)).ok().map(|name| (name, after.is_some()))
}

fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(context("read the folder", folder)(error)),
    };
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("sorter-shelf-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    #[test]
    fn pictures_are_kept_replaced_and_listed() {
        let root = scratch("keep");
        let shelf = Shelf::open(&root).unwrap();
        let session = Session::new("arm", "s1").unwrap();
        assert!(shelf.after(&session).is_empty() && shelf.panoramas(&session).is_empty());
        for (name, bytes) in
            [("1500.jpg", "a"), ("after_1600.jpg", "bb"), ("after_900.jpg", "c"), (PANORAMAS[1], "d")]
        {
            shelf.put(&session, name, bytes.as_bytes()).unwrap();
        }
        assert_eq!(shelf.bytes(), 5);
        shelf.put(&session, "1500.jpg", b"again").unwrap();
        assert_eq!(shelf.bytes(), 9, "a picture that is replaced counts once");
        assert_eq!(shelf.get(&session, "1500.jpg").unwrap(), b"again");
        assert_eq!(shelf.after(&session), [ImageName(900), ImageName(1600)]);
        assert_eq!(shelf.panoramas(&session), [PANORAMAS[1]]);
        assert_eq!(shelf.file(&session, "after_1600.jpg").unwrap().1, 2);
        shelf.put_fetched(&session, "after_1600.jpg", b"eee").unwrap();
        shelf.put_fetched(&session, "after_1700.jpg", b"ffff").unwrap();
        assert_eq!(shelf.after(&session), [ImageName(900), ImageName(1600), ImageName(1700)]);
        let size = |name| shelf.file(&session, name).unwrap().1;
        assert_eq!(
            (size("after_1600.jpg"), size("after_1700.jpg")),
            (2, 4),
            "what was sent here goes before"
        );
        assert_eq!(shelf.get_fetched(&session, "after_1600.jpg").unwrap(), b"eee");
        assert_eq!(shelf.clone().bytes(), 16, "fetched ones and panoramas, too");
        assert_eq!(Shelf::open(&root).unwrap().tidy(100, true).unwrap().bytes, 16);
        for bad in
            ["fetched_after_1700.jpg", "2.jpg", "../s1/1500.jpg", "..", "", ".1500.jpg.tmp-1", "/etc/passwd"]
        {
            assert!(shelf.file(&session, bad).is_none(), "{bad}");
        }
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_oldest_sessions_go_and_half_written_files_at_the_start() {
        let root = scratch("tidy");
        let shelf = Shelf::open(&root).unwrap();
        let of = |n: u32| Session::new("arm", &format!("s{n}")).unwrap();
        for n in 1..=4 {
            shelf.put(&of(n), "1500.jpg", &[0; 1000]).unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(10 - n));
            File::options()
                .write(true)
                .open(root.join(format!("pictures/arm/s{n}/1500.jpg")))
                .unwrap()
                .set_modified(at)
                .unwrap();
        }
        let half = root.join("pictures/arm/s1/.1600.jpg.tmp-77");
        fs::write(&half, "x").unwrap();
        assert_eq!(shelf.bytes(), 4000);
        assert_eq!(shelf.tidy(4001, false).unwrap(), Tidied { bytes: 4001, gone: vec![] });
        assert_eq!(shelf.tidy(4000, true).unwrap(), Tidied { bytes: 4000, gone: vec![] });
        assert!(!half.exists());
        // s4 is the oldest.
        assert_eq!(shelf.tidy(2500, false).unwrap(), Tidied { bytes: 2000, gone: vec![of(4), of(3)] });
        assert_eq!(shelf.tidy(0, false).unwrap(), Tidied { bytes: 1000, gone: vec![of(2)] });
        assert!(shelf.get(&of(1), "1500.jpg").is_ok(), "the one touched last stays");
        assert_eq!(shelf.bytes(), 1000, "what went is not counted");
        let again = Shelf::open(&root).unwrap();
        assert_eq!(again.tidy(0, true).unwrap(), Tidied { bytes: 1000, gone: vec![] });
        assert_eq!(again.bytes(), 1000, "what was there before the start is");
        fs::remove_dir_all(root).unwrap();
    }
}

//! Tests of the making of files.

use std::cell::Cell;
use std::collections::HashMap;

use edge::release::Timestamp;

use super::*;
use crate::catalog::State;
use crate::store::{Blob, Error as StoreError, Held, Span};

#[derive(Default)]
struct Shelf(HashMap<Sha256, Vec<u8>>);

impl BlobStore for Shelf {
    fn get(&mut self, sha256: &Sha256, _: Option<Span>) -> Result<Blob, StoreError> {
        let missing = || StoreError::Missing { what: sha256.to_string(), at: "here".into() };
        let bytes = self.0.get(sha256).cloned().ok_or_else(missing)?;
        Ok(Blob { size: bytes.len() as u64, reader: Box::new(io::Cursor::new(bytes)), file: None })
    }
    fn put(&mut self, _: &mut File) -> Result<Sums, StoreError> {
        Err(StoreError::Torn)
    }
    fn list(&mut self) -> Result<Vec<Held>, StoreError> {
        Ok(Vec::new())
    }
    fn remove(&mut self, _: &Sha256) -> Result<(), StoreError> {
        Ok(())
    }
    fn url_of(&self, sha256: &Sha256) -> String {
        sha256.to_string()
    }
    fn name(&self) -> String {
        "shelf".into()
    }
    fn lock(&mut self, _: bool) -> Result<bool, StoreError> {
        Ok(false)
    }
}

fn add(shelf: &mut Shelf, app: &str, bytes: &[u8]) -> Arc<Release> {
    let mut digests = Digests::default();
    digests.update(bytes);
    let sums = digests.finish();
    shelf.0.insert(sums.sha256, bytes.to_vec());
    Arc::new(Release {
        app: app.into(),
        version: "1.0".into(),
        env: "prod".into(),
        epoch: 1,
        md5: Some(sums.md5),
        sums: Some(sums),
        url: String::new(),
        attrs: Vec::new(),
        rollout: 100,
        from_epoch: 0,
        floor: false,
        state: State::Live,
        statement: None,
        signature: None,
        published: Timestamp(0),
    })
}

/// And the level that it is worked at.
struct Folder(std::path::PathBuf, u32);

impl Folder {
    fn new(name: &str) -> Folder {
        let dir = std::env::temp_dir().join(format!("depotd-bundle-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir(&dir).unwrap();
        Folder(dir, 6)
    }
    fn names(&self) -> Vec<String> {
        let names = std::fs::read_dir(&self.0).unwrap();
        names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }
    fn make(
        &self,
        shelf: &mut Shelf,
        recipe: &Recipe,
        name: &str,
        free_min: u64,
    ) -> (Growing, Result<u64, Error>) {
        let (growing, wakes) = (Growing::new(None), Cell::new(0));
        let wake = || wakes.set(wakes.get() + 1);
        let bytes_max = recipe.bytes_max().unwrap();
        let mut kitchen =
            Kitchen { store: shelf, dir: &self.0, level: self.1, free_min, bytes_max, wake: &wake };
        let made = make(recipe, name, &growing, &mut kitchen);
        assert!(wakes.get() > 0 || made.is_err());
        (growing, made)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn noise(n: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(n as u64);
    (0..n).map(|_| rng.u8(..)).collect()
}

#[test]
fn equal_plans_are_equal_bytes_and_hold_what_they_should() {
    let (folder, mut shelf) = (Folder::new("same"), Shelf::default());
    let long = "x".repeat(64);
    let files = vec![
        add(&mut shelf, "a", b"hello"),
        add(&mut shelf, "b", &noise(1 << 20)),
        add(&mut shelf, "empty", b""),
        Arc::new(Release { version: "1".repeat(64), ..(*add(&mut shelf, &long, b"long")).clone() }),
    ];
    let recipe = Recipe::Bundle(Plan { files, details: b"{}".to_vec() });
    let (growing, made) = folder.make(&mut shelf, &recipe, "1", 0);
    let size = made.unwrap();
    assert_eq!((growing.written(), growing.end()), (size, Some(&Ok(size))));
    folder.make(&mut shelf, &recipe, "2", 0).1.unwrap();
    let (one, two) = (std::fs::read(folder.0.join("1")).unwrap(), std::fs::read(folder.0.join("2")).unwrap());
    assert!(one == two && one.len() as u64 == size && size <= recipe.bytes_max().unwrap());
    let mut names = Vec::new();
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(one.as_slice()));
    for entry in tar.entries().unwrap() {
        let entry = entry.unwrap();
        let header = entry.header();
        assert_eq!(
            (header.mode().unwrap(), header.uid().unwrap(), header.mtime().unwrap()),
            (0o644, 0, MTIME_S)
        );
        names.push(entry.path().unwrap().to_string_lossy().into_owned());
    }
    let last = format!("{long}_{}", "1".repeat(64));
    assert_eq!(names, ["a_1.0", "b_1.0", "empty_1.0", last.as_str(), "package_details.json"]);
}

#[test]
fn what_is_not_what_the_catalog_says_never_becomes_a_file() {
    let (folder, mut shelf) = (Folder::new("wrong"), Shelf::default());
    let good = noise(300_000);
    let release = add(&mut shelf, "a", &good);
    let sha256 = release.sums.unwrap().sha256;
    let bundle = Recipe::Bundle(Plan { files: vec![release], details: Vec::new() });
    let copy = Recipe::Content { sha256, size: good.len() as u64 };
    let mut flipped = good.clone();
    flipped[200_000] ^= 1;
    for wrong in [flipped, good[1..].to_vec(), [&good[..], b"x"].concat(), Vec::new()] {
        shelf.0.insert(sha256, wrong);
        for recipe in [&bundle, &copy] {
            let (growing, made) = folder.make(&mut shelf, recipe, "x", 0);
            assert_eq!(made.unwrap_err().to_failed(), Failed::Content);
            assert_eq!(growing.end(), Some(&Err(Failed::Content)));
            assert!(growing.written() < good.len() as u64, "nobody got all of it");
            assert!(folder.names().is_empty());
        }
    }
    shelf.0.remove(&sha256);
    assert_eq!(folder.make(&mut shelf, &copy, "x", 0).1.unwrap_err().to_failed(), Failed::Content);
    shelf.0.insert(sha256, good.clone());
    folder.make(&mut shelf, &copy, "x", 0).1.unwrap();
    assert_eq!(std::fs::read(folder.0.join("x")).unwrap(), good);
}

#[test]
fn space_is_looked_at_first() {
    let (folder, mut shelf) = (Folder::new("full"), Shelf::default());
    let release = add(&mut shelf, "a", b"x");
    let recipe = Recipe::Bundle(Plan { files: vec![release], details: Vec::new() });
    let error = folder.make(&mut shelf, &recipe, "x", 1 << 60).1.unwrap_err();
    assert_eq!(error.to_failed(), Failed::Full);
    assert!(error.to_string().contains("bundle.free-min") && folder.names().is_empty());
}

/// What can't be compressed grows, at some levels by an eighth; its bundle must fit into the room set aside for it.
#[test]
fn noise_fits_at_every_level() {
    let (mut folder, mut shelf) = (Folder::new("levels"), Shelf::default());
    for size in [0, 1, 511, 100_000, 3 << 20] {
        let recipe =
            Recipe::Bundle(Plan { files: vec![add(&mut shelf, "a", &noise(size))], details: Vec::new() });
        for level in 0..=9 {
            folder.1 = level;
            let (_, made) = folder.make(&mut shelf, &recipe, "x", 0);
            let (made, max) = (made.unwrap(), recipe.bytes_max().unwrap());
            assert!(made <= max, "{size} bytes at level {level}: {made}, more than {max}");
        }
    }
}

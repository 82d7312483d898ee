//! The engine over a real folder.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use edge::release::{Digests, Sums};

use super::*;

/// A folder of its own, removed when the test is over.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        // In memory where that is possible: each test has dozens of fsyncs.
        let memory = Path::new("/dev/shm").is_dir().then(|| PathBuf::from("/dev/shm"));
        let path =
            memory.unwrap_or_else(std::env::temp_dir).join(format!("otad-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn limits() -> Limits {
    Limits { free_bytes_min: 0, ..Limits::default() }
}

pub fn open(dir: &Path) -> Store {
    Store::open(dir, limits()).unwrap().0
}

/// A folder, and a new store in it.
pub fn fresh(name: &str) -> (Scratch, PathBuf, Store) {
    let scratch = Scratch::new(name);
    let dir = scratch.0.join("store");
    let store = open(&dir);
    (scratch, dir, store)
}

fn sums(bytes: &[u8]) -> Sums {
    let mut digests = Digests::default();
    digests.update(bytes);
    digests.finish()
}

pub fn item(app: &str, kind: Kind, epoch: u64, content: &[u8]) -> Item {
    let Sums { sha256, md5, size } = sums(content);
    let (version, env) = (format!("{epoch}.0"), "prod".to_owned());
    Item { app: app.into(), kind, version, env, epoch, min_epoch: 0, md5, sha256, size, statement: None }
}

pub fn fetch(store: &mut Store, content: &[u8]) -> Blob {
    let sums = sums(content);
    let mut partial = store.partial(&sums.sha256, sums.size).unwrap();
    let have = partial.have() as usize;
    content[have..].chunks(1000).for_each(|piece| partial.write(piece).unwrap());
    partial.finish().unwrap()
}

pub fn archive(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(1_600_000_000);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub const FILE: Kind = Kind::File { mode: 0o755 };

/// Two apps, both of this epoch.
fn both(store: &mut Store, epoch: u64) -> Manifest {
    let tool = format!("tool {epoch}").into_bytes();
    let files = format!("files {epoch}");
    let tree = gzip(&archive(&[("bin/run", 0o755, files.as_bytes()), ("same", 0o644, b"same")]));
    let items = vec![item("tree", Kind::Tar, epoch, &tree), item("Tool", FILE, epoch, &tool)];
    fetch(store, &tool);
    fetch(store, &tree);
    Manifest::new(items).unwrap()
}

pub fn install(store: &mut Store, manifest: &Manifest) -> GenId {
    let id = store.build(manifest).unwrap();
    store.begin_trial(&id).unwrap();
    store.switch(Timestamp(1)).unwrap();
    store.commit(Timestamp(2)).unwrap();
    id
}

#[test]
fn an_update_and_the_way_back() {
    let (_scratch, dir, mut store) = fresh("update");
    assert!(store.current().is_none() && store.previous().is_none());
    let first = both(&mut store, 1);
    let one = install(&mut store, &first);
    assert_eq!(fs::read(dir.join("current/Tool/Tool")).unwrap(), b"tool 1");
    assert_eq!(fs::metadata(dir.join("current/Tool/Tool")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::read(dir.join("current/tree/bin/run")).unwrap(), b"files 1");
    assert_eq!(store.high_water("TOOL", "prod").epoch, 1);
    let second = both(&mut store, 2);
    let two = install(&mut store, &second);
    assert_eq!(fs::read(dir.join("current/tree/bin/run")).unwrap(), b"files 2");
    assert_eq!((store.current().unwrap().0, store.previous().unwrap().0), (&two, &one));
    assert_eq!(store.verify(&two).unwrap(), []);
    assert_eq!(store.verify(&one).unwrap(), []);

    store.roll_back("the operator wants it", true, Timestamp(3)).unwrap();
    assert_eq!(fs::read(dir.join("current/Tool/Tool")).unwrap(), b"tool 1");
    assert_eq!(store.current().unwrap().0, &one);
    assert_eq!(store.high_water("tool", "prod").epoch, 2, "marks do not fall");
    assert!(store.build(&second).unwrap_err().to_string().contains("quarantined"));
    drop(store);
    let (store, recovery) = Store::open(&dir, limits()).unwrap();
    assert_eq!(recovery, Recovery::default());
    assert_eq!(store.state(), &State::Settled { current: Some(one) });
    assert!(store.is_quarantined(&second.hash()));
    let endings: Vec<Ending> = store.history().iter().map(|outcome| outcome.ending).collect();
    assert_eq!(endings, [Ending::Committed, Ending::Committed, Ending::RolledBack]);
    assert!(!dir.join(format!("gens/{two}")).exists());
}

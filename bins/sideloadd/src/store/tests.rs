//! The store over a real folder.

mod faults;
mod histories;
pub mod plug;
mod python;
mod trusted;

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use edge::sync::chunk;
use edge::sync::wire::PIECE_MAX;

use super::*;
use plug::Fault;

/// Path to content and mode.
type Tree = BTreeMap<String, (Vec<u8>, u32)>;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        // In memory where that is possible: thousands of runs with an fsync each take long on a disk.
        let memory = Path::new("/dev/shm").is_dir().then(|| PathBuf::from("/dev/shm"));
        let top = memory.unwrap_or_else(std::env::temp_dir);
        let path = top.join(format!("sideloadd-store-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config(root: &Path) -> StoreConfig {
    StoreConfig {
        root: root.to_owned(),
        keep_commits: 3,
        history_bytes_max: 1 << 30,
        free_bytes_min: 1 << 20,
        files_max: 1000,
        file_bytes_max: 1 << 30,
    }
}

fn now() -> Now {
    Now { unix_ns: edge::clock::unix_ns() }
}

fn open(root: &Path) -> Result<Store, Error> {
    Store::open(config(root), now()).map(|(store, _)| store)
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..len).map(|_| rng.u8(..)).collect()
}

fn manifest(tree: &Tree) -> Manifest {
    let entry = |(path, (content, mode)): (&String, &(Vec<u8>, u32))| Entry {
        path: RelPath::new(path).unwrap(),
        size: content.len() as u64,
        mode: *mode,
        mtime_ns: 1_600_000_000_123_456_789,
        id: content::of_bytes(content),
    };
    Manifest::new(tree.iter().map(entry).collect()).unwrap()
}

fn chunks_of(mut bytes: &[u8]) -> Vec<chunk::Chunk> {
    let mut chunks = Vec::new();
    while !bytes.is_empty() {
        let (first, rest) = bytes.split_at(chunk::cut(bytes));
        chunks.push(chunk::Chunk::of(first));
        bytes = rest;
    }
    chunks
}

/// What a client does; the payload bytes that it sent, `None` when nothing had changed.
fn sync(store: &mut Store, tree: &Tree, force: bool) -> Result<Option<u64>, Error> {
    let manifest = manifest(tree);
    let contents: Vec<&Vec<u8>> = tree.values().map(|(content, _)| content).collect();
    let begun = store.begin(manifest, force, now())?;
    if begun.unchanged {
        return Ok(None);
    }
    let mut sent = 0;
    let lists = begun.chunked.iter().map(|at| (*at, chunks_of(contents[*at as usize]))).collect::<Vec<_>>();
    for (entry, ranges) in store.chunks(ChunkListsOf(&lists).into(), now())? {
        let chunks = &lists.iter().find(|(at, _)| *at == entry).unwrap().1;
        let offset = |n: u32| chunks[..n as usize].iter().map(|c| u64::from(c.len)).sum::<u64>();
        for (first, count) in ranges {
            for n in first..first + count {
                let (from, len) = (offset(n) as usize, chunks[n as usize].len as usize);
                let data = contents[entry as usize][from..from + len].to_vec();
                sent += len as u64;
                store.data(&edge::sync::wire::Record { entry, offset: from as u64, data }, now())?;
            }
        }
    }
    for entry in begun.lacks.iter().copied().filter(|at| !begun.chunked.contains(at)) {
        let content = contents[entry as usize];
        let mut offset = 0;
        loop {
            let end = content.len().min(offset + PIECE_MAX / 2);
            let data = content[offset..end].to_vec();
            sent += data.len() as u64;
            store.data(&edge::sync::wire::Record { entry, offset: offset as u64, data }, now())?;
            offset = end;
            if offset == content.len() {
                break;
            }
        }
    }
    store.commit(now())?;
    Ok(Some(sent))
}

struct ChunkListsOf<'a>(&'a [(u32, Vec<chunk::Chunk>)]);

impl From<ChunkListsOf<'_>> for edge::sync::wire::ChunkLists {
    fn from(lists: ChunkListsOf<'_>) -> Self {
        edge::sync::wire::ChunkLists(lists.0.to_vec())
    }
}

/// What lies there, without our folder.
fn on_disk(root: &Path) -> Tree {
    fn walk(top: &Path, folder: &Path, tree: &mut Tree) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let rel = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
            if rel == OURS {
                continue;
            }
            if path.is_dir() {
                walk(top, &path, tree);
            } else {
                let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                tree.insert(rel, (std::fs::read(&path).unwrap(), mode));
            }
        }
    }
    let mut tree = Tree::new();
    walk(root, root, &mut tree);
    tree
}

/// No two live paths are one file, and what history needs is whole.
fn check_sound(root: &Path, store: &mut Store) {
    let mut inodes = HashSet::new();
    for path in on_disk(root).keys() {
        let meta = std::fs::metadata(root.join(path)).unwrap();
        assert!(inodes.insert(meta.ino()), "{path} shares its inode with another live path");
    }
    let stage: Vec<_> = std::fs::read_dir(root.join(ours("stage"))).unwrap().flatten().collect();
    assert!(stage.iter().all(|e| e.file_name().to_str().unwrap().ends_with(".part")), "{stage:?}");
    assert!(!root.join(ours("journal")).exists());
    for info in store.history().to_vec() {
        assert!(store.read_commit(info.commit).is_ok());
    }
}

fn file(text: &str, mode: u32) -> (Vec<u8>, u32) {
    (text.as_bytes().to_vec(), mode)
}

fn old_tree() -> Tree {
    let mut tree = Tree::from([
        ("main.sh".into(), file("#!/bin/sh\necho old\n", 0o755)),
        ("lib/a.py".into(), file("a = 1\n", 0o644)),
        ("lib/deep/b.py".into(), file("b = 1\n", 0o644)),
        ("gone/only.txt".into(), file("to be deleted", 0o644)),
        ("moved.bin".into(), (noise(1, 40_000), 0o644)),
        ("was-a-file".into(), file("file", 0o644)),
        ("folder/x".into(), file("was in a folder", 0o644)),
        ("empty".into(), file("", 0o600)),
    ]);
    tree.insert("model.onnx".into(), (noise(2, 1_100_000), 0o644));
    tree
}

fn new_tree() -> Tree {
    let mut tree = old_tree();
    tree.insert("main.sh".into(), file("#!/bin/sh\necho new\n", 0o700));
    tree.get_mut("lib/a.py").unwrap().1 = 0o755;
    tree.remove("gone/only.txt");
    let moved = tree.remove("moved.bin").unwrap();
    tree.insert("else/where.bin".into(), moved.clone());
    tree.insert("else/copy.bin".into(), moved);
    tree.remove("was-a-file");
    tree.insert("was-a-file/now/a-folder".into(), file("deep", 0o644));
    tree.remove("folder/x");
    tree.insert("folder".into(), file("was a folder", 0o644));
    tree.get_mut("model.onnx").unwrap().0.insert(700_000, 9);
    tree.insert("empty2".into(), file("", 0o644));
    tree
}

fn app_files(root: &Path) {
    std::fs::create_dir_all(root.join("gone")).unwrap();
    std::fs::write(root.join("gone/by-the-app.log"), "the application's").unwrap();
    std::fs::write(root.join("state.db"), "the application's").unwrap();
}

fn with_app_files(mut tree: Tree) -> Tree {
    for path in ["gone/by-the-app.log", "state.db"] {
        tree.insert(path.into(), file("the application's", 0o644));
    }
    tree
}

/// A store with the old tree and the application's files.
fn scene(root: &Path) -> Store {
    let mut store = open(root).unwrap();
    sync(&mut store, &old_tree(), false).unwrap();
    app_files(root);
    store
}

#[test]
fn what_is_there_costs_nothing_and_only_what_was_synced_is_deleted() {
    let scratch = Scratch::new("costs");
    let root = &scratch.0;
    let mut store = open(root).unwrap();
    let old = old_tree();
    let all: u64 = old.values().map(|(c, _)| c.len() as u64).sum();
    assert_eq!(sync(&mut store, &old, false).unwrap(), Some(all));
    assert_eq!(sync(&mut store, &old, false).unwrap(), None);
    app_files(root);
    let inode = |path: &str| std::fs::metadata(root.join(path)).unwrap().ino();
    let moved = inode("moved.bin");
    let sent = sync(&mut store, &new_tree(), false).unwrap().unwrap();
    // Some small files, and the chunks around the inserted byte.
    assert!(sent < 2 * chunk::MAX as u64 + 200, "{sent} bytes were sent");
    assert_eq!(on_disk(root), with_app_files(new_tree()));
    assert!([inode("else/where.bin"), inode("else/copy.bin")].contains(&moved), "a renamed file is linked");
    assert_eq!(sync(&mut store, &new_tree(), false).unwrap(), None);
    check_sound(root, &mut store);
    // Back and forth again: history has it all.
    assert_eq!(sync(&mut store, &old, false).unwrap(), Some(0));
    assert_eq!(on_disk(root), with_app_files(old.clone()));
    drop(store);
    let mut store = open(root).unwrap();
    assert_eq!(sync(&mut store, &old, false).unwrap(), None);
    assert!(store.housekeeping(Now { unix_ns: now().unix_ns + 10_000_000_000 }));
}

#[test]
fn many_deletions_need_force_and_a_rename_is_none() {
    let scratch = Scratch::new("force");
    let mut store = open(&scratch.0).unwrap();
    let tree: Tree = (0..10).map(|n| (format!("f{n}"), file(&format!("{n}"), 0o644))).collect();
    sync(&mut store, &tree, false).unwrap();
    let renamed: Tree = tree.iter().map(|(p, f)| (format!("new/{p}"), f.clone())).collect();
    assert_eq!(sync(&mut store, &renamed, false).unwrap(), Some(0));
    let four: Tree = renamed.clone().into_iter().take(4).collect();
    let refused = sync(&mut store, &four, false).unwrap_err();
    assert!(matches!(refused, Error::ManyDeletes { deletes: 6, of: 10 }), "{refused}");
    assert_eq!(on_disk(&scratch.0), renamed);
    sync(&mut store, &four, true).unwrap();
    assert_eq!(on_disk(&scratch.0), four);
}

#[test]
fn an_interrupted_sync_goes_on_where_it_was() {
    let scratch = Scratch::new("resume");
    let mut store = open(&scratch.0).unwrap();
    let tree = Tree::from([
        ("big".into(), (noise(5, 3_000_000), 0o644)),
        ("small".into(), (noise(6, 200_000), 0o644)),
        ("tiny".into(), file("t", 0o644)),
    ]);
    let all: u64 = tree.values().map(|(c, _)| c.len() as u64).sum();
    plug::set(Some((25, Fault::Stop)));
    assert!(sync(&mut store, &tree, false).is_err());
    plug::set(None);
    drop(store);
    let mut store = open(&scratch.0).unwrap();
    let sent = sync(&mut store, &tree, false).unwrap().unwrap();
    assert!(sent < all * 2 / 3, "{sent} of {all} bytes were sent again");
    assert_eq!(on_disk(&scratch.0), tree);
}

#[test]
fn damage_and_lies_are_found() {
    let scratch = Scratch::new("damage");
    let root = &scratch.0;
    let mut store = open(root).unwrap();
    let tree = old_tree();
    sync(&mut store, &tree, false).unwrap();
    // The application writes into a file in place: history holds the same inode.
    std::fs::write(root.join("lib/a.py"), "a = 666\n").unwrap();
    let mut other = tree.clone();
    other.insert("lib/a.py".into(), file("a = 2\n", 0o644));
    sync(&mut store, &other, false).unwrap();
    let refused = store.rollback(None, now()).unwrap_err().to_string();
    assert!(refused.contains("lib/a.py"), "{refused}");
    assert_eq!(on_disk(root), other);
    // A client that sends something else than its manifest says.
    let mut lie = other.clone();
    lie.insert("new".into(), file("truth", 0o644));
    let begun = store.begin(manifest(&lie), false, now()).unwrap();
    let data = b"lies!".to_vec();
    let record = edge::sync::wire::Record { entry: begun.lacks[0], offset: 0, data };
    assert_eq!(store.data(&record, now()).unwrap_err().status(), 422);
    assert_eq!(store.commit(now()).unwrap_err().status(), 409);
    assert_eq!(on_disk(root), other);
    // Nothing may be in the way, and what is lies where it was.
    std::fs::create_dir_all(root.join("data")).unwrap();
    std::fs::write(root.join("data/keep"), "keep").unwrap();
    lie.insert("data".into(), file("x", 0o644));
    assert_eq!(store.begin(manifest(&lie), false, now()).unwrap_err().status(), 409);
    assert!(root.join("data/keep").exists());
}

#[test]
fn a_full_disk_is_refused_before_and_history_goes_first() {
    let scratch = Scratch::new("full");
    let mut cfg = config(&scratch.0);
    let (mut store, _) = Store::open(cfg.clone(), now()).unwrap();
    sync(&mut store, &old_tree(), false).unwrap();
    sync(&mut store, &new_tree(), false).unwrap();
    assert_eq!(store.history().len(), 2);
    cfg.free_bytes_min = u64::MAX / 2;
    store.cfg = cfg;
    let mut tree = new_tree();
    tree.insert("more".into(), file("more", 0o644));
    let error = store.begin(manifest(&tree), false, now()).unwrap_err();
    assert_eq!(error.status(), 507, "{error}");
    assert_eq!(store.history().len(), 1, "history is given up for it");
    assert_eq!(on_disk(&scratch.0), new_tree());
    let put = store.put(RelPath::new("p").unwrap(), 10, None, None);
    assert_eq!(put.unwrap_err().status(), 507);
}

#[test]
fn old_clients_and_links() {
    let scratch = Scratch::new("old");
    let root = &scratch.0;
    let mut store = open(root).unwrap();
    let path = |p: &str| RelPath::new(p).unwrap();
    let mut put = store.put(path("a/b/main.sh"), 20, Some(1_000_000_000_123_456_000), None).unwrap();
    store.write(&mut put, b"#!/bin/sh\n").unwrap();
    store.write(&mut put, b"exit 0 # x").unwrap();
    assert_eq!(store.write(&mut put, b"!").unwrap_err().status(), 400);
    store.finish_put(put).unwrap();
    let listed = store.list().unwrap();
    assert_eq!((listed[0].path.as_str(), listed[0].size), ("a/b/main.sh", 20));
    assert_eq!(listed[0].mtime_ns, 1_000_000_000_123_456_000);
    assert_eq!(on_disk(root)["a/b/main.sh"].1, 0o755);
    // The mode survives another put; a short one changes nothing.
    let mut put = store.put(path("a/b/main.sh"), 4, None, None).unwrap();
    store.write(&mut put, b"echo").unwrap();
    store.finish_put(put).unwrap();
    assert_eq!(on_disk(root)["a/b/main.sh"], file("echo", 0o755));
    let mut put = store.put(path("a/b/main.sh"), 400, None, None).unwrap();
    store.write(&mut put, b"short").unwrap();
    assert_eq!(store.finish_put(put).unwrap_err().status(), 400);
    assert_eq!(on_disk(root)["a/b/main.sh"], file("echo", 0o755));
    // A sync adopts what lies there, and then deletes it when it goes.
    let tree = Tree::from([("a/b/main.sh".to_owned(), file("echo", 0o755))]);
    assert_eq!(sync(&mut store, &tree, false).unwrap(), Some(0));
    sync(&mut store, &Tree::from([("x".to_owned(), file("x", 0o644))]), true).unwrap();
    assert_eq!(on_disk(root).keys().collect::<Vec<_>>(), ["x"]);
    store.rollback(None, now()).unwrap();
    assert_eq!(on_disk(root), tree);
    store.delete_file(&path("a/b/main.sh")).unwrap();
    assert_eq!(store.delete_file(&path("a/b/main.sh")).unwrap_err().status(), 404);
    assert_eq!(store.read(&path("a/b/main.sh")).unwrap_err().status(), 404);
    // Links that leave.
    std::os::unix::fs::symlink("/tmp", root.join("out")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", root.join("passwd")).unwrap();
    for p in ["out/x", "passwd"] {
        assert_eq!(store.put(path(p), 1, None, None).unwrap_err().status(), 400, "{p}");
        assert_eq!(store.read(&path(p)).unwrap_err().status(), 400, "{p}");
    }
    assert_eq!(store.delete_file(&path("out/x")).unwrap_err().status(), 400);
    assert!(Store::open(config(root), now()).unwrap_err().to_string().contains("twice"));
}

#[test]
fn stored_content_that_was_damaged_is_fetched_anew() {
    let scratch = Scratch::new("refetch");
    let root = &scratch.0;
    let mut store = open(root).unwrap();
    let mut with = old_tree();
    let (small, big) = (noise(8, 5000), noise(9, 1_200_000));
    with.insert("s".into(), (small.clone(), 0o644));
    with.insert("b".into(), (big.clone(), 0o644));
    sync(&mut store, &with, false).unwrap();
    sync(&mut store, &old_tree(), true).unwrap();
    // A flipped bit in one, the end lost of the other: both are only in history now.
    let at = |content: &[u8]| root.join(object(content::of_bytes(content)));
    let mut flipped = small.clone();
    flipped[77] ^= 1;
    std::fs::write(at(&small), flipped).unwrap();
    std::fs::write(at(&big), &big[..900_000]).unwrap();
    assert_eq!(store.rollback(None, now()).unwrap_err().status(), 409);
    assert_eq!(on_disk(root), old_tree());
    let sent = sync(&mut store, &with, false).unwrap();
    assert_eq!(sent, Some((small.len() + big.len()) as u64));
    assert_eq!(on_disk(root), with);
}

#[test]
fn what_changed_since_the_sync_began_is_noticed() {
    let scratch = Scratch::new("meanwhile");
    let root = &scratch.0;
    let mut store = open(root).unwrap();
    let mut tree = old_tree();
    sync(&mut store, &tree, false).unwrap();
    tree.insert("second.bin".into(), tree["moved.bin"].clone());
    let begun = store.begin(manifest(&tree), false, now()).unwrap();
    assert!(begun.lacks.is_empty());
    // An old client puts one file, the application writes into the other, whose content is to be copied.
    let mut put = store.put(RelPath::new("lib/a.py").unwrap(), 3, None, None).unwrap();
    store.write(&mut put, b"put").unwrap();
    store.finish_put(put).unwrap();
    std::fs::write(root.join("moved.bin"), "by the application").unwrap();
    assert_eq!(store.commit(now()).unwrap_err().status(), 409);
    assert_eq!(on_disk(root)["lib/a.py"].0, b"put");
    // Another attempt fetches what is gone, and finds the other in history.
    assert_eq!(sync(&mut store, &tree, false).unwrap(), Some(40_000));
    assert_eq!(on_disk(root), tree);
    check_sound(root, &mut store);
}

#[test]
fn room_is_not_made_of_what_the_sync_needs() {
    let scratch = Scratch::new("room");
    let root = &scratch.0;
    let mut store = open(root).unwrap();
    sync(&mut store, &old_tree(), false).unwrap();
    sync(&mut store, &new_tree(), false).unwrap();
    // Content of a sync that was interrupted, and content that only history has.
    let mut tree = old_tree();
    tree.insert("late".into(), (noise(31, 3000), 0o644));
    tree.insert("later".into(), (noise(32, 300), 0o644));
    plug::set(None);
    let begun = store.begin(manifest(&tree), true, now()).unwrap();
    let first = begun.lacks[0];
    let data = noise(31, 3000);
    store.data(&edge::sync::wire::Record { entry: first, offset: 0, data }, now()).unwrap();
    store.abandon();
    // The disk has exactly what is there, so that history and leftovers go, but for what is wanted.
    let keep = store
        .session
        .as_ref()
        .map(Session::ids)
        .unwrap_or_else(|| manifest(&tree).entries().iter().map(|entry| entry.id).collect());
    assert_eq!(store.make_room(u64::MAX / 2, &keep).unwrap_err().status(), 507);
    assert_eq!(store.history().len(), 1);
    assert_eq!(sync(&mut store, &tree, true).unwrap(), Some(300));
    assert_eq!(on_disk(root), tree);
    check_sound(root, &mut store);
}

#[test]
fn pieces_of_many_files_need_one_descriptor() {
    let scratch = Scratch::new("mixed");
    let mut store = open(&scratch.0).unwrap();
    let tree: Tree = (0..300).map(|n| (format!("f{n:03}"), (noise(n, 2000), 0o644))).collect();
    let begun = store.begin(manifest(&tree), false, now()).unwrap();
    let open_files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open_files();
    for offset in [0, 1000] {
        for (entry, (content, _)) in tree.values().enumerate() {
            let data = content[offset..offset + 1000].to_vec();
            let record = edge::sync::wire::Record { entry: entry as u32, offset: offset as u64, data };
            store.data(&record, now()).unwrap();
        }
    }
    assert!(open_files() < before + 100, "tests beside this one open some");
    assert_eq!((begun.lacks.len(), store.commit(now()).unwrap().changed), (300, 300));
    assert_eq!(on_disk(&scratch.0), tree);
}

#[test]
fn content_that_an_old_client_put_costs_nothing_for_other_paths() {
    let scratch = Scratch::new("put-twice");
    let mut store = open(&scratch.0).unwrap();
    let mut put = store.put(RelPath::new("z").unwrap(), 5, None, None).unwrap();
    store.write(&mut put, b"hello").unwrap();
    store.finish_put(put).unwrap();
    let tree: Tree = ["a", "z"].map(|path| (path.to_owned(), file("hello", 0o644))).into();
    assert_eq!(sync(&mut store, &tree, false).unwrap(), Some(0));
    assert_eq!(on_disk(&scratch.0), tree);
    check_sound(&scratch.0, &mut store);
}

//! What a generation takes over of another one is whole, or it is fetched again.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::sync::atomic::AtomicBool;

use super::tests::*;
use super::*;

const TREE: &str = "tree/bin/run";
const TOOL: &str = "tool/tool";
const IMAGE: &str = "image/image";

/// One of each kind that stays the same, and an app that does not.
fn manifest(store: &mut Store, epoch: u64) -> Manifest {
    let app = format!("app {epoch}").into_bytes();
    fetch(store, &app);
    let mut items = vec![item("app", FILE, epoch, &app)];
    items.extend(["tree", "tool", "image"].map(|app| {
        let kind = match app {
            "tree" => Kind::Tar,
            "tool" => FILE,
            _ => Kind::Handler,
        };
        item(app, kind, 1, &content(app))
    }));
    Manifest::new(items).unwrap()
}

fn content(app: &str) -> Vec<u8> {
    match app {
        "tree" => gzip(&archive(&[("bin/run", 0o755, &b"run"[..]), ("data", 0o644, &[7; 300])])),
        app => format!("the {app}").into_bytes(),
    }
}

/// The first generation, with no archive left in `blobs`.
fn first(store: &mut Store) -> GenId {
    ["tree", "tool", "image"].iter().for_each(|app| drop(fetch(store, &content(app))));
    let manifest = manifest(store, 1);
    let id = install(store, &manifest);
    store.gc(&[]).unwrap();
    id
}

fn inspect(store: &mut Store, manifest: &Manifest) -> Vec<String> {
    let damage = store.inspect(manifest, &AtomicBool::new(false)).unwrap();
    damage.into_iter().map(|damage| damage.app).collect()
}

fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

type Harm = fn(&Path);

const HARMS: [(&str, Harm); 7] = [
    ("content", |path| rewrite(path, |bytes| bytes[0] ^= 1)),
    ("longer", |path| rewrite(path, |bytes| bytes.push(0))),
    ("shorter", |path| rewrite(path, Vec::clear)),
    ("mode", |path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap()),
    ("type", |path| {
        let other = path.with_extension("other");
        fs::rename(path, &other).unwrap();
        symlink(other.file_name().unwrap(), path).unwrap();
    }),
    ("gone", |path| fs::remove_file(path).unwrap()),
    ("added", |path| fs::write(path.with_extension("added"), "more").unwrap()),
];

#[test]
fn what_is_damaged_is_fetched_again_and_never_linked() {
    for (name, harm) in HARMS {
        for (app, path) in [("tree", TREE), ("tool", TOOL), ("image", IMAGE)] {
            let case = format!("{name} of {app}");
            let (_scratch, dir, mut store) = fresh(&format!("takeover-{name}-{app}"));
            let one = first(&mut store);
            harm(&dir.join(format!("gens/{one}/{path}")));
            let second = manifest(&mut store, 2);
            let damaged = second.get(app).unwrap().clone();
            assert!(store.has(&damaged), "{case}: it is not known yet");
            let here = dir.join(format!("blobs/{}", damaged.sha256));
            let whole = fs::read(&here).is_ok_and(|bytes| bytes == content(app));
            if whole {
                // The folder alone is damaged: its content is here under its other name.
                assert_eq!(inspect(&mut store, &second), Vec::<String>::new(), "{case}");
            } else {
                // Also where nobody has asked before.
                assert!(matches!(store.build(&second), Err(Error::Lacking { .. })), "{case}");
                assert_eq!(inspect(&mut store, &second), [app], "{case}");
                assert!(!store.has(&damaged) && !here.exists(), "{case}");
                fetch(&mut store, &content(app));
            }
            assert!(store.has(&damaged), "{case}");
            let two = install(&mut store, &second);
            assert_eq!(store.verify(&two).unwrap(), [], "{case}");
            assert_eq!(store.verify(&one).unwrap().len(), 1, "{case}: what was built is never changed");
            let untouched = ["tree", "tool", "image"].into_iter().zip([TREE, TOOL, IMAGE]);
            for (_, path) in untouched.filter(|(other, _)| *other != app) {
                let inode = |id: &GenId| fs::metadata(dir.join(format!("gens/{id}/{path}"))).unwrap().ino();
                assert_eq!(inode(&one), inode(&two), "{case}: {path}");
            }
        }
    }
}

#[test]
fn an_older_generation_that_is_whole_is_as_good() {
    let (_scratch, dir, mut store) = fresh("takeover-older");
    let one = first(&mut store);
    let second = manifest(&mut store, 2);
    let two = install(&mut store, &second);
    store.gc(&[]).unwrap();
    // Another file in its place, so that the older generation's is what it was.
    let path = dir.join(format!("gens/{two}/{TREE}"));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "nur").unwrap();
    let inode = |id: &GenId| fs::metadata(dir.join(format!("gens/{id}/{TREE}"))).unwrap().ino();
    let whole = inode(&one);
    let third = manifest(&mut store, 3);
    assert_eq!(inspect(&mut store, &third), Vec::<String>::new());
    let three = install(&mut store, &third);
    assert_eq!((store.verify(&three).unwrap(), inode(&three)), (vec![], whole));
}

#[test]
fn what_is_not_to_be_had_any_more_is_taken_over_where_that_is_said() {
    let (_scratch, dir, mut store) = fresh("takeover-accept");
    let one = first(&mut store);
    rewrite(&dir.join(format!("gens/{one}/{TREE}")), |bytes| bytes[0] ^= 1);
    let second = manifest(&mut store, 2);
    assert_eq!(inspect(&mut store, &second), ["tree"]);
    store.accept("tree");
    let two = install(&mut store, &second);
    let damage: Vec<String> = store.verify(&two).unwrap().into_iter().map(|damage| damage.app).collect();
    assert_eq!(damage, ["tree"]);
    // It was said for that build only.
    let third = manifest(&mut store, 3);
    assert!(matches!(store.build(&third), Err(Error::Lacking { .. })));
}

#[test]
fn a_stop_is_no_damage() {
    let (_scratch, dir, mut store) = fresh("takeover-stop");
    first(&mut store);
    let second = manifest(&mut store, 2);
    let before = store.disk.names("blobs").unwrap();
    assert!(matches!(store.inspect(&second, &AtomicBool::new(true)), Err(Error::Stopped)));
    assert_eq!(store.disk.names("blobs").unwrap(), before);
    assert_eq!(inspect(&mut store, &second), Vec::<String>::new());
    install(&mut store, &second);
    assert_eq!(fs::read(dir.join("current/app/app")).unwrap(), b"app 2");
}

#[test]
fn content_that_was_left_from_an_earlier_start_is_looked_at() {
    let (_scratch, dir, mut store) = fresh("takeover-left");
    let one = first(&mut store);
    let second = manifest(&mut store, 2);
    let app = second.get("app").unwrap().clone();
    drop(store);
    let blob = dir.join(format!("blobs/{}", app.sha256));
    rewrite(&blob, |bytes| bytes[0] ^= 1);
    let mut store = open(&dir);
    assert_eq!(inspect(&mut store, &second), ["app"]);
    assert!(!blob.exists() && !store.has(&app));
    assert_eq!(store.state(), &State::Settled { current: Some(one) });
    fetch(&mut store, b"app 2");
    let two = install(&mut store, &second);
    assert_eq!(store.verify(&two).unwrap(), []);
}

#[test]
fn what_python_compiled_is_no_damage() {
    let (_scratch, dir, mut store) = fresh("takeover-python");
    let one = first(&mut store);
    for folder in ["tree/bin/__pycache__", "tool/__pycache__"] {
        let folder = dir.join(format!("gens/{one}/{folder}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("run.cpython-311.pyc"), "compiled").unwrap();
    }
    let second = manifest(&mut store, 2);
    assert_eq!(inspect(&mut store, &second), Vec::<String>::new());
    let two = install(&mut store, &second);
    assert_eq!((store.verify(&one).unwrap(), store.verify(&two).unwrap()), (vec![], vec![]));
    assert!(dir.join(format!("gens/{two}/{TREE}")).exists());

    // What was released counts, whatever its name.
    let compiled = |byte: u8| gzip(&archive(&[("__pycache__/a.pyc", 0o644, &[byte; 9][..])]));
    fetch(&mut store, &compiled(1));
    let third = Manifest::new(vec![item("py", Kind::Tar, 1, &compiled(1))]).unwrap();
    let three = install(&mut store, &third);
    assert_eq!(store.verify(&three).unwrap(), []);
    fs::write(dir.join(format!("gens/{three}/py/__pycache__/a.pyc")), [2; 9]).unwrap();
    assert_eq!(store.verify(&three).unwrap().len(), 1);
}

//! Python's byte code goes with the source that it was made of.

use super::plug::Fault;
use super::*;

const CODE: [&str; 4] = [
    "lib/__pycache__/a.cpython-311.pyc",
    "lib/__pycache__/a.cpython-38.opt-1.pyc",
    "lib/a.pyc",
    "__pycache__/top.level.cpython-311.pyc",
];
const OTHER: [&str; 4] = [
    "lib/__pycache__/ab.cpython-311.pyc",
    "lib/__pycache__/a.cpython-311.pyc.140",
    "lib/deep/__pycache__/a.cpython-311.pyc",
    "lib/ab.pyc",
];

fn compile(root: &Path) {
    for path in CODE.iter().chain(&OTHER) {
        std::fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        std::fs::write(root.join(path), "byte code").unwrap();
    }
}

fn left(root: &Path, of: &[&str]) -> usize {
    of.iter().filter(|path| root.join(path).exists()).count()
}

fn python(version: u8) -> Tree {
    let mut tree = Tree::from([("main.sh".into(), file("#!/bin/sh\n", 0o755))]);
    for path in ["lib/a.py", "top.level.py"] {
        tree.insert(path.into(), file(&format!("version = {version}\n"), 0o644));
    }
    tree
}

#[test]
fn byte_code_of_replaced_sources_goes() {
    let scratch = Scratch::new("python");
    let root = &scratch.0;
    let mut store = open(root).unwrap();
    sync(&mut store, &python(1), false).unwrap();
    compile(root);
    // Another mode, or another file, is no other source.
    let mut tree = python(1);
    tree.get_mut("lib/a.py").unwrap().1 = 0o755;
    tree.insert("lib/new.txt".into(), file("x", 0o644));
    sync(&mut store, &tree, false).unwrap();
    assert_eq!((left(root, &CODE), left(root, &OTHER)), (4, 4));
    sync(&mut store, &python(2), false).unwrap();
    assert_eq!((left(root, &CODE), left(root, &OTHER)), (0, 4));
    assert_eq!(store.history().last().map(|info| (info.changed, info.deleted)), Some((2, 1)));
    compile(root);
    store.rollback(Some(1), now()).unwrap();
    assert_eq!((left(root, &CODE), left(root, &OTHER)), (0, 4));
    compile(root);
    let mut put = store.put(RelPath::new("lib/a.py").unwrap(), 12, None, None).unwrap();
    store.write(&mut put, b"version = 3\n").unwrap();
    store.finish_put(put).unwrap();
    assert_eq!((left(root, &CODE), left(root, &OTHER)), (1, 4));
}

#[test]
fn byte_code_that_is_sent_stays() {
    let scratch = Scratch::new("python-sent");
    let root = &scratch.0;
    let mut store = open(root).unwrap();
    let with = |version| {
        let mut tree = python(version);
        tree.insert(CODE[0].into(), file("sent", 0o644));
        tree
    };
    sync(&mut store, &with(1), false).unwrap();
    sync(&mut store, &with(2), false).unwrap();
    assert_eq!(on_disk(root), with(2));
}

#[test]
fn byte_code_in_a_foreign_place_is_no_obstacle() {
    let (scratch, foreign) = (Scratch::new("python-foreign"), Scratch::new("python-elsewhere"));
    let (root, foreign) = (&scratch.0, &foreign.0);
    std::fs::create_dir_all(foreign).unwrap();
    std::fs::write(foreign.join("a.cpython-311.pyc"), "byte code").unwrap();
    let mut store = open(root).unwrap();
    sync(&mut store, &python(1), false).unwrap();
    std::os::unix::fs::symlink(foreign, root.join("lib/__pycache__")).unwrap();
    std::fs::create_dir_all(root.join("__pycache__/top.level.cpython-311.pyc")).unwrap();
    sync(&mut store, &python(2), false).unwrap();
    std::fs::remove_file(root.join("lib/__pycache__")).unwrap();
    std::fs::write(root.join("lib/__pycache__"), "no folder").unwrap();
    sync(&mut store, &python(3), false).unwrap();
    assert!(foreign.join("a.cpython-311.pyc").exists());
    assert_eq!(on_disk(root)["lib/a.py"].0, b"version = 3\n");
    // Who is root may write everywhere: there is nothing to be seen then.
    std::fs::remove_file(root.join("lib/__pycache__")).unwrap();
    std::fs::remove_dir(root.join("__pycache__/top.level.cpython-311.pyc")).unwrap();
    compile(root);
    let shut = |mode| {
        std::fs::set_permissions(root.join("lib/__pycache__"), std::fs::Permissions::from_mode(mode))
            .unwrap();
    };
    shut(0o500);
    let synced = sync(&mut store, &python(4), false);
    shut(0o700);
    assert!(synced.is_ok(), "{synced:?}");
}

#[test]
fn new_source_never_stands_beside_old_byte_code_whatever_stops_it() {
    for fault in [Fault::Stop, Fault::Once] {
        for n in 0.. {
            let scratch = Scratch::new(&format!("python-stop-{n}"));
            let root = &scratch.0;
            let mut store = open(root).unwrap();
            sync(&mut store, &python(1), false).unwrap();
            compile(root);
            plug::set(Some((n, fault)));
            let _ = sync(&mut store, &python(2), false);
            let hit = plug::hit();
            plug::set(None);
            if fault == Fault::Stop {
                drop(store);
                drop(open(root).unwrap());
            }
            let new = std::fs::read(root.join("lib/a.py")).unwrap() == b"version = 2\n";
            assert!(!new || left(root, &CODE) == 0, "{fault:?} at {n}");
            assert_eq!(left(root, &OTHER), 4, "{fault:?} at {n}");
            if !hit {
                assert!(new && n > 20);
                break;
            }
        }
    }
}

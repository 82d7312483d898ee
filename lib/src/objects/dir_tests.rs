//! Tests of the folder store.

use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("edge-dir-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(path.join("root")).unwrap();
        Self(path)
    }

    fn dir(&self) -> Dir {
        Dir::new(self.0.join("root"), 0o640)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn put(dir: &Dir, key: &str, body: &[u8], sidecar: Option<&[u8]>) -> Outcome {
    dir.put(&Object { key, body, sha256: "", content_type: "", headers: &[], sidecar })
}

const NEW: Outcome = Outcome::Stored { already: false };
const AGAIN: Outcome = Outcome::Stored { already: true };

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn stored_once_and_never_replaced() {
    let folder = Folder::new("once");
    let dir = folder.dir();
    assert_eq!(put(&dir, "a/b/x.jpg", b"one", Some(b"{}")), NEW);
    assert_eq!(put(&dir, "a/b/x.jpg", b"one", Some(b"{other}")), AGAIN);
    let Outcome::Dead(why) = put(&dir, "a/b/x.jpg", b"two", Some(b"{}")) else { panic!() };
    assert!(why.contains("other content"), "{why}");
    let path = folder.0.join("root/a/b");
    assert_eq!(names(&path), ["x.jpg", "x.jpg.json"]);
    assert_eq!(std::fs::read(path.join("x.jpg")).unwrap(), b"one");
    assert_eq!(std::fs::read(path.join("x.jpg.json")).unwrap(), b"{}");
    std::fs::remove_file(path.join("x.jpg.json")).unwrap();
    assert_eq!(put(&dir, "a/b/x.jpg", b"one", Some(b"{2}")), AGAIN);
    assert_eq!(std::fs::read(path.join("x.jpg.json")).unwrap(), b"{2}", "a missing sidecar is made");
    assert_eq!(put(&dir, "empty", b"", None), NEW);
    assert_eq!(put(&dir, "empty", b"", None), AGAIN);
}

#[test]
fn nothing_leaves_the_root() {
    let folder = Folder::new("root");
    let dir = folder.dir();
    let outside = folder.0.join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, folder.0.join("root/link")).unwrap();
    std::os::unix::fs::symlink(outside.join("file"), folder.0.join("root/file-link")).unwrap();
    for key in ["../x", "a/../../x", "link/x", "file-link", "a/./x", ".s3put-1/x", ".s3put-x"] {
        assert!(matches!(put(&dir, key, b"x", None), Outcome::Dead(_)), "{key}");
    }
    assert!(names(&outside).is_empty() && !folder.0.join("x").exists());
    assert_eq!(put(&dir, "a", b"x", None), NEW);
    assert!(matches!(put(&dir, "a/b", b"x", None), Outcome::Dead(_)), "a file is in the way");
    assert!(matches!(put(&dir, &"x".repeat(251), b"x", None), Outcome::Dead(_)));
    assert_eq!(put(&dir, &"x".repeat(250), b"x", Some(b"{}")), NEW);
}

#[test]
fn a_missing_root_holds_and_left_overs_go() {
    let folder = Folder::new("missing");
    let gone = Dir::new(folder.0.join("none"), 0o640);
    let Outcome::Hold(why) = put(&gone, "a", b"x", None) else { panic!() };
    assert!(why.contains("none") && why.contains("can't open"), "{why}");
    let dir = folder.dir();
    put(&dir, "a/b", b"x", None);
    std::fs::write(folder.0.join("root/a/.s3put-9-9"), "half").unwrap();
    dir.clean();
    assert_eq!(names(&folder.0.join("root/a")), ["b"]);
}

#[test]
fn eight_threads_on_one_key_store_it_once() {
    let folder = Folder::new("race");
    let dir = folder.dir();
    let outcomes: Vec<Outcome> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..8).map(|_| s.spawn(|| put(&dir, "a/b/c", b"same", Some(b"{}")))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(outcomes.iter().filter(|o| **o == NEW).count(), 1, "{outcomes:?}");
    assert!(outcomes.iter().all(|o| matches!(o, Outcome::Stored { .. })), "{outcomes:?}");
    assert_eq!(names(&folder.0.join("root/a/b")), ["c", "c.json"]);
}

//! Scans of folders that tests make.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use edge::sync::content::BIG;

use super::*;
use crate::client::testing::Folder;

fn open(folder: &Path) -> Source {
    Source::open(folder).unwrap().with_cache(None)
}

fn names(folder: &Path) -> Vec<String> {
    let scan = open(folder).scan(&mut Silent).unwrap();
    scan.manifest.entries().iter().map(|e| e.path.to_string()).collect()
}

#[test]
fn rules_are_those_of_git_and_ours_without_a_repository() {
    let folder = Folder::new("rules");
    folder.write(".gitignore", "*.log\n!keep.log\nbuild/\n/only-top\n# comment\n\\#sharp\nsub/**/deep\n");
    folder.write("sub/.gitignore", "local\n");
    folder.write(".sideloadignore", "docs/\n!build/\n");
    for name in [
        "main.py",
        "a.log",
        "keep.log",
        "build/out.bin",
        "only-top",
        "sub/only-top",
        "#sharp",
        "local",
        "sub/local",
        "sub/x/y/deep",
        "docs/a.md",
        ".hidden",
        ".config/x",
        "key.pem",
        "sub/KEY.PEM",
        ".sideloadd/lock",
        "sideload.toml",
        "sub/sideload.toml",
        "sub/.sideloadd/x",
        ".ignore",
        "sub/Ignored",
    ] {
        folder.write(name, "x");
    }
    // This file is git's in no way.
    folder.write(".ignore", "main.py\n");
    let expected = [
        ".config/x",
        ".gitignore",
        ".hidden",
        ".ignore",
        ".sideloadignore",
        "build/out.bin",
        "keep.log",
        "local",
        "main.py",
        "sub/.gitignore",
        "sub/.sideloadd/x",
        "sub/Ignored",
        "sub/only-top",
        "sub/sideload.toml",
    ];
    assert_eq!(names(&folder.0), expected);
}

#[test]
fn rules_of_the_folders_above_count_within_a_repository_only() {
    let folder = Folder::new("above");
    folder.write(".gitignore", "*.tmp\n");
    folder.write("repo/.gitignore", "*.log\n");
    folder.write("repo/app/main.py", "");
    folder.write("repo/app/x.tmp", "");
    folder.write("repo/app/x.log", "");
    assert_eq!(names(&folder.0.join("repo/app")), ["main.py", "x.log", "x.tmp"]);
    folder.write("repo/.git/info/exclude", "");
    assert_eq!(names(&folder.0.join("repo/app")), ["main.py", "x.tmp"]);
    // A repository within it (a submodule has a file of that name) has its own rules only.
    folder.write("repo/app/sub/.git", "gitdir: elsewhere");
    folder.write("repo/app/sub/y.log", "");
    assert_eq!(names(&folder.0.join("repo/app")), ["main.py", "sub/y.log", "x.tmp"]);
}

#[test]
fn entries_say_what_the_files_are() {
    let folder = Folder::new("entries");
    let script = folder.write("main.sh", "#!/bin/sh\n");
    fs::set_permissions(&script, Permissions::from_mode(0o4755)).unwrap();
    folder.write("empty", "");
    let big = vec![7u8; usize::try_from(BIG).unwrap()];
    folder.write("sub/big", &big);
    symlink("main.sh", folder.0.join("link")).unwrap();
    symlink("sub", folder.0.join("link-to-folder")).unwrap();
    symlink("nowhere", folder.0.join("link-to-nothing")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, folder.0.join("fifo"), rustix::fs::Mode::RWXU).unwrap();
    let mut source = open(&folder.0);
    let scan = source.scan(&mut Silent).unwrap();
    let names: Vec<&str> = scan.manifest.entries().iter().map(|e| e.path.as_str()).collect();
    assert_eq!(names, ["empty", "link", "main.sh", "sub/big"]);
    let entry = scan.manifest.get("main.sh").unwrap();
    assert_eq!((entry.mode, entry.size), (0o755, 10));
    assert_eq!(entry.id, content::of_bytes(b"#!/bin/sh\n"));
    assert_eq!(scan.manifest.get("link").unwrap().id, entry.id);
    assert_eq!(scan.manifest.get("sub/big").unwrap().id, content::of_bytes(&big));
    let mut skipped: Vec<(&str, &str)> =
        scan.skipped.iter().map(|s| (s.path.to_str().unwrap(), s.why)).collect();
    skipped.sort_unstable();
    assert_eq!(
        skipped,
        [
            ("fifo", "no regular file"),
            ("link-to-folder", "a link to a folder"),
            ("link-to-nothing", "a link to nothing")
        ]
    );
}

#[test]
fn what_can_not_be_sent_is_named() {
    let folder = Folder::new("names");
    let says = |source: &Path, part: &str| {
        let error = open(source).scan(&mut Silent).unwrap_err();
        let text = edge::log::chain(&error);
        assert!(text.contains(part), "{text}");
        assert!(error.fix().unwrap().contains(".sideloadignore"), "{text}");
        error.exit_code()
    };
    let bad = folder.0.join("back\\slash");
    fs::write(&bad, "").unwrap();
    assert_eq!(says(&folder.0, "backslash"), 65);
    fs::remove_file(&bad).unwrap();
    let bad = folder.0.join(OsStr::from_bytes(b"latin-\xe9"));
    fs::write(&bad, "").unwrap();
    assert_eq!(says(&folder.0, "not UTF-8"), 65);
    // An ignored name is nobody's business.
    folder.write(".gitignore", "latin*\n");
    assert_eq!(names(&folder.0), [".gitignore"]);
    let error = Source::open(&folder.0.join("missing")).unwrap_err();
    assert!(edge::log::chain(&error).contains("missing") && error.exit_code() == 74);
    assert!(Source::open(&folder.0.join(".gitignore")).is_err());
}

#[test]
fn unreadable_files_are_named() {
    let folder = Folder::new("unreadable");
    let path = folder.write("secret", "x");
    fs::set_permissions(&path, Permissions::from_mode(0o000)).unwrap();
    if fs::read(&path).is_ok() {
        println!("skipped: unreadable_files_are_named: root reads everything");
        return;
    }
    let error = open(&folder.0).scan(&mut Silent).unwrap_err();
    assert!(error.to_string().contains("secret"), "{error}");
    assert_eq!(error.exit_code(), 74);
}

#[test]
fn a_file_without_rest_is_refused_and_one_that_settles_is_taken() {
    let folder = Folder::new("changing");
    // Long enough to read that its writer gets a turn meanwhile.
    let path = folder.write("log", "");
    fs::File::options().write(true).open(&path).unwrap().set_len(48 << 20).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::Write;
            let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            while !stop.load(Ordering::Relaxed) {
                file.write_all(b"more").unwrap();
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        let error = open(&folder.0).scan(&mut Silent).map(|_| ());
        stop.store(true, Ordering::Relaxed);
        assert!(matches!(error, Err(Error::Changing { .. })), "{error:?}");
    });
    assert_eq!(names(&folder.0), ["log"]);
}

#[test]
fn what_is_known_is_not_read_again_and_what_changed_is() {
    let folder = Folder::new("cache");
    let cache = Folder::new("cache-file");
    let at = cache.0.join("deeper/x.hashes");
    let source = || Source::open(&folder.0).unwrap().with_cache(Some(at.clone()));
    // Files that changed within two seconds of their reading are not trusted; a machine that is busy may need more than one
    // attempt to read all of them so soon.
    let soon = (0..10).any(|_| {
        let _ = fs::remove_file(&at);
        let start = Instant::now();
        for number in 0..300 {
            folder.write(&format!("d{}/f{number}", number % 7), vec![number as u8; 2048]);
        }
        let scan = source().scan(&mut Silent).unwrap();
        assert_eq!((scan.hashed_files, scan.hashed_bytes), (300, 300 * 2048));
        start.elapsed() < Duration::from_secs(2)
    });
    assert!(soon, "300 files took two seconds ten times");
    std::thread::sleep(Duration::from_millis(2100));
    let first = source().scan(&mut Silent).unwrap();
    assert_eq!(first.hashed_files, 300);
    let again = source().scan(&mut Silent).unwrap();
    assert_eq!((again.hashed_files, again.manifest.id()), (0, first.manifest.id()));
    // The same size and the same modification time: the change time tells.
    let path = folder.0.join("d3/f3");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, vec![9u8; 2048]).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(before).unwrap();
    let changed = source().scan(&mut Silent).unwrap();
    assert_eq!(changed.hashed_files, 1);
    assert_ne!(changed.manifest.id(), first.manifest.id());
}

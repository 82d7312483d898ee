//! Archives of every hostile kind, and ordinary ones.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::*;
use crate::install::tests::{Scratch, archive, gzip};

const CAPS: Caps = Caps { bytes_max: 1 << 20, files_max: 100, depth_max: 8 };

fn run(name: &str, bytes: &[u8]) -> (Scratch, Result<Tree, Error>) {
    run_with(name, bytes, CAPS)
}

fn run_with(name: &str, bytes: &[u8], caps: Caps) -> (Scratch, Result<Tree, Error>) {
    let scratch = Scratch::new(&format!("tar-{name}"));
    fs::create_dir(scratch.0.join("in")).unwrap();
    fs::write(scratch.0.join("secret"), "secret").unwrap();
    let root = Root::open(&scratch.0.join("in")).unwrap();
    let done = unpack(bytes, root, caps, &mut |_| Ok(()));
    // Whatever it was: nothing beside the folder, and the neighbour as it was.
    let mut beside: Vec<_> = fs::read_dir(&scratch.0).unwrap().map(|e| e.unwrap().file_name()).collect();
    beside.sort();
    assert_eq!(beside, ["in", "secret"]);
    let secret = fs::metadata(scratch.0.join("secret")).unwrap();
    assert_eq!((secret.nlink(), secret.len()), (1, 6));
    (scratch, done)
}

/// Refused, for this reason.
fn refused(name: &str, bytes: &[u8], why: &str) {
    let (_scratch, done) = run(name, bytes);
    let error = done.expect_err(name);
    assert!(error.is_content(), "{name}: {error}");
    assert!(error.to_string().contains(why), "{name}: {error}");
}

/// A header with a name as given, whatever the crate would say to it.
fn header(name: &[u8], kind: EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header
}

fn linked(name: &[u8], kind: EntryType, target: &[u8]) -> tar::Header {
    let mut header = header(name, kind, 0);
    header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target);
    header.set_cksum();
    header
}

/// Headers, each with its content, and the end.
fn tar_of(entries: &[(tar::Header, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (header, content) in entries {
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn one(name: &[u8]) -> Vec<u8> {
    tar_of(&[(header(name, EntryType::Regular, 1), b"x")])
}

fn folder(name: &[u8]) -> (tar::Header, &'static [u8]) {
    (header(name, EntryType::Directory, 0), b"")
}

fn link(name: &[u8], target: &[u8]) -> (tar::Header, &'static [u8]) {
    (linked(name, EntryType::Symlink, target), b"")
}

fn hard(name: &[u8], target: &[u8]) -> (tar::Header, &'static [u8]) {
    (linked(name, EntryType::Link, target), b"")
}

fn file(name: &[u8]) -> (tar::Header, &'static [u8]) {
    (header(name, EntryType::Regular, 1), b"x")
}

#[test]
fn an_ordinary_archive_is_unpacked_whole() {
    for packed in [false, true] {
        let plain =
            archive(&[("./bin/run", 0o777, b"run"), ("./doc", 0o666, b"doc"), ("./key", 0o600, b"key")]);
        let bytes = if packed { gzip(&plain) } else { plain };
        let (scratch, done) = run(&format!("ordinary{packed}"), &bytes);
        let tree = done.unwrap();
        assert_eq!((tree.entries, tree.bytes), (4, 9));
        let root = scratch.0.join("in");
        for (path, mode) in [("bin", 0o755), ("bin/run", 0o755), ("doc", 0o644), ("key", 0o600)] {
            let meta = fs::metadata(root.join(path)).unwrap();
            assert_eq!(meta.permissions().mode() & 0o7777, mode, "{path}");
            assert!(meta.is_dir() || meta.mtime() == 1_600_000_000, "{path}");
        }
        assert_eq!(fs::read(root.join("bin/run")).unwrap(), b"run");
    }
}

#[test]
fn links_that_stay_inside_are_made() {
    let entries = [
        folder(b"./"),
        folder(b"a/"),
        file(b"a/file"),
        link(b"to", b"a/file"),
        link(b"a/up", b"../a/./file"),
        link(b"dangling", b"not/there"),
        hard(b"a/again", b"a/file"),
        hard(b"b/again", b"./a/file"),
    ];
    let (scratch, done) = run("inside", &tar_of(&entries));
    assert_eq!(done.unwrap().entries, 8);
    assert_eq!(fs::read(scratch.0.join("in/a/up")).unwrap(), b"x");
    assert_eq!(fs::metadata(scratch.0.join("in/b/again")).unwrap().nlink(), 3);
}

#[test]
fn paths_that_leave_are_refused() {
    refused("absolute", &one(b"/etc/passwd"), "absolute");
    refused("up", &one(b"../secret"), "..");
    refused("winding", &one(b"a/../../secret"), "..");
    refused("dots", &tar_of(&[folder(b"..")]), "..");
    refused("control", &one(b"a\nb"), "control");
    refused("escape", &one(b"a\x1b[2J"), "control");
    refused("bytes", &one(b"a\xff"), "UTF-8");
    refused("empty", &one(b""), "no name");
    refused("deep", &one(b"a/b/c/d/e/f/g/h/i"), "too deep");
    let long = vec![b'x'; 300];
    let entries = [(header(b"././@LongLink", EntryType::GNULongName, 300), &long[..]), file(b"y")];
    refused("long", &tar_of(&entries), "too long");
}

#[test]
fn links_that_leave_are_refused() {
    for kind in [EntryType::Symlink, EntryType::Link] {
        for target in [&b"/etc/passwd"[..], b"../secret", b"a/../../secret", b"..", b""] {
            let bytes = tar_of(&[folder(b"a"), (linked(b"link", kind, target), b"")]);
            refused("link", &bytes, "");
        }
    }
    // A link may climb only where it really is.
    refused("climb", &tar_of(&[link(b"a/b/l", b"../../../secret")]), "leaves");
    refused("behind", &tar_of(&[folder(b"d/e"), link(b"l", b"d/e/../../../secret")]), "behind a name");
    // An earlier link would lead out, or to a shallower place than the path says.
    refused("through", &tar_of(&[folder(b"a"), link(b"s", b"a"), file(b"s/x")]), "through a link");
    refused("self", &tar_of(&[link(b"s", b"."), link(b"s/s/s/x", b"../../../secret")]), "through a link");
    refused("over", &tar_of(&[folder(b"a"), link(b"s", b"a"), file(b"s")]), "twice");
    refused("folder-over", &tar_of(&[folder(b"a"), link(b"s", b"a"), folder(b"s")]), "twice");
    refused("file-through", &tar_of(&[file(b"f"), file(b"f/x")]), "through a file");
    refused(
        "hard-through",
        &tar_of(&[folder(b"a"), file(b"a/f"), link(b"s", b"a"), hard(b"h", b"s/f")]),
        "hard link",
    );
    refused("hard-of-link", &tar_of(&[file(b"f"), link(b"s", b"f"), hard(b"h", b"s")]), "hard link");
    refused("hard-of-folder", &tar_of(&[folder(b"a"), hard(b"h", b"a")]), "no file");
    refused("hard-early", &tar_of(&[hard(b"h", b"f"), file(b"f")]), "came before");
    refused("hard-self", &tar_of(&[hard(b"h", b"h")]), "came before");
}

#[test]
fn what_is_no_file_is_refused() {
    for (kind, why) in [
        (EntryType::Char, "a device"),
        (EntryType::Block, "a device"),
        (EntryType::Fifo, "a FIFO"),
        (EntryType::GNUSparse, "sparse"),
        (EntryType::new(b'M'), "'M'"),
        (EntryType::new(b'V'), "'V'"),
    ] {
        refused("kind", &tar_of(&[(header(b"x", kind, 0), b"")]), why);
    }
    for mode in [0o4755, 0o2755, 0o6000] {
        for kind in [EntryType::Regular, EntryType::Directory] {
            let mut header = header(b"x", kind, 0);
            header.set_mode(mode);
            header.set_cksum();
            refused("setuid", &tar_of(&[(header, b"")]), "setuid");
        }
    }
}

#[test]
fn a_name_twice_is_refused() {
    refused("twice", &tar_of(&[file(b"a"), file(b"./a")]), "twice");
    refused("folders", &tar_of(&[folder(b"a"), folder(b"a/")]), "twice");
    refused("mixed", &tar_of(&[file(b"a"), folder(b"a")]), "twice");
    refused("links", &tar_of(&[file(b"a"), link(b"a", b"b")]), "twice");
    refused("hard", &tar_of(&[file(b"a"), file(b"b"), hard(b"b", b"a")]), "twice");
    // A folder that was needed before its own entry came is no second one.
    assert!(run("late", &tar_of(&[file(b"a/f"), folder(b"a")])).1.is_ok());
}

#[test]
fn bombs_are_refused_before_they_are_written() {
    let zeros = gzip(&archive(&[("zeros", 0o644, &vec![0; 2 << 20])]));
    assert!(zeros.len() < 32 << 10);
    let (scratch, done) = run("bomb", &zeros);
    assert!(done.unwrap_err().to_string().contains("expands to more"));
    assert_eq!(fs::read_dir(scratch.0.join("in")).unwrap().count(), 0);
    // A size beyond everything, and a sum that would overflow.
    let huge = tar_of(&[file(b"a"), (header(b"b", EntryType::Regular, u64::MAX >> 8), b"")]);
    refused("huge", &huge, "expands to more");
    // Behind the end, where nothing is unpacked.
    let mut padded = archive(&[("a", 0o644, b"a")]);
    padded.resize(64 << 20, 0);
    refused("padding", &gzip(&padded), "more than allowed");
    let many: Vec<_> = (0..101).map(|n| file(format!("f{n}").as_bytes())).collect();
    refused("many", &tar_of(&many), "100 entries");
    let deep = Caps { files_max: 3, ..CAPS };
    let (_scratch, done) = run_with("implied", &one(b"a/b/c/d/e"), deep);
    assert!(done.unwrap_err().to_string().contains("more entries"));
    // A hard link is read once more, so it counts once more.
    let half = vec![1; 600 << 10];
    let entries = [(header(b"a", EntryType::Regular, half.len() as u64), &half[..]), hard(b"b", b"a")];
    refused("hard-bomb", &tar_of(&entries), "expands to more");
    // Headers about other headers.
    let ahead: Vec<_> = (0..500).map(|_| (header(b"x", EntryType::XHeader, 0), &b""[..])).collect();
    refused("headers", &tar_of(&ahead), "more headers");
    let name = vec![b'x'; 1 << 20];
    let entries = [(header(b"x", EntryType::GNULongName, 1 << 20), &name[..]), file(b"y")];
    refused("long-name", &tar_of(&entries), "1048576 bytes");
}

#[test]
fn long_names_are_understood() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(130));
    let (scratch, done) = run("gnu", &archive(&[(&long, 0o644, b"gnu")]));
    done.unwrap();
    assert_eq!(fs::read(scratch.0.join("in").join(&long)).unwrap(), b"gnu");

    let pax = |records: &[(&str, &str)]| {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().map(|(k, v)| (*k, v.as_bytes()))).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        bytes.extend(tar_of(&[file(b"short")]));
        bytes
    };
    let (scratch, done) = run("pax", &pax(&[("path", &long), ("mtime", "1.5")]));
    done.unwrap();
    assert_eq!(fs::read(scratch.0.join("in").join(&long)).unwrap(), b"x");
    refused("pax-up", &pax(&[("path", "../secret")]), "..");
    refused("pax-nul", &pax(&[("path", "a\0b")]), "control");
    refused("pax-sparse", &pax(&[("GNU.sparse.major", "1")]), "sparse");
    refused("pax-size", &pax(&[("size", "0")]), "size");
    let entries = [(header(b"x", EntryType::XHeader, 6), &b"99 a=b"[..]), file(b"y")];
    refused("pax-bad", &tar_of(&entries), "PAX");
}

#[test]
fn what_is_cut_or_damaged_is_refused() {
    let plain = archive(&[("a", 0o644, &[1; 5000])]);
    let packed = gzip(&plain);
    refused("cut", &plain[..3000], "");
    refused("cut-gzip", &packed[..packed.len() / 2], "read");
    refused("cut-sum", &packed[..packed.len() - 3], "read");
    let mut sum = packed.clone();
    let at = sum.len() - 6;
    sum[at] ^= 1;
    refused("wrong-sum", &sum, "read");
    refused("garbage", &[7; 4096], "read");
    assert_eq!(run("nothing", b"").1.unwrap(), Tree::default());
}

#[test]
fn the_archive_stops_where_space_does() {
    let bytes = archive(&[("a", 0o644, &[1; 300_000])]);
    let scratch = Scratch::new("tar-space");
    let mut spent = 0;
    let spend = &mut |bytes| {
        spent += bytes;
        if spent > 200_000 { Err(Error::Space { need: 0, keep: 1, free: 0 }) } else { Ok(()) }
    };
    let error = unpack(&bytes[..], Root::open(&scratch.0).unwrap(), CAPS, spend).unwrap_err();
    assert!(error.is_space() && !error.is_content());
}

//! Unpacking an archive: whatever it says, nothing beside the folder appears or changes, nothing in it is writable for
//! others or setuid, no link in it leads out, and no more than allowed is there.
#![no_main]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use edge::beneath::Root;
use otad::install::{Caps, unpack};

const CAPS: Caps = Caps { bytes_max: 1 << 16, files_max: 64, depth_max: 6 };

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let top = top();
    let (folder, secret) = (top.join("a/b/in"), top.join("a/secret"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a scratch folder");
    if !secret.exists() {
        fs::write(&secret, "secret").expect("a scratch file");
    }
    let root = Root::open(&folder).expect("it is there");
    let data = sound(data);
    let done = unpack(&data[..], root, CAPS, &mut |_| Ok(()));
    let around = |path: &Path| fs::read_dir(path).map_or(0, Iterator::count);
    assert_eq!((around(top), around(&top.join("a")), around(&top.join("a/b"))), (1, 2, 1));
    let meta = fs::metadata(&secret).expect("it is there still");
    assert_eq!((meta.len(), meta.nlink(), meta.permissions().mode() & 0o777), (6, 1, 0o644));
    let (mut entries, mut bytes) = (0, 0);
    walk(&folder, &folder, &mut entries, &mut bytes);
    assert!(entries <= CAPS.files_max && bytes <= CAPS.bytes_max);
    if let Ok(tree) = done {
        assert_eq!((tree.entries, tree.bytes), (entries, bytes));
    }
});

fn top() -> &'static Path {
    static TOP: OnceLock<PathBuf> = OnceLock::new();
    TOP.get_or_init(|| {
        let memory = Path::new("/dev/shm").is_dir().then(|| PathBuf::from("/dev/shm"));
        let top =
            memory.unwrap_or_else(std::env::temp_dir).join(format!("fuzz-ota-tar-{}", std::process::id()));
        let _ = fs::remove_dir_all(&top);
        top
    })
}

/// The same with right check sums of its headers, which the fuzzer would not find: a byte in front says how many.
fn sound(data: &[u8]) -> Vec<u8> {
    let Some((&headers, data)) = data.split_first() else { return Vec::new() };
    let mut bytes = data.to_vec();
    for header in bytes.chunks_exact_mut(512).take(usize::from(headers)) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

fn walk(top: &Path, folder: &Path, entries: &mut u64, bytes: &mut u64) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let meta = fs::symlink_metadata(&path).expect("it is there");
        *entries += 1;
        if meta.is_symlink() {
            // Where it leads to something, that is inside.
            if let Ok(real) = fs::canonicalize(&path) {
                assert!(
                    real.starts_with(fs::canonicalize(top).expect("the top")),
                    "{path:?} leads to {real:?}"
                );
            }
            continue;
        }
        assert_eq!(meta.permissions().mode() & 0o7022, 0, "{path:?}");
        if meta.is_dir() {
            walk(top, &path, entries, bytes);
        } else {
            assert!(meta.is_file(), "{path:?}");
            *bytes += meta.len();
        }
    }
}

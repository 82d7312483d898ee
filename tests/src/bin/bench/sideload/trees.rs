//! The folders that are brought to the device, and what is done to them between two runs.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::SystemTime;

/// Writes `count` files of 2 KiB that look like source code, twenty to a folder.
pub fn small(top: &Path, count: u64) {
    for n in 0..count {
        let path = top.join(format!("package{:02}/module_{n:04}.py", n / 20));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut rng = fastrand::Rng::with_seed(n);
        let mut text = String::new();
        while text.len() < 2048 {
            let (name, value) = (rng.u32(..), rng.u32(..));
            text += &format!("def handle_{name:08x}(frame, settings):\n    return frame.crop({value})\n\n");
        }
        text.truncate(2047);
        fs::write(path, text + "\n").unwrap();
    }
}

/// Writes one file of noise: a model's weights hardly compress.
pub fn big(path: &Path, bytes: u64) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let (mut file, mut rng) = (File::create(path).unwrap(), fastrand::Rng::with_seed(256));
    let mut block = vec![0u8; 1 << 20];
    for _ in 0..bytes >> 20 {
        rng.fill(&mut block);
        file.write_all(&block).unwrap();
    }
}

/// Sets all times to now.
pub fn touch(top: &Path) {
    for path in e2e::scratch::files(top) {
        File::options().write(true).open(path).unwrap().set_modified(SystemTime::now()).unwrap();
    }
}

/// Changes one byte at `at`, in place.
pub fn change_byte(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0].wrapping_add(1)], at).unwrap();
}

/// Puts one byte before all others, by way of a new file, as an editor does.
pub fn insert_at_head(path: &Path) {
    let new = path.with_extension("new");
    let mut file = File::create(&new).unwrap();
    file.write_all(b"+").unwrap();
    std::io::copy(&mut File::open(path).unwrap(), &mut file).unwrap();
    fs::rename(new, path).unwrap();
}

/// Whether both folders hold the same files; `.sideloadd` is the daemon's own.
pub fn assert_same(src: &Path, dest: &Path) {
    let list = |top: &Path| -> Vec<_> {
        let files = e2e::scratch::files(top).into_iter();
        let relative = files.map(|path| path.strip_prefix(top).unwrap().to_path_buf());
        relative.filter(|path| !path.starts_with(".sideloadd")).collect()
    };
    let names = list(src);
    assert_eq!(names, list(dest), "the same names in {}", dest.display());
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for name in names {
        let (mut one, mut two) =
            (File::open(src.join(&name)).unwrap(), File::open(dest.join(&name)).unwrap());
        let len = one.metadata().unwrap().len();
        assert_eq!(len, two.metadata().unwrap().len(), "{}: size", name.display());
        let mut left = len;
        while left > 0 {
            let n = left.min(1 << 20) as usize;
            one.read_exact(&mut a[..n]).unwrap();
            two.read_exact(&mut b[..n]).unwrap();
            assert!(a[..n] == b[..n], "{}: content", name.display());
            left -= n as u64;
        }
    }
}

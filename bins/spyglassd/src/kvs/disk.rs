//! Fragments in a folder: one file each, written whole or not at all, so that they outlive a loss of the network, and of
//! power. Each begins with a line of JSON that says what it is.
//!
//! Owns the folder: whatever ends in `.fragment` there is ours. What can't be read is removed and told.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge::text::{hex, sha256_hex};
use serde::{Deserialize, Serialize};

use super::fragment::{End, Fragment, Run};
use super::ring::Store;
use crate::h264::{Header, Sps};

const SUFFIX: &str = ".fragment";
/// Longest first line, in bytes: parameter sets have some 40.
const LINE_BYTES_MAX: usize = 8 * 1024;

#[derive(Serialize, Deserialize)]
struct Line {
    start_ms: u64,
    length_ms: u64,
    frames: u32,
    pause: bool,
    run: u64,
    sps: String,
    pps: String,
    /// Of the blocks.
    sha256: String,
}

/// The folder.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Opens the folder, making it if need be, and finds what a former run left, oldest first, with the bytes of each.
    ///
    /// # Errors
    /// In words.
    pub fn open(folder: &Path) -> Result<(Disk, Vec<(Fragment, usize)>), String> {
        let fail =
            |error: &dyn std::error::Error| format!("{}: {}", folder.display(), edge::log::chain(error));
        edge::fs::create_dir_durably(folder).map_err(|error| fail(&error))?;
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(|error| fail(&error))? {
            let name = entry.map_err(|error| fail(&error))?.file_name();
            let seq = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse::<u64>().ok());
            let Some(seq) = seq else { continue };
            match load(&folder.join(&name), seq) {
                Ok(fragment) => {
                    found.insert(seq, fragment);
                }
                Err(why) => {
                    log::warn!("a fragment left on disk is dropped: {}: {why}", folder.join(&name).display());
                    let _ = std::fs::remove_file(folder.join(&name));
                }
            }
        }
        // Fragments of one run share it.
        let mut runs: BTreeMap<u64, Arc<Run>> = BTreeMap::new();
        let mut left = Vec::new();
        for (_, mut fragment) in found {
            let run = runs.entry(fragment.run.id).or_insert_with(|| Arc::clone(&fragment.run));
            fragment.run = Arc::clone(run);
            let bytes = std::mem::take(&mut fragment.blocks).len();
            left.push((fragment, bytes));
        }
        Ok((Disk { folder: folder.to_owned() }, left))
    }

    fn path(&self, seq: u64) -> PathBuf {
        self.folder.join(format!("{seq:020}{SUFFIX}"))
    }
}

impl Store for Disk {
    fn write(&mut self, fragment: &Fragment) -> Result<(), String> {
        let header = &fragment.run.header;
        let line = Line {
            start_ms: fragment.start_ms,
            length_ms: fragment.length_ms,
            frames: fragment.frames,
            pause: fragment.end == End::Pause,
            run: fragment.run.id,
            sps: hex(&header.sps_nal),
            pps: hex(&header.pps_nal),
            sha256: sha256_hex(&fragment.blocks),
        };
        let mut bytes = serde_json::to_vec(&line).map_err(|error| error.to_string())?;
        bytes.push(b'\n');
        bytes.extend_from_slice(&fragment.blocks);
        edge::fs::write_durably(&self.path(fragment.seq), &bytes, 0o600)
            .map_err(|error| edge::log::chain(&error))
    }

    fn read(&mut self, seq: u64) -> Result<Vec<u8>, String> {
        let path = self.path(seq);
        load(&path, seq).map(|fragment| fragment.blocks).map_err(|why| format!("{}: {why}", path.display()))
    }

    fn remove(&mut self, seq: u64) {
        if let Err(error) = std::fs::remove_file(self.path(seq)) {
            log::warn!("can't remove {}: {error}", self.path(seq).display());
        }
    }
}

fn load(path: &Path, seq: u64) -> Result<Fragment, String> {
    let mut bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let head = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    let end = head.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
    let line: Line = serde_json::from_slice(&bytes[..end]).map_err(|_| "its first line is damaged")?;
    let blocks = bytes.split_off(end + 1);
    if sha256_hex(&blocks) != line.sha256 {
        return Err("it is damaged or not whole".into());
    }
    let set = |text: &str| -> Option<Vec<u8>> {
        (0..text.len() / 2).map(|n| u8::from_str_radix(text.get(2 * n..2 * n + 2)?, 16).ok()).collect()
    };
    let (sps_nal, pps_nal) = set(&line.sps).zip(set(&line.pps)).ok_or("its parameter sets are damaged")?;
    let sps = Sps::parse(&sps_nal).ok_or("its parameter sets can't be read")?;
    let run = Arc::new(Run { id: line.run, header: Header { sps_nal, pps_nal, sps } });
    let end = if line.pause { End::Pause } else { End::Next };
    let Line { start_ms, length_ms, frames, .. } = line;
    Ok(Fragment { seq, run, start_ms, length_ms, frames, blocks, end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_found_again_and_damage_is_seen() {
        let folder = std::env::temp_dir().join(format!("spyglassd-disk-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        let (mut disk, left) = Disk::open(&folder).unwrap();
        assert!(left.is_empty());
        let sps_nal = vec![0x67, 0x42, 0xC0, 0x1E, 0xDA, 0x02, 0x80, 0xF6, 0xC0, 0x44];
        let sps = Sps::parse(&sps_nal).unwrap();
        let run = Arc::new(Run { id: 3, header: Header { sps_nal, pps_nal: vec![0x68, 1], sps } });
        for seq in [7, 8, 9] {
            let (run, blocks) = (Arc::clone(&run), vec![seq as u8; 100]);
            let end = if seq == 9 { End::Pause } else { End::Next };
            disk.write(&Fragment { seq, run, start_ms: 5, length_ms: 6, frames: 2, blocks, end }).unwrap();
        }
        let path = disk.path(8);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.pop();
        std::fs::write(&path, bytes).unwrap();
        assert!(disk.read(8).unwrap_err().contains("not whole"));
        let (mut disk, left) = Disk::open(&folder).unwrap();
        let seen: Vec<_> = left.iter().map(|(f, n)| (f.seq, f.run.id, f.end, *n)).collect();
        assert_eq!(seen, [(7, 3, End::Next, 100), (9, 3, End::Pause, 100)]);
        assert!(Arc::ptr_eq(&left[0].0.run, &left[1].0.run) && left[0].0.run == run && !path.exists());
        assert_eq!(disk.read(9).unwrap(), vec![9; 100]);
        disk.remove(7);
        assert_eq!(Disk::open(&folder).unwrap().1.len(), 1);
        std::fs::remove_dir_all(folder).unwrap();
    }
}

//! Damage of every kind, on real files where it matters: one property a test.

use std::fs;
use std::path::{Path, PathBuf};

use super::frame::{FILE_HEADER, FRAME_HEADER, framed};
use super::sim::{Crash, SimDisk};
use super::sim_tests::{config, id_of, open, payload};
use super::*;
use crate::mqtt::{Message, Qos};

/// A folder that goes away with the test.
pub(super) struct Folder(pub PathBuf);

impl Folder {
    pub(super) fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("edge-spool-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Folder(path)
    }
    pub(super) fn files(&self, sub: &str) -> Vec<String> {
        let mut v: Vec<_> = fs::read_dir(self.0.join(sub))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        v.sort();
        v
    }
    fn segment(&self) -> PathBuf {
        let name = self.files("").into_iter().find(|n| n.ends_with(".seg")).unwrap();
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub(super) fn real(dir: &Path) -> SpoolConfig {
    SpoolConfig {
        segment_bytes: 1 << 16,
        max_bytes: 1 << 20,
        max_record_bytes: 1 << 18,
        ..SpoolConfig::new(dir)
    }
}

pub(super) fn message(id: u64, len: usize, qos: Qos) -> Message {
    Message { topic: "t".into(), payload: payload(id, len), qos, ..Message::default() }
}

pub(super) fn stored(spool: &mut Spool, id: u64, len: usize) -> Seq {
    match spool.append(message(id, len, Qos::AtLeastOnce), "src", Some(1), id).unwrap() {
        Append::Stored { seq, .. } => seq,
        other => panic!("{other:?}"),
    }
}

pub(super) fn fill(spool: &mut Spool, ids: std::ops::RangeInclusive<u64>, len: usize) {
    for id in ids {
        stored(spool, id, len);
    }
    spool.settle().unwrap();
}

/// Everything there is, acknowledged.
pub(super) fn take_all(spool: &mut Spool) -> Vec<u64> {
    let mut ids = Vec::new();
    while let Some(d) = spool.next().unwrap() {
        ids.push(id_of(&d.record.message));
        spool.ack(d.record.seq);
    }
    ids
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

/// Bytes of one record of `fill`: fixed part, topic, source, payload.
fn record_bytes(len: usize) -> u64 {
    framed(20 + 1 + 3 + 8 + len as u64)
}

#[test]
fn a_flipped_byte_costs_one_record_and_the_rest_is_delivered() {
    let one = record_bytes(100);
    for within in [0, 5, 20, 41, 60, 150] {
        let dir = Folder::new("flip");
        let (mut spool, _) = Spool::open(real(&dir.0), None, 1).unwrap();
        fill(&mut spool, 1..=100, 100);
        drop(spool);
        flip(&dir.segment(), (FILE_HEADER + 49 * one + within) as usize);
        let (mut spool, report) = Spool::open(real(&dir.0), None, 2).unwrap();
        assert_eq!(report.torn_bytes, 0, "damage below what was acknowledged is no torn tail");
        let expected: Vec<u64> = (1..=100).filter(|id| *id != 50).collect();
        assert_eq!(take_all(&mut spool), expected);
        let stats = spool.stats();
        assert_eq!((stats.damaged, stats.damaged_records), (1, 1));
        let kept = dir.files("quarantine");
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert_eq!(fs::metadata(dir.0.join("quarantine").join(&kept[0])).unwrap().len(), one);
    }
}

#[test]
fn a_torn_tail_is_cut_at_every_byte_and_never_taken_for_damage() {
    let one = record_bytes(30) as usize;
    for stale in [0u8, 0xaa] {
        for kept in 0..one {
            let disk = SimDisk::default();
            let (mut spool, _) = open(&disk, config(), 1).unwrap();
            fill(&mut spool, 1..=2, 30);
            let at = FILE_HEADER as usize + 2 * one;
            let mark = FRAME_HEADER as usize;
            stored(&mut spool, 3, 30);
            drop(spool);
            let name = disk.names("0", ".seg").remove(0);
            let mut bytes = disk.content(&name);
            bytes[at + mark + kept..].fill(stale);
            disk.replace(&name, bytes);
            disk.restart(Crash::Process, &mut fastrand::Rng::with_seed(0));
            let (mut spool, report) = open(&disk, config(), 2).unwrap();
            assert_eq!(report.damaged, 0);
            let whole = kept >= FRAME_HEADER as usize + 20 + 1 + 3 + 8 + 30;
            let expected = if whole { vec![1, 2, 3] } else { vec![1, 2] };
            assert_eq!(take_all(&mut spool), expected, "kept {kept} bytes");
            assert_eq!(spool.stats().damaged, 0);
            fill(&mut spool, 4..=5, 30);
            assert_eq!(take_all(&mut spool), [4, 5]);
        }
    }
}

#[test]
fn a_damaged_segment_header_costs_no_record() {
    let dir = Folder::new("header");
    let (mut spool, _) = Spool::open(real(&dir.0), None, 1).unwrap();
    fill(&mut spool, 1..=50, 100);
    drop(spool);
    let path = dir.segment();
    let mut bytes = fs::read(&path).unwrap();
    bytes[..FILE_HEADER as usize].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let (mut spool, report) = Spool::open(real(&dir.0), None, 2).unwrap();
    assert_eq!(report.damaged, 1);
    assert_eq!(take_all(&mut spool), (1..=50).collect::<Vec<_>>());
}

#[test]
fn a_destroyed_segment_in_the_middle_is_kept_for_people_and_passed_over() {
    let disk = SimDisk::default();
    let (mut spool, _) = open(&disk, config(), 1).unwrap();
    fill(&mut spool, 1..=60, 100);
    drop(spool);
    let names = disk.names("0", ".seg");
    assert!(names.len() >= 3);
    disk.replace(&names[1], vec![0x55; 4096]);
    let (mut spool, report) = open(&disk, config(), 2).unwrap();
    assert_eq!(report.damaged, 1);
    let ids = take_all(&mut spool);
    assert!(ids.len() > 30 && ids.len() < 60 && ids.contains(&1) && ids.contains(&60), "{ids:?}");
    assert_eq!(spool.stats().damaged, 2, "the header and the rest");
    assert_eq!(disk.names("quarantine/", ".bin").len(), 2);
}

#[test]
fn a_damaged_journal_means_sending_again_never_losing() {
    for (both, how) in
        [(false, 8..80), (false, 64..180), (false, 0..4000), (true, 8..400), (true, 0..100_000)]
    {
        let dir = Folder::new("journal");
        drop(Spool::open(real(&dir.0), None, 1).unwrap());
        let (mut spool, _) = Spool::open(real(&dir.0), None, 1).unwrap();
        fill(&mut spool, 1..=20, 100);
        for _ in 0..10 {
            let d = spool.next().unwrap().unwrap();
            spool.ack(d.record.seq);
        }
        spool.close().unwrap();
        let generation = |name: &str| fs::read(dir.0.join(name)).unwrap()[12];
        let names = ["journal.0", "journal.1"];
        let newest = usize::from(generation(names[1]) > generation(names[0]));
        for (slot, name) in names.iter().enumerate() {
            if both || slot == newest {
                let mut bytes = fs::read(dir.0.join(name)).unwrap();
                let end = how.end.min(bytes.len());
                bytes[how.start..end].fill(if how.end > 1000 { 0 } else { 0x77 });
                fs::write(dir.0.join(name), bytes).unwrap();
            }
        }
        let (mut spool, report) = Spool::open(real(&dir.0), None, 2).unwrap();
        assert!(report.journal_lost, "{report}");
        let ids = take_all(&mut spool);
        assert!(ids.ends_with(&(11..=20).collect::<Vec<_>>()), "{ids:?}");
        let next = stored(&mut spool, 21, 10);
        assert_eq!(next, 21, "numbers go on");
    }
}

#[test]
fn a_later_format_is_refused_with_its_name() {
    for name in ["0000000001.seg", "journal.0"] {
        let dir = Folder::new("future");
        let (mut spool, _) = Spool::open(real(&dir.0), None, 1).unwrap();
        fill(&mut spool, 1..=1, 10);
        spool.close().unwrap();
        // Both journal files have been in use after this.
        drop(Spool::open(real(&dir.0), None, 1).unwrap());
        let path = dir.0.join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        let error = Spool::open(real(&dir.0), None, 1).err().unwrap();
        assert!(matches!(error, Error::Version { found: 2, known: 1, .. }), "{error}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

#[test]
fn one_folder_is_open_once() {
    let dir = Folder::new("lock");
    let (spool, _) = Spool::open(real(&dir.0), None, 1).unwrap();
    assert!(matches!(Spool::open(real(&dir.0), None, 1), Err(Error::InUse { .. })));
    drop(spool);
    assert!(Spool::open(real(&dir.0), None, 1).is_ok());
}

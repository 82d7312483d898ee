//! What a fuzzer does with the files of a spool; only compiled for it and for tests.
//!
//! Two ways, by the first byte: edits to the files of a small good spool, or arbitrary bytes as those files. Whatever
//! the files say, opening and reading ends without panic and every record that comes out is one that was put in.

use std::sync::Arc;

use super::engine::Engine;
use super::frame::Pos;
use super::sim::{Crash, SimDisk};
use super::{Append, Disk, Error, Spool, SpoolConfig, record, state};
use crate::mqtt::{Message, Qos};

fn config() -> SpoolConfig {
    SpoolConfig {
        segment_bytes: 4096,
        max_bytes: 8 * 4096,
        max_record_bytes: 8192,
        quarantine_bytes: 1 << 16,
        ..SpoolConfig::new("fuzz")
    }
}

fn open(disk: &SimDisk) -> Result<Spool, Error> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Ok(Spool::open_on(Arc::clone(&disk), Engine::inline(disk), config(), 7)?.0)
}

fn payload(id: u8) -> Vec<u8> {
    vec![id; usize::from(id) * 9]
}

/// A spool with a few segments, some records acknowledged, handshakes open both ways.
fn good() -> Result<SimDisk, Error> {
    let disk = SimDisk::default();
    let mut spool = open(&disk)?;
    for id in 1..=40u8 {
        let qos = if id % 3 == 0 { Qos::ExactlyOnce } else { Qos::AtLeastOnce };
        let m = Message { topic: "t".into(), payload: payload(id), qos, ..Message::default() };
        if let Append::Stored { seq, .. } = spool.append(m, "src", Some(u16::from(id)), 0)? {
            debug_assert_eq!(seq, u64::from(id));
        }
        if id % 5 == 0 {
            spool.settle()?;
        }
    }
    for pid in 1..=12 {
        if let Some(d) = spool.next()? {
            if pid % 2 == 0 {
                spool.ack(d.record.seq);
            } else {
                spool.out_published(d.record.seq, pid)?;
            }
        }
    }
    spool.out_received(3)?;
    spool.release("src", 6)?;
    spool.settle()?;
    Ok(disk)
}

thread_local! {
    static GOOD: Option<Vec<(String, Vec<u8>)>> = good().ok().map(|disk| disk.all());
}

/// Runs one input.
pub fn run(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let disk = SimDisk::default();
    let genuine = mode % 2 == 0;
    if genuine {
        GOOD.with(|files| edit(&disk, files.as_deref().unwrap_or(&[]), data));
    } else {
        let (a, b) = data.split_at(data.len() / 2);
        disk.put("0000000001.seg", a.to_vec());
        disk.put("journal.0", b.to_vec());
        let _ = record::decode(1, 1, data);
        for kind in [super::frame::Kind::Held, super::frame::Kind::Cursor] {
            let _ = state::Entry::decode(kind, Pos::new(1, 1).0, data);
        }
    }
    read(&disk, genuine);
    // What the first run left behind must be good for a second one.
    disk.restart(Crash::Process, &mut fastrand::Rng::with_seed(1));
    read(&disk, genuine);
}

/// Each edit is four bytes: file and what to do, place, value.
fn edit(disk: &SimDisk, files: &[(String, Vec<u8>)], edits: &[u8]) {
    let mut files = files.to_vec();
    for e in edits.chunks_exact(4) {
        let count = files.len().max(1);
        let Some((_, bytes)) = files.get_mut(usize::from(e[0]) % count) else { return };
        let place = usize::from(u16::from_le_bytes([e[1], e[2]]));
        match e[0] >> 5 {
            0 => bytes.truncate(place),
            1 => bytes.iter_mut().skip(place).take(usize::from(e[3])).for_each(|b| *b = 0),
            2 => bytes.iter_mut().skip(place).take(512).for_each(|b| *b = e[3]),
            3 => {
                // A frame, or part of one, at another place.
                let from = bytes.get(place..).unwrap_or(&[]).to_vec();
                let to = usize::from(e[3]) * 16;
                bytes.iter_mut().skip(to).zip(from).take(512).for_each(|(b, f)| *b = f);
            }
            _ => {
                if let Some(b) = bytes.get_mut(place) {
                    *b ^= e[3];
                }
            }
        }
    }
    for (name, bytes) in files {
        disk.put(&name, bytes);
    }
}

fn read(disk: &SimDisk, genuine: bool) {
    let Ok(mut spool) = open(disk) else { return };
    let mut last = 0;
    for i in 0..10_000u32 {
        let Ok(Some(d)) = spool.next() else { break };
        assert!(d.record.seq > last, "out of order");
        last = d.record.seq;
        if genuine && last <= 40 {
            let id = last as u8;
            // Where the end was cut off, the record that the first run added has the number.
            let found = &d.record.message.payload;
            assert!(*found == payload(id) || *found == [1], "record {id} is corrupt");
        }
        if i % 3 == 0 {
            spool.ack(d.record.seq);
        }
    }
    let m = Message { topic: "t".into(), payload: vec![1], qos: Qos::AtLeastOnce, ..Message::default() };
    let _ = spool.append(m, "src", None, 0);
    let _ = spool.settle();
}

#[cfg(test)]
mod tests {
    #[test]
    fn random_edits_never_panic_and_never_corrupt() {
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..1500 {
            let len = rng.usize(1..60);
            let mut data: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(len).collect();
            // Mostly edits, within the part of the files that is used.
            data[0] = rng.u8(..8) / 7;
            for e in data[1..].chunks_mut(4).filter(|e| e.len() == 4) {
                e[2] %= 16;
            }
            super::run(&data);
        }
    }
}

//! Bounds, policies, acknowledgements, full and failing disks: one property a test.

use std::path::PathBuf;
use std::time::Instant;

use super::sim::{Crash, SimDisk};
use super::sim_tests::{config, id_of, open, payload};
use super::tests::{Folder, fill, message, real, stored, take_all};
use super::*;
use crate::mqtt::Qos;
use std::fs;

#[test]
fn a_failed_sync_is_final_and_not_tried_again() {
    let disk = SimDisk::default();
    let (mut spool, _) = open(&disk, config(), 1).unwrap();
    fill(&mut spool, 1..=3, 50);
    let durable = spool.durable();
    stored(&mut spool, 4, 50);
    disk.fail_syncs(true);
    spool.flush(Instant::now()).unwrap();
    while spool.engine.step() {}
    let error = spool.poll().unwrap_err();
    assert!(error.is_final() && matches!(error, Error::Failed { .. }), "{error}");
    assert_eq!(spool.durable(), durable, "nothing more is acknowledged");
    disk.fail_syncs(false);
    let ops = disk.ops();
    assert!(spool.flush(Instant::now()).is_err());
    assert!(spool.append(message(5, 1, Qos::AtLeastOnce), "s", None, 0).is_err());
    assert!(spool.next().is_err() && spool.poll().is_err() && spool.settle().is_err());
    assert_eq!(disk.ops(), ops, "the disk was touched after a failed sync");
}

#[test]
fn the_bound_blocks_and_acknowledging_makes_room() {
    let disk = SimDisk::default();
    let (mut spool, _) = open(&disk, config(), 1).unwrap();
    let mut id = 0;
    let blocked = |spool: &mut Spool, id: &mut u64| {
        for _ in 0..1000 {
            let m = message(*id + 1, 200, Qos::AtLeastOnce);
            match spool.append(m, "src", None, 0).unwrap() {
                Append::Stored { .. } => *id += 1,
                Append::Blocked(back) => {
                    assert_eq!(id_of(&back), *id + 1, "the message comes back");
                    return true;
                }
                other => panic!("{other:?}"),
            }
            spool.settle().unwrap();
        }
        false
    };
    assert!(blocked(&mut spool, &mut id), "never blocked");
    assert!(!spool.has_room(200));
    assert!(disk.names("0", ".seg").len() <= 8 && spool.stats().disk_bytes <= config().max_bytes);
    let first = id;
    assert_eq!(take_all(&mut spool).len() as u64, first);
    spool.flush(Instant::now()).unwrap();
    spool.settle().unwrap();
    while spool.engine.step() {}
    spool.poll().unwrap();
    assert!(spool.has_room(200));
    assert!(blocked(&mut spool, &mut id) && id > first + 30, "room came back for {} only", id - first);
}

#[test]
fn a_full_disk_is_like_the_bound_and_survives_a_restart() {
    let disk = SimDisk::default();
    let (mut spool, _) = open(&disk, config(), 1).unwrap();
    fill(&mut spool, 1..=1, 200);
    disk.set_space(Some(4 * 4096 + 2 * (8 << 10)));
    let mut id = 1;
    loop {
        match spool.append(message(id + 1, 200, Qos::AtLeastOnce), "src", None, 0).unwrap() {
            Append::Stored { .. } => id += 1,
            Append::Blocked(_) => break,
            other => panic!("{other:?}"),
        }
        spool.settle().unwrap();
    }
    assert!(spool.stats().disk_full);
    drop(spool);
    disk.restart(Crash::Process, &mut fastrand::Rng::with_seed(0));
    let (mut spool, report) = open(&disk, config(), 2).unwrap();
    assert!(!report.journal_lost && report.damaged == 0);
    assert_eq!(take_all(&mut spool), (1..=id).collect::<Vec<_>>());
    let mut now = Instant::now();
    for _ in 0..5 {
        now += std::time::Duration::from_secs(3);
        spool.flush(now).unwrap();
        spool.settle().unwrap();
        while spool.engine.step() {}
        spool.poll().unwrap();
    }
    fill(&mut spool, id + 1..=id + 5, 200);
    assert_eq!(take_all(&mut spool).len(), 5);
}

#[test]
fn drop_oldest_spares_what_is_in_flight_and_what_must_not_be_dropped() {
    let disk = SimDisk::default();
    let mut c = config();
    c.full = FullByQos { qos0: Full::DropOldest, qos1: Full::DropOldest, qos2: Full::Block };
    let (mut spool, _) = open(&disk, c, 1).unwrap();
    fill(&mut spool, 1..=2, 200);
    let sent = spool.next().unwrap().unwrap().record.seq;
    let two = message(3, 200, Qos::ExactlyOnce);
    assert!(matches!(spool.append(two, "src", Some(9), 0).unwrap(), Append::Stored { .. }));
    // Past the segment with the one in flight and the QoS 2 one, and far over the bound.
    fill(&mut spool, 4..=400, 200);
    let stats = spool.stats();
    assert!(stats.dropped[1] > 200 && stats.dropped[2] == 0, "{stats:?}");
    assert!(stats.disk_bytes <= config().max_bytes);
    assert!(spool.ack(sent), "the one in flight is still there");
    let ids = take_all(&mut spool);
    assert!(ids.starts_with(&[2, 3]), "the QoS 2 record was dropped: {ids:?}");
    assert!(ids.ends_with(&[399, 400]) && ids.is_sorted());
    assert_eq!(ids.len() as u64 + 1 + stats.dropped[1], 400, "each drop is counted");
}

#[test]
fn drop_newest_drops_what_arrives() {
    let disk = SimDisk::default();
    let mut c = config();
    c.full.qos1 = Full::DropNewest;
    let (mut spool, _) = open(&disk, c, 1).unwrap();
    let mut dropped = 0;
    for id in 1..=400 {
        match spool.append(message(id, 200, Qos::AtLeastOnce), "src", None, 0).unwrap() {
            Append::Stored { .. } => assert_eq!(dropped, 0, "room appeared from nowhere"),
            Append::Dropped => dropped += 1,
            other => panic!("{other:?}"),
        }
        spool.settle().unwrap();
    }
    assert!(dropped > 200);
    assert_eq!(spool.stats().dropped[1], dropped);
    assert_eq!(take_all(&mut spool), (1..=400 - dropped).collect::<Vec<_>>());
}

#[test]
fn qos0_stays_in_memory_in_order_and_bounded() {
    let disk = SimDisk::default();
    let mut c = config();
    c.memory_bytes = 4000;
    let (mut spool, _) = open(&disk, c, 1).unwrap();
    for id in 1..=6u64 {
        let qos = if id % 2 == 0 { Qos::AtMostOnce } else { Qos::AtLeastOnce };
        spool.append(message(id, 50, qos), "src", None, 0).unwrap();
    }
    let ops = disk.ops();
    assert!(spool.next().unwrap().is_none(), "nothing is handed out before it is durable");
    spool.settle().unwrap();
    assert!(disk.ops() > ops);
    assert_eq!(take_all(&mut spool), [1, 2, 3, 4, 5, 6]);
    for id in 7..=100 {
        spool.append(message(id, 50, Qos::AtMostOnce), "src", None, 0).unwrap();
    }
    let stats = spool.stats();
    assert!(stats.memory < 15 && stats.dropped[0] == 94 - stats.memory as u64);
    let ids = take_all(&mut spool);
    assert!(ids.ends_with(&[99, 100]), "the oldest go: {ids:?}");
}

#[test]
fn memory_does_not_grow_with_the_queue() {
    let disk = SimDisk::default();
    let mut c = config();
    (c.max_bytes, c.window) = (4 << 20, 100);
    let (mut spool, _) = open(&disk, c.clone(), 1).unwrap();
    for id in 1..=5000 {
        stored(&mut spool, id, 300);
        if id % 50 == 0 {
            spool.settle().unwrap();
        }
        assert!(spool.reader.kept_bytes() <= c.tail_bytes);
        if id % 3 == 0 {
            spool.next().unwrap();
        }
    }
    assert_eq!(spool.stats().in_flight, 100, "the window bounds what is handed out");
    spool.rewind();
    let mut count = 0;
    while let Some(d) = spool.next().unwrap() {
        count += 1;
        assert_eq!(d.again, count <= 100);
        spool.ack(d.record.seq);
    }
    assert_eq!(count, 5000);
}

#[test]
fn a_record_larger_than_a_segment_gets_one_of_its_own() {
    let dir = Folder::new("large");
    let (mut spool, _) = Spool::open(real(&dir.0), None, 1).unwrap();
    fill(&mut spool, 1..=1, 200_000);
    fill(&mut spool, 2..=2, 10);
    fill(&mut spool, 3..=3, 250_000);
    let too_large = message(4, 300_000, Qos::AtLeastOnce);
    assert!(matches!(spool.append(too_large, "s", None, 0).unwrap(), Append::TooLarge(_)));
    drop(spool);
    let (mut spool, _) = Spool::open(real(&dir.0), None, 2).unwrap();
    assert_eq!(take_all(&mut spool), [1, 2, 3]);
}

#[test]
fn acknowledged_in_any_order_and_remembered_over_a_clean_restart() {
    let dir = Folder::new("acks");
    let (mut spool, _) = Spool::open(real(&dir.0), None, 1).unwrap();
    fill(&mut spool, 1..=10, 20);
    let seqs: Vec<Seq> = (0..8).map(|_| spool.next().unwrap().unwrap().record.seq).collect();
    for i in [1, 5, 0, 7] {
        assert!(spool.ack(seqs[i]));
        assert!(!spool.ack(seqs[i]), "twice");
    }
    assert!(!spool.ack(99));
    spool.rewind();
    let again: Vec<(u64, bool)> =
        std::iter::from_fn(|| spool.next().unwrap()).map(|d| (id_of(&d.record.message), d.again)).collect();
    let expected = [(3, true), (4, true), (5, true), (7, true), (9, false), (10, false)];
    assert_eq!(again, expected);
    assert_eq!(id_of(&spool.fetch(seqs[2]).unwrap().message), 3);
    assert!(matches!(spool.fetch(seqs[1]), Err(Error::NotInFlight { .. })));
    spool.close().unwrap();
    let (mut spool, report) = Spool::open(real(&dir.0), None, 2).unwrap();
    assert_eq!((report.cursor, report.next_seq, report.torn_bytes), (3, 11, 0));
    assert_eq!(take_all(&mut spool), [3, 4, 5, 7, 9, 10]);
}

#[test]
fn dead_letters_can_be_read_by_people_and_are_bounded() {
    let dir = Folder::new("dead");
    let mut c = real(&dir.0);
    c.dead_letter_count = 3;
    let (mut spool, _) = Spool::open(c, None, 1).unwrap();
    fill(&mut spool, 1..=5, 20);
    for _ in 1..=5 {
        let seq = spool.next().unwrap().unwrap().record.seq;
        spool.dead_letter(seq, "refused: \"not authorized\" (0x87)", 77).unwrap();
    }
    assert!(matches!(spool.dead_letter(1, "again", 0), Err(Error::NotInFlight { .. })));
    let files = dir.files("dead-letter");
    assert_eq!(files.len(), 3, "{files:?}");
    let stats = spool.stats();
    assert_eq!((stats.dead_letters, stats.dead_letters_removed, stats.queued), (5, 2, 0));
    let bytes = fs::read(dir.0.join("dead-letter").join(&files[2])).unwrap();
    let split = bytes.windows(2).position(|w| w == b"\n\n").unwrap();
    let head: serde_json::Value = serde_json::from_slice(&bytes[..split]).unwrap();
    assert_eq!(head["reason"], "refused: \"not authorized\" (0x87)");
    assert_eq!((&head["seq"], &head["topic"]), (&5.into(), &"t".into()));
    assert_eq!(bytes[split + 2..], payload(5, 20));
    drop(spool);
    let (mut spool, _) = Spool::open(real(&dir.0), None, 1).unwrap();
    assert!(take_all(&mut spool).len() <= 5, "at most what a crash forgot");
}

#[test]
fn sessions_lost_clear_what_was_held_and_send_again_as_new() {
    let disk = SimDisk::default();
    let (mut spool, _) = open(&disk, config(), 1).unwrap();
    for pid in 1..=3 {
        spool.append(message(u64::from(pid), 10, Qos::ExactlyOnce), "a", Some(pid), 0).unwrap();
    }
    spool.append(message(4, 10, Qos::ExactlyOnce), "b", Some(1), 0).unwrap();
    spool.settle().unwrap();
    assert_eq!(spool.held("a").collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(spool.is_held_same("a", 1, &message(1, 10, Qos::ExactlyOnce)), Some(true));
    assert_eq!(spool.is_held_same("a", 1, &message(9, 10, Qos::ExactlyOnce)), Some(false));
    spool.release("a", 2).unwrap().unwrap();
    assert!(spool.release("a", 2).unwrap().is_none());
    spool.in_session_lost("a").unwrap();
    for pid in [10, 11] {
        let seq = spool.next().unwrap().unwrap().record.seq;
        spool.out_published(seq, pid).unwrap();
    }
    spool.out_received(10).unwrap().unwrap();
    spool.settle().unwrap();
    drop(spool);
    let (mut spool, report) = open(&disk, config(), 2).unwrap();
    assert_eq!((report.held, report.outbound), (1, 2));
    assert!(spool.is_held("b", 1) && !spool.is_held("a", 1));
    let first = spool.next().unwrap().unwrap();
    assert_eq!((first.again, first.outbound), (true, Some((10, OutState::Received))));
    spool.out_session_lost().unwrap();
    let first = spool.next().unwrap().unwrap();
    assert_eq!((id_of(&first.record.message), first.outbound), (1, None));
    assert_eq!(spool.outbound().count(), 0);
}

#[test]
fn a_small_file_system_that_fills_up_loses_nothing() {
    let dir = Folder::new("tmpfs");
    fs::create_dir_all(&dir.0).unwrap();
    let mount = |args: &[&str]| {
        std::process::Command::new("mount").args(args).arg(&dir.0).output().is_ok_and(|o| o.status.success())
    };
    if !mount(&["-t", "tmpfs", "-o", "size=3m", "edge-test"]) {
        println!("skipped: a_small_file_system_that_fills_up_loses_nothing (no right to mount a tmpfs)");
        return;
    }
    let unmount = || drop(std::process::Command::new("umount").arg("-l").arg(&dir.0).output());
    let result = std::panic::catch_unwind(|| {
        let c = SpoolConfig { max_bytes: 64 << 20, ..real(&dir.0.join("spool")) };
        let (mut spool, _) = Spool::open(c.clone(), None, 1).unwrap();
        let mut id = 0;
        loop {
            match spool.append(message(id + 1, 3000, Qos::AtLeastOnce), "s", None, 0).unwrap() {
                Append::Stored { .. } => id += 1,
                Append::Blocked(_) => break,
                other => panic!("{other:?}"),
            }
            spool.settle().unwrap();
            assert!(id < 1000, "never full");
        }
        assert!(spool.stats().disk_full && id > 100, "{id}");
        drop(spool);
        let (mut spool, _) = Spool::open(c, None, 2).unwrap();
        assert_eq!(take_all(&mut spool), (1..=id).collect::<Vec<_>>());
        let mut now = Instant::now();
        for _ in 0..20 {
            now += std::time::Duration::from_secs(3);
            spool.flush(now).unwrap();
            spool.settle().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            spool.poll().unwrap();
        }
        fill(&mut spool, id + 1..=id + 100, 3000);
        assert_eq!(take_all(&mut spool).len(), 100);
    });
    unmount();
    if let Err(e) = result {
        std::panic::resume_unwind(e);
    }
}

/// Not a test of correctness: what the group commit reaches here.
#[test]
#[ignore = "a measurement; run with --release --ignored --nocapture"]
fn throughput() {
    let base = std::env::var_os("EDGE_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = Folder(base.join(format!("edge-spool-throughput-{}", std::process::id())));
    let _ = fs::remove_dir_all(&dir.0);
    let mut poll = mio::Poll::new().unwrap();
    let waker = Arc::new(Waker::new(poll.registry(), mio::Token(0)).unwrap());
    let (mut spool, _) = Spool::open(SpoolConfig::new(&dir.0), Some(waker), 1).unwrap();
    let env = |name, default| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (n, window) = (env("EDGE_BENCH_RECORDS", 200_000), env("EDGE_BENCH_WINDOW", 1000) as usize);
    let mut events = mio::Events::with_capacity(8);
    let start = Instant::now();
    let (mut sent, mut waiting, mut acked) = (0, std::collections::VecDeque::new(), 0);
    while acked < n {
        while sent < n && waiting.len() < window {
            match spool.append(message(sent, 1016, Qos::AtLeastOnce), "src", Some(1), 0).unwrap() {
                Append::Stored { ticket, .. } => waiting.push_back(ticket),
                other => panic!("{other:?}"),
            }
            sent += 1;
        }
        spool.flush(Instant::now()).unwrap();
        poll.poll(&mut events, Some(std::time::Duration::from_secs(1))).unwrap();
        spool.poll().unwrap();
        while waiting.front().is_some_and(|t| *t <= spool.durable()) {
            waiting.pop_front();
        }
        while let Some(d) = spool.next().unwrap() {
            spool.ack(d.record.seq);
            acked += 1;
        }
    }
    let took = start.elapsed();
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let stats = spool.stats();
    println!(
        "{n} records of 1 KiB in {took:.2?}: {:.0}/s, {} commits ({:.0} a commit), CPU {:.1} us a record",
        n as f64 / took.as_secs_f64(),
        stats.commits,
        n as f64 / stats.commits as f64,
        (usage.tv_sec as f64 * 1e6 + usage.tv_nsec as f64 / 1e3) / n as f64
    );
}

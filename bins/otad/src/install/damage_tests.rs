//! Damage, refusals and what comes back from them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use super::tests::*;
use super::*;

/// One app of the kind file, installed.
fn release(store: &mut Store, epoch: u64, min_epoch: u64) -> GenId {
    let manifest = plain(store, epoch, min_epoch);
    install(store, &manifest)
}

fn plain(store: &mut Store, epoch: u64, min_epoch: u64) -> Manifest {
    let content = format!("release {epoch}").into_bytes();
    fetch(store, &content);
    Manifest::new(vec![Item { min_epoch, ..item("app", FILE, epoch, &content) }]).unwrap()
}

/// One that is about to be tried.
fn announce(store: &mut Store, epoch: u64) -> (GenId, Manifest) {
    let manifest = plain(store, epoch, 0);
    let id = store.build(&manifest).unwrap();
    store.begin_trial(&id).unwrap();
    (id, manifest)
}

fn shown(dir: &Path) -> String {
    fs::read_to_string(dir.join("current/app/app")).unwrap()
}

#[test]
fn a_damaged_state_is_what_the_link_says() {
    let (_scratch, dir, mut store) = fresh("state");
    let one = release(&mut store, 1, 0);
    let (two, _) = announce(&mut store, 2);
    drop(store);
    // At `from`: whatever was planned is forgotten.
    fs::write(dir.join("state"), "garbage").unwrap();
    let (mut store, recovery) = Store::open(&dir, limits()).unwrap();
    assert_eq!((store.state(), recovery.trial), (&State::Settled { current: Some(one) }, Recovered::Nothing));
    assert!(recovery.notes[0].contains("state is damaged"), "{recovery:?}");
    assert!(!dir.join(format!("gens/{two}")).exists());
    // A commit after it raises the marks as ever.
    let two = release(&mut store, 2, 0);
    assert_eq!(store.high_water("app", "prod").epoch, 2);
    drop(store);
    for bytes in [None, Some(&b""[..])] {
        fs::remove_file(dir.join("state")).unwrap();
        bytes.map_or(Ok(()), |bytes| fs::write(dir.join("state"), bytes)).unwrap();
        let store = open(&dir);
        assert_eq!(store.state(), &State::Settled { current: Some(two) });
        assert_eq!(store.previous().map(|(id, _)| *id), Some(one));
    }
    // No link: nothing is installed, and nothing is guessed from the folders.
    fs::remove_file(dir.join("state")).unwrap();
    fs::remove_file(dir.join("current")).unwrap();
    assert_eq!(open(&dir).state(), &State::Settled { current: None });
}

#[test]
fn lost_marks_come_from_what_was_committed() {
    let (_scratch, dir, mut store) = fresh("marks");
    for epoch in 1..=5 {
        release(&mut store, epoch, epoch / 2);
    }
    let (_, newer) = announce(&mut store, 9);
    store.switch(Timestamp(1)).unwrap();
    drop(store);
    let mark =
        |store: &Store| (store.high_water("app", "prod").epoch, store.high_water("app", "prod").min_epoch);
    let lose = |names: &[&str]| names.iter().for_each(|name| fs::write(dir.join(name), "garbage").unwrap());
    for lost in [&["highwater"][..], &["highwater", "history"]] {
        lose(lost);
        let (store, recovery) = Store::open(&dir, limits()).unwrap();
        assert_eq!(mark(&store), (5, 2), "what is only tried raises nothing");
        assert!(recovery.notes.iter().any(|note| note.contains("highwater is damaged")), "{recovery:?}");
    }
    let mut store = open(&dir);
    store.roll_back("bad", true, Timestamp(7)).unwrap();
    let old = plain(&mut store, 3, 0);
    assert!(store.build(&old).unwrap_err().to_string().contains("older than what was committed (epoch 5"));
    drop(store);
    fs::remove_file(dir.join("highwater")).unwrap();
    fs::remove_file(dir.join("quarantine")).unwrap();
    let store = open(&dir);
    assert_eq!(mark(&store), (5, 2));
    assert!(store.is_quarantined(&newer.hash()), "from the history");
}

#[test]
fn a_trial_is_counted_and_swapped_back() {
    let (_scratch, dir, mut store) = fresh("tries");
    let one = release(&mut store, 1, 0);
    let (two, manifest) = announce(&mut store, 2);
    store.switch(Timestamp(1)).unwrap();
    assert!(store.build(&manifest).unwrap_err().to_string().contains("being tried"));
    assert!(matches!(recover(&dir), Err(Error::Locked(_))));
    drop(store);
    for tries in 1..=TRIES_MAX {
        assert_eq!(recover(&dir).unwrap().trial, Recovered::Trial { to: two, tries });
        // A restart of the daemon alone is none of the device.
        assert_eq!(Store::open(&dir, limits()).unwrap().1.trial, Recovered::Trial { to: two, tries });
        assert_eq!(shown(&dir), "release 2");
    }
    assert_eq!(recover(&dir).unwrap().trial, Recovered::RolledBack(two));
    assert_eq!(shown(&dir), "release 1");
    let mut store = open(&dir);
    assert_eq!(store.state(), &State::Settled { current: Some(one) });
    assert!(store.build(&manifest).unwrap_err().to_string().contains("within 3 starts"));
    // A newer release is another thing.
    release(&mut store, 3, 0);
    assert_eq!(shown(&dir), "release 3");
}

#[test]
fn a_floor_bars_the_way_back() {
    let (_scratch, _, mut store) = fresh("floor");
    assert!(store.roll_back("no", false, Timestamp(1)).is_err());
    release(&mut store, 1, 0);
    assert!(store.roll_back("no", false, Timestamp(1)).unwrap_err().to_string().contains("no earlier"));
    let two = release(&mut store, 2, 2);
    let error = store.roll_back("no", true, Timestamp(1)).unwrap_err().to_string();
    assert!(error.contains("app has epoch 1") && error.contains("less than 2"), "{error}");
    assert_eq!(store.state(), &State::Settled { current: Some(two) });
    assert!(store.quarantined().is_empty());
}

#[test]
fn somebody_elses_link_is_mended() {
    let (_scratch, dir, mut store) = fresh("link");
    let one = release(&mut store, 1, 0);
    let two = release(&mut store, 2, 0);
    drop(store);
    let link = |target: &str| {
        let _ = fs::remove_file(dir.join("current"));
        std::os::unix::fs::symlink(target, dir.join("current")).unwrap();
    };
    for target in ["/etc", "gens/9-00000000", "gens/../../x"] {
        link(target);
        let (store, recovery) = Store::open(&dir, limits()).unwrap();
        assert_eq!((store.state(), recovery.notes.len()), (&State::Settled { current: Some(two) }, 1));
        assert_eq!(shown(&dir), "release 2");
    }
    // One of ours that is kept is what runs.
    link(&format!("gens/{one}"));
    assert_eq!(open(&dir).state(), &State::Settled { current: Some(one) });
}

#[test]
fn a_partial_file_is_gone_on_with() {
    let scratch = Scratch::new("partial");
    let dir = scratch.0.join("store");
    let content: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let wanted = item("app", FILE, 1, &content);
    let (sha256, size) = (wanted.sha256, wanted.size);
    {
        let mut store = open(&dir);
        let mut partial = store.partial(&sha256, size).unwrap();
        partial.write(&content[..60_000]).unwrap();
        assert!(partial.finish().unwrap_err().is_content());
    }
    let mut store = open(&dir);
    let mut partial = store.partial(&sha256, size).unwrap();
    assert_eq!((partial.have(), store.blob(&sha256)), (60_000, None));
    assert!(partial.write(&content).unwrap_err().is_content(), "longer than announced");
    partial.write(&content[60_000..]).unwrap();
    assert_eq!(fs::read(partial.finish().unwrap().path).unwrap(), content);

    // Damaged meanwhile, or the content of something else: it is found out, and the next try begins anew.
    let other = item("app", FILE, 1, b"something else");
    fs::write(dir.join(format!("blobs/{}.part", other.sha256)), "something bad!").unwrap();
    let partial = store.partial(&other.sha256, other.size).unwrap();
    assert_eq!(partial.have(), 14);
    assert!(partial.finish().unwrap_err().to_string().contains("its SHA-256"));
    let mut partial = store.partial(&other.sha256, other.size).unwrap();
    assert_eq!(partial.have(), 0);
    partial.write(b"some").unwrap();
    partial.abandon().unwrap();
    partial.write(b"something else").unwrap();
    partial.finish().unwrap();
    fs::write(dir.join(format!("blobs/{}.part", other.sha256)), "longer than it will ever be").unwrap();
    assert_eq!(store.partial(&other.sha256, other.size).unwrap().have(), 0);
    let small = Limits { blob_bytes_max: 10, ..limits() };
    drop(store);
    let mut store = Store::open(&dir, small).unwrap().0;
    assert!(store.partial(&other.sha256, 11).is_err());
    let mut incoming = store.incoming(1000).unwrap();
    assert!(incoming.write(&[0; 11]).unwrap_err().is_content());
    drop(incoming);
    assert!(!store.disk.names("blobs").unwrap().iter().any(|name| name.starts_with('.')));
}

#[test]
fn what_is_incoming_gets_its_name_in_the_end() {
    let (_scratch, _, mut store) = fresh("incoming");
    for _ in 0..2 {
        let mut incoming = store.incoming(1000).unwrap();
        incoming.write(b"con").unwrap();
        incoming.write(b"tent").unwrap();
        let (blob, sums) = incoming.finish().unwrap();
        assert_eq!((blob.size, blob.sha256, sums.md5), (7, sums.sha256, item("a", FILE, 1, b"content").md5));
        assert_eq!(store.blob(&sums.sha256), Some(blob));
    }
    assert_eq!(store.disk.names("blobs").unwrap().len(), 1);
}

#[test]
fn unchanged_apps_cost_nothing_and_modes_do_not_mix() {
    let (_scratch, dir, mut store) = fresh("links");
    let tree = archive(&[("data", 0o644, &[1; 1000])]);
    fetch(&mut store, &tree);
    fetch(&mut store, b"tool");
    let items = |mode: u32, epoch: u64| {
        vec![item("tree", Kind::Tar, 1, &tree), item("tool", Kind::File { mode }, epoch, b"tool")]
    };
    let one = install(&mut store, &Manifest::new(items(0o755, 1)).unwrap());
    store.gc(&[]).unwrap();
    assert_eq!(store.disk.names("blobs").unwrap().len(), 1, "an unpacked archive is not kept as well");
    let two = install(&mut store, &Manifest::new(items(0o700, 2)).unwrap());
    let look = |id: &GenId, path: &str| fs::metadata(dir.join(format!("gens/{id}/{path}"))).unwrap();
    assert_eq!(look(&one, "tree/data").ino(), look(&two, "tree/data").ino());
    assert_eq!(look(&one, "tool/tool").permissions().mode() & 0o7777, 0o755);
    assert_eq!(look(&two, "tool/tool").permissions().mode() & 0o7777, 0o700);
    assert_eq!((store.verify(&one).unwrap(), store.verify(&two).unwrap()), (vec![], vec![]));
    fs::write(dir.join(format!("gens/{two}/tree/data")), [2; 1000]).unwrap();
    fs::write(dir.join(format!("gens/{two}/tool/tool")), "evil").unwrap();
    let damage: Vec<String> = store.verify(&two).unwrap().into_iter().map(|damage| damage.app).collect();
    assert_eq!(damage, ["tool", "tree"]);
}

#[test]
fn a_refusal_leaves_everything_as_it_was() {
    let (_scratch, dir, mut store) = fresh("refusal");
    let one = release(&mut store, 1, 0);
    let before = store.disk.names("gens").unwrap();
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..9].copy_from_slice(b"/absolute");
    header.set_size(0);
    header.set_mode(0o644);
    header.set_cksum();
    let bad = header.as_bytes().to_vec();
    fetch(&mut store, &bad);
    let lacking = Manifest::new(vec![item("app", FILE, 2, b"never fetched")]).unwrap();
    let hostile = Manifest::new(vec![item("app", Kind::Tar, 2, &bad)]).unwrap();
    assert!(matches!(store.build(&lacking), Err(Error::Lacking { .. })));
    assert!(store.build(&hostile).unwrap_err().is_content());
    assert!(
        store.begin_trial(&one).is_err()
            && store.switch(Timestamp(1)).is_err()
            && store.commit(Timestamp(1)).is_err()
    );
    assert_eq!(store.disk.names("gens").unwrap(), before);
    assert_eq!(shown(&dir), "release 1");
    for items in [
        vec![item("a", FILE, 1, b""), item("A", FILE, 1, b"")],
        vec![item("../a", FILE, 1, b"")],
        vec![item("a", Kind::File { mode: 0o4755 }, 1, b"")],
        vec![item("a", Kind::File { mode: 0o777 }, 1, b"")],
        vec![Item { env: "../x".into(), ..item("a", FILE, 1, b"") }],
        vec![Item { version: "a\nb".into(), ..item("a", FILE, 1, b"") }],
    ] {
        assert!(Manifest::new(items).is_err());
    }
}

#[test]
fn no_space_is_said_before_anything_is_done() {
    let scratch = Scratch::new("space");
    let dir = scratch.0.join("store");
    let one = release(&mut open(&dir), 1, 0);
    let tight = Limits { free_bytes_min: 1 << 60, ..limits() };
    let mut store = Store::open(&dir, tight).unwrap().0;
    let wanted = item("app", FILE, 2, b"x");
    assert!(store.partial(&wanted.sha256, 1).unwrap_err().is_space());
    assert!(store.incoming(10).unwrap_err().is_space());
    drop(store);
    let blob = fetch(&mut open(&dir), b"x");
    assert!(blob.path.exists());
    let mut store = Store::open(&dir, tight).unwrap().0;
    let error = store.build(&Manifest::new(vec![wanted]).unwrap()).unwrap_err();
    assert!(error.is_space() && error.to_string().contains("free-bytes-min"), "{error}");
    assert_eq!(store.state(), &State::Settled { current: Some(one) });
}

#[test]
fn a_full_disk_leaves_what_runs() {
    let scratch = Scratch::new("full");
    let mounted = scratch.0.join("disk");
    fs::create_dir(&mounted).unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2m", "otad-test"])
        .arg(&mounted)
        .stderr(std::process::Stdio::null())
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        println!("skipped: a_full_disk_leaves_what_runs: a tmpfs can't be mounted here");
        return;
    }
    let dir = mounted.join("store");
    let outcome = std::panic::catch_unwind(|| {
        let mut store = open(&dir);
        let one = release(&mut store, 1, 0);
        // Twice as large as what is left once it is unpacked; its own estimate is wrong.
        let mut bomb = gzip(&archive(&[("a", 0o644, &vec![7; 1 << 20]), ("b", 0o644, &vec![7; 3 << 20])]));
        let end = bomb.len();
        bomb[end - 4..].copy_from_slice(&[0; 4]);
        fetch(&mut store, &bomb);
        let manifest = Manifest::new(vec![item("app", Kind::Tar, 2, &bomb)]).unwrap();
        let error = store.build(&manifest).unwrap_err();
        assert!(error.is_space(), "{error}");
        let wanted = item("app", FILE, 2, &vec![3; 3 << 20]);
        assert!(store.partial(&wanted.sha256, wanted.size).unwrap_err().is_space());
        let mut incoming = store.incoming(8 << 20).unwrap();
        let full = (0..8).find_map(|_| incoming.write(&vec![1; 1 << 20]).err()).unwrap();
        assert!(full.is_space());
        drop(incoming);
        assert_eq!(
            (store.state(), shown(&dir)),
            (&State::Settled { current: Some(one) }, "release 1".to_owned())
        );
        release(&mut store, 2, 0);
        assert_eq!(shown(&dir), "release 2");
    });
    let _ = std::process::Command::new("umount").arg(&mounted).status();
    outcome.unwrap();
}

#[test]
fn the_clock_never_runs_behind_its_mark() {
    let (_scratch, dir, mut store) = fresh("clock");
    let day = 86_400;
    assert_eq!(store.clock(Timestamp(20_000 * day)).unwrap(), Timestamp(20_000 * day));
    assert_eq!(store.clock(Timestamp(5)).unwrap(), Timestamp(20_000 * day), "no battery");
    assert_eq!(store.clock(Timestamp(20_000 * day + 60)).unwrap(), Timestamp(20_000 * day + 60));
    drop(store);
    let mut store = open(&dir);
    assert_eq!(store.clock_mark(), Timestamp(20_000 * day));
    assert_eq!(store.clock(Timestamp(0)).unwrap(), Timestamp(20_000 * day));
}

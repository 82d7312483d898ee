//! Whole updates with the real store, for the program that is killed and for the test that looks at what it left.

use std::path::Path;

use edge::release::{Digests, Sums, Timestamp};
use otad::install::{Error, GenId, Item, Kind, Limits, Manifest, Recovery, State, Store};

pub const APPS: [&str; 4] = ["image", "same", "Tool", "tree"];

pub fn limits() -> Limits {
    Limits { free_bytes_min: 0, ..Limits::default() }
}

fn sums(bytes: &[u8]) -> Sums {
    let mut digests = Digests::default();
    digests.update(bytes);
    digests.finish()
}

/// The content of an app at an epoch. `same` is always the same.
pub fn content(app: &str, epoch: u64) -> Vec<u8> {
    match app {
        "image" => format!("an image for a handler, {epoch}\n").repeat(200).into_bytes(),
        "Tool" => format!("#!/bin/sh\necho {epoch}\n").into_bytes(),
        "same" => archive("same"),
        _ => archive(&epoch.to_string()),
    }
}

/// An archive with folders, a link of each kind, and enough files for one flush of all.
fn archive(text: &str) -> Vec<u8> {
    let mut builder =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let header = |kind: tar::EntryType, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(size as u64);
        header
    };
    for n in 0..4 {
        let body = format!("{text} {n}");
        let mut header = header(tar::EntryType::Regular, body.len());
        builder.append_data(&mut header, format!("bin/{n}"), body.as_bytes()).expect("memory");
    }
    let (mut soft, mut hard) = (header(tar::EntryType::Symlink, 0), header(tar::EntryType::Link, 0));
    builder.append_link(&mut soft, "run", "bin/0").expect("memory");
    builder.append_link(&mut hard, "lib/again", "bin/1").expect("memory");
    builder.into_inner().expect("memory").finish().expect("memory")
}

/// All apps of an epoch; `small`: one file only.
pub fn manifest(epoch: u64, small: bool) -> Manifest {
    let apps = if small { &APPS[2..3] } else { &APPS[..] };
    let item = |app: &&str| {
        let kind = match *app {
            "image" => Kind::Handler,
            "Tool" => Kind::File { mode: 0o755 },
            _ => Kind::Tar,
        };
        let Sums { sha256, md5, size } = sums(&content(app, epoch));
        let epoch = if *app == "same" { 1 } else { epoch };
        let (app, version, env) = (app.to_string(), format!("{epoch}.0"), "prod".to_owned());
        Item { app, kind, version, env, epoch, min_epoch: 0, md5, sha256, size, statement: None }
    };
    Manifest::new(apps.iter().map(item).collect()).expect("it is sound")
}

/// Fetches what is lacking: one half as with `files`, one as with `bundle`.
fn fetch(store: &mut Store, manifest: &Manifest) -> Result<(), Error> {
    for (n, item) in manifest.items().iter().enumerate() {
        let have = store.current().is_some_and(|(_, m)| m.items().iter().any(|i| i.sha256 == item.sha256));
        if have || store.blob(&item.sha256).is_some() {
            continue;
        }
        let bytes = content(&item.app, item.epoch);
        if n % 2 == 0 {
            let mut partial = store.partial(&item.sha256, item.size)?;
            let rest = &bytes[partial.have() as usize..];
            rest.chunks(1 + bytes.len() / 2).try_for_each(|piece| partial.write(piece))?;
            partial.finish()?;
        } else {
            let mut incoming = store.incoming(1 << 20)?;
            incoming.write(&bytes)?;
            incoming.finish()?;
        }
    }
    Ok(())
}

/// Up to the switch.
fn to_trial(store: &mut Store, manifest: &Manifest) -> Result<GenId, Error> {
    fetch(store, manifest)?;
    let id = store.build(manifest)?;
    store.begin_trial(&id)?;
    store.switch(Timestamp(10))?;
    Ok(id)
}

/// One update as the daemon does it; an error after the switch goes back.
fn update(store: &mut Store, manifest: &Manifest) -> Result<(), Error> {
    to_trial(store, manifest)?;
    store.commit(Timestamp(11))?;
    // What is not removed now is removed after the next one.
    let _ = store.gc(&[]);
    Ok(())
}

/// Opens it. A process that another thread of a test is just starting has the lock for a moment.
pub fn open(dir: &Path) -> Result<(Store, Recovery), Error> {
    loop {
        match Store::open(dir, limits()) {
            Err(Error::Locked(_)) => std::thread::sleep(std::time::Duration::from_millis(1)),
            opened => return opened,
        }
    }
}

/// Recovers it, likewise.
pub fn recover(dir: &Path) -> Result<Recovery, Error> {
    loop {
        match otad::install::recover(dir) {
            Err(Error::Locked(_)) => std::thread::sleep(std::time::Duration::from_millis(1)),
            recovered => return recovered,
        }
    }
}

/// Content that is far larger than the memory it may take, in pieces: a file, and an archive that expands to as much.
fn big(store: &mut Store) -> Result<(), Error> {
    const PIECE: usize = 64 << 10;
    const SIZE: u64 = 64 << 20;
    let mut file = store.incoming(SIZE)?;
    for n in 0..SIZE / PIECE as u64 {
        file.write(&[n as u8; PIECE])?;
    }
    let (_, file) = file.finish()?;
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").expect("short");
    header.set_size(SIZE);
    header.set_mode(0o644);
    header.set_cksum();
    let body = std::io::Read::take(std::io::repeat(0), SIZE + 1024);
    let plain = std::io::Read::chain(&header.as_bytes()[..], body);
    let mut packed = flate2::read::GzEncoder::new(plain, flate2::Compression::fast());
    let (mut archive, mut buffer) = (store.incoming(SIZE)?, vec![0; PIECE]);
    loop {
        match std::io::Read::read(&mut packed, &mut buffer).expect("memory") {
            0 => break,
            n => archive.write(&buffer[..n])?,
        }
    }
    let (_, archive) = archive.finish()?;
    let item = |app: &str, kind, sums: Sums| {
        let Sums { sha256, md5, size } = sums;
        let (app, version, env) = (app.to_owned(), "1".to_owned(), "prod".to_owned());
        Item { app, kind, version, env, epoch: 1, min_epoch: 0, md5, sha256, size, statement: None }
    };
    let items = vec![item("file", Kind::File { mode: 0o755 }, file), item("zeros", Kind::Tar, archive)];
    let id = store.build(&Manifest::new(items)?)?;
    assert_eq!(store.verify(&id)?, []);
    Ok(())
}

/// `big`: see there; `first`, `second`: installs and commits epoch 1 or 2; `small`: one file, from nothing; `bad`: epoch 2 that is not
/// well; `trial`: epoch 2 up to the switch; `manual`: the operator goes back.
pub fn run(dir: &Path, what: &str) -> Result<(), Error> {
    let (mut store, _) = open(dir)?;
    let done = match what {
        "first" => update(&mut store, &manifest(1, false)),
        "small" => update(&mut store, &manifest(1, true)),
        "second" => update(&mut store, &manifest(2, false)),
        "trial" => return to_trial(&mut store, &manifest(2, false)).map(drop),
        "bad" => to_trial(&mut store, &manifest(2, false))
            .and_then(|_| store.roll_back("the unit does not start", true, Timestamp(12)))
            .and_then(|()| store.gc(&[])),
        "big" => big(&mut store),
        "manual" => store.roll_back("the operator wants it", true, Timestamp(13)),
        _ => panic!("no such scenario: {what}"),
    };
    if done.is_err() && matches!(store.state(), State::Trial { .. }) {
        // What the daemon does; if the disk refuses, the next start does it.
        let _ = store.roll_back("the disk failed", false, Timestamp(14));
    }
    done
}

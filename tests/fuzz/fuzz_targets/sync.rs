//! What a hostile client sends of the sync protocol: paths, manifests, chunk lists, records; and the two ways to name content.
//! Whatever is accepted is encoded to something that reads back the same. The first byte selects the parser.
#![no_main]

use edge::sync::chunk::{self, Chunk};
use edge::sync::manifest::{Limits, Manifest};
use edge::sync::wire::{self, ChunkLists, Decoder, PIECE_MAX, Record, Worth};
use edge::sync::{RelPath, content};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&selector, data)) = data.split_first() else { return };
    match selector % 5 {
        0 => path(data),
        1 => manifest(data),
        2 => lists(data),
        3 => records(data),
        _ => chunks(data),
    }
});

fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(path) = RelPath::new(text) {
        assert!(path.len() <= 1024 && !path.starts_with('/'));
        assert!(path.split('/').all(|name| !matches!(name, "" | "." | "..") && name.len() <= 255));
        assert!(!path.bytes().any(|b| b == 0 || b == b'\\' || b == b'\n'));
        assert_ne!(path.split('/').next(), Some(".sideloadd"));
        assert!(path.parents().all(|parent| RelPath::new(parent).is_ok()));
    }
}

fn manifest(data: &[u8]) {
    let limits = Limits { files_max: 1000, bytes_max: 1 << 20 };
    let Ok(manifest) = Manifest::decode(data, &limits) else { return };
    let entries = manifest.entries();
    assert!(entries.len() <= limits.files_max);
    assert!(entries.is_sorted_by(|a, b| a.path < b.path));
    for entry in entries {
        assert!(entry.mode <= 0o777);
        assert_eq!(manifest.get(&entry.path), Some(entry));
        assert!(entry.path.parents().all(|folder| manifest.get(folder).is_none()), "{}", entry.path);
    }
    let again = Manifest::decode(&manifest.encode(), &Limits { files_max: 1000, bytes_max: usize::MAX });
    assert_eq!(again.as_ref().map(Manifest::id), Ok(manifest.id()));
    assert_eq!(again, Ok(manifest));
}

fn lists(data: &[u8]) {
    let Ok(lists) = ChunkLists::decode(data) else { return };
    assert!(lists.0.iter().flat_map(|(_, list)| list).all(|c| (1..=chunk::MAX).contains(&(c.len as usize))));
    assert_eq!(ChunkLists::decode(&lists.encode()), Ok(lists));
}

/// The same records however the stream is cut.
fn records(data: &[u8]) {
    let whole = decode(data, data.len().max(1));
    assert_eq!(decode(data, 1 + data.len() / 7), whole);
    if data.len() < 4096 {
        assert_eq!(decode(data, 1), whole);
    }
    let (mut bytes, mut worth) = (Vec::new(), Worth::default());
    wire::begin(&mut bytes);
    for record in &whole.0 {
        wire::encode(record.entry, record.offset, &record.data, &mut worth, &mut bytes);
    }
    assert_eq!(decode(&bytes, bytes.len()), (whole.0, true, true));
}

/// The records, whether there was no error, whether the stream may end there.
fn decode(data: &[u8], piece: usize) -> (Vec<Record>, bool, bool) {
    let (mut decoder, mut found) = (Decoder::new(), Vec::new());
    for piece in data.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.next() {
                Ok(Some(record)) => {
                    assert!(record.data.len() <= PIECE_MAX);
                    found.push(record);
                }
                Ok(None) => break,
                Err(_) => return (found, false, false),
            }
        }
    }
    let clean = decoder.is_clean();
    (found, true, clean)
}

/// The streaming hash and the one over memory agree, whatever the content and its size.
fn chunks(data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let times = 1 + usize::from(data[0]) * 6000 / data.len();
    let mut bytes = data.repeat(times.min((3 << 20) / data.len()));
    for at in (0..bytes.len()).step_by(10_007) {
        bytes[at] = bytes[at].wrapping_add((at >> 10) as u8);
    }
    let hashed = content::hash(&mut &bytes[..]).expect("memory can be read");
    assert_eq!(hashed.size, bytes.len() as u64);
    assert_eq!(hashed.id, content::of_bytes(&bytes));
    assert_eq!(hashed.chunks.is_some(), hashed.size >= content::BIG);
    let mut at = 0;
    for chunk in hashed.chunks.iter().flatten() {
        assert_eq!(Chunk::of(&bytes[at..at + chunk.len as usize]), *chunk);
        at += chunk.len as usize;
    }
}

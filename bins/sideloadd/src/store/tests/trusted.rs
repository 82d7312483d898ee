//! A big file is built from its own old state, whether that has settled or not.

use super::*;

fn later(seconds: i64) -> Now {
    Now { unix_ns: now().unix_ns + seconds * 1_000_000_000 }
}

fn with(content: &[u8]) -> Tree {
    Tree::from([("big".into(), (content.to_vec(), 0o644)), ("main.sh".into(), file("#!/bin/sh\n", 0o755))])
}

#[test]
fn chunks_come_from_a_trusted_file_and_from_one_that_is_not() {
    let scratch = Scratch::new("trusted");
    let root = &scratch.0;
    let mut store = open(root).unwrap();
    let mut content = noise(40, 6_000_000);
    sync(&mut store, &with(&content), false).unwrap();
    for round in 0..4 {
        // Every second time it has settled and was read again.
        if round % 2 == 1 {
            assert!(store.housekeeping(later(10)));
        }
        match round {
            0 | 1 => content[3_000_000] ^= 1,
            2 => content.insert(0, 5),
            _ => drop(content.drain(..1_000_000)),
        }
        let sent = sync(&mut store, &with(&content), false).unwrap().unwrap();
        assert!(sent <= 3 * chunk::MAX as u64, "{sent} bytes were sent in round {round}");
        assert_eq!(on_disk(root), with(&content), "round {round}");
    }
    check_sound(root, &mut store);
}

#[test]
fn what_the_application_wrote_into_a_big_file_is_found() {
    let scratch = Scratch::new("distrusted");
    let root = &scratch.0;
    let mut store = open(root).unwrap();
    let mut content = noise(41, 3_000_000);
    sync(&mut store, &with(&content), false).unwrap();
    assert!(store.housekeeping(later(10)));
    // Same size; the times differ, so that nothing is trusted, and each chunk is looked at.
    let mut theirs = content.clone();
    theirs[2_000_000..2_000_100].fill(3);
    std::fs::write(root.join("big"), &theirs).unwrap();
    content[100] ^= 1;
    let sent = sync(&mut store, &with(&content), false).unwrap().unwrap();
    assert!(sent > 32 << 10 && sent <= 4 * chunk::MAX as u64, "{sent} bytes were sent");
    assert_eq!(on_disk(root), with(&content));
    // Back at what it was by another hand: it is found to be there, or comes from history, but is never sent.
    let first = content.clone();
    content[200] ^= 1;
    sync(&mut store, &with(&content), false).unwrap();
    std::fs::write(root.join("big"), &first).unwrap();
    let sent = sync(&mut store, &with(&first), false).unwrap();
    assert!(sent.is_none_or(|sent| sent <= 3 * chunk::MAX as u64), "{sent:?}");
    assert_eq!(on_disk(root), with(&first));
}

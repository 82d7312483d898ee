//! A plug pulled, and a disk that fails, at every change to it.

use super::plug::Fault;
use super::*;

/// Runs `act` on a store that is stopped at every possible step, then again while it recovers.
fn at_every_step(name: &str, act: impl Fn(&mut Store) -> Result<(), Error>, before: &Tree, after: &Tree) {
    let mut points = 0;
    let mut hit = true;
    for n in 0.. {
        // While it recovers: not at all, soon, later.
        for recovery in if n % 2 == 0 { [None, Some(n % 7)] } else { [Some(0), Some(n % 13 + 4)] } {
            let scratch = Scratch::new(&format!("{name}-{n}"));
            let root = &scratch.0;
            let mut store = scene(root);
            plug::set(Some((n, Fault::Stop)));
            let result = act(&mut store);
            hit = plug::hit();
            plug::set(None);
            assert!(hit || result.is_ok(), "{:?}", result.err());
            drop(store);
            plug::set(recovery.map(|at| (at, Fault::Stop)));
            let reopened = open(root);
            assert!(reopened.is_ok() || plug::hit(), "{:?}", reopened.err());
            plug::set(None);
            drop(reopened);
            let mut store = open(root).unwrap();
            let found = on_disk(root);
            let decided = found == *after;
            assert!(decided || found == *before, "stopped at {n}: neither the old tree nor the new one");
            assert!(decided || result.is_err(), "stopped at {n}: success was reported");
            check_sound(root, &mut store);
            // And it goes on from there.
            assert!(sync(&mut store, &new_tree(), true).is_ok());
            assert_eq!(on_disk(root), with_app_files(new_tree()), "stopped at {n}: the next sync");
            check_sound(root, &mut store);
            points += 1;
        }
        if !hit {
            break;
        }
    }
    println!("{name}: {points} stops");
    assert!(points > 10);
}

/// Runs `act` on a disk that fails at every possible step; the store goes on living.
fn with_every_fault(name: &str, act: impl Fn(&mut Store) -> Result<(), Error>, before: &Tree, after: &Tree) {
    let mut points = 0;
    for fault in [Fault::Once, Fault::Full] {
        for n in 0.. {
            let scratch = Scratch::new(&format!("{name}-{n}"));
            let root = &scratch.0;
            let mut store = scene(root);
            plug::set(Some((n, fault)));
            let result = act(&mut store);
            let hit = plug::hit();
            plug::set(None);
            let found = on_disk(root);
            // A put has no journal: if the last fsync fails, the new file is there all the same.
            let expected =
                if result.is_ok() || name == "put-fault" && found == *after { after } else { before };
            assert!(found == *expected, "{fault:?} at {n}: {result:?}, and the tree is another one");
            if let Err(error) = &result {
                assert!(hit, "{error}");
                assert_eq!(error.status(), if fault == Fault::Full { 507 } else { 500 }, "{error}");
            }
            assert!(sync(&mut store, &new_tree(), true).is_ok());
            assert_eq!(on_disk(root), with_app_files(new_tree()), "{fault:?} at {n}: the next sync");
            store.housekeeping(Now { unix_ns: now().unix_ns + 10_000_000_000 });
            check_sound(root, &mut store);
            points += 1;
            if !hit {
                break;
            }
        }
    }
    println!("{name}: {points} faults");
}

#[test]
fn a_sync_stopped_at_every_step_leaves_the_old_tree_or_the_new_one() {
    let (old, new) = (with_app_files(old_tree()), with_app_files(new_tree()));
    let act = |store: &mut Store| sync(store, &new_tree(), false).map(|_| ());
    at_every_step("sync", act, &old, &new);
    with_every_fault("sync-fault", act, &old, &new);
}

#[test]
fn a_rollback_stopped_at_every_step_leaves_the_old_tree_or_the_new_one() {
    let base = with_app_files(old_tree());
    let mut third = old_tree();
    third.insert("lib/a.py".into(), file("a = 3\n", 0o644));
    third.remove("moved.bin");
    let act = |store: &mut Store| {
        if store.head() == 1 {
            // The commit to be rolled back is made with the power on.
            let plan = plug::set(None);
            sync(store, &third, false)?;
            plug::set(plan);
        }
        store.rollback(None, now()).map(|_| ())
    };
    at_every_step("rollback", act, &with_app_files(third.clone()), &base);
    with_every_fault("rollback-fault", act, &with_app_files(third.clone()), &base);
}

#[test]
fn a_put_stopped_at_every_step_leaves_the_old_file_or_the_new_one() {
    let (old, mut new) = (with_app_files(old_tree()), with_app_files(old_tree()));
    new.insert("lib/a.py".into(), file("a = 2\n", 0o644));
    let act = |store: &mut Store| {
        let mut put = store.put(RelPath::new("lib/a.py").unwrap(), 6, Some(5), None)?;
        if let Err(error) = store.write(&mut put, b"a = 2\n") {
            store.give_up(put);
            return Err(error);
        }
        store.finish_put(put)
    };
    at_every_step("put", act, &old, &new);
    with_every_fault("put-fault", act, &old, &new);
}

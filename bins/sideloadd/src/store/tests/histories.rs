//! Random histories against a model; replayed with `EDGE_SEED`.

use super::*;

/// Random edits, synced, with an application that meddles; against a model.
#[test]
fn random_histories_follow_the_model() {
    let seed =
        std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("EDGE_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..8 {
        let scratch = Scratch::new(&format!("random-{round}"));
        let root = &scratch.0;
        let mut store = open(root).unwrap();
        let mut tree = Tree::new();
        let mut trees: BTreeMap<u64, Tree> = BTreeMap::new();
        let mut meddled = HashSet::new();
        for _ in 0..25 {
            for _ in 0..rng.usize(1..6) {
                edit(&mut tree, &mut rng);
            }
            if rng.u8(..4) == 0
                && let Some(path) = pick(&tree, &mut rng)
                && root.join(&path).is_file()
            {
                std::fs::write(root.join(&path), format!("meddled {}", rng.u64(..))).unwrap();
                // Whichever commits have that inode lost it.
                meddled.extend(trees.keys().copied());
            }
            if rng.u8(..6) == 0 {
                let kept: Vec<u64> = store.history().iter().map(|i| i.commit).collect();
                if let Some(to) = rng.choice(&kept)
                    && let Ok(done) = store.rollback(Some(*to), now())
                {
                    tree = trees[to].clone();
                    trees.insert(done.commit, tree.clone());
                    assert_eq!(on_disk(root), tree, "after a rollback to {to}");
                } else {
                    assert!(kept.is_empty() || !meddled.is_empty(), "a rollback failed without a reason");
                }
                continue;
            }
            sync(&mut store, &tree, true).unwrap();
            trees.insert(store.head(), tree.clone());
            assert_eq!(on_disk(root), tree);
            check_sound(root, &mut store);
            if rng.u8(..5) == 0 {
                drop(store);
                store = open(root).unwrap();
            }
        }
        assert!(store.history().len() <= 3);
    }
}

fn pick(tree: &Tree, rng: &mut fastrand::Rng) -> Option<String> {
    let paths: Vec<&String> = tree.keys().collect();
    rng.choice(paths).cloned()
}

fn edit(tree: &mut Tree, rng: &mut fastrand::Rng) {
    let name = format!("{}/{}", rng.choice(["a", "b/c", "d"]).unwrap(), rng.u8(..6));
    match (rng.u8(..8), pick(tree, rng)) {
        (0, Some(path)) => drop(tree.remove(&path)),
        (1, Some(path)) => {
            let content = tree.remove(&path).unwrap();
            tree.insert(name, content);
        }
        (2, Some(path)) => {
            let content = tree[&path].clone();
            tree.insert(name, content);
        }
        (3, Some(path)) => tree.get_mut(&path).unwrap().1 = *rng.choice(&[0o644, 0o755, 0o600]).unwrap(),
        (4, Some(path)) => tree.get_mut(&path).unwrap().0.insert(0, rng.u8(..)),
        (5, _) => drop(tree.insert(name, (noise(rng.u64(..4), 1_100_000), 0o644))),
        _ => drop(tree.insert(name, (noise(rng.u64(..), rng.usize(..5000)), 0o644))),
    }
}

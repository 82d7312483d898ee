//! Tests of the SQLite catalog, and what every catalog must do ([`contract`]).

use std::time::Instant;

use super::*;

fn scratch(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("edge-catalog-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    folder
}

fn open(folder: &Path) -> Sqlite {
    Sqlite::open(&folder.join("catalog.db"), Duration::from_secs(5)).unwrap()
}

/// A live release for everybody.
pub(crate) fn sample(app: &str, env: &str, epoch: u64, attrs: &[&str]) -> Release {
    let mut digests = edge::release::Digests::default();
    digests.update(format!("{app} {env} {epoch}").as_bytes());
    let sums = digests.finish();
    Release {
        app: app.into(),
        version: format!("1.{epoch}"),
        env: env.into(),
        epoch,
        md5: Some(sums.md5),
        sums: Some(sums),
        url: format!("/blob/{}", sums.sha256),
        attrs: attrs.iter().map(|a| (*a).to_owned()).collect(),
        rollout: 100,
        from_epoch: 0,
        floor: false,
        state: State::Live,
        statement: Some("{\"v\":1}".into()),
        signature: None,
        published: Timestamp(1_795_000_000 + epoch as i64),
    }
}

fn epochs(releases: &[Release]) -> Vec<u64> {
    releases.iter().map(|r| r.epoch).collect()
}

/// What every catalog must do, in an empty one.
pub(crate) fn contract(catalog: &mut dyn Catalog) {
    let mut one = sample("videoStreamer", "prod", 1, &["gamer", "x' or 1=1 --"]);
    one.signature = Some("sig".into());
    one.floor = true;
    catalog.insert(&one).unwrap();
    assert!(matches!(catalog.insert(&one), Err(Error::Taken { epoch: 1, .. })));
    assert_eq!(catalog.live("VIDEOstreamer", "prod").unwrap(), std::slice::from_ref(&one));
    assert_eq!(catalog.live("videoStreamer", "beta").unwrap(), []);
    assert_eq!(catalog.live("videoStreamer' OR '1'='1", "prod").unwrap(), []);
    assert_eq!(catalog.apps_with("gamer", "prod").unwrap(), ["videoStreamer"]);
    assert_eq!(catalog.apps_with("x' or 1=1 --", "prod").unwrap(), ["videoStreamer"]);
    assert_eq!(catalog.apps_with("gamer", "beta").unwrap(), [""; 0]);
    // The newest for everybody, what is staged above it, and floors below.
    let staged = Release { rollout: 10, ..sample("videoStreamer", "prod", 4, &[]) };
    for release in
        [sample("videoStreamer", "prod", 2, &[]), sample("videoStreamer", "prod", 3, &[]), staged.clone()]
    {
        catalog.insert(&release).unwrap();
    }
    assert_eq!(epochs(&catalog.live("videoStreamer", "prod").unwrap()), [4, 3, 1]);
    // Paused: what was below counts again.
    let three = sample("videoStreamer", "prod", 3, &[]);
    let paused = Release { state: State::Paused, ..three.clone() };
    catalog.replace(&three, &paused).unwrap();
    assert!(matches!(catalog.replace(&three, &paused), Err(Error::Changed(_))));
    assert_eq!(epochs(&catalog.live("videoStreamer", "prod").unwrap()), [4, 2, 1]);
    assert_eq!(epochs(&catalog.list(Some("videostreamer"), None).unwrap()), [4, 3, 2, 1]);
    // An attribute selects as long as a live release has it.
    catalog.replace(&one, &Release { state: State::Retired, ..one.clone() }).unwrap();
    assert_eq!(catalog.apps_with("gamer", "prod").unwrap(), [""; 0]);
    catalog.insert(&sample("Scoreboard", "prod", 1, &["gamer"])).unwrap();
    catalog.insert(&sample("modemFW", "prod", 1, &["gamer"])).unwrap();
    catalog.insert(&sample("modemFW", "beta", 1, &["gamer"])).unwrap();
    assert_eq!(catalog.apps_with("gamer", "prod").unwrap(), ["modemFW", "Scoreboard"]);
    assert_eq!(catalog.list(None, Some("beta")).unwrap(), [sample("modemFW", "beta", 1, &["gamer"])]);
    assert_eq!(catalog.list(None, None).unwrap().len(), 7);
    // Content is served as long as a live or a paused release has it.
    let [shared, again] = [1, 2].map(|epoch| Release { epoch, ..sample("shared", "prod", 1, &[]) });
    let sums = shared.sums.unwrap();
    assert_eq!(catalog.content(&sums.sha256).unwrap(), None);
    catalog.insert(&shared).unwrap();
    catalog.insert(&again).unwrap();
    assert_eq!(catalog.content(&sums.sha256).unwrap(), Some(sums.size));
    catalog.replace(&shared, &Release { state: State::Retired, ..shared.clone() }).unwrap();
    catalog.replace(&again, &Release { state: State::Paused, ..again.clone() }).unwrap();
    assert_eq!(catalog.content(&sums.sha256).unwrap(), Some(sums.size));
    let paused = Release { state: State::Paused, ..again };
    catalog.replace(&paused, &Release { state: State::Retired, ..paused.clone() }).unwrap();
    assert_eq!(catalog.content(&sums.sha256).unwrap(), None);
    assert_eq!(catalog.list(None, None).unwrap().len(), 9);
    // A row without content, as the original has.
    let bare = Release { epoch: 7, sums: None, statement: None, ..sample("bare", "prod", 7, &[]) };
    catalog.insert(&bare).unwrap();
    assert_eq!(catalog.live("bare", "prod").unwrap(), [bare]);
}

#[test]
fn it_keeps_the_contract() {
    let folder = scratch("contract");
    contract(&mut open(&folder));
    assert_eq!(open(&folder).damage().unwrap(), [""; 0]);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_change_by_another_is_seen() {
    let folder = scratch("version");
    let (mut reader, mut writer) = (open(&folder), open(&folder));
    let before = reader.version().unwrap();
    assert!(before.is_some() && reader.version().unwrap() == before);
    writer.insert(&sample("a", "prod", 1, &[])).unwrap();
    assert_ne!(reader.version().unwrap(), before);
    std::fs::remove_dir_all(folder).unwrap();
}

/// SQLite does not wait by itself where a file that another one writes is to get a write-ahead log.
#[test]
fn whoever_makes_the_file_is_waited_for() {
    let folder = scratch("wait");
    std::fs::create_dir_all(&folder).unwrap();
    let first = Connection::open(folder.join("catalog.db")).unwrap();
    first.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| open(&folder));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!second.is_finished());
        first.execute_batch("COMMIT").unwrap();
        assert_eq!(second.join().unwrap().list(None, None).unwrap(), []);
    });
    std::fs::remove_dir_all(folder).unwrap();
}

/// In one process and in others: none is refused because another one is making the file.
#[test]
fn many_make_one_catalog_at_once() {
    let folder = scratch("made");
    for round in 0..20 {
        let place = folder.join(round.to_string());
        let barrier = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for n in 0..8 {
                let (place, barrier) = (&place, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    if n < 4 {
                        open(place);
                        return;
                    }
                    let mut other = std::process::Command::new(std::env::current_exe().unwrap());
                    other.args(["--exact", "catalog::sqlite::tests::child_that_makes_it", "--nocapture"]);
                    let output = other.env("DEPOT_CATALOG_AT", place).output().unwrap();
                    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                    assert!(String::from_utf8_lossy(&output.stdout).contains("has opened it"));
                });
            }
        });
        assert_eq!(open(&place).damage().unwrap(), [""; 0]);
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// The child of the test above.
#[test]
fn child_that_makes_it() {
    let Some(folder) = std::env::var_os("DEPOT_CATALOG_AT") else { return };
    open(Path::new(&folder));
    println!("has opened it");
}

#[test]
fn two_publishers_never_get_the_same_epoch() {
    let folder = scratch("race");
    open(&folder);
    let publish = |n: u64| {
        let mut catalog = open(&folder);
        (1..=20)
            .filter(|epoch| {
                let release = Release { url: n.to_string(), ..sample("a", "prod", *epoch, &[]) };
                catalog.insert(&release).is_ok()
            })
            .count()
    };
    let won: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || publish(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(won, 20);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_newer_form_and_other_files_are_refused() {
    let folder = scratch("form");
    open(&folder).connection.pragma_update(None, "user_version", 99).unwrap();
    let refused =
        |name: &str| Sqlite::open(&folder.join(name), Duration::from_secs(1)).unwrap_err().to_string();
    assert!(refused("catalog.db").contains("form 99"), "{}", refused("catalog.db"));
    std::fs::write(folder.join("junk.db"), [b'x'; 4096]).unwrap();
    assert!(refused("junk.db").contains("junk.db"));
    std::fs::remove_dir_all(folder).unwrap();
}

/// Prints what a look-up costs; that it uses indices only is asserted.
#[test]
fn a_hundred_thousand_releases_are_no_burden() {
    let folder = scratch("large");
    let mut catalog = open(&folder);
    let transaction = catalog.connection.transaction().unwrap();
    for n in 0..100_000_u64 {
        let attr = format!("attr{}", n % 1000 % 97);
        let release = Release {
            floor: n % 5000 == 0,
            ..sample(&format!("app{}", n % 1000), "prod", n / 1000 + 1, &[&attr])
        };
        let sql = "INSERT INTO release (app_key, app, version, env, epoch, state, rollout, floor, from_epoch, url, attrs, \
                   published) VALUES (?1, ?1, '1', 'prod', ?2, 1, 100, ?3, 0, '', ?4, 0)";
        let attrs = serde_json::to_string(&release.attrs).unwrap();
        transaction
            .prepare_cached(sql)
            .unwrap()
            .execute(params![release.app, release.epoch, release.floor, attrs])
            .unwrap();
    }
    for n in 0..1000 {
        select(&transaction, &format!("app{n}"), "prod").unwrap();
    }
    transaction.commit().unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let mut time = |what: &str, ask: &dyn Fn(&mut Sqlite, u32)| {
        let start = Instant::now();
        for _ in 0..2000 {
            ask(&mut catalog, rng.u32(..));
        }
        println!("{what} among 100,000 releases: {:.1} us", start.elapsed().as_secs_f64() * 1e6 / 2000.0);
    };
    time("an app", &|c, n| assert!(!c.live(&format!("App{}", n % 1000), "prod").unwrap().is_empty()));
    time("no app", &|c, n| assert!(c.live(&format!("none{n}"), "prod").unwrap().is_empty()));
    time("an attribute", &|c, n| {
        assert!(!c.apps_with(&format!("attr{}", n % 97), "prod").unwrap().is_empty());
    });
    let plan = |sql: &str| -> String {
        let mut statement = catalog.connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let rows = statement.query_map(["a", "b"], |row| row.get::<_, String>(3)).unwrap();
        rows.map(Result::unwrap).collect::<Vec<_>>().join("\n")
    };
    for sql in [LIVE, SELECTED] {
        let plan = plan(sql);
        assert!(!plan.contains("SCAN"), "{plan}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

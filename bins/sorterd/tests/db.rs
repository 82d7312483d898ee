//! The database: the same tests on SQLite and on a real PostgreSQL server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::time::Duration;

use e2e::scratch::Scratch;
use sorterd::config::store::DbConfig;
use sorterd::db::{Db, Error, ImageRow};
use sorterd::found::Found;

/// Where a test's database is.
struct Place {
    scratch: Scratch,
}

impl Place {
    fn sqlite() -> Self {
        Self { scratch: Scratch::new("sorter-db") }
    }

    fn config(&self) -> DbConfig {
        DbConfig::Sqlite { path: self.scratch.join("a/b/sorterd.db"), busy: Duration::from_secs(10) }
    }

    fn open(&self) -> Db {
        Db::open(&self.config()).unwrap()
    }
}

fn found(class: u32, n: i32) -> Found {
    Found { class, score: 0.1 + n as f32 / 7.0, x1: n, y1: -n, x2: n + 10, y2: i32::MAX - n }
}

fn objects(row: &ImageRow) -> Vec<Found> {
    row.objects.iter().map(|(_, found)| *found).collect()
}

fn a_repeated_picture_replaces_its_boxes(place: &Place) {
    let mut db = place.open();
    db.replace_boxes("arm", "s1", "1500.jpg", 640, 480, &[found(0, 1), found(1, 2), found(7, 3)]).unwrap();
    db.replace_boxes("arm", "s1", "900.jpg", 640, 480, &[found(0, 4)]).unwrap();
    let before = db.images("arm", "s1").unwrap();
    db.replace_boxes("arm", "s1", "1500.jpg", 1920, 1080, &[found(u32::MAX, 9), found(0, 8)]).unwrap();
    let rows = db.images("arm", "s1").unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!((rows[0].image.as_str(), rows[0].width, rows[0].height), ("1500.jpg", 1920, 1080));
    assert_eq!(objects(&rows[0]), [found(u32::MAX, 9), found(0, 8)]);
    assert_eq!(rows[1], before[1], "the other one is as it was");
    let newest = before.iter().flat_map(|row| &row.objects).map(|(id, _)| *id).max().unwrap();
    assert!(rows[0].objects.iter().all(|(id, _)| *id > newest), "ids are not used again");
    db.replace_boxes("arm", "s1", "900.jpg", 640, 480, &[]).unwrap();
    let rows = db.images("arm", "s1").unwrap();
    assert_eq!((rows.len(), rows[1].objects.len()), (2, 0), "a picture without objects is known");
    assert_eq!(db.images("arm", "s2").unwrap(), []);
    assert_eq!(db.images("other", "s1").unwrap(), []);
}

fn everything_comes_in_order(place: &Place) {
    let mut db = place.open();
    for image in ["b.jpg", "B.jpg", "10.jpg", "9.jpg", "a_b.jpg", "a-b.jpg", "a.jpg", "ä.jpg", "_.jpg"] {
        let some: Vec<Found> = (0..20).map(|n| found(n as u32 % 2, n)).collect();
        db.replace_boxes("arm", "s", image, 1, 1, &some).unwrap();
    }
    let rows = db.images("arm", "s").unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row.image.as_str()).collect();
    assert_eq!(names, ["10.jpg", "9.jpg", "B.jpg", "_.jpg", "a-b.jpg", "a.jpg", "a_b.jpg", "b.jpg", "ä.jpg"]);
    for row in &rows {
        assert!(row.objects.windows(2).all(|pair| pair[0].0 < pair[1].0), "{row:?}");
        assert!(row.objects.iter().enumerate().all(|(n, (_, f))| f.x1 == n as i32), "{row:?}");
    }
    for session in ["s3", "s1", "s2", "s1"] {
        db.replace_boxes("arm2", session, "1.jpg", 1, 1, &[found(0, 1)]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let rows = db.sessions(10).unwrap();
    let names: Vec<(&str, &str)> = rows.iter().map(|r| (r.arm.as_str(), r.session.as_str())).collect();
    assert_eq!(names, [("arm2", "s1"), ("arm2", "s2"), ("arm2", "s3"), ("arm", "s")]);
    assert_eq!((rows[3].images, rows[3].objects, rows[0].objects), (9, 180, 1));
    assert!(rows[0].updated_ms > rows[1].updated_ms);
    assert_eq!(db.sessions(2).unwrap(), rows[..2]);
    assert_eq!(db.sessions(0).unwrap(), []);
}

fn answers_are_kept_for_each_session(place: &Place) {
    let mut db = place.open();
    assert_eq!(db.answer("arm", "s").unwrap(), None);
    db.replace_boxes("arm", "s", "1.jpg", 1, 1, &[]).unwrap();
    assert_eq!(db.answer("arm", "s").unwrap(), None);
    let long = format!("[{}1]", "[[1.5,2],[3,4]],".repeat(20_000));
    for json in ["[]", "", long.as_str()] {
        db.save_answer("arm", "s", json).unwrap();
        assert_eq!(db.answer("arm", "s").unwrap().as_deref(), Some(json));
    }
    db.replace_boxes("arm", "s", "2.jpg", 1, 1, &[]).unwrap();
    assert_eq!(db.answer("arm", "s").unwrap(), Some(long), "more pictures leave it");
    db.save_answer("arm", "t", "x").unwrap();
    assert_eq!(db.sessions(9).unwrap().len(), 2);
    drop(db);
    assert_eq!(place.open().answer("arm", "t").unwrap().as_deref(), Some("x"));
}

/// Names that would be dangerous as a part of a statement or a path are data like any other.
fn names_are_data(place: &Place) {
    let mut db = place.open();
    let names = [
        "'; DROP TABLE sorter_object; --",
        "\"; DELETE FROM sorter_session; --",
        "' OR '1'='1",
        "$1",
        "?1",
        "\\'; --",
        "%_*",
        "../../etc/passwd",
        "{id}",
        "",
        " ",
        "ü\u{1F600}\u{202e}\u{feff}",
        "line\nend\r\ttab\u{1}\u{7f}",
        "NULL",
    ];
    for (n, name) in names.iter().enumerate() {
        db.replace_boxes(name, name, name, 1, 2, &[found(0, n as i32)]).unwrap();
        db.save_answer(name, name, name).unwrap();
    }
    for (n, name) in names.iter().enumerate() {
        let rows = db.images(name, name).unwrap();
        assert_eq!((rows.len(), rows[0].image.as_str()), (1, *name));
        assert_eq!(objects(&rows[0]), [found(0, n as i32)], "{name:?}");
        assert_eq!(db.answer(name, name).unwrap().as_deref(), Some(*name));
    }
    assert_eq!(db.sessions(100).unwrap().len(), names.len());
    for (arm, session, image) in [("a\0b", "s", "i"), ("a", "\0", "i"), ("a", "s", "i\0")] {
        let error = db.replace_boxes(arm, session, image, 1, 1, &[]).unwrap_err();
        assert!(matches!(error, Error::Value { .. }), "{error}");
    }
    let not = Found { score: f32::NAN, ..found(0, 1) };
    db.replace_boxes("nan", "s", "i", u32::MAX, 0, &[not]).unwrap();
    let row = &db.images("nan", "s").unwrap()[0];
    assert_eq!((row.width, row.height, row.objects[0].1.score), (u32::MAX, 0, 0.0));
}

fn ten_thousand_boxes_are_one_picture(place: &Place) {
    let mut db = place.open();
    let many: Vec<Found> = (0..10_007).map(|n| found(n as u32 % 3, n)).collect();
    for _ in 0..2 {
        db.replace_boxes("arm", "s", "1.jpg", 1, 1, &many).unwrap();
    }
    let rows = db.images("arm", "s").unwrap();
    assert_eq!(objects(&rows[0]), many);
    assert!(rows[0].objects.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert_eq!(db.sessions(1).unwrap()[0].objects, 10_007);
}

/// Several who write at once: every picture has the boxes of one of them, never a mix.
fn writers_do_not_mix(place: &Place) {
    drop(place.open());
    std::thread::scope(|scope| {
        for writer in 0..4u32 {
            scope.spawn(move || {
                let mut db = place.open();
                for _ in 0..10 {
                    let own: Vec<Found> = (0..20).map(|n| found(writer, n)).collect();
                    db.replace_boxes("arm", "s", "1.jpg", 1, 1, &own).unwrap();
                    db.save_answer("arm", "s", "[]").unwrap();
                }
            });
        }
    });
    let rows = place.open().images("arm", "s").unwrap();
    assert_eq!((rows.len(), rows[0].objects.len()), (1, 20));
    let class = rows[0].objects[0].1.class;
    assert!(rows[0].objects.iter().all(|(_, f)| f.class == class));
}

macro_rules! on_both {
    ($($test:ident)*) => {
        mod sqlite {
            $( #[test] fn $test() { super::$test(&super::Place::sqlite()); } )*
        }
    };
}

on_both! {
    a_repeated_picture_replaces_its_boxes
    everything_comes_in_order
    answers_are_kept_for_each_session
    names_are_data
    ten_thousand_boxes_are_one_picture
    writers_do_not_mix
}

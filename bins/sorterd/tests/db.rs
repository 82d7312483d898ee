//! The database: the same tests on SQLite and on a real PostgreSQL server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::postgres::{PASSWORD, Postgres};
use e2e::scratch::Scratch;
use e2e::skip;
use edge::config::Secret;
use sorterd::config::store::{DatabaseTable, DbConfig, Env};
use sorterd::db::{Db, Error, Image, ImageRow};
use sorterd::found::Found;

/// Where a test's database is.
struct Place<'a> {
    scratch: Scratch,
    server: Option<(&'a Postgres, &'a str)>,
}

impl<'a> Place<'a> {
    fn sqlite() -> Self {
        Self { scratch: Scratch::new("sorter-db"), server: None }
    }

    /// A database of this name of its own.
    fn postgres(server: &'a Postgres, name: &'a str) -> Self {
        server.sql(&format!("CREATE DATABASE {name}"));
        Self { scratch: Scratch::new("sorter-db"), server: Some((server, name)) }
    }

    fn conn(&self) -> Option<String> {
        let (server, name) = self.server?;
        Some(format!("postgresql://sorter:{PASSWORD}@127.0.0.1:{}/{name}", server.port))
    }

    fn open(&self) -> Db {
        Db::open(&config(&self.scratch.join("a/b"), self.conn().as_deref(), "")).unwrap()
    }
}

/// The configuration of a file in `state`, or of a connection string, as the daemon would read it.
fn config(state: &Path, conn: Option<&str>, more: &str) -> DbConfig {
    let loaded = edge::config::parse::<DatabaseTable>(Path::new("x.toml"), more.to_owned()).unwrap();
    let pg_conn = conn.map(|text| Secret::new(text.to_owned()));
    loaded.raw.check(&loaded, state, &Env { pg_conn, ..Env::default() }).unwrap()
}

fn found(class: u32, n: i32) -> Found {
    Found { class, score: 0.1 + n as f32 / 7.0, x1: n, y1: -n, x2: n + 10, y2: i32::MAX - n }
}

fn picture(name: &str, width: u32, height: u32) -> Image<'_> {
    Image { name, size: (width, height), sha256: "0123abcd" }
}

fn objects(row: &ImageRow) -> Vec<Found> {
    row.objects.iter().map(|(_, found)| *found).collect()
}

fn a_repeated_picture_replaces_its_boxes(place: &Place<'_>) {
    let mut db = place.open();
    db.replace_boxes("arm", "s1", &picture("1500.jpg", 640, 480), &[found(0, 1), found(1, 2), found(7, 3)])
        .unwrap();
    db.replace_boxes("arm", "s1", &picture("900.jpg", 640, 480), &[found(0, 4)]).unwrap();
    let before = db.images("arm", "s1").unwrap();
    db.replace_boxes("arm", "s1", &picture("1500.jpg", 1920, 1080), &[found(u32::MAX, 9), found(0, 8)])
        .unwrap();
    let rows = db.images("arm", "s1").unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!((rows[0].image.as_str(), rows[0].width, rows[0].height), ("1500.jpg", 1920, 1080));
    assert_eq!(objects(&rows[0]), [found(u32::MAX, 9), found(0, 8)]);
    assert_eq!(rows[1], before[1], "the other one is as it was");
    let newest = before.iter().flat_map(|row| &row.objects).map(|(id, _)| *id).max().unwrap();
    assert!(rows[0].objects.iter().all(|(id, _)| *id > newest), "ids are not used again");
    db.replace_boxes("arm", "s1", &picture("900.jpg", 640, 480), &[]).unwrap();
    let rows = db.images("arm", "s1").unwrap();
    assert_eq!((rows.len(), rows[1].objects.len()), (2, 0), "a picture without objects is known");
    assert_eq!(db.images("arm", "s2").unwrap(), []);
    assert_eq!(db.images("other", "s1").unwrap(), []);
}

fn everything_comes_in_order(place: &Place<'_>) {
    let mut db = place.open();
    for image in ["b.jpg", "B.jpg", "10.jpg", "9.jpg", "a_b.jpg", "a-b.jpg", "a.jpg", "ä.jpg", "_.jpg"] {
        let some: Vec<Found> = (0..20).map(|n| found(n as u32 % 2, n)).collect();
        db.replace_boxes("arm", "s", &picture(image, 1, 1), &some).unwrap();
    }
    let rows = db.images("arm", "s").unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row.image.as_str()).collect();
    assert_eq!(names, ["10.jpg", "9.jpg", "B.jpg", "_.jpg", "a-b.jpg", "a.jpg", "a_b.jpg", "b.jpg", "ä.jpg"]);
    for row in &rows {
        assert!(row.objects.windows(2).all(|pair| pair[0].0 < pair[1].0), "{row:?}");
        assert!(row.objects.iter().enumerate().all(|(n, (_, f))| f.x1 == n as i32), "{row:?}");
    }
    for session in ["s3", "s1", "s2", "s1"] {
        db.replace_boxes("arm2", session, &picture("1.jpg", 1, 1), &[found(0, 1)]).unwrap();
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

fn answers_are_kept_for_each_session(place: &Place<'_>) {
    let mut db = place.open();
    assert_eq!(db.answer("arm", "s").unwrap(), None);
    db.replace_boxes("arm", "s", &picture("1.jpg", 1, 1), &[]).unwrap();
    assert_eq!(db.answer("arm", "s").unwrap(), None);
    let long = format!("[{}1]", "[[1.5,2],[3,4]],".repeat(20_000));
    for json in ["[]", "", long.as_str()] {
        db.save_answer("arm", "s", json).unwrap();
        assert_eq!(db.answer("arm", "s").unwrap().as_deref(), Some(json));
    }
    db.replace_boxes("arm", "s", &picture("2.jpg", 1, 1), &[]).unwrap();
    assert_eq!(db.answer("arm", "s").unwrap(), Some(long), "more pictures leave it");
    db.save_answer("arm", "t", "x").unwrap();
    assert_eq!(db.sessions(9).unwrap().len(), 2);
    drop(db);
    assert_eq!(place.open().answer("arm", "t").unwrap().as_deref(), Some("x"));
}

fn pictures_taken_afterwards(place: &Place<'_>) {
    let mut db = place.open();
    assert_eq!(db.after("arm", "s").unwrap(), []);
    db.note_after("arm", "s", &picture("after_2.jpg", 640, 480)).unwrap();
    db.note_after("arm", "s", &picture("after_1.jpg", 1, 2)).unwrap();
    let again = Image { name: "after_2.jpg", size: (3, 4), sha256: "ff" };
    db.note_after("arm", "s", &again).unwrap();
    let row = |image: &str, width, height, sha256: &str| ImageRow {
        image: image.into(),
        width,
        height,
        sha256: Some(sha256.into()),
        objects: vec![],
    };
    let wanted = [row("after_1.jpg", 1, 2, "0123abcd"), row("after_2.jpg", 3, 4, "ff")];
    assert_eq!(db.after("arm", "s").unwrap(), wanted);
    assert_eq!(db.after("arm", "other").unwrap(), []);
    assert_eq!(db.images("arm", "s").unwrap(), [], "they have no boxes");
    db.forget("arm", "s").unwrap();
    assert_eq!(db.after("arm", "s").unwrap(), []);
}

/// A database that the first form's program made: what is in it stays, and the new columns are there.
fn the_first_form_is_brought_up_to_date(place: &Place<'_>) {
    let mut db = place.open();
    db.replace_boxes("arm", "s", &picture("1.jpg", 640, 480), &[found(0, 1)]).unwrap();
    drop(db);
    let back = "DROP TABLE sorter_after; ALTER TABLE sorter_picture DROP COLUMN sha256; \
                DELETE FROM sorter_schema WHERE version > 1;";
    match place.server {
        Some((server, name)) => drop(server.sql_in(name, back)),
        None => rusqlite::Connection::open(place.scratch.join("a/b/sorterd.db"))
            .unwrap()
            .execute_batch(back)
            .unwrap(),
    }
    let mut db = place.open();
    let row = &db.images("arm", "s").unwrap()[0];
    assert_eq!((row.sha256.as_deref(), objects(row)), (None, vec![found(0, 1)]));
    db.replace_boxes("arm", "s", &picture("1.jpg", 640, 480), &[]).unwrap();
    assert_eq!(db.images("arm", "s").unwrap()[0].sha256.as_deref(), Some("0123abcd"));
    db.note_after("arm", "s", &picture("after_1.jpg", 1, 1)).unwrap();
}

/// Names that would be dangerous as a part of a statement or a path are data like any other.
fn names_are_data(place: &Place<'_>) {
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
        db.replace_boxes(name, name, &picture(name, 1, 2), &[found(0, n as i32)]).unwrap();
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
        let error = db.replace_boxes(arm, session, &picture(image, 1, 1), &[]).unwrap_err();
        assert!(matches!(error, Error::Value { .. }), "{error}");
    }
    let not = Found { score: f32::NAN, ..found(0, 1) };
    db.replace_boxes("nan", "s", &picture("i", u32::MAX, 0), &[not]).unwrap();
    let row = &db.images("nan", "s").unwrap()[0];
    assert_eq!((row.width, row.height, row.objects[0].1.score), (u32::MAX, 0, 0.0));
}

fn ten_thousand_boxes_are_one_picture(place: &Place<'_>) {
    let mut db = place.open();
    let many: Vec<Found> = (0..10_007).map(|n| found(n as u32 % 3, n)).collect();
    for _ in 0..2 {
        db.replace_boxes("arm", "s", &picture("1.jpg", 1, 1), &many).unwrap();
    }
    let rows = db.images("arm", "s").unwrap();
    assert_eq!(objects(&rows[0]), many);
    assert!(rows[0].objects.windows(2).all(|pair| pair[0].0 < pair[1].0));
    assert_eq!(db.sessions(1).unwrap()[0].objects, 10_007);
}

/// Several who write at once: every picture has the boxes of one of them, never a mix.
fn writers_do_not_mix(place: &Place<'_>) {
    std::thread::scope(|scope| {
        for writer in 0..4u32 {
            scope.spawn(move || {
                let mut db = place.open();
                for _ in 0..10 {
                    let own: Vec<Found> = (0..20).map(|n| found(writer, n)).collect();
                    db.replace_boxes("arm", "s", &picture("1.jpg", 1, 1), &own).unwrap();
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

/// Kills a process that writes, again and again: a picture has the boxes of one writing, never a part.
fn kill_9_leaves_whole_pictures(place: &Place<'_>) {
    place.open().replace_boxes("arm", "s", &picture("1.jpg", 1, 1), &writing(0)).unwrap();
    let mut last = 0;
    for round in 1..9u32 {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "child_that_is_killed", "--nocapture"]);
        child
            .env("SORTER_DB_STATE", place.scratch.join("a/b"))
            .env("SORTER_DB_FIRST", (round * 10_000).to_string());
        child.env("SORTER_DB_CONN", place.conn().unwrap_or_default());
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.contains("has written")), "the child ended by itself");
        std::thread::sleep(Duration::from_millis(fastrand::u64(5..250)));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut db = place.open();
        let row = db.images("arm", "s").unwrap().remove(0);
        let class = row.objects[0].1.class;
        assert!(class >= round * 10_000, "{class}: a writing that was done is gone");
        assert_eq!(objects(&row), writing(class));
        last = class;
    }
    println!("8 kills; the last whole writing is {last}");
}

fn writing(class: u32) -> Vec<Found> {
    (0..1500).map(|n| found(class, n)).collect()
}

/// The child of the test above.
#[test]
fn child_that_is_killed() {
    let Some(state) = std::env::var_os("SORTER_DB_STATE") else { return };
    let conn = std::env::var("SORTER_DB_CONN").ok().filter(|conn| !conn.is_empty());
    let first: u32 = std::env::var("SORTER_DB_FIRST").unwrap().parse().unwrap();
    let mut db = Db::open(&config(Path::new(&state), conn.as_deref(), "")).unwrap();
    for class in first.. {
        db.replace_boxes("arm", "s", &picture("1.jpg", 1, 1), &writing(class)).unwrap();
        if class == first {
            println!("has written");
        }
    }
}

macro_rules! on_both {
    ($($test:ident)*) => {
        mod sqlite {
            $( #[test] fn $test() { super::$test(&super::Place::sqlite()); } )*
        }

        /// In turn, each in a database of its own: a server takes a while to make.
        #[test]
        fn the_same_on_postgres() {
            let scratch = Scratch::new("pg");
            let Some(server) = Postgres::start(&scratch) else { skip!("PostgreSQL is not installed (make deps)") };
            $(
                println!("{}", stringify!($test));
                $test(&Place::postgres(&server, stringify!($test)));
            )*
        }
    };
}

on_both! {
    a_repeated_picture_replaces_its_boxes
    everything_comes_in_order
    answers_are_kept_for_each_session
    pictures_taken_afterwards
    the_first_form_is_brought_up_to_date
    names_are_data
    ten_thousand_boxes_are_one_picture
    writers_do_not_mix
    kill_9_leaves_whole_pictures
}

/// How long a call takes, and its error.
fn fails(db: &mut Db) -> (Error, Duration) {
    let begin = Instant::now();
    let error = db.save_answer("arm", "s", "x").unwrap_err();
    (error, begin.elapsed())
}

/// Calls until it works.
fn until_it_works(db: &mut Db, answer: &str) {
    e2e::env::wait_for("the database", Duration::from_secs(20), || db.save_answer("arm", "s", answer).ok());
    assert_eq!(db.answer("arm", "s").unwrap().as_deref(), Some(answer));
}

#[test]
fn postgres_goes_and_comes_back() {
    let scratch = Scratch::new("pg");
    let Some(mut server) = Postgres::start(&scratch) else {
        skip!("PostgreSQL is not installed (make deps)")
    };
    let more = "retry-min-ms = 2000\nretry-max-ms = 2500\n";
    let mut db = Db::open(&config(scratch.path(), Some(&server.address()), more)).unwrap();
    db.replace_boxes("arm", "s", &picture("1.jpg", 1, 1), &[found(0, 1)]).unwrap();
    // Restarted while nothing was asked: nobody notices.
    server.stop();
    server.resume();
    assert_eq!(db.images("arm", "s").unwrap().len(), 1);
    // Away: an error at once, and no storm of connections.
    server.stop();
    let (error, took) = fails(&mut db);
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_passing(), "{error}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    let (error, _) = fails(&mut db);
    assert!(matches!(&error, Error::Waiting { why, .. } if why.contains("refused")), "{error}");
    assert!(error.is_passing());
    server.resume();
    until_it_works(&mut db, "again");
    server.crash();
    let (error, _) = fails(&mut db);
    assert!(error.is_passing(), "{error}");
    server.resume();
    until_it_works(&mut db, "after a crash");
    assert_eq!(db.images("arm", "s").unwrap()[0].objects.len(), 1);
    // A daemon that starts while it is away has its database as soon as it is back.
    server.stop();
    let mut early = Db::open(&config(scratch.path(), Some(&server.address()), more)).unwrap();
    assert!(fails(&mut early).0.is_passing());
    server.resume();
    until_it_works(&mut early, "early");
    until_it_works(&mut db, "late");
    // Somebody ends our session in the middle of nothing.
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'sorterd'");
    db.save_answer("arm", "s", "x").unwrap();
    // Somebody holds the row: the call ends in time, and the next one has a new connection.
    let slow = config(scratch.path(), Some(&server.address()), "query-timeout-ms = 1500\n");
    let mut slow = Db::open(&slow).unwrap();
    let lock = "BEGIN; UPDATE sorter_session SET answer = 'held'; SELECT pg_sleep(12); ROLLBACK";
    std::thread::scope(|scope| {
        scope.spawn(|| server.sql(lock));
        let sleeps = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(12)%' AND wait_event = 'PgSleep'";
        e2e::env::wait_for("the lock", Duration::from_secs(10), || (server.sql(sleeps) == "1").then_some(()));
        let (error, took) = fails(&mut slow);
        assert!(error.is_passing() && took < Duration::from_secs(8), "{error} {took:?}");
        assert!(edge::log::chain(&error).contains("in time"), "{}", edge::log::chain(&error));
        assert_eq!(slow.answer("arm", "s").unwrap().as_deref(), Some("x"), "reading goes on");
    });
    until_it_works(&mut slow, "held no more");
    // A schema of a newer program is left alone.
    server.sql("INSERT INTO sorter_schema VALUES (9)");
    let error = Db::open(&config(scratch.path(), Some(&server.address()), "")).unwrap_err();
    assert!(matches!(error, Error::Newer { found: 9, .. }), "{error}");
}

#[test]
fn postgres_refuses_and_says_why() {
    let scratch = Scratch::new("pg");
    let Some(server) = Postgres::start(&scratch) else { skip!("PostgreSQL is not installed (make deps)") };
    let open = |conn: &str| Db::open(&config(scratch.path(), Some(conn), "connect-timeout-ms = 2000\n"));
    let refused = |conn: &str| {
        let result = open(conn).and_then(|mut db| db.answer("arm", "s"));
        let text = edge::log::chain(&result.unwrap_err());
        assert!(!text.contains(PASSWORD) && !text.contains("hunter2"), "{text}");
        text
    };
    let port = server.port;
    let wrong = refused(&format!("postgresql://sorter:hunter2@127.0.0.1:{port}/sorter"));
    assert!(wrong.contains("28P01") && wrong.contains("is the password"), "{wrong}");
    let nobody = refused(&format!("postgresql://nobody:hunter2@127.0.0.1:{port}/sorter"));
    assert!(nobody.contains("28P01"), "{nobody}");
    let none = refused(&format!("postgresql://sorter@127.0.0.1:{port}/sorter"));
    assert!(none.contains("has none"), "{none}");
    let missing = refused(&format!("postgresql://sorter:{PASSWORD}@127.0.0.1:{port}/missing"));
    assert!(missing.contains("3D000") && missing.contains("createdb"), "{missing}");
    let tls = refused(&format!("postgresql://sorter:{PASSWORD}@127.0.0.1:{port}/sorter?sslmode=require"));
    assert!(tls.contains("no TLS"), "{tls}");
    let away = refused(&format!("postgresql://sorter:{PASSWORD}@127.0.0.1:{}/sorter", e2e::net::free_port()));
    assert!(away.contains("refused"), "{away}");
    // Somebody listens and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let begin = Instant::now();
    let text = refused(&format!("postgresql://sorter:{PASSWORD}@{}/sorter", silent.local_addr().unwrap()));
    assert!(text.contains("in time") && begin.elapsed() < Duration::from_secs(4), "{text}");
    // A user who may not make tables is told so, and may use those that are there.
    server.sql("CREATE USER reader PASSWORD 'hunter2'");
    let reader = format!("postgresql://reader:hunter2@127.0.0.1:{port}/sorter");
    let text = refused(&reader);
    assert!(text.contains("42501") && text.contains("needs CREATE"), "{text}");
    drop(open(&server.address()).unwrap());
    server.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO reader");
    let mut db = open(&reader).unwrap();
    db.replace_boxes("arm", "s", &picture("1.jpg", 1, 1), &[found(0, 1)]).unwrap();
    assert!(!format!("{db:?}").contains("hunter2"));
    assert_eq!(db.name(), format!("postgresql://reader@127.0.0.1:{port}/sorter"));
}

#[test]
fn postgres_by_socket_and_by_tls() {
    let scratch = Scratch::new("pg");
    let Some(mut server) = Postgres::start(&scratch) else {
        skip!("PostgreSQL is not installed (make deps)")
    };
    let (ca, chain, key) = e2e::postgres::certificates("localhost");
    server.set_tls(&chain, &key);
    server.stop();
    server.resume();
    let ca = scratch.write("ca.pem", ca);
    let (port, ca) = (server.port, ca.display().to_string());
    let open = |host: &str, more: &str| {
        let conn = format!("postgresql://sorter:{PASSWORD}@{host}/sorter?port={port}{more}");
        let db = Db::open(&config(scratch.path(), Some(&conn), ""));
        db.map_err(|error| edge::log::chain(&error))
    };
    let encrypted = || {
        server.sql(
            "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                                   WHERE application_name = 'sorterd' AND ssl",
        )
    };
    let mut db = open("localhost", "&sslmode=require").unwrap();
    assert_eq!(encrypted(), "1");
    let many: Vec<Found> = (0..3000).map(|n| found(1, n)).collect();
    db.replace_boxes("arm", "s", &picture("1.jpg", 1, 1), &many).unwrap();
    drop(db);
    let verified = format!("&sslmode=verify-full&sslrootcert={ca}");
    let mut db = open("localhost", &verified).unwrap();
    assert_eq!(objects(&db.images("arm", "s").unwrap()[0]), many);
    drop(db);
    let db = open("localhost", "").unwrap();
    assert_eq!(encrypted(), "1", "prefer takes what it can get");
    drop(db);
    let db = open("localhost", "&sslmode=disable").unwrap();
    assert_eq!(encrypted(), "0");
    drop(db);
    let name = open("127.0.0.1", &verified).map(drop).unwrap_err();
    assert!(name.contains("certificate") && name.contains("not valid for name"), "{name}");
    let other = scratch.write("other.pem", e2e::postgres::certificates("localhost").0);
    let other = format!("&sslmode=verify-full&sslrootcert={}", other.display());
    let unknown = open("localhost", &other).map(drop).unwrap_err();
    assert!(unknown.contains("certificate"), "{unknown}");
    let folder = server.socket_folder().display().to_string().replace('/', "%2F");
    let mut db = open(&folder, "").unwrap();
    assert_eq!(db.images("arm", "s").unwrap().len(), 1);
    drop(db);
    // Methods that are older than SCRAM.
    server.sql("SET password_encryption = 'md5'; CREATE USER old PASSWORD 'old-pass'; GRANT ALL ON ALL TABLES IN SCHEMA public TO old");
    server.set_login("old", "md5");
    let old = |more: &str| {
        let conn = format!("postgresql://old:old-pass@localhost:{port}/sorter{more}");
        Db::open(&config(scratch.path(), Some(&conn), "")).map(drop).map_err(|error| edge::log::chain(&error))
    };
    old("?sslmode=disable").unwrap();
    server.set_login("old", "password");
    let clear = old("?sslmode=disable").unwrap_err();
    assert!(clear.contains("in the clear"), "{clear}");
    old("?sslmode=require").unwrap();
}

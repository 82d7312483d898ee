//! Two machines with sorterd, one PostgreSQL and one bucket: whichever is sent the pictures, either answers, as one would.

use std::time::{Duration, Instant};

use e2e::aws::S3;
use e2e::env::wait_for;
use e2e::postgres::Postgres;
use e2e::proxy::Proxy;
use e2e::scratch::Scratch;
use e2e::skip;
use e2e::sorter::{PANORAMA, Sorter, after_headers, draw, have_arm, headers, question};
use e2e::websocket::{TEXT, WebSocket};
use serde_json::{Value, json};

const BUCKET: &str = "fleet";
const LONG: Duration = Duration::from_secs(60);

/// The machines a and b; b reaches S3 through a proxy.
struct Fleet {
    a: Sorter,
    b: Sorter,
    proxy: Proxy,
    s3: S3,
    postgres: Postgres,
    pictures: Vec<(String, Vec<u8>)>,
    scratch: Scratch,
}

macro_rules! fleet {
    ($wait:expr) => {{
        if !have_arm() {
            skip!("the arm's Python is not there (etc/tools.sh arm)");
        }
        let scratch = Scratch::new("sorfl");
        let Some(s3) = S3::s3s(&scratch, BUCKET) else { skip!("s3s-fs is not built (etc/tools.sh s3s)") };
        let Some(postgres) = Postgres::start(&scratch) else { skip!("PostgreSQL is not installed") };
        Fleet::start(scratch, s3, postgres, $wait)
    }};
}

impl Fleet {
    fn start(scratch: Scratch, s3: S3, postgres: Postgres, fetch_wait_ms: u64) -> Fleet {
        let proxy = Proxy::start(s3.port);
        let machine = |name: &str, port: u16| {
            let more = format!(
                "[upload]\nmode = \"production\"\nto = \"s3://{BUCKET}/all\"\nendpoint = \"http://127.0.0.1:{port}\"\n\
                 retry-max-ms = 300\nhold-max-ms = 1000\nfetch-wait-ms = {fetch_wait_ms}\n"
            );
            let mut sorter = Sorter::named(&scratch, name, &more);
            sorter.daemon.env("PG_CONN", postgres.address());
            sorter.daemon.env("AWS_ACCESS_KEY_ID", e2e::aws::KEY_ID);
            sorter.daemon.env("AWS_SECRET_ACCESS_KEY", e2e::aws::SECRET);
            sorter.daemon.env("AWS_EC2_METADATA_DISABLED", "true");
            sorter.daemon.start_ready();
            sorter
        };
        let (a, b) = (machine("a", s3.port), machine("b", proxy.port));
        let pictures = draw(&scratch, "sort");
        Fleet { a, b, proxy, s3, postgres, pictures, scratch }
    }

    /// Sends all pictures of a session to one machine.
    fn send(&self, to: &Sorter, session: &str) {
        for (image, picture) in &self.pictures {
            assert_eq!(to.send(&headers(session, image), picture), json!(true), "{image}");
        }
    }

    /// Waits until nothing is left to upload.
    fn uploaded(&self, machine: &Sorter) {
        wait_for("all is uploaded", LONG, || {
            (machine.daemon.status()["uploads"]["queued"] == 0).then_some(())
        });
    }

    fn object(&self, session: &str, image: &str) -> std::path::PathBuf {
        self.s3.root.join(BUCKET).join("all/arm1").join(session).join(image)
    }
}

fn ask(machine: &Sorter, session: &str) -> Value {
    WebSocket::connect(machine.port).ask(&question(session))
}

/// A command that has no answer.
fn tell(machine: &Sorter, command: &Value) {
    let mut socket = WebSocket::connect(machine.port);
    assert!(socket.send(TEXT, command.to_string().as_bytes()));
    // Closing at once could go before the command is read.
    assert!(machine.get("/").0 < 600);
}

fn stitch(session: &str) -> Value {
    json!({ "command": "stitch_after_image", "arm_id": "arm1", "session_id": session })
}

fn error(answer: &Value) -> String {
    answer["error"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

fn panorama(machine: &Sorter, session: &str, name: &str) -> Vec<u8> {
    wait_for(&format!("{name} of {session}"), PANORAMA, || {
        let (status, _, body) = machine.get(&format!("/pictures/arm1/{session}/{name}"));
        (status == 200).then_some(body)
    })
}

#[test]
fn either_machine_answers_as_one_would() {
    let fleet = fleet!(20_000);
    let (a, b) = (&fleet.a, &fleet.b);
    fleet.send(a, "alone");
    let alone = ask(a, "alone");
    assert_eq!(alone.as_array().map(Vec::len), Some(8), "{alone}");
    assert_eq!(a.daemon.status()["pictures_fetched"], 0);

    // All to one, commands of the other; asked at once: what is not uploaded yet is waited for.
    fleet.send(a, "other");
    assert_eq!(ask(b, "other"), alone);
    assert!(b.daemon.status()["pictures_fetched"].as_u64() > Some(0), "{}", b.daemon.status());
    // Each has a part.
    for (n, (image, picture)) in fleet.pictures.iter().enumerate() {
        let to = if n % 2 == 0 { a } else { b };
        assert_eq!(to.send(&headers("parts", image), picture), json!(true));
        assert_eq!(to.send(&after_headers("parts", image), picture), json!(true));
    }
    for machine in [a, b] {
        assert_eq!(ask(machine, "parts"), alone);
    }
    // Panoramas of what both were sent are the same as of what one was.
    let original = panorama(a, "alone", "original_stitch.jpg");
    for machine in [a, b] {
        assert!(panorama(machine, "parts", "original_stitch.jpg") == original);
    }
    for (image, picture) in &fleet.pictures {
        assert_eq!(a.send(&after_headers("alone", image), picture), json!(true));
    }
    tell(a, &stitch("alone"));
    let after = panorama(a, "alone", "after_stitch.jpg");
    for machine in [b, a] {
        tell(machine, &stitch("parts"));
        assert!(panorama(machine, "parts", "after_stitch.jpg") == after);
    }
    // What was fetched is shown on its page.
    for (image, picture) in &fleet.pictures {
        let (status, _, body) = b.get(&format!("/pictures/arm1/parts/{image}"));
        assert!(status == 200 && body == *picture, "{image}");
    }
    for machine in [a, b] {
        assert_eq!(machine.daemon.status()["panoramas_failed"], 0, "{}", machine.daemon.lines.tail(20));
        machine.daemon.check_log();
    }
}

/// A picture that is sent again, to another machine, is the one that counts.
#[test]
fn an_older_picture_of_the_same_name_is_not_taken_for_it() {
    let fleet = fleet!(20_000);
    let (a, b) = (&fleet.a, &fleet.b);
    fleet.send(a, "right");
    let right = ask(a, "right");
    let old = draw(&fleet.scratch, "empty");
    for (image, _) in &fleet.pictures {
        assert_eq!(b.send(&headers("again", image), &old[0].1), json!(true));
    }
    fleet.uploaded(b);
    fleet.send(a, "again");
    assert_eq!(ask(b, "again"), right);
    b.daemon.check_log();
}

/// The other machine's uploads wait: so does the answer, while everything else goes on, and it comes when they are there.
#[test]
fn what_is_not_uploaded_yet_is_waited_for() {
    let fleet = fleet!(30_000);
    let (a, b) = (&fleet.a, &fleet.b);
    fleet.proxy.refuse(true);
    fleet.send(b, "late");
    let right = ask(b, "late");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| ask(a, "late"));
        std::thread::sleep(Duration::from_secs(2));
        assert!(!waits.is_finished(), "it waits");
        let begun = Instant::now();
        fleet.send(a, "beside");
        assert_eq!(a.get("/").0, 200);
        assert!(begun.elapsed() < Duration::from_secs(25), "others go on: {:?}", begun.elapsed());
        assert!(!waits.is_finished(), "it waits still");
        fleet.proxy.refuse(false);
        assert_eq!(waits.join().unwrap(), right);
    });
    a.daemon.check_log();
}

/// S3 is silent: a clear refusal in time, and others are answered meanwhile.
#[test]
fn s3_away_is_a_clear_refusal_in_time() {
    let mut fleet = fleet!(6_000);
    fleet.send(&fleet.a, "s1");
    fleet.uploaded(&fleet.a);
    for (how, says) in [("silent", "no answer"), ("away", "s3://")] {
        fleet.proxy.stall(how == "silent");
        fleet.proxy.refuse(how == "away");
        fleet.proxy.cut();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            // More than there are threads for it: nobody waits for another's search.
            let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| ask(&fleet.b, "s1"))).collect();
            std::thread::sleep(Duration::from_millis(500));
            let own = Instant::now();
            assert_eq!(fleet.b.get("/").0, 200);
            assert_eq!(fleet.b.send(&headers("own", "1.jpg"), &fleet.pictures[0].1), json!(true));
            let own = own.elapsed();
            for asked in asked {
                let why = error(&asked.join().unwrap());
                assert!(
                    why.contains("is not here and can't be fetched") && why.contains("fetch-wait-ms"),
                    "{why}"
                );
                assert!(why.contains(says) || why.contains("no time left"), "{how}: {why}");
            }
            let took = begun.elapsed();
            assert!(
                own < Duration::from_secs(4) && took < Duration::from_secs(25),
                "{how}: {own:?} {took:?}"
            );
        });
    }
    fleet.proxy.stall(false);
    fleet.proxy.refuse(false);
    fleet.proxy.cut();
    assert_eq!(ask(&fleet.b, "s1"), ask(&fleet.a, "s1"));
    // The database can't say which pictures there are: no panorama, and why.
    fleet.postgres.stop();
    tell(&fleet.b, &stitch("s1"));
    wait_for("it says so", LONG, || {
        let lines = &fleet.b.daemon.lines;
        lines.contain("no panorama of arm1/s1: cannot look up the pictures taken afterwards").then_some(())
    });
    let after = fleet.b.send(&after_headers("s1", "1.jpg"), &fleet.pictures[0].1);
    assert_eq!(after, json!(false), "nobody else would know of it");
    fleet.postgres.resume();
    fleet.b.daemon.check_log();
}

/// Objects that are not what the database means are refused by name, and in the end the right ones are taken.
#[test]
fn an_object_that_is_something_else_is_refused() {
    // Long enough for all that is fetched here; each refusal waits for so long, since the right object may yet come.
    let fleet = fleet!(8000);
    fleet.send(&fleet.a, "s1");
    fleet.uploaded(&fleet.a);
    let right = ask(&fleet.a, "s1");
    let other = draw(&fleet.scratch, "empty")[0].1.clone();
    // As any picture of another size would.
    let wide = panorama(&fleet.a, "s1", "original_stitch.jpg");
    let large = vec![0xff; 3 << 20];
    let half = fleet.pictures[0].1[..2000].to_vec();
    for (bytes, says) in [
        (b"no picture".as_slice(), "is no picture: not a JPEG"),
        (&half, "is no picture: not a readable JPEG"),
        (&large, "has more than 2048576 bytes (limits.message-bytes-max)"),
        (&wide, " pixels, the database says 640x480"),
        (&other, "is another picture than the one that was stored last"),
    ] {
        for (image, _) in &fleet.pictures {
            std::fs::write(fleet.object("s1", image), bytes).unwrap();
        }
        let why = error(&ask(&fleet.b, "s1"));
        assert!(why.contains(says) && why.contains("all/arm1/s1/"), "{says}: {why}");
    }
    for (image, _) in &fleet.pictures {
        std::fs::remove_file(fleet.object("s1", image)).unwrap();
    }
    let why = error(&ask(&fleet.b, "s1"));
    assert!(why.contains("404 NoSuchKey"), "{why}");
    let kept = fleet.b.kept();
    assert!(!kept.iter().any(|name| name.contains("fetched_")), "nothing of it is kept: {kept:?}");
    for (image, picture) in &fleet.pictures {
        std::fs::write(fleet.object("s1", image), picture).unwrap();
    }
    assert_eq!(ask(&fleet.b, "s1"), right);
    fleet.b.daemon.check_log();
}

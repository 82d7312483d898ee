//! Whole sessions of sorterd with drawn scenes: the commands must be those that follow from what was drawn, whichever
//! database keeps the boxes, and whatever ends the daemon in between.

use std::time::Duration;

use e2e::env::{run, seed, wait_for};
use e2e::postgres::Postgres;
use e2e::scratch::Scratch;
use e2e::skip;
use e2e::sorter::{PANORAMA, Sorter, draw, have_arm, headers, python, question, report};
use e2e::websocket::WebSocket;
use serde_json::json;

macro_rules! need_arm {
    () => {
        if !have_arm() {
            skip!("the arm's Python is not there (etc/tools.sh arm)");
        }
    };
}

/// Scenes and the number of commands that they end in.
const SCENES: [(&str, usize); 8] = [
    ("sort", 8),
    ("two", 4),
    ("excess", 2),
    ("one", 3),
    ("single", 2),
    ("no-items", 0),
    ("no-containers", 0),
    ("empty", 0),
];

fn play_all(sorter: &Sorter) {
    for (scene, commands) in SCENES {
        for seed in ["1", "2"] {
            let name = format!("{scene}{seed}");
            let report = sorter.play_well(scene, &["--session", &name, "--seed", seed]);
            assert_eq!(report["commands"].as_array().unwrap().len(), commands, "{scene}");
        }
    }
    sorter.daemon.check_log();
}

#[test]
fn the_formulas_of_the_tests_are_right_themselves() {
    need_arm!();
    run(python().arg("self-test"));
}

#[test]
fn every_scene_is_sorted_as_it_was_drawn_sqlite() {
    need_arm!();
    let scratch = Scratch::new("sorq");
    let mut sorter = Sorter::start(&scratch, "");
    play_all(&sorter);
    let status = sorter.daemon.status();
    assert!(status["mode"] == "local" && status["failed"] == 0, "{status}");
    assert!(sorter.daemon.term().success());
}

#[test]
fn every_scene_is_sorted_as_it_was_drawn_postgresql() {
    need_arm!();
    let scratch = Scratch::new("sorpg");
    let Some(mut postgres) = Postgres::start(&scratch) else { skip!("PostgreSQL is not installed") };
    let mut sorter = Sorter::new(&scratch, "");
    sorter.daemon.env("PG_CONN", postgres.address());
    sorter.daemon.start_ready();
    play_all(&sorter);
    assert!(!sorter.daemon.lines.contain(e2e::postgres::PASSWORD), "its log tells the password");
    let tables = postgres.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'");
    assert!(tables.parse::<u32>().unwrap() >= 1, "the boxes are in PostgreSQL");

    // The server goes and comes back: what is asked meanwhile is refused, nothing hangs, then it is as before.
    let before = WebSocket::connect(sorter.port).ask(&question("sort1"));
    postgres.stop();
    let away = WebSocket::connect(sorter.port).ask(&question("sort1"));
    assert!(away["error"].is_string(), "{away}");
    postgres.resume();
    wait_for("the same commands", Duration::from_secs(120), || {
        (WebSocket::connect(sorter.port).ask(&question("sort1")) == before).then_some(())
    });
    assert!(sorter.daemon.term().success());
}

/// A picture that comes again replaces its boxes; sessions and arms do not see each other.
#[test]
fn repeated_pictures_replace_and_sessions_stand_apart() {
    need_arm!();
    let scratch = Scratch::new("sorrep");
    let sorter = Sorter::start(&scratch, "");
    let first = sorter.play_well("sort", &["--session", "a"]);
    let again = sorter.play_well("sort", &["--session", "a"]);
    assert_eq!(first["commands"], again["commands"]);
    let other = sorter.play_well("two", &["--session", "b", "--arm", "arm2"]);
    assert_eq!(other["commands"].as_array().unwrap().len(), 4);
    let objects = |arm: &str, session: &str| -> usize {
        let shown = sorter.session(arm, session);
        shown["images"].as_array().unwrap().iter().map(|i| i["objects"].as_array().unwrap().len()).sum()
    };
    let (sort, two) = (objects("arm1", "a"), objects("arm2", "b"));
    let sessions = sorter.json("/api/sessions");
    let mut listed: Vec<_> =
        sessions["sessions"].as_array().unwrap().iter().map(|s| s["objects"].clone()).collect();
    listed.sort_by_key(|n| n.as_u64());
    let mut wanted = [sort, two];
    wanted.sort_unstable();
    assert_eq!(listed, wanted.map(|n| json!(n)), "{sessions}");
    // The first session's picture of the same name, with something else on it: only that one's boxes change.
    let single = draw(&scratch, "single");
    assert_eq!(sorter.send(&headers("a", "1420.jpg"), &single[0].1), json!(true));
    assert_ne!(objects("arm1", "a"), sort);
    assert_eq!(objects("arm2", "b"), two);
    assert_eq!(
        WebSocket::connect(sorter.port).ask(&question("none")),
        json!([]),
        "a session nobody has heard of"
    );
}

/// Killed while pictures come in: an arm sends again what was not answered, and the session ends as it should.
#[test]
fn kill_9_in_the_middle_and_the_session_goes_on() {
    need_arm!();
    let scratch = Scratch::new("sorkill");
    let mut rng = fastrand::Rng::with_seed(seed());
    let mut sorter = Sorter::start(&scratch, "");
    let calm = sorter.play_well("sort", &["--session", "calm"]);
    for n in 0..6 {
        let name = format!("s{n}");
        let mut arm = sorter.arm("play", &["sort", "--session", &name]);
        std::thread::sleep(Duration::from_millis(rng.u64(300..1500)));
        sorter.daemon.kill9();
        arm.wait_exit(Duration::from_secs(240));
        sorter.daemon.start_ready();
        let report = sorter.play_well("sort", &["--session", &name]);
        assert_eq!(report["commands"], calm["commands"], "killed or not, the answer is the same");
    }
    // What was answered before a kill is still there after it.
    let drawn = draw(&scratch, "sort");
    for (image, picture) in &drawn {
        assert_eq!(sorter.send(&headers("kept", image), picture), json!(true));
        sorter.daemon.kill9();
        sorter.daemon.start_ready();
    }
    assert_eq!(WebSocket::connect(sorter.port).ask(&question("kept")), calm["commands"]);
    for (image, picture) in &drawn {
        let (status, head, body) = sorter.get(&format!("/pictures/arm1/kept/{image}"));
        assert!(status == 200 && &body == picture, "{image} is not what was sent: {head}");
    }
    sorter.daemon.check_log();
}

/// Asked to end in the middle, it answers what it has taken in, then ends well.
#[test]
fn term_answers_what_was_taken_in() {
    need_arm!();
    let scratch = Scratch::new("sorterm");
    let mut sorter = Sorter::start(&scratch, "");
    let drawn = draw(&scratch, "sort");
    let mut sockets: Vec<_> = drawn.iter().map(|_| WebSocket::connect(sorter.port)).collect();
    for (socket, (image, picture)) in sockets.iter_mut().zip(&drawn) {
        assert!(
            socket.send(e2e::websocket::BINARY, &e2e::websocket::message(&headers("s1", image), picture))
        );
    }
    wait_for("all pictures taken in", Duration::from_secs(20), || {
        // The last answer is due, or has come.
        std::thread::sleep(Duration::from_millis(30));
        sorter.daemon.try_status().map(drop)
    });
    assert!(sorter.daemon.term().success());
    for socket in &mut sockets {
        assert_eq!(socket.answer(), json!(true));
        let code = socket.close_code();
        assert!(code == 1001 || code == 0, "going away, not {code}");
    }
    sorter.daemon.start_ready();
    assert_eq!(sorter.session("arm1", "s1")["images"].as_array().unwrap().len(), drawn.len());
}

/// Arms that send and are gone at once: what they sent counts, one message after the other.
#[test]
fn what_an_arm_sent_before_it_left_counts() {
    use e2e::websocket::{BINARY, TEXT, message};
    use rustix::process::Signal;
    need_arm!();
    let scratch = Scratch::new("sorgone");
    let sorter = Sorter::start(&scratch, "");
    let drawn = draw(&scratch, "sort");
    let mut socket = WebSocket::connect(sorter.port);
    let mut other = WebSocket::connect(sorter.port);
    // Messages and the end of the connection come in one.
    sorter.daemon.process().signal(Signal::STOP);
    for (image, picture) in &drawn {
        assert!(socket.send(BINARY, &message(&headers("s1", image), picture)));
    }
    socket.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let after = message(&e2e::sorter::after_headers("s2", &drawn[0].0), &drawn[0].1);
    assert!(other.send(BINARY, &after));
    let stitch = json!({ "command": "stitch_after_image", "arm_id": "arm1", "session_id": "s2" });
    assert!(other.send(TEXT, stitch.to_string().as_bytes()));
    drop(other);
    sorter.daemon.process().signal(Signal::CONT);
    for _ in &drawn {
        assert_eq!(socket.answer(), json!(true), "who still listens is answered");
    }
    assert_eq!(socket.receive(), None, "then it is over");
    assert_eq!(sorter.session("arm1", "s1")["images"].as_array().unwrap().len(), drawn.len());
    wait_for("the panorama", PANORAMA, || {
        let (status, _, _) = sorter.get("/pictures/arm1/s2/after_stitch.jpg");
        (status == 200).then_some(())
    });
    wait_for("nobody is left", Duration::from_secs(60), || {
        (sorter.daemon.status()["connections"] == 0).then_some(())
    });
    sorter.daemon.check_log();
}

/// Two arms with two sessions each at once, all five connections wide.
#[test]
fn several_arms_at_once() {
    need_arm!();
    let scratch = Scratch::new("sormany");
    let sorter = Sorter::start(&scratch, "");
    let sessions =
        [("arm1", "x", "sort"), ("arm1", "y", "two"), ("arm2", "x", "excess"), ("arm2", "y", "one")];
    let mut arms: Vec<_> = sessions
        .iter()
        .map(|(arm, session, scene)| {
            sorter.arm("play", &[scene, "--arm", arm, "--session", session, "--after", "--stitch"])
        })
        .collect();
    for arm in &mut arms {
        arm.wait_exit(Duration::from_secs(240));
        assert_eq!(report(arm)["problems"], json!([]), "{}", arm.lines.tail(5));
    }
    for (arm, session, _) in sessions {
        wait_for("both panoramas", PANORAMA, || {
            let made = sorter.session(arm, session)["panoramas"].clone();
            (made == json!(["original_stitch.jpg", "after_stitch.jpg"])).then_some(())
        });
        let (status, head, body) = sorter.get(&format!("/pictures/{arm}/{session}/original_stitch.jpg"));
        assert!(status == 200 && body.starts_with(&[0xff, 0xd8]), "{head}");
    }
    sorter.daemon.check_log();
}

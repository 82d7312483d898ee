//! What sorterd tells a control panel, beside what Python's own `logging.handlers.HTTPHandler` sends; and that a panel which
//! is slow or away costs an arm nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::env::{run, wait_for};
use e2e::panel::{Panel, Post};
use e2e::scratch::Scratch;
use e2e::skip;
use e2e::sorter::{Sorter, draw, have_arm, headers, python};
use serde_json::{Value, json};

/// Half of what a panel that is waited for would cost.
const LONG: Duration = Duration::from_secs(50);

/// What the panel reads of a record.
const FIELDS: [&str; 8] = ["name", "levelname", "msg", "created", "asctime", "pathname", "lineno", "args"];

/// What a value looks like: digits as `0`, letters as `a`, each run once; so that two of a kind are equal.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for c in text.chars() {
        let kind = match c {
            '0'..='9' => '0',
            c if c.is_alphabetic() => 'a',
            c => c,
        };
        if !(matches!(kind, '0' | 'a') && shape.ends_with(kind)) {
            shape.push(kind);
        }
    }
    shape
}

/// The `args` as Python reads them.
fn literal(args: &str) -> Value {
    let script = "import ast, json, sys; print(json.dumps(ast.literal_eval(sys.argv[1])))";
    serde_json::from_str(&run(Command::new("python3").args(["-c", script, args]))).unwrap()
}

fn session(sorter: &Sorter) {
    sorter.play_well("two", &["--session", "s12", "--after", "--stitch"]);
}

fn steps(posts: &[Post], log_type: &str) -> Vec<u32> {
    let of = posts.iter().filter(|post| post.arg("log_type") == log_type);
    of.map(|post| post.arg("bm_id").parse().unwrap()).collect()
}

/// Those of `steps` that are among `some`, in their order.
fn among(steps: &[u32], some: &[u32]) -> Vec<u32> {
    steps.iter().copied().filter(|step| some.contains(step)).collect()
}

#[test]
fn lines_are_those_of_pythons_handler() {
    if !have_arm() {
        skip!("the arm's Python is not there (etc/tools.sh arm)");
    }
    let scratch = Scratch::new("sorpan");
    let panel = Panel::start();
    run(python().arg("log").arg(panel.host()).args(["--session", "s12"]));
    let python = panel.wait("Python's record", |_| true);
    let mut sorter = Sorter::new(&scratch, "");
    sorter.daemon.env("CONTROL_PANEL_HOST", panel.host());
    sorter.daemon.start_ready();
    session(&sorter);
    // Nobody waits for panoramas.
    wait_for("two answers and a panorama of each kind", e2e::sorter::PANORAMA, || {
        let posts = panel.posts();
        let commands = steps(&posts, "comm_gen");
        let begun = among(&commands, &[10]).len();
        (among(&commands, &[16]).len() == 2
            && among(&commands, &[13]).len() == begun
            && steps(&posts, "after").contains(&13))
        .then_some(())
    });
    let shown = sorter.session("arm1", "s12");
    let ours: Vec<Post> = panel.posts().into_iter().skip(1).collect();
    for post in &ours {
        assert_eq!(post.line, python.line);
        assert_eq!(post.headers["content-type"], python.headers["content-type"]);
        assert!(post.headers.contains_key("host") && post.headers.contains_key("content-length"));
        for field in FIELDS {
            assert!(python.fields.contains_key(field), "{field} of {python:?}");
            assert!(!post.field(field).is_empty(), "{field} of {post:?}");
        }
        for field in ["created", "asctime", "lineno"] {
            assert_eq!(shape(post.field(field)), shape(python.field(field)), "{field}: {post:?}");
        }
        let created: f64 = post.field("created").parse().unwrap();
        assert!((created - python.field("created").parse::<f64>().unwrap()).abs() < 120.0);
        assert_eq!(post.field("levelname"), python.field("levelname"));
    }
    let theirs = literal(python.field("args"));
    for post in &ours {
        let args = literal(post.field("args"));
        assert_eq!(args["arm_id"], theirs["arm_id"]);
        assert_eq!(args["session_id"], theirs["session_id"]);
        assert!(args["log_type"].is_string() && args["bm_id"].is_u64(), "as in {theirs}: {args}");
    }
    let after = shown["images"].as_array().unwrap().iter().filter(|image| image["after"] == true).count();
    check_steps(&ours, after);
    sorter.daemon.check_log();
}

/// Each picture passes its steps in their order, and no others; 6 is for those that are uploaded.
fn check_steps(ours: &[Post], after: usize) {
    let kinds: BTreeSet<String> = ours.iter().map(|post| post.arg("log_type")).collect();
    let pictures = ["1250", "1375", "1500", "1625", "1750"];
    let wanted: BTreeSet<String> =
        pictures.iter().chain(&["after", "comm_gen"]).map(|k| (*k).to_owned()).collect();
    assert_eq!(kinds, wanted);
    for picture in pictures {
        assert_eq!(steps(ours, picture), [2, 3, 4, 5, 7], "{picture}");
    }
    // Asked twice, by the arm of the tests. What is made of the boxes goes on beside the panorama, which waits for nobody:
    // one that is asked for again before its turn is made once.
    let commands = steps(ours, "comm_gen");
    let answer = [8, 9, 14, 15, 16];
    let panorama = [10, 11, 12, 13];
    assert_eq!(among(&commands, &answer), answer.repeat(2), "{commands:?}");
    let made = among(&commands, &panorama);
    assert!(made == panorama || made == panorama.repeat(2), "{commands:?}");
    assert_eq!(commands.len(), 2 * answer.len() + made.len(), "nothing else: {commands:?}");
    // Several pictures at once, then their panorama.
    let afterwards = steps(ours, "after");
    let mut counts = BTreeMap::new();
    afterwards.iter().for_each(|step| *counts.entry(*step).or_insert(0) += 1);
    let wanted = BTreeMap::from([(2, after), (7, after), (10, 1), (12, 1), (13, 1)]);
    assert_eq!(counts, wanted, "{afterwards:?}");
    assert_eq!(among(&afterwards, &panorama), [10, 12, 13], "{afterwards:?}");
    assert_eq!(after, pictures.len());
}

#[test]
fn a_panel_that_is_slow_or_away_costs_nothing() {
    if !have_arm() {
        skip!("the arm's Python is not there (etc/tools.sh arm)");
    }
    let scratch = Scratch::new("sorpaw");
    let panel = Panel::start();
    let mut sorter = Sorter::new(&scratch, "");
    let drawn = draw(&scratch, "single");
    let time = |sorter: &Sorter, name: &str| {
        let begun = Instant::now();
        for n in 0..10 {
            assert_eq!(sorter.send(&headers(name, &format!("{n}.jpg")), &drawn[0].1), json!(true));
        }
        begun.elapsed()
    };
    sorter.daemon.start_ready();
    let without = time(&sorter, "without");
    assert!(sorter.daemon.term().success());
    // Each line would take two seconds; with five lines a picture that would be 100 s.
    panel.slow(Duration::from_secs(2));
    sorter.daemon.env("CONTROL_PANEL_HOST", panel.host()).start_ready();
    let slow = time(&sorter, "slow");
    session(&sorter);
    wait_for("the first lines", LONG, || (!panel.posts().is_empty()).then_some(()));
    let begun = Instant::now();
    assert!(sorter.daemon.term().success());
    assert!(begun.elapsed() < Duration::from_secs(30), "its end waits {:?} for the panel", begun.elapsed());
    // Nobody there; and an address nothing comes back from (reserved for documentation).
    for host in ["127.0.0.1:9", "192.0.2.1:80"] {
        sorter.daemon.env("CONTROL_PANEL_HOST", host).start_ready();
        let away = time(&sorter, "away");
        assert!(away < LONG, "{host}: {away:?}, without {without:?}");
        assert!(sorter.daemon.term().success());
    }
    assert!(slow < LONG, "slow {slow:?}, without {without:?}");
    sorter.daemon.check_log();
}

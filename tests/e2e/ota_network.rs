//! `otad` on a bad line: what broke off goes on where it was, also after a kill; what changed in between is found out; a
//! server that asks for time, or fails, is not hammered.

use std::time::{Duration, Instant};

use e2e::env;
use e2e::ota::{QUICK, Rig};
use e2e::packages::{Fault, Server, md5};

#[test]
fn a_download_that_breaks_off_goes_on_where_it_was() {
    let mut rig = Rig::new("ota-resume", "", QUICK);
    let mut content = b"good and long ".to_vec();
    content.extend((0..300_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8));
    let release = rig.next(content.clone());
    rig.server.publish(&release, &rig.key);
    let fetched = |rig: &Rig| -> Vec<(Option<String>, Option<String>, usize)> {
        let requests = rig.server.requests("/blob/");
        let own = |text: Option<&str>| text.map(str::to_owned);
        requests.iter().map(|r| (own(r.header("range")), own(r.header("if-range")), r.sent)).collect()
    };
    for at in [100_000, 60_000, 90_000] {
        rig.server.fault("/blob/", Fault::Cut(at));
        rig.refused("cut", "trouble", "scoreboard: ");
    }
    rig.server.fault("/blob/", Fault::Stall(10_000));
    rig.refused("stalled", "trouble", "scoreboard: ");
    assert_eq!(rig.device.check().1, "updated");
    let etag = Some(format!("\"{}\"", md5(&content)));
    let from = |at: usize| Some(format!("bytes={at}-"));
    assert_eq!(
        fetched(&rig),
        [
            (None, None, 100_000),
            (from(100_000), etag.clone(), 60_000),
            (from(160_000), etag.clone(), 90_000),
            (from(250_000), etag.clone(), 10_000),
            (from(260_000), etag, content.len() - 260_000),
        ],
        "no byte came twice"
    );
    rig.link = rig.device.current();
    assert_eq!(std::fs::read(rig.device.path("scoreboard/scoreboard")).unwrap(), content);
    rig.end();
}

#[test]
fn a_file_that_changes_in_the_middle_is_found_out() {
    let mut rig = Rig::new("ota-changed", "", QUICK);
    let content = b"good ".repeat(40_000);
    let evil = b"evil ".repeat(40_000);
    let release = rig.next(content.clone());
    let path = format!("/blob/{}", release.sha256());
    rig.server.publish(&release, &rig.key);
    // With If-Range the server says that it is another file; its content is refused.
    rig.server.fault("/blob/", Fault::Cut(70_000));
    rig.refused("cut", "trouble", "scoreboard: ");
    rig.server.blob(&path, &evil);
    rig.refused("changed", "refused", "its SHA-256");
    assert_eq!(rig.server.requests("/blob/")[1].sent, evil.len(), "not mixed with what was here");
    // A server that goes on in another file all the same: the mixture is dropped, and the rest of the round begins anew.
    rig.server.clear();
    rig.server.blob(&path, &content);
    rig.server.fault("/blob/", Fault::Cut(70_000));
    rig.refused("cut again", "trouble", "scoreboard: ");
    let length = evil.len();
    let range = vec![("Content-Range", format!("bytes 70000-{}/{length}", length - 1))];
    rig.server.fault("/blob/", Fault::Answer(206, range, evil[70_000..].to_vec()));
    assert_eq!(rig.device.check().1, "updated");
    assert_eq!(rig.server.requests("/blob/").len(), 3);
    assert_eq!(std::fs::read(rig.device.path("scoreboard/scoreboard")).unwrap(), content);
    rig.link = rig.device.current();
    // An answer to another range than was asked for is not written at all.
    let release = rig.next(b"good and ".repeat(20_000));
    rig.server.publish(&release, &rig.key);
    rig.server.clear();
    rig.server.fault("/blob/", Fault::Cut(50_000));
    rig.refused("cut", "trouble", "scoreboard: ");
    let other = vec![("Content-Range", "bytes 0-9/10".to_owned())];
    rig.server.fault("/blob/", Fault::Answer(206, other, b"0123456789".to_vec()));
    rig.refused("another range", "trouble", "another range");
    assert_eq!(rig.device.check().1, "updated");
    rig.link = rig.device.current();
    rig.end();
}

#[test]
fn a_partial_file_survives_kill_9_and_a_restart() {
    let quiet = QUICK.replace("idle-timeout-ms = 3000", "idle-timeout-ms = 60000");
    let mut rig = Rig::new("ota-partial", "", &quiet);
    let content = b"good and long ".repeat(30_000);
    let release = rig.next(content.clone());
    rig.server.publish(&release, &rig.key);
    let part = rig.device.otad.dir.join(format!("state/blobs/{}.part", release.sha256()));
    let mut here = 0;
    for (at, kill) in [(150_000, true), (60_000, false), (70_000, true)] {
        rig.server.fault("/blob/", Fault::Stall(at));
        rig.device.command(&["check-now"]);
        here += at;
        env::wait_for("the part on disk", Duration::from_secs(20), || {
            (std::fs::metadata(&part).ok()?.len() == here as u64).then_some(())
        });
        if kill {
            rig.device.kill9()
        } else {
            assert!(rig.device.otad.term().success())
        }
        rig.device.otad.start_ready();
        rig.held("after a restart in the middle of a download");
    }
    assert_eq!(rig.device.check().1, "updated");
    let sent: Vec<usize> = rig.server.requests("/blob/").iter().map(|request| request.sent).collect();
    assert_eq!(sent, [150_000, 60_000, 70_000, content.len() - 280_000], "no byte came twice");
    assert_eq!(std::fs::read(rig.device.path("scoreboard/scoreboard")).unwrap(), content);
    rig.link = rig.device.current();
    // What lies there was damaged meanwhile: it is hashed again, found out, and fetched anew in the same round.
    let release = rig.next(b"good and longer ".repeat(30_000));
    rig.server.publish(&release, &rig.key);
    let part = part.with_file_name(format!("{}.part", release.sha256()));
    std::fs::write(&part, b"damaged ".repeat(30_000)).unwrap();
    assert_eq!(rig.device.check().1, "updated");
    assert!(!part.exists());
    rig.link = rig.device.current();
    rig.end();
}

/// A rig whose device asks every second, in its own time. `poll` holds the other keys of `[poll]`.
fn impatient(name: &str, poll: &str) -> Rig {
    let mut rig = Rig::new(name, "", QUICK);
    let (often, _) = QUICK.split_once("[poll]").unwrap();
    rig.configure("", &format!("{often}[poll]\ninterval-s = 1\n{poll}"));
    assert!(rig.device.otad.term().success());
    rig.device.otad.start_ready();
    rig
}

/// When the request that went wrong with this status came, and when the next one did, whatever that is for.
fn refused_and_next(server: &Server, status: u16) -> Option<(Instant, Instant)> {
    let requests = server.requests("/");
    let at = requests.iter().position(|request| request.status == status)?;
    Some((requests[at].at, requests.get(at + 1)?.at))
}

#[test]
fn a_server_that_asks_for_time_gets_it() {
    let mut rig = impatient("ota-retry", "retry-min-s = 1\nretry-max-s = 2\n");
    let date = |seconds: i64| {
        let at = time::OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
        let format = "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT";
        at.format(&time::format_description::parse_borrowed::<2>(format).unwrap()).unwrap()
    };
    for (path, status, seconds, as_date) in [
        ("/package", 503, 3, false),
        ("/package", 429, 2, false),
        ("/package", 503, 8, true),
        ("/blob/", 503, 3, false),
    ] {
        let release = rig.next(format!("good {}", rig.epoch + 1));
        rig.server.clear();
        let written = Instant::now();
        let after = if as_date { date(seconds) } else { seconds.to_string() };
        rig.server.fault(path, Fault::Answer(status, vec![("Retry-After", after)], b"busy".to_vec()));
        rig.server.publish(&release, &rig.key);
        let (refused, next) = env::wait_for("the next request", Duration::from_secs(40), || {
            refused_and_next(&rig.server, status)
        });
        let pause = (next - refused).as_secs_f64();
        println!("{path} {status}: asked again after {pause:.1} s");
        // A date has whole seconds, and counts from when it was written: that is at most one less than it says.
        let asked_for = Duration::from_secs(seconds.unsigned_abs());
        let least = if as_date { written + asked_for - Duration::from_secs(1) } else { refused + asked_for };
        assert!(next >= least, "{path} {status}: asked again after {pause} s");
        env::wait_for("the release", Duration::from_secs(40), || {
            (rig.device.content("scoreboard").as_bytes() == release.content).then_some(())
        });
        rig.device.wait_idle();
    }
    assert!(rig.device.otad.lines.contain("answers 503: busy"));
    assert!(rig.device.otad.term().success());
    rig.device.otad.check_log();
}

#[test]
fn a_server_that_fails_again_and_again_is_not_hammered() {
    let mut rig = impatient("ota-backoff", "retry-min-s = 2\nretry-max-s = 3\n");
    rig.server.clear();
    for _ in 0..3 {
        rig.server.fault("/package", Fault::Answer(500, vec![], b"oops".to_vec()));
    }
    let failed = |rig: &Rig| rig.server.requests("/package").iter().filter(|r| r.status == 500).count();
    let requests = env::wait_for("all failures, and a request after them", Duration::from_secs(60), || {
        let requests = rig.server.requests("/package");
        (failed(&rig) == 3 && requests.last().unwrap().status == 200).then_some(requests)
    });
    for pair in requests.windows(2).filter(|pair| pair[0].status == 500) {
        let gap = (pair[1].at - pair[0].at).as_secs_f64();
        println!("asked again after {gap:.2} s");
        assert!(gap >= 1.0, "asked again after {gap} s, with retry-min-s = 2");
    }
    env::wait_for("the failures are forgotten", Duration::from_secs(20), || {
        (rig.device.otad.status()["failures"] == 0).then_some(())
    });
    let release = rig.next("good 2");
    rig.server.publish(&release, &rig.key);
    env::wait_for("the release", Duration::from_secs(40), || {
        (rig.device.content("scoreboard") == "good 2").then_some(())
    });
    rig.device.wait_idle();
    assert!(rig.device.otad.term().success());
    rig.device.otad.check_log();
}

/// The tag stands for an answer that has been dealt with. A poll that fails changes nothing about that; one that brings
/// an update does.
#[test]
fn a_poll_that_fails_leaves_the_tag_of_the_last_answer() {
    // It must not ask again by itself in between.
    let tables = QUICK.replace("retry-min-s = 1\nretry-max-s = 2", "retry-min-s = 60\nretry-max-s = 90");
    let mut rig = Rig::new("ota-tag", "", &tables);
    let asked_with = |rig: &Rig, word: &str| {
        rig.server.clear();
        assert_eq!(rig.device.check().1, word);
        let polls = rig.server.requests("/package");
        polls.first().and_then(|poll| poll.header("if-none-match")).unwrap_or_default().to_owned()
    };
    rig.server.package_headers(&[("ETag", "\"answer-1\"")]);
    assert!(!asked_with(&rig, "no-change").contains("answer-1"));
    assert!(asked_with(&rig, "no-change").contains("answer-1"));
    for fault in [Fault::Answer(500, vec![], vec![]), Fault::Cut(10)] {
        rig.server.clear();
        rig.server.fault("/package", fault);
        assert_eq!(rig.device.check().1, "trouble");
        assert!(asked_with(&rig, "no-change").contains("answer-1"));
    }
    // An update that does not get through is not taken for nothing.
    let release = rig.next("good 2");
    rig.server.publish(&release, &rig.key);
    rig.server.package_headers(&[("ETag", "\"answer-2\"")]);
    rig.server.clear();
    rig.server.fault("/blob/", Fault::Answer(500, vec![], vec![]));
    assert_eq!(rig.device.check().1, "trouble");
    let tags = asked_with(&rig, "updated");
    assert!(!tags.contains("answer-"), "{tags}");
    rig.link = rig.device.current();
    rig.end();
}

//! `otad` against servers that share no code with it: the stand-in for the original (bundles, no signatures), and the
//! real `depotd` (files, signed). A fake `systemctl` calls a unit failed whose app holds the word BAD.

use std::time::Duration;

use e2e::depot::Depot;
use e2e::env;
use e2e::net::free_port;
use e2e::ota::{Device, TABLES, stand_in};
use e2e::process::Process;
use e2e::scratch::Scratch;
use e2e::sideload::Outcome;
use serde_json::Value;

#[test]
fn the_original_s_bundles_are_installed_taken_back_and_superseded() {
    let scratch = Scratch::new("ota-bundle");
    let (_server, folder, address) = stand_in(&scratch);
    let mut catalog = vec![];
    let mut publish = |app: &str, version: &str, content: &str| {
        let file = format!("{app}_{version}");
        std::fs::write(folder.join(&file), content).unwrap();
        catalog.push(serde_json::json!({ "app": app, "env": "prod", "version": version, "file": file,
            "attrs": if app == "scoreboard" { vec!["gamer"] } else { vec![] } }));
        std::fs::write(folder.join("catalog.json"), Value::from(catalog.clone()).to_string()).unwrap();
    };
    publish("os_armv8", "1.1.0", "the system");
    publish("scoreboard", "1.0.0", "good 1");
    let mut device = Device::new(&scratch, &address, "mode = \"bundle\"\nrequire-signature = false", TABLES);
    device.otad.start_ready();
    assert_eq!(device.check().1, "updated");
    assert_eq!(
        (device.content("os_armv8").as_str(), device.content("scoreboard").as_str()),
        ("the system", "good 1")
    );
    assert_eq!(device.check().1, "no-change");
    publish("scoreboard", "2.0.0", "BAD 2");
    let (code, result, _) = device.check();
    assert_eq!((code, result.as_str()), (1, "rolled-back"));
    assert_eq!(device.content("scoreboard"), "good 1");
    let restarts = || std::fs::read_to_string(device.otad.dir.join("restarts")).unwrap().lines().count();
    let before = restarts();
    assert_eq!(device.check().1, "no-change", "what failed is not tried again");
    assert_eq!(restarts(), before);
    assert_eq!(device.why("scoreboard"), "quarantined");
    publish("scoreboard", "3.0.0", "good 3");
    assert_eq!(device.check().1, "updated");
    assert_eq!(device.content("scoreboard"), "good 3");
    let (code, verified) = device.command(&["verify"]);
    assert_eq!((code, verified["damage"].as_array().map(Vec::len)), (0, Some(0)));
    let usage = device.otad.usage();
    println!("otad: {} kB resident, {} kB at its highest", usage.rss_kb, usage.rss_peak_kb);
    assert!(device.otad.term().success());
    device.otad.check_log();
    assert_eq!(device.command(&["history"]).1.as_array().unwrap().len(), 3, "without a daemon");
}

#[test]
fn an_update_survives_kills_at_random_moments() {
    let scratch = Scratch::new("ota-kill");
    let (_server, folder, address) = stand_in(&scratch);
    let mut rng = fastrand::Rng::with_seed(env::seed());
    let mut device = Device::new(&scratch, &address, "mode = \"bundle\"\nrequire-signature = false", TABLES);
    for round in 1..=6 {
        let (system, board) = (format!("system {round}"), format!("board {round}"));
        std::fs::write(folder.join("a"), &system).unwrap();
        std::fs::write(folder.join("b"), &board).unwrap();
        let catalog = serde_json::json!([
            { "app": "os_armv8", "env": "prod", "version": format!("{round}"), "file": "a" },
            { "app": "scoreboard", "env": "prod", "version": format!("{round}"), "file": "b", "attrs": ["gamer"] }]);
        std::fs::write(folder.join("catalog.json"), catalog.to_string()).unwrap();
        device.otad.start_ready();
        Outcome::of(&mut device.otad.command(&["check-now"]));
        std::thread::sleep(Duration::from_millis(rng.u64(0..1500)));
        device.kill9();
        let number = |text: String| text.split(' ').nth(1).map(str::to_owned);
        let (a, b) = (number(device.content("os_armv8")), number(device.content("scoreboard")));
        assert_eq!(a, b, "both apps of one generation");
        device.otad.start_ready();
        env::wait_for("the update", Duration::from_secs(150), || {
            let idle = device.otad.try_status()?["idle"] == true;
            (idle && device.check().0 == 0 && device.content("scoreboard") == board).then_some(())
        });
        assert_eq!(device.content("os_armv8"), system);
        device.otad.term();
    }
    device.otad.check_log();
}

/// What was installed before is followed back to, what was rolled back by hand is not sent again, and what came before a
/// hook refused the update is installed later: a server's "nothing new" then means content that does not run.
#[test]
fn what_a_server_calls_nothing_new_is_installed_where_it_does_not_run() {
    let scratch = Scratch::new("ota-back");
    let (_server, folder, address) = stand_in(&scratch);
    let hook = "pre-install = [\"/usr/bin/test\", \"!\", \"-e\", \"{dir}/closed\"]\n[app.os_armv8]";
    let tables = TABLES.replace("[app.os_armv8]", hook);
    let mut device = Device::new(&scratch, &address, "mode = \"bundle\"\nrequire-signature = false", &tables);
    device.otad.start_ready();
    let closed = device.otad.dir.join("closed");
    let asked = || {
        let text = std::fs::read_to_string(folder.join("requests")).unwrap_or_default();
        let details = text.lines().filter(|line| line.contains("metadataOnly")).count();
        (text.lines().count() - details, details)
    };
    // What is on the server, whether the hook refuses; what comes of it, what runs, and whether the details are asked for.
    let steps = [
        ("1", false, "updated", "1", 0),
        ("1", false, "no-change", "1", 0),
        ("2", true, "refused", "1", 0),
        ("2", true, "refused", "1", 1),
        ("2", false, "updated", "2", 1),
        ("2", false, "no-change", "2", 0),
        ("1", false, "updated", "1", 0),
        ("1", false, "no-change", "1", 0),
    ];
    for (at, (version, refuse, word, runs, details)) in steps.into_iter().enumerate() {
        std::fs::write(folder.join("b"), format!("board {version}")).unwrap();
        let catalog = serde_json::json!([
            { "app": "scoreboard", "env": "prod", "version": version, "file": "b", "attrs": ["gamer"] }]);
        std::fs::write(folder.join("catalog.json"), catalog.to_string()).unwrap();
        if refuse {
            std::fs::write(&closed, "").unwrap();
        } else {
            let _ = std::fs::remove_file(&closed);
        }
        let before = asked();
        assert_eq!(device.check().1, word, "step {at}");
        assert_eq!(device.content("scoreboard"), format!("board {runs}"), "step {at}");
        assert_eq!(asked(), (before.0 + 1, before.1 + details), "step {at}");
    }
    assert_eq!(device.command(&["rollback"]).0, 0);
    env::wait_for("the way back", Duration::from_secs(30), || {
        (device.otad.try_status()?["idle"] == true && device.content("scoreboard") == "board 2").then_some(())
    });
    let before = asked();
    assert_eq!((device.check().1.as_str(), device.why("scoreboard").as_str()), ("no-change", "quarantined"));
    assert_eq!(asked(), (before.0 + 1, before.1 + 1), "not the content again, only the details");
    assert!(device.otad.term().success());
    device.otad.check_log();
}

/// A release of content that is there already is installed all the same: its epoch and its floor count. What a poll that
/// brings nothing leaves behind is true.
#[test]
fn the_same_content_released_again_raises_epoch_and_floor() {
    for mode in ["files", "bundle"] {
        let scratch = Scratch::new("ota-again");
        let depot = Depot::new(&scratch, "depot");
        depot.publish("scoreboard", "1.0.0", "prod", b"good 1", &["--attr", "gamer"]);
        let (mut serve, address) = depot.serve(&scratch, "serve", "");
        let key = depot.root.join("release.pub");
        let top = format!("mode = \"{mode}\"\npublic-keys = [{:?}]", key.display().to_string());
        let mut device = Device::new(&scratch, &address, &top, TABLES);
        device.otad.start_ready();
        device.check_until("updated");
        depot.publish("scoreboard", "2.0.0", "prod", b"good 2", &["--attr", "gamer"]);
        device.check_until("updated");
        let restarts = device.restarts().len();
        depot.publish("scoreboard", "2.0.1", "prod", b"good 2", &["--attr", "gamer", "--min-epoch", "3"]);
        device.check_until("updated");
        let (_, status) = device.command(&["status"]);
        let app = &status["current"]["apps"][0];
        assert_eq!(
            (app["version"].as_str(), app["epoch"].as_u64()),
            (Some("2.0.1"), Some(3)),
            "{mode}: {status}"
        );
        assert_eq!(device.restarts().len(), restarts, "what runs is the same");
        let back = device.otad.command(&["rollback"]).output().unwrap();
        // 2.0.0 has the content, too, and its epoch is below the floor.
        assert_eq!(back.status.code(), Some(76), "{mode}: {back:?}");
        // From here on the server has nothing new, which it says in one answer without a body.
        assert_eq!(device.check().1, "no-change");
        let polls = |outcome: &str| serve.status()["polls"][outcome].as_u64().unwrap();
        let before = (polls("not-modified"), polls("metadata") + polls("bundle"));
        assert_eq!(device.check().1, "no-change");
        assert_eq!(device.why("scoreboard"), "up-to-date");
        let after = (polls("not-modified"), polls("metadata") + polls("bundle"));
        assert_eq!(after, (before.0 + 1, before.1), "{mode}");
        // What was offered and is no more is not spoken of.
        depot.publish("scoreboard", "4.0.0", "prod", b"good 4", &["--attr", "gamer", "--rollout", "0"]);
        env::wait_for("the offer", Duration::from_secs(30), || {
            device.check();
            (device.why("scoreboard") == "not-in-rollout").then_some(())
        });
        assert_eq!(device.check().1, "no-change");
        assert_eq!(device.why("scoreboard"), "not-in-rollout", "also when it is not said again");
        depot.done(&["retire", "scoreboard", "--version", "4.0.0", "--env", "prod"]);
        env::wait_for("the end of the offer", Duration::from_secs(30), || {
            device.check();
            (device.why("scoreboard") == "up-to-date").then_some(())
        });
        // What failed once is not what is said of its successor after a restart.
        depot.publish("scoreboard", "5.0.0", "prod", b"BAD 5", &["--attr", "gamer"]);
        device.check_until("rolled-back");
        depot.publish("scoreboard", "6.0.0", "prod", b"good 6", &["--attr", "gamer"]);
        device.check_until("updated");
        assert!(device.otad.term().success());
        device.otad.start_ready();
        for _ in 0..2 {
            assert_eq!(device.check().1, "no-change");
            assert_eq!(device.why("scoreboard"), "up-to-date", "{mode}");
        }
        assert!(device.otad.term().success() && serve.term().success());
        device.otad.check_log();
    }
}

#[test]
fn depotd_publishes_and_otad_installs_rolls_back_and_goes_on() {
    let scratch = Scratch::new("ota-depot");
    let depot = Depot::new(&scratch, "depot");
    let port = free_port();
    let text = std::fs::read_to_string(&depot.config).unwrap();
    let root = depot.root.display();
    let text = format!(
        "listen = \"127.0.0.1:{port}\"\nctl-socket = \"{root}/ctl.sock\"\n{text}\n[bundle]\ndir = \"{root}/cache\"\n"
    );
    std::fs::write(&depot.config, text).unwrap();
    depot.publish("scoreboard", "1.0.0", "prod", b"good 1", &["--attr", "gamer"]);
    let _serve = Process::start("depotd", &mut depot.command(&["serve"]));
    let address = format!("http://127.0.0.1:{port}");
    let key = depot.root.join("release.pub");
    let keys = format!("public-keys = [{:?}]", key.display().to_string());
    let mut device = Device::new(&scratch, &address, &keys, TABLES);
    device.otad.start_ready();
    // The server sees what was published a moment later.
    device.check_until("updated");
    assert_eq!(device.content("scoreboard"), "good 1");
    depot.publish("scoreboard", "2.0.0", "prod", b"BAD 2", &["--attr", "gamer"]);
    device.check_until("rolled-back");
    assert_eq!(device.content("scoreboard"), "good 1");
    assert_eq!(device.check().1, "no-change");
    assert_eq!(device.why("scoreboard"), "quarantined");
    depot.publish("scoreboard", "3.0.0", "prod", b"good 3", &["--attr", "gamer"]);
    device.check_until("updated");
    assert_eq!(device.content("scoreboard"), "good 3");
    assert_eq!(device.why("scoreboard"), "up-to-date");
    let (_, status) = device.command(&["status"]);
    assert_eq!(status["current"]["apps"][0]["epoch"], 3);
    assert!(device.otad.term().success());
    device.otad.check_log();
}

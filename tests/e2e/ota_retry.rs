//! `otad retry`: what was rolled back comes again, and only when a person says so.

use e2e::ota::{Device, QUICK, Rig, TABLES, stand_in};
use e2e::scratch::Scratch;
use serde_json::Value;

/// Rolls back by hand; the next poll brings nothing.
fn take_back(device: &Device, left: &str) {
    assert_eq!(device.command(&["rollback"]).0, 0);
    assert_eq!(device.content("scoreboard"), left);
    for _ in 0..2 {
        assert_eq!(
            (device.check().1.as_str(), device.why("scoreboard").as_str()),
            ("no-change", "quarantined")
        );
    }
    assert_eq!(device.content("scoreboard"), left);
    assert!(device.why_text("scoreboard").1.contains("otad retry"));
}

/// What `retry` says when it refuses.
fn refused(device: &Device, arguments: &[&str], code: i32) -> String {
    let output = device.otad.command(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_was_rolled_back_by_hand_is_let_in_again() {
    let mut rig = Rig::new("ota-again-files", "", QUICK);
    assert!(refused(&rig.device, &["retry"], 76).contains("nothing is quarantined"));
    assert!(refused(&rig.device, &["retry", "scoreboard"], 64).contains("is no generation"));
    rig.good();
    take_back(&rig.device, "good 1");
    let (code, of) = rig.device.command(&["retry"]);
    assert_eq!((code, of["apps"][0]["version"].as_str()), (0, Some("2.0.0")), "{of}");
    assert!(of["generation"].as_str().unwrap().starts_with("2-"), "{of}");
    assert_eq!(rig.device.content("scoreboard"), "good 1", "it is the next poll that brings it");
    assert_eq!(rig.device.otad.status()["quarantined"], 0);
    assert_eq!(rig.device.check().1, "updated");
    assert_eq!(rig.device.content("scoreboard"), "good 2");
    assert!(refused(&rig.device, &["retry"], 76).contains("nothing is quarantined"));

    // Of two, one has to be named, and the other one stays.
    take_back(&rig.device, "good 1");
    rig.good();
    take_back(&rig.device, "good 1");
    let said = refused(&rig.device, &["retry"], 76);
    assert!(said.contains("scoreboard 2.0.0") && said.contains("scoreboard 3.0.0"), "{said}");
    assert!(refused(&rig.device, &["retry", "9-01234567"], 76).contains("01234567 is not quarantined"));
    let held: Vec<Value> = rig.device.otad.status()["quarantine"].as_array().unwrap().clone();
    let newest = held.last().unwrap()["generation"].as_str().unwrap().to_owned();
    let human = rig.device.otad.command(&["status"]).output().unwrap();
    let human = String::from_utf8_lossy(&human.stdout).into_owned();
    assert!(human.contains(&format!("not again: {newest} (scoreboard 3.0.0)")), "{human}");
    assert_eq!(rig.device.command(&["retry", &newest]).0, 0);
    assert_eq!(rig.device.check().1, "updated");
    assert_eq!(rig.device.content("scoreboard"), "good 3");
    assert_eq!(rig.device.otad.status()["quarantined"], 1);
    assert_eq!(rig.device.command(&["retry"]).0, 0, "the only one that is left");

    // Without a daemon, on the disk.
    take_back(&rig.device, "good 1");
    assert!(rig.device.otad.term().success());
    let (code, of) = rig.device.command(&["retry"]);
    assert_eq!((code, of["apps"][0]["version"].as_str()), (0, Some("3.0.0")), "{of}");
    assert!(refused(&rig.device, &["retry"], 76).contains("nothing is quarantined"));
    rig.device.otad.start_ready();
    assert_eq!(rig.device.check().1, "updated");
    assert_eq!(rig.device.content("scoreboard"), "good 3");
    rig.link = rig.device.current();
    rig.end();
}

#[test]
fn the_original_s_server_is_asked_for_its_content_again() {
    let scratch = Scratch::new("ota-again-bundle");
    let (_server, folder, address) = stand_in(&scratch);
    let publish = |version: &str| {
        std::fs::write(folder.join("b"), format!("board {version}")).unwrap();
        let catalog = serde_json::json!([
            { "app": "scoreboard", "env": "prod", "version": version, "file": "b", "attrs": ["gamer"] }]);
        std::fs::write(folder.join("catalog.json"), catalog.to_string()).unwrap();
    };
    publish("1");
    let mut device = Device::new(&scratch, &address, "mode = \"bundle\"\nrequire-signature = false", TABLES);
    device.otad.start_ready();
    assert_eq!(device.check().1, "updated");
    publish("2");
    assert_eq!(device.check().1, "updated");
    take_back(&device, "board 1");
    assert_eq!(device.command(&["retry"]).0, 0);
    assert_eq!(device.check().1, "updated");
    assert_eq!(device.content("scoreboard"), "board 2");
    assert!(device.otad.term().success());
    device.otad.check_log();
}

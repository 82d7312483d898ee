//! `otad` and an app that was damaged on the device and does not change in an update.

use e2e::depot::Depot;
use e2e::ota::{Device, QUICK, Rig, TABLES, stand_in};
use e2e::packages::Release;
use e2e::scratch::Scratch;

/// The system is damaged, the board is updated: both are whole then, and only the board's unit was restarted.
fn mended(device: &mut Device, publish: impl FnOnce()) {
    assert_eq!(device.content("os_armv8"), "the system");
    let path = device.path("os_armv8/os_armv8");
    let before = (device.current(), device.restarts().len());
    std::fs::write(path, "the SYSTEM").unwrap();
    assert_eq!(device.command(&["verify"]).0, 65);
    publish();
    device.check_until("updated");
    assert_eq!(
        (device.content("os_armv8").as_str(), device.content("scoreboard").as_str()),
        ("the system", "good 2")
    );
    assert_ne!(device.current(), before.0);
    assert_eq!(device.restarts().len(), before.1 + 1);
    let (code, verified) = device.command(&["verify"]);
    assert_eq!(code, 0, "{verified}");
    let warned = device.otad.lines.all();
    let warned =
        warned.iter().any(|line| line.contains("os_armv8 of 1-") && line.contains("content was changed"));
    assert!(warned, "{}", device.otad.lines.tail(20));
    assert_eq!((device.check().1.as_str(), device.why("os_armv8").as_str()), ("no-change", "up-to-date"));
    assert!(device.otad.term().success());
    device.otad.check_log();
}

#[test]
fn a_damaged_app_that_does_not_change_is_fetched_again() {
    for mode in ["files", "bundle"] {
        let scratch = Scratch::new("ota-mend");
        let depot = Depot::new(&scratch, "depot");
        depot.publish("os_armv8", "1.0.0", "prod", b"the system", &[]);
        depot.publish("scoreboard", "1.0.0", "prod", b"good 1", &["--attr", "gamer"]);
        let (mut serve, address) = depot.serve(&scratch, "serve", "");
        let key = depot.root.join("release.pub");
        let top = format!("mode = \"{mode}\"\npublic-keys = [{:?}]", key.display().to_string());
        let mut device = Device::new(&scratch, &address, &top, TABLES);
        device.otad.start_ready();
        device.check_until("updated");
        mended(&mut device, || {
            depot.publish("scoreboard", "2.0.0", "prod", b"good 2", &["--attr", "gamer"]);
        });
        assert!(serve.term().success());
    }
}

#[test]
fn the_original_s_server_sends_a_damaged_app_again() {
    let scratch = Scratch::new("ota-mend-original");
    let (_server, folder, address) = stand_in(&scratch);
    let publish = |board: &str| {
        std::fs::write(folder.join("a"), "the system").unwrap();
        std::fs::write(folder.join("b"), format!("good {board}")).unwrap();
        let catalog = serde_json::json!([
            { "app": "os_armv8", "env": "prod", "version": "1", "file": "a" },
            { "app": "scoreboard", "env": "prod", "version": board, "file": "b", "attrs": ["gamer"] }]);
        std::fs::write(folder.join("catalog.json"), catalog.to_string()).unwrap();
    };
    publish("1");
    let mut device = Device::new(&scratch, &address, "mode = \"bundle\"\nrequire-signature = false", TABLES);
    device.otad.start_ready();
    device.check_until("updated");
    mended(&mut device, || publish("2"));
}

/// An update of one app is not held up by damage of another one that nobody can mend.
#[test]
fn what_is_not_offered_any_more_is_taken_over_with_a_warning() {
    let mut rig = Rig::new("ota-mend-gone", "", &format!("{QUICK}[app.os_armv8]\n"));
    let (board, system) = (rig.next("good 2"), Release::new("os_armv8", 1, "the system"));
    for release in [&board, &system] {
        rig.server.blob(&format!("/blob/{}", release.sha256()), &release.content);
    }
    rig.server.offer(&[("scoreboard", board.entry(&rig.key)), ("os_armv8", system.entry(&rig.key))]);
    assert_eq!(rig.device.check().1, "updated");
    std::fs::write(rig.device.path("os_armv8/os_armv8"), "the SYSTEM").unwrap();
    rig.good();
    assert_eq!(rig.device.content("os_armv8"), "the SYSTEM");
    assert!(rig.device.otad.lines.contain("the server does not offer it any more"));
    assert_eq!(rig.device.command(&["verify"]).0, 65);
    rig.end();
}

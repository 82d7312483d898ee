//! A trial, and the way back: kills in the middle of it, too many starts, the recovery before the apps, `otad rollback`,
//! a disk that fails when it is to be committed.

use std::process::Command;
use std::time::Duration;

use e2e::env;
use e2e::ota::{Device, QUICK, Rig, TABLES};
use e2e::packages::Release;
use e2e::scratch::Scratch;
use e2e::skip;

const LONG: Duration = Duration::from_secs(90);

fn state_is(device: &Device, state: &str) {
    env::wait_for(state, LONG, || (device.otad.try_status()?["state"] == state).then_some(()));
}

fn endings(device: &Device) -> Vec<String> {
    let (_, history) = device.command(&["history"]);
    let ending = |outcome: &serde_json::Value| outcome["ending"].as_str().unwrap().to_owned();
    history.as_array().unwrap().iter().map(ending).collect()
}

/// The trial lasts three seconds; every step of it is noted in `{dir}/steps`.
fn slow() -> String {
    let note = "[\"/bin/sh\", \"-c\", \"echo $OTAD_ACTION $OTAD_RESUMED >>{dir}/steps\"]";
    TABLES
        .replace("stable-s = 1", "stable-s = 3")
        .replace("[app.os_armv8]", &format!("post-install = {note}\n[app.os_armv8]"))
}

#[test]
fn a_trial_goes_on_after_kill_9_and_ends_well() {
    let mut rig = Rig::new("ota-trial", "", &slow());
    let before = rig.device.current();
    let release = rig.next("good 2");
    rig.server.publish(&release, &rig.key);
    rig.device.command(&["check-now"]);
    state_is(&rig.device, "watching-health");
    assert_eq!(rig.device.why_all().0, "on-trial");
    rig.device.kill9();
    assert_ne!(rig.device.current(), before, "on trial it runs");
    let restarts = rig.device.restarts().len();
    rig.device.otad.start_ready();
    rig.device.otad.wait_log("is on trial, start 1: going on", LONG);
    state_is(&rig.device, "watching-health");
    assert_eq!(endings(&rig.device), ["committed"], "not yet");
    rig.device.wait_idle();
    assert_eq!(endings(&rig.device), ["committed", "committed"]);
    assert_eq!(rig.device.content("scoreboard"), "good 2");
    assert_eq!(rig.device.restarts().len(), restarts + 1, "nobody knows whether it had been restarted");
    let steps = std::fs::read_to_string(rig.device.otad.dir.join("steps")).unwrap();
    assert_eq!(steps, "post-install 0\npost-install 0\npost-install 1\n");
    rig.link = rig.device.current();
    rig.end();
}

#[test]
fn a_trial_that_never_ends_is_taken_back_after_three_starts() {
    let mut rig = Rig::new("ota-tries", "", &slow());
    let release = rig.next("good 2, and kills the device");
    rig.server.publish(&release, &rig.key);
    rig.device.command(&["check-now"]);
    for start in 1..=3 {
        state_is(&rig.device, "watching-health");
        rig.device.kill9();
        assert!(rig.device.content("scoreboard").starts_with("good 2"));
        rig.device.otad.start_ready();
        rig.device.otad.wait_log(&format!("is on trial, start {start}: going on"), LONG);
    }
    state_is(&rig.device, "watching-health");
    rig.device.kill9();
    rig.device.otad.start_ready();
    rig.device.wait_idle();
    rig.held("after the fourth start");
    assert_eq!(rig.device.content("scoreboard"), "good 1");
    let (_, history) = rig.device.command(&["history"]);
    let last = history.as_array().unwrap().last().unwrap();
    assert_eq!((last["ending"].as_str(), last["quarantined"].as_bool()), (Some("rolled-back"), Some(true)));
    assert!(last["why"].as_str().unwrap().contains("within 3 starts"), "{last}");
    assert_eq!(
        (rig.device.check().1.as_str(), rig.device.why("scoreboard").as_str()),
        ("no-change", "quarantined")
    );
    rig.end();
}

#[test]
fn the_recovery_counts_starts_without_configuration_and_goes_back() {
    let mut rig = Rig::new("ota-recover", "", &slow());
    let release = rig.next("good 2, and never well");
    rig.server.publish(&release, &rig.key);
    rig.device.command(&["check-now"]);
    state_is(&rig.device, "watching-health");
    let dir = rig.device.otad.dir.join("state").to_string_lossy().into_owned();
    let recover = || {
        let mut command = Command::new(env::bin("otad"));
        command.args(["recover", "--dir", &dir, "--json", "--config", "/does/not/exist"]).output().unwrap()
    };
    assert!(!recover().status.success(), "the daemon has the folder");
    rig.device.kill9();
    for found in ["trial", "trial", "trial", "rolled-back", "nothing"] {
        let output = recover();
        let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(said["found"], found, "{output:?}");
    }
    assert_eq!(rig.device.content("scoreboard"), "good 1");
    rig.device.otad.start_ready();
    rig.held("after the recovery");
    rig.end();
}

/// Where nothing runs before the apps (no systemd), the daemon's own start counts after a reboot, and only there.
#[test]
fn each_start_of_a_trial_is_counted_once() {
    let mut rig = Rig::new("ota-count", "", &slow());
    let release = rig.next("good 2, and never well");
    rig.server.publish(&release, &rig.key);
    rig.device.command(&["check-now"]);
    state_is(&rig.device, "watching-health");
    // What it remembers of the boot it was started in last is there: as after a reboot it is gone.
    let agent = rig.device.otad.dir.join("state/agent");
    for (recovery, start) in [(false, 1), (true, 2), (false, 3)] {
        rig.device.kill9();
        std::fs::remove_file(&agent).unwrap();
        // That of another boot.
        let _ = std::fs::remove_file(rig.device.otad.dir.join("state/counted"));
        if recovery {
            let (_, found) = rig.device.command(&["recover"]);
            assert_eq!(found["tries"], start, "{found}");
        }
        rig.device.otad.start_ready();
        rig.device.otad.wait_log(&format!("is on trial, start {start}: going on"), LONG);
        state_is(&rig.device, "watching-health");
    }
    rig.end();
}

/// Looking changes nothing, and needs neither a daemon nor to be allowed to write.
#[test]
fn who_only_looks_makes_nothing() {
    let mut rig = Rig::new("ota-look", "", QUICK);
    let state = rig.device.otad.dir.join("state");
    let run = |rig: &Rig, arguments: &[&str]| rig.device.otad.command(arguments).output().unwrap();
    let missing = rig.device.otad.dir.join("missing");
    for command in ["history", "verify"] {
        let output = run(&rig, &[command, "--dir", &missing.to_string_lossy()]);
        assert_eq!(output.status.code(), Some(74), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stderr).starts_with(&format!("otad {command}: ")),
            "{output:?}"
        );
        assert!(!missing.exists());
        // Also while the daemon has it.
        assert_eq!(
            run(&rig, &[command, "--dir", &state.to_string_lossy()]).status.code(),
            Some(0),
            "{command}"
        );
    }
    let output = run(&rig, &["rollback", "a b"]);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    rig.device.kill9();
    let files = || {
        let list = Command::new("find").arg(&state).args(["-printf", "%p %i %T@\n"]).output().unwrap();
        String::from_utf8(list.stdout).unwrap()
    };
    // A left-over that a start would remove.
    std::fs::write(state.join(".state.tmp-1"), "").unwrap();
    let before = files();
    for command in ["history", "verify"] {
        assert_eq!(run(&rig, &[command]).status.code(), Some(0), "{command}");
    }
    assert_eq!(files(), before);
    rig.device.otad.start_ready();
    rig.end();
}

/// Apps of other users come through to what is theirs, however strict the umask of whoever started the daemon.
#[test]
fn a_strict_umask_locks_no_app_out() {
    use std::os::unix::fs::PermissionsExt as _;
    let scratch = Scratch::new("ota-umask");
    let mut device = Device::new(&scratch, "http://127.0.0.1:9", "require-signature = false", QUICK);
    device.otad.wrap(&["sh", "-c", "umask 077; exec \"$@\"", "sh"]).start_ready();
    for folder in ["state", "state/gens"] {
        let mode = std::fs::metadata(device.otad.dir.join(folder)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "{folder}");
    }
    assert!(device.otad.term().success());
}

#[test]
fn the_way_back_by_hand() {
    let mut rig = Rig::new("ota-back", "", QUICK);
    let back = |rig: &Rig, arguments: &[&str]| rig.device.otad.command(arguments).output().unwrap();
    let output = back(&rig, &["rollback"]);
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("no earlier generation"), "{output:?}");
    let first = rig.link.clone();
    rig.good();
    let before = rig.device.restarts().len();
    let output = back(&rig, &["rollback", "7-01234567"]);
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("what would be brought back is 1-"),
        "{output:?}"
    );
    rig.held("a generation that is not there");
    let id = first.as_ref().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(back(&rig, &["rollback", &id]).status.code(), Some(0));
    rig.link = first;
    rig.held("rolled back by hand");
    assert_eq!(rig.device.content("scoreboard"), "good 1");
    assert_eq!(rig.device.restarts().len(), before + 1);
    // What the owner took back does not come again by itself; the next one does.
    let release = Release::new("scoreboard", rig.epoch, format!("good {}", rig.epoch));
    rig.server.publish(&release, &rig.key);
    assert_eq!(
        (rig.device.check().1.as_str(), rig.device.why("scoreboard").as_str()),
        ("no-change", "quarantined")
    );
    rig.good();
    // A floor that was committed bars the way.
    let release = rig.next("good 4");
    let floor = release.statement["epoch"].clone();
    rig.server.publish(&release.with("min-epoch", floor), &rig.key);
    assert_eq!(rig.device.check().1, "updated");
    rig.link = rig.device.current();
    let output = back(&rig, &["rollback"]);
    assert_eq!(output.status.code(), Some(76), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("forbids less than 4"), "{output:?}");
    rig.held("a floor");
    rig.end();
}

#[test]
fn a_trial_is_ended_by_hand() {
    let mut rig = Rig::new("ota-stop-it", "", &slow());
    let release = rig.next("good 2");
    rig.server.publish(&release, &rig.key);
    rig.device.command(&["check-now"]);
    state_is(&rig.device, "watching-health");
    let rolled_back = env::wait_for("rollback is heard", LONG, || {
        let output = rig.device.otad.command(&["rollback"]).output().unwrap();
        // A look at the units may be under way.
        (output.status.code() != Some(75)).then_some(output)
    });
    assert_eq!(rolled_back.status.code(), Some(0), "{rolled_back:?}");
    rig.held("ended by hand");
    assert_eq!(rig.device.content("scoreboard"), "good 1");
    rig.end();
}

#[test]
fn who_asks_during_an_update_gets_the_answer_after_it() {
    let mut rig = Rig::new("ota-meanwhile", "", &slow());
    let release = rig.next("good 2");
    rig.server.publish(&release, &rig.key);
    rig.device.command(&["check-now"]);
    state_is(&rig.device, "watching-health");
    let release = rig.next("good 3");
    rig.server.publish(&release, &rig.key);
    let (code, word, all) = rig.device.check();
    assert_eq!((code, word.as_str()), (0, "updated"), "{all}");
    assert_eq!(rig.device.content("scoreboard"), "good 3", "not the one that was under way");
    assert_eq!(all["current"]["apps"][0]["epoch"], 3);
    rig.link = rig.device.current();
    rig.end();
}

#[test]
fn a_disk_that_fails_from_the_commit_on_brings_back_what_ran() {
    let Some(library) = e2e::shim::library() else { skip!("no C compiler for the faulty-fsync library") };
    let mut rig = Rig::new("ota-eio", "", QUICK);
    let path = |name: &str| rig.device.otad.dir.join(name);
    let (broken, arm, state) = (path("broken"), path("arm"), path("state"));
    // Asked when the units are well: from here on no flush works.
    let health =
        format!("[\"/bin/sh\", \"-c\", \"[ ! -e {} ] || touch {}\"]", arm.display(), broken.display());
    let tables = QUICK.replace("[app.scoreboard]", &format!("command = {health}\n[app.scoreboard]"));
    rig.configure("", &tables);
    assert!(rig.device.otad.term().success());
    e2e::shim::preload(&mut rig.device.otad, &library, &state);
    rig.device.otad.env("FAULT_SYNC_AT", "1").env("FAULT_SYNC_IF", broken.to_string_lossy());
    rig.device.otad.start_ready();
    std::fs::write(&arm, "").unwrap();
    let release = rig.next("good 2");
    rig.server.publish(&release, &rig.key);
    let restarts = rig.device.restarts().len();
    rig.device.command(&["check-now"]);
    for start in ["the first", "the next", "another"] {
        assert_eq!(rig.device.otad.wait_exit(LONG).code(), Some(74), "{start}");
        assert_eq!(
            (rig.device.content("scoreboard").as_str(), rig.device.current()),
            ("good 1", rig.link.clone())
        );
        rig.device.otad.start();
    }
    assert_eq!(rig.device.otad.wait_exit(LONG).code(), Some(74));
    assert!(rig.device.otad.lines.contain("the disk refuses"), "{}", rig.device.otad.lines.tail(20));
    assert_eq!(rig.device.restarts().len(), restarts + 2, "there, and back");
    std::fs::remove_file(&broken).unwrap();
    std::fs::remove_file(&arm).unwrap();
    rig.device.otad.start_ready();
    assert_eq!(rig.device.content("scoreboard"), "good 1");
    assert_eq!(rig.device.check().1, "updated", "with a disk that works again");
    rig.link = rig.device.current();
    rig.end();
}

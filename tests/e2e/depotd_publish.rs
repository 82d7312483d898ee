//! `depotd`'s commands with the real binary: what is published, signed, promoted, paused and removed, and what is refused.

use std::process::Command;

use e2e::depot::{Depot, sha256};
use e2e::env;
use e2e::need;
use e2e::scratch::{self, Scratch};
use serde_json::Value;

fn version_states(depot: &Depot, app: &str) -> Vec<String> {
    let all = depot.releases();
    let of = all.iter().filter(|r| r["app"] == app);
    of.map(|r| {
        format!(
            "{} {} {}",
            r["env"].as_str().unwrap(),
            r["version"].as_str().unwrap(),
            r["state"].as_str().unwrap()
        )
    })
    .collect()
}

#[test]
fn depotd_a_release_from_beta_to_its_end() {
    let scratch = Scratch::new("depot-life");
    let depot = Depot::new(&scratch, "d");
    depot.publish("scoreboard", "1.0.0", "prod", b"one", &["--attr", "Gamer", "--must-pass-through"]);
    let two = depot.publish("scoreboard", "1.1.0", "BETA", b"two", &["--attr", "gamer"]);
    assert_eq!((two["release"]["env"].as_str(), two["release"]["epoch"].as_u64()), (Some("beta"), Some(1)));
    let sign = ["--key", "release.key"];
    let promoted = depot.json(
        &[&["promote", "ScoreBoard", "--from", "beta", "--to", "prod", "--rollout", "10"][..], &sign]
            .concat(),
    );
    let promoted = &promoted["release"];
    assert_eq!(promoted["sha256"], two["release"]["sha256"]);
    assert_eq!((promoted["epoch"].as_u64(), promoted["from-epoch"].as_u64()), (Some(2), Some(1)));
    assert_eq!(promoted["attrs"][0], "gamer");
    let statement =
        |release: &Value| -> Value { serde_json::from_str(release["statement"].as_str().unwrap()).unwrap() };
    let staged = statement(promoted);
    let wider =
        depot.json(&[&["rollout", "scoreboard", "--env", "prod", "--percent", "50"][..], &sign].concat());
    let wide = statement(&wider["release"]);
    assert_eq!(
        (&wide["salt"], &wide["epoch"], wide["rollout"].as_u64()),
        (&staged["salt"], &staged["epoch"], Some(50))
    );
    assert_eq!(wider["offered"], "1.0.0 for every device, 1.1.0 for 50 %");
    depot.fails(65, &["rollout", "scoreboard", "--env", "prod", "--percent", "60", "--unsigned"]);
    depot.done(&["pause", "scoreboard", "--env", "prod"]);
    assert_eq!(
        version_states(&depot, "scoreboard"),
        ["beta 1.1.0 live", "prod 1.1.0 paused", "prod 1.0.0 live"]
    );
    depot.done(&["resume", "scoreboard", "--env", "prod"]);
    depot.fails(65, &["resume", "scoreboard", "--env", "prod"]);
    assert_eq!(depot.json(&["verify"])["problems"].as_array().unwrap().len(), 0);
    depot.done(&["retire", "scoreboard", "--env", "prod", "--version", "1.1.0"]);
    depot.done(&["retire", "scoreboard", "--env", "beta", "--version", "1.1.0"]);
    let gone = depot.blob(two["release"]["sha256"].as_str().unwrap());
    assert!(depot.done(&["gc", "--dry-run"]).contains("1 content ") && gone.exists());
    assert_eq!(depot.json(&["gc"])["removed"].as_array().unwrap().len(), 1);
    assert!(!gone.exists());
    // An epoch is never given twice, a version that was retired may come back.
    let back =
        depot.publish("scoreboard", "1.1.0", "prod", b"two again", &["--min-epoch", "3", "--expires", "90d"]);
    assert_eq!(
        (back["release"]["epoch"].as_u64(), back["release"]["min-epoch"].as_u64()),
        (Some(3), Some(3))
    );
    let shown = depot.done(&["show", "SCOREBOARD", "--env", "prod"]);
    for part in [
        "scoreboard in prod: 1.1.0 for every device",
        "epoch 2), retired",
        "must pass through",
        "signed (scoreboard 1.1.0 prod epoch 3)",
    ] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
    let listed = depot.done(&["list", "--env", "prod"]);
    assert!(listed.contains("1.0.0 (floor)") && !listed.contains("retired"), "{listed}");
    assert!(depot.done(&["verify"]).ends_with("all is well\n"));
}

#[test]
fn depotd_what_is_refused_names_cause_and_fix() {
    let scratch = Scratch::new("depot-refused");
    let depot = Depot::new(&scratch, "d");
    let first = depot.publish("app", "1.0", "prod", b"one", &[]);
    let publish = ["publish", "content", "--app", "app", "--version", "1.0", "--env", "prod"];
    let with = |more: &[&'static str]| [&publish[..], more].concat();
    let signed = with(&["--key", "release.key"]);
    // The same again is done already; the same version with anything else is not.
    assert_eq!(depot.json(&signed)["already"], true);
    assert!(depot.fails(65, &[&signed[..], &["--attr", "x"]].concat()).contains("another attributes"));
    std::fs::write(depot.root.join("content"), b"two").unwrap();
    let refused = depot.fails(65, &signed);
    assert!(
        refused.contains("with another content") && refused.contains("fix: publish it under a new version"),
        "{refused}"
    );
    assert!(depot.fails(64, &publish).contains("one of --key FILE, --sign-later, --unsigned"));
    let two = ["publish", "content", "--app", "app", "--env", "prod", "--key", "release.key", "--version"];
    assert!(depot.fails(64, &[&two[..], &["a/b"]].concat()).contains("can't be a version"));
    assert!(depot.fails(65, &[&two[..], &["2.0", "--epoch", "1"]].concat()).contains("not above 1"));
    assert!(depot.fails(65, &[&two[..], &["2.0", "--min-epoch", "9"]].concat()).contains("min-epoch"));
    // Another key than the server's.
    depot.done(&["keygen", "--out", "other"]);
    let wrong = depot.fails(
        77,
        &["publish", "content", "--app", "app", "--version", "2.0", "--env", "prod", "--key", "other.key"],
    );
    assert!(wrong.contains("none of the 1 trusted keys"), "{wrong}");
    assert!(depot.fails(73, &["keygen", "--out", "other"]).contains("never written over"));
    Command::new("chmod").args(["644", "other.key"]).current_dir(&depot.root).status().unwrap();
    assert!(
        depot
            .fails(77, &[&two[..6], &["--key", "other.key", "--version", "2.0"]].concat())
            .contains("chmod 600")
    );
    assert!(
        depot
            .fails(74, &["publish", "none", "--app", "a", "--version", "1", "--env", "prod", "--unsigned"])
            .contains("none")
    );
    assert!(
        depot
            .fails(65, &["publish", ".", "--app", "a", "--version", "1", "--env", "prod", "--unsigned"])
            .contains("is no file")
    );
    assert!(depot.fails(65, &["show", "nothing"]).contains("depotd list"));
    assert!(depot.fails(65, &["pause", "app", "--env", "beta"]).contains("no live release of app in beta"));
    let text = depot.run(&["list", "--what", "--json"]);
    assert_eq!(
        (text.status.code(), serde_json::from_slice::<Value>(&text.stdout).unwrap()["exit_code"].as_u64()),
        (Some(64), Some(64))
    );
    // None of it changed anything.
    assert_eq!(depot.releases(), [first["release"].clone()]);
}

#[test]
fn depotd_damage_is_found_and_mended() {
    let scratch = Scratch::new("depot-damage");
    let depot = Depot::new(&scratch, "d");
    let release = depot.publish("app", "1.0", "prod", b"good content", &[])["release"].clone();
    let blob = depot.blob(release["sha256"].as_str().unwrap());
    std::fs::write(&blob, b"evil content").unwrap();
    let found = depot.fails(1, &["verify"]);
    assert!(
        found.contains("app 1.0 (prod, epoch 1): the content is damaged") && found.contains("1 problem"),
        "{found}"
    );
    depot.publish("app", "1.0", "prod", b"good content", &[]);
    assert_eq!(sha256(&blob), release["sha256"].as_str().unwrap());
    depot.done(&["verify"]);
    std::fs::remove_file(&blob).unwrap();
    assert!(depot.fails(1, &["verify"]).contains("no content"));
    // A key that is not trusted any more.
    depot.publish("app", "1.0", "prod", b"good content", &[]);
    std::fs::rename(depot.root.join("release.pub"), depot.root.join("old.pub")).unwrap();
    depot.done(&["keygen", "--out", "new"]);
    std::fs::rename(depot.root.join("new.pub"), depot.root.join("release.pub")).unwrap();
    assert!(depot.fails(1, &["verify"]).contains("none of the 1 trusted keys made this signature"));
}

#[test]
fn depotd_the_demo_data_of_the_reference() {
    let scratch = Scratch::new("depot-sample");
    let depot = Depot::new(&scratch, "d");
    depot.done(&["sample", "--key", "release.key", "--size", "1000"]);
    let again = depot.json(&["sample", "--key", "release.key", "--size", "1000"]);
    assert!(again["published"].as_array().unwrap().iter().all(|one| one["already"] == true));
    let all = depot.releases();
    let text: Vec<String> =
        all.iter().map(|r| format!("{} {} {} {}", r["app"], r["version"], r["env"], r["attrs"])).collect();
    let expected = [
        "modemFW 1.0 prod [cellular]",
        "os_armv8 1.2.0-beta.1 beta []",
        "os_armv8 1.1.0 prod []",
        "scoreboard 1.0.0 prod [gamer]",
        "videoStreamer 0.0.1 prod [gamer]",
    ];
    assert_eq!(text.iter().map(|t| t.replace('"', "")).collect::<Vec<_>>(), expected);
    assert_eq!(
        scratch::files(&depot.root.join("var/blobs"))
            .iter()
            .filter(|p| p.metadata().unwrap().len() == 1000)
            .count(),
        5
    );
    depot.done(&["verify"]);
}

/// The statement goes to another machine and comes back signed by minisign itself, with its own key and with ours.
#[test]
fn depotd_signed_elsewhere_by_minisign() {
    need!("minisign");
    let scratch = Scratch::new("depot-later");
    let depot = Depot::new(&scratch, "d");
    let minisign =
        |arguments: &[&str]| env::run(Command::new("minisign").args(arguments).current_dir(&depot.root));
    minisign(&["-G", "-W", "-p", "theirs.pub", "-s", "theirs.key"]);
    std::fs::write(depot.root.join("content"), b"content").unwrap();
    let later = [
        "publish",
        "content",
        "--app",
        "cam",
        "--version",
        "1.0",
        "--env",
        "prod",
        "--rollout",
        "10",
        "--sign-later",
    ];
    let said = depot.json(&later);
    assert_eq!(
        (said["release"]["state"].as_str(), said["sign"]["commands"][0].as_str()),
        (Some("pending"), Some("minisign -Sm cam_1.0_prod.statement"))
    );
    let accept = said["sign"]["commands"][1].as_str().unwrap();
    assert_eq!(accept, format!("depotd -c {} accept cam_1.0_prod.statement", depot.config.display()));
    // Pending, however often; gc leaves it alone.
    assert_eq!(depot.json(&later)["release"], said["release"]);
    assert!(depot.json(&["gc"])["removed"].as_array().unwrap().is_empty());
    assert!(depot.fails(74, &["accept", "cam_1.0_prod.statement"]).contains("minisig"));
    minisign(&["-Sm", "cam_1.0_prod.statement", "-s", "theirs.key"]);
    assert!(depot.fails(77, &["accept", "cam_1.0_prod.statement"]).contains("none of the 1 trusted keys"));
    assert_eq!(version_states(&depot, "cam"), ["prod 1.0 pending"]);
    minisign(&["-Sm", "cam_1.0_prod.statement", "-s", "release.key"]);
    depot.done(&["accept", "cam_1.0_prod.statement"]);
    depot.done(&["accept", "cam_1.0_prod.statement"]);
    assert_eq!(version_states(&depot, "cam"), ["prod 1.0 live"]);
    another_percentage(&depot, &minisign);
    both_ways(&depot, &minisign);
    depot.done(&["verify"]);
}

fn another_percentage(depot: &Depot, minisign: &dyn Fn(&[&str]) -> String) {
    // Another percentage, also later; what was changed in between by hand is no statement any more.
    depot.done(&[
        "rollout",
        "cam",
        "--env",
        "prod",
        "--percent",
        "50",
        "--sign-later",
        "--statement",
        "wider",
    ]);
    let wider = std::fs::read_to_string(depot.root.join("wider")).unwrap();
    std::fs::write(depot.root.join("forged"), wider.replace("\"attrs\":[]", "\"attrs\":[\"x\"]")).unwrap();
    minisign(&["-Sm", "forged", "-s", "release.key"]);
    assert!(depot.fails(65, &["accept", "forged"]).contains("another attributes"));
    minisign(&["-Sm", "wider", "-s", "release.key", "-x", "elsewhere.sig"]);
    assert!(
        depot.done(&["accept", "wider", "--signature", "elsewhere.sig"]).contains("for 50 % of the devices")
    );
}

fn both_ways(depot: &Depot, minisign: &dyn Fn(&[&str]) -> String) {
    // What depotd signed, minisign verifies; with a key of minisign's own as well.
    std::fs::write(
        &depot.config,
        std::fs::read_to_string(&depot.config)
            .unwrap()
            .replace("[\"release.pub\"]", "[\"release.pub\", \"theirs.pub\"]"),
    )
    .unwrap();
    for (key, version) in [("release", "2.0"), ("theirs", "3.0")] {
        let secret = format!("{key}.key");
        let one = depot.json(&[
            "publish",
            "content",
            "--app",
            "cam",
            "--version",
            version,
            "--env",
            "prod",
            "--key",
            &secret,
        ]);
        std::fs::write(depot.root.join("s"), one["release"]["statement"].as_str().unwrap()).unwrap();
        std::fs::write(depot.root.join("s.minisig"), one["release"]["signature"].as_str().unwrap()).unwrap();
        let said = minisign(&["-Vm", "s", "-p", &format!("{key}.pub")]);
        assert!(said.contains("Signature and comment signature verified"), "{said}");
    }
}

#[test]
fn depotd_a_password_protects_a_key() {
    let scratch = Scratch::new("depot-password");
    let depot = Depot::new(&scratch, "d");
    std::fs::write(depot.root.join("password"), "correct horse\n").unwrap();
    std::fs::write(depot.root.join("wrong"), "battery staple\n").unwrap();
    std::fs::remove_file(depot.root.join("release.pub")).unwrap();
    std::fs::remove_file(depot.root.join("release.key")).unwrap();
    depot.done(&["keygen", "--out", "release", "--password-file", "password"]);
    std::fs::write(depot.root.join("content"), b"content").unwrap();
    let publish =
        ["publish", "content", "--app", "a", "--version", "1", "--env", "prod", "--key", "release.key"];
    assert!(depot.fails(77, &publish).contains("--password-file"));
    let wrong = depot.fails(77, &[&publish[..], &["--password-file", "wrong"]].concat());
    assert!(wrong.contains("Wrong password") && !wrong.contains("staple"), "{wrong}");
    depot.done(&[&publish[..], &["--password-file", "password"]].concat());
    depot.done(&["verify"]);
}

#[test]
fn depotd_a_misspelled_key_of_the_server_is_found_by_commands_too() {
    let scratch = Scratch::new("depot-keys");
    let depot = Depot::new(&scratch, "d");
    let good = std::fs::read_to_string(&depot.config).unwrap();
    // What only the server needs may be elsewhere: it is not looked at.
    let tls = "[tls]\ncert-file = \"/none/cert.pem\"\nkey-file = \"/none/key.pem\"\n";
    std::fs::write(&depot.config, format!("{good}{tls}")).unwrap();
    depot.done(&["list"]);
    for (wrong, key) in [
        ("[bundle]\nlevle = 1\n", "levle"),
        ("[limit]\nidle-ms = 1\n", "limit"),
        ("[answers]\nthreads = \"two\"\n", "answers.threads"),
    ] {
        std::fs::write(&depot.config, format!("{good}{wrong}")).unwrap();
        let said = depot.fails(78, &["list"]);
        assert!(said.contains(key) && said.contains("depotd.toml:"), "{said}");
    }
}

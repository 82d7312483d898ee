//! `otad` against a server that lies, breaks off, stalls or is somebody else: what runs stays, `why` names the cause, the
//! daemon lives on, and the next honest answer is installed.

use e2e::ota::{Device, QUICK, Rig};
use e2e::packages::{Fault, Key, Release, Server, md5, sha256};
use e2e::scratch::Scratch;
use serde_json::{Value, json};

fn entry_with(mut entry: Value, key: &str, value: impl Into<Value>) -> Value {
    entry[key] = value.into();
    entry
}

#[test]
fn a_release_that_must_not_be_believed_is_refused_before_anything_is_fetched() {
    let mut rig = Rig::new("ota-statement", "", QUICK);
    // Epochs begin at 10, so that there are older ones.
    rig.epoch = 9;
    rig.good();
    let other = Key::new(&rig.scratch, "other");
    let key = &rig.key;
    let new = |epoch: u64| Release::new("scoreboard", epoch, format!("evil {epoch}"));
    let signed = new(11).entry(key);
    let text = signed["statement"].as_str().unwrap();
    let now = |days: i64| {
        let at = time::OffsetDateTime::now_utc() + time::Duration::days(days);
        format!("{}T00:00:00Z", at.date())
    };
    let long = new(11).with("attrs", vec!["x".repeat(60); 200]);
    let cases: Vec<(&str, Value, &str, &str)> = vec![
        ("no signature", new(11).unsigned(), "not-signed", "require-signature"),
        ("another key", new(11).entry(&other), "signature", "none of the 1 trusted keys"),
        (
            "another text",
            entry_with(signed.clone(), "statement", text.replace("\"epoch\":11", "\"epoch\":12")),
            "signature",
            "none of the 1 trusted keys",
        ),
        (
            "one bit",
            entry_with(signed.clone(), "statement", format!("{text} ")),
            "signature",
            "none of the 1",
        ),
        ("garbage", entry_with(signed.clone(), "signature", "garbage"), "signature", "no minisign signature"),
        (
            "huge signature",
            entry_with(signed.clone(), "signature", "x".repeat(9000)),
            "signature",
            "longer than",
        ),
        ("replayed", new(3).entry(key), "older-epoch", "its epoch 3 is older than 10"),
        ("expired", new(11).with("expires", now(-1)).entry(key), "expired", "it expired on"),
        ("a floor of its own", new(11).with("min-epoch", 12).entry(key), "statement", "min-epoch"),
        ("to be passed through", new(12).with("from-epoch", 11).entry(key), "must-pass-through", "epoch 11"),
        ("nobody yet", new(11).with("rollout", 0).entry(key), "not-in-rollout", "0 % of the devices"),
        ("another app's", new(11).with("app", "os_armv8").entry(key), "not-asked", "a release of os_armv8"),
        ("another env's", new(11).with("env", "beta").entry(key), "not-asked", "beta"),
        ("another attr's", new(11).with("attrs", json!(["cellular"])).entry(key), "not-asked", "cellular"),
        ("the future's", new(11).with("v", 2).entry(key), "statement", "v = 2"),
        ("a path", new(11).with("version", "../../etc").entry(key), "statement", "version"),
        ("too long", long.entry(key), "statement", "longer than"),
    ];
    for (what, entry, code, text) in cases {
        rig.server.offer(&[("scoreboard", entry)]);
        let (_, word, all) = rig.device.check();
        assert_eq!(word, "no-change", "{what}: {all}");
        let (why, said) = rig.device.why_text("scoreboard");
        assert!(why == code && said.contains(text), "{what}: {why}: {said}");
        rig.held(what);
    }
    assert!(rig.server.requests("/blob/").is_empty(), "nothing of these was fetched");
    rig.end();
}

#[test]
fn a_file_that_is_not_what_was_announced_never_runs() {
    let mut rig = Rig::new("ota-blob", "", QUICK);
    let wrong = |rig: &mut Rig| {
        let release = rig.next("as announced");
        rig.server.publish(&release, &rig.key);
        (format!("/blob/{}", release.sha256()), release)
    };
    type Served = (&'static str, &'static [u8], Option<Fault>, &'static str, &'static str);
    let cases: [Served; 8] = [
        ("shorter", b"as ann", None, "refused", "has 6 bytes, and 12 were announced"),
        ("longer", b"as announced, and more", None, "refused", "has 22 bytes, and 12 were announced"),
        ("longer, no length", b"as announced, and more", Some(Fault::NoLength), "refused", "its length"),
        ("another", b"as ANNOUNCED", None, "refused", "its SHA-256"),
        ("says too much", b"as announced", Some(Fault::Length(1 << 40)), "refused", "12 were announced"),
        ("says too little", b"as announced", Some(Fault::Length(3)), "refused", "has 3 bytes"),
        ("ends early", b"as announced", Some(Fault::Cut(5)), "trouble", "scoreboard: "),
        ("ends early, no length", b"as ann", Some(Fault::NoLength), "trouble", "after 6 of 12 bytes"),
    ];
    for (what, content, fault, word, text) in cases {
        let (path, _) = wrong(&mut rig);
        rig.server.blob(&path, content);
        fault.into_iter().for_each(|fault| rig.server.fault("/blob/", fault));
        rig.refused(what, word, text);
        rig.good();
    }
    // Its length is lied about in the statement itself, which is signed: the publisher's mistake.
    for (what, size, text) in
        [("too small", 5, "and 5 were announced"), ("too large", 500, "and 500 were announced")]
    {
        let release = rig.next("a file").with("size", size);
        rig.server.publish(&release, &rig.key);
        rig.refused(what, "refused", text);
        rig.good();
    }
    let elsewhere = Server::start();
    let (path, release) = wrong(&mut rig);
    elsewhere.blob(&path, &release.content);
    let entry = entry_with(release.entry(&rig.key), "download", format!("{}{path}", elsewhere.address));
    rig.server.offer(&[("scoreboard", entry)]);
    rig.refused("sent elsewhere", "refused", "which is not its own");
    let (path, _) = wrong(&mut rig);
    let redirect = |to: String| Fault::Answer(302, vec![("Location", to)], vec![]);
    rig.server.fault("/blob/", redirect(format!("{}{path}", elsewhere.address)));
    rig.refused("redirected elsewhere", "refused", "redirects to");
    rig.server.fault("/package", redirect(format!("{}/package", elsewhere.address)));
    rig.refused("asked elsewhere", "refused", "redirects to");
    for _ in 0..4 {
        rig.server.fault("/blob/", redirect(path.clone()));
    }
    rig.refused("round and round", "refused", "more than 3 redirects");
    assert!(elsewhere.requests("/").is_empty(), "nobody else was asked");
    rig.server.fault("/blob/", redirect(path));
    assert_eq!(rig.device.check().1, "updated", "a redirect within the server is followed");
    rig.end();
}

#[test]
fn what_the_details_say_beside_the_statement_does_not_count() {
    let mut rig = Rig::new("ota-fields", "", QUICK);
    let release = rig.next("good 2");
    let evil = rig.next("evil 2");
    let mut entry = release.entry(&rig.key);
    for (key, value) in [
        ("latestVersion", json!("9.9.9")),
        ("size", json!(1u64 << 40)),
        ("sha256", json!(evil.sha256())),
        ("md5", json!(md5(b"x"))),
        ("url", json!("http://example.com/")),
    ] {
        entry[key] = value;
    }
    rig.server.offer(&[("scoreboard", entry.clone())]);
    let other = format!("/blob/{}", evil.sha256());
    rig.server.blob(&other, &evil.content);
    rig.server.offer(&[("scoreboard", entry_with(entry.clone(), "download", other))]);
    rig.refused("another file is offered for download", "refused", "its SHA-256");
    rig.server.blob(&format!("/blob/{}", release.sha256()), &release.content);
    rig.server.offer(&[("scoreboard", entry)]);
    assert_eq!(rig.device.check().1, "updated");
    rig.link = rig.device.current();
    assert_eq!(rig.device.content("scoreboard"), "good 2");
    let status = rig.device.otad.status();
    let app = &status["current"]["apps"][0];
    assert_eq!((app["version"].as_str(), app["epoch"].as_u64()), (Some("2.0.0"), Some(2)), "what was signed");
    rig.end();
}

#[test]
fn an_answer_that_is_no_answer_changes_nothing() {
    let mut rig = Rig::new("ota-details", "", QUICK);
    let many: serde_json::Map<String, Value> = (0..300)
        .map(|n| (format!("app{n}"), json!({"latestVersion": "1", "url": "", "status_code": 200})))
        .collect();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("another page", b"<html>Log in to the hotel's network</html>".to_vec()),
        ("half of it", br#"{"scoreboard": {"latestVersion": "2", "url"#.to_vec()),
        ("a list", b"[]".to_vec()),
        (
            "a number for a text",
            br#"{"scoreboard": {"latestVersion": 2, "url": "", "status_code": 200}}"#.to_vec(),
        ),
        ("a path for a name", br#"{"../x": {"latestVersion": "2", "url": "", "status_code": 200}}"#.to_vec()),
        ("no UTF-8", b"{\"score\xff\": 1}".to_vec()),
        ("zeros", vec![0; 1000]),
        ("deep", b"{\"a\":".repeat(10_000)),
        ("deep and open", b"[".repeat(60_000)),
        ("deep in an app", [b"{\"scoreboard\":".to_vec(), b"[".repeat(50_000)].concat()),
        ("too many", Value::Object(many).to_string().into_bytes()),
    ];
    for (what, body) in cases {
        rig.server.package(body, "application/json");
        rig.refused(what, "refused", "the package details");
    }
    let huge = format!("{{\"a\": \"{}\"}}", "x".repeat(16 << 20)).into_bytes();
    rig.server.package(huge, "application/json");
    rig.refused("huge", "refused", "details-max");
    let peak = rig.device.otad.usage().rss_peak_kb;
    assert!(peak < 32 * 1024, "{peak} kB for a server's huge answer");
    for (what, fault, word, text) in [
        (
            "500",
            Fault::Answer(500, vec![], b"{\"error\":\"the table is gone\"}".to_vec()),
            "trouble",
            "500: the table is gone",
        ),
        ("403", Fault::Answer(403, vec![], vec![]), "refused", "403"),
        (
            "404",
            Fault::Answer(404, vec![], b"nginx".to_vec()),
            "refused",
            "does 'server' name the package server",
        ),
        ("cut", Fault::Cut(1), "trouble", "breaks off"),
        ("silent", Fault::Silence, "trouble", "no answer in time"),
        ("stalled", Fault::Stall(1), "trouble", ""),
    ] {
        rig.server.publish(&Release::new("scoreboard", 5, "evil"), &rig.key);
        rig.server.fault("/package", fault);
        rig.refused(what, word, text);
    }
    rig.epoch = 5;
    rig.end();
}

/// A tar.gz of these entries.
fn bundle(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let mut builder = tar::Builder::new(gzip);
    for (name, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

/// What it is, the bundle, and what must be said of it. `two` are the details of a second release.
fn lying_bundles(two: &[u8]) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = bundle(&[("scoreboard_2", b"evil 2"), ("package_details.json", two)]);
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x40;
    let bomb = vec![7; 5 << 20];
    let twice_details =
        bundle(&[("scoreboard_2", b"evil 2"), ("package_details.json", two), ("package_details.json", two)]);
    vec![
        ("no gzip", b"evil".repeat(100), "damaged"),
        ("cut", good[..good.len() - 12].to_vec(), ""),
        ("flipped", flipped, ""),
        ("a bomb", bundle(&[("scoreboard_2", &bomb), ("package_details.json", two)]), "expanded-max"),
        ("a bomb behind the archive", [good.clone(), bundle(&[("x", &bomb)])].concat(), "expanded-max"),
        ("no details", bundle(&[("scoreboard_2", b"evil 2")]), "it has no package_details.json"),
        (
            "twice",
            bundle(&[("scoreboard_2", b"evil"), ("scoreboard_2", b"good"), ("package_details.json", two)]),
            "twice",
        ),
        ("details twice", twice_details, "twice"),
        (
            "what nobody asked for",
            bundle(&[("scoreboard_2", b"evil 2"), ("other_1", b"evil"), ("package_details.json", two)]),
            "nobody asked for it",
        ),
        ("a path", bundle(&[("a/scoreboard_2", b"evil 2"), ("package_details.json", two)]), "the name"),
        ("not there", bundle(&[("package_details.json", two)]), "not in it"),
        ("nothing", vec![], ""),
    ]
}

#[test]
fn a_bundle_that_lies_is_refused_as_a_whole() {
    let scratch = Scratch::new("ota-bundles");
    let server = Server::start();
    let tables =
        format!("{QUICK}[app.other]\n").replace("[limits]\n", "[limits]\nexpanded-max = \"4 MiB\"\n");
    let top = "mode = \"bundle\"\nrequire-signature = false";
    let mut device = Device::new(&scratch, &server.address, top, &tables);
    device.otad.start_ready();
    let details = |version: &str| {
        json!({ "scoreboard": { "latestVersion": version, "url": "s3://x", "status_code": 200 } })
            .to_string()
            .into_bytes()
    };
    let offer = |body: Vec<u8>| server.package(body, "application/x-gzip");
    // The original server says that its tar.gz is compressed for the way, which it is not.
    server.package_headers(&[
        ("Content-Encoding", "gzip"),
        ("Content-Disposition", "attachment; filename=\"ota-package.tar.gz\""),
    ]);
    offer(bundle(&[("scoreboard_1", b"good 1"), ("package_details.json", &details("1"))]));
    assert_eq!(device.check().1, "updated");
    let link = device.current();
    for (what, body, text) in lying_bundles(&details("2")) {
        offer(body);
        let (_, word, all) = device.check();
        let said = all["text"].as_str().unwrap_or_default();
        assert!(["refused", "trouble"].contains(&word.as_str()) && said.contains(text), "{what}: {all}");
        assert_eq!(
            (device.current(), device.content("scoreboard").as_str()),
            (link.clone(), "good 1"),
            "{what}"
        );
    }
    let left = std::fs::read_dir(device.otad.dir.join("state/blobs")).unwrap().flatten();
    let left: Vec<String> = left.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(left.iter().all(|name| !name.starts_with('.')), "left over: {left:?}");
    offer(bundle(&[("scoreboard_3", b"good 3"), ("package_details.json", &details("3"))]));
    assert_eq!(device.check().1, "updated");
    assert_eq!(sha256(device.content("scoreboard").as_bytes()), sha256(b"good 3"));
    assert!(device.otad.term().success());
    device.otad.check_log();
}

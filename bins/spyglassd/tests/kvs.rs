//! Kinesis Video Streams against `tests/putmedia_standin.py`, which checks signatures with botocore's code and reads
//! Matroska by itself; what it kept of each connection is read by mkvinfo and ffprobe as well.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/putmedia.rs"]
mod putmedia;
mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use edge::aws::credentials::Vars;
use putmedia::{KEY_ID, Rig, SECRET};
use serde_json::{Value, json};
use spyglassd::h264;
use spyglassd::kvs::{self, Config, Raw};
use spyglassd::sink::Sink;
use spyglassd::unit::Unit;
use support::encode;

fn config(rig: &Rig, more: &str) -> Config {
    let keys = format!("access-key-id = {KEY_ID:?}\nsecret-key-file = {:?}\n", rig.scratch.join("secret"));
    let keys = if more.contains("credentials-file") { String::new() } else { keys };
    // Longer than a busy machine keeps a healthy connection waiting.
    let stall = if more.contains("stall-s") { "" } else { "stall-s = 30\n" };
    let text = format!("{}{keys}{stall}{more}\n[tags]\nplace = \"gate 4\"\n", rig.toml());
    let loaded = edge::config::parse::<Raw>(Path::new("kvs.toml"), text).unwrap();
    loaded.raw.to_config(&loaded, "kvs", &Vars::default()).unwrap()
}

/// What the service has stored is what was pushed: all but the frames that it refused, in order, with true times.
fn verify(rig: &Rig, units: &[Unit]) {
    assert_eq!(rig.events("problem"), Vec::<Value>::new());
    let names: Vec<String> = units.iter().map(name).collect();
    let frames = |e: &Value| -> Vec<String> {
        e["frames"].as_array().unwrap().iter().map(|f| f.as_str().unwrap().to_owned()).collect()
    };
    let refused: BTreeSet<String> =
        rig.events("refused").iter().filter(|e| e["id"] != 5000).flat_map(frames).collect();
    let mut seen = BTreeSet::new();
    let mut stored = Vec::new();
    for event in rig.events("persisted") {
        let frames = frames(&event);
        let first = names.iter().position(|name| *name == frames[0]).expect("a frame that was pushed");
        let wall = units[first].wall_ms;
        assert_eq!(event["start_ms"], wall, "a fragment has the time at which its first frame was taken");
        if seen.insert(frames[0].clone()) {
            stored.extend(frames);
        }
    }
    let expected: Vec<&String> = names.iter().filter(|name| !refused.contains(*name)).collect();
    assert_eq!(stored.len(), expected.len(), "frames stored");
    assert_eq!(stored.iter().collect::<Vec<_>>(), expected, "every frame, once and in order");
}

/// What the stand-in calls a frame.
fn name(unit: &Unit) -> String {
    let mut sample = Vec::new();
    h264::to_sample(&unit.data, &mut sample);
    edge::text::sha256_hex(&sample)
}

/// Pushes the units, `faster` times as fast as they were taken.
fn play(sink: &Sink, units: &[Unit], faster: u32) {
    let start = Instant::now();
    for (n, unit) in units.iter().enumerate() {
        let due = start + Duration::from_millis(40) / faster * u32::try_from(n).unwrap();
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        sink.push(unit);
    }
}

/// Waits until the sink's status is so.
fn until(sink: &Sink, done: impl Fn(&Value) -> bool) -> Value {
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        let status = sink.status();
        if done(&status) {
            return status;
        }
        assert!(Instant::now() < end, "{status:#}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Until the sink keeps nothing any more.
fn settle(sink: &Sink) {
    until(sink, |status| status["fragments-kept"] == 0);
}

fn video(rig: &Rig, seconds: usize) -> Vec<Unit> {
    encode(&rig.scratch.0, (320, 180), seconds * 25, 25, edge::clock::unix_ms())
}

#[test]
fn a_quiet_day() {
    let Some(rig) = Rig::start("a_quiet_day", &json!([])) else { return };
    let units = video(&rig, 12);
    let sink = kvs::start(config(&rig, ""), "front").unwrap();
    assert!(sink.take_key_wanted() || sink.status()["state"] == "WAITING");
    play(&sink, &units, 4);
    settle(&sink);
    let status = sink.status();
    assert_eq!(
        (&status["state"], &status["connections"], &status["fragments-resent"]),
        (&json!("STREAMING"), &json!(1), &json!(0))
    );
    assert_eq!((&status["fragments-persisted"], &status["why"]), (&json!(12), &Value::Null));
    assert!(status["last-persisted"].as_str().is_some_and(|at| at.ends_with('Z')), "{status}");
    sink.stop();
    verify(&rig, &units);
    assert!(rig.events("fragment").iter().all(|e| e["tags"] == 1));
    rig.wait_closed();
    assert_eq!(rig.read_dumps(), 1);
}

#[test]
fn everything_goes_wrong_and_nothing_is_lost() {
    let script = json!([
        {"fault": "cut", "bytes": 30_000},
        {"fault": "status", "status": 503},
        {"fault": "cut", "bytes": 1},
        {"fault": "refuse", "fragment": 3, "id": 4006},
        {"fault": "expired"},
        {"fault": "close", "seconds": 2},
        {"fault": "cut", "bytes": 150_123},
        {"fault": "mute"},
        {"fault": "stall", "seconds": 8},
        {"fault": "cut", "bytes": 60_000},
    ]);
    let Some(rig) = Rig::start("everything_goes_wrong_and_nothing_is_lost", &script) else { return };
    let units = video(&rig, 80);
    let sink = kvs::start(config(&rig, "stall-s = 5"), "gate").unwrap();
    play(&sink, &units, 4);
    settle(&sink);
    let status = sink.status();
    assert_eq!(
        (&status["fragments-refused"], &status["fragments-dropped"]),
        (&json!(1), &json!(0)),
        "{status:#}"
    );
    assert!(status["fragments-resent"].as_u64() > Some(5), "{status:#}");
    sink.stop();
    verify(&rig, &units);
    let refused = &rig.events("refused")[0]["frames"];
    let again = rig.events("fragment").iter().filter(|e| e["frames"] == *refused).count();
    assert_eq!(again, 1, "a fragment that was refused as invalid is not sent again");
    assert!(rig.events("connection").len() >= 10, "{:?}", rig.events("connection"));
    rig.read_dumps();
}

#[test]
fn the_endpoint_moves_and_times_are_relative() {
    let script = json!([{"fault": "refuse", "fragment": 2, "id": 5000}, {"fault": "move", "bytes": 40_000}]);
    let Some(rig) = Rig::start("the_endpoint_moves_and_times_are_relative", &script) else { return };
    let units = video(&rig, 20);
    let sink = kvs::start(config(&rig, "timecode = \"relative\""), "gate").unwrap();
    play(&sink, &units, 4);
    settle(&sink);
    assert_eq!(sink.status()["fragments-refused"], 0);
    sink.stop();
    verify(&rig, &units);
    let ports: BTreeSet<u64> = rig.events("endpoint").iter().filter_map(|e| e["port"].as_u64()).collect();
    assert_eq!(ports.len(), 2, "the endpoint was asked for anew");
    let kinds: BTreeSet<String> =
        rig.events("connection").iter().map(|e| e["x-amzn-fragment-timecode-type"].to_string()).collect();
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["\"RELATIVE\""]);
}

#[test]
fn connections_change_over_without_a_gap() {
    let Some(rig) = Rig::start("connections_change_over_without_a_gap", &json!([])) else { return };
    let units = video(&rig, 40);
    let mut config = self::config(&rig, "");
    config.policy.rotate = Duration::from_secs(2);
    let begun = Instant::now();
    let sink = kvs::start(config, "gate").unwrap();
    play(&sink, &units, 4);
    settle(&sink);
    let status = sink.status();
    assert_eq!((&status["fragments-resent"], &status["why"]), (&json!(0), &Value::Null), "{status:#}");
    sink.stop();
    let most = begun.elapsed().as_secs() / 2 + 2;
    verify(&rig, &units);
    let connections = rig.events("connection").len();
    assert!(connections >= 3 && connections as u64 <= most, "{connections} of at most {most}");
    // The old one is finished (its last chunk sent) before the new one is opened.
    let order: Vec<String> = (rig.log().iter())
        .filter(|e| e["event"] == "connection" || e["event"] == "finished")
        .map(|e| e["event"].as_str().unwrap().to_owned())
        .collect();
    assert!(order.windows(2).all(|w| w[0] != w[1]), "{order:?}");
    rig.wait_closed();
    assert!(rig.read_dumps() >= 2);
}

#[test]
fn credentials_in_a_file_are_followed_before_they_end() {
    let Some(rig) = Rig::start("credentials_in_a_file_are_followed_before_they_end", &json!([])) else {
        return;
    };
    let path = rig.scratch.join("credentials");
    let write = |id: &str, seconds: u64| {
        let end = edge::clock::rfc3339_ms(edge::clock::unix_ms() + seconds * 1000);
        std::fs::write(&path, format!("CREDENTIALS {id} {end} {SECRET} T0KEN\n")).unwrap();
    };
    let units = video(&rig, 32);
    // New ones are looked for after six seconds, while the frames of eight are played.
    write(KEY_ID, 128);
    let mut config = self::config(&rig, &format!("credentials-file = {path:?}"));
    config.policy.renew = Duration::from_secs(122);
    let sink = kvs::start(config, "gate").unwrap();
    play(&sink, &units[..100], 4);
    // On a busy machine the first connection may be late.
    while rig.events("connection").is_empty() {
        std::thread::sleep(Duration::from_millis(20));
    }
    write(&format!("{KEY_ID}2"), 3600);
    play(&sink, &units[100..], 4);
    settle(&sink);
    let status = sink.status();
    assert_eq!(
        (&status["fragments-resent"], &status["connections"], &status["why"]),
        (&json!(0), &json!(2), &Value::Null)
    );
    sink.stop();
    verify(&rig, &units);
    let ids: Vec<Value> = rig.events("connection").iter().map(|e| e["access"].clone()).collect();
    assert_eq!(ids, [json!(KEY_ID), json!(format!("{KEY_ID}2"))]);
}

#[test]
fn what_is_on_disk_outlives_the_daemon() {
    let script: Vec<Value> = (0..400).map(|_| json!({"fault": "status", "status": 500})).collect();
    let Some(rig) = Rig::start("what_is_on_disk_outlives_the_daemon", &json!(script)) else { return };
    let units = video(&rig, 16);
    let disk = format!(
        "disk-dir = {:?}\nfragment-bytes-max = \"128 KiB\"\nring-bytes = \"200 KiB\"",
        rig.scratch.join("disk")
    );
    let sink = kvs::start(config(&rig, &disk), "gate").unwrap();
    play(&sink, &units, 4);
    let status = until(&sink, |status| {
        status["state"] == "ERROR"
            && status["why"].as_str().is_some_and(|why| why.contains("500"))
            && status["bytes-kept-on-disk"].as_u64() > Some(100_000)
    });
    assert_eq!(status["fragments-dropped"], 0, "{status:#}");
    sink.stop();
    let left = std::fs::read_dir(rig.scratch.join("disk")).unwrap().count();
    assert_eq!(left, 16, "one file a fragment");

    // Another service, and a sink that has not seen these frames.
    let Some(other) = Rig::start("what_is_on_disk_outlives_the_daemon-2", &json!([])) else { return };
    let sink = kvs::start(config(&other, &disk), "gate").unwrap();
    settle(&sink);
    sink.stop();
    verify(&other, &units);
    assert_eq!(std::fs::read_dir(rig.scratch.join("disk")).unwrap().count(), 0);
}

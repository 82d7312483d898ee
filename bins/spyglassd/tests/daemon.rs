//! The program itself: to a service for video with a crash in between, and its page in a real browser.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/chromium.rs"]
mod chromium;
#[path = "support/putmedia.rs"]
mod putmedia;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use chromium::Browser;
use e2e::daemon::Daemon;
use e2e::env::{root, wait_for};
use e2e::net::free_port;
use e2e::process::Process;
use e2e::spyglass::python;
use e2e::{need, scratch, skip};
use putmedia::{KEY_ID, Rig, SECRET};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(40);
const TOKEN: &str = "T0KEN/of+temporary=credentials";

fn daemon(scratch: &scratch::Scratch, web: &str, more: &str) -> Daemon {
    let toml = format!(
        "ctl-socket = \"{{dir}}/ctl.sock\"\ncache-dir = \"{{dir}}\"\n[frames]\nsocket = \"{{dir}}/f.sock\"\n\
         [web]\nlisten = \"{web}\"\n[rtsp]\nlisten = \"\"\n{more}"
    );
    Daemon::new(scratch, "spyglassd", "spy", &toml)
}

/// An application with a moving picture; it connects again by itself when the daemon is gone for a while.
fn app(daemon: &Daemon, name: &str, size: (u32, u32), seconds: u32) -> Process {
    let mut command = Command::new(python().unwrap());
    command.arg(root().join("tests/spyglass_app.py")).arg(daemon.dir.join("f.sock")).arg(name);
    command.args([size.0, size.1, 15, seconds].map(|n| n.to_string())).env("PYTHONDONTWRITEBYTECODE", "1");
    Process::start("application", &mut command)
}

fn kvs(daemon: &Daemon) -> Value {
    daemon.status()["streams"][0]["outputs"]["kvs"].clone()
}

/// Writes what a `credential_process` prints, and gives the time at which it ends.
fn credentials(path: &Path, id: &str, seconds: u64) -> String {
    let end = edge::clock::rfc3339_ms((edge::clock::unix_ms() / 1000 + seconds) * 1000);
    let text = json!({
        "Version": 1, "AccessKeyId": id, "SecretAccessKey": SECRET, "SessionToken": TOKEN, "Expiration": end
    });
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, text.to_string()).unwrap();
    std::fs::rename(fresh, path).unwrap();
    end
}

#[test]
fn what_was_kept_on_disk_before_a_crash_is_sent_and_credentials_are_followed() {
    // The first connection's fragments arrive, and nobody says so.
    let test = "what_was_kept_on_disk_before_a_crash_is_sent_and_credentials_are_followed";
    let Some(rig) = Rig::start(test, &json!([{"fault": "mute"}])) else { return };
    let scratch = scratch::Scratch::new("spyv");
    let file = rig.scratch.join("credentials");
    let first = credentials(&file, KEY_ID, 150);
    // Snow is hard to encode: it soon is more than memory may hold.
    let more = format!(
        "[[stream]]\nname = \"front\"\nbitrate-kbit = 800\nsource = \"gst:videotestsrc is-live=true pattern=snow ! \
         video/x-raw,width=160,height=120,framerate=15/1\"\n[stream.kvs]\n{}stall-s = 60\nrenew-before-s = 121\n\
         credentials-file = {file:?}\nfragment-bytes-max = \"256 KiB\"\nring-bytes = \"256 KiB\"\ndisk-dir = {:?}\n\
         [stream.kvs.tags]\nplace = \"gate 4\"\n",
        rig.toml(),
        scratch.path().join("disk")
    );
    let mut daemon = daemon(&scratch, "", &more);
    daemon.start_ready();
    let said = wait_for("fragments on disk", LONG, || {
        let said = kvs(&daemon);
        (said["bytes-kept-on-disk"].as_u64()? > 200_000).then_some(said)
    });
    assert_eq!((&said["state"], &said["last-persisted"]), (&"STREAMING".into(), &Value::Null), "{said}");
    assert_eq!(said["credentials-expire"], first, "{said}");
    daemon.kill9();
    let killed_ms = edge::clock::unix_ms();
    daemon.start_ready();
    daemon.wait_log("fragments of the last run are still to be sent", LONG);
    let lines = daemon.lines.all();
    let line = lines.iter().find(|line| line.contains("of the last run")).unwrap();
    let left: usize = line.split(' ').find_map(|word| word.parse().ok()).expect(line);
    let said = wait_for("what the service has stored", LONG, || {
        let said = kvs(&daemon);
        (said["fragments-persisted"].as_u64()? > left as u64 + 2).then_some(said)
    });
    assert!(said["last-persisted"].as_str().is_some_and(|at| at.ends_with('Z')), "{said}");
    assert_eq!((&said["state"], &said["fragments-dropped"]), (&"STREAMING".into(), &0.into()), "{said}");
    // What lay on the disk comes first, with its true times, then what was taken since; nothing twice.
    let stored: Vec<Value> = rig.events("persisted").into_iter().filter(|e| e["number"] != 1).collect();
    let starts: Vec<u64> = stored.iter().map(|e| e["start_ms"].as_u64().unwrap()).collect();
    assert!(starts.windows(2).all(|pair| pair[0] < pair[1]), "{starts:?}");
    let old = starts.iter().filter(|start| **start < killed_ms).count();
    assert!(left >= 2 && old == left, "{left} fragments were left, {old} were sent: {starts:?}");
    // New credentials before the old ones end, and not a fragment is resent for them.
    let second = credentials(&file, &format!("{KEY_ID}2"), 3600);
    let resent = said["fragments-resent"].clone();
    let said = wait_for("the new credentials", LONG, || {
        let said = kvs(&daemon);
        (said["credentials-expire"] == second.as_str() && said["state"] == "STREAMING").then_some(said)
    });
    assert_eq!(said["fragments-resent"], resent, "{said}");
    wait_for("a connection with them", LONG, || {
        rig.events("connection").iter().any(|e| e["access"] == format!("{KEY_ID}2")).then_some(())
    });
    let persisted = daemon.metric("spyglassd_sink_last_persisted_seconds") as u64;
    assert!(persisted >= killed_ms / 1000, "{persisted}");
    assert!(daemon.metric("spyglassd_sink_credentials_expire_seconds") as u64 > persisted + 3000);
    let shown = daemon.status().to_string() + &daemon.metrics();
    let printed = daemon.command(&["--print-config"]).output().unwrap();
    let shown = shown + &String::from_utf8_lossy(&printed.stdout);
    assert!(daemon.term().success());
    for secret in [SECRET, TOKEN] {
        assert!(!shown.contains(secret) && !daemon.lines.contain(secret), "{}", daemon.lines.tail(50));
    }
    assert_eq!(rig.events("problem"), Vec::<Value>::new());
    rig.wait_closed();
    assert!(rig.read_dumps() >= 1);
    daemon.check_log();
}

#[test]
fn the_page_shows_what_an_application_sees() {
    need!("chromium", "mkfifo");
    if python().is_none() {
        skip!("python3 with numpy is not installed (make deps)");
    }
    let scratch = scratch::Scratch::new("spyw");
    let address = format!("127.0.0.1:{}", free_port());
    let mut daemon = daemon(&scratch, &address, "[[stream]]\nname = \"later\"\n");
    daemon.start_ready();
    let _app = app(&daemon, "front-door", (640, 360), 300);
    wait_for("the application", LONG, || {
        daemon.status()["streams"].as_array()?.iter().any(|s| s["frames"].as_u64() > Some(0)).then_some(())
    });
    let pictures = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let mut browser = Browser::open(scratch.path(), &format!("http://{address}/"));
    let shoot = |browser: &mut Browser, page: &str| {
        for dark in [false, true] {
            browser.colours(dark);
            std::thread::sleep(Duration::from_millis(300));
            let picture = browser.screenshot();
            assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5_000, "{} bytes", picture.len());
            let path = pictures.join(format!("spyglassd-{page}-{}.png", if dark { "dark" } else { "light" }));
            std::fs::write(&path, picture).unwrap();
            println!("screenshot: {}", path.display());
        }
    };
    browser.wait("!!document.body && document.body.innerText.includes('front-door')");
    shoot(&mut browser, "list");
    assert_eq!(browser.value("document.body.innerText.includes('no application is connected')"), true);
    browser.value(&format!("location.href = 'http://{address}/front-door'"));
    assert!(browser.watch(), "the picture changes");
    assert_eq!(browser.value("document.getElementById('video').videoWidth"), 640);
    browser.wait("document.body.innerText.includes('Live.')");
    shoot(&mut browser, "player");
    let delay = browser.value("document.getElementById('delay').textContent").as_str().unwrap().to_owned();
    println!("delay in the browser: {delay}");
    let stream =
        daemon.status()["streams"].as_array().unwrap().iter().find(|s| s["name"] == "front-door").cloned();
    assert_eq!(stream.unwrap()["viewers"], 1);
    // What has no frames yet says so.
    browser.value(&format!("location.href = 'http://{address}/later'"));
    browser.wait(
        "location.pathname === '/later' && !!document.body && document.body.innerText.includes('No application is connected.')",
    );
    shoot(&mut browser, "waiting");
    drop(browser);
    assert!(daemon.term().success());
    daemon.check_log();
}

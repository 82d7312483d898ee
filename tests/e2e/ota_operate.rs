//! What a device's owner and its surroundings do to `otad`: other configurations, windows, budgets, TLS, a full disk,
//! damage.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use e2e::depot::Depot;
use e2e::env;
use e2e::net::free_port;
use e2e::ota::{Device, QUICK, Rig};
use e2e::packages::{Fault, Release, Server};
use e2e::process::Process;
use e2e::scratch::Scratch;
use e2e::skip;
use rustix::process::Signal;
use time::OffsetDateTime;

const LONG: Duration = Duration::from_secs(90);

#[test]
fn a_reload_takes_a_good_file_and_leaves_a_bad_one() {
    let mut rig = Rig::new("ota-hup", "", QUICK);
    let hup = |rig: &Rig| rig.device.otad.process().signal(Signal::HUP);
    let old = rig.server.address.clone();
    let next = Server::start();
    std::fs::write(&rig.device.otad.config, "server = \"http://127.0.0.1:1\"\nmode = \"sideways\"\n")
        .unwrap();
    hup(&rig);
    rig.device.otad.wait_log("the old configuration stays in force", LONG);
    let why = rig.device.otad.lines.all().into_iter().find(|line| line.contains("stays in force")).unwrap();
    assert!(why.contains("otad.toml") && why.contains("sideways"), "{why}");
    assert_eq!(rig.device.otad.status()["server"], old);
    rig.configure("", QUICK);
    rig.good();
    // Another server, another app, another key beside the first one.
    let other = e2e::packages::Key::new(&rig.scratch, "next");
    let keys = format!("public-keys = [\"{}\", \"{}\"]", rig.key.public.display(), other.public.display());
    rig.device.configure(&next.address, &keys, &format!("{QUICK}[app.os_armv8]\n"));
    hup(&rig);
    env::wait_for("the new server", LONG, || {
        (rig.device.otad.status()["server"] == next.address).then_some(())
    });
    let (board, system) = (rig.next("good and new"), Release::new("os_armv8", 1, "system 1"));
    for release in [&board, &system] {
        next.blob(&format!("/blob/{}", release.sha256()), &release.content);
    }
    next.offer(&[("scoreboard", board.entry(&rig.key)), ("os_armv8", system.entry(&other))]);
    assert_eq!(rig.device.check().1, "updated");
    let contents = (rig.device.content("scoreboard"), rig.device.content("os_armv8"));
    assert_eq!(contents, ("good and new".to_owned(), "system 1".to_owned()));
    rig.link = rig.device.current();
    // What takes a restart is said.
    let text = std::fs::read_to_string(&rig.device.otad.config).unwrap();
    std::fs::write(&rig.device.otad.config, text.replace("/state\"", "/elsewhere\"")).unwrap();
    hup(&rig);
    rig.device.otad.wait_log("state-dir has changed: that takes a restart of otad", LONG);
    rig.held("a reload");
    assert!(rig.device.otad.term().success());
    rig.device.otad.check_log();
}

#[test]
fn a_closed_window_holds_the_change_and_says_when_it_opens() {
    let now = OffsetDateTime::now_utc();
    let hour = |hours: i64| format!("{:02}:00", (now + time::Duration::hours(hours)).hour());
    // The hour may turn before otad looks at its clock, which has whole seconds.
    let opens = now - now.time().duration_since(time::Time::from_hms(now.hour(), 0, 0).unwrap());
    let opens = opens + time::Duration::hours(6);
    let left = |at: OffsetDateTime| {
        let minutes = (opens - at.replace_nanosecond(0).unwrap()).whole_minutes();
        format!("it opens in {} h {} min", minutes / 60, minutes % 60)
    };
    let tables = format!("{QUICK}[[window]]\nfrom = \"{}\"\nto = \"{}\"\n", hour(6), hour(8));
    let mut rig = Rig::new("ota-window", "", QUICK);
    rig.configure("window-clock = \"utc\"", &tables);
    rig.device.otad.process().signal(Signal::HUP);
    rig.device.otad.wait_log("reloading", LONG);
    let release = rig.next("good 2");
    rig.server.publish(&release, &rig.key);
    let (code, word, all) = rig.device.check();
    assert_eq!((code, word.as_str()), (75, "waiting"), "{all}");
    let before = left(OffsetDateTime::now_utc());
    let (why, text) = rig.device.why_all();
    let told = [before, left(OffsetDateTime::now_utc())];
    assert!(
        why == "window-closed" && told.iter().any(|left| text.contains(left)),
        "{why}: {text}, not {told:?}"
    );
    rig.held("the window is closed");
    assert!(rig.server.requests("/blob/").is_empty(), "nothing is fetched for it");
    assert_eq!(rig.device.otad.status()["state"], "waiting-for-window");
    let (code, forced) = rig.device.command(&["check-now", "--wait", "--force"]);
    assert_eq!((code, forced["result"].as_str()), (0, Some("updated")), "{forced}");
    rig.link = rig.device.current();
    rig.held("forced");
    // An open one lets it through.
    rig.configure("window-clock = \"utc\"", &tables.replace(&hour(6), &hour(-1)));
    rig.device.otad.process().signal(Signal::HUP);
    env::wait_for("the open window", LONG, || {
        rig.device.otad.status()["window_opens_in_s"].is_null().then_some(())
    });
    rig.end();
}

#[test]
fn the_day_s_budget_ends_a_download_which_goes_on_another_day() {
    // The day's last two minutes are not enough.
    let left = OffsetDateTime::now_utc().time().duration_until(time::Time::MIDNIGHT);
    if left < time::Duration::minutes(2) {
        std::thread::sleep(left.unsigned_abs());
    }
    let top = "window-clock = \"utc\"\nbudget-per-day = \"200 KiB\"";
    let mut rig = Rig::new("ota-budget", top, QUICK);
    let content = b"good and long ".repeat(40_000);
    let release = rig.next(content.clone());
    rig.server.publish(&release, &rig.key);
    let (code, word, all) = rig.device.check();
    assert_eq!((code, word.as_str()), (75, "waiting"), "{all}");
    let (why, text) = rig.device.why_all();
    assert!(
        why == "budget" && text.contains("of 200 KB") && text.contains("it is renewed in"),
        "{why}: {text}"
    );
    rig.held("the budget is used up");
    let part = rig.device.otad.dir.join(format!("state/blobs/{}.part", release.sha256()));
    let here = std::fs::metadata(&part).unwrap().len();
    assert!(here > 100_000 && here < content.len() as u64, "{here} bytes are here");
    // A restart does not give it another one.
    rig.device.kill9();
    rig.device.otad.start_ready();
    assert!(rig.device.otad.status()["budget"]["spent"].as_u64() >= Some(200 << 10));
    rig.server.clear();
    assert_eq!(rig.device.check().1, "waiting");
    assert!(rig.server.requests("/blob/").is_empty());
    assert_eq!(std::fs::metadata(&part).unwrap().len(), here);
    // Somebody wants it all the same: it goes on where it was.
    let (code, forced) = rig.device.command(&["check-now", "--wait", "--force"]);
    assert_eq!((code, forced["result"].as_str()), (0, Some("updated")), "{forced}");
    assert_eq!(rig.server.requests("/blob/")[0].header("range"), Some(format!("bytes={here}-").as_str()));
    assert_eq!(std::fs::read(rig.device.path("scoreboard/scoreboard")).unwrap(), content);
    let spent = rig.device.otad.status()["budget"]["spent"].as_u64().unwrap();
    assert!(spent >= content.len() as u64, "what was forced is counted: {spent}");
    assert!(rig.device.otad.term().success());
    rig.device.otad.check_log();
}

/// A certificate for localhost, `NAME.pem` and `NAME.key`.
fn certificate(scratch: &Scratch, name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
    let shown = |path: &Path| path.to_string_lossy().into_owned();
    let cert = scratch.write(&format!("{name}.pem"), cert.pem());
    (shown(&cert), shown(&scratch.write(&format!("{name}.key"), key.serialize_pem())))
}

#[test]
fn over_tls_only_the_given_authority_counts() {
    let scratch = Scratch::new("ota-tls");
    let (cert, key) = certificate(&scratch, "server");
    let (other, _) = certificate(&scratch, "other");
    let depot = Depot::new(&scratch, "depot");
    let (port, root) = (free_port(), depot.root.display());
    let text = std::fs::read_to_string(&depot.config).unwrap();
    std::fs::write(
        &depot.config,
        format!(
            "listen = \"127.0.0.1:{port}\"\nctl-socket = \"{root}/ctl.sock\"\n{text}\n[bundle]\ndir = \"{root}/cache\"\n\
             [tls]\ncert-file = \"{cert}\"\nkey-file = \"{key}\"\n"
        ),
    )
    .unwrap();
    let content = b"good 1 ".repeat(50_000);
    depot.publish("scoreboard", "1.0.0", "prod", &content, &["--attr", "gamer"]);
    let _serve = Process::start("depotd", &mut depot.command(&["serve"]));
    e2e::net::wait_listening(port, "depotd", LONG);
    let top = format!("public-keys = [\"{root}/release.pub\"]");
    let tables = |ca: &str| format!("{QUICK}[tls]\nca-file = \"{ca}\"\n");
    let address = format!("https://localhost:{port}");
    let mut device = Device::new(&scratch, &address, &top, &tables(&other));
    device.otad.start_ready();
    let (_, word, all) = device.check();
    assert_eq!(word, "trouble", "{all}");
    let (why, text) = device.why_all();
    assert!(why == "server-unreachable" && text.to_lowercase().contains("certificate"), "{why}: {text}");
    assert_eq!(device.current(), None);
    device.configure(&address, &top, &tables(&cert));
    device.otad.process().signal(Signal::HUP);
    device.otad.wait_log("reloading", LONG);
    device.check_until("updated");
    assert_eq!(std::fs::read(device.path("scoreboard/scoreboard")).unwrap(), content);
    let peak = device.otad.usage().rss_peak_kb;
    println!("otad with TLS: {peak} kB at its highest");
    // The same certificate, another name.
    device.configure(&format!("https://127.0.0.1:{port}"), &top, &tables(&cert));
    device.otad.process().signal(Signal::HUP);
    env::wait_for("the certificate's name is checked", LONG, || {
        (device.check().1 == "trouble")
            .then_some(device.why_all())
            .filter(|(_, text)| text.contains("127.0.0.1"))
    });
    assert!(device.otad.term().success());
    device.otad.check_log();
}

/// A tmpfs of this size for as long as it lives; None where that is not allowed.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Option<Small> {
        std::fs::create_dir_all(at).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "otad-test"]).arg(at);
        let output = command.output().ok()?;
        output.status.success().then(|| Small(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_leaves_everything_as_it_was() {
    let scratch = Scratch::new("ota-full");
    let Some(small) = Small::mount(&scratch.join("device/state"), "4m") else {
        skip!("a tmpfs can't be mounted here");
    };
    let (server, key) = (Server::start(), e2e::packages::Key::new(&scratch, "release"));
    let top = format!("public-keys = [\"{}\"]", key.public.display());
    let tables = QUICK.replace("[limits]\n", "[limits]\nfree-min = \"1 MiB\"\n");
    let mut device = Device::new(&scratch, &server.address, &top, &tables);
    device.otad.start_ready();
    server.publish(&Release::new("scoreboard", 1, "good 1"), &key);
    assert_eq!(device.check().1, "updated");
    let link = device.current();
    let full = |device: &Device, what: &str| {
        let (code, word, all) = device.check();
        assert_eq!((code, word.as_str()), (76, "refused"), "{what}: {all}");
        let (why, text) = device.why_all();
        assert!(why == "no-space" && text.contains("space"), "{what}: {why}: {text}");
        assert_eq!(
            (device.current(), device.content("scoreboard").as_str()),
            (link.clone(), "good 1"),
            "{what}"
        );
    };
    // It is known before that it can't fit: nothing is fetched.
    server.publish(&Release::new("scoreboard", 2, vec![7; 6 << 20]), &key);
    server.clear();
    full(&device, "too large");
    assert!(server.requests("/blob/").is_empty());
    // It would fit, and somebody else takes the room meanwhile.
    let other = small.0.join("other");
    server.publish(&Release::new("scoreboard", 3, vec![7; 2 << 20]), &key);
    server.fault("/blob/", Fault::Stall(1 << 20));
    device.command(&["check-now"]);
    env::wait_for("half of it", LONG, || (!server.requests("/blob/").is_empty()).then_some(()));
    std::fs::write(&other, vec![1; 2 << 20]).unwrap();
    device.wait_idle();
    full(&device, "no room any more");
    // Not even for its own notes.
    let fill = std::fs::write(small.0.join("fill"), vec![1; 4 << 20]);
    assert!(fill.is_err());
    let (_, word, all) = device.check();
    assert!(["refused", "trouble"].contains(&word.as_str()), "{all}");
    assert_eq!((device.current(), device.content("scoreboard").as_str()), (link.clone(), "good 1"));
    device.kill9();
    device.otad.start_ready();
    assert_eq!(device.content("scoreboard"), "good 1");
    std::fs::remove_file(&other).unwrap();
    std::fs::remove_file(small.0.join("fill")).unwrap();
    assert_eq!(device.check().1, "updated", "with room again it goes on");
    assert_eq!(std::fs::metadata(device.path("scoreboard/scoreboard")).unwrap().len(), 2 << 20);
    assert!(device.otad.term().success());
    device.otad.check_log();
}

#[test]
fn damage_is_found_named_and_mended_by_a_release() {
    let mut rig = Rig::new("ota-verify", "", QUICK);
    rig.good();
    assert_eq!(rig.device.command(&["verify"]).0, 0);
    std::fs::write(rig.device.path("scoreboard/scoreboard"), "good 2, and something else").unwrap();
    let (code, verified) = rig.device.command(&["verify"]);
    assert_eq!(code, 65, "{verified}");
    let damage = verified["damage"].as_array().unwrap();
    assert_eq!((damage.len(), damage[0]["app"].as_str()), (1, Some("scoreboard")), "{verified}");
    let human = rig.device.otad.command(&["verify"]).output().unwrap();
    let human = String::from_utf8_lossy(&human.stdout).into_owned();
    assert!(human.contains("scoreboard: its content was changed") && human.contains("roll back"), "{human}");
    assert_eq!(rig.device.check().1, "no-change");
    rig.good();
    assert_eq!(rig.device.command(&["verify"]).0, 0);
    std::fs::remove_file(rig.device.path("scoreboard/scoreboard")).unwrap();
    assert_eq!(rig.device.command(&["verify"]).0, 65);
    // Rolled back, and without a daemon.
    assert_eq!(rig.device.otad.command(&["rollback"]).output().unwrap().status.code(), Some(0));
    assert!(rig.device.otad.term().success());
    let (code, verified) = rig.device.command(&["verify"]);
    assert_eq!(code, 65, "the one before had been damaged as well: {verified}");
    rig.device.otad.check_log();
}

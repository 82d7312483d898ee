//! The kinds of apps in real updates: archives, good and hostile, handlers, and the programs that run on the way, with
//! the environment that etc/otad.toml promises them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use e2e::env;
use e2e::ota::{Device, QUICK, Rig};
use e2e::packages::{Key, Release, Server};
use e2e::scratch::Scratch;

const SOON: Duration = Duration::from_secs(20);

/// One entry of an archive, as raw as an attacker would write it.
fn entry(kind: tar::EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    let bytes = header.as_mut_bytes();
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    let padding = content.len().next_multiple_of(512) - content.len();
    [&header.as_bytes()[..], content, &vec![0; padding]].concat()
}

fn file(name: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    entry(tar::EntryType::Regular, name, "", mode, content)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

const TREE: &str = "[poll]\ninterval-s = 604800\n[health]\nstable-s = 0\n[app.scoreboard]\nkind = \"tar\"\n\
                    unit = \"scoreboard.service\"\n[limits]\nexpanded-max = \"2 MiB\"\nentries-max = 50\n";

/// A server, a publisher, and a device with these tables, running.
fn line(name: &str, tables: &str) -> (Scratch, Server, Key, Device) {
    let scratch = Scratch::new(name);
    let (server, key) = (Server::start(), Key::new(&scratch, "release"));
    let top = format!("public-keys = [\"{}\"]", key.public.display());
    let mut device = Device::new(&scratch, &server.address, &top, tables);
    device.otad.start_ready();
    (scratch, server, key, device)
}

#[test]
fn an_archive_is_unpacked_and_replaced_as_a_whole() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let (_scratch, server, key, mut device) = line("ota-tree", TREE);
    let tree = |version: &str, extra: &str| {
        let parts = [
            entry(tar::EntryType::Directory, "bin/", "", 0o777, b""),
            file("bin/run", 0o777, format!("run {version}").as_bytes()),
            file("data/same", 0o640, b"the same"),
            file(extra, 0o644, b"extra"),
            entry(tar::EntryType::Symlink, "run", "bin/run", 0o777, b""),
            vec![0; 1024],
        ];
        gzip(&parts.concat())
    };
    server.publish(&Release::new("scoreboard", 1, tree("1", "old")), &key);
    assert_eq!(device.check().1, "updated");
    let read = |below: &str| std::fs::read_to_string(device.path("scoreboard").join(below)).ok();
    assert_eq!((read("run").as_deref(), read("old").as_deref()), (Some("run 1"), Some("extra")));
    let mode = |below: &str| {
        std::fs::metadata(device.path("scoreboard").join(below)).unwrap().permissions().mode() & 0o7777
    };
    assert_eq!(
        (mode("bin/run"), mode("data/same"), mode("bin")),
        (0o755, 0o640, 0o755),
        "nobody else may write"
    );
    let before = device.current();
    server.publish(&Release::new("scoreboard", 2, tree("2", "new")), &key);
    assert_eq!(device.check().1, "updated");
    assert_eq!(
        (read("run").as_deref(), read("old"), read("new").as_deref()),
        (Some("run 2"), None, Some("extra"))
    );
    let old = device.otad.dir.join("state").join(before.unwrap()).join("scoreboard/bin/run");
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "run 1", "the generation before is as it was");
    assert_eq!(device.command(&["verify"]).0, 0);
    // A release of the same content costs nothing: the same files have another name.
    let inode = |device: &Device| std::fs::metadata(device.path("scoreboard/bin/run")).unwrap().ino();
    let first = inode(&device);
    let restarts = device.restarts().len();
    server.publish(&Release::new("scoreboard", 3, tree("2", "new")).with("version", "2.0.1"), &key);
    server.clear();
    assert_eq!(device.check().1, "updated");
    assert_eq!((inode(&device), server.requests("/blob/").len()), (first, 0));
    assert_eq!(device.restarts().len(), restarts, "and nothing restarts for it");
    std::fs::write(device.path("scoreboard/data/added"), "x").unwrap();
    let (code, verified) = device.command(&["verify"]);
    assert_eq!((code, verified["damage"][0]["app"].as_str()), (65, Some("scoreboard")), "{verified}");
    assert!(device.otad.term().success());
    device.otad.check_log();
}

#[test]
fn a_hostile_archive_changes_nothing_anywhere() {
    use tar::EntryType::{Block, Char, Fifo, GNUSparse, Link, Symlink};
    let (scratch, server, key, mut device) = line("ota-tars", TREE);
    server.publish(&Release::new("scoreboard", 1, file("run", 0o755, b"good 1")), &key);
    assert_eq!(device.check().1, "updated");
    let link = device.current();
    let outside = scratch.path().join("outside");
    let absolute = outside.to_string_lossy().into_owned();
    let out = "../../../../../outside";
    let deep = vec!["d"; 40].join("/");
    let many: Vec<u8> = (0..60).flat_map(|n| file(&format!("f{n}"), 0o644, b"")).collect();
    let zeros = vec![0; 3 << 20];
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("absolute", file(&absolute, 0o644, b"evil"), "absolute"),
        ("dots", file(out, 0o644, b"evil"), ".."),
        ("link out", entry(Symlink, "l", out, 0o777, b""), "l"),
        ("link to the root", entry(Symlink, "l", "/etc", 0o777, b""), "l"),
        ("through a link", [entry(Symlink, "l", ".", 0o777, b""), file("l/x", 0o644, b"evil")].concat(), "l"),
        ("hard link out", entry(Link, "l", out, 0o644, b""), "l"),
        ("hard link to a file", entry(Link, "l", "/etc/passwd", 0o644, b""), "l"),
        ("a disk", entry(Block, "d", "", 0o666, b""), "d"),
        ("a terminal", entry(Char, "d", "", 0o666, b""), "d"),
        ("a pipe", entry(Fifo, "p", "", 0o666, b""), "p"),
        ("sparse", entry(GNUSparse, "s", "", 0o644, b""), "s"),
        ("setuid", file("su", 0o4755, b"evil"), "su"),
        ("setgid", file("su", 0o2755, b"evil"), "su"),
        ("twice", [file("a", 0o644, b"good"), file("a", 0o644, b"evil")].concat(), "a"),
        ("a file and a folder", [file("a", 0o644, b""), file("a/b", 0o644, b"")].concat(), "a"),
        ("no name", file("", 0o644, b"x"), "no name"),
        ("a line feed", file("a\nb", 0o644, b"x"), "control"),
        ("too deep", file(&deep, 0o644, b"x"), "deep"),
        ("too many", many, "entries"),
        ("a bomb", gzip(&file("zeros", 0o644, &zeros)), "more than"),
        ("a bomb behind the end", gzip(&[vec![0; 1024], vec![0; 64 << 20]].concat()), "more than"),
        ("cut", file("a", 0o644, &[7; 5000])[..2000].to_vec(), "a"),
        ("no archive", b"#!/bin/sh\n".repeat(100), "archive"),
    ];
    let mut epoch = 1;
    for (what, archive, text) in cases {
        epoch += 1;
        server.publish(&Release::new("scoreboard", epoch, archive), &key);
        let (_, word, all) = device.check();
        let said = all["text"].as_str().unwrap_or_default();
        assert_eq!(word, "refused", "{what}: {all}");
        assert!(said.contains("the archive is refused") && said.contains(text), "{what}: {said}");
        assert_eq!(device.why_all().0, "refused", "{what}");
        assert_eq!(device.current(), link, "{what}");
        assert!(!outside.exists(), "{what}");
        let left: Vec<_> = std::fs::read_dir(device.otad.dir.join("state/gens")).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{what} leaves {left:?}");
    }
    let peak = device.otad.usage().rss_peak_kb;
    println!("otad: {peak} kB at its highest");
    server.publish(&Release::new("scoreboard", epoch + 1, file("run", 0o755, b"good 2")), &key);
    assert_eq!(device.check().1, "updated");
    assert_eq!(std::fs::read_to_string(device.path("scoreboard/run")).unwrap(), "good 2");
    assert!(device.otad.term().success());
    device.otad.check_log();
}

/// Notes every call in `{dir}/calls`, and fails where `{dir}/fail` holds the action.
const PROGRAM: &str = r#"["/bin/sh", "-c", "{ echo call; env | grep ^OTAD_; } >>{dir}/calls; ! grep -qx $OTAD_ACTION {dir}/fail"]"#;

fn programs() -> String {
    format!(
        "[poll]\ninterval-s = 604800\n[health]\nstable-s = 0\nactive-within-s = 4\n[limits]\nhook-timeout-s = 10\n\
         [app.scoreboard]\nkind = \"handler\"\npre-install = {PROGRAM}\npost-install = {PROGRAM}\n\
         handler = {PROGRAM}\nhealth = {PROGRAM}\n"
    )
}

type Call = BTreeMap<String, String>;

/// The calls since the last look, each its `OTAD_…` without that prefix.
fn calls(device: &Device) -> Vec<Call> {
    let path = device.otad.dir.join("calls");
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let _ = std::fs::remove_file(&path);
    let parse = |call: &str| {
        let lines = call.lines().filter_map(|line| line.strip_prefix("OTAD_")?.split_once('='));
        lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    text.split("call\n").skip(1).map(parse).collect()
}

fn actions(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(|call| call["ACTION"].as_str()).collect()
}

#[test]
fn a_handler_and_the_hooks_are_told_what_is_documented() {
    let (_scratch, server, key, mut device) = line("ota-handler", &programs());
    let fail = device.otad.dir.join("fail");
    std::fs::write(&fail, "").unwrap();
    let publish = |epoch: u64| {
        server.publish(&Release::new("scoreboard", epoch, format!("image {epoch}")), &key);
    };
    publish(1);
    assert_eq!(device.check().1, "updated");
    let first = calls(&device);
    assert_eq!(actions(&first), ["pre-install", "post-install", "install", "health", "commit"]);
    let generation = |device: &Device| {
        let link = device.current().unwrap();
        (link.file_name().unwrap().to_string_lossy().into_owned(), device.otad.dir.join("state").join(link))
    };
    let (one, one_dir) = generation(&device);
    let dir = |folder: &std::path::Path| folder.join("scoreboard").to_string_lossy().into_owned();
    for call in &first {
        let told = |name: &str| call[name].as_str();
        assert_eq!((told("APP"), told("VERSION"), told("GENERATION")), ("scoreboard", "1.0.0", one.as_str()));
        assert_eq!((told("PATH"), told("RESUMED")), (dir(&one_dir).as_str(), "0"));
        assert_eq!((told("OLD_VERSION"), told("OLD_PATH")), ("", ""));
    }
    publish(2);
    assert_eq!(device.check().1, "updated");
    let second = calls(&device);
    let (two, two_dir) = generation(&device);
    for call in &second[..4] {
        let told = |name: &str| call[name].as_str();
        assert_eq!(
            (told("VERSION"), told("GENERATION"), told("PATH")),
            ("2.0.0", two.as_str(), dir(&two_dir).as_str())
        );
        assert_eq!((told("OLD_VERSION"), told("OLD_PATH")), ("1.0.0", dir(&one_dir).as_str()));
    }
    assert_eq!(std::fs::read_to_string(two_dir.join("scoreboard/scoreboard")).unwrap(), "image 2");
    assert!(device.otad.term().success());
    device.otad.check_log();
}

#[test]
fn an_update_whose_program_fails_is_not_committed_and_its_handler_goes_back() {
    let (_scratch, server, key, mut device) = line("ota-handler-2", &programs());
    let fail = device.otad.dir.join("fail");
    std::fs::write(&fail, "").unwrap();
    let publish = |epoch: u64| {
        server.publish(&Release::new("scoreboard", epoch, format!("image {epoch}")), &key);
    };
    publish(1);
    assert_eq!(device.check().1, "updated");
    calls(&device);
    let good = device.current();
    let path = device.otad.dir.join("state").join(good.as_ref().unwrap()).join("scoreboard");
    let path = path.to_string_lossy();
    let mut epoch = 1;
    for (failing, expected) in [
        ("post-install", &["pre-install", "post-install", "rollback"][..]),
        ("install", &["pre-install", "post-install", "install", "rollback"]),
    ] {
        std::fs::write(&fail, failing).unwrap();
        epoch += 1;
        publish(epoch);
        let (code, word, all) = device.check();
        assert_eq!((code, word.as_str()), (1, "rolled-back"), "{failing}: {all}");
        assert!(all["text"].as_str().unwrap().contains(&format!("scoreboard {failing}: ")), "{all}");
        let came = calls(&device);
        assert_eq!(actions(&came), expected);
        let back = came.last().unwrap();
        assert_eq!((back["VERSION"].as_str(), &back["PATH"]), ("1.0.0", &path.to_string()), "what is back");
        assert_eq!(back["OLD_PATH"], path);
        std::fs::write(&fail, "").unwrap();
        assert_eq!(
            (device.check().1.as_str(), device.why("scoreboard").as_str()),
            ("no-change", "quarantined")
        );
        assert!(calls(&device).is_empty(), "not tried again");
        assert_eq!(device.current(), good);
    }
    // A health command has the whole time, and then it is over.
    std::fs::write(&fail, "health").unwrap();
    epoch += 1;
    publish(epoch);
    let (_, word, all) = device.check();
    assert_eq!(word, "rolled-back", "{all}");
    let came = calls(&device);
    assert!(actions(&came).iter().filter(|action| **action == "health").count() > 1, "{came:?}");
    assert_eq!(actions(&came).last(), Some(&"rollback"));
    std::fs::write(&fail, "").unwrap();
    publish(epoch + 1);
    assert_eq!(device.check().1, "updated", "what was not committed raised no mark");
    assert!(device.otad.term().success());
    device.otad.check_log();
}

#[test]
fn a_handler_that_fails_at_its_first_time_is_told_to_go_back_to_nothing() {
    let (_scratch, server, key, mut device) = line("ota-handler-1", &programs());
    let fail = device.otad.dir.join("fail");
    std::fs::write(&fail, "install").unwrap();
    server.publish(&Release::new("scoreboard", 1, "image 1"), &key);
    assert_eq!(device.check().1, "rolled-back");
    assert_eq!(device.current(), None);
    let came = calls(&device);
    assert_eq!(actions(&came), ["pre-install", "post-install", "install", "rollback"]);
    let back = came.last().unwrap();
    for name in ["VERSION", "PATH", "OLD_VERSION", "OLD_PATH", "GENERATION"] {
        assert_eq!(back[name], "", "{name}");
    }
    std::fs::write(&fail, "").unwrap();
    server.publish(&Release::new("scoreboard", 2, "image 2"), &key);
    assert_eq!(device.check().1, "updated");
    assert!(device.otad.term().success());
    device.otad.check_log();
}

#[test]
fn a_pre_install_hook_may_say_no_and_is_not_waited_for_for_ever() {
    let (_scratch, server, key, mut device) = line("ota-hooks", &programs());
    let fail = device.otad.dir.join("fail");
    std::fs::write(&fail, "").unwrap();
    server.publish(&Release::new("scoreboard", 1, "image 1"), &key);
    assert_eq!(device.check().1, "updated");
    let link = device.current();
    std::fs::write(&fail, "pre-install").unwrap();
    server.publish(&Release::new("scoreboard", 2, "image 2"), &key);
    calls(&device);
    for _ in 0..2 {
        let (code, word, all) = device.check();
        assert_eq!((code, word.as_str()), (76, "refused"), "{all}");
        assert!(all["text"].as_str().unwrap().contains("asked again at the next poll"), "{all}");
        assert_eq!((device.current(), device.otad.status()["trial"].is_null()), (link.clone(), true));
        assert_eq!(actions(&calls(&device)), ["pre-install"]);
    }
    std::fs::write(&fail, "").unwrap();
    assert_eq!(device.check().1, "updated", "a no is not for good");
    assert!(device.otad.term().success());
    // One that hangs, with a child of its own, whose number it notes.
    let children = device.otad.dir.join("children");
    let hang = |seconds: u32| {
        let hook = "[\"/bin/sh\", \"-c\", \"sleep 60 & echo $! >>{dir}/children; sleep 60\"]";
        let tables = format!(
            "[poll]\ninterval-s = 604800\n[limits]\nhook-timeout-s = {seconds}\n[app.scoreboard]\npre-install = {hook}\n"
        );
        (format!("public-keys = [\"{}\"]", key.public.display()), tables)
    };
    let (top, tables) = hang(3);
    device.configure(&server.address, &top, &tables);
    device.otad.start_ready();
    server.publish(&Release::new("scoreboard", 3, "image 3"), &key);
    let start = Instant::now();
    let (_, word, all) = device.check();
    assert_eq!(word, "refused", "{all}");
    assert!(all["text"].as_str().unwrap().contains("did not end within 3 s"), "{all}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    wait_gone(&children, 1);
    assert!(device.otad.term().success());
    // A stop in the middle of one does not wait for it.
    let (top, tables) = hang(60);
    device.configure(&server.address, &top, &tables);
    device.otad.start_ready();
    device.command(&["check-now"]);
    env::wait_for("the hook to run", SOON, || (noted(&children).len() == 2).then_some(()));
    let start = Instant::now();
    assert!(device.otad.term().success());
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    wait_gone(&children, 2);
    device.otad.check_log();
}

/// The lines of a file to which process numbers are written.
fn noted(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n').map(str::to_owned)).collect()
}

/// So many processes were noted there, and soon none of them is left; one that its parent still has to reap is gone.
fn wait_gone(file: &Path, count: usize) {
    let pids = noted(file);
    assert_eq!(pids.len(), count, "{pids:?}");
    env::wait_for("the hook's children to be gone", SOON, || {
        let stat = |pid: &String| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        pids.iter().map(stat).all(|stat| stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
}

#[test]
fn all_apps_go_back_when_one_is_not_well() {
    let tables = format!("{QUICK}[app.os_armv8]\nunit = \"os.service\"\n")
        .replace("stable-s = 0", "stable-s = 0\nactive-within-s = 3");
    let mut rig = Rig::new("ota-both", "", &tables);
    let system = |epoch: u64| Release::new("os_armv8", epoch, format!("system {epoch}"));
    let offer = |rig: &Rig, board: &Release, system: &Release| {
        for release in [board, system] {
            rig.server.blob(&format!("/blob/{}", release.sha256()), &release.content);
        }
        rig.server.offer(&[("scoreboard", board.entry(&rig.key)), ("os_armv8", system.entry(&rig.key))]);
    };
    let board = rig.next("good 2");
    offer(&rig, &board, &system(1));
    assert_eq!(rig.device.check().1, "updated");
    let bad = rig.next("BAD 3");
    offer(&rig, &bad, &system(2));
    let before = rig.device.restarts().len();
    assert_eq!(rig.device.check().1, "rolled-back");
    let contents = (rig.device.content("scoreboard"), rig.device.content("os_armv8"));
    assert_eq!(contents, ("good 2".to_owned(), "system 1".to_owned()));
    let restarts = &rig.device.restarts()[before..];
    for unit in ["os.service", "scoreboard.service"] {
        assert_eq!(restarts.iter().filter(|line| line.ends_with(unit)).count(), 2, "{unit}: {restarts:?}");
    }
    // The set is barred, not its parts: the other app's release comes with the mended one.
    assert_eq!(
        (rig.device.check().1.as_str(), rig.device.why("os_armv8").as_str()),
        ("no-change", "quarantined")
    );
    let board = rig.next("good 4");
    offer(&rig, &board, &system(2));
    assert_eq!(rig.device.check().1, "updated");
    assert_eq!(rig.device.content("os_armv8"), "system 2");
    assert!(rig.device.otad.term().success());
    rig.device.otad.check_log();
}

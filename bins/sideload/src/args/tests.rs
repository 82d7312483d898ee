//! The lines people type, and what they are told.

use super::table::{COMMANDS, FLAGS};
use super::*;

fn run(line: &str) -> Args {
    match parse(line.split_whitespace().map(OsString::from).collect()).unwrap() {
        Asked::Run(args) => *args,
        Asked::Print(text) => panic!("{text}"),
    }
}

fn wrong(line: &str) -> String {
    let failure = parse(line.split_whitespace().map(OsString::from).collect()).unwrap_err();
    assert_eq!(failure.code, 64, "{line}");
    assert!(failure.fix.is_some(), "{line}");
    failure.cause
}

fn printed(line: &str) -> String {
    match parse(line.split_whitespace().map(OsString::from).collect()).unwrap() {
        Asked::Print(text) => text,
        Asked::Run(args) => panic!("{args:?}"),
    }
}

#[test]
fn the_originals_lines_work_in_each_order() {
    let expected = Overrides {
        addr: Some("10.0.0.245".into()),
        port: Some(8123),
        cert_key_dir: Some(".".into()),
        src_top: Some("src".into()),
        ..Overrides::default()
    };
    for line in [
        "sync --addr 10.0.0.245 --port 8123 --cert-key-dir . --src-top src",
        "--addr 10.0.0.245 --port 8123 --cert-key-dir . --src-top src sync",
        "--addr=10.0.0.245 sync --src-top=src --port=8123 --cert-key-dir=.",
    ] {
        let args = run(line);
        assert_eq!(args.overrides, expected, "{line}");
        assert_eq!(args.command, Command::Sync { force: false, restart: false });
    }
    assert_eq!(run("run-app --addr a").command, Command::RunApp);
    assert_eq!(run("kill-app --addr a").command, Command::KillApp);
    assert_eq!(run("list-files --addr a").command, Command::ListFiles);
    let path = || "model/net.onnx".to_owned();
    for line in ["send-file --addr a --src-top s model/net.onnx", "send-file model/net.onnx --src-top s"] {
        assert_eq!(run(line).command, Command::SendFile { path: path() });
    }
    assert_eq!(run("delete-file --addr a model/net.onnx").command, Command::DeleteFile { path: path() });
    assert_eq!(run("delete-file -- -odd").command, Command::DeleteFile { path: "-odd".into() });
}

#[test]
fn the_new_commands_read() {
    let keys = run("keys --expiry 7 --app-src-dir ./p/src --device root@cam");
    let expected = Command::Keys {
        expiry_days: 7,
        app_src_dir: Some("./p/src".into()),
        device: Some("root@cam".into()),
        force: false,
    };
    assert_eq!(keys.command, expected);
    let logs = run("-vv logs -f -n 20 --since=5m --json");
    assert_eq!((logs.verbosity, logs.json), (2, true));
    assert_eq!(logs.command, Command::Logs { follow: true, since: Some("5m".into()), tail: Some(20) });
    assert_eq!(run("rollback --to 12").command, Command::Rollback { to: Some(12), restart: false });
    let pull = run("pull out a.txt --to got");
    let paths = vec!["out".to_owned(), "a.txt".to_owned()];
    assert_eq!(pull.command, Command::Pull { paths, to: Some("got".into()), force: false });
    assert!(matches!(run("migrate").command, Command::Migrate { dir, .. } if dir == "."));
    assert!(matches!(run("migrate old").command, Command::Migrate { dir, .. } if dir == "old"));
}

#[test]
fn what_is_wrong_is_said() {
    for (line, said) in [
        ("", "no command is given"),
        ("snyc", "there is no command \"snyc\""),
        ("sync --prot 1", "there is no flag --prot"),
        ("sync --port x", "--port takes a number, not \"x\""),
        ("sync --port 0", "--port takes a port"),
        ("sync --port 70000", "--port takes a number"),
        ("sync --addr", "--addr needs a value"),
        ("sync --addr --port 1", "--addr needs a value, found --port"),
        ("sync --addr a --addr b", "--addr is given twice"),
        ("sync extra", "sync does not take \"extra\""),
        ("send-file", "send-file needs FILEPATH"),
        ("list-files --force", "--force does not go with list-files"),
        ("sync --force=yes", "--force takes no value"),
        ("keys --expiry 0", "--expiry takes 1 to 3650 days"),
        ("keys --expiry 9999", "--expiry takes 1 to 3650 days"),
    ] {
        let found = wrong(line);
        assert!(found.starts_with(said), "{line}: {found}");
    }
    assert!(parse(vec!["snyc".into()]).unwrap_err().fix.unwrap().contains("sideload sync"));
    assert!(parse(vec!["lo".into()]).unwrap_err().fix.unwrap().contains("sideload logs"));
}

#[test]
fn every_command_has_help_that_fits_a_terminal() {
    assert!(printed("--version").starts_with("sideload "));
    let all = printed("--help");
    assert!(all.contains("Exit codes:") && all == printed("help") && all == printed("help -h"));
    for entry in COMMANDS {
        let text = printed(&format!("{} -h", entry.name));
        assert_eq!(text, printed(&format!("help {}", entry.name)));
        assert!(all.contains(entry.name));
        assert!(text.lines().chain(all.lines()).all(|l| l.chars().count() <= 120), "{text}");
        // Each has code behind it.
        let given = (0..entry.min).map(|_| "x").collect::<Vec<_>>().join(" ");
        run(&format!("{} {given}", entry.name));
        assert!(entry.flags.iter().all(|name| FLAGS.iter().any(|f| f.long == *name)));
    }
}

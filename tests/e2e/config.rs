//! Configuration mistakes of every kind, for every daemon: the path, the line, the key and what was
//! expected are said, and the exit code is 78.

use std::process::Output;

use e2e::daemon::Daemon;
use e2e::scratch::Scratch;

const EX_CONFIG: i32 = 78;
const EX_USAGE: i32 = 64;

/// What a mistake must be answered with.
struct Mistake {
    daemon: &'static str,
    toml: &'static str,
    /// Line that is to be named; 0 when the file as a whole is meant.
    line: usize,
    /// Words that must occur in what is said.
    says: &'static [&'static str],
}

const fn mistake(
    daemon: &'static str,
    line: usize,
    toml: &'static str,
    says: &'static [&'static str],
) -> Mistake {
    Mistake { daemon, toml, line, says }
}

const MISTAKES: &[Mistake] = &[
    // Not TOML.
    mistake("mqfwd", 2, "state-dir = \"/tmp\"\n[local\n", &["expected"]),
    mistake("s3put", 1, "state-dir = 'unclosed\n", &["expected"]),
    mistake("faced", 2, "topic = \"faces\"\nqos = = 1\n", &["expected"]),
    mistake("mqfwd", 3, "[cloud]\nport = 1883\nport = 1884\n", &["port", "duplicate"]),
    // Keys that do not exist.
    mistake("mqfwd", 1, "stat-dir = \"/tmp\"\n", &["stat-dir", "state-dir"]),
    mistake("mqfwd", 2, "[cloud]\nhots = \"example.org\"\n", &["hots"]),
    mistake("s3put", 2, "[target]\nbucket = \"x\"\n", &["bucket"]),
    mistake("faced", 3, "[[camera]]\nname = \"a\"\nsuorce = \"images:/tmp\"\n", &["suorce"]),
    // Types and ranges.
    mistake("mqfwd", 2, "[cloud]\nport = \"1883\"\n", &["port", "integer"]),
    mistake("mqfwd", 2, "[cloud]\nport = 70000\n", &["port"]),
    mistake("mqfwd", 2, "[cloud]\nversion = \"4\"\n", &["version", "3.1.1"]),
    mistake(
        "mqfwd",
        2,
        "[spool]\nsegment-bytes = 5000\n[[route]]\nfrom = \"t\"\n",
        &["segment-bytes", "64 KiB"],
    ),
    mistake("mqfwd", 2, "[spool]\nmax-bytes = \"12 parsecs\"\n", &["max-bytes"]),
    mistake("mqfwd", 2, "[spool]\nfull-qos1 = \"forget\"\n", &["full-qos1", "drop-oldest"]),
    mistake("mqfwd", 2, "[local]\nmode = \"broadcast\"\n", &["mode", "subscribe", "listen"]),
    mistake("mqfwd", 4, "[[route]]\nfrom = \"t/#\"\nto = \"up/#\"\nqos = 3\n", &["qos", "expected"]),
    mistake("mqfwd", 2, "[[route]]\nfrom = \"t/#/x\"\nto = \"up\"\n", &["from", "#"]),
    mistake("s3put", 2, "[target]\nto = \"ftp://example.org\"\n", &["to", "expected", "s3://"]),
    // What belongs together.
    mistake("mqfwd", 1, "[cloud.tls]\nserver-name = \"x\"\n[[route]]\nfrom = \"t\"\n", &["tls", "ca-file"]),
    mistake(
        "mqfwd",
        4,
        "[cloud]\nhost = \"h\"\nusername = \"u\"\npassword-file = \"/nonexistent/secret\"\n[[route]]\nfrom = \"t\"\n",
        &["password-file", "No such file"],
    ),
    mistake(
        "mqfwd",
        3,
        "[local]\nmode = \"listen\"\nlisten.address = \"nowhere\"\n[[route]]\nfrom = \"t\"\n",
        &["address", "expected"],
    ),
    mistake(
        "faced",
        3,
        "[[camera]]\nname = \"a\"\nsource = \"teleport:/dev/null\"\n",
        &["source", "expected", "v4l:"],
    ),
    mistake("sideloadd", 1, "listen = \"8123\"\n", &["listen", "0.0.0.0:8123"]),
    mistake("sideloadd", 1, "root = \"sideloaded\"\n", &["root", "absolute"]),
    mistake(
        "sideloadd",
        2,
        "listen = \"[::]:1\"\nenable-sideload = true\n",
        &["enable-sideload", "enable-sideloading"],
    ),
    mistake("sideloadd", 2, "[app]\nrestart = \"sometimes\"\n", &["restart", "on-failure"]),
    mistake(
        "sideloadd",
        2,
        "[tls]\ncert-file = \"/nonexistent/cert.pem\"\n",
        &["cert-file", "No such file", "sideload keys"],
    ),
    mistake("sideloadd", 2, "[limits]\nkeep-commits = 0\n", &["keep-commits", "expected"]),
    mistake(
        "spyglassd",
        2,
        "[encoder]\npreset = \"nonsense\"\n",
        &["encoder.preset", "superfast", "ultrafast"],
    ),
    mistake("spyglassd", 2, "[encoder]\nkind = \"h265\"\n", &["kind", "x264"]),
    mistake("spyglassd", 2, "[rtsp]\nsession-max = 4\n", &["session-max", "sessions-max"]),
    mistake("spyglassd", 2, "[rtsp]\nconnections-max = 8\n", &["connections-max", "sessions-max"]),
    mistake("spyglassd", 2, "[web]\nlisten = \"0.0.0.0:8555\"\n", &["web.listen", "password-file"]),
    mistake(
        "spyglassd",
        3,
        "[[stream]]\nname = \"a\"\nsource = \"teleport:/dev/null\"\n",
        &["source", "expected", "v4l:"],
    ),
    mistake("sorterd", 1, "listen = \"6000\"\n", &["listen", "127.0.0.1:6000"]),
    mistake("sorterd", 1, "state-dir = \"here\"\n", &["state-dir", "absolute"]),
    mistake("sorterd", 2, "[limits]\nworker = 2\n", &["worker", "workers"]),
    mistake("sorterd", 2, "[limits]\nworkers = 0\n", &["workers", "1"]),
    mistake("sorterd", 2, "[limits]\nmessage-bytes-max = \"1 KiB\"\n", &["message-bytes-max", "64 KiB"]),
    mistake("sorterd", 2, "[detector]\nkind = \"magic\"\n", &["kind", "contours", "onnx"]),
    mistake("sorterd", 2, "[detector]\nthreshold = 1.5\n", &["threshold"]),
    mistake("sorterd", 2, "[vectorizer]\nkind = \"magic\"\n", &["kind", "histogram", "onnx"]),
    mistake("sorterd", 2, "[panel]\nhost = \"a panel\"\n", &["host", "panel:8000"]),
    mistake("sorterd", 2, "[upload]\nmode = \"staging\"\n", &["mode", "aws-dev", "production"]),
];

fn check(scratch: &Scratch, n: usize, mistake: &Mistake, arguments: &[&str]) -> Output {
    let daemon = Daemon::new(scratch, mistake.daemon, &format!("bad{n}-{}", arguments.len()), mistake.toml);
    let output = daemon.command(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let about = format!("{} with {:?} said:\n{said}", mistake.daemon, mistake.toml);
    assert_eq!(output.status.code(), Some(EX_CONFIG), "{about}");
    let place = format!("{}:{}:", daemon.config.display(), mistake.line);
    let place = if mistake.line == 0 { daemon.config.display().to_string() } else { place };
    assert!(said.contains(&place), "no {place} in what {about}");
    for word in mistake.says {
        assert!(said.contains(word), "no {word:?} in what {about}");
    }
    output
}

#[test]
fn mistakes_are_named_with_their_place() {
    let scratch = Scratch::new("toml");
    let mut wrong = Vec::new();
    for (n, mistake) in MISTAKES.iter().enumerate() {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check(&scratch, n, mistake, &["--check"]);
        }));
        wrong.extend(result.err().map(|e| e.downcast_ref::<String>().cloned().unwrap_or_default()));
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), MISTAKES.len(), wrong.join("\n"));
}

/// Starting says the same as --check, and ends with the same code: systemd does not restart on it.
#[test]
fn starting_with_a_mistake_ends_with_78() {
    let scratch = Scratch::new("toml78");
    for (n, mistake) in MISTAKES[..3].iter().enumerate() {
        check(&scratch, n, mistake, &[]);
    }
}

/// A file that is not there, and one that is not text.
#[test]
fn unreadable_files() {
    let scratch = Scratch::new("tomlio");
    for name in ["mqfwd", "s3put", "faced", "sideloadd", "sorterd", "spyglassd"] {
        let daemon = Daemon::new(&scratch, name, &format!("{name}-none"), "");
        std::fs::remove_file(&daemon.config).unwrap();
        let output = daemon.command(&["--check"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(EX_CONFIG), "{said}");
        assert!(said.contains(&*daemon.config.to_string_lossy()) && said.contains("--config"), "{said}");
        std::fs::write(&daemon.config, [0xff, 0xfe, 0x00, 0x41]).unwrap();
        let output = daemon.command(&["--check"]).output().unwrap();
        assert_eq!(output.status.code(), Some(EX_CONFIG));
    }
}

/// A wrong option is a mistake of the command line, not of the configuration.
#[test]
fn options() {
    let scratch = Scratch::new("options");
    for name in ["mqfwd", "s3put", "faced", "sideloadd", "sorterd", "spyglassd"] {
        let daemon = Daemon::new(&scratch, name, name, "");
        let output = daemon.command(&["--frobnicate"]).output().unwrap();
        assert_eq!(output.status.code(), Some(EX_USAGE));
        let output = std::process::Command::new(e2e::env::bin(name)).arg("--version").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains(name) && said.contains("0."), "{said}");
        let output = std::process::Command::new(e2e::env::bin(name)).arg("--help").output().unwrap();
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("--check"));
    }
}

/// The shipped files are good as they are, and --print-config prints a file that is good again.
#[test]
fn shipped_defaults_are_good() {
    let scratch = Scratch::new("shipped");
    for name in ["mqfwd", "s3put", "faced", "sideloadd", "sorterd", "spyglassd"] {
        let shipped = e2e::env::root().join(format!("etc/{name}.toml"));
        // Folders that only exist once installed are the test's own.
        let text = std::fs::read_to_string(&shipped).unwrap_or_else(|e| panic!("{}: {e}", shipped.display()));
        let own = format!("\"{}/", scratch.dir(&format!("{name}-root")).display());
        let text = text
            .replace("\"/var/lib/edge/", &own)
            .replace("\"/run/edge/", &own)
            .replace("\"/var/cache/edge/", &own)
            // Keys are made by a person; production needs none.
            .replace("enable-sideloading = true", "enable-sideloading = false");
        let daemon = Daemon::new(&scratch, name, name, &text);
        let check = daemon.command(&["--check"]).output().unwrap();
        let said = String::from_utf8_lossy(&check.stderr).into_owned();
        assert!(check.status.success(), "{name} --check of its shipped file: {said}");
        let printed = daemon.command(&["--print-config"]).output().unwrap();
        assert!(printed.status.success());
        let again =
            Daemon::new(&scratch, name, &format!("{name}-2"), &String::from_utf8(printed.stdout).unwrap());
        let check = again.command(&["--check"]).output().unwrap();
        assert!(check.status.success(), "{name}: {}", String::from_utf8_lossy(&check.stderr));
    }
}

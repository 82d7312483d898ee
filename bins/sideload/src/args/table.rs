//! The table of commands, the table of flags, and the help of the program.

use std::fmt::Write as _;

use edge::cli::table::{self, Entry, Flag, Grammar, Group, flag};

use crate::output::EXIT_CODES;

const CONNECT: Group = Group { flags: &["--addr", "--port", "--cert-key-dir"], more: "" };

/// A command that talks to the device.
const fn entry(name: &'static str, positions: &'static str, about: &'static str) -> Entry {
    Entry { group: Some(&CONNECT), ..table::entry(name, positions, about) }
}

/// The whole command line.
pub(super) const GRAMMAR: Grammar = Grammar {
    program: "sideload",
    commands: COMMANDS,
    flags: FLAGS,
    always: &["--config", "--json", "--verbose", "--help", "--version"],
};

pub(super) const COMMANDS: &[Entry] = &[
    Entry {
        flags: &["--src-top"],
        more: "Watches src-top: a save is synced at once, the application restarted (or signalled, or left alone: [[dev.rule]]),\n\
               and its output follows. Changed .py files are checked before the running application is touched. Ctrl-C ends it.",
        ..entry("dev", "", "save, sync, restart, logs: the inner loop")
    },
    Entry {
        flags: &["--src-top", "--force", "--restart"],
        more: "Afterwards the device has exactly the files of src-top; what the application wrote itself stays. All or nothing:\n\
               interrupted at any point, the device has its old files. Left out: what .gitignore and .sideloadignore say, *.pem.",
        ..entry("sync", "", "make the device's files those of src-top, sending only what it lacks")
    },
    entry("run-app", "", "start the application"),
    entry("kill-app", "", "stop the application and everything it started"),
    entry("restart", "", "stop the application if it runs, then start it"),
    Entry {
        flags: &["--follow", "--since", "--tail"],
        more: "`|` stands before a line of stdout, `!` of stderr, `*` before what the daemon did. Times are UTC.",
        ..entry("logs", "", "what the application printed")
    },
    entry("status", "", "application, files, disk and certificates of the device"),
    Entry {
        flags: &["--to", "--restart"],
        more: "--to COMMIT: a commit that `sideload status` lists; else the one before the present one.",
        ..entry("rollback", "", "the files of an earlier sync again")
    },
    Entry {
        flags: &["--to", "--force"],
        more: "PATH is a file or a folder on the device; without one: all files. --to FOLDER: where to (default: here).\n\
               A file that exists here with another content is left as it is, unless --force is given.",
        max: usize::MAX,
        ..entry("pull", "[PATH...]", "files from the device to this host")
    },
    Entry {
        flags: &["--src-top"],
        more: "FILEPATH counts from src-top; a path from here that leads into src-top is taken as well.",
        min: 1,
        max: 1,
        ..entry("send-file", "FILEPATH", "send one file")
    },
    Entry {
        min: 1,
        max: 1,
        more: "FILEPATH as `sideload list-files` shows it.",
        ..entry("delete-file", "FILEPATH", "delete one file on the device")
    },
    entry("list-files", "", "the files of the device, with time (UTC) and size"),
    Entry {
        flags: &["--expiry", "--app-src-dir", "--device", "--force", "--addr", "--cert-key-dir"],
        more: "Makes sideloading_server.cert.pem, sideloading_server.key.pem, sideloading_client.cert.pem and\n\
               sideloading_client.key.pem in cert-key-dir: the two ends then trust each other and nobody else. With --device and\n\
               existing keys it makes none, and only prints what to copy where.",
        group: None,
        ..entry("keys", "", "make the certificates and keys of device and host")
    },
    Entry {
        flags: &["--addr", "--port", "--src-top", "--app-src-dir", "--force"],
        more: "FOLDER (default: here) holds sideloading_*.pem as install.py made them. Checks that they fit together and have not\n\
               expired, makes keys private, and writes a sideload.toml here.",
        group: None,
        max: 1,
        ..entry("migrate", "[FOLDER]", "adopt a folder of the original sideloading tool's keys")
    },
    Entry {
        flags: &["--src-top"],
        more: "One line each: ok, warn or fail, with what to do. The exit code is that of the first failure, else 0.",
        ..entry("doctor", "", "find out what is wrong between here and the application")
    },
];

pub(super) const FLAGS: &[Flag] = &[
    flag("--addr", "", "ADDRESS", "host name or IP address of the device"),
    flag("--port", "", "PORT", "its port (8123)"),
    flag("--cert-key-dir", "", "FOLDER", "where the PEM files are (the folder of sideload.toml, else here)"),
    flag("--src-top", "", "FOLDER", "the application's folder on this host (the folder of sideload.toml)"),
    flag("--force", "", "", "go on where it would stop for safety (delete more than half, overwrite)"),
    flag("--restart", "", "", "restart the application afterwards"),
    flag("--follow", "-f", "", "go on with what is printed from now on"),
    flag("--since", "", "WHEN", "10s, 5m, 2h or 1d ago, or a position EPOCH.N from --json"),
    flag("--tail", "-n", "LINES", "only the last lines"),
    flag("--to", "", "WHERE", "see below"),
    flag("--expiry", "", "DAYS", "how long the certificates are valid (30)"),
    flag(
        "--app-src-dir",
        "",
        "FOLDER",
        "the source folder of the application's package, for the original's agent",
    ),
    flag("--device", "", "USER@HOST", "print what to copy where"),
    flag("--config", "-c", "FILE", "this sideload.toml, instead of one found from here upwards"),
    flag("--json", "", "", "the reply as JSON, for scripts"),
    flag("--verbose", "-v", "", "say more; twice for everything"),
    flag("--help", "-h", "", "print this"),
    flag("--version", "-V", "", "print the version"),
];

/// What `--help` prints.
pub(super) fn help() -> String {
    let mut text = String::from(
        "sideload: puts an application on a device that runs sideloadd, runs it, and shows what it prints\n\n\
         Usage: sideload COMMAND [flags]\n\n",
    );
    for entry in COMMANDS {
        let _ = writeln!(text, "  {:<12} {}", entry.name, entry.about);
    }
    text.push_str(
        "\nAddress, keys and folders come from a sideload.toml here or in a folder above; flags win, before or behind the\n\
         command. `sideload COMMAND --help` explains a command. --json gives every reply as JSON.\n\n",
    );
    text.push_str(EXIT_CODES);
    text
}

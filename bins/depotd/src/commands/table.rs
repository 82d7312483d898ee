//! The table of commands and the table of flags, and the help texts made of them.

use edge::cli::table::{Entry, Flag, Grammar, Group, entry, flag};

use super::output::EXIT_CODES;

const SIGNS: Group =
    Group { flags: &["--key", "--password-file", "--sign-later", "--statement", "--unsigned"], more: HOW };
const HOW: &str = "\
--key FILE signs here, with a minisign secret key. --sign-later writes the statement to a file and prints how to sign it on
another machine; nothing is served before 'depotd accept' has seen the signature. --unsigned is for devices that do not ask
for signatures.";

/// The whole command line.
pub(super) const GRAMMAR: Grammar = Grammar {
    program: "depotd",
    commands: COMMANDS,
    flags: FLAGS,
    always: &["--config", "--json", "--verbose", "--help"],
};

/// A command about one app.
const fn app(name: &'static str, about: &'static str) -> Entry {
    Entry { min: 1, max: 1, flags: &["--env", "--version"], ..entry(name, "APP", about) }
}

/// All commands, in the order of `--help`.
pub const COMMANDS: &[Entry] = &[
    Entry {
        flags: &[
            "--app",
            "--version",
            "--env",
            "--attr",
            "--rollout",
            "--must-pass-through",
            "--min-epoch",
            "--expires",
            "--epoch",
        ],
        group: Some(&SIGNS),
        min: 1,
        max: 1,
        more: "The content is durable in the store before the catalog names it: killed at any moment, the release is there or\n\
               it is not, and the same command can be repeated.",
        ..entry("publish", "FILE", "make FILE a release of an app in an environment")
    },
    Entry {
        flags: &["--signature"],
        min: 1,
        max: 1,
        more: "Verifies STATEMENT and its signature (STATEMENT.minisig, or --signature) with the public-keys of depotd.toml,\n\
               and puts the release of which it speaks into force.",
        ..entry("accept", "STATEMENT", "take a statement that was signed elsewhere")
    },
    Entry { flags: &["--app", "--env", "--all"], ..entry("list", "", "the releases") },
    Entry {
        flags: &["--env"],
        min: 1,
        max: 1,
        ..entry("show", "APP", "all about the releases of an app, and which one devices are offered")
    },
    Entry {
        flags: &[
            "--from",
            "--to",
            "--version",
            "--rollout",
            "--must-pass-through",
            "--min-epoch",
            "--expires",
            "--epoch",
        ],
        group: Some(&SIGNS),
        more: "The newest live release of --from, or the one of --version, becomes a release of --to with the same content.",
        ..app("promote", "the same content in another environment, such as beta -> prod")
    },
    Entry {
        flags: &["--env", "--version", "--percent"],
        group: Some(&SIGNS),
        more: "Devices keep their place in the line: a higher percentage adds devices, a lower one takes the last ones out\n\
               (what they have installed stays).",
        ..app("rollout", "for how many percent of the devices a release is")
    },
    Entry {
        more: "Without --version: the newest live release. Devices are offered the one before; what is installed stays.",
        ..app("pause", "stop serving a release")
    },
    Entry {
        more: "Without --version: the newest paused release.",
        ..app("resume", "serve a paused release again")
    },
    Entry {
        more: "It is never served again, its content may be removed ('depotd gc'), its version may be published again under a\n\
               new epoch. Also takes back what waits for its signature.",
        ..app("retire", "end a release for good")
    },
    Entry {
        flags: &["--out", "--password-file"],
        more: "Writes NAME.pub and NAME.key (0600) as minisign does; either program takes the other's. At a terminal a password\n\
               is asked for; without one, and without --password-file, the key is protected by its file's mode only.",
        ..entry("keygen", "", "make a key pair to sign with")
    },
    Entry {
        flags: &["--app", "--env"],
        more: "Reads the content of every release that is not retired, compares it with its statement, and verifies the\n\
               statement's signature with the public-keys of depotd.toml.",
        ..entry("verify", "", "check every statement, signature and content")
    },
    Entry {
        flags: &["--dry-run", "--pending-days"],
        more: "Never removes what a pending, live or paused release names. Releases that wait for their signature for longer\n\
               than --pending-days are retired first.",
        ..entry("gc", "", "remove content that no release needs")
    },
    Entry {
        flags: &["--size", "--seed", "--key", "--password-file"],
        more: "os_armv8 1.1.0 (prod) and 1.2.0-beta.1 (beta); scoreboard 1.0.0 and videoStreamer 0.0.1 for the attribute gamer;\n\
               modemFW 1.0 for cellular. Content of --size bytes that looks random, the same for the same --seed. Unsigned\n\
               without --key.",
        ..entry("sample", "", "publish demo data")
    },
];

pub(super) const FLAGS: &[Flag] = &[
    flag("--app", "-a", "NAME", "the app"),
    flag("--version", "", "VERSION", "its version, for people"),
    flag("--env", "-e", "NAME", "the environment, such as prod or beta"),
    Flag { many: true, ..flag("--attr", "", "NAME", "a device attribute that selects it (may be repeated)") },
    flag("--rollout", "", "PERCENT", "of the devices it is for (100)"),
    flag("--percent", "", "PERCENT", "of the devices it is for"),
    flag("--must-pass-through", "", "", "later releases ask that a device has passed this one"),
    flag("--min-epoch", "", "EPOCH", "once installed, nothing below is run again, also not by a rollback"),
    flag(
        "--expires",
        "",
        "WHEN",
        "not installed from then on: 2027-01-31T00:00:00Z, or a number of days as 90d",
    ),
    flag("--epoch", "", "EPOCH", "instead of the next one"),
    flag("--from", "", "NAME", "the environment to take it from"),
    flag("--to", "", "NAME", "the environment to put it into"),
    flag("--all", "", "", "the retired ones, too"),
    flag("--key", "-k", "FILE", "sign with this minisign secret key"),
    flag("--password-file", "", "FILE", "the key's password, instead of asking at the terminal"),
    flag("--sign-later", "", "", "write the statement to a file, to be signed elsewhere"),
    flag("--statement", "", "FILE", "that file (default: APP_VERSION_ENV.statement here)"),
    flag("--unsigned", "", "", "do not sign"),
    flag("--signature", "", "FILE", "the signature (default: STATEMENT.minisig)"),
    flag("--out", "-o", "NAME", "the key pair's name (default: depot)"),
    flag("--dry-run", "-n", "", "say what would be done, and do nothing"),
    flag("--pending-days", "", "DAYS", "how long a release may wait for its signature (30)"),
    flag("--size", "", "BYTES", "of each content (65536)"),
    flag("--seed", "", "NUMBER", "of the content (1)"),
    flag("--config", "-c", "FILE", "configuration (default /etc/edge/depotd.toml)"),
    flag("--json", "", "", "the reply as JSON, for scripts"),
    flag("--verbose", "-v", "", "say more; twice for everything"),
    flag("--help", "-h", "", "print this"),
];

/// What `COMMAND --help` prints.
pub(super) fn help_of(entry: &Entry) -> String {
    format!("{}\n{EXIT_CODES}", GRAMMAR.help_of(entry))
}

//! `doctor`: what is wrong between here and the application, one line a finding, each with what to do.
//!
//! Invariant: it looks at everything it can still look at; what depends on something that failed is left out.
//! Never: changes anything.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use super::expiry::{RENEW, SOON};
use super::{number, text};
use crate::client::{Client, Request};
use crate::config::Settings;
use crate::output::{EX_NOPERM, EX_REFUSED, Failure, Reply, duration, moment, visible};

/// Clocks may differ by so much, ms: logs are confusing above.
const SKEW_MAX: u64 = 5_000;
/// Certificates fail sooner or later above, ms.
const SKEW_BAD: u64 = 3_600_000;
/// Little and very little space on the device, bytes.
const DISK_LOW: u64 = 256 << 20;
const DISK_FULL: u64 = 32 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    Warn,
    Fail(u8),
}

#[derive(Debug)]
struct Finding {
    level: Level,
    what: &'static str,
    says: String,
    fix: Option<String>,
}

fn ok(what: &'static str, says: impl Into<String>) -> Finding {
    Finding { level: Level::Ok, what, says: says.into(), fix: None }
}

fn warn(what: &'static str, says: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding { level: Level::Warn, what, says: says.into(), fix: Some(fix.into()) }
}

fn fail(what: &'static str, failure: Failure) -> Finding {
    Finding { level: Level::Fail(failure.code), what, says: failure.cause, fix: failure.fix }
}

/// `doctor`
pub fn run(settings: &Settings) -> Result<Reply, Failure> {
    let mut found = Vec::new();
    found.push(match &settings.file {
        Some(file) => ok("settings", file.display().to_string()),
        None => warn(
            "settings",
            "no sideload.toml here or in a folder above",
            "one spares you the flags: `sideload migrate`, or copy etc/sideload.toml",
        ),
    });
    found.push(source(settings));
    let now_s = edge::clock::unix_ms() / 1000;
    found.extend(keys(&settings.cert_key_dir, now_s));
    match reach(settings) {
        Err(failure) => found.push(fail("connection", failure)),
        Ok(Reached { finding, status, sent_ms, got_ms }) => {
            found.push(finding);
            found.extend(device(&status, sent_ms, got_ms));
        }
    }
    Ok(report(&found))
}

fn report(found: &[Finding]) -> Reply {
    let mut shown = String::new();
    let mut all = Vec::new();
    for Finding { level, what, says, fix } in found {
        let level = match level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail(_) => "fail",
        };
        let _ = writeln!(shown, "{level:<5} {what:<13} {}", visible(says));
        if let Some(fix) = fix {
            let _ = writeln!(shown, "{:<20}fix: {}", "", visible(fix));
        }
        all.push(json!({ "level": level, "what": what, "says": says, "fix": fix }));
    }
    let code = found.iter().find_map(|finding| match finding.level {
        Level::Fail(code) => Some(code),
        _ => None,
    });
    let code = code.unwrap_or(0);
    Reply { text: shown, json: json!({ "ok": code == 0, "exit_code": code, "findings": all }), code }
}

fn source(settings: &Settings) -> Finding {
    let top = match settings.source() {
        Err(failure) => return warn("source", failure.cause, failure.fix.unwrap_or_default()),
        Ok(top) => top,
    };
    let shown = top.display();
    match ["main.sh", "main.py"].into_iter().find(|name| top.join(name).is_file()) {
        Some(name) => ok("source", format!("{shown}, with {name}")),
        None => warn(
            "source",
            format!("{shown} has neither main.sh nor main.py at its top"),
            "the device starts one of them, unless its `entrypoints` or its own copy say otherwise: is src-top right?",
        ),
    }
}

/// The three files of this host.
fn keys(dir: &Path, now_s: u64) -> Vec<Finding> {
    use crate::client::{CLIENT_CERT, CLIENT_KEY, SERVER_CERT};
    let mut found = Vec::new();
    for (what, name) in [("server cert", SERVER_CERT), ("client cert", CLIENT_CERT)] {
        let path = dir.join(name);
        found.push(match edge::tls::facts("certificate", &path) {
            Ok(facts) => {
                let end = facts.iter().map(|facts| facts.not_after).min().unwrap_or(0);
                expiry(what, &path.display().to_string(), end, now_s)
            }
            Err(error) => {
                let failure = Failure::of(EX_NOPERM, &error, None);
                fail(what, failure.fix("`sideload keys` makes new ones; --cert-key-dir names another folder"))
            }
        });
    }
    let key = dir.join(CLIENT_KEY);
    // One that is missing is said by the connection, which needs it.
    if let Ok(meta) = std::fs::metadata(&key) {
        let mode = meta.permissions().mode() & 0o777;
        found.push(match mode & 0o077 {
            0 => ok("client key", format!("{}, private", key.display())),
            _ => warn(
                "client key",
                format!("{} can be read by others (mode {mode:04o})", key.display()),
                format!("chmod 600 {}", key.display()),
            ),
        });
    }
    found
}

fn expiry(what: &'static str, name: &str, not_after: i64, now_s: u64) -> Finding {
    let end = u64::try_from(not_after).unwrap_or(0);
    let until = moment(end.saturating_mul(1000));
    match end.saturating_sub(now_s) {
        0 => fail(what, Failure::new(EX_NOPERM, format!("{name} expired on {until}")).fix(RENEW)),
        left if left < SOON => warn(what, format!("{name}: {} left", duration(left * 1000)), RENEW),
        left => ok(what, format!("{name}: {} left", duration(left * 1000))),
    }
}

struct Reached {
    finding: Finding,
    status: Value,
    sent_ms: u64,
    got_ms: u64,
}

fn reach(settings: &Settings) -> Result<Reached, Failure> {
    let began = std::time::Instant::now();
    let mut client = Client::connect(&settings.target()?)?;
    let connected = began.elapsed().as_millis();
    let sent_ms = edge::clock::unix_ms();
    let status = client.request(Request::new("GET", "/status"))?.json()?;
    let got_ms = edge::clock::unix_ms();
    let peer = client.peer().map_or_else(String::new, |peer| peer.to_string());
    let says =
        format!("{peer}, mutual TLS in {connected} ms, answer in {} ms", got_ms.saturating_sub(sent_ms));
    Ok(Reached { finding: ok("connection", says), status, sent_ms, got_ms })
}

/// What the device says of itself.
fn device(status: &Value, sent_ms: u64, got_ms: u64) -> Vec<Finding> {
    let null = Value::Null;
    let part = |key: &str| status.get(key).unwrap_or(&null);
    let mut found = vec![version(text(status, "version"))];
    found.push(clock(number(status, "now_ms"), sent_ms, got_ms));
    // By its own clock: that is the one by which it refuses.
    let device_s = number(status, "now_ms") / 1000;
    let dates = part("certificates");
    if let Some(end) = dates.get("server_not_after").and_then(Value::as_i64) {
        found.push(expiry("device cert", "the certificate it shows", end, device_s));
    }
    let pins: Vec<i64> = dates
        .get("client_not_after")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_i64)
        .collect();
    if let Some(end) = pins.iter().max() {
        let name = if pins.len() == 1 { "the client it trusts" } else { "the newest client it trusts" };
        found.push(expiry("device pins", name, *end, device_s));
    }
    found.push(disk(number(part("disk"), "free_bytes")));
    found.push(entrypoints(part("entrypoints")));
    found.push(app(part("app")));
    found
}

fn version(theirs: &str) -> Finding {
    let ours = env!("CARGO_PKG_VERSION");
    if theirs == ours {
        return ok("version", format!("{ours} at both ends"));
    }
    warn(
        "version",
        format!("sideloadd {theirs} there, sideload {ours} here"),
        "the sync of other versions may not be understood: install the same one at both ends",
    )
}

fn clock(device_ms: u64, sent_ms: u64, got_ms: u64) -> Finding {
    // It read its clock somewhere between the two moments.
    let skew = if device_ms < sent_ms { sent_ms - device_ms } else { device_ms.saturating_sub(got_ms) };
    let side = if device_ms < sent_ms { "behind" } else { "ahead of" };
    let says = format!("the device is {} {side} this host", duration(skew));
    let fix = "set the time of the device: `timedatectl set-ntp true`, or `date -s`";
    match skew {
        0..SKEW_MAX => ok("clock", "the same at both ends, within 5 s"),
        SKEW_MAX..SKEW_BAD => warn("clock", says, fix),
        _ => fail(
            "clock",
            Failure::new(EX_REFUSED, format!("{says}: certificates look expired or not valid yet")).fix(fix),
        ),
    }
}

fn disk(free: u64) -> Finding {
    let says = format!("{} free on the device", edge::text::bytes(free));
    let fix =
        "delete what is not needed there; old commits count too (limits.keep-commits in sideloadd.toml)";
    match free {
        0..DISK_FULL => fail("disk", Failure::new(EX_REFUSED, says).fix(fix)),
        DISK_FULL..DISK_LOW => warn("disk", says, fix),
        _ => ok("disk", says),
    }
}

fn entrypoints(found: &Value) -> Finding {
    let paths: Vec<&str> = found.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match paths.first() {
        Some(first) => ok("entry point", (*first).to_owned()),
        None => fail(
            "entry point",
            Failure::new(EX_REFUSED, "the device has nothing to start: no main.sh and no main.py")
                .fix("`sideload sync` a folder that has one at its top"),
        ),
    }
}

fn app(app: &Value) -> Finding {
    let last = match text(app, "last_exit") {
        "" => String::new(),
        exit => format!(", last exit: {exit}"),
    };
    match text(app, "state") {
        "running" => ok("application", format!("running (pid {})", number(app, "pid"))),
        "backoff" => warn(
            "application",
            format!("ends again and again{last}"),
            "`sideload logs` shows what it says; `sideload rollback` brings the earlier files back",
        ),
        "" => warn("application", "its state is not known", "is it sideloadd of this version?"),
        state => ok("application", format!("{state}{last}; `sideload run-app` starts it")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_has_its_level() {
        assert_eq!(clock(1000, 900, 1100).level, Level::Ok);
        assert_eq!(clock(100_000, 900, 1100).says, "the device is 1 min 38 s ahead of this host");
        assert_eq!(clock(0, 7_200_000, 7_200_001).level, Level::Fail(1));
        assert_eq!(disk(10).level, Level::Fail(1));
        assert_eq!(disk(100 << 20).level, Level::Warn);
        assert_eq!(expiry("x", "n", 100, 100).level, Level::Fail(77));
        assert_eq!(expiry("x", "n", 86_500, 100).level, Level::Warn);
        assert_eq!(expiry("x", "n", 8 * 86_400, 100).says, "n: 7 days 23 h left");
        assert_eq!(expiry("x", "n", -5, 100).level, Level::Fail(77));
        assert_eq!(entrypoints(&json!([])).level, Level::Fail(1));
        assert_eq!(entrypoints(&json!(["/a/main.py"])).says, "/a/main.py");
        assert_eq!(app(&json!({ "state": "backoff", "last_exit": "code 1" })).level, Level::Warn);
        assert_eq!(version(env!("CARGO_PKG_VERSION")).level, Level::Ok);
        assert!(device(&Value::Null, 0, 0).len() >= 4);
    }

    #[test]
    fn the_first_failure_is_the_exit_code() {
        let found = [
            ok("a", "fine"),
            warn("b", "odd", "do this"),
            fail("c", Failure::new(69, "gone").fix("turn it on")),
            fail("d", Failure::new(1, "no")),
        ];
        let reply = report(&found);
        assert_eq!((reply.code, reply.json["ok"].as_bool()), (69, Some(false)));
        assert_eq!(
            reply.text,
            "ok    a             fine\nwarn  b             odd\n                    fix: do this\n\
             fail  c             gone\n                    fix: turn it on\nfail  d             no\n"
        );
        assert_eq!(report(&found[..2]).code, 0);
    }
}

//! `otad` taking a large release, beside `curl`, `tar`, `sha256sum` and `sync` doing as much of it as they do.
//!
//! Both fetch from the same `depotd` on loopback. The peer writes the file, sums it and syncs the file system; `otad`
//! besides verifies a signature, keeps its state, and switches. OTA_MB sets the size (1024).

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::daemon::Daemon;
use e2e::depot::Depot;
use e2e::env;
use e2e::scratch::Scratch;
use e2e::table::Table;

use crate::Verdict;

/// Rounds of each; the best counts, since what else the disk does only ever adds.
const ROUNDS: usize = 3;

struct Took {
    seconds: f64,
    peak_mb: f64,
    written_mb: f64,
}

pub fn run(verdicts: &mut Vec<Verdict>) {
    let mb: usize = std::env::var("OTA_MB").ok().and_then(|v| v.parse().ok()).unwrap_or(1024);
    println!("\nAn update of {mb} MB, from depotd on loopback to what runs (best of {ROUNDS})\n");
    let scratch = Scratch::new("bench-ota");
    let depot = depot(&scratch, mb);
    let (_server, base) = depot.serve(&scratch, "serve", "");
    let bundle = format!("{base}/package?cpuArch=bench&big=prod");
    // It is built once, whoever asks first.
    sh(&format!("curl -fsS -o /dev/null '{bundle}'"), &scratch.dir("warm"));
    let details =
        env::run(Command::new("curl").args(["-fsS", &format!("{bundle}&payloadType=metadataOnly")]));
    let details: serde_json::Value = serde_json::from_str(&details).unwrap();
    let blob = format!("{base}{}", details["big"]["download"].as_str().unwrap());
    let files = format!("curl -fsS -o big '{blob}' && sha256sum big && sync -f big");
    let untar = format!("curl -fsS '{bundle}' | tar xz && sha256sum big_1 && sync -f big_1");
    let mut table = Table::new(&["way", "s", "ratio", "peak MB", "written MB"]);
    for (mode, script) in [("files", files), ("bundle", untar)] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            theirs.push(peer(&script, &scratch.dir(&format!("peer-{mode}-{round}"))));
            ours.push(otad(&scratch, &base, mode, round, &depot.root.join("release.pub")));
        }
        let best = |all: &[Took]| all.iter().map(|took| took.seconds).fold(f64::INFINITY, f64::min);
        let ratio = best(&ours) / best(&theirs);
        let peak = ours.iter().map(|took| took.peak_mb).fold(0.0, f64::max);
        for (name, all, ratio) in [(format!("otad, {mode}"), &ours, ratio), (script_name(mode), &theirs, 1.0)]
        {
            let last = &all[all.len() - 1];
            table.row(&[
                name,
                format!("{:.2}", best(all)),
                format!("{ratio:.2}"),
                if last.peak_mb.is_nan() { "-".into() } else { format!("{:.1}", last.peak_mb) },
                format!("{:.0}", last.written_mb),
            ]);
        }
        let what = format!("otad, {mode}: time against curl and its friends");
        verdicts.push(Verdict { what, found: ratio, target: 1.3, more: false, unit: "x" });
        let what = format!("otad, {mode}: peak memory");
        verdicts.push(Verdict { what, found: peak, target: 6.0, more: false, unit: "MB" });
    }
    println!("{}", table.text());
}

fn script_name(mode: &str) -> String {
    if mode == "files" { "curl, sha256sum, sync" } else { "curl | tar xz, sha256sum, sync" }.to_owned()
}

/// A server's folder with one signed release of that size, of bytes that can't be compressed.
fn depot(scratch: &Scratch, mb: usize) -> Depot {
    let depot = Depot::new(scratch, "depot");
    let file = depot.root.join("content");
    sh(&format!("head -c {} /dev/urandom > content", mb << 20), &depot.root);
    let file = file.to_string_lossy().into_owned();
    depot.done(&[
        "publish",
        &file,
        "--app",
        "big",
        "--version",
        "1",
        "--env",
        "prod",
        "--key",
        "release.key",
    ]);
    depot
}

fn sh(script: &str, dir: &Path) {
    env::run(Command::new("sh").arg("-c").arg(script).current_dir(dir));
}

fn peer(script: &str, dir: &Path) -> Took {
    settle();
    let start = Instant::now();
    sh(script, dir);
    let seconds = start.elapsed().as_secs_f64();
    let written_mb = written(dir);
    let _ = std::fs::remove_dir_all(dir);
    Took { seconds, peak_mb: f64::NAN, written_mb }
}

/// What is on disk after it, which is what was written at the least.
fn written(dir: &Path) -> f64 {
    let text = env::run(Command::new("du").arg("-sm").arg(dir));
    text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(f64::NAN)
}

/// What others left to be written is not to count.
fn settle() {
    env::run(&mut Command::new("sync"));
}

fn otad(scratch: &Scratch, base: &str, mode: &str, round: usize, key: &Path) -> Took {
    let name = format!("otad-{mode}-{round}");
    let dir = scratch.dir(&name);
    let device = "id = \"bench\"\n[attributes]\ncpu-arch = \"bench\"\n\"apps.big\" = \"prod\"\n";
    std::fs::write(dir.join("device.toml"), device).unwrap();
    let toml = format!(
        "server = \"{base}\"\nmode = \"{mode}\"\npublic-keys = [\"{}\"]\nstate-dir = \"{{dir}}/state\"\n\
         ctl-socket = \"{{dir}}/ctl.sock\"\ndevice-file = \"{{dir}}/device.toml\"\n[app.big]\nkind = \"file\"\n",
        key.display()
    );
    let mut daemon = Daemon::new(scratch, "otad", &name, &toml);
    daemon.start_ready();
    settle();
    let start = Instant::now();
    let mut command = Command::new(env::bin("otad"));
    command.args(["check-now", "--wait", "--config"]).arg(&daemon.config);
    env::run(&mut command);
    let current = dir.join("state/current/big/big");
    env::wait_for("the release to be in force", Duration::from_secs(5), || current.exists().then_some(()));
    let seconds = start.elapsed().as_secs_f64();
    let peak_mb = daemon.usage().rss_peak_kb as f64 / 1024.0;
    let io = std::fs::read_to_string(format!("/proc/{}/io", daemon.process().pid())).unwrap_or_default();
    let bytes = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse::<f64>().ok());
    let written_mb = bytes.unwrap_or(f64::NAN) / f64::from(1 << 20);
    daemon.term();
    let _ = std::fs::remove_dir_all(dir.join("state"));
    Took { seconds, peak_mb, written_mb }
}

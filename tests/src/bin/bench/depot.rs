//! `depotd serve` beside nginx serving the same bytes, `tar cz` packing the same files, and what a catalog of 100,000
//! releases costs.
//!
//! Both servers have one thread that serves (nginx: one worker), both are asked by `wrk` on the same machine, in turns, the
//! better round counts. nginx knows its files by name and has them open (open_file_cache); depotd works out for each
//! request which release it means. DEPOT_S sets the seconds of a round (5).

mod catalog;
mod costs;
mod load;
mod nginx;

use std::process::Command;
use std::time::Instant;

use e2e::daemon::Daemon;
use e2e::depot::Depot;
use e2e::env;
use e2e::process::Usage;
use e2e::scratch::Scratch;
use e2e::table::{Table, thousands};
use serde_json::Value;

use crate::Verdict;
use load::{Load, load};
use nginx::Nginx;

const ROUNDS: usize = 2;
/// Of each of the four files, and so nearly of the bundle that has one of them.
const BYTES: u64 = 10 << 20;
const OS: &str = "/package?cpuArch=armv8";
const ALL: &str = "/package?cpuArch=armv8&attrGamer=prod&attrCellular=prod&payloadType=metadataOnly";

/// What is asked of both.
struct Case {
    name: &'static str,
    /// At depotd and at nginx.
    paths: [String; 2],
    /// The tags that the device sends to each.
    tags: [Option<String>; 2],
    /// Whether requests (or bytes) a second count, and the share of nginx's that is wanted.
    requests: bool,
    target: Option<f64>,
}

pub fn run(verdicts: &mut Vec<Verdict>) {
    if let Some(missing) = ["nginx", "wrk", "curl", "tar"].into_iter().find(|tool| !env::have(tool)) {
        return println!("skipped: depot: {missing} is not installed (make deps)");
    }
    serve(verdicts);
    pack();
    catalog::run();
}

fn serve(verdicts: &mut Vec<Verdict>) {
    println!("\ndepotd beside nginx (one worker), the same bytes, wrk: 2 threads, 64 connections\n");
    let scratch = Scratch::new("bench-depot");
    let depot = Depot::new(&scratch, "depot");
    depot.done(&["sample", "--size", &BYTES.to_string(), "--key", "release.key"]);
    let (daemon, base) = depot.serve(&scratch, "serve", "");
    let nginx = Nginx::start(&scratch);
    let cases = cases(&scratch, &nginx, &base);
    let mut table =
        Table::new(&["", "server", "requests/s", "MB/s", "CPU us/request", "resident MB", "ratio"]);
    for case in &cases {
        let mut best: [Option<(Load, f64)>; 2] = [None, None];
        for _ in 0..ROUNDS {
            for (n, base) in [&base, &nginx.base].into_iter().enumerate() {
                let usage = || if n == 0 { daemon.usage() } else { nginx.usage() };
                let before = usage();
                let found = load(&format!("{base}{}", case.paths[n]), 64, case.tags[n].as_deref(), None);
                let cpu_us = (usage().cpu_ms - before.cpu_ms) as f64 * 1000.0 / found.requests.max(1.0);
                let figure = |load: &Load| if case.requests { load.rate } else { load.mb_s };
                if best[n].as_ref().is_none_or(|(old, _)| figure(&found) > figure(old)) {
                    best[n] = Some((found, cpu_us));
                }
            }
        }
        let [Some((ours, our_cpu)), Some((theirs, their_cpu))] = best else { continue };
        let ratio = if case.requests { ours.rate / theirs.rate } else { ours.mb_s / theirs.mb_s };
        let mut row = |server: &str, load: &Load, cpu: f64, usage: Usage, ratio: String| {
            let rss = format!("{:.1}", usage.rss_kb as f64 / 1024.0);
            let (rate, mb) = (thousands(load.rate as u64), format!("{:.0}", load.mb_s));
            table.row(&[case.name.into(), server.into(), rate, mb, format!("{cpu:.1}"), rss, ratio]);
        };
        row("nginx", &theirs, their_cpu, nginx.usage(), "1.00".into());
        row("depotd", &ours, our_cpu, daemon.usage(), format!("{ratio:.2}"));
        if let Some(target) = case.target {
            let of = if case.requests { "requests/s" } else { "MB/s" };
            let what = format!("depotd {}: {of} / nginx", case.name);
            verdicts.push(Verdict { what, found: ratio, target, more: true, unit: "x" });
        }
    }
    println!("{}", table.text());
    let everything = cases[0].tags[0].as_deref().unwrap_or("*");
    costs::run(&scratch, &base, ALL.trim_end_matches("&payloadType=metadataOnly"), everything);
}

/// Fetches from depotd what nginx is to serve, and makes sure that both then answer alike.
fn cases(scratch: &Scratch, nginx: &Nginx, base: &str) -> Vec<Case> {
    let details: Value = serde_json::from_slice(&fetch(scratch, &format!("{base}{ALL}"))).unwrap();
    let blob = details["os_armv8"]["download"].as_str().unwrap().to_owned();
    for (file, path) in [("details.json", ALL), ("bundle.gz", OS), ("blob", &blob)] {
        let bytes = fetch(scratch, &format!("{base}{path}"));
        nginx.put(file, &bytes);
        assert!(fetch(scratch, &format!("{}/{file}", nginx.base)) == bytes, "nginx serves {file}");
    }
    let sums: Vec<&str> =
        details.as_object().unwrap().values().filter_map(|app| app["md5"].as_str()).collect();
    let have = sums.join(",");
    let tag = header(&format!("{}/details.json", nginx.base), "etag");
    let case = |name, ours: &str, theirs: &str, requests, target| Case {
        name,
        paths: [ours.to_owned(), theirs.to_owned()],
        tags: [None, None],
        requests,
        target,
    };
    let unchanged = case("304", ALL, "/details.json", true, Some(0.5));
    vec![
        Case { tags: [Some(have), Some(tag)], ..unchanged },
        case("metadata", ALL, "/details.json", true, None),
        case("cached bundle, 10 MB", OS, "/bundle.gz", false, Some(0.8)),
        case("blob, 10 MB", &blob, "/blob", false, Some(0.8)),
    ]
}

fn fetch(scratch: &Scratch, url: &str) -> Vec<u8> {
    let into = scratch.join("fetched");
    env::run(Command::new("curl").args(["-fsS", "-o"]).arg(&into).arg(url));
    std::fs::read(into).unwrap()
}

fn header(url: &str, name: &str) -> String {
    let head = env::run(Command::new("curl").args(["-fsSI", url]));
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
    line.and_then(|line| line.split_once(": ")).map(|(_, value)| value.trim().to_owned()).unwrap()
}

/// A bundle that nobody has asked for yet, against `tar cz`: programs, and bytes that can't be compressed.
fn pack() {
    println!("\nA bundle made for the first one who asks, against tar cz of the same files (gzip level 6)\n");
    let scratch = Scratch::new("bench-depot");
    let depot = Depot::new(&scratch, "depot");
    let program = std::fs::read(env::bin("depotd")).unwrap();
    let programs: Vec<u8> = program.iter().copied().cycle().take(32 << 20).collect();
    let mut noise = vec![0; 16 << 20];
    fastrand::Rng::with_seed(1).fill(&mut noise);
    for (app, content) in [("programs", &programs), ("noise", &noise)] {
        depot.publish(app, "1", "prod", content, &[]);
        scratch.write(&format!("files/{app}_1"), content);
    }
    let mut table = Table::new(&["", "s", "ratio", "MB made"]);
    let (mut ours, mut theirs) = (f64::INFINITY, f64::INFINITY);
    let (mut made, mut packed) = (0, 0);
    for round in 0..ROUNDS {
        let start = Instant::now();
        env::run(Command::new("tar").args(["czf", "packed", "-C", "files", "."]).current_dir(scratch.path()));
        theirs = theirs.min(start.elapsed().as_secs_f64());
        packed = scratch.join("packed").metadata().unwrap().len();
        let (mut daemon, base) = depot.serve(&scratch, &format!("pack-{round}"), "");
        let start = Instant::now();
        made = fetch(&scratch, &format!("{base}/package?cpuArch=none&programs=prod&noise=prod")).len() as u64;
        ours = ours.min(start.elapsed().as_secs_f64());
        let counted = || daemon.status()["bundles"]["made"] == 1;
        env::wait_for("the bundle to be made", std::time::Duration::from_secs(10), || {
            counted().then_some(())
        });
        daemon.term();
    }
    for (name, seconds, bytes) in
        [("tar cz", theirs, packed), ("depotd, to the last byte at curl", ours, made)]
    {
        let mb = bytes as f64 / 1e6;
        table.row(&[
            name.into(),
            format!("{seconds:.2}"),
            format!("{:.2}", seconds / theirs),
            format!("{mb:.1}"),
        ]);
    }
    println!("{}", table.text());
}

/// Seconds of a round.
fn round_s() -> u32 {
    std::env::var("DEPOT_S").ok().and_then(|v| v.parse().ok()).unwrap_or(5)
}

/// What depotd counts, in its status.
fn counted(daemon: &Daemon, table: &str, key: &str) -> f64 {
    daemon.status()[table][key].as_f64().unwrap_or(f64::NAN)
}

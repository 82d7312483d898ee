//! `sideload` and `sideloadd` beside rsync and the way it was done before: syncs of many small files and of one big one,
//! on an unhindered cable and on a slow one, and the time from a save to the first line of the restarted application.

mod link;
mod measure;
mod peers;
mod save;
mod trees;

use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::scratch::Scratch;
use e2e::table::Table;
use e2e::{env, table};

use self::link::Link;
use self::measure::{Cost, measure};
use self::peers::{Peer, Way};
use crate::Verdict;

/// What tc does to each direction of the slow cable: together 20 ms, 50 Mbit/s each.
const SLOW: &str = "delay 10ms rate 50mbit";

const SMALL_ROWS: [&str; 3] = ["cold", "nothing changed", "all touched"];
const BIG_ROWS: [&str; 4] = ["cold", "one byte changed", "one byte inserted at the head", "renamed"];

/// The costs of each way, one a row.
type Costs = Vec<(Way, Vec<Cost>)>;

pub fn run(verdicts: &mut Vec<Verdict>) {
    for program in ["rsync", "sshd", "ssh", "ssh-keygen", "openssl"] {
        if !env::have(program) {
            return println!("skipped: sideload: {program} is not installed (make deps)");
        }
    }
    let ssh = |mux, sums| Way::Ssh { mux, sums };
    let one = |keep_alive| Way::OneByOne { keep_alive };
    let all = [
        Way::Sideload,
        ssh(false, false),
        ssh(true, false),
        ssh(false, true),
        ssh(true, true),
        Way::SshFsync,
        Way::RsyncDaemon,
        one(false),
        one(true),
    ];
    // A look at some of them only: no verdicts then.
    let only = std::env::var("SIDELOAD_WAYS").ok();
    let pick = |ways: &[Way]| -> Vec<Way> {
        let named =
            |way: &Way| only.as_ref().is_none_or(|only| only.split(',').any(|o| way.name().contains(o)));
        ways.iter().copied().filter(named).collect()
    };
    let parts = std::env::var("SIDELOAD_BENCH").unwrap_or_else(|_| "small big save slow".into());
    let wanted = |part: &str| parts.split_whitespace().any(|p| p == part);
    if wanted("small") || wanted("big") || wanted("save") {
        let Some(link) = Link::new(None) else { return };
        if wanted("small") {
            let costs = small(&link, &pick(&all), "");
            only.is_none().then(|| small_verdicts(&costs, verdicts));
        }
        if wanted("big") {
            let costs = big(&link, &pick(&all), mib(256), "");
            only.is_none().then(|| big_verdicts(&costs, verdicts));
        }
        if wanted("save") {
            save::run(&link, !pick(&[Way::Sideload]).is_empty(), verdicts);
        }
    }
    if wanted("slow") {
        let Some(link) = Link::new(Some(SLOW)) else {
            return println!(
                "skipped: sideload on a slow cable: it takes root, and a kernel with netem (CONFIG_NET_SCH_NETEM)"
            );
        };
        let some = [Way::Sideload, ssh(false, false), ssh(true, false), Way::RsyncDaemon, one(true)];
        small(&link, &pick(&some), ", 20 ms and 50 Mbit/s");
        big(&link, &pick(&some), mib(64), ", 20 ms and 50 Mbit/s");
    }
}

/// Scales a size by BENCH_N, in MiB.
fn mib(n: u64) -> u64 {
    crate::scaled(n)
}

fn small(link: &Link, ways: &[Way], where_: &str) -> Costs {
    let count = crate::scaled(1000);
    let times = 3;
    println!("\nSideloading {count} files of 2 KiB{where_} (medians of {times}, the ways taking turns)\n");
    let scratch = Scratch::new("bench");
    let mut all = Contestant::start(link, ways, |_| {
        let src = scratch.dir("src");
        if !src.join("package00").exists() {
            trees::small(&src, count);
        }
        src
    });
    settle();
    take_turns(times, &mut all, |_, one| one.peer.reset());
    take_turns(times, &mut all, |_, _| ());
    take_turns(times, &mut all, |_, one| trees::touch(&one.src));
    finish(&SMALL_ROWS, all)
}

fn big(link: &Link, ways: &[Way], mib: u64, where_: &str) -> Costs {
    println!("\nSideloading one file of {mib} MiB{where_} (medians of 3, the ways taking turns)\n");
    let scratch = Scratch::new("bench");
    let mut all = Contestant::start(link, ways, |at| {
        let src = scratch.dir(&format!("src-{at}"));
        trees::big(&weights(&src, 0), mib << 20);
        src
    });
    settle();
    let times = if where_.is_empty() { 3 } else { 1 };
    take_turns(times, &mut all, |_, one| one.peer.reset());
    settle();
    take_turns(3, &mut all, |n, one| {
        trees::change_byte(&weights(&one.src, 0), (mib << 20) * (n as u64 + 1) / 5);
    });
    take_turns(3, &mut all, |_, one| trees::insert_at_head(&weights(&one.src, 0)));
    settle();
    take_turns(3, &mut all, |n, one| {
        std::fs::rename(weights(&one.src, n), weights(&one.src, n + 1)).unwrap();
    });
    finish(&BIG_ROWS, all)
}

/// The one big file, under its first or its other name.
fn weights(src: &Path, n: usize) -> PathBuf {
    src.join(["model/weights.bin", "model/renamed.bin"][n % 2])
}

/// A file that was changed a moment ago is read again by whoever is careful: that is not what is measured.
fn settle() {
    std::thread::sleep(Duration::from_millis(2200));
}

/// One way with its device, its folder and what its rows took.
struct Contestant<'a> {
    peer: Peer<'a>,
    src: PathBuf,
    costs: Vec<Cost>,
}

impl<'a> Contestant<'a> {
    fn start(link: &'a Link, ways: &[Way], mut src: impl FnMut(usize) -> PathBuf) -> Vec<Contestant<'a>> {
        let start = |(at, &way)| Contestant { peer: Peer::start(link, way), src: src(at), costs: Vec::new() };
        ways.iter().enumerate().map(start).collect()
    }
}

/// One row: each way once, then each again, so that what else goes on here hinders all of them alike.
fn take_turns(times: usize, all: &mut [Contestant<'_>], mut before: impl FnMut(usize, &mut Contestant<'_>)) {
    let mut runs = vec![Vec::new(); all.len()];
    for n in 0..times {
        for (one, runs) in all.iter_mut().zip(&mut runs) {
            before(n, one);
            runs.push(measure(one.peer.link, &mut one.peer.sync(&one.src), one.peer.server_pid()));
        }
    }
    for (one, runs) in all.iter_mut().zip(&runs) {
        trees::assert_same(&one.src, &one.peer.dest());
        one.costs.push(Cost::median(runs));
    }
}

fn finish(rows: &[&str], all: Vec<Contestant<'_>>) -> Costs {
    let costs = all.into_iter().map(|one| (one.peer.way, one.costs)).collect();
    print(rows, &costs);
    costs
}

fn print(rows: &[&str], costs: &Costs) {
    for (at, row) in rows.iter().enumerate() {
        let mut table = Table::new(&[row, "seconds", "wire bytes", "client MB", "device MB"]);
        for (way, costs) in costs {
            let Cost { seconds, wire, client_mb, server_mb } = costs[at];
            let (client, server) = (format!("{client_mb:.1}"), format!("{server_mb:.1}"));
            table.row(&[way.name(), format!("{seconds:.3}"), table::thousands(wire as u64), client, server]);
        }
        println!("{}", table.text());
    }
}

/// The figure of one row, of `sideload` and the best of those that `peers` names.
fn against(costs: &Costs, row: usize, peers: fn(Way) -> bool, figure: fn(&Cost) -> f64) -> (f64, f64) {
    let of = |wanted: &dyn Fn(Way) -> bool| {
        let found = costs.iter().filter(|(way, _)| wanted(*way)).map(|(_, costs)| figure(&costs[row]));
        found.fold(f64::INFINITY, f64::min)
    };
    (of(&|way| way == Way::Sideload), of(&peers))
}

fn verdict(what: &str, found: f64, target: f64, more: bool, unit: &'static str) -> Verdict {
    Verdict { what: what.into(), found, target, more, unit }
}

fn small_verdicts(costs: &Costs, verdicts: &mut Vec<Verdict>) {
    let seconds = |c: &Cost| c.seconds;
    let is_ssh = |way| matches!(way, Way::Ssh { .. });
    for (keep_alive, what) in [
        (false, "sideload cold: stand-in / ours"),
        (true, "sideload cold: stand-in on one connection / ours"),
    ] {
        let is: fn(Way) -> bool = if keep_alive {
            |way| way == Way::OneByOne { keep_alive: true }
        } else {
            |way| way == Way::OneByOne { keep_alive: false }
        };
        let (ours, theirs) = against(costs, 0, is, seconds);
        verdicts.push(verdict(what, theirs / ours, 20.0, true, "x"));
    }
    let (ours, theirs) = against(costs, 0, is_ssh, seconds);
    verdicts.push(verdict("sideload cold: best rsync over ssh / ours", theirs / ours, 1.0, true, "x"));
    let (ours, theirs) = against(costs, 1, |way| way != Way::Sideload, seconds);
    verdicts.push(verdict("sideload, nothing changed", ours * 1000.0, 20.0, false, "ms"));
    verdicts.push(verdict("sideload, nothing changed: best peer / ours", theirs / ours, 1.0, true, "x"));
    let (same, _) = against(costs, 1, is_ssh, |c| c.wire);
    let (touched, _) = against(costs, 2, is_ssh, |c| c.wire);
    // Content would add two megabytes; times in the manifest may compress a little differently.
    let more = (touched - same).max(0.0) / 1024.0;
    verdicts.push(verdict("sideload, all touched: more on the wire", more, 64.0, false, "KiB"));
}

fn big_verdicts(costs: &Costs, verdicts: &mut Vec<Verdict>) {
    let is_rsync = |way| matches!(way, Way::Ssh { .. } | Way::RsyncDaemon);
    let flushes = |way| way == Way::SshFsync;
    for (row, name) in BIG_ROWS.iter().enumerate().skip(1) {
        let what = |rest: &str| format!("sideload 256 MiB, {name}: {rest}");
        let (ours, _) = against(costs, row, is_rsync, |c| c.wire);
        verdicts.push(verdict(&what("wire"), ours / f64::from(1 << 20), 1.0, false, "MiB"));
        let (ours, theirs) = against(costs, row, is_rsync, |c| c.seconds);
        verdicts.push(verdict(&what("best rsync / ours"), theirs / ours, 1.0, true, "x"));
        // The others leave it to the kernel when the file is on the disk; this one promises what we promise.
        let (ours, theirs) = against(costs, row, flushes, |c| c.seconds);
        verdicts.push(verdict(&what("rsync --fsync / ours"), theirs / ours, 1.0, true, "x"));
    }
}

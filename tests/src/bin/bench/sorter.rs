//! `sorterd` beside a bare loop of the same detector on the same pictures: CPU for each, pictures a second and time to the
//! answer over WebSocket with five connections at once, vectors a second, memory.

use std::process::Command;
use std::time::Duration;

use e2e::env;
use e2e::scratch::Scratch;
use e2e::sorter::{Sorter, draw, have_arm, report};
use e2e::table::Table;
use serde_json::Value;

use crate::{Verdict, scaled};

/// Pictures that the arm sends.
const PICTURES: u64 = 300;

pub fn run(verdicts: &mut Vec<Verdict>) {
    if !have_arm() {
        println!("skipped: sorter: the arm's Python is not there (etc/tools.sh arm)");
        return;
    }
    println!(
        "\nsorterd beside a bare loop of the same detector: drawn pictures of 640x480, five connections at once\n"
    );
    let scratch = Scratch::new("bsort");
    let drawn = draw(&scratch, "sort");
    let folder = scratch.join("drawn-sort");
    let pictures = scaled(PICTURES);
    let rounds = (pictures as usize).div_ceil(drawn.len());
    let files: Vec<_> = drawn.iter().map(|(name, _)| folder.join(name)).collect();
    let mut bare = Command::new(env::bin("examples/detect"));
    bare.args([&rounds.to_string(), "3", "--"]).args(files);
    let bare: Value = serde_json::from_str(env::run(&mut bare).trim()).unwrap();
    let of = |name: &str| bare[name].as_f64().unwrap();

    let mut sorter = Sorter::start(&scratch, "");
    std::thread::sleep(Duration::from_secs(1));
    let idle = sorter.daemon.usage();
    let mut arm = sorter.arm("load", &[&pictures.to_string(), "--folder", &folder.to_string_lossy()]);
    arm.wait_exit(Duration::from_secs(120));
    let load = report(&arm);
    let after = sorter.daemon.usage();
    assert_eq!(load["problems"], serde_json::json!([]), "{load}");
    // One more picture than was counted came first, to open everything.
    let ours = (after.cpu_ms - idle.cpu_ms) as f64 / (pictures + 1) as f64;
    let theirs = of("cpu_ms");
    let mut table =
        Table::new(&["what", "pictures/s", "CPU ms/picture", "answer p50 / p95 ms", "resident MB"]);
    let number = |name: &str| load[name].as_f64().unwrap();
    table.row(&[
        "bare loop, one thread".into(),
        format!("{:.0}", of("pictures_per_s")),
        format!("{theirs:.2}"),
        format!("- / {:.1}", of("p95_ms")),
        "-".into(),
    ]);
    table.row(&[
        "sorterd, two workers, arm on the same machine".into(),
        format!("{:.0}", number("per_second")),
        format!("{ours:.2}"),
        format!("{:.1} / {:.1}", number("p50_ms"), number("p95_ms")),
        format!("{:.1} (idle {:.1})", after.rss_kb as f64 / 1024.0, idle.rss_kb as f64 / 1024.0),
    ]);
    println!("{}", table.text());
    println!("vectors a second, one thread: {:.0}\n", of("vectors_per_s"));
    let ratio = number("per_second") / of("pictures_per_s");
    let mut verdict = |what: &str, found: f64, target: f64, more: bool, unit: &'static str| {
        verdicts.push(Verdict { what: format!("sorterd: {what}"), found, target, more, unit });
    };
    verdict("CPU a picture / bare loop", ours / theirs, 1.5, false, "x");
    verdict("pictures/s / bare loop on one thread", ratio, 0.5, true, "x");
    assert!(sorter.daemon.term().success());
}

//! What the daemons cost while nothing happens: memory, CPU, wake-ups; and how large they are.

use std::time::Duration;

use e2e::broker::Broker;
use e2e::config::{End, Mqfwd, S3put};
use e2e::daemon::Daemon;
use e2e::depot::Depot;
use e2e::env;
use e2e::scratch::Scratch;
use e2e::table::Table;

use crate::Verdict;

const WATCH: Duration = Duration::from_secs(30);

pub fn run(verdicts: &mut Vec<Verdict>) {
    println!("\nIdle for {} s, connected to a broker, keep-alive 30 s\n", WATCH.as_secs());
    let scratch = Scratch::new("idle");
    let broker = Broker::start(&scratch, "broker");
    let mut daemons = vec![
        Daemon::new(&scratch, "mqfwd", "mqfwd", &Mqfwd::new(End::Broker(broker.port), broker.port, 1).toml()),
        Daemon::new(
            &scratch,
            "s3put",
            "s3put",
            &S3put::to_dir(End::Broker(broker.port), &scratch.dir("out")).toml(),
        ),
    ];
    let depot = Depot::new(&scratch, "depot");
    daemons.push(depot.server(&scratch, "depotd", "").0);
    match faced_still(broker.port) {
        Some(toml) => daemons.push(Daemon::new(&scratch, "faced", "faced", &toml)),
        None => println!("skipped: idle faced: the photograph can't be fetched"),
    }
    for daemon in &mut daemons {
        daemon.start_ready();
    }
    std::thread::sleep(Duration::from_secs(3));
    let before: Vec<_> = daemons.iter().map(Daemon::usage).collect();
    std::thread::sleep(WATCH);
    let mut table = Table::new(&["daemon", "resident MB", "wake-ups/min", "CPU ms/min"]);
    for (daemon, before) in daemons.iter().zip(before) {
        let now = daemon.usage();
        let minute = 60.0 / WATCH.as_secs_f64();
        let rss = now.rss_kb as f64 / 1024.0;
        let wakes = (now.wakeups - before.wakeups) as f64 * minute;
        let cpu = (now.cpu_ms - before.cpu_ms) as f64 * minute;
        table.row(&[daemon.name.clone(), format!("{rss:.1}"), format!("{wakes:.0}"), format!("{cpu:.0}")]);
        if daemon.name != "faced" {
            let what = format!("{} idle resident memory", daemon.name);
            verdicts.push(Verdict { what, found: rss, target: 6.0, more: false, unit: "MB" });
        }
    }
    println!("{}", table.text());
}

/// `faced` in front of a scene where nothing moves, at 15 fps: what a quiet corridor costs.
fn faced_still(port: u16) -> Option<String> {
    let photo = e2e::picture::astronaut().ok()?;
    Some(e2e::config::faced(port, &[("corridor", &crate::faced::still_source(&photo), "")], "", ""))
}

pub fn sizes(verdicts: &mut Vec<Verdict>) {
    println!("\nBinaries\n");
    let mut table = Table::new(&["binary", "MB"]);
    for name in ["mqfwd", "s3put", "sideloadd", "sideload", "otad", "depotd", "faced"] {
        let mb = env::bin(name).metadata().unwrap().len() as f64 / 1024.0 / 1024.0;
        table.row(&[name.into(), format!("{mb:.2}")]);
        if name != "faced" {
            verdicts.push(Verdict {
                what: format!("{name} binary"),
                found: mb,
                target: 3.0,
                more: false,
                unit: "MB",
            });
        }
    }
    println!("{}", table.text());
}

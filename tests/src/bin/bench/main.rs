//! `make bench`: the daemons beside the tools they replace, measured in the same run on this machine.
//!
//! Environment: EDGE_BIN_DIR (release binaries), BENCH="forward store faced spyglass sideload ota depot sorter idle size" for a part,
//! BENCH_N to scale the number of messages (1.0).
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod depot;
mod faced;
mod forward;
mod idle;
mod ota;
mod sideload;
mod sorter;
mod spyglass;
mod store;

use e2e::table::Table;

/// A measured figure beside its target, for the list at the end.
pub struct Verdict {
    pub what: String,
    pub found: f64,
    pub target: f64,
    /// Whether more is better.
    pub more: bool,
    pub unit: &'static str,
}

impl Verdict {
    fn met(&self) -> bool {
        if self.more { self.found >= self.target } else { self.found <= self.target }
    }
}

fn main() {
    let wanted = std::env::var("BENCH")
        .unwrap_or_else(|_| "forward store faced spyglass sideload ota depot sorter idle size".into());
    let mut verdicts = Vec::new();
    for part in wanted.split_whitespace() {
        match part {
            "forward" => forward::run(&mut verdicts),
            "store" => store::run(&mut verdicts),
            "faced" => faced::run(&mut verdicts),
            "spyglass" => spyglass::run(&mut verdicts),
            "sideload" => sideload::run(&mut verdicts),
            "ota" => ota::run(&mut verdicts),
            "depot" => depot::run(&mut verdicts),
            "sorter" => sorter::run(&mut verdicts),
            "idle" => idle::run(&mut verdicts),
            "size" => idle::sizes(&mut verdicts),
            other => {
                panic!(
                    "BENCH names parts out of: forward store faced spyglass sideload ota depot sorter idle size; not {other}"
                )
            }
        }
    }
    println!("\nAgainst the targets\n");
    let mut table = Table::new(&["what", "found", "target", ""]);
    for v in &verdicts {
        let sign = if v.more { ">=" } else { "<=" };
        let met = if v.met() { "met" } else { "MISSED" };
        let cell = |x: f64| format!("{x:.2} {}", v.unit);
        table.row(&[v.what.clone(), cell(v.found), format!("{sign} {}", cell(v.target)), met.into()]);
    }
    println!("{}", table.text());
}

/// Scales a number of messages by BENCH_N.
pub fn scaled(n: u64) -> u64 {
    let factor = std::env::var("BENCH_N").ok().and_then(|v| v.parse::<f64>().ok()).unwrap_or(1.0);
    ((n as f64 * factor) as u64).max(20)
}

//! `wrk`: runs it, and reads what it prints.

use std::path::Path;
use std::process::Command;

use e2e::env;

/// What came of a round.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    /// Answers, of all statuses below 400.
    pub requests: f64,
    /// Answers a second.
    pub rate: f64,
    /// Bytes of the answers a second, heads included, in 10^6.
    pub mb_s: f64,
    /// Time of an answer: of half of them, and of 99 %, in ms.
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// Asks `url` for the seconds of a round over so many connections. Panics if an answer is an error.
pub fn load(url: &str, connections: u32, tags: Option<&str>, script: Option<&Path>) -> Load {
    let mut wrk = Command::new("wrk");
    let threads = connections.min(2);
    wrk.arg(format!("-t{threads}")).arg(format!("-c{connections}")).arg("--latency");
    wrk.arg(format!("-d{}s", super::round_s()));
    if let Some(tags) = tags {
        wrk.arg("-H").arg(format!("If-None-Match: {tags}"));
    }
    if let Some(script) = script {
        wrk.arg("-s").arg(script);
    }
    let said = env::run(wrk.arg(url));
    read(&said).unwrap_or_else(|| panic!("wrk said of {url}:\n{said}"))
}

/// `None`: there were errors, or it can't be read.
fn read(said: &str) -> Option<Load> {
    if said.contains("Non-2xx") || said.contains("Socket errors") {
        return None;
    }
    let after = |label: &str| said.lines().find_map(|line| line.trim().strip_prefix(label)).map(str::trim);
    let requests = said.lines().find(|line| line.contains(" requests in "))?;
    Some(Load {
        requests: requests.split_whitespace().next()?.parse().ok()?,
        rate: after("Requests/sec:")?.parse().ok()?,
        mb_s: unit(
            after("Transfer/sec:")?,
            &[("GB", 1024.0 * MIB), ("MB", MIB), ("KB", MIB / 1024.0), ("B", 1e-6)],
        )?,
        p50_ms: unit(after("50%")?, TIMES)?,
        p99_ms: unit(after("99%")?, TIMES)?,
    })
}

/// wrk's MB, in 10^6 bytes.
const MIB: f64 = 1.048_576;
const TIMES: &[(&str, f64)] = &[("us", 0.001), ("ms", 1.0), ("s", 1000.0), ("m", 60_000.0)];

fn unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = units.iter().find(|(name, _)| *name == &text[digits.len()..])?.1;
    Some(digits.parse::<f64>().ok()? * factor)
}

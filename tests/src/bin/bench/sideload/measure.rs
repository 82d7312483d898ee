//! One run of a tool: how long, how many bytes on the cable, how much memory at either end.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use e2e::table::percentile;

use super::link::Link;

const CLIENT: usize = 0;
const SERVER: usize = 1;

/// What a run took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub seconds: f64,
    pub wire: f64,
    /// Of the largest process of each end, MB.
    pub client_mb: f64,
    pub server_mb: f64,
}

impl Cost {
    /// The median of each figure; of memory the most.
    pub fn median(runs: &[Cost]) -> Cost {
        let pick = |p: f64, f: fn(&Cost) -> f64| percentile(&mut runs.iter().map(f).collect::<Vec<_>>(), p);
        Cost {
            seconds: pick(50.0, |c| c.seconds),
            wire: pick(50.0, |c| c.wire),
            client_mb: pick(100.0, |c| c.client_mb),
            server_mb: pick(100.0, |c| c.server_mb),
        }
    }
}

/// Runs the command to its end. What others left to be written goes to the disk before.
pub fn measure(link: &Link, command: &mut Command, server: u32) -> Cost {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    rustix::fs::sync();
    // Begin the server's peak anew; without the right to, it is the one since its start.
    let _ = std::fs::write(format!("/proc/{server}/clear_refs"), "5");
    let mut ends = Ends::default();
    ends.seen.insert(server, Some(SERVER));
    ends.look();
    let before = link.bytes();
    let start = Instant::now();
    let child = command.spawn().unwrap_or_else(|e| panic!("can't start {command:?}: {e}"));
    ends.seen.insert(child.id(), Some(CLIENT));
    let done = AtomicBool::new(false);
    let (output, seconds) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                ends.look();
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let output = child.wait_with_output().unwrap();
        done.store(true, Ordering::Relaxed);
        (output, start.elapsed().as_secs_f64())
    });
    ends.look();
    let status = output.status;
    assert!(status.success(), "{command:?}: {status}\n{}", String::from_utf8_lossy(&output.stderr));
    let mb = |end: usize| ends.peaks[end] as f64 / 1024.0;
    let wire = (link.bytes() - before) as f64;
    Cost { seconds, wire, client_mb: mb(CLIENT), server_mb: mb(SERVER) }
}

/// The processes of both ends, and the highest resident set among each end's, kB.
#[derive(Default)]
struct Ends {
    /// What is known of a process: the end it belongs to, if any.
    seen: HashMap<u32, Option<usize>>,
    peaks: [u64; 2],
}

impl Ends {
    /// Looks for new processes (a child belongs where its parent does), then at the memory of each.
    fn look(&mut self) {
        for pid in pids() {
            if !self.seen.contains_key(&pid) {
                let end = parent(pid).and_then(|parent| self.seen.get(&parent).copied().flatten());
                self.seen.insert(pid, end);
            }
        }
        for (pid, end) in &self.seen {
            let Some(end) = *end else { continue };
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            // Between fork and exec a child still is this program.
            if !matches!(field("Name:"), Some("bench" | "ip")) {
                let hwm = field("VmHWM:").and_then(|v| v.split(' ').next()).and_then(|v| v.parse().ok());
                self.peaks[end] = self.peaks[end].max(hwm.unwrap_or(0));
            }
        }
    }
}

fn pids() -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids: Vec<u32> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids
}

fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
}

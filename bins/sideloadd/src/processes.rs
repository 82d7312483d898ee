//! The application's processes: all descendants of this one, which is their subreaper. Whoever calls `setsid` or forks
//! twice becomes a child of ours when its parent ends; the daemon starts nothing else.
//!
//! Where they are looked for: in /proc; where that hides one (`ProtectProc=invisible`, `hidepid=2`: who can't be looked
//! into, as ssh-agent), in the lists of children there, which hide nobody; where /proc is not there or another
//! namespace's, by asking the kernel for our children, number by number.
//! Invariant: a number is signalled only if it is a descendant's, never because another namespace's /proc shows it.
//! Never: decides when (see [`crate::core`]); blocks.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitOptions};

use crate::core::Exit;

/// How often [`Processes::kill`] looks again at once.
const KILL_ROUNDS: usize = 8;
/// So many numbers from the first process's own on are asked for in every call: most children have one of these.
const ASK_NEAR: i32 = 512;
/// How long one call asks for children number by number.
const ASK_TIME: Duration = Duration::from_millis(20);
/// No kernel gives a higher number (`PID_MAX_LIMIT`).
const PID_MAX: i32 = 4 << 20;
/// So many are named; the others are counted.
const NAMED_MAX: usize = 5;

/// What came of one start of the application.
#[derive(Debug, Default)]
pub struct Processes {
    /// Its first process, which leads its group.
    leader: Option<Pid>,
    /// The last number that was asked for.
    asked: i32,
    /// Who lived at the last look.
    known: Vec<i32>,
}

impl Processes {
    /// Those of the application that this process leads.
    #[must_use]
    pub fn of(leader: u32) -> Processes {
        let leader = i32::try_from(leader).ok().and_then(Pid::from_raw);
        let asked = leader.map_or(0, |pid| pid.as_raw_nonzero().get() - 1);
        Processes { leader, asked, known: Vec::new() }
    }

    /// Asks the application to end: TERM, once to each of its processes.
    ///
    /// The group gets it at one moment; what left the group (`setsid`) gets it one by one.
    pub fn terminate(&self) {
        self.signal_group(Signal::TERM);
        let group = self.leader.map_or(0, |pid| pid.as_raw_nonzero().get());
        signal_each(descendants().iter().filter(|p| p.group != group), Signal::TERM);
    }

    /// Ends every descendant of this process with KILL. One that forks all the time may still get away with a child, and
    /// not all may be found at once: call it again until [`any_descendants`] says that none is left.
    pub fn kill(&mut self) {
        let mut before = std::mem::take(&mut self.known);
        for round in 0..KILL_ROUNDS {
            let living: Vec<Process> = descendants().into_iter().filter(|p| !p.ended).collect();
            // Who had the signals in an earlier round is on its way out, or can't be helped.
            if round > 0 && living.iter().all(|p| self.known.contains(&p.pid)) {
                break;
            }
            self.known = living.iter().map(|p| p.pid).collect();
            // Who is stopped can't fork, so that the second look finds who was born during the first.
            self.signal_group(Signal::STOP);
            signal_each(living.iter(), Signal::STOP);
            // The group also where nothing shows its processes.
            self.signal_group(Signal::KILL);
            signal_each(descendants().iter(), Signal::KILL);
        }
        if self.known.is_empty() && any_descendants() {
            before.retain(|pid| lives(*pid));
            self.known = self.ask_for_children();
            self.known.extend(before);
            self.known.sort_unstable();
            self.known.dedup();
            for pid in self.known.iter().filter_map(|pid| Pid::from_raw(*pid)) {
                // It may have ended meanwhile: then it needs no signal.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Who the last [`Processes::kill`] could not end: `pid 7 (cat), pid 9`.
    #[must_use]
    pub fn left(&self) -> String {
        let left: Vec<i32> = self.known.iter().copied().filter(|pid| lives(*pid)).collect();
        if left.is_empty() {
            return "a process that /proc does not show".to_owned();
        }
        let ours = proc_is_ours();
        let name = |pid: &i32| {
            let comm = std::fs::read(format!("/proc/{pid}/comm")).ok().filter(|_| ours).unwrap_or_default();
            match String::from_utf8_lossy(&comm).trim_end() {
                "" => format!("pid {pid}"),
                name => format!("pid {pid} ({})", name.escape_default()),
            }
        };
        let mut text = left.iter().take(NAMED_MAX).map(name).collect::<Vec<_>>().join(", ");
        if left.len() > NAMED_MAX {
            text += &format!(" and {} more", left.len() - NAMED_MAX);
        }
        text
    }

    /// Signals the group of the first process, as long as a child of ours is in it: then its number can't be anybody
    /// else's.
    fn signal_group(&self, signal: Signal) {
        if let Some(group) = self.leader
            && !matches!(waits(WaitId::Pgid(Some(group))), Err(rustix::io::Errno::CHILD))
        {
            // All of it may have ended, or be somebody whom we may not signal.
            let _ = rustix::process::kill_process_group(group, signal);
        }
    }

    /// Living children of ours, by asking for one number after the other: those near the first process's, then others from
    /// where the last call ended. It needs no /proc, and can't take anybody else for a child. A child's own children are
    /// ours when it has ended, so that their numbers come up again.
    fn ask_for_children(&mut self) -> Vec<i32> {
        let max = std::fs::read_to_string("/proc/sys/kernel/pid_max").ok();
        let max = max.and_then(|text| text.trim().parse().ok()).unwrap_or(PID_MAX);
        let start = Instant::now();
        let first = self.leader.map_or(1, |pid| pid.as_raw_nonzero().get());
        let mut found: Vec<i32> = (first..first.saturating_add(ASK_NEAR)).filter(|pid| lives(*pid)).collect();
        for count in 1..=max {
            self.asked = if (1..max).contains(&self.asked) { self.asked + 1 } else { 1 };
            if lives(self.asked) {
                found.push(self.asked);
            }
            if count % 64 == 0 && start.elapsed() > ASK_TIME {
                break;
            }
        }
        found
    }
}

/// Makes this process the one that the application's orphans are given to. Call it before the first start.
///
/// # Errors
/// What `prctl(2)` says.
pub fn adopt_orphans() -> io::Result<()> {
    // Any process id: the kernel only looks whether there is one.
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// What an operator should know of how processes are found here.
#[must_use]
pub fn warnings() -> Vec<&'static str> {
    let mut warnings = Vec::new();
    if !proc_is_ours() {
        warnings.push(
            "/proc does not show our own processes (it is not mounted, or another PID namespace's): what an application \
             leaves in the background is found slowly, and does not hear TERM before KILL; mount one (unshare \
             --mount-proc, docker without --pid)",
        );
    }
    if rustix::process::getpid().as_raw_nonzero().get() == 1 {
        warnings.push(
            "we are process 1 of this container: what somebody starts by `docker exec` and leaves in the background is \
             taken for the application's, and ends with it; start the container with --init",
        );
    }
    warnings
}

/// Children that have ended since the last call.
pub fn reap() -> Vec<(u32, Exit)> {
    let mut ended = Vec::new();
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        let exit = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => continue,
        };
        ended.push((pid.as_raw_nonzero().get().unsigned_abs(), exit));
    }
    ended
}

/// Whether a descendant is left, one that waits to be reaped included.
#[must_use]
pub fn any_descendants() -> bool {
    // ECHILD: no child, so no descendant either, since orphans become children.
    !matches!(waits(WaitId::All), Err(rustix::io::Errno::CHILD))
}

/// `Ok(true)`: one of these children waits to be reaped; `ECHILD`: there is none.
fn waits(id: WaitId<'_>) -> rustix::io::Result<bool> {
    let flags = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(rustix::process::waitid(id, flags)?.is_some())
}

/// Whether it is a child of ours that has not ended.
fn lives(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| matches!(waits(WaitId::Pid(pid)), Ok(false)))
}

fn signal_each<'a>(processes: impl Iterator<Item = &'a Process>, signal: Signal) {
    for pid in processes.filter_map(|process| Pid::from_raw(process.pid)) {
        // It may have ended meanwhile: then it needs no signal.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// A descendant.
#[derive(Clone, Copy, Debug)]
struct Process {
    pid: i32,
    group: i32,
    /// It is a zombie, which only waits to be reaped.
    ended: bool,
}

/// All descendants that /proc gives away; parents before their children.
fn descendants() -> Vec<Process> {
    if !proc_is_ours() {
        return Vec::new();
    }
    let mut shown = by_parent();
    let (mut seen, mut found) = (HashSet::new(), Vec::new());
    let mut next = 0;
    let mut parent = rustix::process::getpid().as_raw_nonzero().get();
    loop {
        let mut children = shown.remove(&parent).unwrap_or_default();
        let listed = listed_children(parent);
        // Shown under another parent, it was given to this one after we had looked.
        children.retain(|process| seen.insert(process.pid));
        children.extend(listed.into_iter().filter(|pid| seen.insert(*pid)).map(hidden));
        found.append(&mut children);
        let Some(process): Option<&Process> = found.get(next) else { return found };
        parent = process.pid;
        next += 1;
    }
}

/// Whether /proc speaks of the processes that we can signal, by the numbers that we know them by.
fn proc_is_ours() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_status_of(&status, rustix::process::getpid().as_raw_nonzero().get())
}

/// `NSpid` has a number for each namespace from that of /proc to the process's own (`proc(5)`).
fn is_status_of(status: &str, pid: i32) -> bool {
    let pid = pid.to_string();
    let numbers = |key: &str| {
        status.lines().find_map(|line| Some(line.strip_prefix(key)?.split_whitespace().collect::<Vec<_>>()))
    };
    numbers("Pid:").is_some_and(|n| n == [&pid]) && numbers("NSpid:").is_none_or(|n| n == [&pid])
}

/// The processes that are shown, by their parent.
fn by_parent() -> HashMap<i32, Vec<Process>> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // The name of a process is any bytes.
        let stat = std::fs::read(entry.path().join("stat")).unwrap_or_default();
        if let Some((parent, process)) = parse_stat(pid, &String::from_utf8_lossy(&stat)) {
            children.entry(parent).or_default().push(process);
        }
    }
    children
}

/// The children of a process that is shown itself; they need not be. Kernels without `PROC_CHILDREN` list none.
fn listed_children(parent: i32) -> Vec<i32> {
    let mut pids = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        pids.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    pids
}

/// What the kernel says of a process that /proc hides.
fn hidden(pid: i32) -> Process {
    let group = rustix::process::getpgid(Pid::from_raw(pid)).map_or(0, |group| group.as_raw_nonzero().get());
    let ended = Pid::from_raw(pid).is_some_and(|pid| matches!(waits(WaitId::Pid(pid)), Ok(true)));
    Process { pid, group, ended }
}

/// Parent, group and state from `/proc/PID/stat` (`proc(5)`).
fn parse_stat(pid: i32, stat: &str) -> Option<(i32, Process)> {
    // The name in parentheses may hold parentheses and blanks.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    Some((parent, Process { pid, group, ended }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_process_may_hold_anything() {
        let (parent, process) = parse_stat(9, "9 (a) Z 1 (b) S 7 8 8 0 -1").unwrap();
        assert_eq!((parent, process.group, process.ended), (7, 8, false));
        assert!(parse_stat(9, "9 (x) Z 1 9 9").unwrap().1.ended);
        assert!(parse_stat(9, "").is_none());
    }

    #[test]
    fn who_is_left_is_named() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        let left = Processes { known: vec![pid], ..Processes::default() }.left();
        let many = Processes { known: vec![pid; 7], ..Processes::default() }.left();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(left, format!("pid {pid} (sleep)"));
        assert!(many.ends_with("(sleep) and 2 more"), "{many}");
        assert!(!Processes { known: vec![pid], ..Processes::default() }.left().contains("pid"));
    }

    #[test]
    fn another_namespaces_proc_is_told_from_ours() {
        assert!(is_status_of("Name:\tx\nPid:\t7\nPPid:\t1\nNSpid:\t7\n", 7));
        assert!(is_status_of("Pid:\t7\n", 7), "a kernel without PID namespaces");
        assert!(!is_status_of("Pid:\t7\nNSpid:\t7\n", 8));
        assert!(!is_status_of("Pid:\t1\nNSpid:\t1\t1\n", 1), "the same number, by chance");
        assert!(!is_status_of("", 7));
        assert!(proc_is_ours());
    }
}

//! The crash matrix: an update is killed before every system call that changes something (which is also after the one
//! before it), and each of these calls is made to fail; then recovery runs, and is itself killed at every step.
//!
//! After each there must be exactly the old or the new generation, whole, with all apps alike; no mark ahead of what was
//! committed; and a second attempt must succeed.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test with its own main")]

#[path = "common/scenario.rs"]
mod scenario;
#[path = "common/trace.rs"]
mod trace;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use edge::release::Timestamp;
use otad::install::{self, Ending, HighWater, Record, Recovered, State};
use scenario::manifest;
use trace::{Call, Fault};

const TESTS: [(&str, fn()); 4] = [
    ("killed_at_every_step_there_is_the_old_generation_or_the_new_one", killed_at_every_step),
    ("whatever_call_fails_the_device_keeps_a_whole_generation", whatever_call_fails),
    ("memory_does_not_grow_with_the_content", memory_does_not_grow),
    ("each_step_is_durable_before_the_next", each_step_is_durable),
];

/// The tests, or the program that they trace: it must have one thread, since strace counts calls per thread.
fn main() {
    if let Some((dir, command)) = trace::command() {
        let done = match &command[..] {
            "recover" => scenario::recover(&dir).map(drop),
            command => scenario::run(&dir, command),
        };
        trace::tell_peak(&dir);
        std::process::exit(i32::from(done.is_err()));
    }
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let mut passed = 0;
    for (name, test) in TESTS {
        if wanted.is_empty() || wanted.iter().any(|part| name.contains(part)) {
            // A failure panics, and ends the program with 101.
            test();
            println!("test {name} ... ok");
            passed += 1;
        }
    }
    println!("\ntest result: ok. {passed} passed; 0 failed");
}

/// What is tried at each of its steps.
struct Case {
    name: &'static str,
    /// What is done before.
    before: &'static [&'static str],
    /// The command under test.
    command: &'static str,
    /// Epochs that `current` may have at any instant; 0: it does not exist.
    epochs: [u64; 2],
    /// The epoch in the end, and the mark.
    end: (u64, u64),
}

const CASES: [Case; 5] = [
    Case { name: "small", before: &[], command: "small", epochs: [0, 1], end: (1, 1) },
    Case { name: "update", before: &["first"], command: "second", epochs: [1, 2], end: (2, 2) },
    Case { name: "bad", before: &["first"], command: "bad", epochs: [1, 2], end: (1, 1) },
    Case { name: "manual", before: &["first", "second"], command: "manual", epochs: [2, 1], end: (1, 2) },
    Case {
        name: "swap-back",
        before: &["first", "trial", "recover", "recover", "recover"],
        command: "recover",
        epochs: [2, 1],
        end: (1, 1),
    },
];

/// A folder of its own, removed when the test is over.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        let memory = Path::new("/dev/shm").is_dir().then(|| PathBuf::from("/dev/shm"));
        let path =
            memory.unwrap_or_else(std::env::temp_dir).join(format!("otad-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The folder before the command under test.
fn prepare(case: &Case, top: &Path) -> PathBuf {
    let base = top.join(format!("{}-base", case.name));
    fs::create_dir(&base).unwrap();
    for command in case.before {
        match *command {
            "recover" => drop(scenario::recover(&base).unwrap()),
            command => scenario::run(&base, command).unwrap(),
        }
    }
    base
}

/// With its hard links, and nothing that was there.
fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// The epoch that `current` names, all apps alike; 0: nothing.
fn epoch_of(case: &Case, dir: &Path) -> u64 {
    let Ok(target) = fs::read_link(dir.join("current")) else { return 0 };
    let epoch = (1..=2).find(|epoch| {
        let hash = manifest(*epoch, case.name == "small").hash().to_string();
        target.to_str().unwrap().ends_with(&hash[..8])
    });
    let epoch = epoch.unwrap_or_else(|| panic!("{}: current names {}", case.name, target.display()));
    let current = dir.join("current");
    assert_eq!(fs::read(current.join("Tool/Tool")).unwrap(), scenario::content("Tool", epoch));
    if case.name != "small" {
        assert_eq!(fs::read(current.join("image/image")).unwrap(), scenario::content("image", epoch));
        assert_eq!(fs::read_to_string(current.join("tree/run")).unwrap(), format!("{epoch} 0"));
        assert_eq!(fs::read_to_string(current.join("tree/lib/again")).unwrap(), format!("{epoch} 1"));
        assert_eq!(fs::read_to_string(current.join("same/bin/3")).unwrap(), "same 3");
    }
    epoch
}

/// No mark is ahead of what the state calls committed. Read as it lies there, before anything mends it.
fn check_marks(case: &Case, dir: &Path) {
    let marks = fs::read(dir.join("highwater")).ok();
    let marks = marks.map(|bytes| install::decode::<HighWater>(&bytes).expect("highwater is whole"));
    let record =
        fs::read(dir.join("state")).ok().map(|bytes| Record::decode(&bytes).expect("state is whole"));
    let mark = marks.map_or(0, |marks| marks.get("tool", "prod").epoch);
    let before = if case.name == "small" { 0 } else { 1 };
    if mark > before {
        let history = fs::read(dir.join("history")).ok();
        let history: install::History =
            history.map_or_else(Default::default, |b| install::decode(&b).unwrap());
        let mut endings = history.iter().chain(record.as_ref().and_then(|record| record.last.as_ref()));
        assert!(
            endings.any(|e| e.ending == Ending::Committed && e.subject.apps.iter().any(|a| a.epoch == mark))
        );
    }
}

/// What must hold whatever happened before.
fn examine(case: &Case, dir: &Path) {
    assert!(case.epochs.contains(&epoch_of(case, dir)));
    check_marks(case, dir);
    scenario::recover(dir).unwrap();
    let epoch = epoch_of(case, dir);
    assert!(case.epochs.contains(&epoch));
    let (mut store, recovery) = scenario::open(dir).unwrap();
    assert_eq!(recovery.notes, Vec::<String>::new());
    let link = fs::read_link(dir.join("current")).ok();
    match *store.state() {
        State::Settled { current } => {
            assert_eq!(current.map(|id| PathBuf::from(format!("gens/{id}"))), link);
            let committed = if case.name == "manual" { 2 } else { epoch };
            assert_eq!(store.high_water("tool", "prod").epoch, committed);
            current.iter().for_each(|id| assert_eq!(store.verify(id).unwrap(), []));
        }
        State::Trial { to, .. } => {
            assert_eq!(
                recovery.trial,
                Recovered::Trial { to, tries: if case.name == "swap-back" { 4 } else { 1 } }
            );
            assert!(store.high_water("tool", "prod").epoch < epoch);
            assert_eq!(store.verify(&to).unwrap(), []);
            if case.end.0 == epoch {
                store.commit(Timestamp(20)).unwrap();
            } else {
                store.roll_back("again", true, Timestamp(20)).unwrap();
            }
        }
    }
    let settled =
        store.current().is_some_and(|(_, m)| m.get("Tool").is_some_and(|item| item.epoch == case.end.0));
    let bad = store.is_quarantined(&manifest(2, false).hash());
    drop(store);
    if case.name == "bad" && !bad {
        scenario::run(dir, "bad").unwrap();
    } else if !settled {
        scenario::run(dir, case.command).unwrap();
    }
    finally(case, dir);
}

fn finally(case: &Case, dir: &Path) {
    let (mut store, _) = scenario::open(dir).unwrap();
    store.gc(&[]).unwrap();
    assert_eq!((epoch_of(case, dir), store.high_water("tool", "prod").epoch), case.end);
    assert!(matches!(store.state(), State::Settled { .. }));
    assert_eq!(
        store.is_quarantined(&manifest(2, false).hash()),
        matches!(case.name, "bad" | "manual" | "swap-back")
    );
    for folder in ["", "gens", "blobs"] {
        for entry in fs::read_dir(dir.join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with('.') && !name.ends_with(".part"), "{name} was left");
        }
    }
}

/// Does `work` for all calls, with one thread a core.
fn for_all(calls: &[Call], work: impl Fn(usize, &Call, usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..std::thread::available_parallelism().map_or(2, usize::from).min(8) {
            let (next, work) = (&next, &work);
            scope.spawn(move || {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(call) = calls.get(at) else { return };
                    work(at, call, thread);
                }
            });
        }
    });
}

fn killed_at_every_step() {
    if !trace::available("killed_at_every_step") {
        return;
    }
    let scratch = Scratch::new("crash");
    let (mut points, again) = (0, AtomicUsize::new(0));
    for case in &CASES {
        let base = prepare(case, &scratch.0);
        let work = |name: String| scratch.0.join(format!("{}-{name}", case.name));
        let record = work("record".into());
        copy(&base, &record);
        let calls = trace::record(&record, case.command);
        for_all(&calls, |at, call, thread| {
            let dir = work(format!("kill-{thread}"));
            copy(&base, &dir);
            trace::inject(&dir, case.command, call, Fault::Kill);
            // For some, recovery is killed at each of its steps too.
            if at % 9 == 4 {
                let (state, again_dir) = (work(format!("state-{thread}")), work(format!("again-{thread}")));
                copy(&dir, &state);
                copy(&dir, &again_dir);
                let steps = trace::record(&again_dir, "recover");
                for step in &steps {
                    copy(&state, &again_dir);
                    trace::inject(&again_dir, "recover", step, Fault::Kill);
                    // The try that was counted counts.
                    let counted = |dir: &Path| Record::decode(&fs::read(dir.join("state")).ok()?);
                    let tries = |record: Option<Record>| match record.map(|r| r.state) {
                        Some(State::Trial { tries, .. }) => tries,
                        _ => 0,
                    };
                    if tries(counted(&again_dir)) == tries(counted(&state)) {
                        examine(case, &again_dir);
                    }
                }
                again.fetch_add(steps.len(), Ordering::Relaxed);
            }
            examine(case, &dir);
        });
        println!("crash matrix: {}: {} points", case.name, calls.len());
        points += calls.len();
    }
    let again = again.into_inner();
    println!("crash matrix: {points} points of an update, {again} of a recovery after it");
    assert!(points > 200 && again > 50);
}

fn whatever_call_fails() {
    if !trace::available("whatever_call_fails") {
        return;
    }
    let scratch = Scratch::new("faults");
    let mut points = 0;
    for case in &CASES[..4] {
        let base = prepare(case, &scratch.0);
        let record = scratch.0.join("record");
        copy(&base, &record);
        let calls = trace::record(&record, case.command);
        for_all(&calls, |at, call, thread| {
            for fault in [Fault::Once(call.errno()), Fault::FromNowOn(call.errno())] {
                let dir = scratch.0.join(format!("{}-{thread}", case.name));
                copy(&base, &dir);
                let done = trace::inject(&dir, case.command, call, fault);
                let committed = epoch_of(case, &dir) == case.epochs[1] && case.end.0 == case.epochs[1];
                // The operator's decision is durable first, and is finished then.
                if call.is_sync() && !done && matches!(fault, Fault::Once(_)) && case.name != "manual" {
                    assert!(!committed, "{}: {at}: it failed, and yet it is there", case.name);
                }
                if done {
                    assert!(committed || case.name == "bad", "{}: {at}: {call:?}", case.name);
                }
                examine(case, &dir);
            }
        });
        points += 2 * calls.len();
    }
    println!("faults: {points} points");
}

/// The peak of a process of its own, as the kernel counted it.
fn memory_does_not_grow() {
    let scratch = Scratch::new("memory");
    let peak_kb = trace::peak_kb(&scratch.0.join("store"), "big");
    println!("memory: {peak_kb} kB at most for 64 MiB of file and 64 MiB of archive");
    assert!(peak_kb < 12 << 10);
}

/// A model of what a power cut may take: what was written and not flushed, names too.
fn each_step_is_durable() {
    if !trace::available("each_step_is_durable") {
        return;
    }
    let scratch = Scratch::new("order");
    for case in &CASES {
        let dir = prepare(case, &scratch.0);
        let calls = trace::record(&dir, case.command);
        let mut model = trace::Durable::default();
        calls.iter().for_each(|call| model.apply(call));
        println!("order: {}: {} renames looked at", case.name, model.renames);
        assert!(model.renames >= 4);
    }
}

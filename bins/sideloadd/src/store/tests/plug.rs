//! Where and how the disk fails in a test: the changes to it are counted.

use std::cell::Cell;
use std::io;

use super::super::disk::Step;

/// How it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process ends: nothing is done from here on.
    Stop,
    /// One change fails with EIO.
    Once,
    /// From here on what needs space fails with ENOSPC.
    Full,
}

thread_local! {
    static PLAN: Cell<Option<(u64, Fault)>> = const { Cell::new(None) };
    static HIT: Cell<bool> = const { Cell::new(false) };
}

/// After that many more changes.
pub fn set(plan: Option<(u64, Fault)>) -> Option<(u64, Fault)> {
    HIT.set(false);
    PLAN.replace(plan)
}

/// Whether it failed since it was set.
pub fn hit() -> bool {
    HIT.get()
}

pub fn step(step: Step) -> io::Result<()> {
    let Some((left, fault)) = PLAN.get() else { return Ok(()) };
    if left > 0 {
        PLAN.set(Some((left - 1, fault)));
        return Ok(());
    }
    if fault == Fault::Full && step == Step::Other {
        return Ok(());
    }
    if fault == Fault::Once {
        PLAN.set(None);
    }
    HIT.set(true);
    let full = rustix::io::Errno::NOSPC;
    Err(if fault == Fault::Full { full } else { rustix::io::Errno::IO }.into())
}

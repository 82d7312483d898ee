//! The few system calls that no safe crate in use wraps.
//!
//! Owns: every `unsafe` block of the project. Each carries its SAFETY comment.
//! Never: keeps state, interprets what it returns.
#![expect(unsafe_code, reason = "this is the one file that may; see STYLE.md")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Blocks `signals` in the calling thread (and in every thread it starts later) and returns a non-blocking,
/// close-on-exec `signalfd` that reports them.
///
/// Call it before any thread is started: a thread with the signals unblocked would still be killed by them.
///
/// # Errors
/// Whatever `pthread_sigmask(3)` or `signalfd(2)` return (`EMFILE`, `ENOMEM`; `EINVAL` for a number that is no signal).
pub fn signalfd(signals: &[i32]) -> io::Result<OwnedFd> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initialises the whole set it is given; the pointer is valid for writes.
    let mut set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    };
    for &signal in signals {
        // SAFETY: `set` is an initialised signal set; an invalid number is reported, not undefined.
        if unsafe { libc::sigaddset(&mut set, signal) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: both pointers are valid or null as the call allows; it changes only this thread's mask.
    let rc = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    if rc != 0 {
        return Err(io::Error::from_raw_os_error(rc));
    }
    // SAFETY: -1 asks for a new descriptor; `set` outlives the call.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call above returned this descriptor and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The descriptors 3 to 3 + `count` - 1, which the process inherited (`sd_listen_fds(3)`), made close-on-exec.
///
/// Call it once, for descriptors that nobody else in the process owns.
///
/// # Errors
/// `EBADF` for a number that is no open descriptor.
pub fn inherited_fds(count: u32) -> io::Result<Vec<OwnedFd>> {
    let mut fds = Vec::new();
    for at in 0..count {
        let raw = 3 + i32::try_from(at).map_err(io::Error::other)?;
        // SAFETY: fcntl on any number is defined; a closed one gives EBADF.
        if unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is open (the call above says so), and the service manager opened it for this process alone; the
        // caller takes it once.
        fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
    }
    Ok(fds)
}

/// Makes the process that `command` will start begin with no signal blocked, and end (by KILL) with the thread that
/// starts it.
///
/// The standard library hands the caller's signal mask down, and a daemon that reads its signals from a [`signalfd`]
/// has them blocked: its child would be deaf to TERM. Start it from a thread that lives as long as the daemon.
pub fn own_signals(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt as _;
    let before_exec = || {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` initialises the set that the second call reads; both are async-signal-safe.
        let rc = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut())
        };
        if rc != 0 {
            return Err(io::Error::from_raw_os_error(rc));
        }
        // SAFETY: takes integers only.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: it neither allocates nor locks.
    unsafe { command.pre_exec(before_exec) };
}

/// Lets the calling thread, and every thread that it starts later, wait for its turn (`SCHED_BATCH`): one that wakes up
/// does not interrupt a thread of the ordinary kind that is running. Its share of the CPU stays the same.
///
/// For work that an interactive or real-time neighbour must not feel. Call it before any thread is started.
///
/// # Errors
/// `EPERM` where a sandbox forbids it, `ENOSYS` with a C library that does not know it.
pub fn wait_for_a_turn() -> io::Result<()> {
    // SAFETY: a struct of integers (musl's has more of them than glibc's), for which zero is a value.
    let zero: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is valid for reads during the call; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const zero) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// At most `arenas` pools of memory for all threads together (`M_ARENA_MAX`), where the C library is glibc; else nothing.
///
/// It gives each new thread another pool, up to eight a CPU, and what was freed in one serves no other. A process whose
/// threads come and go grows by that for as long as it runs. Call it before any thread is started.
pub fn share_memory_pools(arenas: i32) {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: takes integers only. Refused is as good as not asked.
        let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, arenas) };
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = arenas;
}

/// Gives freed memory back to the system, where the C library is glibc; else nothing. It takes some milliseconds: for
/// after something large is gone.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: takes an integer only, and locks what it works on.
        let _ = unsafe { libc::malloc_trim(0) };
    }
}

/// Seconds that local time is ahead of UTC at a Unix time (`localtime_r(3)`, which reads `TZ` and `/etc/localtime`).
/// 0 where the C library can't say.
#[must_use]
pub fn local_offset_s(unix_s: i64) -> i64 {
    let mut parts = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // time_t has 32 bits on some machines, where a time beyond wraps to a wrong one: the offset is for show and windows.
    let time = unix_s as libc::time_t;
    // SAFETY: both pointers are valid; nobody changes the environment of this process, which the call reads.
    let known = unsafe { !libc::localtime_r(&time, parts.as_mut_ptr()).is_null() };
    if !known {
        return 0;
    }
    // SAFETY: zeroed is a valid `tm` (integers and a null pointer), and the call has filled it.
    let parts = unsafe { parts.assume_init() };
    #[allow(clippy::unnecessary_cast, reason = "a long has 32 bits on some machines")]
    let offset = parts.tm_gmtoff as i64;
    offset
}

/// A read-only mapping of a file's first bytes that other processes may write meanwhile; unmapped when dropped.
///
/// For memory that a foreign library reads in place. [`SharedMap::bytes`] is what it is given.
#[derive(Debug)]
pub struct SharedMap {
    start: std::ptr::NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is read-only here, belongs to no thread, and is unmapped once, by its only owner.
unsafe impl Send for SharedMap {}
// SAFETY: as above; nothing in it changes through a shared reference.
unsafe impl Sync for SharedMap {}

impl SharedMap {
    /// Maps the first `len` bytes of `fd`, a memory file whose seals forbid that it shrinks (`F_SEAL_SHRINK`): a
    /// mapping that could lose its pages would end this process with SIGBUS.
    ///
    /// # Errors
    /// `EINVAL` without that seal, for a file shorter than `len`, or for `len` 0; else what `mmap(2)` says.
    pub fn new(fd: &OwnedFd, len: usize) -> io::Result<SharedMap> {
        let seals = rustix::fs::fcntl_get_seals(fd)?;
        let size = rustix::fs::fstat(fd)?.st_size;
        let long_enough = usize::try_from(size).is_ok_and(|size| size >= len);
        if !seals.contains(rustix::fs::SealFlags::SHRINK) || !long_enough || len == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let raw = std::os::fd::AsRawFd::as_raw_fd(fd);
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, raw, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match std::ptr::NonNull::new(at.cast()) {
            Some(start) => Ok(SharedMap { start, len }),
            None => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// `len` bytes from `at`; `None` when they do not lie inside.
    ///
    /// Another process may write them at any time. Hand them on to code that takes bytes as they come, such as a
    /// picture's pixels; never parse them in place, never decide anything twice from them.
    pub fn bytes(&self, at: usize, len: usize) -> Option<&[u8]> {
        if at.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: the range lies inside the mapping, which lives as long as `self` and whose file cannot shrink (seals
        // are never taken back). A writer elsewhere makes the values arbitrary, and every value is a valid byte; the
        // users of this function hand the slice to C code and read nothing through it.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(at), len) })
    }
}

impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and no slice of it outlives `self`.
        let _ = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_started_later_wait_for_their_turn_too() {
        let policy = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            // After the name in parentheses; the policy is field 41, the state, field 3, is the first of these.
            stat.rsplit(')').next().unwrap().split_whitespace().nth(38).unwrap().to_owned()
        };
        let (ours, inherited) = std::thread::spawn(move || {
            wait_for_a_turn().unwrap();
            (policy(), std::thread::spawn(policy).join().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!((ours.as_str(), inherited.as_str()), ("3", "3"), "SCHED_BATCH is 3");
    }
}

//! Signals as a file descriptor, so that the poll sees them like any other input.
//!
//! Owns: the `signalfd`. Invariant: created before any thread, because the signals must be blocked in all of them.
//! Never: installs a handler, decides what a signal means (the daemon does).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

/// What a daemon is asked to do from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// `SIGTERM`: drain and stop.
    Term,
    /// `SIGINT` (Ctrl-C): drain and stop.
    Int,
    /// `SIGHUP`: read the configuration again.
    Hup,
    /// `SIGCHLD`: at least one child has ended (only with [`Signals::with_child`]).
    Child,
}

/// The signals of this process, as a [`mio`] source.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
}

/// `sizeof(struct signalfd_siginfo)`, fixed by the kernel's ABI; `ssi_signo` is its first field.
const SIGINFO_LEN: usize = 128;

impl Signals {
    /// Blocks TERM, INT and HUP and reports them from now on. Call it before the first thread is started.
    ///
    /// # Errors
    /// What `signalfd(2)` returns, as it is.
    pub fn new() -> io::Result<Signals> {
        let fd = crate::sys::signalfd(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
        Ok(Signals { fd })
    }

    /// The same with CHLD, for a daemon that runs programs.
    ///
    /// # Errors
    /// What `signalfd(2)` returns, as it is.
    pub fn with_child() -> io::Result<Signals> {
        let fd = crate::sys::signalfd(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGCHLD])?;
        Ok(Signals { fd })
    }

    /// The next pending signal, or `None` when there is none. Call it until it returns `None`.
    pub fn next_signal(&mut self) -> Option<Signal> {
        loop {
            let mut info = [0u8; SIGINFO_LEN];
            let n = rustix::io::read(&self.fd, &mut info).ok()?;
            if n < SIGINFO_LEN {
                return None;
            }
            match i32::from_ne_bytes([info[0], info[1], info[2], info[3]]) {
                libc::SIGTERM => return Some(Signal::Term),
                libc::SIGINT => return Some(Signal::Int),
                libc::SIGHUP => return Some(Signal::Hup),
                libc::SIGCHLD => return Some(Signal::Child),
                _ => {}
            }
        }
    }
}

impl Source for Signals {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).register(registry, token, interests)
    }
    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).reregister(registry, token, interests)
    }
    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        SourceFd(&self.fd.as_raw_fd()).deregister(registry)
    }
}

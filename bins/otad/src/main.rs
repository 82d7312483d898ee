//! `otad`: asks a package server what this device should run; installs it atomically; rolls back. Start-up only.
#![forbid(unsafe_code)]

fn main() {}

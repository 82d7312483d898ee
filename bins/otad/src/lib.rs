//! `otad`: asks a package server what this device should run; installs it atomically; rolls back.
#![forbid(unsafe_code)]

pub mod install;

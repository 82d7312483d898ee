//! `otad`: asks a package server what this device should run; installs it atomically; rolls back.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "a program's items are documented where they need to be")]

pub mod ask;
pub mod choose;
pub mod commands;
pub mod config;
pub mod core;
pub mod daemon;
pub mod fetch;
pub mod install;
pub mod ledger;
pub mod retry;
pub mod status;
pub mod thread;
pub mod units;
pub mod window;
pub mod worker;

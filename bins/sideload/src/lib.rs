//! `sideload`: the command line for `sideloadd`, on the developer's host.
#![forbid(unsafe_code)]

pub mod args;
pub mod client;
pub mod commands;
pub mod config;
pub mod dev;
pub mod output;
pub mod progress;
pub mod scan;
#[cfg(test)]
mod scratch;
pub mod sync;

//! sideloadd: receives an application's files over mutual TLS and runs, restarts, logs and kills it. Start-up only.
#![forbid(unsafe_code)]

fn main() {}

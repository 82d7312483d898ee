//! sideload: the command line for sideloadd. Start-up only.
#![forbid(unsafe_code)]

fn main() {}

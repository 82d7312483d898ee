//! `depotd`: the package server: publish, sign, resolve by device attributes, serve. Start-up only.
#![forbid(unsafe_code)]

fn main() {}

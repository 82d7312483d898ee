//! End-to-end tests: the real binaries against real brokers, S3 servers and files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod config;
mod disk;
mod garbage;
mod install;
mod launcher;
mod pipeline;
mod relay;
mod rig;
mod rules;
mod store;

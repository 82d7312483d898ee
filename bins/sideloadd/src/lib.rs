//! `sideloadd`: receives an application's files over mutual TLS, runs, restarts, logs and kills it.
#![forbid(unsafe_code)]

pub mod app;
pub mod config;
pub mod core;
pub mod jobs;
pub mod logs;
pub mod store;

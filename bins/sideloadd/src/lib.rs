//! `sideloadd`: receives an application's files over mutual TLS, runs, restarts, logs and kills it.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "a program's items are documented where they need to be")]

pub mod app;
pub mod config;
pub mod core;
pub mod daemon;
pub mod jobs;
pub mod logs;
pub mod naive_time;
pub mod processes;
pub mod routes;
pub mod service;
pub mod status;
pub mod store;
pub mod supervisor;
pub mod turn;

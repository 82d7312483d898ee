//! `depotd`: the package server: publish, sign, resolve by device attributes, serve.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "a program's items are documented where they need to be")]

pub mod answers;
pub mod aws;
pub mod bundle;
pub mod cache;
pub mod catalog;
pub mod commands;
pub mod config;
pub mod core;
pub mod daemon;
pub mod etag;
pub mod growing;
pub mod query;
pub mod range;
pub mod reply;
pub mod send;
pub mod service;
pub mod sign;
pub mod status;
pub mod store;
pub mod workers;

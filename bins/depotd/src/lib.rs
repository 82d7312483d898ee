//! `depotd`: the package server: publish, sign, resolve by device attributes, serve.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "a program's items are documented where they need to be")]

pub mod aws;
pub mod catalog;
pub mod commands;
pub mod config;
pub mod etag;
pub mod query;
pub mod range;
pub mod reply;
pub mod sign;
pub mod store;

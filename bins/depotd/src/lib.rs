//! `depotd`: the package server: publish, sign, resolve by device attributes, serve.
#![forbid(unsafe_code)]

pub mod aws;
pub mod catalog;
pub mod commands;
pub mod sign;
pub mod store;

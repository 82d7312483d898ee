//! The rig for end-to-end tests, the demo and the bench: starts real brokers, S3 servers and the
//! daemons under test on free ports and in folders of their own, breaks their connections, kills
//! them, and keeps an independent account of what was acknowledged and what arrived.
//!
//! Owns every process it starts and ends it by pid. Nothing here uses the daemons' own library: what
//! checks the daemons must not share their mistakes.
#![forbid(unsafe_code)]
// The rig is test code: a broken expectation is a panic, which is how a test fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod aws;
pub mod broker;
pub mod config;
pub mod counter;
pub mod daemon;
pub mod depot;
pub mod env;
pub mod mqtt;
pub mod net;
pub mod ota;
pub mod packages;
pub mod panel;
pub mod picture;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod publisher;
pub mod scratch;
pub mod shim;
pub mod sideload;
pub mod sorter;
pub mod spyglass;
pub mod subscriber;
pub mod table;
pub mod websocket;

//! `sorterd` as a library, for its tests and fuzz targets: the inference service of a sorting arm.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "a program's items are documented where they need to be")]

/// Each table of the file has a file of its own.
pub mod config {
    pub mod store;
    pub mod vision;
}
pub mod core;
pub mod db;
pub mod found;
pub mod geometry;
pub mod message;
pub mod panel;
pub mod plan;
pub mod shelf;
pub mod uploads;
pub mod vision;
pub mod ws;

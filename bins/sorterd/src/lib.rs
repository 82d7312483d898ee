//! `sorterd` as a library, for its tests and fuzz targets: the inference service of a sorting arm.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "a program's items are documented where they need to be")]

pub mod album;
pub mod config;
pub mod core;
pub mod daemon;
pub mod db;
pub mod found;
pub mod geometry;
pub mod message;
pub mod pages;
pub mod panel;
pub mod plan;
pub mod service;
pub mod shelf;
pub mod status;
pub mod tidy;
pub mod uploads;
pub mod vision;
pub mod workers;
pub mod ws;

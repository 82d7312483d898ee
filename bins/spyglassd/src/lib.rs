//! `spyglassd`: takes an application's output frames, encodes them once, and hands the same encoded units to every output.
#![forbid(unsafe_code)]

pub mod config;
pub mod core;
pub mod frames;
pub mod h264;
pub mod inbox;
pub mod kvs;
pub mod mail;
pub mod mkv;
pub mod mp4;
pub mod outputs;
pub mod pipeline;
pub mod privacy;
pub mod record;
#[cfg(feature = "rtsp")]
pub mod rtsp;
pub mod sink;
pub mod sources;
pub mod status;
pub mod stream;
pub mod unit;
pub mod web;

mod daemon;
mod program;

pub use program::Spyglassd;

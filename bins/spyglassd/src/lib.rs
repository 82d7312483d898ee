//! `spyglassd`: takes an application's output frames, encodes them once, and hands the same encoded units to every output.
#![forbid(unsafe_code)]

pub mod frames;
pub mod h264;
pub mod mkv;
pub mod pipeline;
pub mod unit;

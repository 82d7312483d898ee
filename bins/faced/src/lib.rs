//! `faced`: camera -> face detection -> one good crop per face over MQTT.
#![forbid(unsafe_code)]

pub mod cameras;
pub mod config;
pub mod convert;
pub mod core;
pub mod counters;
pub mod detect;
pub mod encode;
pub mod face;
pub mod frame;
pub mod gate;
pub mod inbox;
pub mod link;
pub mod queue;
pub mod source;
pub mod template;
pub mod track;
pub mod worker;

mod daemon;
mod session;
mod status;

pub use daemon::Faced;

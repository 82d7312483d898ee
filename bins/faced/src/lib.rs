//! `faced`: camera -> face detection -> one good crop per face over MQTT.
#![forbid(unsafe_code)]

pub mod convert;
pub mod detect;
pub mod encode;
pub mod frame;
pub mod gate;
pub mod track;

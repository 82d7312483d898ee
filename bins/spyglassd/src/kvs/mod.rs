//! Kinesis Video Streams without its SDK: GetDataEndpoint, then PutMedia on one connection.
//!
//! * [`fragment`] cuts units into fragments, [`ring`] keeps those that are not known to be stored, [`ack`] reads what the
//!   service says of them.
//! * [`core`] decides what is sent and when to connect; it does no I/O.

pub mod ack;
pub mod core;
pub mod fragment;
pub mod ring;

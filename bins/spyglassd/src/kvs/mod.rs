//! Kinesis Video Streams without its SDK: GetDataEndpoint, then PutMedia on one connection.
//!
//! * [`fragment`] cuts units into fragments, [`ring`] keeps those that are not known to be stored (also on [`disk`]),
//!   [`ack`] reads what the service says of them.
//! * [`core`] decides what is sent and when to connect; it does no I/O.
//! * [`ask`] (with [`credentials`]) finds out who we are and where to go, [`wire`] writes the signed heads, [`response`]
//!   and [`fault`] read the answers, [`link`] is the connection.
//! * [`sink`] is the thread that runs it all, [`config`] its table, [`status`] what it says of itself.

pub mod ack;
pub mod ask;
pub mod config;
pub mod core;
pub mod credentials;
pub mod disk;
pub mod fault;
pub mod fragment;
pub mod link;
pub mod response;
pub mod ring;
pub mod sink;
pub mod status;
pub mod wire;

pub use config::{Config, Raw};
pub use sink::start;

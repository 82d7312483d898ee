//! `edge`: what at least two of the edge daemons share.
//!
//! The library holds no event loop and starts no thread on its own account except where a type says so
//! ([`spool`], [`net::Resolver`], [`aws`], [`objects::Pool`]). A daemon owns its `mio::Poll`, its timers and its state;
//! the library gives it codecs, durable files and small system wrappers.
//!
//! `unsafe` appears in [`sys`] only.
#![deny(unsafe_code)]

pub mod activation;
pub mod aws;
pub mod beneath;
pub mod cli;
pub mod clock;
pub mod config;
pub mod ctl;
pub mod device;
pub mod fs;
pub mod http;
pub mod inlet;
pub mod intake;
pub mod log;
pub mod mqtt;
pub mod net;
pub mod notify;
pub mod objects;
pub mod release;
pub mod retry;
pub mod signal;
pub mod source;
pub mod spool;
#[cfg(feature = "sqlite")]
pub mod sqlite;
pub mod sync;
pub mod sys;
pub mod text;
pub mod timer;
pub mod tls;

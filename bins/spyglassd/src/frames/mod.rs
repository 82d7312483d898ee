//! Frames in: the socket where applications hand over their pictures.
//!
//! - [`wire`]: the messages, byte for byte
//! - [`geometry`]: formats, and where the planes of a picture lie in its slot
//! - [`ring`]: the shared memory and whose each slot is
//! - [`port`]: the listening socket and its producers

pub mod geometry;
pub mod port;
pub mod ring;
pub mod wire;

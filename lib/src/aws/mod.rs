//! What a client of AWS needs: request signing ([`sigv4`]), S3 addresses ([`s3`]) and credentials ([`credentials`]).
//!
//! Signing and addresses are pure functions. Credentials are fetched with blocking calls (files, a process, HTTP over
//! `ureq`), so [`credentials::Provider`] belongs on worker threads only; it starts no thread of its own.
//!
//! Invariants: a secret key or session token never reaches a log line or an error text; a URL is encoded once, and
//! exactly the bytes that were signed are sent.

pub mod credentials;
mod fetch;
pub mod s3;
pub mod sigv4;
pub mod tls;

pub use crate::text::{hex, sha256_hex};

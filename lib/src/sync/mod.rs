//! The sync protocol between `sideload` and `sideloadd`: what both ends must compute alike. No I/O but a reader that
//! is handed in, no clock.
//!
//! One sync is at most four requests on one HTTP/1.1 connection (mutual TLS):
//!
//! | request | body | answer (JSON) |
//! |---|---|---|
//! | `POST /sync?force=0` | a [`manifest`] | `sync` (id), `commit` (number in force), `state` `unchanged` or `open`, `lacks` (entries whose content is wanted), `chunked` (those of them wanted as chunk lists first), `deletes` |
//! | `POST /sync/<id>/chunks` | chunk lists ([`wire::ChunkLists`]) of the `chunked` entries | `missing`: per entry the ranges of chunks to send |
//! | `POST /sync/<id>/data` | [`wire::Record`]s: pieces of small files, whole chunks of big ones, compressed where it helps | `received` bytes |
//! | `POST /sync/<id>/commit?restart=0` | none | `commit`, `changed`, `deleted`, and the application's state |
//!
//! Invariants: content is named by [`ContentId`]; a path is a [`RelPath`] or it is refused; decoders never panic and
//! never hold more than their stated bounds.

pub mod cache;
pub mod chunk;
pub mod content;
pub mod manifest;
pub mod path;
mod varint;
pub mod wire;

pub use content::ContentId;
pub use path::RelPath;

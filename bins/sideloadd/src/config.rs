//! `sideloadd.toml`.

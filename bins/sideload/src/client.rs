//! HTTP over mutual TLS to a `sideloadd`, blocking.

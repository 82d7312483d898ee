//! The client against a scripted TLS server.

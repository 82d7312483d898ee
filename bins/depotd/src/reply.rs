//! The forms of answers: errors as JSON, and the headers that all of them have.

use edge::http::Response;
use serde_json::json;

/// `{"error":"…"}`, kept by no cache.
#[must_use]
pub fn error(status: u16, why: &str) -> Response {
    Response::json(status, &json!({ "error": why })).with("Cache-Control", "no-store")
}

/// What passes by itself.
#[must_use]
pub fn later(why: &str, after_s: u32) -> Response {
    error(503, why).with("Retry-After", after_s.to_string())
}

/// An answer without a body.
#[must_use]
pub fn empty(status: u16) -> Response {
    Response { status, headers: Vec::new(), body: Vec::new() }
}

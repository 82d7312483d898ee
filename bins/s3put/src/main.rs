//! s3put (being written)
#![forbid(unsafe_code)]
fn main() {}

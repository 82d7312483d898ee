//! Pictures on their way to S3.

//! The application's output in a ring with sequence numbers.

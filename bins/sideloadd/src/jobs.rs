//! What the disk thread is asked to do, and what it answers.

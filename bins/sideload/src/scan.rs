//! The source folder: which files count, and what is in them.

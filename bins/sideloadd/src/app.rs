//! The application's processes: a group of its own under a subreaper.

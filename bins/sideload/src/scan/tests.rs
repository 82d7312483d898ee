//! Scans of folders that tests make.

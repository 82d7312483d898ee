//! The sync against a scripted device.

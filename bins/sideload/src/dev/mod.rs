//! `sideload dev`: save, sync, restart, logs.

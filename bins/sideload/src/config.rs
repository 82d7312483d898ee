//! `sideload.toml`, found upwards from the working directory, under the flags.

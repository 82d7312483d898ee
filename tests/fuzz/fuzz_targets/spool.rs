//! The files of a spool with anything in them: opening and reading never panics, and nothing comes out that was not
//! put in. The work is in `edge::spool::fuzz`, where the files' insides are at hand.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| edge::spool::fuzz::run(data));

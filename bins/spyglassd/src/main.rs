//! The program `spyglassd`; everything is in the library beside it, so that tests and measurements can use the parts.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    edge::cli::main::<spyglassd::Spyglassd>()
}

//! `sorterd`: the inference service of a sorting arm. Start-up only.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::SUCCESS
}

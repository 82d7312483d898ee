//! `depotd`: the package server: publish, sign, resolve by device attributes, serve. Start-up only.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = depotd::commands::main() {
        return code;
    }
    eprintln!("depotd: no command; try 'depotd publish --help'");
    ExitCode::from(edge::cli::EX_USAGE)
}

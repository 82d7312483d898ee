//! sideload: the command line for sideloadd. Start-up only.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use sideload::args::{self, Asked};
use sideload::{commands, output};

fn main() -> ExitCode {
    let given: Vec<_> = std::env::args_os().skip(1).collect();
    let as_json = given.iter().take_while(|a| *a != "--").any(|a| a == "--json");
    let code = match args::parse(given) {
        Ok(Asked::Print(text)) => output::print(&text, 0),
        Ok(Asked::Run(args)) => {
            edge::log::init(args.verbosity);
            output::finish(commands::run(&args), as_json)
        }
        Err(failure) => output::finish(Err(failure), as_json),
    };
    ExitCode::from(code)
}

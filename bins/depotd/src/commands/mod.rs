//! The commands beside the server: they work on the catalog and the store directly, whether a server runs or not.

pub mod args;
mod change;
mod context;
mod keep;
mod look;
mod make;
mod output;
mod publish;
mod seal;
mod table;

use std::process::ExitCode;

pub use output::EXIT_CODES;
pub use table::COMMANDS;

use args::Given;
use output::{Failure, Reply};

/// Runs the command that the command line names; `None` if it names none of these, and the daemon is meant.
#[must_use]
pub fn main() -> Option<ExitCode> {
    let line: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let given = args::parse(&line)?;
    // Also a command line that is wrong is answered in JSON where that is asked for.
    let json = line.iter().any(|argument| argument == "--json");
    edge::log::init(given.as_ref().map_or(0, |given| given.verbosity()));
    edge::cli::keep_secrets_out_of_core_dumps();
    Some(ExitCode::from(edge::cli::output::finish("depotd", given.and_then(|given| run(&given)), json)))
}

fn run(given: &Given) -> Result<Reply, Failure> {
    if given.has("--help") {
        let text = table::help_of(given.entry);
        return Ok(Reply::new(text.clone(), serde_json::Value::String(text)));
    }
    match given.entry.name {
        "publish" => publish::run(given),
        "promote" => publish::promote(given),
        "accept" => change::accept(given),
        "rollout" => change::rollout(given),
        "pause" => change::pause(given),
        "resume" => change::resume(given),
        "retire" => change::retire(given),
        "list" => look::list(given),
        "show" => look::show(given),
        "keygen" => make::keygen(given),
        "sample" => make::sample(given),
        "verify" => keep::verify(given),
        "gc" => keep::gc(given),
        name => Err(Failure::bug(format!("the command {name} has no code"))),
    }
}

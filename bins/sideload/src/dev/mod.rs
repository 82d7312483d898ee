//! `sideload dev`: save, sync, restart, logs.

use crate::config::Settings;
use crate::output::Failure;

/// Watches, syncs, restarts and follows until it is told to stop.
///
/// # Errors
/// What it can't start without: the device's address, the folder, the keys.
pub fn run(settings: &Settings, _as_json: bool) -> Result<(), Failure> {
    let _ = (settings.target()?, settings.source()?);
    Err(Failure::new(edge::cli::EX_SOFTWARE, "`sideload dev` is not built in yet"))
}

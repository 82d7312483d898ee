//! Certificates that end soon: `doctor` says it of each, every other command that talks to the device of the first, in
//! one line on stderr.

use std::path::Path;

use crate::client::{CLIENT_CERT, SERVER_CERT};
use crate::output::duration;

/// Warn so long before an expiry, seconds.
pub const SOON: u64 = 7 * 86_400;
/// What to do about it.
pub const RENEW: &str = "make new keys: `sideload keys --force`, then `sideload keys --device USER@HOST`";

/// What to say of the files of both ends in `dir`: of the one that ends first, if that is soon. One that has ended or
/// can't be read is said by the connection, which fails.
pub fn warning(dir: &Path, now_s: u64) -> Option<String> {
    let ends = [("device", SERVER_CERT), ("client", CLIENT_CERT)].into_iter().flat_map(|(whose, name)| {
        let facts = edge::tls::facts("certificate", &dir.join(name)).unwrap_or_default();
        facts.into_iter().map(move |facts| (facts.not_after, whose, name))
    });
    let (end, whose, name) = ends.min()?;
    let left = u64::try_from(end).ok()?.checked_sub(now_s).filter(|left| (1..SOON).contains(left))?;
    let path = dir.join(name);
    Some(format!(
        "the {whose}'s certificate expires in {} ({}); {RENEW}",
        duration(left * 1000),
        path.display()
    ))
}

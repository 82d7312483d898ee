//! The quarantine: what is in it, and how a person lets a release out of it.
//!
//! What was rolled back, by hand too, is quarantined: its manifest is never built again, and where one app alone had
//! changed, that content of it is barred from other manifests. Both end for a newer release, which is another manifest
//! with other content, and by [`retry`]. Invariant: what is barred is let go first, so that after a crash in between the
//! release is still listed, and can be let out again.

use edge::release::{Digest, Sha256};
use serde_json::{Value, json};

use crate::install::{GenId, Outcome, Store};
use crate::ledger::Ledger;

/// Most that are listed; older ones still count.
const LISTED_MAX: usize = 8;

/// The beginning of a manifest's hash, from a generation's name or by itself.
#[must_use]
pub fn named(text: &str) -> Option<[u8; 4]> {
    let digest = || text.parse::<Digest<4>>().ok().map(|digest| digest.0);
    text.parse::<GenId>().ok().map(|id| id.hash8).or_else(digest)
}

/// The newest of what is quarantined, the newest last.
#[must_use]
pub fn listed(store: &Store) -> Vec<Value> {
    let all = store.quarantined();
    let newest = all.get(all.len().saturating_sub(LISTED_MAX)..).unwrap_or_default();
    newest.iter().map(|known| describe(store, &known.hash, &known.why)).collect()
}

/// Lets a release be installed again by the next poll; without a name the only one there is.
///
/// # Errors
/// There is no such one, or more than one; or the disk fails. Nothing has changed then, or it can be repeated.
pub fn retry(store: &mut Store, ledger: &mut Ledger, which: Option<[u8; 4]>) -> Result<Value, String> {
    let begins = |hash: &Sha256| which.is_none_or(|hash8| hash.0.starts_with(&hash8));
    let found: Vec<_> = store.quarantined().iter().filter(|known| begins(&known.hash)).collect();
    let [only] = found.as_slice() else {
        return Err(match (store.quarantined().len(), which) {
            (0, _) => {
                "nothing is quarantined here: `otad why` says what keeps a release from being installed"
                    .into()
            }
            (_, Some(hash8)) if found.is_empty() => {
                format!("{} is not quarantined; {}", Digest(hash8), choice(store))
            }
            _ => format!("more than one is quarantined: name one; {}", choice(store)),
        });
    };
    let (hash, why) = (only.hash, only.why.clone());
    let value = describe(store, &hash, &why);
    let apps: Option<Vec<String>> =
        outcome(store, &hash).map(|outcome| outcome.subject.apps.iter().map(|app| app.app.clone()).collect());
    ledger.unbar(&hash);
    // Content that was removed has to be sent again, so it is not named to the server any more.
    let of_it = |app: &str| apps.as_ref().is_none_or(|apps| apps.iter().any(|a| a.eq_ignore_ascii_case(app)));
    ledger.page.known.retain(|known| !of_it(&known.app) || store.blob(&known.sha256).is_some());
    ledger.save().map_err(|error| edge::log::chain(&error))?;
    store.forgive(&hash).map_err(|error| edge::log::chain(&error))?;
    log::info!("{} is let out of quarantine", value["generation"].as_str().unwrap_or_default());
    Ok(value)
}

fn outcome<'a>(store: &'a Store, hash: &Sha256) -> Option<&'a Outcome> {
    store.history().iter().rev().find(|outcome| outcome.quarantined && outcome.subject.hash == *hash)
}

fn describe(store: &Store, hash: &Sha256, why: &str) -> Value {
    let outcome = outcome(store, hash);
    let [a, b, c, d, ..] = hash.0;
    let name = outcome.map_or_else(|| Digest([a, b, c, d]).to_string(), |o| o.generation.to_string());
    let apps = outcome.map(|outcome| outcome.subject.apps.as_slice()).unwrap_or_default();
    let apps: Vec<Value> = apps.iter().map(|app| json!({ "app": app.app, "version": app.version })).collect();
    json!({ "generation": name, "apps": apps, "why": why })
}

fn choice(store: &Store) -> String {
    let text = |value: &Value| crate::status::generation_text(&value["generation"], &value["apps"]);
    format!("there is {}", listed(store).iter().map(text).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_that_of_a_generation_or_of_a_manifest() {
        assert_eq!(named("3-0f1e2d3c"), Some([0x0f, 0x1e, 0x2d, 0x3c]));
        assert_eq!(named("0f1e2d3c"), Some([0x0f, 0x1e, 0x2d, 0x3c]));
        for bad in ["", "3", "3-", "0-0f1e2d3c", "0f1e2d3", "0f1e2d3cc", "scoreboard"] {
            assert_eq!(named(bad), None, "{bad}");
        }
    }
}

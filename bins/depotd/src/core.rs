//! What the answer to a question is: which releases a device is told of, and what it lacks of them.
//!
//! Two steps, so that the costly one is shared: [`resolve`] asks the catalog and depends on the question alone;
//! [`Resolved::answer`] leaves out what the device has. No I/O but the catalog's, no clock, no randomness.
//! Invariants: only live releases are told of; equal questions over an equal catalog give equal bytes; whoever does not ask
//! for offers never hears of a release that is not for everybody.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use edge::release::{Details, Entry, OFFERS_MAX, Offer, valid_name, valid_version};

use crate::catalog::{self, Catalog, Release, State, key};
use crate::etag::Etags;
use crate::query::{Payload, Question};

/// Most apps of one answer.
pub const APPS_MAX: usize = 256;

/// Changes whenever the same bundle would be made of other bytes.
const BUNDLE_FORM: &str = concat!("depotd ", env!("CARGO_PKG_VERSION"), " bundle 1");

/// One app of an answer.
#[derive(Debug, Clone)]
struct App {
    /// The release for everybody; `None`: there are staged ones only.
    latest: Option<Arc<Release>>,
    /// The others, newest first; empty unless asked for.
    offers: Vec<Arc<Release>>,
}

/// What a question comes to.
#[derive(Debug, Clone, Default)]
pub struct Resolved {
    /// By the app's name, as its publisher spells it.
    apps: BTreeMap<String, App>,
    /// It was asked for offers: the device wants to know of releases, not only of content that it lacks.
    offers: bool,
}

/// An answer.
#[derive(Debug)]
pub enum Answer {
    /// There is nothing that the question selects.
    Nothing,
    /// The device has everything.
    NotModified,
    /// The details alone.
    Metadata(Vec<u8>),
    /// Files and details.
    Bundle(Plan),
}

/// What goes into a bundle.
#[derive(Debug)]
pub struct Plan {
    /// In order.
    pub files: Vec<Arc<Release>>,
    /// `package_details.json`.
    pub details: Vec<u8>,
}

/// Asks the catalog what the question selects.
///
/// # Errors
/// What the catalog says.
pub fn resolve(catalog: &mut dyn Catalog, question: &Question) -> Result<Resolved, catalog::Error> {
    // An app that is selected in several environments is taken from the first place in this order.
    let mut selected: BTreeMap<String, String> = BTreeMap::new();
    for (app, env) in &question.apps {
        selected.entry(key(app)).or_insert_with(|| env.clone());
    }
    selected.entry(format!("os_{}", question.cpu)).or_insert_with(|| question.os.clone());
    for (attr, env) in &question.attrs {
        for app in catalog.apps_with(attr, env)? {
            selected.entry(key(&app)).or_insert_with(|| env.clone());
        }
    }
    let mut resolved = Resolved { apps: BTreeMap::new(), offers: question.offers };
    for (app, env) in selected.iter().filter(|(app, env)| valid_name(app) && valid_name(env)) {
        let live = catalog.live(app, env)?;
        if let Some((name, app)) = app_of(live, question.offers) {
            resolved.apps.insert(name, app);
        }
        if resolved.apps.len() == APPS_MAX {
            log::warn!(
                "a question selects more than {APPS_MAX} apps; the answer holds no more: {question:?}"
            );
            break;
        }
    }
    Ok(resolved)
}

/// What is told of an app: its spelling and its releases. `None`: nothing.
fn app_of(mut live: Vec<Release>, offers: bool) -> Option<(String, App)> {
    // Names from the original's table were never checked.
    live.retain(|r| r.state == State::Live && valid_name(&r.app) && valid_version(&r.version));
    live.sort_by_key(|release| std::cmp::Reverse(release.epoch));
    let at = live.iter().position(|release| release.rollout >= 100);
    let mut all: Vec<Arc<Release>> = live.into_iter().map(Arc::new).collect();
    let older = at.map_or_else(Vec::new, |at| all.split_off(at));
    let latest = older.first().cloned();
    let name = latest.as_ref().or(all.first().filter(|_| offers))?.app.clone();
    if !offers {
        return Some((name, App { latest, offers: Vec::new() }));
    }
    all.extend(older.into_iter().skip(1).filter(|release| release.floor));
    all.truncate(OFFERS_MAX);
    Some((name, App { latest, offers: all }))
}

impl Resolved {
    /// Whether nothing was selected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.apps.is_empty()
    }

    /// About what it takes in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let of = |release: &Arc<Release>| {
            let texts = release.statement.as_ref().map_or(0, String::len)
                + release.signature.as_ref().map_or(0, String::len);
            texts + release.url.len() + release.attrs.len() * 32 + 512
        };
        let apps = self.apps.values().flat_map(|app| app.latest.iter().chain(&app.offers));
        apps.map(of).sum::<usize>() + self.apps.len() * 128 + 128
    }

    /// Which of the releases the device has, in their order: what an answer depends on beside the question.
    #[must_use]
    pub fn held(&self, tags: &Etags) -> Vec<bool> {
        let all = self.apps.values().flat_map(|app| app.latest.iter().chain(&app.offers));
        all.map(|release| tags.has(release.md5.as_ref())).collect()
    }

    /// Whether a device that has those has nothing to hear. One that knows releases does: the same content may be released
    /// again, with another epoch or floor. For it, an answer is old by its tag only.
    #[must_use]
    pub fn is_known(&self, held: &[bool]) -> bool {
        !self.offers && held.iter().all(|held| *held)
    }

    /// The answer to a device that has those.
    #[must_use]
    pub fn answer(&self, payload: Payload, held: &[bool]) -> Answer {
        if self.apps.is_empty() {
            return Answer::Nothing;
        }
        if self.is_known(held) {
            return Answer::NotModified;
        }
        let (mut details, mut files) = (Details::default(), Vec::new());
        let mut held = held.iter().copied();
        for (name, app) in &self.apps {
            let mut told = |release: &Arc<Release>| offer(release, held.next().unwrap_or(false));
            let latest = app.latest.as_ref().map(&mut told);
            let offers: Vec<Offer> = app.offers.iter().map(&mut told).collect();
            if let (Some(release), Some(Offer { status_code: 200, .. })) = (&app.latest, &latest) {
                files.push(Arc::clone(release));
            }
            // Not for everybody yet: a client that knows nothing of offers has nothing to do.
            let staged = || Some(Offer { status_code: 304, ..offers.first()?.clone() });
            if let Some(latest) = latest.or_else(staged) {
                details.0.push((name.clone(), Entry { latest, offers }));
            }
        }
        match payload {
            Payload::Metadata => Answer::Metadata(details.to_bytes()),
            Payload::Full => Answer::Bundle(Plan { files, details: details.to_bytes() }),
        }
    }
}

fn offer(release: &Release, held: bool) -> Offer {
    let sums = release.sums.as_ref();
    Offer {
        version: release.version.clone(),
        url: release.url.clone(),
        status_code: if held { 304 } else { 200 },
        md5: release.md5,
        sha256: sums.map(|sums| sums.sha256),
        size: sums.map(|sums| sums.size),
        download: sums.map(|sums| format!("/blob/{}", sums.sha256)),
        statement: release.statement.clone(),
        signature: release.signature.clone(),
    }
}

impl Plan {
    /// Names the bundle's bytes: equal plans at the same level are the same file.
    #[must_use]
    pub fn id(&self, level: u32) -> String {
        let mut text = format!("{BUNDLE_FORM} {level}\n");
        for release in &self.files {
            // Writing to a String can't fail. What else is known of the content stands in the details.
            let _ = writeln!(text, "{}", release.file_name());
        }
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&self.details);
        edge::text::sha256_hex(&bytes)
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;

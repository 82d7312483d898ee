//! What the device takes of what a server offers, and why not the rest.
//!
//! Per app, among the entry and its offers: of those that are signed by a trusted key, are what was asked for, have not
//! expired, are not below the high-water mark, are for this device (rollout), may be reached from what is installed, and
//! did not fail here before, the one with the highest epoch. Otherwise what is installed stays.
//!
//! Invariants: a signature is checked over the exact bytes before they are parsed; what is not signed counts only where
//! the configuration says so. No I/O, no clock.

use edge::release::{Details, Offer, PublicKeys, STATEMENT_BYTES_MAX, Statement, Sums, Timestamp, rollout};
use edge::release::{Md5, Sha256, valid_version};
use serde_json::{Value, json};

use crate::ask::Ask;
use crate::install::{Item, Kind, Manifest, Mark};

/// The one condition that is not met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The newest that is offered is what is installed.
    UpToDate,
    /// No `[app.NAME]`.
    NotListed,
    NotSigned,
    Signature(String),
    Statement(String),
    /// It is for another app, environment or attribute than was asked for.
    NotAsked(String),
    Expired(Timestamp),
    OlderEpoch {
        epoch: u64,
        mark: u64,
    },
    NotInRollout {
        percent: u8,
    },
    MustPassThrough {
        epoch: u64,
    },
    Quarantined,
    /// What the server says is not enough to fetch it.
    NoContent,
}

impl Why {
    /// One word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::UpToDate => "up-to-date",
            Self::NotListed => "not-listed",
            Self::NotSigned => "not-signed",
            Self::Signature(_) => "signature",
            Self::Statement(_) => "statement",
            Self::NotAsked(_) => "not-asked",
            Self::Expired(_) => "expired",
            Self::OlderEpoch { .. } => "older-epoch",
            Self::NotInRollout { .. } => "not-in-rollout",
            Self::MustPassThrough { .. } => "must-pass-through",
            Self::Quarantined => "quarantined",
            Self::NoContent => "no-content",
        }
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::UpToDate => f.write_str("the newest release for this device is installed"),
            Self::NotListed => f.write_str(
                "otad.toml has no [app.NAME] for it and unlisted-apps = \"ignore\": it is not installed here",
            ),
            Self::NotSigned => f.write_str(
                "the server sends no statement with a signature, and require-signature = true: publish it with a key, or set \
                 require-signature = false for a server that signs nothing",
            ),
            Self::Signature(why) => write!(f, "its signature does not count: {why}"),
            Self::Statement(why) => write!(f, "its signed statement can't be used: {why}"),
            Self::NotAsked(what) => write!(f, "it is {what}, which this device does not ask for"),
            Self::Expired(at) => write!(f, "it expired on {at}"),
            Self::OlderEpoch { epoch, mark } => {
                write!(f, "its epoch {epoch} is older than {mark}, which this device has had: a replay, or a rollback that must be \
                           published as a new release")
            }
            Self::NotInRollout { percent } => {
                write!(f, "not in rollout: it is for {percent} % of the devices so far, and this one is not among them")
            }
            Self::MustPassThrough { epoch } => {
                write!(f, "must pass through epoch {epoch} first, which is not offered or not possible here")
            }
            Self::Quarantined => f.write_str("it was rolled back on this device: it waits for a newer release, or for `otad retry`"),
            Self::NoContent => f.write_str(
                "the server says neither its SHA-256 and MD5 nor where to fetch it: use mode = \"bundle\" with this server",
            ),
        }
    }
}

/// A release that may be installed. Without `sums` its content is known only when it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pick {
    pub app: String,
    pub kind: Kind,
    pub version: String,
    pub env: String,
    pub epoch: u64,
    pub min_epoch: u64,
    pub sums: Option<Sums>,
    /// Where it is, relative to the server.
    pub download: Option<String>,
    pub statement: Option<String>,
}

impl Pick {
    /// As an item of a manifest, if its content is known.
    #[must_use]
    pub fn item(&self) -> Option<Item> {
        let sums = self.sums?;
        Some(Item {
            app: self.app.clone(),
            kind: self.kind,
            version: self.version.clone(),
            env: self.env.clone(),
            epoch: self.epoch,
            min_epoch: self.min_epoch,
            md5: sums.md5,
            sha256: sums.sha256,
            size: sums.size,
            statement: self.statement.clone(),
        })
    }
}

/// What was decided for one app.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub app: String,
    /// The best that is offered: version, and epoch if it is signed.
    pub offered: Option<(String, u64)>,
    /// It is taken.
    pub taken: bool,
    /// Why the best one is not taken, or why nothing is.
    pub why: Option<Why>,
}

impl Report {
    /// What the server means is what is installed.
    #[must_use]
    pub fn up_to_date(item: &Item) -> Report {
        let offered = Some((item.version.clone(), item.epoch));
        Report { app: item.app.clone(), offered, taken: false, why: Some(Why::UpToDate) }
    }

    /// What was taken is installed now; what is above it, if anything, is still refused.
    pub fn is_installed(&mut self) {
        self.taken = false;
        self.why.get_or_insert(Why::UpToDate);
    }

    #[must_use]
    pub fn json(&self, installed: Option<&Manifest>) -> Value {
        let item = installed.and_then(|manifest| manifest.get(&self.app));
        json!({
            "app": self.app,
            "installed": item.map(|item| json!({ "version": item.version, "env": item.env, "epoch": item.epoch })),
            "offered": self.offered.as_ref().map(|(version, epoch)| json!({ "version": version, "epoch": epoch })),
            "taken": self.taken,
            "why": self.why.as_ref().map(Why::code),
            "text": self.why.as_ref().map(ToString::to_string),
        })
    }
}

/// What the decision is made on.
pub struct Facts<'a> {
    pub ask: &'a Ask,
    /// Who this device is.
    pub device: &'a str,
    /// A clock that never runs behind its own mark.
    pub now: Timestamp,
    pub require_signature: bool,
    pub keys: &'a PublicKeys,
    pub installed: Option<&'a Manifest>,
    /// The high-water mark of an app in an environment.
    pub mark: &'a dyn Fn(&str, &str) -> Mark,
    /// Whether this content of an app failed here by itself.
    pub barred: &'a dyn Fn(&str, &Sha256) -> bool,
    /// Whether what is installed is to be had again although it is the newest: it is damaged.
    pub damaged: &'a dyn Fn(&Item) -> bool,
    /// How an app is installed; `None`: it is not.
    pub kind: &'a dyn Fn(&str) -> Option<Kind>,
    /// What is known of unsigned content: app and offer.
    pub known: &'a dyn Fn(&str, &Offer) -> Option<Sums>,
}

/// Decides for every app of the document. The picks hold what is newer than, or other than, what is installed.
#[must_use]
pub fn choose(details: &Details, facts: &Facts<'_>) -> (Vec<Pick>, Vec<Report>) {
    let (mut picks, mut reports) = (Vec::new(), Vec::new());
    for (app, entry) in &details.0 {
        let offers = std::iter::once(&entry.latest).chain(&entry.offers);
        let (pick, report) = choose_one(app, offers, facts);
        picks.extend(pick);
        reports.push(report);
    }
    (picks, reports)
}

fn choose_one<'o>(
    app: &str,
    offers: impl Iterator<Item = &'o Offer>,
    facts: &Facts<'_>,
) -> (Option<Pick>, Report) {
    let report = |offered, taken, why| Report { app: app.to_owned(), offered, taken, why };
    let Some(kind) = (facts.kind)(app) else { return (None, report(None, false, Some(Why::NotListed))) };
    // Best first: what is refused without a known epoch counts as the lowest, since nothing is proven of it.
    let mut best: Option<Pick> = None;
    let mut refused: Option<(u64, String, Why)> = None;
    for offer in offers {
        match judge(app, kind, offer, facts) {
            Ok(pick) if best.as_ref().is_none_or(|best| best.epoch < pick.epoch) => best = Some(pick),
            Ok(_) => {}
            Err((epoch, why)) => {
                if refused.as_ref().is_none_or(|(highest, ..)| *highest < epoch) {
                    refused = Some((epoch, offer.version.clone(), why));
                }
            }
        }
    }
    // What is refused matters if it is newer than what is taken.
    let above = refused.filter(|(epoch, ..)| best.as_ref().is_none_or(|best| best.epoch < *epoch));
    let Some(pick) = best else {
        let why = above.map(|(epoch, version, why)| (Some((version, epoch)), why));
        return match why {
            Some((offered, why)) => (None, report(offered, false, Some(why))),
            None => (None, report(None, false, Some(Why::UpToDate))),
        };
    };
    let same = facts.installed.and_then(|manifest| manifest.get(&pick.app)).is_some_and(|item| {
        pick.item().is_some_and(|new| {
            let key = |i: &Item| (i.kind, i.version.clone(), i.env.clone(), i.epoch, i.sha256);
            key(&new) == key(item) && !(facts.damaged)(item)
        })
    });
    let offered = match &above {
        Some((epoch, version, _)) => Some((version.clone(), *epoch)),
        None => Some((pick.version.clone(), pick.epoch)),
    };
    let why = above.map(|(.., why)| why);
    if same {
        return (None, report(offered, false, why.or(Some(Why::UpToDate))));
    }
    (Some(pick), report(offered, true, why))
}

/// Whether one offer may be installed; an error comes with its epoch as far as it is proven.
fn judge(app: &str, kind: Kind, offer: &Offer, facts: &Facts<'_>) -> Result<Pick, (u64, Why)> {
    match (&offer.statement, &offer.signature) {
        (Some(statement), Some(signature)) if !facts.keys.is_empty() => {
            let proven = prove(statement, signature, facts.keys).map_err(|why| (0, why))?;
            let (epoch, min_epoch) = (proven.epoch, proven.min_epoch);
            check(app, &proven, facts).map_err(|why| (epoch, why))?;
            Ok(Pick {
                app: proven.app,
                kind,
                version: proven.version,
                env: proven.env,
                epoch,
                min_epoch,
                sums: Some(Sums { sha256: proven.sha256, md5: proven.md5, size: proven.size }),
                download: offer.download.clone(),
                statement: Some(statement.clone()),
            })
        }
        _ if facts.require_signature => Err((0, Why::NotSigned)),
        _ => unsigned(app, kind, offer, facts).map_err(|why| (0, why)),
    }
}

fn prove(statement: &str, signature: &str, keys: &PublicKeys) -> Result<Statement, Why> {
    if statement.len() > STATEMENT_BYTES_MAX {
        return Err(Why::Statement(format!("it is longer than {STATEMENT_BYTES_MAX} bytes")));
    }
    keys.verify(statement.as_bytes(), signature).map_err(|error| Why::Signature(edge::log::chain(&error)))?;
    Statement::parse(statement.as_bytes()).map_err(|error| Why::Statement(edge::log::chain(&error)))
}

fn check(app: &str, proven: &Statement, facts: &Facts<'_>) -> Result<(), Why> {
    if !proven.app.eq_ignore_ascii_case(app) {
        return Err(Why::NotAsked(format!("a release of {}", proven.app)));
    }
    if !facts.ask.wants(app, &proven.env, &proven.attrs) {
        return Err(Why::NotAsked(format!("a release for {} {:?}", proven.env, proven.attrs)));
    }
    if let Some(at) = proven.expires.filter(|at| *at <= facts.now) {
        return Err(Why::Expired(at));
    }
    let mark = (facts.mark)(app, &proven.env);
    let mark = mark.epoch.max(mark.min_epoch);
    if proven.epoch < mark {
        return Err(Why::OlderEpoch { epoch: proven.epoch, mark });
    }
    let installed = facts.installed.and_then(|manifest| manifest.get(app));
    // What was let in stays in, also when the percentage is lowered.
    let has_it = installed.is_some_and(|item| item.epoch == proven.epoch && item.env == proven.env);
    if !has_it && !rollout::includes(&proven.salt, facts.device, proven.rollout) {
        return Err(Why::NotInRollout { percent: proven.rollout });
    }
    if installed.is_some_and(|item| item.env == proven.env && item.epoch < proven.from_epoch) {
        return Err(Why::MustPassThrough { epoch: proven.from_epoch });
    }
    if !has_it && (facts.barred)(app, &proven.sha256) {
        return Err(Why::Quarantined);
    }
    Ok(())
}

fn unsigned(app: &str, kind: Kind, offer: &Offer, facts: &Facts<'_>) -> Result<Pick, Why> {
    if !valid_version(&offer.version) {
        return Err(Why::Statement(format!("{:?} can't be a version", offer.version)));
    }
    let Some(env) = facts.ask.envs(app).first().map(|env| (*env).to_owned()) else {
        return Err(Why::NotAsked("an app".into()));
    };
    let mark = (facts.mark)(app, &env);
    if mark.epoch > 0 {
        return Err(Why::OlderEpoch { epoch: 0, mark: mark.epoch });
    }
    let told = match (offer.sha256, offer.md5, offer.size) {
        (Some(sha256), Some(md5), Some(size)) => Some(Sums { sha256, md5, size }),
        _ => None,
    };
    let sums = told.or_else(|| (facts.known)(app, offer));
    let installed = facts.installed.and_then(|manifest| manifest.get(app));
    let has_it = |sha256: Sha256| installed.is_some_and(|item| item.sha256 == sha256);
    if sums.is_some_and(|sums| !has_it(sums.sha256) && (facts.barred)(app, &sums.sha256)) {
        return Err(Why::Quarantined);
    }
    let app = app.to_owned();
    let (version, download) = (offer.version.clone(), offer.download.clone());
    Ok(Pick { app, kind, version, env, epoch: 0, min_epoch: 0, sums, download, statement: None })
}

/// Content of an app that this device has had in hand: what it sends as a hint, and how it reads the answer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Known {
    pub app: String,
    pub version: String,
    pub md5: Md5,
    pub sha256: Sha256,
    pub size: u64,
}

impl Known {
    #[must_use]
    pub fn sums(&self) -> Sums {
        Sums { sha256: self.sha256, md5: self.md5, size: self.size }
    }
}

impl From<&Item> for Known {
    fn from(item: &Item) -> Known {
        let Item { app, version, md5, sha256, size, .. } = item.clone();
        Known { app, version, md5, sha256, size }
    }
}

/// Which known content an unsigned offer means: the one with its MD5, else with its version. A 304 says that it is one of
/// those that were sent, so that a single one is it, whatever it is called now.
#[must_use]
pub fn recall(known: &[Known], app: &str, offer: &Offer) -> Option<Sums> {
    let of_app = || known.iter().filter(|k| k.app.eq_ignore_ascii_case(app));
    if let Some(md5) = offer.md5 {
        return of_app().find(|k| k.md5 == md5).map(Known::sums);
    }
    if offer.status_code != 304 {
        return None;
    }
    if let Some(same) = of_app().rev().find(|k| k.version == offer.version) {
        return Some(same.sums());
    }
    let mut all = of_app();
    let first = all.next()?;
    all.all(|other| other.sha256 == first.sha256).then(|| first.sums())
}

#[cfg(test)]
#[path = "choose_tests.rs"]
mod tests;

//! Asking the server, and deciding what to do about its answer.

use std::sync::Arc;

use edge::release::{Details, Timestamp};

use super::{Plan, Worker, meter, names, same_content};
use crate::choose::{self, Facts, Known, Pick, Report, Why};
use crate::config::{Config, Mode, Unlisted};
use crate::core::Trouble;
use crate::fetch::{self, Answer};
use crate::install::{Item, Manifest, State};

impl Worker {
    pub(super) fn poll(&mut self, content: bool, forced: bool) -> Result<bool, Trouble> {
        if matches!(self.store.state(), State::Trial { .. }) {
            return Err(Trouble::Refused("a trial is not finished: restart otad".into()));
        }
        let bundle = self.config.raw.mode == Mode::Bundle;
        let installed = self.installed();
        let mut known: Vec<Known> = installed.items().iter().map(Known::from).collect();
        if bundle {
            known.extend(self.ledger.page.known.iter().cloned());
        }
        let mut etags: Vec<String> = known.iter().map(|k| format!("\"{}\"", k.md5)).collect();
        etags.sort();
        etags.dedup();
        let generation = self.store.current().map(|(id, _)| id.to_string());
        let query = self.config.ask.query(!(bundle && content), generation.as_deref());
        let mut answer = self.ask(&query, &etags.join(", "), bundle && content, forced);
        let runs = |k: &Known| installed.get(&k.app).is_some_and(|item| item.md5 == k.md5);
        if matches!(answer, Ok(Answer::NotModified)) && !known.iter().all(runs) {
            // All that is meant for this device has been here, which is not to say that it runs: an update may have been
            // interrupted after its content had come, or the server has gone back. Which it is, the details say.
            let query = self.config.ask.query(true, generation.as_deref());
            answer = self.ask(&query, "", false, forced);
        }
        let (details, came) = match answer {
            Ok(Answer::Content(answer)) => answer,
            Ok(Answer::NotModified) => {
                self.not_modified(&installed);
                return Ok(false);
            }
            Ok(Answer::Nothing) => {
                self.reports.clear();
                return Ok(false);
            }
            Err(trouble) => return Err(trouble),
        };
        known.extend(came);
        let now = self.now();
        let (picks, reports) = self.choose(&details, &installed, &known, now);
        self.reports = reports;
        self.plan(picks, &installed, bundle && !content)
    }

    /// The details, and the content that came with them.
    fn ask(
        &mut self,
        query: &str,
        etags: &str,
        content: bool,
        forced: bool,
    ) -> Result<Answer<(Details, Vec<Known>)>, Trouble> {
        let config = Arc::clone(&self.config);
        let mut meter = meter(&mut self.ledger, &config, &self.stop, forced);
        let answer = if content {
            let wanted = |name: &str| wanted(&config, name);
            fetch::fetch_bundle(&self.client, query, etags, &mut self.store, &wanted, &mut meter).map(
                |answer| match answer {
                    Answer::Content(bundle) => {
                        let mut came = Vec::new();
                        for (app, entry) in &bundle.details.0 {
                            let version = &entry.latest.version;
                            if let Some((sums, _)) = bundle.entries.get(&format!("{app}_{version}")) {
                                let (app, version) = (app.clone(), version.clone());
                                let (md5, sha256, size) = (sums.md5, sums.sha256, sums.size);
                                came.push(Known { app, version, md5, sha256, size });
                            }
                        }
                        Answer::Content((bundle.details, came))
                    }
                    Answer::NotModified => Answer::NotModified,
                    Answer::Nothing => Answer::Nothing,
                },
            )
        } else {
            self.client.metadata(query, etags, &mut meter).map(|answer| match answer {
                Answer::Content(details) => Answer::Content((details, Vec::new())),
                Answer::NotModified => Answer::NotModified,
                Answer::Nothing => Answer::Nothing,
            })
        };
        let mut learnt = false;
        if let Ok(Answer::Content((_, came))) = &answer {
            for known in came {
                learnt |= self.ledger.learn(known.clone());
            }
        }
        if learnt || config.raw.budget_per_day.0 > 0 {
            self.ledger.save().map_err(|error| Trouble::Passing(edge::log::chain(&error)))?;
        }
        answer
    }

    fn choose(
        &self,
        details: &Details,
        installed: &Manifest,
        known: &[Known],
        now: Timestamp,
    ) -> (Vec<Pick>, Vec<Report>) {
        let config = &self.config;
        let facts = Facts {
            ask: &config.ask,
            device: &config.device,
            now,
            require_signature: config.raw.require_signature,
            keys: &config.keys,
            installed: Some(installed),
            mark: &|app, env| self.store.high_water(app, env),
            barred: &|app, sha256| self.ledger.is_barred(app, sha256),
            kind: &|app| config.app(app).map(|app| app.kind),
            known: &|app, offer| {
                // What came in this answer is under its version; what was there before is recalled.
                let came = known.iter().rev().find(|k| {
                    offer.status_code == 200
                        && k.app.eq_ignore_ascii_case(app)
                        && k.version == offer.version
                        && offer.md5.is_none_or(|md5| md5 == k.md5)
                });
                came.map(Known::sums).or_else(|| choose::recall(known, app, offer))
            },
        };
        choose::choose(details, &facts)
    }

    /// Makes the plan; whether there is anything to do. `blind`: content will come with the next poll only.
    fn plan(&mut self, picks: Vec<Pick>, installed: &Manifest, blind: bool) -> Result<bool, Trouble> {
        let (mut items, mut taken, mut unknown) = (installed.items().to_vec(), Vec::new(), false);
        for pick in picks {
            let item = pick.item();
            let Some(item) = item.clone().filter(|item| blind || self.can_get(item, &pick, installed)) else {
                unknown |= blind;
                if !blind {
                    self.refuse(&pick.app, &Why::NoContent);
                    if let Some(item) = item {
                        self.ledger.forget(&item.sha256);
                    }
                }
                continue;
            };
            items.retain(|old| !old.app.eq_ignore_ascii_case(&item.app));
            items.push(item);
            taken.push(pick);
        }
        let manifest = Manifest::new(items).map_err(|error| Trouble::Refused(edge::log::chain(&error)))?;
        if unknown {
            return Ok(true);
        }
        if taken.is_empty() || manifest.hash() == installed.hash() {
            return Ok(false);
        }
        if self.store.is_quarantined(&manifest.hash()) {
            for pick in &taken {
                self.refuse(&pick.app, &Why::Quarantined);
            }
            return Ok(false);
        }
        log::info!("there is an update: {}", names(&taken));
        self.plan = Plan { picks: taken, manifest, generation: None };
        Ok(true)
    }

    fn can_get(&self, item: &Item, pick: &Pick, installed: &Manifest) -> bool {
        pick.download.is_some() || !self.lacks(item, installed)
    }

    /// Whether content has to be fetched for an item.
    pub(super) fn lacks(&self, item: &Item, installed: &Manifest) -> bool {
        let same = installed.get(&item.app).is_some_and(|old| same_content(old, item));
        !same && self.store.blob(&item.sha256).is_none()
    }

    pub(super) fn refuse(&mut self, app: &str, why: &Why) {
        for report in self.reports.iter_mut().filter(|report| report.app.eq_ignore_ascii_case(app)) {
            report.taken = false;
            report.why = Some(why.clone());
        }
    }

    fn not_modified(&mut self, installed: &Manifest) {
        let known = |app: &str| self.reports.iter().any(|report| report.app.eq_ignore_ascii_case(app));
        let missing: Vec<Report> = installed
            .items()
            .iter()
            .filter(|item| !known(&item.app))
            .map(|item| {
                let barred =
                    self.ledger.page.barred.iter().any(|(app, _)| app.eq_ignore_ascii_case(&item.app));
                let why = if barred { Why::Quarantined } else { Why::UpToDate };
                let offered = (!barred).then(|| (item.version.clone(), item.epoch));
                Report { app: item.app.clone(), offered, taken: false, why: Some(why) }
            })
            .collect();
        self.reports.extend(missing);
        self.reports.iter_mut().filter(|report| report.taken).for_each(Report::is_installed);
    }
}

/// Whether an entry of a bundle may be an app that is installed here.
fn wanted(config: &Config, name: &str) -> bool {
    if config.raw.unlisted_apps == Unlisted::File {
        return true;
    }
    let name = name.to_ascii_lowercase();
    config.apps.keys().any(|app| name.strip_prefix(app.as_str()).is_some_and(|rest| rest.starts_with('_')))
}

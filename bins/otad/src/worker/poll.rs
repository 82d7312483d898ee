//! Asking the server, and deciding what to do about its answer.

use std::sync::Arc;

use edge::release::{Details, Timestamp};

use super::{Plan, Settled, Worker, meter, names};
use crate::choose::{self, Facts, Known, Pick, Report, Why};
use crate::config::{Config, Mode, Unlisted};
use crate::core::Trouble;
use crate::fetch::{self, Answer, Bundle};
use crate::install::{Item, Manifest, State};

/// What came with an answer.
struct Came {
    details: Details,
    /// The answer's.
    tag: Option<String>,
    /// In a bundle.
    content: Vec<Known>,
}

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
        // What is damaged is asked for as if it had never been here, until it is.
        let lacks = |md5| self.damaged.iter().any(|item| item.md5 == md5 && !self.store.has(item));
        let had = known.iter().filter(|k| !lacks(k.md5));
        let mut etags: Vec<String> = had.map(|k| format!("\"{}\"", k.md5)).collect();
        etags.sort();
        etags.dedup();
        let generation = self.store.current().map(|(id, _)| id.to_string());
        let mut query = self.config.ask.query(!(bundle && content), generation.as_deref());
        let mut etags = etags.join(", ");
        let old = self.settled.take().filter(|old| (&old.query, &old.etags) == (&query, &etags));
        let tags = match &old {
            Some(old) if etags.is_empty() => old.tag.clone(),
            Some(old) => format!("{etags}, {}", old.tag),
            None => etags.clone(),
        };
        let mut answer = self.ask(&query, &tags, bundle && content, forced);
        match (&answer, old) {
            (Ok(Answer::NotModified), Some(old)) => {
                self.settled = Some(old);
                return Ok(false);
            }
            // Nothing was heard: what its tag stands for has been dealt with all the same.
            (Err(_), old) => self.settled = old,
            _ => {}
        }
        let runs = |k: &Known| installed.get(&k.app).is_some_and(|item| item.md5 == k.md5);
        if matches!(answer, Ok(Answer::NotModified)) && !known.iter().all(runs) {
            // All that is meant for this device has been here, which is not to say that it runs: an update may have been
            // interrupted after its content had come, or the server has gone back. Which it is, the details say.
            (query, etags) = (self.config.ask.query(true, generation.as_deref()), String::new());
            answer = self.ask(&query, "", false, forced);
        }
        let came = match answer? {
            Answer::Content(came) => came,
            Answer::NotModified => {
                // Of a server that knows no releases, only content: what it means is what runs.
                self.reports = installed.items().iter().map(Report::up_to_date).collect();
                return Ok(false);
            }
            Answer::Nothing => {
                self.reports.clear();
                return Ok(false);
            }
        };
        known.extend(came.content);
        let now = self.now();
        let (picks, reports) = self.choose(&came.details, &installed, &known, now);
        self.reports = reports;
        let update = self.plan(picks, &installed, bundle && !content)?;
        if !update {
            self.damaged.clear();
            self.settled = came.tag.map(|tag| Settled { query, etags, tag });
        }
        Ok(update)
    }

    /// The details, and the content that came with them.
    fn ask(
        &mut self,
        query: &str,
        etags: &str,
        content: bool,
        forced: bool,
    ) -> Result<Answer<Came>, Trouble> {
        let config = Arc::clone(&self.config);
        let mut meter = meter(&mut self.ledger, &config, &self.stop, forced);
        let answer = if content {
            let wanted = |name: &str| wanted(&config, name);
            fetch::fetch_bundle(&self.client, query, etags, &mut self.store, &wanted, &mut meter).map(
                |answer| match answer {
                    Answer::Content(bundle) => {
                        let mut content = Vec::new();
                        for (app, entry) in &bundle.details.0 {
                            let version = &entry.latest.version;
                            if let Some((sums, _)) = bundle.entries.get(&format!("{app}_{version}")) {
                                let (app, version) = (app.clone(), version.clone());
                                let (md5, sha256, size) = (sums.md5, sums.sha256, sums.size);
                                content.push(Known { app, version, md5, sha256, size });
                            }
                        }
                        let Bundle { details, tag, .. } = bundle;
                        Answer::Content(Came { details, tag, content })
                    }
                    Answer::NotModified => Answer::NotModified,
                    Answer::Nothing => Answer::Nothing,
                },
            )
        } else {
            self.client.metadata(query, etags, &mut meter).map(|answer| match answer {
                Answer::Content((details, tag)) => {
                    Answer::Content(Came { details, tag, content: Vec::new() })
                }
                Answer::NotModified => Answer::NotModified,
                Answer::Nothing => Answer::Nothing,
            })
        };
        let mut learnt = false;
        if let Ok(Answer::Content(came)) = &answer {
            for known in &came.content {
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
            damaged: &|item| self.damaged.iter().any(|d| d.app == item.app && d.sha256 == item.sha256),
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
            let Some(item) = item.clone().filter(|item| blind || self.can_get(item, &pick)) else {
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
            // Damage alone is no update.
            taken.iter().for_each(|pick| self.refuse(&pick.app, &Why::UpToDate));
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

    fn can_get(&self, item: &Item, pick: &Pick) -> bool {
        pick.download.is_some() || self.store.has(item)
    }

    pub(super) fn refuse(&mut self, app: &str, why: &Why) {
        for report in self.reports.iter_mut().filter(|report| report.app.eq_ignore_ascii_case(app)) {
            report.taken = false;
            report.why = Some(why.clone());
        }
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

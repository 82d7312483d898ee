//! The install thread: everything that blocks. It owns the store, the ledger and the connection to the server, and does
//! one job of the core after the other.
//!
//! Invariants: what has to be restarted after a rollback is durable before the link goes back; units are only ever
//! restarted for apps whose content differs.

mod poll;
mod programs;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use edge::release::Timestamp;

use crate::choose::{Pick, Report, Why};
use crate::config::{App, Config};
use crate::core::{Done, Job, Trouble};
use crate::fetch::{self, Client, Meter};
use crate::install::{GenId, Item, Manifest, State, Store};
use crate::ledger::Ledger;
use crate::retry;
use crate::units::Systemctl;
use programs::Hook;

/// What is to be installed.
#[derive(Debug, Default)]
struct Plan {
    picks: Vec<Pick>,
    manifest: Manifest,
    generation: Option<GenId>,
}

/// A question, and the tag of the answer to it that left nothing to do: while the server's answer to that question is
/// still the same, so is what it comes to.
#[derive(Debug, PartialEq, Eq)]
struct Settled {
    query: String,
    etags: String,
    tag: String,
}

/// The thread's own.
pub struct Worker {
    config: Arc<Config>,
    client: Client,
    pub store: Store,
    pub ledger: Ledger,
    stop: Arc<AtomicBool>,
    plan: Plan,
    settled: Option<Settled>,
    /// What the update under way would have taken over and can't.
    damaged: Vec<Item>,
    /// What the newest poll came to, per app.
    pub reports: Vec<Report>,
    /// The disk refused to go back: only a new start helps.
    pub fatal: Option<String>,
}

impl Worker {
    #[must_use]
    pub fn new(config: Arc<Config>, store: Store, ledger: Ledger, stop: Arc<AtomicBool>) -> Worker {
        let client = Client::new(&config);
        let (plan, settled, reports) = (Plan::default(), None, Vec::new());
        let damaged = Vec::new();
        Worker { config, client, store, ledger, stop, plan, settled, damaged, reports, fatal: None }
    }

    pub fn set_config(&mut self, config: Arc<Config>) {
        self.client = Client::new(&config);
        self.config = config;
        // Other keys and apps make something else of the same answer.
        self.settled = None;
    }

    /// Does a job of the core.
    pub fn run(&mut self, job: Job) -> Done {
        match job {
            Job::Poll { content, forced } => Done::Polled(self.poll(content, forced)),
            Job::Fetch { forced } => Done::Fetched(self.fetch(forced)),
            Job::Build => Done::Built(self.build()),
            Job::PreHooks => Done::Hooked(self.pre_hooks()),
            Job::Switch => Done::Switched(self.switch()),
            Job::Restart { resumed } => Done::Restarted(self.restart(resumed)),
            Job::Probe { commands } => Done::Probed(self.probe(commands)),
            Job::Commit => Done::Committed(self.commit()),
            Job::RollBack { why, quarantine } => Done::RolledBack(self.roll_back(&why, quarantine)),
            Job::Return => {
                self.restart_returned();
                Done::Returned
            }
        }
    }

    /// [`retry::retry`].
    ///
    /// # Errors
    /// As there.
    pub fn retry(&mut self, which: Option<[u8; 4]>) -> Result<serde_json::Value, String> {
        // What left nothing to do may leave something now.
        self.settled = None;
        retry::retry(&mut self.store, &mut self.ledger, which)
    }

    fn now(&mut self) -> Timestamp {
        let system = Timestamp(edge::clock::unix_s());
        self.store.clock(system).unwrap_or_else(|error| {
            log::warn!("the clock's mark can't be written: {}", edge::log::chain(&error));
            Timestamp(system.0.max(self.store.clock_mark().0))
        })
    }

    fn installed(&self) -> Manifest {
        self.store.current().map(|(_, manifest)| manifest.clone()).unwrap_or_default()
    }

    /// What the update lacks, and what of the rest is damaged. The latter is asked for once more: what the server said of
    /// an app that does not change was not kept, and a bundle left it out.
    fn fetch(&mut self, forced: bool) -> Result<(), Trouble> {
        self.fetch_lacking(forced)?;
        let manifest = self.plan.manifest.clone();
        let damage = self.store.inspect(&manifest, &self.stop).map_err(|error| install_trouble(&error))?;
        if damage.is_empty() {
            return Ok(());
        }
        self.damaged = damage.iter().filter_map(|damage| manifest.get(&damage.app).cloned()).collect();
        if !self.poll(true, forced)? {
            self.damaged.clear();
            return Err(Trouble::Passing(
                "the server's answer has changed in the middle of the update".into(),
            ));
        }
        self.fetch_lacking(forced)?;
        let wanted = self.plan.manifest.items().to_vec();
        for item in wanted {
            if self.store.has(&item) {
                continue;
            }
            log::warn!(
                "{} {} is damaged, and the server does not offer it any more: it is taken over as it is; a newer release of it \
                 mends it",
                item.app,
                item.version
            );
            self.store.accept(&item.app);
        }
        Ok(())
    }

    fn fetch_lacking(&mut self, forced: bool) -> Result<(), Trouble> {
        let lacking: Vec<(Item, Option<String>)> = self
            .plan
            .picks
            .iter()
            .filter_map(|pick| Some((pick.item()?, pick.download.clone())))
            .filter(|(item, _)| !self.store.has(item))
            .collect();
        self.check_space(&lacking)?;
        let config = Arc::clone(&self.config);
        let mut result = Ok(());
        for (item, download) in &lacking {
            let Some(download) = download else {
                // It was here when the poll said so.
                self.ledger.forget(&item.sha256);
                let why = format!("the content of {} is gone; the next poll brings it", item.app);
                result = Err(Trouble::Passing(why));
                break;
            };
            let sums = edge::release::Sums { sha256: item.sha256, md5: item.md5, size: item.size };
            let mut meter = meter(&mut self.ledger, &config, &self.stop, forced);
            result = fetch::fetch_blob(&self.client, download, &sums, &mut self.store, &mut meter)
                .map_err(|trouble| named(&item.app, trouble));
            if result.is_err() {
                break;
            }
        }
        if !lacking.is_empty() {
            self.ledger.save().map_err(|error| Trouble::Passing(edge::log::chain(&error)))?;
        }
        result
    }

    /// All of it fits, or nothing is fetched.
    fn check_space(&self, lacking: &[(Item, Option<String>)]) -> Result<(), Trouble> {
        let rest = |item: &Item| item.size.saturating_sub(self.store.partial_bytes(&item.sha256));
        let need: u64 = lacking.iter().map(|(item, _)| rest(item)).sum();
        let (free, keep) = (edge::fs::free_bytes(self.store.dir()), self.config.raw.limits.free_min.0);
        match free {
            Ok(free) if need > 0 && free < need.saturating_add(keep) => {
                let text = edge::text::bytes;
                Err(Trouble::Space(format!(
                    "no space: the update needs {}, {} are to stay free (limits.free-min), and {} are free",
                    text(need),
                    text(keep),
                    text(free)
                )))
            }
            _ => Ok(()),
        }
    }

    fn build(&mut self) -> Result<(), Trouble> {
        let id = self.store.build(&self.plan.manifest).map_err(|error| install_trouble(&error))?;
        self.plan.generation = Some(id);
        self.damaged.clear();
        Ok(())
    }

    fn pre_hooks(&mut self) -> Result<(), Trouble> {
        let Some(id) = self.plan.generation else { return Err(Trouble::Refused("nothing was built".into())) };
        let (old, new) = (self.installed(), self.plan.manifest.clone());
        for item in changed(&old, &new) {
            if let Some(app) = self.config.app(&item.app) {
                let hook = Hook { action: "pre-install", argv: &app.pre_install, resumed: false };
                self.hook(hook, &item, &id, &old)
                    .map_err(|why| Trouble::Refused(format!("{why}: it is asked again at the next poll")))?;
            }
        }
        Ok(())
    }

    fn switch(&mut self) -> Result<(), Trouble> {
        let Some(id) = self.plan.generation else { return Err(Trouble::Refused("nothing was built".into())) };
        let now = self.now();
        let switched = self.store.begin_trial(&id).and_then(|()| self.store.switch(now));
        switched.map_err(|error| install_trouble(&error))?;
        log::info!("switched to {id}: {}", names(&self.plan.picks));
        Ok(())
    }

    /// The items that the trial changes, as they are tried; what it is; and what ran before.
    fn trial(&self) -> Option<(Vec<Item>, GenId, Manifest)> {
        let (id, new) = self.store.trial()?;
        let old = self.installed();
        Some((changed(&old, new), *id, old))
    }

    fn restart(&mut self, resumed: bool) -> Result<bool, String> {
        let Some((items, id, old)) = self.trial() else { return Err("there is no trial".into()) };
        let mut watch = false;
        for item in &items {
            let Some(app) = self.config.app(&item.app) else { continue };
            self.hook(Hook { action: "post-install", argv: &app.post_install, resumed }, item, &id, &old)?;
            self.hook(Hook { action: "install", argv: &app.handler, resumed }, item, &id, &old)?;
            watch |= !app.unit.is_empty() || !app.health.is_empty();
        }
        for item in &items {
            if let Some(app) = self.config.app(&item.app)
                && let Err(why) = self.restart_unit(&app)
            {
                // Whether it gets well is for the health check to say.
                log::warn!("{why}");
            }
        }
        Ok(watch || !self.config.raw.health.command.is_empty())
    }

    fn restart_unit(&self, app: &App) -> Result<(), String> {
        if app.unit.is_empty() {
            return Ok(());
        }
        log::info!("restarting {}", app.unit);
        let timeout = self.config.policy.active_within.max(Duration::from_secs(5));
        let systemctl = Systemctl { program: &self.config.raw.systemctl, stop: &self.stop };
        systemctl.restart(&app.unit, timeout)
    }

    fn probe(&mut self, commands: bool) -> Result<String, String> {
        let Some((items, id, old)) = self.trial() else { return Err("there is no trial".into()) };
        let systemctl = Systemctl { program: &self.config.raw.systemctl, stop: &self.stop };
        let mut marks = String::new();
        let apps: Vec<(Item, App)> =
            items.into_iter().filter_map(|item| Some((item.clone(), self.config.app(&item.app)?))).collect();
        for (_, app) in apps.iter().filter(|(_, app)| !app.unit.is_empty()) {
            marks += &systemctl.probe(&app.unit)?;
            marks.push('\n');
        }
        if !commands {
            return Ok(marks);
        }
        for (item, app) in &apps {
            self.hook(Hook { action: "health", argv: &app.health, resumed: false }, item, &id, &old)?;
        }
        let command = &self.config.raw.health.command;
        if !command.is_empty() {
            let env = [("OTAD_ACTION", "health".to_owned()), ("OTAD_GENERATION", id.to_string())];
            self.command("health command", command, &env, self.health_timeout())?;
        }
        Ok(marks)
    }

    fn commit(&mut self) -> Result<(), String> {
        let Some((items, id, old)) = self.trial() else { return Err("there is no trial".into()) };
        let now = self.now();
        self.store.commit(now).map_err(|error| edge::log::chain(&error))?;
        log::info!("{id} is well: committed");
        self.reports.iter_mut().filter(|report| report.taken).for_each(Report::is_installed);
        let named: Vec<bool> = items.iter().map(|item| self.ledger.settle(&item.app)).collect();
        if named.contains(&true)
            && let Err(error) = self.ledger.save()
        {
            // It costs a second question at each poll.
            log::warn!("{}", edge::log::chain(&error));
        }
        for item in &items {
            if let Some(app) = self.config.app(&item.app)
                && let Err(why) =
                    self.hook(Hook { action: "commit", argv: &app.handler, resumed: false }, item, &id, &old)
            {
                log::error!("{why}");
            }
        }
        self.tidy();
        Ok(())
    }

    fn tidy(&mut self) {
        self.plan = Plan::default();
        if let Err(error) = self.store.gc(&[]) {
            log::warn!("what is not needed any more stays for now: {}", edge::log::chain(&error));
        }
    }

    fn roll_back(&mut self, why: &str, quarantine: bool) -> Result<(), String> {
        let (bad, good) = match self.store.trial() {
            Some((_, bad)) => (bad.clone(), self.installed()),
            None => {
                let previous = self.store.previous().map(|(_, manifest)| manifest.clone());
                (self.installed(), previous.ok_or("there is no earlier generation to roll back to")?)
            }
        };
        let differ = changed(&good, &bad);
        self.ledger.page.owed = differ.iter().map(|item| item.app.clone()).collect();
        for item in &differ {
            // Else a server that sends bundles sends it again with each.
            self.ledger.learn(item.into());
        }
        if let ([only], true) = (differ.as_slice(), quarantine) {
            self.ledger.bar(&only.app, only.sha256, bad.hash());
        }
        log::error!("rolling back: {why}");
        if let Err(error) = self.ledger.save() {
            // It only matters if otad ends before the units have been restarted: no reason to leave what failed running.
            log::warn!("which units have to be restarted can't be noted: {}", edge::log::chain(&error));
        }
        let now = self.now();
        if let Err(error) = self.store.roll_back(why, quarantine, now) {
            let text = edge::log::chain(&error);
            if matches!(self.store.state(), State::Trial { .. }) {
                if self.store.is_back() {
                    self.restart_returned();
                }
                self.fatal = Some(text.clone());
            } else {
                // Refused: nothing has changed, so nothing failed.
                self.ledger.page.owed.clear();
                self.ledger.unbar(&bad.hash());
                self.ledger.save().map_err(|error| edge::log::chain(&error))?;
            }
            return Err(text);
        }
        for item in &differ {
            self.refuse(&item.app, &Why::Quarantined);
        }
        Ok(())
    }

    /// What is back runs again.
    fn restart_returned(&mut self) {
        let current = self.store.current().map(|(id, manifest)| (*id, manifest.clone()));
        for name in self.ledger.page.owed.clone() {
            let Some(app) = self.config.app(&name) else { continue };
            let back = current.as_ref().and_then(|(id, manifest)| Some((manifest.get(&name)?, id, manifest)));
            if let Err(why) = self.roll_back_hook(&name, &app.handler, back) {
                log::error!("{why}");
            }
            if let Err(why) = self.restart_unit(&app) {
                log::error!("{why}");
            }
        }
        self.ledger.page.owed.clear();
        if let Err(error) = self.ledger.save() {
            log::warn!("{}", edge::log::chain(&error));
        }
        self.tidy();
    }
}

fn meter<'a>(ledger: &'a mut Ledger, config: &Config, stop: &'a AtomicBool, forced: bool) -> Meter<'a> {
    Meter { ledger, budget: config.raw.budget_per_day.0, day: today(config), stop, forced }
}

/// Days since 1970 on the windows' clock.
#[must_use]
pub fn today(config: &Config) -> i64 {
    let now = edge::clock::unix_s();
    (now + config.clock_offset_s(now)).div_euclid(86_400)
}

fn same_content(a: &Item, b: &Item) -> bool {
    a.kind == b.kind && a.sha256 == b.sha256
}

/// The items of `new` whose content `old` has not.
fn changed(old: &Manifest, new: &Manifest) -> Vec<Item> {
    let differs = |item: &&Item| old.get(&item.app).is_none_or(|old| !same_content(old, item));
    new.items().iter().filter(differs).cloned().collect()
}

fn names(picks: &[Pick]) -> String {
    picks.iter().map(|pick| format!("{} {}", pick.app, pick.version)).collect::<Vec<_>>().join(", ")
}

fn named(app: &str, trouble: Trouble) -> Trouble {
    match trouble {
        Trouble::Passing(why) => Trouble::Passing(format!("{app}: {why}")),
        Trouble::Busy(after, why) => Trouble::Busy(after, format!("{app}: {why}")),
        Trouble::Refused(why) => Trouble::Refused(format!("{app}: {why}")),
        Trouble::Space(why) => Trouble::Space(format!("{app}: {why}")),
        Trouble::Budget(why) => Trouble::Budget(format!("{app}: {why}")),
    }
}

fn install_trouble(error: &crate::install::Error) -> Trouble {
    let why = edge::log::chain(error);
    if error.is_space() { Trouble::Space(why) } else { Trouble::Refused(why) }
}

//! The programs of apps: hooks, handlers and health commands, with their environment.

use std::time::Duration;

use super::Worker;
use crate::install::{GenId, Item, Manifest};
use crate::units::Run;

/// A program of an app, and what for.
pub(super) struct Hook<'a> {
    pub action: &'static str,
    pub argv: &'a [String],
    pub resumed: bool,
}

impl Worker {
    pub(super) fn hook(&self, hook: Hook<'_>, item: &Item, id: &GenId, old: &Manifest) -> Result<(), String> {
        if hook.argv.is_empty() {
            return Ok(());
        }
        let path = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        let before = old.get(&item.app);
        let old_path = before.zip(self.store.current()).map(|(_, (id, _))| self.store.app_dir(id, &item.app));
        let env = [
            ("OTAD_ACTION", hook.action.to_owned()),
            ("OTAD_APP", item.app.clone()),
            ("OTAD_VERSION", item.version.clone()),
            ("OTAD_PATH", path(self.store.app_dir(id, &item.app))),
            ("OTAD_OLD_VERSION", before.map(|item| item.version.clone()).unwrap_or_default()),
            ("OTAD_OLD_PATH", old_path.map(path).unwrap_or_default()),
            ("OTAD_GENERATION", id.to_string()),
            ("OTAD_RESUMED", u8::from(hook.resumed).to_string()),
        ];
        let limits = &self.config.raw.limits;
        let timeout = match hook.action {
            "pre-install" | "post-install" => Duration::from_secs(limits.hook_timeout_s),
            "health" => self.health_timeout(),
            _ => Duration::from_secs(limits.handler_timeout_s),
        };
        self.command(&format!("{} {}", item.app, hook.action), hook.argv, &env, timeout)
    }

    /// Tells a handler what is back; `None`: there was nothing of this app before.
    pub(super) fn roll_back_hook(
        &self,
        name: &str,
        handler: &[String],
        back: Option<(&Item, &GenId, &Manifest)>,
    ) -> Result<(), String> {
        if let Some((item, id, manifest)) = back {
            return self.hook(Hook { action: "rollback", argv: handler, resumed: false }, item, id, manifest);
        }
        if handler.is_empty() {
            return Ok(());
        }
        let nothing = ["OTAD_VERSION", "OTAD_PATH", "OTAD_OLD_VERSION", "OTAD_OLD_PATH", "OTAD_GENERATION"];
        let mut env: Vec<(&'static str, String)> = nothing.map(|key| (key, String::new())).into();
        env.extend([
            ("OTAD_ACTION", "rollback".into()),
            ("OTAD_APP", name.into()),
            ("OTAD_RESUMED", "0".into()),
        ]);
        let timeout = Duration::from_secs(self.config.raw.limits.handler_timeout_s);
        self.command(&format!("{name} rollback"), handler, &env, timeout)
    }

    pub(super) fn health_timeout(&self) -> Duration {
        Duration::from_secs(self.config.raw.health.command_timeout_s)
    }

    pub(super) fn command(
        &self,
        label: &str,
        argv: &[String],
        env: &[(&'static str, String)],
        timeout: Duration,
    ) -> Result<(), String> {
        Run { label, argv, env, timeout, stop: &self.stop, log: true }.output().map(drop)
    }
}

//! What a change leads to: restart, a signal, or nothing but the sync. Globs as in .gitignore; no I/O.
//!
//! Invariant: the first rule that matches a file decides for it; of several files the strongest action counts. What
//! editors and interpreters leave behind starts no sync (it goes along with the next one), unless a rule names it.

use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::debounce::Changes;
use crate::config::{Action, Rule};

/// Names of files that no person saves.
const LITTER: [&str; 13] = [
    "*.sw[a-p]",
    "*~",
    "4913",
    ".#*",
    "\\#*#",
    "*.pyc",
    "*.pyo",
    "__pycache__/",
    ".goutputstream-*",
    "*.kate-swp",
    "*___jb_tmp___",
    "*___jb_old___",
    ".*.tmp",
];

/// A glob is wrong.
#[derive(Debug, thiserror::Error)]
#[error("the glob {glob:?} of [dev] in sideload.toml is wrong")]
pub struct Error {
    /// As configured.
    pub glob: String,
    source: ignore::Error,
}

/// See the module's text.
#[derive(Debug)]
pub struct Rules {
    rules: Vec<(Gitignore, Action)>,
    litter: Gitignore,
}

/// Globs relative to `top` that match as lines of a .gitignore there do.
pub(super) fn globs<'a>(top: &Path, globs: impl IntoIterator<Item = &'a str>) -> Result<Gitignore, Error> {
    let mut builder = GitignoreBuilder::new(top);
    for glob in globs {
        builder.add_line(None, glob).map_err(|source| Error { glob: glob.to_owned(), source })?;
    }
    builder.build().map_err(|source| Error { glob: String::new(), source })
}

pub(super) fn matches(globs: &Gitignore, path: &Path) -> bool {
    path.starts_with(globs.path()) && globs.matched_path_or_any_parents(path, false).is_ignore()
}

impl Rules {
    /// For the folder `top` (absolute).
    ///
    /// # Errors
    /// A glob is wrong.
    pub fn new(top: &Path, rules: &[Rule]) -> Result<Rules, Error> {
        let compiled = rules
            .iter()
            .map(|rule| Ok((globs(top, rule.files.iter().map(String::as_str))?, rule.action.clone())));
        Ok(Rules { rules: compiled.collect::<Result<_, Error>>()?, litter: globs(top, LITTER)? })
    }

    fn of(&self, path: &Path) -> Option<&Action> {
        self.rules.iter().find(|(globs, _)| matches(globs, path)).map(|(_, action)| action)
    }

    /// Whether a change of this file is worth a sync of its own.
    #[must_use]
    pub fn counts(&self, path: &Path) -> bool {
        !matches(&self.litter, path) || self.of(path).is_some()
    }

    /// What happens after these changes are on the device. Of two different signals the first one by path counts.
    #[must_use]
    pub fn action(&self, changes: &Changes) -> Action {
        let Some(paths) = changes.paths() else { return Action::Restart };
        let mut strongest = Action::Sync;
        for path in paths {
            match (self.of(path), &strongest) {
                (None | Some(Action::Restart), _) => return Action::Restart,
                (Some(signal @ Action::Signal(_)), Action::Sync) => strongest = signal.clone(),
                _ => {}
            }
        }
        strongest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(paths: &[&str]) -> Changes {
        Changes::Paths(paths.iter().map(|p| Path::new("/app").join(p)).collect())
    }

    #[test]
    fn the_first_rule_decides_and_the_strongest_action_counts() {
        let rule =
            |files: &[&str], action| Rule { files: files.iter().map(|f| (*f).to_owned()).collect(), action };
        let hup = || Action::Signal("HUP".into());
        let rules = Rules::new(
            Path::new("/app"),
            &[
                rule(&["/web/main.html"], Action::Restart),
                rule(&["*.html", "/static/"], Action::Sync),
                rule(&["conf/**/*.toml", "!conf/fixed.toml"], hup()),
            ],
        )
        .unwrap();
        for (paths, expected) in [
            (&["a.py"][..], Action::Restart),
            (&["x/y.html", "static/a/b.css"], Action::Sync),
            (&["web/main.html"], Action::Restart),
            (&["web/other.html"], Action::Sync),
            (&["conf/a/b.toml", "y.html"], hup()),
            (&["conf/a/b.toml", "y.html", "lib.so"], Action::Restart),
            (&["conf/fixed.toml"], Action::Restart),
            (&["sub/static/b.css"], Action::Restart),
        ] {
            assert_eq!(rules.action(&changes(paths)), expected, "{paths:?}");
        }
        assert_eq!(rules.action(&Changes::All), Action::Restart);
        assert!(Rules::new(Path::new("/app"), &[rule(&["a{b"], Action::Sync)]).is_err());
    }

    #[test]
    fn litter_starts_nothing_unless_it_is_named() {
        let rules = Rules::new(Path::new("/app"), &[]).unwrap();
        for litter in ["a/.app.py.swp", "app.py~", "4913", "x/__pycache__/a.pyc", "#a.py#", ".#a.py"] {
            assert!(!rules.counts(&Path::new("/app").join(litter)), "{litter}");
        }
        for kept in ["app.py", "swp", "49131", ".env", "a#b", "pycache/x"] {
            assert!(rules.counts(&Path::new("/app").join(kept)), "{kept}");
        }
        let rule = Rule { files: vec!["*.pyc".into()], action: Action::Sync };
        assert!(Rules::new(Path::new("/app"), &[rule]).unwrap().counts(Path::new("/app/a.pyc")));
    }
}

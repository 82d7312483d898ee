//! What the agent itself remembers across restarts: bytes of the day, content it has had in hand, ETags of downloads under
//! way, units that still have to be restarted.
//!
//! The file `agent` beside the store's own, sealed as those are. Nothing in it is needed for safety: a lost one costs a
//! download. Invariant: the day's bytes on disk are never less than what came, since they are booked in advance.

use std::path::{Path, PathBuf};

use edge::release::Sha256;
use serde::{Deserialize, Serialize};

use crate::choose::Known;
use crate::install;

/// Most contents that are remembered.
const KNOWN_MAX: usize = 64;
/// Most downloads under way.
const ETAGS_MAX: usize = 16;
/// Bytes that are booked in advance.
const BOOKED: u64 = 4 << 20;

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Page {
    /// Days since 1970 on the windows' clock, and the bytes received on it.
    pub day: i64,
    pub bytes: u64,
    /// Oldest first.
    pub known: Vec<Known>,
    /// Content of an app that was the only change of an update that failed.
    pub barred: Vec<(String, Sha256)>,
    /// Such content, and the manifest that it failed in.
    pub failed_in: Vec<(Sha256, Sha256)>,
    pub etags: Vec<(Sha256, String)>,
    /// A rollback was decided; the units of these apps may still run what is gone.
    pub owed: Vec<String>,
    /// The boot that otad was started in last.
    pub boot: String,
}

/// The page, and where it is kept.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    pub page: Page,
    booked: u64,
}

impl Ledger {
    /// Reads it; one that is missing or damaged is empty.
    ///
    /// # Errors
    /// The disk refuses to be read.
    pub fn open(dir: &Path) -> Result<Ledger, edge::fs::Error> {
        let path = dir.join("agent");
        let page: Page = match std::fs::read(&path) {
            Ok(bytes) => install::decode(&bytes).unwrap_or_else(|| {
                log::warn!("{} is damaged: what it remembered is forgotten", path.display());
                Page::default()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Page::default(),
            Err(error) => return Err(edge::fs::context("read", &path)(error)),
        };
        let booked = page.bytes;
        Ok(Ledger { path, page, booked })
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// The disk fails.
    pub fn save(&mut self) -> Result<(), edge::fs::Error> {
        self.booked = self.page.bytes;
        self.write(self.page.bytes)
    }

    fn write(&self, bytes: u64) -> Result<(), edge::fs::Error> {
        let page = Page { bytes, ..self.page.clone() };
        edge::fs::write_durably(&self.path, &install::encode(&page), 0o600)
    }

    /// Bytes are about to be received on this day; where there is a budget, durably.
    ///
    /// # Errors
    /// The disk fails.
    pub fn spend(&mut self, day: i64, bytes: u64, durable: bool) -> Result<(), edge::fs::Error> {
        if day != self.page.day {
            (self.page.day, self.page.bytes, self.booked) = (day, 0, 0);
        }
        self.page.bytes = self.page.bytes.saturating_add(bytes);
        if durable && self.page.bytes > self.booked {
            self.booked = self.page.bytes.saturating_add(BOOKED);
            self.write(self.booked)?;
        }
        Ok(())
    }

    /// Bytes received on this day.
    #[must_use]
    pub fn spent(&self, day: i64) -> u64 {
        if day == self.page.day { self.page.bytes } else { 0 }
    }

    /// Remembers content; whether that was new.
    pub fn learn(&mut self, known: Known) -> bool {
        if self.page.known.contains(&known) {
            return false;
        }
        self.page.known.push(known);
        let excess = self.page.known.len().saturating_sub(KNOWN_MAX);
        self.page.known.drain(..excess);
        true
    }

    /// Content that is gone: without the hint the server sends it again with the next poll.
    pub fn forget(&mut self, sha256: &Sha256) {
        self.page.known.retain(|known| known.sha256 != *sha256);
    }

    /// An app was committed: what came of it before is not named to the server any more, so that its "nothing new" means
    /// what runs. Whether there was something.
    pub fn settle(&mut self, app: &str) -> bool {
        let before = self.page.known.len();
        self.page.known.retain(|known| !known.app.eq_ignore_ascii_case(app));
        self.page.known.len() < before
    }

    /// This content of the app failed by itself, in this manifest.
    pub fn bar(&mut self, app: &str, sha256: Sha256, manifest: Sha256) {
        self.page.barred.push((app.to_ascii_lowercase(), sha256));
        self.page.failed_in.push((sha256, manifest));
        let excess = self.page.barred.len().saturating_sub(KNOWN_MAX);
        self.page.barred.drain(..excess);
        let excess = self.page.failed_in.len().saturating_sub(KNOWN_MAX);
        self.page.failed_in.drain(..excess);
    }

    /// What failed in this manifest may be tried again.
    pub fn unbar(&mut self, manifest: &Sha256) {
        let page = &mut self.page;
        let freed: Vec<Sha256> =
            page.failed_in.iter().filter(|(_, in_it)| in_it == manifest).map(|(sha256, _)| *sha256).collect();
        page.barred.retain(|(_, sha256)| !freed.contains(sha256));
        page.failed_in.retain(|(sha256, _)| !freed.contains(sha256));
    }

    #[must_use]
    pub fn is_barred(&self, app: &str, sha256: &Sha256) -> bool {
        self.page.barred.iter().any(|(a, s)| s == sha256 && a.eq_ignore_ascii_case(app))
    }

    #[must_use]
    pub fn etag(&self, sha256: &Sha256) -> Option<&str> {
        self.page.etags.iter().find(|(s, _)| s == sha256).map(|(_, etag)| etag.as_str())
    }

    /// What a download that is under way is called; `None`: it is over. Whether that was new.
    pub fn set_etag(&mut self, sha256: &Sha256, etag: Option<&str>) -> bool {
        if self.etag(sha256) == etag {
            return false;
        }
        self.page.etags.retain(|(s, _)| s != sha256);
        self.page.etags.extend(etag.map(|etag| (*sha256, etag.to_owned())));
        let excess = self.page.etags.len().saturating_sub(ETAGS_MAX);
        self.page.etags.drain(..excess);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_the_day_are_never_too_few_on_disk() {
        let dir = std::env::temp_dir().join(format!("otad-ledger-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let mut ledger = Ledger::open(&dir).unwrap();
        ledger.spend(5, 1000, true).unwrap();
        assert_eq!((ledger.spent(5), ledger.spent(6)), (1000, 0));
        assert!(Ledger::open(&dir).unwrap().spent(5) >= 1000, "a crash loses nothing of it");
        ledger.spend(5, 1000, true).unwrap();
        ledger.bar("App", edge::release::Digest([1; 32]), edge::release::Digest([3; 32]));
        ledger.bar("other", edge::release::Digest([4; 32]), edge::release::Digest([5; 32]));
        assert!(ledger.set_etag(&edge::release::Digest([2; 32]), Some("\"x\"")));
        ledger.save().unwrap();
        let mut ledger = Ledger::open(&dir).unwrap();
        assert_eq!(ledger.spent(5), 2000);
        assert!(ledger.is_barred("aPP", &edge::release::Digest([1; 32])));
        assert_eq!(ledger.etag(&edge::release::Digest([2; 32])), Some("\"x\""));
        ledger.unbar(&edge::release::Digest([3; 32]));
        assert!(!ledger.is_barred("app", &edge::release::Digest([1; 32])));
        assert!(ledger.is_barred("other", &edge::release::Digest([4; 32])), "it failed in another one");
        ledger.spend(6, 1, true).unwrap();
        assert_eq!(Ledger::open(&dir).unwrap().spent(5), 0);
        std::fs::write(dir.join("agent"), "junk").unwrap();
        assert_eq!(Ledger::open(&dir).unwrap().page, Page::default());
        std::fs::remove_dir_all(dir).unwrap();
    }
}

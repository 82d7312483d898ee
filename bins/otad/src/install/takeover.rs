//! What a new generation takes over of what is here, looked at before it gets another name.
//!
//! Invariants: what differs from what was recorded (type, mode, size or content) is linked only where [`Store::accept`]
//! said so; what was looked at counts for the next build only. Nothing of a generation is changed; damaged content is
//! removed from `blobs`, so that it is fetched like content that was never here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use edge::release::Sha256;

use super::disk::remove_file;
use super::{Damage, Error, GenId, Item, Manifest, Store};

/// Content whose bytes this process has hashed since the last build. Shared with what is still being written.
#[derive(Clone, Debug, Default)]
pub(super) struct Proven(Arc<Mutex<BTreeSet<Sha256>>>);

impl Proven {
    fn set(&self) -> std::sync::MutexGuard<'_, BTreeSet<Sha256>> {
        // One that was left in a panic is whole: nothing is ever half inserted.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, sha256: Sha256) {
        self.set().insert(sha256);
    }

    pub(super) fn contains(&self, sha256: &Sha256) -> bool {
        self.set().contains(sha256)
    }

    pub(super) fn clear(&self) {
        self.set().clear();
    }
}

/// What was found so far, for the next build.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// The folders of apps in generations; true: as it was installed.
    folders: BTreeMap<(GenId, String), bool>,
    /// Apps that are taken over whatever they are like.
    accepted: BTreeSet<String>,
}

impl Store {
    /// Compares what a generation of this manifest would take over of what is here with what was recorded, by content.
    /// What is returned can't be taken over, and its content has to be fetched ([`Store::has`]). It reads all of it, on
    /// a device with slow storage for minutes; `stop` ends it.
    ///
    /// # Errors
    /// It was stopped, or damaged content can't be removed.
    pub fn inspect(&mut self, manifest: &Manifest, stop: &AtomicBool) -> Result<Vec<Damage>, Error> {
        self.looked = Looked::default();
        self.look_over(manifest, stop)
    }

    /// As [`Store::inspect`]; what has been looked at is not looked at again.
    pub(super) fn look_over(&mut self, manifest: &Manifest, stop: &AtomicBool) -> Result<Vec<Damage>, Error> {
        let mut damage = Vec::new();
        for item in manifest.items() {
            let why = self.look_at(item, stop)?;
            damage.extend(why.map(|why| Damage { app: item.app.clone(), why }));
        }
        Ok(damage)
    }

    /// Why there is nothing sound of an item any more; `None`: there is, or there never was.
    fn look_at(&mut self, item: &Item, stop: &AtomicBool) -> Result<Option<String>, Error> {
        let mut found = None;
        for id in self.holders(item) {
            let key = (id, item.app.clone());
            if !self.looked.folders.contains_key(&key) {
                let tree = self.known.get(&id).and_then(|file| file.trees.get(&item.app));
                let why = super::verify::check(&self.app_dir(&id, &item.app), item, tree, stop)?;
                if let Some(why) = &why {
                    log::warn!("{} of {id} is damaged ({why}): it is not taken over", item.app);
                }
                self.looked.folders.insert(key.clone(), why.is_none());
                found = found.or(why);
            }
            if self.looked.folders.get(&key) == Some(&true) {
                return Ok(None);
            }
        }
        let Some(blob) = self.blob(&item.sha256).filter(|_| !self.proven.contains(&item.sha256)) else {
            return Ok(found.filter(|_| !self.has(item)));
        };
        if super::verify::sha256_of(&blob.path, stop).is_ok_and(|sha256| sha256 == item.sha256) {
            self.proven.insert(item.sha256);
            return Ok(None);
        }
        if stop.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Error::Stopped);
        }
        log::warn!("{} is damaged: it is removed", blob.path.display());
        remove_file(&blob.path)?;
        Ok(Some(found.unwrap_or_else(|| "its content was changed".to_owned())))
    }

    /// Takes the app over in the next build although it is damaged: where its content is not to be had any more, that is
    /// no worse than what runs, and a newer release of another app is not held up.
    pub fn accept(&mut self, app: &str) {
        self.looked.accepted.insert(app.to_owned());
    }

    /// Whether what an item needs is here, as far as is known.
    #[must_use]
    pub fn has(&self, item: &Item) -> bool {
        let sound = |id: &GenId| match self.looked.folders.get(&(*id, item.app.clone())) {
            Some(sound) => *sound,
            None => self.app_dir(id, &item.app).is_dir(),
        };
        self.holders(item).iter().any(sound) || self.blob(&item.sha256).is_some()
    }

    /// The generation whose folder of the app is linked.
    pub(super) fn folder_for(&self, item: &Item) -> Option<GenId> {
        let sound = |id: &GenId| self.looked.folders.get(&(*id, item.app.clone())) == Some(&true);
        self.holders(item).into_iter().find(sound)
    }

    /// As [`Store::folder_for`], where it is taken as it is.
    pub(super) fn accepted_folder_for(&self, item: &Item) -> Option<GenId> {
        let there = |id: &GenId| self.app_dir(id, &item.app).is_dir();
        let holders = self.looked.accepted.contains(&item.app).then(|| self.holders(item))?;
        holders.into_iter().find(there)
    }

    /// The generations that are kept and have the same of the app, the newest first.
    fn holders(&self, item: &Item) -> Vec<GenId> {
        let same = |id: &GenId| {
            let known = self.known.get(id).and_then(|file| file.manifest.get(&item.app));
            known.is_some_and(|known| known.same_folder(item))
        };
        self.record.kept.iter().rev().copied().filter(same).collect()
    }
}

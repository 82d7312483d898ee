//! `sorter-stitch`: the one thread that makes panoramas. Nobody waits for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use edge::log::chain;

use super::{Done, Order, Out};
use crate::album::{Album, Wanted};
use crate::core::{Kept, Stitch};
use crate::message::{ImageName, Session};
use crate::panel::{Panel, Step};
use crate::plan::Shot;
use crate::shelf::{PANORAMAS, Shelf};
use crate::vision::{Picture, StitchConfig, StitchError, draw, stitch};

pub(super) struct Stitcher {
    pub album: Album,
    pub shelf: Shelf,
    pub config: StitchConfig,
    pub quality: u8,
    pub panel: Arc<Panel>,
    pub out: Out,
}

impl Stitcher {
    pub fn run(self, queue: &Receiver<Order>) {
        while let Ok((stitch, after)) = queue.recv() {
            let (session, name, kind) = match &stitch {
                Stitch::Original { session, .. } => (session.clone(), PANORAMAS[0], "comm_gen"),
                Stitch::After { session } => (session.clone(), PANORAMAS[1], "after"),
            };
            let made = self.stitch(&stitch, after, &session, name, kind);
            self.out.send(Done::Stitched(made.map_err(|why| (session, kind, why))));
        }
    }

    fn stitch(
        &self,
        stitch: &Stitch,
        after: Vec<Wanted>,
        session: &Session,
        name: &str,
        kind: &str,
    ) -> Result<(Kept, usize), String> {
        let tell = |step: Step| self.panel.tell(session, kind, step);
        tell(Step::Stitching);
        let (pictures, shown) = match stitch {
            Stitch::Original { shots, groups, .. } => {
                let wanted: Vec<Wanted> = shots.iter().map(Shot::wanted).collect();
                let pictures = self.pictures(session, &wanted)?;
                let mut shown = pictures.clone();
                for (picture, shot) in shown.iter_mut().zip(shots) {
                    let boxes: Vec<_> =
                        shot.objects.iter().map(|(id, found)| (*found, groups.get(id).copied())).collect();
                    draw::boxes(picture, &boxes).map_err(|error| chain(&error))?;
                }
                tell(Step::Drawn);
                (pictures, Some(shown))
            }
            Stitch::After { session } => (self.pictures(session, &self.all_after(session, after))?, None),
        };
        let panorama = stitch::panorama(pictures, shown, &self.config).map_err(|error| chain(&error))?;
        tell(Step::Stitched);
        let bytes = panorama.picture.encode_jpeg(self.quality).map_err(|error| chain(&error))?;
        self.shelf.put(session, name, &bytes).map_err(|error| chain(&error))?;
        tell(Step::Saved);
        Ok((Kept { session: session.clone(), name: name.to_owned(), bytes }, panorama.used))
    }

    /// The pictures taken afterwards in the order of their pulse widths: those that the database told, and those here.
    fn all_after(&self, session: &Session, told: Vec<Wanted>) -> Vec<Wanted> {
        let known = |wanted: Wanted| {
            let name = ImageName::parse(wanted.name.strip_prefix("after_")?).ok()?;
            Some((name, wanted))
        };
        let mut all: BTreeMap<ImageName, Wanted> = told.into_iter().filter_map(known).collect();
        for name in self.shelf.after(session) {
            let here = || Wanted { name: name.after_file(), size: None, sha256: None };
            all.entry(name).or_insert_with(here);
        }
        all.into_values().collect()
    }

    /// Reads the pictures, after those that are not here were fetched.
    fn pictures(&self, session: &Session, wanted: &[Wanted]) -> Result<Vec<Picture>, String> {
        let (count, max) = (wanted.len(), self.config.pictures_max);
        if count > max {
            return Err(chain(&StitchError::Many { count, max }));
        }
        let read = |wanted| self.album.read(session, wanted);
        let mut pictures: Vec<Option<Picture>> = wanted.iter().map(read).collect::<Result<_, _>>()?;
        let missing = wanted.iter().zip(&pictures).filter(|(_, picture)| picture.is_none());
        let missing: Vec<Wanted> = missing.map(|(wanted, _)| wanted.clone()).collect();
        if !missing.is_empty() {
            let fetched = self.album.bring(session, &missing, self.album.deadline())?;
            self.out.send(Done::Fetched(fetched));
        }
        for (picture, wanted) in pictures.iter_mut().zip(wanted) {
            if picture.is_none() {
                *picture = read(wanted)?;
            }
        }
        let all: Option<Vec<Picture>> = pictures.into_iter().collect();
        all.ok_or_else(|| "the pictures of the session changed meanwhile".to_owned())
    }
}

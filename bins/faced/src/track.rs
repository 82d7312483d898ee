//! Faces through time: which detection belongs to which face, and which sight of it was the best.
//!
//! Owns: the tracks of one camera. A detection belongs to the track whose last box it overlaps most (IoU); a track
//! ends when its face was not seen for `gap_ms` of the camera's clock. Invariant: a track yields at most one crop.
//! Never: looks at a clock, keeps more than one crop a track, or more than `tracks_max` tracks.

use crate::detect::{Box2, Detection, Score};

/// What tracking goes by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrackConfig {
    /// Least overlap of two boxes of the same face, 0 to 1.
    pub iou_min: f32,
    /// How long a face may go unseen, in ms of the camera's clock.
    pub gap_ms: u64,
    /// How often a face must be seen to count; fewer is taken for a false alarm.
    pub hits_min: u32,
    /// After how long the best crop so far is published, in ms since the face was first seen; 0 = at the end.
    pub publish_after_ms: u64,
    /// Most tracks at a time; further faces are ignored and counted.
    pub tracks_max: usize,
}

/// One sight of a face.
#[derive(Debug, Clone)]
pub struct Sight<C> {
    /// What the detector said.
    pub detection: Detection,
    /// How good a picture it is: size, sharpness, score. Larger is better.
    pub quality: f32,
    /// Camera's clock, ms.
    pub at_ms: u64,
    /// Wall clock, Unix ms.
    pub time_ms: u64,
    /// The picture of it.
    pub crop: C,
}

/// What is to be published of one face.
#[derive(Debug, Clone)]
pub struct Chosen<C> {
    /// Number of the track, unique within this camera and process.
    pub track: u64,
    /// The best sight of it.
    pub best: Sight<C>,
    /// In how many frames it was seen so far.
    pub hits: u32,
    /// From the first sight to the last, in ms.
    pub length_ms: u64,
}

#[derive(Debug)]
struct Track<C> {
    number: u64,
    detection: Detection,
    first_ms: u64,
    last_ms: u64,
    hits: u32,
    /// Not seen in the last frame that was looked at.
    missed: bool,
    best: Option<Sight<C>>,
    published: bool,
}

/// The tracks of one camera.
#[derive(Debug)]
pub struct Tracker<C> {
    config: TrackConfig,
    tracks: Vec<Track<C>>,
    next: u64,
    begun: u64,
    ignored: u64,
}

impl<C> Tracker<C> {
    /// No tracks yet.
    #[must_use]
    pub fn new(config: TrackConfig) -> Tracker<C> {
        Tracker { config, tracks: Vec::new(), next: 1, begun: 0, ignored: 0 }
    }

    /// Tracks that reached `hits_min` so far.
    #[must_use]
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Detections that found no room among `tracks_max` tracks.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Tracks alive.
    #[must_use]
    pub fn alive(&self) -> usize {
        self.tracks.len()
    }

    /// The track whose last box is `bbox`: its number, hits and length in ms.
    #[must_use]
    pub fn whose(&self, bbox: &Box2) -> Option<(u64, u32, u64)> {
        let track = self.tracks.iter().find(|t| t.detection.bbox == *bbox)?;
        Some((track.number, track.hits, track.last_ms.saturating_sub(track.first_ms)))
    }

    /// Nothing changed in the picture until `at_ms`: whoever was seen last is still there.
    pub fn still(&mut self, at_ms: u64) -> Vec<Chosen<C>> {
        for track in self.tracks.iter_mut().filter(|t| !t.missed) {
            track.last_ms = track.last_ms.max(at_ms);
        }
        self.settle(at_ms)
    }

    /// A frame of `at_ms` was looked at and these faces are in it.
    pub fn seen(&mut self, at_ms: u64, sights: Vec<Sight<C>>) -> Vec<Chosen<C>> {
        let pairs = self.pairs(&sights);
        let mut sights: Vec<Option<Sight<C>>> = sights.into_iter().map(Some).collect();
        let mut hit = vec![false; self.tracks.len()];
        for (t, s) in pairs {
            if !hit[t]
                && let Some(sight) = sights[s].take()
            {
                hit[t] = true;
                let track = &mut self.tracks[t];
                track.take(sight);
                self.begun += u64::from(track.hits == self.config.hits_min);
            }
        }
        for (track, hit) in self.tracks.iter_mut().zip(hit) {
            track.missed = !hit;
        }
        for sight in sights.into_iter().flatten() {
            self.begin(sight);
        }
        self.settle(at_ms)
    }

    /// The scene is over (the source ended or was lost): all tracks end.
    pub fn end(&mut self) -> Vec<Chosen<C>> {
        let hits_min = self.config.hits_min;
        self.tracks.drain(..).filter_map(|mut track| track.publish(hits_min)).collect()
    }

    /// Overlapping pairs of track and sight, best first.
    fn pairs(&self, sights: &[Sight<C>]) -> Vec<(usize, usize)> {
        let mut pairs: Vec<(f32, usize, usize)> = Vec::new();
        for (t, track) in self.tracks.iter().enumerate() {
            for (s, sight) in sights.iter().enumerate() {
                let overlap = track.detection.bbox.iou(&sight.detection.bbox);
                if overlap >= self.config.iou_min {
                    pairs.push((overlap, t, s));
                }
            }
        }
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        pairs.into_iter().map(|(_, t, s)| (t, s)).collect()
    }

    fn begin(&mut self, sight: Sight<C>) {
        if self.tracks.len() >= self.config.tracks_max {
            self.ignored += 1;
            return;
        }
        self.begun += u64::from(self.config.hits_min <= 1);
        self.tracks.push(Track {
            number: self.next,
            detection: sight.detection.clone(),
            first_ms: sight.at_ms,
            last_ms: sight.at_ms,
            hits: 1,
            missed: false,
            best: Some(sight),
            published: false,
        });
        self.next += 1;
    }

    /// Publishes what is due and drops what ended.
    fn settle(&mut self, at_ms: u64) -> Vec<Chosen<C>> {
        let TrackConfig { gap_ms, hits_min, publish_after_ms, .. } = self.config;
        let mut chosen = Vec::new();
        self.tracks.retain_mut(|track| {
            // A clock that jumped back (a file that loops) ends the tracks of the last round.
            let over = at_ms < track.first_ms || at_ms.saturating_sub(track.last_ms) > gap_ms;
            let due = publish_after_ms > 0 && at_ms.saturating_sub(track.first_ms) >= publish_after_ms;
            if over || due {
                chosen.extend(track.publish(hits_min));
            }
            !over
        });
        chosen
    }
}

impl<C> Track<C> {
    fn take(&mut self, sight: Sight<C>) {
        self.hits += 1;
        self.last_ms = sight.at_ms;
        self.detection = sight.detection.clone();
        if !self.published && self.best.as_ref().is_none_or(|best| sight.quality > best.quality) {
            self.best = Some(sight);
        }
    }

    /// Gives the crop away, once, if the face was seen often enough.
    fn publish(&mut self, hits_min: u32) -> Option<Chosen<C>> {
        if self.published || self.hits < hits_min {
            return None;
        }
        let best = self.best.take()?;
        self.published = true;
        let length_ms = self.last_ms.saturating_sub(self.first_ms);
        Some(Chosen { track: self.number, best, hits: self.hits, length_ms })
    }
}

/// How good a picture of a face is: the side of the box in pixels, times sharpness and score, both brought to 0..1.
///
/// Sharpness is the variance of the Laplacian; 150 is where a webcam picture begins to look sharp. Haar's level weight
/// is unbounded, and 3 is about what a clear frontal face gets.
#[must_use]
pub fn quality(detection: &Detection, sharpness: f32) -> f32 {
    let side = (detection.bbox.w.max(0.0) * detection.bbox.h.max(0.0)).sqrt();
    let score = match detection.score {
        Score::Probability(p) => p.clamp(0.0, 1.0),
        Score::LevelWeight(weight) => {
            let weight = weight.max(0.0) as f32;
            weight / (weight + 3.0)
        }
    };
    side * (sharpness / (sharpness + 150.0)) * score
}

/// Variance of the 4-neighbour Laplacian of a luma picture `width` pixels wide; 0 below 3x3.
#[must_use]
pub fn sharpness(luma: &[u8], width: usize) -> f32 {
    if width < 3 || luma.len() / width < 3 {
        return 0.0;
    }
    let (mut sum, mut squares, mut n) = (0i64, 0i64, 0i64);
    let rows: Vec<&[u8]> = luma.chunks_exact(width).collect();
    for window in rows.windows(3) {
        let [above, row, below] = [window[0], window[1], window[2]];
        let (mut s, mut q) = (0i32, 0i64);
        for x in 1..width - 1 {
            let around =
                i32::from(above[x]) + i32::from(below[x]) + i32::from(row[x - 1]) + i32::from(row[x + 1]);
            let value = around - 4 * i32::from(row[x]);
            s += value;
            q += i64::from(value * value);
        }
        sum += i64::from(s);
        squares += q;
        n += width as i64 - 2;
    }
    let mean = sum as f64 / n as f64;
    (squares as f64 / n as f64 - mean * mean).max(0.0) as f32
}

#[cfg(test)]
#[path = "track_tests.rs"]
mod tests;

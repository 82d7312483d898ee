//! The decisions: what becomes of what the detectors saw.
//!
//! Takes results and moments, yields faces to be encoded and published. Owns: the tracks of every camera, and how long
//! publishing takes. Invariant: a folder of pictures ends all tracks with each picture; a lost or ended source ends its
//! own. Never: does I/O, looks at a clock, encodes.

use std::collections::VecDeque;

use crate::config::{Camera, raw::Publish};
use crate::convert::Rgb;
use crate::face::Face;
use crate::frame::Stamp;
use crate::track::{Chosen, Sight, Tracker};
use crate::worker::Crop;

/// A face to be published: its metadata, and the crop to be encoded.
pub type Picked = (Box<Face>, Rgb);

/// The last latencies, in ms; a ring, so that memory stays.
#[derive(Debug, Default)]
pub struct Latencies {
    ring: VecDeque<u64>,
}

/// How many latencies are remembered.
const LATENCIES_MAX: usize = 1024;

impl Latencies {
    /// Adds one.
    pub fn add(&mut self, ms: u64) {
        if self.ring.len() == LATENCIES_MAX {
            self.ring.pop_front();
        }
        self.ring.push_back(ms);
    }

    /// The latency that `part` (0 to 1) of the remembered ones do not exceed.
    #[must_use]
    pub fn percentile(&self, part: f64) -> Option<u64> {
        let mut sorted: Vec<u64> = self.ring.iter().copied().collect();
        sorted.sort_unstable();
        let last = sorted.len().checked_sub(1)?;
        sorted.get(((last as f64 * part).round() as usize).min(last)).copied()
    }
}

#[derive(Debug)]
struct CameraCore {
    name: String,
    stills: bool,
    tracker: Tracker<Crop>,
    /// The last moment that counted, on the camera's clock.
    at_ms: u64,
    picked: u64,
}

/// The decisions of the whole program.
#[derive(Debug)]
pub struct Core {
    cameras: Vec<CameraCore>,
    publish: Publish,
    detector: &'static str,
}

impl Core {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(cameras: &[Camera], publish: Publish, detector: &'static str) -> Core {
        let cameras = cameras.iter().map(|c| CameraCore {
            name: c.name.clone(),
            stills: c.stills,
            tracker: Tracker::new(c.track),
            at_ms: 0,
            picked: 0,
        });
        Core { cameras: cameras.collect(), publish, detector }
    }

    /// A frame was looked at and these faces are in it.
    pub fn looked(&mut self, stamp: &Stamp, mut sights: Vec<Sight<Crop>>) -> Vec<Picked> {
        let every = self.publish == Publish::Every;
        let camera = &mut self.cameras[stamp.camera];
        let mut chosen = Vec::new();
        if let Some(still_ms) = stamp.still_until_ms {
            chosen.extend(camera.tracker.still(still_ms));
        }
        let mut copies = Vec::new();
        if every {
            copies = sights.clone();
            // The tracker only numbers them then.
            sights.iter_mut().for_each(|s| s.crop.rgb.data = Vec::new());
        }
        camera.at_ms = stamp.at_ms;
        chosen.extend(camera.tracker.seen(stamp.at_ms, sights));
        if camera.stills {
            chosen.extend(camera.tracker.end());
        }
        if !every {
            return self.pick(stamp.camera, chosen);
        }
        let number = |sight: Sight<Crop>| {
            let (track, hits, length_ms) = camera.tracker.whose(&sight.detection.bbox).unwrap_or((0, 1, 0));
            Chosen { track, best: sight, hits, length_ms }
        };
        let all = copies.into_iter().map(number).collect();
        self.pick(stamp.camera, all)
    }

    /// Nothing has changed before this camera until `at_ms`.
    pub fn still(&mut self, camera: usize, at_ms: u64) -> Vec<Picked> {
        let chosen = self.cameras[camera].tracker.still(at_ms);
        if self.publish == Publish::Every { Vec::new() } else { self.pick(camera, chosen) }
    }

    /// The camera's source ended or was lost.
    pub fn ended(&mut self, camera: usize) -> Vec<Picked> {
        let chosen = self.cameras[camera].tracker.end();
        if self.publish == Publish::Every { Vec::new() } else { self.pick(camera, chosen) }
    }

    /// Faces picked for publishing, tracks begun, tracks alive, detections ignored for want of room.
    #[must_use]
    pub fn counts(&self, camera: usize) -> (u64, u64, usize, u64) {
        let c = &self.cameras[camera];
        (c.picked, c.tracker.begun(), c.tracker.alive(), c.tracker.ignored())
    }

    fn pick(&mut self, camera: usize, chosen: Vec<Chosen<Crop>>) -> Vec<Picked> {
        let detector = self.detector;
        let c = &mut self.cameras[camera];
        c.picked += chosen.len() as u64;
        let picked = chosen.into_iter().map(|Chosen { track, best, hits, length_ms }| {
            let Crop { rgb, area, frame, sharpness, origin } = best.crop;
            let face = Face {
                id: String::new(),
                camera,
                camera_name: c.name.clone(),
                time_ms: best.time_ms,
                published_ms: 0,
                track,
                detection: best.detection,
                detector,
                crop: area,
                frame,
                sharpness,
                quality: best.quality,
                hits,
                length_ms,
                origin,
            };
            (Box::new(face), rgb)
        });
        picked.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::Area;
    use crate::detect::{Box2, Detection, Score};
    use crate::gate::GateConfig;
    use crate::source::spec::SourceSpec;
    use crate::track::TrackConfig;

    fn camera(stills: bool) -> Camera {
        Camera {
            name: "door".into(),
            source: SourceSpec::Images("/x".into()),
            size: None,
            fps: None,
            format: Default::default(),
            fast: true,
            repeat: false,
            interval: Default::default(),
            stills,
            login: None,
            udp: false,
            detect_width: 320,
            gate: GateConfig { enabled: false, threshold: 6.0, cells: 2, hold_ms: 0, force_ms: 0 },
            gate_mjpg_fps: 5,
            track: TrackConfig {
                iou_min: 0.3,
                gap_ms: 500,
                hits_min: if stills { 1 } else { 2 },
                publish_after_ms: 1000,
                tracks_max: 8,
            },
        }
    }

    fn stamp(at_ms: u64, still_until_ms: Option<u64>) -> Stamp {
        Stamp { camera: 0, at_ms, time_ms: 1_000_000 + at_ms, still_until_ms }
    }

    fn sight(at_ms: u64, quality: f32) -> Sight<Crop> {
        let bbox = Box2 { x: 10.0, y: 10.0, w: 50.0, h: 50.0 };
        let crop = Crop {
            rgb: Rgb { width: 1, height: 1, data: vec![at_ms as u8; 3] },
            area: Area { x: 5, y: 5, w: 60, h: 60 },
            frame: (640, 480),
            sharpness: 100.0,
            origin: None,
        };
        let detection = Detection { bbox, score: Score::Probability(0.9), landmarks: None };
        Sight { detection, quality, at_ms, time_ms: 1_000_000 + at_ms, crop }
    }

    #[test]
    fn every_picture_of_a_folder_is_a_scene() {
        let mut core = Core::new(&[camera(true)], Publish::Best, "haar");
        for n in 0..3 {
            let picked = core.looked(&stamp(n, None), vec![sight(n, 1.0)]);
            assert_eq!((picked.len(), picked[0].0.track), (1, n + 1));
            assert_eq!(picked[0].0.time_ms, 1_000_000 + n);
        }
        assert_eq!(core.counts(0), (3, 3, 0, 0));
    }

    #[test]
    fn a_video_gives_one_face_and_a_still_scene_keeps_it() {
        let mut core = Core::new(&[camera(false)], Publish::Best, "haar");
        assert!(core.looked(&stamp(0, None), vec![sight(0, 1.0)]).is_empty());
        assert!(core.looked(&stamp(100, None), vec![sight(100, 3.0)]).is_empty());
        // Gated for 800 ms, more than the gap; then it is seen again, as the same face.
        let picked = core.looked(&stamp(1000, Some(900)), vec![sight(1000, 2.0)]);
        assert_eq!((picked.len(), picked[0].1.data[0], picked[0].0.hits), (1, 100, 3));
        assert!(core.ended(0).is_empty(), "published once");
    }

    #[test]
    fn every_publishes_each_detection_under_its_track() {
        let mut core = Core::new(&[camera(false)], Publish::Every, "haar");
        for (n, hits) in [(0, 1), (100, 2), (200, 3)] {
            let picked = core.looked(&stamp(n, None), vec![sight(n, 1.0)]);
            assert_eq!((picked.len(), picked[0].0.track, picked[0].0.hits), (1, 1, hits));
            assert_eq!(picked[0].1.data.len(), 3, "with its picture");
        }
        assert!(core.still(0, 5000).is_empty() && core.ended(0).is_empty());
    }

    #[test]
    fn percentiles_of_the_last_latencies() {
        let mut l = Latencies::default();
        assert_eq!(l.percentile(0.5), None);
        (1..=2000).for_each(|ms| l.add(ms));
        assert_eq!((l.percentile(0.0), l.percentile(1.0)), (Some(977), Some(2000)));
        assert!(l.percentile(0.95).unwrap().abs_diff(1949) < 2);
    }
}

//! Tracks in simulation: people who walk through a picture, detectors that miss and imagine.

use super::*;

fn config() -> TrackConfig {
    TrackConfig { iou_min: 0.3, gap_ms: 500, hits_min: 3, publish_after_ms: 0, tracks_max: 32 }
}

fn sight(x: f32, y: f32, side: f32, quality: f32, at_ms: u64) -> Sight<u64> {
    let bbox = Box2 { x, y, w: side, h: side };
    let detection = Detection { bbox, score: Score::Probability(0.9), landmarks: None };
    Sight { detection, quality, at_ms, time_ms: at_ms, crop: at_ms }
}

#[test]
fn one_face_yields_its_best_crop_once() {
    let mut tracker = Tracker::new(config());
    let mut out = Vec::new();
    for n in 0..20u64 {
        let quality = if n == 13 { 99.0 } else { n as f32 };
        out.extend(tracker.seen(n * 100, vec![sight(10.0 + n as f32, 10.0, 50.0, quality, n * 100)]));
    }
    assert!(out.is_empty());
    out.extend(tracker.seen(2000, vec![]));
    assert!(out.is_empty(), "within the gap");
    out.extend(tracker.seen(2401, vec![]));
    assert_eq!(out.len(), 1);
    assert_eq!((out[0].best.crop, out[0].hits, out[0].length_ms, out[0].track), (1300, 20, 1900, 1));
    assert!(tracker.end().is_empty() && tracker.alive() == 0);
}

#[test]
fn publish_after_gives_the_best_so_far_and_nothing_at_the_end() {
    let mut tracker = Tracker::new(TrackConfig { publish_after_ms: 1000, ..config() });
    let mut out = Vec::new();
    for n in 0..30u64 {
        out.extend(tracker.seen(n * 100, vec![sight(10.0, 10.0, 50.0, n as f32, n * 100)]));
    }
    out.extend(tracker.end());
    assert_eq!(out.iter().map(|c| c.best.crop).collect::<Vec<_>>(), [1000]);
}

#[test]
fn a_still_scene_keeps_who_was_there_and_not_who_had_left() {
    let mut tracker = Tracker::new(TrackConfig { publish_after_ms: 3000, ..config() });
    for n in 0..3u64 {
        tracker.seen(
            n * 100,
            vec![sight(10.0, 10.0, 50.0, 1.0, n * 100), sight(200.0, 10.0, 50.0, 1.0, n * 100)],
        );
    }
    // One of the two is missed in the last frame that is looked at; then the scene stands still.
    assert!(tracker.seen(300, vec![sight(10.0, 10.0, 50.0, 1.0, 300)]).is_empty());
    let gone = tracker.still(1000);
    assert_eq!((gone.len(), gone[0].track), (1, 2));
    let due = tracker.still(3000);
    assert_eq!((due.len(), due[0].track, tracker.alive()), (1, 1, 1));
    assert!(tracker.still(60_000).is_empty());
    assert_eq!(tracker.alive(), 1, "stays as long as nothing changes");
}

#[test]
fn false_alarms_are_not_published_and_tracks_are_bounded() {
    let mut tracker = Tracker::new(TrackConfig { tracks_max: 4, ..config() });
    let many = (0..9).map(|n| sight(n as f32 * 100.0, 0.0, 50.0, 1.0, 0)).collect();
    assert!(tracker.seen(0, many).is_empty());
    assert_eq!((tracker.alive(), tracker.ignored()), (4, 5));
    assert!(tracker.end().is_empty(), "seen once, three are needed");
    assert_eq!(tracker.begun(), 0);
}

#[test]
fn a_looping_clock_ends_the_old_round() {
    let mut tracker = Tracker::new(config());
    for at in [5000, 5100, 5200] {
        tracker.seen(at, vec![sight(10.0, 10.0, 50.0, 1.0, at)]);
    }
    assert_eq!(tracker.seen(0, vec![]).len(), 1);
}

/// People walk on straight lines in lanes that do not cross; the detector jitters, misses 15 % and imagines some.
/// Each person who was seen long enough yields exactly one crop, no two of them share one.
#[test]
fn simulation_one_crop_for_each_person() {
    let seed = std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok());
    for seed in seed.map_or(0..200, |s: u64| s..s + 1) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let lanes = rng.usize(1..5);
        let people: Vec<(u64, f32, f32)> =
            (0..lanes).map(|_| (rng.u64(0..3000), 1.0 + 4.0 * rng.f32(), 60.0 + 60.0 * rng.f32())).collect();
        let mut tracker = Tracker::new(TrackConfig { gap_ms: 1000, ..config() });
        let mut published = Vec::new();
        for frame in 0..200u64 {
            let at_ms = frame * 66;
            let mut sights = Vec::new();
            for (lane, (start, speed, side)) in people.iter().enumerate() {
                if at_ms < *start || at_ms > start + 6000 || rng.f32() < 0.15 {
                    continue;
                }
                let x = (at_ms - start) as f32 / 66.0 * speed + rng.f32() * 6.0;
                let mut s = sight(x, lane as f32 * 300.0 + rng.f32() * 6.0, *side, rng.f32(), at_ms);
                s.crop = lane as u64;
                sights.push(s);
            }
            if rng.f32() < 0.1 {
                let mut s = sight(5000.0 + rng.f32() * 4000.0, rng.f32() * 4000.0, 40.0, 9.0, at_ms);
                s.crop = 77;
                sights.push(s);
            }
            published.extend(tracker.seen(at_ms, sights));
        }
        published.extend(tracker.end());
        let mut who: Vec<u64> = published.iter().map(|c| c.best.crop).filter(|who| *who != 77).collect();
        who.sort_unstable();
        assert_eq!(who, (0..lanes as u64).collect::<Vec<_>>(), "EDGE_SEED={seed}");
    }
}

#[test]
fn sharp_large_and_sure_is_better() {
    let flat = vec![100u8; 400];
    let stripes: Vec<u8> = (0..400).map(|n| if n % 2 == 0 { 0 } else { 255 }).collect();
    let soft: Vec<u8> = (0..400).map(|n| (n % 20 * 10) as u8).collect();
    assert_eq!(sharpness(&flat, 20), 0.0);
    assert_eq!(sharpness(&soft, 20), 0.0, "a linear ramp has no second derivative");
    assert!(sharpness(&stripes, 20) > 100_000.0);
    assert_eq!(sharpness(&[1, 2, 3, 4], 2), 0.0);
    let face =
        |side, score| Detection { bbox: Box2 { x: 0.0, y: 0.0, w: side, h: side }, score, landmarks: None };
    let p = Score::Probability;
    assert!(quality(&face(100.0, p(0.9)), 200.0) > quality(&face(50.0, p(0.9)), 200.0));
    assert!(quality(&face(100.0, p(0.9)), 400.0) > quality(&face(100.0, p(0.9)), 100.0));
    assert!(quality(&face(100.0, p(0.9)), 400.0) > quality(&face(100.0, p(0.6)), 400.0));
    assert_eq!(quality(&face(100.0, Score::LevelWeight(-2.0)), 400.0), 0.0);
}

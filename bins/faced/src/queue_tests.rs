//! The queue against a broker that comes and goes.

use super::*;
use crate::convert::Area;
use crate::detect::{Box2, Detection, Score};

fn face(track: u64) -> Arc<Face> {
    Arc::new(Face {
        id: format!("id-{track}"),
        camera: 0,
        camera_name: "a".into(),
        time_ms: track,
        published_ms: 0,
        track,
        detection: Detection {
            bbox: Box2 { x: 0.0, y: 0.0, w: 1.0, h: 1.0 },
            score: Score::Probability(1.0),
            landmarks: None,
        },
        detector: "yunet",
        crop: Area { x: 0, y: 0, w: 1, h: 1 },
        frame: (1, 1),
        sharpness: 0.0,
        quality: 0.0,
        hits: 1,
        length_ms: 0,
        origin: None,
    })
}

fn queue() -> Queue {
    Queue::new(1 << 20, Duration::from_secs(3600))
}

fn message(track: u64) -> Message {
    Message { topic: "faces".into(), payload: vec![track as u8], ..Message::default() }
}

/// Sends the next item; its track and whether it is late.
fn send(queue: &mut Queue, pid: u16) -> (u64, bool) {
    let item = queue.next(10).unwrap();
    let (track, late) = (item.face.track, item.late);
    queue.sent(Some(pid), message(track));
    (track, late)
}

#[test]
fn a_face_is_done_when_it_is_acknowledged() {
    let (mut q, now) = (queue(), Instant::now());
    q.connected(false);
    q.push(face(1), vec![0; 100], true, now);
    assert_eq!(q.depth().0, 2);
    assert_eq!(send(&mut q, 1), (1, false));
    assert_eq!(send(&mut q, 2), (1, false));
    assert!(!q.is_empty());
    assert!(matches!(q.acknowledged(1).unwrap().body, Body::Crop(_)));
    assert!(matches!(q.acknowledged(2).unwrap().body, Body::Event));
    assert!(q.acknowledged(2).is_none());
    assert!(q.is_empty());
    assert_eq!(q.depth(), (0, 0, 0));
    assert_eq!(q.counts(), Counts { published: 1, events: 1, ..Counts::default() });
}

#[test]
fn what_had_to_wait_for_the_broker_is_late_and_what_was_sent_is_not() {
    let (mut q, now) = (queue(), Instant::now());
    q.push(face(1), vec![], false, now);
    assert!(q.next(10).is_none());
    q.connected(false);
    q.push(face(2), vec![], false, now);
    assert_eq!((send(&mut q, 1), send(&mut q, 2)), ((1, true), (2, false)));
    q.push(face(3), vec![], false, now);
    q.disconnected();
    let (again, freed) = q.connected(true);
    assert_eq!(again, [Resend::Publish(1, message(1)), Resend::Publish(2, message(2))]);
    assert!(freed.is_empty());
    assert_eq!(send(&mut q, 3), (3, true));
    (1..=3).for_each(|pid| assert!(q.acknowledged(pid).is_some()));
    assert_eq!((q.counts().published, q.counts().late), (3, 2));
}

#[test]
fn without_a_session_everything_is_sent_anew_in_order() {
    let (mut q, now) = (queue(), Instant::now());
    q.connected(false);
    (1..=4).for_each(|n| q.push(face(n), vec![], false, now));
    // Packet ids need not follow the order of sending.
    assert_eq!((send(&mut q, 9).0, send(&mut q, 3).0), (1, 2));
    q.disconnected();
    let (again, freed) = q.connected(false);
    assert_eq!((again.len(), freed), (0, vec![9, 3]));
    assert_eq!(
        (1..=4).map(|pid| send(&mut q, pid)).collect::<Vec<_>>(),
        [(1, true), (2, true), (3, true), (4, true)]
    );
}

#[test]
fn qos_2_continues_where_it_was() {
    let (mut q, now) = (queue(), Instant::now());
    q.connected(false);
    (1..=2).for_each(|n| q.push(face(n), vec![], false, now));
    send(&mut q, 1);
    send(&mut q, 2);
    assert!(q.received(1) && !q.received(7));
    q.disconnected();
    assert_eq!(q.connected(true).0, [Resend::Release(1), Resend::Publish(2, message(2))]);
}

#[test]
fn over_the_bound_the_oldest_faces_go_with_their_events() {
    let now = Instant::now();
    let mut q = Queue::new(10 * 2048, Duration::from_secs(60));
    for n in 0..15 {
        q.push(face(n), vec![0; 1024], true, now);
    }
    // A crop counts 2048, an event 1024: six of them fit.
    assert_eq!((q.depth().0, q.counts().dropped), (12, 9));
    assert!(q.depth().2 <= 10 * 2048);
    q.connected(false);
    assert_eq!(send(&mut q, 1).0, 9);
    // What is in flight is not dropped, and counts.
    q.push(face(99), vec![0; 9 * 1024], false, now);
    assert!(q.depth().2 <= 10 * 2048);
    assert_eq!(q.depth().1, 1);
    q.expire(now + Duration::from_secs(61));
    assert_eq!((q.depth().0, q.depth().1), (0, 1));
    assert!(q.acknowledged(1).is_some() && q.is_empty());
    assert_eq!(q.depth().2, 0);
}

#[test]
fn refusals_are_counted_and_postponed_ones_come_again() {
    let (mut q, now) = (queue(), Instant::now());
    q.connected(false);
    (1..=3).for_each(|n| q.push(face(n), vec![], false, now));
    send(&mut q, 1);
    send(&mut q, 2);
    assert!(q.refused(1).is_some());
    q.postponed(2);
    assert_eq!(send(&mut q, 2), (2, true));
    q.refuse_next();
    assert_eq!((q.counts().refused, q.depth().0), (2, 0));
    assert!(q.next(0).is_none());
}

/// A broker that acknowledges, forgets, drops the connection and the session at random: every face is published at
/// least once, in order of first sending, nothing stays, and the bytes come out even.
#[test]
fn simulation_nothing_is_lost_within_the_bounds() {
    let given = std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok());
    for seed in given.map_or(0..300, |s: u64| s..s + 1) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut q, now) = (queue(), Instant::now());
        let (mut pushed, mut first_sent, mut taken) = (0u64, Vec::new(), std::collections::BTreeSet::new());
        let (mut up, mut free): (bool, Vec<u16>) = (false, (1..200).rev().collect());
        let mut outstanding: Vec<u16> = Vec::new();
        for step in 0..6000 {
            match if step < 1500 { rng.u32(0..10) } else { 4 + 2 * rng.u32(0..2) } {
                0..=2 => {
                    pushed += 1;
                    q.push(face(pushed), vec![0; rng.usize(0..50)], rng.bool(), now);
                }
                3..=5 if up => {
                    if let Some(item) = q.next(8) {
                        let track = item.face.track;
                        let pid = free.pop().unwrap();
                        if !first_sent.contains(&track) {
                            first_sent.push(track);
                        }
                        q.sent(Some(pid), message(track));
                        outstanding.push(pid);
                    }
                }
                6 | 7 if up && !outstanding.is_empty() => {
                    let pid = outstanding.swap_remove(rng.usize(0..outstanding.len()));
                    taken.insert(q.acknowledged(pid).unwrap().face.track);
                    free.push(pid);
                }
                8 if up => {
                    up = false;
                    q.disconnected();
                }
                _ if !up => {
                    up = true;
                    let kept = rng.bool();
                    let (again, freed) = q.connected(kept);
                    assert_eq!(again.len(), if kept { outstanding.len() } else { 0 });
                    if !kept {
                        assert_eq!(freed.len(), outstanding.len());
                        free.append(&mut outstanding);
                    }
                }
                _ => {}
            }
        }
        assert!(q.is_empty(), "EDGE_SEED={seed}");
        assert_eq!(q.depth().2, 0, "EDGE_SEED={seed}");
        assert_eq!(first_sent, (1..=pushed).collect::<Vec<_>>(), "EDGE_SEED={seed}");
        assert_eq!(taken.len() as u64, pushed, "EDGE_SEED={seed}");
    }
}

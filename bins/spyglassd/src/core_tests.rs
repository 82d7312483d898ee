//! What a stream decides: by example, and for any series of events.

use super::*;

const MS: u64 = 1_000_000;

fn config() -> CoreConfig {
    CoreConfig {
        warmup_frames: 0,
        gop_ns: 2000 * MS,
        key_interval_ns: 1000 * MS,
        bitrate_kbit: 0,
        bits_per_pixel: 0.1,
        stall: Duration::from_secs(5),
    }
}

fn pts(verdict: Verdict) -> u64 {
    match verdict {
        Verdict::Encode { pts_ns, .. } => pts_ns,
        Verdict::Skip => panic!("skipped"),
    }
}

#[test]
fn the_timeline_goes_on_when_the_producer_comes_back() {
    let (t0, mut core) = (Instant::now(), Core::new(config(), 0));
    let at = |ms: u64| t0 + Duration::from_millis(ms);
    core.begin(0);
    // The producer's clock begins anywhere, and arrival jitters.
    assert_eq!(pts(core.frame(Some(500 * MS), 0, true, at(0), 0)), 0);
    assert_eq!(pts(core.frame(Some(533 * MS), 0, true, at(60), 0)), 33 * MS);
    // Never backwards, never twice.
    assert_eq!(pts(core.frame(Some(533 * MS), 0, true, at(70), 0)), 33 * MS + 1);
    assert_eq!(pts(core.frame(Some(500 * MS), 0, true, at(80), 0)), 33 * MS + 2);
    core.end("it hung up", 1);
    assert_eq!(core.state().0, State::Stopped);
    core.begin(2);
    assert_eq!(pts(core.frame(Some(9), 0, true, at(3000), 0)), 3000 * MS);
    // A clock that jumps is anchored anew; a frame without a time has that of its arrival.
    assert_eq!(pts(core.frame(Some(9_000_000 * MS), 0, true, at(3040), 0)), 3040 * MS);
    assert_eq!(pts(core.frame(Some(9_000_040 * MS), 0, true, at(3085), 0)), 3080 * MS);
    assert_eq!(pts(core.frame(None, 0, true, at(3120), 0)), 3120 * MS);
    // A file that begins again does so now, at its own pace.
    core.rewound();
    assert_eq!(pts(core.frame(Some(0), 0, true, at(3160), 0)), 3160 * MS);
    assert_eq!(pts(core.frame(Some(40 * MS), 0, true, at(3190), 0)), 3200 * MS);
}

#[test]
fn key_frames_come_each_gop_and_for_viewers_but_not_too_often() {
    let (t0, mut core) = (Instant::now(), Core::new(config(), 0));
    core.begin(0);
    let mut keys = Vec::new();
    for n in 0..200u64 {
        if [5, 10, 70].contains(&n) {
            core.want_key();
        }
        let ms = n * 40;
        let wanted = !(100..110).contains(&n);
        match core.frame(Some(ms * MS), 0, wanted, t0 + Duration::from_millis(ms), 0) {
            Verdict::Encode { pts_ns, key } => {
                if key {
                    keys.push(n);
                }
                core.unit(pts_ns, key, 10, 1000, t0, 0);
            }
            Verdict::Skip => assert!(!wanted),
        }
    }
    // 0; the wish of 5 waits until 25 (one second after 0) and includes that of 10; then 70 is 45 frames later; then a
    // GOP of 50 frames is cut by the pause, after which the first is one.
    assert_eq!(keys, [0, 25, 70, 110, 160]);
    assert_eq!((core.counts().drops.unwanted, core.counts().units), (10, 190));
}

#[test]
fn states_follow_what_happens() {
    let (t0, mut core) = (Instant::now(), Core::new(CoreConfig { warmup_frames: 2, ..config() }, 5));
    assert_eq!((core.state().0, core.state().2), (State::Stopped, 5));
    core.begin(6);
    assert_eq!(core.state().0, State::Starting);
    for _ in 0..2 {
        assert_eq!(core.frame(None, 0, true, t0, 7), Verdict::Skip);
    }
    assert!(matches!(core.frame(None, 3, true, t0, 8), Verdict::Encode { key: true, .. }));
    assert_eq!(
        (core.state().0, core.counts().drops),
        (State::Starting, Drops { warmup: 2, no_slot: 3, ..Drops::default() })
    );
    core.unit(0, true, 100, 5000, t0, 9);
    assert_eq!(core.state(), (State::Streaming, "", 9));
    core.frame(None, 3, false, t0, 10);
    assert_eq!(core.state(), (State::Waiting, "nobody watches", 10));
    core.tick(t0 + Duration::from_secs(6), 11);
    assert_eq!(core.state(), (State::Waiting, "no frame comes from the application", 10));
    core.set(State::Error, "broken", 12);
    core.tick(t0 + Duration::from_secs(60), 13);
    assert_eq!(core.state(), (State::Error, "broken", 12));
    assert_eq!(core.delay_us(0.5), Some(5000));
    // A second producer's own count of drops adds to the first one's.
    core.end("gone", 14);
    core.begin(15);
    core.frame(None, 4, true, t0, 16);
    assert_eq!(core.counts().drops.no_slot, 7);
}

#[test]
fn an_unknown_rate_is_estimated_and_changes_the_bit_rate_alone() {
    let (t0, mut core) = (Instant::now(), Core::new(config(), 0));
    core.begin(0);
    let size = (1280, 720);
    assert_eq!(core.bitrate_kbit(size, 30.0), 2765);
    for n in 0..40u64 {
        core.frame(None, 0, true, t0 + Duration::from_millis(n * 100), 0);
    }
    // 10 frames a second need a third; told of 30, the encoder must be allowed the same bits a frame.
    assert_eq!(core.bitrate_kbit(size, 30.0), 2765);
    assert_eq!(core.fps(t0 + Duration::from_millis(3900)).0.round(), 10.0);
    let mut fixed = Core::new(CoreConfig { bitrate_kbit: 1000, ..config() }, 0);
    fixed.begin(0);
    for n in 0..40u64 {
        fixed.frame(None, 0, true, t0 + Duration::from_millis(n * 100), 0);
    }
    assert_eq!(fixed.bitrate_kbit(size, 30.0), 3000);
    assert_eq!(fixed.gop_frames(30.0), 120);
}

#[test]
fn any_series_of_events_keeps_the_invariants() {
    let seed =
        std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("EDGE_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let t0 = Instant::now();
    let (mut core, mut ms, mut last, mut paused) = (Core::new(config(), 0), 0u64, None, true);
    for _ in 0..20_000 {
        ms += rng.u64(0..80);
        let now = t0 + Duration::from_millis(ms);
        match rng.u8(0..100) {
            0 => core.begin(ms),
            1 => core.end("x", ms),
            2 => core.want_key(),
            3 => core.tick(now, ms),
            n => {
                let wanted = n % 10 != 0;
                let given = match n % 7 {
                    0 => None,
                    1 => Some(rng.u64(..)),
                    _ => Some((ms + rng.u64(0..30)) * MS),
                };
                match core.frame(given, rng.u64(0..1000), wanted, now, ms) {
                    Verdict::Skip => assert!(!wanted),
                    Verdict::Encode { pts_ns, key } => {
                        assert!(wanted && last.is_none_or(|l| pts_ns > l), "{pts_ns} after {last:?}");
                        assert!(pts_ns.abs_diff(ms * MS) <= 11_000 * MS, "{pts_ns} at {ms}");
                        assert!(key || !paused);
                        last = Some(pts_ns);
                        core.unit(pts_ns, key, 1, 1, now, ms);
                    }
                }
                paused = !wanted;
            }
        }
    }
}

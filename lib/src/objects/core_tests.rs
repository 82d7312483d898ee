//! Tests of the decisions, and their simulation.

use super::*;

const S: Duration = Duration::from_secs(1);

fn core(workers: usize) -> Core<u64> {
    let policy = Policy { workers, refusals_max: 3, retry: (S, 30 * S), hold: (S, 60 * S) };
    Core::new(policy, fastrand::Rng::with_seed(5))
}

fn stored() -> Outcome {
    Outcome::Stored { already: false }
}

#[test]
fn a_transient_failure_keeps_its_place_and_the_others_go_on() {
    let now = Instant::now();
    let mut c = core(2);
    assert_eq!(c.begin(1), Ok(Action::Run { place: 0, job: 1 }));
    assert_eq!(c.begin(2), Ok(Action::Run { place: 1, job: 2 }));
    assert_eq!(c.begin(3), Err(3));
    assert_eq!(c.finished(0, Outcome::Retry("reset".into()), now), []);
    assert_eq!(c.finished(1, stored(), now), [Action::Ack(2)]);
    assert_eq!(c.begin(3), Ok(Action::Run { place: 1, job: 3 }));
    let at = c.deadline().unwrap();
    assert!(at > now && at <= now + S);
    assert_eq!(c.due(now), []);
    assert_eq!(c.due(at), [Action::Run { place: 0, job: 1 }]);
    assert_eq!(c.due(at), [], "once");
}

#[test]
fn an_object_that_is_refused_is_buried_after_n() {
    let mut now = Instant::now();
    let mut c = core(1);
    c.begin(1).unwrap();
    for _ in 0..2 {
        assert_eq!(c.finished(0, Outcome::Refused("400".into()), now), []);
        now = c.deadline().unwrap();
        assert_eq!(c.due(now).len(), 1);
    }
    let last = c.finished(0, Outcome::Refused("400".into()), now);
    assert_eq!(last, [Action::DeadLetter(1, "refused 3 times: 400".into())]);
    c.begin(2).unwrap();
    assert_eq!(c.finished(0, Outcome::Dead("x".into()), now), [Action::DeadLetter(2, "x".into())]);
    assert!(c.has_room() && c.counts().dead == 2);
}

#[test]
fn a_hold_stops_all_but_one_probe_and_drops_nothing() {
    let now = Instant::now();
    let mut c = core(3);
    for n in 1..=3 {
        c.begin(n).unwrap();
    }
    assert_eq!(c.finished(1, Outcome::Hold("403".into()), now), []);
    assert!(!c.has_room() && c.held().unwrap().1 == "403");
    assert_eq!(c.finished(0, Outcome::Hold("403".into()), now), []);
    assert_eq!(c.finished(2, stored(), now), [Action::Ack(3)], "one that was under way ends as it ends");
    assert!(c.held().is_some(), "only the probe opens it again");
    let mut at = now;
    let mut delays = Vec::new();
    for _ in 0..20 {
        let next = c.deadline().unwrap();
        delays.push(next - at);
        at = next;
        assert_eq!(c.due(at), [Action::Run { place: 0, job: 1 }], "the oldest is the probe");
        assert_eq!(c.due(at), []);
        assert_eq!(c.finished(0, Outcome::Hold("404".into()), at), []);
    }
    assert!(delays.iter().max().unwrap() > &(30 * S) && delays.iter().all(|d| *d <= 60 * S), "{delays:?}");
    assert_eq!(c.held().unwrap().1, "404");
    at = c.deadline().unwrap();
    c.due(at);
    assert_eq!(c.finished(0, stored(), at), [Action::Ack(1), Action::Run { place: 1, job: 2 }]);
    assert!(c.has_room() && c.held().is_none() && c.counts().holds == 1);
}

#[test]
fn a_probe_that_meets_a_transient_failure_leaves_the_hold() {
    let now = Instant::now();
    let mut c = core(1);
    c.begin(1).unwrap();
    c.finished(0, Outcome::Hold("403".into()), now);
    let at = c.deadline().unwrap();
    c.due(at);
    assert_eq!(c.finished(0, Outcome::Retry("503".into()), at), []);
    assert!(c.held().is_some());
    let at = c.deadline().unwrap();
    assert_eq!(c.due(at), [Action::Run { place: 0, job: 1 }]);
}

/// Random outcomes: every message ends exactly once, nothing is uploaded twice at once, nothing waits for ever.
#[test]
fn simulation() {
    let seed = std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(11);
    for seed in seed..seed + 50 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let workers = rng.usize(1..5);
        let mut c = core(workers);
        let mut now = Instant::now();
        let (mut next, total) = (0u64, 200);
        let mut ended = std::collections::HashSet::new();
        let mut running: Vec<(usize, u64)> = Vec::new();
        let mut steps = 0;
        while ended.len() < total as usize {
            steps += 1;
            assert!(steps < 100_000, "seed {seed} hangs: {c:?}");
            let mut actions = Vec::new();
            while next < total && c.has_room() {
                actions.push(c.begin(next).unwrap());
                next += 1;
            }
            if running.is_empty() && actions.is_empty() {
                now = now.max(c.deadline().unwrap_or_else(|| panic!("seed {seed}: no deadline, {c:?}")));
            }
            actions.extend(c.due(now));
            if !running.is_empty() && (rng.bool() || actions.is_empty()) {
                let (place, _) = running.swap_remove(rng.usize(..running.len()));
                let why = || "x".to_owned();
                let outcome = match rng.u8(..10) {
                    0 => Outcome::Hold(why()),
                    1..3 => Outcome::Retry(why()),
                    3 => Outcome::Refused(why()),
                    4 => Outcome::Dead(why()),
                    _ => Outcome::Stored { already: rng.bool() },
                };
                actions.extend(c.finished(place, outcome, now));
            }
            for action in actions {
                match action {
                    Action::Run { place, job } => {
                        assert!(!running.iter().any(|(p, j)| *p == place || *j == job), "seed {seed}");
                        running.push((place, job));
                    }
                    Action::Ack(job) | Action::DeadLetter(job, _) => {
                        assert!(ended.insert(job), "seed {seed}: {job} twice")
                    }
                }
            }
            assert!(c.busy() <= workers && c.running() == running.len(), "seed {seed}");
        }
        assert_eq!(c.busy(), 0);
    }
}

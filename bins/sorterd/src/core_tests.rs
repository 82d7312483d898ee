//! Tests of the decisions: whole flows, refusals, and any order of outcomes.

use super::*;

fn session() -> Session {
    Session::new("arm", "s1").unwrap()
}

fn process(base: u32, picture: &[u8]) -> Request {
    Request::Process { session: session(), image: ImageName(base), picture: picture.to_vec() }
}

fn commands() -> Request {
    let constants = ArmConstants {
        arm_radius: 1.0,
        dist_max_as_pw: 1.0,
        dist_min_as_pw: 0.0,
        rotation_range_as_deg: 1.0,
        rotation_range_as_pw: 1.0,
    };
    Request::Commands { session: session(), constants }
}

fn facts() -> Facts {
    Facts { size: (4, 3), sha256: "aa".into() }
}

fn wanted() -> Wanted {
    Wanted { name: "1.jpg".into(), size: Some((1, 1)), sha256: None }
}

fn steps(actions: &[Action]) -> Vec<u8> {
    let step = |action: &Action| match action {
        Action::Tell(_, _, step) => Some(*step as u8),
        _ => None,
    };
    actions.iter().filter_map(step).collect()
}

/// Does what a shell would do until nothing is left; gives all actions in order.
fn run(core: &mut Core, mut todo: VecDeque<Action>) -> Vec<Action> {
    let mut all = Vec::new();
    while let Some(action) = todo.pop_front() {
        if let Action::Ask(id, Ask::Shots { .. }) = action {
            let shot = Shot { name: ImageName(1), size: (1, 1), sha256: None, objects: Vec::new() };
            todo.extend(core.outcome(id, Outcome::Shots(Ok(vec![shot]))));
        } else {
            todo.extend(shell(core, action.clone(), false, false));
        }
        all.push(action);
    }
    all
}

#[test]
fn a_picture_is_answered_when_all_of_it_is_safe() {
    for uploads in [false, true] {
        let mut core = Core::new(10, uploads);
        let actions = core.request(Token(1), process(1500, b"x"));
        let all = run(&mut core, actions.into());
        assert_eq!(steps(&all), [2, 3, 4, 5, 7]);
        let at = |wanted: &dyn Fn(&Action) -> bool| all.iter().position(wanted);
        let reply = at(&|a| *a == Action::Reply(Token(1), "true".into())).unwrap();
        let replace = at(&|a| matches!(a, Action::Ask(_, Ask::Replace { .. }))).unwrap();
        assert!(replace < reply);
        assert_eq!(at(&|a| matches!(a, Action::Append(..))).is_some_and(|n| n < reply), uploads);
        assert!(core.is_empty() && core.files.is_empty());
        assert_eq!(core.counts.pictures, 1);
    }
}

#[test]
fn one_picture_is_worked_on_at_a_time_and_others_beside_it() {
    let mut core = Core::new(10, false);
    let first = core.request(Token(1), process(1500, b"one"));
    let second = core.request(Token(2), process(1500, b"two"));
    let other = core.request(Token(3), process(1600, b"three"));
    assert!(matches!(first[1], Action::Work(1, _)));
    assert_eq!(second.len(), 1, "it waits");
    assert!(matches!(other[1], Action::Work(3, _)));
    let failed = core.outcome(1, Outcome::Seen(Err("no picture".into())));
    assert_eq!(failed[1], Action::Reply(Token(1), "false".into()));
    let Action::Work(2, Work::See(kept)) = &failed[2] else { panic!("{failed:?}") };
    assert_eq!(kept.bytes, b"two");
}

#[test]
fn commands_are_answered_without_waiting_for_the_panorama() {
    let mut core = Core::new(10, true);
    let actions = core.request(Token(1), commands());
    let all = run(&mut core, actions.into());
    assert_eq!(steps(&all), [8, 9, 14, 15, 16]);
    assert!(all.contains(&Action::Reply(Token(1), "[]".into())));
    assert_eq!(all.iter().filter(|a| matches!(a, Action::Stitch(Stitch::Original { .. }))).count(), 1);
    let failing = core.request(Token(1), commands());
    let Action::Ask(id, _) = failing[1] else { panic!() };
    let failed = core.outcome(id, Outcome::Shots(Err("away".into())));
    assert_eq!(failed[1], Action::Reply(Token(1), r#"{"error":"away"}"#.into()));
    let stitch = core.request(Token(1), Request::StitchAfter { session: session() });
    assert_eq!(stitch, [Action::Stitch(Stitch::After { session: session() }), Action::Done(Token(1))]);
}

#[test]
fn pictures_of_other_machines_are_fetched_once() {
    let mut core = Core::new(10, true);
    let Action::Ask(id, _) = core.request(Token(1), commands())[1] else { panic!() };
    let shot = Shot { name: ImageName(1), size: (1, 1), sha256: None, objects: Vec::new() };
    let first = core.outcome(id, Outcome::Shots(Ok(vec![shot])));
    let fetch = core.outcome(id, Outcome::Missing(vec![wanted()]));
    assert_eq!(fetch, [Action::Fetch(id, session(), vec![wanted()])]);
    let again = core.outcome(id, Outcome::Fetched(Ok(1)));
    assert_eq!(again[..], first[1..], "the same is grouped again");
    let over = core.outcome(id, Outcome::Missing(vec![wanted()]));
    assert!(matches!(&over[1], Action::Reply(_, why) if why.contains("ask again")), "{over:?}");
    assert!(core.is_empty());
}

/// A picture taken afterwards is known to the database before its answer where other machines may need it.
#[test]
fn pictures_taken_afterwards_are_noted_where_they_leave_the_machine() {
    for uploads in [false, true] {
        let mut core = Core::new(10, uploads);
        let after = Request::After { session: session(), image: ImageName(7), picture: b"x".to_vec() };
        let all = core.request(Token(1), after);
        let all = run(&mut core, all.into());
        let noted = Ask::NoteAfter { session: session(), name: "after_7.jpg".into(), facts: facts() };
        let at = |wanted: &dyn Fn(&Action) -> bool| all.iter().position(wanted);
        let reply = at(&|a| *a == Action::Reply(Token(1), "true".into())).unwrap();
        let note = at(&|a| matches!(a, Action::Ask(_, ask) if *ask == noted));
        assert_eq!(note.is_some_and(|n| n < reply), uploads, "{all:?}");
        assert_eq!(steps(&all), [2, 7]);
    }
}

#[test]
fn a_full_house_refuses_clearly() {
    let mut core = Core::new(2, false);
    core.request(Token(1), process(1500, b"x"));
    core.request(Token(2), process(1500, b"x"));
    let refused = core.request(Token(3), process(1600, b"x"));
    assert_eq!(refused[1], Action::Reply(Token(3), "false".into()));
    let Action::Warn(_, _, why) = &refused[0] else { panic!() };
    assert!(why.contains("busy: 2"), "{why}");
    let Action::Reply(_, error) = &core.request(Token(3), commands())[1] else { panic!() };
    assert!(error.starts_with(r#"{"error":"busy"#), "{error}");
    assert_eq!((core.counts.refused, core.len()), (2, 2));
}

/// What a shell would report of an action; `fails`: that it failed; `missing`: that a grouping lacks a picture.
fn shell(core: &mut Core, action: Action, fails: bool, missing: bool) -> Vec<Action> {
    fn result<T>(fails: bool, good: T) -> Result<T, String> {
        if fails { Err("broken".to_owned()) } else { Ok(good) }
    }
    let (id, outcome) = match action {
        Action::Work(id, Work::See(kept)) => {
            (id, Outcome::Seen(result(fails, Seen { kept, facts: facts(), found: Vec::new() })))
        }
        Action::Work(id, Work::Keep(kept)) => (id, Outcome::Kept(result(fails, (kept, facts())))),
        Action::Work(id, Work::Group { .. }) if missing => (id, Outcome::Missing(vec![wanted()])),
        Action::Work(id, Work::Group { .. }) => (id, Outcome::Grouped(result(fails, Plan::default()))),
        Action::Fetch(id, _, wanted) => (id, Outcome::Fetched(result(fails, wanted.len()))),
        Action::Ask(id, Ask::Replace { .. } | Ask::NoteAfter { .. }) => {
            (id, Outcome::Replaced(result(fails, ())))
        }
        Action::Ask(id, Ask::Shots { .. }) => (id, Outcome::Shots(result(fails, Vec::new()))),
        Action::Ask(id, Ask::SaveAnswer { .. }) => (id, Outcome::Saved(result(fails, ()))),
        Action::Append(id, _) => (id, Outcome::Appended(result(fails, ()))),
        _ => return Vec::new(),
    };
    core.outcome(id, outcome)
}

/// Any interleaving of messages and outcomes, good and bad: each message is answered once, and one file is never in two
/// hands.
#[test]
fn whatever_happens_each_message_is_answered_once() {
    let seed =
        std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("EDGE_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..300 {
        let mut core = Core::new(rng.usize(1..8), rng.bool());
        let (mut sent, mut answers) = (0, HashMap::<usize, u32>::new());
        let mut todo: Vec<Action> = Vec::new();
        while sent < 30 || !todo.is_empty() {
            let new = if sent < 30 && (todo.is_empty() || rng.u8(..3) == 0) {
                sent += 1;
                let request = match rng.u8(..4) {
                    0 => commands(),
                    1 => {
                        Request::After { session: session(), image: ImageName(rng.u32(..2)), picture: vec![] }
                    }
                    _ => process(rng.u32(..3), b"x"),
                };
                core.request(Token(sent), request)
            } else {
                let action = todo.swap_remove(rng.usize(..todo.len()));
                shell(&mut core, action, rng.u8(..5) == 0, rng.bool())
            };
            for action in new {
                if let Action::Reply(token, _) = &action {
                    *answers.entry(token.0).or_default() += 1;
                }
                todo.push(action);
            }
            let working = todo.iter().filter_map(|action| match action {
                Action::Work(_, Work::See(kept) | Work::Keep(kept)) => Some(kept.name.clone()),
                _ => None,
            });
            let mut names: Vec<_> = working.collect();
            names.sort();
            assert!(names.windows(2).all(|w| w[0] != w[1]), "one file in two hands: {names:?}");
        }
        assert!(core.is_empty() && core.files.is_empty());
        assert!((1..=30).all(|n| answers.get(&n) == Some(&1)), "{answers:?}");
    }
}

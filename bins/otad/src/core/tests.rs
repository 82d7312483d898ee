//! Tests of single decisions; whole lives are in `sim.rs`.

use super::*;

const S: Duration = Duration::from_secs(1);

fn policy() -> Policy {
    Policy { interval: 3600 * S, retry: (30 * S, 3600 * S), active_within: 150 * S, stable: 60 * S }
}

fn at(s: u64) -> Now {
    Now { boot: s as u32 * S, ..Now::default() }
}

struct Rig {
    core: Core,
    rng: fastrand::Rng,
}

impl Rig {
    fn new() -> Rig {
        let mut rng = fastrand::Rng::with_seed(5);
        Rig { core: Core::new(policy(), Duration::ZERO, &mut rng), rng }
    }
    fn give(&mut self, input: Input, now: Now) -> Option<Job> {
        self.core.handle(input, now, &mut self.rng)
    }
    fn done(&mut self, done: Done, now: Now) -> Option<Job> {
        self.give(Input::Done(done), now)
    }
    /// Up to the look at the units, at second 10.
    fn watching() -> Rig {
        let mut rig = Rig::new();
        assert_eq!(
            rig.give(Input::CheckNow { force: false }, at(9)),
            Some(Job::Poll { content: true, forced: false })
        );
        assert_eq!(rig.done(Done::Polled(Ok(true)), at(9)), Some(Job::Fetch { forced: false }));
        assert_eq!(rig.done(Done::Fetched(Ok(())), at(9)), Some(Job::Build));
        assert_eq!(rig.done(Done::Built(Ok(())), at(9)), Some(Job::PreHooks));
        assert_eq!(rig.done(Done::Hooked(Ok(())), at(9)), Some(Job::Switch));
        assert_eq!(rig.done(Done::Switched(Ok(())), at(9)), Some(Job::Restart { resumed: false }));
        assert_eq!(rig.done(Done::Restarted(Ok(true)), at(10)), None);
        assert_eq!(rig.give(Input::Timer, at(10)), Some(Job::Probe { commands: true }));
        rig
    }
}

#[test]
fn well_and_stable_is_kept() {
    let mut rig = Rig::watching();
    assert_eq!(rig.done(Done::Probed(Ok("a".into())), at(10)), None);
    for s in [12, 20, 69] {
        assert_eq!(rig.give(Input::Timer, at(s)), Some(Job::Probe { commands: false }));
        assert_eq!(rig.done(Done::Probed(Ok("a".into())), at(s)), None);
    }
    assert_eq!(rig.core.deadline(), Some(70 * S));
    assert_eq!(rig.give(Input::Timer, at(70)), Some(Job::Probe { commands: true }));
    assert_eq!(rig.done(Done::Probed(Ok("a".into())), at(70)), Some(Job::Commit));
    assert_eq!(rig.done(Done::Committed(Ok(())), at(70)), None);
    assert_eq!(rig.core.state(), &State::Idle);
    assert!(rig.core.next_poll() >= (70 + 3240) * S && rig.core.next_poll() <= (70 + 3960) * S);
}

#[test]
fn a_unit_that_is_started_again_begins_the_time_anew_and_fails_after_the_deadline() {
    let mut rig = Rig::watching();
    rig.done(Done::Probed(Ok("run 1".into())), at(10));
    rig.give(Input::Timer, at(60));
    assert_eq!(rig.done(Done::Probed(Ok("run 2".into())), at(60)), None);
    rig.give(Input::Timer, at(62));
    rig.done(Done::Probed(Ok("run 3".into())), at(150));
    rig.give(Input::Timer, at(161));
    let Some(Job::RollBack { why, quarantine }) = rig.done(Done::Probed(Ok("run 4".into())), at(161)) else {
        panic!("{:?}", rig.core.state())
    };
    assert!(quarantine && why.contains("started again"), "{why}");
    assert_eq!(rig.done(Done::RolledBack(Ok(())), at(162)), Some(Job::Return));
    assert_eq!(rig.done(Done::Returned, at(163)), None);
    assert_eq!(rig.core.state(), &State::Idle);
}

#[test]
fn a_closed_window_and_an_empty_budget_hold_the_change_not_the_poll() {
    let mut rig = Rig::new();
    let closed = Now { window: (1000 * S, 3600 * S), ..at(5) };
    assert_eq!(
        rig.give(Input::CheckNow { force: false }, closed),
        Some(Job::Poll { content: false, forced: false })
    );
    assert_eq!(rig.done(Done::Polled(Ok(true)), closed), None);
    assert_eq!(rig.core.state(), &State::Waiting(Gate::Window));
    assert!(rig.core.next_poll() >= 1005 * S && rig.core.next_poll() <= (1005 + 1800) * S);
    let empty = Now { budget: Some(100 * S), ..at(6) };
    rig.give(Input::CheckNow { force: false }, empty);
    rig.done(Done::Polled(Ok(true)), empty);
    assert_eq!(rig.core.state(), &State::Waiting(Gate::Budget));
    // It closes while the content comes.
    rig.give(Input::CheckNow { force: false }, at(7));
    assert_eq!(rig.done(Done::Polled(Ok(true)), at(7)), Some(Job::Fetch { forced: false }));
    rig.done(Done::Fetched(Ok(())), closed);
    assert_eq!(rig.done(Done::Built(Ok(())), closed), None);
    assert_eq!(rig.core.state(), &State::Waiting(Gate::Window));
    // A person may force it, once.
    assert_eq!(
        rig.give(Input::CheckNow { force: true }, closed),
        Some(Job::Poll { content: true, forced: true })
    );
    assert_eq!(rig.done(Done::Polled(Ok(true)), closed), Some(Job::Fetch { forced: true }));
    assert_eq!(rig.done(Done::Fetched(Err(Trouble::Passing("x".into()))), closed), None);
    assert_eq!(
        rig.give(Input::CheckNow { force: false }, closed),
        Some(Job::Poll { content: false, forced: false })
    );
}

#[test]
fn failures_wait_longer_and_the_server_s_word_counts() {
    let mut rig = Rig::new();
    let mut longest = Duration::ZERO;
    for n in 0..40u32 {
        rig.give(Input::CheckNow { force: false }, at(0));
        rig.done(Done::Polled(Err(Trouble::Passing("no route".into()))), at(0));
        let wait = rig.core.next_poll();
        assert!(wait >= 15 * S && wait <= 3600 * S && (n > 6 || wait <= (30 << n) * S), "{n}: {wait:?}");
        longest = longest.max(wait);
    }
    assert!(longest > 3000 * S);
    assert_eq!(rig.core.trouble().unwrap().why(), "no route");
    rig.give(Input::CheckNow { force: false }, at(0));
    rig.done(Done::Polled(Err(Trouble::Busy(7200 * S, "503".into()))), at(0));
    assert!(rig.core.next_poll() >= 7200 * S && rig.core.next_poll() <= 10_800 * S);
    rig.give(Input::CheckNow { force: false }, at(0));
    rig.done(Done::Polled(Err(Trouble::Busy(Duration::MAX, "503".into()))), at(0));
    assert!(rig.core.next_poll() <= (86_400 + 3600) * S, "a year is a mistake");
    rig.give(Input::CheckNow { force: false }, at(0));
    rig.done(Done::Polled(Err(Trouble::Refused("bad hash".into()))), at(0));
    assert!(rig.core.next_poll() >= 3240 * S, "not blindly again");
    rig.give(Input::CheckNow { force: false }, at(0));
    rig.done(Done::Polled(Ok(false)), at(0));
    assert_eq!((rig.core.failures(), rig.core.trouble()), (0, None));
}

#[test]
fn what_is_asked_meanwhile_is_done_after() {
    let mut rig = Rig::watching();
    assert_eq!(rig.give(Input::CheckNow { force: false }, at(11)), None);
    assert_eq!(rig.give(Input::RollBack { why: "x".into() }, at(11)), None, "a look is under way");
    rig.done(Done::Probed(Ok("a".into())), at(11));
    let Some(Job::RollBack { why, .. }) = rig.give(Input::RollBack { why: "asked".into() }, at(11)) else {
        panic!()
    };
    assert_eq!(why, "asked");
    rig.done(Done::RolledBack(Ok(())), at(12));
    assert_eq!(rig.done(Done::Returned, at(12)), Some(Job::Poll { content: true, forced: false }));
    // What was forced meanwhile is forced then, and once.
    let closed = Now { window: (1000 * S, 3600 * S), ..at(13) };
    assert_eq!(rig.give(Input::CheckNow { force: true }, closed), None);
    assert_eq!(rig.give(Input::CheckNow { force: false }, closed), None);
    assert_eq!(rig.done(Done::Polled(Ok(true)), closed), Some(Job::Fetch { forced: true }));
    assert_eq!(rig.give(Input::CheckNow { force: true }, closed), None);
    rig.done(Done::Fetched(Err(Trouble::Passing("x".into()))), closed);
    assert_eq!(rig.done(Done::Polled(Ok(false)), closed), None);
    rig.give(Input::CheckNow { force: false }, closed);
    rig.done(Done::Polled(Ok(true)), closed);
    assert_eq!(rig.core.state(), &State::Waiting(Gate::Window));
}

#[test]
fn nothing_to_watch_is_committed_and_a_failed_commit_goes_back_without_quarantine() {
    let mut rig = Rig::new();
    assert_eq!(rig.give(Input::Resume, at(1)), Some(Job::Restart { resumed: true }));
    assert_eq!(rig.done(Done::Restarted(Ok(false)), at(1)), Some(Job::Commit));
    let job = rig.done(Done::Committed(Err("EIO".into())), at(1));
    assert!(matches!(job, Some(Job::RollBack { quarantine: false, .. })), "{job:?}");
}

//! The state machine alone, then under random orders and outcomes.

use super::*;

const S: Duration = Duration::from_secs(1);

fn policy(restart: Restart, rollback_on_crash: bool) -> Policy {
    Policy { restart, backoff: (S / 2, 30 * S), stop_timeout: 5 * S, crash_window: 10 * S, rollback_on_crash }
}

struct Rig {
    core: Core,
    now: Instant,
    rng: fastrand::Rng,
}

impl Rig {
    fn new(restart: Restart, rollback: bool) -> Rig {
        let core = Core::new(policy(restart, rollback));
        Rig { core, now: Instant::now(), rng: fastrand::Rng::with_seed(1) }
    }

    fn tell(&mut self, input: Input) -> Vec<Output> {
        let out = self.core.handle(input, self.now, &mut self.rng);
        out.into_iter().filter(|o| !matches!(o, Output::Note(_))).collect()
    }

    fn running(restart: Restart, rollback: bool) -> Rig {
        let mut rig = Rig::new(restart, rollback);
        assert_eq!(rig.tell(Input::Run(Ticket(1))), [Output::Start]);
        assert_eq!(rig.tell(Input::Started(7)), [Output::Answer(Ticket(1), Reply::Running(7))]);
        rig
    }
}

#[test]
fn a_stop_is_term_then_kill_and_a_start_waits_for_the_last_process() {
    let mut rig = Rig::running(Restart::Never, false);
    assert_eq!(rig.tell(Input::Restart(Ticket(2))), [Output::Terminate]);
    assert_eq!(rig.core.deadline(), Some(rig.now + 5 * S));
    assert_eq!(rig.tell(Input::Exited(Exit::Signal(15))), []);
    assert_eq!(rig.tell(Input::Timer), []);
    rig.now += 5 * S;
    assert_eq!(rig.tell(Input::Timer), [Output::KillAll]);
    rig.now += S;
    assert_eq!(rig.tell(Input::Timer), [Output::KillAll]);
    assert_eq!(rig.tell(Input::Gone), [Output::Start]);
    assert_eq!(rig.tell(Input::Started(8)), [Output::Answer(Ticket(2), Reply::Running(8))]);
}

#[test]
fn what_kill_does_not_end_is_named_and_given_up() {
    let mut rig = Rig::running(Restart::Never, false);
    let kill_in_vain = |rig: &mut Rig| {
        let mut kills = 0;
        loop {
            rig.now = rig.core.deadline().unwrap();
            match &rig.tell(Input::Timer)[..] {
                [Output::KillAll] => kills += 1,
                other => {
                    assert_eq!(other, [Output::GiveUp]);
                    return kills;
                }
            }
        }
    };
    rig.tell(Input::Kill(Ticket(2)));
    assert_eq!(kill_in_vain(&mut rig), 100, "ten a second for ten seconds");
    let out = rig.tell(Input::Left("pid 7 (stuck)".into()));
    assert!(
        matches!(&out[..], [Output::Answer(Ticket(2), Reply::Refused(500, why))] if why.contains("pid 7 (stuck)")),
        "{out:?}"
    );
    assert_eq!((rig.core.state(), rig.core.pid(), rig.core.deadline()), (State::Stopped, None, None));
    // Its end comes late, and is nobody's.
    assert_eq!(rig.tell(Input::Exited(Exit::Signal(9))), []);
    // A restart is no start beside what is left; a run is.
    rig.tell(Input::Run(Ticket(3)));
    rig.tell(Input::Started(8));
    rig.tell(Input::Restart(Ticket(4)));
    kill_in_vain(&mut rig);
    let out = rig.tell(Input::Left("pid 8".into()));
    assert!(matches!(&out[..], [Output::Answer(Ticket(4), Reply::Refused(500, _))]), "{out:?}");
    // Of what ended by itself a child is left: it goes on by the policy.
    let mut rig = Rig::running(Restart::OnFailure, false);
    assert_eq!(rig.tell(Input::Exited(Exit::Code(1))), [Output::KillAll]);
    kill_in_vain(&mut rig);
    assert_eq!(rig.tell(Input::Left("pid 9".into())), []);
    assert_eq!(rig.core.state(), State::Backoff);
    // Our own end comes.
    let mut rig = Rig::running(Restart::Always, false);
    rig.tell(Input::Shutdown);
    kill_in_vain(&mut rig);
    assert_eq!(rig.tell(Input::Left("pid 9".into())), []);
    assert!(rig.core.is_closed());
}

#[test]
fn mistakes_are_answered_as_such() {
    let mut rig = Rig::running(Restart::Never, false);
    let refused = |out: Vec<Output>, word: &str| match &out[..] {
        [Output::Answer(_, Reply::Refused(_, why))] => assert!(why.contains(word), "{why}"),
        other => panic!("{other:?}"),
    };
    refused(rig.tell(Input::Run(Ticket(2))), "running already");
    assert_eq!(rig.tell(Input::Kill(Ticket(3))), [Output::Terminate]);
    rig.tell(Input::Exited(Exit::Code(3)));
    assert_eq!(rig.tell(Input::Gone), [Output::Answer(Ticket(3), Reply::Stopped(Some(Exit::Code(3))))]);
    refused(rig.tell(Input::Kill(Ticket(4))), "not running");
    assert_eq!(rig.tell(Input::Run(Ticket(5))), [Output::Start]);
    refused(rig.tell(Input::StartFailed(404, "no entry point".into())), "no entry point");
    assert_eq!(rig.core.state(), State::Stopped);
}

#[test]
fn what_was_asked_for_last_is_what_happens() {
    let mut rig = Rig::running(Restart::Never, false);
    // A kill, then a run before the end has come.
    assert_eq!(rig.tell(Input::Kill(Ticket(2))), [Output::Terminate]);
    assert_eq!(rig.tell(Input::Run(Ticket(3))), []);
    rig.tell(Input::Exited(Exit::Signal(15)));
    let stopped = Output::Answer(Ticket(2), Reply::Stopped(Some(Exit::Signal(15))));
    assert_eq!(rig.tell(Input::Gone), [stopped, Output::Start]);
    // A kill, then a run before it has started.
    assert_eq!(rig.tell(Input::Kill(Ticket(4))).len(), 1, "the run of ticket 3 is refused");
    assert_eq!(rig.tell(Input::Run(Ticket(5))), []);
    assert_eq!(rig.tell(Input::Started(8)), [Output::Terminate]);
    rig.tell(Input::Exited(Exit::Code(0)));
    let stopped = Output::Answer(Ticket(4), Reply::Stopped(Some(Exit::Code(0))));
    assert_eq!(rig.tell(Input::Gone), [stopped, Output::Start]);
    assert_eq!(rig.tell(Input::Started(9)), [Output::Answer(Ticket(5), Reply::Running(9))]);
    // A restart, then a kill.
    assert_eq!(rig.tell(Input::Restart(Ticket(6))), [Output::Terminate]);
    let refused = rig.tell(Input::Kill(Ticket(7)));
    assert!(matches!(refused[..], [Output::Answer(Ticket(6), Reply::Refused(409, _))]), "{refused:?}");
    rig.tell(Input::Exited(Exit::Code(0)));
    assert_eq!(rig.tell(Input::Gone).len(), 1);
    assert_eq!(rig.core.state(), State::Stopped);
}

#[test]
fn a_run_during_a_roll_back_follows_it() {
    for result in [Ok(1), Err("none".to_owned())] {
        let mut rig = Rig::running(Restart::Never, true);
        rig.tell(Input::Committed);
        rig.tell(Input::Exited(Exit::Code(1)));
        assert_eq!(rig.tell(Input::Gone), [Output::Rollback]);
        assert_eq!(rig.tell(Input::Kill(Ticket(2))), []);
        assert_eq!(rig.tell(Input::Run(Ticket(3))), []);
        let out = rig.tell(Input::RolledBack(result));
        assert_eq!(out, [Output::Answer(Ticket(2), Reply::Stopped(Some(Exit::Code(1)))), Output::Start]);
        assert_eq!(rig.tell(Input::Started(8)), [Output::Answer(Ticket(3), Reply::Running(8))]);
    }
}

#[test]
fn a_start_that_the_system_refuses_is_tried_again_by_policy() {
    let mut rig = Rig::running(Restart::Always, false);
    rig.tell(Input::Exited(Exit::Code(0)));
    rig.tell(Input::Gone);
    rig.now += 31 * S;
    assert_eq!(rig.tell(Input::Timer), [Output::Start]);
    rig.tell(Input::StartFailed(500, "no memory".into()));
    assert_eq!(rig.core.state(), State::Backoff);
    assert!(rig.core.deadline().unwrap() >= rig.now + S / 2);
    rig.now += 31 * S;
    assert_eq!(rig.tell(Input::Timer), [Output::Start]);
    rig.tell(Input::StartFailed(404, "no entry point".into()));
    assert_eq!(rig.core.state(), State::Stopped);
}

#[test]
fn it_is_started_again_as_the_policy_says() {
    for (restart, exit, again) in [
        (Restart::Never, Exit::Code(1), false),
        (Restart::OnFailure, Exit::Code(0), false),
        (Restart::OnFailure, Exit::Code(1), true),
        (Restart::OnFailure, Exit::Signal(11), true),
        (Restart::Always, Exit::Code(0), true),
    ] {
        let mut rig = Rig::running(restart, false);
        assert_eq!(rig.tell(Input::Exited(exit)), [Output::KillAll]);
        assert_eq!(rig.tell(Input::Gone), []);
        assert_eq!(
            rig.core.state(),
            if again { State::Backoff } else { State::Stopped },
            "{restart:?} {exit}"
        );
        if again {
            rig.now += 31 * S;
            assert_eq!(rig.tell(Input::Timer), [Output::Start]);
            assert_eq!(rig.core.restarts(), 1);
        }
    }
}

#[test]
fn a_crash_after_a_sync_rolls_back_once() {
    let mut rig = Rig::running(Restart::OnFailure, true);
    rig.tell(Input::Committed);
    rig.now += 60 * S;
    // Restarted a minute later: the window begins with that start.
    assert_eq!(rig.tell(Input::Restart(Ticket(2))), [Output::Terminate]);
    rig.tell(Input::Exited(Exit::Signal(15)));
    rig.tell(Input::Gone);
    rig.tell(Input::Started(8));
    rig.now += 9 * S;
    rig.tell(Input::Exited(Exit::Code(1)));
    assert_eq!(rig.tell(Input::Gone), [Output::Rollback]);
    assert_eq!(rig.tell(Input::RolledBack(Ok(1))), [Output::Start]);
    rig.tell(Input::Started(9));
    rig.tell(Input::Exited(Exit::Code(1)));
    assert_eq!(rig.tell(Input::Gone), [], "the second crash is not the sync's");
    assert_eq!(rig.core.state(), State::Backoff);
    // One that can't be rolled back is a crash like any other.
    let mut rig = Rig::running(Restart::Never, true);
    rig.tell(Input::Committed);
    rig.tell(Input::Exited(Exit::Code(1)));
    assert_eq!(rig.tell(Input::Gone), [Output::Rollback]);
    assert_eq!(rig.tell(Input::RolledBack(Err("none".into()))), []);
    assert_eq!(rig.core.state(), State::Stopped);
}

/// Any order of requests, deaths and outcomes: no start while something lives, each ticket answered once.
#[test]
fn no_two_applications_and_no_forgotten_ticket() {
    let seed =
        std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("EDGE_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..3000 {
        simulate(&mut rng);
    }
}

/// The world around the core: what lives, and what the core has asked for.
#[derive(Default)]
struct World {
    /// The first process lives; so many others.
    main: bool,
    others: u8,
    start: bool,
    rollback: bool,
    killed: bool,
    /// KILL does not end what lives; given up, it counts no more.
    stuck: bool,
    given_up: bool,
    committed: bool,
    waiting: std::collections::BTreeSet<Ticket>,
    last: u64,
}

impl World {
    /// Something that can happen now.
    fn event(&mut self, closing: bool, now: &mut Instant, rng: &mut fastrand::Rng) -> Option<Input> {
        if std::mem::take(&mut self.given_up) {
            return Some(Input::Left("pid 9".into()));
        }
        match rng.u8(..10) {
            kind @ 0..3 if !closing => {
                self.last += 1;
                self.waiting.insert(Ticket(self.last));
                Some([Input::Run, Input::Restart, Input::Kill][usize::from(kind)](Ticket(self.last)))
            }
            3 if !closing => {
                self.committed = true;
                Some(Input::Committed)
            }
            4 if self.start => {
                self.start = false;
                let status = *rng.choice(&[404, 500]).unwrap();
                if rng.u8(..5) == 0 {
                    return Some(Input::StartFailed(status, "none".into()));
                }
                (self.main, self.others, self.killed) = (true, rng.u8(..3), false);
                self.stuck = rng.u8(..8) == 0;
                Some(Input::Started(9))
            }
            5 if self.main && !self.stuck && (self.killed || rng.u8(..3) == 0) => {
                self.main = false;
                Some(Input::Exited(*rng.choice(&[Exit::Code(0), Exit::Code(1), Exit::Signal(9)]).unwrap()))
            }
            6 if !self.main && self.others > 0 && self.killed && !self.stuck => {
                self.others -= 1;
                (self.others == 0).then_some(Input::Gone)
            }
            7 if self.rollback => {
                self.rollback = false;
                Some(Input::RolledBack(if rng.bool() { Ok(1) } else { Err("none".into()) }))
            }
            8 => {
                *now += Duration::from_millis(rng.u64(..8000));
                Some(Input::Timer)
            }
            9 if !self.main && self.others == 0 => Some(Input::Gone),
            _ => None,
        }
    }

    fn see(&mut self, output: Output) {
        let lives = self.main || self.others > 0;
        match output {
            Output::Start => {
                assert!(!lives && !self.start, "a start while something lives");
                self.start = true;
            }
            Output::KillAll | Output::Terminate => self.killed = true,
            Output::GiveUp => {
                assert!(self.killed && !self.given_up, "given up before KILL, or twice");
                (self.main, self.others, self.given_up) = (false, 0, true);
            }
            Output::Rollback => {
                assert!(self.committed && !lives, "a roll-back without a commit, or twice");
                (self.committed, self.rollback) = (false, true);
            }
            Output::Answer(ticket, _) => {
                assert!(self.waiting.remove(&ticket), "{ticket:?} was answered twice");
            }
            Output::Note(_) => {}
        }
    }
}

fn simulate(rng: &mut fastrand::Rng) {
    let restart = *rng.choice(&[Restart::Never, Restart::OnFailure, Restart::Always]).unwrap();
    let mut core = Core::new(policy(restart, rng.bool()));
    let (mut now, mut world) = (Instant::now(), World::default());
    let steps = rng.usize(5..60);
    for step in 0..steps + 400 {
        let closing = step >= steps;
        let input = if step == steps { Some(Input::Shutdown) } else { world.event(closing, &mut now, rng) };
        for output in input.into_iter().flat_map(|input| core.handle(input, now, rng)) {
            world.see(output);
        }
        if closing && core.is_closed() {
            break;
        }
    }
    assert!(core.is_closed(), "a shutdown comes to its end: {:?}", core.state());
    assert!(!world.main && world.others == 0, "closed while something lives");
    assert!(world.waiting.is_empty(), "{:?} were never answered", world.waiting);
}

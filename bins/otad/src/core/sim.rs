//! Whole lives of devices: seeded simulations with a model server, store and units (`EDGE_SEED` replays one), crashes at
//! any step, and a fleet of ten thousand after a power cut.

use std::collections::BTreeSet;

use edge::release::rollout;

use super::*;

fn seed() -> u64 {
    let given = std::env::var("EDGE_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("EDGE_SEED={seed}");
    seed
}

const S: Duration = Duration::from_secs(1);

/// What the disk of a device says.
#[derive(Default)]
struct Disk {
    current: u32,
    trial: Option<(u32, u32)>,
    quarantine: BTreeSet<u32>,
    owed: bool,
}

/// One device and its server.
struct World {
    rng: fastrand::Rng,
    clock: Duration,
    disk: Disk,
    /// The newest release; those with an odd number in it are bad.
    newest: u32,
    bad: BTreeSet<u32>,
    /// What the unit runs.
    running: u32,
    window_open: bool,
    plan: u32,
    committed: Vec<u32>,
}

impl World {
    fn now(&self) -> Now {
        let window = if self.window_open { (Duration::ZERO, Duration::ZERO) } else { (600 * S, 1200 * S) };
        Now { boot: self.clock, window, budget: None }
    }

    fn trouble(&mut self) -> Option<Trouble> {
        let why = "the model".to_owned();
        match self.rng.u32(0..12) {
            0 => Some(Trouble::Passing(why)),
            1 => Some(Trouble::Busy(Duration::from_secs(self.rng.u64(1..600)), why)),
            2 => Some(Trouble::Refused(why)),
            _ => None,
        }
    }

    fn link(&self) -> u32 {
        self.disk.trial.map_or(self.disk.current, |(_, to)| to)
    }

    /// Does a job; `None`: the power goes in it.
    fn run(&mut self, job: &Job) -> Option<Done> {
        self.clock += Duration::from_millis(self.rng.u64(1..3000));
        if self.rng.u32(0..40) == 0 {
            // Some jobs had their effect before.
            if self.rng.bool() {
                self.effect(job);
            }
            return None;
        }
        let step = |world: &mut World| world.trouble().map_or(Ok(()), Err);
        Some(match job {
            Job::Poll { .. } => Done::Polled(match self.trouble() {
                Some(trouble) => Err(trouble),
                None => {
                    self.plan = self.newest;
                    Ok(self.newest != self.disk.current && !self.disk.quarantine.contains(&self.newest))
                }
            }),
            Job::Fetch { .. } => Done::Fetched(step(self)),
            Job::Build => Done::Built(step(self)),
            Job::PreHooks => Done::Hooked(step(self)),
            Job::Switch => {
                assert!(self.window_open, "a switch outside of the window");
                assert!(!self.disk.quarantine.contains(&self.plan), "a switch to what had failed");
                self.effect(job);
                Done::Switched(Ok(()))
            }
            Job::Restart { .. } => {
                self.effect(job);
                Done::Restarted(Ok(true))
            }
            Job::Probe { .. } => {
                assert_eq!(self.running, self.link(), "the unit was not restarted");
                Done::Probed(if self.bad.contains(&self.running) && self.rng.u32(0..3) > 0 {
                    Err("dead".into())
                } else if self.bad.contains(&self.running) {
                    // It comes up again and again.
                    Ok(format!("run {}", self.rng.u64(..)))
                } else {
                    Ok(format!("run {}", self.running))
                })
            }
            Job::Commit => {
                assert!(!self.bad.contains(&self.link()), "a bad release was committed");
                self.effect(job);
                Done::Committed(Ok(()))
            }
            Job::RollBack { .. } => {
                self.effect(job);
                Done::RolledBack(Ok(()))
            }
            Job::Return => {
                self.effect(job);
                Done::Returned
            }
        })
    }

    fn effect(&mut self, job: &Job) {
        match job {
            Job::Switch => self.disk.trial = Some((self.disk.current, self.plan)),
            Job::Restart { .. } => self.running = self.link(),
            Job::Commit => {
                if let Some((_, to)) = self.disk.trial.take() {
                    self.disk.current = to;
                    self.committed.push(to);
                }
            }
            Job::RollBack { quarantine, .. } => {
                self.disk.owed = true;
                if let Some((_, to)) = self.disk.trial.take()
                    && *quarantine
                {
                    self.disk.quarantine.insert(to);
                }
            }
            Job::Return => {
                self.running = self.disk.current;
                self.disk.owed = false;
            }
            _ => {}
        }
    }
}

fn policy() -> Policy {
    Policy { interval: 600 * S, retry: (10 * S, 600 * S), active_within: 30 * S, stable: 10 * S }
}

/// One life: releases come, some bad; the window opens and closes; the power goes now and then.
fn live(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut world = World {
        rng: fastrand::Rng::with_seed(rng.u64(..)),
        clock: S,
        disk: Disk::default(),
        newest: 0,
        bad: BTreeSet::new(),
        running: 0,
        window_open: true,
        plan: 0,
        committed: vec![],
    };
    let mut core = Core::new(policy(), world.clock, &mut rng);
    let mut job = None;
    for step in 0..3000 {
        let calm = step > 2400;
        if !calm && rng.u32(0..50) == 0 {
            world.newest += 1;
            if rng.u32(0..3) == 0 {
                world.bad.insert(world.newest);
            }
        }
        if step == 2400 {
            world.newest += 1;
            world.window_open = true;
        } else if !calm && rng.u32(0..30) == 0 {
            world.window_open = job.as_ref().is_some_and(|j| *j == Job::Switch) || rng.bool();
        }
        job = match job.take() {
            Some(job) => match world.run(&job) {
                Some(done) => core.handle(Input::Done(done), world.now(), &mut rng),
                None => {
                    core = Core::new(policy(), world.clock, &mut rng);
                    if rng.bool() {
                        // A reboot: the units start with what the link names.
                        world.running = world.link();
                    }
                    match (world.disk.trial, world.disk.owed) {
                        (Some(_), _) => core.handle(Input::Resume, world.now(), &mut rng),
                        (None, true) => core.handle(Input::Owed, world.now(), &mut rng),
                        (None, false) => None,
                    }
                }
            },
            None => {
                let at = core.deadline().expect("no job and no deadline: it would sleep for ever");
                assert!(at <= world.clock + 1300 * S, "it sleeps too long");
                world.clock = world.clock.max(at);
                core.handle(Input::Timer, world.now(), &mut rng)
            }
        };
    }
    assert_eq!(world.disk.current, world.newest, "the newest good release arrived");
    assert!(world.committed.is_sorted(), "{:?}", world.committed);
}

#[test]
fn whatever_happens_good_releases_arrive_and_bad_ones_leave() {
    let seed = seed();
    for n in 0..200 {
        live(seed.wrapping_add(n));
    }
}

/// Ten thousand devices get their power back in the same second.
#[test]
fn ten_thousand_devices_after_a_power_cut() {
    const DEVICES: usize = 10_000;
    const HOURS: u64 = 6;
    let seed = seed();
    let policy =
        Policy { interval: 3600 * S, retry: (30 * S, 3600 * S), active_within: 150 * S, stable: 60 * S };
    let mut per_minute = vec![0u32; (HOURS * 60) as usize];
    let mut inside = 0;
    // Each device draws on its own; generators whose seeds are neighbours would draw alike.
    let mut seeds = fastrand::Rng::with_seed(seed);
    for n in 0..DEVICES {
        let mut rng = seeds.fork();
        let id = format!("cam-{seed}-{n}");
        let first = rollout::includes("release-7", &id, 10);
        inside += usize::from(first);
        let mut core = Core::new(policy, Duration::ZERO, &mut rng);
        let mut clock = Duration::ZERO;
        loop {
            clock = clock.max(core.deadline().unwrap());
            let Some(count) = per_minute.get_mut((clock.as_secs() / 60) as usize) else { break };
            let now = Now { boot: clock, ..Now::default() };
            assert_eq!(
                core.handle(Input::Timer, now, &mut rng),
                Some(Job::Poll { content: true, forced: false })
            );
            *count += 1;
            assert_eq!(rollout::includes("release-7", &id, 10), first, "it stays as it is over polls");
            assert!(!first || rollout::includes("release-7", &id, 25), "more percent takes nobody out");
            core.handle(Input::Done(Done::Polled(Ok(false))), now, &mut rng);
        }
    }
    // A binomial: 1000 and a deviation of 30; five of them are met once in a million runs.
    assert!((850..=1150).contains(&inside), "a rollout of 10 % met {inside} of {DEVICES}");
    let mean = f64::from(per_minute.iter().sum::<u32>()) / per_minute.len() as f64;
    assert!((mean - DEVICES as f64 / 60.0).abs() < 3.0, "{mean} polls a minute");
    let max = f64::from(*per_minute.iter().max().unwrap());
    let min = f64::from(*per_minute.iter().min().unwrap());
    // Poisson: the deviation is the root of the mean; more than six of them in one of 360 minutes is one run in millions.
    let bound = 6.5 * mean.sqrt();
    assert!(max < mean + bound && min > mean - bound, "{min} to {max} polls a minute, {mean} on average");
    println!("rollout 10 %: {inside} of {DEVICES}; polls a minute: {min} to {max}, mean {mean:.1}");
}

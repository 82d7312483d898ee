//! A stream whose encoder is started while frames come, fails to start, or is stopped before it has started.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use mio::{Poll, Token, Waker};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::super::{Producer, Step};
use super::*;
use crate::config::Config;
use crate::core::State;
use crate::frames::geometry::{Format, Layout};
use crate::frames::ring::Ring;
use crate::frames::wire::Frame;
use crate::mail::{self, Mail};

const LONG: Duration = Duration::from_secs(30);
const SIZE: (u32, u32) = (64, 48);

struct Rig {
    stream: Stream,
    letters: Receiver<Mail>,
    ring: Arc<Ring>,
    layout: Layout,
    frames: u64,
    _poll: Poll,
    _theirs: OwnedFd,
}

impl Rig {
    fn new(toml: &str) -> Rig {
        crate::pipeline::init().unwrap();
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let (mail, letters) = mail::channel(256, waker);
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let layout = Layout::new(Format::Bgr, SIZE, 0, (4096, 4096)).unwrap();
        let ring = Ring::new(8, layout.bytes, Arc::new(ours)).unwrap();
        let mut stream = Stream::new(1, Config::parse(toml).unwrap().stream("cam").unwrap(), mail);
        stream.wanted.units = true;
        Rig { stream, letters, ring, layout, frames: 0, _poll: poll, _theirs: theirs }
    }

    fn begin(&mut self) {
        self.stream.begin(Producer { token: Token(5), fps: (30, 1), has_begun: false });
    }

    fn frame(&mut self, slot: u32) {
        let pts_ns = self.frames * 33_333_333;
        let frame = Frame { slot, width: SIZE.0, height: SIZE.1, stride: 0, pts_ns, dropped: 0 };
        self.frames += 1;
        let bytes = self.ring.claim(slot, self.layout.bytes).unwrap();
        self.stream.frame(&frame, &self.layout, bytes, Instant::now());
    }

    /// Delivers letters until `enough`; the times of the units among them.
    fn deliver(&mut self, enough: impl Fn(&Stream, usize) -> bool) -> Vec<u64> {
        let (begun, mut units) = (Instant::now(), Vec::new());
        while !enough(&self.stream, units.len()) {
            assert!(begun.elapsed() < LONG, "{:?}, {} units", self.stream.core.state(), units.len());
            let Ok(mail) = self.letters.recv_timeout(Duration::from_millis(100)) else { continue };
            if let Step::Unit(unit) = self.stream.letter(mail.run, mail.letter, Instant::now()) {
                units.push(unit.pts_ns);
            }
        }
        units
    }
}

#[test]
fn frames_wait_for_the_start_and_further_ones_are_counted() {
    let mut rig = Rig::new("[encoder]\nqueue-frames = 3\n");
    rig.begin();
    // Nobody looks at the letters meanwhile, so that the start has not ended for the stream.
    (0..5).for_each(|slot| rig.frame(slot));
    assert_eq!((rig.stream.core.counts().drops.slow, rig.ring.in_use()), (2, 3));
    assert_eq!((rig.stream.core.state().0, rig.stream.encoding()), (State::Starting, None));
    let units = rig.deliver(|_, units| units == 3);
    assert!(units.windows(2).all(|pair| pair[0] < pair[1]), "{units:?}");
    assert_eq!(units[0], 0, "the first one is the first frame's");
    assert_eq!(rig.stream.core.state().0, State::Streaming);
    assert_eq!(rig.stream.encoding().map(|(kind, size, _)| (kind, size)), Some((Kind::X264, SIZE)));
}

#[test]
fn a_start_that_fails_is_an_error_with_its_cause() {
    if gst::ElementFactory::find("nvv4l2h264enc").is_some() {
        println!("skipped: a_start_that_fails_is_an_error_with_its_cause: this machine is a Jetson");
        return;
    }
    let mut rig = Rig::new("[encoder]\nkind = \"nvv4l2h264enc\"\n");
    rig.begin();
    rig.frame(0);
    let units = rig.deliver(|stream, _| stream.core.state().0 == State::Error);
    let (_, why, _) = rig.stream.core.state();
    assert!(why.contains("nvv4l2h264enc is not installed"), "{why}");
    assert_eq!((units, rig.stream.core.counts().drops.failed, rig.ring.in_use()), (vec![], 1, 0));
    // Until it is tried again frames are let go at once.
    rig.frame(0);
    assert_eq!((rig.stream.core.counts().drops.failed, rig.ring.in_use()), (2, 0));
}

#[test]
fn an_end_during_the_start_is_clean_two_hundred_times() {
    let mut rig = Rig::new("");
    let mut rng = fastrand::Rng::with_seed(16);
    let mut during = 0;
    for round in 0..200 {
        rig.begin();
        (0..3).for_each(|slot| rig.frame(slot));
        // From at once to after the first units.
        std::thread::sleep(Duration::from_micros(rng.u64(0..12_000)));
        if rng.bool() {
            while let Ok(mail) = rig.letters.try_recv() {
                rig.stream.letter(mail.run, mail.letter, Instant::now());
            }
        }
        during += usize::from(rig.stream.encoding().is_none());
        if round % 2 == 0 {
            rig.stream.end("it hung up");
        } else {
            rig.stream.config.idle_close = Duration::ZERO;
            rig.stream.wanted.units = false;
            rig.stream.tick(Instant::now());
            rig.stream.wanted.units = true;
        }
        let begun = Instant::now();
        while rig.ring.in_use() > 0 {
            assert!(begun.elapsed() < LONG, "round {round}: {} slots stay in use", rig.ring.in_use());
            std::thread::sleep(Duration::from_millis(1));
        }
        // What pipelines that are gone said is nobody's.
        while let Ok(mail) = rig.letters.try_recv() {
            assert!(matches!(rig.stream.letter(mail.run, mail.letter, Instant::now()), Step::None));
        }
    }
    assert!((50..=200).contains(&during), "{during} of 200 ended during their start");
    // And it still works.
    rig.begin();
    rig.frame(0);
    assert_eq!(rig.deliver(|_, units| units == 1).len(), 1);
    drop(rig);
    let begun = Instant::now();
    while crate::pipeline::starting::alive() > 0 {
        assert!(begun.elapsed() < LONG, "{} starts stay", crate::pipeline::starting::alive());
        std::thread::sleep(Duration::from_millis(1));
    }
}

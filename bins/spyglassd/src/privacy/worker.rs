//! The thread that blurs one stream's frames, between the loop and the encoders.
//!
//! Owns: the detector, its own copy of each frame (a slot is given back as soon as it is copied). Invariants: at most one
//! frame waits, so that a slow search costs frames and not delay; more than `fps-max` frames a second are not taken; what
//! can't be searched is not handed on. Dropping its handle ends it after the frame it is at; nobody waits for that.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

use gst_video::{VideoConverter, VideoFormat, VideoFrame, VideoInfo};

use super::Finder;
use super::blur::Picture;
use super::config::Config;
use super::hold::Hold;
use crate::pipeline::encoder::Stamp;
use crate::pipeline::picture::Shape;

/// A frame that may be shown. Made here and nowhere else.
#[derive(Debug)]
pub struct Clean {
    /// I420.
    pub buffer: gst::Buffer,
    /// What it is.
    pub shape: Shape,
    /// Its times.
    pub stamp: Stamp,
    /// A key frame is due.
    pub key: bool,
    /// Parts that were blurred; `None` = everything.
    pub areas: Option<usize>,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

/// What comes out.
#[derive(Debug)]
pub enum Output {
    /// A frame.
    Clean(Clean),
    /// It failed; nothing more comes.
    Failed(String),
}

struct Job {
    buffer: gst::Buffer,
    shape: Shape,
    stamp: Stamp,
    key: bool,
}

/// The handle of the thread.
#[derive(Debug)]
pub struct Worker {
    jobs: SyncSender<Job>,
    interval_ns: u64,
    next_ns: u64,
    /// Was asked for with a frame that was not taken.
    key: bool,
}

impl Worker {
    /// Starts it. `finder` is called on the new thread: loading a model takes its time.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(
        config: &Config,
        finder: impl FnOnce() -> Result<Box<dyn Finder>, String> + Send + 'static,
        out: impl Fn(Output) + Send + 'static,
    ) -> std::io::Result<Worker> {
        let (jobs, waiting) = sync_channel(1);
        let hold = Hold::new(config.raw.margin, config.hold_ns);
        std::thread::Builder::new().name("privacy".to_owned()).spawn(move || {
            let failed = match finder() {
                Ok(finder) => run(finder, hold, &waiting, &out),
                Err(why) => Err(why),
            };
            if let Err(why) = failed {
                out(Output::Failed(format!("faces can't be blurred: {why}")));
            }
        })?;
        let interval_ns = 1_000_000_000 / u64::from(config.raw.fps_max.max(1));
        Ok(Worker { jobs, interval_ns, next_ns: 0, key: false })
    }

    /// Offers a frame; `false` when it comes too early or the last ones are not done.
    pub fn offer(&mut self, buffer: gst::Buffer, shape: Shape, stamp: Stamp, key: bool) -> bool {
        self.key |= key;
        // A quarter of the distance is allowed for, as in `pipeline::still`.
        if stamp.pts_ns + self.interval_ns / 4 < self.next_ns {
            return false;
        }
        if self.jobs.try_send(Job { buffer, shape, stamp, key: self.key }).is_err() {
            return false;
        }
        self.key = false;
        self.next_ns = self.next_ns.max(stamp.pts_ns.saturating_sub(self.interval_ns)) + self.interval_ns;
        true
    }
}

fn run(
    mut finder: Box<dyn Finder>,
    mut hold: Hold,
    jobs: &Receiver<Job>,
    out: &impl Fn(Output),
) -> Result<(), String> {
    let mut converter: Option<(Shape, VideoInfo, VideoInfo, VideoConverter)> = None;
    while let Ok(Job { buffer, shape, stamp, key }) = jobs.recv() {
        let begun = Instant::now();
        let (_, from, to, convert) = match converter.take() {
            Some(same) if same.0 == shape => converter.insert(same),
            _ => converter.insert(prepare(shape)?),
        };
        let copy = gst::Buffer::with_size(to.size()).map_err(|e| format!("no memory for a frame: {e}"))?;
        let unmapped = |_| "a frame can't be mapped".to_owned();
        let mut frame = VideoFrame::from_buffer_writable(copy, to).map_err(unmapped)?;
        convert.frame(&VideoFrame::from_buffer_readable(buffer, from).map_err(unmapped)?, &mut frame);
        let mut buffer = frame.into_buffer();
        let areas = {
            let mut map = buffer.make_mut().map_writable().map_err(|e| e.to_string())?;
            let at = |n: usize| (to.offset()[n], to.stride()[n].unsigned_abs() as usize);
            let [y, u, v] = [at(0), at(1), at(2)];
            let mut picture = Picture {
                data: map.as_mut_slice(),
                size: shape.size,
                offsets: [y.0, u.0, v.0],
                strides: [y.1, u.1, v.1],
            };
            let found = finder.find(&picture)?;
            let areas = hold.update(&found, stamp.pts_ns);
            picture.blur(areas.as_deref())?;
            areas.map(|areas| areas.len())
        };
        let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let shape = Shape { format: VideoFormat::I420, ..shape };
        out(Output::Clean(Clean { buffer, shape, stamp, key, areas, took_us }));
    }
    Ok(())
}

/// Frames of `shape` become I420 of the same size.
fn prepare(shape: Shape) -> Result<(Shape, VideoInfo, VideoInfo, VideoConverter), String> {
    let failed = |e: gst::glib::BoolError| format!("frames can't be converted: {e}");
    let from = VideoInfo::from_caps(&shape.caps()).map_err(failed)?;
    let to = Shape { format: VideoFormat::I420, ..shape };
    let to = VideoInfo::from_caps(&to.caps()).map_err(failed)?;
    let converter = VideoConverter::new(&from, &to, None).map_err(failed)?;
    Ok((shape, from, to, converter))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::super::config::Raw;
    use super::super::hold::Area;
    use super::*;

    /// Finds one face in each frame, until it fails.
    struct Scripted(u32);

    impl Finder for Scripted {
        fn find(&mut self, picture: &Picture<'_>) -> Result<Vec<Area>, String> {
            assert_eq!(picture.size, (64, 48));
            self.0 -= 1;
            let face = Area { x: 16.0, y: 16.0, w: 16.0, h: 16.0 };
            if self.0 == 0 { Err("the test wants it".to_owned()) } else { Ok(vec![face]) }
        }
    }

    const SHAPE: Shape = Shape { format: VideoFormat::Bgr, size: (64, 48), fps: (0, 1) };

    fn config() -> Config {
        Config { raw: Raw { margin: 0.0, fps_max: 10, ..Raw::default() }, hold_ns: 0 }
    }

    fn stamp(ms: u64) -> Stamp {
        Stamp { pts_ns: ms * 1_000_000, wall_ms: 0, arrived: Instant::now() }
    }

    fn noise() -> gst::Buffer {
        let mut rng = fastrand::Rng::with_seed(3);
        gst::Buffer::from_slice((0..64 * 48 * 3).map(|_| rng.u8(..)).collect::<Vec<u8>>())
    }

    #[test]
    fn frames_come_out_blurred_until_a_search_fails_and_then_none_does() {
        crate::pipeline::init().unwrap();
        let (tx, rx) = channel();
        let made = || Ok(Box::new(Scripted(3)) as Box<dyn Finder>);
        let mut worker = Worker::start(&config(), made, move |out| drop(tx.send(out))).unwrap();
        let wait = Duration::from_secs(20);
        for (ms, key) in [(0, true), (100, false)] {
            assert!(worker.offer(noise(), SHAPE, stamp(ms), key));
            let Output::Clean(clean) = rx.recv_timeout(wait).unwrap() else { panic!("no frame") };
            assert_eq!((clean.stamp.pts_ns, clean.key, clean.areas), (ms * 1_000_000, key, Some(1)));
            assert_eq!(clean.shape.format, VideoFormat::I420);
            let map = clean.buffer.map_readable().unwrap();
            let differs = |x: usize, y: usize| map[y * 64 + x].abs_diff(map[y * 64 + x + 1]) > 12;
            let count =
                |from: usize, to: usize| (from..to).filter(|n| differs(n % 14 + from, n / 14 + from)).count();
            assert_eq!(count(16, 30), 0, "inside the face");
            assert!((0..40).filter(|x| differs(*x, 2)).count() > 20, "outside of it");
        }
        // Too early: let go, and the key frame is asked for with the next one.
        assert!(!worker.offer(noise(), SHAPE, stamp(120), true));
        assert!(worker.offer(noise(), SHAPE, stamp(200), false));
        let Output::Failed(why) = rx.recv_timeout(wait).unwrap() else {
            panic!("a frame that was not searched")
        };
        assert_eq!(why, "faces can't be blurred: the test wants it");
        while worker.offer(noise(), SHAPE, stamp(1000), false) {}
        assert!(rx.recv_timeout(Duration::from_millis(200)).is_err());
    }

    #[test]
    fn without_a_detector_nothing_comes_out() {
        crate::pipeline::init().unwrap();
        let (tx, rx) = channel();
        let none = || Err("no model".to_owned());
        let mut worker = Worker::start(&config(), none, move |out| drop(tx.send(out))).unwrap();
        let _ = worker.offer(noise(), SHAPE, stamp(0), true);
        let Output::Failed(why) = rx.recv_timeout(Duration::from_secs(20)).unwrap() else {
            panic!("a frame")
        };
        assert!(why.contains("no model"));
        assert!(rx.recv_timeout(Duration::from_secs(5)).is_err(), "it has ended");
    }
}

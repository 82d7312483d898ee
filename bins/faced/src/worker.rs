//! A detector thread: takes the latest frames from its inbox, finds faces, cuts them out, encodes what is to be
//! published.
//!
//! Owns: one detector and, for MJPG cameras, their motion gates (those frames must be decoded to be judged).
//! Invariant: results leave in the order in which frames, jobs and ends were taken.
//! Never: decides what is published, ends the program on a bad frame.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use mio::Waker;

use crate::config::{Camera, Config};
use crate::convert::{Area, DecodeError, Rgb, Wanted, crop_luma, crop_rgb, decode_jpeg};
use crate::counters::Counters;
use crate::detect::{DetectError, Detection, Detector};
use crate::encode::{EncodeError, PictureFormat, encode};
use crate::frame::{Format, Frame, Stamp, View};
use crate::gate::Gate;
use crate::inbox::{EncodeJob, End, Inbox, Work};
use crate::track::{Sight, quality, sharpness};

/// A face cut out of its frame.
#[derive(Debug, Clone)]
pub struct Crop {
    /// The pixels.
    pub rgb: Rgb,
    /// Where they lay in the frame.
    pub area: Area,
    /// Size of the frame.
    pub frame: (u32, u32),
    /// Variance of the Laplacian of the face.
    pub sharpness: f32,
    /// Name of the file, for a folder of pictures.
    pub origin: Option<Arc<str>>,
}

/// What comes out of a detector thread.
#[derive(Debug)]
pub enum Outcome<T> {
    /// A frame was looked at.
    Looked {
        /// When and whence.
        stamp: Stamp,
        /// The faces in it.
        sights: Vec<Sight<Crop>>,
    },
    /// A frame could not be looked at.
    Failed {
        /// Camera.
        camera: usize,
        /// Why, in words.
        why: String,
    },
    /// A crop is encoded.
    Encoded {
        /// From the job.
        ticket: T,
        /// The file.
        payload: Result<Vec<u8>, EncodeError>,
    },
    /// A source came to its end.
    End {
        /// Camera.
        camera: usize,
        /// Why.
        end: End,
    },
}

/// One detector thread's own things.
#[derive(Debug)]
pub struct Worker<T> {
    inbox: Arc<Inbox<T>>,
    detector: Detector,
    cameras: Vec<Looking>,
    format: PictureFormat,
    results: SyncSender<Outcome<T>>,
    waker: Arc<Waker>,
}

/// What it knows about a camera.
#[derive(Debug)]
struct Looking {
    config: Camera,
    margin: f32,
    counters: Arc<Counters>,
    gate: Gate,
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Detect(#[from] DetectError),
}

impl<T> Worker<T> {
    /// A worker for all cameras of `config`; the inbox decides which of them it sees.
    ///
    /// # Errors
    /// When the detector's model can't be loaded.
    pub fn new(
        config: &Config,
        inbox: Arc<Inbox<T>>,
        counters: &[Arc<Counters>],
        results: SyncSender<Outcome<T>>,
        waker: Arc<Waker>,
    ) -> Result<Worker<T>, DetectError> {
        let cameras = config.cameras.iter().zip(counters).map(|(camera, counters)| Looking {
            config: camera.clone(),
            margin: config.faces.crop_margin,
            counters: Arc::clone(counters),
            gate: Gate::new(camera.gate),
        });
        Ok(Worker {
            detector: Detector::new(&config.detector)?,
            cameras: cameras.collect(),
            format: config.faces.format,
            inbox,
            results,
            waker,
        })
    }

    /// Works until the inbox is closed or nobody wants the results.
    pub fn run(mut self) {
        while let Some(work) = self.inbox.take() {
            let outcome = match work {
                Work::Frame(frame) => self.frame(frame),
                Work::Encode(EncodeJob { crop, ticket }) => {
                    Some(Outcome::Encoded { ticket, payload: encode(&crop, self.format) })
                }
                Work::End(camera, end) => {
                    let looking = &mut self.cameras[camera];
                    looking.gate = Gate::new(looking.config.gate);
                    looking.counters.closed.store(false, Relaxed);
                    Some(Outcome::End { camera, end })
                }
            };
            if let Some(outcome) = outcome {
                if self.results.send(outcome).is_err() {
                    return;
                }
                if let Err(error) = self.waker.wake() {
                    log::error!("a detector thread cannot wake the main loop: {error}");
                    return;
                }
            }
        }
    }

    /// `None` when an MJPG frame shows nothing new.
    fn frame(&mut self, mut frame: Frame) -> Option<Outcome<T>> {
        let camera = frame.stamp.camera;
        let looking = &mut self.cameras[camera];
        let outcome = match look(looking, &mut self.detector, &mut frame) {
            Ok(None) => None,
            Ok(Some(sights)) => Some(Outcome::Looked { stamp: frame.stamp.clone(), sights }),
            Err(error) => {
                Counters::count(&looking.counters.bad);
                let what = frame.origin.as_deref().map(|name| format!("{name}: ")).unwrap_or_default();
                Some(Outcome::Failed { camera, why: format!("{what}{}", edge::log::chain(&error)) })
            }
        };
        self.inbox.recycle(camera, frame.data);
        outcome
    }
}

fn look(
    looking: &mut Looking,
    detector: &mut Detector,
    frame: &mut Frame,
) -> Result<Option<Vec<Sight<Crop>>>, LookError> {
    if frame.layout.format != Format::Mjpg {
        let view = frame.view().map_err(DecodeError::Frame)?;
        return Ok(Some(search(looking, detector, &view, frame)?));
    }
    let at_ms = frame.stamp.at_ms;
    let mut judged = !looking.config.gate.enabled;
    if looking.counters.closed.load(Relaxed) {
        // Nothing moved lately: luma alone tells whether that still holds, for half the price.
        let (layout, data) = decode_jpeg(&frame.data, Wanted::Luma)?;
        let view = View::new(&layout, &data).map_err(DecodeError::Frame)?;
        if !looking.gate.inspect(&view, at_ms).passes() {
            looking.counters.still(at_ms);
            return Ok(None);
        }
        judged = true;
    }
    let (layout, data) = decode_jpeg(&frame.data, Wanted::Colour)?;
    let view = View::new(&layout, &data).map_err(DecodeError::Frame)?;
    if !judged && !looking.gate.inspect(&view, at_ms).passes() {
        looking.counters.closed.store(true, Relaxed);
        looking.counters.still(at_ms);
        return Ok(None);
    }
    looking.counters.closed.store(false, Relaxed);
    frame.stamp.still_until_ms = looking.counters.take_still();
    Ok(Some(search(looking, detector, &view, frame)?))
}

fn search(
    looking: &Looking,
    detector: &mut Detector,
    view: &View<'_>,
    frame: &Frame,
) -> Result<Vec<Sight<Crop>>, LookError> {
    let begun = Instant::now();
    let found = detector.detect(view, looking.config.detect_width)?;
    let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    let counters = &looking.counters;
    Counters::count(&counters.looked);
    counters.detect_us.fetch_add(took, Relaxed);
    counters.detections.fetch_add(found.len() as u64, Relaxed);
    Ok(found.into_iter().filter_map(|detection| sight(view, frame, detection, looking.margin)).collect())
}

/// Cuts the face out; `None` when its box lies outside the frame.
fn sight(view: &View<'_>, frame: &Frame, detection: Detection, margin: f32) -> Option<Sight<Crop>> {
    let (width, height) = (view.layout().width, view.layout().height);
    let inside = |b: crate::detect::Box2| Area::inside(b.x, b.y, b.w, b.h, width, height);
    let face = inside(detection.bbox)?;
    let area = inside(detection.bbox.padded(margin))?;
    let sharp = sharpness(&crop_luma(view, face), face.w as usize);
    let crop = Crop {
        rgb: crop_rgb(view, area),
        area,
        frame: (width, height),
        sharpness: sharp,
        origin: frame.origin.clone(),
    };
    let Stamp { at_ms, time_ms, .. } = frame.stamp;
    Some(Sight { quality: quality(&detection, sharp), detection, at_ms, time_ms, crop })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::{Box2, Score};
    use crate::frame::{Layout, Matrix};

    #[test]
    fn a_crop_has_its_margin_and_stays_inside_the_frame() {
        let layout = Layout::packed(Format::Grey, 100, 80, 0, Matrix::Bt601).unwrap();
        let stamp = Stamp { camera: 0, at_ms: 7, time_ms: 8, still_until_ms: None };
        let frame = Frame { stamp, layout, data: vec![9; layout.bytes], origin: None };
        let face = |x, y| Detection {
            bbox: Box2 { x, y, w: 20.0, h: 20.0 },
            score: Score::Probability(1.0),
            landmarks: None,
        };
        let view = frame.view().unwrap();
        let middle = sight(&view, &frame, face(40.0, 30.0), 0.25).unwrap();
        assert_eq!(middle.crop.area, Area { x: 35, y: 25, w: 30, h: 30 });
        assert_eq!(middle.crop.rgb.data.len(), 30 * 30 * 3);
        assert_eq!((middle.at_ms, middle.time_ms, middle.crop.frame), (7, 8, (100, 80)));
        let corner = sight(&view, &frame, face(-5.0, 70.0), 0.25).unwrap();
        assert_eq!(corner.crop.area, Area { x: 0, y: 65, w: 20, h: 15 });
        assert!(sight(&view, &frame, face(200.0, 0.0), 0.25).is_none());
    }

    /// A camera's JPEG of a textured scene with a bright square at `x`.
    fn jpeg(x: usize) -> Vec<u8> {
        let (w, h) = (320usize, 240usize);
        let mut pixels: Vec<u8> = (0..w * h).map(|n| 60 + ((n % w) / 9 + (n / w) / 7) as u8 % 90).collect();
        for row in 100..160 {
            pixels[row * w + x..row * w + x + 60].fill(230);
        }
        let mut file = Vec::new();
        let encoder = jpeg_encoder::Encoder::new(&mut file, 85);
        encoder.encode(&pixels, w as u16, h as u16, jpeg_encoder::ColorType::Luma).unwrap();
        file
    }

    #[test]
    fn a_still_mjpg_stream_is_decoded_and_not_searched() {
        let cascade = "/usr/share/opencv4/haarcascades/haarcascade_frontalface_default.xml";
        if !std::path::Path::new(cascade).exists() {
            return println!("skipped: a_still_mjpg_stream: the package opencv-data is not installed");
        }
        let counters: Arc<Counters> = Arc::default();
        let (mut looking, mut detector) = looking(&counters);
        let mut look_at = |x: usize, at_ms: u64| {
            let mut frame = mjpg(jpeg(x), at_ms);
            let found = look(&mut looking, &mut detector, &mut frame).unwrap();
            (found.is_some(), frame.stamp.still_until_ms)
        };
        // The first frame and the time after it pass; then it is quiet until something moves.
        assert_eq!([0, 100, 499].map(|at| look_at(50, at)), [(true, None); 3]);
        assert_eq!([600, 800, 1000].map(|at| look_at(50, at)), [(false, None); 3]);
        assert!(counters.closed.load(Relaxed));
        assert_eq!(look_at(200, 1200), (true, Some(1000)), "and the stillness before it is passed on");
        assert_eq!((counters.looked.load(Relaxed), counters.gated.load(Relaxed)), (4, 3));
        let rubbish = look(&mut looking, &mut detector, &mut mjpg(b"no jpeg at all".to_vec(), 1300));
        assert!(rubbish.unwrap_err().to_string().contains("not a readable JPEG"));
    }

    fn mjpg(data: Vec<u8>, at_ms: u64) -> Frame {
        let layout = Layout::packed(Format::Mjpg, 320, 240, 0, Matrix::Full).unwrap();
        Frame {
            stamp: Stamp { camera: 0, at_ms, time_ms: 0, still_until_ms: None },
            layout,
            data,
            origin: None,
        }
    }

    /// A camera with the default settings.
    fn looking(counters: &Arc<Counters>) -> (Looking, Detector) {
        let file = std::env::temp_dir().join(format!("faced-worker-{}.toml", std::process::id()));
        std::fs::write(&file, "[[camera]]\nname = \"a\"\nsource = \"v4l:/dev/null\"\n").unwrap();
        let config = Config::load(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let camera = config.cameras[0].clone();
        let gate = Gate::new(camera.gate);
        let looking = Looking { config: camera, margin: 0.2, counters: Arc::clone(counters), gate };
        (looking, Detector::new(&config.detector).unwrap())
    }
}

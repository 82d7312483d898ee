//! JPEG pictures of one stream, for whoever can't play H.264. Runs only while somebody wants them.
//!
//! Owns: a small pipeline of its own beside the encoder; both take the same frame without a copy. Invariants: at most
//! one frame is in the works; more than the wanted rate is not taken. Never: runs the H.264 encoder.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gst::ClockTime;
use gst_app::{AppSink, AppSinkCallbacks, AppSrc};

use super::picture::Shape;
use super::{PipelineError, parse, part, retire, start, watch};

/// What comes out.
#[derive(Debug)]
pub enum Output {
    /// A JPEG file.
    Jpeg(Arc<[u8]>),
    /// The pipeline failed.
    Failed(String),
}

/// A running JPEG encoder.
#[derive(Debug)]
pub struct Still {
    pipeline: gst::Pipeline,
    frames: AppSrc,
    shape: Shape,
    busy: Arc<AtomicBool>,
    interval_ns: u64,
    next_ns: u64,
}

impl Still {
    /// Starts one that makes at most `fps` pictures a second, of `quality` 1 to 100.
    ///
    /// # Errors
    /// [`PipelineError`]: `jpegenc` is missing.
    pub fn new(
        shape: Shape,
        (fps, quality): (u32, u32),
        out: impl Fn(Output) + Send + Sync + 'static,
    ) -> Result<Still, PipelineError> {
        // A JPEG's luma has 256 levels, video's 219. jpegenc takes any I420 for the former, and videoconvert does not convert
        // the one to the other: by way of RGB, black stays black.
        let pipeline = parse(&format!(
            "appsrc name=frames format=time is-live=true ! videoconvert ! \
             video/x-raw,format={{BGR,RGB,BGRx,GRAY8}} ! jpegenc quality={quality} ! appsink name=pictures sync=false async=false enable-last-sample=false"
        ))?;
        let frames: AppSrc = part(&pipeline, "frames")?;
        frames.set_caps(Some(&shape.caps()));
        let pictures: AppSink = part(&pipeline, "pictures")?;
        let (busy, out) = (Arc::new(AtomicBool::new(false)), Arc::new(out));
        let (free, told) = (Arc::clone(&busy), Arc::clone(&out));
        let sample = move |sink: &AppSink| {
            let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
            if let Some(map) = sample.buffer().and_then(|b| b.map_readable().ok()) {
                told(Output::Jpeg(Arc::from(map.as_slice())));
            }
            free.store(false, Ordering::Release);
            Ok(gst::FlowSuccess::Ok)
        };
        pictures.set_callbacks(AppSinkCallbacks::builder().new_sample(sample).build());
        watch(&pipeline, move |why| {
            out(Output::Failed(why.unwrap_or_else(|| "the JPEG encoder came to an end".to_owned())));
        });
        start(&pipeline)?;
        let interval_ns = 1_000_000_000 / u64::from(fps.clamp(1, 1000));
        Ok(Still { pipeline, frames, shape, busy, interval_ns, next_ns: 0 })
    }

    /// Offers a frame; it is taken when a picture is due and the last one is done.
    pub fn offer(&mut self, buffer: &gst::Buffer, shape: Shape, pts_ns: u64) {
        // A quarter of the distance is allowed for, so that 30 frames a second make 5 pictures and not 4.3.
        if pts_ns + self.interval_ns / 4 < self.next_ns || self.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        self.next_ns = self.next_ns.max(pts_ns.saturating_sub(self.interval_ns)) + self.interval_ns;
        if shape != self.shape {
            self.frames.set_caps(Some(&shape.caps()));
            self.shape = shape;
        }
        let mut buffer = buffer.copy();
        buffer.make_mut().set_pts(ClockTime::from_nseconds(pts_ns));
        if self.frames.push_buffer(buffer).is_err() {
            self.busy.store(false, Ordering::Release);
        }
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        retire(&self.pipeline);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use gst_video::VideoFormat;

    use super::super::stop;
    use super::*;

    #[test]
    fn pictures_come_at_the_wanted_rate() {
        super::super::init().unwrap();
        let shape = Shape { format: VideoFormat::Rgb, size: (65, 33), fps: (0, 1) };
        let (tx, rx) = channel();
        let mut still = Still::new(shape, (5, 80), move |out| drop(tx.send(out))).unwrap();
        let frame = gst::Buffer::from_slice(vec![90u8; 196 * 33]);
        let mut made = 0;
        for n in 0..30u64 {
            still.offer(&frame, shape, n * 33_333_333);
            while still.busy.load(Ordering::Acquire) {
                std::thread::sleep(Duration::from_millis(1));
            }
            while let Ok(out) = rx.try_recv() {
                let Output::Jpeg(jpeg) = out else { panic!("{out:?}") };
                assert_eq!(jpeg[..2], [0xff, 0xd8]);
                made += 1;
            }
        }
        // At 0, 200, ... 800 ms, and the last frame, which is a quarter of the distance early.
        assert_eq!(made, 6);
    }

    #[test]
    fn black_and_white_stay_so_in_every_format() {
        super::super::init().unwrap();
        for (format, black, white) in
            [(VideoFormat::I420, 16, 235), (VideoFormat::Bgr, 0, 255), (VideoFormat::Gray8, 0, 255)]
        {
            let shape = Shape { format, size: (64, 32), fps: (0, 1) };
            let mut bytes = vec![128u8; if format == VideoFormat::I420 { 64 * 48 } else { 64 * 32 }];
            if format == VideoFormat::Bgr {
                bytes.resize(64 * 32 * 3, 0);
            }
            let row = if format == VideoFormat::Bgr { 192 } else { 64 };
            for (n, byte) in bytes.iter_mut().take(row * 32).enumerate() {
                *byte = if n % row < row / 2 { black } else { white };
            }
            let (tx, rx) = channel();
            let mut still = Still::new(shape, (5, 100), move |out| drop(tx.send(out))).unwrap();
            still.offer(&gst::Buffer::from_slice(bytes), shape, 0);
            let Output::Jpeg(jpeg) = rx.recv_timeout(Duration::from_secs(20)).unwrap() else { panic!() };
            // By GStreamer's own decoder, whose word for these pixels is 1:4:0:0, as JFIF says.
            let text = "appsrc name=in ! jpegdec ! videoconvert ! video/x-raw,format=GRAY8,colorimetry=1:4:0:0 ! \
                        appsink name=out sync=false";
            let pipeline = parse(text).unwrap();
            let (from, to): (AppSrc, AppSink) =
                (part(&pipeline, "in").unwrap(), part(&pipeline, "out").unwrap());
            start(&pipeline).unwrap();
            from.push_buffer(gst::Buffer::from_slice(jpeg.to_vec())).unwrap();
            from.end_of_stream().unwrap();
            let sample = to.pull_sample().unwrap();
            let map = sample.buffer().unwrap().map_readable().unwrap();
            let found = (map[64 * 16 + 8], map[64 * 16 + 56]);
            stop(&pipeline);
            assert!(found.0 < 4 && found.1 > 251, "{format:?}: {found:?}");
        }
    }
}

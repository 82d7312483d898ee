//! The peer of `faced` in measurements: a bare OpenCV loop with the same detector and nothing around it.
//!
//! Frames come from the same file through the same decoder as BGR, as `cv::VideoCapture` would give them; each is
//! scaled and searched. `bare_loop haar|yunet MODEL WIDTH FILE` prints one line of JSON: frames, faces, milliseconds of
//! wall and CPU time.
#![forbid(unsafe_code)]

use std::error::Error;
use std::time::Instant;

use gst::prelude::*;
use opencv::core::{Mat, Rect, Size, Vector};
use opencv::objdetect::CascadeClassifier;
use opencv::prelude::*;
use opencv::{core, dnn, imgproc};

type Fallible<T> = Result<T, Box<dyn Error>>;

enum Search {
    Haar(CascadeClassifier),
    YuNet(dnn::Net, Vector<String>),
}

fn main() -> Fallible<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kind, model, width, file] = &args[..] else {
        return Err("usage: bare_loop haar|yunet MODEL WIDTH FILE".into());
    };
    core::set_num_threads(1)?;
    let width: i32 = width.parse()?;
    let mut search = match kind.as_str() {
        "haar" => Search::Haar(CascadeClassifier::new(model)?),
        _ => {
            let names =
                ["cls", "obj", "bbox", "kps"].iter().flat_map(|k| [8, 16, 32].map(|s| format!("{k}_{s}")));
            let names: Vec<String> = names.collect();
            Search::YuNet(dnn::read_net_from_onnx(model)?, names.iter().map(String::as_str).collect())
        }
    };
    let begun = Instant::now();
    let (mut frames, mut faces) = (0u64, 0usize);
    for_each_frame(file, |frame| {
        frames += 1;
        faces += look(&mut search, frame, width)?;
        Ok(())
    })?;
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    println!(
        "{{\"frames\": {frames}, \"faces\": {faces}, \"wall_ms\": {}, \"cpu_ms\": {}}}",
        begun.elapsed().as_millis(),
        cpu.tv_sec * 1000 + cpu.tv_nsec / 1_000_000
    );
    Ok(())
}

fn for_each_frame(file: &str, mut work: impl FnMut(&Mat) -> Fallible<()>) -> Fallible<()> {
    gst::init()?;
    let text = "filesrc name=file ! decodebin ! videoconvert ! video/x-raw,format=BGR ! \
                appsink name=sink sync=false max-buffers=1";
    let pipeline = gst::parse::launch(text)?.downcast::<gst::Pipeline>().map_err(|_| "no pipeline")?;
    pipeline.by_name("file").ok_or("no file source")?.set_property("location", file);
    let sink =
        pipeline.by_name("sink").and_then(|s| s.downcast::<gst_app::AppSink>().ok()).ok_or("no sink")?;
    pipeline.set_state(gst::State::Playing)?;
    while let Ok(sample) = sink.pull_sample() {
        let caps = sample.caps().and_then(|c| c.structure(0)).ok_or("no caps")?;
        let (width, height) = (caps.get::<i32>("width")?, caps.get::<i32>("height")?);
        let map = sample.buffer().ok_or("no buffer")?.map_readable()?;
        let stride = (width as usize * 3).next_multiple_of(4);
        let rows = Mat::new_rows_cols_with_data(height, stride as i32, &map[..stride * height as usize])?;
        if stride == width as usize * 3 {
            work(&rows.reshape(3, height)?.try_clone()?)?;
        } else {
            let part = Mat::roi(&rows, Rect::new(0, 0, width * 3, height))?.try_clone()?;
            work(&part.reshape(3, height)?.try_clone()?)?;
        }
    }
    pipeline.set_state(gst::State::Null)?;
    Ok(())
}

fn look(search: &mut Search, frame: &Mat, width: i32) -> Fallible<usize> {
    let size = Size::new(width, frame.rows() * width / frame.cols());
    match search {
        Search::Haar(cascade) => {
            let (mut grey, mut small, mut found) = (Mat::default(), Mat::default(), Vector::<Rect>::new());
            imgproc::cvt_color_def(frame, &mut grey, imgproc::COLOR_BGR2GRAY)?;
            imgproc::resize_def(&grey, &mut small, size)?;
            let side = 48 * width / frame.cols();
            let least = Size::new(side, side);
            cascade.detect_multi_scale(&small, &mut found, 1.2, 5, 0, least, Size::default())?;
            Ok(found.len())
        }
        Search::YuNet(net, names) => {
            let (mut small, mut padded) = (Mat::default(), Mat::default());
            imgproc::resize_def(frame, &mut small, size)?;
            let up = |n: i32| (n + 31) / 32 * 32;
            let (right, bottom) = (up(size.width) - size.width, up(size.height) - size.height);
            core::copy_make_border_def(&small, &mut padded, 0, bottom, 0, right, core::BORDER_CONSTANT)?;
            let blob = dnn::blob_from_image_def(&padded)?;
            net.set_input_def(&blob)?;
            let mut outputs = Vector::<Mat>::new();
            net.forward(&mut outputs, names)?;
            // How many cells of the finest level are a face: the least a caller would have to read.
            let (cls, obj) = (outputs.get(0)?, outputs.get(3)?);
            let pairs = cls.data_typed::<f32>()?.iter().zip(obj.data_typed::<f32>()?);
            Ok(pairs.filter(|(c, o)| (**c * **o).max(0.0).sqrt() > 0.7).count())
        }
    }
}

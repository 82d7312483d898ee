//! A panorama of a session's pictures: OpenCV's Stitcher in SCANS mode (affine, a camera over a table).
//!
//! Invariant: the result has no more pixels than configured, and nothing larger is made on the way: its size is
//! computed from the estimated transforms first. Owns: nothing. Never: keeps pictures.

use opencv::core::{self, CV_32F, Mat, Rect, Size, Vector};
use opencv::imgproc;
use opencv::prelude::*;
use opencv::stitching::{Stitcher, Stitcher_Mode, Stitcher_Status};

use super::picture::{Picture, PictureError};

/// Bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct StitchConfig {
    /// Most pixels of a panorama; a larger one is made smaller. Stitching takes up to about 40 bytes for each, and the
    /// pictures themselves.
    pub pixels_max: u64,
    /// Most pictures of one panorama.
    pub pictures_max: usize,
    /// How sure it must be that two pictures overlap, 0 to 3 (the Stitcher's `panoConfidenceThresh`, which it sets to
    /// 1).
    pub confidence_min: f64,
}

/// Why there is no panorama.
#[derive(Debug, thiserror::Error)]
pub enum StitchError {
    /// There are none.
    #[error("there are no pictures to stitch")]
    None,
    /// Above the bound.
    #[error("{count} pictures are more than the {max} that are stitched; raise stitch.pictures-max")]
    Many {
        /// How many.
        count: usize,
        /// How many are allowed.
        max: usize,
    },
    /// The Stitcher found no way.
    #[error("{count} pictures cannot be stitched: {status}")]
    Status {
        /// How many.
        count: usize,
        /// Its status, and what it means.
        status: &'static str,
    },
    /// The pictures were matched, but not sensibly.
    #[error(
        "{count} pictures cannot be stitched: their estimated places make a panorama of {width}x{height}; the matches are wrong"
    )]
    Size {
        /// How many.
        count: usize,
        /// In pixels of the shrunk pictures.
        width: i32,
        /// In pixels of the shrunk pictures.
        height: i32,
    },
    /// The result is no picture.
    #[error("the panorama of {count} pictures cannot be kept")]
    Picture {
        /// How many.
        count: usize,
        /// Why.
        source: PictureError,
    },
    /// OpenCV refused something.
    #[error("OpenCV failed to {action} of {count} pictures")]
    OpenCv {
        /// As an infinitive.
        action: &'static str,
        /// How many.
        count: usize,
        /// What it says.
        source: opencv::Error,
    },
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Panorama {
    /// The panorama.
    pub picture: Picture,
    /// How many of the pictures it is made of; the Stitcher leaves out what overlaps with nothing.
    pub used: usize,
}

/// How many times as large as all pictures together a panorama may be before its transforms are wrong.
const SPREAD_MAX: f64 = 4.0;

/// Stitches. One picture is its own panorama (shrunk if it is above the bound).
///
/// `shown`, as many and of the same sizes, are what the panorama is made of in the places of the pictures: what is drawn on
/// them is not taken for a feature of the scene.
///
/// # Errors
/// [`StitchError`]; mostly [`StitchError::Status`]: too little overlap, or too little to recognize in it.
pub fn panorama(
    mut pictures: Vec<Picture>,
    mut shown: Option<Vec<Picture>>,
    config: &StitchConfig,
) -> Result<Panorama, StitchError> {
    let count = pictures.len();
    if count > config.pictures_max {
        return Err(StitchError::Many { count, max: config.pictures_max });
    }
    if count < 2 {
        let one = shown.as_mut().unwrap_or(&mut pictures).pop().ok_or(StitchError::None)?;
        return Ok(Panorama { picture: shrunk(one, config.pixels_max)?, used: 1 });
    }
    let failed = |action: &'static str| move |source| StitchError::OpenCv { action, count, source };
    let mats = |pictures: Vec<Picture>| pictures.into_iter().map(Picture::into_mat).collect::<Vec<Mat>>();
    let (mut pictures, mut shown) = (mats(pictures), shown.map(mats));
    let (mut stitcher, used) = loop {
        let stitcher = matched(&pictures, count, config)?;
        let used = stitcher.component().map_err(failed("count the parts"))?;
        match &mut shown {
            // Other pictures are taken only where none was left out: OpenCV numbers those that remain as if all were there.
            Some(shown) if used.len() < pictures.len() => {
                pictures = only(pictures, &used);
                *shown = only(std::mem::take(shown), &used);
            }
            _ => break (stitcher, used.len()),
        }
    };
    let sizes: Vec<Size> =
        pictures.iter().map(Mat::size).collect::<Result<_, _>>().map_err(failed("see the sizes"))?;
    let (scale, pixels) = size(&stitcher, &sizes, count)?;
    // Pixels of the panorama at the size of the pictures.
    let full = pixels / (scale * scale);
    let first = f64::from(sizes[0].width) * f64::from(sizes[0].height);
    let shrink = (config.pixels_max as f64 / full).min(1.0);
    stitcher.set_compositing_resol(shrink * first / 1e6).map_err(failed("set up a Stitcher"))?;
    let mut mat = Mat::default();
    let status = match shown {
        Some(shown) => stitcher.compose_panorama_images(&Vector::<Mat>::from_iter(shown), &mut mat),
        None => stitcher.compose_panorama(&mut mat),
    };
    ok(status.map_err(failed("compose a panorama"))?, count)?;
    let picture = Picture::of(mat).map_err(|source| StitchError::Picture { count, source })?;
    Ok(Panorama { picture: shrunk(picture, config.pixels_max)?, used })
}

/// A Stitcher that knows the places of the pictures, or of some of them. `count` is of all, for errors.
fn matched(
    pictures: &[Mat],
    count: usize,
    config: &StitchConfig,
) -> Result<opencv::core::Ptr<Stitcher>, StitchError> {
    let failed = |action: &'static str| move |source| StitchError::OpenCv { action, count, source };
    // The matching draws random numbers; the same pictures should give the same panorama.
    core::set_rng_seed(0).map_err(failed("seed the matching"))?;
    let mut stitcher = Stitcher::create(Stitcher_Mode::SCANS).map_err(failed("make a Stitcher"))?;
    stitcher.set_pano_confidence_thresh(config.confidence_min).map_err(failed("set up a Stitcher"))?;
    let mats: Vector<Mat> = pictures.iter().cloned().collect();
    let status = stitcher.estimate_transform_def(&mats).map_err(failed("match the features"))?;
    ok(status, count).map(|()| stitcher)
}

/// Those with these numbers.
fn only(pictures: Vec<Mat>, numbers: &Vector<i32>) -> Vec<Mat> {
    let wanted = |n: usize| numbers.iter().any(|number| usize::try_from(number) == Ok(n));
    pictures.into_iter().enumerate().filter(|(n, _)| wanted(*n)).map(|(_, picture)| picture).collect()
}

fn ok(status: Stitcher_Status, count: usize) -> Result<(), StitchError> {
    let status = match status {
        Stitcher_Status::OK => return Ok(()),
        Stitcher_Status::ERR_NEED_MORE_IMGS => {
            "ERR_NEED_MORE_IMGS, no two of them overlap recognizably; take them closer together"
        }
        Stitcher_Status::ERR_HOMOGRAPHY_EST_FAIL => {
            "ERR_HOMOGRAPHY_EST_FAIL, their places cannot be estimated"
        }
        Stitcher_Status::ERR_CAMERA_PARAMS_ADJUST_FAIL => {
            "ERR_CAMERA_PARAMS_ADJUST_FAIL, their places cannot be made to agree"
        }
    };
    Err(StitchError::Status { count, status })
}

/// The scale at which the pictures were matched, and how many pixels the panorama has at it.
fn size(stitcher: &impl StitcherTraitConst, sizes: &[Size], count: usize) -> Result<(f64, f64), StitchError> {
    let failed = |source| StitchError::OpenCv { action: "compute the size of a panorama", count, source };
    let scale = stitcher.work_scale().map_err(failed)?;
    let (places, input) = places(stitcher, sizes, scale).map_err(failed)?;
    let left = places.iter().map(|r| r.x).min().unwrap_or(0);
    let top = places.iter().map(|r| r.y).min().unwrap_or(0);
    let side = |far: Option<i32>, near: i32| far.unwrap_or(near).saturating_sub(near);
    let width = side(places.iter().map(|r| r.x.saturating_add(r.width)).max(), left);
    let height = side(places.iter().map(|r| r.y.saturating_add(r.height)).max(), top);
    let pixels = f64::from(width) * f64::from(height);
    if pixels < 1.0 || pixels > SPREAD_MAX * input {
        return Err(StitchError::Size { count, width, height });
    }
    Ok((scale, pixels))
}

/// Where each picture of the panorama lies in it, and how many pixels they have together; both at this scale.
fn places(
    stitcher: &impl StitcherTraitConst,
    sizes: &[Size],
    scale: f64,
) -> opencv::Result<(Vec<Rect>, f64)> {
    // The affine estimator has no focal length, for which the warper would scale.
    let mut warper = stitcher.warper()?.create(1.0)?;
    let mut places = Vec::new();
    let mut input = 0.0;
    for (camera, index) in stitcher.cameras()?.iter().zip(stitcher.component()?) {
        let Some(size) = usize::try_from(index).ok().and_then(|n| sizes.get(n)) else { continue };
        let side = |n: i32| ((f64::from(n) * scale).round() as i32).max(1);
        let size = Size::new(side(size.width), side(size.height));
        let mut intrinsic = Mat::default();
        camera.k()?.convert_to_def(&mut intrinsic, CV_32F)?;
        places.push(warper.warp_roi(size, &intrinsic, &camera.r())?);
        input += f64::from(size.width) * f64::from(size.height);
    }
    Ok((places, input))
}

/// The same within the bound.
fn shrunk(picture: Picture, pixels_max: u64) -> Result<Picture, StitchError> {
    let (w, h) = (f64::from(picture.width()), f64::from(picture.height()));
    let scale = (pixels_max as f64 / (w * h)).sqrt();
    if scale >= 1.0 {
        return Ok(picture);
    }
    // Rounded down, so that the bound holds.
    let side = |n: f64| ((n * scale) as i32).max(1);
    let mut small = Mat::default();
    imgproc::resize(picture.mat(), &mut small, Size::new(side(w), side(h)), 0.0, 0.0, imgproc::INTER_AREA)
        .map_err(|source| StitchError::OpenCv { action: "shrink a panorama", count: 1, source })?;
    Picture::of(small).map_err(|source| StitchError::Picture { count: 1, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::found::Found;
    use crate::vision::{draw, scene};

    const CONFIG: StitchConfig =
        StitchConfig { pixels_max: 8_000_000, pictures_max: 32, confidence_min: 1.0 };

    /// Crops of `width` every `step` pixels.
    fn strip(scene: &Picture, width: i32, step: i32) -> Vec<Picture> {
        let (w, h) = (scene.width() as i32, scene.height() as i32);
        (0..)
            .map(|n| n * step)
            .take_while(|x| x + width <= w)
            .map(|x| scene.crop(&Found { class: 0, score: 1.0, x1: x, y1: 0, x2: x + width, y2: h }).unwrap())
            .collect()
    }

    #[test]
    fn overlapping_crops_become_the_scene_again() {
        for (seed, w, h) in [(1, 1600, 600), (2, 2400, 900)] {
            let scene = scene::textured(w, h, seed);
            let pictures = strip(&scene, w as i32 / 2, w as i32 / 8);
            assert_eq!(pictures.len(), 5);
            let panorama = panorama(pictures, None, &CONFIG).unwrap();
            assert_eq!(panorama.used, 5);
            let (pw, ph) = (panorama.picture.width(), panorama.picture.height());
            assert!(pw.abs_diff(w) < w / 25 && ph.abs_diff(h) < h / 15, "{pw}x{ph} of {w}x{h}");
        }
    }

    #[test]
    fn what_is_drawn_is_seen_and_not_matched() {
        let scene = scene::textured(1600, 600, 1);
        let mut pictures = strip(&scene, 800, 200);
        // It overlaps with nothing, and is left out.
        pictures.insert(2, Picture::blank(800, 600, [90; 3]).unwrap());
        // The same in every picture: for the matching, these would all be of one place.
        let mark = Found { class: 1, score: 1.0, x1: 300, y1: 150, x2: 500, y2: 450 };
        let drawn = |picture: &Picture| {
            let mut picture = picture.clone();
            draw::boxes(&mut picture, &[(mark, None)]).unwrap();
            picture
        };
        let shown: Vec<_> = pictures.iter().map(drawn).collect();
        let plain = panorama(pictures.clone(), None, &CONFIG).unwrap();
        let both = panorama(pictures, Some(shown.clone()), &CONFIG).unwrap();
        assert_eq!((plain.used, both.used), (5, 5));
        let size = |p: &Panorama| (p.picture.width(), p.picture.height());
        assert_eq!(size(&plain), size(&both));
        assert_ne!(plain.picture.pixels().unwrap(), both.picture.pixels().unwrap());
        let one = panorama(vec![scene.clone()], Some(vec![shown[0].clone()]), &CONFIG).unwrap();
        assert_eq!(one.picture.pixels().unwrap(), shown[0].pixels().unwrap());
    }

    #[test]
    fn a_panorama_is_shrunk_to_its_bound() {
        let scene = scene::textured(1600, 600, 3);
        let config = StitchConfig { pixels_max: 200_000, ..CONFIG };
        let result = panorama(strip(&scene, 800, 200), None, &config).unwrap().picture;
        let pixels = result.width() * result.height();
        assert!((150_000..=200_000).contains(&pixels), "{}x{}", result.width(), result.height());
        let one = panorama(vec![scene.clone()], None, &config).unwrap();
        assert_eq!((one.used, one.picture.width(), one.picture.height()), (1, 730, 273));
        let one = panorama(vec![scene.clone()], None, &CONFIG).unwrap();
        assert_eq!(one.picture.pixels().unwrap(), scene.pixels().unwrap());
    }

    #[test]
    fn what_cannot_be_stitched_says_so() {
        assert!(matches!(panorama(Vec::new(), None, &CONFIG), Err(StitchError::None)));
        let blank = Picture::blank(400, 300, [90; 3]).unwrap();
        let error = panorama(vec![blank.clone(), blank.clone()], None, &CONFIG).unwrap_err().to_string();
        assert!(error.contains("2 pictures") && error.contains("ERR_NEED_MORE_IMGS"), "{error}");
        let two = vec![scene::textured(400, 300, 1), scene::textured(400, 300, 9)];
        let error = panorama(two, None, &CONFIG).unwrap_err().to_string();
        assert!(error.contains("2 pictures"), "{error}");
        let error = panorama(vec![blank; 33], None, &CONFIG).unwrap_err().to_string();
        assert!(error.contains("stitch.pictures-max"), "{error}");
    }
}

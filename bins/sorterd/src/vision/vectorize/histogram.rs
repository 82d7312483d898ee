//! Looks without a model: a Lab colour histogram and the shape of the outline.
//!
//! 1. The object is told from the background in its box's corners, so that the table it lies on does not count.
//! 2. Colours: per channel of Lab the cumulative histogram of the object's pixels, smoothed. Cumulative, because then
//!    the distance of two vectors grows with the distance of two colours; in a plain histogram two reds in different
//!    bins are as far apart as red and blue. Lightness counts less: light varies over the table.
//! 3. Shape: the logarithms of the first three Hu moments, and three ratios: of the outline's area to that of the
//!    smallest rectangle around it and of its convex hull, and of that rectangle's sides. Hu's moments alone hardly
//!    tell a square from a disc. All are free of position, angle and size.
//!
//! Weights make a disc as far from a square as red from orange. Owns: nothing.

use opencv::core::{Mat, Point, Size, Vector};
use opencv::imgproc;
use opencv::prelude::*;

use super::{Error, opencv};
use crate::vision::picture::Picture;

/// Settings: how much each counts, at least 0; 1 is balanced.
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramConfig {
    /// Of the colours.
    pub color_weight: f32,
    /// Of the shape.
    pub shape_weight: f32,
}

/// Values of a vector.
pub const LENGTH: usize = 3 * BINS + SHAPE;

const BINS: usize = 32;
const SHAPE: usize = 6;
/// The longer side to which an object is resized.
const SIDE: i32 = 96;
/// Least distance from the corners' colour that is the object, of 255.
const FAR_MIN: f64 = 12.0;
/// Least share of the box that an object covers; less is a speck of something else.
const COVER_MIN: f64 = 0.1;
/// Weights of L, a and b, of Hu's moments and of the three ratios.
const CHANNELS: [f32; 3] = [0.4, 1.0, 1.0];
const HU: [f32; 3] = [0.5, 0.05, 0.02];
const RATIOS: [f32; 3] = [1.5, 1.0, 0.8];

/// The vectorizer; it keeps nothing from one picture to the next.
#[derive(Debug)]
pub struct Histogram {
    config: HistogramConfig,
}

impl Histogram {
    /// Never fails: there is nothing to load.
    #[must_use]
    pub fn new(config: &HistogramConfig) -> Histogram {
        Histogram { config: config.clone() }
    }

    /// The vector, of [`LENGTH`] values.
    ///
    /// # Errors
    /// [`Error::OpenCv`]
    pub fn vector(&mut self, picture: &Picture) -> Result<Vec<f32>, Error> {
        let lab = lab(picture).map_err(opencv("convert an object to Lab"))?;
        let mask = mask(&lab).map_err(opencv("tell an object from its background"))?;
        let mut vector = colours(&lab, &mask).map_err(opencv("count an object's colours"))?;
        vector.iter_mut().for_each(|v| *v *= self.config.color_weight);
        let shape = shape(&mask).map_err(opencv("measure an object's shape"))?;
        vector.extend(shape.map(|v| v * self.config.shape_weight));
        Ok(vector)
    }
}

fn lab(picture: &Picture) -> opencv::Result<Mat> {
    let (w, h) = (picture.width() as f32, picture.height() as f32);
    let scale = SIDE as f32 / w.max(h);
    let side = |n: f32| ((n * scale).round() as i32).max(1);
    let (mut small, mut smooth, mut lab) = (Mat::default(), Mat::default(), Mat::default());
    let how = if scale < 1.0 { imgproc::INTER_AREA } else { imgproc::INTER_LINEAR };
    imgproc::resize(picture.mat(), &mut small, Size::new(side(w), side(h)), 0.0, 0.0, how)?;
    imgproc::median_blur(&small, &mut smooth, 3)?;
    imgproc::cvt_color_def(&smooth, &mut lab, imgproc::COLOR_BGR2Lab)?;
    Ok(lab)
}

/// 255 where the object is. All of the box, when the corners are like the rest: then the object fills it.
fn mask(lab: &Mat) -> opencv::Result<Mat> {
    let (width, height) = (lab.cols() as usize, lab.rows() as usize);
    let (pixels, _) = lab.data_bytes()?.as_chunks::<3>();
    let background = corners(pixels, width, height);
    let far = |p: &[u8; 3]| {
        let [l, a, b] = std::array::from_fn(|c| f32::from(p[c]) - background[c]);
        // Lightness counts less, because of shadows.
        (0.25 * l * l + a * a + b * b).sqrt().min(255.0) as u8
    };
    let far: Vec<u8> = pixels.iter().map(far).collect();
    let far = Mat::new_rows_cols_with_data(lab.rows(), lab.cols(), &far)?;
    let mut mask = Mat::default();
    let otsu =
        imgproc::threshold(&far, &mut mask, 0.0, 255.0, imgproc::THRESH_BINARY | imgproc::THRESH_OTSU)?;
    if otsu < FAR_MIN {
        imgproc::threshold(&far, &mut mask, FAR_MIN, 255.0, imgproc::THRESH_BINARY)?;
    }
    let covered = f64::from(opencv::core::count_non_zero(&mask)?) / (width * height) as f64;
    if covered < COVER_MIN {
        mask.data_bytes_mut()?.fill(255);
    }
    Ok(mask)
}

/// The colour of the corners: per channel the mean of the middle two of four.
fn corners(pixels: &[[u8; 3]], width: usize, height: usize) -> [f32; 3] {
    let patch = |right: bool, bottom: bool, c: usize| {
        let place =
            |far: bool, n: usize, side: usize| if far { side - 1 - n.min(side - 1) } else { n.min(side - 1) };
        let sum: u32 = (0..9)
            .map(|n| place(bottom, n / 3, height) * width + place(right, n % 3, width))
            .map(|at| u32::from(pixels[at][c]))
            .sum();
        sum as f32 / 9.0
    };
    std::array::from_fn(|c| {
        let mut four =
            [(false, false), (true, false), (false, true), (true, true)].map(|(r, b)| patch(r, b, c));
        four.sort_by(f32::total_cmp);
        (four[1] + four[2]) / 2.0
    })
}

/// Per channel the cumulative histogram of what the mask keeps, each value divided by the square root of the bins.
fn colours(lab: &Mat, mask: &Mat) -> opencv::Result<Vec<f32>> {
    let (pixels, _) = lab.data_bytes()?.as_chunks::<3>();
    let mut counts = [[0u32; BINS]; 3];
    let mut total = 0u32;
    for (pixel, _) in pixels.iter().zip(mask.data_bytes()?).filter(|(_, m)| **m != 0) {
        total += 1;
        for (counts, value) in counts.iter_mut().zip(pixel) {
            counts[usize::from(*value) * BINS / 256] += 1;
        }
    }
    let mut vector = Vec::with_capacity(LENGTH);
    for (counts, weight) in counts.iter().zip(CHANNELS) {
        let mut below = 0.0;
        let cumulative: [f32; BINS] = std::array::from_fn(|n| {
            below += counts[n] as f32 / total.max(1) as f32;
            below
        });
        // Smoothed, so that a colour at the edge of two bins does not jump.
        let at = |n: usize, by: i32| {
            let n = n as i32 + by;
            if n < 0 { 0.0 } else { cumulative[(n as usize).min(BINS - 1)] }
        };
        let smooth = |n: usize| {
            let parts = [(-2, 1.0), (-1, 2.0), (0, 3.0), (1, 2.0), (2, 1.0)];
            parts.iter().map(|(by, part)| part * at(n, *by)).sum::<f32>() / 9.0
        };
        vector.extend((0..BINS).map(|n| weight * smooth(n) / (BINS as f32).sqrt()));
    }
    Ok(vector)
}

/// Hu's moments and the ratios, weighted, of the largest part of the mask.
fn shape(mask: &Mat) -> opencv::Result<[f32; SHAPE]> {
    let mut outlines = Vector::<Vector<Point>>::new();
    imgproc::find_contours_def(mask, &mut outlines, imgproc::RETR_EXTERNAL, imgproc::CHAIN_APPROX_NONE)?;
    let mut largest: Option<(f64, Vector<Point>)> = None;
    for outline in &outlines {
        let area = imgproc::contour_area_def(&outline)?;
        if largest.as_ref().is_none_or(|(most, _)| area > *most) {
            largest = Some((area, outline));
        }
    }
    let Some((area, outline)) = largest.filter(|(area, _)| *area >= 1.0) else { return Ok([0.0; SHAPE]) };
    let mut hu = [0.0; 7];
    imgproc::hu_moments(imgproc::moments_def(&outline)?, &mut hu)?;
    let around = imgproc::min_area_rect(&outline)?.size;
    let mut hull = Vector::<Point>::new();
    imgproc::convex_hull_def(&outline, &mut hull)?;
    let hull = imgproc::contour_area_def(&hull)?;
    let (long, short) = (around.width.max(around.height), around.width.min(around.height));
    let ratios =
        [area / f64::from(long * short).max(1.0), area / hull.max(1.0), f64::from(short / long.max(1.0))];
    // A symmetric shape has zero or noise in the higher moments: below the limit all are the same.
    let moment = |n: usize| hu[n].abs().max(1e-4).log10() as f32;
    let mut shape = [0.0; SHAPE];
    for n in 0..3 {
        shape[n] = HU[n] * moment(n);
        shape[3 + n] = RATIOS[n] * ratios[n] as f32;
    }
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::found::Found;
    use crate::vision::scene::{BLUE, GREEN, RED, Rgb, Scene, YELLOW};
    use crate::vision::{Detector, DetectorConfig, Vectorizer, VectorizerConfig, group};

    fn open(color_weight: f32, shape_weight: f32) -> Vectorizer {
        let config = HistogramConfig { color_weight, shape_weight };
        Vectorizer::open(&VectorizerConfig::Histogram(config)).unwrap()
    }

    /// The groups of all items of the scene, from left to right, as the detector finds them.
    fn groups(scene: &mut Scene, vectorizer: &mut Vectorizer, k: usize) -> Vec<usize> {
        let picture = scene.taken(4.0);
        let config = crate::config::vision::DetectorTable::default().contours();
        let found = Detector::open(&DetectorConfig::Contours(config)).unwrap().detect(&picture).unwrap();
        assert_eq!(found.len(), scene.found.len(), "{found:#?}");
        let crops: Vec<_> = found.iter().map(|f| picture.crop(f).unwrap()).collect();
        let vectors = vectorizer.vectors(&crops).unwrap();
        assert!(vectors.iter().all(|v| v.len() == LENGTH && v.iter().all(|n| n.is_finite())));
        group::kmeans(&vectors, k, 7).unwrap()
    }

    fn draw(scene: &mut Scene, n: usize, shape: usize, colour: Rgb, random: &mut fastrand::Rng) {
        let (x, y) = (70 + 85 * n as i32, random.i32(80..530));
        let size = random.i32(20..34);
        match shape {
            0 => scene.disc(x, y, size, colour),
            1 => scene.square(x, y, 2 * size - 10, random.f32() * 90.0, colour),
            _ => scene.triangle(x, y, 2 * size, colour),
        };
    }

    #[test]
    fn colours_part_whatever_the_shape() {
        let order = [0, 1, 2, 3, 2, 0, 1, 3, 0];
        for seed in 0..12 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut scene = Scene::new(820, 616, seed);
            for (n, colour) in order.iter().enumerate() {
                let shape = random.usize(0..2);
                draw(&mut scene, n, shape, [RED, GREEN, BLUE, YELLOW][*colour], &mut random);
            }
            assert_eq!(groups(&mut scene, &mut open(1.0, 1.0), 4), order, "seed {seed}");
        }
    }

    #[test]
    fn shapes_part_where_the_colour_is_the_same() {
        let order = [0, 1, 2, 0, 2, 1, 1, 0, 2];
        for seed in 0..12 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut scene = Scene::new(820, 616, seed);
            for (n, shape) in order.iter().enumerate() {
                draw(&mut scene, n, *shape, BLUE, &mut random);
            }
            assert_eq!(groups(&mut scene, &mut open(1.0, 1.0), 3), order, "seed {seed}");
        }
    }

    #[test]
    fn weights_decide_between_colour_and_shape() {
        // Two colours in two shapes.
        let items = [(0, RED), (0, GREEN), (1, RED), (1, GREEN), (0, RED), (1, GREEN)];
        for seed in 0..6 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut scene = Scene::new(820, 616, seed);
            for (n, (shape, colour)) in items.iter().enumerate() {
                draw(&mut scene, n, *shape, *colour, &mut random);
            }
            assert_eq!(groups(&mut scene, &mut open(1.0, 0.0), 2), [0, 1, 0, 1, 0, 1], "seed {seed}");
            assert_eq!(groups(&mut scene, &mut open(0.0, 1.0), 2), [0, 0, 1, 1, 0, 1], "seed {seed}");
        }
    }

    #[test]
    fn any_crop_has_a_vector() {
        for (w, h) in [(1, 1), (2, 1), (1, 300), (300, 2), (96, 96), (5, 5)] {
            let picture = Picture::blank(w, h, [10, 200, 90]).unwrap();
            let vectors = open(1.0, 1.0).vectors(&[picture]).unwrap();
            assert!(vectors[0].len() == LENGTH && vectors[0].iter().all(|n| n.is_finite()), "{w}x{h}");
        }
        let scene = Scene::new(100, 100, 1);
        let all = Found { class: 0, score: 1.0, x1: 0, y1: 0, x2: 100, y2: 100 };
        let twice = [scene.picture.crop(&all).unwrap(), scene.picture.clone()];
        let vectors = open(1.0, 1.0).vectors(&twice).unwrap();
        assert_eq!(vectors[0], vectors[1]);
    }
}

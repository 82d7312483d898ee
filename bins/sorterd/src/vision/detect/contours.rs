//! Detection without a model: what differs from a smooth background, and is large enough, is an object; a large one
//! that fills its rectangle is a container.
//!
//! 1. The picture is shrunk to `detect_width`, made Lab and freed of single noisy pixels by a median.
//! 2. The background is fitted as a smooth surface ([`Surface`]), so that uneven light is none of the objects.
//! 3. What is further from it than the contrast is joined where it nearly touches, and outlined. Only outer outlines
//!    count: what lies in a container is sorted already and not found again, nor is a container's pattern.
//! 4. By its area an outline is an item, a container or nothing ([`Rules`]).
//! 5. Of what the picture's edge cuts, only the part that is seen is measured. A container's part is a container as long
//!    as it is large enough: its middle is still within the container. What is too small for one, but as long as its
//!    side, may be a part of one and is nothing: were it an item, the arm would reach for the container.
//!
//! The score is how far the object's colour is from the background's: 0.5 at the contrast, towards 1 above it.
//! Known limits: items that touch are one; an object of the background's colour is none; a hard shadow is one; a
//! container's corner that sticks into the picture by less than a container's side is an item (without `edge_items`, none).

use opencv::core::{self, Mat, Point, Point2f, Rect, RotatedRect, Size, Size2f, Vector};
use opencv::imgproc;
use opencv::prelude::*;

use super::background::{Lab, Surface, distance2};
use super::{Error, opencv};
use crate::found::Found;
use crate::vision::picture::Picture;

/// The background's noise, in deviations, that is none of the objects.
const NOISE: f32 = 4.0;

/// What an outline is, by its area as a share of the picture's and by its fill: the share of the smallest rectangle
/// around it, at any angle, that it covers as far as that is within the picture (1 for a rectangle, 0.79 for a disc).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rules {
    /// Smallest and largest item, 0 to 1.
    pub item_area: (f64, f64),
    /// Smallest and largest container, 0 to 1. Where an outline could be both, it is a container.
    pub container_area: (f64, f64),
    /// Least fill of a container, 0 to 1.
    pub container_fill_min: f64,
}

impl Rules {
    /// The class, or nothing.
    #[must_use]
    pub fn class(&self, area: f64, fill: f64) -> Option<u32> {
        let within = |(min, max): (f64, f64)| (min..=max).contains(&area);
        if within(self.container_area) && fill >= self.container_fill_min {
            return Some(CONTAINER);
        }
        within(self.item_area).then_some(Found::ITEM)
    }

    /// Whether an outline that the picture's edge cuts, this long on its longer side, may be a part of a container;
    /// `side2` is that length squared, as a share of the picture's area.
    #[must_use]
    pub fn may_be_of_container(&self, side2: f64) -> bool {
        side2 >= self.container_area.0
    }
}

const CONTAINER: u32 = 1;

/// Settings of the detector.
#[derive(Debug, Clone, PartialEq)]
pub struct ContoursConfig {
    /// Width to which larger pictures are shrunk, in pixels: accuracy against time.
    pub detect_width: u32,
    /// Least difference from the background, in units of CIE76: 2.3 is barely visible, 100 is black on white.
    pub contrast_min: f32,
    /// Least score, 0 to 1; 0.5 is what the contrast gives.
    pub threshold: f32,
    /// What is what.
    pub rules: Rules,
    /// Whether items count that the picture's edge cuts off. Containers always do.
    pub edge_items: bool,
    /// Most objects on one picture; the largest stay.
    pub found_max: usize,
}

/// The detector; it keeps nothing from one picture to the next.
#[derive(Debug)]
pub struct Contours {
    config: ContoursConfig,
}

impl Contours {
    /// Never fails: there is nothing to load.
    #[must_use]
    pub fn new(config: &ContoursConfig) -> Contours {
        Contours { config: config.clone() }
    }

    /// Items and containers, in no particular order.
    ///
    /// # Errors
    /// [`Error::OpenCv`]
    pub fn detect(&mut self, picture: &Picture) -> Result<Vec<Found>, Error> {
        let (mask, far) = self.foreground(picture)?;
        let mut outlines = Vector::<Vector<Point>>::new();
        imgproc::find_contours_def(
            &mask,
            &mut outlines,
            imgproc::RETR_EXTERNAL,
            imgproc::CHAIN_APPROX_SIMPLE,
        )
        .map_err(opencv("outline the objects"))?;
        let mut found = Vec::new();
        for outline in &outlines {
            found.extend(self.object(picture, &outline, &mask, &far)?);
        }
        found.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        found.truncate(self.config.found_max);
        Ok(found.into_iter().map(|(_, found)| found).collect())
    }

    /// The mask of what is not background, and the distance from the background, cut off at 255; both shrunk.
    fn foreground(&self, picture: &Picture) -> Result<(Mat, Mat), Error> {
        let lab = self.lab(picture)?;
        let pixels = lab.data_bytes().map_err(opencv("reach the pixels"))?;
        let (pixels, _) = pixels.as_chunks::<3>();
        let (width, height) = (lab.cols().unsigned_abs() as usize, lab.rows().unsigned_abs() as usize);
        let surface = Surface::fit(pixels, width, height);
        let contrast = self.contrast(&surface);
        let mut far = vec![0u8; width * height];
        let rows = pixels.chunks_exact(width).zip(far.chunks_exact_mut(width));
        for (y, (pixels, far)) in rows.enumerate() {
            for ((pixel, there), far) in pixels.iter().zip(surface.row(y)).zip(far) {
                *far = units(pixel, there, contrast);
            }
        }
        let far = Mat::new_rows_cols_with_data(lab.rows(), lab.cols(), &far)
            .and_then(|m| m.try_clone())
            .map_err(opencv("keep the distances"))?;
        let mut above = Mat::default();
        imgproc::threshold(&far, &mut above, f64::from(UNIT) - 1.0, 255.0, imgproc::THRESH_BINARY)
            .map_err(opencv("tell objects from the background"))?;
        // What is a hair's breadth apart is one object: a seam, a glint, a line of its drawing.
        let kernel = imgproc::get_structuring_element_def(imgproc::MORPH_ELLIPSE, Size::new(5, 5))
            .map_err(opencv("make a kernel"))?;
        let mut mask = Mat::default();
        imgproc::morphology_ex_def(&above, &mut mask, imgproc::MORPH_CLOSE, &kernel)
            .map_err(opencv("join the parts of objects"))?;
        Ok((mask, far))
    }

    /// The picture, shrunk and as Lab.
    fn lab(&self, picture: &Picture) -> Result<Mat, Error> {
        let (w, h) = (picture.width(), picture.height());
        let width = self.config.detect_width.clamp(1, w);
        let height = ((u64::from(h) * u64::from(width) + u64::from(w) / 2) / u64::from(w)).max(1);
        let mut small = Mat::default();
        let from = if width < w {
            let size = Size::new(width as i32, height as i32);
            imgproc::resize(picture.mat(), &mut small, size, 0.0, 0.0, imgproc::INTER_AREA)
                .map_err(opencv("shrink a picture"))?;
            &small
        } else {
            picture.mat()
        };
        let (mut smooth, mut lab) = (Mat::default(), Mat::default());
        imgproc::median_blur(from, &mut smooth, 5).map_err(opencv("smooth a picture"))?;
        imgproc::cvt_color_def(&smooth, &mut lab, imgproc::COLOR_BGR2Lab)
            .map_err(opencv("convert to Lab"))?;
        Ok(lab)
    }

    fn contrast(&self, surface: &Surface) -> f32 {
        self.config.contrast_min.max(NOISE * surface.deviation)
    }

    /// What the outline is, and its area in pixels.
    fn object(
        &self,
        picture: &Picture,
        outline: &Vector<Point>,
        mask: &Mat,
        far: &Mat,
    ) -> Result<Option<(f64, Found)>, Error> {
        let failed = || opencv("measure an outline");
        let (columns, rows) = (f64::from(mask.cols()), f64::from(mask.rows()));
        let area = imgproc::contour_area_def(outline).map_err(failed())?;
        if area < 1.0 {
            return Ok(None);
        }
        let rect = imgproc::bounding_rect(outline).map_err(failed())?;
        let cut = rect.x <= 0
            || rect.y <= 0
            || rect.x + rect.width >= mask.cols()
            || rect.y + rect.height >= mask.rows();
        let around = imgproc::min_area_rect(outline).map_err(failed())?;
        let whole = f64::from(around.size.width * around.size.height);
        let seen = if cut { within(around, mask).map_err(failed())? } else { whole };
        // The outline runs through the middle of the pixels at the edge.
        let fill = area / seen.max(1.0);
        let Some(class) = self.config.rules.class(area / (columns * rows), fill) else { return Ok(None) };
        let side2 = f64::from(rect.width.max(rect.height)).powi(2) / (columns * rows);
        let rules = &self.config.rules;
        if cut && class == Found::ITEM && (!self.config.edge_items || rules.may_be_of_container(side2)) {
            return Ok(None);
        }
        let score = score(mask, far, rect).map_err(failed())?;
        if score < self.config.threshold {
            return Ok(None);
        }
        let (fx, fy) = (f64::from(picture.width()) / columns, f64::from(picture.height()) / rows);
        let scaled = |n: i32, factor: f64| (f64::from(n) * factor).round() as i32;
        let found = Found {
            class,
            score,
            x1: scaled(rect.x, fx),
            y1: scaled(rect.y, fy),
            x2: scaled(rect.x + rect.width, fx).min(picture.width() as i32),
            y2: scaled(rect.y + rect.height, fy).min(picture.height() as i32),
        };
        Ok(Some((area * fx * fy, found)))
    }
}

/// How much of a rectangle is within the picture, in pixels.
fn within(rect: RotatedRect, picture: &Mat) -> opencv::Result<f64> {
    // As outlines do, it ends in the middle of the pixels at the edge.
    let (width, height) = ((picture.cols() - 1) as f32, (picture.rows() - 1) as f32);
    let middle = Point2f::new(width / 2.0, height / 2.0);
    let all = RotatedRect::new(middle, Size2f::new(width, height), 0.0)?;
    let mut part = Mat::default();
    imgproc::rotated_rectangle_intersection(rect, all, &mut part)?;
    if part.empty() { Ok(0.0) } else { imgproc::contour_area_def(&part) }
}

/// What a pixel at the contrast has in the map of distances.
const UNIT: u8 = 32;

/// The distance from the background in parts of the contrast, of which there are [`UNIT`], up to 255.
fn units(pixel: &Lab, there: [f32; 3], contrast: f32) -> u8 {
    let [l, a, b] = std::array::from_fn(|c| f32::from(pixel[c]) - there[c]);
    // A cast from float saturates.
    (distance2(l, a, b).sqrt() * (f32::from(UNIT) / contrast)) as u8
}

/// d / (d + 1), where d is the mean distance of the object's pixels in units of the contrast.
fn score(mask: &Mat, far: &Mat, rect: Rect) -> opencv::Result<f32> {
    let (mask, far) = (Mat::roi(mask, rect)?, Mat::roi(far, rect)?);
    let mean = core::mean(&far, &mask)?[0] / f64::from(UNIT);
    Ok((mean / (mean + 1.0)) as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vision::Detector;
    use crate::vision::detect::DetectorConfig;
    use crate::vision::scene::{self, BLUE, GREEN, RED, Scene, YELLOW};

    fn config() -> ContoursConfig {
        crate::config::vision::DetectorTable::default().contours()
    }

    fn detect(picture: &Picture, config: ContoursConfig) -> Vec<Found> {
        Detector::open(&DetectorConfig::Contours(config)).unwrap().detect(picture).unwrap()
    }

    /// Everything in shares of 1640 x 1232.
    fn table(width: u32, height: u32, seed: u64) -> Scene {
        let mut scene = Scene::new(width, height, seed);
        let x = |n: i32| n * width as i32 / 1640;
        let y = |n: i32| n * height as i32 / 1232;
        scene
            .disc(x(200), y(200), x(40), RED)
            .disc(x(420), y(880), x(30), GREEN)
            .square(x(640), y(300), x(80), 20.0, BLUE)
            .square(x(300), y(560), x(70), 0.0, YELLOW)
            .triangle(x(800), y(1000), x(90), RED)
            .disc(x(820), y(620), x(35), [25, 25, 28])
            .container((x(1250), y(300)), (x(420), y(320)), 8.0, [90, 60, 35], [140, 105, 70])
            .container((x(1300), y(860)), (x(380), y(440)), 0.0, [235, 238, 240], [30, 60, 90]);
        scene
    }

    #[test]
    fn what_is_drawn_is_found_to_a_few_pixels() {
        for (width, height) in [(1640, 1232), (820, 616), (640, 480), (2592, 1944)] {
            for seed in 0..6 {
                let mut scene = table(width, height, seed);
                let picture = scene.taken(4.0);
                let found = detect(&picture, config());
                let off = 2 + width as i32 / 400;
                scene::assert_same(&found, &scene.sorted(), off, &format!("{width}x{height}, seed {seed}"));
                assert!(found.iter().all(|f| (0.5..=1.0).contains(&f.score)));
            }
        }
    }

    #[test]
    fn an_empty_table_is_empty_in_any_light() {
        for seed in 0..20 {
            let picture = Scene::new(820, 616, seed).taken(6.0);
            assert_eq!(detect(&picture, config()), [], "seed {seed}");
        }
    }

    #[test]
    fn what_lies_in_a_container_is_sorted_already() {
        let mut scene = Scene::new(820, 616, 1);
        scene.container((500, 300), (260, 240), 0.0, [60, 40, 30], [175, 180, 184]).disc(120, 120, 25, RED);
        let expected = scene.sorted();
        scene.disc(500, 300, 22, BLUE);
        scene::assert_same(&detect(&scene.taken(3.0), config()), &expected, 4, "one in the box");
    }

    #[test]
    fn rules_decide_what_is_what() {
        let rules = config().rules;
        let ((item, _), (container, most)) = (rules.item_area, rules.container_area);
        assert_eq!(rules.class(item / 2.0, 1.0), None);
        assert_eq!(rules.class(item * 2.0, 0.8), Some(Found::ITEM));
        assert_eq!(rules.class(container * 1.1, 0.98), Some(CONTAINER));
        assert_eq!(rules.class(container * 1.1, 0.785), Some(Found::ITEM), "a disc is no container");
        assert_eq!(rules.class(most * 1.1, 1.0), None);
        // A faint square: below the contrast it is none; with less asked for, it is.
        let mut scene = Scene::new(820, 616, 2);
        scene.square(300, 300, 60, 0.0, [202, 198, 192]);
        let picture = scene.taken(1.0);
        assert_eq!(detect(&picture, config()), []);
        let faint = ContoursConfig { contrast_min: 3.0, ..config() };
        scene::assert_same(&detect(&picture, faint), &scene.found, 4, "faint");
    }

    #[test]
    fn the_edge_and_the_bound() {
        let mut scene = Scene::new(820, 616, 3);
        scene.disc(5, 200, 30, RED).disc(400, 300, 30, GREEN).disc(600, 300, 40, BLUE);
        let picture = scene.taken(3.0);
        assert_eq!(detect(&picture, config()).len(), 3);
        let whole = ContoursConfig { edge_items: false, ..config() };
        scene::assert_same(&detect(&picture, whole), &scene.found[1..], 4, "whole ones");
        let one = ContoursConfig { found_max: 1, ..config() };
        scene::assert_same(&detect(&picture, one), &scene.found[2..], 4, "the largest");
        let sure = ContoursConfig { threshold: 0.99, ..config() };
        assert_eq!(detect(&picture, sure), []);
    }

    /// A container that is moved out of the picture step by step, over every edge and over a corner, at several angles: it
    /// is found as a container with its middle on the part that is seen, or not at all, never as an item.
    #[test]
    fn a_container_that_the_edge_cuts_is_never_an_item() {
        let (width, height) = (820, 616);
        let (w, h) = (180, 150);
        let paths = [((-1, 0), (0, 300)), ((1, 0), (820, 300)), ((0, -1), (400, 0)), ((0, 1), (400, 616))];
        let mut cut = 0;
        for ((dx, dy), (x, y)) in paths {
            for angle in [0.0, 12.0, -30.0] {
                for out in (-120..=60).step_by(15) {
                    let mut scene = Scene::new(width, height, 5);
                    let at = (x + dx * out, y + dy * out);
                    scene.container(at, (w, h), angle, [60, 40, 30], [90, 70, 52]).disc(600, 150, 30, RED);
                    let what = format!("{angle} degrees, {out} px out of {x},{y}");
                    let found = detect(&scene.taken(3.0), config());
                    let items: Vec<_> = found.iter().filter(|f| f.is_item()).collect();
                    assert_eq!(items.len(), 1, "{what}: {found:?}");
                    let seen = &scene.found[0];
                    for container in found.iter().filter(|f| !f.is_item()) {
                        let (left, top) = (seen.x1.max(0), seen.y1.max(0));
                        let (right, bottom) = (seen.x2.min(width as i32), seen.y2.min(height as i32));
                        let beyond = [
                            left - container.x1,
                            top - container.y1,
                            container.x2 - right,
                            container.y2 - bottom,
                        ];
                        assert!(beyond.iter().all(|n| *n <= 4), "{what}: {container:?} of {seen:?}");
                        // Its middle, seen from the container's own.
                        let middle = |a: i32, b: i32, of: i32| f64::from(a + b) / 2.0 - f64::from(of);
                        let (x, y) = (
                            middle(container.x1, container.x2, at.0),
                            middle(container.y1, container.y2, at.1),
                        );
                        let (sin, cos) = f64::from(angle).to_radians().sin_cos();
                        let (along, across) = (x * cos + y * sin, y * cos - x * sin);
                        let inside = along.abs() <= f64::from(w / 2) && across.abs() <= f64::from(h / 2);
                        assert!(inside, "{what}: the middle of {container:?} is beside it");
                        cut += u32::from(seen.x1 < 0 || seen.y1 < 0 || seen.x2 > 820 || seen.y2 > 616);
                    }
                    // Two thirds of it are enough.
                    let containers = found.len() - items.len();
                    assert!(containers == 1 || (out > -45 && containers == 0), "{what}: {found:?}");
                }
            }
        }
        assert!(cut > 20, "only {cut} were cut");
    }

    #[test]
    fn odd_pictures_give_nothing_and_no_error() {
        for (w, h) in [(1, 1), (2, 3), (1, 400), (400, 1), (7, 7)] {
            let picture = Picture::blank(w, h, [120; 3]).unwrap();
            assert_eq!(detect(&picture, config()), [], "{w}x{h}");
        }
    }
}

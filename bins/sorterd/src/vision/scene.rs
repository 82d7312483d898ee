//! Scenes drawn for tests: coloured shapes and boxes on a noisy, unevenly lit table.

use opencv::core::{Point, Point2f, RotatedRect, Scalar, Size2f, Vector};
use opencv::imgproc;
use opencv::prelude::*;

use super::picture::Picture;
use crate::found::Found;

/// Red, green, blue.
pub type Rgb = [u8; 3];

pub const RED: Rgb = [200, 40, 35];
pub const GREEN: Rgb = [40, 150, 60];
pub const BLUE: Rgb = [40, 70, 180];
pub const YELLOW: Rgb = [220, 190, 40];

fn scalar([r, g, b]: Rgb) -> Scalar {
    Scalar::new(f64::from(b), f64::from(g), f64::from(r), 0.0)
}

/// A scene to be drawn on, and what is on it.
pub struct Scene {
    pub picture: Picture,
    /// In order of drawing.
    pub found: Vec<Found>,
    light: [f64; 5],
    random: fastrand::Rng,
}

impl Scene {
    /// An empty grey table.
    pub fn new(width: u32, height: u32, seed: u64) -> Scene {
        let mut random = fastrand::Rng::with_seed(seed);
        let light = std::array::from_fn(|_| random.f64() * 2.0 - 1.0);
        let picture = Picture::blank(width, height, [176, 182, 186]).unwrap();
        Scene { picture, found: Vec::new(), light, random }
    }

    fn add(&mut self, class: u32, x: i32, y: i32, w: i32, h: i32) {
        self.found.push(Found { class, score: 1.0, x1: x, y1: y, x2: x + w, y2: y + h });
    }

    pub fn disc(&mut self, x: i32, y: i32, radius: i32, colour: Rgb) -> &mut Scene {
        let mat = self.picture.mat_mut();
        imgproc::circle(mat, Point::new(x, y), radius, scalar(colour), imgproc::FILLED, imgproc::LINE_8, 0)
            .unwrap();
        self.add(0, x - radius, y - radius, 2 * radius + 1, 2 * radius + 1);
        self
    }

    /// A rectangle around (x, y) at an angle in degrees.
    pub fn rectangle(
        &mut self,
        class: u32,
        (x, y): (i32, i32),
        (w, h): (i32, i32),
        angle: f32,
        colour: Rgb,
    ) -> &mut Scene {
        let rect = RotatedRect::new(Point2f::new(x as f32, y as f32), Size2f::new(w as f32, h as f32), angle)
            .unwrap();
        let mut corners = [Point2f::default(); 4];
        rect.points(&mut corners).unwrap();
        let corners: Vector<Point> =
            corners.iter().map(|p| Point::new(p.x.round() as i32, p.y.round() as i32)).collect();
        imgproc::fill_convex_poly_def(self.picture.mat_mut(), &corners, scalar(colour)).unwrap();
        let around = imgproc::bounding_rect(&corners).unwrap();
        self.add(class, around.x, around.y, around.width, around.height);
        self
    }

    pub fn square(&mut self, x: i32, y: i32, side: i32, angle: f32, colour: Rgb) -> &mut Scene {
        self.rectangle(0, (x, y), (side, side), angle, colour)
    }

    pub fn triangle(&mut self, x: i32, y: i32, side: i32, colour: Rgb) -> &mut Scene {
        let half = side / 2;
        let corners: Vector<Point> = [(0, -half), (half, half), (-half, half)]
            .iter()
            .map(|(dx, dy)| Point::new(x + dx, y + dy))
            .collect();
        imgproc::fill_convex_poly_def(self.picture.mat_mut(), &corners, scalar(colour)).unwrap();
        self.add(0, x - half, y - half, 2 * half + 1, 2 * half + 1);
        self
    }

    /// A box seen from above: a rim and a bottom of another colour.
    pub fn container(
        &mut self,
        at: (i32, i32),
        (w, h): (i32, i32),
        angle: f32,
        rim: Rgb,
        bottom: Rgb,
    ) -> &mut Scene {
        self.rectangle(1, at, (w, h), angle, rim);
        let rim = w.min(h) / 8;
        self.rectangle(1, at, (w - 2 * rim, h - 2 * rim), angle, bottom);
        self.found.pop();
        self
    }

    /// Takes the picture: uneven light, noise, and once through JPEG.
    pub fn taken(&mut self, noise: f64) -> Picture {
        let (w, h) = (f64::from(self.picture.width()), f64::from(self.picture.height()));
        let columns = self.picture.width() as usize;
        let mut lit = self.picture.clone();
        let pixels = lit.mat_mut().data_bytes_mut().unwrap();
        for (n, pixel) in pixels.chunks_exact_mut(3).enumerate() {
            let (x, y) = ((n % columns) as f64 / w - 0.5, (n / columns) as f64 / h - 0.5);
            let [a, b, c, d, e] = self.light;
            let light = 1.0 + 0.2 * a * x + 0.2 * b * y + 0.3 * c * x * x + 0.3 * d * y * y + 0.2 * e * x * y;
            for value in pixel {
                let noise = noise * (self.random.f64() + self.random.f64() - 1.0) * 2.45;
                *value = (f64::from(*value) * light + noise).round().clamp(0.0, 255.0) as u8;
            }
        }
        Picture::decode(&lit.encode_jpeg(88).unwrap(), 1 << 24).unwrap()
    }

    /// What is on it, in the detector's order.
    pub fn sorted(&self) -> Vec<Found> {
        let mut found = self.found.clone();
        found.sort_by_key(|f| (f.x1, f.y1));
        found
    }
}

/// A scene with something to recognize everywhere.
pub fn textured(width: u32, height: u32, seed: u64) -> Picture {
    let mut scene = Scene::new(width, height, seed);
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..width * height / 2500 {
        let (x, y) = (random.i32(0..width as i32), random.i32(0..height as i32));
        let colour = [random.u8(..), random.u8(..), random.u8(..)];
        let size = random.i32(5..30);
        match random.bool() {
            true => scene.disc(x, y, size / 2, colour),
            false => scene.square(x, y, size, random.f32() * 90.0, colour),
        };
    }
    scene.light = [0.0; 5];
    scene.taken(2.0)
}

/// Whether two lists have the same boxes, to `off` pixels at each side; says which not.
pub fn assert_same(found: &[Found], expected: &[Found], off: i32, what: &str) {
    let close = |a: &Found, b: &Found| {
        let sides = [(a.x1, b.x1), (a.y1, b.y1), (a.x2, b.x2), (a.y2, b.y2)];
        a.class == b.class && sides.iter().all(|(a, b)| (a - b).abs() <= off)
    };
    for e in expected {
        assert!(found.iter().any(|f| close(f, e)), "{what}: {e:?} is not among {found:#?}");
    }
    assert_eq!(found.len(), expected.len(), "{what}: {found:#?}");
}

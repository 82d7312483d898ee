//! The background of a picture as a smooth surface: per channel a polynomial of degree 2 in x and y, fitted so that
//! what lies on it does not count.
//!
//! Light falls off from a lamp or a window smoothly, objects begin at an edge: the surface follows the first and not
//! the second. Owns: the fit. Never: needs an empty picture. Fails when more than about half of the picture is not
//! background; then the largest part of one colour is taken for it.

/// Values of the polynomial at (x, y), each from -1 to 1 over the picture: 1, x, y, x², xy, y².
const TERMS: usize = 6;
/// Samples along the longer side.
const SAMPLES: usize = 64;
/// Fits one after another, each with the weights that the one before gives.
const ROUNDS: usize = 12;
/// Tukey's constant: what is further away than this many deviations does not count at all.
const TUKEY: f64 = 4.685;
/// Least deviation, in units of colour difference: less than this is noise of rounding.
const DEVIATION_MIN: f64 = 0.8;

/// L, a, b as OpenCV packs them into bytes.
pub type Lab = [u8; 3];

/// How far apart two colours are, squared, in units of CIE76: L* has 100 levels in 255 steps, a* and b* one a step.
#[must_use]
pub fn distance2(l: f32, a: f32, b: f32) -> f32 {
    const L: f32 = 100.0 / 255.0;
    (L * l) * (L * l) + a * a + b * b
}

/// The background's colour everywhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Surface {
    /// Per channel the factors of the terms.
    factors: [[f64; TERMS]; 3],
    width: usize,
    height: usize,
    /// Standard deviation of the background around the surface, in units of colour difference.
    pub deviation: f32,
}

struct Sample {
    terms: [f64; TERMS],
    lab: [f64; 3],
}

fn terms(x: usize, y: usize, width: usize, height: usize) -> [f64; TERMS] {
    let unit = |n: usize, side: usize| 2.0 * (n as f64 + 0.5) / side as f64 - 1.0;
    let (x, y) = (unit(x, width), unit(y, height));
    [1.0, x, y, x * x, x * y, y * y]
}

fn at(factors: &[[f64; TERMS]; 3], terms: &[f64; TERMS]) -> [f64; 3] {
    factors.map(|f| f.iter().zip(terms).map(|(f, t)| f * t).sum())
}

impl Surface {
    /// Fits the surface to a picture, `width * height` pixels row by row; at least one.
    #[must_use]
    pub fn fit(lab: &[Lab], width: usize, height: usize) -> Surface {
        let step = width.max(height).div_ceil(SAMPLES).max(1);
        let places = |side: usize| (step / 2..side).step_by(step);
        let mut samples = Vec::new();
        for y in places(height.max(step / 2 + 1)).filter(|y| *y < height) {
            for x in places(width.max(step / 2 + 1)).filter(|x| *x < width) {
                let lab = lab[y * width + x].map(f64::from);
                samples.push(Sample { terms: terms(x, y, width, height), lab });
            }
        }
        if samples.is_empty() {
            samples.extend(lab.first().map(|l| Sample { terms: terms(0, 0, 1, 1), lab: l.map(f64::from) }));
        }
        let mut factors = [[0.0; TERMS]; 3];
        for (channel, factors) in factors.iter_mut().enumerate() {
            factors[0] = median(samples.iter().map(|s| s.lab[channel]).collect());
        }
        let mut deviation = DEVIATION_MIN;
        for round in 0..ROUNDS {
            let far: Vec<f64> = samples.iter().map(|s| residual(&factors, s)).collect();
            // The first rounds see the gradient itself as deviation: with these few terms nothing is far yet.
            deviation = (1.4826 * median(far.clone())).max(DEVIATION_MIN);
            let weight = |far: &f64| (1.0 - (far / (TUKEY * deviation)).powi(2)).max(0.0).powi(2);
            let weights: Vec<f64> = far.iter().map(weight).collect();
            let count = [1, 3, TERMS][round.min(4) / 2];
            for (channel, factors) in factors.iter_mut().enumerate() {
                // Too few samples for the terms: those found so far stay.
                if let Some(found) = least_squares(&samples, &weights, channel, count) {
                    *factors = found;
                }
            }
        }
        // Of what is background, now that this is known.
        let far = samples.iter().map(|s| residual(&factors, s)).filter(|far| *far < TUKEY * deviation);
        let deviation = (1.4826 * median(far.collect())).max(DEVIATION_MIN);
        Surface { factors, width, height, deviation: deviation as f32 }
    }

    /// The background along row `y`, pixel by pixel.
    pub fn row(&self, y: usize) -> impl Iterator<Item = [f32; 3]> {
        // Along a row each channel is a polynomial of degree 2 in x: start, step and step of the step.
        let first = at(&self.factors, &terms(0, y, self.width, self.height));
        let second = at(&self.factors, &terms(1, y, self.width, self.height));
        let dx = 2.0 / self.width as f64;
        let mut value = first.map(|v| v as f32);
        let mut step: [f32; 3] = std::array::from_fn(|c| (second[c] - first[c]) as f32);
        let bend: [f32; 3] = std::array::from_fn(|c| (2.0 * self.factors[c][3] * dx * dx) as f32);
        (0..self.width).map(move |_| {
            let here = value;
            for c in 0..3 {
                value[c] += step[c];
                step[c] += bend[c];
            }
            here
        })
    }
}

fn residual(factors: &[[f64; TERMS]; 3], sample: &Sample) -> f64 {
    let there = at(factors, &sample.terms);
    let [l, a, b] = std::array::from_fn(|c| (sample.lab[c] - there[c]) as f32);
    f64::from(distance2(l, a, b)).sqrt()
}

fn median(mut values: Vec<f64>) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// The first `count` factors of one channel by weighted least squares; `None` when the samples do not determine them.
fn least_squares(samples: &[Sample], weights: &[f64], channel: usize, count: usize) -> Option<[f64; TERMS]> {
    // The normal equations, and the right side as the last column.
    let mut rows = [[0.0; TERMS + 1]; TERMS];
    for (sample, weight) in samples.iter().zip(weights).filter(|(_, w)| **w > 0.0) {
        for (row, term) in rows.iter_mut().zip(&sample.terms).take(count) {
            let part = weight * term;
            row.iter_mut().zip(&sample.terms).take(count).for_each(|(sum, other)| *sum += part * other);
            row[TERMS] += part * sample.lab[channel];
        }
    }
    // Gauss and Jordan, with the largest pivot.
    let scale = rows[0][0];
    for i in 0..count {
        let pivot = (i..count).max_by(|a, b| rows[*a][i].abs().total_cmp(&rows[*b][i].abs()))?;
        rows.swap(i, pivot);
        if rows[i][i].abs() <= 1e-9 * scale {
            return None;
        }
        let row = rows[i];
        for (_, other) in rows.iter_mut().enumerate().take(count).filter(|(n, _)| *n != i) {
            let part = other[i] / row[i];
            other.iter_mut().zip(row).for_each(|(o, r)| *o -= part * r);
        }
    }
    let mut found = [0.0; TERMS];
    for i in 0..count {
        found[i] = rows[i][TERMS] / rows[i][i];
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(x: usize, y: usize, c: usize) -> f64 {
        let (x, y) = (x as f64 / 300.0, y as f64 / 200.0);
        [150.0 + 50.0 * x - 30.0 * y - 20.0 * x * y, 128.0 + 6.0 * x * x, 120.0 + 8.0 * y * y][c]
    }

    #[test]
    fn a_gradient_is_followed_under_a_third_of_objects() {
        let mut random = fastrand::Rng::with_seed(5);
        let mut lab = vec![[0u8; 3]; 300 * 200];
        for (n, pixel) in lab.iter_mut().enumerate() {
            let (x, y) = (n % 300, n / 300);
            let noise = random.f64() * 8.0 - 4.0;
            *pixel = std::array::from_fn(|c| (value(x, y, c) + noise).round() as u8);
            if (20..120).contains(&x) && (30..180).contains(&y) || (200..260).contains(&x) && y < 90 {
                *pixel = [230, 180, 60];
            }
        }
        let surface = Surface::fit(&lab, 300, 200);
        assert!((2.0..5.0).contains(&surface.deviation), "{}", surface.deviation);
        for y in [0, 100, 199] {
            let row: Vec<[f32; 3]> = surface.row(y).collect();
            assert_eq!(row.len(), 300);
            for x in [0, 60, 230, 299] {
                for (c, there) in row[x].iter().enumerate() {
                    let off = f64::from(*there) - value(x, y, c);
                    assert!(off.abs() < 2.5, "{x} {y} {c}: {off}");
                }
            }
        }
    }

    #[test]
    fn tiny_pictures_have_a_background_too() {
        for (w, h) in [(1, 1), (2, 1), (1, 5), (3, 3), (65, 2)] {
            let surface = Surface::fit(&vec![[90, 128, 100]; w * h], w, h);
            for y in 0..h {
                for [l, a, b] in surface.row(y) {
                    assert!(distance2(l - 90.0, a - 128.0, b - 100.0) < 1.0, "{w}x{h}: {l} {a} {b}");
                }
            }
        }
    }
}

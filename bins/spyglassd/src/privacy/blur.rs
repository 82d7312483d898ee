//! Takes the detail out of parts of an I420 picture.
//!
//! A part is reduced to a few cells' means and painted anew between them: what was there can't be had back, and the work
//! is the same for every kind of picture. Owns: nothing. Invariant: no pixel outside the parts changes.

use super::hold::Area;

/// Cells across the larger side of a part: so few that a face, which fills about half of it, is a blot.
const CELLS: usize = 4;
/// Cells across the larger side of a whole picture.
const CELLS_ALL: usize = 8;

/// An I420 picture: where its planes lie in its bytes.
#[derive(Debug)]
pub struct Picture<'a> {
    /// All planes.
    pub data: &'a mut [u8],
    /// Pixels.
    pub size: (u32, u32),
    /// Where the planes begin, in bytes.
    pub offsets: [usize; 3],
    /// Bytes from row to row of each.
    pub strides: [usize; 3],
}

impl Picture<'_> {
    /// Blurs these parts, or everything.
    ///
    /// # Errors
    /// In words: a plane is not where it should be.
    pub fn blur(&mut self, areas: Option<&[Area]>) -> Result<(), String> {
        let (width, height) = (self.size.0 as usize, self.size.1 as usize);
        for plane in 0..3 {
            let half = if plane == 0 { 1 } else { 2 };
            let (w, h, stride) = (width.div_ceil(half), height.div_ceil(half), self.strides[plane]);
            let bytes = self.data.get_mut(self.offsets[plane]..);
            let bytes = bytes.filter(|b| stride >= w && h > 0 && b.len() >= (h - 1) * stride + w);
            let bytes = bytes.ok_or("a frame to be blurred is shorter than its size says")?;
            match areas {
                None => reduce(bytes, stride, [0, 0, w, h], w.max(h).div_ceil(CELLS_ALL)),
                Some(areas) => {
                    for area in areas {
                        // Of the whole part: what is left of it at an edge shows no more than the rest would.
                        let cell = (area.w.max(area.h) / half as f32 / CELLS as f32).ceil() as usize;
                        reduce(bytes, stride, clipped(area, half as f32, (w, h)), cell);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Left, upper, right and lower edge within a plane of `size`; every pixel that is touched is inside.
fn clipped(area: &Area, half: f32, size: (usize, usize)) -> [usize; 4] {
    // `as` takes what is below zero, and what is no number, for 0.
    let low = |at: f32, most: usize| ((at / half).floor() as usize).min(most);
    let high = |at: f32, most: usize| ((at / half).ceil() as usize).min(most);
    [low(area.x, size.0), low(area.y, size.1), high(area.x + area.w, size.0), high(area.y + area.h, size.1)]
}

/// Where a pixel lies between the cells of its row (or column): the cell before it, the one after, and how far on the way
/// in 256ths.
type Between = (usize, usize, u32);

fn between(length: usize, cells: usize) -> Vec<Between> {
    let place = |at: usize| {
        // Centres of cells are at half a cell and then one cell each.
        let x = ((2 * at + 1) * cells * 128 / length).saturating_sub(128);
        let before = (x / 256).min(cells - 1);
        let after = (before + 1).min(cells - 1);
        (before, after, (x % 256) as u32)
    };
    (0..length).map(place).collect()
}

/// Paints these edges' inside anew from the means of cells of `cell` pixels or more.
fn reduce(plane: &mut [u8], stride: usize, [left, top, right, bottom]: [usize; 4], cell: usize) {
    let (w, h) = (right.saturating_sub(left), bottom.saturating_sub(top));
    if w == 0 || h == 0 {
        return;
    }
    let count = |side: usize| (side / cell.max(1)).clamp(1, side);
    let (columns, rows) = (count(w), count(h));
    let mut means = Vec::with_capacity(columns * rows);
    for row in 0..rows {
        let (from, to) = (top + row * h / rows, top + (row + 1) * h / rows);
        for column in 0..columns {
            let (first, last) = (left + column * w / columns, left + (column + 1) * w / columns);
            let sum: u64 = (from..to)
                .flat_map(|y| &plane[y * stride + first..y * stride + last])
                .map(|v| u64::from(*v))
                .sum();
            means.push((sum / ((to - from) * (last - first)) as u64) as u32);
        }
    }
    let across = between(w, columns);
    for (y, (upper, lower, down)) in between(h, rows).into_iter().enumerate() {
        let line = &mut plane[(top + y) * stride + left..][..w];
        for (pixel, (before, after, on)) in line.iter_mut().zip(&across) {
            let mix = |row: usize| {
                let (a, b) = (means[row * columns + before], means[row * columns + after]);
                a * (256 - on) + b * on
            };
            *pixel = ((mix(upper) * (256 - down) + mix(lower) * down) >> 16) as u8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noise, the same each time, of an odd size with gaps between the rows.
    fn noise() -> (Vec<u8>, [usize; 3], [usize; 3]) {
        let mut rng = fastrand::Rng::with_seed(7);
        let bytes = 112 * 75 + 2 * 56 * 38;
        ((0..bytes).map(|_| rng.u8(..)).collect(), [0, 112 * 75, 112 * 75 + 56 * 38], [112, 56, 56])
    }

    fn blurred(areas: Option<&[Area]>) -> (Vec<u8>, Vec<u8>) {
        let (before, offsets, strides) = noise();
        let mut after = before.clone();
        Picture { data: &mut after, size: (101, 75), offsets, strides }.blur(areas).unwrap();
        (before, after)
    }

    /// Mean of the squared difference between neighbours in a row.
    fn detail(luma: &[u8], [left, top, right, bottom]: [usize; 4]) -> f64 {
        let mut sum = 0.0;
        for y in top..bottom {
            for x in left + 1..right {
                sum += (f64::from(luma[y * 112 + x]) - f64::from(luma[y * 112 + x - 1])).powi(2);
            }
        }
        sum / ((bottom - top) * (right - left - 1)) as f64
    }

    #[test]
    fn a_part_loses_its_detail_and_nothing_else_changes() {
        let area = Area { x: 20.5, y: 10.0, w: 40.0, h: 30.0 };
        let (before, after) = blurred(Some(&[area]));
        let inside = [20, 10, 61, 40];
        assert!(detail(&before, inside) > 5000.0 && detail(&after, inside) < 10.0);
        for y in 0..75 {
            for x in 0..112 {
                let touched = (20..61).contains(&x) && (10..40).contains(&y);
                let at = y * 112 + x;
                assert!(touched || before[at] == after[at], "{x} {y}");
            }
        }
        let chroma = |n: usize| (112 * 75 + n) % 56;
        let changed = (0..56 * 38).filter(|n| before[112 * 75 + n] != after[112 * 75 + n]);
        for n in changed {
            assert!((10..31).contains(&(n % 56)) && (5..20).contains(&(n / 56)), "{n} {}", chroma(n));
        }
    }

    #[test]
    fn edges_and_nonsense_are_clipped_and_all_is_all() {
        let odd = [
            Area { x: -50.0, y: -50.0, w: 60.0, h: 60.0 },
            Area { x: 95.0, y: 70.0, w: 1000.0, h: 1000.0 },
            Area { x: 5000.0, y: 5000.0, w: 9.0, h: 9.0 },
            Area { x: f32::NAN, y: 0.0, w: f32::INFINITY, h: -1.0 },
            Area { x: 50.0, y: 50.0, w: 0.5, h: 0.5 },
        ];
        let (before, after) = blurred(Some(&odd));
        assert!(detail(&after, [0, 0, 10, 10]) < 10.0 && detail(&after, [95, 70, 101, 75]) < 10.0);
        // The gap behind each row is nobody's.
        assert!((0..75).all(|y| before[y * 112 + 101..y * 112 + 112] == after[y * 112 + 101..y * 112 + 112]));
        let (_, after) = blurred(None);
        assert!(detail(&after, [0, 0, 101, 75]) < 10.0);
        let (mut data, offsets, strides) = noise();
        let mut short = Picture { data: &mut data[..9000], size: (101, 75), offsets, strides };
        assert!(short.blur(None).is_err());
    }
}
